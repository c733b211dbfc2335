/* SPDX-License-Identifier: BSD-2-Clause */
/* Waking whoever polls an eventfd (non-blocking), and taking the wake-up. */
#ifndef BASE_EVENT_H
#define BASE_EVENT_H

#include <stdint.h>
#include <unistd.h>

/* Async-signal-safe but for errno.  A full counter is no failure: somebody is woken anyway. */
static inline void base_event_poke(int fd)
{
	uint64_t one = 1;
	(void)!write(fd, &one, sizeof(one));
}

static inline void base_event_take(int fd)
{
	uint64_t n;
	(void)!read(fd, &n, sizeof(n));
}

#endif
