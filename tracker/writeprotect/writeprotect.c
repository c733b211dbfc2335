/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tracking by synchronous userfaultfd write protection: a writer to a protected page waits until a thread of ours has
 * noted the page and taken the protection off.  Linux 5.19 and newer; this and other processes; private memory, tmpfs,
 * memfds and hugetlbfs.  The last resort, because writers wait, and for kernels older than PAGEMAP_SCAN.
 *
 * The invariant, whenever the lock is free: a page that can be written without a fault has its bit in `dirty`.
 *
 *   a fault    locked: set the bits of a run of pages, then unprotect the run and wake its writers
 *   collect    locked: protect the pages whose bits are set, then take the bits
 *
 * Without the lock between them:
 *
 *     collector: protects page 7
 *     writer:    faults at page 7
 *     thread:    sets its bit (it was set), unprotects
 *     collector: takes the bit                               page 7 is writable and has no bit: writes go unnoticed
 *
 * With it, a write that finished before a collect began found the page writable, so its bit was set, and is taken.
 * One under way has either reached memory before the protection came, and whoever copies the page after the collect gets
 * it, or it faults after that and waits for the lock.  Faults are read from the descriptor under the lock as well, by
 * whoever holds it: the thread, or a collector between two steps, so that neither a long collect starves writers nor a
 * fault is noted after a collect that had made its writer go on.
 *
 * Memory that is not there yet: tmpfs and hugetlbfs get a marker in the empty page-table entry, which protects the
 * page to come.  Private memory gets none before Linux 6.4, where nobody negotiates for it; so it is watched for missing
 * pages as well, on every kernel.  A touch there, reading too, is answered as a write is: bit first, then a page of
 * zeroes, writable at the first write without another fault.  A page of private memory is thus protected, or absent
 * (which faults), or has its bit; protecting has no need to know which of the first two it is.  No huge page is made
 * of such memory while it is watched: the kernel asks us first, and makes no huge pages later of protected ones.
 *
 * What it cannot see: writes that reach the memory without the watched page tables (as pagemap.c says), and memory of a
 * file after a hole was punched in it (a balloon).  Writes by the kernel, such as read(2) and KVM's, wait like all others
 * if the userfaultfd was made without UFFD_USER_MODE_ONLY; with it they fail with EFAULT, and must not be let happen.
 *
 * If this process dies, so must the last descriptor of the userfaultfd, for then the kernel lets all writers go.  So who
 * opens this tracker (TRK_CAP_SYNC) closes the one in the watched process as soon as it has a duplicate; writers would
 * otherwise wait for ever.
 */
#include "tracker/tracker.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "base/maps.h"
#include "base/thread.h"
#include "tracker/proc.h"
#include "tracker/uapi.h"
#include "tracker/uffd.h"

#define FEATURES (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

/* What a fault that is none of ours is woken by. */
#define BASE_PAGE UINT64_C(4096)
/* Faults taken by one read(2). */
#define BATCH 64u
/* Faults come in streams: look this long before sleeping (as the pager's user does, and for the same reason). */
#define SPIN_US 60u
/* How long a request may be put off by the watched process changing its mappings. */
#define RETRY_MS 5000
/* Pages handled under one hold of the lock; also the longest gap of clean pages that is protected along with the dirty
 * ones around it, for a second request costs more than the walk over them. */
#define STEP (UINT64_C(64) * 64)
#define GAP  UINT64_C(64)

/*
 * A writer that goes through memory in order is let go by ever longer runs, up to RUN_MAX bytes; a lone write takes its
 * own page only.  STREAMS of them are followed at once, for guests have several processors.
 *
 * Measured on two cores, 256 MiB of a memfd written in order: 2.6 s with single pages, 1.5 s with runs of up to 64 KiB,
 * 1.2 s with 256 KiB.  Always letting go of 64 KiB is as good there (1.4 s), and lets 20,000 random writes finish in 0.5 s
 * instead of 0.75, but reports 65,000 pages for them instead of 17,000, which then travel.
 */
#define RUN_MAX (UINT64_C(256) << 10)
#define STREAMS 8u

struct watched {
	struct trk_range r;
	uint64_t pages;
	uint64_t *dirty; /* see the invariant */
};

/* Where a writer would fault next, and the run it would then get. */
struct stream {
	uint64_t next, pages;
};

struct writeprotect {
	struct trk trk;
	pid_t pid;
	int uffd; /* borrowed */
	int pagemap_fd, stop_fd;
	bool is_started, has_thread;
	pthread_t thread;
	uint32_t n_ranges;
	struct watched *ranges;
	atomic_bool is_stopping;
	pthread_mutex_t lock;
	/* under it */
	uint32_t n_registered; /* ranges */
	struct stream streams[STREAMS];
	unsigned next_stream;
	int lost; /* 0, or why tracking had to be given up to let a writer go on */
	struct uffd_msg msgs[BATCH];
};

extern const struct trk_ops trk_writeprotect_ops;

static struct writeprotect *writeprotect_of(struct trk *trk)
{
	return BASE_CONTAINER_OF(trk, struct writeprotect, trk);
}

static int probe(const struct trk_params *params, struct mf_error *err)
{
	(void)params;
	return uffd_probe(FEATURES, err);
}

/* ---- requests to the kernel ---- */

static int writeprotect_once(int uffd, uint64_t addr, uint64_t len, uint64_t mode)
{
	struct uffdio_writeprotect wp = { .range = { addr, len }, .mode = mode };
	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
}

/* Unprotecting (mode 0) also wakes.  Linux before 6.4 wants each request to be within one mapping and says ENOENT: such
 * an extent is halved until it is. */
static int change(const struct writeprotect *t, const struct trk_range *r, uint64_t addr,
		  uint64_t len, uint64_t mode)
{
	uint64_t end = addr + len, chunk = len, deadline_us = 0;
	while (addr < end) {
		if (chunk > end - addr)
			chunk = end - addr;
		int code = writeprotect_once(t->uffd, addr, chunk, mode);
		if (!code) {
			addr += chunk;
			chunk *= 2;
			deadline_us = 0;
		} else if (code == -ENOENT && chunk > r->page_size) {
			chunk = chunk / r->page_size / 2 * r->page_size;
		} else if (code == -EAGAIN || code == -EINTR) {
			if (!deadline_us)
				deadline_us = base_deadline_ms(RETRY_MS);
			if (base_now_us() >= deadline_us)
				return -ETIMEDOUT;
			(void)sched_yield();
		} else {
			return code;
		}
	}
	return 0;
}

/* Zeroes where nothing is.  Pages that are there stay; wakes all. */
static int fill(const struct writeprotect *t, const struct trk_range *r, uint64_t addr,
		uint64_t len)
{
	uint64_t begin = addr, end = addr + len, deadline_us = base_deadline_ms(RETRY_MS);
	while (addr < end) {
		struct uffdio_zeropage zero = { .range = { addr, end - addr } };
		if (!ioctl(t->uffd, UFFDIO_ZEROPAGE, &zero)) {
			break;
		} else if (zero.zeropage > 0) {
			addr += (uint64_t)zero.zeropage;
		} else if (errno == EEXIST) {
			addr += r->page_size;
		} else if (errno == ENOENT && end - addr > r->page_size) {
			end = addr +
			      r->page_size; /* two mappings: the page asked for is the first */
		} else if ((errno != EAGAIN && errno != EINTR && errno != ENOMEM) ||
			   base_now_us() >= deadline_us) {
			return -errno;
		} else {
			(void)sched_yield();
		}
	}
	uffd_wake(t->uffd, begin, len);
	return 0;
}

static void unregister_all(const struct writeprotect *t)
{
	/* Takes the protection off, and wakes.  Fails only where the mapping or the process is gone.  Nothing that is not
	 * ours: before Linux 6.15 any userfaultfd can undo what another has registered. */
	for (uint32_t i = 0; i < t->n_registered; i++)
		(void)uffd_unregister(t->uffd, t->ranges[i].r.addr, t->ranges[i].r.len);
}

/* ---- faults, under the lock ---- */

static struct watched *find_range(const struct writeprotect *t, uint64_t addr)
{
	for (uint32_t i = 0; i < t->n_ranges; i++) {
		struct watched *w = &t->ranges[i];
		if (addr >= w->r.addr && addr - w->r.addr < w->r.len)
			return w;
	}
	return NULL;
}

/* Number of pages to let go of at once. */
static uint64_t run_at(struct writeprotect *t, const struct watched *w, uint64_t page)
{
	uint64_t addr = w->r.addr + page * w->r.page_size;
	uint64_t most = RUN_MAX / w->r.page_size, n = 1;
	struct stream *s = NULL;
	for (unsigned i = 0; i < STREAMS && !s; i++) {
		if (t->streams[i].next == addr)
			s = &t->streams[i];
	}
	if (s)
		n = s->pages * 2;
	else
		s = &t->streams[t->next_stream++ % STREAMS];
	if (n > most)
		n = most ? most : 1;
	if (n > w->pages - page)
		n = w->pages - page;
	*s = (struct stream){ .next = addr + n * w->r.page_size, .pages = n };
	return n;
}

static void serve_fault(struct writeprotect *t, const struct uffd_msg *msg)
{
	uint64_t addr = msg->arg.pagefault.address;
	struct watched *w = find_range(t, addr);
	if (!w || t->lost) {
		uffd_wake(t->uffd, addr / BASE_PAGE * BASE_PAGE, BASE_PAGE);
		return;
	}
	uint64_t page = (addr - w->r.addr) / w->r.page_size, n = run_at(t, w, page);
	uint64_t at = w->r.addr + page * w->r.page_size, len = n * w->r.page_size;
	bitmap_set(w->dirty, page, n);
	int code = msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP ? change(t, &w->r, at, len, 0)
								     : fill(t, &w->r, at, len);
	if (!code || atomic_load(&t->is_stopping))
		return;
	/* The process is gone, or has mapped something else there; then the writer only has to look again. */
	if (code == -ESRCH || code == -ENOENT) {
		uffd_wake(t->uffd, at, len);
		return;
	}
	/* Better no tracking, which the next collect will say, than a guest that hangs. */
	t->lost = code;
	unregister_all(t);
}

/* Takes and answers faults.  Their number, or why there will be none. */
static int serve(struct writeprotect *t)
{
	ssize_t got = read(t->uffd, t->msgs, sizeof(t->msgs));
	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	int n = (int)((size_t)got / sizeof(t->msgs[0]));
	for (int i = 0; i < n; i++) {
		if (t->msgs[i].event == UFFD_EVENT_PAGEFAULT)
			serve_fault(t, &t->msgs[i]);
	}
	return n;
}

/* ---- the thread ---- */

static int serve_locked(struct writeprotect *t)
{
	(void)pthread_mutex_lock(&t->lock);
	int n = serve(t);
	(void)pthread_mutex_unlock(&t->lock);
	return n;
}

static void *serve_faults(void *arg)
{
	struct writeprotect *t = arg;
	(void)pthread_setname_np(pthread_self(), "mf-protect");
	struct pollfd p[2] = { { .fd = t->uffd, .events = POLLIN },
			       { .fd = t->stop_fd, .events = POLLIN } };
	uint64_t spin_end = 0;
	while (!atomic_load(&t->is_stopping)) {
		int n = serve_locked(t);
		if (n < 0)
			break;
		uint64_t now = base_now_us();
		if (n) {
			spin_end = now + SPIN_US;
		} else if (now < spin_end) {
			for (int i = 0; i < 16; i++)
				base_relax();
		} else if (poll(p, 2, -1) > 0 && p[0].revents & (POLLERR | POLLNVAL)) {
			break;
		}
	}
	if (atomic_load(&t->is_stopping))
		return NULL;
	(void)pthread_mutex_lock(&t->lock);
	t->lost = -EBADF;
	unregister_all(t);
	(void)pthread_mutex_unlock(&t->lock);
	return NULL;
}

/* The program's signals are not for this thread. */
static int start_thread(struct writeprotect *t)
{
	sigset_t all;
	(void)sigfillset(&all);
	int code = base_thread_start(&t->thread, &all, serve_faults, t);
	t->has_thread = code == 0;
	return code;
}

static void stop_thread(struct writeprotect *t)
{
	if (!t->has_thread)
		return;
	base_event_poke(t->stop_fd);
	(void)pthread_join(t->thread,
			   NULL); /* it never sleeps but in poll, and tries for RETRY_MS at most */
	base_event_take(t->stop_fd);
	t->has_thread = false;
}

/* ---- open and close ---- */

static void close_tracker(struct trk *trk)
{
	struct writeprotect *t = writeprotect_of(trk);
	for (uint32_t i = 0; t->ranges && i < t->n_ranges; i++)
		free(t->ranges[i].dirty);
	free(t->ranges);
	base_closep(&t->pagemap_fd);
	base_closep(&t->stop_fd);
	(void)pthread_mutex_destroy(&t->lock);
	free(t);
}

static int allocate(struct writeprotect *t, const struct trk_params *params, struct mf_error *err)
{
	t->n_ranges = params->n_ranges;
	t->ranges = calloc(t->n_ranges, sizeof(*t->ranges));
	bool ok = t->ranges != NULL;
	for (uint32_t i = 0; ok && i < t->n_ranges; i++) {
		struct watched *w = &t->ranges[i];
		w->r = params->ranges[i];
		w->pages = w->r.len / w->r.page_size;
		w->dirty = calloc(bitmap_words(w->pages), sizeof(*w->dirty));
		ok = w->dirty;
	}
	return ok ? 0 : base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the tracker");
}

static int open_files(struct writeprotect *t, const struct trk_params *params, struct mf_error *err)
{
	t->pagemap_fd = proc_open_pagemap(params->pid, err);
	if (t->pagemap_fd < 0)
		return t->pagemap_fd;
	t->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (t->stop_fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_SESSION, "an eventfd cannot be made");
	return uffd_enable(t->uffd, FEATURES, params->ranges[0].addr, params->ranges[0].page_size,
			   err);
}

static int open_tracker(const struct trk_params *params, struct trk **ret_trk, struct mf_error *err)
{
	struct writeprotect *t = calloc(1, sizeof(*t));
	if (!t)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the tracker");
	t->trk.ops = &trk_writeprotect_ops;
	t->pid = params->pid ? params->pid : getpid();
	t->uffd = params->uffd;
	t->pagemap_fd = t->stop_fd = -1;
	(void)pthread_mutex_init(&t->lock, NULL);
	int code = allocate(t, params, err);
	if (!code)
		code = open_files(t, params, err);
	if (code < 0) {
		close_tracker(&t->trk);
		return code;
	}
	*ret_trk = &t->trk;
	return 0;
}

/* ---- start and stop ---- */

static void stop(struct trk *trk)
{
	struct writeprotect *t = writeprotect_of(trk);
	if (!t->is_started)
		return;
	/* Faults are answered until there are none any more, so nobody waits longer than usual. */
	atomic_store(&t->is_stopping, true);
	unregister_all(t);
	stop_thread(t);
	/* Messages that the thread did not get to: their writers were woken by unregistering. */
	for (uint32_t i = 0; i < t->n_ranges; i++)
		uffd_wake(t->uffd, t->ranges[i].r.addr, t->ranges[i].r.len);
	t->is_started = false;
}

struct registering {
	const struct writeprotect *t;
	const struct trk_range *r;
	uint64_t done; /* address: what is before it is registered */
	struct mf_error *err;
};

static int register_mapping(const struct base_mapping *m, void *ctx)
{
	struct registering *c = ctx;
	uint64_t start = m->start > c->r->addr ? m->start : c->r->addr;
	uint64_t end = c->r->addr + c->r->len < m->end ? c->r->addr + c->r->len : m->end;
	uint64_t mode = UFFDIO_REGISTER_MODE_WP, ioctls = UINT64_C(1) << _UFFDIO_WRITEPROTECT;
	if (!m->inode) {
		mode |= UFFDIO_REGISTER_MODE_MISSING;
		ioctls |= UINT64_C(1) << _UFFDIO_ZEROPAGE;
	}
	int code = uffd_register(c->t->uffd, start, end - start, mode, ioctls, c->err);
	if (!code)
		c->done = end;
	return code;
}

/* A descriptor that pagemap made ready lets writers go by itself, and we would see none of them.  This request is for
 * such descriptors only, and fails elsewhere; kernels without it have none. */
static bool is_async(const struct writeprotect *t, const struct trk_range *r)
{
	struct page_region region;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_CHECK_WPASYNC,
		.start = r->addr,
		.end = r->addr + r->page_size,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	return ioctl(t->pagemap_fd, PAGEMAP_SCAN, &arg) >= 0;
}

static int report(const struct writeprotect *t, uint32_t range, int code, struct mf_error *err)
{
	if (!proc_is_alive(t->pagemap_fd, t->ranges[range].r.addr))
		return base_error(err, -ESRCH, MF_SCOPE_SESSION,
				  "process %d is gone, its writes cannot be collected",
				  (int)t->pid);
	if (code == -ENOENT)
		return base_error(err, code, MF_SCOPE_SESSION,
				  "range %u of process %d is not tracked any more: its mapping was "
				  "replaced",
				  range, (int)t->pid);
	return base_error_sys(err, code, MF_SCOPE_SESSION,
			      "range %u of process %d cannot be write-protected", range,
			      (int)t->pid);
}

static int register_range(struct writeprotect *t, uint32_t range, struct mf_error *err)
{
	const struct trk_range *r = &t->ranges[range].r;
	struct registering c = { .t = t, .r = r, .done = r->addr, .err = err };
	if (!proc_is_alive(t->pagemap_fd, r->addr))
		return report(t, range, -ESRCH, err);
	int code = base_each_mapping(t->pid, r->addr, r->len, register_mapping, &c, err);
	if (!code && is_async(t, r))
		code = base_error(err, -EINVAL, MF_SCOPE_SESSION,
				  "the userfaultfd was made ready for asynchronous tracking: "
				  "writeprotect needs one of its own");
	if (code < 0) {
		if (c.done > r->addr)
			(void)uffd_unregister(t->uffd, r->addr, c.done - r->addr);
		return code;
	}
	(void)pthread_mutex_lock(&t->lock);
	t->n_registered = range + 1;
	(void)pthread_mutex_unlock(&t->lock);
	return 0;
}

/* In steps, between which faults are answered: a large range has writers that wait meanwhile. */
static int protect_range(struct writeprotect *t, uint32_t range, struct mf_error *err)
{
	const struct watched *w = &t->ranges[range];
	int code = 0;
	for (uint64_t at = 0; at < w->pages && !code; at += STEP) {
		uint64_t n = w->pages - at < STEP ? w->pages - at : STEP;
		(void)pthread_mutex_lock(&t->lock);
		(void)serve(t);
		code = change(t, &w->r, w->r.addr + at * w->r.page_size, n * w->r.page_size,
			      UFFDIO_WRITEPROTECT_MODE_WP);
		(void)pthread_mutex_unlock(&t->lock);
	}
	return code < 0 ? report(t, range, code, err) : 0;
}

static int start(struct trk *trk, struct mf_error *err)
{
	struct writeprotect *t = writeprotect_of(trk);
	assert(!t->is_started);
	t->is_started = true;
	t->lost = 0;
	t->n_registered = 0;
	atomic_store(&t->is_stopping, false);
	for (uint32_t i = 0; i < t->n_ranges; i++)
		memset(t->ranges[i].dirty, 0,
		       bitmap_words(t->ranges[i].pages) * sizeof(*t->ranges[i].dirty));
	/* The thread first: the first fault may come as soon as something is registered. */
	int code = start_thread(t);
	if (code < 0)
		base_error_sys(err, code, MF_SCOPE_SESSION,
			       "the thread that answers faults cannot be started");
	for (uint32_t i = 0; i < t->n_ranges && !code; i++)
		code = register_range(t, i, err);
	for (uint32_t i = 0; i < t->n_ranges && !code; i++)
		code = protect_range(t, i, err);
	if (code < 0) {
		stop(trk);
		return base_error_prefix(err, "tracking: ") ?: code;
	}
	return 0;
}

/* ---- collect ---- */

/* Protects the dirty pages of [at, end), with clean ones between them where the gap is short. */
static int protect_dirty(const struct writeprotect *t, const struct watched *w, uint64_t at,
			 uint64_t end)
{
	struct extent e, more;
	while (bitmap_next_extent(w->dirty, at, end, STEP, &e)) {
		at = e.first + e.n;
		while (bitmap_next_extent(w->dirty, at, end, STEP, &more) && more.first - at <= GAP)
			at = more.first + more.n;
		int code = change(t, &w->r, w->r.addr + e.first * w->r.page_size,
				  (at - e.first) * w->r.page_size, UFFDIO_WRITEPROTECT_MODE_WP);
		if (code < 0)
			return code;
	}
	return 0;
}

static int collect(struct trk *trk, uint32_t range, uint64_t first, uint64_t n, uint64_t *bits,
		   uint64_t *ret_pages, struct mf_error *err)
{
	struct writeprotect *t = writeprotect_of(trk);
	assert(t->is_started && range < t->n_ranges);
	struct watched *w = &t->ranges[range];
	assert(first <= w->pages && n <= w->pages - first);
	int code = 0;
	for (uint64_t at = first, end; at < first + n && !code; at = end) {
		end = first + n - at < STEP ? first + n : at + STEP;
		(void)pthread_mutex_lock(&t->lock);
		(void)serve(t);
		code = t->lost ?: protect_dirty(t, w, at, end);
		if (!code)
			*ret_pages += bitmap_take(w->dirty, at, end - at, bits, at - first);
		(void)pthread_mutex_unlock(&t->lock);
	}
	if (code < 0)
		return report(t, range, code, err);
	return !n || proc_is_alive(t->pagemap_fd, w->r.addr) ? 0 : report(t, range, -ESRCH, err);
}

const struct trk_ops trk_writeprotect_ops = {
	.name = "writeprotect",
	.caps = TRK_CAP_SYNC | TRK_CAP_NEEDS_UFFD,
	.probe = probe,
	.open = open_tracker,
	.start = start,
	.collect = collect,
	.stop = stop,
	.close = close_tracker,
};
