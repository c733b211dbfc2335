/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One round: every page that is to do is written to the destination, by all bulk lanes.
 *
 * The law of order: a page's bit is cleared (here, and in a tracker that clears late), then its write is posted.  The
 * guest runs meanwhile: what it writes after the clearing is found dirty by the tracker's next collect.  A write is sure only when a
 * later flush of its lane completed, so each chunk ends with one; when a lane fails, the
 * chunks that were not flushed are to do again.
 *
 * Rewrites of one page never meet: a round ends when all its chunks are flushed.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/zero.h"
#include "core/engine.h"

/* Cookies of flushes: beyond every slot. */
#define FLUSH_COOKIE UINT64_C(0x10000)
/* Operations handed to the transport at once. */
enum { BATCH = 16 };

/* What one lane has under way in this round. */
struct writer {
	struct eng_lane *lane;
	struct eng_round *round;
	struct {
		uint32_t region;
		uint64_t first, pages;
	} unflushed[ENG_CHUNKS_UNFLUSHED]; /* ring, oldest first: flushes complete in order */
	uint32_t oldest, n_unflushed;
	struct tp_xfer batch[BATCH];
	unsigned n_batch;
};

uint64_t eng_chunks(const struct mf_session *s)
{
	uint64_t n = 0;
	for (uint32_t i = 0; i < s->memory.n; i++) {
		uint64_t per = eng_chunk_pages(&s->memory.region[i]);
		n += (s->memory.region[i].pages + per - 1) / per;
	}
	return n;
}

void eng_chunk_at(const struct mf_session *s, uint64_t n, uint32_t *ret_region, uint64_t *ret_first,
		  uint64_t *ret_pages)
{
	uint32_t i = 0;
	for (;; i++) {
		assert(i < s->memory.n);
		uint64_t per = eng_chunk_pages(&s->memory.region[i]);
		uint64_t here = (s->memory.region[i].pages + per - 1) / per;
		if (n < here) {
			uint64_t left = s->memory.region[i].pages - n * per;
			*ret_region = i;
			*ret_first = n * per;
			*ret_pages = left < per ? left : per;
			return;
		}
		n -= here;
	}
}

/* Completions, if any; blocks for one when asked to and something is in flight. */
static int reap(struct writer *w, bool block)
{
	struct eng_lane *lane = w->lane;
	struct tp_wc wc[32];
	for (;;) {
		int n = tp_lane_poll(lane->tp, wc, 32), failed = 0;
		if (n < 0)
			return n;
		for (int i = 0; i < n; i++) {
			lane->in_flight--;
			if (wc[i].cookie < FLUSH_COOKIE)
				eng_op_put(lane, wc[i].cookie);
			failed = failed ? failed : wc[i].status;
			/* After a failure no chunk counts as flushed any more. */
			if (!failed && wc[i].cookie >= FLUSH_COOKIE) {
				assert(w->n_unflushed);
				w->oldest = (w->oldest + 1) % ENG_CHUNKS_UNFLUSHED;
				w->n_unflushed--;
			}
		}
		if (failed < 0)
			return failed;
		if (n || !block || !lane->in_flight)
			return 0;
		int r = tp_lane_wait(lane->tp,
				     base_deadline_ms(lane->session->params.peer_timeout_ms));
		if (r == -ETIMEDOUT)
			return -ETIMEDOUT;
		if (r < 0)
			return r;
	}
}

static int post_batch(struct writer *w)
{
	unsigned done = 0;
	while (done < w->n_batch) {
		int r = tp_post_write(w->lane->tp, w->batch + done, w->n_batch - done);
		if (r > 0) {
			done += (unsigned)r;
			w->lane->in_flight += (uint32_t)r;
			continue;
		}
		if (r != -EAGAIN)
			return r;
		r = reap(w, true);
		if (r < 0)
			return r;
	}
	w->n_batch = 0;
	return 0;
}

/* Sleeps off the bandwidth limit; the lane's progress goes on meanwhile. */
static int pay_bandwidth(struct writer *w, uint64_t bytes)
{
	struct mf_session *s = w->lane->session;
	/* The limit is for the guest's neighbours; while it stands still, it is in its own way only. */
	if (!s->params.max_bandwidth || s->state == ENG_SWITCHOVER)
		return 0;
	uint64_t at = eng_spend_bandwidth(s, bytes);
	int r = post_batch(w);
	while (r == 0 && base_now_us() < at &&
	       !atomic_load_explicit(&w->round->job.stop, memory_order_relaxed)) {
		r = reap(w, false);
		if (r == 0) {
			uint64_t tick = base_deadline_ms(50);
			r = tp_lane_wait(w->lane->tp, at < tick ? at : tick);
			r = r == -ETIMEDOUT ? 0 : r;
		}
	}
	return r;
}

/* Pages [first, first + n), already claimed, as one operation. */
static int add_write(struct writer *w, uint32_t region, uint64_t first, uint64_t n)
{
	struct mf_session *s = w->lane->session;
	const struct eng_region *r = &s->memory.region[region];
	uint64_t cookie;
	int code = pay_bandwidth(w, n * r->desc.page_size);
	if (code < 0)
		return code;
	struct eng_op *op;
	while (!(op = eng_op_get(w->lane, &cookie))) {
		code = post_batch(w);
		if (code == 0)
			code = reap(w, true);
		if (code < 0)
			return code;
	}
	*op = (struct eng_op){ .region = region, .first = first, .n = n };
	eng_memory_xfer(w->lane, region, first, n, cookie, &w->batch[w->n_batch++]);
	atomic_fetch_add_explicit(&w->round->bytes, n * r->desc.page_size, memory_order_relaxed);
	atomic_fetch_add_explicit(&s->bytes_moved, n * r->desc.page_size, memory_order_relaxed);
	return w->n_batch == BATCH ? post_batch(w) : 0;
}

/* A claimed extent: cut at zero pages when the destination has those already. */
static int write_extent(struct writer *w, uint32_t region, const struct extent *e)
{
	const struct eng_region *r = &w->lane->session->memory.region[region];
	uint64_t size = r->desc.page_size, end = e->first + e->n, from = e->first, zero = 0;
	int code = 0;
	for (uint64_t page = e->first; w->round->skip_zero && page < end && code == 0; page++) {
		if (!base_is_zero(r->map + page * size, size))
			continue;
		zero++;
		if (page > from)
			code = add_write(w, region, from, page - from);
		from = page + 1;
	}
	if (code == 0 && end > from)
		code = add_write(w, region, from, end - from);
	atomic_fetch_add_explicit(&w->lane->session->bytes_scanned, e->n * size,
				  memory_order_relaxed);
	atomic_fetch_add_explicit(&w->round->pages, (e->n - zero) * (size / ENG_PAGE),
				  memory_order_relaxed);
	atomic_fetch_add_explicit(&w->round->zero_pages, zero * (size / ENG_PAGE),
				  memory_order_relaxed);
	return code;
}

/* The first round runs while both sides are still registering, in the order in which chunks are dealt. */
static int await_piece(struct writer *w, uint32_t region, uint64_t first)
{
	const struct eng_lane *lane = w->lane;
	uint64_t deadline = base_deadline_ms(ENG_REGISTER_STALL_MS);
	uint32_t seen = 0;
	while (!eng_lane_reaches(lane, region, first)) {
		uint32_t now = atomic_load_explicit(&lane->rail->registered, memory_order_relaxed) +
			       atomic_load_explicit(&lane->reachable, memory_order_relaxed);
		if (atomic_load_explicit(&w->round->job.stop, memory_order_relaxed))
			return -ECANCELED;
		if (!atomic_load_explicit(&lane->rail->usable, memory_order_relaxed))
			return -ENOTCONN; /* it will not be */
		if (now != seen)
			deadline = base_deadline_ms(ENG_REGISTER_STALL_MS);
		else if (base_now_us() >= deadline)
			return -ETIMEDOUT;
		seen = now;
		int r = reap(w, false);
		if (r == 0)
			r = tp_lane_wait(lane->tp, base_deadline_ms(50));
		if (r < 0 && r != -ETIMEDOUT)
			return r;
	}
	return 0;
}

/* Small gaps between dirty pages are written with them, where that costs less than another operation.  The
 * destination has those pages already, in the same form or in one that will be sent again.  Not in a first round, whose
 * gaps are zero pages or holes. */
static void bridge(const struct writer *w, const struct eng_region *r, uint64_t end,
		   struct extent *e, uint64_t *ret_bridged)
{
	uint64_t gap = w->lane->rail->limits.gap / r->desc.page_size, most = eng_op_pages(r);
	struct extent next;
	while (gap && w->round->bridges &&
	       bitmap_next_extent(r->todo, e->first + e->n, end, most, &next) &&
	       next.first - (e->first + e->n) <= gap && next.first + next.n - e->first <= most) {
		*ret_bridged += next.first - (e->first + e->n);
		e->n = next.first + next.n - e->first;
	}
}

static int write_chunk(struct writer *w, uint32_t region, uint64_t first, uint64_t pages)
{
	struct mf_session *s = w->lane->session;
	struct eng_region *r = &s->memory.region[region];
	uint64_t bridged = 0;
	uint64_t at = first, end = first + pages;
	struct extent e;
	int code = 0;

	/* Waiting comes before clearing: what is written meanwhile need not be sent twice. */
	if (bitmap_next_set(r->todo, first, end) != end)
		code = await_piece(w, region, first);
	if (code == 0 && s->tracker)
		code = trk_clear(s->tracker, region, first, pages);
	/* Tracked from here on only: what was written before is there to be seen. */
	if (code == 0 && w->round->seeds)
		eng_region_seed(r, first, pages);
	if (code == 0 && bitmap_next_set(r->todo, first, end) == end)
		return 0;
	if (code == 0)
		code = await_piece(w, region, first);
	if (code < 0) {
		/* Whoever takes the chunk next does not look it up. */
		if (w->round->seeds)
			bitmap_set_atomic(r->todo, first, pages);
		return code == -ECANCELED ? 0 : code;
	}
	if (eng_lane_lacks(w->lane, region, first))
		return 0; /* registered before the next pass */
	while (w->n_unflushed == ENG_CHUNKS_UNFLUSHED && code == 0)
		code = reap(w, true);
	if (code < 0)
		return code;
	uint32_t slot = (w->oldest + w->n_unflushed) % ENG_CHUNKS_UNFLUSHED;
	w->unflushed[slot].region = region;
	w->unflushed[slot].first = first;
	w->unflushed[slot].pages = pages;
	w->n_unflushed++;

	while (code == 0 && bitmap_next_extent(r->todo, at, end, eng_op_pages(r), &e)) {
		bridge(w, r, end, &e, &bridged);
		/* The chunk is ours, but chunks of huge pages share words of the bitmap. */
		bitmap_clear_atomic(r->todo, e.first, e.n);
		code = write_extent(w, region, &e);
		at = e.first + e.n;
	}
	atomic_fetch_add_explicit(&w->round->bridged, bridged * (r->desc.page_size / ENG_PAGE),
				  memory_order_relaxed);
	if (code == 0)
		code = post_batch(w);
	while (code == 0) {
		code = tp_post_flush(w->lane->tp, FLUSH_COOKIE + slot);
		if (code == 0) {
			w->lane->in_flight++;
			break;
		}
		if (code == -EAGAIN)
			code = reap(w, true);
	}
	return code;
}

/* The lane is lost: what it had not flushed is to do again, and every slot is free. */
static void give_back(struct writer *w)
{
	struct mf_session *s = w->lane->session;
	struct tp_wc wc[32];
	int n;
	for (unsigned i = 0; i < w->n_batch; i++)
		eng_op_put(w->lane, w->batch[i].cookie);
	tp_lane_shutdown(w->lane->tp);
	while ((n = eng_lane_reap_rest(w->lane, wc, 32)) > 0) {
		for (int i = 0; i < n; i++) {
			w->lane->in_flight--;
			if (wc[i].cookie < FLUSH_COOKIE)
				eng_op_put(w->lane, wc[i].cookie);
		}
	}
	for (; w->n_unflushed; w->n_unflushed--) {
		uint32_t slot = w->oldest;
		/* Also pages that were never to do: sending one too many is harmless. */
		bitmap_set_atomic(s->memory.region[w->unflushed[slot].region].todo,
				  w->unflushed[slot].first, w->unflushed[slot].pages);
		w->oldest = (w->oldest + 1) % ENG_CHUNKS_UNFLUSHED;
	}
}

static int write_round(struct eng_lane *lane, void *ctx)
{
	struct eng_round *round = ctx;
	struct mf_session *s = round->session;
	struct writer w = { .lane = lane, .round = round };
	uint64_t chunks = eng_chunks(s), n;
	int r = 0;

	while (r == 0 && !atomic_load_explicit(&round->job.stop, memory_order_relaxed) &&
	       (n = atomic_fetch_add_explicit(&round->cursor, 1, memory_order_relaxed)) < chunks) {
		uint32_t region;
		uint64_t first, pages;
		eng_chunk_at(s, n, &region, &first, &pages);
		r = write_chunk(&w, region, first, pages);
	}
	while (r == 0 && lane->in_flight)
		r = reap(&w, true);
	if (r < 0)
		give_back(&w);
	return r;
}

void eng_round_resume(struct eng_round *round)
{
	/* Chunks that nobody took yet are as they were; what was given back may be there in part. */
	if (atomic_load_explicit(&round->cursor, memory_order_relaxed) >=
	    eng_chunks(round->session)) {
		atomic_store_explicit(&round->cursor, 0, memory_order_relaxed);
		round->skip_zero = false;
		round->seeds = false;
	}
	eng_lanes_run(round->session, ENG_BULK, &round->job);
}

void eng_round_start(struct mf_session *s, struct eng_round *round, uint32_t n, bool skip_zero)
{
	memset(round, 0, sizeof(*round));
	round->session = s;
	round->skip_zero = skip_zero;
	round->bridges = n > 1 && !skip_zero;
	round->seeds = n == 1 && s->tracker && s->tracker->ops->caps & TRK_CAP_CLEARS_LATE;
	round->job.run = write_round;
	round->job.ctx = round;
	eng_update_progress(s, n, eng_memory_todo_bytes(s));
	eng_lanes_run(s, ENG_BULK, &round->job);
}
