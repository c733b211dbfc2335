/* SPDX-License-Identifier: BSD-2-Clause */
/* The paths that a test of one or of both transports measures, side by side. */
#ifndef PERF_LINKS_H
#define PERF_LINKS_H

#include "perf/path.h"
#include "perf/verbs.h"

struct perf_links {
	unsigned n;
	struct perf_path path[PERF_SLOTS];
};

/* By --transport, --qp, --tx-depth, --ib-dev, --gid-index; says what was taken, and why.  bytes: of each lane.  On failure
 * nothing is open. */
int perf_links_open(struct perf_run *run, uint64_t bytes, struct perf_links *links,
		    struct mf_error *err);
/* Tells the server, too; zeroed: nothing. */
void perf_links_close(struct perf_run *run, struct perf_links *links);

#endif
