/* SPDX-License-Identifier: BSD-2-Clause */
/* Who is measured with whom, and what became of it: without any host. */
#include "perf/mesh.h"

#include <stdlib.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "perf/random.h"
#include "perf/stats.h"

#define TURN_MS       60000u
#define REPETITION_MS 15000u

uint32_t perf_mesh_rounds(uint32_t n)
{
	return n & 1 ? n : n - 1;
}

/*
 * The last of an even number of places is fixed, the others go round: in a round, two of them meet whose sum is the
 * round's number, modulo their number; the one whose double that is meets the fixed one.  An odd number gets a fixed
 * place with nobody.
 */
uint32_t perf_mesh_partner(uint32_t n, uint32_t round, uint32_t place)
{
	uint32_t circle = n & 1 ? n : n - 1;

	if (place == circle) /* half of the round's number: circle is odd */
		return (uint32_t)((uint64_t)round * ((circle + 1) / 2) % circle);
	uint32_t other = (round % circle + circle - place) % circle;
	if (other != place)
		return other;
	return n & 1 ? place : circle;
}

void perf_mesh_shuffle(uint32_t n, uint64_t seed, uint32_t *ret_rank_at)
{
	for (uint32_t i = 0; i < n; i++) {
		uint32_t j = (uint32_t)(perf_random(&seed) % (i + 1));
		ret_rank_at[i] = ret_rank_at[j];
		ret_rank_at[j] = i;
	}
}

uint64_t perf_mesh_turn_ms(const struct perf_options *o)
{
	return TURN_MS + o->repeat * REPETITION_MS;
}

void perf_mesh_judge(json_t *rows, double share, struct perf_mesh_summary *ret)
{
	size_t n = json_array_size(rows), i;
	double *sorted base_cleanup(base_freep) = calloc(n + 1, sizeof(*sorted));
	json_t *row;

	*ret = (struct perf_mesh_summary){ 0 };
	if (!sorted || !n)
		return;
	json_array_foreach(rows, i, row) sorted[i] = perf_number(row, "bytes_per_s.p50");
	perf_sort(sorted, n);
	ret->min = sorted[0];
	ret->median = sorted[n / 2];
	ret->max = sorted[n - 1];
	json_array_foreach(rows, i, row)
	{
		bool slow = perf_number(row, "bytes_per_s.p50") < share * ret->median;
		perf_put(row, "slow", json_boolean(slow));
		ret->slow += slow;
	}
}

void perf_mesh_count(const json_t *rows, bool from, uint32_t rank, uint32_t *ret_all,
		     uint32_t *ret_slow)
{
	const char *key = from ? "from_rank" : "to_rank";
	size_t i;
	json_t *row;

	*ret_all = *ret_slow = 0;
	json_array_foreach(rows, i, row)
	{
		if (json_integer_value(json_object_get(row, key)) != (json_int_t)rank)
			continue;
		++*ret_all;
		*ret_slow += json_is_true(json_object_get(row, "slow"));
	}
}
