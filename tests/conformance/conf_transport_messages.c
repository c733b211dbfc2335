/* SPDX-License-Identifier: BSD-2-Clause */
/* Messages: T14. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/conformance/conf_transport.h"

static void open_with_messages(uint32_t depth, uint32_t receives)
{
	const struct rig_params params = { .near_ops = ops,
					   .far_ops = ops,
					   .depth = depth,
					   .n_lanes = 1,
					   .bytes = 4 * MIB,
					   .far_access = BOTH,
					   .receives = receives };

	memset(&ledger, 0, sizeof(ledger));
	rig_open(&rig, &params);
}

static bool has_messages(void)
{
	if (ops->post_send)
		return true;
	(void)printf("SKIP: the transport %s has no messages of its own\n", ops->name);
	skip();
	return false;
}

/* What the far end's owner posts, and finds. */
struct mailbox {
	uint32_t n;       /* receives of len bytes, at `at` of far_mem and on */
	uint64_t at, len; /* the cookie is the offset */
	int posted;
};

static void post_receives(struct tp_lane *lane, void *arg)
{
	struct mailbox *box = arg;
	struct tp_xfer x[64];

	for (uint32_t i = 0; i < box->n; i++) {
		x[i] = (struct tp_xfer){ .local = rig.far_mem + box->at + i * box->len,
					 .mr = rig.far_mr,
					 .len = box->len,
					 .cookie = box->at + i * box->len };
	}
	box->posted = tp_post_receive(lane, x, box->n);
}

static const struct tp_wc *await_mail(unsigned n)
{
	uint64_t deadline = PATIENCE;

	while (atomic_load(&rig.pump[0].n_mail) < n) {
		assert_true(base_now_us() < deadline);
		(void)usleep(100);
	}
	return rig.pump[0].mail;
}

static void send_message(uint64_t near_at, uint64_t len, uint64_t cookie)
{
	struct tp_xfer x = rig_xfer(&rig, near_at, 0, len, cookie);
	ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_send);
}

void t14_messages_come_whole_and_in_order(void **state)
{
	struct mailbox box = { .n = 8, .at = MIB, .len = 64 * KIB };
	static const uint64_t lengths[] = { 1, 64 * KIB, 7, 4096, 63 * KIB + 1, 2, 48, 3000 };

	(void)state;
	if (!has_messages())
		return;
	open_with_messages(16, 8);
	fill(rig.near_mem, rig.params.bytes, 14);
	for (unsigned round = 0; round < 20; round++) {
		memset(&ledger, 0, sizeof(ledger));
		memset(rig.far_view, 0, rig.params.bytes);
		atomic_store(&rig.pump[0].n_mail, 0);
		rig_on_far(&rig, 0, post_receives, &box);
		assert_int_equal(box.posted, 8);
		for (unsigned i = 0; i < 8; i++)
			send_message(i * 64 * KIB, lengths[i], i);
		ledger_collect(&ledger, rig.lane[0], 8);
		assert_int_equal(ledger.n_failed, 0);
		const struct tp_wc *wc = await_mail(8);
		for (unsigned i = 0; i < 8; i++) {
			assert_int_equal(wc[i].status, 0);
			assert_true(wc[i].received);
			assert_int_equal(wc[i].len, lengths[i]);
			assert_int_equal(wc[i].cookie, MIB + i * 64 * KIB);
			assert_memory_equal(rig.far_view + MIB + i * 64 * KIB,
					    rig.near_mem + i * 64 * KIB, lengths[i]);
			if (lengths[i] < 64 * KIB)
				assert_int_equal(rig.far_view[MIB + i * 64 * KIB + lengths[i]], 0);
		}
	}
	rig_close(&rig);
}

void t14_messages_keep_their_place_among_writes(void **state)
{
	struct mailbox box = { .n = 1, .at = 2 * MIB, .len = KIB };

	(void)state;
	if (!has_messages())
		return;
	open_with_messages(16, 2);
	fill(rig.near_mem, rig.params.bytes, 15);
	struct tp_xfer x = rig_xfer(&rig, 0, 0, MIB, 0);
	ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
	send_message(MIB, KIB, 1); /* before there is a receive: it waits for one */
	rig_on_far(&rig, 0, post_receives, &box);
	assert_int_equal(box.posted, 1);
	ledger_flush(&ledger, rig.lane[0], 2);
	assert_int_equal(ledger.n_failed, 0);
	assert_int_equal(await_mail(1)->len, KIB);
	assert_filled(rig.far_view, MIB, 15);
	assert_memory_equal(rig.far_view + 2 * MIB, rig.near_mem + MIB, KIB);
	rig_close(&rig);
}

void t14_receives_are_bounded_and_complete_once(void **state)
{
	struct tp_xfer x[8];
	struct tp_wc wc[16];
	unsigned got = 0;
	int n;

	(void)state;
	if (!has_messages())
		return;
	open_with_messages(4, 6);
	for (unsigned i = 0; i < 8; i++)
		x[i] = rig_xfer(&rig, i * KIB, 0, KIB, 100 + i);
	assert_int_equal(tp_post_receive(rig.lane[0], x, 8), 6);
	assert_int_equal(tp_post_receive(rig.lane[0], x, 1), -EAGAIN);
	/* They are no operations in flight. */
	x[0].cookie = 0;
	ledger_post(&ledger, rig.lane[0], x, 1, tp_post_write);
	ledger_flush(&ledger, rig.lane[0], 1);
	tp_lane_shutdown(rig.lane[0]);
	while ((n = tp_lane_poll(rig.lane[0], wc, 16)) > 0) {
		for (int i = 0; i < n; i++, got++) {
			assert_true(wc[i].received && wc[i].status < 0);
			assert_int_equal(wc[i].cookie, 100 + got);
		}
	}
	assert_true(n < 0);
	assert_int_equal(got, 6);
	rig_close(&rig);
}

void t14_a_message_too_long_fails_the_lane(void **state)
{
	struct mailbox box = { .n = 1, .at = 2 * MIB, .len = KIB };

	(void)state;
	if (!has_messages())
		return;
	open_with_messages(8, 2);
	fill(rig.near_mem, rig.params.bytes, 16);
	rig_on_far(&rig, 0, post_receives, &box);
	send_message(0, 2 * KIB, 0);
	assert_true(ledger_collect_failure(&ledger, rig.lane[0]) < 0);
	assert_zero(rig.far_view + 2 * MIB + KIB, KIB);
	rig_close(&rig);
}
