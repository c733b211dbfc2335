/* SPDX-License-Identifier: BSD-2-Clause */
/* Monotonic time in microseconds, and absolute deadlines made of it. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define BASE_NEVER UINT64_MAX

static inline uint64_t base_now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint64_t base_now_us(void)
{
	return base_now_ns() / 1000u;
}

static inline uint64_t base_deadline_ms(uint64_t ms)
{
	uint64_t now = base_now_us();
	return ms < (BASE_NEVER - now) / 1000u ? now + ms * 1000u : BASE_NEVER;
}

/* What is left until the deadline, for poll(2): rounded up, 0 when past, -1 for never. */
static inline int base_left_ms(uint64_t deadline_us)
{
	if (deadline_us == BASE_NEVER)
		return -1;
	uint64_t now = base_now_us();
	if (now >= deadline_us)
		return 0;
	uint64_t ms = (deadline_us - now + 999u) / 1000u;
	return ms > INT32_MAX ? INT32_MAX : (int)ms;
}

#endif
