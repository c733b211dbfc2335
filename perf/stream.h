/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A thread for each lane of a path: active, it posts what the plan says and measures; passive, it keeps the lane going for
 * the peer.  An active one keeps its lane going, too, when it is through.
 */
#ifndef PERF_STREAM_H
#define PERF_STREAM_H

#include "perf/bw.h"

struct stream;

struct stream_result {
	uint64_t iterations;
	double seconds; /* from the first post after warming up until all is visible or here */
	struct perf_stats slices; /* bytes a second, all lanes together */
};

/* path and plan are borrowed until stream_stop(). */
int stream_start(struct perf_path *path, const struct perf_plan *plan, bool active,
		 struct stream **ret, struct mf_error *err);
/* Until all active lanes are through, or one has failed. */
int stream_wait(struct stream *stream, uint64_t deadline_us, struct stream_result *ret,
		struct mf_error *err);
void stream_stop(struct stream *stream); /* joins; NULL: nothing */

/* How long a run of the plan may take at most, before it counts as stuck. */
uint64_t stream_deadline(const struct perf_plan *plan);
/* plan as a request, and what a server makes of it: -EINVAL if it does not fit the path. */
json_t *stream_plan_json(const struct perf_plan *plan, const struct perf_path *path);
int stream_plan_parse(const json_t *request, const struct perf_path *path, struct perf_plan *ret,
		      struct mf_error *err);

#endif
