/* SPDX-License-Identifier: BSD-2-Clause */
/* The userfaultfd pager, off the data path: probe, open, arm, disarm, close. */
#include "tracker/userfault/priv.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/cleanup.h"
#include "tracker/uapi.h"
#include "tracker/uffd.h"

#define BASE_PAGE UINT64_C(4096)

static uint64_t features_for(enum pgr_kind kind, uint64_t page_size)
{
	bool is_huge = page_size > BASE_PAGE;
	if (kind == PGR_ANON)
		return is_huge ? UFFD_FEATURE_MISSING_HUGETLBFS : 0;
	return is_huge ? UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS
		       : UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
}

int pgr_probe(enum pgr_kind kind, uint64_t page_size, struct mf_error *err)
{
	int code = uffd_probe(features_for(kind, page_size), err);
	if (code < 0 || page_size <= BASE_PAGE)
		return code;
	char path[80];
	(void)snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%llukB",
		       (unsigned long long)(page_size >> 10));
	if (access(path, F_OK) < 0)
		return base_error(err, -MF_EKERNEL, MF_SCOPE_HOST,
				  "this host has no huge pages of %llu KiB",
				  (unsigned long long)(page_size >> 10));
	return 0;
}

void pgr_close(struct pgr *pgr)
{
	if (!pgr)
		return;
	free(pgr->runs);
	free(pgr->ranges);
	free(pgr->uffds);
	free(pgr);
}

static void set_range(const struct pgr *pgr, struct pgr_span *to, const struct pgr_range *from)
{
	uint64_t size = from->page_size;
	assert(size && !(size & (size - 1)) && from->len);
	assert(from->addr % size == 0 && from->len % size == 0);
	assert((from->kind == PGR_SHARED) == (from->local != NULL));
	assert((uintptr_t)from->local % size == 0);
	to->range = *from;
	to->pages = from->len / size;
	to->span = (to->pages + pgr->n_shards - 1) / pgr->n_shards;
}

static int set_up(struct pgr *pgr, const struct pgr_params *params, struct mf_error *err)
{
	pgr->n_shards = params->n_uffds;
	pgr->n_ranges = params->n_ranges;
	pgr->uffds = calloc(params->n_uffds, sizeof(*pgr->uffds));
	pgr->ranges = calloc(params->n_ranges, sizeof(*pgr->ranges));
	if (!pgr->uffds || !pgr->ranges)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the pager");

	uint64_t features = 0;
	for (uint32_t i = 0; i < params->n_ranges; i++) {
		set_range(pgr, &pgr->ranges[i], &params->ranges[i]);
		features |= features_for(params->ranges[i].kind, params->ranges[i].page_size);
	}
	for (uint32_t i = 0; i < params->n_uffds; i++) {
		pgr->uffds[i] = params->uffds[i];
		int code = uffd_enable(pgr->uffds[i], features, params->ranges[0].addr,
				       params->ranges[0].page_size, err);
		if (code < 0)
			return code;
	}
	return 0;
}

int pgr_open_userfaultfd(int *ret_fd, struct mf_error *err)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 && errno == EPERM) {
		base_autofd dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
		fd = dev < 0 ? -1 : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	}
	if (fd < 0)
		return base_error_sys(
			err, -errno, MF_SCOPE_HOST,
			"a userfaultfd cannot be made; it needs CAP_SYS_PTRACE, access "
			"to /dev/userfaultfd, or vm.unprivileged_userfaultfd=1");
	*ret_fd = fd;
	return 0;
}

int pgr_open(const struct pgr_params *params, struct pgr **ret_pgr, struct mf_error *err)
{
	assert(params->n_uffds > 0 && params->n_ranges > 0);
	struct pgr *pgr = calloc(1, sizeof(*pgr));
	if (!pgr)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the pager");
	int code = set_up(pgr, params, err);
	if (code < 0) {
		pgr_close(pgr);
		return code;
	}
	*ret_pgr = pgr;
	return 0;
}

int pgr_each_part(const struct pgr *pgr, uint32_t range, uint64_t first, uint64_t end,
		  pgr_part_fn fn, void *ctx)
{
	const struct pgr_span *r = &pgr->ranges[range];
	uint64_t size = r->range.page_size;
	while (first < end) {
		uint64_t shard = first / r->span, stop = (shard + 1) * r->span;
		if (stop > end)
			stop = end;
		int code = fn(pgr->uffds[shard], r->range.addr + first * size,
			      (stop - first) * size, ctx);
		if (code < 0)
			return code;
		first = stop;
	}
	return 0;
}

static int compare_runs(const void *a, const void *b)
{
	const struct pgr_run *x = a, *y = b;
	if (x->range != y->range)
		return x->range < y->range ? -1 : 1;
	return (x->first > y->first) - (x->first < y->first);
}

/* Joins neighbours of one range whose gap is at most max_gap, and `spare` of those one larger. */
static size_t join(struct pgr_run *runs, size_t n, uint64_t max_gap, size_t spare)
{
	size_t last = 0;
	for (size_t i = 1; i < n; i++) {
		struct pgr_run *to = &runs[last];
		bool is_near = runs[i].range == to->range;
		if (is_near && runs[i].first > to->end) {
			uint64_t gap = runs[i].first - to->end;
			is_near = gap <= max_gap || (gap == max_gap + 1 && spare);
			if (is_near && gap > max_gap)
				spare--;
		}
		if (!is_near)
			runs[++last] = runs[i];
		else if (runs[i].end > to->end)
			to->end = runs[i].end;
	}
	return n ? last + 1 : 0;
}

/* Gaps within ranges of at most max_gap pages, in a list that join() has been over. */
static size_t count_gaps(const struct pgr_run *runs, size_t n, uint64_t max_gap)
{
	size_t count = 0;
	for (size_t i = 1; i < n; i++) {
		count += runs[i].range == runs[i - 1].range &&
			 runs[i].first - runs[i - 1].end <= max_gap;
	}
	return count;
}

size_t pgr_merge_runs(struct pgr_run *runs, size_t n, size_t max)
{
	/* Whoever walks a bitmap lists them in order. */
	for (size_t i = 1; i < n; i++) {
		if (compare_runs(&runs[i - 1], &runs[i]) > 0) {
			qsort(runs, n, sizeof(*runs), compare_runs);
			break;
		}
	}
	n = join(runs, n, 0, 0);
	if (n <= max)
		return n;

	/* One gap closed is one run less; gaps between ranges cannot be closed. */
	size_t n_gaps = count_gaps(runs, n, UINT64_MAX);
	size_t close = n - max < n_gaps ? n - max : n_gaps;
	if (!close)
		return n;
	/* The least gap size up to which there are enough gaps to close. */
	uint64_t low = 1, high = 1;
	while (count_gaps(runs, n, high) < close)
		high *= 2;
	while (low < high) {
		uint64_t mid = low + (high - low) / 2;
		if (count_gaps(runs, n, mid) >= close)
			high = mid;
		else
			low = mid + 1;
	}
	return join(runs, n, low - 1, close - count_gaps(runs, n, low - 1));
}

static int list_runs(struct pgr *pgr, const struct pgr_extent *extents, size_t n)
{
	size_t count = n ? n : pgr->n_ranges;
	pgr->runs = calloc(count, sizeof(*pgr->runs));
	if (!pgr->runs)
		return -ENOMEM;
	size_t used = 0;
	for (size_t i = 0; i < count; i++) {
		struct pgr_extent whole = { .range = (uint32_t)i };
		if (!n)
			whole.n = pgr->ranges[i].pages;
		const struct pgr_extent *e = n ? &extents[i] : &whole;
		assert(e->range < pgr->n_ranges && e->first <= pgr->ranges[e->range].pages &&
		       e->n <= pgr->ranges[e->range].pages - e->first);
		if (e->n)
			pgr->runs[used++] = (struct pgr_run){ e->range, e->first, e->first + e->n };
	}
	pgr->n_runs = pgr_merge_runs(pgr->runs, used, PGR_RUNS_MAX);
	return 0;
}

struct registering {
	enum pgr_kind kind;
	struct mf_error *err;
};

static int register_part(int uffd, uint64_t addr, uint64_t len, void *ctx)
{
	const struct registering *reg = ctx;
	uint64_t mode = UFFDIO_REGISTER_MODE_MISSING, need = UINT64_C(1) << _UFFDIO_WAKE;
	if (reg->kind == PGR_SHARED) {
		mode |= UFFDIO_REGISTER_MODE_MINOR;
		need |= UINT64_C(1) << _UFFDIO_CONTINUE;
	} else {
		need |= UINT64_C(1) << _UFFDIO_COPY;
	}
	int code = uffd_register(uffd, addr, len, mode, need, reg->err);
	/* Waiters left by an earlier life, whose reports it took with it: they touch again. */
	if (!code)
		uffd_wake(uffd, addr, len);
	return code;
}

static int unregister_part(int uffd, uint64_t addr, uint64_t len, void *ctx)
{
	(void)ctx;
	int code = uffd_unregister(uffd, addr, len);
	uffd_wake(uffd, addr, len);
	return code;
}

/* A part unregisters as one, whatever of it was registered, by us or by an earlier life; unless its
 * mappings changed to a kind that cannot be watched: then run by run, as far as that goes. */
static int unregister_or_runs(int uffd, uint64_t addr, uint64_t len, void *ctx)
{
	const struct pgr *pgr = ctx;
	if (!unregister_part(uffd, addr, len, NULL))
		return 0;
	for (size_t i = 0; i < pgr->n_runs; i++) {
		const struct pgr_run *run = &pgr->runs[i];
		const struct pgr_range *r = &pgr->ranges[run->range].range;
		uint64_t start = r->addr + run->first * r->page_size;
		uint64_t end = r->addr + run->end * r->page_size;
		start = start < addr ? addr : start;
		end = end > addr + len ? addr + len : end;
		if (start < end)
			(void)unregister_part(uffd, start, end - start, NULL);
	}
	return 0;
}

void pgr_disarm(struct pgr *pgr)
{
	if (!pgr->is_armed)
		return;
	for (uint32_t i = 0; i < pgr->n_ranges; i++)
		(void)pgr_each_part(pgr, i, 0, pgr->ranges[i].pages, unregister_or_runs, pgr);
	pgr->is_armed = false;
}

int pgr_arm(struct pgr *pgr, const struct pgr_extent *extents, size_t n, struct mf_error *err)
{
	assert(!pgr->is_armed && !pgr->runs);
	int code = list_runs(pgr, extents, n);
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "no memory for the list of what to arm");
	pgr->is_armed = true;
	for (size_t i = 0; i < pgr->n_runs; i++) {
		const struct pgr_run *run = &pgr->runs[i];
		struct registering reg = { pgr->ranges[run->range].range.kind, err };
		code = pgr_each_part(pgr, run->range, run->first, run->end, register_part, &reg);
		if (code < 0) {
			pgr_disarm(pgr);
			return code;
		}
	}
	return 0;
}
