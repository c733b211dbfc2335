/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/process/pages.h"

#include <assert.h>
#include <xxhash.h>

#include "base/zero.h"

#define STAMP_MAGIC 0x6d66706167650001u

enum {
	WORDS = STAMP_PAGE / sizeof(uint64_t),
	ROUNDS = 4,
};

struct stamp {
	uint64_t magic;
	uint64_t page;
	uint64_t generation;
	uint64_t writer;
	uint64_t checksum; /* of body, seeded with all that is above */
	uint64_t body[WORDS - 5];
};
_Static_assert(sizeof(struct stamp) == STAMP_PAGE, "a stamp fills its page");

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* The part of `total` that is number i of n, without a gap or an overlap. */
static void cut(uint64_t total, uint32_t n, uint32_t i, uint64_t *ret_first, uint64_t *ret_n)
{
	uint64_t each = total / n, more = total % n;
	*ret_first = each * i + (i < more ? i : more);
	*ret_n = each + (i < more);
}

void plan_share(const struct plan *plan, uint32_t writer, struct share *ret)
{
	assert(writer < plan->writers && plan->hot <= plan->pages);
	cut(plan->hot, plan->writers, writer, &ret->hot_first, &ret->hot_n);
	cut(plan->pages - plan->hot, plan->writers, writer, &ret->cold_first, &ret->cold_n);
	ret->cold_first += plan->hot;
}

uint64_t share_page(const struct share *share, uint64_t i)
{
	return i < share->hot_n ? share->hot_first + i : share->cold_first + (i - share->hot_n);
}

/* A Feistel network over 2 * half bits, walked until it falls within [0, n): a permutation of that
 * range for any key, and the same walk backwards is its inverse. */
struct shuffle {
	uint64_t n, key, mask;
	unsigned half;
};

static struct shuffle shuffle_of(const struct plan *plan, uint32_t writer, uint64_t n,
				 uint64_t pass)
{
	unsigned bits = 1;
	while (bits < 62 && n > 1ull << bits)
		bits++;
	unsigned half = (bits + 1) / 2;
	return (struct shuffle){
		.n = n,
		.key = mix(mix(plan->seed ^ mix(writer)) + pass),
		.mask = (1ull << half) - 1,
		.half = half,
	};
}

static uint64_t shuffle_forward(const struct shuffle *s, uint64_t x)
{
	do {
		uint64_t left = x >> s->half, right = x & s->mask;
		for (unsigned r = 0; r < ROUNDS; r++) {
			uint64_t next = left ^ (mix(s->key ^ (right << 8 | r)) & s->mask);
			left = right;
			right = next;
		}
		x = left << s->half | right;
	} while (x >= s->n);
	return x;
}

static uint64_t shuffle_backward(const struct shuffle *s, uint64_t x)
{
	do {
		uint64_t left = x >> s->half, right = x & s->mask;
		for (unsigned r = ROUNDS; r-- > 0;) {
			uint64_t before = right ^ (mix(s->key ^ (left << 8 | r)) & s->mask);
			right = left;
			left = before;
		}
		x = left << s->half | right;
	} while (x >= s->n);
	return x;
}

uint64_t plan_target(const struct plan *plan, uint32_t writer, uint64_t n, uint64_t step)
{
	if (!plan->random)
		return step % n;
	struct shuffle s = shuffle_of(plan, writer, n, step / n);
	return shuffle_forward(&s, step % n);
}

uint64_t plan_generation_before(uint64_t n, uint64_t step)
{
	return step / n;
}

uint64_t plan_generation(const struct plan *plan, uint32_t writer, uint64_t n, uint64_t i,
			 uint64_t steps)
{
	uint64_t pass = steps / n, place = i;
	if (plan->random) {
		struct shuffle s = shuffle_of(plan, writer, n, pass);
		place = shuffle_backward(&s, i);
	}
	return pass + (place < steps % n);
}

static uint64_t stamp_key(const struct plan *plan, uint32_t writer, uint64_t page,
			  uint64_t generation)
{
	return mix(mix(mix(plan->seed ^ page) + generation) + writer);
}

static uint64_t checksum(const struct stamp *stamp, uint64_t key)
{
	return XXH3_64bits_withSeed(stamp->body, sizeof(stamp->body), key);
}

void page_stamp(void *at, const struct plan *plan, uint32_t writer, uint64_t page,
		uint64_t generation)
{
	struct stamp *stamp = at;
	uint64_t key = stamp_key(plan, writer, page, generation), word = key;

	for (size_t i = 0; i < sizeof(stamp->body) / sizeof(stamp->body[0]); i++) {
		word = word * 6364136223846793005u + 1442695040888963407u;
		stamp->body[i] = word;
	}
	stamp->magic = STAMP_MAGIC;
	stamp->page = page;
	stamp->generation = generation;
	stamp->writer = writer;
	stamp->checksum = checksum(stamp, key);
}

bool page_starts_zero(const struct plan *plan, uint64_t page)
{
	return mix(mix(plan->seed + 1) ^ page) % 100 < plan->zero;
}

bool page_check(const void *at, const struct plan *plan, uint32_t writer, uint64_t page,
		uint64_t generation)
{
	const struct stamp *stamp = at;

	if (!generation && page_starts_zero(plan, page))
		return base_is_zero(at, STAMP_PAGE);
	return stamp->magic == STAMP_MAGIC && stamp->page == page &&
	       stamp->generation == generation && stamp->writer == writer &&
	       stamp->checksum == checksum(stamp, stamp_key(plan, writer, page, generation));
}
