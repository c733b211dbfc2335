/* SPDX-License-Identifier: BSD-2-Clause */
/* Shared memory whose pages can be missed, its userfaultfds, its contents here and on the server. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "perf/doc.h"
#include "perf/fault_priv.h"

#define BASE_PAGE   UINT64_C(4096)
#define WRITE_BYTES (UINT64_C(1) << 20) /* of one write that fills the server's memory */
#define FILL_MS     600000u             /* for all of them, over a slow network */

static uint64_t pages_of(const struct perf_fault_params *params)
{
	uint64_t pages = params->bytes / params->page_size;

	return pages - pages % params->uffds;
}

static uint64_t read_huge(uint64_t page_size, const char *what)
{
	uint64_t value = 0;
	char path[96];

	(void)snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB/%s",
		       page_size >> 10, what);
	FILE *f base_cleanup(base_fclosep) = fopen(path, "re");
	if (!f || fscanf(f, "%" SCNu64, &value) != 1)
		return 0;
	return value;
}

const char *perf_fault_why_not(const struct perf_fault_params *params, char *buf, size_t cap)
{
	uint64_t pages = pages_of(params);
	struct mf_error why = { 0 };

	if (!pages) {
		(void)snprintf(buf, cap, "the memory has fewer pages than userfaultfds");
		return buf;
	}
	if (params->page_size == BASE_PAGE)
		return NULL;
	if (pgr_probe(PGR_SHARED, params->page_size, &why)) {
		(void)snprintf(buf, cap, "%s", why.msg);
		return buf;
	}
	uint64_t free_pages = read_huge(params->page_size, "free_hugepages");
	uint64_t reserved = read_huge(params->page_size, "resv_hugepages");
	free_pages = free_pages > reserved ? free_pages - reserved : 0;
	if (free_pages >= pages)
		return NULL;
	(void)snprintf(buf, cap,
		       "%" PRIu64 " huge pages of %" PRIu64 " KiB are needed and %" PRIu64
		       " are free on this host; see vm.nr_hugepages",
		       pages, params->page_size >> 10, free_pages);
	return buf;
}

static int map_one(int fd, uint64_t len, uint8_t **ret, struct mf_error *err)
{
	void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST,
				      "%" PRIu64 " bytes of shared memory", len);
	*ret = map;
	return 0;
}

static int map_memory(struct perf_fault_bench *bench, struct mf_error *err)
{
	uint64_t page_size = bench->params.page_size, len = bench->pages * page_size;
	unsigned flags = MFD_CLOEXEC;

	if (page_size > BASE_PAGE)
		flags |= MFD_HUGETLB | (unsigned)__builtin_ctzll(page_size) << MAP_HUGE_SHIFT;
	base_autofd fd = memfd_create("memferry-perf", flags);
	if (fd < 0 || ftruncate(fd, (off_t)len))
		return base_error_sys(err, -errno, MF_SCOPE_HOST,
				      "%" PRIu64 " bytes of shared memory", len);
	int ret = map_one(fd, len, &bench->guest, err);
	if (!ret)
		ret = map_one(fd, len, &bench->local, err);
	return ret;
}

static int open_uffds(struct perf_fault_bench *bench, struct mf_error *err)
{
	struct mf_error why = { 0 };

	for (uint32_t i = 0; i < bench->params.uffds; i++) {
		if (pgr_open_userfaultfd(&bench->uffds[i], &why))
			return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST, "%s", why.msg);
	}
	return 0;
}

/* Fisher and Yates'. */
static void shuffle(struct perf_fault_bench *bench)
{
	for (uint64_t i = 0; i < bench->pages; i++)
		bench->order[i] = i;
	for (uint64_t i = bench->pages - 1; i; i--) {
		uint64_t k = perf_mix(bench->params.seed * FAULT_STEP + i) % (i + 1);
		uint64_t swapped = bench->order[i];
		bench->order[i] = bench->order[k];
		bench->order[k] = swapped;
	}
}

static int set_up(struct perf_fault_bench *bench, struct mf_error *err)
{
	int ret = pgr_probe(PGR_SHARED, bench->params.page_size, err);

	if (!ret)
		ret = open_uffds(bench, err);
	if (!ret)
		ret = map_memory(bench, err);
	if (ret)
		return ret;
	bench->touches = calloc(bench->pages, sizeof(*bench->touches));
	bench->order = calloc(bench->pages, sizeof(*bench->order));
	bench->samples = calloc(bench->pages, sizeof(*bench->samples));
	if (!bench->touches || !bench->order || !bench->samples)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	for (uint32_t i = 0; i < bench->params.uffds; i++)
		bench->lane_memory[i] = bench->local + i * perf_fault_lane_bytes(bench);
	shuffle(bench);
	return 0;
}

int perf_fault_open(const struct perf_fault_params *params, struct perf_fault_bench **ret,
		    struct mf_error *err)
{
	struct perf_fault_bench *bench = calloc(1, sizeof(*bench));
	char why[160];

	if (!bench)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	for (uint32_t i = 0; i < PERF_UFFDS_MAX; i++)
		bench->uffds[i] = -1;
	bench->params = *params;
	bench->pages = pages_of(params);
	bench->span = bench->pages / params->uffds;
	int code = perf_fault_why_not(params, why, sizeof(why))
			   ? base_error(err, -MF_EREFUSED, MF_SCOPE_HOST, "%s", why)
			   : set_up(bench, err);
	if (code) {
		perf_fault_close(bench);
		return code;
	}
	*ret = bench;
	return 0;
}

void perf_fault_close(struct perf_fault_bench *bench)
{
	if (!bench)
		return;
	uint64_t len = bench->pages * bench->params.page_size;
	if (bench->guest)
		(void)munmap(bench->guest, len);
	if (bench->local)
		(void)munmap(bench->local, len);
	for (uint32_t i = 0; i < PERF_UFFDS_MAX; i++)
		base_closep(&bench->uffds[i]);
	free(bench->touches);
	free(bench->order);
	free(bench->samples);
	free(bench);
}

void *const *perf_fault_memory(const struct perf_fault_bench *bench)
{
	return bench->lane_memory;
}

uint64_t perf_fault_lane_bytes(const struct perf_fault_bench *bench)
{
	return bench->span * bench->params.page_size;
}

uint64_t fault_first_word(uint64_t seed, uint64_t page)
{
	return perf_mix((seed + 1) * FAULT_STEP ^ (page + 1));
}

void fault_write_contents(struct perf_fault_bench *bench)
{
	uint64_t words = bench->params.page_size / 8, *to = (uint64_t *)bench->local;

	for (uint64_t page = 0; page < bench->pages; page++) {
		uint64_t word = fault_first_word(bench->params.seed, page);
		for (uint64_t i = 0; i < words; i++, word += FAULT_STEP)
			*to++ = word;
	}
}

void fault_poison(struct perf_fault_bench *bench)
{
	/* Words of a page's contents differ from each other, so at most one is this. */
	memset(bench->local, 0xa5, bench->pages * bench->params.page_size);
}

uint64_t fault_wrong_word(const struct perf_fault_bench *bench, uint64_t page)
{
	uint64_t size = bench->params.page_size;
	const uint64_t *words = (const uint64_t *)(bench->guest + page * size);
	uint64_t word = fault_first_word(bench->params.seed, page);

	for (uint64_t i = 0; i < size / 8; i++, word += FAULT_STEP) {
		if (words[i] != word)
			return i * 8;
	}
	return UINT64_MAX;
}

static json_t *slot_request(const struct perf_path *path)
{
	json_t *request = json_object();

	perf_put(request, "slot", json_integer(path->slot));
	return request;
}

int fault_keep(struct perf_peer *peer, const struct perf_path *path, struct mf_error *err)
{
	json_t *request = slot_request(path), *answer = NULL;

	/* They sleep between reads, as the source's lanes do. */
	perf_put(request, "busy", json_false());
	int ret = perf_peer_call(peer, "keep", request, base_deadline_ms(PERF_ANSWER_MS), &answer,
				 err);
	json_decref(answer);
	return ret;
}

int fault_keep_stop(struct perf_peer *peer, const struct perf_path *path, struct perf_cpu *server,
		    struct mf_error *err)
{
	json_t *answer = NULL;
	int ret = perf_peer_call(peer, "keep_stop", slot_request(path),
				 base_deadline_ms(PERF_ANSWER_MS), &answer, err);

	if (!ret)
		perf_cpu_parse(json_object_get(answer, "cpu"), server);
	json_decref(answer);
	return ret;
}

static int fill_lane(struct perf_end *end, uint64_t bytes, uint64_t max_op, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(FILL_MS), in_flight = 0;
	uint64_t most = max_op < WRITE_BYTES ? max_op : WRITE_BYTES;

	for (uint64_t at = 0; at < bytes; at += most) {
		struct tp_xfer x = { .local = end->mem + at,
				     .mr = end->mr,
				     .remote = end->remote.addr + at,
				     .key = end->remote.key,
				     .len = bytes - at < most ? bytes - at : most };
		int ret = perf_post_all(end->lane, false, &x, 1, &in_flight, err);
		if (ret)
			return ret;
	}
	return perf_flush(end->lane, true, deadline, &in_flight, err);
}

int perf_fault_fill(struct perf_fault_bench *bench, struct perf_peer *peer, struct perf_path *path,
		    struct mf_error *err)
{
	struct mf_error again = { 0 };
	struct perf_cpu spent;

	fault_write_contents(bench);
	int ret = fault_keep(peer, path, err);
	if (ret)
		return ret;
	for (uint32_t i = 0; !ret && i < path->n; i++)
		ret = fill_lane(&path->end[i], path->bytes, path->limits.max_op, err);
	int stopped = fault_keep_stop(peer, path, &spent, ret ? &again : err);
	return ret ? ret : stopped;
}
