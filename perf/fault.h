/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Page faults answered from the server's memory, as the destination does in post-copy: threads touch pages of shared
 * memory that are not there, each on its own; for every userfaultfd one thread sees the faults of its part of the memory,
 * reads the pages over a lane of its own and lets the touching threads go on.
 *
 *   began ── wake ──▶ seen ── read ──▶ come ── install ──▶ resumed
 *   (toucher)         (handler: posts)  (handler: completed)  (toucher)
 *
 * The local memory of the pages exists before: what is measured is the service, not the allocation.
 */
#ifndef PERF_FAULT_H
#define PERF_FAULT_H

#include "perf/cpu.h"
#include "perf/path.h"
#include "perf/stats.h"

#define PERF_UFFDS_MAX         16u
#define PERF_FAULT_THREADS_MAX 256u

struct perf_fault_params {
	uint64_t bytes; /* of memory; rounded down so that each userfaultfd has as many pages */
	uint64_t page_size;
	uint32_t uffds;
	uint64_t seed; /* of the contents, and of the order of touches */
};

/* The memory, its userfaultfds, and all that a measurement needs. */
struct perf_fault_bench;

/* Why this host cannot, a sentence in buf: too few pages, or huge ones that are not free; NULL: it can. */
const char *perf_fault_why_not(const struct perf_fault_params *params, char *buf, size_t cap);
/* -MF_EREFUSED, -MF_EKERNEL: no userfaultfd for us. */
int perf_fault_open(const struct perf_fault_params *params, struct perf_fault_bench **ret,
		    struct mf_error *err);
/* After the path over its memory was closed.  NULL: nothing. */
void perf_fault_close(struct perf_fault_bench *bench);
/* For perf_path_params: `memory` and `bytes`; a path has `uffds` lanes. */
void *const *perf_fault_memory(const struct perf_fault_bench *bench);
uint64_t perf_fault_lane_bytes(const struct perf_fault_bench *bench);

/* Writes the contents into the server's memory: once for each path, before it is measured. */
int perf_fault_fill(struct perf_fault_bench *bench, struct perf_peer *peer, struct perf_path *path,
		    struct mf_error *err);

struct perf_fault_plan {
	uint32_t threads; /* that touch */
	uint64_t touches; /* at most, of all threads together; 0: each page once */
};

struct perf_fault {
	uint64_t touches;
	double seconds; /* from the first touch to the last thread that went on */
	double faults_per_s, bytes_per_s;
	struct perf_stats latency_us; /* of touches, by the clock of the touching thread */
	struct perf_stats wake_us, read_us, install_us; /* its parts; those of one touch sum up */
	struct perf_cpu client, server;
};
/* Client, over an open path that has been filled.  -MF_EINTEGRITY: a byte that came is wrong. */
int perf_fault_run(struct perf_fault_bench *bench, struct perf_peer *peer, struct perf_path *path,
		   const struct perf_fault_plan *plan, struct perf_fault *ret,
		   struct mf_error *err);

#endif
