/* SPDX-License-Identifier: BSD-2-Clause */
#include "transport/faulty/faulty.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/error.h"

/* Operations handed on at a time. */
#define BATCH 16u

struct faulty_table {
	struct tp_ops ops;
	const struct tp_ops *inner;
	struct tp_faulty_plan *plan;
};

struct faulty_domain {
	struct tp_domain base;
	struct tp_domain *inner;
	uint32_t receives;
	struct tp_faulty_plan *plan;
};

struct faulty_mr {
	struct tp_mr base;
	struct tp_mr *inner;
};

struct faulty_listener {
	struct tp_listener base;
	struct tp_listener *inner;
};

/* A completion that is held back until the lane's polls have come to `due`. */
struct held_wc {
	struct tp_wc wc;
	uint64_t due;
};

struct faulty_lane {
	struct tp_lane base;
	struct tp_lane *inner;
	struct tp_faulty_plan *plan;
	/* owner thread */
	bool dropped;
	uint64_t accepted, polls;
	/* As the caller sees it, so that holding completions back keeps T6; includes n_held. */
	uint32_t depth, in_flight; /* receives are not counted */
	uint32_t ring;
	struct held_wc *held; /* `ring` entries: depth, and receives */
	uint32_t held_first, n_held;
};

static struct faulty_domain *to_domain(const struct tp_domain *base)
{
	return BASE_CONTAINER_OF(base, struct faulty_domain, base);
}

static struct faulty_lane *to_lane(const struct tp_lane *base)
{
	return BASE_CONTAINER_OF(base, struct faulty_lane, base);
}

/* One of a number of faults that are left to do. */
static bool take_one(_Atomic uint32_t *left)
{
	uint32_t n = atomic_load(left);

	while (n) {
		if (atomic_compare_exchange_weak(left, &n, n - 1))
			return true;
	}
	return false;
}

static int planned_code(_Atomic int *code)
{
	int planned = atomic_load(code);

	return planned ? planned : -EIO;
}

/* Domains and memory */

static int domain_open(const struct tp_ops *ops, const struct tp_domain_params *params,
		       struct tp_domain **ret_domain, struct mf_error *err)
{
	const struct faulty_table *table = BASE_CONTAINER_OF(ops, struct faulty_table, ops);
	struct faulty_domain *domain = calloc(1, sizeof(*domain));
	if (!domain)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_HOST, "faulty transport");
	*domain = (struct faulty_domain){ .base = { ops },
					  .plan = table->plan,
					  .receives = params->receives };
	int ret = tp_domain_open(table->inner, params, &domain->inner, err);
	if (ret) {
		free(domain);
		return ret;
	}
	*ret_domain = &domain->base;
	return 0;
}

static void domain_close(struct tp_domain *base)
{
	struct faulty_domain *domain = to_domain(base);

	tp_domain_close(domain->inner);
	free(domain);
}

static void domain_limits(const struct tp_domain *base, struct tp_limits *ret_limits)
{
	tp_domain_limits(to_domain(base)->inner, ret_limits);
}

static void domain_stats(const struct tp_domain *base, struct tp_domain_stats *ret_stats)
{
	tp_domain_stats(to_domain(base)->inner, ret_stats);
}

static int mr_reg(struct tp_domain *domain, void *addr, uint64_t len, uint32_t access,
		  struct tp_mr **ret_mr, struct mf_error *err)
{
	struct tp_faulty_plan *plan = to_domain(domain)->plan;
	bool fails =
		atomic_fetch_add(&plan->registrations, 1) + 1 == atomic_load(&plan->fail_reg_at);
	struct faulty_mr *mr = fails ? NULL : calloc(1, sizeof(*mr));
	if (!mr)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "memory registration");
	mr->base = (struct tp_mr){ domain, addr, len, access };
	int ret = tp_mr_reg(to_domain(domain)->inner, addr, len, access, &mr->inner, err);
	if (ret) {
		free(mr);
		return ret;
	}
	*ret_mr = &mr->base;
	return 0;
}

static void mr_dereg(struct tp_mr *base)
{
	struct faulty_mr *mr = BASE_CONTAINER_OF(base, struct faulty_mr, base);

	tp_mr_dereg(mr->inner);
	free(mr);
}

static void mr_remote(const struct tp_mr *base, struct tp_remote *ret_remote)
{
	tp_mr_remote(BASE_CONTAINER_OF(base, const struct faulty_mr, base)->inner, ret_remote);
}

/* Connections */

static int listen_at(struct tp_domain *domain, const char *addr, struct tp_listener **ret_listener,
		     struct mf_error *err)
{
	struct faulty_listener *listener = calloc(1, sizeof(*listener));
	if (!listener)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "address %s", addr);
	listener->base.domain = domain;
	int ret = tp_listen(to_domain(domain)->inner, addr, &listener->inner, err);
	if (ret) {
		free(listener);
		return ret;
	}
	*ret_listener = &listener->base;
	return 0;
}

static struct tp_listener *inner_listener(const struct tp_listener *base)
{
	return BASE_CONTAINER_OF(base, const struct faulty_listener, base)->inner;
}

static void listener_addr(const struct tp_listener *listener, char *ret, size_t cap)
{
	tp_listener_addr(inner_listener(listener), ret, cap);
}

static void listener_close(struct tp_listener *base)
{
	tp_listener_close(inner_listener(base));
	free(BASE_CONTAINER_OF(base, struct faulty_listener, base));
}

static int alloc_lane(struct tp_domain *domain, struct faulty_lane **ret_lane, struct mf_error *err)
{
	struct tp_limits limits;
	tp_domain_limits(to_domain(domain)->inner, &limits);

	struct faulty_lane *lane = calloc(1, sizeof(*lane));
	uint32_t ring = limits.depth + to_domain(domain)->receives;
	if (lane)
		lane->held = calloc(ring, sizeof(*lane->held));
	if (!lane || !lane->held) {
		free(lane);
		return base_error_sys(err, -ENOMEM, MF_SCOPE_LANE, "faulty lane");
	}
	lane->base.domain = domain;
	lane->plan = to_domain(domain)->plan;
	lane->depth = limits.depth;
	lane->ring = ring;
	*ret_lane = lane;
	return 0;
}

static void free_lane(struct faulty_lane *lane)
{
	free(lane->held);
	free(lane);
}

static int finish_lane(struct faulty_lane *lane, int ret, struct tp_lane **ret_lane)
{
	if (ret) {
		free_lane(lane);
		return ret;
	}
	lane->base.id = lane->inner->id;
	*ret_lane = &lane->base;
	return 0;
}

static int refuse(struct tp_domain *domain, _Atomic uint32_t *left, struct mf_error *err)
{
	if (!take_one(left))
		return 0;
	atomic_fetch_add(&to_domain(domain)->plan->faults, 1);
	return base_error(err, -ECONNREFUSED, MF_SCOPE_LANE, "connection: refused by the plan");
}

static int accept_lane(struct tp_listener *listener, const uint8_t token[TP_TOKEN_SIZE],
		       uint64_t deadline_us, struct tp_lane **ret_lane, struct mf_error *err)
{
	struct faulty_lane *lane;

	int ret = refuse(listener->domain, &to_domain(listener->domain)->plan->refuse_accepts, err);
	if (!ret)
		ret = alloc_lane(listener->domain, &lane, err);
	if (ret)
		return ret;
	ret = tp_accept(inner_listener(listener), token, deadline_us, &lane->inner, err);
	return finish_lane(lane, ret, ret_lane);
}

static int connect_lane(struct tp_domain *domain, const char *addr,
			const uint8_t token[TP_TOKEN_SIZE], uint32_t lane_id, uint64_t deadline_us,
			struct tp_lane **ret_lane, struct mf_error *err)
{
	struct faulty_lane *lane;

	int ret = refuse(domain, &to_domain(domain)->plan->refuse_connects, err);
	if (!ret)
		ret = alloc_lane(domain, &lane, err);
	if (ret)
		return ret;
	ret = tp_connect(to_domain(domain)->inner, addr, token, lane_id, deadline_us, &lane->inner,
			 err);
	return finish_lane(lane, ret, ret_lane);
}

static void lane_shutdown(struct tp_lane *lane)
{
	tp_lane_shutdown(to_lane(lane)->inner);
}

static void lane_close(struct tp_lane *base)
{
	struct faulty_lane *lane = to_lane(base);

	assert(!lane->n_held);
	tp_lane_close(lane->inner);
	free_lane(lane);
}

/* Data path */

static void maybe_drop(struct faulty_lane *lane)
{
	struct tp_faulty_plan *plan = lane->plan;
	uint64_t after = atomic_load(&plan->drop_after_ops);
	uint32_t which = atomic_load(&plan->drop_lane);

	if (lane->dropped || (which != TP_FAULTY_ANY_LANE && which != lane->base.id))
		return;
	if (!atomic_load(&plan->drop_now) && (!after || lane->accepted < after))
		return;
	lane->dropped = true;
	atomic_fetch_add(&plan->faults, 1);
	tp_lane_shutdown(lane->inner);
}

/* 0, or what this post call is to return. */
static int planned_post(struct faulty_lane *lane)
{
	struct tp_faulty_plan *plan = lane->plan;
	uint64_t nr = atomic_fetch_add(&plan->posts, 1) + 1;
	uint64_t every = atomic_load(&plan->eagain_every);
	int ret = 0;

	maybe_drop(lane);
	if (nr == atomic_load(&plan->fail_post_at))
		ret = planned_code(&plan->fail_post_code);
	else if (every && nr % every == 0)
		ret = -EAGAIN;
	if (ret)
		atomic_fetch_add(&plan->faults, 1);
	return ret;
}

typedef int (*post_fn)(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);

static int post(struct faulty_lane *lane, const struct tp_xfer *xfer, unsigned n, post_fn fn)
{
	struct tp_xfer inner[BATCH];
	unsigned done = 0;

	int ret = planned_post(lane);
	if (ret)
		return ret;
	if (n > 1 && atomic_load(&lane->plan->accept_one)) {
		atomic_fetch_add(&lane->plan->faults, 1);
		n = 1;
	}
	uint32_t room = lane->depth - lane->in_flight;
	if (!room)
		return -EAGAIN;
	if (n > room)
		n = room;
	while (done < n) {
		unsigned want = n - done < BATCH ? n - done : BATCH;
		for (unsigned i = 0; i < want; i++) {
			inner[i] = xfer[done + i];
			inner[i].mr = BASE_CONTAINER_OF(inner[i].mr, struct faulty_mr, base)->inner;
		}
		ret = fn(lane->inner, inner, want);
		if (ret <= 0)
			break;
		done += (unsigned)ret;
		if ((unsigned)ret < want)
			break;
	}
	lane->accepted += done;
	lane->in_flight += done;
	maybe_drop(lane);
	return done ? (int)done : ret;
}

static int post_write(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n)
{
	return post(to_lane(lane), xfer, n, tp_post_write);
}

static int post_read(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n)
{
	return post(to_lane(lane), xfer, n, tp_post_read);
}

static int post_flush(struct tp_lane *base, uint64_t cookie)
{
	struct faulty_lane *lane = to_lane(base);

	int ret = planned_post(lane);
	if (!ret && lane->in_flight == lane->depth)
		ret = -EAGAIN;
	if (!ret)
		ret = tp_post_flush(lane->inner, cookie);
	if (!ret) {
		lane->accepted++;
		lane->in_flight++;
		maybe_drop(lane);
	}
	return ret;
}

/* What is corrupted is what was given to be sent, which nobody looks at any more. */
static int post_send(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	struct faulty_lane *lane = to_lane(base);
	struct tp_faulty_plan *plan = lane->plan;
	uint64_t nr = atomic_fetch_add(&plan->sends, n), at = atomic_load(&plan->corrupt_send_at);

	if (at > nr && at <= nr + n) {
		const struct tp_xfer *x = &xfer[at - nr - 1];
		((uint8_t *)x->local)[x->len / 2] ^= 1;
		atomic_fetch_add(&plan->faults, 1);
	}
	return post(lane, xfer, n, tp_post_send);
}

static int post_receive(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	unsigned done = 0;

	for (; done < n; done++) {
		struct tp_xfer x = xfer[done];
		x.mr = BASE_CONTAINER_OF(x.mr, struct faulty_mr, base)->inner;
		int ret = tp_post_receive(to_lane(base)->inner, &x, 1);
		if (ret <= 0)
			return done ? (int)done : ret;
	}
	return (int)done;
}

static void alter_wc(struct faulty_lane *lane, struct tp_wc *wc)
{
	struct tp_faulty_plan *plan = lane->plan;
	uint64_t nr = atomic_fetch_add(&plan->completions, 1) + 1;
	uint64_t every = atomic_load(&plan->fail_wc_every);

	if (nr == atomic_load(&plan->fail_wc_at) || (every && nr % every == 0)) {
		wc->status = planned_code(&plan->fail_wc_code);
		atomic_fetch_add(&plan->faults, 1);
	}
}

/* The caller has got these completions. */
static void note_given(struct faulty_lane *lane, const struct tp_wc *wc, int n)
{
	for (int i = 0; i < n; i++)
		lane->in_flight -= wc[i].received ? 0 : 1;
}

/* Takes what the inner lane has into the ring, in which there is room for all in flight. */
static int hold(struct faulty_lane *lane, uint64_t delay)
{
	struct tp_wc wc[BATCH];
	uint32_t room = lane->ring - lane->n_held;

	if (!room)
		return 0;
	int n = tp_lane_poll(lane->inner, wc, room < BATCH ? room : BATCH);
	for (int i = 0; i < n; i++) {
		alter_wc(lane, &wc[i]);
		uint32_t at = (lane->held_first + lane->n_held++) % lane->ring;
		lane->held[at] = (struct held_wc){ wc[i], lane->polls + delay };
		atomic_fetch_add(&lane->plan->faults, 1);
	}
	return n;
}

static unsigned give_held(struct faulty_lane *lane, struct tp_wc *wc, unsigned n)
{
	unsigned got = 0;

	while (got < n && lane->n_held && lane->held[lane->held_first].due <= lane->polls) {
		wc[got++] = lane->held[lane->held_first].wc;
		lane->held_first = (lane->held_first + 1) % lane->ring;
		lane->n_held--;
	}
	return got;
}

static int lane_poll(struct tp_lane *base, struct tp_wc *wc, unsigned n)
{
	struct faulty_lane *lane = to_lane(base);
	uint64_t delay = atomic_load(&lane->plan->delay_polls);

	maybe_drop(lane);
	lane->polls++;
	if (!delay && !lane->n_held) {
		int got = tp_lane_poll(lane->inner, wc, n);
		for (int i = 0; i < got; i++)
			alter_wc(lane, &wc[i]);
		note_given(lane, wc, got);
		return got;
	}
	int ret = hold(lane, delay);
	unsigned got = give_held(lane, wc, n);
	note_given(lane, wc, (int)got);
	if (got)
		return (int)got;
	return lane->n_held || ret > 0 ? 0 : ret;
}

static int lane_arm(struct tp_lane *base, int *ret_fd)
{
	struct faulty_lane *lane = to_lane(base);

	maybe_drop(lane);
	return lane->n_held ? -EAGAIN : tp_lane_arm(lane->inner, ret_fd);
}

static int lane_wait(struct tp_lane *base, uint64_t deadline_us)
{
	struct faulty_lane *lane = to_lane(base);

	maybe_drop(lane);
	return lane->n_held ? 0 : tp_lane_wait(lane->inner, deadline_us);
}

static int lane_lend(struct tp_lane *base, struct tp_mr *const *mr, unsigned n, uint32_t access,
		     uint64_t deadline_us, struct tp_remote *ret_remote)
{
	struct faulty_lane *lane = to_lane(base);

	maybe_drop(lane);
	for (unsigned i = 0; i < n; i++) {
		struct tp_mr *inner = BASE_CONTAINER_OF(mr[i], struct faulty_mr, base)->inner;
		int ret = tp_lane_lend(lane->inner, &inner, 1, access, deadline_us, &ret_remote[i]);
		if (ret)
			return ret;
	}
	return 0;
}

static int lane_revoke(struct tp_lane *base, uint64_t deadline_us)
{
	return tp_lane_revoke(to_lane(base)->inner, deadline_us);
}

static void lane_wake(struct tp_lane *lane)
{
	tp_lane_wake(to_lane(lane)->inner);
}

static void lane_stats(const struct tp_lane *lane, struct tp_lane_stats *ret_stats)
{
	tp_lane_stats(to_lane(lane)->inner, ret_stats);
}

const struct tp_ops *tp_faulty_create(const struct tp_ops *inner, struct tp_faulty_plan *plan)
{
	struct faulty_table *table = calloc(1, sizeof(*table));
	if (!table)
		return NULL;
	*table = (struct faulty_table){
		.ops = {
			.name = "faulty",
			.kind = inner->kind,
			.caps = inner->caps,
			.domain_open = domain_open,
			.domain_close = domain_close,
			.domain_limits = domain_limits,
			.domain_stats = domain_stats,
			.paths = inner->paths,
			.mr_reg = mr_reg,
			.mr_dereg = mr_dereg,
			.mr_remote = mr_remote,
			.listen = listen_at,
			.listener_addr = listener_addr,
			.accept = accept_lane,
			.listener_close = listener_close,
			.connect = connect_lane,
			.lane_shutdown = lane_shutdown,
			.lane_close = lane_close,
			.lane_lend = inner->lane_lend ? lane_lend : NULL,
			.lane_revoke = inner->lane_revoke ? lane_revoke : NULL,
			.post_write = post_write,
			.post_read = post_read,
			.post_flush = post_flush,
			.post_send = inner->post_send ? post_send : NULL,
			.post_receive = inner->post_receive ? post_receive : NULL,
			.lane_poll = lane_poll,
			.lane_arm = lane_arm,
			.lane_wait = lane_wait,
			.lane_wake = lane_wake,
			.lane_stats = lane_stats,
		},
		.inner = inner,
		.plan = plan,
	};
	return &table->ops;
}

void tp_faulty_disguise(const struct tp_ops *ops, const char *kind,
			int (*paths)(struct tp_path *ret, unsigned cap))
{
	struct faulty_table *table = BASE_CONTAINER_OF(ops, struct faulty_table, ops);

	table->ops.kind = kind;
	table->ops.paths = paths;
	table->ops.caps &= ~(uint32_t)TP_CAP_TARGET_PROGRESS;
	table->ops.caps |= TP_CAP_PINS | TP_CAP_BY_PATH;
}

struct tp_lane *tp_faulty_inner(struct tp_lane *lane)
{
	return to_lane(lane)->inner;
}

void tp_faulty_destroy(const struct tp_ops *ops)
{
	if (ops)
		free(BASE_CONTAINER_OF(ops, struct faulty_table, ops));
}
