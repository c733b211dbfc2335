/* SPDX-License-Identifier: BSD-2-Clause */
/* Placement on the hosts of tests/topologies, and what can be bound on this one. */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/placement.h"

#define LANES_MAX 16
#define GIB       (UINT64_C(1) << 30)

static const struct base_place_memory nowhere;
static const struct base_place_memory on_0 = { { 8 * GIB } };
static const struct base_place_memory on_1 = { { 0, 8 * GIB } };
static const struct base_place_memory spread = { { 8 * GIB, 8 * GIB } };

static void closep(struct base_place **place)
{
	base_place_close(*place);
}
#define autoplace base_cleanup(closep) struct base_place

static struct base_place *open_file(const char *name)
{
	char path[512];
	struct mf_error err = { 0 };
	struct base_place *place = NULL;
	(void)snprintf(path, sizeof(path), "%s/%s.xml", MF_TOPOLOGIES, name);
	if (base_place_open(path, &place, &err) || !place)
		fail_msg("%s: '%s'", path, err.msg);
	return place;
}

static struct base_place *open_here(void)
{
	struct mf_error err = { 0 };
	struct base_place *place = NULL;
	if (base_place_open(NULL, &place, &err))
		fail_msg("this host: '%s'", err.msg);
	return place;
}

/* The names in order, best first: "mlx5_1 mlx5_0". */
static void check_order(const struct base_place *place, const struct base_nic *nic, unsigned n,
			const struct base_place_memory *memory, const char *expected)
{
	unsigned order[LANES_MAX];
	char found[256] = "";
	base_place_order(place, nic, n, memory, order);
	for (unsigned i = 0; i < n; i++) {
		size_t used = strlen(found);
		(void)snprintf(found + used, sizeof(found) - used, "%s%s", i ? " " : "",
			       nic[order[i]].name);
	}
	assert_string_equal(found, expected);
}

/* The lanes in order, the urgent one last: "cpus 0-3 | not bound". */
static void check_lanes(const struct base_place *place, const int *node, unsigned n,
			const char *expected)
{
	cpu_set_t cpus[LANES_MAX];
	char found[512] = "", text[128];
	base_place_lanes(place, node, n, cpus);
	for (unsigned i = 0; i < n; i++) {
		size_t used = strlen(found);
		base_place_format(0, &cpus[i], text, sizeof(text));
		(void)snprintf(found + used, sizeof(found) - used, "%s%s", i ? " | " : "",
			       text + strlen("node 0, "));
	}
	assert_string_equal(found, expected);
}

static void hca_on_each_socket_the_one_at_the_memory_is_first(void **state)
{
	(void)state;
	autoplace *place = open_file("two-sockets");
	assert_int_equal(base_place_device_node(place, "mlx5_0"), 0);
	assert_int_equal(base_place_device_node(place, "ib0"), 0);
	assert_int_equal(base_place_device_node(place, "mlx5_1"), 1);
	assert_int_equal(base_place_device_node(place, "mlx5_2"), -1);
	assert_int_equal(base_place_distance(place, 0, 0), 10);
	assert_int_equal(base_place_distance(place, 0, 1), 21);
	assert_int_equal(base_place_distance(place, 0, 2), -1);
	assert_int_equal(base_place_distance(place, -1, 0), -1);
	assert_int_equal(base_place_distance(place, 0, BASE_PLACE_NODES), -1);

	const struct base_nic nic[] = {
		{ .name = "mlx5_0", .node = 0, .mbit_per_s = 100000, .up = true },
		{ .name = "mlx5_1", .node = 1, .mbit_per_s = 100000, .up = true },
	};
	check_order(place, nic, 2, &on_0, "mlx5_0 mlx5_1");
	check_order(place, nic, 2, &on_1, "mlx5_1 mlx5_0");
	check_order(place, nic, 2, &spread, "mlx5_0 mlx5_1");
	check_order(place, nic, 2, &nowhere, "mlx5_0 mlx5_1");

	/* Half in half, but for some pages: less of a reason than being faster. */
	const struct base_place_memory about_half = { { 8 * GIB, 8 * GIB + (256 << 20) } };
	check_order(place, nic, 2, &about_half, "mlx5_1 mlx5_0");
	const struct base_nic uneven[] = {
		{ .name = "mlx5_0", .node = 0, .mbit_per_s = 200000, .up = true },
		{ .name = "mlx5_1", .node = 1, .mbit_per_s = 100000, .up = true },
	};
	check_order(place, uneven, 2, &about_half, "mlx5_0 mlx5_1");
	check_order(place, uneven, 2, &on_1, "mlx5_1 mlx5_0");
	const struct base_place_memory most_on_1 = { { 2 * GIB, 6 * GIB } };
	check_order(place, nic, 2, &most_on_1, "mlx5_1 mlx5_0");
	assert_int_equal(base_place_memory_distance(place, 0, &most_on_1), 18);
	assert_int_equal(base_place_memory_distance(place, 1, &most_on_1), 13);
	assert_int_equal(base_place_memory_distance(place, 1, &nowhere), -1);
}

static void lanes_share_the_cores_of_their_nic(void **state)
{
	(void)state;
	autoplace *place = open_file("two-sockets");
	/* Threads 16 to 31 are the second ones of cores 0 to 15. */
	static const int on_node_1[] = { 1, 1, 1 };
	check_lanes(place, on_node_1, 3, "cpus 8-10,24-26 | cpus 11-14,27-30 | cpus 15,31");
	static const int alone[] = { 0 };
	check_lanes(place, alone, 1, "cpus 7,23");
	static const int as_many_as_cores[] = { 0, 0, 0, 0, 0, 0, 0, 0 };
	check_lanes(place, as_many_as_cores, 8,
		    "cpus 0,16 | cpus 1,17 | cpus 2,18 | cpus 3,19 | cpus 4,20 | cpus 5,21 | "
		    "cpus 6,22 | cpus 7,23");
	static const int rails[] = { 0, 1, 0, 1, 1 };
	check_lanes(place, rails, 5,
		    "cpus 0-3,16-19 | cpus 8-10,24-26 | cpus 4-7,20-23 | cpus 11-14,27-30 | "
		    "cpus 15,31");
	static const int unknown[] = { -1, 1, -1 };
	check_lanes(place, unknown, 3, "not bound | cpus 8-15,24-31 | not bound");
	static const int absent[] = { 7, BASE_PLACE_NODES };
	check_lanes(place, absent, 2, "not bound | not bound");
}

static void halved_sockets_distance_is_by_node_not_by_socket(void **state)
{
	(void)state;
	autoplace *place = open_file("sub-numa");
	assert_int_equal(base_place_device_node(place, "eth0"), 0);
	assert_int_equal(base_place_device_node(place, "mlx5_0"), 3);
	assert_int_equal(base_place_device_node(place, "eth1"), 2); /* the first of its socket */
	assert_int_equal(base_place_distance(place, 3, 3), 10);
	assert_int_equal(base_place_distance(place, 3, 2), 12);
	assert_int_equal(base_place_distance(place, 3, 1), 21);

	/* Far, but ten times as fast. */
	const struct base_nic nic[] = {
		{ .name = "eth0", .node = 0, .mbit_per_s = 10000, .up = true },
		{ .name = "mlx5_0", .node = 3, .mbit_per_s = 100000, .up = true },
	};
	check_order(place, nic, 2, &on_0, "mlx5_0 eth0");
	check_order(place, nic, 2, &on_1, "mlx5_0 eth0");
	check_order(place, nic, 2, &spread, "mlx5_0 eth0");
	/* As fast as a quarter: being near counts. */
	const struct base_nic faster[] = {
		{ .name = "eth0", .node = 0, .mbit_per_s = 25000, .up = true },
		{ .name = "mlx5_0", .node = 3, .mbit_per_s = 100000, .up = true },
	};
	check_order(place, faster, 2, &on_0, "eth0 mlx5_0");
	check_order(place, faster, 2, &on_1, "eth0 mlx5_0");
	const struct base_place_memory on_2 = { { 0, 0, 8 * GIB } };
	check_order(place, faster, 2, &on_2, "mlx5_0 eth0");
	const struct base_place_memory on_all = { { GIB, GIB, GIB, GIB } };
	check_order(place, faster, 2, &on_all, "mlx5_0 eth0");

	static const int node[] = { 3, 3, 3 };
	check_lanes(place, node, 3, "cpus 12 | cpus 13-14 | cpus 15");
	static const int too_many[] = { 3, 3, 3, 3, 3 };
	check_lanes(place, too_many, 5,
		    "cpus 12-15 | cpus 12-15 | cpus 12-15 | cpus 12-15 | cpus 12-15");
}

static void two_hcas_on_a_node_the_faster_is_first(void **state)
{
	(void)state;
	autoplace *place = open_file("two-on-one");
	assert_int_equal(base_place_device_node(place, "mlx5_0"), 1);
	assert_int_equal(base_place_device_node(place, "mlx5_1"), 1);
	/* The firmware tells no distances. */
	assert_int_equal(base_place_distance(place, 1, 1), 10);
	assert_int_equal(base_place_distance(place, 1, 0), 20);

	struct base_nic nic[] = {
		{ .name = "mlx5_0", .node = 1, .mbit_per_s = 100000, .up = true },
		{ .name = "mlx5_1", .node = 1, .mbit_per_s = 200000, .up = true },
	};
	check_order(place, nic, 2, &on_0, "mlx5_1 mlx5_0");
	check_order(place, nic, 2, &on_1, "mlx5_1 mlx5_0");
	check_order(place, nic, 2, &spread, "mlx5_1 mlx5_0");
	nic[1].up = false;
	check_order(place, nic, 2, &on_1, "mlx5_0 mlx5_1");

	/* One cache each, and the urgent lane in the second. */
	static const int node[] = { 1, 1, 1 };
	check_lanes(place, node, 3, "cpus 8-10 | cpus 11-14 | cpus 15");
}

static void one_node_binds_nothing(void **state)
{
	(void)state;
	autoplace *place = open_file("one-socket");
	assert_int_equal(base_place_device_node(place, "mlx5_0"), 0);
	assert_int_equal(base_place_distance(place, 0, 0), 10);
	static const int node[] = { 0, 0, 0 };
	check_lanes(place, node, 3, "not bound | not bound | not bound");
}

static void unknown_place_comes_after_known_ones(void **state)
{
	(void)state;
	autoplace *place = open_file("unknown");
	assert_int_equal(base_place_device_node(place, "mlx5_0"), -1);
	assert_int_equal(base_place_distance(place, 0, 1), 21);
	const struct base_nic nic[] = {
		{ .name = "mlx5_0", .node = -1, .mbit_per_s = 100000, .up = true },
		{ .name = "mlx5_1", .node = 0, .mbit_per_s = 100000, .up = true },
		{ .name = "eth0", .node = -1, .mbit_per_s = 0, .up = true },
	};
	check_order(place, nic, 3, &on_0, "mlx5_1 mlx5_0 eth0");
	check_order(place, nic, 3, &on_1, "mlx5_1 mlx5_0 eth0");
	check_order(place, nic, 3, &spread, "mlx5_1 mlx5_0 eth0");
	check_order(place, nic, 3, &nowhere, "mlx5_0 mlx5_1 eth0");
	static const int node[] = { -1, -1 };
	check_lanes(place, node, 2, "not bound | not bound");
}

static void lanes_keep_to_the_cpus_that_may_be_used(void **state)
{
	(void)state;
	autoplace *place = open_file("confined");
	assert_int_equal(base_place_device_node(place, "mlx5_0"), 1);
	static const int both[] = { 1, 1 };
	check_lanes(place, both, 2, "cpus 6 | cpus 7");
	static const int three[] = { 1, 1, 1 };
	check_lanes(place, three, 3, "cpus 6-7 | cpus 6-7 | cpus 6-7");
	static const int other[] = { 0, 0 };
	check_lanes(place, other, 2, "cpus 0-1 | cpus 2");
}

static void another_machine_binds_nothing(void **state)
{
	(void)state;
	autoplace *place = open_file("two-sockets");
	cpu_set_t before, after, one;
	assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	assert_int_equal(base_place_bind_self(place, &one, NULL), 0);
	assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
	assert_true(CPU_EQUAL(&before, &after));
	assert_int_equal(base_place_prefer(place, NULL, 4096, 0, NULL), 0);
}

static void file_that_is_no_topology_is_named(void **state)
{
	(void)state;
	struct base_place *place = NULL;
	struct mf_error err = { 0 };
	assert_true(base_place_open("/nonexistent/host.xml", &place, &err) < 0);
	assert_null(place);
	assert_non_null(strstr(err.msg, "/nonexistent/host.xml"));
	err = (struct mf_error){ 0 };
	assert_true(base_place_open(MF_TOPOLOGIES "/README.md", &place, &err) < 0);
	assert_null(place);
	assert_non_null(strstr(err.msg, "README.md"));
}

static void this_thread_is_bound_to_one_cpu(void **state)
{
	(void)state;
	autoplace *place = open_here();
	cpu_set_t before, after, one;
	assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
	int last = CPU_SETSIZE - 1;
	while (!CPU_ISSET(last, &before))
		last--;
	CPU_ZERO(&one);
	assert_int_equal(base_place_bind_self(place, &one, NULL), 0);
	CPU_SET(last, &one);
	assert_int_equal(base_place_bind_self(place, &one, NULL), 1);
	assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
	int cpu = sched_getcpu();
	assert_int_equal(base_place_bind_self(place, &before, NULL), 1);
	assert_true(CPU_EQUAL(&after, &one));
	assert_int_equal(cpu, last);
	assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
	assert_true(CPU_EQUAL(&after, &before));

	struct mf_error err = { 0 };
	CPU_ZERO(&one);
	CPU_SET(CPU_SETSIZE - 1, &one); /* there is none of that number */
	if (!CPU_ISSET(CPU_SETSIZE - 1, &before))
		assert_int_equal(base_place_bind_self(place, &one, &err), -EINVAL);
}

static void preferred_memory_is_found_where_it_was_asked_for(void **state)
{
	(void)state;
	autoplace *place = open_here();
	size_t page = (size_t)sysconf(_SC_PAGESIZE), len = 64 * page;
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	struct mf_error err = { 0 };
	struct base_place_memory memory = { 0 };
	int prefer = base_place_prefer(place, p, len, 0, &err);
	memset(p, 1, len);
	int found = base_place_find_memory(0, (uintptr_t)p, len, page, &memory, &err);
	assert_int_equal(munmap(p, len), 0);
	if (prefer == -ENOSYS || prefer == -EPERM || found == -ENOSYS || found == -EPERM) {
		printf("SKIP: this kernel or container keeps memory policies to itself\n");
		skip();
	}
	if (prefer < 0 || found < 0)
		fail_msg("prefer %d, found %d: '%s'", prefer, found, err.msg);
	assert_int_equal(found, 64);
	uint64_t total = 0;
	for (int i = 0; i < BASE_PLACE_NODES; i++)
		total += memory.bytes[i];
	assert_int_equal(total, len);
	/* Preferred is not promised: node 0 may be full, but hardly on a host of one node. */
	if (base_place_distance(place, 1, 1) < 0 && prefer == 1)
		assert_int_equal(memory.bytes[0], len);
}

static void looking_for_memory_touches_none(void **state)
{
	(void)state;
	size_t page = (size_t)sysconf(_SC_PAGESIZE), n = 4096, len = n * page;
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	for (size_t i = 0; i < n / 4; i++) /* the first quarter is there */
		p[i * page] = 1;
	struct mf_error err = { 0 };
	struct base_place_memory memory = { 0 };
	int found = base_place_find_memory(0, (uintptr_t)p, len, page, &memory, &err);
	unsigned char there[4096];
	assert_int_equal(mincore(p, len, there), 0);
	size_t resident = 0;
	for (size_t i = 0; i < n; i++)
		resident += there[i] & 1;
	assert_int_equal(munmap(p, len), 0);
	assert_int_equal(resident, n / 4);
	if (found == -ENOSYS || found == -EPERM) {
		printf("SKIP: this kernel or container does not tell where memory lies\n");
		skip();
	}
	if (found < 0)
		fail_msg("'%s'", err.msg);
	assert_int_equal(found, 128); /* 512 asked about */
	uint64_t total = 0;
	for (int i = 0; i < BASE_PLACE_NODES; i++)
		total += memory.bytes[i];
	assert_int_equal(total, len / 4);
	assert_int_equal(base_place_find_memory(0, (uintptr_t)p, 0, page, &memory, &err), 0);
}

static void memory_of_a_process_that_is_gone_is_an_error(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	struct base_place_memory memory = { 0 };
	/* Above any pid: the largest is 2^22. */
	assert_true(base_place_find_memory(1 << 30, 4096, 4096, 4096, &memory, &err) < 0);
	assert_non_null(strstr(err.msg, "1073741824"));
	assert_memory_equal(&memory, &nowhere, sizeof(memory));
}

static void unknown_machine_orders_by_rate_and_name(void **state)
{
	(void)state;
	const struct base_nic nic[] = {
		{ .name = "mlx5_10", .node = 0, .mbit_per_s = 100000, .up = true },
		{ .name = "mlx5_2", .node = 1, .mbit_per_s = 100000, .up = true },
		{ .name = "mlx5_3", .node = 1, .mbit_per_s = 400000, .up = false },
		{ .name = "mlx5_4", .node = -1, .mbit_per_s = 200000, .up = true },
		{ .name = "eth0", .node = 0, .mbit_per_s = 1000, .up = true },
		{ .name = "br0", .node = -1, .mbit_per_s = 0, .up = true },
	};
	check_order(NULL, nic, 6, &on_0, "mlx5_4 mlx5_2 mlx5_10 eth0 br0 mlx5_3");
	check_order(NULL, nic, 6, &nowhere, "mlx5_4 mlx5_2 mlx5_10 eth0 br0 mlx5_3");
	check_order(NULL, nic, 0, &on_0, "");
}

static void unknown_machine_says_not_known(void **state)
{
	(void)state;
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	assert_int_equal(base_place_device_node(NULL, "mlx5_0"), -1);
	assert_int_equal(base_place_distance(NULL, 0, 0), -1);
	assert_int_equal(base_place_memory_distance(NULL, 0, &on_0), -1);
	static const int node[] = { 0, 1 };
	check_lanes(NULL, node, 2, "not bound | not bound");
	assert_int_equal(base_place_bind_self(NULL, &one, NULL), 0);
	assert_int_equal(base_place_prefer(NULL, NULL, 4096, 0, NULL), 0);
	base_place_close(NULL);
}

static void without_hwloc_every_machine_is_unknown(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	struct base_place *place = (void *)&err;
	assert_int_equal(base_place_open(NULL, &place, &err), 0);
	assert_null(place);
	place = (void *)&err;
	assert_int_equal(base_place_open(MF_TOPOLOGIES "/two-sockets.xml", &place, &err), 0);
	assert_null(place);
	assert_int_equal(err.code, 0);
}

static void text_says_node_and_cpus(void **state)
{
	(void)state;
	char text[64], small[12];
	cpu_set_t cpus;
	CPU_ZERO(&cpus);
	assert_string_equal(base_place_format(1, NULL, text, sizeof(text)), "node 1");
	assert_string_equal(base_place_format(-1, NULL, text, sizeof(text)), "node not known");
	assert_string_equal(base_place_format(1, &cpus, text, sizeof(text)), "node 1, not bound");
	for (int i = 12; i < 16; i++)
		CPU_SET(i, &cpus);
	assert_string_equal(base_place_format(1, &cpus, text, sizeof(text)), "node 1, cpus 12-15");
	CPU_SET(0, &cpus);
	CPU_SET(44, &cpus);
	CPU_SET(CPU_SETSIZE - 1, &cpus);
	assert_string_equal(base_place_format(1, &cpus, text, sizeof(text)),
			    "node 1, cpus 0,12-15,44,1023");
	assert_string_equal(base_place_format(1, &cpus, small, sizeof(small)), "node 1, cpu");
}

int main(void)
{
	const struct CMUnitTest with_hwloc[] = {
		cmocka_unit_test(hca_on_each_socket_the_one_at_the_memory_is_first),
		cmocka_unit_test(lanes_share_the_cores_of_their_nic),
		cmocka_unit_test(halved_sockets_distance_is_by_node_not_by_socket),
		cmocka_unit_test(two_hcas_on_a_node_the_faster_is_first),
		cmocka_unit_test(one_node_binds_nothing),
		cmocka_unit_test(unknown_place_comes_after_known_ones),
		cmocka_unit_test(lanes_keep_to_the_cpus_that_may_be_used),
		cmocka_unit_test(another_machine_binds_nothing),
		cmocka_unit_test(file_that_is_no_topology_is_named),
		cmocka_unit_test(this_thread_is_bound_to_one_cpu),
	};
	const struct CMUnitTest without_hwloc[] = {
		cmocka_unit_test(without_hwloc_every_machine_is_unknown),
	};
	const struct CMUnitTest either[] = {
		cmocka_unit_test(unknown_machine_orders_by_rate_and_name),
		cmocka_unit_test(unknown_machine_says_not_known),
		cmocka_unit_test(preferred_memory_is_found_where_it_was_asked_for),
		cmocka_unit_test(looking_for_memory_touches_none),
		cmocka_unit_test(memory_of_a_process_that_is_gone_is_an_error),
		cmocka_unit_test(text_says_node_and_cpus),
	};
	int failed = cmocka_run_group_tests(either, NULL, NULL);
	return failed + (MF_HAVE_HWLOC ? cmocka_run_group_tests(with_hwloc, NULL, NULL)
				       : cmocka_run_group_tests(without_hwloc, NULL, NULL));
}
