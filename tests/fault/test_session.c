/* SPDX-License-Identifier: BSD-2-Clause */
/* Moves that work, and moves whose lanes, adapters or users do not go along. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "core/engine.h"
#include "move.h"

#define SOURCE      (&m.side[0])
#define DESTINATION (&m.side[1])
#define LANES       2u /* bulk lanes by default; the urgent one's number */

static const enum mf_mode modes[] = { MF_MODE_HYBRID, MF_MODE_PRECOPY, MF_MODE_POSTCOPY,
				      MF_MODE_COLD };

static void plain_moves(void **state)
{
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(modes); i++) {
		struct move m;
		move_init(&m);
		m.mode = modes[i];
		m.verify = MF_VERIFY_FULL;
		move_expect(&m, MOVED);
	}
}

/* More than one registration each, the last one shorter, and shorter than a chunk. */
static void regions_of_several_pieces(void **state)
{
	static const enum mf_mode both[] = { MF_MODE_COLD, MF_MODE_POSTCOPY };
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(both); i++) {
		struct move m;
		move_init(&m);
		m.mode = both[i];
		m.verify = MF_VERIFY_FULL;
		m.guest = "2068M,regions=2,zero=98,dirty=1M";
		move_expect(&m, MOVED);
	}
}

static unsigned long free_huge_pages(void)
{
	unsigned long n = 0;
	base_cleanup(base_fclosep) FILE *f =
		fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");
	if (f && fscanf(f, "%lu", &n) != 1)
		n = 0;
	return n;
}

/* Chunks that share words of the bitmaps; lanes that fail between them. */
static void huge_pages(void **state)
{
	(void)state;
	if (free_huge_pages() < 40) {
		print_message("SKIP: fewer than 40 free pages of 2 MiB (vm.nr_hugepages)\n");
		skip();
	}
	for (unsigned i = 0; i < BASE_ARRAY_LEN(modes); i++) {
		struct move m;
		move_init(&m);
		m.mode = modes[i];
		m.verify = MF_VERIFY_FULL;
		m.guest = "36M,page=2M,regions=2,dirty=4M";
		SOURCE->faults.fail_wc_at = 5;
		DESTINATION->faults.fail_wc_at = 5;
		move_expect(&m, MOVED);
	}
}

/* ---- lanes ---- */

static void posts_and_completions_that_fail(void **state)
{
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(modes); i++) {
		for (unsigned completions = 0; completions < 2; completions++) {
			struct move m;
			move_init(&m);
			m.mode = modes[i];
			m.verify = MF_VERIFY_FULL;
			m.lanes = 3;
			/* Rounds work at the source's end, post-copy at the destination's. */
			for (unsigned k = 0; k < 2; k++) {
				struct tp_faulty_plan *f = &m.side[k].faults;
				f->fail_post_at = completions ? 0 : 3;
				f->fail_wc_at = completions ? 3 : 0;
			}
			move_expect(&m, MOVED);
		}
	}
}

/* Several reads are under way on the lane that fails: each of its pages must be fetched by others. */
static void reads_that_fail_together(void **state)
{
	(void)state;
	struct move m;
	move_init(&m);
	m.mode = MF_MODE_POSTCOPY;
	m.verify = MF_VERIFY_FULL;
	m.lanes = 4;
	DESTINATION->faults.fail_wc_at = 9;
	DESTINATION->faults.delay_polls = 40;
	move_expect(&m, MOVED);
}

static void full_queues_and_short_batches(void **state)
{
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(modes); i++) {
		struct move m;
		move_init(&m);
		m.mode = modes[i];
		m.verify = MF_VERIFY_FULL;
		for (unsigned k = 0; k < 2; k++) {
			m.side[k].faults.eagain_every = 2;
			m.side[k].faults.accept_one = true;
			m.side[k].faults.delay_polls = 3;
		}
		move_expect(&m, MOVED);
		assert_true(SOURCE->faults.faults + DESTINATION->faults.faults > 0);
	}
}

static void one_lane_lost_in_the_first_round(void **state)
{
	(void)state;
	struct move m;
	move_init(&m);
	m.mode = MF_MODE_PRECOPY;
	m.verify = MF_VERIFY_FULL;
	SOURCE->faults.drop_after_ops = 2;
	SOURCE->faults.drop_lane = 0;
	move_expect(&m, MOVED);
}

static void all_lanes_lost_in_the_first_round(void **state)
{
	(void)state;
	struct move m;
	move_init(&m);
	SOURCE->faults.drop_after_ops = 1;
	SOURCE->faults.drop_lane = TP_FAULTY_ANY_LANE;
	move_expect(&m, STAYED);
}

static void drop(struct move *m, enum mf_mode mode, enum mf_side at, enum mf_phase phase,
		 uint32_t lane)
{
	move_init(m);
	m->mode = mode;
	m->verify = MF_VERIFY_FULL;
	m->at = at;
	m->phase = phase;
	m->on_phase = move_drop_lanes_at;
	m->side[at == MF_DESTINATION].faults.drop_lane = lane;
	m->peer_timeout_ms = 3000;
}

static void lanes_lost_in_the_last_pass(void **state)
{
	(void)state;
	struct move m;
	drop(&m, MF_MODE_COLD, MF_SOURCE, MF_PHASE_SWITCHOVER, 0);
	move_expect(&m, MOVED);
	drop(&m, MF_MODE_COLD, MF_SOURCE, MF_PHASE_SWITCHOVER, TP_FAULTY_ANY_LANE);
	move_expect(&m, STAYED);
	drop(&m, MF_MODE_COLD, MF_DESTINATION, MF_PHASE_PREPARE, TP_FAULTY_ANY_LANE);
	move_expect(&m, STAYED);
}

static void a_bulk_lane_lost_in_postcopy(void **state)
{
	(void)state;
	struct move m;
	for (enum mf_side at = MF_SOURCE; at <= MF_DESTINATION; at++) {
		drop(&m, MF_MODE_POSTCOPY, at, MF_PHASE_POSTCOPY, 0);
		move_expect(&m, MOVED);
	}
}

/* Faults are not served at once any more, but every page comes: the lane is lost by the first completions, and the
 * others are slowed down until long after. */
static void the_urgent_lane_lost_in_postcopy(void **state)
{
	(void)state;
	struct move m;
	drop(&m, MF_MODE_POSTCOPY, MF_DESTINATION, MF_PHASE_POSTCOPY, LANES);
	DESTINATION->faults.delay_polls = 200;
	move_expect(&m, MOVED);
}

static void all_lanes_lost_in_postcopy(void **state)
{
	(void)state;
	struct move m;
	drop(&m, MF_MODE_POSTCOPY, MF_DESTINATION, MF_PHASE_POSTCOPY, TP_FAULTY_ANY_LANE);
	m.peer_timeout_ms = 1000;
	m.recover_timeout_ms = 1500;
	m.guest = "64M,dirty=8M,threads=2";
	move_expect(&m, PAUSED);
}

/* The connection is taken down with them, and both come back. */
static void all_lanes_lost_in_postcopy_for_a_while(void **state)
{
	(void)state;
	struct move m;
	drop(&m, MF_MODE_POSTCOPY, MF_DESTINATION, MF_PHASE_POSTCOPY, TP_FAULTY_ANY_LANE);
	m.guest = "64M,dirty=8M,threads=2";
	m.on_notice = move_end_of_trouble;
	move_run(&m);
	assert_int_equal(SOURCE->report.recoveries, 1);
	assert_int_equal(DESTINATION->report.recoveries, 1);
	move_check(&m, MOVED);
}

/* Holds COMMIT back until the destination has lost its urgent lane. */
static void wait_for_loss(void *ctx, int port)
{
	struct move *m = ctx;
	uint64_t deadline = base_deadline_ms(20000);
	(void)port;
	while (eng_lanes_alive(m->side[1].session, ENG_URGENT) && base_now_us() < deadline)
		(void)usleep(1000);
}

static void lose_urgent(void *ctx, int port)
{
	struct move *m = ctx;
	atomic_store(&m->side[1].faults.drop_now, true);
	wait_for_loss(ctx, port);
}

/* Nobody would answer the guest's touches: it must not be resumed there. */
static void the_urgent_lane_lost_before_the_commit(void **state)
{
	(void)state;
	struct move m;
	drop(&m, MF_MODE_POSTCOPY, MF_DESTINATION, MF_PHASE_HANDOFF, LANES);
	m.rule.body = WIRE_BODY(COMMIT);
	m.rule.hook = wait_for_loss;
	m.rule.ctx = &m;
	move_expect(&m, STAYED);
	drop(&m, MF_MODE_POSTCOPY, MF_DESTINATION, MF_PHASE_PREPARE, LANES);
	move_expect(&m, STAYED);
	/* after the source last looked, before the destination needs it */
	drop(&m, MF_MODE_POSTCOPY, MF_DESTINATION, MF_PHASE_COUNT, LANES);
	m.rule.body = WIRE_BODY(SWITCHOVER);
	m.rule.hook = lose_urgent;
	m.rule.ctx = &m;
	move_expect(&m, STAYED);
}

static void the_urgent_lane_lost_where_none_is_needed(void **state)
{
	(void)state;
	struct move m;
	drop(&m, MF_MODE_PRECOPY, MF_SOURCE, MF_PHASE_PRECOPY, LANES);
	move_expect(&m, MOVED);
}

static void connections_that_are_refused(void **state)
{
	(void)state;
	for (unsigned k = 0; k < 2; k++) {
		struct move m;
		move_init(&m);
		m.peer_timeout_ms = 3000;
		m.side[k].faults.refuse_connects = m.side[k].faults.refuse_accepts = 1;
		move_expect(&m, STAYED);
	}
}

/* ---- adapters ---- */

static void adapter_callbacks_that_fail(void **state)
{
	static const enum step at_source[] = { STEP_DESCRIBE, STEP_PREPARE, STEP_USERFAULTFD,
					       STEP_PAUSE, STEP_SAVE };
	static const enum step at_destination[] = { STEP_DESCRIBE, STEP_PREPARE, STEP_USERFAULTFD,
						    STEP_FORGET, STEP_LOAD };
	(void)state;
	for (unsigned k = 0; k < 2; k++) {
		const enum step *steps = k ? at_destination : at_source;
		for (unsigned i = 0; i < BASE_ARRAY_LEN(at_source); i++) {
			for (unsigned after = 0; after < 2; after++) {
				struct move m;
				bool only_before =
					steps[i] == STEP_DESCRIBE || steps[i] == STEP_USERFAULTFD;
				if (after && only_before)
					continue;
				move_init(&m);
				m.mode = k ? MF_MODE_POSTCOPY : MF_MODE_HYBRID;
				m.side[k].fail = steps[i];
				m.side[k].fail_after = after;
				move_expect(&m, STAYED);
			}
		}
	}
}

/* The destination owns the guest by then: it stays there, stopped, and the source's never runs. */
static void a_resume_that_fails(void **state)
{
	(void)state;
	struct move m;
	move_init(&m);
	m.mode = MF_MODE_POSTCOPY;
	m.peer_timeout_ms = 2000;
	DESTINATION->fail = STEP_RESUME;
	move_expect(&m, PAUSED);

	move_init(&m);
	/* Every page is there, but nobody has seen the guest run: the source does not end its own. */
	m.mode = MF_MODE_COLD;
	m.peer_timeout_ms = 2000;
	DESTINATION->fail = STEP_RESUME;
	move_expect(&m, PAUSED);
}

/* ---- people ---- */

static void cancel_in_every_phase(void **state)
{
	(void)state;
	for (enum mf_side at = MF_SOURCE; at <= MF_DESTINATION; at++) {
		for (enum mf_phase p = MF_PHASE_CONNECT; p <= MF_PHASE_HANDOFF; p++) {
			struct move m;
			move_init(&m);
			m.on_phase = move_request_at;
			m.at = at;
			m.phase = p;
			m.request = MF_REQUEST_CANCEL;
			move_run(&m);
			assert_int_equal(m.side[at == MF_DESTINATION].result, -MF_ECANCELED);
			move_check(&m, STAYED);
		}
	}
}

static void requests_that_come_early(void **state)
{
	static const enum mf_request requests[] = { MF_REQUEST_CUTOVER, MF_REQUEST_POSTCOPY };
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(requests); i++) {
		struct move m;
		move_init(&m);
		m.mode = MF_MODE_WARM;
		m.verify = MF_VERIFY_FULL;
		m.on_phase = move_request_at;
		m.at = MF_SOURCE;
		m.phase = MF_PHASE_IDLE;
		m.request = requests[i];
		move_expect(&m, MOVED);
	}
}

static void cancel_that_comes_too_late(void **state)
{
	(void)state;
	for (enum mf_side at = MF_SOURCE; at <= MF_DESTINATION; at++) {
		struct move m;
		move_init(&m);
		m.mode = MF_MODE_POSTCOPY;
		m.verify = MF_VERIFY_FULL;
		m.on_phase = move_request_at;
		m.at = at;
		m.phase = MF_PHASE_POSTCOPY;
		m.request = MF_REQUEST_CANCEL;
		move_expect(&m, MOVED);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(plain_moves),
		cmocka_unit_test(regions_of_several_pieces),
		cmocka_unit_test(huge_pages),
		cmocka_unit_test(posts_and_completions_that_fail),
		cmocka_unit_test(reads_that_fail_together),
		cmocka_unit_test(full_queues_and_short_batches),
		cmocka_unit_test(one_lane_lost_in_the_first_round),
		cmocka_unit_test(all_lanes_lost_in_the_first_round),
		cmocka_unit_test(lanes_lost_in_the_last_pass),
		cmocka_unit_test(a_bulk_lane_lost_in_postcopy),
		cmocka_unit_test(the_urgent_lane_lost_in_postcopy),
		cmocka_unit_test(all_lanes_lost_in_postcopy),
		cmocka_unit_test(all_lanes_lost_in_postcopy_for_a_while),
		cmocka_unit_test(the_urgent_lane_lost_before_the_commit),
		cmocka_unit_test(the_urgent_lane_lost_where_none_is_needed),
		cmocka_unit_test(connections_that_are_refused),
		cmocka_unit_test(adapter_callbacks_that_fail),
		cmocka_unit_test(a_resume_that_fails),
		cmocka_unit_test(cancel_in_every_phase),
		cmocka_unit_test(requests_that_come_early),
		cmocka_unit_test(cancel_that_comes_too_late),
	};
	if (getenv("ONLY"))
		cmocka_set_test_filter(getenv("ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
