/* SPDX-License-Identifier: BSD-2-Clause */
/* Frames and messages, well-formed and not; the channel over a real socket pair. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "core/engine.h"
#include "wire/channel.h"

static wire_msg *decode(const uint8_t *bytes, size_t len, int *ret_code)
{
	uint32_t payload;
	wire_msg *msg = NULL;
	*ret_code = wire_header_decode(bytes, &payload);
	if (*ret_code == 0) {
		assert_int_equal(payload + WIRE_HEADER, len);
		*ret_code = wire_msg_decode(bytes + WIRE_HEADER, payload, &msg);
	}
	return msg;
}

static int roundtrip(const wire_msg *in, wire_msg **out)
{
	uint8_t *bytes;
	size_t len;
	int code;
	assert_int_equal(wire_msg_encode(in, &bytes, &len), 0);
	*out = decode(bytes, len, &code);
	free(bytes);
	return code;
}

static void every_message_has_a_name(void **state)
{
	(void)state;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(COMMIT);
	assert_string_equal(wire_msg_name(&msg), "commit");
	msg.body_case = WIRE_BODY(RAIL_JOINED);
	assert_string_equal(wire_msg_name(&msg), "rail_joined");
}

static void a_message_comes_back_as_it_went(void **state)
{
	(void)state;
	uint64_t runs[] = { 5, 10, 1, UINT64_C(1) << 40 };
	Mf__Wire__Bitmap body = MF__WIRE__BITMAP__INIT;
	wire_msg msg = WIRE_INIT, *back;
	msg.body_case = WIRE_BODY(BITMAP);
	msg.bitmap = &body;
	body.region = 3;
	body.first = 1000;
	body.n_runs = 4;
	body.runs = runs;
	assert_int_equal(roundtrip(&msg, &back), 0);
	assert_int_equal(back->body_case, WIRE_BODY(BITMAP));
	assert_int_equal(back->bitmap->region, 3);
	assert_int_equal(back->bitmap->n_runs, 4);
	assert_int_equal(back->bitmap->runs[3], UINT64_C(1) << 40);
	wire_msg_free(back);
}

static void headers_of_others_are_refused(void **state)
{
	(void)state;
	uint32_t len;
	static const uint8_t http[WIRE_HEADER] = "GET / HT",
			     huge[WIRE_HEADER] = { 'M', 'F', 'C', '1', 0, 0, 0, 0xff };
	static const uint8_t good[WIRE_HEADER] = { 'M', 'F', 'C', '1', 1, 2, 0, 0 };
	assert_int_equal(wire_header_decode(http, &len), -EBADMSG);
	assert_int_equal(wire_header_decode(huge, &len), -EBADMSG);
	assert_int_equal(wire_header_decode(good, &len), 0);
	assert_int_equal(len, 513);
}

static int describe_with(uint64_t size, uint64_t page_size, const char *name, size_t n)
{
	Mf__Wire__Region region = MF__WIRE__REGION__INIT, *regions[MF_REGIONS_MAX + 1];
	Mf__Wire__Guest guest = MF__WIRE__GUEST__INIT;
	Mf__Wire__Describe body = MF__WIRE__DESCRIBE__INIT;
	wire_msg msg = WIRE_INIT, *back = NULL;
	region.name = (char *)name;
	region.size = size;
	region.page_size = page_size;
	for (size_t i = 0; i < n; i++)
		regions[i] = &region;
	guest.n_regions = n;
	guest.regions = regions;
	body.guest = &guest;
	msg.body_case = WIRE_BODY(DESCRIBE);
	msg.describe = &body;
	int code = roundtrip(&msg, &back);
	wire_msg_free(back);
	return code;
}

static void needs_beyond_the_bound_are_refused(void **state)
{
	static uint8_t bytes[WIRE_NEEDS_MAX + 1];
	(void)state;
	for (size_t len = WIRE_NEEDS_MAX; len <= sizeof(bytes); len++) {
		Mf__Wire__Guest guest = MF__WIRE__GUEST__INIT;
		Mf__Wire__Describe body = MF__WIRE__DESCRIBE__INIT;
		wire_msg msg = WIRE_INIT, *back = NULL;
		guest.needs.data = bytes;
		guest.needs.len = len;
		body.guest = &guest;
		msg.body_case = WIRE_BODY(DESCRIBE);
		msg.describe = &body;
		assert_int_equal(roundtrip(&msg, &back), len > WIRE_NEEDS_MAX ? -EBADMSG : 0);
		wire_msg_free(back);
	}
}

static void regions_outside_the_bounds_are_refused(void **state)
{
	(void)state;
	char name[MF_REGION_NAME_MAX + 1];
	memset(name, 'x', sizeof(name));
	name[MF_REGION_NAME_MAX] = '\0';
	assert_int_equal(describe_with(8192, 4096, "ram", MF_REGIONS_MAX), 0);
	assert_int_equal(describe_with(8192, 4096, "ram", MF_REGIONS_MAX + 1), -EBADMSG);
	assert_int_equal(describe_with(0, 4096, "ram", 1), -EBADMSG);
	assert_int_equal(describe_with(8192, 0, "ram", 1), -EBADMSG);
	assert_int_equal(describe_with(8192, 3000, "ram", 1), -EBADMSG);
	assert_int_equal(describe_with(8192, 512, "ram", 1), -EBADMSG);
	assert_int_equal(describe_with(8192 + 1, 4096, "ram", 1), -EBADMSG);
	assert_int_equal(describe_with(UINT64_C(1) << 60, 4096, "ram", 1), -EBADMSG);
	assert_int_equal(describe_with(8192, 4096, name, 1), -EBADMSG);
}

static void missing_parts_are_refused(void **state)
{
	(void)state;
	/* field 3 (describe), empty: a guest is required */
	static const uint8_t no_guest[] = { 0x1a, 0x00 };
	/* field 5 (prepare) with a token of 3 bytes */
	static const uint8_t short_token[] = { 0x2a, 0x07, 0x10, 0x01, 0x1a, 0x03, 'a', 'b', 'c' };
	wire_msg *msg;
	assert_int_equal(wire_msg_decode(NULL, 0, &msg), -EBADMSG);
	assert_int_equal(wire_msg_decode(no_guest, sizeof(no_guest), &msg), -EBADMSG);
	assert_int_equal(wire_msg_decode(short_token, sizeof(short_token), &msg), -EBADMSG);
}

/* Any bytes give a message or a refusal; sanitizers watch. */
static void noise_never_harms(void **state)
{
	(void)state;
	uint8_t bytes[256];
	unsigned decoded = 0;
	srand(7);
	for (int i = 0; i < 200000; i++) {
		size_t len = (size_t)rand() % sizeof(bytes);
		for (size_t k = 0; k < len; k++)
			bytes[k] = (uint8_t)rand();
		wire_msg *msg = NULL;
		int code = wire_msg_decode(bytes, len, &msg);
		assert_true(code == 0 || code == -EBADMSG);
		decoded += code == 0;
		wire_msg_free(msg);
	}
	print_message("%u of 200000 random payloads were messages\n", decoded);
}

/* A valid frame with each byte changed in turn. */
static void damaged_messages_never_harm(void **state)
{
	(void)state;
	uint64_t piece[] = { 1 << 30, 1 << 23 };
	Mf__Wire__RailOffer offer = MF__WIRE__RAIL_OFFER__INIT, *offers[] = { &offer };
	Mf__Wire__Prepared body = MF__WIRE__PREPARED__INIT;
	wire_msg msg = WIRE_INIT;
	uint8_t *bytes;
	size_t len;
	offer.n_piece = 2;
	offer.piece = piece;
	offer.address = (char *)"127.0.0.1:1";
	offer.reason = (char *)"none";
	body.n_rails = 1;
	body.rails = offers;
	msg.body_case = WIRE_BODY(PREPARED);
	msg.prepared = &body;
	assert_int_equal(wire_msg_encode(&msg, &bytes, &len), 0);
	for (size_t at = WIRE_HEADER; at < len; at++) {
		uint8_t was = bytes[at];
		for (int v = 0; v < 256; v++) {
			wire_msg *back = NULL;
			bytes[at] = (uint8_t)v;
			int code = wire_msg_decode(bytes + WIRE_HEADER, len - WIRE_HEADER, &back);
			assert_true(code == 0 || code == -EBADMSG);
			wire_msg_free(back);
		}
		bytes[at] = was;
		wire_msg *back = NULL; /* cut short */
		int code = wire_msg_decode(bytes + WIRE_HEADER, at - WIRE_HEADER, &back);
		assert_true(code == 0 || code == -EBADMSG);
		wire_msg_free(back);
	}
	free(bytes);
}

/* ---- the channel ---- */

struct pair {
	int event[2], fd[2];
	struct wire_channel *ch[2];
};

static void open_pair(struct pair *p, uint64_t timeout_ms, bool both)
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p->fd), 0);
	for (int i = 0; i < 2; i++) {
		p->event[i] = eventfd(0, EFD_NONBLOCK);
		p->ch[i] = NULL;
		const struct wire_channel_params params = { .notify_fd = p->event[i],
							    .peer_timeout_ms = timeout_ms };
		if (i == 0 || both)
			assert_int_equal(wire_channel_open(&p->fd[i], &params, &p->ch[i], NULL), 0);
	}
}

static void close_pair(struct pair *p)
{
	for (int i = 0; i < 2; i++) {
		wire_channel_close(p->ch[i]);
		if (p->fd[i] >= 0)
			close(p->fd[i]);
		close(p->event[i]);
	}
}

static int wait_next(struct pair *p, int side, wire_msg **ret)
{
	uint64_t deadline = base_deadline_ms(20000);
	int r;
	while ((r = wire_channel_next(p->ch[side], ret, NULL)) == 0) {
		struct pollfd fd = { .fd = p->event[side], .events = POLLIN };
		assert_true(base_now_us() < deadline);
		if (poll(&fd, 1, base_left_ms(deadline)) > 0) {
			uint64_t n;
			(void)!read(p->event[side], &n, sizeof(n));
		}
	}
	return r;
}

static void send_state(struct pair *p, int side, uint8_t *bytes, size_t len)
{
	Mf__Wire__State body = MF__WIRE__STATE__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(STATE);
	msg.state = &body;
	body.data.data = bytes;
	body.data.len = len;
	assert_int_equal(wire_channel_send(p->ch[side], &msg, NULL), 0);
}

static void *send_many(void *arg)
{
	struct pair *p = arg;
	uint8_t *bytes = malloc(100000);
	for (int i = 0; i < 300; i++) {
		memset(bytes, i, 100000);
		send_state(p, 0, bytes, 100000);
	}
	free(bytes);
	return NULL;
}

/* More than the queue holds, and more than the socket does: the sender waits for the reader. */
static void messages_keep_order_past_the_queue(void **state)
{
	(void)state;
	struct pair p;
	pthread_t sender;
	open_pair(&p, 10000, true);
	assert_int_equal(pthread_create(&sender, NULL, send_many, &p), 0);
	for (int i = 0; i < 300; i++) {
		wire_msg *msg;
		assert_int_equal(wait_next(&p, 1, &msg), 1);
		assert_int_equal(msg->state->data.len, 100000);
		assert_int_equal(msg->state->data.data[99999], (uint8_t)i);
		wire_msg_free(msg);
	}
	pthread_join(sender, NULL);
	close_pair(&p);
}

static void a_closed_peer_is_told_after_its_messages(void **state)
{
	(void)state;
	struct pair p;
	wire_msg *msg;
	uint8_t byte = 1;
	open_pair(&p, 10000, true);
	send_state(&p, 1, &byte, 1);
	wire_channel_close(p.ch[1]);
	p.ch[1] = NULL;
	assert_int_equal(wait_next(&p, 0, &msg), 1);
	wire_msg_free(msg);
	assert_int_equal(wait_next(&p, 0, &msg), -ECONNRESET);
	close_pair(&p);
}

static void a_silent_peer_is_noticed(void **state)
{
	(void)state;
	struct pair p;
	wire_msg *msg;
	open_pair(&p, 300, false); /* nobody pings on the other end */
	assert_int_equal(wait_next(&p, 0, &msg), -ETIMEDOUT);
	close_pair(&p);
}

static void an_idle_peer_is_not_silent(void **state)
{
	(void)state;
	struct pair p;
	wire_msg *msg;
	open_pair(&p, 1000, true);
	struct pollfd fd = { .fd = p.event[0], .events = POLLIN };
	assert_int_equal(poll(&fd, 1, 2500), 0); /* nothing, and no failure */
	assert_int_equal(wire_channel_next(p.ch[0], &msg, NULL), 0);
	close_pair(&p);
}

static void foreign_bytes_end_the_channel(void **state)
{
	(void)state;
	struct pair p;
	wire_msg *msg;
	open_pair(&p, 10000, false);
	assert_int_equal(write(p.fd[1], "GET / HTTP/1.1\r\n\r\n", 18), 18);
	assert_int_equal(wait_next(&p, 0, &msg), -EBADMSG);
	close_pair(&p);
}

/* ---- the state machine ---- */

/* docs/protocol.md shows the same table; what the laws ask for is checked here. */
static void the_state_table_keeps_the_laws(void **state)
{
	(void)state;
	for (int from = 0; from < ENG_STATE_COUNT; from++) {
		if (eng_state_is_end((enum eng_state)from) || from == ENG_IDLE)
			continue;
		/* before the commit, every state may end with the guest at the source … */
		if (from < ENG_COMMITTED)
			assert_true(eng_state_may_follow((enum eng_state)from, ENG_ABORTED));
		/* … and only the commit leads to a guest at the destination, or to asking about it */
		if (from < ENG_COMMITTED)
			assert_false(eng_state_may_follow((enum eng_state)from, ENG_RECOVER));
		if (from != ENG_COMMITTED && from != ENG_RECOVER) {
			assert_false(eng_state_may_follow((enum eng_state)from, ENG_POSTCOPY));
			assert_false(eng_state_may_follow((enum eng_state)from, ENG_FINISHING));
		}
		if (from != ENG_READY)
			assert_false(eng_state_may_follow((enum eng_state)from, ENG_COMMITTED));
	}
	/* once the destination runs, nothing leads back */
	assert_false(eng_state_may_follow(ENG_POSTCOPY, ENG_ABORTED));
	assert_false(eng_state_may_follow(ENG_FINISHING, ENG_ABORTED));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_message_has_a_name),
		cmocka_unit_test(a_message_comes_back_as_it_went),
		cmocka_unit_test(headers_of_others_are_refused),
		cmocka_unit_test(needs_beyond_the_bound_are_refused),
		cmocka_unit_test(regions_outside_the_bounds_are_refused),
		cmocka_unit_test(missing_parts_are_refused),
		cmocka_unit_test(noise_never_harms),
		cmocka_unit_test(damaged_messages_never_harm),
		cmocka_unit_test(messages_keep_order_past_the_queue),
		cmocka_unit_test(a_closed_peer_is_told_after_its_messages),
		cmocka_unit_test(a_silent_peer_is_noticed),
		cmocka_unit_test(an_idle_peer_is_not_silent),
		cmocka_unit_test(foreign_bytes_end_the_channel),
		cmocka_unit_test(the_state_table_keeps_the_laws),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
