/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What srun, mpirun and their like tell a process that they start: its number, how many there are, and where number
 * 0 may be found.  Takes an environment, asks nobody.
 */
#ifndef PERF_LAUNCHER_H
#define PERF_LAUNCHER_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define PERF_RANKS_MAX 512u
#define PERF_HOSTS_MAX 8u
#define PERF_HOST_CAP  256u
#define PERF_LAUNCH_ID 160u
#define PERF_PORT_FIRST \
	20000u /* of those that are derived: below what kernels give to connections */
#define PERF_PORT_COUNT 12000u

struct perf_launch {
	uint32_t rank, size;
	uint32_t n_hosts;
	char host[PERF_HOSTS_MAX][PERF_HOST_CAP]; /* of rank 0: to be tried in this order */
	uint16_t port;                            /* of rank 0 */
	char id[PERF_LAUNCH_ID]; /* all ranks of a start have the same; no secret */
};

/*
 * env: as environ(7).  rendezvous: "HOST[:PORT]" instead of what the environment says, or NULL.  A port that nobody
 * says is derived from the id.
 * -MF_EUSAGE: no launcher, or one that does not say enough.
 */
int perf_launch_read(const char *const env[], const char *rendezvous, struct perf_launch *ret,
		     struct mf_error *err);

/* Host number n (from 0) of a node list as Slurm writes it: "node[01-03,7],x[0-1]y[0-1]".  -ERANGE, without a
 * sentence: there are no more than n; -MF_EUSAGE: it is none, or a name is longer than cap. */
int perf_nodelist_nth(const char *list, uint32_t n, char *ret, size_t cap, struct mf_error *err);

#endif
