/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The helper's side.  What is asked is not believed: the program may have been taken over by the other host or by the
 * guest.  What it can get by that is what it could have done to this guest anyway: lend its RAM, or end it.
 */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/maps.h"
#include "base/reach.h"
#include "hv-adapters/attach/attach_proc.h"
#include "hv-adapters/attach/helper_wire.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

enum { FROZEN_MS = 60000 }; /* so long may a program take for what it does meanwhile */

struct helper {
	int socket, pidfd;
	pid_t target;
	struct base_freeze *freeze; /* made when first asked for */
	bool is_over;
};

static bool is_gone(const struct helper *h)
{
	struct pollfd p = { .fd = h->pidfd, .events = POLLIN };
	return poll(&p, 1, 0) != 0;
}

static int refuse(struct helper_reply *a)
{
	return base_error(&a->err, -EPERM, MF_SCOPE_SESSION,
			  "memferry-attach does not do what it was asked for");
}

/* ---- what may be asked ---- */

static int see_shared(const struct base_mapping *m, void *ctx)
{
	(void)ctx;
	return m->is_private || !m->inode ? -EPERM : 0;
}

static int advise(const struct helper *h, const struct helper_request *q, struct helper_reply *a)
{
	if (q->n > HELPER_ITEMS ||
	    (q->number != MADV_DONTNEED && q->number != MADV_DONTNEED_LOCKED))
		return refuse(a);
	for (uint32_t i = 0; i < q->n; i++) {
		const struct attach_range *r = &q->ranges[i];
		if (r->addr + r->len < r->addr ||
		    base_each_mapping(h->target, r->addr, r->len, see_shared, NULL, NULL) < 0)
			return refuse(a);
	}
	return attach_madvise(h->target, q->ranges, q->n, q->number, &a->err);
}

struct wanted {
	const struct attach_mapping *mapping;
	bool is_there;
};

static int see_mapping(const struct base_mapping *m, void *ctx)
{
	struct wanted *w = ctx;
	w->is_there = m->start == w->mapping->start && m->end == w->mapping->end &&
		      !m->is_private && m->may_write && m->inode == w->mapping->inode &&
		      m->dev_major == w->mapping->dev_major &&
		      m->dev_minor == w->mapping->dev_minor;
	return 1;
}

static int open_mapping(const struct helper *h, const struct helper_request *q,
			struct helper_reply *a)
{
	struct wanted w = { .mapping = &q->mapping };
	if (q->mapping.end <= q->mapping.start)
		return refuse(a);
	int r = base_each_mapping(h->target, q->mapping.start, q->mapping.end - q->mapping.start,
				  see_mapping, &w, &a->err);
	if (r < 0)
		return r;
	return w.is_there ? attach_open_mapping(h->target, &q->mapping) : refuse(a);
}

static int open_file(const struct helper *h, const struct helper_request *q, struct helper_reply *a)
{
	if (q->number < 0 || q->number >= BASE_REACH_FILES || q->tid < 0)
		return refuse(a);
	return base_reach_open(h->target, q->tid, (enum base_reach_file)q->number);
}

static int close_fds(const struct helper *h, const struct helper_request *q, struct helper_reply *a)
{
	if (q->n > HELPER_ITEMS)
		return refuse(a);
	attach_close_fds(h->target, q->fds, q->n); /* userfaultfds only */
	return 0;
}

static int find_memory(const struct helper *h, const struct helper_request *q,
		       struct helper_reply *a)
{
	if (q->number < 0 || q->number > 40)
		return refuse(a);
	return base_place_find_memory(h->target, q->ranges[0].addr, q->ranges[0].len,
				      UINT64_C(1) << q->number, &a->memory, &a->err);
}

/* ---- answers ---- */

static void serve_one(struct helper *h, const struct helper_request *q, bool is_frozen);

static int answer(struct helper *h, struct helper_reply *a, int code, int fd)
{
	a->code = code;
	int r = helper_send(h->socket, a, sizeof(*a), fd);
	h->is_over |= r < 0;
	return r;
}

/* The target stands still, and the program may ask for files only.  What freeze() returns answers HELPER_THAW. */
static int stand_still(void *ctx, pid_t tid, struct mf_error *err)
{
	struct helper *h = ctx;
	struct helper_reply a = { .value = tid };
	uint64_t deadline_us = base_deadline_ms(FROZEN_MS);
	int r = answer(h, &a, 0, -1);

	while (r == 0) {
		struct helper_request q;
		int fd;
		r = helper_receive(h->socket, &q, sizeof(q), &fd, deadline_us);
		base_closep(&fd);
		if (r == 0 && q.op == HELPER_THAW)
			return 0;
		if (r == 0)
			serve_one(h, &q, true);
	}
	h->is_over |= r != -ETIMEDOUT;
	return base_error(err, r, MF_SCOPE_SESSION,
			  "process %d stood still for too long and was let go: what was looked at "
			  "meanwhile does not count",
			  (int)h->target);
}

static int freeze(struct helper *h, struct helper_reply *a)
{
	int r = h->freeze ? 0 : base_freeze_open(h->target, &h->freeze, &a->err);
	return r < 0 ? r : base_freeze_run(h->freeze, stand_still, h, &a->err);
}

/* *ret_fd: to go with the answer. */
static int obey(struct helper *h, const struct helper_request *q, struct helper_reply *a,
		int *ret_fd)
{
	int r;

	switch ((enum helper_op)q->op) {
	case HELPER_PROBE:
		return attach_probe(h->target, &a->err);
	case HELPER_USERFAULTFD:
		return attach_userfaultfd(h->target, ret_fd, &a->value, &a->err);
	case HELPER_DEVICE:
		r = attach_open_device(h->target);
		break;
	case HELPER_USERFAULTFD_BY:
		return attach_userfaultfd_by(h->target, q->number, ret_fd, &a->value, &a->err);
	case HELPER_CLOSE_FDS:
		return close_fds(h, q, a);
	case HELPER_FIND_FDS:
		return attach_find_userfaultfds(h->target, a->fds,
						q->n < HELPER_ITEMS ? q->n : HELPER_ITEMS, &a->err);
	case HELPER_GET_FD:
		return attach_get_userfaultfd(h->target, q->number, ret_fd, &a->err);
	case HELPER_MADVISE:
		return advise(h, q, a);
	case HELPER_OPEN_MAPPING:
		r = open_mapping(h, q, a);
		break;
	case HELPER_KILL:
		return attach_kill(h->target, h->pidfd);
	case HELPER_OPEN:
		r = open_file(h, q, a);
		break;
	case HELPER_HAS_VHOST:
		return base_reach_has_vhost(h->target);
	case HELPER_FREEZE:
		return freeze(h, a);
	case HELPER_FIND_MEMORY:
		return find_memory(h, q, a);
	case HELPER_THAW:
	default:
		return refuse(a);
	}
	if (r >= 0)
		*ret_fd = r;
	return r < 0 ? r : 0;
}

static void serve_one(struct helper *h, const struct helper_request *q, bool is_frozen)
{
	struct helper_reply a = { 0 };
	base_autofd fd = -1;
	int r;

	if (q->op == HELPER_THAW)
		return; /* let go already, and that was said */
	if (q->pid != h->target || (is_frozen && q->op != HELPER_OPEN))
		r = refuse(&a);
	else if (is_gone(h))
		r = base_error(&a.err, -ESRCH, MF_SCOPE_SESSION, "process %d is gone",
			       (int)h->target);
	else
		r = obey(h, q, &a, &fd);
	/* The number may have become another process's meanwhile: then this one has ended. */
	if (fd >= 0 && is_gone(h)) {
		base_closep(&fd);
		r = -ESRCH;
	}
	if (!h->is_over)
		(void)answer(h, &a, r, fd);
}

void helper_serve(int sock, pid_t target, int pidfd)
{
	struct helper h = { .socket = sock, .pidfd = pidfd, .target = target };

	while (!h.is_over) {
		struct helper_request q;
		int fd;
		h.is_over = helper_receive(sock, &q, sizeof(q), &fd, BASE_NEVER) < 0;
		base_closep(&fd);
		if (!h.is_over)
			serve_one(&h, &q, false);
	}
}
