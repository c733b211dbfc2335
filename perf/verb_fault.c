/* SPDX-License-Identifier: BSD-2-Clause */
/* memferry-perf fault: every combination of pages, userfaultfds, transports and threads. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "perf/fault.h"
#include "perf/links.h"
#include "perf/verbs.h"

#define HUGE_PAGE  (UINT64_C(2) << 20) /* the only other size that the server's memory can have */
#define BASE_PAGE  UINT64_C(4096)
#define REPEAT_MAX 1000u

/* What is measured at the moment. */
struct setting {
	struct perf_fault_params params;
	struct perf_fault_bench *bench;
	const char *transport;
	struct perf_path path;
	uint64_t server_page;
};

static json_t *describe(const struct setting *s, uint32_t threads)
{
	json_t *row = json_object();

	perf_put(row, "transport", json_string(s->transport));
	perf_put(row, "page", json_integer((json_int_t)s->params.page_size));
	perf_put(row, "uffds", json_integer(s->params.uffds));
	perf_put(row, "threads", json_integer(threads));
	perf_put(row, "memory", json_integer((json_int_t)s->params.bytes));
	return row;
}

static void skip(struct perf_run *run, const struct setting *s, const char *why)
{
	const struct perf_list *threads = &run->o->threads;

	for (uint32_t i = 0; i < threads->n; i++) {
		json_t *row = describe(s, (uint32_t)threads->at[i]);
		perf_put(row, "skipped", json_string(why));
		perf_doc_add(run->doc, row);
	}
}

/* Of the repetition whose rate is the median one; the spread is of all. */
static json_t *make_row(const struct setting *s, uint32_t threads, const struct perf_fault *median,
			double *rates, unsigned repeat)
{
	json_t *row = describe(s, threads), *cpu = json_object();
	double page = (double)s->params.page_size;
	struct perf_stats spread;

	perf_put(cpu, "client", perf_cpu_json(&median->client));
	perf_put(cpu, "server", perf_cpu_json(&median->server));
	perf_put(row, "device", json_string(s->path.device));
	perf_put(row, "peer_device", json_string(s->path.peer_device));
	perf_put(row, "server_page", json_integer((json_int_t)s->server_page));
	perf_put(row, "touches", json_integer((json_int_t)median->touches));
	perf_put(row, "seconds", json_real(median->seconds));
	perf_put(row, "median_faults_per_s", json_real(median->faults_per_s));
	perf_put(row, "median_bytes_per_s", json_real(median->bytes_per_s));
	perf_stats_of_rates(rates, repeat, &spread);
	perf_put(row, "faults_per_s", perf_stats_json(&spread));
	perf_put(row, "spread_percent",
		 json_real(spread.p50 > 0 ? 100 * (spread.max - spread.min) / spread.p50 : 0));
	perf_put(row, "latency_us", perf_stats_json(&median->latency_us));
	perf_put(row, "wake_us", perf_stats_json(&median->wake_us));
	perf_put(row, "read_us", perf_stats_json(&median->read_us));
	perf_put(row, "install_us", perf_stats_json(&median->install_us));
	perf_put(row, "bytes_per_cpu_s",
		 json_real(perf_bytes_per_cpu_s(cpu, (double)median->touches * page)));
	perf_put(row, "cpu", cpu);
	return row;
}

static int measure_threads(struct perf_run *run, struct setting *s, uint32_t threads,
			   struct mf_error *err)
{
	unsigned repeat = (unsigned)(run->o->repeat < REPEAT_MAX ? run->o->repeat : REPEAT_MAX);
	struct perf_fault *all base_cleanup(base_freep) = calloc(repeat, sizeof(*all));
	double *rates base_cleanup(base_freep) = calloc(repeat, sizeof(*rates));
	const struct perf_fault_plan plan = { .threads = threads, .touches = run->o->iterations };
	int ret = 0;

	if (!all || !rates)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	for (unsigned i = 0; !ret && i < repeat; i++) {
		perf_progress("fault %s, pages of %" PRIu64
			      " KiB, %u userfaultfds, %u threads: %u of %u",
			      s->transport, s->params.page_size >> 10, s->params.uffds, threads,
			      i + 1, repeat);
		ret = perf_fault_run(s->bench, run->peer, &s->path, &plan, &all[i], err);
		rates[i] = all[i].faults_per_s;
	}
	perf_progress_end();
	if (!ret) {
		const struct perf_fault *median = &all[perf_median_of(rates, repeat)];
		perf_doc_add(run->doc, make_row(s, threads, median, rates, repeat));
	}
	return ret;
}

/* The server's memory is of pages of the same size if it has them: where reads come from, that matters little. */
static int open_path(struct perf_run *run, struct setting *s, struct mf_error *err)
{
	struct perf_path_params params;
	struct mf_error refused = { 0 };

	perf_links_params(run->o, s->transport, &params);
	params.lanes = s->params.uffds;
	params.bytes = perf_fault_lane_bytes(s->bench);
	params.memory = perf_fault_memory(s->bench);
	if (s->params.page_size == HUGE_PAGE) {
		params.page_size = s->server_page = HUGE_PAGE;
		if (!perf_path_open(run->peer, &params, &s->path, &refused))
			return 0;
	}
	params.page_size = 0;
	s->server_page = BASE_PAGE;
	return perf_path_open(run->peer, &params, &s->path, err);
}

static int measure_transport(struct perf_run *run, struct setting *s, struct mf_error *err)
{
	const struct perf_list *threads = &run->o->threads;

	int ret = open_path(run, s, err);
	if (ret)
		return ret;
	if (s->path.limits.max_op < s->params.page_size) {
		skip(run, s, "a page is more than the device moves by one operation");
	} else {
		ret = perf_fault_fill(s->bench, run->peer, &s->path, err);
		for (uint32_t i = 0; !ret && i < threads->n; i++)
			ret = measure_threads(run, s, (uint32_t)threads->at[i], err);
	}
	int ended = perf_path_end(run->peer, &s->path, ret ? NULL : err);
	return ret ? ret : ended;
}

static int measure_memory(struct perf_run *run, const struct perf_fault_params *params,
			  const char *const *transports, unsigned n, struct mf_error *err)
{
	struct setting s = { .params = *params };
	char why[224];

	bool lacks = perf_fault_why_not(params, why, sizeof(why));
	int ret = lacks ? 0 : perf_fault_open(params, &s.bench, err);
	for (unsigned i = 0; !ret && i < n; i++) {
		s.transport = transports[i];
		if (lacks)
			skip(run, &s, why);
		else
			ret = measure_transport(run, &s, err);
	}
	perf_fault_close(s.bench);
	return ret;
}

static int measure_all(struct perf_run *run, const char *const *transports, unsigned n,
		       struct mf_error *err)
{
	const struct perf_options *o = run->o;
	int ret = 0;

	for (uint32_t p = 0; !ret && p < o->pages.n; p++) {
		for (uint32_t u = 0; !ret && u < o->uffds.n; u++) {
			const struct perf_fault_params params = { .bytes = o->memory,
								  .page_size = o->pages.at[p],
								  .uffds = (uint32_t)o->uffds.at[u],
								  .seed = o->seed };
			ret = measure_memory(run, &params, transports, n, err);
		}
	}
	return ret;
}

/* ---- for people ---- */

/* A sentence once, not for each combination. */
static void print_skipped(const struct perf_run *run)
{
	const char *last = "";
	json_t *row;
	size_t i;

	json_array_foreach(perf_doc_rows(run->doc), i, row)
	{
		const char *why = perf_text(row, "skipped");
		if (why[0] && strcmp(why, last) != 0) {
			(void)fprintf(run->out, "skipped: pages of %.0f KiB: %s\n",
				      perf_number(row, "page") / 1024, why);
			last = why;
		}
	}
}

static void print(const struct perf_run *run)
{
	static const struct perf_column rates[] = {
		{ "transport", "transport", NULL, 0 },
		{ "page", "page[KiB]", "%.0f", 1.0 / 1024 },
		{ "uffds", "uffds", "%.0f", 0 },
		{ "threads", "threads", "%.0f", 0 },
		{ "touches", "touches", "%.0f", 0 },
		{ "median_faults_per_s", "faults/s", "%.0f", 0 },
		{ "median_bytes_per_s", "GB/s", "%.3f", 1e-9 },
		{ "spread_percent", "spread[%]", "%.0f", 0 },
		{ "latency_us.p50", "p50[us]", "%.1f", 0 },
		{ "latency_us.p90", "p90", "%.1f", 0 },
		{ "latency_us.p99", "p99", "%.1f", 0 },
		{ "latency_us.p99_9", "p99.9", "%.1f", 0 },
		{ "latency_us.max", "max", "%.1f", 0 },
	};
	static const struct perf_column parts[] = {
		{ "transport", "transport", NULL, 0 },
		{ "page", "page[KiB]", "%.0f", 1.0 / 1024 },
		{ "uffds", "uffds", "%.0f", 0 },
		{ "threads", "threads", "%.0f", 0 },
		{ "wake_us.p50", "wake p50[us]", "%.1f", 0 },
		{ "wake_us.p99", "p99", "%.1f", 0 },
		{ "read_us.p50", "read p50[us]", "%.1f", 0 },
		{ "read_us.p99", "p99", "%.1f", 0 },
		{ "install_us.p50", "install p50[us]", "%.1f", 0 },
		{ "install_us.p99", "p99", "%.1f", 0 },
		{ "cpu.client.host_busy_percent", "client busy[%]", "%.0f", 0 },
		{ "cpu.server.host_busy_percent", "server busy[%]", "%.0f", 0 },
		{ "bytes_per_cpu_s", "GB/CPU-s", "%.3f", 1e-9 },
	};
	json_t *rows = json_array(), *row;
	size_t i;

	json_array_foreach(perf_doc_rows(run->doc), i, row)
	{
		if (!json_object_get(row, "skipped"))
			(void)json_array_append(rows, row);
	}
	if (json_array_size(rows)) {
		(void)fprintf(run->out,
			      "page faults served from the server's memory, median of %u\n",
			      (unsigned)run->o->repeat);
		perf_table(run->out, rates, BASE_ARRAY_LEN(rates), rows);
		(void)fputs("\nits parts: until the handler has seen the fault, the read, until "
			    "the thread goes on\n",
			    run->out);
		perf_table(run->out, parts, BASE_ARRAY_LEN(parts), rows);
		(void)fputs("GB/s: 10^9 bytes a second; us: microseconds; busy: of all CPUs of "
			    "that host; GB/CPU-s: for a second of CPU of both processes\n",
			    run->out);
	}
	json_decref(rows);
	print_skipped(run);
}

int perf_verb_fault(struct perf_run *run, struct mf_error *err)
{
	const char *transports[PERF_SLOTS];
	unsigned n;

	int ret = perf_links_transports(run, transports, &n, err);
	if (!ret)
		ret = measure_all(run, transports, n, err);
	if (!ret)
		print(run);
	return ret;
}
