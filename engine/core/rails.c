/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Rails: the pairs of addresses that lanes run between.
 *
 *   rail 0   verbs   10.1.0.1 (mlx5_0) ── 10.1.0.2 (mlx5_1)     work is dealt to all rails of the first transport that has a
 *   rail 1   verbs   10.2.0.1 (mlx5_1) ── 10.2.0.2 (mlx5_0)     lane left; chunks go to whoever is free, so each rail takes
 *   rail 2   tcp     the control channel's addresses            the share that its rate allows
 *
 * A transport whose devices answer by themselves is found by its paths: ours are paired with the other host's by subnet.
 * TCP goes where the control channel goes; its lanes are connected from the beginning, too, and idle: when the last
 * lane of the others dies, in whatever phase, nothing has to be agreed on any more.
 *
 * A rail that was lost is tried again by the source, with pauses that grow: both sides drop what is left of it, open it
 * anew, connect, and send a flush over each lane and back before it is given work.
 *
 *   source                          destination
 *   RailRetry ────────────────────▶                  (only then)
 *            ◀──────────────────── RailOffer         in Prepared for all rails the first time
 *   connect lanes ────────────────▶ accept
 *   RailJoined ───────────────────▶
 *            ◀──────────────────── RailUp
 *   probe                           probe, in post-copy
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/parse.h"
#include "core/engine.h"

#define PATHS_MAX 64
/* Between two looks at what the source says while lanes are accepted. */
#define ACCEPT_SLICE_MS 50
#define RETRY_FIRST_MS  2000u
#define RETRY_MOST_MS   60000u

/* ---- opening and closing ---- */

static int check_limits(const struct eng_rail *rail, struct mf_error *err)
{
	const struct mf_session *s = rail->session;
	for (uint32_t i = 0; i < s->memory.n; i++) {
		const struct eng_region *r = &s->memory.region[i];
		uint64_t op = eng_op_pages(r) * r->desc.page_size;
		if (op > rail->limits.max_op || rail->limits.depth < 4 * ENG_CHUNKS_UNFLUSHED)
			return base_error(err, -MF_EREFUSED, MF_SCOPE_SESSION,
					  "%s cannot carry operations of %llu bytes, %u at a time",
					  rail->tp->kind, (unsigned long long)op,
					  4 * ENG_CHUNKS_UNFLUSHED);
	}
	return 0;
}

/* memlock: why no more may be pinned, if so. */
static int open_rail(struct eng_rail *rail, uint32_t exposes, const struct mf_error *memlock)
{
	struct mf_session *s = rail->session;
	struct mf_error *err = &rail->error;
	struct tp_domain_params params = { .local = rail->local,
					   .depth = ENG_DEPTH,
					   .silence_ms = s->params.lane_timeout_ms,
					   .on_demand = s->params.on_demand,
					   .seal = s->report.sealing ? &s->seal : NULL };
	*err = (struct mf_error){ 0 };
	int r = tp_domain_open(rail->tp, &params, &rail->domain, err);
	if (r < 0)
		return r;
	tp_domain_limits(rail->domain, &rail->limits);
	eng_pieces_cut(s, rail->limits.max_mr, &rail->pieces);
	r = check_limits(rail, err);
	if (r == 0 && memlock->code && rail->tp->caps & TP_CAP_PINS && !rail->limits.on_demand) {
		*err = *memlock;
		r = memlock->code;
	}
	uint8_t *landing;
	uint64_t bytes = eng_landing_of(rail, &landing);
	if (r == 0 && bytes)
		r = tp_mr_reg(rail->domain, landing, bytes, TP_LOCAL, &rail->landing_mr, err);
	return r < 0 ? r : eng_register_start(rail, exposes, err);
}

static void stop_listening(struct eng_rail *rail)
{
	tp_listener_close(rail->listener);
	rail->listener = NULL;
}

static void close_rail(struct eng_rail *rail)
{
	const struct mf_session *s = rail->session;
	atomic_store_explicit(&rail->usable, false, memory_order_relaxed);
	rail->joined = false;
	rail->lend.running = false; /* its lanes end it, below */
	for (uint32_t i = 0; rail->lane && i < eng_lanes_per_rail(s); i++) {
		eng_lane_stop(&rail->lane[i]);
		eng_lane_close(&rail->lane[i]);
	}
	stop_listening(rail);
	/* After the lanes: what they were lent must not be deregistered below them. */
	eng_register_stop(rail);
	tp_mr_dereg(rail->landing_mr);
	rail->landing_mr = NULL;
	tp_domain_close(rail->domain);
	rail->domain = NULL;
}

/* What the peer may do with this side's memory, from the beginning. */
static uint32_t exposes_now(const struct mf_session *s)
{
	if (s->params.side == MF_SOURCE)
		return s->state == ENG_POSTCOPY || s->state == ENG_RECOVER ? TP_REMOTE_READ : 0;
	return s->pulling ? 0 : TP_REMOTE_WRITE;
}

int eng_rails_open(struct mf_session *s, uint32_t n_bulk, struct mf_error *err)
{
	uint32_t exposes = exposes_now(s);
	int r = eng_lanes_init(s, n_bulk, err);
	if (r == 0)
		r = eng_sealing_take_key(s, err);
	bool any = false;
	if (r < 0)
		return r;
	if (s->params.side == MF_DESTINATION)
		r = eng_landing_open(s, err);
	if (r < 0)
		return r;
	eng_place_lanes(s);
	/* Before anything is pinned: the limit has to do for all of them. */
	struct mf_error memlock[ENG_RAILS_MAX] = { 0 };
	for (uint32_t k = 0, n = 0; k < s->n_rails; k++) {
		if (s->rail[k].tp->caps & TP_CAP_PINS)
			(void)eng_check_memlock(
				++n * (s->memory.bytes + s->memory.landing_bytes / s->n_rails),
				&memlock[k]);
	}
	for (uint32_t k = 0; k < s->n_rails; k++) {
		if (open_rail(&s->rail[k], exposes, &memlock[k]) == 0)
			any = true;
		else
			close_rail(&s->rail[k]);
	}
	return any ? 0 : eng_lanes_failure(s, err);
}

/* ---- connecting ---- */

/* A flush there and back over each lane. */
static int probe(struct eng_lane *lane, void *ctx)
{
	uint64_t deadline = base_deadline_ms(lane->session->params.peer_timeout_ms);
	struct tp_wc wc;
	int r;
	(void)ctx;
	while ((r = tp_post_flush(lane->tp, 0)) == -EAGAIN && base_now_us() < deadline)
		(void)tp_lane_poll(lane->tp, &wc, 1);
	if (r < 0)
		return r;
	lane->in_flight++;
	while ((r = tp_lane_poll(lane->tp, &wc, 1)) == 0) {
		r = tp_lane_wait(lane->tp, deadline);
		if (r < 0)
			break;
	}
	if (r > 0) {
		lane->in_flight--;
		return wc.status;
	}
	/* What is outstanding has to be taken. */
	tp_lane_shutdown(lane->tp);
	while (eng_lane_reap_rest(lane, &wc, 1) > 0)
		lane->in_flight--;
	return r;
}

/* A connection of TCP is proof enough the first time.  A rail is lost unless every lane of it answers. */
static void probe_rail(struct eng_rail *rail)
{
	struct mf_session *s = rail->session;
	struct eng_job job = { .run = probe };
	if (!eng_goes_by_paths(rail->tp) && !rail->retries)
		return;
	eng_lanes_run_on(rail, true, &job);
	eng_see_done(s, &job);
	struct mf_error why = { 0 };
	if (eng_rail_failure(rail, &why) < 0 && !rail->error.code)
		rail->error = why;
}

/* Connected at both ends, or not. */
static void settle(struct eng_rail *rail, bool probing)
{
	if (!rail->error.code && probing)
		probe_rail(rail);
	if (rail->error.code) {
		close_rail(rail);
		return;
	}
	rail->joined = true;
	rail->report.joined = true;
	eng_register_usable(rail);
}

static int send_joined(struct eng_rail *rail, struct mf_error *err)
{
	Mf__Wire__RailJoined body = MF__WIRE__RAIL_JOINED__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(RAIL_JOINED);
	msg.rail_joined = &body;
	body.rail = rail->id;
	body.reason = rail->error.code ? rail->error.msg : (char *)"";
	body.n_piece = rail->domain ? rail->session->memory.n : 0;
	body.piece = rail->pieces.size;
	return eng_send(rail->session, &msg, err);
}

/* Nobody waits for a rail that may be back, and the move goes on slower until it is clear. */
static uint64_t connect_ms(const struct eng_rail *rail)
{
	const struct mf_session_params *p = &rail->session->params;
	return rail->retries && p->lane_timeout_ms < p->connect_timeout_ms ? p->lane_timeout_ms
									   : p->connect_timeout_ms;
}

static void connect_lanes(struct eng_rail *rail, const char *address)
{
	struct mf_session *s = rail->session;
	uint64_t deadline = base_deadline_ms(connect_ms(rail));
	int r = 0;
	for (uint32_t i = 0; r == 0 && i < eng_lanes_per_rail(s); i++) {
		struct tp_lane *tp;
		r = tp_connect(rail->domain, address, s->token, i, deadline, &tp, &rail->error);
		if (r == 0)
			r = eng_lane_start(&rail->lane[i], tp, &rail->error);
	}
}

/* Source.  rail->error says why it did not work; negative: the session is over. */
static int join_rail(struct eng_rail *rail, const Mf__Wire__RailOffer *offer, struct mf_error *err)
{
	struct mf_session *s = rail->session;
	wire_msg *answer;
	if (!offer->address[0]) {
		base_error(&rail->error, -MF_EPEER, MF_SCOPE_LANE, "the destination: %.180s",
			   offer->reason);
		close_rail(rail);
		return 0;
	}
	if (rail->domain) {
		int r = eng_pieces_take(s, offer->piece, offer->n_piece, &rail->theirs, err);
		if (r < 0)
			return r;
		connect_lanes(rail, offer->address);
	}
	int r = send_joined(rail, err);
	if (r == 0)
		r = eng_expect(
			s, WIRE_BODY(RAIL_UP),
			base_deadline_ms(s->params.connect_timeout_ms + s->params.peer_timeout_ms),
			&answer, err);
	if (r < 0)
		return r;
	if (answer->rail_up->rail != rail->id)
		r = base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
			       "the destination speaks of another rail");
	else if (answer->rail_up->reason[0] && !rail->error.code)
		base_error(&rail->error, -MF_EPEER, MF_SCOPE_LANE, "the destination: %.180s",
			   answer->rail_up->reason);
	wire_msg_free(answer);
	if (r < 0)
		return r;
	settle(rail, true);
	return 0;
}

/* A rail that could not be joined is no reason to stop; none at all is. */
static int tell_joined(struct mf_session *s, struct mf_error *err)
{
	/* Who is going to read needs the other's memory, too. */
	int r = s->state == ENG_RECOVER ? eng_register_wait(s, err) : 0;
	if (r < 0)
		return r;
	if (!eng_rails_in_use(s))
		return eng_lanes_failure(s, err);
	eng_rails_note_lost(s);
	return 0;
}

int eng_rails_join(struct mf_session *s, const Mf__Wire__Prepared *p, struct mf_error *err)
{
	if (p->n_rails != s->n_rails)
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				  "the destination prepared other rails than were agreed on");
	for (uint32_t k = 0; k < s->n_rails; k++) {
		int r = join_rail(&s->rail[k], p->rails[k], err);
		if (r < 0)
			return r;
	}
	return tell_joined(s, err);
}

static void listen_on(struct eng_rail *rail)
{
	char address[TP_ADDR_MAX];
	(void)snprintf(address, sizeof(address), strchr(rail->local, ':') ? "[%s]:0" : "%s:0",
		       rail->local);
	if (!rail->error.code &&
	    tp_listen(rail->domain, address, &rail->listener, &rail->error) < 0)
		close_rail(rail);
}

static void fill_offer(const struct eng_rail *rail, char address[TP_ADDR_MAX],
		       Mf__Wire__RailOffer *ret)
{
	mf__wire__rail_offer__init(ret);
	address[0] = '\0';
	if (rail->listener)
		tp_listener_addr(rail->listener, address, TP_ADDR_MAX);
	ret->rail = rail->id;
	ret->address = address;
	ret->reason = (char *)rail->error.msg;
	ret->n_piece = rail->listener ? rail->session->memory.n : 0;
	ret->piece = (uint64_t *)rail->pieces.size;
}

static int send_prepared(struct mf_session *s, struct mf_error *err)
{
	Mf__Wire__RailOffer offer[ENG_RAILS_MAX], *offers_[ENG_RAILS_MAX];
	char address[ENG_RAILS_MAX][TP_ADDR_MAX];
	Mf__Wire__Prepared body = MF__WIRE__PREPARED__INIT;
	wire_msg msg = WIRE_INIT;
	for (uint32_t k = 0; k < s->n_rails; k++) {
		listen_on(&s->rail[k]);
		fill_offer(&s->rail[k], address[k], &offer[k]);
		offers_[k] = &offer[k];
	}
	body.n_rails = s->n_rails;
	body.rails = offers_;
	msg.body_case = WIRE_BODY(PREPARED);
	msg.prepared = &body;
	return eng_send(s, &msg, err);
}

/* What is kept of one that could not be used. */
static void drop_accepted(struct tp_lane **tp, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (tp[i]) {
			tp_lane_shutdown(tp[i]);
			tp_lane_close(tp[i]);
		}
		tp[i] = NULL;
	}
}

/* Takes one lane, or none within a slice. */
static void accept_one(struct eng_rail *rail, struct tp_lane **tp, uint32_t *n)
{
	struct tp_lane *lane;
	struct mf_error why = { 0 };
	int r = tp_accept(rail->listener, rail->session->token, base_deadline_ms(ACCEPT_SLICE_MS),
			  &lane, &why);
	if (r == -ETIMEDOUT)
		return;
	if (r < 0) {
		rail->error = why;
		return;
	}
	/* A second one has heard how the first one was admitted. */
	bool is_known = lane->id < eng_lanes_per_rail(rail->session);
	if (!is_known || tp[lane->id]) {
		tp_lane_shutdown(lane);
		tp_lane_close(lane);
		if (is_known)
			return;
		base_error(&rail->error, -MF_EPEER, MF_SCOPE_LANE,
			   "the peer connected a lane that was not agreed on");
		return;
	}
	tp[lane->id] = lane;
	++*n;
}

/* The source says that it is done, or the deadline has come. */
static int await_joined(struct eng_rail *rail, uint64_t deadline, wire_msg **ret,
			struct mf_error *err)
{
	wire_msg *msg;
	int r = eng_receive(rail->session, deadline, &msg, err);
	if (r <= 0)
		return r;
	if (msg->body_case == WIRE_BODY(RAIL_JOINED) && msg->rail_joined->rail == rail->id) {
		*ret = msg;
		return 1;
	}
	r = base_error(err, -MF_EPEER, MF_SCOPE_SESSION, "the source said '%s' out of turn",
		       wire_msg_name(msg));
	wire_msg_free(msg);
	return r;
}

static int send_up(struct eng_rail *rail, struct mf_error *err)
{
	Mf__Wire__RailUp body = MF__WIRE__RAIL_UP__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(RAIL_UP);
	msg.rail_up = &body;
	body.rail = rail->id;
	body.reason = rail->error.code ? rail->error.msg : (char *)"";
	return eng_send(rail->session, &msg, err);
}

/* Destination.  rail->error says why it did not work; negative: the session is over. */
static int admit_rail(struct eng_rail *rail, struct mf_error *err)
{
	struct mf_session *s = rail->session;
	struct tp_lane *tp[ENG_LANES_MAX + 1] = { 0 };
	uint32_t n = 0, all = eng_lanes_per_rail(s);
	wire_msg *joined = NULL;
	/* The source's own deadline, and what its message needs. */
	uint64_t deadline = base_deadline_ms(connect_ms(rail) + 2 * s->params.peer_timeout_ms);
	int r = 0;
	while (r == 0 && (n < all || !joined) && base_now_us() < deadline) {
		if (n < all && !rail->error.code)
			accept_one(rail, tp, &n);
		if (rail->error.code) /* who connects now is refused, and need not wait */
			stop_listening(rail);
		if (!joined)
			r = await_joined(rail, n < all && !rail->error.code ? 0 : deadline, &joined,
					 err);
		r = r > 0 ? 0 : r;
		if (joined && (joined->rail_joined->reason[0] || rail->error.code))
			break;
	}
	if (r == 0 && !joined)
		base_error(&rail->error, -ETIMEDOUT, MF_SCOPE_LANE,
			   "the source did not connect its lanes in time");
	if (r == 0 && joined && joined->rail_joined->reason[0] && !rail->error.code)
		base_error(&rail->error, -MF_EPEER, MF_SCOPE_LANE, "the source: %.180s",
			   joined->rail_joined->reason);
	if (r == 0 && n < all && !rail->error.code)
		base_error(&rail->error, -ETIMEDOUT, MF_SCOPE_LANE,
			   "only %u of %u lanes were connected", n, all);
	if (r == 0 && !rail->error.code)
		r = eng_pieces_take(s, joined->rail_joined->piece, joined->rail_joined->n_piece,
				    &rail->theirs, err);
	for (uint32_t i = 0; r == 0 && i < all && !rail->error.code; i++) {
		struct tp_lane *one = BASE_TAKE_PTR(tp[i]);
		(void)eng_lane_start(&rail->lane[i], one, &rail->error);
	}
	drop_accepted(tp, all);
	wire_msg_free(joined);
	if (r < 0)
		return r;
	stop_listening(rail);
	r = send_up(rail, err);
	/* In post-copy we are the ones who use it. */
	settle(rail, s->pulling);
	return r;
}

int eng_rails_admit(struct mf_session *s, struct mf_error *err)
{
	int r = send_prepared(s, err);
	for (uint32_t k = 0; r == 0 && k < s->n_rails; k++) {
		if (s->rail[k].listener)
			r = admit_rail(&s->rail[k], err);
	}
	return r < 0 ? r : tell_joined(s, err);
}

/* ---- losing and coming back ---- */

/* Until the next attempt to bring it back. */
static uint64_t pause_ms(const struct eng_rail *rail)
{
	uint64_t ms = (uint64_t)RETRY_FIRST_MS << (rail->retries < 16 ? rail->retries : 16);
	return ms < RETRY_MOST_MS ? ms : RETRY_MOST_MS;
}

static bool is_lost(const struct eng_rail *rail)
{
	return rail->error.code || (rail->joined && !eng_rail_alive(rail));
}

static void send_lost(struct eng_rail *rail)
{
	Mf__Wire__RailLost body = MF__WIRE__RAIL_LOST__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(RAIL_LOST);
	msg.rail_lost = &body;
	body.rail = rail->id;
	body.reason = rail->error.msg;
	(void)eng_send(rail->session, &msg,
		       NULL); /* the channel's own failure is noticed elsewhere */
}

/* The move goes on over another transport than before: away from the one that was chosen, or back to it. */
static void tell_transport(struct mf_session *s, const struct tp_ops *in_use)
{
	struct mf_report *rep = &s->report;
	const struct eng_rail *first = &s->rail[0];
	if (!s->chosen_because[0])
		(void)snprintf(s->chosen_because, sizeof(s->chosen_because), "%.159s",
			       rep->transport_reason);
	if (in_use == first->tp)
		(void)snprintf(rep->transport_reason, sizeof(rep->transport_reason),
			       "%s; it was lost for a while (%.100s)", s->chosen_because,
			       first->report.reason);
	else
		(void)snprintf(rep->transport_reason, sizeof(rep->transport_reason),
			       "%s was lost (%.160s)", first->tp->kind, first->report.reason);
	rep->transport = in_use->kind;
	eng_emit(s, MF_EVENT_TRANSPORT, "%s: %s", rep->transport, rep->transport_reason);
}

void eng_rails_note_lost(struct mf_session *s)
{
	for (uint32_t k = 0; k < s->n_rails; k++) {
		if (is_lost(&s->rail[k]))
			atomic_store_explicit(&s->rail[k].usable, false, memory_order_relaxed);
	}
	const struct eng_rail *next = eng_rails_first(s);
	if (atomic_load_explicit(&s->lanes_done, memory_order_relaxed) || !next)
		return;
	for (uint32_t k = 0; k < s->n_rails; k++) {
		struct eng_rail *rail = &s->rail[k];
		struct mf_error why = { 0 };
		if (rail->told_lost || !is_lost(rail))
			continue;
		(void)eng_rail_failure(rail, &why);
		rail->told_lost = true;
		if (!rail->error.code)
			rail->error = why;
		/* The source may be waiting for what cannot be registered here, or be passive memory. */
		if (s->params.side == MF_DESTINATION && s->channel)
			send_lost(rail);
		rail->retry_at_us = base_deadline_ms(pause_ms(rail));
		(void)snprintf(rail->report.reason, sizeof(rail->report.reason), "%.159s", why.msg);
		eng_emit(s, MF_EVENT_NOTICE, "%s%s%s was lost (%.120s); going on over %s%s%s",
			 rail->tp->kind, rail->device[0] ? " over " : "", rail->device, why.msg,
			 next->tp->kind, next->device[0] ? " over " : "", next->device);
	}
	if (strcmp(s->report.transport, next->tp->kind))
		tell_transport(s, next->tp);
}

static bool is_up_here(const struct eng_rail *rail)
{
	struct tp_path paths[PATHS_MAX];
	if (!eng_goes_by_paths(rail->tp))
		return true;
	int n = tp_paths(rail->tp, paths, PATHS_MAX);
	for (int i = 0; i < n && i < PATHS_MAX; i++) {
		if (paths[i].up && !strcmp(paths[i].address, rail->local))
			return true;
	}
	return false;
}

/* Whether it was worth it is said when it can be used: eng_register_usable(). */
static void note_tried(struct eng_rail *rail)
{
	rail->report.retries = rail->retries;
	if (rail->error.code)
		rail->retry_at_us = base_deadline_ms(pause_ms(rail));
}

/* The answer to RailRetry: 1 and *ret, 0 when the destination has finished meanwhile. */
static int await_offer(struct eng_rail *rail, wire_msg **ret, struct mf_error *err)
{
	struct mf_session *s = rail->session;
	/* It deregisters what it had there, and opens it again. */
	uint64_t deadline = base_deadline_ms(120000);
	for (;;) {
		wire_msg *msg;
		int r = eng_receive(s, deadline, &msg, err);
		if (r < 0)
			return r;
		if (r == 0) {
			base_error(&rail->error, -ETIMEDOUT, MF_SCOPE_LANE,
				   "the destination did not open it again in time");
			return 0;
		}
		if (msg->body_case == WIRE_BODY(RAIL_OFFER) && msg->rail_offer->rail == rail->id) {
			*ret = msg;
			return 1;
		}
		if (msg->body_case == WIRE_BODY(DONE)) {
			s->kept = msg; /* whoever waits for it finds it */
			return 0;
		}
		wire_msg_free(msg);
	}
}

static int retry_rail(struct eng_rail *rail, struct mf_error *err)
{
	struct mf_session *s = rail->session;
	Mf__Wire__RailRetry body = MF__WIRE__RAIL_RETRY__INIT;
	wire_msg msg = WIRE_INIT, *answer = NULL;
	rail->retries++;
	close_rail(rail);
	msg.body_case = WIRE_BODY(RAIL_RETRY);
	msg.rail_retry = &body;
	body.rail = rail->id;
	int r = eng_send(s, &msg, err);
	if (r == 0)
		r = await_offer(rail, &answer, err);
	if (r <= 0)
		return r;
	const struct mf_error none = { 0 }; /* as much was pinned before */
	if (open_rail(rail, exposes_now(s), &none) < 0)
		close_rail(rail);
	r = join_rail(rail, answer->rail_offer, err);
	wire_msg_free(answer);
	if (r == 0)
		note_tried(rail);
	return r;
}

int eng_rails_retry(struct mf_session *s, struct mf_error *err)
{
	for (uint32_t k = 0; k < s->n_rails; k++) {
		struct eng_rail *rail = &s->rail[k];
		if (!is_lost(rail) || !rail->told_lost || base_now_us() < rail->retry_at_us)
			continue;
		if (!is_up_here(rail)) {
			rail->retry_at_us = base_deadline_ms(RETRY_FIRST_MS);
			continue;
		}
		int r = retry_rail(rail, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int eng_rails_retried(struct mf_session *s, uint32_t id, struct mf_error *err)
{
	Mf__Wire__RailOffer body;
	wire_msg msg = WIRE_INIT;
	char address[TP_ADDR_MAX];
	if (id >= s->n_rails)
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				  "the source asked for a rail that there is not");
	struct eng_rail *rail = &s->rail[id];
	const struct mf_error none = { 0 };
	rail->retries++;
	close_rail(rail);
	if (open_rail(rail, exposes_now(s), &none) < 0)
		close_rail(rail);
	listen_on(rail);
	fill_offer(rail, address, &body);
	msg.body_case = WIRE_BODY(RAIL_OFFER);
	msg.rail_offer = &body;
	int r = eng_send(s, &msg, err);
	if (r == 0 && rail->listener)
		r = admit_rail(rail, err);
	if (r == 0)
		note_tried(rail);
	return r;
}

void eng_rails_told_lost(struct mf_session *s, const Mf__Wire__RailLost *m)
{
	struct eng_rail *rail = m->rail < s->n_rails ? &s->rail[m->rail] : NULL;
	if (!rail || rail->error.code)
		return;
	base_error(&rail->error, -MF_EPEER, MF_SCOPE_LANE, "the destination: %.180s", m->reason);
	eng_rails_note_lost(s);
}

int eng_rails_cut(struct mf_session *s, struct mf_error *err)
{
	atomic_store_explicit(&s->lanes_done, true, memory_order_relaxed);
	for (uint32_t i = 0; i < eng_lanes_per_rail(s) * s->n_rails; i++) {
		struct eng_lane *lane = &s->lanes.lane[i];
		atomic_store_explicit(&lane->drop, true, memory_order_relaxed);
		eng_lane_wake(lane);
	}
	for (uint32_t i = 0; i < eng_lanes_per_rail(s) * s->n_rails; i++) {
		const struct eng_lane *lane = &s->lanes.lane[i];
		int r = eng_lane_drop(s, lane->rail->id, lane->id, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- the end ---- */

static void report_lane(struct mf_report *rep, const struct eng_lane *lane)
{
	struct tp_lane_stats stats;
	if (rep->n_lanes == MF_LANES_KEPT || !lane->rail->report.joined)
		return;
	eng_lane_stats(lane, &stats);
	rep->lanes[rep->n_lanes++] = (struct mf_lane_report){
		.rail = lane->rail->id,
		.id = lane->id,
		.urgent = lane->urgent,
		/* An idle lane of a lost rail may not have noticed. */
		.lost = atomic_load_explicit(&lane->lost, memory_order_relaxed) ||
			rep->rails[lane->rail->id].lost,
		.bytes_written = stats.bytes_written,
		.bytes_read = stats.bytes_read,
		.writes = stats.writes,
		.reads = stats.reads,
		.flushes = stats.flushes,
		.signalled = stats.signalled,
		.unsignalled = stats.unsignalled,
		.retries = stats.eagain,
		.polled = stats.polled,
		.evented = stats.evented,
	};
}

static void report_rails(struct mf_session *s)
{
	struct mf_report *rep = &s->report;
	if (!s->n_rails) /* closed already: as it was then */
		return;
	rep->n_rails = s->n_rails;
	rep->n_lanes = 0;
	for (uint32_t k = 0; k < s->n_rails; k++) {
		struct eng_rail *rail = &s->rail[k];
		struct mf_rail_report *to = &rep->rails[k];
		eng_register_note(rail);
		pthread_mutex_lock(&rail->reg_lock);
		*to = rail->report;
		pthread_mutex_unlock(&rail->reg_lock);
		(void)snprintf(to->transport, sizeof(to->transport), "%s", rail->tp->kind);
		(void)snprintf(to->device, sizeof(to->device), "%s", rail->device);
		(void)snprintf(to->local, sizeof(to->local), "%.63s", rail->local);
		(void)snprintf(to->peer, sizeof(to->peer), "%.63s", rail->peer);
		/* One that is connected again counts when it is used again. */
		to->lost = rail->told_lost;
		for (uint32_t i = 0; rail->lane && i < eng_lanes_per_rail(s); i++)
			report_lane(rep, &rail->lane[i]);
	}
}

void eng_rails_close(struct mf_session *s)
{
	report_rails(s);
	atomic_store_explicit(&s->lanes_done, true, memory_order_relaxed);
	/* All at once: each may take a moment to notice. */
	for (uint32_t i = 0; s->lanes.lane && i < eng_lanes_per_rail(s) * s->n_rails; i++) {
		struct eng_lane *lane = &s->lanes.lane[i];
		if (!lane->started)
			continue;
		atomic_store_explicit(&lane->stop, true, memory_order_release);
		eng_lane_wake(lane);
	}
	for (uint32_t k = 0; k < s->n_rails; k++) {
		close_rail(&s->rail[k]);
		pthread_mutex_destroy(&s->rail[k].reg_lock);
	}
	eng_lanes_free(s);
	s->n_rails = 0;
	/* The next connection has another key. */
	explicit_bzero(s->seal.key, sizeof(s->seal.key));
}
