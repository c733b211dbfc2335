/* SPDX-License-Identifier: BSD-2-Clause */
/* The demo guest's process as the adapter sees it: spawned, asked over its control socket, ended. */
#ifndef HV_PROCESS_CHANNEL_H
#define HV_PROCESS_CHANNEL_H

#include <sys/types.h>

#include "base/error.h"
#include "hv-adapters/process/control.h"
#include "hv-adapters/process/guest.h"

struct channel {
	pid_t pid; /* 0: reaped, or never spawned */
	int pidfd;
	int sock;
	uint32_t seq;
};

/* Forks the guest; its process keeps no other descriptor of ours. */
int channel_spawn(struct guest *g, struct channel *ret, struct mf_error *err);
/* 0 while the process lives; else -ESRCH. */
int channel_alive(const struct channel *ch, struct mf_error *err);
/* Sends msg->op, arg and bytes; the answer replaces *msg.  ret_fd: NULL, or for the descriptor that comes with it
 * (-1: none).  Returns the answer's code without filling err (the caller knows what it asked), or -ESRCH when
 * the process is gone, -ETIMEDOUT past the deadline, with err filled. */
MF_MUST_CHECK int channel_call(struct channel *ch, struct control_message *msg, int *ret_fd,
			       uint64_t deadline_us, struct mf_error *err);
/* Waits for an end in order until the deadline (0: kills at once), then kills.  Returns the exit status, -1: killed. */
int channel_end(struct channel *ch, uint64_t deadline_us);

#endif
