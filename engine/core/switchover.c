/* SPDX-License-Identifier: BSD-2-Clause */
/* The source's switchover: the guest is paused, its last pages are written or handed over, its device state goes across. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "core/source.h"

#define STATE_PIECE      (256u << 10)
#define RUNS_PER_MESSAGE 65536u
/* Passes over a guest that stands still: one, one more for what saving wrote, and again for each lost lane. */
#define PASSES_MAX 200u

static int keep_state(void *ctx, const void *bytes, size_t len)
{
	return eng_keep_state(ctx, bytes, len, NULL);
}

static int save_device(struct mf_session *s, struct mf_error *err)
{
	int r = eng_guest_save_state(s, keep_state, err);
	s->device.complete = r == 0;
	return r;
}

/* What the destination does not have, with the guest paused and its state saved: saving may write RAM. */
static int find_rest(struct mf_session *s, struct mf_error *err)
{
	if (s->tracker)
		return eng_collect(s, err);
	uint64_t all = s->memory.bytes / ENG_PAGE;
	eng_memory_seed(s);
	s->report.pages_zero = all - eng_memory_todo_bytes(s) / ENG_PAGE;
	return 0;
}

/* The guest is paused.  Where writes are tracked, pages go out while the device state is saved, and what saving wrote is
 * collected after it; else (cold) it is saved first. */
static int last_pass(struct mf_session *s, struct mf_error *err)
{
	struct mf_round round = { .n = s->report.n_rounds + 1 };
	uint64_t start = base_now_us();
	bool is_first = !s->report.n_rounds;
	int r = s->tracker ? 0 : save_device(s, err);
	if (r == 0)
		r = find_rest(s, err);
	for (unsigned n = 0; r == 0 && (!s->device.complete || eng_memory_count_todo(s)); n++) {
		struct eng_round pass;
		if (n == PASSES_MAX)
			return base_error(
				err, -EBUSY, MF_SCOPE_SESSION,
				"the guest's memory goes on changing although it is paused");
		eng_register_cover(s);
		eng_round_start(s, &pass, round.n, is_first && !round.pages);
		int saved = s->device.complete ? 0 : save_device(s, err);
		r = eng_round_wait(s, &pass, err);
		if (saved < 0)
			r = saved;
		round.pages += atomic_load_explicit(&pass.pages, memory_order_relaxed);
		round.zero_pages += atomic_load_explicit(&pass.zero_pages, memory_order_relaxed);
		round.bytes += atomic_load_explicit(&pass.bytes, memory_order_relaxed);
		s->report.pages_bridged +=
			atomic_load_explicit(&pass.bridged, memory_order_relaxed);
		if (r == 0 && s->tracker)
			r = eng_collect(s, err);
	}
	if (r < 0)
		return r;
	round.ms = (base_now_us() - start) / 1000;
	s->report.bytes_written += round.bytes;
	if (!is_first)
		s->report.pages_resent += round.pages;
	return eng_round_end(s, &round, err);
}

static int send_bitmap(struct mf_session *s, uint32_t region, struct mf_error *err)
{
	const struct eng_region *r = &s->memory.region[region];
	base_autofree uint64_t *runs = malloc(RUNS_PER_MESSAGE * 8);
	if (!runs)
		return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "out of memory");
	uint64_t at = 0;
	struct extent e;
	bool more = bitmap_next_extent(r->todo, 0, r->pages, r->pages, &e);
	while (more) {
		Mf__Wire__Bitmap body = MF__WIRE__BITMAP__INIT;
		wire_msg msg = WIRE_INIT;
		msg.body_case = WIRE_BODY(BITMAP);
		msg.bitmap = &body;
		body.region = region;
		body.first = at;
		body.runs = runs;
		while (more && body.n_runs < RUNS_PER_MESSAGE) {
			runs[body.n_runs++] = e.first - at;
			runs[body.n_runs++] = e.n;
			at = e.first + e.n;
			more = bitmap_next_extent(r->todo, at, r->pages, r->pages, &e);
		}
		int code = eng_send(s, &msg, err);
		if (code < 0)
			return code;
	}
	return 0;
}

static int send_state(struct mf_session *s, struct mf_error *err)
{
	for (size_t at = 0;;) {
		Mf__Wire__State body = MF__WIRE__STATE__INIT;
		wire_msg msg = WIRE_INIT;
		size_t left = s->device.len - at;
		msg.body_case = WIRE_BODY(STATE);
		msg.state = &body;
		body.data.data = s->device.bytes + at;
		body.data.len = left < STATE_PIECE ? left : STATE_PIECE;
		at += body.data.len;
		body.last = at == s->device.len;
		int r = eng_send(s, &msg, err);
		if (r < 0 || body.last)
			return r;
	}
}

static int send_switchover(struct mf_session *s, bool postcopy, struct mf_error *err)
{
	Mf__Wire__Switchover body = MF__WIRE__SWITCHOVER__INIT;
	wire_msg msg = WIRE_INIT;
	int r = 0;
	msg.body_case = WIRE_BODY(SWITCHOVER);
	msg.switchover = &body;
	body.postcopy = postcopy;
	if (postcopy)
		body.missing_pages = eng_memory_count_todo(s);
	else /* the destination ends them */
		atomic_store_explicit(&s->lanes_done, true, memory_order_relaxed);
	body.paused_us_ago = base_now_us() - s->stopped_us;
	r = eng_send(s, &msg, err);
	for (uint32_t i = 0; postcopy && r == 0 && i < s->memory.n; i++)
		r = send_bitmap(s, i, err);
	if (r == 0 && s->params.verify == MF_VERIFY_FULL)
		r = eng_verify_send(s, err);
	return r < 0 ? r : send_state(s, err);
}

/* The source becomes memory to be read.  Without the urgent lane nobody could serve a fault.  When the guest has written
 * too much since the decision, the rest is written: it was decided that it is little. */
static int offer_rest(struct mf_session *s, bool *postcopy, struct mf_error *err)
{
	uint64_t most = s->params.safe_postcopy_pages;
	int r = save_device(s, err);
	if (r == 0)
		r = find_rest(s, err);
	if (r == 0 && most && eng_memory_todo_bytes(s) > most * ENG_PAGE) {
		*postcopy = false;
		eng_emit(s, MF_EVENT_NOTICE,
			 "more than %llu pages are missing: they are written before the guest runs "
			 "there",
			 (unsigned long long)most);
		return last_pass(s, err);
	}
	if (r == 0 && !(eng_lanes_alive(s, ENG_URGENT) && eng_lanes_alive(s, ENG_BULK)))
		r = eng_lanes_failure(s, err);
	return r < 0 ? r : eng_expose_for_reading(s, err);
}

int eng_source_switchover(struct mf_session *s, bool *postcopy, struct mf_error *err)
{
	/* While the guest runs: what takes its time must not be waited for in the downtime. */
	int r = eng_register_wait(s, err);
	if (r < 0)
		return r;
	eng_set_state(s, ENG_SWITCHOVER);
	r = eng_guest_pause(s, err);
	if (r == 0)
		r = *postcopy ? offer_rest(s, postcopy, err) : last_pass(s, err);
	if (r < 0)
		return r;
	r = send_switchover(s, *postcopy, err);
	if (r < 0)
		return r;
	wire_msg *msg;
	/* The destination loads, and with --verify reads all its RAM. */
	uint64_t limit =
		base_deadline_ms(s->params.peer_timeout_ms + 30000 + s->memory.bytes / 100000);
	r = eng_expect(s, WIRE_BODY(READY), limit, &msg, err);
	if (r < 0)
		return r;
	wire_msg_free(msg);
	eng_set_state(s, ENG_READY);
	return 0;
}
