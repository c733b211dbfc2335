/* SPDX-License-Identifier: BSD-2-Clause */
/* Reading a topology by hwloc. */
#include <errno.h>
#include <hwloc.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/placement_priv.h"

static void destroyp(hwloc_topology_t *t)
{
	if (*t)
		hwloc_topology_destroy(*t);
}

static void closep(struct base_place **place)
{
	base_place_close(*place);
}

static int load(hwloc_topology_t t, const char *xml)
{
	/* They would start drivers of accelerators, which takes seconds and is of no use here.  "pci" is a plugin that
	 * other packages bring along: it reads the list of all devices' names, each time, and never frees it; without it hwloc
	 * finds devices in sysfs. */
	static const char *const unwanted[] = { "cuda",   "gl",  "levelzero", "nvml",
						"opencl", "pci", "rsmi" };
	for (size_t i = 0; i < BASE_ARRAY_LEN(unwanted); i++)
		(void)hwloc_topology_set_components(t, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST,
						    unwanted[i]);
	if (xml && hwloc_topology_set_xml(t, xml) < 0)
		return -1;
	/* Disallowed: a cgroup without the CPUs next to a NIC does not move the NIC. */
	if (hwloc_topology_set_io_types_filter(t, HWLOC_TYPE_FILTER_KEEP_IMPORTANT) < 0 ||
	    hwloc_topology_set_flags(t, HWLOC_TOPOLOGY_FLAG_INCLUDE_DISALLOWED) < 0)
		return -1;
	return hwloc_topology_load(t);
}

/* Is there a node that is nearer to some CPUs than to others? */
static bool is_split(hwloc_topology_t t)
{
	hwloc_const_cpuset_t all = hwloc_get_root_obj(t)->cpuset;
	for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(t, HWLOC_OBJ_NUMANODE, o));) {
		if (!hwloc_bitmap_iszero(o->cpuset) && !hwloc_bitmap_isequal(o->cpuset, all))
			return true;
	}
	return false;
}

/* The first of an object's nodes; -1 for what stands apart from all of several. */
static int node_of(hwloc_topology_t t, hwloc_obj_t o)
{
	if (is_split(t) && hwloc_bitmap_isequal(o->cpuset, hwloc_get_root_obj(t)->cpuset))
		return -1;
	int node = hwloc_bitmap_first(o->nodeset);
	return node < BASE_PLACE_NODES ? node : -1;
}

static int guess_distance(hwloc_topology_t t, hwloc_obj_t from, hwloc_obj_t to)
{
	if (from == to)
		return 10;
	hwloc_obj_t socket = hwloc_get_ancestor_obj_by_type(t, HWLOC_OBJ_PACKAGE, from);
	return socket && socket == hwloc_get_ancestor_obj_by_type(t, HWLOC_OBJ_PACKAGE, to) ? 12
											    : 20;
}

static void set_distance(struct base_place *place, hwloc_obj_t from, hwloc_obj_t to, uint64_t value)
{
	if (from->os_index < BASE_PLACE_NODES && to->os_index < BASE_PLACE_NODES)
		place->distance[from->os_index][to->os_index] = value < 255 ? (int)value : 255;
}

static void read_distances(hwloc_topology_t t, struct base_place *place)
{
	memset(place->distance, -1, sizeof(place->distance));
	for (hwloc_obj_t a = NULL; (a = hwloc_get_next_obj_by_type(t, HWLOC_OBJ_NUMANODE, a));) {
		for (hwloc_obj_t b = NULL;
		     (b = hwloc_get_next_obj_by_type(t, HWLOC_OBJ_NUMANODE, b));)
			set_distance(place, a, b, (uint64_t)guess_distance(t, a, b));
	}
	struct hwloc_distances_s *said = NULL;
	unsigned one = 1;
	if (hwloc_distances_get_by_name(t, "NUMALatency", &one, &said, 0) < 0 || !one)
		return;
	for (unsigned i = 0; i < said->nbobjs; i++) {
		for (unsigned k = 0; k < said->nbobjs; k++) {
			if (said->objs[i] && said->objs[k])
				set_distance(place, said->objs[i], said->objs[k],
					     said->values[i * said->nbobjs + k]);
		}
	}
	hwloc_distances_release(t, said);
}

/* The CPUs that may be used: of the machine, and of this thread, whom `taskset` may have bound. */
static void read_allowed(hwloc_topology_t t, bool is_here, cpu_set_t *ret)
{
	cpu_set_t mine;
	bool is_mine_known = is_here && !sched_getaffinity(0, sizeof(mine), &mine);
	hwloc_const_cpuset_t allowed = hwloc_topology_get_allowed_cpuset(t);
	CPU_ZERO(ret);
	for (int i = 0; i < CPU_SETSIZE; i++) {
		if (hwloc_bitmap_isset(allowed, (unsigned)i) &&
		    (!is_mine_known || CPU_ISSET(i, &mine)))
			CPU_SET(i, ret);
	}
}

static int read_cores(hwloc_topology_t t, struct base_place *place)
{
	cpu_set_t allowed;
	read_allowed(t, place->is_here, &allowed);
	/* Some virtual machines tell threads only. */
	hwloc_obj_type_t type =
		hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
	int n = hwloc_get_nbobjs_by_type(t, type);
	if (n <= 0 || !is_split(t))
		return 0;
	place->core = calloc((size_t)n, sizeof(*place->core));
	if (!place->core)
		return -ENOMEM;
	for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(t, type, o));) {
		struct base_place_core *core = &place->core[place->n_cores];
		core->node = node_of(t, o);
		CPU_ZERO(&core->cpus);
		for (int i = hwloc_bitmap_first(o->cpuset); i >= 0 && i < CPU_SETSIZE;
		     i = hwloc_bitmap_next(o->cpuset, i)) {
			if (CPU_ISSET(i, &allowed))
				CPU_SET(i, &core->cpus);
		}
		if (CPU_COUNT(&core->cpus))
			place->n_cores++;
	}
	return 0;
}

static int read_devices(hwloc_topology_t t, struct base_place *place)
{
	int n = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_OS_DEVICE);
	if (n <= 0)
		return 0;
	place->device = calloc((size_t)n, sizeof(*place->device));
	if (!place->device)
		return -ENOMEM;
	for (hwloc_obj_t o = NULL; (o = hwloc_get_next_osdev(t, o));) {
		struct base_place_device *device = &place->device[place->n_devices++];
		(void)snprintf(device->name, sizeof(device->name), "%s", o->name ? o->name : "");
		device->node = node_of(t, hwloc_get_non_io_ancestor_obj(t, o));
	}
	return 0;
}

int base_place_open(const char *xml, struct base_place **ret_place, struct mf_error *err)
{
	base_cleanup(closep) struct base_place *place = calloc(1, sizeof(*place));
	base_cleanup(destroyp) hwloc_topology_t t = NULL;
	if (!place)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	errno = 0;
	if (hwloc_topology_init(&t) < 0 || load(t, xml) < 0)
		return base_error_sys(err, errno ? -errno : -EINVAL, MF_SCOPE_HOST,
				      "topology of %s", xml ? xml : "this host");
	place->is_here = hwloc_topology_is_thissystem(t);
	read_distances(t, place);
	if (read_cores(t, place) < 0 || read_devices(t, place) < 0)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	*ret_place = BASE_TAKE_PTR(place);
	return 0;
}
