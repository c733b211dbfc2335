/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The tracker contract's laws, D1 to D8, over the trackers that ask KVM: the writers are the vCPUs of a guest in this
 * process, whose pages lie in several memory slots with borders in the middle of words.
 *
 *   conf_tracker_kvm kvmlog|kvmring
 *
 * What conf_tracker.c does for those that watch an address space.  D7 is by construction here: a vCPU never
 * waits for a collect, and the owner that stands still is one that does not collect (rings fill meanwhile).
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "tests/monitor/machine.h"
#include "tracker/tracker.h"

#define PAGES  2048u
#define PAGE   4096u
#define ROUNDS 40
#define LANES  2

struct variant {
	const char *name;
	const struct trk_ops *ops;
	struct machine_params machine;
};

struct bench {
	struct machine m;
	struct mf_adapter adapter;
	struct mf_guest guest;
	struct trk *trk;
	uint64_t bits[PAGES / 64];
	char *shadow;
};

static void check(int code, const struct mf_error *err)
{
	if (code < 0)
		fail_msg("%d: %s", code, err->msg);
}

static void open_tracker(struct bench *b, const struct trk_ops *ops, const struct trk_range *ranges,
			 uint32_t n)
{
	struct mf_error err = { 0 };
	struct trk_params params = {
		.uffd = -1, .ranges = ranges, .n_ranges = n, .kvm = b->guest.kvm
	};
	check(trk_probe(ops, &params, &err), &err);
	check(trk_open(ops, &params, &b->trk, &err), &err);
	check(trk_start(b->trk, &err), &err);
}

static struct bench *set_up(void **state)
{
	const struct variant *v = *state;
	struct bench *b = calloc(1, sizeof(*b));
	struct mf_error err = { 0 };
	const char *why = machine_open(&b->m, &v->machine);
	if (why)
		fail_msg("%s", why);
	machine_start(&b->m);
	check(mf_kvm_adapter(b->m.kvm, &b->adapter, &err), &err);
	check(b->adapter.ops->describe(b->adapter.hv, &b->guest, &err), &err);
	b->shadow = malloc((size_t)PAGES * PAGE);
	memcpy(b->shadow, b->m.pages, (size_t)PAGES * PAGE);
	const struct trk_range range = { (uintptr_t)b->m.pages, (uint64_t)PAGES * PAGE, PAGE };
	open_tracker(b, v->ops, &range, 1);
	return b;
}

static void tear_down(struct bench *b)
{
	trk_close(b->trk);
	machine_stop(&b->m);
	assert_int_equal(atomic_load(&b->m.panic), 0);
	b->adapter.ops->close(b->adapter.hv);
	machine_close(&b->m);
	free(b->shadow);
	free(b);
}

static uint64_t collect_part(struct bench *b, uint64_t first, uint64_t n, uint64_t *bits)
{
	struct mf_error err = { 0 };
	uint64_t pages = 0;
	check(trk_collect(b->trk, 0, first, n, bits, &pages, &err), &err);
	return pages;
}

/* Without clearing: law D8's first half. */
static uint64_t collect_only(struct bench *b)
{
	memset(b->bits, 0, sizeof(b->bits));
	uint64_t pages = collect_part(b, 0, PAGES, b->bits);
	assert_int_equal(pages, bitmap_count(b->bits, 0, PAGES));
	return pages;
}

static uint64_t collect(struct bench *b)
{
	uint64_t pages = collect_only(b);
	assert_int_equal(trk_clear(b->trk, 0, 0, PAGES), 0);
	return pages;
}

static void copy_run(struct bench *b, uint64_t first, uint64_t n)
{
	/* The guest writes on meanwhile: words are what it writes, so they are what is read. */
	const volatile uint64_t *from = (const volatile uint64_t *)(b->m.pages + first * PAGE);
	uint64_t *to = (uint64_t *)(b->shadow + first * PAGE);
	for (uint64_t i = 0; i < n * PAGE / 8; i++)
		to[i] = from[i];
}

static void copy_reported(struct bench *b, uint64_t first, uint64_t end)
{
	struct extent e;
	for (uint64_t at = first; bitmap_next_extent(b->bits, at, end, 32, &e);
	     at = e.first + e.n) {
		assert_int_equal(trk_clear(b->trk, 0, e.first, e.n), 0);
		copy_run(b, e.first, e.n);
	}
}

/* ---- the guest ---- */

static void order(struct bench *b, uint32_t vcpu, enum guest_order what, uint64_t first, uint64_t n,
		  uint64_t value)
{
	machine_order(&b->m, vcpu, what, first, n, value);
	if (!machine_done(&b->m, vcpu))
		fail_msg("the guest does not obey: %d", atomic_load(&b->m.panic));
}

static void write_pages(struct bench *b, uint64_t first, uint64_t n, uint64_t value)
{
	order(b, (uint32_t)(first + n) % b->m.n_vcpus, ORDER_WRITE, first, n, value);
}

static void start_writers(struct bench *b)
{
	__atomic_store_n(&b->m.desk->stop, 0, __ATOMIC_RELEASE);
	for (uint32_t i = 0; i < b->m.n_vcpus; i++)
		machine_order(&b->m, i, ORDER_WRITE_ON, 0, 0, 0);
}

static void stop_writers(struct bench *b)
{
	__atomic_store_n(&b->m.desk->stop, 1, __ATOMIC_RELEASE);
	for (uint32_t i = 0; i < b->m.n_vcpus; i++) {
		if (!machine_done(&b->m, i))
			fail_msg("the writers do not stop: %d", atomic_load(&b->m.panic));
	}
}

static void snapshot(const struct bench *b, uint64_t (*seen)[PAGES])
{
	for (uint32_t v = 0; v < b->m.n_vcpus; v++) {
		for (uint64_t p = 0; p < PAGES; p++)
			seen[v][p] = __atomic_load_n(&b->m.desk->done[v][p], __ATOMIC_ACQUIRE);
	}
}

static void check_not_older(const struct bench *b, uint64_t (*seen)[PAGES])
{
	for (uint32_t v = 0; v < b->m.n_vcpus; v++) {
		for (uint64_t p = 0; p < PAGES; p++) {
			uint64_t have;
			memcpy(&have, b->shadow + p * PAGE + v * 8, sizeof(have));
			if (have < seen[v][p])
				fail_msg("page %" PRIu64 ": vCPU %u had written %" PRIu64
					 ", reported was %" PRIu64,
					 p, v, seen[v][p], have);
		}
	}
}

static void check_equal(const struct bench *b)
{
	for (uint64_t p = 0; p < PAGES; p++) {
		if (memcmp(b->shadow + p * PAGE, b->m.pages + p * PAGE, PAGE))
			fail_msg("page %" PRIu64 " differs from what was reported", p);
	}
}

/* ---- laws ---- */

/* On Intel, writes may sit in a vCPU's buffer until it leaves the guest, and the log only asks it to. */
static bool may_slip(const struct bench *b)
{
	char word = 'N';
	FILE *f = fopen("/sys/module/kvm_intel/parameters/pml", "re");
	if (f && fread(&word, 1, 1, f) != 1)
		word = 'N';
	if (f)
		(void)fclose(f);
	return word == 'Y' && !strcmp(b->trk->ops->name, "kvmlog");
}

static void d1_every_write_is_reported(void **state)
{
	struct bench *b = set_up(state);
	base_autofree uint64_t(*seen)[PAGES] = calloc(GUEST_VCPUS, sizeof(*seen));
	bool slips = may_slip(b);
	start_writers(b);
	for (int round = 0; round < ROUNDS; round++) {
		snapshot(b, seen);
		if (round % 2) {
			collect_only(b);
		} else {
			memset(b->bits, 0, sizeof(b->bits));
			for (uint64_t at = 0; at < PAGES; at += 640)
				collect_part(b, at, PAGES - at < 640 ? PAGES - at : 640,
					     b->bits + at / 64);
		}
		copy_reported(b, 0, PAGES);
		if (!slips)
			check_not_older(b, seen);
	}
	stop_writers(b);
	collect_only(b);
	copy_reported(b, 0, PAGES);
	check_equal(b);
	tear_down(b);
}

static void d2_collect_after_the_writers_leaves_nothing(void **state)
{
	struct bench *b = set_up(state);
	collect_only(b);
	copy_reported(b, 0, PAGES);
	for (int i = 0; i < 4; i++) {
		start_writers(b);
		(void)usleep(30000);
		if (i %
		    2) { /* paused by the gate, as at a switchover, and not by the guest's own will */
			uint64_t stopped;
			struct mf_error err = { 0 };
			check(b->adapter.ops->pause(b->adapter.hv, &stopped, &err), &err);
			collect_only(b);
			copy_reported(b, 0, PAGES);
			check_equal(b);
			check(b->adapter.ops->abort(b->adapter.hv, &err), &err);
		}
		stop_writers(b);
		collect_only(b);
		copy_reported(b, 0, PAGES);
		check_equal(b);
	}
	tear_down(b);
}

static void d3_collect_reads_clears_and_ors(void **state)
{
	struct bench *b = set_up(state);
	write_pages(b, 0, PAGES, 7);
	collect(b);
	write_pages(b, 2, 3, 1);
	memset(b->bits, 0, sizeof(b->bits));
	bitmap_set(b->bits, 0, 1);
	bitmap_set(b->bits, 3, 1);
	bitmap_set(b->bits, 7, 1);
	assert_int_equal(collect_part(b, 0, PAGES, b->bits), 3);
	assert_int_equal(b->bits[0], 1u << 0 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 7);
	assert_int_equal(bitmap_count(b->bits, 0, PAGES), 5);
	assert_int_equal(trk_clear(b->trk, 0, 0, PAGES), 0);
	assert_int_equal(collect(b), 0);
	tear_down(b);
}

static void d4_over_reporting_settles(void **state)
{
	struct bench *b = set_up(state);
	collect(b);
	assert_int_equal(collect(b), 0);
	/* The first touch of a page may be reported though it only reads: KVM maps it for writing at once. */
	order(b, 0, ORDER_READ, 0, PAGES, 0);
	collect(b);
	order(b, 0, ORDER_READ, 0, PAGES, 0);
	assert_int_equal(collect(b), 0);
	write_pages(b, 0, PAGES, 1);
	assert_int_equal(collect(b), PAGES);
	assert_int_equal(collect(b), 0);
	/* Around the borders of slots. */
	const uint64_t at[] = { PAGES / 4 + 4, PAGES / 4 + 5, PAGES / 4 + 41, PAGES / 4 + 42,
				PAGES - 1 };
	for (size_t i = 0; i < BASE_ARRAY_LEN(at); i++) {
		write_pages(b, at[i], 1, 1);
		assert_int_equal(collect(b), 1);
		assert_true(bitmap_test(b->bits, at[i]));
		assert_int_equal(collect(b), 0);
	}
	tear_down(b);
}

static void d5_collect_of_a_part_clears_that_part(void **state)
{
	struct bench *b = set_up(state);
	collect(b);
	write_pages(b, 0, PAGES, 1);
	uint64_t n = PAGES / 2;
	memset(b->bits, 0, sizeof(b->bits));
	assert_int_equal(collect_part(b, 3, n, b->bits), n);
	assert_int_equal(bitmap_count(b->bits, 0, n), n);
	assert_int_equal(bitmap_next_set(b->bits, n, PAGES), PAGES);
	assert_int_equal(trk_clear(b->trk, 0, 3, n), 0);
	assert_int_equal(collect(b), PAGES - n);
	assert_int_equal(bitmap_next_set(b->bits, 3, 3 + n), 3 + n);
	assert_int_equal(collect_part(b, 1, 0, b->bits), 0);
	tear_down(b);
}

/* KVM keeps a log, and rings get entries, only of slots that are watched. */
static bool is_logged(const struct bench *b)
{
	uint64_t log[(PAGES + 63) / 64 + 1];
	bool is = false;
	for (uint32_t i = 1; i < MACHINE_SLOTS; i++) {
		struct kvm_dirty_log ask = { .slot = b->m.slots[i].slot };
		ask.dirty_bitmap = log;
		is |= ioctl(b->m.vm_fd, KVM_GET_DIRTY_LOG, &ask) == 0;
	}
	return is;
}

static void d6_stop_leaves_it_as_it_was(void **state)
{
	const struct variant *v = *state;
	struct bench *b = set_up(state);
	struct mf_error err = { 0 };
	bool has_log = !b->m.tracking.ring_bytes;
	assert_true(!has_log || is_logged(b));
	start_writers(b);
	collect(b);
	trk_stop(b->trk);
	trk_stop(b->trk);
	assert_true(!has_log || !is_logged(b));
	(void)usleep(30000);
	stop_writers(b); /* full rings without anybody to empty them would keep the vCPUs from it */
	/* Started again by the same tracker, and by another one, which does not know where the rings are. */
	check(trk_start(b->trk, &err), &err);
	collect(b);
	write_pages(b, 1, 700, 1);
	assert_int_equal(collect(b), 700);
	trk_close(b->trk);
	for (int i = 0; i < 5; i++) {
		const struct trk_range range = { (uintptr_t)b->m.pages, (uint64_t)PAGES * PAGE,
						 PAGE };
		b->trk = NULL;
		open_tracker(b, v->ops, &range, 1);
		collect(b);
		write_pages(b, 5, 150 + (uint64_t)i, 1);
		assert_int_equal(collect(b), 150 + (uint64_t)i);
		if (i % 2) { /* leaves dirty pages behind */
			write_pages(b, 800, 99, 1);
			start_writers(b);
		}
		if (i < 4)
			trk_close(b->trk);
		if (i % 2)
			stop_writers(b);
	}
	tear_down(b);
}

/* Nobody collects, and the guest writes all that it can: storms of full rings. */
static void d7_an_owner_that_stands_still_stops_nobody(void **state)
{
	struct bench *b = set_up(state);
	collect_only(b);
	copy_reported(b, 0, PAGES);
	for (uint64_t i = 0; i < 3; i++) {
		for (uint32_t v = 0; v < b->m.n_vcpus; v++)
			machine_order(&b->m, v, ORDER_WRITE, 0, PAGES, i * 10 + v);
		for (uint32_t v = 0; v < b->m.n_vcpus; v++)
			assert_true(machine_done(&b->m, v));
	}
	assert_int_equal(collect_only(b), PAGES);
	copy_reported(b, 0, PAGES);
	check_equal(b);
	tear_down(b);
}

/* The ring is full again and again while others collect and stop. */
static void d7_full_rings_meet_collect_and_stop(void **state)
{
	struct bench *b = set_up(state);
	struct mf_error err = { 0 };
	for (int i = 0; i < 6; i++) {
		for (uint32_t v = 0; v < b->m.n_vcpus; v++)
			machine_order(&b->m, v, ORDER_WRITE, 0, PAGES, (uint64_t)i);
		for (int k = 0; k < 10; k++) {
			collect_only(b);
			copy_reported(b, 0, PAGES);
		}
		if (i % 2) {
			trk_stop(b->trk);
			check(trk_start(b->trk, &err), &err);
			memcpy(b->shadow, b->m.pages, (size_t)PAGES * PAGE);
		}
		for (uint32_t v = 0; v < b->m.n_vcpus; v++)
			assert_true(machine_done(&b->m, v));
		collect_only(b);
		copy_reported(b, 0, PAGES);
		check_equal(b);
	}
	tear_down(b);
}

static bool clears_late(const struct bench *b)
{
	return b->trk->ops->caps & TRK_CAP_CLEARS_LATE;
}

static void d8_a_reported_page_is_reported_again_only_after_clear(void **state)
{
	struct bench *b = set_up(state);
	if (!clears_late(b)) {
		assert_int_equal(trk_clear(b->trk, 0, 0, PAGES), 0);
		tear_down(b);
		return;
	}
	bool is_manual = b->m.tracking.manual_protect;
	collect(b);
	write_pages(b, 64, 64, 1);
	assert_int_equal(collect_only(b), 64);
	/* Only the pages that were reported, and only those asked for: a page nearby, written since, stays. */
	write_pages(b, 130, 1, 2);
	write_pages(b, 60, 1, 2);
	assert_int_equal(trk_clear(b->trk, 0, 60, 40), 0);
	assert_int_equal(trk_clear(b->trk, 0, 60, 40), 0); /* harmless */
	assert_int_equal(collect_only(b), is_manual ? 2 + 28 : 2);
	assert_true(bitmap_test(b->bits, 130) && bitmap_test(b->bits, 60));
	assert_int_equal(bitmap_next_set(b->bits, 64, 100), 100);
	/* Cleared, written, cleared again without having been reported: still reported. */
	assert_int_equal(trk_clear(b->trk, 0, 0, PAGES), 0);
	write_pages(b, 70, 5, 3);
	assert_int_equal(trk_clear(b->trk, 0, 0, PAGES), 0);
	assert_int_equal(collect(b), 5);
	assert_int_equal(collect(b), 0);
	tear_down(b);
}

struct lane {
	pthread_t thread;
	struct bench *b;
	uint64_t first, end;
};

static void *run_lane(void *arg)
{
	struct lane *lane = arg;
	copy_reported(lane->b, lane->first, lane->end);
	return NULL;
}

/* Lanes clear and read pieces with borders in the middle of words, at once, while vCPUs write. */
static void d8_lanes_clear_while_the_guest_writes(void **state)
{
	struct bench *b = set_up(state);
	base_autofree uint64_t(*seen)[PAGES] = calloc(GUEST_VCPUS, sizeof(*seen));
	bool slips = may_slip(b);
	start_writers(b);
	for (int round = 0; round < ROUNDS; round++) {
		struct lane lanes[LANES];
		uint64_t border = 100 + (uint64_t)round * 37;
		snapshot(b, seen);
		collect_only(b);
		for (int i = 0; i < LANES; i++) {
			lanes[i] = (struct lane){ .b = b,
						  .first = i ? border : 0,
						  .end = i ? PAGES : border };
			assert_int_equal(
				pthread_create(&lanes[i].thread, NULL, run_lane, &lanes[i]), 0);
		}
		for (int i = 0; i < LANES; i++)
			pthread_join(lanes[i].thread, NULL);
		if (!slips)
			check_not_older(b, seen);
	}
	stop_writers(b);
	collect_only(b);
	copy_reported(b, 0, PAGES);
	check_equal(b);
	tear_down(b);
}

/* Two ranges whose border lies in a slot and in a word, and one of larger units. */
static void ranges_need_not_be_slots(void **state)
{
	const struct variant *v = *state;
	struct bench *b = set_up(state);
	uint64_t base = (uintptr_t)b->m.pages, pages = 0, bits[PAGES / 64] = { 0 };
	struct mf_error err = { 0 };
	trk_close(b->trk);
	b->trk = NULL;
	const struct trk_range two[] = { { base, UINT64_C(1000) * PAGE, PAGE },
					 { base + UINT64_C(1000) * PAGE, (PAGES - 1000) * PAGE,
					   PAGE } };
	open_tracker(b, v->ops, two, 2);
	for (uint32_t r = 0; r < 2; r++) {
		check(trk_collect(b->trk, r, 0, two[r].len / PAGE, bits, &pages, &err), &err);
		assert_int_equal(trk_clear(b->trk, r, 0, two[r].len / PAGE), 0);
	}
	write_pages(b, 995, 10, 1);
	memset(bits, 0, sizeof(bits));
	pages = 0;
	check(trk_collect(b->trk, 0, 0, 1000, bits, &pages, &err), &err);
	assert_int_equal(pages, 5);
	assert_int_equal(bitmap_next_set(bits, 0, 1000), 995);
	assert_int_equal(trk_clear(b->trk, 0, 0, 1000), 0);
	memset(bits, 0, sizeof(bits));
	pages = 0;
	check(trk_collect(b->trk, 1, 0, PAGES - 1000, bits, &pages, &err), &err);
	assert_int_equal(pages, 5);
	assert_int_equal(bits[0], 31);
	trk_close(b->trk);

	uint64_t unit = 65536, from = (base + unit - 1) / unit * unit;
	const struct trk_range large = { from, UINT64_C(64) * unit, unit };
	b->trk = NULL;
	open_tracker(b, v->ops, &large, 1);
	check(trk_collect(b->trk, 0, 0, 64, bits, &pages, &err), &err);
	assert_int_equal(trk_clear(b->trk, 0, 0, 64), 0);
	uint64_t skipped = (from - base) / PAGE;
	write_pages(b, skipped + 33, 1, 1);  /* in the third */
	write_pages(b, PAGES / 4 + 3, 5, 1); /* over the border of two slots */
	memset(bits, 0, sizeof(bits));
	pages = 0;
	check(trk_collect(b->trk, 0, 0, 64, bits, &pages, &err), &err);
	assert_int_equal(pages, bitmap_count(bits, 0, 64));
	uint64_t a = (PAGES / 4 + 3 - skipped) / 16, z = (PAGES / 4 + 7 - skipped) / 16;
	assert_true(bitmap_test(bits, 2) && bitmap_test(bits, a) && bitmap_test(bits, z));
	assert_int_equal(pages, a == z ? 2 : 3);
	assert_int_equal(trk_clear(b->trk, 0, 0, 64), 0);
	memset(bits, 0, sizeof(bits));
	pages = 0;
	check(trk_collect(b->trk, 0, 0, 64, bits, &pages, &err), &err);
	assert_int_equal(pages, 0);
	tear_down(b);
}

static void failures_name_the_cause(void **state)
{
	const struct variant *v = *state;
	struct bench *b = set_up(state);
	struct mf_error err = { 0 };
	struct trk *none = NULL;
	uint64_t elsewhere = (uintptr_t)b->shadow / PAGE * PAGE;
	const struct trk_range range = { elsewhere, PAGE, PAGE };
	struct trk_params params = {
		.uffd = -1, .ranges = &range, .n_ranges = 1, .kvm = b->guest.kvm
	};
	assert_int_equal(trk_open(v->ops, &params, &none, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "memory slots"));
	/* The other tracker says why it is not the one. */
	err = (struct mf_error){ 0 };
	const struct trk_ops *other =
		trk_find(!strcmp(v->ops->name, "kvmlog") ? "kvmring" : "kvmlog");
	assert_int_equal(trk_probe(other, &params, &err), -MF_EKERNEL);
	assert_non_null(strstr(err.msg, "dirty rings"));
	err = (struct mf_error){ 0 };
	params.pid = 1;
	assert_int_equal(trk_probe(v->ops, &params, &err), -MF_EKERNEL);
	params.kvm = NULL;
	assert_int_equal(trk_probe(v->ops, &params, &err), -MF_EKERNEL);
	/* A machine that is gone. */
	struct mf_kvm_vm gone = *b->guest.kvm;
	const struct trk_range good = { (uintptr_t)b->m.pages, PAGE, PAGE };
	gone.vm_fd = -1;
	params = (struct trk_params){ .uffd = -1, .ranges = &good, .n_ranges = 1, .kvm = &gone };
	err = (struct mf_error){ 0 };
	check(trk_open(v->ops, &params, &none, &err), &err);
	assert_int_equal(trk_start(none, &err), -ESRCH);
	assert_non_null(strstr(err.msg, "gone"));
	trk_close(none);
	tear_down(b);
}

static const struct {
	const char *name;
	CMUnitTestFunction fn;
} laws[] = {
	{ "D1 every write is reported", d1_every_write_is_reported },
	{ "D2 the collect after the writers leaves nothing",
	  d2_collect_after_the_writers_leaves_nothing },
	{ "D3 collect reads, clears and ORs", d3_collect_reads_clears_and_ors },
	{ "D4 over-reporting settles", d4_over_reporting_settles },
	{ "D5 collect of a part clears that part", d5_collect_of_a_part_clears_that_part },
	{ "D6 stop leaves it as it was", d6_stop_leaves_it_as_it_was },
	{ "D7 an owner that stands still stops nobody",
	  d7_an_owner_that_stands_still_stops_nobody },
	{ "D7 full rings meet collect and stop", d7_full_rings_meet_collect_and_stop },
	{ "D8 a reported page is reported again only after clear",
	  d8_a_reported_page_is_reported_again_only_after_clear },
	{ "D8 lanes clear while the guest writes", d8_lanes_clear_while_the_guest_writes },
	{ "ranges need not be slots", ranges_need_not_be_slots },
	{ "failures name the cause", failures_name_the_cause },
};

int main(int argc, char **argv)
{
	const struct trk_ops *ops = argc > 1 ? trk_find(argv[1]) : NULL;
	if (!ops || !(ops->caps & TRK_CAP_NEEDS_KVM)) {
		fprintf(stderr, "usage: conf_tracker_kvm kvmlog|kvmring\n");
		return 2;
	}
	const char *why = machine_lacks();
	if (why) {
		printf("SKIP: %s\n", why);
		return 77;
	}
	bool is_ring = !strcmp(ops->name, "kvmring");
	const struct machine_params obeys = { .mode = GUEST_OBEYS, .n_pages = PAGES };
	struct variant variants[2] = { { .ops = ops, .machine = obeys },
				       { .ops = ops, .machine = obeys } };
	variants[0].name = is_ring ? "rings" : "by hand";
	variants[0].machine.way = is_ring ? MF_KVM_TRACK_RING : MF_KVM_TRACK_LOG;
	variants[1].name = is_ring ? "smallest rings" : "plain";
	variants[1].machine.way = is_ring ? MF_KVM_TRACK_RING : MF_KVM_TRACK_NONE;
	variants[1].machine.smallest_ring = is_ring;
	struct CMUnitTest tests[2 * BASE_ARRAY_LEN(laws)];
	char names[BASE_ARRAY_LEN(tests)][96];
	size_t n = 0;
	for (int i = 0; i < 2; i++) {
		struct machine m;
		why = machine_open(&m, &variants[i].machine);
		machine_close(&m);
		if (why) {
			printf("SKIP: %s: %s\n", variants[i].name, why);
			return 77;
		}
		for (size_t l = 0; l < BASE_ARRAY_LEN(laws); l++, n++) {
			(void)snprintf(names[n], sizeof(names[n]), "%s: %s", laws[l].name,
				       variants[i].name);
			tests[n] = (struct CMUnitTest){ .name = names[n],
							.test_func = laws[l].fn,
							.initial_state = &variants[i] };
		}
	}
	return _cmocka_run_group_tests("tracker by KVM", tests, n, NULL, NULL);
}
