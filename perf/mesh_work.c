/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A rank of a mesh: it serves or measures, as the coordinator says.  A thread listens to the coordinator all the time, so
 * that an end anywhere ends what is under way here.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "base/parse.h"
#include "perf/bw.h"
#include "perf/doc.h"
#include "perf/mesh.h"
#include "perf/mesh_priv.h"
#include "perf/path.h"
#include "perf/start.h"
#include "perf/verbs.h"
#include "wire/socket.h"

#define ATTEMPT_MS 5000u
#define PAUSE_MS   200
#define PAIR_MS    30000u /* until the other one of a pair is there, too */

#define BW_BYTES    (UINT64_C(1) << 20)
#define LAT_BYTES   4096u
#define LAT_MS      200u
#define BATCH       16u
#define FIRST_ITERS 4u
#define LEAST_S     0.2
#define WANTED_S    0.4
#define GROWTH_MAX  16.0
#define PROBES_MAX  8u

struct worker {
	const struct perf_launch *launch;
	const struct perf_options *o;
	struct perf_peer *zero;
	pthread_mutex_t sending; /* to zero: both threads do */
	char zero_name[PERF_HOST_CAP + 8];
	int listen_fd;
	int wake_fd; /* readable when it is over */
	pthread_t listener;
	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t changed;
	json_t *order; /* not begun */
	bool over;
	struct mf_error why;    /* code 0: all went well */
	struct perf_peer *pair; /* to be shut down when it is over */
};

/* Rank 0 */

static int attempt(struct worker *w, const char *host, struct mf_error *err)
{
	bool is_v6 = strchr(host, ':');

	(void)snprintf(w->zero_name, sizeof(w->zero_name), is_v6 ? "[%s]:%u" : "%s:%u", host,
		       w->launch->port);
	return perf_peer_connect(w->zero_name, base_deadline_ms(ATTEMPT_MS), &w->zero, err);
}

/* Rank 0 may start later, and may have addresses that only some can reach. */
static int find_zero(struct worker *w, uint64_t deadline_us, struct mf_error *err)
{
	const struct perf_launch *launch = w->launch;
	uint32_t n_hosts = launch->rank ? launch->n_hosts : 1, unknown = 0;
	struct mf_error why = { 0 };

	for (uint32_t i = 0;; i++) {
		/* Rank 0 itself is here, whatever others call this host. */
		const char *host = launch->rank                   ? launch->host[i % n_hosts]
				   : strchr(launch->host[0], ':') ? "::1"
								  : "127.0.0.1";
		why = (struct mf_error){ 0 };
		int ret = attempt(w, host, &why);
		if (!ret)
			return 0;
		unknown = ret == -MF_EUSAGE ? unknown + 1 : 0;
		if (unknown >= n_hosts || base_now_us() >= deadline_us)
			break;
		(void)poll(NULL, 0, PAUSE_MS);
	}
	return base_error(err, why.code, MF_SCOPE_SESSION,
			  "rank %u cannot reach rank 0 at %s: %s; is it started, may its port be "
			  "reached?  --rendezvous HOST:PORT says another address of its host",
			  launch->rank, w->zero_name,
			  why.code == -MF_EUSAGE ? why.msg : base_strerror(why.code));
}

static int listen_here(struct worker *w, uint16_t *ret_port, struct mf_error *err)
{
	char address[128], host[128];

	int ret = wire_listen(mesh_any_address(w->launch), 0, &w->listen_fd, address,
			      sizeof(address), err);
	return ret ? ret : base_parse_addr(address, "", 0, host, sizeof(host), ret_port, err);
}

/* Looking at this host takes a while: that is done before rank 0 is kept waiting. */
static json_t *make_request(const struct worker *w, uint16_t port)
{
	json_t *request = json_object(), *facts = perf_facts("rank");

	perf_put(facts, "rank", json_integer(w->launch->rank));
	perf_put(request, "id", json_string(w->launch->id));
	perf_put(request, "rank", json_integer(w->launch->rank));
	perf_put(request, "port", json_integer(port));
	perf_put(request, "facts", facts);
	return request;
}

static int join(struct worker *w, struct mf_error *err)
{
	json_t *request = NULL;
	uint16_t port = 0;

	int ret = listen_here(w, &port, err);
	if (ret)
		return ret;
	request = make_request(w, port);
	uint64_t deadline = base_deadline_ms(MESH_JOIN_MS);
	ret = find_zero(w, deadline, err);
	if (!ret)
		return perf_peer_call(w->zero, "join", request, deadline + MESH_GRACE_MS * 1000,
				      NULL, err);
	json_decref(request);
	return ret;
}

/* Takes msg over. */
static int tell_zero(struct worker *w, json_t *msg, struct mf_error *err)
{
	(void)pthread_mutex_lock(&w->sending);
	int ret = perf_peer_send(w->zero, msg, err);
	(void)pthread_mutex_unlock(&w->sending);
	return ret;
}

/* The listening thread */

static void end(struct worker *w, const struct mf_error *why)
{
	w->over = true;
	w->why = *why;
	if (w->pair)
		perf_peer_shutdown(w->pair);
	base_event_poke(w->wake_fd);
}

static void take_message(struct worker *w, json_t *msg)
{
	const char *said = perf_text(msg, "error.message");
	struct mf_error why = { 0 };

	if (said[0])
		(void)base_error(&why, -MF_EPEER, MF_SCOPE_SESSION, "%.400s", said);
	else if (w->order)
		(void)base_error(&why, -MF_EPEER, MF_SCOPE_SESSION,
				 "rank 0 (%s) gave two orders at once", w->zero_name);
	if (why.code || !strcmp(perf_text(msg, "do"), "end"))
		end(w, &why);
	else
		w->order = json_incref(msg);
}

static bool is_question(const json_t *msg)
{
	return !strcmp(perf_text(msg, "do"), "alive");
}

static bool hear(struct worker *w, uint64_t deadline_us)
{
	struct mf_error why = { 0 };
	json_t *msg = NULL;

	int ret = perf_peer_recv(w->zero, deadline_us, &msg, &why);
	if (!ret && is_question(msg)) {
		(void)tell_zero(w, msg, NULL); /* where that fails, so does receiving */
		return true;
	}
	(void)pthread_mutex_lock(&w->lock);
	if (ret) {
		(void)base_error_prefix(&why, "rank %u waits for rank 0: ", w->launch->rank);
		end(w, &why);
	} else {
		take_message(w, msg);
	}
	json_decref(msg); /* under the lock: whoever takes the order counts references, too */
	bool over = w->over;
	(void)pthread_cond_signal(&w->changed);
	(void)pthread_mutex_unlock(&w->lock);
	return !over;
}

static void *listener_main(void *arg)
{
	struct worker *w = arg;

	/* The first message comes when all have joined. */
	bool goes_on = hear(w, base_deadline_ms(MESH_JOIN_MS + MESH_GRACE_MS));
	while (goes_on)
		goes_on = hear(w, base_deadline_ms(MESH_SILENCE_MS));
	return NULL;
}

/* NULL: it is over. */
static json_t *next_order(struct worker *w)
{
	(void)pthread_mutex_lock(&w->lock);
	while (!w->order && !w->over)
		(void)pthread_cond_wait(&w->changed, &w->lock);
	json_t *order = w->over ? NULL : BASE_TAKE_PTR(w->order);
	(void)pthread_mutex_unlock(&w->lock);
	return order;
}

static void set_pair(struct worker *w, struct perf_peer *pair)
{
	(void)pthread_mutex_lock(&w->lock);
	w->pair = pair;
	if (pair && w->over)
		perf_peer_shutdown(pair);
	(void)pthread_mutex_unlock(&w->lock);
}

/* Serving */

/* Whoever connects and does not greet is no rank. */
static int accept_pair(struct worker *w, struct perf_peer **ret, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(PAIR_MS);
	int code;

	do {
		int fd = -1;
		code = wire_accept(w->listen_fd, w->wake_fd, deadline, &fd, err);
		if (code == -ETIMEDOUT)
			return base_error(err, code, MF_SCOPE_SESSION,
					  "the other one did not connect within %u s",
					  PAIR_MS / 1000);
		if (code) /* woken: it is over */
			return base_error(err, code, MF_SCOPE_SESSION, "it is over");
		code = perf_peer_accepted(fd, base_deadline_ms(ATTEMPT_MS), ret, NULL);
	} while (code);
	return 0;
}

static int serve(struct worker *w, struct mf_error *err)
{
	struct perf_peer *pair = NULL;

	int ret = accept_pair(w, &pair, err);
	if (ret)
		return ret;
	set_pair(w, pair);
	ret = perf_serve_client(pair, w->o->max_memory, err);
	set_pair(w, NULL);
	perf_peer_close(pair);
	return ret;
}

/* Measuring */

struct results {
	struct perf_bw *bw; /* `repeat` of each */
	struct perf_lat *lat;
	double *rates, *medians;
};

static void free_results(struct results *r)
{
	free(r->bw);
	free(r->lat);
	free(r->rates);
	free(r->medians);
}

static int allocate(size_t n, struct results *ret, struct mf_error *err)
{
	*ret = (struct results){ .bw = calloc(n, sizeof(*ret->bw)),
				 .lat = calloc(n, sizeof(*ret->lat)),
				 .rates = calloc(n, sizeof(double)),
				 .medians = calloc(n, sizeof(double)) };
	if (ret->bw && ret->lat && ret->rates && ret->medians)
		return 0;
	return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
}

/* By number of operations, not by time: what is in flight when time is up may take minutes on a slow link.  As many as
 * take long enough to count. */
static int find_iterations(struct perf_peer *pair, struct perf_path *path, struct perf_plan *plan,
			   struct mf_error *err)
{
	struct perf_bw bw;

	plan->iterations = FIRST_ITERS;
	for (unsigned i = 0; i < PROBES_MAX; i++) {
		int ret = perf_bw_run(pair, path, plan, &bw, err);
		if (ret || bw.seconds >= LEAST_S)
			return ret;
		double more = bw.seconds > 0 ? WANTED_S / bw.seconds : GROWTH_MAX;
		plan->iterations = (uint64_t)((double)plan->iterations *
					      (more < GROWTH_MAX ? more : GROWTH_MAX));
	}
	return 0;
}

static int run_tests(const struct perf_options *o, struct perf_peer *pair, struct perf_path *path,
		     struct results *r, struct mf_error *err)
{
	struct perf_plan bw = { .size = BW_BYTES,
				.span = BW_BYTES,
				.batch = o->depth < BATCH ? (uint32_t)o->depth : BATCH };
	const struct perf_plan lat = { .is_read = true,
				       .size = LAT_BYTES,
				       .span = LAT_BYTES,
				       .duration_ms = LAT_MS,
				       .batch = 1 };

	int ret = find_iterations(pair, path, &bw, err);
	for (uint64_t i = 0; !ret && i < o->repeat; i++) {
		ret = perf_bw_run(pair, path, &bw, &r->bw[i], err);
		if (!ret)
			ret = perf_lat_run(pair, path, &lat, &r->lat[i], err);
		r->rates[i] = r->bw[i].bytes_per_s;
		r->medians[i] = r->lat[i].us.p50;
		free(BASE_TAKE_PTR(r->lat[i].samples_us));
	}
	return ret;
}

static json_t *make_row(const struct perf_path *path, struct results *r, size_t repeat)
{
	const struct perf_bw *bw = &r->bw[perf_median_of(r->rates, repeat)];
	const struct perf_lat *lat = &r->lat[perf_median_of(r->medians, repeat)];
	json_t *row = json_object(), *cpu = json_object();
	struct perf_stats rates;

	perf_stats_of_rates(r->rates, repeat, &rates);
	perf_put(cpu, "client", perf_cpu_json(&bw->client));
	perf_put(cpu, "server", perf_cpu_json(&bw->server));
	perf_put(row, "transport", json_string(path->ops->kind));
	perf_put(row, "bytes", json_real((double)bw->iterations * BW_BYTES)); /* in that CPU time */
	perf_put(row, "bytes_per_s", perf_stats_json(&rates));
	perf_put(row, "latency_us", perf_stats_json(&lat->us));
	perf_put(row, "cpu", cpu);
	return row;
}

static int measure_pair(struct worker *w, struct perf_peer *pair, json_t **ret_row,
			struct mf_error *err)
{
	const struct perf_options *o = w->o;
	struct perf_path_params params = { .device = o->device,
					   .gid = -1,
					   .lanes = (uint32_t)o->lanes,
					   .depth = (uint32_t)o->depth,
					   .bytes = BW_BYTES };
	struct results results base_cleanup(free_results) = { 0 };
	struct perf_path path = { 0 };
	char why[160];

	int ret = allocate(o->repeat, &results, err);
	if (!ret)
		ret = perf_path_choose(pair, o->transport, &params.transport, why, sizeof(why),
				       err);
	if (!ret)
		ret = perf_path_open(pair, &params, &path, err);
	if (ret)
		return ret;
	ret = run_tests(o, pair, &path, &results, err);
	if (!ret)
		*ret_row = make_row(&path, &results, o->repeat);
	int ended = perf_path_end(pair, &path, ret ? NULL : err);
	return ret ? ret : ended;
}

static int measure(struct worker *w, const json_t *order, json_t **ret_row, struct mf_error *err)
{
	struct perf_peer *pair = NULL;

	int ret = perf_peer_connect(perf_text(order, "address"), base_deadline_ms(PAIR_MS), &pair,
				    err);
	if (ret)
		return ret;
	set_pair(w, pair);
	ret = measure_pair(w, pair, ret_row, err);
	set_pair(w, NULL);
	perf_peer_close(pair);
	return ret;
}

static int obey(struct worker *w, const json_t *order, struct mf_error *err)
{
	json_t *row = NULL, *answer;
	struct mf_error failure = { 0 };
	int ret;

	if (!strcmp(perf_text(order, "do"), "measure"))
		ret = measure(w, order, &row, &failure);
	else
		ret = serve(w, &failure);
	if (ret) {
		json_decref(row);
		if (!failure.code)
			(void)base_error_sys(&failure, ret, MF_SCOPE_SESSION, "failed");
		answer = json_object();
		perf_put(answer, "error", json_pack("{s:s}", "message", failure.msg));
		return tell_zero(w, answer, err);
	}
	answer = json_object();
	if (row)
		perf_put(answer, "row", row);
	return tell_zero(w, answer, err);
}

/* Until the end; what the coordinator says counts for more than what failed here because of it. */
static int obey_all(struct worker *w, struct mf_error *err)
{
	struct mf_error failure = { 0 };
	int ret = 0;

	int code = perf_start_thread(&w->listener, listener_main, w, err);
	if (code)
		return code;
	for (json_t *order; !ret && (order = next_order(w));) {
		ret = obey(w, order, &failure);
		json_decref(order);
	}
	if (ret)
		perf_peer_shutdown(w->zero);
	(void)pthread_join(w->listener, NULL);
	json_decref(w->order);
	if (w->why.code)
		return base_error(err, w->why.code, w->why.scope, "%s", w->why.msg);
	return ret ? base_error(err, ret, failure.scope, "%s", failure.msg) : 0;
}

int perf_mesh_work(const struct perf_launch *launch, const struct perf_options *o,
		   struct mf_error *err)
{
	struct worker w = { .launch = launch,
			    .o = o,
			    .listen_fd = -1,
			    .wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
			    .sending = PTHREAD_MUTEX_INITIALIZER,
			    .lock = PTHREAD_MUTEX_INITIALIZER,
			    .changed = PTHREAD_COND_INITIALIZER };

	if (w.wake_fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "eventfd");
	int ret = join(&w, err);
	if (!ret)
		ret = obey_all(&w, err);
	perf_peer_close(w.zero);
	base_closep(&w.listen_fd);
	base_closep(&w.wake_fd);
	return ret;
}
