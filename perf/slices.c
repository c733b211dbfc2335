/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/slices.h"

#include <assert.h>
#include <string.h>

#define SLICES_LEFT 10u

void slices_start(struct slices *s, uint64_t now_us)
{
	memset(s, 0, sizeof(*s));
	s->start_us = now_us;
	s->width_us = SLICES_FIRST_US;
}

static void halve(struct slices *s)
{
	uint32_t n = (s->n + 1) / 2;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t second = 2 * i + 1 < s->n ? s->bytes[2 * i + 1] : 0;
		s->bytes[i] = s->bytes[2 * i] + second;
	}
	memset(&s->bytes[n], 0, (s->n - n) * sizeof(s->bytes[0]));
	s->n = n;
	s->width_us *= 2;
}

void slices_add(struct slices *s, uint64_t now_us, uint64_t bytes)
{
	uint64_t after = now_us > s->start_us ? now_us - s->start_us : 0;

	while (after / s->width_us >= SLICES_MAX)
		halve(s);
	uint32_t at = (uint32_t)(after / s->width_us);
	s->bytes[at] += bytes;
	if (at >= s->n)
		s->n = at + 1;
}

void slices_widen(struct slices *s, uint64_t width_us)
{
	while (s->width_us < width_us)
		halve(s);
}

void slices_merge(struct slices *s, const struct slices *other)
{
	assert(s->width_us == other->width_us);
	for (uint32_t i = 0; i < other->n; i++)
		s->bytes[i] += other->bytes[i];
	s->n = s->n > other->n ? s->n : other->n;
}

static uint32_t count_empty(const struct slices *s)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->n; i++)
		n += !s->bytes[i];
	return n;
}

void slices_rates(struct slices *s, uint64_t end_us, uint64_t op_bytes, unsigned few,
		  struct perf_stats *ret)
{
	double rates[SLICES_MAX];
	uint64_t total = 0;
	uint32_t whole;

	for (uint32_t i = 0; i < s->n; i++)
		total += s->bytes[i];
	while (s->n > 2 * SLICES_LEFT &&
	       (total / s->n < (uint64_t)few * op_bytes || count_empty(s) > s->n / 4))
		halve(s);
	uint64_t took = end_us > s->start_us ? end_us - s->start_us : 1;
	whole = (uint32_t)(took / s->width_us);
	whole = whole < s->n ? whole : s->n;
	for (uint32_t i = 0; i < whole; i++)
		rates[i] = (double)s->bytes[i] * 1e6 / (double)s->width_us;
	if (!whole && total) {
		rates[0] = (double)total * 1e6 / (double)took;
		whole = 1;
	}
	perf_stats_of_rates(rates, whole, ret);
}
