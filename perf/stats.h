/* SPDX-License-Identifier: BSD-2-Clause */
/* What many measurements of one thing come to. */
#ifndef PERF_STATS_H
#define PERF_STATS_H

#include <stddef.h>

#include <jansson.h>

struct perf_stats {
	size_t n; /* 0: all else is 0 too */
	double min, max, mean;
	double stdev; /* of the sample: divided by n - 1; 0 for one */
	double p50, p90, p99, p99_9;
};

void perf_sort(double *samples, size_t n); /* ascending */
/* Sorts samples, ascending. */
void perf_stats_of(double *samples, size_t n, struct perf_stats *ret);
/* The same for rates, where less is worse: p99 is what 99 % of the samples reach or exceed. */
void perf_stats_of_rates(double *samples, size_t n, struct perf_stats *ret);
/* {"n", "min", "p50", "p90", "p99", "p99_9", "max", "mean", "stdev"}; NULL when memory ran out. */
json_t *perf_stats_json(const struct perf_stats *stats);
/* What perf_stats_json() made; what is missing is 0. */
void perf_stats_parse(const json_t *object, struct perf_stats *ret);
/* Which of n > 0 samples is the median one (nearest rank); n at most 1000. */
size_t perf_median_of(const double *samples, size_t n);

#endif
