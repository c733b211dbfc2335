/* SPDX-License-Identifier: BSD-2-Clause */
/* What is random by a seed: splitmix64 (Steele, Lea and Flood, 2014). */
#ifndef PERF_RANDOM_H
#define PERF_RANDOM_H

#include <stdint.h>

#define PERF_RANDOM_STEP UINT64_C(0x9e3779b97f4a7c15)

/* Each number to another that looks random; 0 to itself. */
static inline uint64_t perf_mix(uint64_t x)
{
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static inline uint64_t perf_hash(uint64_t x)
{
	return perf_mix(x + PERF_RANDOM_STEP);
}

/* The next one of a sequence; *state begins as the seed. */
static inline uint64_t perf_random(uint64_t *state)
{
	return perf_mix(*state += PERF_RANDOM_STEP);
}

#endif
