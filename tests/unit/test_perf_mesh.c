/* SPDX-License-Identifier: BSD-2-Clause */
/* Who is measured with whom, and which pairs are called slow. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "perf/mesh.h"

#define RANKS_MAX 17u

static void check_schedule(uint32_t n)
{
	unsigned met[RANKS_MAX][RANKS_MAX] = { 0 };

	for (uint32_t round = 0; round < perf_mesh_rounds(n); round++) {
		unsigned alone = 0;
		for (uint32_t i = 0; i < n; i++) {
			uint32_t j = perf_mesh_partner(n, round, i);
			if (j >= n || perf_mesh_partner(n, round, j) != i)
				fail_msg("%u ranks, round %u: %u with %u", n, round, i, j);
			met[i][j] += i != j;
			alone += i == j;
		}
		assert_int_equal(alone, n % 2);
	}
	for (uint32_t i = 0; i < n; i++) {
		for (uint32_t j = 0; j < n; j++) {
			if (met[i][j] != (i != j))
				fail_msg("%u ranks: %u with %u: %u times", n, i, j, met[i][j]);
		}
	}
}

/* That partners are mutual says that nobody is in two pairs of a round. */
static void every_pair_meets_once_and_nobody_twice_a_round(void **state)
{
	(void)state;
	for (uint32_t n = 1; n <= RANKS_MAX; n++)
		check_schedule(n);
}

static void there_are_no_more_rounds_than_needed(void **state)
{
	(void)state;
	for (uint32_t n = 1; n <= RANKS_MAX; n++)
		assert_int_equal(perf_mesh_rounds(n), n % 2 ? n : n - 1);
}

static void a_seed_makes_a_permutation(void **state)
{
	uint32_t first[RANKS_MAX], again[RANKS_MAX], other[RANKS_MAX];
	bool seen[RANKS_MAX] = { 0 };

	(void)state;
	perf_mesh_shuffle(RANKS_MAX, 1, first);
	perf_mesh_shuffle(RANKS_MAX, 1, again);
	perf_mesh_shuffle(RANKS_MAX, 2, other);
	assert_memory_equal(first, again, sizeof(first));
	assert_memory_not_equal(first, other, sizeof(first));
	for (uint32_t i = 0; i < RANKS_MAX; i++) {
		assert_in_range(first[i], 0, RANKS_MAX - 1);
		assert_false(seen[first[i]]);
		seen[first[i]] = true;
	}
}

/* All pairs of n ranks; those from (to) the bad one, or all others, are as fast as given. */
static json_t *rows_of(uint32_t n, uint32_t bad, double from_bad, double to_bad, double others)
{
	json_t *rows = json_array();

	for (uint32_t i = 0; i < n; i++) {
		for (uint32_t j = 0; j < n; j++) {
			double rate = i == bad ? from_bad : j == bad ? to_bad : others;
			json_t *row = json_object(), *stats = json_object();
			if (i == j) {
				json_decref(row);
				json_decref(stats);
				continue;
			}
			perf_put(stats, "p50", json_real(rate));
			perf_put(row, "from_rank", json_integer(i));
			perf_put(row, "to_rank", json_integer(j));
			perf_put(row, "bytes_per_s", stats);
			(void)json_array_append_new(rows, row);
		}
	}
	return rows;
}

static void assert_slow(const json_t *rows, bool from, uint32_t rank, uint32_t all, uint32_t slow)
{
	uint32_t n, n_slow;

	perf_mesh_count(rows, from, rank, &n, &n_slow);
	assert_int_equal(n, all);
	assert_int_equal(n_slow, slow);
}

static void a_slow_host_is_slow_both_ways(void **state)
{
	struct perf_mesh_summary summary;

	(void)state;
	/* Of four hosts, half of the directions: the upper of the two in the middle is a fast one. */
	for (uint32_t n = 4; n <= RANKS_MAX; n++) {
		json_t *rows = rows_of(n, 2, 1e6, 2e6, 1e9);
		perf_mesh_judge(rows, 0.8, &summary);
		assert_int_equal(summary.slow, 2 * (n - 1));
		assert_true(summary.min == 1e6 && summary.median == 1e9 && summary.max == 1e9);
		assert_slow(rows, true, 2, n - 1, n - 1);
		assert_slow(rows, false, 2, n - 1, n - 1);
		assert_slow(rows, true, 0, n - 1, 1);
		assert_slow(rows, false, 0, n - 1, 1);
		json_decref(rows);
	}
}

static void one_direction_may_be_slow(void **state)
{
	struct perf_mesh_summary summary;
	json_t *rows = rows_of(5, 4, 1e6, 1e9, 1e9);

	(void)state;
	perf_mesh_judge(rows, 0.8, &summary);
	assert_slow(rows, true, 4, 4, 4);
	assert_slow(rows, false, 4, 4, 0);
	json_decref(rows);
}

static void a_pair_is_slow_below_the_share_only(void **state)
{
	struct perf_mesh_summary summary;
	json_t *rows = rows_of(5, 0, 0.8e9, 0.79e9, 1e9);

	(void)state;
	perf_mesh_judge(rows, 0.8, &summary);
	assert_int_equal(summary.slow, 4);
	assert_slow(rows, true, 0, 4, 0);
	assert_slow(rows, false, 0, 4, 4);
	perf_mesh_judge(rows, 0.5, &summary);
	assert_int_equal(summary.slow, 0);
	assert_slow(rows, false, 0, 4, 0);
	json_decref(rows);
}

static void nothing_is_judged_of_nothing(void **state)
{
	struct perf_mesh_summary summary;
	json_t *rows = json_array();

	(void)state;
	perf_mesh_judge(rows, 0.8, &summary);
	assert_int_equal(summary.slow, 0);
	assert_true(summary.median == 0);
	json_decref(rows);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_pair_meets_once_and_nobody_twice_a_round),
		cmocka_unit_test(there_are_no_more_rounds_than_needed),
		cmocka_unit_test(a_seed_makes_a_permutation),
		cmocka_unit_test(a_slow_host_is_slow_both_ways),
		cmocka_unit_test(one_direction_may_be_slow),
		cmocka_unit_test(a_pair_is_slow_below_the_share_only),
		cmocka_unit_test(nothing_is_judged_of_nothing),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
