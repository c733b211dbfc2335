/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the tests of one host have in common.  Their options come as JSON, by the names of the command line, and from
 * another host maybe: everything is checked here, with sentences that name the option.
 */
#ifndef PERF_LOCAL_H
#define PERF_LOCAL_H

#include <stdint.h>

#include <jansson.h>

#include "base/error.h"
#include "perf/cpu.h"
#include "perf/options.h"

#define LOCAL_PAGE        UINT64_C(4096) /* least size of anything */
#define LOCAL_BYTES_MAX   (UINT64_C(1) << 40)
#define LOCAL_THREADS_MAX 256u
#define LOCAL_REPEAT_MAX  1000u

int local_register(const json_t *options, uint64_t max_bytes, json_t *ret_rows,
		   struct mf_error *err);
int local_scan(const json_t *options, uint64_t max_bytes, json_t *ret_rows, struct mf_error *err);
int local_track(const json_t *options, uint64_t max_bytes, json_t *ret_rows, struct mf_error *err);

/* -MF_EUSAGE. */
int local_number(const json_t *options, const char *name, uint64_t min, uint64_t max, uint64_t *ret,
		 struct mf_error *err);
int local_list(const json_t *options, const char *name, uint64_t min, uint64_t max,
	       struct perf_list *ret, struct mf_error *err);
/* --page: powers of two, at least this machine's pages. */
int local_pages(const json_t *options, struct perf_list *ret, struct mf_error *err);
/* What a server lets its clients have: -MF_EREFUSED. */
int local_allow(uint64_t bytes, uint64_t max_bytes, struct mf_error *err);

/* Fresh zeroes, shared as a guest's RAM is, none of them touched; the caller's to munmap().  A page that is not the
 * machine's is of the huge pages that the host keeps: -ENOMEM when it has too few, -EINVAL when it knows no such. */
int local_map(uint64_t bytes, uint64_t page, void **ret, struct mf_error *err);
uint64_t local_base_page(void);
/* First touch of all of it; whole pages. */
int local_populate(void *at, uint64_t bytes, uint64_t page, struct mf_error *err);

/* Rows.  samples are sorted; scaled by `scale` first. */
void local_put_times(json_t *row, const char *key, double *samples, size_t n, double scale);
/* Also median_<key> and spread_percent, (max - min) / median, which stand for the row. */
void local_put_rates(json_t *row, const char *key, double *samples, size_t n);
/* bytes: that were gone through meanwhile, for bytes_per_cpu_s; 0: leaves that out. */
void local_put_cpu(json_t *row, const struct perf_cpu *spent, double bytes);
/* Adds to *total what has gone by since start. */
void local_add_cpu(struct perf_cpu *total, const struct perf_cpu *start);
/* Why the row has no figures: the error's sentence, which is then over. */
void local_put_skipped(json_t *row, struct mf_error *err);

#endif
