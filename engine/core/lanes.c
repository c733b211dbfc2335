/* SPDX-License-Identifier: BSD-2-Clause */
/* The lanes of a session: a thread each that runs jobs and, between them, the transport's progress. */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "base/log.h"
#include "core/engine.h"

struct eng_op *eng_op_get(struct eng_lane *lane, uint64_t *ret_cookie)
{
	if (!lane->n_free)
		return NULL;
	uint16_t slot = lane->free_ops[--lane->n_free];
	*ret_cookie = slot;
	return &lane->ops[slot];
}

void eng_op_put(struct eng_lane *lane, uint64_t cookie)
{
	assert(cookie < ENG_DEPTH && lane->n_free < ENG_DEPTH);
	lane->free_ops[lane->n_free++] = (uint16_t)cookie;
}

static void fail_lane(struct eng_lane *lane, int code)
{
	if (atomic_load_explicit(&lane->failure, memory_order_relaxed))
		return;
	base_debug("lane %u failed: %s", lane->id, base_strerror(code));
	base_error_sys(&lane->error, code, MF_SCOPE_LANE, "lane %u", lane->id);
	/* release: pairs with the acquire in eng_lanes_failure; the record is written first */
	atomic_store_explicit(&lane->failure, code, memory_order_release);
	base_event_poke(lane->session->event_fd);
}

static void run_job(struct eng_lane *lane, struct eng_job *job)
{
	if (job->even_failed || !atomic_load_explicit(&lane->failure, memory_order_relaxed)) {
		int r = job->run(lane, job->ctx);
		if (r < 0)
			fail_lane(lane, r);
	}
	atomic_store_explicit(&lane->job, NULL, memory_order_relaxed);
	/* acq_rel: what the job did is seen by whoever sees it done */
	if (atomic_fetch_sub_explicit(&job->running, 1, memory_order_acq_rel) == 1)
		base_event_poke(lane->session->event_fd);
}

/* Urgent before bulk, where CPUs are few: a fault waits for nobody's bulk. */
static void set_priority(const struct eng_lane *lane)
{
	(void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), lane->urgent ? -15 : 0);
}

static void *lane_main(void *arg)
{
	struct eng_lane *lane = arg;
	char name[16];
	(void)snprintf(name, sizeof(name), lane->urgent ? "mf-urgent" : "mf-lane-%u", lane->id);
	(void)pthread_setname_np(pthread_self(), name);
	set_priority(lane);

	while (!atomic_load_explicit(&lane->stop, memory_order_acquire)) {
		/* acquire: pairs with the release in eng_lanes_run */
		struct eng_job *job = atomic_load_explicit(&lane->job, memory_order_acquire);
		if (job) {
			run_job(lane, job);
			continue;
		}
		if (atomic_load_explicit(&lane->failure, memory_order_relaxed)) {
			struct pollfd p = { .fd = lane->sleep_fd, .events = POLLIN };
			if (poll(&p, 1, 1000) > 0)
				eng_lane_take_wake(lane);
			continue;
		}
		if (atomic_load_explicit(&lane->drop, memory_order_relaxed)) {
			tp_lane_shutdown(lane->tp);
			fail_lane(lane, -ECONNRESET);
			continue;
		}
		struct tp_wc wc;
		int r = tp_lane_poll(lane->tp, &wc, 1);
		assert(r <= 0 || lane->in_flight == 0); /* a job reaps all that it posts */
		if (r == 0)
			r = tp_lane_wait(lane->tp, base_deadline_ms(1000));
		if (r < 0 && r != -ETIMEDOUT)
			fail_lane(lane, r);
	}
	return NULL;
}

static int start_lane(struct eng_lane *lane, struct mf_error *err)
{
	int r = -pthread_create(&lane->thread, NULL, lane_main, lane);
	if (r < 0)
		return base_error_sys(err, r, MF_SCOPE_HOST, "lane %u: thread", lane->id);
	lane->started = true;
	return 0;
}

int eng_lanes_init(struct mf_session *s, uint32_t n_bulk, struct mf_error *err)
{
	struct eng_lanes *l = &s->lanes;
	struct tp_domain_params params = { .local = s->local_host, .depth = ENG_DEPTH };
	int r = tp_domain_open(s->tp, &params, &l->domain, err);
	if (r < 0)
		return r;
	tp_domain_limits(l->domain, &l->limits);
	for (uint32_t i = 0; i < s->memory.n; i++) {
		uint64_t op =
			eng_op_pages(&s->memory.region[i]) * s->memory.region[i].desc.page_size;
		if (op > l->limits.max_op || l->limits.depth < 4 * ENG_CHUNKS_UNFLUSHED)
			return base_error(err, -MF_EREFUSED, MF_SCOPE_SESSION,
					  "%s cannot carry operations of %llu bytes, %u at a time",
					  s->tp->kind, (unsigned long long)op,
					  4 * ENG_CHUNKS_UNFLUSHED);
	}
	l->lane = calloc(n_bulk + 1, sizeof(*l->lane));
	if (!l->lane)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	l->n_bulk = n_bulk;
	l->n = n_bulk + 1;
	for (uint32_t i = 0; i < l->n; i++)
		l->lane[i].sleep_fd = -1;
	for (uint32_t i = 0; i < l->n; i++) {
		struct eng_lane *lane = &l->lane[i];
		lane->session = s;
		lane->id = i;
		lane->urgent = i == n_bulk;
		uint32_t depth = l->limits.depth < ENG_DEPTH ? l->limits.depth : ENG_DEPTH;
		/* Room for flushes beside the operations. */
		for (uint32_t k = 0; k < depth - ENG_CHUNKS_UNFLUSHED - 1; k++)
			lane->free_ops[lane->n_free++] = (uint16_t)k;
		lane->sleep_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (lane->sleep_fd < 0)
			return base_error_sys(err, -errno, MF_SCOPE_HOST, "eventfd");
	}
	return 0;
}

int eng_lanes_connect(struct mf_session *s, const char *address, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(s->params.connect_timeout_ms);
	for (uint32_t i = 0; i < s->lanes.n; i++) {
		struct eng_lane *lane = &s->lanes.lane[i];
		int r = tp_connect(s->lanes.domain, address, s->token, i, deadline, &lane->tp, err);
		if (r < 0)
			return r;
		r = start_lane(lane, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int eng_lanes_accept(struct mf_session *s, struct tp_listener *listener, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(s->params.connect_timeout_ms);
	for (uint32_t i = 0; i < s->lanes.n; i++) {
		struct tp_lane *tp;
		int r = tp_accept(listener, s->token, deadline, &tp, err);
		if (r < 0)
			return base_error(err, r, MF_SCOPE_SESSION,
					  "only %u of %u lanes were connected", i, s->lanes.n);
		if (tp->id >= s->lanes.n || s->lanes.lane[tp->id].tp) {
			tp_lane_shutdown(tp);
			tp_lane_close(tp);
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "the peer connected a lane that was not agreed on");
		}
		struct eng_lane *lane = &s->lanes.lane[tp->id];
		lane->tp = tp;
		r = start_lane(lane, err);
		if (r < 0)
			return r;
	}
	return 0;
}

void eng_lane_wake(struct eng_lane *lane)
{
	tp_lane_wake(lane->tp);
	base_event_poke(lane->sleep_fd);
}

void eng_lane_take_wake(struct eng_lane *lane)
{
	base_event_take(lane->sleep_fd);
}

int eng_lane_drop(struct mf_session *s, uint32_t id, struct mf_error *err)
{
	uint64_t deadline = eng_timeout(s);
	if (id >= s->lanes.n)
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				  "the other host lost a lane that there is not");
	struct eng_lane *lane = &s->lanes.lane[id];
	atomic_store_explicit(&lane->drop, true, memory_order_relaxed);
	eng_lane_wake(lane);
	/* acquire: pairs with fail_lane, which comes after the shutdown */
	while (!atomic_load_explicit(&lane->failure, memory_order_acquire)) {
		if (base_now_us() >= deadline)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
					  "lane %u could not be shut down", id);
		eng_sleep(s, deadline);
	}
	return 0;
}

int eng_lane_reap_rest(struct eng_lane *lane, struct tp_wc *wc, unsigned n)
{
	/* T3: all of them come.  The bound is for a backend that breaks it. */
	uint64_t deadline = base_deadline_ms(5000);
	while (lane->in_flight) {
		int r = tp_lane_poll(lane->tp, wc, n);
		if (r)
			return r > 0 ? r : 0;
		if (tp_lane_wait(lane->tp, deadline) < 0)
			return 0;
	}
	return 0;
}

void eng_lanes_stop(struct mf_session *s)
{
	struct eng_lanes *l = &s->lanes;
	for (uint32_t i = 0; l->lane && i < l->n; i++) {
		if (l->lane[i].started) {
			atomic_store_explicit(&l->lane[i].stop, true, memory_order_release);
			eng_lane_wake(&l->lane[i]);
		}
	}
	for (uint32_t i = 0; l->lane && i < l->n; i++) {
		struct eng_lane *lane = &l->lane[i];
		if (lane->started)
			pthread_join(lane->thread, NULL);
		lane->started = false;
		if (lane->tp) {
			struct tp_wc wc[16];
			tp_lane_shutdown(lane->tp);
			for (int n; (n = eng_lane_reap_rest(lane, wc, 16)) > 0;)
				lane->in_flight -= (uint32_t)n;
		}
	}
}

void eng_lanes_close(struct mf_session *s)
{
	struct eng_lanes *l = &s->lanes;
	for (uint32_t i = 0; l->lane && i < l->n; i++) {
		tp_lane_close(l->lane[i].tp);
		base_closep(&l->lane[i].sleep_fd);
	}
	free(l->lane);
	tp_domain_close(l->domain);
	memset(l, 0, sizeof(*l));
}

void eng_lanes_run(struct mf_session *s, enum eng_lane_set set, struct eng_job *job)
{
	struct eng_lanes *l = &s->lanes;
	uint32_t from = set == ENG_BULK ? 0 : l->n_bulk, to = set == ENG_BULK ? l->n_bulk : l->n;
	atomic_store_explicit(&job->running, to - from, memory_order_relaxed);
	atomic_store_explicit(&job->stop, false, memory_order_relaxed);
	for (uint32_t i = from; i < to; i++) {
		assert(!atomic_load_explicit(&l->lane[i].job, memory_order_relaxed));
		/* release: pairs with the acquire in lane_main; the job is set up before */
		atomic_store_explicit(&l->lane[i].job, job, memory_order_release);
		eng_lane_wake(&l->lane[i]);
	}
}

bool eng_job_is_done(const struct eng_job *job)
{
	/* acquire: pairs with run_job */
	return !atomic_load_explicit(&job->running, memory_order_acquire);
}

uint32_t eng_lanes_alive(const struct mf_session *s, enum eng_lane_set set)
{
	const struct eng_lanes *l = &s->lanes;
	uint32_t from = set == ENG_BULK ? 0 : l->n_bulk, to = set == ENG_BULK ? l->n_bulk : l->n;
	uint32_t alive = 0;
	for (uint32_t i = from; i < to; i++)
		alive += !atomic_load_explicit(&l->lane[i].failure, memory_order_acquire);
	return alive;
}

int eng_lanes_failure(struct mf_session *s, struct mf_error *err)
{
	for (uint32_t i = 0; i < s->lanes.n; i++) {
		struct eng_lane *lane = &s->lanes.lane[i];
		/* acquire: pairs with fail_lane */
		int code = atomic_load_explicit(&lane->failure, memory_order_acquire);
		if (code < 0)
			return base_error(err, code, MF_SCOPE_SESSION, "%s", lane->error.msg);
	}
	return 0;
}
