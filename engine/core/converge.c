/* SPDX-License-Identifier: BSD-2-Clause */
#include "core/converge.h"

/* A round this short says more about latency than about bandwidth. */
#define ENOUGH_BYTES (16u << 20)
/* A round shrinks when it leaves less than 7/8 of what the one before left: slower than that, eight times as
 * many rounds would not halve the downtime three times. */
#define SHRINK_NUM     7
#define SHRINK_DEN     8
#define STALLED_ROUNDS 2
/* Some workloads shrink for ever; after this many rounds the rest is small enough to pull. */
#define ROUNDS_MAX 30

static uint64_t predict_us(const struct converge *c, const struct converge_input *in)
{
	if (!c->bytes_per_s)
		return 0;
	double us = (double)in->dirty_bytes * 1e6 / (double)c->bytes_per_s;
	return (uint64_t)us + in->overhead_us;
}

enum converge_verdict converge_decide(struct converge *c, const struct converge_input *in,
				      uint64_t *ret_downtime_us)
{
	if (in->round_us &&
	    (in->round_bytes >= ENOUGH_BYTES || (!c->bytes_per_s && in->round_bytes)))
		c->bytes_per_s =
			(uint64_t)((double)in->round_bytes * 1e6 / (double)in->round_us) + 1;
	c->rounds++;
	bool shrank = c->rounds == 1 || in->dirty_bytes < c->last_dirty / SHRINK_DEN * SHRINK_NUM;
	c->stalled = shrank ? 0 : c->stalled + 1;
	c->last_dirty = in->dirty_bytes;

	uint64_t downtime = predict_us(c, in);
	*ret_downtime_us = downtime;

	bool is_safe = !in->safe_bytes || in->dirty_bytes <= in->safe_bytes;
	if (in->postcopy && is_safe)
		return CONVERGE_POSTCOPY;
	if (in->cutover)
		return CONVERGE_STOP;
	if (in->mode == MF_MODE_WARM)
		return CONVERGE_AGAIN;
	if (!in->dirty_bytes || (downtime && downtime <= in->max_downtime_us))
		return CONVERGE_STOP;
	if (c->stalled >= STALLED_ROUNDS || c->rounds >= ROUNDS_MAX)
		return in->mode == MF_MODE_HYBRID && is_safe ? CONVERGE_POSTCOPY : CONVERGE_STALLED;
	return CONVERGE_AGAIN;
}
