/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Post-copy into private memory, where what arrives is copied, over a transport that fails: a slot must not be used again before
 * its bytes are, and a page that was given back must come all the same.
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

#include "core/engine.h"
#include "tests/library/inside.h"
#include "transport/faulty/faulty.h"

struct side {
	struct inside guest;
	struct tp_faulty_plan faults;
	const struct tp_ops *tp;
	struct mf_session *session;
	pthread_t thread;
	int result;
	struct mf_error error;
};

struct move {
	struct side side[2];
	char run_dir[64];
	char address[128];
	pthread_mutex_t lock;
	pthread_cond_t listens;
};

static void on_event(void *ctx, const struct mf_event *event)
{
	struct move *m = ctx;
	if (event->type != MF_EVENT_LISTENING)
		return;
	pthread_mutex_lock(&m->lock);
	(void)snprintf(m->address, sizeof(m->address), "%s", event->text);
	pthread_cond_broadcast(&m->listens);
	pthread_mutex_unlock(&m->lock);
}

static void *run(void *arg)
{
	struct side *side = arg;
	side->result = mf_session_run(side->session, &side->error);
	return NULL;
}

static void init(struct move *m)
{
	*m = (struct move){ 0 };
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->listens, NULL);
	(void)snprintf(m->run_dir, sizeof(m->run_dir), "/tmp/mf-private-XXXXXX");
	assert_non_null(mkdtemp(m->run_dir));
}

static void start(struct move *m, enum mf_side which, const char *address)
{
	struct side *side = &m->side[which];
	struct mf_session_params params = {
		.size = sizeof(params),
		.side = which,
		.address = address,
		.guest = { &inside_ops, &side->guest },
		.run_dir = m->run_dir,
		.mode = MF_MODE_POSTCOPY,
		.verify = MF_VERIFY_FULL,
		.transport = "tcp",
		.insecure = true,
		.on_event = on_event,
		.ctx = m,
	};
	assert_int_equal(mf_session_create(&params, &side->session, &side->error), 0);
	side->tp = tp_faulty_create(tp_find("tcp"), &side->faults);
	assert_non_null(side->tp);
	side->session->tp_given = side->tp;
	assert_int_equal(pthread_create(&side->thread, NULL, run, side), 0);
}

static void run_move(struct move *m)
{
	for (int i = 0; i < 2; i++)
		inside_open(&m->side[i].guest, INSIDE_PRIVATE);
	inside_start(&m->side[MF_SOURCE].guest);
	(void)usleep(100000); /* there is something to be moved */
	start(m, MF_DESTINATION, "127.0.0.1:0");
	pthread_mutex_lock(&m->lock);
	while (!m->address[0])
		pthread_cond_wait(&m->listens, &m->lock);
	pthread_mutex_unlock(&m->lock);
	start(m, MF_SOURCE, m->address);
	for (int i = 0; i < 2; i++)
		pthread_join(m->side[i].thread, NULL);
}

static void finish(struct move *m)
{
	for (int i = 0; i < 2; i++) {
		mf_session_destroy(m->side[i].session);
		tp_faulty_destroy(m->side[i].tp);
		inside_close(&m->side[i].guest);
	}
	assert_int_equal(rmdir(m->run_dir), 0);
	pthread_mutex_destroy(&m->lock);
	pthread_cond_destroy(&m->listens);
}

/* Lanes that the destination lost. */
static unsigned expect_moved(struct move *m)
{
	unsigned lost = 0;
	struct side *dst = &m->side[MF_DESTINATION];
	run_move(m);
	for (int i = 0; i < 2; i++) {
		if (m->side[i].result)
			fail_msg("side %d: %s", i, m->side[i].error.msg);
	}
	const struct mf_report *report = mf_session_report(dst->session);
	assert_true(report->postcopy.pulled_pages > 0);
	assert_int_equal(report->verify_mismatches, 0);
	assert_true(inside_runs(&dst->guest));
	assert_false(inside_runs(&m->side[MF_SOURCE].guest));
	(void)usleep(50000);
	assert_int_equal(inside_check(&dst->guest), 0);
	for (uint32_t i = 0; i < report->n_lanes; i++)
		lost += report->lanes[i].lost;
	finish(m);
	return lost;
}

static void completions_that_come_late_and_posts_that_do_not_fit(void **state)
{
	static struct move m;
	(void)state;
	init(&m);
	m.side[MF_DESTINATION].faults.delay_polls = 3;
	m.side[MF_DESTINATION].faults.eagain_every = 3;
	m.side[MF_DESTINATION].faults.accept_one = true;
	expect_moved(&m);
}

/* One bulk lane ends in the middle: its pages are missing again, and the other lanes bring them. */
static void a_lane_that_is_lost(void **state)
{
	static const uint64_t after[] = { 1, 2, 5, 20, 60 };
	unsigned lost = 0;
	(void)state;
	for (size_t i = 0; i < sizeof(after) / sizeof(after[0]); i++) {
		static struct move m;
		init(&m);
		m.side[MF_DESTINATION].faults.drop_lane = (uint32_t)i % 2;
		m.side[MF_DESTINATION].faults.drop_after_ops = after[i];
		lost += expect_moved(&m);
	}
	assert_true(lost > 0);
}

static void a_read_that_fails(void **state)
{
	(void)state;
	for (uint64_t at = 2; at < 40; at += 9) {
		static struct move m;
		init(&m);
		m.side[MF_DESTINATION].faults.fail_wc_at = at;
		run_move(&m);
		struct side *src = &m.side[MF_SOURCE], *dst = &m.side[MF_DESTINATION];
		const struct mf_report *report = mf_session_report(dst->session);
		/* Before the commit it may have cost the move, and never the guest. */
		if (report->outcome == MF_OUTCOME_COMPLETED) {
			assert_true(inside_runs(&dst->guest));
			assert_int_equal(report->verify_mismatches, 0);
			assert_int_equal(inside_check(&dst->guest), 0);
		} else {
			assert_int_equal(report->outcome, MF_OUTCOME_ABORTED);
			assert_false(inside_runs(&dst->guest));
			assert_true(inside_runs(&src->guest));
			assert_int_equal(inside_check(&src->guest), 0);
		}
		assert_true(atomic_load(&m.side[MF_DESTINATION].faults.faults) > 0);
		finish(&m);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(completions_that_come_late_and_posts_that_do_not_fit),
		cmocka_unit_test(a_lane_that_is_lost),
		cmocka_unit_test(a_read_that_fails),
	};
	if (getenv("ONLY"))
		cmocka_set_test_filter(getenv("ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
