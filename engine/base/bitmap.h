/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Bitmaps of pages: bit i of word i / 64 is page i.  Bits past the end are 0.
 *
 *   word 0                        word 1
 *   page 0 … page 63             page 64 …
 *
 * The plain functions are for one thread or behind a barrier.  The atomic ones (suffix
 * _atomic) may run against each other on one bitmap; each says its memory order.
 */
#ifndef BASE_BITMAP_H
#define BASE_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

static inline uint64_t bitmap_words(uint64_t bits)
{
	return (bits + 63) / 64;
}

static inline bool bitmap_test(const uint64_t *map, uint64_t i)
{
	return map[i / 64] >> (i % 64) & 1;
}

void bitmap_set(uint64_t *map, uint64_t first, uint64_t n);
void bitmap_clear(uint64_t *map, uint64_t first, uint64_t n);
uint64_t bitmap_count(const uint64_t *map, uint64_t first, uint64_t n);
/* to |= from; both hold `bits` bits. */
void bitmap_or(uint64_t *to, const uint64_t *from, uint64_t bits);
/* Moves bits [first, first + n) of from to those of `to` from `at` on: ORs them there, clears them here.  How many
 * were set. */
uint64_t bitmap_take(uint64_t *from, uint64_t first, uint64_t n, uint64_t *to, uint64_t at);
/* First set (clear) bit in [first, end); end when there is none. */
uint64_t bitmap_next_set(const uint64_t *map, uint64_t first, uint64_t end);
uint64_t bitmap_next_clear(const uint64_t *map, uint64_t first, uint64_t end);

/* A run of set bits. */
struct extent {
	uint64_t first, n;
};
/* Next run of set bits in [first, end), cut at max bits: false when none. */
bool bitmap_next_extent(const uint64_t *map, uint64_t first, uint64_t end, uint64_t max,
			struct extent *ret);

/* acquire: pairs with the release in bitmap_set_atomic. */
bool bitmap_test_atomic(const uint64_t *map, uint64_t i);
/* release: what was written before is seen by whoever tests the bit set. */
void bitmap_set_atomic(uint64_t *map, uint64_t first, uint64_t n);
/* release, likewise. */
void bitmap_clear_atomic(uint64_t *map, uint64_t first, uint64_t n);
/* Clears the bit; true for exactly one of several callers that find it set.  acq_rel. */
bool bitmap_claim_atomic(uint64_t *map, uint64_t i);
/* Claims the next run of set bits at or after first, at most max long, within [first, end).
 * The run is the caller's alone.  False: none found (all others may just have been claimed). */
bool bitmap_claim_extent_atomic(uint64_t *map, uint64_t first, uint64_t end, uint64_t max,
				struct extent *ret);

#endif
