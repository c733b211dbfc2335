/* SPDX-License-Identifier: BSD-2-Clause */
/* Bitmaps against the plainest possible model: one byte per page. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>

#include "base/bitmap.h"
#include "base/cleanup.h"

#define BITS  200 /* three whole words and a part */
#define WORDS 4

/* Every range of BITS bits is tried; the pattern under it has runs of several lengths. */
static bool in_pattern(uint64_t i)
{
	return i % 7 < 3 || (i > 60 && i < 70) || (i >= 128 && i < 192);
}

static void fill_pattern(uint64_t map[WORDS])
{
	memset(map, 0, WORDS * sizeof(*map));
	for (uint64_t i = 0; i < BITS; i++) {
		if (in_pattern(i))
			map[i / 64] |= UINT64_C(1) << i % 64;
	}
}

static void words_round_up(void **state)
{
	(void)state;
	assert_int_equal(bitmap_words(0), 0);
	assert_int_equal(bitmap_words(1), 1);
	assert_int_equal(bitmap_words(64), 1);
	assert_int_equal(bitmap_words(65), 2);
}

static void set_and_clear_touch_only_their_range(void **state)
{
	(void)state;
	for (uint64_t first = 0; first < BITS; first++) {
		for (uint64_t n = 0; first + n <= BITS; n++) {
			uint64_t set[WORDS], cleared[WORDS];
			fill_pattern(set);
			fill_pattern(cleared);
			bitmap_set(set, first, n);
			bitmap_clear(cleared, first, n);
			for (uint64_t i = 0; i < BITS; i++) {
				bool inside = i >= first && i < first + n;
				if (bitmap_test(set, i) != (inside || in_pattern(i)) ||
				    bitmap_test(cleared, i) != (!inside && in_pattern(i)))
					fail_msg("bit %d of [%d, +%d)", (int)i, (int)first, (int)n);
			}
		}
	}
}

static void count_and_next_agree_with_a_walk(void **state)
{
	(void)state;
	uint64_t map[WORDS];
	fill_pattern(map);
	for (uint64_t first = 0; first < BITS; first++) {
		uint64_t sum = 0, set = BITS, clear = BITS;
		for (uint64_t i = BITS; i-- > first;) {
			sum += in_pattern(i);
			*(in_pattern(i) ? &set : &clear) = i;
		}
		assert_int_equal(bitmap_count(map, first, BITS - first), sum);
		assert_int_equal(bitmap_next_set(map, first, BITS), set);
		assert_int_equal(bitmap_next_clear(map, first, BITS), clear);
	}
	assert_int_equal(bitmap_count(map, 5, 0), 0);
	assert_int_equal(bitmap_next_set(map, BITS, BITS), BITS);
}

static void next_stops_at_the_end_given(void **state)
{
	(void)state;
	uint64_t map[2] = { 0, UINT64_C(1) << 10 };
	assert_int_equal(bitmap_next_set(map, 0, 74), 74);
	assert_int_equal(bitmap_next_set(map, 0, 75), 74);
	map[0] = map[1] = ~UINT64_C(0);
	assert_int_equal(bitmap_next_clear(map, 3, 128), 128);
}

static void or_adds_and_keeps(void **state)
{
	(void)state;
	uint64_t to[2] = { 1, 0 }, from[2] = { 2, 4 };
	bitmap_or(to, from, 64); /* one word: the second is not its business */
	assert_int_equal(to[0], 3);
	assert_int_equal(to[1], 0);
	bitmap_or(to, from, 65);
	assert_int_equal(to[1], 4);
}

/* Wherever a part begins, here and there: its bits arrive, are gone, and none beside them is touched. */
static void take_moves_a_part(void **state)
{
	(void)state;
	for (uint64_t first = 0; first < 70; first++) {
		for (uint64_t n = 0; n < 70; n++) {
			uint64_t at = (first * 7 + n) % 66;
			uint64_t from[3], was[3], to[3] = { 0x8001, 0, UINT64_C(1) << 40 }, had[3];
			for (unsigned i = 0; i < 3; i++)
				from[i] = UINT64_C(0x9e3779b97f4a7c15) * (first + 64 * n + i + 1);
			memcpy(was, from, sizeof(was));
			memcpy(had, to, sizeof(had));
			assert_int_equal(bitmap_take(from, first, n, to, at),
					 bitmap_count(was, first, n));
			for (uint64_t i = 0; i < 192; i++) {
				bool is_part = i >= first && i < first + n;
				assert_int_equal(bitmap_test(from, i),
						 !is_part && bitmap_test(was, i));
				bool came =
					i >= at && i < at + n && bitmap_test(was, first + (i - at));
				assert_int_equal(bitmap_test(to, i), bitmap_test(had, i) || came);
			}
		}
	}
}

/* Both extent walks must give each set bit once, in order, in maximal runs of at most max. */
static void extents_cover_each_set_bit_once(void **state)
{
	(void)state;
	for (uint64_t max = 1; max <= BITS; max++) {
		uint64_t map[WORDS], claimed[WORDS], seen[WORDS] = { 0 };
		fill_pattern(map);
		fill_pattern(claimed);
		struct extent e, c;
		uint64_t at = 0;
		while (bitmap_next_extent(map, at, BITS, max, &e)) {
			assert_true(e.first >= at && e.n >= 1 && e.n <= max);
			assert_int_equal(bitmap_count(map, e.first, e.n), e.n);
			assert_true(e.n == max || e.first + e.n == BITS ||
				    !bitmap_test(map, e.first + e.n));
			bitmap_set(seen, e.first, e.n);

			assert_true(bitmap_claim_extent_atomic(claimed, at, BITS, max, &c));
			assert_int_equal(c.first, e.first);
			assert_int_equal(c.n, e.n);
			at = e.first + e.n;
		}
		assert_memory_equal(seen, map, sizeof(map));
		assert_int_equal(bitmap_count(claimed, 0, BITS), 0);
		assert_false(bitmap_claim_extent_atomic(claimed, 0, BITS, max, &c));
	}
}

static void extent_is_cut_at_the_end_given(void **state)
{
	(void)state;
	uint64_t map[2] = { ~UINT64_C(0), ~UINT64_C(0) };
	struct extent e;
	assert_true(bitmap_next_extent(map, 60, 66, UINT64_MAX, &e));
	assert_int_equal(e.first, 60);
	assert_int_equal(e.n, 6);
	assert_false(bitmap_next_extent(map, 66, 66, 1, &e));
}

static void claim_wins_once(void **state)
{
	(void)state;
	uint64_t map[2] = { 0 };
	bitmap_set_atomic(map, 60, 10);
	assert_true(bitmap_test_atomic(map, 60) && bitmap_test_atomic(map, 69));
	assert_false(bitmap_test_atomic(map, 59) || bitmap_test_atomic(map, 70));
	assert_true(bitmap_claim_atomic(map, 64));
	assert_false(bitmap_claim_atomic(map, 64));
	assert_int_equal(bitmap_count(map, 0, 128), 9);
}

/* Threads claim from one bitmap while one of them also puts bits in: nothing twice, nothing lost. */
#define RACE_BITS    (64 * 512)
#define RACE_THREADS 4

struct racer {
	pthread_t thread;
	uint64_t *map;
	unsigned index;
	uint8_t *mine; /* how often each bit was won by this thread */
};

static void *race(void *arg)
{
	struct racer *r = arg;
	struct extent e;
	uint64_t at = r->index % 2 ? RACE_BITS / 2 : 0; /* two from each end of the middle */
	if (!r->index)
		bitmap_set_atomic(r->map, RACE_BITS / 4, RACE_BITS / 2);
	for (int lap = 0; lap < 2; lap++, at = 0) {
		while (bitmap_claim_extent_atomic(r->map, at, RACE_BITS, 5, &e)) {
			for (uint64_t i = 0; i < e.n; i++)
				r->mine[e.first + i]++;
			at = e.first;
		}
	}
	return NULL;
}

static void racing_claims_share_out_every_bit(void **state)
{
	(void)state;
	base_autofree uint64_t *map = calloc(bitmap_words(RACE_BITS), sizeof(*map));
	assert_non_null(map);
	bitmap_set(map, 0, RACE_BITS / 4);
	bitmap_set(map, RACE_BITS / 4 * 3, RACE_BITS / 4);
	struct racer racers[RACE_THREADS];
	for (unsigned t = 0; t < RACE_THREADS; t++) {
		racers[t] = (struct racer){ .map = map, .index = t, .mine = calloc(RACE_BITS, 1) };
		assert_non_null(racers[t].mine);
	}
	for (unsigned t = 0; t < RACE_THREADS; t++)
		assert_int_equal(pthread_create(&racers[t].thread, NULL, race, &racers[t]), 0);
	for (unsigned t = 0; t < RACE_THREADS; t++)
		assert_int_equal(pthread_join(racers[t].thread, NULL), 0);
	for (uint64_t i = 0; i < RACE_BITS; i++) {
		unsigned won = 0;
		for (unsigned t = 0; t < RACE_THREADS; t++)
			won += racers[t].mine[i];
		if (won != 1 || bitmap_test(map, i))
			fail_msg("bit %d was won %u times", (int)i, won);
	}
	for (unsigned t = 0; t < RACE_THREADS; t++)
		free(racers[t].mine);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(words_round_up),
		cmocka_unit_test(set_and_clear_touch_only_their_range),
		cmocka_unit_test(count_and_next_agree_with_a_walk),
		cmocka_unit_test(next_stops_at_the_end_given),
		cmocka_unit_test(or_adds_and_keeps),
		cmocka_unit_test(take_moves_a_part),
		cmocka_unit_test(extents_cover_each_set_bit_once),
		cmocka_unit_test(extent_is_cut_at_the_end_given),
		cmocka_unit_test(claim_wins_once),
		cmocka_unit_test(racing_claims_share_out_every_bit),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
