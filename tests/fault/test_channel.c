/* SPDX-License-Identifier: BSD-2-Clause */
/* Moves whose control channel is cut, falls silent, or says what it should not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "core/engine.h"
#include "move.h"

#define SOURCE      (&m.side[0])
#define DESTINATION (&m.side[1])

static void act_at(struct move *m, enum mf_mode mode, Mf__Wire__Control__BodyCase body,
		   enum relay_action action)
{
	move_init(m);
	m->mode = mode;
	m->verify = MF_VERIFY_FULL;
	m->rule.body = body;
	m->rule.action = action;
	/* Silence has to be waited for, and so has a source that never asks; but no message may seem lost that is
	 * only late, where that changes the end. */
	bool is_late = body == WIRE_BODY(COMMIT) || body == WIRE_BODY(RUNNING) ||
		       body == WIRE_BODY(DONE) || body == WIRE_BODY(BYE);
	m->peer_timeout_ms = action == RELAY_SILENCE || !is_late ? 1500 : 3000;
}

static void expect_at(enum mf_mode mode, Mf__Wire__Control__BodyCase body, enum relay_action action,
		      enum ending ending)
{
	struct move m;
	act_at(&m, mode, body, action);
	move_run(&m);
	if (!m.rule_met)
		fail_msg("message %d did not come", (int)body);
	move_check(&m, ending);
}

/* What is said before the commit: whoever does not hear it, the source guest runs on. */
static const Mf__Wire__Control__BodyCase before_commit[] = {
	WIRE_BODY(HELLO),      WIRE_BODY(WELCOME),  WIRE_BODY(DESCRIBE), WIRE_BODY(VERDICTS),
	WIRE_BODY(PREPARE),    WIRE_BODY(PREPARED), WIRE_BODY(RAIL_UP),  WIRE_BODY(ROUND),
	WIRE_BODY(SWITCHOVER), WIRE_BODY(HASHES),   WIRE_BODY(STATE),    WIRE_BODY(READY),
};

static void cut_before_the_commit(void **state)
{
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(before_commit); i++)
		expect_at(MF_MODE_PRECOPY, before_commit[i], RELAY_CUT, STAYED);
	expect_at(MF_MODE_POSTCOPY, WIRE_BODY(BITMAP), RELAY_CUT, STAYED);
	expect_at(MF_MODE_POSTCOPY, WIRE_BODY(STATE), RELAY_CUT, STAYED);
	expect_at(MF_MODE_POSTCOPY, WIRE_BODY(READY), RELAY_CUT, STAYED);
}

static void silence_before_the_commit(void **state)
{
	static const Mf__Wire__Control__BodyCase some[] = { WIRE_BODY(WELCOME), WIRE_BODY(PREPARED),
							    WIRE_BODY(SWITCHOVER),
							    WIRE_BODY(READY) };
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(some); i++)
		expect_at(MF_MODE_PRECOPY, some[i], RELAY_SILENCE, STAYED);
}

/* The destination gives up, and says so when it is asked. */
static void the_commit_lost(void **state)
{
	(void)state;
	expect_at(MF_MODE_PRECOPY, WIRE_BODY(COMMIT), RELAY_CUT, STAYED);
	expect_at(MF_MODE_PRECOPY, WIRE_BODY(COMMIT), RELAY_SILENCE, STAYED);
	expect_at(MF_MODE_POSTCOPY, WIRE_BODY(COMMIT), RELAY_CUT, STAYED);
	expect_at(MF_MODE_POSTCOPY, WIRE_BODY(COMMIT), RELAY_SILENCE, STAYED);
}

/* The source is in doubt, asks and learns. */
static void running_lost(void **state)
{
	(void)state;
	expect_at(MF_MODE_PRECOPY, WIRE_BODY(RUNNING), RELAY_CUT, MOVED);
	expect_at(MF_MODE_PRECOPY, WIRE_BODY(RUNNING), RELAY_SILENCE, MOVED);
}

static void the_end_lost(void **state)
{
	(void)state;
	expect_at(MF_MODE_PRECOPY, WIRE_BODY(BYE), RELAY_SILENCE, MOVED);
	expect_at(MF_MODE_POSTCOPY, WIRE_BODY(BYE), RELAY_CUT, MOVED);
}

/* Done is lost where the guest is whole already. */
static void done_lost(void **state)
{
	(void)state;
	struct move m;
	act_at(&m, MF_MODE_PRECOPY, WIRE_BODY(DONE), RELAY_CUT);
	move_expect(&m, MOVED);
	act_at(&m, MF_MODE_PRECOPY, WIRE_BODY(DONE), RELAY_SILENCE);
	move_expect(&m, MOVED);
}

/* The connection is lost while pages are missing: another one takes its place, and every page comes. */
static void lost_in_postcopy(void **state)
{
	static const struct {
		Mf__Wire__Control__BodyCase body;
		enum relay_action action;
	} cases[] = {
		{ WIRE_BODY(RUNNING), RELAY_CUT },  { WIRE_BODY(PULL), RELAY_CUT },
		{ WIRE_BODY(PULL), RELAY_SILENCE }, { WIRE_BODY(PULL), RELAY_GARBAGE },
		{ WIRE_BODY(DONE), RELAY_CUT },
	};
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(cases); i++) {
		struct move m;
		act_at(&m, MF_MODE_POSTCOPY, cases[i].body, cases[i].action);
		m.guest = "96M,dirty=8M,threads=2";
		m.peer_timeout_ms = 2000;
		/* Slow enough that it is not over before. */
		m.side[1].faults.delay_polls = 20;
		move_run(&m);
		assert_true(m.rule_met);
		/* Without a word from each other the lanes may bring all of it before anybody wonders. */
		if (cases[i].body == WIRE_BODY(PULL) && cases[i].action != RELAY_SILENCE) {
			assert_true(SOURCE->report.recoveries >= 1);
			assert_true(DESTINATION->report.recoveries >= 1);
		}
		move_check(&m, MOVED);
	}
}

/* Nobody comes back: both sides say so in the end, and how to go on. */
static void lost_in_postcopy_for_good(void **state)
{
	(void)state;
	struct move m;
	act_at(&m, MF_MODE_POSTCOPY, WIRE_BODY(PULL), RELAY_CUT);
	m.guest = "96M,dirty=8M,threads=2";
	m.side[1].faults.delay_polls = 20;
	m.peer_timeout_ms = 1000;
	m.recover_timeout_ms = 1500;
	m.rule.alone = true;
	move_run(&m);
	assert_int_equal(SOURCE->result, -MF_EPAUSED);
	assert_non_null(strstr(SOURCE->error.msg, "--resume"));
	assert_non_null(strstr(DESTINATION->error.msg, "--resume"));
	move_check(&m, PAUSED);
}

/* Nothing passes any more after the commit: the source does not resume, whatever it thinks. */
static void in_doubt_for_good(void **state)
{
	(void)state;
	static const Mf__Wire__Control__BodyCase lost[] = { WIRE_BODY(COMMIT), WIRE_BODY(RUNNING) };
	for (unsigned i = 0; i < BASE_ARRAY_LEN(lost); i++) {
		struct move m;
		act_at(&m, MF_MODE_PRECOPY, lost[i], RELAY_CUT);
		m.peer_timeout_ms = 1000;
		m.recover_timeout_ms = 3000;
		m.rule.alone = true;
		move_run(&m);
		assert_int_equal(SOURCE->report.outcome, MF_OUTCOME_IN_DOUBT);
		assert_int_equal(SOURCE->result, -MF_EINDOUBT);
		assert_int_equal(DESTINATION->resumed, lost[i] == WIRE_BODY(RUNNING));
		assert_int_equal(DESTINATION->report.outcome, lost[i] == WIRE_BODY(RUNNING)
								      ? MF_OUTCOME_COMPLETED
								      : MF_OUTCOME_ABORTED);
		move_assert_stands_still(SOURCE);
		move_close(&m);
	}
}

/* A question whose asker has gone stands in the queue before the one that counts. */
static void ask_and_leave(void *ctx, int port)
{
	struct move *m = ctx;
	Mf__Wire__Query body = MF__WIRE__QUERY__INIT;
	wire_msg msg = WIRE_INIT;
	base_autofree uint8_t *bytes = NULL;
	size_t len;
	base_autofd fd = relay_connect((uint16_t)port);
	body.session = m->side[0].session->report.session;
	msg.body_case = WIRE_BODY(QUERY);
	msg.query = &body;
	if (fd >= 0 && wire_msg_encode(&msg, &bytes, &len) == 0)
		(void)!write(fd, bytes, len);
}

static void a_question_that_nobody_waits_for(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		struct move m;
		act_at(&m, MF_MODE_PRECOPY, WIRE_BODY(COMMIT), RELAY_CUT);
		m.rule.hook = ask_and_leave;
		m.rule.ctx = &m;
		move_expect(&m, STAYED);
	}
}

/* ---- what should not be said ---- */

static void said_twice(void **state)
{
	(void)state;
	/* What only informs may come twice. */
	static const Mf__Wire__Control__BodyCase harmless[] = { WIRE_BODY(ROUND) };
	for (unsigned i = 0; i < BASE_ARRAY_LEN(before_commit); i++) {
		Mf__Wire__Control__BodyCase body = before_commit[i];
		/* The last of its kind is followed by the hand-off: a second one is out of turn, or comes
		 * when nobody listens any more. */
		bool late = body == WIRE_BODY(READY) || body == WIRE_BODY(RAIL_UP);
		if (body != harmless[0] && !late)
			expect_at(MF_MODE_PRECOPY, body, RELAY_TWICE, STAYED);
	}
	expect_at(MF_MODE_PRECOPY, WIRE_BODY(ROUND), RELAY_TWICE, MOVED);
	expect_at(MF_MODE_POSTCOPY, WIRE_BODY(COMMIT), RELAY_TWICE, MOVED);
	expect_at(MF_MODE_POSTCOPY, WIRE_BODY(RUNNING), RELAY_TWICE, MOVED);
	expect_at(MF_MODE_PRECOPY, WIRE_BODY(DONE), RELAY_TWICE, MOVED);
}

/* The source has committed, hears what it cannot make sense of, and asks. */
static void ready_twice(void **state)
{
	(void)state;
	expect_at(MF_MODE_PRECOPY, WIRE_BODY(READY), RELAY_TWICE, MOVED);
}

static void noise_in_the_middle(void **state)
{
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(before_commit); i++)
		expect_at(MF_MODE_PRECOPY, before_commit[i], RELAY_GARBAGE, STAYED);
	expect_at(MF_MODE_PRECOPY, WIRE_BODY(COMMIT), RELAY_GARBAGE, STAYED);
	expect_at(MF_MODE_PRECOPY, WIRE_BODY(RUNNING), RELAY_GARBAGE, MOVED);
}

/* Hashes of one region come twice, those of the other never: counted, there are enough. */
static void hashes_of_the_wrong_region(void **state)
{
	(void)state;
	struct move m;
	act_at(&m, MF_MODE_COLD, WIRE_BODY(HASHES), RELAY_LAST);
	m.rule.nth = 2;
	move_expect(&m, STAYED);
}

/* ---- strangers ---- */

static void speak(uint16_t port, const void *bytes, size_t len, int *keep)
{
	base_autofd fd = relay_connect(port);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len), (ssize_t)len);
	if (keep)
		*keep = base_take_fd(&fd);
}

static void speak_noise(struct move *m, uint16_t port)
{
	(void)m;
	speak(port, "GET / HTTP/1.1\r\nHost: example\r\n\r\n", 34, NULL);
	speak(port, "MFC1\xff\xff\xff\xff", 8, NULL);
	speak(port, "MFC1\x02\0\0\0\xff\xff", 10, NULL);
}

static void noise_in_place_of_hello(void **state)
{
	(void)state;
	struct move m;
	move_init(&m);
	m.verify = MF_VERIFY_FULL;
	m.before = speak_noise;
	move_expect(&m, MOVED);
}

static void say(int fd, wire_msg *msg)
{
	base_autofree uint8_t *bytes = NULL;
	size_t len;
	assert_int_equal(wire_msg_encode(msg, &bytes, &len), 0);
	assert_int_equal(write(fd, bytes, len), (ssize_t)len);
}

/* Reads messages until the one meant. */
static void hear(int fd, Mf__Wire__Control__BodyCase body)
{
	for (bool heard = false; !heard;) {
		uint8_t header[WIRE_HEADER];
		uint32_t len;
		wire_msg *msg;
		assert_int_equal(recv(fd, header, sizeof(header), MSG_WAITALL), sizeof(header));
		assert_int_equal(wire_header_decode(header, &len), 0);
		base_autofree uint8_t *payload = malloc(len + 1);
		assert_int_equal(recv(fd, payload, len, MSG_WAITALL), len);
		assert_int_equal(wire_msg_decode(payload, len, &msg), 0);
		heard = msg->body_case == body;
		wire_msg_free(msg);
	}
}

static void check_and_be_refused(struct move *m, uint16_t port)
{
	Mf__Wire__Hello hello = MF__WIRE__HELLO__INIT;
	Mf__Wire__Guest guest = MF__WIRE__GUEST__INIT;
	Mf__Wire__Describe describe = MF__WIRE__DESCRIBE__INIT;
	wire_msg first = WIRE_INIT, second = WIRE_INIT;
	base_autofd fd = relay_connect(port);
	(void)m;
	first.body_case = WIRE_BODY(HELLO);
	first.hello = &hello;
	hello.version_min = hello.version_max = ENG_PROTOCOL_VERSION;
	hello.session = (char *)"0123456789abcdef";
	second.body_case = WIRE_BODY(DESCRIBE);
	second.describe = &describe;
	describe.guest = &guest;
	describe.check_only = true;
	guest.kind = (char *)"a kind that is not here";
	say(fd, &first);
	say(fd, &second);
	hear(fd, WIRE_BODY(VERDICTS));
}

/* Whoever only asked is told why not, and may ask again when that was set right. */
static void a_check_that_is_refused(void **state)
{
	(void)state;
	struct move m;
	move_init(&m);
	m.verify = MF_VERIFY_FULL;
	m.before = check_and_be_refused;
	move_expect(&m, MOVED);
}

static int silent[20];

static void say_nothing(struct move *m, uint16_t port)
{
	for (unsigned i = 0; i < BASE_ARRAY_LEN(silent); i++) {
		speak(port, "MFC1", i % 2 ? 4 : 0, &silent[i]);
		m->fds++; /* the rig's own */
	}
}

static void hang_up_silently(void)
{
	for (unsigned i = 0; i < BASE_ARRAY_LEN(silent); i++)
		base_closep(&silent[i]);
}

/* More than can be waited for one after the other, or at the same time. */
static void peers_that_say_nothing(void **state)
{
	(void)state;
	struct move m;
	move_init(&m);
	m.verify = MF_VERIFY_FULL;
	m.before = say_nothing;
	SOURCE->peer_timeout_ms = 10000;
	move_expect(&m, MOVED);
	hang_up_silently();
}

/* ---- a secured channel ---- */

#define KEY "00112233445566778899aabbccddeeff"

static void secure(struct move *m, enum mf_mode mode)
{
	move_init(m);
	m->mode = mode;
	m->verify = MF_VERIFY_FULL;
	m->side[0].key = m->side[1].key = KEY;
}

static void a_secured_move(void **state)
{
	(void)state;
	for (int mode = 0; mode < MF_MODE_COUNT; mode++) {
		struct move m;
		if (mode == MF_MODE_WARM) /* waits to be told */
			continue;
		secure(&m, (enum mf_mode)mode);
		move_expect(&m, MOVED);
	}
}

static void noise_and_silence_at_a_secured_door(struct move *m, uint16_t port)
{
	speak_noise(m, port);
	say_nothing(m, port);
}

static void strangers_at_a_secured_destination(void **state)
{
	(void)state;
	struct move m;
	secure(&m, MF_MODE_HYBRID);
	m.before = noise_and_silence_at_a_secured_door;
	move_expect(&m, MOVED);
	hang_up_silently();
}

/* Questions and answers are secured as well. */
static void a_secured_commit_lost(void **state)
{
	(void)state;
	struct move m;
	secure(&m, MF_MODE_PRECOPY);
	m.at = MF_SOURCE;
	m.phase = MF_PHASE_HANDOFF;
	m.on_phase = move_cut_channel_at;
	move_expect(&m, STAYED);
}

/* The connection that takes the place of the old one is secured as well. */
static void a_secured_connection_lost_in_postcopy(void **state)
{
	(void)state;
	struct move m;
	secure(&m, MF_MODE_POSTCOPY);
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

static void a_secured_running_lost(void **state)
{
	(void)state;
	struct move m;
	secure(&m, MF_MODE_PRECOPY);
	m.on_running = move_cut_channel;
	move_expect(&m, MOVED);
}

static void another_key(void **state)
{
	(void)state;
	struct move m;
	secure(&m, MF_MODE_HYBRID);
	m.side[0].key = "ff112233445566778899aabbccddeeff";
	move_run(&m);
	assert_int_equal(SOURCE->result, -MF_ESECURITY);
	move_check(&m, STAYED);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cut_before_the_commit),
		cmocka_unit_test(silence_before_the_commit),
		cmocka_unit_test(the_commit_lost),
		cmocka_unit_test(running_lost),
		cmocka_unit_test(done_lost),
		cmocka_unit_test(the_end_lost),
		cmocka_unit_test(lost_in_postcopy),
		cmocka_unit_test(lost_in_postcopy_for_good),
		cmocka_unit_test(in_doubt_for_good),
		cmocka_unit_test(a_question_that_nobody_waits_for),
		cmocka_unit_test(said_twice),
		cmocka_unit_test(ready_twice),
		cmocka_unit_test(noise_in_the_middle),
		cmocka_unit_test(hashes_of_the_wrong_region),
		cmocka_unit_test(noise_in_place_of_hello),
		cmocka_unit_test(a_check_that_is_refused),
		cmocka_unit_test(peers_that_say_nothing),
		cmocka_unit_test(a_secured_move),
		cmocka_unit_test(strangers_at_a_secured_destination),
		cmocka_unit_test(a_secured_commit_lost),
		cmocka_unit_test(a_secured_running_lost),
		cmocka_unit_test(a_secured_connection_lost_in_postcopy),
		cmocka_unit_test(another_key),
	};
	if (getenv("ONLY"))
		cmocka_set_test_filter(getenv("ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
