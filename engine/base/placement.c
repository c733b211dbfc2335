/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/placement.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/placement_priv.h"
#include "base/reach.h"

#define SAMPLES_MAX 512

void base_place_close(struct base_place *place)
{
	if (!place)
		return;
	free(place->core);
	free(place->device);
	free(place);
}

int base_place_device_node(const struct base_place *place, const char *device)
{
	for (unsigned i = 0; place && i < place->n_devices; i++) {
		if (!strcmp(place->device[i].name, device))
			return place->device[i].node;
	}
	return -1;
}

static bool is_node(int node)
{
	return node >= 0 && node < BASE_PLACE_NODES;
}

int base_place_distance(const struct base_place *place, int from, int to)
{
	return place && is_node(from) && is_node(to) ? place->distance[from][to] : -1;
}

int base_place_find_memory(pid_t pid, uint64_t addr, uint64_t len, uint64_t page_size,
			   struct base_place_memory *memory, struct mf_error *err)
{
	void *page[SAMPLES_MAX];
	int status[SAMPLES_MAX];
	const struct base_reach *helper = base_reach_helper(pid);
	assert(page_size);
	if (helper)
		return helper->find_memory(pid, addr, len, page_size, memory, err);
	uint64_t n_pages = len / page_size;
	uint64_t n = n_pages < SAMPLES_MAX ? n_pages : SAMPLES_MAX;
	if (!n)
		return 0;
	/* One out of each stride, but not at equal distances: interleaved memory has a rhythm. */
	uint64_t stride = n_pages / n;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t jitter = ((uint32_t)i * 2654435761u >> 16) % stride;
		page[i] = (void *)(uintptr_t)(addr + (i * stride + jitter) * page_size);
	}
	/* Without target nodes it moves nothing, it tells. */
	if (syscall(SYS_move_pages, pid, n, page, NULL, status, 0) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "where memory of process %d lies",
				      (int)pid);
	int found = 0;
	for (uint64_t i = 0; i < n; i++) {
		if (!is_node(status[i])) /* -ENOENT: no page there */
			continue;
		memory->bytes[status[i]] += len / n;
		found++;
	}
	return found;
}

int base_place_memory_distance(const struct base_place *place, int node,
			       const struct base_place_memory *memory)
{
	uint64_t total = 0, sum = 0;
	for (int i = 0; i < BASE_PLACE_NODES; i++) {
		int distance = base_place_distance(place, node, i);
		if (distance < 0)
			continue;
		total += memory->bytes[i];
		sum += memory->bytes[i] * (uint64_t)distance; /* below 2^64 up to 2^56 bytes */
	}
	return total ? (int)((sum + total / 2) / total) : -1;
}

/* What an order is made by. */
struct ranking {
	const struct base_place *place;
	const struct base_place_memory *memory;
	uint64_t fastest; /* rate of those that are up */
	unsigned nearest; /* distance of those that are up and not slow */
};

static bool is_slow(const struct ranking *r, const struct base_nic *nic)
{
	return nic->mbit_per_s < r->fastest / 4;
}

/* As an unsigned number: not known is the farthest. */
static unsigned distance_of(const struct ranking *r, const struct base_nic *nic)
{
	return (unsigned)base_place_memory_distance(r->place, nic->node, r->memory);
}

/* Below 0: a before b. */
static int compare_nics(const struct ranking *r, const struct base_nic *a, const struct base_nic *b)
{
	if (a->up != b->up)
		return a->up ? -1 : 1;
	bool a_slow = is_slow(r, a), b_slow = is_slow(r, b);
	if (a_slow != b_slow)
		return a_slow ? 1 : -1;
	unsigned a_far = distance_of(r, a), b_far = distance_of(r, b);
	/* Where a slow one is nearer than `nearest` it wraps: both slow, by distance alone. */
	bool are_both_near = a_far - r->nearest <= 1 && b_far - r->nearest <= 1;
	if (a_far != b_far && !are_both_near)
		return a_far < b_far ? -1 : 1;
	if (a->mbit_per_s != b->mbit_per_s)
		return a->mbit_per_s > b->mbit_per_s ? -1 : 1;
	if (a_far != b_far)
		return a_far < b_far ? -1 : 1;
	return strverscmp(a->name, b->name);
}

void base_place_order(const struct base_place *place, const struct base_nic *nic, unsigned n,
		      const struct base_place_memory *memory, unsigned *ret_order)
{
	struct ranking r = { .place = place, .memory = memory, .nearest = UINT_MAX };
	for (unsigned i = 0; i < n; i++) {
		if (nic[i].up && nic[i].mbit_per_s > r.fastest)
			r.fastest = nic[i].mbit_per_s;
	}
	for (unsigned i = 0; i < n; i++) {
		if (nic[i].up && !is_slow(&r, &nic[i]) && distance_of(&r, &nic[i]) < r.nearest)
			r.nearest = distance_of(&r, &nic[i]);
	}
	/* By insertion: they are few, and equals stay in their order. */
	for (unsigned i = 0; i < n; i++) {
		unsigned k = i;
		for (; k && compare_nics(&r, &nic[i], &nic[ret_order[k - 1]]) < 0; k--)
			ret_order[k] = ret_order[k - 1];
		ret_order[k] = i;
	}
}

/* How many cores the node has; the CPUs of those in [from, to) of them. */
static unsigned take_cores(const struct base_place *place, int node, unsigned from, unsigned to,
			   cpu_set_t *ret)
{
	unsigned n = 0;
	CPU_ZERO(ret);
	for (unsigned i = 0; place && node >= 0 && i < place->n_cores; i++) {
		if (place->core[i].node != node)
			continue;
		if (n >= from && n < to)
			CPU_OR(ret, ret, &place->core[i].cpus);
		n++;
	}
	return n;
}

void base_place_lanes(const struct base_place *place, const int *node, unsigned n,
		      cpu_set_t *ret_cpus)
{
	for (unsigned i = 0; i < n; i++) {
		unsigned before = 0, lanes = 0;
		for (unsigned k = 0; k < n; k++) {
			before += k < i && node[k] == node[i];
			lanes += node[k] == node[i];
		}
		unsigned cores = take_cores(place, node[i], 0, UINT_MAX, &ret_cpus[i]);
		if (cores < lanes || !cores)
			continue;
		unsigned urgent = node[n - 1] == node[i]; /* it has the last core */
		unsigned bulk = lanes - urgent, shared = cores - urgent;
		if (i == n - 1)
			take_cores(place, node[i], shared, cores, &ret_cpus[i]);
		else
			take_cores(place, node[i], before * shared / bulk,
				   (before + 1) * shared / bulk, &ret_cpus[i]);
	}
}

int base_place_bind_self(const struct base_place *place, const cpu_set_t *cpus,
			 struct mf_error *err)
{
	if (!place || !place->is_here || !CPU_COUNT(cpus))
		return 0;
	if (sched_setaffinity(0, sizeof(*cpus), cpus) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "binding a thread to %d CPUs",
				      CPU_COUNT(cpus));
	return 1;
}

int base_place_prefer(const struct base_place *place, void *addr, size_t len, int node,
		      struct mf_error *err)
{
	if (!place || !place->is_here || base_place_distance(place, node, node) < 0)
		return 0;
	uint64_t mask = UINT64_C(1) << node;
	/* The kernel takes one off the number of bits. */
	if (syscall(SYS_mbind, addr, len, MPOL_PREFERRED, &mask, BASE_PLACE_NODES + 1, 0) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "preferring memory of node %d",
				      node);
	return 1;
}

/* "12-15,44" at the end of what buf holds. */
static void append_cpus(const cpu_set_t *cpus, char *buf, size_t cap)
{
	const char *comma = "";
	for (int i = 0, end; i < CPU_SETSIZE; i = end + 1) {
		for (end = i; end < CPU_SETSIZE && CPU_ISSET(end, cpus);)
			end++;
		if (end == i)
			continue;
		size_t used = strlen(buf);
		(void)snprintf(buf + used, cap - used, end - i > 1 ? "%s%d-%d" : "%s%d", comma, i,
			       end - 1);
		comma = ",";
	}
}

const char *base_place_format(int node, const cpu_set_t *cpus, char *buf, size_t cap)
{
	if (node >= 0)
		(void)snprintf(buf, cap, "node %d", node);
	else
		(void)snprintf(buf, cap, "node not known");
	if (!cpus)
		return buf;
	size_t used = strlen(buf);
	(void)snprintf(buf + used, cap - used, CPU_COUNT(cpus) ? ", cpus " : ", not bound");
	if (CPU_COUNT(cpus))
		append_cpus(cpus, buf, cap);
	return buf;
}
