/* SPDX-License-Identifier: BSD-2-Clause */
/* Environments as launchers make them, and what comes out. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "perf/launcher.h"

#define ENV(...) ((const char *[]){ __VA_ARGS__, NULL })

static struct perf_launch launch_of(const char *const env[], const char *rendezvous)
{
	struct perf_launch launch = { 0 };
	struct mf_error err = { 0 };

	if (perf_launch_read(env, rendezvous, &launch, &err))
		fail_msg("%s", err.msg);
	return launch;
}

/* Returns the sentence. */
static const char *refused(const char *const env[], const char *rendezvous)
{
	static struct mf_error err;
	struct perf_launch launch = { .rank = 77 };

	err = (struct mf_error){ 0 };
	assert_int_equal(perf_launch_read(env, rendezvous, &launch, &err), -MF_EUSAGE);
	assert_int_equal(err.code, -MF_EUSAGE);
	assert_int_equal(launch.rank, 77);
	return err.msg;
}

static void assert_list(const char *list, const char *const *names, size_t n)
{
	char name[PERF_HOST_CAP];
	struct mf_error err = { 0 };

	for (uint32_t i = 0; i < n; i++) {
		if (perf_nodelist_nth(list, i, name, sizeof(name), &err))
			fail_msg("%s, %u: %s", list, i, err.msg);
		assert_string_equal(name, names[i]);
	}
	assert_int_equal(perf_nodelist_nth(list, (uint32_t)n, name, sizeof(name), &err), -ERANGE);
	assert_int_equal(err.code, 0);
}

#define NAMES(...)                              \
	((const char *const[]){ __VA_ARGS__ }), \
		BASE_ARRAY_LEN(((const char *const[]){ __VA_ARGS__ }))

static void nodelists_are_expanded(void **state)
{
	(void)state;
	assert_list("x", NAMES("x"));
	assert_list("a.example.org,b-2,c_3", NAMES("a.example.org", "b-2", "c_3"));
	assert_list("node[01-03,7],x", NAMES("node01", "node02", "node03", "node7", "x"));
	assert_list("n[098-101]", NAMES("n098", "n099", "n100", "n101"));
	assert_list("n[8-11]", NAMES("n8", "n9", "n10", "n11"));
	assert_list("n[5]-ib,m", NAMES("n5-ib", "m"));
	assert_list("r[0-1]n[08-09,1],z",
		    NAMES("r0n08", "r0n09", "r0n1", "r1n08", "r1n09", "r1n1", "z"));
	assert_list("[1-2]", NAMES("1", "2"));
}

static void a_long_nodelist_costs_nothing(void **state)
{
	char name[PERF_HOST_CAP];

	(void)state;
	assert_int_equal(
		perf_nodelist_nth("a[0-999999999]b[0-999999999],c", 0, name, sizeof(name), NULL),
		0);
	assert_string_equal(name, "a0b0");
}

static void other_nodelists_are_refused(void **state)
{
	static const char *const bad[] = {
		"",      ",",        "a,",       ",a",    "a,,b",
		"a[",    "a[]",      "a]",       "a[1",   "a[1-]",
		"a[-1]", "a[3-1]",   "a[1,]",    "a[,1]", "a[1-2-3]",
		"a[x]",  "a[1,[2]]", "a[[1-2]]", "a b",   "a;b",
		"a/b",   "a[1]]",    "a[0x1]",   "a[1 ]", "a[1234567890]",
	};
	char name[PERF_HOST_CAP] = "untouched";

	(void)state;
	for (size_t i = 0; i < BASE_ARRAY_LEN(bad); i++) {
		struct mf_error err = { 0 };
		int ret = perf_nodelist_nth(bad[i], 0, name, sizeof(name), &err);
		if (ret != -MF_EUSAGE || err.code != ret)
			fail_msg("'%s': %d", bad[i], ret);
		assert_string_equal(name, "untouched");
	}
}

static void names_of_nodes_have_bounds(void **state)
{
	char list[600], name[8];
	struct mf_error err = { 0 };

	(void)state;
	memset(list, 'a', sizeof(list) - 1);
	list[sizeof(list) - 1] = '\0';
	assert_int_equal(perf_nodelist_nth(list, 0, name, sizeof(name), &err), -MF_EUSAGE);
	memcpy(list + 250, "[1-3]", 5);
	list[255] = '\0';
	assert_int_equal(perf_nodelist_nth(list, 2, name, sizeof(name), NULL), -MF_EUSAGE);
	assert_int_equal(perf_nodelist_nth("abcdefg", 0, name, sizeof(name), NULL), 0);
	assert_int_equal(perf_nodelist_nth("abcdefgh", 0, name, sizeof(name), NULL), -MF_EUSAGE);
}

static void slurm_tells_all(void **state)
{
	(void)state;
	struct perf_launch launch = launch_of(
		ENV("HOME=/x", "SLURM_PROCID=2", "SLURM_NTASKS=8", "SLURM_STEP_NUM_TASKS=3",
		    "SLURM_NODELIST=node[01-08]", "SLURM_STEP_NODELIST=node[03-05]",
		    "SLURM_LAUNCH_NODE_IPADDR=192.0.2.9", "SLURM_JOB_ID=17", "SLURM_STEP_ID=0"),
		NULL);

	assert_int_equal(launch.rank, 2);
	assert_int_equal(launch.size, 3);
	assert_int_equal(launch.n_hosts, 2);
	assert_string_equal(launch.host[0], "node03");
	assert_string_equal(launch.host[1], "192.0.2.9");
	assert_string_equal(launch.id, "Slurm/3/17/0");
	assert_in_range(launch.port, PERF_PORT_FIRST, PERF_PORT_FIRST + PERF_PORT_COUNT - 1);
}

static void ranks_agree_and_steps_differ(void **state)
{
	uint16_t port[2] = { 0 };

	(void)state;
	for (unsigned step = 0; step < 2; step++) {
		for (unsigned rank = 0; rank < 2; rank++) {
			char procid[32], id[32];
			(void)snprintf(procid, sizeof(procid), "SLURM_PROCID=%u", rank);
			(void)snprintf(id, sizeof(id), "SLURM_STEP_ID=%u", step);
			struct perf_launch launch =
				launch_of(ENV(procid, id, "SLURM_NTASKS=2", "SLURM_NODELIST=a,b",
					      "SLURM_JOB_ID=1"),
					  NULL);
			assert_int_equal(launch.rank, rank);
			assert_string_equal(launch.host[0], "a");
			if (rank)
				assert_int_equal(launch.port, port[step]);
			port[step] = launch.port;
		}
	}
	assert_int_not_equal(port[0], port[1]);
}

static void open_mpi_4_tells_where_mpirun_is(void **state)
{
	(void)state;
	struct perf_launch launch =
		launch_of(ENV("OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=4",
			      "OMPI_COMM_WORLD_LOCAL_SIZE=1", "PMIX_NAMESPACE=1792147457",
			      /* NOLINTNEXTLINE(bugprone-suspicious-missing-comma): one word */
			      "OMPI_MCA_orte_hnp_uri=1792147456.0;tcp://"
			      "10.1.0.1,192.0.2.1:36541;tcp6://[::1]:5"),
			  NULL);

	assert_int_equal(launch.rank, 1);
	assert_int_equal(launch.size, 4);
	assert_int_equal(launch.n_hosts, 2);
	assert_string_equal(launch.host[0], "10.1.0.1");
	assert_string_equal(launch.host[1], "192.0.2.1");
	assert_string_equal(launch.id, "Open MPI/4/1792147457");
}

static void open_mpi_5_names_its_host(void **state)
{
	(void)state;
	struct perf_launch launch = launch_of(
		ENV("OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2",
		    "OMPI_COMM_WORLD_LOCAL_SIZE=1", "PMIX_NAMESPACE=prterun-node-7-4711@1"),
		NULL);

	assert_int_equal(launch.n_hosts, 1);
	assert_string_equal(launch.host[0], "node-7");
}

static void one_host_is_the_loopback(void **state)
{
	(void)state;
	struct perf_launch ompi = launch_of(ENV("OMPI_COMM_WORLD_RANK=2", "OMPI_COMM_WORLD_SIZE=3",
						"OMPI_COMM_WORLD_LOCAL_SIZE=3"),
					    NULL);
	struct perf_launch hydra =
		launch_of(ENV("PMI_RANK=0", "PMI_SIZE=2", "MPI_LOCALNRANKS=2"), NULL);

	assert_string_equal(ompi.host[0], "127.0.0.1");
	assert_string_equal(hydra.host[0], "127.0.0.1");
}

/* mpirun in a Slurm job: a rank inherits the variables of the daemon that srun started, and those are of another size. */
static void the_inner_launcher_counts(void **state)
{
	(void)state;
	struct perf_launch ompi =
		launch_of(ENV("SLURM_PROCID=0", "SLURM_NTASKS=1", "SLURM_STEP_NUM_TASKS=1",
			      "SLURM_STEP_NODELIST=n[2-3]", "SLURM_JOB_NODELIST=n[1-3]",
			      "SLURM_JOB_ID=5", "OMPI_COMM_WORLD_RANK=2", "OMPI_COMM_WORLD_SIZE=3",
			      "OMPI_COMM_WORLD_LOCAL_SIZE=1"),
			  NULL);
	struct perf_launch hydra =
		launch_of(ENV("SLURM_PROCID=1", "SLURM_STEP_NUM_TASKS=2",
			      "SLURM_STEP_NODELIST=n[2-3]", "SLURM_JOB_NODELIST=n[1-3]",
			      "SLURM_JOB_ID=5", "PMI_RANK=4", "PMI_SIZE=6", "MPI_LOCALNRANKS=2"),
			  NULL);

	assert_int_equal(ompi.rank, 2);
	assert_string_equal(ompi.host[0], "n1");
	assert_int_equal(hydra.rank, 4);
	assert_int_equal(hydra.size, 6);
	assert_string_equal(hydra.host[0], "n1");
	assert_string_equal(hydra.id, "PMI/6/5");
}

/* srun --mpi=pmi2. */
static void slurm_with_pmi_is_slurm(void **state)
{
	(void)state;
	struct perf_launch launch =
		launch_of(ENV("PMI_RANK=1", "PMI_SIZE=2", "SLURM_PROCID=1",
			      "SLURM_STEP_NUM_TASKS=2", "SLURM_STEP_NODELIST=n[2-3]",
			      "SLURM_JOB_NODELIST=n[1-3]", "SLURM_JOB_ID=5", "SLURM_STEP_ID=1"),
			  NULL);

	assert_string_equal(launch.host[0], "n2");
	assert_string_equal(launch.id, "Slurm/2/5/1");
}

static void rendezvous_comes_first(void **state)
{
	const char *const *env = ENV("SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_NODELIST=n[1-2]");

	(void)state;
	struct perf_launch with_port = launch_of(env, "[fd77::1]:4000");
	struct perf_launch without = launch_of(env, "head");

	assert_int_equal(with_port.rank, 1);
	assert_int_equal(with_port.n_hosts, 1);
	assert_string_equal(with_port.host[0], "fd77::1");
	assert_int_equal(with_port.port, 4000);
	assert_string_equal(without.host[0], "head");
	assert_int_equal(without.port, launch_of(env, NULL).port);
	assert_non_null(strstr(refused(env, "head:0"), "--rendezvous"));
	assert_non_null(strstr(refused(env, "head:x"), "--rendezvous"));
}

static void without_a_launcher_two_are_named(void **state)
{
	(void)state;
	const char *said = refused(ENV("HOME=/x", "SLURM_JOB_ID=3"), NULL);

	assert_non_null(strstr(said, "srun"));
	assert_non_null(strstr(said, "mpirun"));
	(void)refused(ENV("HOME=/x"), "head:4000");
}

static void what_a_launcher_leaves_out_is_asked_for(void **state)
{
	(void)state;
	assert_non_null(
		strstr(refused(ENV("PMI_RANK=0", "PMI_SIZE=2"), NULL), "--rendezvous HOST"));
	assert_non_null(
		strstr(refused(ENV("OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2"), NULL),
		       "--rendezvous HOST"));
	assert_non_null(strstr(refused(ENV("PMI_RANK=0"), NULL), "PMI_SIZE"));
}

static void numbers_are_checked(void **state)
{
	(void)state;
	static const struct {
		const char *rank, *size;
	} bad[] = {
		{ "SLURM_PROCID=2", "SLURM_NTASKS=2" },   { "SLURM_PROCID=-1", "SLURM_NTASKS=2" },
		{ "SLURM_PROCID=x", "SLURM_NTASKS=2" },   { "SLURM_PROCID=0", "SLURM_NTASKS=1" },
		{ "SLURM_PROCID=0", "SLURM_NTASKS=513" }, { "SLURM_PROCID=0", "SLURM_NTASKS=" },
		{ "SLURM_PROCID=0", "SLURM_NTASKS=2 " },
	};
	for (size_t i = 0; i < BASE_ARRAY_LEN(bad); i++)
		(void)refused(ENV(bad[i].rank, bad[i].size, "SLURM_NODELIST=a,b"), NULL);
	assert_non_null(
		strstr(refused(ENV("SLURM_PROCID=0", "SLURM_NTASKS=2", "SLURM_NODELIST=a["), NULL),
		       "SLURM_NODELIST"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nodelists_are_expanded),
		cmocka_unit_test(a_long_nodelist_costs_nothing),
		cmocka_unit_test(other_nodelists_are_refused),
		cmocka_unit_test(names_of_nodes_have_bounds),
		cmocka_unit_test(slurm_tells_all),
		cmocka_unit_test(ranks_agree_and_steps_differ),
		cmocka_unit_test(open_mpi_4_tells_where_mpirun_is),
		cmocka_unit_test(open_mpi_5_names_its_host),
		cmocka_unit_test(one_host_is_the_loopback),
		cmocka_unit_test(the_inner_launcher_counts),
		cmocka_unit_test(slurm_with_pmi_is_slurm),
		cmocka_unit_test(rendezvous_comes_first),
		cmocka_unit_test(without_a_launcher_two_are_named),
		cmocka_unit_test(what_a_launcher_leaves_out_is_asked_for),
		cmocka_unit_test(numbers_are_checked),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
