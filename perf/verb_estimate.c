/* SPDX-License-Identifier: BSD-2-Clause */
/* memferry-perf estimate: watches a guest, measures the path, says what a move would take; later, how far off that was. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include <memferry/guests.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "core/converge.h"
#include "perf/bw.h"
#include "perf/doc.h"
#include "perf/estimate.h"
#include "perf/links.h"
#include "perf/migrate.h"
#include "perf/verbs.h"

#define BUFFER \
	(UINT64_C(64) << 20) /* of each lane: more than caches hold, as a guest's memory is */
#define TOUCHED    (UINT64_C(64) << 20)
#define EXTENT     (UINT64_C(1) << 20) /* of one operation, at the most */
#define RUN        (UINT64_C(64) << 10)
#define PULL       (UINT64_C(256) << 10)
#define PAGE       UINT64_C(4096)
#define MEASURE_MS 600u
#define READS      300u
#define TOUCHES    3u
#define BATCH      16u
#define TOUCH_MS   60000u

struct path_figures {
	double bytes_per_s, run_bytes_per_s, pull_bytes_per_s; /* by size of operations */
	double touch_bytes_per_s;
	bool touches_ahead;
	double read_us, read_p99_us;
	uint64_t gap; /* bytes that are written with their neighbours rather than skipped */
	struct perf_cpu client, server;
	double bytes; /* while that was spent */
	char transport[16];
};

/* As moves use it: lanes that sleep for their completions. */
static int measure_bw(struct perf_run *run, struct perf_path *path, uint64_t size, bool is_read,
		      struct perf_bw *ret, struct mf_error *err)
{
	const struct perf_plan plan = { .is_read = is_read,
					.size = size,
					.span = BUFFER,
					.duration_ms = MEASURE_MS,
					.batch = BATCH,
					.sleep = true };

	perf_progress("estimate: measuring the path, %s of %u KiB", is_read ? "reads" : "writes",
		      (unsigned)(size >> 10));
	int code = perf_bw_run(run->peer, path, &plan, ret, err);
	if (!code && ret->bytes_per_s <= 0)
		code = base_error(err, -EIO, MF_SCOPE_SESSION, "the path moves nothing");
	return code;
}

static int measure_reads(struct perf_run *run, struct perf_path *path, struct path_figures *ret,
			 struct mf_error *err)
{
	const struct perf_plan read = {
		.is_read = true, .size = PAGE, .span = PAGE, .iterations = READS, .batch = 1
	};
	struct perf_lat lat = { 0 };

	int code = perf_lat_run(run->peer, path, &read, &lat, err);
	ret->read_us = lat.us.p50;
	ret->read_p99_us = lat.us.p99;
	free(lat.samples_us);
	return code;
}

/* Fresh memory costs the server more than copying into it does. */
static int measure_touch(struct perf_run *run, struct path_figures *ret, struct mf_error *err)
{
	json_t *answer = NULL;
	json_t *request = json_pack("{s:s, s:{s:[I], s:[I], s:[I], s:I, s:s}}", "test", "register",
				    "options", "sizes", (json_int_t)TOUCHED, "page",
				    (json_int_t)PAGE, "threads", (json_int_t)run->o->lanes,
				    "repeat", (json_int_t)TOUCHES, "transport", ret->transport);

	if (!request)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	perf_progress("estimate: measuring the server's first touch of memory");
	int code = perf_peer_call(run->peer, "local", request, base_deadline_ms(TOUCH_MS), &answer,
				  err);
	if (code)
		return code;
	const json_t *row = json_array_get(json_object_get(answer, "rows"), 0);
	double ms =
		perf_number(row, ret->touches_ahead ? "register_cold_ms.p50" : "fault_in_ms.p50");
	ret->touch_bytes_per_s = ms > 0 ? (double)TOUCHED * 1e3 / ms : 0;
	json_decref(answer);
	return 0;
}

static int measure_lanes(struct perf_run *run, struct perf_path *path, struct path_figures *ret,
			 struct mf_error *err)
{
	struct perf_bw bw = { 0 }, runs = { 0 }, pull = { 0 };
	int code = 0;

	for (unsigned turn = 0; !code && turn < 2; turn++) /* the first one warms both sides */
		code = measure_bw(run, path, EXTENT, false, &bw, err);
	if (!code)
		code = measure_bw(run, path, RUN, false, &runs, err);
	if (!code)
		code = measure_bw(run, path, PULL, true, &pull, err);
	if (!code)
		code = measure_reads(run, path, ret, err);
	ret->bytes_per_s = bw.bytes_per_s;
	ret->run_bytes_per_s = runs.bytes_per_s;
	ret->pull_bytes_per_s = pull.bytes_per_s;
	ret->client = bw.client;
	ret->server = bw.server;
	ret->bytes = (double)bw.iterations * EXTENT;
	return code;
}

/* With both transports, of the first, which is what a move would take. */
static int measure_path(struct perf_run *run, struct path_figures *ret, struct mf_error *err)
{
	struct perf_links links;

	*ret = (struct path_figures){ 0 };
	int code = perf_links_open(run, BUFFER, &links, err);
	if (code)
		return code;
	const struct perf_path *path = &links.path[0];
	(void)snprintf(ret->transport, sizeof(ret->transport), "%s", path->ops->kind);
	ret->touches_ahead = path->ops->caps & TP_CAP_PINS;
	ret->gap = path->limits.gap;
	code = measure_lanes(run, &links.path[0], ret, err);
	perf_links_close(run, &links);
	if (!code)
		code = measure_touch(run, ret, err);
	perf_progress_end();
	return code;
}

static json_t *curve_json(const struct perf_curve *curve)
{
	json_t *array = json_array();

	for (unsigned i = 0; i < curve->n; i++)
		(void)json_array_append_new(array,
					    json_pack("{s:f,s:f,s:f}", "s", curve->s[i], "bytes",
						      curve->bytes[i], "runs", curve->runs[i]));
	return array;
}

static void add_row(struct perf_run *run, const struct perf_watch *watch,
		    const struct path_figures *path, const struct perf_estimate *e)
{
	json_t *row = perf_estimate_json(e), *guest = json_object(), *cpu = json_object();

	perf_put(guest, "name", json_string(watch->name));
	perf_put(guest, "ram_bytes", json_real(watch->ram_bytes));
	perf_put(guest, "allocated_bytes", json_real(watch->allocated_bytes));
	perf_put(guest, "data_bytes", json_real(watch->data_bytes));
	perf_put(guest, "tracker", json_string(watch->tracker));
	perf_put(guest, "dirty", curve_json(&watch->dirty));
	perf_put(row, "guest", guest);
	perf_put(row, "transport", json_string(path->transport));
	perf_put(row, "path_bytes_per_s", json_real(path->bytes_per_s));
	perf_put(row, "path_run_bytes_per_s", json_real(path->run_bytes_per_s));
	perf_put(row, "path_pull_bytes_per_s", json_real(path->pull_bytes_per_s));
	perf_put(row, "path_read_us", json_real(path->read_us));
	perf_put(row, "path_read_p99_us", json_real(path->read_p99_us));
	perf_put(row, "touch_bytes_per_s", json_real(path->touch_bytes_per_s));
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
		{ "fault_p99_us", "p99", "%.1f", 0 },
		{ "outcome", "outcome", NULL, 0 },
	};
	const struct perf_curve *c = &watch->dirty;

	(void)fprintf(run->out, "guest %s: %.0f MiB of RAM, %.0f MiB of data, watched by %s\n",
		      watch->name, watch->ram_bytes / 1048576, watch->data_bytes / 1048576,
		      watch->tracker);
	(void)fputs("distinct MiB written within s:", run->out);
	for (unsigned i = 0; i < c->n; i++)
		(void)fprintf(run->out, "  %.1f: %.1f", c->s[i], c->bytes[i] / 1048576);
	(void)fprintf(run->out,
		      "\npath %s, GB/s: writes of 1 MiB %.3f, of 64 KiB %.3f, reads of 256 KiB "
		      "%.3f, first touch of the server's memory %.3f; a read of 4 KiB %.1f us\n",
		      path->transport, path->bytes_per_s / 1e9, path->run_bytes_per_s / 1e9,
		      path->pull_bytes_per_s / 1e9, path->touch_bytes_per_s / 1e9, path->read_us);
	perf_table(run->out, columns, BASE_ARRAY_LEN(columns), perf_doc_rows(run->doc));
	(void)fputs("GB/s: 10^9 bytes a second; MiB: 2^20 bytes.  A pause without a page is taken "
		    "as 40 ms.\n",
		    run->out);
}

static void fill_in(const struct perf_options *o, const struct perf_watch *watch,
		    const struct path_figures *path, struct perf_estimate_in *ret)
{
	double run_us = RUN * 1e6 / path->run_bytes_per_s - RUN * 1e6 / path->bytes_per_s;

	*ret = (struct perf_estimate_in){
		.ram_bytes = watch->ram_bytes,
		.allocated_bytes = watch->allocated_bytes,
		.data_bytes = watch->data_bytes,
		.dirty = watch->dirty,
		.bytes_per_s = path->bytes_per_s,
		.run_us = run_us > 0 ? run_us : 0,
		.pull_bytes_per_s = path->pull_bytes_per_s,
		.max_bytes_per_s = (double)o->max_bandwidth,
		.touch_bytes_per_s = path->touch_bytes_per_s,
		.touches_ahead = path->touches_ahead,
		.read_us = path->read_us,
		.read_p99_us = path->read_p99_us,
		.switchover_us = CONVERGE_SWITCHOVER_US,
		.max_downtime_us = (double)o->max_downtime_ms * 1e3,
	};
}

/* The guest is opened first: what is wrong with its name is said at once. */
static int measure(struct perf_run *run, struct perf_watch *watch, struct path_figures *path,
		   struct mf_error *err)
{
	struct mf_adapter guest = { 0 };
	sigset_t signals, before;

	perf_watch_signals(&signals);
	(void)pthread_sigmask(SIG_BLOCK, &signals, &before);
	int code = mf_guest_open(run->o->guest, MF_SOURCE, &guest, err);
	if (code == -MF_EUSAGE)
		(void)base_error_prefix(err, "--guest: ");
	if (!code)
		code = measure_path(run, path, err);
	if (!code)
		code = perf_watch_run(&guest, run->o->watch_s, path->gap, watch, err);
	mf_guest_close(&guest);
	/* One that came too late for the watch ends this process here. */
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	return code;
}

static int predict(struct perf_run *run, struct mf_error *err)
{
	const struct perf_options *o = run->o;
	struct perf_estimate_in in;
	struct path_figures path;
	struct perf_watch watch;
	size_t len;

	int code = measure(run, &watch, &path, err);
	if (code)
		return code;
	fill_in(o, &watch, &path, &in);
	for (const char *m = o->modes; *m; m += len) {
		struct perf_estimate e;
		m += *m == ',';
		len = strcspn(m, ",");
		in.mode = perf_find_mode(m, len);
		perf_estimate(&in, &e);
		add_row(run, &watch, &path, &e);
	}
	print(run, &watch, &path);
	return 0;
}

/* Of the first row of a document of migrate; NULL: the file is none. */
static json_t *report_of_document(const char *file)
{
	json_t *document = json_load_file(file, 0, NULL);
	json_t *report =
		json_incref(json_object_get(json_array_get(perf_doc_rows(document), 0), "report"));

	json_decref(document);
	return report;
}

/* The last line that is a report's. */
static json_t *report_of_lines(const char *file)
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
	return report;
}

static json_t *read_report(const char *file, struct mf_error *err)
{
	json_t *report = report_of_document(file);

	if (!report)
		report = report_of_lines(file);
	if (!report)
		(void)base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				 "--against: %.120s holds no report, neither of memferry send "
				 "--json nor of memferry-perf migrate",
				 file);
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
