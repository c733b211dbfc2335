/* SPDX-License-Identifier: BSD-2-Clause */
/* The source's rounds: write, collect, decide.  The guest runs meanwhile. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/parse.h"
#include "core/converge.h"
#include "core/source.h"

/* Warm: rounds need not chase each other. */
#define WARM_PAUSE_MS 200
/* How much a guest that outruns the link is slowed: QEMU's own steps. */
#define THROTTLE_FIRST 20
#define THROTTLE_STEP  10
#define THROTTLE_MAX   99

static void note_rates(struct mf_session *s, const struct mf_round *round, uint64_t round_us,
		       const struct converge *c, uint64_t downtime_us)
{
	pthread_mutex_lock(&s->progress_lock);
	s->progress.bytes_per_s = c->bytes_per_s;
	s->progress.predicted_downtime_ms = (downtime_us + 999) / 1000;
	s->progress.dirty_bytes_per_s =
		round_us ? round->dirty_pages * ENG_PAGE * 1000000 / round_us : 0;
	pthread_mutex_unlock(&s->progress_lock);
}

static int tell_round(struct mf_session *s, const struct mf_round *round, struct mf_error *err)
{
	Mf__Wire__RoundInfo body = MF__WIRE__ROUND_INFO__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(ROUND);
	msg.round = &body;
	body.n = round->n;
	body.ms = round->ms;
	body.pages = round->pages;
	body.zero_pages = round->zero_pages;
	body.bytes = round->bytes;
	body.dirty_pages = round->dirty_pages;
	return eng_send(s, &msg, err);
}

/* Bytes of a lost lane may wait in the destination's socket; landing later, they would undo a page that another lane
 * wrote again.  So the destination ends the lane before anything is written again. */
static int fence_lost_lanes(struct mf_session *s, struct mf_error *err)
{
	for (uint32_t i = 0; i < eng_lanes_per_rail(s) * s->n_rails; i++) {
		struct eng_lane *lane = &s->lanes.lane[i];
		if (lane->fenced || !lane->tp ||
		    !atomic_load_explicit(&lane->failure, memory_order_acquire))
			continue;
		Mf__Wire__LaneLost body = MF__WIRE__LANE_LOST__INIT;
		wire_msg msg = WIRE_INIT, *answer;
		msg.body_case = WIRE_BODY(LANE_LOST);
		msg.lane_lost = &body;
		body.rail = lane->rail->id;
		body.lane = lane->id;
		int r = eng_send(s, &msg, err);
		if (r == 0)
			r = eng_expect(s, WIRE_BODY(LANE_GONE), eng_timeout(s), &answer, err);
		if (r < 0)
			return r;
		lane->fenced = answer->lane_gone->lane == lane->id &&
			       answer->lane_gone->rail == lane->rail->id;
		wire_msg_free(answer);
		if (!lane->fenced)
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "the destination ended another lane than was lost");
		if (eng_rail_alive(lane->rail))
			eng_emit(s, MF_EVENT_NOTICE, "lane %u was lost; going on over the others",
				 lane->id);
	}
	return 0;
}

/* The end of a round or a pass: 0 while there is a lane to go on with. */
int eng_round_wait(struct mf_session *s, struct eng_round *round, struct mf_error *err)
{
	int r = eng_wait_job(s, &round->job, err);
	if (r == 0 && !eng_lanes_alive(s, ENG_BULK))
		r = eng_lanes_failure(s, err);
	if (r == 0)
		r = fence_lost_lanes(s, err);
	eng_rails_note_lost(s);
	return r;
}

/* Writes all that is to do; the guest may run.  *ret is complete but for dirty_pages. */
static int write_all(struct mf_session *s, uint32_t n, struct mf_round *ret, uint64_t *ret_us,
		     struct mf_error *err)
{
	struct eng_round round;
	uint64_t start = base_now_us();
	*ret = (struct mf_round){ .n = n };
	eng_register_cover(s);
	eng_round_start(s, &round, n, n == 1);
	int r = eng_round_wait(s, &round, err);
	/* What lost lanes left behind, and what had not been registered. */
	while (r == 0 && eng_memory_count_todo(s)) {
		eng_register_cover(s);
		eng_round_resume(&round);
		r = eng_round_wait(s, &round, err);
	}
	*ret_us = base_now_us() - start;
	ret->ms = *ret_us / 1000;
	ret->pages = atomic_load_explicit(&round.pages, memory_order_relaxed);
	ret->zero_pages = atomic_load_explicit(&round.zero_pages, memory_order_relaxed);
	ret->bytes = atomic_load_explicit(&round.bytes, memory_order_relaxed);
	s->report.bytes_written += ret->bytes;
	s->report.pages_bridged += atomic_load_explicit(&round.bridged, memory_order_relaxed);
	if (n > 1)
		s->report.pages_resent += ret->pages;
	return r;
}

int eng_round_end(struct mf_session *s, struct mf_round *round, struct mf_error *err)
{
	round->dirty_pages = eng_memory_todo_bytes(s) / ENG_PAGE;
	s->report.pages_zero += round->zero_pages;
	eng_emit_round(s, round);
	return tell_round(s, round, err);
}

/* Non-converging pre-copy: what there is to do about it, once each step. */
static void help_converge(struct mf_session *s, bool *told, uint64_t dirty_bytes)
{
	char size[24];
	if (!*told)
		eng_emit(s, MF_EVENT_NOTICE,
			 "pre-copy does not converge: %s are dirty after each round; `memferry "
			 "cutover` "
			 "accepts the downtime, `memferry postcopy` switches, `memferry cancel` "
			 "stops",
			 base_format_size(dirty_bytes, size, sizeof(size)));
	*told = true;
	if (s->throttle >= THROTTLE_MAX)
		return;
	uint32_t next = s->throttle ? s->throttle + THROTTLE_STEP : THROTTLE_FIRST;
	next = next < THROTTLE_MAX ? next : THROTTLE_MAX;
	if (eng_guest_throttle(s, next, NULL) == 0) {
		s->throttle = next;
		eng_emit(s, MF_EVENT_NOTICE, "the guest is slowed down by %u %%", next);
	}
}

/* Rounds until the decision: *ret_postcopy says how to switch. */
int eng_source_precopy(struct mf_session *s, bool *ret_postcopy, struct mf_error *err)
{
	struct converge converge = { 0 };
	bool told = false;
	int r;

	eng_set_state(s, ENG_PRECOPY);
	for (uint32_t n = 1;; n++) {
		struct mf_round round;
		uint64_t us, downtime_us;
		r = write_all(s, n, &round, &us, err);
		if (r == 0)
			r = eng_collect_running(s, err);
		if (r == 0)
			r = eng_round_end(s, &round, err);
		if (r < 0)
			return r;
		struct converge_input in = {
			.mode = s->params.mode,
			.round_us = us,
			.round_bytes = round.bytes,
			.dirty_bytes = round.dirty_pages * ENG_PAGE,
			.overhead_us = CONVERGE_SWITCHOVER_US,
			.max_downtime_us = s->params.max_downtime_ms * 1000,
			.safe_bytes = s->params.safe_postcopy_pages * ENG_PAGE,
			.cutover = eng_requested(s, MF_REQUEST_CUTOVER),
			.postcopy = eng_requested(s, MF_REQUEST_POSTCOPY),
		};
		enum converge_verdict verdict = converge_decide(&converge, &in, &downtime_us);
		note_rates(s, &round, us, &converge, downtime_us);
		if (verdict == CONVERGE_STOP || verdict == CONVERGE_POSTCOPY) {
			*ret_postcopy = verdict == CONVERGE_POSTCOPY;
			if (*ret_postcopy && !in.postcopy)
				eng_emit(s, MF_EVENT_NOTICE,
					 "pre-copy does not converge: switching to post-copy");
			return 0;
		}
		r = eng_rails_retry(s, err);
		if (r < 0)
			return r;
		if (verdict == CONVERGE_STALLED)
			help_converge(s, &told, in.dirty_bytes);
		if (s->params.mode == MF_MODE_WARM) {
			uint64_t until = base_deadline_ms(WARM_PAUSE_MS);
			while (base_now_us() < until && !eng_requested(s, MF_REQUEST_CUTOVER) &&
			       !eng_requested(s, MF_REQUEST_CANCEL))
				eng_sleep(s, until);
		}
	}
}
