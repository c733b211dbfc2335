/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/stream.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "perf/doc.h"
#include "perf/path_priv.h"
#include "perf/slices.h"
#include "perf/start.h"

#define BATCH_MAX 1024u

#define COUNT_MAX   INT64_C(1000000000)
#define LONGEST_MS  (UINT64_C(25) * 3600 * 1000)
#define STUCK_MS    30000u
#define SLICE_OPS   16u
#define WARM_MS     200u
#define WARM_ROUNDS 2u /* of the queue's depth */

struct stream_lane {
	struct stream *stream;
	struct perf_end *end;
	pthread_t thread;
	struct tp_xfer xfer[BATCH_MAX];
	uint64_t at;        /* where in the buffer the next operation begins */
	uint64_t in_flight; /* operations */
	uint64_t done;      /* operations that are complete */
	uint64_t end_us;
	struct slices slices;
};

struct stream {
	struct perf_path *path;
	const struct perf_plan *plan;
	bool active;
	uint32_t n;
	_Atomic bool stop;
	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t changed;
	uint32_t warm, through; /* lanes */
	uint64_t start_us;      /* when all were warm */
	struct mf_error error;
	struct stream_lane *lane[PERF_LANES_MAX];
};

static void fail(struct stream *s, const struct mf_error *err)
{
	(void)pthread_mutex_lock(&s->lock);
	if (!s->error.code)
		s->error = *err;
	(void)pthread_cond_broadcast(&s->changed);
	(void)pthread_mutex_unlock(&s->lock);
}

/* Fills the batch with the next n operations. */
static void fill(struct stream_lane *lane, unsigned n)
{
	const struct perf_plan *plan = lane->stream->plan;
	uint64_t span = plan->span / plan->size * plan->size;

	for (unsigned i = 0; i < n; i++) {
		lane->xfer[i] = (struct tp_xfer){ .local = lane->end->mem + lane->at,
						  .mr = lane->end->mr,
						  .remote = lane->end->remote.addr + lane->at,
						  .key = lane->end->remote.key,
						  .len = plan->size };
		lane->at = (lane->at + plan->size) % span;
	}
}

static int post(struct stream_lane *lane, unsigned n, struct mf_error *err)
{
	const struct perf_plan *plan = lane->stream->plan;
	struct tp_lane *tp = lane->end->lane;
	uint64_t before = lane->at;

	fill(lane, n);
	int r = plan->is_read ? tp_post_read(tp, lane->xfer, n) : tp_post_write(tp, lane->xfer, n);
	if (r < (int)n) /* what was not taken comes again */
		lane->at = r > 0 ? (uint64_t)((uint8_t *)lane->xfer[r].local - lane->end->mem)
				 : before;
	if (r > 0)
		lane->in_flight += (unsigned)r;
	else if (r != -EAGAIN)
		return base_error_sys(err, r, MF_SCOPE_LANE, "cannot post on lane %u", tp->id);
	return r;
}

static bool is_stopped(const struct stream *s)
{
	return atomic_load_explicit(&s->stop, memory_order_acquire);
}

static int reap(struct stream_lane *lane, bool sleep, struct mf_error *err)
{
	int n = perf_reap(lane->end->lane, sleep, base_deadline_ms(STUCK_MS), &lane->in_flight,
			  err);

	if (n > 0)
		lane->done += (unsigned)n;
	return n;
}

/* All that was posted is there; the flush is no operation of the plan's. */
static int finish(struct stream_lane *lane, struct mf_error *err)
{
	const struct perf_plan *plan = lane->stream->plan;
	uint64_t left = lane->in_flight;
	int ret = 0;

	if (!plan->is_read)
		ret = perf_flush(lane->end->lane, plan->sleep, base_deadline_ms(STUCK_MS),
				 &lane->in_flight, err);
	uint64_t deadline = base_deadline_ms(STUCK_MS);
	while (ret >= 0 && lane->in_flight) {
		ret = perf_reap(lane->end->lane, plan->sleep, deadline, &lane->in_flight, err);
		if (!ret && base_now_us() >= deadline)
			ret = base_error(err, -ETIMEDOUT, MF_SCOPE_LANE,
					 "an operation did not complete in time");
	}
	if (ret < 0)
		return ret;
	lane->done += left;
	return 0;
}

/* Posts `count` operations (0: any number) until end_us (0: any time). */
static int run(struct stream_lane *lane, uint64_t count, uint64_t end_us, bool measured,
	       struct mf_error *err)
{
	const struct perf_plan *plan = lane->stream->plan;
	uint64_t posted = 0, stuck = base_deadline_ms(STUCK_MS);

	while ((!count || posted < count) && !is_stopped(lane->stream)) {
		uint64_t now = base_now_us();
		if (end_us && now >= end_us)
			break;
		uint64_t left = count ? count - posted : plan->batch;
		int r = post(lane, (unsigned)(left < plan->batch ? left : plan->batch), err);
		if (r < 0 && r != -EAGAIN)
			return r;
		posted += r > 0 ? (unsigned)r : 0;
		int n = reap(lane, plan->sleep && r == -EAGAIN, err);
		if (n < 0)
			return n;
		if (n > 0 && measured)
			slices_add(&lane->slices, now, (unsigned)n * plan->size);
		if (n > 0 || r > 0)
			stuck = now + STUCK_MS * 1000;
		else if (now > stuck)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_LANE,
					  "lane %u: no operation completed in time",
					  lane->end->lane->id);
	}
	return 0;
}

/* Whether all lanes are warm, or it is over. */
static bool have_met(struct stream *s, uint64_t *ret_start)
{
	(void)pthread_mutex_lock(&s->lock);
	bool over = s->error.code || is_stopped(s);
	*ret_start = over ? 0 : s->start_us;
	(void)pthread_mutex_unlock(&s->lock);
	return over || *ret_start;
}

static void say_warm(struct stream *s)
{
	(void)pthread_mutex_lock(&s->lock);
	bool all = ++s->warm == s->n;
	if (all)
		s->start_us = base_now_us();
	(void)pthread_mutex_unlock(&s->lock);
	for (uint32_t i = 0; all && i < s->n; i++)
		tp_lane_wake(s->lane[i]->end->lane);
}

/* Returns when all lanes are warm, with the time at which measuring began; 0: one has failed, or it is over.  The
 * lane is kept going meanwhile: the peer's may need it to get warm. */
static uint64_t meet(struct stream_lane *lane)
{
	uint64_t start;
	struct tp_wc wc;

	say_warm(lane->stream);
	while (!have_met(lane->stream, &start)) {
		if (tp_lane_poll(lane->end->lane, &wc, 1) < 0)
			return 0;
		(void)tp_lane_wait(lane->end->lane, base_deadline_ms(100));
	}
	return start;
}

static int measure(struct stream_lane *lane, struct mf_error *err)
{
	struct stream *s = lane->stream;
	const struct perf_plan *plan = s->plan;
	uint64_t warm = WARM_ROUNDS * s->path->limits.depth;

	if (plan->iterations && warm > plan->iterations)
		warm = plan->iterations;
	int ret = run(lane, warm, base_deadline_ms(WARM_MS), false, err);
	if (!ret)
		ret = finish(lane, err);
	if (ret)
		return ret;
	lane->done = 0;
	uint64_t start = meet(lane);
	if (!start)
		return 0;
	slices_start(&lane->slices, start);
	ret = run(lane, plan->iterations, plan->iterations ? 0 : start + plan->duration_ms * 1000,
		  true, err);
	uint64_t before = lane->done;
	if (!ret)
		ret = finish(lane, err);
	lane->end_us = base_now_us();
	if (!ret)
		slices_add(&lane->slices, lane->end_us, (lane->done - before) * plan->size);
	return ret;
}

static void *lane_main(void *arg)
{
	struct stream_lane *lane = arg;
	struct stream *s = lane->stream;
	struct mf_error err = { 0 };

	if (s->active && measure(lane, &err) < 0)
		fail(s, &err);
	(void)pthread_mutex_lock(&s->lock);
	s->through++;
	(void)pthread_cond_broadcast(&s->changed);
	(void)pthread_mutex_unlock(&s->lock);
	path_keep(lane->end->lane, false, &s->stop);
	return NULL;
}

static void free_stream(struct stream *s)
{
	for (uint32_t i = 0; i < PERF_LANES_MAX; i++)
		free(s->lane[i]);
	(void)pthread_cond_destroy(&s->changed);
	(void)pthread_mutex_destroy(&s->lock);
	free(s);
}

static int start_lanes(struct stream *s, struct mf_error *err)
{
	for (uint32_t i = 0; i < s->path->n; i++) {
		s->lane[i] = calloc(1, sizeof(*s->lane[i]));
		if (!s->lane[i])
			return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
		s->lane[i]->stream = s;
		s->lane[i]->end = &s->path->end[i];
	}
	s->n = s->path->n;
	for (uint32_t i = 0; i < s->n; i++) {
		int code = perf_start_thread(&s->lane[i]->thread, lane_main, s->lane[i], err);
		if (code) {
			s->n = i; /* to be joined */
			return code;
		}
	}
	return 0;
}

int stream_start(struct perf_path *path, const struct perf_plan *plan, bool active,
		 struct stream **ret, struct mf_error *err)
{
	struct stream *s = calloc(1, sizeof(*s));
	pthread_condattr_t attr;

	if (!s)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	s->path = path;
	s->plan = plan;
	s->active = active;
	(void)pthread_mutex_init(&s->lock, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&s->changed, &attr);
	(void)pthread_condattr_destroy(&attr);
	int code = start_lanes(s, err);
	if (code)
		stream_stop(s);
	else
		*ret = s;
	return code;
}

static void sum_up(struct stream *s, struct stream_result *ret)
{
	struct slices *all = &s->lane[0]->slices;
	uint64_t end = 0, widest = 0;

	*ret = (struct stream_result){ 0 };
	for (uint32_t i = 0; i < s->n; i++) {
		const struct stream_lane *lane = s->lane[i];
		ret->iterations += lane->done;
		end = end > lane->end_us ? end : lane->end_us;
		widest = widest > lane->slices.width_us ? widest : lane->slices.width_us;
	}
	for (uint32_t i = 0; i < s->n; i++) {
		slices_widen(&s->lane[i]->slices, widest);
		if (i)
			slices_merge(all, &s->lane[i]->slices);
	}
	ret->seconds = (double)(end > s->start_us ? end - s->start_us : 1) / 1e6;
	slices_rates(all, end, s->plan->size, SLICE_OPS, &ret->slices);
}

int stream_wait(struct stream *s, uint64_t deadline_us, struct stream_result *ret,
		struct mf_error *err)
{
	const struct timespec until = { .tv_sec = (time_t)(deadline_us / 1000000),
					.tv_nsec = (long)(deadline_us % 1000000) * 1000 };
	int code = 0;

	(void)pthread_mutex_lock(&s->lock);
	while (s->through < s->n && !s->error.code && code != ETIMEDOUT)
		code = pthread_cond_timedwait(&s->changed, &s->lock, &until);
	bool done = s->through == s->n && !s->error.code;
	const struct mf_error why = s->error;
	(void)pthread_mutex_unlock(&s->lock);
	if (why.code)
		return base_error(err, why.code, why.scope, "%s", why.msg);
	if (!done)
		return base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
				  "the test did not end in time");
	if (s->active)
		sum_up(s, ret);
	return 0;
}

void stream_stop(struct stream *s)
{
	if (!s)
		return;
	(void)pthread_mutex_lock(&s->lock);
	atomic_store_explicit(&s->stop, true, memory_order_release);
	(void)pthread_cond_broadcast(&s->changed);
	(void)pthread_mutex_unlock(&s->lock);
	for (uint32_t i = 0; i < s->n; i++)
		tp_lane_wake(s->lane[i]->end->lane);
	for (uint32_t i = 0; i < s->n; i++)
		(void)pthread_join(s->lane[i]->thread, NULL);
	free_stream(s);
}

uint64_t stream_deadline(const struct perf_plan *plan)
{
	return base_deadline_ms(plan->iterations ? LONGEST_MS : plan->duration_ms + 2 * STUCK_MS);
}

json_t *stream_plan_json(const struct perf_plan *plan, const struct perf_path *path)
{
	json_t *o = json_object();

	perf_put(o, "slot", json_integer(path->slot));
	perf_put(o, "is_read", json_boolean(plan->is_read));
	perf_put(o, "size", json_integer((json_int_t)plan->size));
	perf_put(o, "span", json_integer((json_int_t)plan->span));
	perf_put(o, "iterations", json_integer((json_int_t)plan->iterations));
	perf_put(o, "duration_ms", json_integer((json_int_t)plan->duration_ms));
	perf_put(o, "batch", json_integer(plan->batch));
	perf_put(o, "sleep", json_boolean(plan->sleep));
	perf_put(o, "both_ways", json_boolean(plan->both_ways));
	return o;
}

int stream_plan_parse(const json_t *request, const struct perf_path *path, struct perf_plan *ret,
		      struct mf_error *err)
{
	json_int_t size = json_integer_value(json_object_get(request, "size"));
	json_int_t span = json_integer_value(json_object_get(request, "span"));
	json_int_t iterations = json_integer_value(json_object_get(request, "iterations"));
	json_int_t duration = json_integer_value(json_object_get(request, "duration_ms"));
	json_int_t batch = json_integer_value(json_object_get(request, "batch"));

	if (size < 1 || span < size || (uint64_t)span > path->bytes || iterations < 0 ||
	    iterations > COUNT_MAX || duration < 0 || (uint64_t)duration > LONGEST_MS ||
	    !iterations == !duration || batch < 1 || batch > BATCH_MAX)
		return base_error(err, -EINVAL, MF_SCOPE_SESSION, "this plan makes no sense");
	*ret = (struct perf_plan){
		.is_read = json_is_true(json_object_get(request, "is_read")),
		.size = (uint64_t)size,
		.span = (uint64_t)span,
		.iterations = (uint64_t)iterations,
		.duration_ms = (uint64_t)duration,
		.batch = (uint32_t)batch,
		.sleep = json_is_true(json_object_get(request, "sleep")),
		.both_ways = json_is_true(json_object_get(request, "both_ways")),
	};
	return 0;
}
