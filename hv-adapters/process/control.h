/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The messages between the adapter and the demo guest's process: a request, and one answer with its number, over a
 * SOCK_SEQPACKET pair.  Both ends are one program, so the struct itself is the format.
 */
#ifndef HV_PROCESS_CONTROL_H
#define HV_PROCESS_CONTROL_H

#include <stddef.h>
#include <stdint.h>

#include "hv-adapters/process/process.h"
#include "hv-adapters/process/state.h"

enum control_op {
	CTL_START,       /* arg: 1: fill the memory and run; 0: stay empty and wait */
	CTL_STATUS,      /* status */
	CTL_PAUSE,       /* → arg: when the last writer stopped, monotonic µs */
	CTL_RUN,         /* the writers run; running already: nothing */
	CTL_SAVE,        /* stopped only; → bytes */
	CTL_LOAD,        /* stopped only; bytes */
	CTL_THROTTLE,    /* arg: percent */
	CTL_USERFAULTFD, /* → a descriptor along with the answer */
	CTL_CLOSE_UFFDS,
	CTL_FORGET, /* MADV_DONTNEED on the RAM */
	CTL_VERIFY, /* stopped only: begin checking every page */
	CTL_VERIFY_WAIT, /* → arg: 1 when that is done; else after a while, see status.verified_pages */
	CTL_END,         /* answers, then exits */
};

struct control_message {
	uint32_t op;
	uint32_t seq;
	int32_t code; /* 0 or negative errno */
	uint32_t len; /* of bytes */
	uint64_t arg;
	struct hv_process_status status; /* with every answer */
	unsigned char bytes[STATE_MAX];
};

static inline size_t control_size(const struct control_message *msg)
{
	return offsetof(struct control_message, bytes) + msg->len;
}

#endif
