/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where lanes run, and which NIC is nearest to a guest's memory.
 *
 *   guest memory ──distance──▶ NIC ──▶ lanes' threads: cores of the NIC's node
 *
 * NUMA nodes and CPUs go by the numbers of the operating system; nodes from BASE_PLACE_NODES on
 * and CPUs from CPU_SETSIZE on are not known.  All of it is advice: whoever gets "not known" or
 * a failure goes on without, and the scheduler decides.
 */
#ifndef BASE_PLACEMENT_H
#define BASE_PLACEMENT_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define BASE_PLACE_NODES 64

/* A machine as it was when opened.  Read-only after that: any thread.  NULL is a machine of which
 * nothing is known; all functions take it. */
struct base_place;

/* xml NULL: this machine, with the CPUs that the calling thread may use; takes up to seconds on
 * large hosts.  Otherwise one that was recorded by lstopo(1): nothing is ever bound to that.
 * The caller owns the result and closes it.  A build without hwloc returns 0 and NULL. */
int base_place_open(const char *xml, struct base_place **ret_place,
		    struct mf_error *err) MF_MUST_CHECK;
void base_place_close(struct base_place *place);

/* Node of a device by its name: "mlx5_0", "eth0".  -1: not known, as for virtual ones.  Where the
 * firmware tells the socket only, the first node of that. */
int base_place_device_node(const struct base_place *place, const char *device);

/* What the firmware says (SLIT): 10 is local, 20 twice as far.  Where it says nothing: 10 for the
 * same node, 12 for another one of the same socket, 20 for another socket.  -1: not known. */
int base_place_distance(const struct base_place *place, int from, int to);

/* Bytes by node; all 0: not known. */
struct base_place_memory {
	uint64_t bytes[BASE_PLACE_NODES];
};

/*
 * Adds where [addr, addr + len) of a process lies, in pages of page_size; pid 0: this one.  Asks
 * about at most 512 pages, each for its share of the range.  The kernel looks into the page
 * tables of that process alone: what it has not touched is not found, nor is it touched now.  So
 * ask about the guest's own process, not about a fresh mapping of the same file.
 * Returns how many of the pages were found.  -EPERM: needs the right to trace the process.
 */
int base_place_find_memory(pid_t pid, uint64_t addr, uint64_t len, uint64_t page_size,
			   struct base_place_memory *memory, struct mf_error *err) MF_MUST_CHECK;
/* From a node to the memory, the mean over its bytes, rounded.  -1: not known. */
int base_place_memory_distance(const struct base_place *place, int node,
			       const struct base_place_memory *memory);

struct base_nic {
	const char *name; /* borrowed for the call */
	int node;         /* -1: not known */
	uint64_t mbit_per_s;
	bool up;
};

/*
 * ret_order[0] is the index of the best of n NICs, and so on.  The first that differs decides:
 *
 *   1. those that are up
 *   2. those with at least a quarter of the rate of the fastest that is up; more than that is not
 *      made up for by being near.  A rate that is not known is 0.
 *   3. the nearer to the memory; within 1 of the nearest is as near as that, so that a few pages
 *      more here or there change nothing.  Not known: the farthest.
 *   4. the faster
 *   5. the nearer, were it by 1
 *   6. the name, digits as numbers: mlx5_2 before mlx5_10
 */
void base_place_order(const struct base_place *place, const struct base_nic *nic, unsigned n,
		      const struct base_place_memory *memory, unsigned *ret_order);

/*
 * The CPUs for each of n lanes, given the node of each one's NIC (-1: not known).  The last lane is
 * the urgent one.  An empty set: do not bind, the scheduler knows better.  That is all of them on
 * a machine of one node, and those whose node is not known or has no CPU that may be used.
 *
 * The lanes of a node share its cores, neighbours to neighbours: lanes near in number share
 * caches, others are spread over all.  A core goes to a lane with all its threads.  The urgent lane
 * has one for itself.  Where there are fewer cores than lanes, each lane has them all.
 */
void base_place_lanes(const struct base_place *place, const int *node, unsigned n,
		      cpu_set_t *ret_cpus);

/* The calling thread, to these CPUs.  1: done; 0: nothing to do, for the set is empty or the
 * machine is not this one. */
int base_place_bind_self(const struct base_place *place, const cpu_set_t *cpus,
			 struct mf_error *err) MF_MUST_CHECK;
/* Pages of a fresh private mapping come from that node while it has some.  1 and 0 as above; addr
 * is the mapping's.  Not for a guest's RAM: the policy of a shared file is everybody's. */
int base_place_prefer(const struct base_place *place, void *addr, size_t len, int node,
		      struct mf_error *err) MF_MUST_CHECK;

/* "node 1, cpus 12-15,44", "node 1, not bound" for an empty set, "node not known, not bound";
 * cpus NULL: only the node.  Cut at cap; returns buf. */
const char *base_place_format(int node, const cpu_set_t *cpus, char *buf, size_t cap);

#endif
