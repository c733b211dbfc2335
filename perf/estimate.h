/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a move would take: the engine's own decisions, played through with what was measured.  Pure functions.
 *
 * Round 1 sends all data, to memory that the destination touches for the first time; round n + 1 sends what the guest writes while round n
 * goes on, by the curve of distinct bytes written within a time.  Left out: connecting and checking, looking for zero pages, a guest that the move
 * itself slows down.
 */
#ifndef PERF_ESTIMATE_H
#define PERF_ESTIMATE_H

#include <stdbool.h>

#include <jansson.h>
#include <memferry/session.h>

#include "base/error.h"
#include "perf/watch.h"

#define ESTIMATE_ROUNDS_MAX 40u

struct perf_estimate_in {
	enum mf_mode mode;
	double ram_bytes, allocated_bytes, data_bytes; /* as perf_watch has them */
	struct perf_curve dirty;
	double bytes_per_s; /* of writes of 1 MiB, to memory that is there; more than 0 */
	double run_us;      /* what each run of pages costs more than that, all lanes together */
	double pull_bytes_per_s; /* of reads of 256 KiB; more than 0 */
	double max_bytes_per_s; /* --max-bandwidth: of rounds that the guest runs in; 0: no limit */
	/* The destination's first touch of its memory; 0: costs nothing.  touches_ahead: of all of it, by threads that register it, instead of
	 * by who writes. */
	double touch_bytes_per_s;
	bool touches_ahead;
	double read_us, read_p99_us; /* of one page */
	double switchover_us;        /* pause to resume without a page */
	double max_downtime_us;
};

struct perf_estimate {
	enum mf_mode mode;
	unsigned n_rounds;
	struct {
		double us, bytes, dirty_bytes;
	} round[ESTIMATE_ROUNDS_MAX];
	/* Pre-copy alone gets under the downtime.  False: post-copy, or rounds without end; then the other figures are of a move that is told to
	 * cut over after the last of these. */
	bool converges;
	bool postcopy; /* pages are missing after the switch */
	double total_us, downtime_us, bytes;
	double postcopy_us, missing_bytes, fault_us, fault_p99_us; /* 0 without */
};

void perf_estimate(const struct perf_estimate_in *in, struct perf_estimate *ret);
json_t *perf_estimate_json(const struct perf_estimate *estimate);

/* A row for each figure: {"figure", "unit", "predicted", "actual", "off_percent"} (null where nothing was to be seen).  document: an estimate's, report:
 * what memferry send --json printed last.  Adds to rows.  -MF_EUSAGE: they do not go together. */
int perf_estimate_compare(const json_t *document, const json_t *report, json_t *rows,
			  struct mf_error *err);

#endif
