/* SPDX-License-Identifier: BSD-2-Clause */
/* What the coordinator of a mesh and its ranks share. */
#ifndef PERF_MESH_PRIV_H
#define PERF_MESH_PRIV_H

#include <string.h>

#include "perf/launcher.h"

#define MESH_JOIN_MS  60000u /* from the first process to the last one */
#define MESH_GRACE_MS 30000u /* for the coordinator to find out who has not come */
/* The coordinator asks whether all are alive; who is not heard of for so long, either way, is not. */
#define MESH_BEAT_MS    5000u
#define MESH_SILENCE_MS 30000u

/* What to listen on: IPv6 only where rank 0 is given by an address of that kind. */
static inline const char *mesh_any_address(const struct perf_launch *launch)
{
	return strchr(launch->host[0], ':') ? "::" : "0.0.0.0";
}

#endif
