/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What client and server say to each other: JSON objects, one a line, over TCP.  The client asks, the server
 * answers; nothing else is ever under way.  It is neither encrypted nor authenticated, as with perftest and iperf3.
 */
#ifndef PERF_PEER_H
#define PERF_PEER_H

#include <stdint.h>

#include <jansson.h>

#include "base/error.h"

#define PERF_DEFAULT_PORT 7742
#define PERF_LINE_MAX     (4u << 20) /* bytes of one object */
#define PERF_ANSWER_MS    30000u     /* for what takes the peer no time of its own */

struct perf_peer;

/* address: HOST or HOST:PORT.  Greets: both must speak the same version. */
int perf_peer_connect(const char *address, uint64_t deadline_us, struct perf_peer **ret,
		      struct mf_error *err);
/* Takes the connected socket over, also on failure.  Server: waits for the greeting. */
int perf_peer_accepted(int fd, uint64_t deadline_us, struct perf_peer **ret, struct mf_error *err);
void perf_peer_close(struct perf_peer *peer); /* NULL: nothing */
/* Ends whatever waits for it, from any thread. */
void perf_peer_shutdown(struct perf_peer *peer);

/* For poll(2): readable when something has come, or the other has ended. */
int perf_peer_fd(const struct perf_peer *peer);

/* Our address, and the other's, as the connection has them: without a port. */
const char *perf_peer_local(const struct perf_peer *peer);
const char *perf_peer_remote(const struct perf_peer *peer);

/* Takes msg over. */
int perf_peer_send(struct perf_peer *peer, json_t *msg, struct mf_error *err);
/* An object.  -ETIMEDOUT; -MF_EPEER: it is gone, or what it said makes no sense. */
int perf_peer_recv(struct perf_peer *peer, uint64_t deadline_us, json_t **ret,
		   struct mf_error *err);
/* Sends {"do": what, ...request} (takes request over, NULL: nothing more) and waits for the answer.  An answer
 * {"error": {"code", "message"}} is a failure with that message. */
int perf_peer_call(struct perf_peer *peer, const char *what, json_t *request, uint64_t deadline_us,
		   json_t **ret_answer, struct mf_error *err);
/* The server's answer for a failure. */
int perf_peer_send_error(struct perf_peer *peer, const struct mf_error *failure,
			 struct mf_error *err);

#endif
