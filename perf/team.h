/* SPDX-License-Identifier: BSD-2-Clause */
/* Threads that do one thing together, each its share of it, as often as asked. */
#ifndef PERF_TEAM_H
#define PERF_TEAM_H

#include <stdint.h>

#include "base/error.h"

struct perf_team;

/* Of member i.  Must come back by itself. */
typedef int (*perf_share_fn)(void *ctx, unsigned i, struct mf_error *err);

int perf_team_start(unsigned n, struct perf_team **ret, struct mf_error *err);
/* Has all begin at once and waits for all.  ret_ns: from the first beginning to the last end, which leaves out how long
 * threads take to wake.  The code and sentence of the first member that failed. */
int perf_team_do(struct perf_team *team, perf_share_fn fn, void *ctx, uint64_t *ret_ns,
		 struct mf_error *err);
void perf_team_end(struct perf_team *team); /* joins; NULL: nothing */

#endif
