/* SPDX-License-Identifier: BSD-2-Clause */
/* Bytes by slices of time, of a run whose length is not known before: when they are used up, each becomes twice as long. */
#ifndef PERF_SLICES_H
#define PERF_SLICES_H

#include <stdint.h>

#include "perf/stats.h"

#define SLICES_MAX      4096u
#define SLICES_FIRST_US 1000u

struct slices {
	uint64_t start_us, width_us;
	uint32_t n; /* begun */
	uint64_t bytes[SLICES_MAX];
};

void slices_start(struct slices *s, uint64_t now_us);
void slices_add(struct slices *s, uint64_t now_us, uint64_t bytes);
/* Doubles the width until it is at least width_us. */
void slices_widen(struct slices *s, uint64_t width_us);
/* Adds `other`, which has the same width, slice by slice: lanes that began together. */
void slices_merge(struct slices *s, const struct slices *other);
/* Rates of whole slices; the last one, which is not, counts only where it is the only one.  Slices are widened until, at the mean, at least
 * `few` operations of op_bytes end in each, as long as ten are left: with less, they would tell the size of the operations; and until operations end in three of four: completions come in batches. */
void slices_rates(struct slices *s, uint64_t end_us, uint64_t op_bytes, unsigned few,
		  struct perf_stats *ret);

#endif
