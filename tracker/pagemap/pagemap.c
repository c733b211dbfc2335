/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tracking by the page tables: userfaultfd's asynchronous write protection, read and renewed by
 * PAGEMAP_SCAN.  A write to a protected page makes the kernel drop the protection and go on;
 * nobody waits for us.  Works on this process and, with a userfaultfd made in it, on another.
 *
 * What it cannot see, because no page table of the watched process is involved: writes of other
 * processes that map the same file, of devices, and of the kernel through pages it pinned before
 * a collect and fills after it (direct I/O under way, registered io_uring buffers).
 *
 * The scan must ask for PAGE_IS_WRITTEN and nothing else.  That request takes the kernel's branch
 * which reports an empty page-table entry as written; a shared page swapped out after a write
 * has nothing else to tell it by.
 */
#include "tracker/tracker.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "tracker/proc.h"
#include "tracker/uapi.h"
#include "tracker/uffd.h"

/* Extents taken from the kernel by one call. */
#define VEC_LEN (1u << 14)
/* The kernel's base page; ranges of larger ones are taken for hugetlbfs, see collect(). */
#define BASE_PAGE UINT64_C(4096)
/* How long a request may be put off by the watched process changing its mappings. */
#define RETRY_MS 5000

#define FEATURES                                                            \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | \
	 UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC)

struct pagemap {
	struct trk trk;
	pid_t pid;
	int uffd; /* borrowed */
	int pagemap_fd;
	bool is_started;
	uint32_t n_ranges, n_registered;
	struct trk_range *ranges;
	struct page_region *vec;
};

extern const struct trk_ops trk_pagemap_ops;

static struct pagemap *pagemap_of(struct trk *trk)
{
	return BASE_CONTAINER_OF(trk, struct pagemap, trk);
}

static int probe(const struct trk_params *params, struct mf_error *err)
{
	(void)params;
	char release[80];
	base_autofd fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST,
				      "/proc/self/pagemap cannot be opened");
	/* A wrong size is EINVAL where the request exists, and ENOTTY where it does not. */
	struct pm_scan_arg arg = { .size = 0 };
	if (ioctl(fd, PAGEMAP_SCAN, &arg) < 0 && errno == ENOTTY)
		return base_error(err, -MF_EKERNEL, MF_SCOPE_HOST,
				  "this kernel (%s) has no PAGEMAP_SCAN request, which Linux 6.7 "
				  "brought",
				  uffd_kernel_release(release, sizeof(release)));
	return uffd_probe(FEATURES, err);
}

static void close_tracker(struct trk *trk)
{
	struct pagemap *t = pagemap_of(trk);
	base_closep(&t->pagemap_fd);
	free(t->vec);
	free(t->ranges);
	free(t);
}

static int open_tracker(const struct trk_params *params, struct trk **ret_trk, struct mf_error *err)
{
	struct pagemap *t = calloc(1, sizeof(*t));
	if (!t)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the tracker");
	t->trk.ops = &trk_pagemap_ops;
	t->pid = params->pid ? params->pid : getpid();
	t->uffd = params->uffd;
	t->n_ranges = params->n_ranges;
	t->ranges = calloc(params->n_ranges, sizeof(*t->ranges));
	t->vec = calloc(VEC_LEN, sizeof(*t->vec));
	t->pagemap_fd = proc_open_pagemap(params->pid, err);
	int code = t->pagemap_fd < 0 ? t->pagemap_fd : 0;
	if (code == 0 && (!t->ranges || !t->vec))
		code = base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the tracker");
	if (code == 0)
		code = uffd_enable(t->uffd, FEATURES, params->ranges[0].addr,
				   params->ranges[0].page_size, err);
	if (code < 0) {
		close_tracker(&t->trk);
		return code;
	}
	memcpy(t->ranges, params->ranges, params->n_ranges * sizeof(*t->ranges));
	*ret_trk = &t->trk;
	return 0;
}

static int protect(const struct pagemap *t, uint64_t addr, uint64_t len)
{
	struct uffdio_writeprotect wp = { .range = { addr, len },
					  .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	uint64_t deadline = base_deadline_ms(RETRY_MS);
	while (ioctl(t->uffd, UFFDIO_WRITEPROTECT, &wp) < 0) {
		if ((errno != EAGAIN && errno != EINTR) || base_now_us() >= deadline)
			return -errno;
	}
	return 0;
}

/* Number of extents found in [*at, end), left in vec; *at moves to where the scan stopped, or stays
 * where it was when the kernel can do nothing there.
 *
 * The kernel's walk_end is right when the vector is full.  Otherwise the walk went to the end, but
 * walk_end may be left over from a pause that the kernel makes every 512 extents. */
static long scan(const struct pagemap *t, uint64_t flags, uint64_t *at, uint64_t end)
{
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = flags | PM_SCAN_CHECK_WPASYNC,
		.start = *at,
		.end = end,
		.vec = (uintptr_t)t->vec,
		.vec_len = VEC_LEN,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int n;
	do {
		n = ioctl(t->pagemap_fd, PAGEMAP_SCAN, &arg);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (n == VEC_LEN)
		*at = arg.walk_end > t->vec[n - 1].end ? arg.walk_end : t->vec[n - 1].end;
	else if (n || arg.walk_end != *at)
		*at = end;
	return n;
}

/* A dead address space reads as one where nothing was written: ask whether it was there all along. */
static int scan_failed(const struct pagemap *t, uint32_t range, int code, struct mf_error *err)
{
	if (!proc_is_alive(t->pagemap_fd, t->ranges[range].addr))
		return base_error(err, -ESRCH, MF_SCOPE_SESSION,
				  "process %d is gone, its writes cannot be collected",
				  (int)t->pid);
	if (code == -EPERM)
		return base_error(err, code, MF_SCOPE_SESSION,
				  "range %u of process %d is not tracked any more: its mapping was "
				  "replaced",
				  range, (int)t->pid);
	return base_error_sys(err, code, MF_SCOPE_SESSION,
			      "the writes to range %u of process %d cannot be collected", range,
			      (int)t->pid);
}

static void stop(struct trk *trk)
{
	struct pagemap *t = pagemap_of(trk);
	if (!t->is_started)
		return;
	/* Clears the protection too.  Fails only where the mapping or the process is gone.  Nothing that is not ours: before
	 * Linux 6.15 any userfaultfd can undo what another has registered. */
	for (uint32_t i = 0; i < t->n_registered; i++)
		(void)uffd_unregister(t->uffd, t->ranges[i].addr, t->ranges[i].len);
	t->is_started = false;
}

static int start_range(struct pagemap *t, uint32_t i, struct mf_error *err)
{
	const struct trk_range *r = &t->ranges[i];
	int code = uffd_register(t->uffd, r->addr, r->len, UFFDIO_REGISTER_MODE_WP,
				 UINT64_C(1) << _UFFDIO_WRITEPROTECT, err);
	if (code < 0)
		return code;
	t->n_registered = i + 1;
	/* Before the first page is protected: a descriptor from an earlier life could be a
	 * synchronous one, under which the first write would wait for ever. */
	uint64_t at = r->addr;
	long n = scan(t, 0, &at, r->addr + r->page_size);
	if (n < 0)
		return scan_failed(t, i, (int)n, err);
	code = protect(t, r->addr, r->len);
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "range %u of process %d cannot be write-protected", i,
				      (int)t->pid);
	return 0;
}

static int start(struct trk *trk, struct mf_error *err)
{
	struct pagemap *t = pagemap_of(trk);
	assert(!t->is_started);
	t->is_started = true;
	t->n_registered = 0;
	for (uint32_t i = 0; i < t->n_ranges; i++) {
		int code = start_range(t, i, err);
		if (code < 0) {
			stop(trk);
			return base_error_prefix(err, "tracking: ") ?: code;
		}
	}
	return 0;
}

/* Turns extents of addresses into bits.  `next` is the first page not yet counted: a page larger
 * than the kernel's may turn up in several extents. */
struct sink {
	uint64_t *bits;
	uint64_t base; /* address of bit 0 */
	uint64_t page_size;
	uint64_t next;
	uint64_t pages;
};

static void take(struct sink *to, const struct page_region *region)
{
	uint64_t first = (region->start - to->base) / to->page_size;
	uint64_t end = (region->end - to->base + to->page_size - 1) / to->page_size;
	bitmap_set(to->bits, first, end - first);
	if (first < to->next)
		first = to->next;
	if (first < end) {
		to->pages += end - first;
		to->next = end;
	}
}

/*
 * Base pages are read and protected again by one request.  The kernel (6.7 to at least 6.18) can do
 * that for huge pages of 2 MiB, not for larger ones, where it returns without progress; so all
 * huge pages are first read and then, those reported, protected.  No write is lost between: an
 * unreported page is still protected, and a reported one is copied only after we return.
 */
static int collect_pages(const struct pagemap *t, uint32_t range, uint64_t at, uint64_t end,
			 struct sink *to, struct mf_error *err)
{
	bool is_huge = to->page_size > BASE_PAGE;
	while (at < end) {
		uint64_t from = at;
		long n = scan(t, is_huge ? 0 : PM_SCAN_WP_MATCHING, &at, end);
		if (n < 0)
			return scan_failed(t, range, (int)n, err);
		int code = 0;
		for (long i = 0; i < n; i++) {
			const struct page_region *e = &t->vec[i];
			take(to, e);
			if (is_huge && !code)
				code = protect(t, e->start, e->end - e->start);
		}
		if (code < 0)
			return scan_failed(t, range, code, err);
		if (at <= from)
			return base_error(
				err, -EINVAL, MF_SCOPE_SESSION,
				"range %u of process %d cannot be collected: its pages are "
				"larger than %llu bytes",
				range, (int)t->pid, (unsigned long long)to->page_size);
	}
	return 0;
}

static int collect(struct trk *trk, uint32_t range, uint64_t first, uint64_t n, uint64_t *bits,
		   uint64_t *ret_pages, struct mf_error *err)
{
	struct pagemap *t = pagemap_of(trk);
	assert(t->is_started && range < t->n_ranges);
	const struct trk_range *r = &t->ranges[range];
	assert(first <= r->len / r->page_size && n <= r->len / r->page_size - first);
	if (!n)
		return 0;

	uint64_t at = r->addr + first * r->page_size;
	struct sink to = { .bits = bits, .base = at, .page_size = r->page_size };
	int code = collect_pages(t, range, at, at + n * r->page_size, &to, err);
	/* Also after a failure: what was found is protected again and will not be found twice. */
	*ret_pages += to.pages;
	if (code < 0)
		return code;
	return proc_is_alive(t->pagemap_fd, r->addr) ? 0 : scan_failed(t, range, -ESRCH, err);
}

const struct trk_ops trk_pagemap_ops = {
	.name = "pagemap",
	.caps = TRK_CAP_NEEDS_UFFD,
	.probe = probe,
	.open = open_tracker,
	.start = start,
	.collect = collect,
	.stop = stop,
	.close = close_tracker,
};
