/* SPDX-License-Identifier: BSD-2-Clause */
/* The userfaultfd pager's data path: reading faults and completing extents.  Allocates nothing. */
#include "tracker/userfault/priv.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "tracker/uapi.h"
#include "tracker/uffd.h"

/* Faults taken by one read(2). */
#define BATCH 64u
/* How long a completion may be put off by the watched process changing its mappings. */
#define RETRY_MS 5000

int pgr_fd(const struct pgr *pgr, uint32_t shard)
{
	assert(shard < pgr->n_shards);
	return pgr->uffds[shard];
}

/* False: an address of none of the ranges. */
static bool find_page(const struct pgr *pgr, uint64_t addr, struct pgr_fault *ret)
{
	for (uint32_t i = 0; i < pgr->n_ranges; i++) {
		const struct pgr_range *r = &pgr->ranges[i].range;
		if (addr >= r->addr && addr - r->addr < r->len) {
			ret->range = i;
			ret->page = (addr - r->addr) / r->page_size;
			return true;
		}
	}
	return false;
}

static int read_faults(const struct pgr *pgr, int fd, struct pgr_fault *faults, unsigned cap)
{
	struct uffd_msg msgs[BATCH];
	ssize_t got = read(fd, msgs, sizeof(msgs[0]) * (cap < BATCH ? cap : BATCH));
	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	uint64_t now = base_now_us();
	int n = 0;
	for (size_t i = 0; i < (size_t)got / sizeof(msgs[0]); i++) {
		if (msgs[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		struct pgr_fault fault = {
			.is_write = msgs[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE,
			.seen_us = now,
		};
		if (find_page(pgr, msgs[i].arg.pagefault.address, &fault))
			faults[n++] = fault;
	}
	return n;
}

/* 1: fd may have faults; 0: the deadline passed, or only extra_fd woke us. */
static int sleep_for_faults(int fd, int extra_fd, uint64_t now, uint64_t deadline_us)
{
	struct pollfd p[2] = { { .fd = fd, .events = POLLIN },
			       { .fd = extra_fd, .events = POLLIN } };
	struct timespec left = { .tv_sec = (time_t)((deadline_us - now) / 1000000u),
				 .tv_nsec = (long)((deadline_us - now) % 1000000u) * 1000 };
	int n = ppoll(p, 2, deadline_us == BASE_NEVER ? NULL : &left, NULL);
	if (n < 0)
		return errno == EINTR ? 1 : -errno;
	if (p[0].revents & (POLLERR | POLLNVAL))
		return -EBADF;
	if (p[0].revents)
		return 1;
	return 0;
}

int pgr_next(struct pgr *pgr, uint32_t shard, struct pgr_fault *faults, unsigned cap,
	     uint64_t spin_us, uint64_t deadline_us, int extra_fd)
{
	assert(cap > 0);
	int fd = pgr_fd(pgr, shard);
	uint64_t spin_end = spin_us ? base_now_us() + spin_us : 0;
	for (;;) {
		int n = read_faults(pgr, fd, faults, cap);
		if (n)
			return n;
		uint64_t now = base_now_us();
		if (now >= deadline_us)
			return 0;
		if (now < spin_end) {
			for (int i = 0; i < 16; i++)
				base_relax();
			continue;
		}
		int woken = sleep_for_faults(fd, extra_fd, now, deadline_us);
		if (woken <= 0)
			return woken;
	}
}

/* Where a completion stands: one shard's part of an extent. */
struct part {
	int fd;
	uint64_t addr, len;
	uint64_t at;      /* bytes done */
	uint64_t chunk;   /* bytes to try at once */
	uint64_t filled;  /* bytes of the file made sure to exist */
	bool has_present; /* pages that were there before: their waiters are woken at the end */
	uint64_t deadline_us;
};

/* Maps or copies the next chunk.  >= 0: bytes done, may be fewer than asked. */
static int64_t map_chunk(const struct part *part, const char *bytes)
{
	uint64_t to = part->addr + part->at, len = part->len - part->at;
	if (len > part->chunk)
		len = part->chunk;
	int64_t done;
	int rc;
	if (bytes) {
		struct uffdio_copy copy = { .dst = to,
					    .src = (uintptr_t)bytes + part->at,
					    .len = len };
		rc = ioctl(part->fd, UFFDIO_COPY, &copy);
		done = copy.copy;
	} else {
		struct uffdio_continue cont = { .range = { to, len } };
		rc = ioctl(part->fd, UFFDIO_CONTINUE, &cont);
		done = cont.mapped;
	}
	if (!rc)
		return (int64_t)len;
	/* Part of it done is EAGAIN with the count; the rest's own failure comes next time. */
	if (errno == EAGAIN && done > 0)
		return done;
	return -errno;
}

/* The pages of the chunk may be holes of the file.  A write fault through our own mapping puts zeroes
 * there, and changes no byte of a page that exists. */
static int fill_holes(struct part *part, char *local)
{
	if (part->filled > part->at)
		return -EFAULT;
	uint64_t len = part->len - part->at;
	if (len > part->chunk)
		len = part->chunk;
	while (madvise(local + part->at, len, MADV_POPULATE_WRITE) < 0) {
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
		if (base_now_us() >= part->deadline_us)
			return -ETIMEDOUT;
	}
	part->filled = part->at + len;
	return 0;
}

/* 0: try again. */
static int get_past(struct part *part, int code, uint64_t page_size, char *local)
{
	if (!part->deadline_us)
		part->deadline_us = base_deadline_ms(RETRY_MS);
	switch (code) {
	case -EEXIST:
		part->has_present = true;
		part->at += page_size;
		return 0;
	case -ENOENT:
		/* The kernel wants a chunk to be within one mapping, and watched.  A single page
		 * refused is not watched: nobody waits there. */
		if (part->chunk > page_size) {
			part->chunk = part->chunk / page_size / 2 * page_size;
		} else {
			part->has_present = true;
			part->at += page_size;
		}
		return 0;
	case -EFAULT:
		return local ? fill_holes(part, local) : code;
	case -EAGAIN:
	case -EINTR:
		if (base_now_us() >= part->deadline_us)
			return -ETIMEDOUT;
		(void)sched_yield();
		return 0;
	default:
		return code;
	}
}

static int complete_part(struct part *part, uint64_t page_size, char *local, const char *bytes)
{
	part->chunk = part->len;
	while (part->at < part->len) {
		int64_t done = map_chunk(part, bytes);
		if (done < 0) {
			int code = get_past(part, (int)done, page_size, local);
			if (code < 0)
				return code;
			continue;
		}
		part->at += (uint64_t)done;
		part->deadline_us = 0;
		/* After a chunk was cut at the end of a mapping: long ones again. */
		if (part->chunk < part->len)
			part->chunk *= 2;
	}
	if (part->has_present)
		uffd_wake(part->fd, part->addr, part->len);
	return 0;
}

struct completing {
	const struct pgr_range *range;
	const char *bytes; /* of the extent's first page; NULL: shared */
	uint64_t base;     /* the extent's address */
};

static int complete_one(int fd, uint64_t addr, uint64_t len, void *ctx)
{
	const struct completing *c = ctx;
	struct part part = { .fd = fd, .addr = addr, .len = len };
	char *local = c->bytes ? NULL : (char *)c->range->local + (addr - c->range->addr);
	return complete_part(&part, c->range->page_size, local,
			     c->bytes ? c->bytes + (addr - c->base) : NULL);
}

int pgr_complete(struct pgr *pgr, const struct pgr_extent *extent, const void *bytes)
{
	assert(pgr->is_armed && extent->range < pgr->n_ranges);
	const struct pgr_span *r = &pgr->ranges[extent->range];
	assert(extent->first <= r->pages && extent->n <= r->pages - extent->first);
	assert((r->range.kind == PGR_ANON) == (bytes != NULL));
	struct completing c = {
		.range = &r->range,
		.bytes = bytes,
		.base = r->range.addr + extent->first * r->range.page_size,
	};
	return pgr_each_part(pgr, extent->range, extent->first, extent->first + extent->n,
			     complete_one, &c);
}
