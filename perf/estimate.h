/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a move would take: the engine's own decisions, played through with what was measured.  Pure functions.
 *
 * Round 1 sends all data; round n + 1 sends what the guest writes while round n goes on, by the curve of distinct bytes written within
 * a time.  The path gives each round the same bandwidth.
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
	double ram_bytes, data_bytes;
	struct perf_curve dirty;
	double bytes_per_s;   /* of the path */
	double read_us;       /* of one page, by the path's median */
	double switchover_us; /* pause to resume without a page */
	double max_downtime_us;
};

struct perf_estimate {
	enum mf_mode mode;
	unsigned n_rounds;
	struct {
		double us, bytes, dirty_bytes;
	} round[ESTIMATE_ROUNDS_MAX];
	bool converges; /* pre-copy alone gets under the downtime; false: post-copy, or throttling */
	bool postcopy;  /* pages are missing after the switch */
	double total_us, downtime_us, bytes;
	double postcopy_us, missing_bytes, fault_us; /* 0 without */
};

void perf_estimate(const struct perf_estimate_in *in, struct perf_estimate *ret);
json_t *perf_estimate_json(const struct perf_estimate *estimate);

/* A row for each figure: {"figure", "unit", "predicted", "actual", "off_percent"} (null where nothing was to be seen).  document: an estimate's, report:
 * what memferry send --json printed last.  Adds to rows. */
int perf_estimate_compare(const json_t *document, const json_t *report, json_t *rows,
			  struct mf_error *err);

#endif
