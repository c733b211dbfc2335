/* SPDX-License-Identifier: BSD-2-Clause */
/* The fault injector does what its plan says, and otherwise keeps the transport's laws. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/conformance/tp_rig.h"
#include "transport/faulty/faulty.h"

#define KIB 1024u

static struct tp_faulty_plan plan;
static struct rig rig;
static struct ledger ledger;

static int set_up(void **state)
{
	const struct tp_ops *inner = tp_find("tcp");

	memset(&plan, 0, sizeof(plan));
	memset(&ledger, 0, sizeof(ledger));
	const struct tp_ops *ops = tp_faulty_create(inner, &plan);
	if (!ops)
		return -1;
	*state = (void *)ops;
	/* Faults at the near end only: what it counts is what the test does. */
	const struct rig_params params = { .near_ops = ops,
					   .far_ops = inner,
					   .depth = 16,
					   .n_lanes = 2,
					   .bytes = 1024 * KIB,
					   .far_access = TP_REMOTE_WRITE | TP_REMOTE_READ };
	rig_open(&rig, &params);
	return 0;
}

static int tear_down(void **state)
{
	rig_close(&rig);
	tp_faulty_destroy(*state);
	return 0;
}

static struct tp_xfer xfer(uint64_t cookie)
{
	return rig_xfer(&rig, 0, 0, KIB, cookie);
}

static void the_planned_post_fails(void **state)
{
	(void)state;
	atomic_store(&plan.fail_post_at, 3);
	atomic_store(&plan.fail_post_code, -ENODEV);
	struct tp_xfer x = xfer(0);
	assert_int_equal(tp_post_write(rig.lane[0], &x, 1), 1);
	x.cookie = 1;
	assert_int_equal(tp_post_read(rig.lane[0], &x, 1), 1);
	assert_int_equal(tp_post_flush(rig.lane[0], 7), -ENODEV);
	assert_int_equal(tp_post_flush(rig.lane[0], 2), 0);
	ledger_collect(&ledger, rig.lane[0], 3);
	assert_int_equal(ledger.n_failed, 0);
	assert_int_equal(ledger.seen[7], 0);
	assert_int_equal(atomic_load(&plan.posts), 4);
	assert_int_equal(atomic_load(&plan.faults), 1);
}

static void every_kth_post_has_to_come_again(void **state)
{
	unsigned refused = 0;

	(void)state;
	atomic_store(&plan.eagain_every, 3);
	for (unsigned i = 0; i < 12; i++) {
		struct tp_xfer x = xfer(i);
		int ret = tp_post_write(rig.lane[0], &x, 1);
		assert_int_equal(ret, (i + 1) % 3 ? 1 : -EAGAIN);
		refused += ret < 0;
	}
	assert_int_equal(refused, 4);
	ledger_collect(&ledger, rig.lane[0], 8);
	assert_int_equal(ledger.n_failed, 0);
}

static void batches_are_cut_to_one(void **state)
{
	struct tp_xfer x[8];

	(void)state;
	atomic_store(&plan.accept_one, true);
	for (unsigned i = 0; i < 8; i++)
		x[i] = xfer(i);
	assert_int_equal(tp_post_write(rig.lane[0], x, 8), 1);
	assert_int_equal(tp_post_write(rig.lane[0], x + 1, 1), 1);
	ledger_post(&ledger, rig.lane[0], x + 2, 6, tp_post_write);
	ledger_collect(&ledger, rig.lane[0], 8);
	assert_int_equal(ledger.n_failed, 0);
}

static void planned_completions_fail(void **state)
{
	(void)state;
	atomic_store(&plan.fail_wc_at, 2);
	atomic_store(&plan.fail_wc_every, 5);
	atomic_store(&plan.fail_wc_code, -ETIME);
	for (unsigned i = 0; i < 10; i++) {
		struct tp_xfer x = xfer(i);
		ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
		ledger_collect(&ledger, rig.lane[0], i + 1);
		bool planned = i == 1 || i == 4 || i == 9;
		assert_int_equal(ledger.status[i], planned ? -ETIME : 0);
	}
	assert_int_equal(atomic_load(&plan.completions), 10);
}

static void completions_come_late(void **state)
{
	(void)state;
	atomic_store(&plan.delay_polls, 10);
	/* More than depth in all: those that are held back count as in flight. */
	unsigned accepted = 0;
	for (;;) {
		struct tp_xfer x = xfer(accepted);
		int ret = tp_post_write(rig.lane[0], &x, 1);
		if (ret == -EAGAIN)
			break;
		assert_int_equal(ret, 1);
		accepted++;
	}
	assert_int_equal(accepted, 16);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(ledger_poll(&ledger, rig.lane[0], 16), 0);
	struct tp_xfer x = xfer(100);
	assert_int_equal(tp_post_write(rig.lane[0], &x, 1), -EAGAIN);
	ledger_collect(&ledger, rig.lane[0], 16);
	assert_int_equal(ledger.n_failed, 0);
	/* Turned off in the middle, nothing is lost. */
	for (unsigned i = 0; i < 8; i++) {
		x.cookie = 100 + i;
		ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
	}
	assert_int_equal(ledger_poll(&ledger, rig.lane[0], 16), 0);
	atomic_store(&plan.delay_polls, 0);
	ledger_collect(&ledger, rig.lane[0], 24);
}

static void late_completions_come_before_the_lanes_failure(void **state)
{
	(void)state;
	atomic_store(&plan.delay_polls, 5);
	for (unsigned i = 0; i < 8; i++) {
		struct tp_xfer x = xfer(i);
		ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_read);
	}
	tp_lane_shutdown(rig.lane[0]);
	assert_true(ledger_collect_failure(&ledger, rig.lane[0]) < 0);
	assert_int_equal(ledger.n_done, 8);
}

static void connections_are_refused_as_often_as_planned(void **state)
{
	struct tp_listener *listener;
	struct tp_lane *lane = NULL;
	struct mf_error err = { 0 };
	uint64_t deadline = base_deadline_ms(RIG_PATIENCE_MS);

	(void)state;
	atomic_store(&plan.refuse_connects, 2);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(
			tp_connect(rig.near_domain, rig.addr, rig.token, 2, deadline, &lane, &err),
			-ECONNREFUSED);
	assert_int_equal(err.code, -ECONNREFUSED);
	rig_add_lane(&rig, 2);

	assert_int_equal(tp_listen(rig.near_domain, "127.0.0.1:0", &listener, NULL), 0);
	atomic_store(&plan.refuse_accepts, 1);
	assert_int_equal(tp_accept(listener, rig.token, deadline, &lane, NULL), -ECONNREFUSED);
	assert_int_equal(tp_accept(listener, rig.token, base_now_us(), &lane, NULL), -ETIMEDOUT);
	tp_listener_close(listener);
	assert_int_equal(atomic_load(&plan.faults), 3);
}

static void a_lane_is_dropped_after_n_operations(void **state)
{
	static struct ledger other;

	(void)state;
	memset(&other, 0, sizeof(other));
	atomic_store(&plan.drop_lane, 0);
	atomic_store(&plan.drop_after_ops, 5);
	for (unsigned i = 0; i < 5; i++) {
		struct tp_xfer x = rig_xfer(&rig, 64 * KIB, 64 * KIB, KIB, i);
		assert_int_equal(tp_post_read(rig.lane[0], &x, 1), 1);
		x = xfer(i);
		ledger_post(&other, rig.lane[1], &x, 1, tp_post_write);
	}
	struct tp_xfer x = xfer(5);
	assert_true(tp_post_read(rig.lane[0], &x, 1) < 0);
	assert_true(ledger_collect_failure(&ledger, rig.lane[0]) < 0);
	assert_int_equal(ledger.n_done, 5);
	ledger_flush(&other, rig.lane[1], 10);
	assert_int_equal(other.n_done, 6);
	assert_int_equal(atomic_load(&plan.faults), 1);
}

static void a_lane_is_dropped_on_command(void **state)
{
	(void)state;
	atomic_store(&plan.drop_lane, 1);
	struct tp_xfer x = rig_xfer(&rig, 0, 64 * KIB, KIB, 0);
	ledger_post(&ledger, rig.lane[1], &x, 1, tp_post_write);
	ledger_collect(&ledger, rig.lane[1], 1);
	atomic_store(&plan.drop_now, true);
	assert_true(ledger_collect_failure(&ledger, rig.lane[1]) < 0);
	x = xfer(1);
	ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
	ledger_flush(&ledger, rig.lane[0], 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(the_planned_post_fails, set_up, tear_down),
		cmocka_unit_test_setup_teardown(every_kth_post_has_to_come_again, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(batches_are_cut_to_one, set_up, tear_down),
		cmocka_unit_test_setup_teardown(planned_completions_fail, set_up, tear_down),
		cmocka_unit_test_setup_teardown(completions_come_late, set_up, tear_down),
		cmocka_unit_test_setup_teardown(late_completions_come_before_the_lanes_failure,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(connections_are_refused_as_often_as_planned, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_lane_is_dropped_after_n_operations, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_lane_is_dropped_on_command, set_up, tear_down),
	};

	if (!tp_find("tcp")) {
		(void)printf("SKIP: no transport was built that could be made faulty\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
