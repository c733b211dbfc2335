/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/stats.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "perf/doc.h"

static int ascending(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

void perf_sort(double *samples, size_t n)
{
	qsort(samples, n, sizeof(*samples), ascending);
}

/* The least (of rates: the greatest) that at least q (0 to 1) of the n > 0 do not pass: nearest rank. */
static double percentile(const double *sorted, size_t n, double q, bool rates)
{
	double rank = ceil(q * (double)n);
	size_t before = rank < 1 ? 0 : (size_t)rank - 1;

	before = before < n ? before : n - 1;
	return sorted[rates ? n - 1 - before : before];
}

/* By the mean first: sums of squares lose what is small next to them. */
static double deviation(const double *samples, size_t n, double mean)
{
	double sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += (samples[i] - mean) * (samples[i] - mean);
	return n > 1 ? sqrt(sum / (double)(n - 1)) : 0;
}

static void describe(double *samples, size_t n, bool rates, struct perf_stats *ret)
{
	double sum = 0;

	*ret = (struct perf_stats){ 0 };
	if (!n)
		return;
	perf_sort(samples, n);
	for (size_t i = 0; i < n; i++)
		sum += samples[i];
	*ret = (struct perf_stats){ .n = n,
				    .min = samples[0],
				    .max = samples[n - 1],
				    .mean = sum / (double)n,
				    .p50 = percentile(samples, n, 0.5, rates),
				    .p90 = percentile(samples, n, 0.9, rates),
				    .p99 = percentile(samples, n, 0.99, rates),
				    .p99_9 = percentile(samples, n, 0.999, rates) };
	ret->stdev = deviation(samples, n, ret->mean);
}

void perf_stats_of(double *samples, size_t n, struct perf_stats *ret)
{
	describe(samples, n, false, ret);
}

void perf_stats_of_rates(double *samples, size_t n, struct perf_stats *ret)
{
	describe(samples, n, true, ret);
}

json_t *perf_stats_json(const struct perf_stats *stats)
{
	json_t *o = json_object();

	perf_put(o, "n", json_integer((json_int_t)stats->n));
	perf_put(o, "min", json_real(stats->min));
	perf_put(o, "p50", json_real(stats->p50));
	perf_put(o, "p90", json_real(stats->p90));
	perf_put(o, "p99", json_real(stats->p99));
	perf_put(o, "p99_9", json_real(stats->p99_9));
	perf_put(o, "max", json_real(stats->max));
	perf_put(o, "mean", json_real(stats->mean));
	perf_put(o, "stdev", json_real(stats->stdev));
	return o;
}

/* It may be another host's word: what no count can be is 0, too. */
static size_t parse_count(const json_t *object)
{
	double n = perf_number(object, "n");

	return n >= 0 && n < 1e15 ? (size_t)n : 0;
}

void perf_stats_parse(const json_t *object, struct perf_stats *ret)
{
	*ret = (struct perf_stats){ .n = parse_count(object),
				    .min = perf_number(object, "min"),
				    .max = perf_number(object, "max"),
				    .mean = perf_number(object, "mean"),
				    .stdev = perf_number(object, "stdev"),
				    .p50 = perf_number(object, "p50"),
				    .p90 = perf_number(object, "p90"),
				    .p99 = perf_number(object, "p99"),
				    .p99_9 = perf_number(object, "p99_9") };
}

/* Ties go by place, so that exactly one has the rank. */
size_t perf_median_of(const double *samples, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		size_t before = 0;
		for (size_t j = 0; j < n; j++)
			before += samples[j] < samples[i] || (j < i && samples[j] <= samples[i]);
		if (before == (n - 1) / 2)
			return i;
	}
	return 0;
}
