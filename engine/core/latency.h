/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A histogram of microseconds with bounded error: each power of two is divided into 16 equal
 * parts, so a percentile is right within 1/16.  One writer; no allocation.
 */
#ifndef CORE_LATENCY_H
#define CORE_LATENCY_H

#include <stdint.h>

enum { LATENCY_POWERS = 32, LATENCY_PARTS = 16 };

struct latency {
	uint64_t count, max;
	uint32_t bucket[LATENCY_POWERS * LATENCY_PARTS];
};

void latency_add(struct latency *l, uint64_t us);
/* The least value that `share` (0 to 1) of all are at or below, rounded up to its bucket's end. */
uint64_t latency_percentile(const struct latency *l, double share);
/* Counts by power of two: [i] is 2^i <= us < 2^(i+1); [0] also holds 0. */
void latency_log2(const struct latency *l, uint64_t ret[LATENCY_POWERS]);

#endif
