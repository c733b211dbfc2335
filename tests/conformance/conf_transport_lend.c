/* SPDX-License-Identifier: BSD-2-Clause */
/* Memory lent lane by lane: T13. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tests/conformance/conf_transport.h"

struct loan {
	struct tp_mr *mr[20];
	unsigned n;
	uint32_t access;
	struct tp_remote remote[20];
	int ret;
};

static void lend_all(struct tp_lane *lane, void *arg)
{
	struct loan *loan = arg;

	loan->ret = tp_lane_lend(lane, loan->mr, loan->n, loan->access, PATIENCE, loan->remote);
}

static void revoke_all(struct tp_lane *lane, void *arg)
{
	*(int *)arg = tp_lane_revoke(lane, PATIENCE);
}

static void lend_far(struct loan *loan, unsigned nr)
{
	loan->ret = 1;
	rig_on_far(&rig, nr, lend_all, loan);
	assert_int_equal(loan->ret, 0);
}

static void revoke_far(unsigned nr)
{
	int ret = 1;

	rig_on_far(&rig, nr, revoke_all, &ret);
	assert_int_equal(ret, 0);
}

/* An operation of the near end with what was lent, behind cookie 0 and 1 of a ledger of its own. */
static void use_loan(unsigned nr, struct tp_remote remote, uint64_t near_at, uint64_t len,
		     int (*post)(struct tp_lane *, const struct tp_xfer *, unsigned))
{
	static struct ledger used;
	struct tp_xfer x = rig_xfer(&rig, near_at, 0, len, 0);

	memset(&used, 0, sizeof(used));
	x.remote = remote.addr;
	x.key = remote.key;
	ledger_post(&used, rig.lane[nr], &x, 1, post);
	ledger_flush(&used, rig.lane[nr], 1);
	assert_int_equal(used.n_failed, 0);
}

static bool has_windows(void)
{
	struct tp_limits limits;

	open_rig(8, 0, MIB, TP_LOCAL);
	tp_domain_limits(rig.far_domain, &limits);
	rig_close(&rig);
	if (!limits.windows)
		(void)printf("SKIP: the transport %s cannot lend by lane\n", ops->name);
	return limits.windows;
}

/* On lane 0, which is a new one afterwards. */
static void deny_loan(struct tp_remote remote,
		      int (*post)(struct tp_lane *, const struct tp_xfer *, unsigned))
{
	struct tp_xfer x = rig_xfer(&rig, 0, 0, 4 * KIB, 0);

	x.remote = remote.addr;
	x.key = remote.key;
	expect_denied(x, post);
}

void t13_lent_memory_is_reachable_on_its_lane_with_its_right(void **state)
{
	struct loan loan = { .n = 1 };

	(void)state;
	if (!has_windows())
		skip();
	open_rig(8, 2, 4 * MIB, TP_LENDABLE);
	loan.mr[0] = rig.far_mr;
	/* Lane 1 has it: lane 0 cannot use it, and is a new one after each attempt. */
	fill(rig.near_mem, MIB, 13);
	loan.access = TP_REMOTE_WRITE;
	lend_far(&loan, 1);
	deny_loan(loan.remote[0], tp_post_write);
	assert_zero(rig.far_view, 4 * MIB);
	use_loan(1, loan.remote[0], 0, MIB, tp_post_write);
	assert_filled(rig.far_view, MIB, 13);
	revoke_far(1);
	/* Nor does what is registered to be lent have rights by itself. */
	deny_loan(rig.far_remote, tp_post_write);
	/* To write is not to read, nor the other way round. */
	lend_far(&loan, 0);
	deny_loan(loan.remote[0], tp_post_read);
	loan.access = TP_REMOTE_READ;
	lend_far(&loan, 0);
	use_loan(0, loan.remote[0], 2 * MIB, MIB, tp_post_read);
	assert_filled(rig.near_mem + 2 * MIB, MIB, 13);
	memset(rig.near_mem, 0xee, MIB);
	deny_loan(loan.remote[0], tp_post_write);
	assert_filled(rig.far_view, MIB, 13);
	rig_close(&rig);
}

void t13_what_was_revoked_stays_as_it_is(void **state)
{
	struct loan loan = { .n = 1, .access = TP_REMOTE_WRITE };

	(void)state;
	if (!has_windows())
		skip();
	open_rig(8, 2, 4 * MIB, TP_LENDABLE);
	loan.mr[0] = rig.far_mr;
	for (unsigned round = 0; round < 10; round++) {
		fill(rig.near_mem, MIB, round);
		lend_far(&loan, 0);
		use_loan(0, loan.remote[0], 0, MIB, tp_post_write);
		revoke_far(0);
		/* Late, by the last key, and by one that comes after it. */
		memset(rig.near_mem, 0xee, MIB);
		struct tp_remote late = loan.remote[0];
		late.key += round % 2;
		deny_loan(late, round % 3 ? tp_post_write : tp_post_read);
		assert_filled(rig.far_view, MIB, round);
	}
	/* The lane itself lives on: revoked, lent with the other right, revoked with nothing lent. */
	revoke_far(0);
	for (unsigned round = 0; round < 300; round++) {
		loan.access = round % 2 ? TP_REMOTE_READ : TP_REMOTE_WRITE;
		lend_far(&loan, 0);
		use_loan(0, loan.remote[0], 0, 4 * KIB, round % 2 ? tp_post_read : tp_post_write);
		revoke_far(0);
	}
	deny_loan(loan.remote[0], tp_post_read);
	rig_close(&rig);
}

/* What the owner of the memory does with it over the same lane: here from the far end, into and out
 * of memory that the near end has lent. */
struct own_use {
	struct tp_remote remote;
	int (*post)(struct tp_lane *, const struct tp_xfer *, unsigned);
};

static void use_own(struct tp_lane *lane, void *arg)
{
	const struct own_use *use = arg;
	struct tp_xfer x = { .local = rig.far_mem,
			     .mr = rig.far_mr,
			     .remote = use->remote.addr,
			     .key = use->remote.key,
			     .len = MIB,
			     .cookie = 0 };
	static struct ledger own;

	memset(&own, 0, sizeof(own));
	ledger_post(&own, lane, &x, 1, use->post);
	ledger_flush(&own, lane, 1);
}

void t13_our_own_operations_go_on(void **state)
{
	struct mf_error err = { 0 };
	struct loan loan = { .n = 1, .access = TP_REMOTE_WRITE };
	struct own_use use;
	struct tp_mr *mr;

	(void)state;
	if (!has_windows())
		skip();
	open_rig(8, 1, 4 * MIB, TP_LENDABLE);
	loan.mr[0] = rig.far_mr;
	assert_int_equal(tp_mr_reg(rig.near_domain, rig.near_mem, MIB, BOTH, &mr, &err), 0);
	tp_mr_remote(mr, &use.remote);
	for (unsigned round = 0; round < 4; round++) {
		fill(rig.near_mem, MIB, 7 + round);
		if (round % 2)
			lend_far(&loan, 0);
		else
			memset(rig.far_mem, 0, MIB);
		use.post = tp_post_read;
		rig_on_far(&rig, 0, use_own, &use);
		assert_filled(rig.far_view, MIB, 7 + round);
		memset(rig.near_mem, 0, MIB);
		use.post = tp_post_write;
		rig_on_far(&rig, 0, use_own, &use);
		assert_filled(rig.near_mem, MIB, 7 + round);
		revoke_far(0);
	}
	tp_mr_dereg(mr);
	rig_close(&rig);
}

/* More than are bound at a time, lent in two calls; the same memory to two lanes. */
void t13_many_are_lent_and_revoked_at_once(void **state)
{
	struct mf_error err = { 0 };
	struct loan loan = { .access = TP_REMOTE_WRITE }, more, other;
	struct tp_domain_stats stats;

	(void)state;
	if (!has_windows())
		skip();
	open_rig(1, 2, 4 * MIB, TP_LENDABLE);
	fill(rig.near_mem, 4 * MIB, 1);
	for (; loan.n < BASE_ARRAY_LEN(loan.mr); loan.n++)
		assert_int_equal(tp_mr_reg(rig.far_domain, rig.far_mem + loan.n * 64 * KIB,
					   64 * KIB, TP_LENDABLE, &loan.mr[loan.n], &err),
				 0);
	more = other = loan;
	lend_far(&loan, 0);
	more.access = TP_REMOTE_READ;
	lend_far(&more, 0);
	lend_far(&other, 1);
	for (unsigned i = 0; i < loan.n; i++) {
		use_loan(0, loan.remote[i], i * 64 * KIB, 64 * KIB, tp_post_write);
		use_loan(0, more.remote[i], 2 * MIB + i * 64 * KIB, 64 * KIB, tp_post_read);
	}
	assert_filled(rig.far_view, loan.n * 64 * KIB, 1);
	assert_filled(rig.near_mem + 2 * MIB, loan.n * 64 * KIB, 1);
	tp_domain_stats(rig.far_domain, &stats);
	assert_int_equal(stats.windows, 3 * loan.n);
	revoke_far(0);
	tp_domain_stats(rig.far_domain, &stats);
	assert_int_equal(stats.windows, loan.n);
	memset(rig.near_mem, 0xee, MIB);
	for (unsigned i = 0; i < loan.n; i += 6) {
		deny_loan(loan.remote[i], tp_post_write);
		deny_loan(more.remote[i], tp_post_read);
	}
	assert_filled(rig.far_view, loan.n * 64 * KIB, 1);
	use_loan(1, other.remote[3], 3 * 64 * KIB, 64 * KIB, tp_post_write);
	assert_int_equal(rig.far_view[3 * 64 * KIB], 0xee);
	/* A lane that ends takes its windows with it: the memory can go. */
	rig_drop_lane(&rig, 1);
	tp_domain_stats(rig.far_domain, &stats);
	assert_int_equal(stats.windows, 0);
	for (unsigned i = 0; i < loan.n; i++)
		tp_mr_dereg(loan.mr[i]);
	rig_close(&rig);
}
