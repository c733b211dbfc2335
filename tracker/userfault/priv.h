/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Inside the userfaultfd pager.  Everything here is set by pgr_open() and pgr_arm() and only read
 * afterwards, so next() and complete() take no lock.
 *
 *   range 0:  | shard 0      | shard 1      | shard 2   |     every range is divided the same way:
 *   range 1:  | 0 | 1 | 2 |                                   shard = page / span
 */
#ifndef USERFAULT_PRIV_H
#define USERFAULT_PRIV_H

#include "tracker/pager.h"

/* Each run registered on its own splits a mapping of the watched process, which may have
 * vm.max_map_count (65530) of them; and registering costs some 3 us each while the guest stands still.
 * A page armed without need costs a fault that is answered at once. */
#define PGR_RUNS_MAX 1024u

struct pgr_span {
	struct pgr_range range;
	uint64_t pages;
	uint64_t span; /* pages of one shard; the last may have fewer */
};

/* A run of pages registered. */
struct pgr_run {
	uint32_t range;
	uint64_t first, end;
};

struct pgr {
	uint32_t n_shards;
	int *uffds; /* borrowed */
	uint32_t n_ranges;
	struct pgr_span *ranges;
	bool is_armed;
	struct pgr_run *runs; /* by range and page, disjoint */
	size_t n_runs;
};

/* Sorts runs, joins what touches, then what the smallest gaps part until at most max are left (or one a
 * range).  Returns their number. */
size_t pgr_merge_runs(struct pgr_run *runs, size_t n, size_t max);

/* Calls fn on the part of pages [first, end) that each shard has; stops at the first failure. */
typedef int (*pgr_part_fn)(int uffd, uint64_t addr, uint64_t len, void *ctx);
int pgr_each_part(const struct pgr *pgr, uint32_t range, uint64_t first, uint64_t end,
		  pgr_part_fn fn, void *ctx);

#endif
