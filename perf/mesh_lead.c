/* SPDX-License-Identifier: BSD-2-Clause */
/* The coordinator of a mesh: gathers the ranks, gives their orders turn by turn, and ends all when one has failed. */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "cli/report.h"
#include "perf/cpu.h"
#include "perf/doc.h"
#include "perf/mesh.h"
#include "perf/mesh_priv.h"
#include "perf/peer.h"
#include "perf/plot.h"
#include "perf/stats.h"
#include "wire/socket.h"

#define GREET_MS     5000u
#define COMPLAINT_MS 2000u
#define LINGER_MS    5000u
#define FACTS_MAX    (256u << 10) /* bytes, as JSON */

struct rank {
	struct perf_peer *peer; /* NULL: has not come */
	json_t *facts;
	char name[PERF_MESH_NAME_CAP];  /* of the host */
	char label[PERF_MESH_NAME_CAP]; /* with the rank's number where a host has several */
	uint16_t port;                  /* where it serves */
	uint64_t heard_us;              /* when it said something for the last time */
	/* this turn */
	uint32_t partner; /* itself: none */
	bool is_client, is_busy;
};

/* A turn's failure; that a host is gone explains what others tell. */
struct failure {
	bool gone;
	struct mf_error err;
};

struct mesh {
	const struct perf_launch *launch;
	const struct perf_options *o;
	json_t *doc;
	uint32_t n;
	struct rank *rank;
	struct pollfd *poll;
	uint32_t *rank_at, *place_of; /* in the schedule */
	uint32_t round;
	uint64_t ask_us; /* when to ask again whether all are alive */
	struct failure failure;
};

/* Gathering */

static int check_join(const struct mesh *m, const json_t *request, uint32_t *ret_rank,
		      struct mf_error *err)
{
	const json_t *facts = json_object_get(request, "facts");
	json_int_t rank = json_integer_value(json_object_get(request, "rank"));
	json_int_t port = json_integer_value(json_object_get(request, "port"));

	if (strcmp(perf_text(request, "do"), "join"))
		return base_error(err, -EINVAL, MF_SCOPE_SESSION,
				  "this is a mesh, and no memferry-perf server");
	if (strcmp(perf_text(request, "id"), m->launch->id))
		return base_error(err, -EBUSY, MF_SCOPE_SESSION,
				  "this is the mesh of another job (%s); give each a port of its "
				  "own by --rendezvous HOST:PORT",
				  m->launch->id);
	if (!json_is_integer(json_object_get(request, "rank")) || rank < 0 || rank >= m->n ||
	    port < 1 || port > UINT16_MAX || !json_is_object(facts) ||
	    !perf_text(facts, "name")[0] || json_dumpb(facts, NULL, 0, JSON_COMPACT) > FACTS_MAX)
		return base_error(err, -EINVAL, MF_SCOPE_SESSION, "this makes no sense as a rank");
	if (m->rank[rank].peer)
		return base_error(err, -EEXIST, MF_SCOPE_SESSION,
				  "rank %u is there already, on %s: were two meshes started with "
				  "the same --rendezvous?",
				  (unsigned)rank, m->rank[rank].name);
	*ret_rank = (uint32_t)rank;
	return 0;
}

static void take_rank(struct mesh *m, uint32_t rank, const json_t *request, struct perf_peer *peer)
{
	struct rank *r = &m->rank[rank];
	char name[PERF_MESH_NAME_CAP];

	r->facts = json_incref(json_object_get(request, "facts"));
	(void)snprintf(name, sizeof(name), "%s", perf_text(r->facts, "name"));
	(void)cli_clean(name, r->name, sizeof(r->name));
	r->port = (uint16_t)json_integer_value(json_object_get(request, "port"));
	r->peer = peer;
	m->poll[rank] = (struct pollfd){ .fd = perf_peer_fd(peer), .events = POLLIN };
}

/* Takes the connection over.  Whoever makes no sense is told so, and is no failure of ours. */
static bool take_connection(struct mesh *m, int fd)
{
	struct mf_error why = { 0 };
	struct perf_peer *peer = NULL;
	json_t *request = NULL;
	uint32_t rank = 0;

	if (perf_peer_accepted(fd, base_deadline_ms(GREET_MS), &peer, NULL))
		return false;
	int ret = perf_peer_recv(peer, base_deadline_ms(GREET_MS), &request, &why);
	if (!ret)
		ret = check_join(m, request, &rank, &why);
	if (ret)
		(void)perf_peer_send_error(peer, &why, NULL);
	else
		ret = perf_peer_send(peer, json_object(), NULL);
	if (ret)
		perf_peer_close(peer);
	else
		take_rank(m, rank, request, peer);
	json_decref(request);
	return !ret;
}

static uint32_t first_missing(const struct mesh *m)
{
	uint32_t i = 0;

	while (i < m->n && m->rank[i].peer)
		i++;
	return i;
}

static int gather_ranks(struct mesh *m, int listen_fd, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(MESH_JOIN_MS);

	for (uint32_t there = 0; there < m->n;) {
		int fd = -1;
		int ret = wire_accept(listen_fd, -1, deadline, &fd, err);
		if (ret == -ETIMEDOUT)
			return base_error(err, ret, MF_SCOPE_SESSION,
					  "rank %u has not come within %u s (%u of %u have): "
					  "was it started, and can it reach port %u of this host?",
					  first_missing(m), MESH_JOIN_MS / 1000, there, m->n,
					  m->launch->port);
		if (ret)
			return ret;
		there += take_connection(m, fd);
		perf_progress("mesh: %u of %u processes are there", there, m->n);
	}
	return 0;
}

static void label_ranks(struct mesh *m)
{
	for (uint32_t i = 0; i < m->n; i++) {
		struct rank *r = &m->rank[i];
		unsigned same = 0;
		for (uint32_t j = 0; j < m->n; j++)
			same += !strcmp(r->name, m->rank[j].name);
		if (same > 1)
			(void)snprintf(r->label, sizeof(r->label), "%.48s#%u", r->name, i);
		else
			(void)snprintf(r->label, sizeof(r->label), "%s", r->name);
		perf_put(r->facts, "label", json_string(r->label));
		perf_doc_add_host(m->doc, json_incref(r->facts));
	}
}

/* Turns */

static bool is_loopback(const char *address)
{
	return !strncmp(address, "127.", 4) || !strcmp(address, "::1") ||
	       !strncmp(address, "::ffff:127.", 11);
}

/* Whoever came over the loopback is on this host, which others know by the address that they came to. */
static json_t *address_for(const struct rank *client, const struct rank *server)
{
	const char *host = perf_peer_remote(server->peer);

	if (is_loopback(host) && !is_loopback(perf_peer_remote(client->peer)))
		host = perf_peer_local(client->peer);
	return json_sprintf(strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, server->port);
}

static uint32_t partner_of(const struct mesh *m, uint32_t round, uint32_t rank)
{
	return m->rank_at[perf_mesh_partner(m->n, round, m->place_of[rank])];
}

static void take_failure(struct mesh *m, bool gone, int code, const char *fmt, ...) MF_PRINTF(4, 5);
static void take_failure(struct mesh *m, bool gone, int code, const char *fmt, ...)
{
	char text[sizeof(m->failure.err.msg)];
	va_list ap;

	if (m->failure.err.code && (m->failure.gone || !gone))
		return;
	va_start(ap, fmt);
	if (vsnprintf(text, sizeof(text), fmt, ap) < 0)
		text[0] = '\0';
	va_end(ap);
	m->failure = (struct failure){ .gone = gone };
	(void)base_error(&m->failure.err, code, MF_SCOPE_SESSION, "%s", text);
}

static void take_loss(struct mesh *m, uint32_t rank, const struct mf_error *why)
{
	take_failure(m, true, -MF_EPEER, "%s (rank %u) is gone, in round %u of %u: %s",
		     m->rank[rank].label, rank, m->round + 1, perf_mesh_rounds(m->n), why->msg);
}

static void take_complaint(struct mesh *m, uint32_t rank, int code, const char *why)
{
	uint32_t partner = m->rank[rank].partner;
	uint32_t from = m->rank[rank].is_client ? rank : partner;
	uint32_t to = m->rank[rank].is_client ? partner : rank;

	take_failure(m, false, code, "from %s (rank %u) to %s (rank %u): %.300s",
		     m->rank[from].label, from, m->rank[to].label, to, why);
}

static void send_order(struct mesh *m, uint32_t rank)
{
	struct rank *r = &m->rank[rank];
	struct mf_error why = { 0 };
	json_t *order = json_object();

	perf_put(order, "do", json_string(r->is_client ? "measure" : "serve"));
	if (r->is_client)
		perf_put(order, "address", address_for(r, &m->rank[r->partner]));
	r->is_busy = true;
	if (perf_peer_send(r->peer, order, &why))
		take_loss(m, rank, &why);
}

static bool is_row(const json_t *row)
{
	const char *transport = perf_text(row, "transport");

	return (!strcmp(transport, "verbs") || !strcmp(transport, "tcp")) &&
	       perf_number(row, "bytes_per_s.p50") > 0 && perf_number(row, "latency_us.p50") > 0;
}

static json_t *copy_stats(const json_t *row, const char *key)
{
	struct perf_stats stats;

	perf_stats_parse(json_object_get(row, key), &stats);
	return perf_stats_json(&stats);
}

static json_t *copy_cpu(const json_t *row, const char *side)
{
	struct perf_cpu cpu;

	perf_cpu_parse(perf_get(row, side), &cpu);
	return perf_cpu_json(&cpu);
}

/* Of what the rank said, only what a row has. */
static void add_row(struct mesh *m, uint32_t from, uint32_t to, const json_t *said)
{
	json_t *row = json_object(), *cpu = json_object();

	perf_put(cpu, "client", copy_cpu(said, "cpu.client"));
	perf_put(cpu, "server", copy_cpu(said, "cpu.server"));
	perf_put(row, "from", json_string(m->rank[from].label));
	perf_put(row, "to", json_string(m->rank[to].label));
	perf_put(row, "from_rank", json_integer(from));
	perf_put(row, "to_rank", json_integer(to));
	perf_put(row, "round", json_integer(m->round + 1));
	perf_put(row, "transport", json_string(perf_text(said, "transport")));
	perf_put(row, "bytes_per_s", copy_stats(said, "bytes_per_s"));
	perf_put(row, "latency_us", copy_stats(said, "latency_us"));
	perf_put(row, "bytes_per_cpu_s",
		 json_real(perf_bytes_per_cpu_s(cpu, perf_number(said, "bytes"))));
	perf_put(row, "cpu", cpu);
	perf_doc_add(m->doc, row);
}

static void take_answer(struct mesh *m, uint32_t rank, const json_t *answer)
{
	struct rank *r = &m->rank[rank];
	const char *said = perf_text(answer, "error.message");
	const json_t *row = json_object_get(answer, "row");

	r->heard_us = base_now_us();
	if (!strcmp(perf_text(answer, "do"), "alive"))
		return;
	if (said[0])
		take_complaint(m, rank, -MF_EPEER, said);
	else if (!r->is_busy || (r->is_client && !is_row(row)))
		take_complaint(m, rank, -MF_EPEER, "the answer makes no sense");
	else if (r->is_client)
		add_row(m, rank, r->partner, row);
	r->is_busy = false;
}

/* All that has come. */
static void take_answers(struct mesh *m, uint32_t rank)
{
	struct mf_error why = { 0 };
	json_t *answer = NULL;
	int ret;

	while (!(ret = perf_peer_recv(m->rank[rank].peer, 0, &answer, &why))) {
		take_answer(m, rank, answer);
		json_decref(answer);
		answer = NULL;
	}
	if (ret != -ETIMEDOUT)
		take_loss(m, rank, &why);
}

static void ask_all(struct mesh *m, uint64_t now)
{
	for (uint32_t i = 0; i < m->n; i++) {
		struct mf_error why = { 0 };
		json_t *msg = json_object();
		perf_put(msg, "do", json_string("alive"));
		int ret = perf_peer_send(m->rank[i].peer, msg, &why);
		if (!ret && now - m->rank[i].heard_us > MESH_SILENCE_MS * UINT64_C(1000))
			ret = base_error(&why, -ETIMEDOUT, MF_SCOPE_SESSION,
					 "nothing was heard of it for %u s",
					 MESH_SILENCE_MS / 1000);
		if (ret)
			take_loss(m, i, &why);
	}
	m->ask_us = now + MESH_BEAT_MS * UINT64_C(1000);
}

/* Whoever is busy; m->n: nobody. */
static uint32_t first_busy(const struct mesh *m)
{
	uint32_t i = 0;

	while (i < m->n && !m->rank[i].is_busy)
		i++;
	return i;
}

/* Once more of what has come, or nothing until it is time to ask. */
static void wait_for_answers(struct mesh *m, uint64_t deadline_us)
{
	int n = poll(m->poll, m->n,
		     base_left_ms(deadline_us < m->ask_us ? deadline_us : m->ask_us));

	if (n < 0 && errno != EINTR)
		take_failure(m, true, -errno, "poll: %s", base_strerror(errno));
	for (uint32_t i = 0; n > 0 && i < m->n; i++) {
		if (m->poll[i].revents)
			take_answers(m, i);
	}
	uint64_t now = base_now_us();
	if (now >= m->ask_us)
		ask_all(m, now);
}

/* Until all have answered, or it is clear why they do not.  Those that have nothing to do are watched, too. */
static void gather_answers(struct mesh *m)
{
	uint64_t deadline = base_deadline_ms(perf_mesh_turn_ms(m->o));
	bool complained = false;

	while (first_busy(m) < m->n && !m->failure.gone && base_now_us() < deadline) {
		wait_for_answers(m, deadline);
		/* What one complains of is often that another is gone. */
		if (m->failure.err.code && !complained) {
			uint64_t soon = base_deadline_ms(COMPLAINT_MS);
			deadline = soon < deadline ? soon : deadline;
			complained = true;
		}
	}
	if (first_busy(m) < m->n)
		take_complaint(m, first_busy(m), -ETIMEDOUT, "no result came in time");
}

/* All pairs of the round at the same time, one direction each. */
static int take_turn(struct mesh *m, unsigned turn, struct mf_error *err)
{
	perf_progress("mesh: round %u of %u, %s", m->round + 1, perf_mesh_rounds(m->n),
		      turn ? "and back" : "there");
	for (uint32_t i = 0; i < m->n; i++) {
		struct rank *r = &m->rank[i];
		r->partner = partner_of(m, m->round, i);
		/* In the first turn of a round the lower rank posts, in the second the higher one. */
		r->is_client = (i < r->partner) == !turn;
		if (r->partner != i)
			send_order(m, i);
	}
	gather_answers(m);
	const struct mf_error *why = &m->failure.err;
	return why->code ? base_error(err, why->code, why->scope, "%s", why->msg) : 0;
}

static int take_all_turns(struct mesh *m, struct mf_error *err)
{
	int ret = 0;

	for (uint32_t i = 0; i < m->n; i++)
		m->rank[i].heard_us = base_now_us();
	for (m->round = 0; !ret && m->round < perf_mesh_rounds(m->n); m->round++) {
		for (unsigned turn = 0; !ret && turn < 2; turn++)
			ret = take_turn(m, turn, err);
	}
	return ret;
}

/* The end */

/* Waits for them to hang up: closing while something of theirs is unread would take back what they were told. */
static void linger(struct mesh *m)
{
	uint64_t deadline = base_deadline_ms(LINGER_MS);

	for (uint32_t i = 0; i < m->n; i++) {
		json_t *msg = NULL;
		while (m->rank[i].peer && !perf_peer_recv(m->rank[i].peer, deadline, &msg, NULL)) {
			json_decref(msg);
			msg = NULL;
		}
	}
}

static void tell_end(struct mesh *m, const struct mf_error *why)
{
	for (uint32_t i = 0; i < m->n; i++) {
		json_t *msg = json_object(), *error = json_object();
		perf_put(msg, "do", json_string("end"));
		perf_put(error, "message", json_string(why ? why->msg : ""));
		perf_put(msg, "error", error);
		if (m->rank[i].peer)
			(void)perf_peer_send(m->rank[i].peer, msg, NULL);
		else
			json_decref(msg);
	}
	linger(m);
}

static void close_all(struct mesh *m)
{
	for (uint32_t i = 0; m->rank && i < m->n; i++) {
		perf_peer_close(m->rank[i].peer);
		json_decref(m->rank[i].facts);
	}
	free(m->rank);
	free(m->poll);
	free(m->rank_at);
	free(m->place_of);
}

static int set_up(struct mesh *m, struct mf_error *err)
{
	m->rank = calloc(m->n, sizeof(*m->rank));
	m->poll = calloc(m->n, sizeof(*m->poll));
	m->rank_at = calloc(m->n, sizeof(*m->rank_at));
	m->place_of = calloc(m->n, sizeof(*m->place_of));
	if (!m->rank || !m->poll || !m->rank_at || !m->place_of)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	perf_mesh_shuffle(m->n, m->o->seed, m->rank_at);
	for (uint32_t i = 0; i < m->n; i++)
		m->place_of[m->rank_at[i]] = i;
	return 0;
}

int perf_mesh_coordinate(const struct perf_launch *launch, const struct perf_options *o,
			 int listen_fd, json_t *doc, struct mf_error *err)
{
	struct mesh m = { .launch = launch, .o = o, .doc = doc, .n = launch->size };

	int ret = set_up(&m, err);
	if (!ret)
		ret = gather_ranks(&m, listen_fd, err);
	if (!ret && o->plot)
		ret = perf_plot_check(o->plot, err);
	if (!ret) {
		label_ranks(&m);
		ret = take_all_turns(&m, err);
	}
	if (m.rank)
		tell_end(&m, ret ? err : NULL);
	close_all(&m);
	return ret;
}
