/* SPDX-License-Identifier: BSD-2-Clause */
/* memferry-perf lat: perftest's table, line by line as it is measured; then what perftest does not tell. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "perf/bw.h"
#include "perf/doc.h"
#include "perf/links.h"
#include "perf/verbs.h"

#define DEFAULT_SIZE  2u
#define DEFAULT_ITERS 1000u
#define SMALLEST      2u
#define LARGEST       (UINT64_C(1) << 23)
#define ALIGNMENT     64u
#define STEP          1.1 /* of the histogram's bounds */
#define BUCKETS_MAX   400u
#define RULE                                                                                      \
	"---------------------------------------------------------------------------------------" \
	"\n"

/* Each side writes from one half and looks at the other. */
static uint64_t bytes_for(uint64_t size)
{
	return 2 * ((size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

static void print_head(const struct perf_run *run, const struct perf_path *path)
{
	const struct perf_options *o = run->o;

	(void)fprintf(run->out,
		      RULE "                    RDMA_%s Latency Test over %s\n"
			   " Events          : %s\n Device          : %s\n" RULE,
		      !strcmp(o->op, "read") ? "Read" : "Write", path->ops->kind,
		      o->events ? "ON" : "OFF",
		      path->device[0] ? path->device : "the sockets of the kernel");
	(void)fputs(
		o->duration_s
			? " #bytes        #iterations       t_avg[usec]    tps average\n"
			: " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    "
			  "t_avg[usec]    t_stdev[usec]   99% percentile[usec]   99.9% "
			  "percentile[usec] \n",
		run->out);
	(void)fflush(run->out);
}

static void print_row(const struct perf_run *run, uint64_t size, const struct perf_lat *lat)
{
	const struct perf_stats *us = &lat->us;

	if (run->o->duration_s)
		(void)fprintf(run->out,
			      " %-7" PRIu64 "       %-10" PRIu64 "        %-7.2f        %-7.2f\n",
			      size, lat->iterations, us->mean, us->mean > 0 ? 1e6 / us->mean : 0);
	else
		(void)fprintf(
			run->out,
			" %-7" PRIu64 " %-10" PRIu64 "     %-7.2f        %-7.2f      %-7.2f"
			"            %-7.2f        %-7.2f         %-7.2f                %-7.2f\n",
			size, lat->iterations, us->min, us->max, us->p50, us->mean, us->stdev,
			us->p99, us->p99_9);
	(void)fflush(run->out);
}

/* As perftest's -H and -U. */
static void print_all(const struct perf_run *run, struct perf_lat *lat)
{
	if (run->o->histogram)
		perf_sort(lat->samples_us, lat->iterations);
	(void)fputs("#, usec\n", run->out);
	for (uint64_t i = 0; i < lat->iterations; i++)
		(void)fprintf(run->out, "%" PRIu64 ", %g\n", i + 1, lat->samples_us[i]);
}

/* [[upper bound in us, samples up to it and above the one before], ...] */
static json_t *histogram_of(const struct perf_lat *lat)
{
	double *sorted base_cleanup(base_freep) = calloc(lat->iterations + 1, sizeof(double));
	json_t *array = json_array();
	uint64_t at = 0;

	if (!sorted || !lat->iterations)
		return array;
	memcpy(sorted, lat->samples_us, lat->iterations * sizeof(double));
	perf_sort(sorted, lat->iterations);
	double bound = sorted[0] > 0 ? sorted[0] : 0.001;
	for (unsigned b = 0; b < BUCKETS_MAX && at < lat->iterations; b++, bound *= STEP) {
		uint64_t before = at;
		if (b == BUCKETS_MAX - 1)
			bound = sorted[lat->iterations - 1];
		while (at < lat->iterations && sorted[at] <= bound)
			at++;
		if (at > before)
			(void)json_array_append_new(
				array, json_pack("[f,I]", bound, (json_int_t)(at - before)));
	}
	return array;
}

static json_t *make_row(const struct perf_run *run, const struct perf_path *path, uint64_t size,
			const struct perf_lat *lat, const struct perf_stats *medians)
{
	json_t *row = json_object(), *cpu = json_object();
	double bytes = (double)lat->iterations * (double)size;

	perf_put(cpu, "client", perf_cpu_json(&lat->client));
	perf_put(cpu, "server", perf_cpu_json(&lat->server));
	perf_put(row, "transport", json_string(path->ops->kind));
	perf_put(row, "device", json_string(path->device));
	perf_put(row, "peer_device", json_string(path->peer_device));
	perf_put(row, "op", json_string(run->o->op));
	perf_put(row, "bytes", json_integer((json_int_t)size));
	perf_put(row, "iterations", json_integer((json_int_t)lat->iterations));
	perf_put(row, "latency_us", perf_stats_json(&lat->us));
	perf_put(row, "medians_us", perf_stats_json(medians));
	perf_put(row, "histogram", histogram_of(lat));
	perf_put(row, "spread_percent",
		 json_real(medians->p50 > 0 ? 100 * (medians->max - medians->min) / medians->p50
					    : 0));
	perf_put(row, "bytes_per_cpu_s", json_real(perf_bytes_per_cpu_s(cpu, bytes)));
	perf_put(row, "cpu", cpu);
	return row;
}

static void free_all(struct perf_lat *all, unsigned n)
{
	for (unsigned i = 0; all && i < n; i++)
		free(all[i].samples_us);
	free(all);
}

static void take(struct perf_run *run, const struct perf_links *links, unsigned k, uint64_t size,
		 struct perf_lat *all, unsigned repeat, double *medians)
{
	struct perf_stats spread;

	for (unsigned i = 0; i < repeat; i++)
		medians[i] = all[i * links->n + k].us.p50;
	struct perf_lat *median = &all[perf_median_of(medians, repeat) * links->n + k];
	perf_stats_of(medians, repeat, &spread);
	perf_doc_add(run->doc, make_row(run, &links->path[k], size, median, &spread));
	if (links->n == 1)
		print_row(run, size, median);
	if (run->o->histogram || run->o->unsorted)
		print_all(run, median);
}

static int measure(struct perf_run *run, struct perf_links *links, uint64_t size,
		   struct mf_error *err)
{
	const struct perf_options *o = run->o;
	const struct perf_plan plan = { .is_read = !strcmp(o->op, "read"),
					.size = size,
					.span = size,
					.iterations = o->duration_s   ? 0
						      : o->iterations ? o->iterations
								      : DEFAULT_ITERS,
					.duration_ms = o->duration_s * 1000,
					.batch = 1,
					.sleep = o->events };
	unsigned repeat = (unsigned)o->repeat, n = repeat * links->n;
	struct perf_lat *all = calloc(n, sizeof(*all));
	double *medians base_cleanup(base_freep) = calloc(repeat, sizeof(*medians));
	int ret = all && medians ? 0 : base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");

	for (unsigned i = 0; !ret && i < n; i++) {
		struct perf_path *path = &links->path[i % links->n];
		perf_progress("lat %s %s %" PRIu64 " bytes, %u of %u", path->ops->kind, o->op, size,
			      i / links->n + 1, repeat);
		ret = perf_lat_run(run->peer, path, &plan, &all[i], err);
	}
	perf_progress_end();
	for (unsigned k = 0; !ret && k < links->n; k++)
		take(run, links, k, size, all, repeat, medians);
	free_all(all, n);
	return ret;
}

static void print_side_by_side(const struct perf_run *run)
{
	static const struct perf_column columns[] = {
		{ "bytes", "#bytes", "%.0f", 0 },
		{ "verbs.latency_us.p50", "verbs p50[us]", "%.2f", 0 },
		{ "tcp.latency_us.p50", "tcp p50[us]", "%.2f", 0 },
		{ "ratio", "tcp/verbs", "%.2f", 0 },
		{ "verbs.latency_us.p99", "verbs p99", "%.2f", 0 },
		{ "tcp.latency_us.p99", "tcp p99", "%.2f", 0 },
	};

	perf_links_table(run, columns, BASE_ARRAY_LEN(columns), "latency_us.p50", true);
}

static void print_more(const struct perf_run *run)
{
	static const struct perf_column columns[] = {
		{ "transport", "transport", NULL, 0 },
		{ "bytes", "#bytes", "%.0f", 0 },
		{ "latency_us.p50", "p50[us]", "%.2f", 0 },
		{ "latency_us.p90", "p90", "%.2f", 0 },
		{ "latency_us.p99", "p99", "%.2f", 0 },
		{ "latency_us.p99_9", "p99.9", "%.2f", 0 },
		{ "latency_us.max", "max", "%.2f", 0 },
		{ "spread_percent", "spread of p50[%]", "%.0f", 0 },
		{ "cpu.client.host_busy_percent", "client busy[%]", "%.0f", 0 },
		{ "cpu.server.host_busy_percent", "server busy[%]", "%.0f", 0 },
		{ "bytes_per_cpu_s", "MB/CPU-s", "%.3f", 1e-6 },
	};

	(void)fprintf(run->out, "\nthe run with the median p50 of %u%s\n", (unsigned)run->o->repeat,
		      strcmp(run->o->op, "read") ? "; half of there and back" : "");
	perf_table(run->out, columns, BASE_ARRAY_LEN(columns), perf_doc_rows(run->doc));
	(void)fputs("us: 10^-6 s; busy: of all CPUs of that host; MB: 10^6 bytes, for a second of "
		    "CPU of both "
		    "processes\n",
		    run->out);
}

int perf_verb_lat(struct perf_run *run, struct mf_error *err)
{
	const struct perf_options *o = run->o;
	uint64_t first = o->all_sizes ? SMALLEST : o->size ? o->size : DEFAULT_SIZE;
	uint64_t last = o->all_sizes ? LARGEST : first;
	struct perf_links links;

	int ret = perf_links_open(run, bytes_for(last), &links, err);
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
