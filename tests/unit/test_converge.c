/* SPDX-License-Identifier: BSD-2-Clause */
/* The decision after a round, and the latency histogram. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "core/converge.h"
#include "core/latency.h"

#define MIB (1024u * 1024u)
#define GIB (1024u * MIB)

static const struct converge_input base = {
	.mode = MF_MODE_HYBRID,
	.round_us = 1000000,
	.round_bytes = GIB, /* 1 GiB/s */
	.overhead_us = 40000,
	.max_downtime_us = 300000,
};

static enum converge_verdict decide(struct converge *c, enum mf_mode mode, uint64_t dirty,
				    uint64_t *downtime)
{
	struct converge_input in = base;
	in.mode = mode;
	in.dirty_bytes = dirty;
	return converge_decide(c, &in, downtime);
}

static void stops_when_the_rest_fits_the_downtime(void **state)
{
	(void)state;
	struct converge c = { 0 };
	uint64_t us;
	/* 256 MiB at 1 GiB/s are 250 ms, and 40 ms for the switch. */
	assert_int_equal(decide(&c, MF_MODE_HYBRID, 256 * MIB, &us), CONVERGE_STOP);
	assert_in_range(us, 289000, 291000);
	memset(&c, 0, sizeof(c));
	assert_int_equal(decide(&c, MF_MODE_HYBRID, 280 * MIB, &us), CONVERGE_AGAIN);
	assert_in_range(us, 312000, 315000);
}

static void stops_when_nothing_is_dirty(void **state)
{
	(void)state;
	struct converge c = { 0 };
	struct converge_input in = base;
	uint64_t us;
	in.round_bytes = 0; /* all zero: no bandwidth is known */
	assert_int_equal(converge_decide(&c, &in, &us), CONVERGE_STOP);
	assert_int_equal(us, 0);
}

static void stalls_after_two_rounds_that_do_not_shrink(void **state)
{
	(void)state;
	static const enum mf_mode modes[] = { MF_MODE_HYBRID, MF_MODE_PRECOPY };
	static const enum converge_verdict last[] = { CONVERGE_POSTCOPY, CONVERGE_STALLED };
	for (int i = 0; i < 2; i++) {
		struct converge c = { 0 };
		uint64_t us;
		assert_int_equal(decide(&c, modes[i], 2 * (uint64_t)GIB, &us), CONVERGE_AGAIN);
		assert_int_equal(decide(&c, modes[i], 2 * (uint64_t)GIB, &us), CONVERGE_AGAIN);
		assert_int_equal(decide(&c, modes[i], 2 * (uint64_t)GIB, &us), last[i]);
	}
}

static void goes_on_while_rounds_shrink(void **state)
{
	(void)state;
	struct converge c = { 0 };
	uint64_t us, dirty = 16 * (uint64_t)GIB;
	while (dirty > 512 * MIB) {
		assert_int_equal(decide(&c, MF_MODE_HYBRID, dirty, &us), CONVERGE_AGAIN);
		dirty = dirty * 3 / 4;
	}
}

static void shrinking_for_ever_ends(void **state)
{
	(void)state;
	struct converge c = { 0 };
	uint64_t us, dirty = UINT64_C(1) << 50;
	int rounds = 1;
	while (decide(&c, MF_MODE_HYBRID, dirty, &us) == CONVERGE_AGAIN) {
		dirty = dirty / 100 * 80;
		assert_true(++rounds < 100);
	}
	assert_int_equal(rounds, 30);
}

static void requests_come_first(void **state)
{
	(void)state;
	struct converge_input in = base;
	struct converge c = { 0 };
	uint64_t us;
	in.dirty_bytes = 100 * (uint64_t)GIB;
	in.cutover = true;
	assert_int_equal(converge_decide(&c, &in, &us), CONVERGE_STOP);
	in.cutover = false;
	in.postcopy = true;
	in.mode = MF_MODE_PRECOPY;
	assert_int_equal(converge_decide(&c, &in, &us), CONVERGE_POSTCOPY);
}

static void warm_goes_on_until_told(void **state)
{
	(void)state;
	struct converge c = { 0 };
	uint64_t us;
	for (int i = 0; i < 100; i++)
		assert_int_equal(decide(&c, MF_MODE_WARM, 0, &us), CONVERGE_AGAIN);
}

static void short_rounds_do_not_change_the_bandwidth(void **state)
{
	(void)state;
	struct converge c = { 0 };
	struct converge_input in = base;
	uint64_t us;
	in.dirty_bytes = GIB;
	assert_int_equal(converge_decide(&c, &in, &us), CONVERGE_AGAIN);
	uint64_t known = c.bytes_per_s;
	in.round_bytes = 4096; /* one page in a millisecond is no bandwidth */
	in.round_us = 1000;
	(void)converge_decide(&c, &in, &us);
	assert_int_equal(c.bytes_per_s, known);
}

static void percentiles_are_right_within_a_sixteenth(void **state)
{
	(void)state;
	struct latency l = { 0 };
	assert_int_equal(latency_percentile(&l, 0.5), 0);
	for (uint64_t us = 1; us <= 10000; us++)
		latency_add(&l, us);
	assert_in_range(latency_percentile(&l, 0.5), 5000, 5000 * 17 / 16);
	assert_in_range(latency_percentile(&l, 0.99), 9900, 10000);
	assert_int_equal(latency_percentile(&l, 1.0), 10000);
	assert_int_equal(l.max, 10000);
}

static void powers_of_two_add_up(void **state)
{
	(void)state;
	struct latency l = { 0 };
	uint64_t log2[LATENCY_POWERS], sum = 0;
	static const uint64_t us[] = { 0, 1, 2, 3, 15, 16, 17, 31, 32, 1000, UINT64_C(1) << 40 };
	for (size_t i = 0; i < sizeof(us) / sizeof(us[0]); i++)
		latency_add(&l, us[i]);
	latency_log2(&l, log2);
	for (unsigned i = 0; i < LATENCY_POWERS; i++)
		sum += log2[i];
	assert_int_equal(sum, sizeof(us) / sizeof(us[0]));
	assert_int_equal(log2[0], 2);  /* 0 and 1 */
	assert_int_equal(log2[1], 2);  /* 2 and 3 */
	assert_int_equal(log2[3], 1);  /* 15 */
	assert_int_equal(log2[4], 3);  /* 16, 17, 31 */
	assert_int_equal(log2[9], 1);  /* 1000 */
	assert_int_equal(log2[31], 1); /* all that is longer */
}

static void postcopy_waits_until_it_is_safe(void **state)
{
	(void)state;
	struct converge c = { 0 };
	uint64_t us;
	struct converge_input in = { .mode = MF_MODE_HYBRID,
				     .round_us = 1000000,
				     .round_bytes = 64u << 20,
				     .dirty_bytes = 64u << 20,
				     .max_downtime_us = 1000,
				     .safe_bytes = 8u << 20 };
	for (unsigned i = 0; i < 40; i++) {
		in.postcopy = i > 20; /* also when it is asked for */
		enum converge_verdict verdict = converge_decide(&c, &in, &us);
		assert_true(verdict == CONVERGE_AGAIN || verdict == CONVERGE_STALLED);
	}
	in.dirty_bytes = 8u << 20;
	assert_int_equal(converge_decide(&c, &in, &us), CONVERGE_POSTCOPY);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(stops_when_the_rest_fits_the_downtime),
		cmocka_unit_test(stops_when_nothing_is_dirty),
		cmocka_unit_test(stalls_after_two_rounds_that_do_not_shrink),
		cmocka_unit_test(goes_on_while_rounds_shrink),
		cmocka_unit_test(shrinking_for_ever_ends),
		cmocka_unit_test(requests_come_first),
		cmocka_unit_test(warm_goes_on_until_told),
		cmocka_unit_test(short_rounds_do_not_change_the_bandwidth),
		cmocka_unit_test(percentiles_are_right_within_a_sixteenth),
		cmocka_unit_test(powers_of_two_add_up),
		cmocka_unit_test(postcopy_waits_until_it_is_safe),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
