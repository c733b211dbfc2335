/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/bitmap.h"

#include <assert.h>

/* Mask of bits [from, to) of one word, 0 <= from < to <= 64. */
static uint64_t mask(uint64_t from, uint64_t to)
{
	return ~UINT64_C(0) >> (64 - (to - from)) << from;
}

/* Walks [first, first + n) word by word: W is the index, M the bits of it that are meant. */
/* NOLINTBEGIN(bugprone-macro-parentheses): they are names */
#define FOR_EACH_WORD(first, n, W, M)                                                    \
	for (uint64_t at_ = (first), end_ = (first) + (n), W, M, to_;                    \
	     at_ < end_ && (W = at_ / 64, to_ = end_ - W * 64 < 64 ? end_ - W * 64 : 64, \
			   M = mask(at_ % 64, to_), true);                               \
	     at_ = W * 64 + to_)
/* NOLINTEND(bugprone-macro-parentheses) */

void bitmap_set(uint64_t *map, uint64_t first, uint64_t n)
{
	FOR_EACH_WORD (first, n, w, m)
		map[w] |= m;
}

void bitmap_clear(uint64_t *map, uint64_t first, uint64_t n)
{
	FOR_EACH_WORD (first, n, w, m)
		map[w] &= ~m;
}

uint64_t bitmap_count(const uint64_t *map, uint64_t first, uint64_t n)
{
	uint64_t sum = 0;
	FOR_EACH_WORD (first, n, w, m)
		sum += (uint64_t)__builtin_popcountll(map[w] & m);
	return sum;
}

void bitmap_or(uint64_t *to, const uint64_t *from, uint64_t bits)
{
	for (uint64_t w = 0; w < bitmap_words(bits); w++)
		to[w] |= from[w];
}

uint64_t bitmap_take(uint64_t *from, uint64_t first, uint64_t n, uint64_t *to, uint64_t at)
{
	struct extent e;
	uint64_t taken = 0, next = first;
	for (; n && bitmap_next_extent(from, next, first + n, n, &e); next = e.first + e.n) {
		bitmap_set(to, at + (e.first - first), e.n);
		taken += e.n;
	}
	bitmap_clear(from, first, n);
	return taken;
}

static uint64_t load_relaxed(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static uint64_t next_bit(const uint64_t *map, uint64_t first, uint64_t end, uint64_t invert)
{
	if (first >= end)
		return end;
	uint64_t w = first / 64;
	uint64_t bits = (load_relaxed(&map[w]) ^ invert) & mask(first % 64, 64);
	while (!bits) {
		if (++w * 64 >= end)
			return end;
		bits = load_relaxed(&map[w]) ^ invert;
	}
	uint64_t at = w * 64 + (uint64_t)__builtin_ctzll(bits);
	return at < end ? at : end;
}

uint64_t bitmap_next_set(const uint64_t *map, uint64_t first, uint64_t end)
{
	return next_bit(map, first, end, 0);
}

uint64_t bitmap_next_clear(const uint64_t *map, uint64_t first, uint64_t end)
{
	return next_bit(map, first, end, ~UINT64_C(0));
}

bool bitmap_next_extent(const uint64_t *map, uint64_t first, uint64_t end, uint64_t max,
			struct extent *ret)
{
	assert(max > 0);
	uint64_t at = bitmap_next_set(map, first, end);
	if (at >= end)
		return false;
	uint64_t stop = end - at > max ? at + max : end;
	ret->first = at;
	ret->n = bitmap_next_clear(map, at, stop) - at;
	return true;
}

bool bitmap_test_atomic(const uint64_t *map, uint64_t i)
{
	return __atomic_load_n(&map[i / 64], __ATOMIC_ACQUIRE) >> (i % 64) & 1;
}

void bitmap_set_atomic(uint64_t *map, uint64_t first, uint64_t n)
{
	FOR_EACH_WORD (first, n, w, m)
		__atomic_fetch_or(&map[w], m, __ATOMIC_RELEASE);
}

void bitmap_clear_atomic(uint64_t *map, uint64_t first, uint64_t n)
{
	FOR_EACH_WORD (first, n, w, m)
		__atomic_fetch_and(&map[w], ~m, __ATOMIC_RELEASE);
}

bool bitmap_claim_atomic(uint64_t *map, uint64_t i)
{
	uint64_t bit = UINT64_C(1) << (i % 64);
	return __atomic_fetch_and(&map[i / 64], ~bit, __ATOMIC_ACQ_REL) & bit;
}

bool bitmap_claim_extent_atomic(uint64_t *map, uint64_t first, uint64_t end, uint64_t max,
				struct extent *ret)
{
	struct extent e;
	while (bitmap_next_extent(map, first, end, max, &e)) {
		uint64_t won = 0;
		/* Others may claim between the look and the claim: keep the leading run that was won. */
		while (won < e.n && bitmap_claim_atomic(map, e.first + won))
			won++;
		if (won) {
			ret->first = e.first;
			ret->n = won;
			return true;
		}
		first = e.first + 1;
	}
	return false;
}
