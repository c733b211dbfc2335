/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is true of sealed lanes only (T15), and what admits any lane: whatever is done to a record on its way, nothing of it reaches memory, and the
 * lane fails; who has another key gets no lane.  The laws of all transports are held by conf_transport.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tests/conformance/tp_rig.h"
#include "transport/faulty/faulty.h"
#include "transport/sealed/seal.h"
#include "transport/sealed/sealed.h"
#include "transport/token.h"

#define KIB        1024u
#define MIB        (1024u * KIB)
#define BOTH       (TP_REMOTE_WRITE | TP_REMOTE_READ)
#define SILENCE_MS 2000u

/* ---- records ---- */

static const struct tp_seal how[] = { { TP_SEAL_INTEGRITY, { 1, 2, 3 } },
				      { TP_SEAL_ENCRYPT, { 1, 2, 3 } } };
static uint8_t head[48], body[4096], record[sizeof(head) + sizeof(body) + SEAL_TAG_SIZE];

static struct seal *make(const struct tp_seal *seal, const char *said)
{
	struct seal *ret;
	assert_int_equal(seal_create(seal, said, strlen(said), &ret), 0);
	return ret;
}

static size_t close_record(struct seal *seal, size_t len)
{
	assert_int_equal(seal_close(seal, head, sizeof(head), body, len, record), 0);
	return sizeof(head) + len + SEAL_TAG_SIZE;
}

static int fill(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(head); i++)
		head[i] = (uint8_t)(i * 7 + 1);
	for (size_t i = 0; i < sizeof(body); i++)
		body[i] = (uint8_t)(i * 13 + (i >> 8) + 5);
	return 0;
}

static void records_open_as_they_were(void **state)
{
	static const size_t lengths[] = { 0, 1, 15, 16, 17, 1000, sizeof(body) };
	(void)state;
	for (unsigned k = 0; k < BASE_ARRAY_LEN(how); k++) {
		struct seal *out = make(&how[k], "lane"), *in = make(&how[k], "lane");
		for (unsigned i = 0; i < 5 * BASE_ARRAY_LEN(lengths); i++) {
			size_t len = lengths[i % BASE_ARRAY_LEN(lengths)];
			size_t all = close_record(out, len);
			bool is_plain = !memcmp(record, head, sizeof(head));
			assert_int_equal(is_plain, how[k].sealing == TP_SEAL_INTEGRITY);
			assert_int_equal(seal_open(in, record, all), 0);
			assert_memory_equal(record, head, sizeof(head));
			assert_memory_equal(record + sizeof(head), body, len);
		}
		seal_free(out);
		seal_free(in);
	}
}

static void every_bit_matters(void **state)
{
	(void)state;
	for (unsigned k = 0; k < BASE_ARRAY_LEN(how); k++) {
		struct seal *out = make(&how[k], "lane");
		uint8_t sealed[sizeof(record)];
		size_t all = close_record(out, 32);
		memcpy(sealed, record, all);
		for (size_t bit = 0; bit < all * 8; bit++) {
			struct seal *in = make(&how[k], "lane");
			memcpy(record, sealed, all);
			record[bit / 8] ^= (uint8_t)(1u << bit % 8);
			assert_int_equal(seal_open(in, record, all), -EBADMSG);
			seal_free(in);
		}
		/* And its length. */
		for (size_t len = 0; len < all; len++) {
			struct seal *in = make(&how[k], "lane");
			memcpy(record, sealed, all);
			assert_int_equal(seal_open(in, record, len), -EBADMSG);
			seal_free(in);
		}
		seal_free(out);
	}
}

/* Sealed one, two, three; what arrives is told by the digits of `arrives`, of which only the last does not open. */
static void expect_only_last_fails(const struct tp_seal *seal, const char *arrives)
{
	uint8_t sealed[4][sizeof(record)];
	struct seal *out = make(seal, "lane"), *in = make(seal, "lane");
	size_t all = 0;
	for (unsigned i = 1; i < 4; i++) {
		all = close_record(out, 100);
		memcpy(sealed[i], record, all);
	}
	for (; *arrives; arrives++) {
		memcpy(record, sealed[*arrives - '0'], all);
		assert_int_equal(seal_open(in, record, all), arrives[1] ? 0 : -EBADMSG);
	}
	seal_free(out);
	seal_free(in);
}

static void order_matters(void **state)
{
	(void)state;
	for (unsigned k = 0; k < BASE_ARRAY_LEN(how); k++) {
		expect_only_last_fails(&how[k], "2");
		expect_only_last_fails(&how[k], "11");
		expect_only_last_fails(&how[k], "13");
		expect_only_last_fails(&how[k], "121");
		expect_only_last_fails(&how[k], "1231");
	}
}

static void keys_are_of_one_lane_and_direction(void **state)
{
	struct tp_seal other = how[1];
	(void)state;
	other.key[31] ^= 1;
	struct seal *out = make(&how[1], "lane 1, there"),
		    *in[] = { make(&how[1], "lane 1, back"), make(&how[1], "lane 2, there"),
			      make(&other, "lane 1, there"), make(&how[0], "lane 1, there") };
	uint8_t sealed[sizeof(record)];
	size_t all = close_record(out, 64);
	memcpy(sealed, record, all);
	for (unsigned i = 0; i < BASE_ARRAY_LEN(in); i++) {
		memcpy(record, sealed, all);
		assert_int_equal(seal_open(in[i], record, all), -EBADMSG);
		seal_free(in[i]);
	}
	seal_free(out);
}

static void keys_are_renewed(void **state)
{
	(void)state;
	struct seal *out = make(&how[1], "lane"), *in = make(&how[1], "lane");
	struct seal *late = make(&how[1], "lane");
	seal_renew_every(out, 5);
	seal_renew_every(in, 5);
	for (unsigned i = 0; i < 23; i++) {
		uint8_t copy[sizeof(record)];
		size_t all = close_record(out, 64);
		memcpy(copy, record, all);
		assert_int_equal(seal_open(in, record, all), 0);
		assert_memory_equal(record + sizeof(head), body, 64);
		/* With the first key only as long as it lasts. */
		if (i < 6)
			assert_int_equal(seal_open(late, copy, all), i < 5 ? 0 : -EBADMSG);
	}
	seal_free(out);
	seal_free(in);
	seal_free(late);
}

/* ---- what admits a lane ---- */

/* By Python's hmac, of the token 00 01 … 1f. */
static void proofs_are_of_one_lane(void **state)
{
	static const struct {
		uint32_t lane;
		const char *proof;
	} known[] = {
		{ 0, "cf0278f409523d95818a4abd9416e5f7f25867fb8b0b9332cb40e281442fb861" },
		{ 1, "17beb262aa4f3d1cae5194b3ed1ed585fc7eda3466b7eff26498f46e9d35d24d" },
		{ 0x01020304, "e60214467fbf10d3c78e2749b2f50e6cc59fa8ee5b8083b7be126dd0a4310181" },
	};
	uint8_t token[TP_TOKEN_SIZE], proof[TP_TOKEN_SIZE];
	(void)state;
	for (unsigned i = 0; i < TP_TOKEN_SIZE; i++)
		token[i] = (uint8_t)i;
	for (unsigned k = 0; k < BASE_ARRAY_LEN(known); k++) {
		char hex[2 * TP_TOKEN_SIZE + 1];
		assert_int_equal(tp_lane_proof(token, known[k].lane, proof), 0);
		for (unsigned i = 0; i < TP_TOKEN_SIZE; i++)
			(void)snprintf(hex + 2 * i, 3, "%02x", proof[i]);
		assert_string_equal(hex, known[k].proof);
		for (unsigned j = 0; j < BASE_ARRAY_LEN(known); j++)
			assert_int_equal(tp_proves(proof, token, known[j].lane), j == k);
		proof[k] ^= 1;
		assert_false(tp_proves(proof, token, known[k].lane));
	}
	assert_false(tp_proves(token, token, 0));
}

/* ---- lanes ---- */

static struct tp_faulty_plan near_plan, far_plan;
static const struct tp_ops *faulty[2];
static struct tp_sealed_table table[2];
static struct rig rig;
static struct ledger ledger;

static int open_lanes(unsigned n_lanes)
{
	memset(&near_plan, 0, sizeof(near_plan));
	memset(&far_plan, 0, sizeof(far_plan));
	memset(&ledger, 0, sizeof(ledger));
	faulty[0] = tp_faulty_create(tp_find("tcp"), &near_plan);
	faulty[1] = tp_faulty_create(tp_find("tcp"), &far_plan);
	if (!faulty[0] || !faulty[1])
		return -1;
	tp_sealed_init(&table[0], faulty[0]);
	tp_sealed_init(&table[1], faulty[1]);
	const struct rig_params params = { .near_ops = &table[0].ops,
					   .far_ops = &table[1].ops,
					   .depth = 16,
					   .n_lanes = n_lanes,
					   .bytes = 4 * MIB,
					   .far_access = BOTH,
					   .silence_ms = SILENCE_MS };
	rig_open(&rig, &params);
	for (uint64_t i = 0; i < 4 * MIB; i++)
		rig.near_mem[i] = (uint8_t)(i * 31 + (i >> 12) + 1);
	return 0;
}

static int set_up(void **state)
{
	(void)state;
	return open_lanes(1);
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	tp_faulty_destroy(faulty[0]);
	tp_faulty_destroy(faulty[1]);
	return 0;
}

static bool is_zero(const uint8_t *mem, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++) {
		if (mem[i])
			return false;
	}
	return true;
}

/* 16 records; the n-th of them is changed.  Those before it are there, and nothing after it. */
static void a_changed_write_reaches_no_memory(void **state)
{
	(void)state;
	for (unsigned nr = 0; nr < 16; nr += 5) {
		memset(&ledger, 0, sizeof(ledger));
		memset(rig.far_view, 0, 4 * MIB);
		atomic_store(&near_plan.corrupt_send_at, atomic_load(&near_plan.sends) + nr + 1);
		struct tp_xfer x = rig_xfer(&rig, 0, MIB, MIB, 0);
		assert_int_equal(tp_post_write(rig.lane[0], &x, 1), 1);
		assert_true(ledger_collect_failure(&ledger, rig.lane[0]) < 0);
		assert_int_equal(ledger.n_done, 1);
		assert_true(ledger.status[0] < 0);
		assert_memory_equal(rig.far_view + MIB, rig.near_mem, (size_t)nr * 64 * KIB);
		assert_true(is_zero(rig.far_view + MIB + (size_t)nr * 64 * KIB,
				    3 * MIB - (size_t)nr * 64 * KIB));
		rig_drop_lane(&rig, 0);
		atomic_store(&near_plan.corrupt_send_at, 0);
		rig_add_lane(&rig, 0);
	}
	/* A new lane has new keys, and is as good as any. */
	memset(&ledger, 0, sizeof(ledger));
	struct tp_xfer x = rig_xfer(&rig, 0, MIB, MIB, 0);
	ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
	ledger_flush(&ledger, rig.lane[0], 1);
	assert_memory_equal(rig.far_view + MIB, rig.near_mem, MIB);
}

static void a_changed_answer_reaches_no_memory(void **state)
{
	(void)state;
	memset(rig.far_view, 0x5a, MIB);
	memset(rig.near_mem, 0, MIB);
	atomic_store(&far_plan.corrupt_send_at, atomic_load(&far_plan.sends) + 4);
	struct tp_xfer x = rig_xfer(&rig, 0, 0, MIB, 0);
	assert_int_equal(tp_post_read(rig.lane[0], &x, 1), 1);
	assert_true(ledger_collect_failure(&ledger, rig.lane[0]) < 0);
	assert_true(ledger.status[0] < 0);
	/* Acks among the four: at most three pieces came before it. */
	assert_true(is_zero(rig.near_mem + 3 * 64 * KIB, MIB - 3 * 64 * KIB));
}

static void the_inner_lane_may_be_slow_and_short_of_room(void **state)
{
	(void)state;
	atomic_store(&near_plan.eagain_every, 2);
	atomic_store(&far_plan.eagain_every, 3);
	atomic_store(&near_plan.delay_polls, 3);
	for (unsigned i = 0; i < 8; i++) {
		struct tp_xfer x = rig_xfer(&rig, i * 256 * KIB, i * 256 * KIB, 256 * KIB, 2 * i);
		ledger_post(&ledger, rig.lane[0], &x, 1, i % 2 ? tp_post_write : tp_post_read);
		ledger_flush(&ledger, rig.lane[0], 2 * i + 1);
	}
	ledger_collect(&ledger, rig.lane[0], 16);
	assert_int_equal(ledger.n_failed, 0);
	for (unsigned i = 0; i < 8; i++)
		assert_memory_equal(rig.far_view + i * 256 * KIB, rig.near_mem + i * 256 * KIB,
				    256 * KIB);
}

static void the_inner_lane_may_fail(void **state)
{
	(void)state;
	atomic_store(&near_plan.fail_post_at, atomic_load(&near_plan.posts) + 5);
	struct tp_xfer x = rig_xfer(&rig, 0, MIB, MIB, 0);
	assert_int_equal(tp_post_write(rig.lane[0], &x, 1), 1);
	assert_true(ledger_collect_failure(&ledger, rig.lane[0]) < 0);
	assert_int_equal(ledger.n_done, 1);
}

static void be_absent(struct tp_lane *lane, void *arg)
{
	(void)lane, (void)arg;
	(void)usleep(3 * SILENCE_MS * 1000);
}

static void *keep_far_away(void *arg)
{
	(void)arg;
	rig_on_far(&rig, 0, be_absent, NULL);
	return NULL;
}

/* T12: what waits for an answer asks the lane below for a sign of life; and goes on when there is one. */
static void silence_is_looked_into(void **state)
{
	pthread_t thread;
	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, keep_far_away, NULL), 0);
	(void)usleep(SILENCE_MS * 100);
	uint64_t before = atomic_load(&near_plan.sends);
	struct tp_xfer x = rig_xfer(&rig, 0, 0, 4 * KIB, 0);
	assert_int_equal(tp_post_read(rig.lane[0], &x, 1), 1);
	ledger_collect(&ledger, rig.lane[0], 1);
	assert_int_equal(ledger.n_failed, 0);
	/* The request, and a probe at least; not one for each look. */
	assert_in_range(atomic_load(&near_plan.sends) - before, 2, 12);
	assert_int_equal(pthread_join(thread, NULL), 0);
}

/* ---- who gets no lane ---- */

static void *accept_for_a_while(void *arg)
{
	struct tp_lane *lane = NULL;
	int *ret = arg;
	*ret = tp_accept(rig.listener, rig.token, base_deadline_ms(2000), &lane, NULL);
	if (*ret == 0) {
		tp_lane_shutdown(lane);
		tp_lane_close(lane);
	}
	return NULL;
}

/* With the right token, by another table or seal. */
static void expect_no_lane(const struct tp_ops *ops, const struct tp_seal *seal)
{
	const struct tp_domain_params params = {
		.local = rig_host(), .depth = 40, .receives = 4, .seal = seal
	};
	struct mf_error err = { 0 };
	struct tp_domain *domain;
	struct tp_lane *lane = NULL;
	struct tp_wc wc;
	pthread_t acceptor;
	int accepted;
	assert_int_equal(tp_domain_open(ops, &params, &domain, &err), 0);
	assert_int_equal(pthread_create(&acceptor, NULL, accept_for_a_while, &accepted), 0);
	int r = tp_connect(domain, rig.addr, rig.token, 7, base_deadline_ms(1000), &lane, &err);
	/* A plain one is a lane to itself only: it says no Hello, and is hung up on when its time has come. */
	bool is_plain = ops == tp_find("tcp");
	assert_true(is_plain ? r == 0 : r < 0 && err.msg[0]);
	assert_int_equal(pthread_join(acceptor, NULL), 0);
	if (is_plain) {
		tp_lane_shutdown(lane);
		while (tp_lane_poll(lane, &wc, 1) >= 0)
			(void)tp_lane_wait(lane, base_deadline_ms(100));
		tp_lane_close(lane);
	}
	assert_int_equal(accepted, -ETIMEDOUT);
	tp_domain_close(domain);
}

static void another_key_gets_no_lane(void **state)
{
	struct tp_seal other = rig_seal;
	(void)state;
	other.key[0] ^= 1;
	expect_no_lane(&table[0].ops, &other);
}

static void another_sealing_gets_no_lane(void **state)
{
	struct tp_seal other = rig_seal;
	(void)state;
	other.sealing = TP_SEAL_INTEGRITY;
	expect_no_lane(&table[0].ops, &other);
}

static void a_plain_lane_gets_no_lane(void **state)
{
	(void)state;
	expect_no_lane(tp_find("tcp"), NULL);
}

/* The first message is each side's Hello, the second one its proof. */
static void a_changed_greeting_gets_no_lane(void **state)
{
	(void)state;
	for (unsigned nr = 1; nr <= 2; nr++) {
		atomic_store(&near_plan.corrupt_send_at, atomic_load(&near_plan.sends) + nr);
		expect_no_lane(&table[0].ops, &rig_seal);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(records_open_as_they_were),
		cmocka_unit_test(every_bit_matters),
		cmocka_unit_test(order_matters),
		cmocka_unit_test(keys_are_of_one_lane_and_direction),
		cmocka_unit_test(keys_are_renewed),
		cmocka_unit_test(proofs_are_of_one_lane),
		cmocka_unit_test_setup_teardown(a_changed_write_reaches_no_memory, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_changed_answer_reaches_no_memory, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(the_inner_lane_may_be_slow_and_short_of_room,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_inner_lane_may_fail, set_up, tear_down),
		cmocka_unit_test_setup_teardown(silence_is_looked_into, set_up, tear_down),
		cmocka_unit_test_setup_teardown(another_key_gets_no_lane, set_up, tear_down),
		cmocka_unit_test_setup_teardown(another_sealing_gets_no_lane, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_plain_lane_gets_no_lane, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_changed_greeting_gets_no_lane, set_up, tear_down),
	};

	if (!tp_find("tcp")) {
		(void)printf("SKIP: the transport tcp was not built\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, fill, NULL);
}
