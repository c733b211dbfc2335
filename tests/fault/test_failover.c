/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Moves whose better transport dies, and that go on over TCP; and what comes back.  The better one is the faulty
 * wrapper around TCP, disguised; or, where $MEMFERRY_TEST_HOST names an address of an RDMA device (tests/vm), around
 * verbs.
 */
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
#ifdef MF_HAVE_VERBS
#include "transport/verbs/verbs_priv.h"
#endif

#define SOURCE      (&m.side[0])
#define DESTINATION (&m.side[1])
#define LANES       2u

/* Each in a subnet of its own. */
static int two_devices(struct tp_path *ret, unsigned cap)
{
	for (unsigned i = 0; i < 2 && i < cap; i++) {
		ret[i] = (struct tp_path){ .prefix = 32, .up = true, .numa_node = -1 };
		(void)snprintf(ret[i].device, sizeof(ret[i].device), i ? "two" : "one");
		(void)snprintf(ret[i].address, sizeof(ret[i].address),
			       i ? "127.0.0.2" : "127.0.0.1");
	}
	return 2;
}

static bool is_real(void)
{
	return getenv("MEMFERRY_TEST_HOST") != NULL;
}

static void init(struct move *m, enum mf_mode mode)
{
	move_init(m);
	m->mode = mode;
	m->verify = MF_VERIFY_FULL;
	if (is_real())
		m->inner = "verbs";
	else
		m->device_paths = move_one_device;
	/* One given lane, or all of them. */
	for (int i = 0; i < 2; i++)
		m->side[i].faults.drop_lane = TP_FAULTY_ANY_LANE;
}

/* It says that it went on over TCP, and why; the transport that was chosen first was the other. */
static void expect_side_on_tcp(const struct mf_report *rep)
{
	assert_string_equal(rep->transport, "tcp");
	assert_non_null(strstr(rep->transport_reason, "verbs was lost"));
	assert_string_equal(rep->rails[0].transport, "verbs");
	assert_true(rep->rails[0].joined && rep->rails[0].lost);
	assert_true(rep->rails[0].reason[0]);
	assert_true(rep->rails[1].joined && !rep->rails[1].lost);
}

static void expect_tcp(struct move *m)
{
	for (int i = 0; i < 2; i++)
		expect_side_on_tcp(&m->side[i].report);
}

/* Where a move takes longer than a rail's first pause (RETRY_FIRST_MS), it may be back before the end; in its very last
 * moments, on one side only. */
static void expect_tcp_or_back(struct move *m)
{
	for (int i = 0; i < 2; i++) {
		const struct mf_report *rep = &m->side[i].report;
		if (strcmp(rep->transport, "verbs") != 0) {
			expect_side_on_tcp(rep);
			continue;
		}
		assert_non_null(strstr(rep->transport_reason, "lost for a while"));
		assert_true(rep->rails[0].joined && !rep->rails[0].lost && rep->rails[0].retries);
	}
}

static uint64_t bytes_over(const struct mf_report *rep, uint32_t rail)
{
	uint64_t bytes = 0;
	for (uint32_t i = 0; i < rep->n_lanes; i++) {
		if (rep->lanes[i].rail == rail)
			bytes += rep->lanes[i].bytes_written + rep->lanes[i].bytes_read;
	}
	return bytes;
}

static void the_better_one_is_used(void **state)
{
	static const enum mf_mode modes[] = { MF_MODE_HYBRID, MF_MODE_POSTCOPY, MF_MODE_COLD };
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(modes); i++) {
		struct move m;
		init(&m, modes[i]);
		move_expect(&m, MOVED);
		assert_string_equal(SOURCE->report.transport, "verbs");
		assert_true(bytes_over(&SOURCE->report, 0) + bytes_over(&DESTINATION->report, 0) >
			    0);
		assert_int_equal(
			bytes_over(&SOURCE->report, 1) + bytes_over(&DESTINATION->report, 1), 0);
	}
}

static void lost_in_a_round(void **state)
{
	static const uint64_t after[] = { 1, 2, 3, 7 };
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(after); i++) {
		struct move m;
		init(&m, i % 2 ? MF_MODE_PRECOPY : MF_MODE_HYBRID);
		SOURCE->faults.drop_after_ops = after[i];
		move_expect(&m, MOVED);
		/* One that is lost by its first operation was never joined. */
		if (after[i] > 1)
			expect_tcp(&m);
		else
			assert_string_equal(SOURCE->report.transport, "tcp");
	}
}

static void lost_at_phases(void **state)
{
	static const struct {
		enum mf_mode mode;
		enum mf_side at;
		enum mf_phase phase;
	} cases[] = {
		{ MF_MODE_COLD, MF_SOURCE, MF_PHASE_SWITCHOVER },
		{ MF_MODE_POSTCOPY, MF_SOURCE, MF_PHASE_SWITCHOVER },
		{ MF_MODE_POSTCOPY, MF_DESTINATION, MF_PHASE_SWITCHOVER },
		{ MF_MODE_POSTCOPY, MF_DESTINATION, MF_PHASE_HANDOFF },
		{ MF_MODE_POSTCOPY, MF_DESTINATION, MF_PHASE_POSTCOPY },
		{ MF_MODE_POSTCOPY, MF_SOURCE, MF_PHASE_POSTCOPY },
	};
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(cases); i++) {
		struct move m;
		print_message("%s, %s, %s\n", mf_mode_name(cases[i].mode),
			      cases[i].at == MF_SOURCE ? "source" : "destination",
			      mf_phase_name(cases[i].phase));
		init(&m, cases[i].mode);
		m.guest = "64M,dirty=8M,threads=2";
		m.at = cases[i].at;
		m.phase = cases[i].phase;
		m.on_phase = move_drop_lanes_at;
		move_expect(&m, MOVED);
		/* A passive side may lose its lanes when all is over. */
		if (cases[i].phase != MF_PHASE_POSTCOPY || cases[i].at == MF_DESTINATION)
			expect_tcp(&m);
	}
}

/* The interleaving: the source looked at its lanes, paused, and sent the bitmap; the destination's lanes die before it
 * arms the pager, or while the device state is loading and touches are under way on the urgent lane. */
static void lose_now(void *ctx, int port)
{
	struct move *m = ctx;
	(void)port;
	atomic_store(&m->side[1].faults.drop_now, true);
}

static void lost_before_the_commit(void **state)
{
	static const Mf__Wire__Control__BodyCase bodies[] = { WIRE_BODY(SWITCHOVER),
							      WIRE_BODY(BITMAP), WIRE_BODY(STATE),
							      WIRE_BODY(READY), WIRE_BODY(COMMIT) };
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(bodies); i++) {
		for (uint32_t lane = LANES; lane <= LANES + 1; lane++) {
			struct move m;
			init(&m, MF_MODE_POSTCOPY);
			/* only the urgent one, or all */
			DESTINATION->faults.drop_lane = lane == LANES ? LANES : TP_FAULTY_ANY_LANE;
			m.rule.body = bodies[i];
			m.rule.hook = lose_now;
			m.rule.ctx = &m;
			move_expect(&m, MOVED);
		}
	}
}

/* Touches whose reads were under way on the lane that dies are served by the next one. */
static void touches_under_way_are_not_forgotten(void **state)
{
	(void)state;
	for (unsigned i = 1; i <= 4; i++) {
		struct move m;
		init(&m, MF_MODE_POSTCOPY);
		m.guest = "64M,dirty=64M,threads=4";
		DESTINATION->faults.drop_lane = LANES;
		DESTINATION->faults.drop_after_ops = i;
		DESTINATION->faults.delay_polls = 50;
		move_expect(&m, MOVED);
	}
}

/* Lanes of the other side may be waiting for just that piece. */
static void a_registration_that_fails(void **state)
{
	(void)state;
	if (is_real()) /* the machine has no room for two pieces */
		skip();
	for (unsigned i = 0; i < 4; i++) {
		struct move m;
		init(&m, i / 2 ? MF_MODE_POSTCOPY : MF_MODE_PRECOPY);
		m.guest = "1100M,regions=1,zero=98,dirty=1M";
		/* The source passes over a second piece, in which there is nothing. */
		m.side[i % 2].faults.fail_reg_at = 1 + i % 2;
		move_expect(&m, MOVED);
		/* It may have come back already: only one registration failed. */
		assert_non_null(strstr(SOURCE->report.transport_reason, "lost"));
		assert_non_null(strstr(SOURCE->report.transport_reason, "memory"));
	}
}

static void end_when_back(struct side *f, const char *text)
{
	if (strstr(text, "was lost"))
		atomic_store(&f->faults.drop_after_ops, 0);
	if (f->which == MF_SOURCE && strstr(text, "is back"))
		mf_session_request(f->session, f->move->request);
}

static void a_rail_comes_back_in_rounds(void **state)
{
	(void)state;
	struct move m;
	init(&m, MF_MODE_WARM);
	SOURCE->faults.drop_after_ops = 5;
	m.on_notice = end_when_back;
	m.request = MF_REQUEST_CUTOVER;
	move_expect(&m, MOVED);
	for (int i = 0; i < 2; i++) {
		const struct mf_report *rep = &m.side[i].report;
		assert_string_equal(rep->transport, "verbs");
		assert_non_null(strstr(rep->transport_reason, "lost for a while"));
		assert_false(rep->rails[0].lost);
	}
	assert_true(bytes_over(&SOURCE->report, 0) > 0 && bytes_over(&SOURCE->report, 1) > 0);
}

#ifdef MF_HAVE_VERBS
/* What a device does after an error of its own.  At the side that works in that phase. */
static void break_queue_pairs(struct side *f, enum mf_phase phase)
{
	struct mf_session *s = f->session;
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };
	if (f->which != f->move->at || phase != f->move->phase)
		return;
	for (uint32_t i = 0; i < eng_lanes_per_rail(s); i++) {
		struct vrb_lane *lane = BASE_CONTAINER_OF(tp_faulty_inner(s->rail[0].lane[i].tp),
							  struct vrb_lane, base);
		struct ibv_qp *qp = lane->qp;
		if (qp)
			assert_int_equal(ibv_modify_qp(qp, &attr, IBV_QP_STATE), 0);
	}
}

static void queue_pairs_in_error(void **state)
{
	static const struct {
		enum mf_mode mode;
		enum mf_side at;
		enum mf_phase phase;
	} cases[] = {
		{ MF_MODE_PRECOPY, MF_SOURCE, MF_PHASE_PRECOPY },
		{ MF_MODE_COLD, MF_SOURCE, MF_PHASE_SWITCHOVER },
		{ MF_MODE_POSTCOPY, MF_DESTINATION, MF_PHASE_HANDOFF },
		{ MF_MODE_POSTCOPY, MF_DESTINATION, MF_PHASE_POSTCOPY },
	};
	(void)state;
	if (!is_real()) {
		print_message("SKIP: MEMFERRY_TEST_HOST names no address of an RDMA device\n");
		skip();
	}
	for (unsigned i = 0; i < BASE_ARRAY_LEN(cases); i++) {
		struct move m;
		init(&m, cases[i].mode);
		m.guest = "64M,dirty=1M";
		m.at = cases[i].at;
		m.phase = cases[i].phase;
		m.on_phase = break_queue_pairs;
		move_expect(&m, MOVED);
		expect_tcp_or_back(&m);
	}
}
#endif

static void two_rails_share_the_work(void **state)
{
	static const enum mf_mode modes[] = { MF_MODE_COLD, MF_MODE_POSTCOPY };
	(void)state;
	if (is_real()) /* tests/vm/test_failover.py has two */
		skip();
	for (unsigned i = 0; i < BASE_ARRAY_LEN(modes); i++) {
		struct move m;
		init(&m, modes[i]);
		m.device_paths = two_devices;
		m.guest = "256M,dirty=1M";
		move_expect(&m, MOVED);
		const struct mf_report *active =
			modes[i] == MF_MODE_COLD ? &SOURCE->report : &DESTINATION->report;
		assert_int_equal(active->n_rails, 3);
		assert_true(bytes_over(active, 0) > 0 && bytes_over(active, 1) > 0);
		assert_int_equal(bytes_over(active, 2), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_better_one_is_used),
		cmocka_unit_test(lost_in_a_round),
		cmocka_unit_test(lost_at_phases),
		cmocka_unit_test(lost_before_the_commit),
		cmocka_unit_test(touches_under_way_are_not_forgotten),
		cmocka_unit_test(a_registration_that_fails),
		cmocka_unit_test(a_rail_comes_back_in_rounds),
		cmocka_unit_test(two_rails_share_the_work),
#ifdef MF_HAVE_VERBS
		cmocka_unit_test(queue_pairs_in_error),
#endif
	};
	if (!tp_find("verbs")) {
		print_message("SKIP: this build has no RDMA verbs to stand in for\n");
		return 77;
	}
	/* librdmacm opens the device at its first use and keeps it: that is no leak of ours. */
	const struct tp_domain_params params = { .local = getenv("MEMFERRY_TEST_HOST"),
						 .depth = 1 };
	struct tp_domain *domain;
	if (is_real() && tp_domain_open(tp_find("verbs"), &params, &domain, NULL) == 0)
		tp_domain_close(domain);
	if (getenv("ONLY"))
		cmocka_set_test_filter(getenv("ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
