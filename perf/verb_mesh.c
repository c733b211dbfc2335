/* SPDX-License-Identifier: BSD-2-Clause */
/* memferry-perf mesh: every rank works; rank 0 coordinates besides, and tells what came out. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "perf/mesh.h"
#include "perf/mesh_priv.h"
#include "perf/start.h"
#include "perf/stats.h"
#include "perf/verbs.h"
#include "wire/socket.h"

#define BLOCK   16u /* columns of a matrix side by side */
#define KEY_CAP 24u
#define NAMED   20u /* slow pairs that are listed one by one */

/* Of the ranks; they point into the document. */
struct labels {
	uint32_t n;
	bool numbered; /* some host has several ranks */
	const char *at[PERF_RANKS_MAX];
};

static void label_ranks(const json_t *doc, struct labels *ret)
{
	const json_t *hosts = json_object_get(doc, "hosts");

	ret->n = (uint32_t)json_array_size(hosts);
	ret->numbered = false;
	for (uint32_t i = 0; i < ret->n; i++) {
		const json_t *host = json_array_get(hosts, i);
		ret->at[i] = perf_text(host, "label");
		ret->numbered |= !!strcmp(ret->at[i], perf_text(host, "name"));
	}
}

static uint32_t rank_in(const json_t *row, const char *key)
{
	return (uint32_t)json_integer_value(json_object_get(row, key));
}

/* A line a rank: {"from": its label, "to": {"0": figure, ...}}. */
static json_t *matrix_of(const json_t *rows, const struct labels *labels, const char *figure)
{
	json_t *lines = json_array(), *row;
	size_t i;

	for (uint32_t from = 0; from < labels->n; from++) {
		json_t *line = json_object();
		perf_put(line, "from", json_string(labels->at[from]));
		perf_put(line, "to", json_object());
		(void)json_array_append_new(lines, line);
	}
	json_array_foreach(rows, i, row)
	{
		json_t *line = json_array_get(lines, rank_in(row, "from_rank"));
		char key[KEY_CAP];
		(void)snprintf(key, sizeof(key), "%u", rank_in(row, "to_rank"));
		perf_put(json_object_get(line, "to"), key, json_real(perf_number(row, figure)));
	}
	return lines;
}

static void print_matrix(const struct perf_run *run, const struct labels *labels,
			 const char *figure, const char *format, double scale)
{
	json_t *lines = matrix_of(perf_doc_rows(run->doc), labels, figure);

	for (uint32_t first = 0; first < labels->n; first += BLOCK) {
		struct perf_column columns[BLOCK + 1] = { { "from", "from \\ to", NULL, 0 } };
		char path[BLOCK][KEY_CAP];
		uint32_t n = labels->n - first < BLOCK ? labels->n - first : BLOCK;
		for (uint32_t i = 0; i < n; i++) {
			(void)snprintf(path[i], sizeof(path[i]), "to.%u", first + i);
			columns[i + 1] = (struct perf_column){ path[i], labels->at[first + i],
							       format, scale };
		}
		perf_table(run->out, columns, n + 1, lines);
	}
	json_decref(lines);
}

/* The rows with the least, the middle, and the greatest figure. */
static void print_extremes(const struct perf_run *run, const struct labels *labels,
			   const char *what, const char *figure, double scale)
{
	const json_t *rows = perf_doc_rows(run->doc), *least = NULL, *most = NULL;
	double *all base_cleanup(base_freep) = calloc(json_array_size(rows) + 1, sizeof(*all));
	struct perf_stats stats = { 0 };
	json_t *row;
	size_t i;

	if (!all)
		return;
	json_array_foreach(rows, i, row)
	{
		all[i] = perf_number(row, figure);
		if (!least || all[i] < perf_number(least, figure))
			least = row;
		if (!most || all[i] > perf_number(most, figure))
			most = row;
	}
	size_t n = json_array_size(rows);
	perf_stats_of(all, n, &stats);
	(void)fprintf(run->out, "%s min %.3f (%s to %s), median %.3f, max %.3f (%s to %s)\n", what,
		      stats.min * scale, labels->at[rank_in(least, "from_rank")],
		      labels->at[rank_in(least, "to_rank")], all[n / 2] * scale, stats.max * scale,
		      labels->at[rank_in(most, "from_rank")], labels->at[rank_in(most, "to_rank")]);
}

static void print_transports(const struct perf_run *run, const struct labels *labels)
{
	const json_t *rows = perf_doc_rows(run->doc);
	unsigned tcp = 0, left = NAMED;
	size_t n = json_array_size(rows), i;
	json_t *row;

	json_array_foreach(rows, i, row) tcp += !strcmp(perf_text(row, "transport"), "tcp");
	if (!tcp || tcp == n) {
		(void)fprintf(run->out, "all over %s\n", tcp ? "tcp" : "verbs");
		return;
	}
	(void)fprintf(run->out, "%zu directions over verbs, and %u over tcp:\n", n - tcp, tcp);
	json_array_foreach(rows, i, row)
	{
		if (strcmp(perf_text(row, "transport"), "tcp") || !left)
			continue;
		left--;
		(void)fprintf(run->out, "  tcp: %s to %s\n", labels->at[rank_in(row, "from_rank")],
			      labels->at[rank_in(row, "to_rank")]);
	}
	if (tcp > NAMED)
		(void)fprintf(run->out, "  and %u more\n", tcp - NAMED);
}

static void name_slow_host(const struct perf_run *run, const struct labels *labels, uint32_t rank)
{
	const json_t *rows = perf_doc_rows(run->doc);
	uint32_t sends, slow_sends, receives, slow_receives;

	perf_mesh_count(rows, true, rank, &sends, &slow_sends);
	perf_mesh_count(rows, false, rank, &receives, &slow_receives);
	bool sending = slow_sends * 2 > sends, receiving = slow_receives * 2 > receives;
	if (sending && receiving)
		(void)fprintf(run->out, "host %s is slow with everyone: %u of %u directions\n",
			      labels->at[rank], slow_sends + slow_receives, sends + receives);
	else if (sending || receiving)
		(void)fprintf(run->out, "host %s is slow in %s: %s %u of %u others\n",
			      labels->at[rank], sending ? "sending" : "receiving",
			      sending ? "to" : "from", sending ? slow_sends : slow_receives,
			      sending ? sends : receives);
}

static void name_slow(const struct perf_run *run, const struct labels *labels,
		      const struct perf_mesh_summary *summary)
{
	unsigned left = NAMED;
	json_t *row;
	size_t i;

	if (!summary->slow) {
		(void)fprintf(run->out, "no pair is below %.0f %% of the median bandwidth\n",
			      100 * run->o->slow);
		return;
	}
	for (uint32_t rank = 0; labels->n > 2 && rank < labels->n; rank++)
		name_slow_host(run, labels, rank);
	json_array_foreach(perf_doc_rows(run->doc), i, row)
	{
		if (!json_is_true(json_object_get(row, "slow")) || !left)
			continue;
		left--;
		(void)fprintf(run->out, "slow: %s to %s: %.3f GB/s, %.1f %% of the median\n",
			      labels->at[rank_in(row, "from_rank")],
			      labels->at[rank_in(row, "to_rank")],
			      perf_number(row, "bytes_per_s.p50") / 1e9,
			      100 * perf_number(row, "bytes_per_s.p50") / summary->median);
	}
	if (summary->slow > NAMED)
		(void)fprintf(run->out, "slow: and %u more directions\n", summary->slow - NAMED);
}

static void tell(struct perf_run *run)
{
	struct perf_mesh_summary summary;
	struct labels labels;

	perf_mesh_judge(perf_doc_rows(run->doc), run->o->slow, &summary);
	label_ranks(run->doc, &labels);
	(void)fprintf(run->out, "%u processes, %u round%s, median of %u; ", labels.n,
		      perf_mesh_rounds(labels.n), labels.n > 2 ? "s" : "",
		      (unsigned)run->o->repeat);
	print_transports(run, &labels);
	if (labels.numbered)
		(void)fputs("HOST#N: rank N, where several are on one host: between them it is the "
			    "loopback\n",
			    run->out);
	(void)fputs("\nGB/s (10^9 bytes a second) from the line's host to the column's: writes of "
		    "1 MiB\n",
		    run->out);
	print_matrix(run, &labels, "bytes_per_s.p50", "%.3f", 1e-9);
	(void)fputs("\nus (10^-6 s) in which the line's host reads 4 KiB of the column's: p50\n",
		    run->out);
	print_matrix(run, &labels, "latency_us.p50", "%.1f", 0);
	(void)fputc('\n', run->out);
	print_extremes(run, &labels, "GB/s:", "bytes_per_s.p50", 1e-9);
	print_extremes(run, &labels, "us:  ", "latency_us.p50", 1);
	name_slow(run, &labels, &summary);
}

/* Rank 0's own work, besides coordinating. */
struct own_work {
	const struct perf_launch *launch;
	const struct perf_options *o;
	int code;
	struct mf_error err;
};

static void *own_work_main(void *arg)
{
	struct own_work *work = arg;

	work->code = perf_mesh_work(work->launch, work->o, &work->err);
	return NULL;
}

static int lead(struct perf_run *run, const struct perf_launch *launch, struct mf_error *err)
{
	struct own_work work = { .launch = launch, .o = run->o };
	struct mf_error why = { 0 };
	char address[128];
	base_autofd fd = -1;
	pthread_t thread;

	int ret = wire_listen(mesh_any_address(launch), launch->port, &fd, address, sizeof(address),
			      &why);
	if (ret == -EADDRINUSE)
		return base_error(err, ret, MF_SCOPE_HOST,
				  "port %u is in use on rank 0's host; give all another one by "
				  "--rendezvous HOST:PORT",
				  launch->port);
	if (ret)
		return base_error(err, ret, why.scope, "%s", why.msg);
	ret = perf_start_thread(&thread, own_work_main, &work, err);
	if (ret)
		return ret;
	ret = perf_mesh_coordinate(launch, run->o, fd, run->doc, err);
	(void)pthread_join(thread, NULL);
	perf_progress_end();
	if (!ret && work.code)
		ret = base_error(err, work.code, work.err.scope, "%s", work.err.msg);
	return ret;
}

int perf_verb_mesh(struct perf_run *run, struct mf_error *err)
{
	struct perf_launch launch;

	if (!strcmp(run->o->transport, "both"))
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "--transport: mesh measures one at a time; run it once with "
				  "verbs, once with tcp");
	int ret = perf_launch_read((const char *const *)environ, run->o->rendezvous, &launch, err);
	if (ret)
		return ret;
	if (launch.rank)
		return perf_mesh_work(&launch, run->o, err);
	ret = lead(run, &launch, err);
	if (!ret)
		tell(run);
	return ret;
}
