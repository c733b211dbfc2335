/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/launcher.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/parse.h"

#define DIGITS_MAX 9u

/* Node lists */

struct range {
	uint32_t first, last;
	int width; /* with leading zeros */
};

static bool take_number(const char **at, uint32_t *ret)
{
	size_t len = strspn(*at, "0123456789");

	if (!len || len > DIGITS_MAX)
		return false;
	*ret = 0;
	for (; len; len--)
		*ret = *ret * 10 + (uint32_t)(*(*at)++ - '0');
	return true;
}

/* "7", "01-03". */
static bool take_range(const char **at, struct range *ret)
{
	const char *begin = *at;

	if (!take_number(at, &ret->first))
		return false;
	ret->width = (int)(*at - begin);
	ret->last = ret->first;
	if (**at == '-') {
		++*at;
		if (!take_number(at, &ret->last))
			return false;
	}
	return ret->first <= ret->last;
}

static bool is_name(char c)
{
	return isalnum((unsigned char)c) || c == '-' || c == '_' || c == '.';
}

/* "[01-03,7]". */
static bool skip_bracket(const char **at)
{
	struct range range;

	do {
		++*at;
		if (!take_range(at, &range))
			return false;
	} while (**at == ',');
	return *(*at)++ == ']';
}

/* One element, up to the comma behind it. */
static bool skip_element(const char **at)
{
	const char *begin = *at;

	while (is_name(**at) || **at == '[') {
		if (is_name(**at))
			++*at;
		else if (!skip_bracket(at))
			return false;
	}
	return *at > begin;
}

static bool is_nodelist(const char *list)
{
	for (const char *at = list; skip_element(&at); at++) {
		if (*at != ',')
			return !*at;
	}
	return false;
}

struct walk {
	uint32_t left; /* hosts before the one that is wanted */
	bool too_long;
	char name[PERF_HOST_CAP];
};

/* Goes through the hosts of an element of which `len` characters of a name are made; true: it is over. */
static bool walk_element(struct walk *w, const char *at, size_t len)
{
	struct range range = { 0 };

	for (; is_name(*at); at++) {
		if (len + 1 >= sizeof(w->name))
			return w->too_long = true;
		w->name[len++] = *at;
	}
	w->name[len] = '\0';
	if (*at != '[')
		return !w->left--;
	const char *rest = strchr(at, ']') + 1;
	do {
		at++;
		(void)take_range(&at, &range);
		for (uint32_t i = range.first; i <= range.last; i++) {
			if (len + DIGITS_MAX + 1 > sizeof(w->name))
				return w->too_long = true;
			int n = snprintf(w->name + len, DIGITS_MAX + 1, "%0*u", range.width, i);
			if (walk_element(w, rest, len + (size_t)n))
				return true;
		}
	} while (*at == ',');
	return false;
}

int perf_nodelist_nth(const char *list, uint32_t n, char *ret, size_t cap, struct mf_error *err)
{
	struct walk walk = { .left = n };
	bool found = false;

	if (!is_nodelist(list))
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST, "'%.60s' is no list of nodes",
				  list);
	for (const char *at = list; !found; at++) {
		found = walk_element(&walk, at, 0);
		(void)skip_element(&at);
		if (!*at)
			break;
	}
	if (!found)
		return -ERANGE;
	if (walk.too_long || strlen(walk.name) >= cap)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "'%.60s': the name of a node is too long", list);
	(void)snprintf(ret, cap, "%s", walk.name);
	return 0;
}

/* Launchers */

struct launcher {
	const char *name;
	const char *rank, *size[2]; /* variables; of the sizes, the first that is there */
	const char *local_size;     /* how many there are on this host */
	const char *lists[3];       /* node lists that begin with rank 0's */
	const char *ids[3];         /* which start it is */
};

/*
 * mpirun within a Slurm job has its daemons started by srun: a rank has both kinds of variables then, and Slurm's are
 * the daemon's.
 */
static const struct launcher open_mpi = {
	.name = "Open MPI",
	.rank = "OMPI_COMM_WORLD_RANK",
	.size = { "OMPI_COMM_WORLD_SIZE" },
	.local_size = "OMPI_COMM_WORLD_LOCAL_SIZE",
	.lists = { "SLURM_JOB_NODELIST", "SLURM_NODELIST" },
	.ids = { "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "SLURM_JOB_ID" },
};
static const struct launcher pmi = {
	.name = "PMI",
	.rank = "PMI_RANK",
	.size = { "PMI_SIZE" },
	.local_size = "MPI_LOCALNRANKS",
	.lists = { "SLURM_JOB_NODELIST", "SLURM_NODELIST" },
	.ids = { "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID" },
};
static const struct launcher slurm = {
	.name = "Slurm",
	.rank = "SLURM_PROCID",
	.size = { "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS" },
	.lists = { "SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST" },
	.ids = { "SLURM_JOB_ID", "SLURM_STEP_ID" },
};

/* NULL: not there, or empty. */
static const char *get(const char *const env[], const char *name)
{
	size_t len = name ? strlen(name) : 0;

	for (; len && *env; env++) {
		if (!strncmp(*env, name, len) && (*env)[len] == '=')
			return (*env)[len + 1] ? *env + len + 1 : NULL;
	}
	return NULL;
}

static const char *get_size(const char *const env[], const struct launcher *l)
{
	const char *size = get(env, l->size[0]);

	return size ? size : get(env, l->size[1]);
}

static bool is_same(const char *a, const char *b)
{
	return a && b && !strcmp(a, b);
}

static const struct launcher *find_launcher(const char *const env[])
{
	if (get(env, open_mpi.rank))
		return &open_mpi;
	/* srun --mpi=pmi2 sets PMI's, too, to the same. */
	if (get(env, pmi.rank) && !(is_same(get(env, pmi.rank), get(env, slurm.rank)) &&
				    is_same(get_size(env, &pmi), get_size(env, &slurm))))
		return &pmi;
	return get(env, slurm.rank) ? &slurm : NULL;
}

static int read_numbers(const char *const env[], const struct launcher *l, struct perf_launch *ret,
			struct mf_error *err)
{
	const char *size = get_size(env, l);
	uint64_t rank, n;

	if (!size)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "%s is set, and %s is not: is this no process that %s started?",
				  l->rank, l->size[0], l->name);
	if (base_parse_number(size, l->size[0], 1, UINT32_MAX, &n, err))
		return -MF_EUSAGE;
	if (n < 2 || n > PERF_RANKS_MAX)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "mesh measures between 2 to %u processes, and %s started %u",
				  PERF_RANKS_MAX, l->name, (unsigned)n);
	if (base_parse_number(get(env, l->rank), l->rank, 0, n - 1, &rank, err))
		return -MF_EUSAGE;
	ret->rank = (uint32_t)rank;
	ret->size = (uint32_t)n;
	return 0;
}

static void make_id(const char *const env[], const struct launcher *l, struct perf_launch *ret)
{
	size_t at = (size_t)snprintf(ret->id, sizeof(ret->id), "%s/%u", l->name, ret->size);

	for (unsigned i = 0; i < BASE_ARRAY_LEN(l->ids); i++) {
		const char *id = get(env, l->ids[i]);
		if (id && at < sizeof(ret->id))
			at += (size_t)snprintf(ret->id + at, sizeof(ret->id) - at, "/%s", id);
	}
}

/* FNV-1a. */
static uint16_t derive_port(const char *id)
{
	uint32_t hash = 2166136261u;

	for (; *id; id++)
		hash = (hash ^ (unsigned char)*id) * 16777619u;
	return (uint16_t)(PERF_PORT_FIRST + hash % PERF_PORT_COUNT);
}

static void add_host(struct perf_launch *ret, const char *host, size_t len)
{
	if (!len || len >= PERF_HOST_CAP || ret->n_hosts == PERF_HOSTS_MAX)
		return;
	(void)snprintf(ret->host[ret->n_hosts++], PERF_HOST_CAP, "%.*s", (int)len, host);
}

static int add_first_node(const char *const env[], const struct launcher *l,
			  struct perf_launch *ret, struct mf_error *err)
{
	for (unsigned i = 0; i < BASE_ARRAY_LEN(l->lists); i++) {
		const char *list = get(env, l->lists[i]);
		char node[PERF_HOST_CAP];
		if (!list)
			continue;
		if (perf_nodelist_nth(list, 0, node, sizeof(node), err))
			return base_error_prefix(err, "%s: ", l->lists[i]);
		add_host(ret, node, strlen(node));
		return 0;
	}
	return 0;
}

/* Open MPI 4: "2293039104.0;tcp://10.1.0.1,192.0.2.1:36541", the addresses of mpirun's host. */
static void add_hnp(const char *const env[], struct perf_launch *ret)
{
	const char *uri = get(env, "OMPI_MCA_orte_hnp_uri");
	const char *at = uri ? strstr(uri, "tcp://") : NULL;

	if (!at)
		return;
	at += strlen("tcp://");
	for (size_t len; (len = strcspn(at, ",:;")); at += len + 1) {
		add_host(ret, at, len);
		if (at[len] != ',')
			break;
	}
}

/* Open MPI 5: "prterun-HOST-PID@1", the name of mpirun's host. */
static void add_prte(const char *const env[], struct perf_launch *ret)
{
	const char *name = get(env, "PMIX_NAMESPACE");
	const char *at = name ? strchr(name, '-') : NULL, *end = name ? strrchr(name, '-') : NULL;

	if (at && end > at + 1 && !strncmp(name, "prte", 4))
		add_host(ret, at + 1, (size_t)(end - at - 1));
}

static int find_hosts(const char *const env[], const struct launcher *l, struct perf_launch *ret,
		      struct mf_error *err)
{
	const char *launch_node = get(env, "SLURM_LAUNCH_NODE_IPADDR");

	if (is_same(get(env, l->local_size), get_size(env, l))) {
		add_host(ret, "127.0.0.1", strlen("127.0.0.1"));
		return 0;
	}
	int code = add_first_node(env, l, ret, err);
	if (code)
		return code;
	if (l == &slurm && launch_node) /* for names that are known to Slurm alone */
		add_host(ret, launch_node, strlen(launch_node));
	if (l == &open_mpi && !ret->n_hosts) {
		add_hnp(env, ret);
		add_prte(env, ret);
	}
	if (!ret->n_hosts)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "%s does not say where rank 0 runs; say it by --rendezvous HOST",
				  l->name);
	return 0;
}

int perf_launch_read(const char *const env[], const char *rendezvous, struct perf_launch *ret,
		     struct mf_error *err)
{
	const struct launcher *l = find_launcher(env);
	struct perf_launch launch = { 0 };

	if (!l)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "mesh is one process a host, started by a launcher: "
				  "srun memferry-perf mesh, or mpirun memferry-perf mesh");
	int code = read_numbers(env, l, &launch, err);
	if (code)
		return code;
	make_id(env, l, &launch);
	launch.port = derive_port(launch.id);
	if (rendezvous) {
		launch.n_hosts = 1;
		code = base_parse_addr(rendezvous, "--rendezvous", launch.port, launch.host[0],
				       PERF_HOST_CAP, &launch.port, err);
	} else {
		code = find_hosts(env, l, &launch, err);
	}
	if (!code && !launch.port)
		code = base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "--rendezvous: all have to know the port; 0 is none");
	if (!code)
		*ret = launch;
	return code;
}
