/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What each page of the demo guest holds, as a pure function of the writers' step counters.
 *
 *   page 0                     hot                            pages
 *   | writer 0 | writer 1 | …  | writer 0 | writer 1 | …      |     each page has one writer
 *     rewritten, pass by pass    stamped once, only checked
 *
 * A writer's pass writes each of its hot pages once: in order, or in an order drawn for that pass (a permutation
 * that can be inverted).  So after S steps over h hot pages, page i was written S / h times, and once more if its
 * place in the current pass lies before S % h.  That count is the page's generation, and the whole page follows
 * from it.  Generation 0 of some pages, `zero` percent of them, is all zeroes.
 */
#ifndef HV_PROCESS_PAGES_H
#define HV_PROCESS_PAGES_H

#include <stdbool.h>
#include <stdint.h>

/* The unit of stamping, whatever page size backs the RAM. */
#define STAMP_PAGE    4096u
#define GUEST_THREADS 64u

struct plan {
	uint64_t pages; /* of STAMP_PAGE bytes */
	uint64_t hot;   /* the first of them; at least one per writer */
	uint64_t seed;
	uint32_t writers; /* 1 to GUEST_THREADS */
	uint32_t zero;    /* percent */
	bool random;
};

/* The hot and the cold pages of one writer. */
struct share {
	uint64_t hot_first, hot_n;
	uint64_t cold_first, cold_n;
};

void plan_share(const struct plan *plan, uint32_t writer, struct share *ret);
/* The i-th page of a share, hot ones first. */
uint64_t share_page(const struct share *share, uint64_t i);

/* Which hot page of n, from 0, a writer's step writes; what its generation is before that. */
uint64_t plan_target(const struct plan *plan, uint32_t writer, uint64_t n, uint64_t step);
uint64_t plan_generation_before(uint64_t n, uint64_t step);
/* The generation of hot page i of n after `steps` steps. */
uint64_t plan_generation(const struct plan *plan, uint32_t writer, uint64_t n, uint64_t i,
			 uint64_t steps);

/* Both see the page as it is at that generation, written by that writer. */
void page_stamp(void *at, const struct plan *plan, uint32_t writer, uint64_t page,
		uint64_t generation);
bool page_check(const void *at, const struct plan *plan, uint32_t writer, uint64_t page,
		uint64_t generation);
/* The page is all zeroes at generation 0: nothing is stamped. */
bool page_starts_zero(const struct plan *plan, uint64_t page);

#endif
