/* SPDX-License-Identifier: BSD-2-Clause */
/* What is kept of a topology: plain data, so that only opening one needs hwloc. */
#ifndef BASE_PLACEMENT_PRIV_H
#define BASE_PLACEMENT_PRIV_H

#include "base/placement.h"

struct base_place_core {
	int node;
	cpu_set_t cpus; /* those that may be used; never empty */
};

struct base_place_device {
	char name[64];
	int node;
};

struct base_place {
	bool is_here;                                     /* this machine: things may be bound */
	int distance[BASE_PLACE_NODES][BASE_PLACE_NODES]; /* -1: no such nodes */
	/* Neighbours share caches.  None when lanes should not be bound at all. */
	struct base_place_core *core;
	unsigned n_cores;
	struct base_place_device *device;
	unsigned n_devices;
};

#endif
