/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * All pairs of the processes that a launcher has started, in rounds.
 *
 *   rank                              rank 0's coordinator
 *   perf_mesh_work()   "join" ──▶     perf_mesh_coordinate()
 *                      ◀── order      {"do": "serve"}, {"do": "measure", "address"}: a process does one thing at a time
 *                      answer ──▶     {}, {"row"}, {"error"}
 *                      ◀── "alive"    now and then; a thread of its own says it back
 *                      ◀── "end"      to all; with {"error"} when anything has failed anywhere
 *
 * A round has two turns: what posts in the first is served to in the second.  Everything is waited for with a deadline;
 * whoever ends is noticed by its connection, or by its silence.
 */
#ifndef PERF_MESH_H
#define PERF_MESH_H

#include <stdint.h>

#include <jansson.h>

#include "perf/launcher.h"
#include "perf/options.h"

#define PERF_MESH_NAME_CAP 64u

/* The schedule: the circle method.  n - 1 rounds, or n when n is odd. */
uint32_t perf_mesh_rounds(uint32_t n);
/* With whom `place` is measured in the round; place itself: with nobody. */
uint32_t perf_mesh_partner(uint32_t n, uint32_t round, uint32_t place);
/* Which rank sits at which place: a permutation that the seed makes. */
void perf_mesh_shuffle(uint32_t n, uint64_t seed, uint32_t *ret_rank_at);

/* How long a turn may take at most, before whoever has not answered counts as stuck. */
uint64_t perf_mesh_turn_ms(const struct perf_options *o);

/* Rank 0, besides its perf_mesh_work(): waits for all at listen_fd, gives orders, fills hosts (in order of rank) and
 * results of the document.  The sentence of a failure names the host or the pair; all ranks are told. */
int perf_mesh_coordinate(const struct perf_launch *launch, const struct perf_options *o,
			 int listen_fd, json_t *doc, struct mf_error *err);
/* Every rank: finds rank 0, does as it is told, until the end. */
int perf_mesh_work(const struct perf_launch *launch, const struct perf_options *o,
		   struct mf_error *err);

/* What the rows of a document come to. */
struct perf_mesh_summary {
	double min, median,
		max;   /* bytes_per_s; the median of an even number is the upper of the two */
	uint32_t slow; /* rows */
};
/* Sets "slow" of each row: whether its bandwidth is below this share of the median. */
void perf_mesh_judge(json_t *rows, double share, struct perf_mesh_summary *ret);
/* How many of the rows from (or to) this rank there are, and how many are slow. */
void perf_mesh_count(const json_t *rows, bool from, uint32_t rank, uint32_t *ret_all,
		     uint32_t *ret_slow);

#endif
