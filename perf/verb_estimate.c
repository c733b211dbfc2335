/* SPDX-License-Identifier: BSD-2-Clause */
/* memferry-perf estimate: watches a guest, measures the path, says what a move would take; later, how far off that was. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <memferry/guests.h>

#include "base/cleanup.h"
#include "core/converge.h"
#include "perf/bw.h"
#include "perf/doc.h"
#include "perf/estimate.h"
#include "perf/links.h"
#include "perf/migrate.h"
#include "perf/verbs.h"

#define BUFFER \
	(UINT64_C(64) << 20) /* of each lane: more than caches hold, as a guest's memory is */
#define EXTENT   (UINT64_C(1) << 20)
#define PAGE     UINT64_C(4096)
#define WRITE_MS 1000u
#define READS    300u
#define BATCH    16u

struct path_figures {
	double bytes_per_s, read_us;
	struct perf_cpu client, server;
	double bytes;
	char transport[16];
};

/* As moves use it: lanes that sleep for their completions. */
static int measure_path(struct perf_run *run, struct path_figures *ret, struct mf_error *err)
{
	const struct perf_plan write = { .size = EXTENT,
					 .span = BUFFER,
					 .duration_ms = WRITE_MS,
					 .batch = BATCH,
					 .sleep = true };
	const struct perf_plan read = {
		.is_read = true, .size = PAGE, .span = PAGE, .iterations = READS, .batch = 1
	};
	struct perf_links links;
	struct perf_bw bw = { 0 };
	struct perf_lat lat = { 0 };

	int code = perf_links_open(run, BUFFER, &links, err);
	if (code)
		return code;
	perf_progress("estimate: measuring the path");
	for (unsigned turn = 0; !code && turn < 2; turn++) /* the first one warms both sides */
		code = perf_bw_run(run->peer, &links.path[0], &write, &bw, err);
	if (!code)
		code = perf_lat_run(run->peer, &links.path[0], &read, &lat, err);
	perf_progress_end();
	if (!code) {
		*ret = (struct path_figures){ .bytes_per_s = bw.bytes_per_s,
					      .read_us = lat.us.p50,
					      .client = bw.client,
					      .server = bw.server,
					      .bytes = (double)bw.iterations * EXTENT };
		(void)snprintf(ret->transport, sizeof(ret->transport), "%s",
			       links.path[0].ops->kind);
	}
	free(lat.samples_us);
	perf_links_close(run, &links);
	return code;
}

static json_t *curve_json(const struct perf_curve *curve)
{
	json_t *array = json_array();

	for (unsigned i = 0; i < curve->n; i++)
		(void)json_array_append_new(
			array, json_pack("{s:f,s:f}", "s", curve->s[i], "bytes", curve->bytes[i]));
	return array;
}

static void add_row(struct perf_run *run, const struct perf_watch *watch,
		    const struct path_figures *path, const struct perf_estimate *e)
{
	json_t *row = perf_estimate_json(e), *guest = json_object(), *cpu = json_object();

	perf_put(guest, "name", json_string(watch->name));
	perf_put(guest, "ram_bytes", json_real(watch->ram_bytes));
	perf_put(guest, "data_bytes", json_real(watch->data_bytes));
	perf_put(guest, "tracker", json_string(watch->tracker));
	perf_put(guest, "dirty", curve_json(&watch->dirty));
	perf_put(row, "guest", guest);
	perf_put(row, "transport", json_string(path->transport));
	perf_put(row, "path_bytes_per_s", json_real(path->bytes_per_s));
	perf_put(row, "path_read_us", json_real(path->read_us));
	perf_put(cpu, "client", perf_cpu_json(&path->client));
	perf_put(cpu, "server", perf_cpu_json(&path->server));
	perf_put(row, "bytes_per_cpu_s", json_real(perf_bytes_per_cpu_s(cpu, path->bytes)));
	perf_put(row, "cpu", cpu);
	perf_doc_add(run->doc, row);
}

static void print(const struct perf_run *run, const struct perf_watch *watch,
		  const struct path_figures *path)
{
	static const struct perf_column columns[] = {
		{ "mode", "mode", NULL, 0 },
		{ "total_ms", "total[ms]", "%.0f", 0 },
		{ "downtime_ms", "downtime[ms]", "%.0f", 0 },
		{ "n_rounds", "rounds", "%.0f", 0 },
		{ "bytes", "moved[MiB]", "%.0f", 1.0 / 1048576 },
		{ "missing_bytes", "missing at the switch[MiB]", "%.0f", 1.0 / 1048576 },
		{ "postcopy_ms", "until all are there[ms]", "%.0f", 0 },
		{ "fault_us", "read of a page[us]", "%.1f", 0 },
		{ "outcome", "outcome", NULL, 0 },
	};
	const struct perf_curve *c = &watch->dirty;

	(void)fprintf(run->out, "guest %s: %.0f MiB of RAM, %.0f MiB of data, watched by %s\n",
		      watch->name, watch->ram_bytes / 1048576, watch->data_bytes / 1048576,
		      watch->tracker);
	(void)fputs("distinct MiB written within s:", run->out);
	for (unsigned i = 0; i < c->n; i++)
		(void)fprintf(run->out, "  %.1f: %.1f", c->s[i], c->bytes[i] / 1048576);
	(void)fprintf(run->out, "\npath %s: %.3f GB/s, a read of 4 KiB %.1f us\n", path->transport,
		      path->bytes_per_s / 1e9, path->read_us);
	perf_table(run->out, columns, BASE_ARRAY_LEN(columns), perf_doc_rows(run->doc));
	(void)fputs("GB/s: 10^9 bytes a second; MiB: 2^20 bytes.  A pause without a page is taken "
		    "as 40 ms.\n",
		    run->out);
}

static int watch_guest(const struct perf_options *o, struct perf_watch *ret, struct mf_error *err)
{
	struct mf_adapter guest = { 0 };

	int code = mf_guest_open(o->guest, MF_SOURCE, &guest, err);
	if (code == -MF_EUSAGE)
		(void)base_error_prefix(err, "--guest: ");
	if (!code)
		code = perf_watch_run(&guest, o->watch_s, ret, err);
	mf_guest_close(&guest);
	return code;
}

static int predict(struct perf_run *run, struct mf_error *err)
{
	const struct perf_options *o = run->o;
	struct path_figures path;
	struct perf_watch watch;
	size_t len;

	int code = watch_guest(o, &watch, err);
	if (!code)
		code = measure_path(run, &path, err);
	if (code)
		return code;
	double most = (double)o->max_bandwidth;
	for (const char *m = o->modes; *m; m += len) {
		m += *m == ',';
		len = strcspn(m, ",");
		const struct perf_estimate_in in = {
			.mode = perf_find_mode(m, len),
			.ram_bytes = watch.ram_bytes,
			.data_bytes = watch.data_bytes,
			.dirty = watch.dirty,
			.bytes_per_s =
				most > 0 && most < path.bytes_per_s ? most : path.bytes_per_s,
			.read_us = path.read_us,
			.switchover_us = CONVERGE_SWITCHOVER_US,
			.max_downtime_us = (double)o->max_downtime_ms * 1e3,
		};
		struct perf_estimate e;
		perf_estimate(&in, &e);
		add_row(run, &watch, &path, &e);
	}
	print(run, &watch, &path);
	return 0;
}

/* The last line that is a report's. */
static json_t *read_report(const char *file, struct mf_error *err)
{
	FILE *f base_cleanup(base_fclosep) = fopen(file, "re");
	char *line base_cleanup(base_freep) = NULL;
	json_t *report = NULL;
	size_t cap = 0;

	while (f && getline(&line, &cap, f) > 0) {
		json_t *o = json_loads(line, 0, NULL);
		if (strcmp(perf_text(o, "event"), "report")) {
			json_decref(o);
			continue;
		}
		json_decref(report);
		report = o;
	}
	if (!report)
		(void)base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				 "--against: %.120s holds no report of memferry send --json", file);
	return report;
}

static int compare(struct perf_run *run, struct mf_error *err)
{
	static const struct perf_column columns[] = {
		{ "figure", "figure", NULL, 0 },         { "unit", "unit", NULL, 0 },
		{ "predicted", "predicted", "%.1f", 0 }, { "actual", "actual", "%.1f", 0 },
		{ "off_percent", "off[%]", "%+.0f", 0 },
	};
	const struct perf_options *o = run->o;
	json_error_t why;

	json_t *document = json_load_file(o->estimate, 0, &why);
	if (!document)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST, "--estimate: %.150s: %.60s",
				  o->estimate, why.text);
	json_t *report = read_report(o->against, err);
	int code = report ? perf_estimate_compare(document, report, perf_doc_rows(run->doc), err)
			  : -MF_EUSAGE;
	if (!code)
		perf_table(run->out, columns, BASE_ARRAY_LEN(columns), perf_doc_rows(run->doc));
	json_decref(report);
	json_decref(document);
	return code;
}

int perf_verb_estimate(struct perf_run *run, struct mf_error *err)
{
	return run->o->against ? compare(run, err) : predict(run, err);
}
