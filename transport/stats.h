/* SPDX-License-Identifier: BSD-2-Clause */
/* Counters of lanes: only the owner writes them, others may look at any time. */
#ifndef TRANSPORT_STATS_H
#define TRANSPORT_STATS_H

#include "transport/transport.h"

static inline void tp_count(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static inline void tp_copy_stats(const struct tp_lane_stats *stats, struct tp_lane_stats *ret)
{
	const uint64_t *from = (const uint64_t *)stats;
	uint64_t *to = (uint64_t *)ret;

	for (size_t i = 0; i < sizeof(*ret) / sizeof(uint64_t); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

#endif
