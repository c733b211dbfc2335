/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connections that have not said yet what they want.  Several are open at a time, each with a deadline, so that
 * one that is silent, drips bytes or fails to prove who it is keeps nobody else waiting.
 */
#ifndef WIRE_ACCEPT_H
#define WIRE_ACCEPT_H

#include "wire/channel.h"

#define WIRE_PENDING_MAX 8

struct wire_acceptor;

struct wire_acceptor_params {
	int listen_fd; /* borrowed until close */
	/* Of every channel.  handshake_ms is also what the first message may take. */
	struct wire_channel_params channel;
	void (*on_refused)(void *ctx,
			   const char *why); /* out of wire_acceptor_next(); NULL: nobody cares */
	void *ctx;
};

int wire_acceptor_open(const struct wire_acceptor_params *params,
		       struct wire_acceptor **ret_acceptor, struct mf_error *err);
/* The first that is secure and has said something: its first message waits, the channel is the caller's.  -EINTR: the
 * notify_fd of the channels became readable, which the caller takes before it calls again; -ETIMEDOUT. */
int wire_acceptor_next(struct wire_acceptor *acceptor, uint64_t deadline_us,
		       struct wire_channel **ret_channel, struct mf_error *err);
/* NULL: nothing.  Those that wait are hung up on. */
void wire_acceptor_close(struct wire_acceptor *acceptor);

#endif
