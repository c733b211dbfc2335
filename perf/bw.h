/* SPDX-License-Identifier: BSD-2-Clause */
/* Bandwidth and latency of one-sided operations of one size over a path. */
#ifndef PERF_BW_H
#define PERF_BW_H

#include "perf/cpu.h"
#include "perf/path.h"
#include "perf/stats.h"

struct perf_plan {
	bool is_read;
	uint64_t size; /* bytes of one operation */
	uint64_t
		span; /* bytes of each lane's memory that operations walk through; at least `size` */
	uint64_t iterations; /* of each lane; 0: by time */
	uint64_t duration_ms;
	uint32_t batch; /* operations a post */
	bool sleep;     /* for completions, instead of polling */
	bool both_ways; /* the server does the same at the same time (bandwidth only) */
};

struct perf_bw {
	uint64_t iterations;      /* done, both ways */
	double seconds;           /* until the last byte was visible */
	double bytes_per_s;       /* both ways */
	struct perf_stats slices; /* bytes_per_s of slices of the time, as perf_stats_of_rates() */
	struct perf_cpu client, server;
};
/* Client, over an open path. */
int perf_bw_run(struct perf_peer *peer, struct perf_path *path, const struct perf_plan *plan,
		struct perf_bw *ret, struct mf_error *err);

struct perf_lat {
	uint64_t iterations;
	struct perf_stats us; /* write: half of there and back; read: until the bytes are there */
	double *samples_us;   /* `iterations` of them, in the order of time; the caller's to free */
	struct perf_cpu client, server;
};
/* On lane 0. */
int perf_lat_run(struct perf_peer *peer, struct perf_path *path, const struct perf_plan *plan,
		 struct perf_lat *ret, struct mf_error *err);

/* Server, on {"do": "bw"} and {"do": "lat"} over an open path. */
int perf_bw_serve(struct perf_peer *peer, const json_t *request, struct perf_path *path,
		  struct mf_error *err);
int perf_lat_serve(struct perf_peer *peer, const json_t *request, struct perf_path *path,
		   struct mf_error *err);

#endif
