/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/local.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/parse.h"
#include "perf/doc.h"
#include "perf/stats.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* ---- options ---- */

static int check_number(const json_t *value, const char *name, uint64_t min, uint64_t max,
			uint64_t *ret, struct mf_error *err)
{
	json_int_t number = json_integer_value(value);

	if (!json_is_integer(value) || number < 0 || (uint64_t)number < min ||
	    (uint64_t)number > max)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "--%s: has to be between %" PRIu64 " and %" PRIu64, name, min,
				  max);
	*ret = (uint64_t)number;
	return 0;
}

int local_number(const json_t *options, const char *name, uint64_t min, uint64_t max, uint64_t *ret,
		 struct mf_error *err)
{
	return check_number(json_object_get(options, name), name, min, max, ret, err);
}

int local_list(const json_t *options, const char *name, uint64_t min, uint64_t max,
	       struct perf_list *ret, struct mf_error *err)
{
	const json_t *list = json_object_get(options, name);
	size_t n = json_array_size(list);
	int code = 0;

	if (!n || n > PERF_LIST_MAX)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "--%s: takes 1 to %u values, separated by commas", name,
				  PERF_LIST_MAX);
	for (ret->n = 0; ret->n < n && !code; ret->n++)
		code = check_number(json_array_get(list, ret->n), name, min, max, &ret->at[ret->n],
				    err);
	return code;
}

int local_pages(const json_t *options, struct perf_list *ret, struct mf_error *err)
{
	int code = local_list(options, "page", local_base_page(), UINT64_C(1) << 30, ret, err);

	for (uint32_t i = 0; !code && i < ret->n; i++) {
		if (ret->at[i] & (ret->at[i] - 1))
			code = base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
					  "--page: %" PRIu64 " is no size of pages", ret->at[i]);
	}
	return code;
}

int local_allow(uint64_t bytes, uint64_t max_bytes, struct mf_error *err)
{
	char need[32], have[32];

	if (bytes <= max_bytes)
		return 0;
	return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
			  "%s of memory are more than the server allows, %s; raise its "
			  "--max-memory, or take less",
			  base_format_size(bytes, need, sizeof(need)),
			  base_format_size(max_bytes, have, sizeof(have)));
}

/* ---- memory ---- */

static int explain_map(int code, uint64_t bytes, uint64_t page, bool huge, struct mf_error *err)
{
	char all[32], each[32];

	(void)base_format_size(bytes, all, sizeof(all));
	(void)base_format_size(page, each, sizeof(each));
	if (huge && code == -ENOMEM)
		return base_error(err, code, MF_SCOPE_HOST,
				  "the host has no %s of free huge pages of %s each; reserve them "
				  "in /sys/kernel/mm/hugepages",
				  all, each);
	if (huge)
		return base_error(err, code, MF_SCOPE_HOST,
				  "this kernel has no huge pages of %s; see "
				  "/sys/kernel/mm/hugepages",
				  each);
	return base_error_sys(err, code, MF_SCOPE_HOST, "cannot allocate %s of memory", all);
}

uint64_t local_base_page(void)
{
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

int local_map(uint64_t bytes, uint64_t page, void **ret, struct mf_error *err)
{
	bool huge = page != local_base_page();
	int flags = MAP_SHARED | MAP_ANONYMOUS;

	assert(bytes && (!huge || bytes % page == 0));
	if (huge)
		flags |= MAP_HUGETLB | __builtin_ctzll(page) << MAP_HUGE_SHIFT;
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (at == MAP_FAILED)
		return explain_map(-errno, bytes, page, huge, err);
	if (!huge) /* a row of 4 KiB pages is about those; fails where there are no others */
		(void)madvise(at, bytes, MADV_NOHUGEPAGE);
	*ret = at;
	return 0;
}

int local_populate(void *at, uint64_t bytes, uint64_t page, struct mf_error *err)
{
	int code;

	do
		code = madvise(at, bytes, MADV_POPULATE_WRITE) ? -errno : 0;
	while (code == -EINTR || code == -EAGAIN);
	if (code == -EINVAL) { /* an older kernel */
		for (uint64_t i = 0; i < bytes; i += page)
			__atomic_store_n((char *)at + i, 0, __ATOMIC_RELAXED);
		return 0;
	}
	return code ? base_error_sys(err, code, MF_SCOPE_HOST, "cannot touch the memory") : 0;
}

/* ---- rows ---- */

void local_put_times(json_t *row, const char *key, double *samples, size_t n, double scale)
{
	struct perf_stats stats;

	for (size_t i = 0; i < n; i++)
		samples[i] *= scale;
	perf_stats_of(samples, n, &stats);
	perf_put(row, key, perf_stats_json(&stats));
}

void local_put_rates(json_t *row, const char *key, double *samples, size_t n)
{
	struct perf_stats stats;
	char median[64];

	perf_stats_of_rates(samples, n, &stats);
	(void)snprintf(median, sizeof(median), "median_%s", key);
	perf_put(row, median, json_real(stats.p50));
	perf_put(row, key, perf_stats_json(&stats));
	perf_put(row, "spread_percent",
		 json_real(stats.p50 > 0 ? 100 * (stats.max - stats.min) / stats.p50 : 0));
}

void local_put_cpu(json_t *row, const struct perf_cpu *spent, double bytes)
{
	json_t *cpu = json_object();

	perf_put(cpu, "client", perf_cpu_json(spent));
	perf_put(row, "cpu", cpu);
	if (bytes > 0)
		perf_put(row, "bytes_per_cpu_s", json_real(perf_bytes_per_cpu_s(cpu, bytes)));
}

void local_add_cpu(struct perf_cpu *total, const struct perf_cpu *start)
{
	struct perf_cpu spent;

	perf_cpu_since(start, &spent);
	total->wall_us += spent.wall_us;
	total->user_us += spent.user_us;
	total->system_us += spent.system_us;
	total->host_busy_us += spent.host_busy_us;
	total->host_us += spent.host_us;
}

void local_put_skipped(json_t *row, struct mf_error *err)
{
	perf_put(row, "skipped", json_string(err->msg));
	*err = (struct mf_error){ 0 };
}
