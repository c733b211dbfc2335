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

uint64_t eng_spend_bandwidth(struct mf_session *s, uint64_t bytes)
{
	uint64_t cost = bytes * 1000000 / s->params.max_bandwidth, now = base_now_us();
	uint64_t at = atomic_load_explicit(&s->not_before_us, memory_order_relaxed), next;
	do { /* idle time is not saved up */
		next = (at > now ? at : now) + cost;
	} while (!atomic_compare_exchange_weak_explicit(
		&s->not_before_us, &at, next, memory_order_relaxed, memory_order_relaxed));
	return at;
}

void eng_lane_fail(struct eng_lane *lane, int code)
{
	if (atomic_load_explicit(&lane->failure, memory_order_relaxed))
		return;
	base_debug("rail %u, lane %u failed: %s", lane->rail->id, lane->id, base_strerror(code));
	base_error_sys(&lane->error, code, MF_SCOPE_LANE, "lane %u", lane->id);
	atomic_store_explicit(
		&lane->lost,
		!atomic_load_explicit(&lane->session->lanes_done, memory_order_relaxed),
		memory_order_relaxed);
	/* release: pairs with the acquire in eng_lanes_failure; the record is written first */
	atomic_store_explicit(&lane->failure, code, memory_order_release);
	base_event_poke(lane->session->event_fd);
}

static void end_job(struct eng_lane *lane, struct eng_job *job)
{
	atomic_store_explicit(&lane->job, NULL, memory_order_relaxed);
	/* acq_rel: what the job did is seen by whoever sees it done */
	if (atomic_fetch_sub_explicit(&job->running, 1, memory_order_acq_rel) == 1)
		base_event_poke(lane->session->event_fd);
}

static void run_job(struct eng_lane *lane, struct eng_job *job)
{
	if (job->even_failed || !atomic_load_explicit(&lane->failure, memory_order_relaxed)) {
		int r = job->run(lane, job->ctx);
		if (r < 0)
			eng_lane_fail(lane, r);
	}
	end_job(lane, job);
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
	(void)snprintf(name, sizeof(name), lane->urgent ? "mf-urgent-%u" : "mf-lane-%u.%u",
		       lane->rail->id, lane->id);
	(void)pthread_setname_np(pthread_self(), name);
	set_priority(lane);
	eng_place_bind(lane);

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
			eng_lane_fail(lane, -ECONNRESET);
			continue;
		}
		struct tp_wc wc;
		int r = tp_lane_poll(lane->tp, &wc, 1);
		assert(r <= 0 || lane->in_flight == 0); /* a job reaps all that it posts */
		if (r == 0)
			r = tp_lane_wait(lane->tp, base_deadline_ms(1000));
		if (r < 0 && r != -ETIMEDOUT)
			eng_lane_fail(lane, r);
	}
	return NULL;
}

int eng_lanes_init(struct mf_session *s, uint32_t n_bulk, struct mf_error *err)
{
	struct eng_lanes *l = &s->lanes;
	uint32_t n = n_bulk + 1;
	l->lane = calloc((size_t)n * s->n_rails, sizeof(*l->lane));
	if (!l->lane)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	l->n_bulk = n_bulk;
	for (uint32_t i = 0; i < n * s->n_rails; i++) {
		l->lane[i].sleep_fd = -1;
		pthread_mutex_init(&l->lane[i].wake_lock, NULL);
	}
	for (uint32_t i = 0; i < n * s->n_rails; i++) {
		struct eng_lane *lane = &l->lane[i];
		lane->session = s;
		lane->rail = &s->rail[i / n];
		lane->rail->lane = &l->lane[i / n * n];
		lane->id = i % n;
		lane->urgent = lane->id == n_bulk;
		lane->sleep_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (lane->sleep_fd < 0)
			return base_error_sys(err, -errno, MF_SCOPE_HOST, "eventfd");
		/* No work for it before it was started. */
		atomic_store_explicit(&lane->failure, -ENOTCONN, memory_order_relaxed);
	}
	return 0;
}

void eng_lanes_free(struct mf_session *s)
{
	struct eng_lanes *l = &s->lanes;
	for (uint32_t i = 0; l->lane && i < eng_lanes_per_rail(s) * s->n_rails; i++) {
		base_closep(&l->lane[i].sleep_fd);
		pthread_mutex_destroy(&l->lane[i].wake_lock);
	}
	free(l->lane);
	memset(l, 0, sizeof(*l));
}

int eng_lane_start(struct eng_lane *lane, struct tp_lane *tp, struct mf_error *err)
{
	const struct eng_rail *rail = lane->rail;
	uint32_t depth = rail->limits.depth < ENG_DEPTH ? rail->limits.depth : ENG_DEPTH;
	assert(!lane->tp && !lane->started);
	pthread_mutex_lock(&lane->wake_lock);
	lane->tp = tp;
	pthread_mutex_unlock(&lane->wake_lock);
	lane->error = (struct mf_error){ 0 };
	lane->fenced = false;
	atomic_store_explicit(&lane->lost, false, memory_order_relaxed);
	lane->in_flight = lane->n_free = 0;
	atomic_store_explicit(&lane->failure, 0, memory_order_relaxed);
	atomic_store_explicit(&lane->stop, false, memory_order_relaxed);
	atomic_store_explicit(&lane->drop, false, memory_order_relaxed);
	atomic_store_explicit(&lane->reachable, 0, memory_order_relaxed);
	/* Room for flushes beside the operations. */
	for (uint32_t k = 0; k < depth - ENG_CHUNKS_UNFLUSHED - 1; k++)
		lane->free_ops[lane->n_free++] = (uint16_t)k;
	lane->remote = calloc(rail->theirs.total, sizeof(*lane->remote));
	lane->lent = calloc(rail->pieces.total, sizeof(*lane->lent));
	if (!lane->remote || !lane->lent)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	int r = -pthread_create(&lane->thread, NULL, lane_main, lane);
	if (r < 0)
		return base_error_sys(err, r, MF_SCOPE_HOST, "lane %u: thread", lane->id);
	lane->started = true;
	return 0;
}

void eng_lane_stop(struct eng_lane *lane)
{
	struct tp_wc wc[16];
	if (lane->started) {
		atomic_store_explicit(&lane->stop, true, memory_order_release);
		eng_lane_wake(lane);
		pthread_join(lane->thread, NULL);
	}
	lane->started = false;
	/* Given to it when it had looked for the last time. */
	struct eng_job *job = atomic_load_explicit(&lane->job, memory_order_acquire);
	if (job)
		end_job(lane, job);
	if (!lane->tp)
		return;
	tp_lane_shutdown(lane->tp);
	for (int n; (n = eng_lane_reap_rest(lane, wc, 16)) > 0;)
		lane->in_flight -= (uint32_t)n;
	if (!atomic_load_explicit(&lane->failure, memory_order_relaxed))
		atomic_store_explicit(&lane->failure, -ENOTCONN, memory_order_relaxed);
}

void eng_lane_stats(const struct eng_lane *lane, struct tp_lane_stats *ret)
{
	struct tp_lane_stats now = { 0 };
	const uint64_t *more = (const uint64_t *)&now;
	uint64_t *sum = (uint64_t *)ret;
	*ret = lane->past;
	if (lane->tp)
		tp_lane_stats(lane->tp, &now);
	for (size_t i = 0; i < sizeof(now) / sizeof(*sum); i++)
		sum[i] += more[i];
}

void eng_lane_close(struct eng_lane *lane)
{
	struct tp_lane_stats all;
	eng_lane_stats(lane, &all);
	lane->past = all;
	struct tp_lane *tp = lane->tp;
	pthread_mutex_lock(&lane->wake_lock);
	lane->tp = NULL;
	pthread_mutex_unlock(&lane->wake_lock);
	tp_lane_close(tp);
	free(lane->remote);
	free(lane->lent);
	lane->remote = lane->lent = NULL;
}

void eng_lane_wake(struct eng_lane *lane)
{
	pthread_mutex_lock(&lane->wake_lock);
	if (lane->tp)
		tp_lane_wake(lane->tp);
	pthread_mutex_unlock(&lane->wake_lock);
	base_event_poke(lane->sleep_fd);
}

void eng_lane_take_wake(struct eng_lane *lane)
{
	base_event_take(lane->sleep_fd);
}

int eng_lane_drop(struct mf_session *s, uint32_t rail, uint32_t id, struct mf_error *err)
{
	uint64_t deadline = eng_timeout(s);
	if (rail >= s->n_rails || id >= eng_lanes_per_rail(s))
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				  "the other host lost a lane that there is not");
	struct eng_lane *lane = &s->rail[rail].lane[id];
	atomic_store_explicit(&lane->drop, true, memory_order_relaxed);
	eng_lane_wake(lane);
	/* acquire: pairs with eng_lane_fail, which comes after the shutdown */
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

static bool is_alive(const struct eng_lane *lane)
{
	/* acquire: pairs with eng_lane_fail */
	return !atomic_load_explicit(&lane->failure, memory_order_acquire);
}

static bool is_usable(const struct eng_rail *rail)
{
	/* acquire: what the rail's lanes need was set up before */
	return atomic_load_explicit(&rail->usable, memory_order_acquire);
}

uint32_t eng_rail_alive(const struct eng_rail *rail)
{
	uint32_t alive = 0;
	for (uint32_t i = 0; rail->lane && i < rail->session->lanes.n_bulk; i++)
		alive += is_alive(&rail->lane[i]);
	return alive;
}

const struct eng_rail *eng_rails_first(const struct mf_session *s)
{
	for (uint32_t k = 0; k < s->n_rails; k++) {
		if (is_usable(&s->rail[k]) && eng_rail_alive(&s->rail[k]))
			return &s->rail[k];
	}
	return NULL;
}

const struct tp_ops *eng_rails_in_use(const struct mf_session *s)
{
	const struct eng_rail *first = eng_rails_first(s);
	return first ? first->tp : NULL;
}

/* Of any transport: better a slow one than none. */
static struct eng_lane *pick_urgent(const struct mf_session *s)
{
	for (uint32_t k = 0; k < s->n_rails; k++) {
		const struct eng_rail *rail = &s->rail[k];
		if (is_usable(rail) && is_alive(&rail->lane[s->lanes.n_bulk]))
			return &rail->lane[s->lanes.n_bulk];
	}
	return NULL;
}

static void give(struct eng_lane *lane, struct eng_job *job)
{
	assert(!atomic_load_explicit(&lane->job, memory_order_relaxed));
	/* release: pairs with the acquire in lane_main; the job is set up before */
	atomic_store_explicit(&lane->job, job, memory_order_release);
	eng_lane_wake(lane);
}

static void give_all(struct eng_lane *const *lanes, uint32_t n, struct eng_job *job)
{
	atomic_store_explicit(&job->running, n, memory_order_relaxed);
	atomic_store_explicit(&job->stop, false, memory_order_relaxed);
	for (uint32_t i = 0; i < n; i++)
		give(lanes[i], job);
}

void eng_lanes_run(struct mf_session *s, enum eng_lane_set set, struct eng_job *job)
{
	const struct tp_ops *tp = eng_rails_in_use(s);
	struct eng_lane *lanes[ENG_RAILS_MAX * ENG_LANES_MAX];
	uint32_t n = 0;
	if (set == ENG_URGENT) {
		lanes[0] = pick_urgent(s);
		n = lanes[0] ? 1 : 0;
	}
	for (uint32_t k = 0; set == ENG_BULK && tp && k < s->n_rails; k++) {
		struct eng_rail *rail = &s->rail[k];
		for (uint32_t i = 0; rail->tp == tp && is_usable(rail) && i < s->lanes.n_bulk;
		     i++) {
			if (is_alive(&rail->lane[i]))
				lanes[n++] = &rail->lane[i];
		}
	}
	give_all(lanes, n, job);
}

void eng_lanes_run_on(struct eng_rail *rail, bool with_urgent, struct eng_job *job)
{
	struct eng_lane *lanes[ENG_LANES_MAX + 1];
	uint32_t n = 0;
	for (uint32_t i = 0; i < rail->session->lanes.n_bulk + (with_urgent ? 1 : 0); i++) {
		if (is_alive(&rail->lane[i]))
			lanes[n++] = &rail->lane[i];
	}
	give_all(lanes, n, job);
}

void eng_see_done(struct mf_session *s, const struct eng_job *job)
{
	while (!eng_job_is_done(job))
		eng_sleep(s, base_deadline_ms(100));
}

bool eng_lanes_pass_on(struct mf_session *s, struct eng_job *job)
{
	struct eng_lane *lane = pick_urgent(s);
	if (!lane)
		return false;
	/* The caller's own turn ends after this: the job is never done in between. */
	atomic_fetch_add_explicit(&job->running, 1, memory_order_relaxed);
	give(lane, job);
	return true;
}

bool eng_job_is_done(const struct eng_job *job)
{
	/* acquire: pairs with run_job */
	return !atomic_load_explicit(&job->running, memory_order_acquire);
}

uint32_t eng_lanes_alive(const struct mf_session *s, enum eng_lane_set set)
{
	const struct tp_ops *tp = eng_rails_in_use(s);
	uint32_t alive = 0;
	if (set == ENG_URGENT)
		return pick_urgent(s) ? 1 : 0;
	for (uint32_t k = 0; tp && k < s->n_rails; k++) {
		if (s->rail[k].tp == tp && is_usable(&s->rail[k]))
			alive += eng_rail_alive(&s->rail[k]);
	}
	return alive;
}

/* What was relied on last says best what is wrong. */
int eng_lanes_failure(struct mf_session *s, struct mf_error *err)
{
	for (uint32_t k = s->n_rails; k-- > 0;) {
		int code = eng_rail_failure(&s->rail[k], err);
		if (code < 0)
			return code;
	}
	return base_error(err, -ENOTCONN, MF_SCOPE_SESSION, "no lane is left");
}

int eng_rail_failure(const struct eng_rail *rail, struct mf_error *err)
{
	if (rail->error.code)
		return base_error(err, rail->error.code, MF_SCOPE_SESSION, "%s", rail->error.msg);
	for (uint32_t i = 0; rail->lane && i < eng_lanes_per_rail(rail->session); i++) {
		const struct eng_lane *lane = &rail->lane[i];
		/* acquire: pairs with eng_lane_fail; the error is written first */
		if (atomic_load_explicit(&lane->failure, memory_order_acquire) < 0 &&
		    lane->error.code)
			return base_error(err, lane->error.code, MF_SCOPE_SESSION, "%s",
					  lane->error.msg);
	}
	return 0;
}
