/* SPDX-License-Identifier: BSD-2-Clause */
/* What the data plane could use on this host. */
#include <net/if.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "core/engine.h"

#define PATHS_MAX 64

/* "100 Gb/s"; nothing when the rate is not known. */
static void format_rate(uint64_t mbit_per_s, char *ret, size_t cap)
{
	if (!mbit_per_s)
		ret[0] = '\0';
	else if (mbit_per_s < 1000)
		(void)snprintf(ret, cap, ", %llu Mb/s", (unsigned long long)mbit_per_s);
	else
		(void)snprintf(ret, cap, ", %.3g Gb/s", (double)mbit_per_s / 1000);
}

/* How far memory on each node is from the device: 10 is local. */
static void format_node(const struct base_place *place, int node, char *ret, size_t cap)
{
	int at = node < 0 ? 0 : snprintf(ret, cap, ", NUMA node %d", node);
	int first = base_place_distance(place, node, 0);
	ret[0] = at ? ret[0] : '\0';
	for (int to = 0; first >= 0 && at > 0 && (size_t)at < cap && to < BASE_PLACE_NODES; to++) {
		int distance = base_place_distance(place, node, to);
		if (distance < 0)
			break;
		at += snprintf(ret + at, cap - (size_t)at, "%s%d",
			       to ? " " : " (distance from each: ", distance);
	}
	if (first >= 0 && at > 0 && (size_t)at < cap)
		(void)snprintf(ret + at, cap - (size_t)at, ")");
}

static void fill(const struct tp_ops *tp, const struct tp_path *path, struct base_place *place,
		 struct mf_device *ret)
{
	char rate[32], node[96];
	int numa = path->numa_node >= 0 ? path->numa_node
					: base_place_device_node(place, path->device);
	format_rate(path->mbit_per_s, rate, sizeof(rate));
	format_node(place, numa, node, sizeof(node));
	*ret = (struct mf_device){ .usable = path->up, .numa_node = numa };
	(void)snprintf(ret->transport, sizeof(ret->transport), "%s", tp->kind);
	(void)snprintf(ret->name, sizeof(ret->name), "%s", path->device);
	(void)snprintf(ret->detail, sizeof(ret->detail), "%.64s/%u%s%.15s%s%.95s%s%s",
		       path->address, path->prefix,
		       strcmp(path->device, path->interface) ? " on " : "",
		       strcmp(path->device, path->interface) ? path->interface : "",
		       path->detail[0] ? ", " : "", path->detail, rate, node);
	ret->mbit_per_s = path->mbit_per_s;
}

/* Where a program wants its devices, and how long it thinks one is. */
struct wanted {
	char *to;
	size_t size;
	unsigned cap;
};

static unsigned add(const struct wanted *ret, unsigned n, const struct mf_device *d)
{
	if (n < ret->cap)
		memcpy(ret->to + n * ret->size, d, ret->size < sizeof(*d) ? ret->size : sizeof(*d));
	return n + 1;
}

/* What is found by path: every path that is up makes a rail, where the other host has one in its subnet. */
static unsigned add_paths(const struct wanted *ret, unsigned n, const struct tp_ops *tp,
			  struct base_place *place, bool *ret_better)
{
	bool fallback = !(tp->caps & TP_CAP_BY_PATH);
	struct tp_path paths[PATHS_MAX];
	int count = tp_paths(tp, paths, PATHS_MAX);
	for (int i = 0; i < count && i < PATHS_MAX; i++) {
		struct mf_device d;
		fill(tp, &paths[i], place, &d);
		d.picked = paths[i].up && !(fallback && *ret_better);
		if (!paths[i].up)
			(void)snprintf(d.reason, sizeof(d.reason),
				       fallback ? "the interface is down"
						: "its port is not active");
		else if (fallback && *ret_better)
			(void)snprintf(d.reason, sizeof(d.reason),
				       "used when the other host is reached through it and has no "
				       "RDMA, or "
				       "when that is lost");
		else if (fallback)
			(void)snprintf(d.reason, sizeof(d.reason),
				       "used when the other host is reached through it; %s",
				       tp_find("verbs") ? "this host has no usable RDMA device"
							: "no RDMA verbs in this build");
		else
			(void)snprintf(d.reason, sizeof(d.reason),
				       "used when the other host has an RDMA device in its subnet");
		n = add(ret, n, &d);
	}
	for (int i = 0; i < count && i < PATHS_MAX; i++)
		*ret_better = *ret_better || (!fallback && paths[i].up);
	return n;
}

int mf_devices(struct mf_device *ret, size_t size, unsigned cap, struct mf_error *err)
{
	const struct wanted wanted = { (char *)ret, size, cap };
	struct base_place *place = NULL;
	bool better = false;
	unsigned n = 0;
	if (base_place_open(NULL, &place, err) < 0)
		place = NULL; /* distances are not known then */
	for (const struct tp_ops *const *t = tp_backends(); *t; t++)
		n = add_paths(&wanted, n, *t, place, &better);
	base_place_close(place);
	if (err)
		*err = (struct mf_error){ 0 };
	return (int)n;
}
