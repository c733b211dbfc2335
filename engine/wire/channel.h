/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The control channel: whole, validated messages over one connected socket, with a thread of its
 * own that reads, pings and notices silence, so that a long call of the session's thread never
 * looks like a dead host.
 *
 * With security, all of it goes over TLS: the handshake comes first, in that thread, and no message is parsed or
 * sent before it.  The server says Ping when it has accepted the client, which is silent until then.
 *
 * Failures are sticky: after one, every send and receive returns it.
 */
#ifndef WIRE_CHANNEL_H
#define WIRE_CHANNEL_H

#include "wire/frame.h"
#include "wire/security.h"

struct wire_channel;

struct wire_channel_params {
	/* An eventfd, written whenever it is secure, or a message or a failure is there to be read; borrowed until
	 * close. */
	int notify_fd;
	uint64_t peer_timeout_ms;
	const struct wire_security *security; /* NULL: plain; borrowed until close */
	const char *host;                     /* client: whom it connected to; copied */
	uint64_t handshake_ms;                /* until it is secure */
};

/* Takes *fd (set to -1). */
int wire_channel_open(int *fd, const struct wire_channel_params *params,
		      struct wire_channel **ret_channel, struct mf_error *err);
/* Owner thread.  1: both sides have accepted each other, messages may be sent (plain: at once); 0: not yet;
 * negative: it failed. */
int wire_channel_is_secure(struct wire_channel *channel, struct mf_error *err);
/* Owner thread.  1: wire_channel_next() has one; 0; negative: it failed. */
int wire_channel_has_message(struct wire_channel *channel, struct mf_error *err);
/* Once secure: a key that both ends get alike, for this label.  -EOPNOTSUPP when plain. */
int wire_channel_export(struct wire_channel *channel, const char *label, uint8_t *key, size_t len);
/* Its socket, to ask for addresses; the channel's. */
int wire_channel_fd(const struct wire_channel *channel);
/* Any thread, once secure.  Blocks at most the peer timeout. */
int wire_channel_send(struct wire_channel *channel, const wire_msg *msg, struct mf_error *err);
/* Owner thread; never blocks.  1: *ret is the caller's to free; 0: nothing yet; negative: the channel failed and all
 * that came before was read (-ECONNRESET closed by the peer, -ETIMEDOUT silent, -EBADMSG malformed,
 * -MF_ESECURITY not secure, or no partner for it). */
int wire_channel_next(struct wire_channel *channel, wire_msg **ret, struct mf_error *err);
/* NULL: nothing.  What was sent is on its way. */
void wire_channel_close(struct wire_channel *channel);

#endif
