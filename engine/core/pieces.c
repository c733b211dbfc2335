/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Registrations: what a rail's device may reach, and what the peer may reach through it.
 *
 *   pieces   region 0: |  0  |  1  | 2|  region 1: |  3  | 4 |      one registration each, at most 1 GiB
 *
 *            0 … registered     done: by threads, in order, while the first round is under way
 *            0 … announced      the peer knows how to reach them
 *            0 … reachable      (of a lane) we know how to reach the peer's
 *
 * Where registering pins (TP_CAP_PINS), the destination's pages are faulted in by the same threads, and the source passes
 * over pieces that hold nothing: pinning would allocate them.  They are registered when something is to be moved from
 * them (eng_register_cover).
 *
 * Rights.  Where memory can be lent lane by lane (limits.windows), the registration itself lets nobody in: the
 * destination lends for writing to the bulk lanes and takes it back when the guest is paused, the source lends for
 * reading from then on, and neither registers anything anew in the downtime.  Elsewhere rights are those of the registration,
 * and changing them means registering again.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/event.h"
#include "base/log.h"
#include "core/engine.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define ALL_LANES       UINT32_MAX
#define POPULATE_STRIDE (UINT64_C(16) << 20)
/* Keys in one message. */
#define PIECES_MESSAGE 4096u
/* Binding is a matter of microseconds a piece. */
#define LEND_MS 5000u

/* ---- pieces ---- */

static uint32_t count_pieces(const struct mf_session *s, struct eng_pieces *p)
{
	uint64_t total = 0;
	for (uint32_t i = 0; i < s->memory.n; i++) {
		p->first[i] = (uint32_t)total;
		total += (s->memory.region[i].desc.size + p->size[i] - 1) / p->size[i];
	}
	return (uint32_t)total;
}

/* Pieces end on chunk and page borders, so that no operation of ours ever crosses one. */
void eng_pieces_cut(const struct mf_session *s, uint64_t max_mr, struct eng_pieces *ret)
{
	for (uint32_t i = 0; i < s->memory.n; i++) {
		const struct eng_region *r = &s->memory.region[i];
		uint64_t unit = eng_chunk_pages(r) * r->desc.page_size;
		uint64_t most = max_mr < ENG_PIECE ? max_mr : ENG_PIECE;
		ret->size[i] = most < unit ? unit : most / unit * unit;
	}
	ret->total = count_pieces(s, ret);
}

int eng_pieces_take(const struct mf_session *s, const uint64_t *size, size_t n,
		    struct eng_pieces *ret, struct mf_error *err)
{
	if (n != s->memory.n)
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				  "the peer registered %zu regions, not %u", n, s->memory.n);
	for (uint32_t i = 0; i < n; i++) {
		const struct eng_region *r = &s->memory.region[i];
		uint64_t unit = eng_chunk_pages(r) * r->desc.page_size;
		uint64_t whole = (r->desc.size + unit - 1) / unit * unit;
		if (size[i] % unit || (size[i] > whole && size[i] > ENG_PIECE))
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "region %s: the peer's registrations do not end where "
					  "operations do",
					  r->desc.name);
		ret->size[i] = size[i];
	}
	ret->total = count_pieces(s, ret);
	return 0;
}

uint32_t eng_piece_at(const struct eng_pieces *pieces, const struct eng_region *r, uint32_t region,
		      uint64_t page)
{
	return pieces->first[region] + (uint32_t)(page * r->desc.page_size / pieces->size[region]);
}

/* The region of a piece, where it begins there, and how long it is. */
static const struct eng_region *locate(const struct eng_rail *rail, uint32_t piece,
				       uint64_t *ret_at, uint64_t *ret_len)
{
	const struct mf_session *s = rail->session;
	uint32_t i = s->memory.n - 1;
	while (rail->pieces.first[i] > piece)
		i--;
	const struct eng_region *r = &s->memory.region[i];
	uint64_t size = rail->pieces.size[i];
	*ret_at = (piece - rail->pieces.first[i]) * size;
	uint64_t left = r->desc.size - *ret_at;
	*ret_len = left < size ? left : size;
	return r;
}

/* ---- registering ---- */

static bool pins(const struct eng_rail *rail)
{
	return rail->tp->caps & TP_CAP_PINS && !rail->limits.on_demand;
}

static uint32_t access_for(const struct eng_rail *rail, uint32_t exposes)
{
	return rail->limits.windows ? TP_LENDABLE : exposes ? exposes : TP_LOCAL;
}

/* Whatever the file says of it: a tracker may report more than was written. */
static bool has_todo(const struct eng_rail *rail, uint32_t piece)
{
	uint64_t at, len;
	const struct eng_region *r = locate(rail, piece, &at, &len);
	uint64_t end = (at + len) / r->desc.page_size;
	return bitmap_next_set(r->todo, at / r->desc.page_size, end) != end;
}

/* Nothing is to be moved from it, and nobody is to write it.  What is to do is looked at only when no lane works on it:
 * while the peer reads; and in rounds by eng_register_cover(). */
static bool may_put_off(const struct eng_rail *rail, uint32_t piece)
{
	const struct mf_session *s = rail->session;
	uint64_t at, len;
	const struct eng_region *r = locate(rail, piece, &at, &len);
	/* Post-copy into private memory goes by the landing; registering would touch the pages that are missing. */
	if (s->pulling && r->is_private)
		return true;
	if (s->params.side != MF_SOURCE || !pins(rail))
		return false;
	return !eng_region_has_data(r, at, len) && !(rail->exposes && has_todo(rail, piece));
}

static bool is_given_up(const struct eng_rail *rail)
{
	return atomic_load_explicit(&rail->reg_stop, memory_order_relaxed) ||
	       atomic_load_explicit(&rail->reg_failure, memory_order_relaxed);
}

/* Where the kernel does not know it, pinning faults the pages in, one after the other.  In strides: the session's thread
 * waits for this one when the rail is given up, and accepts no lane of the next rail meanwhile. */
static void populate(const struct eng_rail *rail, uint32_t piece)
{
	uint64_t at, len;
	const struct eng_region *r = locate(rail, piece, &at, &len);
	uint64_t stride = r->desc.page_size > POPULATE_STRIDE ? r->desc.page_size : POPULATE_STRIDE;
	for (uint64_t end = at + len; at < end && !is_given_up(rail); at += stride)
		(void)madvise(r->map + at, end - at < stride ? end - at : stride,
			      MADV_POPULATE_WRITE);
}

static int register_piece(struct eng_rail *rail, uint32_t piece, struct mf_error *err)
{
	uint64_t at, len;
	const struct eng_region *r = locate(rail, piece, &at, &len);
	int code = tp_mr_reg(rail->domain, r->map + at, len, rail->access, &rail->mr[piece], err);
	if (code < 0)
		base_error_prefix(err, "region %s: ", r->desc.name);
	return code;
}

static void note_done(struct eng_rail *rail, uint32_t piece)
{
	pthread_mutex_lock(&rail->reg_lock);
	rail->done[piece] = 1;
	uint32_t n = atomic_load_explicit(&rail->registered, memory_order_relaxed);
	while (n < rail->pieces.total && rail->done[n])
		n++;
	if (n == rail->pieces.total)
		rail->report.registration_ms = (base_now_us() - rail->reg_started_us) / 1000;
	/* release: pairs with eng_lane_reaches; mr[] of all below is written */
	atomic_store_explicit(&rail->registered, n, memory_order_release);
	pthread_mutex_unlock(&rail->reg_lock);
	base_event_poke(rail->session->event_fd);
}

static void *register_pieces(void *arg)
{
	struct eng_rail *rail = arg;
	uint32_t piece;
	while (!is_given_up(rail) &&
	       (piece = atomic_fetch_add_explicit(&rail->reg_next, 1, memory_order_relaxed)) <
		       rail->pieces.total) {
		struct mf_error err = { 0 };
		bool put_off = may_put_off(rail, piece);
		if (!put_off && rail->session->params.side == MF_DESTINATION && pins(rail))
			populate(rail, piece);
		if (is_given_up(rail))
			break;
		int code = put_off ? 0 : register_piece(rail, piece, &err);
		if (code < 0) {
			pthread_mutex_lock(&rail->reg_lock);
			if (!rail->reg_error.code)
				rail->reg_error = err;
			/* release: pairs with eng_pump; the error is written */
			atomic_store_explicit(&rail->reg_failure, code, memory_order_release);
			pthread_mutex_unlock(&rail->reg_lock);
			base_event_poke(rail->session->event_fd);
			break;
		}
		note_done(rail, piece);
	}
	return NULL;
}

int eng_register_start(struct eng_rail *rail, uint32_t exposes, struct mf_error *err)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	uint32_t n = cpus > 1 ? (uint32_t)cpus : 1;
	assert(!rail->mr);
	/* NOLINTNEXTLINE(bugprone-sizeof-expression): an array of pointers */
	rail->mr = calloc(rail->pieces.total, sizeof(*rail->mr));
	rail->done = calloc(rail->pieces.total, 1);
	if (!rail->mr || !rail->done)
		return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "out of memory");
	int r;
	rail->exposes = exposes;
	rail->access = access_for(rail, exposes);
	rail->announced = rail->woken_at = 0;
	atomic_store_explicit(&rail->registered, 0, memory_order_relaxed);
	atomic_store_explicit(&rail->reg_next, 0, memory_order_relaxed);
	atomic_store_explicit(&rail->reg_stop, false, memory_order_relaxed);
	atomic_store_explicit(&rail->reg_failure, 0, memory_order_relaxed);
	rail->reg_error = (struct mf_error){ 0 };
	rail->reg_started_us = base_now_us();
	if (!(rail->tp->caps & TP_CAP_PINS)) { /* a matter of bookkeeping */
		(void)register_pieces(rail);
		return atomic_load_explicit(&rail->reg_failure, memory_order_acquire)
			       ? base_error(err, rail->reg_error.code, MF_SCOPE_SESSION, "%s",
					    rail->reg_error.msg)
			       : 0;
	}
	n = n < ENG_REG_THREADS ? n : ENG_REG_THREADS;
	n = n < rail->pieces.total ? n : rail->pieces.total;
	for (; rail->n_reg_threads < n; rail->n_reg_threads++) {
		r = -pthread_create(&rail->reg_thread[rail->n_reg_threads], NULL, register_pieces,
				    rail);
		if (r < 0 && !rail->n_reg_threads)
			return base_error_sys(err, r, MF_SCOPE_HOST, "registering threads");
		if (r < 0)
			break;
	}
	return 0;
}

static void join_threads(struct eng_rail *rail)
{
	while (rail->n_reg_threads)
		pthread_join(rail->reg_thread[--rail->n_reg_threads], NULL);
}

void eng_register_note(struct eng_rail *rail)
{
	struct tp_domain_stats stats;
	if (!rail->domain)
		return;
	tp_domain_stats(rail->domain, &stats);
	if (stats.bytes_pinned > rail->report.bytes_pinned)
		rail->report.bytes_pinned = stats.bytes_pinned;
	rail->report.retransmits = stats.retransmits;
}

void eng_register_stop(struct eng_rail *rail)
{
	atomic_store_explicit(&rail->reg_stop, true, memory_order_relaxed);
	join_threads(rail);
	eng_register_note(rail);
	for (uint32_t i = 0; rail->mr && i < rail->pieces.total; i++)
		tp_mr_dereg(rail->mr[i]);
	free(rail->mr);
	free(rail->done);
	rail->mr = NULL;
	rail->done = NULL;
	atomic_store_explicit(&rail->registered, 0, memory_order_relaxed);
}

static bool all_registered(const struct eng_rail *rail)
{
	return atomic_load_explicit(&rail->registered, memory_order_acquire) == rail->pieces.total;
}

void eng_register_cover(struct mf_session *s)
{
	for (uint32_t k = 0; k < s->n_rails; k++) {
		struct eng_rail *rail = &s->rail[k];
		if (!atomic_load_explicit(&rail->usable, memory_order_relaxed) || !pins(rail))
			continue;
		uint32_t n = atomic_load_explicit(&rail->registered, memory_order_acquire);
		for (uint32_t i = 0; i < n; i++) {
			if (rail->mr[i] || !has_todo(rail, i))
				continue;
			int r = register_piece(rail, i, &rail->error);
			if (r < 0) {
				atomic_store_explicit(&rail->usable, false, memory_order_relaxed);
				break;
			}
		}
	}
	eng_rails_note_lost(s);
}

/* ---- on the data path ---- */

bool eng_lane_reaches(const struct eng_lane *lane, uint32_t region, uint64_t first)
{
	const struct eng_rail *rail = lane->rail;
	const struct eng_region *r = &lane->session->memory.region[region];
	/* acquire: pairs with note_done and eng_take_pieces */
	return eng_piece_at(&rail->pieces, r, region, first) <
		       atomic_load_explicit(&rail->registered, memory_order_acquire) &&
	       eng_piece_at(&rail->theirs, r, region, first) <
		       atomic_load_explicit(&lane->reachable, memory_order_acquire);
}

bool eng_lane_lacks(const struct eng_lane *lane, uint32_t region, uint64_t first)
{
	const struct eng_region *r = &lane->session->memory.region[region];
	return !lane->rail->mr[eng_piece_at(&lane->rail->pieces, r, region, first)];
}

void eng_memory_xfer(const struct eng_lane *lane, uint32_t region, uint64_t first, uint64_t n,
		     uint64_t cookie, struct tp_xfer *ret)
{
	const struct eng_rail *rail = lane->rail;
	const struct eng_region *r = &lane->session->memory.region[region];
	const struct tp_remote *remote =
		&lane->remote[eng_piece_at(&rail->theirs, r, region, first)];
	uint64_t at = first * r->desc.page_size;
	bool lands = rail->landing_mr && r->is_private;
	*ret = (struct tp_xfer){
		.local = lands ? eng_landing_at(lane, region, first, cookie) : r->map + at,
		.mr = lands ? rail->landing_mr
			    : rail->mr[eng_piece_at(&rail->pieces, r, region, first)],
		.remote = remote->addr + at % rail->theirs.size[region],
		.key = remote->key,
		.len = n * r->desc.page_size,
		.cookie = cookie,
	};
}

/* ---- announcing ---- */

static int lend(struct eng_lane *lane, void *ctx)
{
	struct eng_rail *rail = ctx;
	uint32_t i = rail->lend.first, end = rail->lend.end;
	while (i < end) {
		uint32_t from = i;
		while (i < end && rail->mr[i])
			i++;
		int r = i > from ? tp_lane_lend(lane->tp, rail->mr + from, i - from, rail->exposes,
						base_deadline_ms(LEND_MS), lane->lent + from)
				 : 0;
		if (r < 0)
			return r;
		for (; i < end && !rail->mr[i]; i++)
			lane->lent[i] = (struct tp_remote){ 0 };
	}
	return 0;
}

static int send_pieces(struct eng_rail *rail, uint32_t lane, const struct tp_remote *lent,
		       uint32_t first, uint32_t end, struct mf_error *err)
{
	uint64_t addr[PIECES_MESSAGE], key[PIECES_MESSAGE];
	while (first < end) {
		Mf__Wire__Pieces body = MF__WIRE__PIECES__INIT;
		wire_msg msg = WIRE_INIT;
		uint32_t n = end - first < PIECES_MESSAGE ? end - first : PIECES_MESSAGE;
		for (uint32_t i = 0; i < n; i++) {
			struct tp_remote remote = { 0 };
			if (lent)
				remote = lent[first + i];
			else if (rail->mr[first + i])
				tp_mr_remote(rail->mr[first + i], &remote);
			addr[i] = remote.addr;
			key[i] = remote.key;
		}
		msg.body_case = WIRE_BODY(PIECES);
		msg.pieces = &body;
		body.rail = rail->id;
		body.lane = lane;
		body.first = first;
		body.n_addr = body.n_key = n;
		body.addr = addr;
		body.key = key;
		int r = eng_send(rail->session, &msg, err);
		if (r < 0)
			return r;
		first += n;
	}
	return 0;
}

/* Which lanes the peer works on: the urgent one only reads. */
static uint32_t exposed_lanes(const struct eng_rail *rail)
{
	return rail->session->lanes.n_bulk + (rail->exposes & TP_REMOTE_READ ? 1 : 0);
}

static int announce(struct eng_rail *rail, struct mf_error *err)
{
	uint32_t ready = atomic_load_explicit(&rail->registered, memory_order_acquire);
	if (!rail->exposes || !rail->joined)
		return 0;
	if (!rail->limits.windows) {
		int r = send_pieces(rail, ALL_LANES, NULL, rail->announced, ready, err);
		if (r == 0)
			rail->announced = ready;
		return r;
	}
	if (rail->lend.running) {
		if (!eng_job_is_done(&rail->lend.job))
			return 0;
		rail->lend.running = false;
		for (uint32_t i = 0; i < exposed_lanes(rail); i++) {
			struct eng_lane *lane = &rail->lane[i];
			if (atomic_load_explicit(&lane->failure, memory_order_acquire))
				continue;
			int r = send_pieces(rail, i, lane->lent, rail->lend.first, rail->lend.end,
					    err);
			if (r < 0)
				return r;
		}
		rail->announced = rail->lend.end;
	}
	if (rail->announced < ready) {
		rail->lend.first = rail->announced;
		rail->lend.end = ready;
		rail->lend.job = (struct eng_job){ .run = lend, .ctx = rail };
		rail->lend.running = true;
		eng_lanes_run_on(rail, rail->exposes & TP_REMOTE_READ, &rail->lend.job);
	}
	return 0;
}

static void wake_lanes(struct eng_rail *rail)
{
	for (uint32_t i = 0; rail->joined && i < eng_lanes_per_rail(rail->session); i++)
		eng_lane_wake(&rail->lane[i]);
}

/* Bytes of all pieces below n. */
static uint64_t bytes_below(const struct eng_rail *rail, uint32_t n)
{
	const struct mf_session *s = rail->session;
	uint64_t bytes = 0, at, len;
	if (n == rail->pieces.total)
		return s->memory.bytes;
	const struct eng_region *r = locate(rail, n, &at, &len);
	for (const struct eng_region *before = s->memory.region; before < r; before++)
		bytes += before->desc.size;
	return bytes + at;
}

static void note_progress(struct mf_session *s)
{
	uint64_t least = s->memory.bytes;
	for (uint32_t k = 0; k < s->n_rails; k++) {
		const struct eng_rail *rail = &s->rail[k];
		uint64_t bytes = rail->domain ? bytes_below(rail, rail->woken_at) : least;
		least = bytes < least ? bytes : least;
	}
	pthread_mutex_lock(&s->progress_lock);
	s->progress.registered_bytes = least;
	pthread_mutex_unlock(&s->progress_lock);
}

/* All that lanes of the rail may be asked for.  The urgent ones only read. */
static bool reaches_all(const struct eng_rail *rail)
{
	const struct mf_session *s = rail->session;
	if (!all_registered(rail))
		return false;
	for (uint32_t i = 0; i < s->lanes.n_bulk + (s->pulling ? 1 : 0); i++) {
		const struct eng_lane *lane = &rail->lane[i];
		if (!atomic_load_explicit(&lane->failure, memory_order_relaxed) &&
		    atomic_load_explicit(&lane->reachable, memory_order_acquire) !=
			    rail->theirs.total)
			return false;
	}
	return true;
}

/* Post-copy asks for any page at any time, and a rail that came back must not hold up work that others do meanwhile:
 * both have to reach everything first.  The passive side only serves. */
void eng_register_usable(struct eng_rail *rail)
{
	const struct mf_session *s = rail->session;
	bool is = rail->joined && !rail->error.code && eng_rail_alive(rail) &&
		  (rail->exposes || !(s->pulling || rail->retries) || reaches_all(rail));
	/* release: pairs with is_usable() */
	atomic_store_explicit(&rail->usable, is, memory_order_release);
	if (!is || !rail->told_lost)
		return;
	/* The next pause is longer all the same: it may be one that comes and goes. */
	rail->told_lost = false;
	eng_emit(rail->session, MF_EVENT_NOTICE, "%s%s%s is back", rail->tp->kind,
		 rail->device[0] ? " over " : "", rail->device);
	eng_rails_note_lost(rail->session); /* the transport that is reported follows at once */
}

int eng_pump(struct mf_session *s, struct mf_error *err)
{
	int r = 0;
	for (uint32_t k = 0; k < s->n_rails && r == 0; k++) {
		struct eng_rail *rail = &s->rail[k];
		if (!rail->domain)
			continue;
		/* acquire: pairs with register_pieces */
		int failure = atomic_load_explicit(&rail->reg_failure, memory_order_acquire);
		if (failure && !rail->error.code) {
			join_threads(rail);
			rail->error = rail->reg_error;
			wake_lanes(rail);
		}
		uint32_t n = atomic_load_explicit(&rail->registered, memory_order_acquire);
		if (n != rail->woken_at) {
			rail->woken_at = n;
			wake_lanes(rail);
			note_progress(s);
			eng_register_note(rail);
		}
		eng_register_usable(rail);
		r = announce(rail, err);
	}
	if (r == 0)
		eng_rails_note_lost(s);
	return r;
}

/* They come in order, each once: lanes are reading those that came before. */
static bool take_for_lane(struct eng_lane *lane, const Mf__Wire__Pieces *m)
{
	uint32_t end = m->first + (uint32_t)m->n_addr;
	if (!lane->remote) /* given up here meanwhile */
		return true;
	if (atomic_load_explicit(&lane->reachable, memory_order_relaxed) != m->first)
		return false;
	for (uint32_t i = m->first; i < end; i++)
		lane->remote[i] = (struct tp_remote){ .addr = m->addr[i - m->first],
						      .key = m->key[i - m->first] };
	/* release: pairs with eng_lane_reaches */
	atomic_store_explicit(&lane->reachable, end, memory_order_release);
	eng_lane_wake(lane);
	return true;
}

int eng_take_pieces(struct mf_session *s, const Mf__Wire__Pieces *m, struct mf_error *err)
{
	struct eng_rail *rail = m->rail < s->n_rails ? &s->rail[m->rail] : NULL;
	if (!rail || m->first > rail->theirs.total || m->n_addr > rail->theirs.total - m->first ||
	    (m->lane != ALL_LANES && m->lane >= eng_lanes_per_rail(s)))
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				  "the other host registered memory that does not exist");
	for (uint32_t i = 0; i < eng_lanes_per_rail(s); i++) {
		if ((m->lane == ALL_LANES || m->lane == i) && !take_for_lane(&rail->lane[i], m))
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "the other host registered memory out of turn");
	}
	return 0;
}

/* ---- waiting, and the switchover ---- */

static bool is_behind(const struct eng_rail *rail)
{
	if (!rail->joined || rail->error.code || !eng_rail_alive(rail))
		return false;
	if (!all_registered(rail) || (rail->exposes && rail->announced < rail->pieces.total))
		return true;
	const struct mf_session *s = rail->session;
	bool waits = s->params.side == MF_SOURCE || s->state == ENG_RECOVER;
	for (uint32_t i = 0; waits && !rail->exposes && i < s->lanes.n_bulk + (s->pulling ? 1 : 0);
	     i++) {
		const struct eng_lane *lane = &rail->lane[i];
		if (!atomic_load_explicit(&lane->failure, memory_order_relaxed) &&
		    atomic_load_explicit(&lane->reachable, memory_order_acquire) <
			    rail->theirs.total)
			return true;
	}
	return false;
}

/* Of everything that is_behind() looks at. */
static uint64_t standing(const struct mf_session *s)
{
	uint64_t sum = 0;
	for (uint32_t k = 0; k < s->n_rails; k++) {
		const struct eng_rail *rail = &s->rail[k];
		sum += atomic_load_explicit(&rail->registered, memory_order_relaxed) +
		       rail->announced;
		for (uint32_t i = 0; rail->joined && i < eng_lanes_per_rail(s); i++)
			sum += atomic_load_explicit(&rail->lane[i].reachable, memory_order_relaxed);
	}
	return sum;
}

/* Only Pieces are due, and those are taken on the way. */
static int hear(struct mf_session *s, struct mf_error *err)
{
	wire_msg *msg;
	int r = eng_receive(s, base_now_us(), &msg, err);
	if (r <= 0)
		return r;
	r = base_error(err, -MF_EPEER, MF_SCOPE_SESSION, "the other host said '%s' out of turn",
		       wire_msg_name(msg));
	wire_msg_free(msg);
	return r;
}

int eng_register_wait(struct mf_session *s, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(ENG_REGISTER_STALL_MS), seen = standing(s);
	for (;;) {
		bool behind = false;
		/* The source hears of the destination's; at the switchover the destination has heard all, and what
		 * comes is for later. */
		bool hears = s->params.side == MF_SOURCE || s->state == ENG_RECOVER;
		int r = hears ? hear(s, err) : eng_check_cancel(s, err);
		if (r == 0)
			r = eng_pump(s, err);
		if (r < 0)
			return r;
		for (uint32_t k = 0; k < s->n_rails; k++)
			behind = behind || is_behind(&s->rail[k]);
		if (!behind)
			return eng_rails_in_use(s) ? 0 : eng_lanes_failure(s, err);
		if (standing(s) != seen) {
			seen = standing(s);
			deadline = base_deadline_ms(ENG_REGISTER_STALL_MS);
		}
		if (base_now_us() >= deadline)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
					  "memory registration stands still");
		eng_sleep(s, base_deadline_ms(250));
	}
}

/* Without windows: registers anew with other rights. */
static void register_again(struct eng_rail *rail, uint32_t exposes)
{
	eng_register_stop(rail);
	if (eng_register_start(rail, exposes, &rail->error) < 0)
		atomic_store_explicit(&rail->usable, false, memory_order_relaxed);
}

int eng_expose_for_reading(struct mf_session *s, struct mf_error *err)
{
	eng_register_cover(s);
	for (uint32_t k = 0; k < s->n_rails; k++) {
		struct eng_rail *rail = &s->rail[k];
		if (!rail->joined || rail->error.code)
			continue;
		if (!rail->limits.windows) {
			register_again(rail, TP_REMOTE_READ);
			continue;
		}
		rail->exposes = TP_REMOTE_READ;
		rail->announced = 0;
	}
	return eng_register_wait(s, err);
}

static int take_back(struct eng_lane *lane, void *ctx)
{
	(void)ctx;
	return tp_lane_revoke(lane->tp, base_deadline_ms(LEND_MS));
}

/* Private memory is not reached by devices any more; while they pin what is dropped, it would be there twice. */
static void unpin_private(struct eng_rail *rail)
{
	uint32_t n = atomic_load_explicit(&rail->registered, memory_order_acquire);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t at, len;
		if (!locate(rail, i, &at, &len)->is_private)
			continue;
		tp_mr_dereg(rail->mr[i]);
		rail->mr[i] = NULL;
	}
}

void eng_withdraw_for_reading(struct mf_session *s)
{
	for (uint32_t k = 0; k < s->n_rails; k++) {
		struct eng_rail *rail = &s->rail[k];
		if (!rail->domain)
			continue;
		if (!rail->limits.windows || !rail->joined) {
			register_again(rail, 0);
			continue;
		}
		if (rail->lend.running)
			eng_see_done(s, &rail->lend.job);
		rail->lend.running = false;
		rail->exposes = 0;
		struct eng_job job = { .run = take_back };
		eng_lanes_run_on(rail, false, &job);
		eng_see_done(s, &job);
		/* A lane that was lost keeps its windows on them until it is closed. */
		if (eng_rail_alive(rail) == s->lanes.n_bulk)
			unpin_private(rail);
	}
}
