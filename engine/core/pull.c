/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Post-copy at the destination: the guest is here, pages are at the source.
 *
 * A page is in one of three states, told by two bitmaps:
 *
 *   todo 1, present 0   missing: whoever clears the bit of todo (exactly one does) fetches it
 *   todo 0, present 0   being fetched
 *   todo 0, present 1   here
 *
 * A page is never fetched twice: a second read could land after the guest wrote the page.  `present` is set after
 * the last byte and before the page is mapped for the guest, and lives in a file: after a crash, what
 * is not present may be read again, what is present must not.
 *
 * The urgent lane's thread serves faults and nothing else.  The bulk lanes fetch the rest, from where the last fault
 * was onwards.  They do not step back for faults: what they bring sooner is never faulted on at all.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "base/log.h"
#include "core/engine.h"

/* Background reads in flight per lane.  With few, the lane idles between them and the guest meets more missing
 * pages; with many, a touched page that is on its way already waits longer for its turn. */
#define PULL_DEPTH   32u
#define ARM_GRANULE  (2u << 20)
#define AROUND_PAGES 32u /* present pages mapped with the one that was touched */
/* Touched pages that others fetch; beyond it the latency of those is not counted. */
#define WAITING_MAX 256u
/* And those whose reads were lost with the urgent lane: all that it can have had under way, or just been told of. */
#define FAULTS_TAKEN  32u
#define WAITING_SLOTS (WAITING_MAX + ENG_DEPTH + FAULTS_TAKEN)
#define SPIN_US       60u /* faults come in streams: look this long before sleeping */

struct waiting {
	uint32_t region;
	uint64_t page, seen_us;
};

/* Who decides first: the session, that the guest runs here, or the urgent lane, that nobody serves faults. */
enum fate {
	UNDECIDED,
	COMMITTED, /* faults wait for ever rather than be answered wrongly */
	GIVEN_UP,  /* the pager is disarmed: the guest must not run here */
};

struct eng_pull {
	struct mf_session *session;
	struct eng_job fault_job, bulk_job;
	struct pgr_range range[MF_REGIONS_MAX];
	void *zeroes; /* a page of the largest size, for private memory */
	size_t zeroes_len;
	uint64_t started_us;
	uint64_t total; /* ENG_PAGE units that were missing */
	bool armed;

	_Atomic bool
		session_gives; /* eng_pull_all() runs: whoever loses the fault service only ends */
	_Atomic uint64_t left; /* ENG_PAGE units not present */
	_Atomic uint64_t pulled; /* ENG_PAGE units fetched */
	_Atomic uint64_t hint;   /* region << 48 | page after the last fault */
	_Atomic uint32_t n_waiting;
	_Atomic int fate; /* enum fate; whoever leaves UNDECIDED decides */
	_Atomic uint64_t verified, mismatches;

	/* of the lane that serves faults: the urgent one of the best rail that is left */
	_Atomic(struct eng_lane *) server;
	struct waiting waiting[WAITING_SLOTS];
	struct latency latency;
};

static uint64_t unit(const struct eng_region *r)
{
	return r->desc.page_size / ENG_PAGE;
}

/* An operation that did not happen: its pages are missing again. */
static void give_back(struct eng_pull *p, const struct eng_op *op)
{
	bitmap_set_atomic(p->session->memory.region[op->region].todo, op->first, op->n);
}

/* The bytes of an extent are in our mapping: from now on it is the guest's.  Private memory gets a copy of them, and
 * must have it before anybody may think that a page which is present and not mapped is a zero page. */
static int page_in(struct eng_pull *p, const struct eng_op *op, const uint8_t *bytes)
{
	struct mf_session *s = p->session;
	struct eng_region *r = &s->memory.region[op->region];
	struct pgr_extent e = { op->region, op->first, op->n };
	int code = 0;
	if (r->hashes)
		eng_verify_arrived(s, r, bytes, op->first, op->n, &p->verified, &p->mismatches);
	if (r->is_private)
		code = pgr_complete(s->pager, &e, bytes);
	if (code < 0) {
		give_back(p, op);
		return code;
	}
	bitmap_set_atomic(r->present, op->first, op->n);
	if (!r->is_private)
		code = pgr_complete(s->pager, &e, NULL);
	uint64_t pages = op->n * unit(r);
	atomic_fetch_add_explicit(&p->pulled, pages, memory_order_relaxed);
	atomic_fetch_add_explicit(&s->bytes_scanned, pages * ENG_PAGE, memory_order_relaxed);
	atomic_fetch_add_explicit(&s->bytes_moved, pages * ENG_PAGE, memory_order_relaxed);
	/* acq_rel: who brings it to 0 has seen every page_in before its own */
	if (atomic_fetch_sub_explicit(&p->left, pages, memory_order_acq_rel) == pages)
		base_event_poke(s->event_fd);
	return code;
}

/* Posts one read of pages that were claimed.  -EAGAIN: no room. */
static int post_read(struct eng_lane *lane, const struct eng_op *want)
{
	uint64_t cookie;
	struct tp_xfer x;
	struct eng_op *op = eng_op_get(lane, &cookie);
	if (!op)
		return -EAGAIN;
	*op = *want;
	eng_memory_xfer(lane, op->region, op->first, op->n, cookie, &x);
	int r = tp_post_read(lane->tp, &x, 1);
	if (r < 0) {
		eng_op_put(lane, cookie);
		return r;
	}
	lane->in_flight++;
	return 0;
}

/* One read is over: its pages are here, or missing again.  Every completion that was polled comes here, those
 * after a failure too: nobody else knows of its pages. */
static int take_read(struct eng_pull *p, struct eng_lane *lane, const struct tp_wc *wc)
{
	struct eng_op op = lane->ops[wc->cookie];
	int r = wc->status;
	if (r < 0)
		give_back(p, &op);
	else
		r = page_in(p, &op, eng_landing_at(lane, op.region, op.first, wc->cookie));
	/* The slot's landing is free when its bytes were used. */
	eng_op_put(lane, wc->cookie);
	lane->in_flight--;
	return r;
}

/* Somebody waits for the page, and nobody else will say so again: the pager tells of a touch once. */
static void keep_waiting(struct eng_pull *p, uint32_t region, uint64_t page, uint64_t seen_us,
			 uint32_t most)
{
	uint32_t n = atomic_load_explicit(&p->n_waiting, memory_order_relaxed);
	if (n >= most)
		return;
	p->waiting[n] = (struct waiting){ region, page, seen_us };
	/* seq_cst: pairs with take_bulk.  Either it sees somebody waiting and wakes us,
	 * or look_at_waiting() sees the page present. */
	atomic_store(&p->n_waiting, n + 1);
	atomic_thread_fence(memory_order_seq_cst);
}

/* The lane failed: what it had under way is missing again. */
static void drop_reads(struct eng_pull *p, struct eng_lane *lane)
{
	struct tp_wc wc[16];
	int n;
	tp_lane_shutdown(lane->tp);
	while ((n = eng_lane_reap_rest(lane, wc, 16)) > 0) {
		for (int i = 0; i < n; i++) {
			const struct eng_op *op = &lane->ops[wc[i].cookie];
			give_back(p, op);
			if (lane->urgent)
				keep_waiting(p, op->region, op->first, op->seen_us, WAITING_SLOTS);
			eng_op_put(lane, wc[i].cookie);
			lane->in_flight--;
		}
	}
}

/* ---- faults ---- */

static int take_urgent(struct eng_pull *p, struct eng_lane *lane)
{
	struct tp_wc wc[16];
	int n = tp_lane_poll(lane->tp, wc, 16), failed = 0;
	for (int i = 0; i < n; i++) {
		const struct eng_op op = lane->ops[wc[i].cookie];
		int r = take_read(p, lane, &wc[i]);
		if (r < 0) {
			failed = failed ? failed : r;
			keep_waiting(p, op.region, op.first, op.seen_us, WAITING_SLOTS);
		} else {
			latency_add(&p->latency, base_now_us() - op.seen_us);
		}
	}
	return failed ? failed : n;
}

/* The page is here: map it and its neighbours that are here too, so that they need no fault of their own. */
static int map_around(struct eng_pull *p, uint32_t region, uint64_t page)
{
	const struct eng_region *r = &p->session->memory.region[region];
	uint64_t block = page / AROUND_PAGES * AROUND_PAGES, first = page, end = page + 1;
	if (r->is_private) {
		/* Mapped already, which wakes those who wait; or a zero page that was never missing. */
		struct pgr_extent one = { region, page, 1 };
		return pgr_complete(p->session->pager, &one, p->zeroes);
	}
	while (first > block && bitmap_test_atomic(r->present, first - 1))
		first--;
	while (end < block + AROUND_PAGES && end < r->pages && bitmap_test_atomic(r->present, end))
		end++;
	struct pgr_extent e = { region, first, end - first };
	return pgr_complete(p->session->pager, &e, NULL);
}

static int serve_fault(struct eng_pull *p, struct eng_lane *lane, const struct pgr_fault *f)
{
	struct eng_region *r = &p->session->memory.region[f->range];
	atomic_fetch_add_explicit(&p->session->faults, 1, memory_order_relaxed);
	if (bitmap_test_atomic(r->present, f->page)) {
		int code = map_around(p, f->range, f->page);
		latency_add(&p->latency, base_now_us() - f->seen_us);
		return code;
	}
	if (!bitmap_claim_atomic(r->todo, f->page)) {
		keep_waiting(p, f->range, f->page, f->seen_us, WAITING_MAX);
		return 0;
	}
	struct eng_op op = { .region = f->range, .first = f->page, .n = 1, .seen_us = f->seen_us };
	int code;
	while ((code = post_read(lane, &op)) == -EAGAIN) {
		code = take_urgent(p, lane);
		if (code < 0)
			break;
	}
	if (code < 0) {
		give_back(p, &op);
		keep_waiting(p, f->range, f->page, f->seen_us, WAITING_SLOTS);
		return code;
	}
	uint64_t next = f->page + 1 < r->pages ? f->page + 1 : 0;
	atomic_store_explicit(&p->hint, (uint64_t)f->range << 48 | next, memory_order_relaxed);
	return 0;
}

/* Touched pages that others were to fetch: they are here, and the latency is counted; or they were given back by a lane
 * that failed, and are fetched now. */
static bool look_at_waiting(struct eng_pull *p, struct eng_lane *lane)
{
	bool any = false;
	uint32_t n = atomic_load_explicit(&p->n_waiting, memory_order_relaxed);
	for (uint32_t i = 0; i < n;) {
		const struct waiting w = p->waiting[i];
		struct eng_region *r = &p->session->memory.region[w.region];
		bool is_over = bitmap_test_atomic(r->present, w.page);
		if (is_over) {
			/* Who mapped it woke those who waited then; who came between reads it from here. */
			(void)map_around(p, w.region, w.page);
			latency_add(&p->latency, base_now_us() - w.seen_us);
		} else if (bitmap_test_atomic(r->todo, w.page) &&
			   bitmap_claim_atomic(r->todo, w.page)) {
			struct eng_op op = {
				.region = w.region, .first = w.page, .n = 1, .seen_us = w.seen_us
			};
			is_over = post_read(lane, &op) == 0;
			if (!is_over) /* no room, or the lane's end: its next poll says so */
				give_back(p, &op);
		}
		if (!is_over) {
			i++;
			continue;
		}
		p->waiting[i] = p->waiting[--n];
		any = true;
	}
	atomic_store_explicit(&p->n_waiting, n, memory_order_relaxed);
	return any;
}

/* True for the one that decides; also when it was decided so before. */
static bool decide(struct eng_pull *p, enum fate fate)
{
	int was = UNDECIDED;
	return atomic_compare_exchange_strong(&p->fate, &was, (int)fate) || was == (int)fate;
}

/* After the commit, when the urgent lane is lost: pages that are here are mapped, and the bulk lanes are told where
 * the guest waits.  They wake it. */
static int serve_without_lane(struct eng_pull *p, struct eng_lane *lane)
{
	struct mf_session *s = p->session;
	while (!atomic_load_explicit(&p->fault_job.stop, memory_order_relaxed) &&
	       !atomic_load_explicit(&lane->stop, memory_order_relaxed)) {
		struct pgr_fault faults[FAULTS_TAKEN];
		if (eng_lanes_alive(s, ENG_URGENT)) /* eng_pull_all() gives it the job */
			return 0;
		int n = pgr_next(s->pager, 0, faults, FAULTS_TAKEN, 0, base_deadline_ms(500),
				 lane->sleep_fd);
		if (n < 0)
			return n;
		eng_lane_take_wake(lane);
		for (int i = 0; i < n; i++) {
			const struct pgr_fault *f = &faults[i];
			atomic_fetch_add_explicit(&s->faults, 1, memory_order_relaxed);
			atomic_store_explicit(&p->hint, (uint64_t)f->range << 48 | f->page,
					      memory_order_relaxed);
			if (!bitmap_test_atomic(s->memory.region[f->range].present, f->page)) {
				keep_waiting(p, f->range, f->page, f->seen_us, WAITING_MAX);
				continue;
			}
			int r = map_around(p, f->range, f->page);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

/* The urgent lane is lost: that of the next best rail goes on.  Without one, nobody serves any more.  Before the commit a
 * guest that is loading must not hang then: it never runs, so what it finds does not matter.  After it faults wait. */
static void leave_faults(struct eng_pull *p, struct eng_lane *lane, int code)
{
	base_debug("fault service ended: %s", base_strerror(code));
	drop_reads(p, lane);
	eng_lane_fail(lane, code);
	/* Before the guest runs, the session's thread may be in the adapter's load_state(), whose touches wait for us. */
	bool passed = atomic_load_explicit(&p->session_gives, memory_order_acquire)
			      ? eng_lanes_alive(p->session, ENG_URGENT)
			      : eng_lanes_pass_on(p->session, &p->fault_job);
	if (!passed) {
		if (decide(p, GIVEN_UP)) {
			pgr_disarm(p->session->pager);
			p->armed = false;
		} else {
			(void)serve_without_lane(p, lane);
		}
	}
	base_event_poke(p->session->event_fd);
}

static int serve_faults(struct eng_lane *lane, void *ctx)
{
	struct eng_pull *p = ctx;
	uint64_t active_us = 0;
	int r = atomic_load_explicit(&lane->failure, memory_order_relaxed);

	atomic_store_explicit(&p->server, lane, memory_order_relaxed);
	while (r >= 0 && !atomic_load_explicit(&p->fault_job.stop, memory_order_relaxed)) {
		struct pgr_fault faults[FAULTS_TAKEN];
		uint64_t deadline = 0;
		int lane_fd = -1;
		if (atomic_load_explicit(&lane->stop, memory_order_relaxed)) {
			r = -ECANCELED; /* its rail is being closed */
			break;
		}
		/* Armed: a completion that comes from here on makes lane_fd readable. */
		if (base_now_us() - active_us > SPIN_US && tp_lane_arm(lane->tp, &lane_fd) == 0)
			deadline = base_deadline_ms(500);
		int n = pgr_next(p->session->pager, 0, faults, FAULTS_TAKEN, 0, deadline, lane_fd);
		r = n;
		for (int i = 0; i < n; i++) {
			const struct pgr_fault *f = &faults[i];
			if (r >= 0)
				r = serve_fault(p, lane, f);
			else
				keep_waiting(p, f->range, f->page, f->seen_us, WAITING_SLOTS);
		}
		int done = r < 0 ? 0 : take_urgent(p, lane);
		if (done < 0)
			r = done;
		if (r >= 0 && (look_at_waiting(p, lane) || n > 0 || done > 0))
			active_us = base_now_us();
	}
	while (r >= 0 && lane->in_flight) {
		int done = take_urgent(p, lane);
		r = done < 0 ? done : 0;
		if (r == 0 && lane->in_flight && tp_lane_wait(lane->tp, base_deadline_ms(1000)) < 0)
			r = -ETIMEDOUT;
	}
	if (r < 0)
		leave_faults(p, lane, r);
	return r < 0 ? r : 0;
}

/* ---- background ---- */

struct puller {
	struct eng_pull *pull;
	struct eng_lane *lane;
	uint32_t region; /* where to look next */
	uint64_t page;
	uint64_t hint_seen;
};

/* The next missing extent from the cursor on, over all regions, once round.  False: nothing is missing. */
static bool claim_next(struct puller *w, struct eng_op *ret)
{
	struct mf_session *s = w->pull->session;
	uint64_t hint = atomic_load_explicit(&w->pull->hint, memory_order_relaxed);
	if (hint != w->hint_seen) {
		w->hint_seen = hint;
		w->region = (uint32_t)(hint >> 48);
		w->page = hint & ((UINT64_C(1) << 48) - 1);
	}
	/* One turn more than there are regions: the first one's beginning comes last. */
	for (uint32_t i = 0; i <= s->memory.n; i++) {
		struct eng_region *r = &s->memory.region[w->region];
		uint64_t most = eng_pull_pages(r);
		struct extent e;
		/* No operation crosses a registration's border, and those end on chunks. */
		while (bitmap_next_extent(r->todo, w->page, r->pages, most, &e)) {
			uint64_t chunk = eng_chunk_pages(r);
			uint64_t end = (e.first / chunk + 1) * chunk;
			end = end < e.first + e.n ? end : e.first + e.n;
			if (bitmap_claim_extent_atomic(r->todo, e.first, end, most, &e)) {
				*ret = (struct eng_op){ .region = w->region,
							.first = e.first,
							.n = e.n };
				w->page = e.first + e.n;
				return true;
			}
			w->page = end; /* others took it */
		}
		w->region = (w->region + 1) % s->memory.n;
		w->page = 0;
	}
	return false;
}

static int take_bulk(struct puller *w, bool block)
{
	struct eng_lane *lane = w->lane;
	struct tp_wc wc[PULL_DEPTH];
	for (;;) {
		int n = tp_lane_poll(lane->tp, wc, PULL_DEPTH), failed = 0;
		for (int i = 0; i < n; i++) {
			int r = take_read(w->pull, lane, &wc[i]);
			failed = failed ? failed : r;
		}
		atomic_thread_fence(memory_order_seq_cst); /* pairs with serve_fault */
		struct eng_lane *server =
			atomic_load_explicit(&w->pull->server, memory_order_relaxed);
		if (n > 0 && server &&
		    atomic_load_explicit(&w->pull->n_waiting, memory_order_relaxed))
			eng_lane_wake(server);
		if (failed)
			return failed;
		if (atomic_load_explicit(&lane->stop, memory_order_relaxed))
			return -ECANCELED;
		if (n || !block || !lane->in_flight)
			return n < 0 ? n : 0;
		int r = tp_lane_wait(lane->tp,
				     base_deadline_ms(lane->session->params.peer_timeout_ms));
		if (r < 0)
			return r;
	}
}

/* The background keeps to the limit; faults do not wait for it. */
static int await_turn(struct puller *w)
{
	const struct mf_session *s = w->pull->session;
	int r = 0;
	while (r == 0 && s->params.max_bandwidth &&
	       !atomic_load_explicit(&w->pull->bulk_job.stop, memory_order_relaxed)) {
		uint64_t at = atomic_load_explicit(&s->not_before_us, memory_order_relaxed);
		uint64_t tick = base_deadline_ms(50);
		if (base_now_us() >= at)
			break;
		r = take_bulk(w, false);
		if (r == 0)
			r = tp_lane_wait(w->lane->tp, at < tick ? at : tick);
		r = r == -ETIMEDOUT || r > 0 ? 0 : r;
	}
	return r;
}

static int pull_missing(struct eng_lane *lane, void *ctx)
{
	struct eng_pull *p = ctx;
	struct puller w = { .pull = p, .lane = lane };
	struct eng_op op;
	int r = 0;

	/* Lanes start apart; the first fault brings them together. */
	uint64_t lanes = (uint64_t)p->session->lanes.n_bulk * p->session->n_rails;
	uint64_t number = (uint64_t)(lane - p->session->lanes.lane) - lane->rail->id;
	eng_chunk_at(p->session, eng_chunks(p->session) * number / lanes, &w.region, &w.page,
		     &op.n);
	while (r == 0 && !atomic_load_explicit(&p->bulk_job.stop, memory_order_relaxed)) {
		r = await_turn(&w);
		if (r == 0)
			r = take_bulk(&w, lane->in_flight >= PULL_DEPTH);
		if (r < 0 || lane->in_flight >= PULL_DEPTH)
			continue;
		if (!claim_next(&w, &op)) {
			if (!lane->in_flight)
				break;
			r = take_bulk(&w, true);
			continue;
		}
		while ((r = post_read(lane, &op)) == -EAGAIN) {
			r = take_bulk(&w, true);
			if (r < 0)
				break;
		}
		if (r < 0)
			give_back(p, &op);
		else if (p->session->params.max_bandwidth)
			(void)eng_spend_bandwidth(
				p->session,
				op.n * p->session->memory.region[op.region].desc.page_size);
	}
	while (r == 0 && lane->in_flight)
		r = take_bulk(&w, true);
	if (r < 0)
		drop_reads(p, lane);
	return r;
}

/* ---- setting up and ending ---- */

static int map_zeroes(struct eng_pull *p, struct mf_error *err)
{
	if (!p->zeroes_len)
		return 0;
	void *map = mmap(NULL, p->zeroes_len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "a page of zeroes");
	p->zeroes = map;
	return 0;
}

/* Ranges with something missing, in granules: few registrations, and whole stretches that are
 * here never fault. */
static int arm(struct eng_pull *p, struct mf_error *err)
{
	struct mf_session *s = p->session;
	size_t n = 0, cap = 0;
	base_autofree struct pgr_extent *list = NULL;
	for (uint32_t i = 0; i < s->memory.n; i++) {
		const struct eng_region *r = &s->memory.region[i];
		uint64_t granule =
			r->desc.page_size >= ARM_GRANULE ? 1 : ARM_GRANULE / r->desc.page_size;
		uint64_t at = bitmap_next_set(r->todo, 0, r->pages);
		for (bool is_new = true; at < r->pages; is_new = false) {
			uint64_t first = at / granule * granule;
			uint64_t end = first + granule < r->pages ? first + granule : r->pages;
			at = bitmap_next_set(r->todo, end, r->pages);
			if (!is_new && list[n - 1].first + list[n - 1].n == first) {
				list[n - 1].n += end - first;
				continue;
			}
			if (n == cap) {
				cap = cap ? 2 * cap : 64;
				void *more = realloc(list, cap * sizeof(*list));
				if (!more)
					return base_error(err, -ENOMEM, MF_SCOPE_SESSION,
							  "out of memory");
				list = more;
			}
			list[n++] = (struct pgr_extent){ i, first, end - first };
		}
	}
	if (!n)
		return 0;
	int r = pgr_arm(s->pager, list, n, err);
	p->armed = r == 0;
	return r;
}

static void stop_jobs(struct eng_pull *p)
{
	struct mf_session *s = p->session;
	atomic_store_explicit(&p->fault_job.stop, true, memory_order_relaxed);
	atomic_store_explicit(&p->bulk_job.stop, true, memory_order_relaxed);
	struct eng_lane *server = atomic_load_explicit(&p->server, memory_order_relaxed);
	if (server)
		eng_lane_wake(server);
	while (!eng_job_is_done(&p->fault_job) || !eng_job_is_done(&p->bulk_job)) {
		eng_sleep(s, base_deadline_ms(100));
		/* It may have been passed on just now. */
		server = atomic_load_explicit(&p->server, memory_order_relaxed);
		atomic_store_explicit(&p->fault_job.stop, true, memory_order_relaxed);
		if (server)
			eng_lane_wake(server);
	}
}

/* Everything but the originals of the userfaultfds in the guest's process. */
static void release(struct eng_pull *p)
{
	struct mf_session *s = p->session;
	pgr_close(s->pager);
	s->pager = NULL;
	base_closep(&s->pager_uffd);
	if (p->zeroes)
		(void)munmap(p->zeroes, p->zeroes_len);
	free(p);
}

static int create_pull(struct mf_session *s, struct eng_pull **ret, struct mf_error *err)
{
	struct eng_pull *p = calloc(1, sizeof(*p));
	if (!p)
		return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "out of memory");
	p->session = s;
	*ret = p;
	p->fault_job.run = serve_faults;
	p->fault_job.ctx = p;
	p->fault_job.even_failed = true; /* lets the loading guest through */
	p->bulk_job.run = pull_missing;
	p->bulk_job.ctx = p;
	for (uint32_t i = 0; i < s->memory.n; i++) {
		const struct eng_region *r = &s->memory.region[i];
		p->range[i] = (struct pgr_range){ .addr = r->desc.hva,
						  .len = r->desc.size,
						  .page_size = r->desc.page_size,
						  .kind = r->is_private ? PGR_ANON : PGR_SHARED,
						  .local = r->is_private ? NULL : r->map };
		if (r->is_private && r->desc.page_size > p->zeroes_len)
			p->zeroes_len = r->desc.page_size;
	}
	return 0;
}

static void count_missing(struct eng_pull *p)
{
	p->total = eng_memory_todo_bytes(p->session) / ENG_PAGE;
	atomic_store_explicit(&p->left, p->total, memory_order_relaxed);
}

static int open_pager(struct eng_pull *p, struct mf_error *err)
{
	struct mf_session *s = p->session;
	struct pgr_params params = {
		.uffds = &s->pager_uffd, .n_uffds = 1, .ranges = p->range, .n_ranges = s->memory.n
	};
	return pgr_open(&params, &s->pager, err);
}

int eng_pull_start(struct mf_session *s, struct eng_pull **ret, struct mf_error *err)
{
	int r = create_pull(s, ret, err);
	if (r < 0)
		return r;
	struct eng_pull *p = *ret; /* from here the caller abandons it */
	count_missing(p);
	r = map_zeroes(p, err);
	if (r == 0)
		r = eng_present_create(s, err);
	if (r == 0)
		r = eng_open_userfaultfd(s, &s->pager_uffd, err);
	if (r == 0)
		r = open_pager(p, err);
	if (r == 0)
		r = arm(p, err);
	/* After arming: what is forgotten now faults on its next touch, without a gap. */
	if (r == 0)
		r = eng_guest_forget_ram(s, err);
	if (r == 0)
		r = eng_memory_drop_todo(s, err);
	if (r < 0)
		return r;
	eng_lanes_run(s, ENG_URGENT, &p->fault_job);
	/* Without it nobody would answer the touches of what is loaded next. */
	return eng_job_is_done(&p->fault_job) ? eng_lanes_failure(s, err) : 0;
}

int eng_pull_take_over(struct mf_session *s, struct eng_pull **ret, struct mf_error *err)
{
	int r = create_pull(s, ret, err);
	if (r < 0)
		return r;
	struct eng_pull *p = *ret; /* from here the caller leaves it */
	s->pulling = true;
	atomic_store_explicit(&p->fate, COMMITTED, memory_order_relaxed);
	atomic_store_explicit(&p->session_gives, true, memory_order_relaxed);
	r = eng_present_open(s, err);
	if (r < 0)
		return r;
	count_missing(p);
	r = eng_guest_find_userfaultfd(s, &s->pager_uffd, err);
	/* It was closed when all was there. */
	if (r == -ENOENT && eng_pull_is_complete(p)) {
		if (err)
			*err = (struct mf_error){ 0 };
		return 0;
	}
	if (r == 0)
		r = open_pager(p, err);
	/* All of it: what the other one had armed is not known, and a touch in there must not wait for nobody. */
	if (r == 0)
		r = pgr_arm(s->pager, NULL, 0, err);
	if (r < 0)
		return r;
	p->armed = true;
	return 0;
}

bool eng_pull_is_complete(const struct eng_pull *p)
{
	return !atomic_load_explicit(&p->left, memory_order_acquire);
}

static void tell_progress(struct eng_pull *p)
{
	Mf__Wire__PullInfo body = MF__WIRE__PULL_INFO__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(PULL);
	msg.pull = &body;
	body.missing_pages = atomic_load_explicit(&p->left, memory_order_relaxed);
	body.faults = atomic_load_explicit(&p->session->faults, memory_order_relaxed);
	(void)eng_send(p->session, &msg, NULL); /* informs; the lanes tell when the peer is lost */
}

int eng_pull_commit(struct mf_session *s, struct eng_pull *p, struct mf_error *err)
{
	if (eng_lanes_alive(s, ENG_URGENT) && decide(p, COMMITTED))
		return 0;
	(void)eng_lanes_failure(s, err);
	return base_error(err, -ECONNRESET, MF_SCOPE_SESSION,
			  "the lane that serves page faults was lost");
}

int eng_pull_all(struct mf_session *s, struct eng_pull *p, struct mf_error *err)
{
	if (!p->started_us)
		p->started_us = base_now_us();
	eng_update_progress(s, s->report.n_rounds, p->total * ENG_PAGE);
	atomic_store_explicit(&s->bytes_scanned,
			      (p->total - atomic_load_explicit(&p->left, memory_order_relaxed)) *
				      ENG_PAGE,
			      memory_order_relaxed);
	atomic_store_explicit(&p->session_gives, true, memory_order_release);
	uint64_t told_us = 0;
	const struct tp_ops *in_use = eng_rails_in_use(s);
	uint32_t given = eng_lanes_alive(s, ENG_BULK);
	int r = 0;
	while (r == 0 && atomic_load_explicit(&p->left, memory_order_acquire)) {
		/* A lane that failed late left pages behind when the others had gone. */
		uint32_t alive = eng_lanes_alive(s, ENG_BULK);
		if (eng_job_is_done(&p->bulk_job) && alive)
			eng_lanes_run(s, ENG_BULK, &p->bulk_job);
		else if (alive > given ||
			 in_use != eng_rails_in_use(s)) /* a rail has come back: it takes part */
			atomic_store_explicit(&p->bulk_job.stop, true, memory_order_relaxed);
		given = alive;
		in_use = eng_rails_in_use(s);
		if (eng_job_is_done(&p->fault_job) && eng_lanes_alive(s, ENG_URGENT))
			eng_lanes_run(s, ENG_URGENT, &p->fault_job);
		/* Without an urgent lane the guest waits longer for each page, but gets it. */
		if (!alive) {
			r = eng_lanes_failure(s, err);
			break;
		}
		if (base_now_us() - told_us > 200000) {
			tell_progress(p);
			told_us = base_now_us();
		}
		wire_msg *msg;
		r = eng_receive(s, base_now_us(), &msg, err);
		if (r == 0 && eng_requested(s, MF_REQUEST_RECOVER))
			r = base_error(err, -ECONNRESET, MF_SCOPE_SESSION, "asked to connect anew");
		if (r == 0)
			eng_sleep(s, base_deadline_ms(200)); /* lanes that end a job poke */
		if (r > 0) {
			uint32_t retry = msg->body_case == WIRE_BODY(RAIL_RETRY)
						 ? msg->rail_retry->rail
						 : UINT32_MAX;
			wire_msg_free(msg);
			r = retry == UINT32_MAX ? 0 : eng_rails_retried(s, retry, err);
		}
	}
	/* Who waits for the peer on a lane waits for nothing: all jobs end with the lanes. */
	if (r < 0) {
		eng_rails_close(s);
		atomic_store_explicit(&p->server, NULL, memory_order_relaxed);
	}
	stop_jobs(p);
	struct mf_report *rep = &s->report;
	struct mf_postcopy_report *pc = &rep->postcopy;
	rep->has_postcopy = true;
	pc->ms = (base_now_us() - p->started_us) / 1000;
	pc->faults = atomic_load_explicit(&s->faults, memory_order_relaxed);
	pc->pulled_pages = atomic_load_explicit(&p->pulled, memory_order_relaxed);
	rep->bytes_read = pc->pulled_pages * ENG_PAGE;
	pc->latency_us.p50 = latency_percentile(&p->latency, 0.5);
	pc->latency_us.p90 = latency_percentile(&p->latency, 0.9);
	pc->latency_us.p99 = latency_percentile(&p->latency, 0.99);
	pc->latency_us.p99_9 = latency_percentile(&p->latency, 0.999);
	pc->latency_us.max = p->latency.max;
	latency_log2(&p->latency, pc->latency_log2_us);
	if (rep->has_verify) {
		rep->verify_pages +=
			atomic_exchange_explicit(&p->verified, 0, memory_order_relaxed);
		rep->verify_mismatches +=
			atomic_exchange_explicit(&p->mismatches, 0, memory_order_relaxed);
	}
	return r;
}

void eng_pull_finish(struct mf_session *s, struct eng_pull *p)
{
	if (s->pager)
		pgr_disarm(s->pager);
	release(p);
	eng_close_userfaultfds(s);
}

void eng_pull_abandon(struct mf_session *s, struct eng_pull *p)
{
	stop_jobs(p);
	if (s->pager && p->armed)
		pgr_disarm(s->pager);
	eng_present_remove(s);
	release(p);
	eng_close_userfaultfds(s);
}

void eng_pull_leave(struct mf_session *s, struct eng_pull *p)
{
	(void)s;
	stop_jobs(p);
	release(p);
}
