/* SPDX-License-Identifier: BSD-2-Clause */
/* The paths that a test of one or of both transports measures, side by side. */
#ifndef PERF_LINKS_H
#define PERF_LINKS_H

#include "perf/doc.h"
#include "perf/path.h"
#include "perf/verbs.h"

struct perf_links {
	unsigned n;
	struct perf_path path[PERF_SLOTS];
};

/* What --transport comes to: both, or the one that was chosen, which is said with the reason. */
int perf_links_transports(struct perf_run *run, const char *ret[PERF_SLOTS], unsigned *ret_n,
			  struct mf_error *err);
/* What the options say of a path over it; slot, bytes and memory are left at 0. */
void perf_links_params(const struct perf_options *o, const char *transport,
		       struct perf_path_params *ret);

/* By --transport, --qp, --tx-depth, --ib-dev, --gid-index; says what was taken, and why.  bytes: of each lane.  On failure
 * nothing is open. */
int perf_links_open(struct perf_run *run, uint64_t bytes, struct perf_links *links,
		    struct mf_error *err);
/* Tells the server, too; zeroed: nothing. */
void perf_links_close(struct perf_run *run, struct perf_links *links);

/* The document's rows, which are verbs' and tcp's in turn, next to each other: in `columns`, "verbs.", "tcp." and then the row's
 * path, "bytes", and "ratio", of `figure`: above 1 verbs is better. */
void perf_links_table(const struct perf_run *run, const struct perf_column *columns, size_t n,
		      const char *figure, bool less_is_better);

#endif
