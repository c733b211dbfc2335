/* SPDX-License-Identifier: BSD-2-Clause */
/* memferry-perf register, scan and track: what their options are, and their tables. */
#include <string.h>

#include "base/cleanup.h"
#include "cli/report.h"
#include "perf/doc.h"
#include "perf/verbs.h"

#define COLUMNS_MAX 24u

#define KIB (1.0 / 1024)
#define MIB (KIB / 1024)

/* Those that concern the measurement, by their names on the command line. */
static json_t *pick_options(const struct perf_options *o, const char *const *names)
{
	json_t *all = perf_options_json(o), *picked = json_object();

	for (; *names; names++) {
		json_t *value = json_object_get(all, *names);
		if (value && !json_is_null(value))
			perf_put(picked, *names, json_incref(value));
	}
	json_decref(all);
	return picked;
}

/* Rows that have figures; the others, a line each, go beneath. */
static json_t *measured(const json_t *rows)
{
	json_t *picked = json_array(), *row;
	size_t i;

	json_array_foreach(rows, i, row)
	{
		if (!json_object_get(row, "skipped"))
			(void)json_array_append(picked, row);
	}
	return picked;
}

static void print_skipped(const struct perf_run *run, const json_t *rows, const char *what)
{
	char name[64], why[256];
	json_t *row;
	size_t i;

	json_array_foreach(rows, i, row)
	{
		if (!json_object_get(row, "skipped"))
			continue;
		(void)fprintf(run->out, "not measured: ");
		if (run->peer)
			(void)fprintf(run->out, "%s, ", perf_text(row, "host"));
		(void)fprintf(run->out, "%s, %.0f KiB pages",
			      cli_clean(perf_text(row, what), name, sizeof(name)),
			      perf_number(row, "page_bytes") * KIB);
		if (json_object_get(row, "threads"))
			(void)fprintf(run->out, ", %.0f KiB, %.0f threads",
				      perf_number(row, "bytes") * KIB, perf_number(row, "threads"));
		(void)fprintf(run->out, ": %s\n",
			      cli_clean(perf_text(row, "skipped"), why, sizeof(why)));
	}
}

/* With two hosts, a column that says which. */
static void print(const struct perf_run *run, const struct perf_column *columns, size_t n,
		  const char *what, const char *legend)
{
	struct perf_column shown[COLUMNS_MAX] = { { "host", "host", NULL, 0 } };
	size_t at = run->peer ? 1 : 0;
	json_t *rows = measured(perf_doc_rows(run->doc));

	memcpy(shown + at, columns, n * sizeof(*columns));
	if (json_array_size(rows)) {
		perf_table(run->out, shown, at + n, rows);
		(void)fputs(legend, run->out);
	}
	print_skipped(run, perf_doc_rows(run->doc), what);
	json_decref(rows);
}

int perf_verb_register(struct perf_run *run, struct mf_error *err)
{
	static const char *const names[] = { "sizes",  "page",   "threads", "transport",
					     "ib-dev", "repeat", NULL };
	static const struct perf_column columns[] = {
		{ "transport", "transport", NULL, 0 },
		{ "device", "device", NULL, 0 },
		{ "page_bytes", "page[KiB]", "%.0f", KIB },
		{ "bytes", "size[KiB]", "%.0f", KIB },
		{ "threads", "threads", "%.0f", 0 },
		{ "registrations", "registrations", "%.0f", 0 },
		{ "fault_in_ms.p50", "fault in[ms]", "%.4f", 0 },
		{ "register_cold_ms.p50", "cold[ms]", "%.4f", 0 },
		{ "register_warm_ms.p50", "warm[ms]", "%.4f", 0 },
		{ "deregister_ms.p50", "deregister[ms]", "%.4f", 0 },
		{ "median_bytes_per_s", "warm[GB/s]", "%.2f", 1e-9 },
		{ "spread_percent", "spread[%]", "%.0f", 0 },
		{ "bytes_per_cpu_s", "GB/CPU-s", "%.2f", 1e-9 },
	};
	json_t *options = pick_options(run->o, names);

	int ret = perf_local_run(run, "register", options, err);
	json_decref(options);
	if (!ret)
		print(run, columns, BASE_ARRAY_LEN(columns), "transport",
		      "fault in: first touch of all; cold: registering what nobody has touched; "
		      "warm: "
		      "what has been faulted in\n"
		      "medians; spread: of warm[GB/s], (max - min) / median; GB/s: 10^9 bytes a "
		      "second\n"
		      "GB/CPU-s: registered, for a second of this process's CPU, faulting in "
		      "included\n");
	return ret;
}

int perf_verb_scan(struct perf_run *run, struct mf_error *err)
{
	static const char *const names[] = { "memory", "threads", "repeat", "seed", NULL };
	static const struct perf_column columns[] = {
		{ "content", "content", NULL, 0 },
		{ "threads", "threads", "%.0f", 0 },
		{ "bytes", "size[MiB]", "%.0f", MIB },
		{ "median_bytes_per_s", "scan[GB/s]", "%.2f", 1e-9 },
		{ "spread_percent", "spread[%]", "%.0f", 0 },
		{ "median_pages_per_s", "scan[Mpages/s]", "%.3f", 1e-6 },
		{ "median_read_bytes_per_s", "read[GB/s]", "%.2f", 1e-9 },
		{ "median_copy_bytes_per_s", "memcpy[GB/s]", "%.2f", 1e-9 },
		{ "ratio_to_read.p50", "scan/read", "%.2f", 0 },
		{ "bytes_per_cpu_s", "GB/CPU-s", "%.2f", 1e-9 },
	};
	json_t *options = pick_options(run->o, names);

	int ret = perf_local_run(run, "scan", options, err);
	json_decref(options);
	if (!ret)
		print(run, columns, BASE_ARRAY_LEN(columns), "content",
		      "zero: all pages are; first, last: each differs there; mix: half are zero, "
		      "the "
		      "rest differ anywhere\n"
		      "GB/s: 10^9 bytes of memory a second, looked at or passed over; memcpy: "
		      "bytes copied; "
		      "pages of 4 KiB\n"
		      "medians; spread: of scan[GB/s], (max - min) / median; read: in order, "
		      "nothing asked "
		      "for ahead\n");
	return ret;
}

int perf_verb_track(struct perf_run *run, struct mf_error *err)
{
	static const char *const names[] = { "memory", "page", "trackers", "dirty-pages",
					     "repeat", "seed", NULL };
	static const struct perf_column columns[] = {
		{ "tracker", "tracker", NULL, 0 },
		{ "page_bytes", "page[KiB]", "%.0f", KIB },
		{ "bytes", "size[MiB]", "%.0f", MIB },
		{ "start_ms.p50", "start[ms]", "%.3f", 0 },
		{ "untracked_write_ns.p50", "untracked[ns]", "%.0f", 0 },
		{ "first_write_ns.p50", "first[ns]", "%.0f", 0 },
		{ "penalty_ns.p50", "penalty[ns]", "%.0f", 0 },
		{ "second_write_ns.p50", "second[ns]", "%.0f", 0 },
		{ "collect_idle_ms.p50", "idle collect[ms]", "%.3f", 0 },
		{ "dirty_pages", "dirty[pages]", "%.0f", 0 },
		{ "reported_pages", "reported[pages]", "%.0f", 0 },
		{ "collect_dirty_ms.p50", "collect[ms]", "%.3f", 0 },
		{ "stop_ms.p50", "stop[ms]", "%.3f", 0 },
		{ "cpu.client.host_busy_percent", "busy[%]", "%.0f", 0 },
	};
	json_t *options = pick_options(run->o, names);

	int ret = perf_local_run(run, "track", options, err);
	json_decref(options);
	if (!ret)
		print(run, columns, BASE_ARRAY_LEN(columns), "tracker",
		      "untracked, first, second: one write to a page, by random pages, before "
		      "tracking, "
		      "the first time since and again\n"
		      "penalty: first - untracked; collect: after writing so many random pages\n"
		      "medians; busy: of all CPUs\n");
	return ret;
}
