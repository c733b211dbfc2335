/* SPDX-License-Identifier: BSD-2-Clause */
/* What the two sides of a path share. */
#ifndef PERF_PATH_PRIV_H
#define PERF_PATH_PRIV_H

#include <inttypes.h>
#include <stdatomic.h>

#include "perf/path.h"

#define PATH_PATHS_MAX  64u
#define PATH_CONNECT_MS 15000u
#define PATH_DEPTH_MAX  4096u

struct path_wish {
	const char *device; /* NULL: any */
	int gid;            /* -1: any */
	const char *own;    /* our address of the control connection */
	const char *peer;   /* the peer's address of the path; NULL: not known yet */
	uint32_t peer_prefix;
};

int path_pick(const struct tp_ops *ops, const struct path_wish *wish, struct tp_path *ret,
	      struct mf_error *err);
int path_local(const struct tp_ops *ops, const struct path_wish *wish, struct tp_path *ret,
	       struct mf_error *err);
/* By kind, sealed where the path is; NULL: not built. */
const struct tp_ops *path_find(const struct perf_path *path, const char *transport);
/* Memory, domain, registration of lane i.  What was opened stays in path->end[i], also on failure: path->n then has
 * to count it for perf_path_close(). */
int path_open_end(struct perf_path *path, uint32_t i, const struct tp_path *local,
		  const struct perf_path_params *params, struct mf_error *err);
json_t *path_remotes(const struct perf_path *path);
int path_take_remotes(struct perf_path *path, const json_t *remotes, struct mf_error *err);
/* This host has an RDMA device that is up. */
bool path_has_verbs(void);
/* Polls the lane, and sleeps between unless busy, until *stop; also ends when the lane fails. */
void path_keep(struct tp_lane *lane, bool busy, const _Atomic bool *stop);

#endif
