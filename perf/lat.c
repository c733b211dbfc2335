/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Latency: the client's side, and the server's.
 *
 * A write's is half of there and back, as perftest has it: each side writes into the other's memory and looks at the last byte
 * of its own until that is the number of the turn.  Bytes of one write become visible in order, on the devices and
 * providers that there are; the last one is looked for with acquire.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "perf/bw.h"
#include "perf/doc.h"
#include "perf/path_priv.h"
#include "perf/start.h"
#include "perf/stream.h"

#define STUCK_MS    30000u
#define LOOKS       1024u /* at memory, between two at the clock */
#define WARM        20u
#define SAMPLES_MAX 1000000u /* by time: kept; later ones take the places of earlier ones in turn */

/* The lane that goes back and forth, with a place to write from and one to be written to. */
struct pong {
	struct perf_end *end;
	uint64_t size, half;
	uint64_t in_flight;
	const _Atomic bool *stop; /* NULL: none */
};

static int hit(struct pong *p, uint8_t turn, struct mf_error *err)
{
	struct tp_xfer xfer = { .local = p->end->mem,
				.mr = p->end->mr,
				.remote = p->end->remote.addr + p->half,
				.key = p->end->remote.key,
				.len = p->size };

	p->end->mem[p->size - 1] = turn;
	return perf_post_all(p->end->lane, false, &xfer, 1, &p->in_flight, err);
}

/* 0, or -ECANCELED when stopped. */
static int await(struct pong *p, uint8_t turn, struct mf_error *err)
{
	const uint8_t *last = p->end->mem + p->half + p->size - 1;
	uint64_t deadline = base_deadline_ms(STUCK_MS);

	for (unsigned look = 1; __atomic_load_n(last, __ATOMIC_ACQUIRE) != turn; look++) {
		int n = perf_reap(p->end->lane, false, 0, &p->in_flight, err);
		if (n < 0)
			return n;
		if (p->stop && atomic_load_explicit(p->stop, memory_order_acquire))
			return -ECANCELED;
		if (look % LOOKS)
			continue;
		if (base_now_us() > deadline)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_LANE,
					  "lane %u: the other host does not write back",
					  p->end->lane->id);
	}
	return 0;
}

static int drain(struct pong *p, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(STUCK_MS);
	int n = 0;

	while (n >= 0 && p->in_flight && base_now_us() < deadline)
		n = perf_reap(p->end->lane, false, 0, &p->in_flight, err);
	return n < 0 ? n : 0;
}

static int one_write(struct pong *p, uint8_t turn, struct mf_error *err)
{
	int ret = hit(p, turn, err);

	return ret ? ret : await(p, turn, err);
}

static int one_read(struct pong *p, bool sleep, struct mf_error *err)
{
	struct tp_xfer xfer = { .local = p->end->mem,
				.mr = p->end->mr,
				.remote = p->end->remote.addr,
				.key = p->end->remote.key,
				.len = p->size };
	uint64_t deadline = base_deadline_ms(STUCK_MS);

	int ret = perf_post_all(p->end->lane, true, &xfer, 1, &p->in_flight, err);
	for (unsigned look = 1; ret >= 0 && p->in_flight; look++) {
		ret = perf_reap(p->end->lane, sleep, deadline, &p->in_flight, err);
		if (ret || look % LOOKS)
			continue;
		if (base_now_us() > deadline)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_LANE,
					  "lane %u: no read completed in time", p->end->lane->id);
	}
	return ret < 0 ? ret : 0;
}

/* Warm-up turns first; turns are numbered from 1, so that fresh memory is none. */
static int sample(struct perf_path *path, const struct perf_plan *plan, struct perf_lat *ret,
		  struct mf_error *err)
{
	struct pong p = { .end = &path->end[0], .size = plan->size, .half = path->bytes / 2 };
	uint64_t cap = plan->iterations ? plan->iterations : SAMPLES_MAX, n = 0, until = 0;
	int code = 0;

	p.end->mem[p.half + p.size - 1] =
		0; /* not what an earlier test left: it would look like a turn */

	for (uint64_t turn = 1; !code; turn++) {
		bool measured = turn > WARM;
		if (turn == WARM + 1)
			until = plan->iterations ? BASE_NEVER : base_deadline_ms(plan->duration_ms);
		if (measured && (plan->iterations ? n == plan->iterations : base_now_us() >= until))
			break;
		uint64_t start = base_now_ns();
		code = plan->is_read ? one_read(&p, plan->sleep, err)
				     : one_write(&p, (uint8_t)turn, err);
		if (!code && measured)
			ret->samples_us[n++ % cap] =
				(double)(base_now_ns() - start) / (plan->is_read ? 1e3 : 2e3);
	}
	ret->iterations = n < cap ? n : cap;
	return code ? code : drain(&p, err);
}

static int allocate(const struct perf_plan *plan, struct perf_lat *ret, struct mf_error *err)
{
	uint64_t n = plan->iterations ? plan->iterations : SAMPLES_MAX;

	*ret = (struct perf_lat){ .samples_us = calloc(n, sizeof(double)) };
	if (!ret->samples_us)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	return 0;
}

static int summarise(struct perf_lat *lat, struct mf_error *err)
{
	double *copy base_cleanup(base_freep) = calloc(lat->iterations + 1, sizeof(double));

	if (!copy)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	memcpy(copy, lat->samples_us, lat->iterations * sizeof(double));
	perf_stats_of(copy, lat->iterations, &lat->us);
	return 0;
}

int perf_lat_run(struct perf_peer *peer, struct perf_path *path, const struct perf_plan *plan,
		 struct perf_lat *ret, struct mf_error *err)
{
	struct mf_error there = { 0 };
	struct perf_cpu start;
	json_t *answer = NULL;

	int code = allocate(plan, ret, err);
	if (!code)
		code = perf_peer_call(peer, "lat", stream_plan_json(plan, path),
				      base_deadline_ms(PERF_ANSWER_MS), NULL, err);
	if (code) {
		free(BASE_TAKE_PTR(ret->samples_us));
		return code;
	}
	perf_cpu_now(&start);
	code = sample(path, plan, ret, err);
	perf_cpu_since(&start, &ret->client);
	int said = perf_peer_call(peer, "lat_end", NULL, base_deadline_ms(PERF_ANSWER_MS), &answer,
				  &there);
	if (!code && said)
		code = base_error(err, said, there.scope, "%s", there.msg);
	if (!code)
		code = summarise(ret, err);
	perf_cpu_parse(json_object_get(answer, "cpu"), &ret->server);
	json_decref(answer);
	if (code)
		free(BASE_TAKE_PTR(ret->samples_us));
	return code;
}

/* The server's thread that writes back, or keeps the lane going for reads. */
struct echo {
	struct pong pong;
	bool is_read, sleep;
	_Atomic bool stop;
	int code;
	struct mf_error err;
	pthread_t thread;
};

static void *echo_main(void *arg)
{
	struct echo *e = arg;

	if (e->is_read) {
		path_keep(e->pong.end->lane, !e->sleep, &e->stop);
		return NULL;
	}
	for (uint64_t turn = 1; !e->code; turn++) {
		e->code = await(&e->pong, (uint8_t)turn, &e->err);
		if (!e->code)
			e->code = hit(&e->pong, (uint8_t)turn, &e->err);
	}
	if (e->code == -ECANCELED)
		e->code = drain(&e->pong, &e->err);
	return NULL;
}

static int converse(struct perf_peer *peer, const struct perf_plan *plan,
		    struct perf_cpu *ret_spent, struct mf_error *err)
{
	struct perf_cpu start;
	json_t *request = NULL;

	perf_cpu_now(&start);
	int ret = perf_peer_send(peer, json_object(), err);
	if (!ret)
		ret = perf_peer_recv(peer, stream_deadline(plan), &request, err);
	json_decref(request);
	perf_cpu_since(&start, ret_spent);
	return ret;
}

int perf_lat_serve(struct perf_peer *peer, const json_t *request, struct perf_path *path,
		   struct mf_error *err)
{
	struct echo echo = { .pong = { .end = &path->end[0], .half = path->bytes / 2 } };
	struct perf_cpu spent;
	struct perf_plan plan;

	int ret = stream_plan_parse(request, path, &plan, err);
	if (!ret && plan.size > path->bytes / 2)
		ret = base_error(err, -EINVAL, MF_SCOPE_SESSION, "this plan makes no sense");
	if (ret)
		return ret;
	echo.pong.size = plan.size;
	echo.pong.stop = &echo.stop;
	echo.is_read = plan.is_read;
	echo.sleep = plan.sleep || !(path->ops->caps & TP_CAP_TARGET_PROGRESS);
	/* As in sample(). */
	echo.pong.end->mem[echo.pong.half + plan.size - 1] = 0;
	ret = perf_start_thread(&echo.thread, echo_main, &echo, err);
	if (ret)
		return ret;
	ret = converse(peer, &plan, &spent, err);
	atomic_store_explicit(&echo.stop, true, memory_order_release);
	tp_lane_wake(echo.pong.end->lane);
	(void)pthread_join(echo.thread, NULL);
	if (!ret && echo.code)
		ret = base_error(err, echo.code, echo.err.scope, "%s", echo.err.msg);
	if (ret)
		return ret;
	json_t *answer = json_object();
	perf_put(answer, "cpu", perf_cpu_json(&spent));
	return perf_peer_send(peer, answer, err);
}
