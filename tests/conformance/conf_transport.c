/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The laws of transport/transport.h, one test of each number and a few more where a law has
 * several sides.  conf_transport BACKEND [TEST]; BACKEND "faulty" is the fault injector with an
 * empty plan, "sealed:BACKEND" and "hashed:BACKEND" are the sealed transport over one.
 * $MEMFERRY_TEST_HOST is the address to use: for verbs, that of an RDMA device.
 *
 * T1 to T9 are here; T10 to T12 are in conf_transport_connect.c, T13 in conf_transport_lend.c, T14
 * in conf_transport_messages.c, and T15 in tests/unit/test_sealed.c.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tests/conformance/conf_transport.h"
#include "transport/faulty/faulty.h"

const struct tp_ops *ops;
struct rig rig;
struct ledger ledger;

void open_rig(uint32_t depth, unsigned n_lanes, uint64_t bytes, uint32_t far_access)
{
	const struct rig_params params = { .near_ops = ops,
					   .far_ops = ops,
					   .depth = depth,
					   .n_lanes = n_lanes,
					   .bytes = bytes,
					   .far_access = far_access };

	memset(&ledger, 0, sizeof(ledger));
	rig_open(&rig, &params);
}

bool is_tcp(void)
{
	return !strcmp(ops->kind, "tcp");
}

uint32_t depth_of(struct tp_domain *domain)
{
	struct tp_limits limits;

	tp_domain_limits(domain, &limits);
	return limits.depth;
}

void fill(uint8_t *mem, uint64_t len, uint64_t seed)
{
	for (uint64_t i = 0; i < len; i++)
		mem[i] = (uint8_t)((i * 131 + (i >> 8) * 17 + seed * 29) ^ seed);
}

void assert_filled(const uint8_t *mem, uint64_t len, uint64_t seed)
{
	for (uint64_t i = 0; i < len; i++) {
		uint8_t want = (uint8_t)((i * 131 + (i >> 8) * 17 + seed * 29) ^ seed);
		if (mem[i] != want)
			fail_msg("byte %lu of %lu is %02x and not %02x", (unsigned long)i,
				 (unsigned long)len, mem[i], want);
	}
}

void assert_zero(const uint8_t *mem, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		assert_int_equal(mem[i], 0);
}

/* T1 */
static void t1_posts_accept_a_prefix(void **state)
{
	struct tp_xfer xfer[40];

	(void)state;
	open_rig(8, 1, 40 * 64 * KIB, BOTH);
	fill(rig.near_mem, rig.params.bytes, 1);
	for (unsigned i = 0; i < 40; i++)
		xfer[i] = rig_xfer(&rig, i * 64 * KIB, i * 64 * KIB, 64 * KIB, i);
	int done = tp_post_write(rig.lane[0], xfer, 40);
	assert_in_range(done, 1, depth_of(rig.near_domain));
	/* Just the prefix has happened. */
	ledger_collect(&ledger, rig.lane[0], (uint32_t)done);
	ledger_flush(&ledger, rig.lane[0], 100);
	assert_int_equal(ledger.n_done, done + 1);
	for (int i = 0; i < 40; i++)
		assert_int_equal(ledger.seen[i], i < done);
	assert_filled(rig.far_view, (uint64_t)done * 64 * KIB, 1);
	assert_zero(rig.far_view + (uint64_t)done * 64 * KIB, (uint64_t)(40 - done) * 64 * KIB);
	rig_close(&rig);
}

/* T2 */
static void t2_eagain_changes_nothing(void **state)
{
	unsigned accepted = 0;

	(void)state;
	open_rig(8, 1, 16 * MIB, BOTH);
	fill(rig.near_mem, rig.params.bytes, 2);
	for (;;) {
		struct tp_xfer x = rig_xfer(&rig, 0, 0, 4 * MIB, accepted);
		int done = tp_post_write(rig.lane[0], &x, 1);
		if (done == -EAGAIN)
			break;
		assert_int_equal(done, 1);
		assert_in_range(++accepted, 1, 8);
	}
	struct tp_lane_stats before, after;
	tp_lane_stats(rig.lane[0], &before);
	/* None of these happens, the overwrite least of all. */
	struct tp_xfer x = rig_xfer(&rig, 4 * MIB, 8 * MIB, 4 * MIB, 1000);
	assert_int_equal(tp_post_write(rig.lane[0], &x, 1), -EAGAIN);
	assert_int_equal(tp_post_read(rig.lane[0], &x, 1), -EAGAIN);
	assert_int_equal(tp_post_flush(rig.lane[0], 1000), -EAGAIN);
	tp_lane_stats(rig.lane[0], &after);
	assert_int_equal(before.writes, after.writes);
	assert_int_equal(before.bytes_written, after.bytes_written);
	assert_int_equal(before.reads, after.reads);
	assert_int_equal(before.flushes, after.flushes);

	ledger_collect(&ledger, rig.lane[0], accepted);
	ledger_flush(&ledger, rig.lane[0], 100);
	assert_int_equal(ledger.n_done, accepted + 1);
	assert_int_equal(ledger.n_failed, 0);
	assert_int_equal(ledger.seen[1000], 0);
	assert_filled(rig.far_view, 4 * MIB, 2);
	assert_zero(rig.far_view + 8 * MIB, 4 * MIB);
	rig_close(&rig);
}

/* A mixture in which most is still under way when the lane ends. */
static uint32_t post_mixture(void)
{
	uint32_t n = 0;

	for (unsigned i = 0; i < 8; i++) {
		struct tp_xfer read = rig_xfer(&rig, (i % 2) * 4 * MIB, 0, 4 * MIB, n);
		if (tp_post_read(rig.lane[0], &read, 1) != 1)
			break;
		n++;
		struct tp_xfer write = rig_xfer(&rig, 8 * MIB, 8 * MIB, 4 * MIB, n);
		if (tp_post_write(rig.lane[0], &write, 1) != 1)
			break;
		n++;
		if (tp_post_flush(rig.lane[0], n))
			break;
		n++;
	}
	return n;
}

/* T3: without failure, then in the middle of everything with each end the one that ends it. */
static void t3_operations_complete_once(void **state)
{
	(void)state;
	open_rig(64, 1, 16 * MIB, BOTH);
	uint32_t n = post_mixture();
	assert_int_equal(n, 24);
	ledger_collect(&ledger, rig.lane[0], n);
	assert_int_equal(ledger.n_failed, 0);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(ledger_poll(&ledger, rig.lane[0], 16), 0);
	rig_close(&rig);
}

static void t3_operations_complete_once_after_shutdown(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 40; round++) {
		open_rig(64, 1, 16 * MIB, BOTH);
		uint32_t n = post_mixture();
		assert_int_equal(n, 24);
		/* A different point each time. */
		ledger_collect(&ledger, rig.lane[0], round / 4);
		for (unsigned i = 0; i < round; i++)
			(void)ledger_poll(&ledger, rig.lane[0], 1);
		tp_lane_shutdown(rig.lane[0]);
		assert_true(ledger_collect_failure(&ledger, rig.lane[0]) < 0);
		assert_int_equal(ledger.n_done, n);
		for (uint32_t i = 0; i < n; i++)
			assert_int_equal(ledger.seen[i], 1);
		rig_close(&rig);
	}
}

static void t3_operations_complete_once_after_the_peers_shutdown(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 40; round++) {
		open_rig(64, 1, 16 * MIB, BOTH);
		uint32_t n = post_mixture();
		ledger_collect(&ledger, rig.lane[0], round / 4);
		rig_shut_far(&rig, 0);
		assert_true(ledger_collect_failure(&ledger, rig.lane[0]) < 0);
		assert_int_equal(ledger.n_done, n);
		/* And nothing is taken any more. */
		struct tp_xfer x = rig_xfer(&rig, 0, 0, KIB, n);
		assert_true(tp_post_write(rig.lane[0], &x, 1) < 0);
		assert_true(tp_post_read(rig.lane[0], &x, 1) < 0);
		assert_true(tp_post_flush(rig.lane[0], n) < 0);
		rig_close(&rig);
	}
}

/* T4 */
static void t4_completion_frees_local_memory(void **state)
{
	(void)state;
	open_rig(4, 1, 16 * MIB, BOTH);
	for (unsigned i = 0; i < 32; i++) {
		uint64_t far_at = i * 256 * KIB;
		fill(rig.near_mem, 256 * KIB, i);
		struct tp_xfer x = rig_xfer(&rig, 0, far_at, 256 * KIB, i);
		ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
		ledger_collect(&ledger, rig.lane[0], i + 1);
		memset(rig.near_mem, 0xee, 256 * KIB);
	}
	ledger_flush(&ledger, rig.lane[0], 100);
	for (unsigned i = 0; i < 32; i++)
		assert_filled(rig.far_view + i * 256 * KIB, 256 * KIB, i);
	rig_close(&rig);
}

static void t4_completed_reads_are_there(void **state)
{
	static const uint32_t sizes[] = { 1, 7, 4096, 9001, 64 * KIB, MIB, 3 * MIB + 5 };

	(void)state;
	open_rig(16, 1, 16 * MIB, BOTH);
	fill(rig.far_view, rig.params.bytes, 4);
	for (unsigned i = 0; i < 200; i++) {
		uint32_t size = sizes[i % BASE_ARRAY_LEN(sizes)];
		uint64_t at = (i * 12289u) % (12 * MIB);
		memset(rig.near_mem, 0, size);
		struct tp_xfer x = rig_xfer(&rig, 0, at, size, i);
		ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_read);
		ledger_collect(&ledger, rig.lane[0], i + 1);
		assert_int_equal(ledger.n_failed, 0);
		assert_memory_equal(rig.near_mem, rig.far_view + at, size);
	}
	rig_close(&rig);
}

/* T5 */
static void t5_flush_makes_writes_visible(void **state)
{
	static const uint32_t sizes[] = { 1, 8, 4096, 9001, 64 * KIB, 300 * KIB, MIB };
	struct tp_xfer x[8];

	(void)state;
	open_rig(16, 1, 16 * MIB, BOTH);
	for (unsigned round = 1; round <= 200; round++) {
		uint32_t size = sizes[round % BASE_ARRAY_LEN(sizes)];
		fill(rig.near_mem, 8 * (uint64_t)size, round);
		for (unsigned i = 0; i < 8; i++)
			x[i] = rig_xfer(&rig, i * (uint64_t)size, i * (uint64_t)size, size,
					round * 16 + i);
		ledger_post(&ledger, rig.lane[0], x, 8, tp_post_write);
		ledger_flush(&ledger, rig.lane[0], round * 16 + 8);
		assert_filled(rig.far_view, 8 * (uint64_t)size, round);
	}
	rig_close(&rig);
}

struct watcher {
	pthread_t thread;
	_Atomic bool stop;
	_Atomic uint64_t flushed;
	uint64_t n_words, behind, rounds;
};

/* What a CPU of the far host sees: never less than what was flushed when it began to look. */
static void *watch(void *arg)
{
	struct watcher *watcher = arg;
	const uint64_t *words = (const uint64_t *)rig.far_view;

	while (!atomic_load(&watcher->stop)) {
		uint64_t flushed = atomic_load(&watcher->flushed);
		for (uint64_t i = 0; i < watcher->n_words; i += 61)
			watcher->behind += __atomic_load_n(&words[i], __ATOMIC_RELAXED) < flushed;
		watcher->rounds++;
	}
	return NULL;
}

static void t5_a_watching_cpu_never_sees_less_than_was_flushed(void **state)
{
	struct watcher watcher = { .n_words = MIB / 8 };
	uint64_t *near_words;

	(void)state;
	open_rig(16, 1, MIB, BOTH);
	near_words = (uint64_t *)rig.near_mem;
	assert_int_equal(pthread_create(&watcher.thread, NULL, watch, &watcher), 0);
	/* Below 256 a step changes one byte: devices may write a word bytewise. */
	for (uint64_t round = 1; round <= 250; round++) {
		for (uint64_t i = 0; i < watcher.n_words; i++)
			near_words[i] = round;
		for (unsigned i = 0; i < 4; i++) {
			struct tp_xfer x = rig_xfer(&rig, i * 256 * KIB, i * 256 * KIB, 256 * KIB,
						    round * 8 + i);
			ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
		}
		ledger_flush(&ledger, rig.lane[0], round * 8 + 4);
		atomic_store(&watcher.flushed, round);
	}
	atomic_store(&watcher.stop, true);
	assert_int_equal(pthread_join(watcher.thread, NULL), 0);
	assert_int_equal(watcher.behind, 0);
	rig_close(&rig);
}

/* T6 */
static void t6_in_flight_never_exceeds_depth(void **state)
{
	struct tp_xfer x[32];
	uint32_t accepted = 0;

	(void)state;
	open_rig(12, 1, 4 * MIB, BOTH);
	assert_int_equal(depth_of(rig.near_domain), 12);
	while (accepted < 3000) {
		for (unsigned i = 0; i < 32; i++)
			x[i] = rig_xfer(&rig, 0, 0, 64 * KIB, accepted + i);
		int done = accepted % 3 ? tp_post_write(rig.lane[0], x, 32)
					: tp_post_read(rig.lane[0], x, 32);
		if (done == -EAGAIN) {
			ledger_collect(&ledger, rig.lane[0], ledger.n_done + 1);
			continue;
		}
		assert_true(done > 0);
		accepted += (uint32_t)done;
		assert_in_range(accepted - ledger.n_done, 1, 12);
	}
	ledger_collect(&ledger, rig.lane[0], accepted);
	assert_int_equal(ledger.n_failed, 0);
	rig_close(&rig);
}

/* T7 */
static void t7_poll_gives_at_most_n(void **state)
{
	(void)state;
	open_rig(32, 1, 4 * MIB, BOTH);
	for (unsigned i = 0; i < 32; i++) {
		struct tp_xfer x = rig_xfer(&rig, i * KIB, i * KIB, KIB, i);
		assert_int_equal(tp_post_write(rig.lane[0], &x, 1), 1);
	}
	assert_int_equal(tp_lane_wait(rig.lane[0], PATIENCE), 0);
	while (ledger.n_done < 32) {
		assert_in_range(ledger_poll(&ledger, rig.lane[0], 3) + 1, 1, 4);
		(void)tp_lane_wait(rig.lane[0], base_deadline_ms(1));
	}
	/* With nothing there it comes back at once, and so it does a thousand times. */
	for (unsigned i = 0; i < 1000; i++)
		assert_int_equal(ledger_poll(&ledger, rig.lane[0], 16), 0);
	rig_close(&rig);
}

static void *wake_lane(void *lane)
{
	tp_lane_wake(lane);
	return NULL;
}

static void t7_wait_ends_by_deadline_wake_or_work(void **state)
{
	pthread_t thread;

	(void)state;
	open_rig(8, 1, 4 * MIB, BOTH);
	uint64_t deadline = base_deadline_ms(60);
	assert_int_equal(tp_lane_wait(rig.lane[0], deadline), -ETIMEDOUT);
	assert_true(base_now_us() >= deadline);
	assert_int_equal(tp_lane_wait(rig.lane[0], 0), -ETIMEDOUT);

	/* A wake before the wait is not lost, and is used up by it. */
	tp_lane_wake(rig.lane[0]);
	tp_lane_wake(rig.lane[0]);
	assert_int_equal(tp_lane_wait(rig.lane[0], PATIENCE), 0);
	assert_int_equal(tp_lane_wait(rig.lane[0], base_deadline_ms(20)), -ETIMEDOUT);
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(pthread_create(&thread, NULL, wake_lane, rig.lane[0]), 0);
		assert_int_equal(tp_lane_wait(rig.lane[0], PATIENCE), 0);
		assert_int_equal(pthread_join(thread, NULL), 0);
	}
	/* After a wait that ended for work the work is there. */
	for (unsigned i = 0; i < 100; i++) {
		struct tp_xfer x = rig_xfer(&rig, 0, 0, MIB, i);
		assert_int_equal(tp_post_read(rig.lane[0], &x, 1), 1);
		assert_int_equal(tp_lane_wait(rig.lane[0], PATIENCE), 0);
		assert_int_equal(ledger_poll(&ledger, rig.lane[0], 1), 1);
	}
	rig_close(&rig);
}

/* Sleeps on the descriptor as an event loop would. */
static void sleep_on(struct tp_lane *lane)
{
	int fd;

	while (tp_lane_arm(lane, &fd) == 0) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		assert_int_equal(poll(&pfd, 1, RIG_PATIENCE_MS), 1);
		if (ledger_poll(&ledger, lane, 16))
			return;
	}
	(void)ledger_poll(&ledger, lane, 16);
}

static void t7_an_armed_lane_says_when_to_poll(void **state)
{
	int fd;

	(void)state;
	open_rig(8, 1, 4 * MIB, BOTH);
	for (unsigned i = 0; i < 200; i++) {
		struct tp_xfer x = rig_xfer(&rig, 0, 0, i % 3 ? 4 * KIB : 2 * MIB, i);
		assert_int_equal(tp_post_read(rig.lane[0], &x, 1), 1);
		while (ledger.n_done <= i)
			sleep_on(rig.lane[0]);
	}
	while (tp_lane_arm(rig.lane[0], &fd))
		(void)ledger_poll(&ledger, rig.lane[0], 16);
	tp_lane_wake(rig.lane[0]);
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	assert_int_equal(poll(&pfd, 1, RIG_PATIENCE_MS), 1);
	/* The peer's end shows too. */
	rig_shut_far(&rig, 0);
	uint64_t deadline = PATIENCE;
	while (ledger_poll(&ledger, rig.lane[0], 16) >= 0) {
		assert_true(base_now_us() < deadline);
		if (tp_lane_arm(rig.lane[0], &fd))
			continue;
		pfd.fd = fd;
		assert_int_equal(poll(&pfd, 1, RIG_PATIENCE_MS), 1);
	}
	rig_close(&rig);
}

/* T8 */
static void t8_a_failed_lane_disturbs_no_other(void **state)
{
	static struct ledger other;

	(void)state;
	open_rig(16, 2, 8 * MIB, BOTH);
	memset(&other, 0, sizeof(other));
	fill(rig.near_mem, 8 * MIB, 8);
	uint64_t at = 0;
	for (unsigned i = 0; i < 16; i++, at += 256 * KIB) {
		struct tp_xfer x = rig_xfer(&rig, at, at, 256 * KIB, i);
		ledger_post(&ledger, rig.lane[1], &x, 1, tp_post_write);
		if (i == 4) {
			x = rig_xfer(&rig, 0, 0, KIB, 0);
			x.key++;
			assert_int_equal(tp_post_write(rig.lane[0], &x, 1), 1);
		}
		if (i == 8)
			assert_true(ledger_collect_failure(&other, rig.lane[0]) < 0);
	}
	ledger_flush(&ledger, rig.lane[1], 100);
	assert_filled(rig.far_view, at, 8);
	assert_int_equal(atomic_load(&rig.pump[1].ended), 0);
	/* Its place can be taken by a new one. */
	rig_drop_lane(&rig, 0);
	rig_add_lane(&rig, 0);
	memset(&other, 0, sizeof(other));
	struct tp_xfer x = rig_xfer(&rig, 0, 4 * MIB, MIB, 0);
	ledger_post(&other, rig.lane[0], &x, 1, tp_post_write);
	ledger_flush(&other, rig.lane[0], 1);
	assert_filled(rig.far_view + 4 * MIB, MIB, 8);
	rig_close(&rig);
}

/* T9 */

void expect_denied(struct tp_xfer x,
		   int (*post)(struct tp_lane *, const struct tp_xfer *, unsigned))
{
	static struct ledger denied;

	memset(&denied, 0, sizeof(denied));
	/* A write may complete before the far end has even looked at it; its flush may not. */
	x.cookie = 0;
	assert_int_equal(post(rig.lane[0], &x, 1), 1);
	int ret = tp_post_flush(rig.lane[0], 1);
	assert_true(ledger_collect_failure(&denied, rig.lane[0]) < 0);
	if (post == tp_post_read || ret)
		assert_true(denied.status[0] < 0);
	else
		assert_true(denied.status[1] < 0);
	rig_drop_lane(&rig, 0);
	rig_add_lane(&rig, 0);
}

static void t9_memory_has_the_rights_it_was_given(void **state)
{
	struct tp_xfer x;

	(void)state;
	open_rig(8, 1, 4 * MIB, TP_REMOTE_WRITE);
	expect_denied(rig_xfer(&rig, 0, 0, 4 * KIB, 0), tp_post_read);
	x = rig_xfer(&rig, 0, 0, 4 * KIB, 0);
	x.key ^= 1;
	expect_denied(x, tp_post_write);
	fill(rig.near_mem, MIB, 9);
	expect_denied(rig_xfer(&rig, 0, 4 * MIB - 4 * KIB, 8 * KIB, 0), tp_post_write);
	assert_zero(rig.far_view, 4 * MIB);
	x = rig_xfer(&rig, 0, MIB, MIB, 0);
	ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
	ledger_flush(&ledger, rig.lane[0], 1);
	assert_filled(rig.far_view + MIB, MIB, 9);
	rig_close(&rig);

	open_rig(8, 1, 4 * MIB, TP_REMOTE_READ);
	fill(rig.near_mem, MIB, 9);
	expect_denied(rig_xfer(&rig, 0, 0, 4 * KIB, 0), tp_post_write);
	assert_zero(rig.far_view, 4 * MIB);
	rig_close(&rig);

	open_rig(8, 1, 4 * MIB, TP_LOCAL);
	expect_denied(rig_xfer(&rig, 0, 0, 4 * KIB, 0), tp_post_write);
	expect_denied(rig_xfer(&rig, 0, 0, 4 * KIB, 0), tp_post_read);
	assert_zero(rig.far_view, 4 * MIB);
	rig_close(&rig);
}

static void t9_a_late_operation_fails(void **state)
{
	struct mf_error err = { 0 };
	struct tp_mr *mr;

	(void)state;
	open_rig(8, 2, 4 * MIB, TP_REMOTE_WRITE);
	/* Another registration of the same memory, made when the lanes were there already. */
	assert_int_equal(tp_mr_reg(rig.far_domain, rig.far_mem, 2 * MIB, BOTH, &mr, &err), 0);
	struct tp_remote remote;
	tp_mr_remote(mr, &remote);
	fill(rig.near_mem, 4 * MIB, 10);
	struct tp_xfer x = rig_xfer(&rig, 0, 0, MIB, 0);
	x.key = remote.key;
	for (unsigned i = 0; i < 2; i++) {
		static struct ledger one;
		memset(&one, 0, sizeof(one));
		x.remote = remote.addr + i * MIB;
		ledger_post(&one, rig.lane[i], &x, 1, tp_post_write);
		ledger_flush(&one, rig.lane[i], 1);
	}
	assert_filled(rig.far_view, MIB, 10);
	assert_filled(rig.far_view + MIB, MIB, 10);
	tp_mr_dereg(mr);
	memset(rig.far_view, 0, 2 * MIB);
	expect_denied(x, tp_post_write);
	expect_denied(x, tp_post_read);
	assert_zero(rig.far_view, 4 * MIB);
	/* The other lane is as well off as before, with what is still registered. */
	x = rig_xfer(&rig, 0, MIB, MIB, 0);
	ledger_post(&ledger, rig.lane[1], &x, 1, tp_post_write);
	ledger_flush(&ledger, rig.lane[1], 1);
	assert_filled(rig.far_view + MIB, MIB, 10);
	rig_close(&rig);
}

/* Registering goes on in one thread while lanes move data in others. */
static void t9_registration_is_safe_beside_traffic(void **state)
{
	struct mf_error err = { 0 };
	uint32_t cookie = 0;

	(void)state;
	open_rig(8, 2, 4 * MIB, BOTH);
	fill(rig.near_mem, 4 * MIB, 11);
	for (unsigned round = 0; round < 300; round++) {
		struct tp_mr *mr;
		struct tp_remote remote;
		assert_int_equal(tp_mr_reg(rig.far_domain, rig.far_mem, 4 * MIB, BOTH, &mr, &err),
				 0);
		tp_mr_remote(mr, &remote);
		struct tp_xfer x[2] = { rig_xfer(&rig, 0, 0, 64 * KIB, cookie),
					rig_xfer(&rig, 0, 64 * KIB, 64 * KIB, cookie + 1) };
		x[1].key = remote.key;
		ledger_post(&ledger, rig.lane[round % 2], x, 2, tp_post_write);
		ledger_flush(&ledger, rig.lane[round % 2], cookie + 2);
		cookie += 3;
		tp_mr_dereg(mr);
	}
	assert_int_equal(ledger.n_failed, 0);
	rig_close(&rig);
}

/* Counters */

static void counters_add_up(void **state)
{
	struct tp_xfer x[40];
	struct tp_lane_stats stats;

	(void)state;
	open_rig(64, 1, 4 * MIB, BOTH);
	for (unsigned i = 0; i < 40; i++)
		x[i] = rig_xfer(&rig, i * KIB, i * KIB, KIB, i);
	ledger_post(&ledger, rig.lane[0], x, 40, tp_post_write);
	ledger_flush(&ledger, rig.lane[0], 40);
	/* Slept for, this one. */
	struct tp_xfer read = rig_xfer(&rig, 0, 0, 2 * MIB, 41);
	ledger_post(&ledger, rig.lane[0], &read, 1, tp_post_read);
	ledger_collect(&ledger, rig.lane[0], 42);
	tp_lane_stats(rig.lane[0], &stats);
	assert_int_equal(stats.writes, 40);
	assert_int_equal(stats.reads, 1);
	assert_int_equal(stats.flushes, 1);
	assert_int_equal(stats.bytes_written, 40 * KIB);
	assert_int_equal(stats.bytes_read, 2 * MIB);
	assert_int_equal(stats.signalled + stats.unsignalled, 42);
	assert_int_equal(stats.polled + stats.evented, 42);
	assert_true(stats.signalled >= 3);
	if (!stats.waits)
		assert_int_equal(stats.evented, 0);

	/* A poll that nobody slept before, and then the other way. */
	read = rig_xfer(&rig, 0, 0, KIB, 42);
	ledger_post(&ledger, rig.lane[0], &read, 1, tp_post_read);
	while (ledger.n_done < 43)
		assert_true(ledger_poll(&ledger, rig.lane[0], 16) >= 0);
	struct tp_lane_stats polled;
	tp_lane_stats(rig.lane[0], &polled);
	assert_int_equal(polled.polled, stats.polled + 1);
	assert_int_equal(polled.evented, stats.evented);
	rig_close(&rig);
}

static void registrations_are_counted(void **state)
{
	struct tp_domain_stats before, stats;
	struct mf_error err = { 0 };
	struct tp_mr *mr;

	(void)state;
	open_rig(8, 1, MIB, BOTH);
	tp_domain_stats(rig.near_domain, &before);
	assert_int_equal(before.registrations, 1);
	assert_int_equal(before.windows, 0);
	assert_int_equal(before.bytes_pinned, ops->caps & TP_CAP_PINS ? MIB : 0);
	assert_int_equal(
		tp_mr_reg(rig.near_domain, rig.near_mem, 64 * KIB, TP_REMOTE_READ, &mr, &err), 0);
	tp_domain_stats(rig.near_domain, &stats);
	assert_int_equal(stats.registrations, 2);
	if (ops->caps & TP_CAP_PINS)
		assert_int_equal(stats.bytes_pinned, MIB + 64 * KIB);
	tp_mr_dereg(mr);
	tp_domain_stats(rig.near_domain, &stats);
	assert_int_equal(stats.registrations, 1);
	assert_int_equal(stats.bytes_pinned, before.bytes_pinned);
	rig_close(&rig);
}

static void a_gap_is_less_than_an_operation(void **state)
{
	struct tp_limits limits;

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	tp_domain_limits(rig.near_domain, &limits);
	assert_in_range(limits.gap, 1, limits.max_op);
	rig_close(&rig);
}

static bool can_use(const struct tp_ops *inner)
{
	const struct tp_domain_params params = { .local = rig_host(),
						 .depth = 1,
						 .seal = &rig_seal };
	struct mf_error err = { 0 };
	struct tp_domain *domain;

	if (tp_domain_open(inner, &params, &domain, &err)) {
		(void)printf("SKIP: %s\n", err.msg);
		return false;
	}
	tp_domain_close(domain);
	return true;
}

static const struct tp_ops *find(const char *name)
{
	const char *under = strchr(name, ':');

	if (!under)
		return tp_find(name);
	rig_seal.sealing = strncmp(name, "hashed", 6) ? TP_SEAL_ENCRYPT : TP_SEAL_INTEGRITY;
	return tp_find_sealed(under + 1);
}

int main(int argc, char **argv)
{
	static struct tp_faulty_plan no_faults;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(t1_posts_accept_a_prefix),
		cmocka_unit_test(t2_eagain_changes_nothing),
		cmocka_unit_test(t3_operations_complete_once),
		cmocka_unit_test(t3_operations_complete_once_after_shutdown),
		cmocka_unit_test(t3_operations_complete_once_after_the_peers_shutdown),
		cmocka_unit_test(t4_completion_frees_local_memory),
		cmocka_unit_test(t4_completed_reads_are_there),
		cmocka_unit_test(t5_flush_makes_writes_visible),
		cmocka_unit_test(t5_a_watching_cpu_never_sees_less_than_was_flushed),
		cmocka_unit_test(t6_in_flight_never_exceeds_depth),
		cmocka_unit_test(t7_poll_gives_at_most_n),
		cmocka_unit_test(t7_wait_ends_by_deadline_wake_or_work),
		cmocka_unit_test(t7_an_armed_lane_says_when_to_poll),
		cmocka_unit_test(t8_a_failed_lane_disturbs_no_other),
		cmocka_unit_test(t9_memory_has_the_rights_it_was_given),
		cmocka_unit_test(t9_a_late_operation_fails),
		cmocka_unit_test(t9_registration_is_safe_beside_traffic),
		cmocka_unit_test(t10_a_wrong_token_is_refused),
		cmocka_unit_test(t10_a_wrong_token_never_becomes_a_lane),
		cmocka_unit_test(t10_strangers_do_not_hinder),
		cmocka_unit_test(t11_accept_returns_by_its_deadline),
		cmocka_unit_test(t11_a_silent_peer_is_an_error),
		cmocka_unit_test(t11_a_closing_peer_is_an_error),
		cmocka_unit_test(t11_a_refused_port_is_named),
		cmocka_unit_test(t11_a_port_in_use_is_named),
		cmocka_unit_test(t12_a_killed_peer_fails_what_is_outstanding),
		cmocka_unit_test(t12_a_killed_peer_fails_an_idle_lane),
		cmocka_unit_test(t12_a_killed_peer_shows_to_a_poller),
		cmocka_unit_test(t12_reads_broken_in_the_middle_complete_once),
		cmocka_unit_test(t13_lent_memory_is_reachable_on_its_lane_with_its_right),
		cmocka_unit_test(t13_what_was_revoked_stays_as_it_is),
		cmocka_unit_test(t13_our_own_operations_go_on),
		cmocka_unit_test(t13_many_are_lent_and_revoked_at_once),
		cmocka_unit_test(t14_messages_come_whole_and_in_order),
		cmocka_unit_test(t14_messages_keep_their_place_among_writes),
		cmocka_unit_test(t14_receives_are_bounded_and_complete_once),
		cmocka_unit_test(t14_a_message_too_long_fails_the_lane),
		cmocka_unit_test(counters_add_up),
		cmocka_unit_test(registrations_are_counted),
		cmocka_unit_test(a_gap_is_less_than_an_operation),
	};

	if (argc != 2 && argc != 3) {
		(void)fprintf(stderr,
			      "usage: conf_transport [sealed:|hashed:]BACKEND|faulty [TEST]\n");
		return 2;
	}
	if (argc == 3)
		cmocka_set_test_filter(argv[2]);
	bool faulty = !strcmp(argv[1], "faulty");
	const struct tp_ops *inner = find(faulty ? "tcp" : argv[1]);
	if (!inner) {
		(void)printf("SKIP: the transport %s was not built\n", argv[1]);
		return 77;
	}
	if (strcmp(inner->kind, "tcp") && !can_use(inner))
		return 77;
	ops = faulty ? tp_faulty_create(inner, &no_faults) : inner;
	int failed = ops ? cmocka_run_group_tests_name(argv[1], tests, NULL, NULL) : 1;
	if (faulty)
		tp_faulty_destroy(ops);
	return failed;
}
