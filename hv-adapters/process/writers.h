/* SPDX-License-Identifier: BSD-2-Clause */
/* The demo guest's vCPUs: threads that fill, rewrite, check and verify the pages they own, as ordered. */
#ifndef HV_PROCESS_WRITERS_H
#define HV_PROCESS_WRITERS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "hv-adapters/process/state.h"

enum order {
	ORDER_HOLD,   /* idle; guest RAM is not touched */
	ORDER_FILL,   /* stamp every page with generation 0, once */
	ORDER_RUN,    /* be a guest, until another order comes */
	ORDER_VERIFY, /* check every page, once */
};

struct crew;

struct writer {
	struct crew *crew;
	uint32_t index;
	pthread_t thread;
	struct share share;
	uint64_t
		done; /* the last order of ORDER_FILL or ORDER_VERIFY that it carried out; under crew->lock */
	/* Written by the writer while it runs, by the control thread while it is held; read by anybody. */
	_Atomic uint64_t steps, heartbeat, wrong, passes, scan;
};

struct crew {
	/* Changed only while all writers are held. */
	struct options opt;
	struct plan plan;
	unsigned char *ram[GUEST_REGIONS];
	uint64_t *bad; /* a bit for each page found wrong here; atomic: neighbours share words */

	/* lock: order (also read without it, as a hint to look), orders, busy, stopped_us */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* to the writers: order */
	pthread_cond_t idle;    /* to the control thread: busy fell to 0 */
	_Atomic enum order order;
	uint64_t orders;     /* given so far */
	uint32_t left;       /* writers that have yet to carry out the fill or verify */
	uint32_t busy;       /* writers at work */
	uint64_t stopped_us; /* when the last one stopped */

	_Atomic uint32_t throttle; /* percent */
	_Atomic uint64_t verified; /* pages, by the last ORDER_VERIFY */
	struct writer writers[GUEST_THREADS];
};

/* All of these in the control thread. */
int crew_start(struct crew *crew); /* -errno; makes the threads, held */
void crew_order(struct crew *crew, enum order order);
/* True when no writer is at work and none has an order left to carry out.  Waits at most until the deadline. */
bool crew_wait(struct crew *crew, uint64_t deadline_us);

#endif
