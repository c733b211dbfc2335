/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The control channel: whole, validated messages over one connected socket, with a thread of its
 * own that reads, pings and notices silence, so that a long call of the session's thread never
 * looks like a dead host.
 *
 * Failures are sticky: after one, every send and receive returns it.
 */
#ifndef WIRE_CHANNEL_H
#define WIRE_CHANNEL_H

#include "wire/frame.h"

struct wire_channel;

/* Takes *fd (set to -1).  notify_fd: an eventfd, written whenever a message or a failure is there to be
 * read; borrowed until close. */
int wire_channel_open(int *fd, uint64_t peer_timeout_ms, int notify_fd,
		      struct wire_channel **ret_channel, struct mf_error *err);
/* Any thread.  Blocks at most the peer timeout. */
int wire_channel_send(struct wire_channel *channel, const wire_msg *msg, struct mf_error *err);
/* Owner thread; never blocks.  1: *ret is the caller's to free; 0: nothing yet; negative: the channel failed and all
 * that came before was read (-ECONNRESET closed by the peer, -ETIMEDOUT silent, -EBADMSG malformed). */
int wire_channel_next(struct wire_channel *channel, wire_msg **ret, struct mf_error *err);
/* NULL: nothing.  What was sent is on its way. */
void wire_channel_close(struct wire_channel *channel);

#endif
