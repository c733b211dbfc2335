/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The laws of transport/transport.h, one test of each number and a few more where a law has
 * several sides.  conf_transport BACKEND [TEST]; BACKEND "faulty" is the fault injector with an
 * empty plan, "sealed:BACKEND" and "hashed:BACKEND" are the sealed transport over one.  $MEMFERRY_TEST_HOST is the address to use: for verbs, that of an RDMA device.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "tests/conformance/tp_rig.h"
#include "transport/faulty/faulty.h"
#include "transport/token.h"

#define KIB      1024u
#define MIB      (1024u * KIB)
#define BOTH     (TP_REMOTE_WRITE | TP_REMOTE_READ)
#define PATIENCE base_deadline_ms(RIG_PATIENCE_MS)

static const struct tp_ops *ops;
static struct rig rig;
static struct ledger ledger;

static void open_rig(uint32_t depth, unsigned n_lanes, uint64_t bytes, uint32_t far_access)
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

/* What is under TCP is a socket that anybody can open; what is not, is not. */
static bool is_tcp(void)
{
	return !strcmp(ops->kind, "tcp");
}

static uint32_t depth_of(struct tp_domain *domain)
{
	struct tp_limits limits;

	tp_domain_limits(domain, &limits);
	return limits.depth;
}

static void fill(uint8_t *mem, uint64_t len, uint64_t seed)
{
	for (uint64_t i = 0; i < len; i++)
		mem[i] = (uint8_t)((i * 131 + (i >> 8) * 17 + seed * 29) ^ seed);
}

static void assert_filled(const uint8_t *mem, uint64_t len, uint64_t seed)
{
	for (uint64_t i = 0; i < len; i++) {
		uint8_t want = (uint8_t)((i * 131 + (i >> 8) * 17 + seed * 29) ^ seed);
		if (mem[i] != want)
			fail_msg("byte %lu of %lu is %02x and not %02x", (unsigned long)i,
				 (unsigned long)len, mem[i], want);
	}
}

static void assert_zero(const uint8_t *mem, uint64_t len)
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

/* The operation fails, and the lane with it; a new lane takes its place. */
static void expect_denied(struct tp_xfer x,
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

/* T10 */

struct acceptor {
	pthread_t thread;
	struct tp_listener *listener;
	uint8_t token[TP_TOKEN_SIZE];
	uint64_t deadline_us;
	struct tp_lane *lane;
	int ret;
	struct mf_error err;
};

static void *run_acceptor(void *arg)
{
	struct acceptor *acceptor = arg;

	acceptor->ret = tp_accept(acceptor->listener, acceptor->token, acceptor->deadline_us,
				  &acceptor->lane, &acceptor->err);
	return NULL;
}

static void start_acceptor(struct acceptor *acceptor, uint64_t deadline_us)
{
	memset(acceptor, 0, sizeof(*acceptor));
	acceptor->listener = rig.listener;
	acceptor->deadline_us = deadline_us;
	memcpy(acceptor->token, rig.token, TP_TOKEN_SIZE);
	assert_int_equal(pthread_create(&acceptor->thread, NULL, run_acceptor, acceptor), 0);
}

static int tcp_connect(const char *addr)
{
	struct sockaddr_in sin = { .sin_family = AF_INET };
	char host[TP_ADDR_MAX];

	(void)snprintf(host, sizeof(host), "%s", addr);
	char *colon = strrchr(host, ':');
	assert_non_null(colon);
	*colon = '\0';
	sin.sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10));
	assert_int_equal(inet_pton(AF_INET, host, &sin.sin_addr), 1);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
	return fd;
}

static void t10_a_wrong_token_is_refused(void **state)
{
	struct acceptor acceptor;
	struct tp_lane *lane = NULL;

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	start_acceptor(&acceptor, PATIENCE);
	for (unsigned i = 0; i < 3; i++) {
		struct mf_error err = { 0 };
		uint8_t wrong[TP_TOKEN_SIZE];
		memcpy(wrong, rig.token, sizeof(wrong));
		if (i < 2)
			wrong[i * (TP_TOKEN_SIZE - 1)] ^= 0x10;
		else /* what was seen on the wire when a lane was connected */
			assert_int_equal(tp_lane_proof(rig.token, 5, wrong), 0);
		assert_true(tp_connect(rig.near_domain, rig.addr, wrong, 5, PATIENCE, &lane, &err) <
			    0);
		assert_null(lane);
		assert_non_null(strstr(err.msg, rig.addr));
		assert_non_null(strstr(err.msg, "token"));
	}
	/* The acceptor is still there for the right one. */
	struct mf_error err = { 0 };
	assert_int_equal(tp_connect(rig.near_domain, rig.addr, rig.token, 7, PATIENCE, &lane, &err),
			 0);
	assert_int_equal(pthread_join(acceptor.thread, NULL), 0);
	assert_int_equal(acceptor.ret, 0);
	assert_int_equal(acceptor.lane->id, 7);
	assert_int_equal(lane->id, 7);
	tp_lane_close(lane);
	tp_lane_close(acceptor.lane);
	rig_close(&rig);
}

static void t10_a_wrong_token_never_becomes_a_lane(void **state)
{
	struct acceptor acceptor;
	struct tp_lane *lane = NULL;
	uint8_t wrong[TP_TOKEN_SIZE] = { 0 };

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	start_acceptor(&acceptor, base_deadline_ms(1500));
	struct mf_error err = { 0 };
	assert_true(tp_connect(rig.near_domain, rig.addr, wrong, 5, PATIENCE, &lane, &err) < 0);
	assert_int_equal(pthread_join(acceptor.thread, NULL), 0);
	assert_int_equal(acceptor.ret, -ETIMEDOUT);
	assert_null(acceptor.lane);
	rig_close(&rig);
}

/* Those that are no memferry at all: silent, gone at once, talking nonsense. */
static void t10_strangers_do_not_hinder(void **state)
{
	struct acceptor acceptor;
	struct tp_lane *lane = NULL;
	int silent[8];
	char junk[4096];

	(void)state;
	if (!is_tcp())
		return; /* its own suite knows how to be a stranger: conf_verbs.c */
	open_rig(8, 0, MIB, BOTH);
	memset(junk, 0x5a, sizeof(junk));
	start_acceptor(&acceptor, PATIENCE);
	for (unsigned i = 0; i < BASE_ARRAY_LEN(silent); i++) {
		silent[i] = tcp_connect(rig.addr);
		(void)close(tcp_connect(rig.addr));
		int talking = tcp_connect(rig.addr);
		assert_int_equal(send(talking, junk, sizeof(junk), MSG_NOSIGNAL), sizeof(junk));
		/* The far end closes it; nothing else could ever come. */
		struct pollfd pfd = { .fd = talking, .events = POLLIN };
		assert_int_equal(poll(&pfd, 1, RIG_PATIENCE_MS), 1);
		assert_true(recv(talking, junk + 1, 1, 0) <= 0);
		(void)close(talking);
	}
	struct mf_error err = { 0 };
	assert_int_equal(tp_connect(rig.near_domain, rig.addr, rig.token, 1, PATIENCE, &lane, &err),
			 0);
	assert_int_equal(pthread_join(acceptor.thread, NULL), 0);
	assert_int_equal(acceptor.ret, 0);
	tp_lane_close(lane);
	tp_lane_close(acceptor.lane);
	/* A silent one is given up in the end, and none outlives the listener. */
	start_acceptor(&acceptor, PATIENCE);
	struct pollfd pfd = { .fd = silent[0], .events = POLLIN };
	assert_int_equal(poll(&pfd, 1, RIG_PATIENCE_MS), 1);
	assert_int_equal(recv(silent[0], junk, 1, 0), 0);
	assert_int_equal(tp_connect(rig.near_domain, rig.addr, rig.token, 2, PATIENCE, &lane, &err),
			 0);
	assert_int_equal(pthread_join(acceptor.thread, NULL), 0);
	tp_lane_close(lane);
	tp_lane_close(acceptor.lane);
	int late = tcp_connect(rig.addr);
	rig_close(&rig);
	pfd.fd = late;
	assert_int_equal(poll(&pfd, 1, RIG_PATIENCE_MS), 1);
	(void)close(late);
	for (unsigned i = 0; i < BASE_ARRAY_LEN(silent); i++)
		(void)close(silent[i]);
}

/* T11 */

/* A socket of ours at a port of the kernel's choice. */
static int own_port(bool listening, char *ret_addr, size_t cap)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001) };
	socklen_t len = sizeof(sin);

	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
	if (listening)
		assert_int_equal(listen(fd, 16), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&sin, &len), 0);
	(void)snprintf(ret_addr, cap, "127.0.0.1:%u", ntohs(sin.sin_port));
	return fd;
}

static void t11_accept_returns_by_its_deadline(void **state)
{
	struct mf_error err = { 0 };
	struct tp_lane *lane = NULL;

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	uint64_t deadline = base_deadline_ms(100);
	assert_int_equal(tp_accept(rig.listener, rig.token, deadline, &lane, &err), -ETIMEDOUT);
	assert_true(base_now_us() >= deadline);
	assert_int_equal(err.code, -ETIMEDOUT);
	assert_null(lane);
	rig_close(&rig);
}

static void t11_a_silent_peer_is_an_error(void **state)
{
	struct mf_error err = { 0 };
	struct tp_lane *lane = NULL;
	char addr[TP_ADDR_MAX];

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	base_autofd fd = own_port(true, addr, sizeof(addr));
	/* Without sockets: there is a listener, and nobody to accept. */
	if (!is_tcp())
		memcpy(addr, rig.addr, sizeof(addr));
	uint64_t deadline = base_deadline_ms(300);
	assert_int_equal(tp_connect(rig.near_domain, addr, rig.token, 0, deadline, &lane, &err),
			 -ETIMEDOUT);
	assert_true(base_now_us() >= deadline);
	assert_null(lane);
	assert_non_null(strstr(err.msg, addr));
	rig_close(&rig);
}

static void *run_connector(void *arg)
{
	struct mf_error err = { 0 };
	struct tp_lane *lane = NULL;

	*(int *)arg = tp_connect(rig.near_domain, rig.addr, rig.token, 0, PATIENCE, &lane, &err);
	return lane;
}

/* Whether the request comes before or after it, it is an answer. */
static void close_listener_meanwhile(void)
{
	pthread_t thread;
	void *lane;
	int ret = 0;

	assert_int_equal(pthread_create(&thread, NULL, run_connector, &ret), 0);
	tp_listener_close(rig.listener);
	rig.listener = NULL;
	assert_int_equal(pthread_join(thread, &lane), 0);
	assert_true(ret < 0 && ret != -ETIMEDOUT);
	assert_null(lane);
	rig_close(&rig);
}

static void t11_a_closing_peer_is_an_error(void **state)
{
	struct mf_error err = { 0 };
	struct tp_lane *lane = NULL;
	char addr[TP_ADDR_MAX];

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	if (!is_tcp()) {
		close_listener_meanwhile();
		return;
	}
	base_autofd fd = own_port(true, addr, sizeof(addr));
	pid_t child = fork();
	assert_true(child >= 0);
	if (!child) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)close(accept(fd, NULL, NULL));
		_exit(0);
	}
	int ret = tp_connect(rig.near_domain, addr, rig.token, 0, PATIENCE, &lane, &err);
	assert_true(ret < 0 && ret != -ETIMEDOUT);
	assert_null(lane);
	assert_int_equal(waitpid(child, NULL, 0), child);
	rig_close(&rig);
}

static void t11_a_refused_port_is_named(void **state)
{
	struct mf_error err = { 0 };
	struct tp_lane *lane = NULL;
	char addr[TP_ADDR_MAX];

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	base_autofd fd = own_port(false, addr, sizeof(addr));
	/* Port 1 is nobody's, and the kernel gives it to nobody. */
	if (!is_tcp())
		(void)snprintf(addr, sizeof(addr), "%s:1", rig_host());
	assert_int_equal(tp_connect(rig.near_domain, addr, rig.token, 0, PATIENCE, &lane, &err),
			 -ECONNREFUSED);
	assert_null(lane);
	assert_int_equal(err.code, -ECONNREFUSED);
	assert_non_null(strstr(err.msg, addr));
	/* A name is looked up, and each of its addresses tried. */
	if (!strcmp(rig_host(), "127.0.0.1")) {
		err = (struct mf_error){ 0 };
		(void)snprintf(addr, sizeof(addr), "localhost:%s", strrchr(rig.addr, ':') + 1);
		assert_int_equal(tp_connect(rig.near_domain, addr, rig.token, 0,
					    base_deadline_ms(200), &lane, &err),
				 -ETIMEDOUT); /* nobody accepts */
	}
	err = (struct mf_error){ 0 };
	assert_true(tp_connect(rig.near_domain, "no.such.host.invalid:7741", rig.token, 0, PATIENCE,
			       &lane, &err) < 0);
	assert_non_null(strstr(err.msg, "no.such.host.invalid"));
	rig_close(&rig);
}

static void t11_a_port_in_use_is_named(void **state)
{
	struct mf_error err = { 0 };
	struct tp_listener *listener = NULL;

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	assert_int_equal(tp_listen(rig.far_domain, rig.addr, &listener, &err), -EADDRINUSE);
	assert_null(listener);
	assert_non_null(strstr(err.msg, rig.addr));
	rig_close(&rig);
}

/* T12: the far end is another process. */

struct far_process {
	pid_t pid;
	int hello; /* the child's pipe: its address, then its memory's name */
	char addr[TP_ADDR_MAX];
	struct tp_remote remote;
};

static void full_read(int fd, void *to, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = read(fd, (char *)to + done, len - done);
		assert_true(n > 0);
		done += (size_t)n;
	}
}

/* Admits one lane, serves it if told to, and otherwise holds still until it is killed. */
static void be_far(int out, const uint8_t *token, bool serve)
{
	struct tp_domain_params params = { .local = rig_host(), .depth = 16, .seal = &rig_seal };
	struct tp_domain *domain;
	struct tp_listener *listener;
	struct tp_lane *lane;
	struct tp_mr *mr;
	struct far_process self = { 0 };
	struct tp_wc wc[16];
	char any_port[TP_ADDR_MAX];

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)snprintf(any_port, sizeof(any_port), "%s:0", rig_host());
	uint8_t *mem = calloc(8, MIB);
	if (!mem || tp_domain_open(ops, &params, &domain, NULL) ||
	    tp_mr_reg(domain, mem, 8 * MIB, BOTH, &mr, NULL) ||
	    tp_listen(domain, any_port, &listener, NULL))
		_exit(1);
	tp_listener_addr(listener, self.addr, sizeof(self.addr));
	tp_mr_remote(mr, &self.remote);
	if (write(out, self.addr, sizeof(self.addr)) != sizeof(self.addr) ||
	    write(out, &self.remote, sizeof(self.remote)) != sizeof(self.remote) ||
	    tp_accept(listener, token, PATIENCE, &lane, NULL))
		_exit(1);
	while (serve && tp_lane_poll(lane, wc, 16) >= 0)
		(void)tp_lane_wait(lane, PATIENCE);
	for (;;)
		(void)pause();
}

static void start_far(struct far_process *far, const uint8_t *token, bool serve)
{
	int fds[2];

	assert_int_equal(pipe(fds), 0);
	far->pid = fork();
	assert_true(far->pid >= 0);
	if (!far->pid) {
		(void)close(fds[0]);
		be_far(fds[1], token, serve);
	}
	(void)close(fds[1]);
	far->hello = fds[0];
	full_read(far->hello, far->addr, sizeof(far->addr));
	full_read(far->hello, &far->remote, sizeof(far->remote));
}

static void kill_far(struct far_process *far)
{
	assert_int_equal(kill(far->pid, SIGKILL), 0);
	assert_int_equal(waitpid(far->pid, NULL, 0), far->pid);
	(void)close(far->hello);
}

struct near_end {
	struct tp_domain *domain;
	struct tp_mr *mr;
	struct tp_lane *lane;
	uint8_t *mem;
};

static void connect_near(struct near_end *near, const struct far_process *far, const uint8_t *token)
{
	struct tp_domain_params params = { .depth = 16, .seal = &rig_seal };
	struct mf_error err = { 0 };

	memset(&ledger, 0, sizeof(ledger));
	near->mem = calloc(8, MIB);
	assert_non_null(near->mem);
	assert_int_equal(tp_domain_open(ops, &params, &near->domain, &err), 0);
	assert_int_equal(tp_mr_reg(near->domain, near->mem, 8 * MIB, TP_LOCAL, &near->mr, &err), 0);
	assert_int_equal(tp_connect(near->domain, far->addr, token, 3, PATIENCE, &near->lane, &err),
			 0);
}

static void close_near(struct near_end *near)
{
	tp_lane_shutdown(near->lane);
	tp_lane_close(near->lane);
	tp_mr_dereg(near->mr);
	tp_domain_close(near->domain);
	free(near->mem);
}

static struct tp_xfer near_xfer(const struct near_end *near, const struct far_process *far,
				uint64_t len, uint64_t cookie)
{
	return (struct tp_xfer){ .local = near->mem,
				 .mr = near->mr,
				 .remote = far->remote.addr,
				 .key = far->remote.key,
				 .len = len,
				 .cookie = cookie };
}

/* All of it outstanding: the peer lives, but does not run its lane. */
static void t12_a_killed_peer_fails_what_is_outstanding(void **state)
{
	static const uint8_t token[TP_TOKEN_SIZE] = { 12 };
	struct far_process far;
	struct near_end near;

	(void)state;
	start_far(&far, token, false);
	connect_near(&near, &far, token);
	for (unsigned i = 0; i < 5; i++) {
		struct tp_xfer x = near_xfer(&near, &far, 8 * MIB, 3 * i);
		assert_int_equal(tp_post_write(near.lane, &x, 1), 1);
		assert_int_equal(tp_post_flush(near.lane, 3 * i + 1), 0);
		x.cookie = 3 * i + 2;
		assert_int_equal(tp_post_read(near.lane, &x, 1), 1);
	}
	for (unsigned i = 0; i < 200; i++)
		(void)ledger_poll(&ledger, near.lane, 16);
	kill_far(&far);
	assert_true(ledger_collect_failure(&ledger, near.lane) < 0);
	assert_int_equal(ledger.n_done, 15);
	if (ops->caps & TP_CAP_TARGET_PROGRESS) {
		for (unsigned i = 0; i < 15; i++) {
			if (i % 3)
				assert_true(ledger.status[i] < 0);
		}
		/* At 8 MiB not even the writes are all with the kernel. */
		assert_true(ledger.status[12] < 0);
	}
	close_near(&near);
}

static void t12_a_killed_peer_fails_an_idle_lane(void **state)
{
	static const uint8_t token[TP_TOKEN_SIZE] = { 13 };
	struct far_process far;
	struct near_end near;
	struct tp_wc wc;

	(void)state;
	start_far(&far, token, true);
	connect_near(&near, &far, token);
	struct tp_xfer x = near_xfer(&near, &far, MIB, 0);
	ledger_post(&ledger, near.lane, &x, 1, tp_post_write);
	ledger_flush(&ledger, near.lane, 1);
	kill_far(&far);
	assert_int_equal(tp_lane_wait(near.lane, PATIENCE), 0);
	assert_true(tp_lane_poll(near.lane, &wc, 1) < 0);
	close_near(&near);
}

/* Polled only, never waited for. */
static void t12_a_killed_peer_shows_to_a_poller(void **state)
{
	static const uint8_t token[TP_TOKEN_SIZE] = { 14 };
	struct far_process far;
	struct near_end near;
	struct tp_wc wc;

	(void)state;
	start_far(&far, token, true);
	connect_near(&near, &far, token);
	kill_far(&far);
	uint64_t deadline = PATIENCE;
	while (tp_lane_poll(near.lane, &wc, 1) >= 0)
		assert_true(base_now_us() < deadline);
	close_near(&near);
}

static void t12_reads_broken_in_the_middle_complete_once(void **state)
{
	static const uint8_t token[TP_TOKEN_SIZE] = { 15 };

	(void)state;
	for (unsigned round = 0; round < 10; round++) {
		struct far_process far;
		struct near_end near;
		start_far(&far, token, true);
		connect_near(&near, &far, token);
		for (unsigned i = 0; i < 16; i++) {
			struct tp_xfer x = near_xfer(&near, &far, 8 * MIB, i);
			assert_int_equal(tp_post_read(near.lane, &x, 1), 1);
		}
		ledger_collect(&ledger, near.lane, 1 + round / 2);
		kill_far(&far);
		/* A device may have answered all of them on its own; to this one nobody is left. */
		struct tp_xfer late = near_xfer(&near, &far, KIB, 16);
		uint32_t n = 16 + (tp_post_read(near.lane, &late, 1) == 1);
		assert_true(ledger_collect_failure(&ledger, near.lane) < 0);
		assert_int_equal(ledger.n_done, n);
		assert_true(n == 16 || ledger.status[16] < 0);
		if (ops->caps & TP_CAP_TARGET_PROGRESS)
			assert_true(ledger.n_failed > 0);
		close_near(&near);
	}
}

/* T13 */

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

static void t13_lent_memory_is_reachable_on_its_lane_with_its_right(void **state)
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

static void t13_what_was_revoked_stays_as_it_is(void **state)
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

static void t13_our_own_operations_go_on(void **state)
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
static void t13_many_are_lent_and_revoked_at_once(void **state)
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

/* T14 */

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

static void t14_messages_come_whole_and_in_order(void **state)
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

static void t14_messages_keep_their_place_among_writes(void **state)
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

static void t14_receives_are_bounded_and_complete_once(void **state)
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

static void t14_a_message_too_long_fails_the_lane(void **state)
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

/* T15: what is only true of sealed lanes is in test_sealed.c. */

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
