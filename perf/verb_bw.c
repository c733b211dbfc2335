/* SPDX-License-Identifier: BSD-2-Clause */
/* memferry-perf bw: perftest's table, line by line as it is measured; then what perftest does not tell. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "perf/bw.h"
#include "perf/doc.h"
#include "perf/links.h"
#include "perf/verbs.h"

#define DEFAULT_SIZE  65536u
#define DEFAULT_ITERS 5000u
#define SMALLEST      2u
#define LARGEST       (UINT64_C(1) << 23)
#define CYCLE         4096u /* perftest walks through so much with operations that are smaller */
#define REPEAT_MAX    1000u
#define MIB           1048576.0
#define RULE                                                                                      \
	"---------------------------------------------------------------------------------------" \
	"\n"

static uint64_t span_of(const struct perf_options *o, uint64_t size)
{
	uint64_t span = o->buffer ? o->buffer : CYCLE;

	return span > size ? span : size;
}

static void make_plan(const struct perf_options *o, uint64_t size, struct perf_plan *ret)
{
	uint64_t batch = o->batch > o->cq_mod ? o->batch : o->cq_mod;

	*ret = (struct perf_plan){
		.is_read = !strcmp(o->op, "read"),
		.size = size,
		.span = span_of(o, size),
		.iterations = o->duration_s   ? 0
			      : o->iterations ? o->iterations
					      : DEFAULT_ITERS,
		.duration_ms = o->duration_s * 1000,
		.batch = (uint32_t)(batch < o->depth ? batch : o->depth),
		.sleep = o->events,
		.both_ways = o->both_ways,
	};
}

static void print_head(const struct perf_run *run, const struct perf_path *path)
{
	const struct perf_options *o = run->o;
	const char *unit = o->report_gbits ? "Gb/sec" : "MiB/sec";

	(void)fprintf(run->out,
		      RULE "                    RDMA_%s BW Test over %s%s\n"
			   " Number of lanes : %-10u TX depth       : %u\n"
			   " Post list       : %-10u Events         : %s\n"
			   " Device          : %s\n" RULE,
		      !strcmp(o->op, "read") ? "Read" : "Write", path->ops->kind,
		      o->both_ways ? ", bidirectional" : "", path->n, path->limits.depth,
		      (unsigned)o->batch, o->events ? "ON" : "OFF",
		      path->device[0] ? path->device : "the sockets of the kernel");
	(void)fprintf(
		run->out,
		" #bytes     #iterations    BW peak[%s]    BW average[%s]   MsgRate[Mpps]%s\n",
		unit, unit, o->cpu_util ? "    CPU_Util[%]" : "");
	(void)fflush(run->out);
}

static double in_unit(const struct perf_options *o, double bytes_per_s)
{
	return o->report_gbits ? bytes_per_s * 8 / 1e9 : bytes_per_s / MIB;
}

static void print_row(const struct perf_run *run, uint64_t size, const struct perf_bw *bw)
{
	const struct perf_options *o = run->o;
	double busy = bw->client.host_us
			      ? 100.0 * (double)bw->client.host_busy_us / (double)bw->client.host_us
			      : 0;

	(void)fprintf(run->out,
		      " %-7" PRIu64 "    %-10" PRIu64
		      "       %-7.2f            %-7.2f             %-7.6f",
		      size, bw->iterations, in_unit(o, bw->slices.max), in_unit(o, bw->bytes_per_s),
		      bw->bytes_per_s / (double)size / 1e6);
	if (o->cpu_util)
		(void)fprintf(run->out, "        %-3.2f", busy);
	(void)fputc('\n', run->out);
	(void)fflush(run->out);
}

static void check_limits(struct perf_run *run, const struct perf_path *path, uint64_t size,
			 const struct perf_bw *bw)
{
	const struct perf_options *o = run->o;
	double average = in_unit(o, bw->bytes_per_s), rate = bw->bytes_per_s / (double)size / 1e6;

	if (o->limit_bw > 0 && average < o->limit_bw) {
		(void)fprintf(stderr, "%s, %" PRIu64 " bytes: %.2f %s is below the limit of %.2f\n",
			      path->ops->kind, size, average, o->report_gbits ? "Gb/s" : "MiB/s",
			      o->limit_bw);
		run->missed_limit = true;
	}
	if (o->limit_rate > 0 && rate < o->limit_rate) {
		(void)fprintf(stderr,
			      "%s, %" PRIu64
			      " bytes: %.6f million operations a second are below the limit of "
			      "%.6f\n",
			      path->ops->kind, size, rate, o->limit_rate);
		run->missed_limit = true;
	}
}

/* Of the run that is the median one; the spread is of all. */
static json_t *make_row(const struct perf_run *run, const struct perf_path *path,
			const struct perf_plan *plan, const struct perf_bw *bw,
			const struct perf_stats *spread)
{
	json_t *row = json_object(), *cpu = json_object();
	double bytes = (double)bw->iterations * (double)plan->size;

	perf_put(cpu, "client", perf_cpu_json(&bw->client));
	perf_put(cpu, "server", perf_cpu_json(&bw->server));
	perf_put(row, "transport", json_string(path->ops->kind));
	perf_put(row, "device", json_string(path->device));
	perf_put(row, "peer_device", json_string(path->peer_device));
	perf_put(row, "op", json_string(run->o->op));
	perf_put(row, "bidirectional", json_boolean(plan->both_ways));
	perf_put(row, "bytes", json_integer((json_int_t)plan->size));
	perf_put(row, "lanes", json_integer(path->n));
	perf_put(row, "depth", json_integer(path->limits.depth));
	perf_put(row, "iterations", json_integer((json_int_t)bw->iterations));
	perf_put(row, "seconds", json_real(bw->seconds));
	perf_put(row, "median_bytes_per_s", json_real(bw->bytes_per_s));
	perf_put(row, "bytes_per_s", perf_stats_json(spread));
	perf_put(row, "slices_bytes_per_s", perf_stats_json(&bw->slices));
	perf_put(row, "operations_per_s", json_real(bw->bytes_per_s / (double)plan->size));
	perf_put(row, "spread_percent",
		 json_real(spread->p50 > 0 ? 100 * (spread->max - spread->min) / spread->p50 : 0));
	perf_put(row, "bytes_per_cpu_s", json_real(perf_bytes_per_cpu_s(cpu, bytes)));
	perf_put(row, "cpu", cpu);
	return row;
}

/* The links take turns, so that what the hosts do meanwhile hits all of them. */
static int measure(struct perf_run *run, struct perf_links *links, uint64_t size,
		   struct mf_error *err)
{
	const struct perf_options *o = run->o;
	unsigned repeat = (unsigned)(o->repeat < REPEAT_MAX ? o->repeat : REPEAT_MAX);
	struct perf_bw *all base_cleanup(base_freep) =
		calloc((size_t)repeat * links->n, sizeof(*all));
	double *rates base_cleanup(base_freep) = calloc(repeat, sizeof(*rates));
	struct perf_plan plan;
	int ret = 0;

	if (!all || !rates)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	make_plan(o, size, &plan);
	for (unsigned i = 0; !ret && i < repeat * links->n; i++) {
		struct perf_path *path = &links->path[i % links->n];
		perf_progress("bw %s %s %" PRIu64 " bytes, %u of %u", path->ops->kind, o->op, size,
			      i / links->n + 1, repeat);
		ret = perf_bw_run(run->peer, path, &plan, &all[i], err);
	}
	perf_progress_end();
	for (unsigned k = 0; !ret && k < links->n; k++) {
		struct perf_stats spread;
		for (unsigned i = 0; i < repeat; i++)
			rates[i] = all[i * links->n + k].bytes_per_s;
		const struct perf_bw *median = &all[perf_median_of(rates, repeat) * links->n + k];
		perf_stats_of_rates(rates, repeat, &spread);
		perf_doc_add(run->doc, make_row(run, &links->path[k], &plan, median, &spread));
		check_limits(run, &links->path[k], size, median);
		if (links->n == 1)
			print_row(run, size, median);
	}
	return ret;
}

/* One line a size, the transports next to each other. */
static void print_side_by_side(const struct perf_run *run)
{
	static const struct perf_column columns[] = {
		{ "bytes", "#bytes", "%.0f", 0 },
		{ "verbs.median_bytes_per_s", "verbs[GB/s]", "%.3f", 1e-9 },
		{ "tcp.median_bytes_per_s", "tcp[GB/s]", "%.3f", 1e-9 },
		{ "ratio", "verbs/tcp", "%.2f", 0 },
		{ "verbs.spread_percent", "verbs spread[%]", "%.0f", 0 },
		{ "tcp.spread_percent", "tcp spread[%]", "%.0f", 0 },
		{ "verbs.bytes_per_cpu_s", "verbs[GB/CPU-s]", "%.3f", 1e-9 },
		{ "tcp.bytes_per_cpu_s", "tcp[GB/CPU-s]", "%.3f", 1e-9 },
	};

	perf_links_table(run, columns, BASE_ARRAY_LEN(columns), "median_bytes_per_s", false);
}

static void print_more(const struct perf_run *run)
{
	static const struct perf_column columns[] = {
		{ "transport", "transport", NULL, 0 },
		{ "bytes", "#bytes", "%.0f", 0 },
		{ "median_bytes_per_s", "GB/s", "%.3f", 1e-9 },
		{ "median_bytes_per_s", "Gb/s", "%.2f", 8e-9 },
		{ "spread_percent", "spread[%]", "%.0f", 0 },
		{ "slices_bytes_per_s.p50", "p50[GB/s]", "%.3f", 1e-9 },
		{ "slices_bytes_per_s.p90", "p90", "%.3f", 1e-9 },
		{ "slices_bytes_per_s.p99", "p99", "%.3f", 1e-9 },
		{ "slices_bytes_per_s.p99_9", "p99.9", "%.3f", 1e-9 },
		{ "cpu.client.host_busy_percent", "client busy[%]", "%.0f", 0 },
		{ "cpu.server.host_busy_percent", "server busy[%]", "%.0f", 0 },
		{ "bytes_per_cpu_s", "GB/CPU-s", "%.3f", 1e-9 },
	};

	(void)fprintf(
		run->out,
		"\nmedian of %u, with what 50, 90, 99 and 99.9 %% of its time slices reached\n",
		(unsigned)run->o->repeat);
	perf_table(run->out, columns, BASE_ARRAY_LEN(columns), perf_doc_rows(run->doc));
	(void)fputs(
		"GB/s: 10^9 bytes a second; Gb/s: 10^9 bits a second; MiB/s: 2^20 bytes a second\n"
		"busy: of all CPUs of that host; GB/CPU-s: for a second of CPU of both processes\n",
		run->out);
}

int perf_verb_bw(struct perf_run *run, struct mf_error *err)
{
	const struct perf_options *o = run->o;
	uint64_t first = o->all_sizes ? SMALLEST : o->size ? o->size : DEFAULT_SIZE;
	uint64_t last = o->all_sizes ? LARGEST : first;
	struct perf_links links;

	int ret = perf_links_open(run, span_of(o, last), &links, err);
	if (ret)
		return ret;
	if (links.n == 1)
		print_head(run, &links.path[0]);
	for (uint64_t size = first; !ret && size <= last; size *= 2)
		ret = measure(run, &links, size, err);
	if (links.n == 1)
		(void)fputs(RULE, run->out);
	if (!ret && links.n > 1)
		print_side_by_side(run);
	if (!ret)
		print_more(run);
	perf_links_close(run, &links);
	return ret;
}
