/* SPDX-License-Identifier: BSD-2-Clause */
/* What the memory of a fault bench and its measurement share. */
#ifndef PERF_FAULT_PRIV_H
#define PERF_FAULT_PRIV_H

#include <stdatomic.h>

#include "perf/fault.h"
#include "perf/random.h"
#include "tracker/pager.h"

/* A page's only touch; 0: not yet.  Nanoseconds of CLOCK_MONOTONIC. */
struct fault_touch {
	_Atomic uint64_t began; /* toucher's: set with release before it touches */
	uint64_t seen, come;    /* its handler's */
	uint64_t resumed;       /* toucher's */
};

struct perf_fault_bench {
	struct perf_fault_params params;
	uint64_t pages, span; /* of them each userfaultfd has `span` */
	int uffds[PERF_UFFDS_MAX];
	uint8_t *guest; /* where pages are touched */
	uint8_t *local; /* the same bytes: where reads put them */
	void *lane_memory[PERF_UFFDS_MAX];
	struct fault_touch *touches; /* by page */
	uint64_t *order;             /* all pages */
	double *samples;             /* room for one of each page */
};

/* The word at `at` of a page's contents is fault_first_word() + at * FAULT_STEP. */
#define FAULT_STEP PERF_RANDOM_STEP
uint64_t fault_first_word(uint64_t seed, uint64_t page);
/* Fills all of the local memory: with the contents, or with what no page's contents are. */
void fault_write_contents(struct perf_fault_bench *bench);
void fault_poison(struct perf_fault_bench *bench);
/* UINT64_MAX: the page's bytes are right; else the offset of a wrong word. */
uint64_t fault_wrong_word(const struct perf_fault_bench *bench, uint64_t page);

/* The server's keepers, while its memory is read or written.  server: the CPU it spent meanwhile. */
int fault_keep(struct perf_peer *peer, const struct perf_path *path, struct mf_error *err);
int fault_keep_stop(struct perf_peer *peer, const struct perf_path *path, struct perf_cpu *server,
		    struct mf_error *err);

#endif
