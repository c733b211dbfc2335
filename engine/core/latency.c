/* SPDX-License-Identifier: BSD-2-Clause */
#include "core/latency.h"

static unsigned power_of(uint64_t us)
{
	return us ? 63u - (unsigned)__builtin_clzll(us) : 0;
}

static unsigned bucket_of(uint64_t us)
{
	if (us < LATENCY_PARTS) /* exact below 16 */
		return (unsigned)us;
	unsigned power = power_of(us);
	if (power >= LATENCY_POWERS)
		return LATENCY_POWERS * LATENCY_PARTS - 1;
	return power * LATENCY_PARTS + (unsigned)((us >> (power - 4)) & (LATENCY_PARTS - 1));
}

static uint64_t bucket_end(unsigned bucket)
{
	if (bucket < LATENCY_PARTS)
		return bucket;
	unsigned power = bucket / LATENCY_PARTS, part = bucket % LATENCY_PARTS;
	return (((uint64_t)LATENCY_PARTS + part + 1) << (power - 4)) - 1;
}

void latency_add(struct latency *l, uint64_t us)
{
	l->bucket[bucket_of(us)]++;
	l->count++;
	if (us > l->max)
		l->max = us;
}

uint64_t latency_percentile(const struct latency *l, double share)
{
	uint64_t seen = 0;
	for (unsigned b = 0; b < LATENCY_POWERS * LATENCY_PARTS; b++) {
		seen += l->bucket[b];
		if (l->bucket[b] && (double)seen >= share * (double)l->count)
			return bucket_end(b) < l->max ? bucket_end(b) : l->max;
	}
	return l->max;
}

void latency_log2(const struct latency *l, uint64_t ret[LATENCY_POWERS])
{
	for (unsigned i = 0; i < LATENCY_POWERS; i++)
		ret[i] = 0;
	for (unsigned b = 0; b < LATENCY_POWERS * LATENCY_PARTS; b++) {
		if (l->bucket[b]) /* those between the exact ones and 2^4 are never used */
			ret[power_of(bucket_end(b))] += l->bucket[b];
	}
}
