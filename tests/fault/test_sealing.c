/* SPDX-License-Identifier: BSD-2-Clause */
/* Moves whose pages are sealed: undisturbed, with what is sealed changed on its way, and with lanes and connections lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "move.h"

#define SOURCE      (&m.side[0])
#define DESTINATION (&m.side[1])
#define KEY         "00112233445566778899aabbccddeeff"

static void seal(struct move *m, enum mf_mode mode, enum mf_sealing sealing)
{
	move_init(m);
	m->mode = mode;
	m->verify = MF_VERIFY_FULL;
	m->peer_timeout_ms = 10000;
	for (int i = 0; i < 2; i++) {
		m->side[i].key = KEY;
		m->side[i].sealing = sealing;
		m->side[i].faults.drop_lane = TP_FAULTY_ANY_LANE;
	}
}

static void expect_sealed(struct move *m, enum mf_sealing sealing)
{
	for (int i = 0; i < 2; i++)
		assert_int_equal(m->side[i].report.sealing, sealing);
}

static void sealed_moves(void **state)
{
	static const enum mf_mode modes[] = { MF_MODE_HYBRID, MF_MODE_PRECOPY, MF_MODE_POSTCOPY,
					      MF_MODE_COLD };
	(void)state;
	for (unsigned i = 0; i < 2 * BASE_ARRAY_LEN(modes); i++) {
		enum mf_sealing sealing = i % 2 ? MF_SEALING_ENCRYPT : MF_SEALING_INTEGRITY;
		struct move m;
		seal(&m, modes[i / 2], sealing);
		move_expect(&m, MOVED);
		expect_sealed(&m, sealing);
	}
}

/* More than the destination asks for is right; less, and what it does not have the keys for, is not. */
static void the_source_asks_and_the_destination_may_refuse(void **state)
{
	struct move m;
	(void)state;
	seal(&m, MF_MODE_PRECOPY, MF_SEALING_ENCRYPT);
	DESTINATION->sealing = MF_SEALING_INTEGRITY;
	move_expect(&m, MOVED);
	expect_sealed(&m, MF_SEALING_ENCRYPT);
	seal(&m, MF_MODE_PRECOPY, MF_SEALING_ENCRYPT);
	DESTINATION->sealing = MF_SEALING_NONE;
	move_expect(&m, MOVED);
	expect_sealed(&m, MF_SEALING_ENCRYPT);

	seal(&m, MF_MODE_PRECOPY, MF_SEALING_INTEGRITY);
	DESTINATION->sealing = MF_SEALING_ENCRYPT;
	move_run(&m);
	for (int i = 0; i < 2; i++)
		assert_non_null(strstr(m.side[i].error.msg, "takes pages with --encrypt only"));
	move_check(&m, STAYED);
}

/* Each lane is the source's to write on in rounds: what is changed there costs a lane, and nothing of the guest. */
static void changed_in_a_round(void **state)
{
	static const uint64_t at[] = { 8, 9, 20, 60 };
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(at); i++) {
		struct move m;
		seal(&m, i % 2 ? MF_MODE_PRECOPY : MF_MODE_COLD,
		     i / 2 ? MF_SEALING_ENCRYPT : MF_SEALING_INTEGRITY);
		SOURCE->faults.corrupt_send_at = at[i];
		move_run(&m);
		assert_int_equal(atomic_load(&SOURCE->faults.faults), 1);
		move_check(&m, MOVED);
	}
}

static void corrupt_from_here(struct side *f, enum mf_phase phase)
{
	if (f->which == f->move->at && phase == f->move->phase)
		atomic_store(&f->faults.corrupt_send_at, atomic_load(&f->faults.sends) + 5);
}

/* The source's are pages, the destination's are what it asks for. */
static void changed_in_postcopy(void **state)
{
	(void)state;
	for (enum mf_side at = MF_SOURCE; at <= MF_DESTINATION; at++) {
		struct move m;
		seal(&m, MF_MODE_POSTCOPY, MF_SEALING_ENCRYPT);
		m.at = at;
		m.phase = MF_PHASE_POSTCOPY;
		m.on_phase = corrupt_from_here;
		m.guest = "64M,dirty=8M,threads=2";
		move_run(&m);
		assert_true(atomic_load(&m.side[at == MF_DESTINATION].faults.faults) > 0);
		move_check(&m, MOVED);
	}
}

static void posts_that_fail(void **state)
{
	static const uint64_t at[] = { 7, 30, 100 };
	(void)state;
	for (unsigned i = 0; i < 2 * BASE_ARRAY_LEN(at); i++) {
		struct move m;
		seal(&m, i % 2 ? MF_MODE_PRECOPY : MF_MODE_POSTCOPY, MF_SEALING_ENCRYPT);
		m.side[i % 2 == 0].faults.fail_post_at = at[i / 2] + 6;
		move_expect(&m, MOVED);
	}
}

/* New connections, with new keys. */
static void all_lanes_lost_in_postcopy_for_a_while(void **state)
{
	struct move m;
	(void)state;
	seal(&m, MF_MODE_POSTCOPY, MF_SEALING_ENCRYPT);
	m.at = MF_DESTINATION;
	m.phase = MF_PHASE_POSTCOPY;
	m.on_phase = move_drop_lanes_at;
	m.on_notice = move_end_of_trouble;
	m.guest = "64M,dirty=8M,threads=2";
	move_run(&m);
	assert_int_equal(SOURCE->report.recoveries, 1);
	expect_sealed(&m, MF_SEALING_ENCRYPT);
	move_check(&m, MOVED);
}

static void the_connection_lost_in_postcopy(void **state)
{
	struct move m;
	(void)state;
	seal(&m, MF_MODE_POSTCOPY, MF_SEALING_ENCRYPT);
	m.guest = "96M,dirty=8M,threads=2";
	m.side[1].faults.delay_polls = 20;
	m.at = MF_DESTINATION;
	m.phase = MF_PHASE_POSTCOPY;
	m.on_phase = move_cut_channel_at;
	move_run(&m);
	assert_int_equal(SOURCE->report.recoveries, 1);
	assert_int_equal(DESTINATION->report.recoveries, 1);
	move_check(&m, MOVED);
}

/* What is fallen back on is sealed as well. */
static void lost_devices(void **state)
{
	static const enum mf_mode modes[] = { MF_MODE_PRECOPY, MF_MODE_POSTCOPY };
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(modes); i++) {
		struct move m;
		seal(&m, modes[i], MF_SEALING_ENCRYPT);
		m.device_paths = move_one_device;
		m.at = i ? MF_DESTINATION : MF_SOURCE;
		m.phase = i ? MF_PHASE_POSTCOPY : MF_PHASE_PRECOPY;
		m.on_phase = move_drop_lanes_at;
		move_run(&m);
		assert_string_equal(SOURCE->report.transport, "tcp");
		expect_sealed(&m, MF_SEALING_ENCRYPT);
		move_check(&m, MOVED);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sealed_moves),
		cmocka_unit_test(the_source_asks_and_the_destination_may_refuse),
		cmocka_unit_test(changed_in_a_round),
		cmocka_unit_test(changed_in_postcopy),
		cmocka_unit_test(posts_that_fail),
		cmocka_unit_test(all_lanes_lost_in_postcopy_for_a_while),
		cmocka_unit_test(the_connection_lost_in_postcopy),
		cmocka_unit_test(lost_devices),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
