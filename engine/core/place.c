/* SPDX-License-Identifier: BSD-2-Clause */
/* Placement: devices near the guest's memory come first, lanes' threads run near their device. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "core/engine.h"

#define PATHS_MAX 64

/* Opening costs milliseconds, on large hosts more: only where it can make a difference. */
static void open_place(struct mf_session *s)
{
	if (s->place_opened)
		return;
	s->place_opened = true;
	if (access("/sys/devices/system/node/node1", F_OK))
		return;
	struct mf_error err = { 0 };
	if (base_place_open(NULL, &s->place, &err) < 0)
		eng_emit(s, MF_EVENT_NOTICE, "placement: %s; lanes run anywhere", err.msg);
}

static int node_of(const struct mf_session *s, const struct tp_path *path)
{
	if (path->numa_node >= 0)
		return path->numa_node;
	int node = base_place_device_node(s->place, path->device);
	return node >= 0 ? node : base_place_device_node(s->place, path->interface);
}

/* Where the guest's process has its RAM; nothing where that is not known, as at a destination. */
static void find_memory(const struct mf_session *s, struct base_place_memory *ret)
{
	memset(ret, 0, sizeof(*ret));
	for (uint32_t i = 0; s->place && s->guest.pid && i < s->guest.n_regions; i++) {
		const struct mf_region *r = &s->guest.regions[i];
		if (base_place_find_memory(s->guest.pid, r->hva, r->size, r->page_size, ret, NULL) <
		    0)
			return;
	}
}

void eng_place_order(struct mf_session *s, struct tp_path *paths, unsigned n)
{
	struct base_nic nic[PATHS_MAX];
	struct tp_path sorted[PATHS_MAX];
	struct base_place_memory memory;
	unsigned order[PATHS_MAX];

	open_place(s);
	find_memory(s, &memory);
	for (unsigned i = 0; i < n; i++) {
		paths[i].numa_node = node_of(s, &paths[i]);
		nic[i] = (struct base_nic){ .name = paths[i].device,
					    .node = paths[i].numa_node,
					    .mbit_per_s = paths[i].mbit_per_s,
					    .up = paths[i].up };
	}
	base_place_order(s->place, nic, n, &memory, order);
	for (unsigned i = 0; i < n; i++)
		sorted[i] = paths[order[i]];
	memcpy(paths, sorted, n * sizeof(*paths));
}

/* Of the rail's own address. */
static int node_of_rail(const struct mf_session *s, const struct eng_rail *rail)
{
	struct tp_path paths[PATHS_MAX];
	int n = tp_paths(rail->tp, paths, PATHS_MAX);
	for (int i = 0; i < n && i < PATHS_MAX; i++) {
		if (!strcmp(paths[i].address, rail->local))
			return node_of(s, &paths[i]);
	}
	return -1;
}

void eng_place_lanes(struct mf_session *s)
{
	int rail_node[ENG_RAILS_MAX], node[ENG_RAILS_MAX * ENG_LANES_MAX + 1];
	cpu_set_t cpus[ENG_RAILS_MAX * ENG_LANES_MAX + 1];

	open_place(s);
	if (!s->place)
		return;
	for (uint32_t k = 0; k < s->n_rails; k++)
		rail_node[k] = node_of_rail(s, &s->rail[k]);
	/* Lanes of one transport work at the same time; each rail's urgent one has a core of its own beside them. */
	for (uint32_t k = 0; k < s->n_rails; k++) {
		struct eng_rail *rail = &s->rail[k];
		uint32_t n = 0, mine = 0;
		for (uint32_t j = 0; j < s->n_rails; j++) {
			mine = j == k ? n : mine;
			for (uint32_t i = 0; s->rail[j].tp == rail->tp && i < s->lanes.n_bulk; i++)
				node[n++] = rail_node[j];
		}
		node[n] = rail_node[k];
		base_place_lanes(s->place, node, n + 1, cpus);
		for (uint32_t i = 0; i < s->lanes.n_bulk; i++)
			rail->lane[i].cpus = cpus[mine + i];
		rail->lane[s->lanes.n_bulk].cpus = cpus[n];
		(void)base_place_format(rail_node[k], &cpus[mine], rail->report.place,
					sizeof(rail->report.place));
	}
}

void eng_place_bind(const struct eng_lane *lane)
{
	(void)!base_place_bind_self(lane->session->place, &lane->cpus, NULL);
}
