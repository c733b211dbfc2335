/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Lanes between client and server over one transport, each with a domain and memory of its own on both ends, as
 * the engine has them.  The client connects, the server listens.
 *
 *   client                               server
 *   perf_path_open()     "path" ──▶      perf_path_serve()      opens, listens, answers, accepts
 *        connects        ◀── addresses, keys
 *   ... what the test says over the control connection, ...
 *   perf_path_end()      "done" ──▶      perf_path_close()
 */
#ifndef PERF_PATH_H
#define PERF_PATH_H

#include "perf/peer.h"
#include "transport/transport.h"

#define PERF_LANES_MAX 64u
#define PERF_SLOTS     2u

struct perf_path_params {
	const char *transport; /* "tcp", "verbs" */
	enum tp_sealing sealing;
	const char *
		device; /* ours; NULL: the one with the control connection's address, or the first that is up */
	int gid; /* index of our GID; -1: any */
	uint32_t
		slot; /* of the server's paths, below PERF_SLOTS: those of one number replace each other */
	uint32_t lanes;
	uint32_t depth;     /* operations in flight a lane */
	uint64_t bytes;     /* memory of each lane, on both ends */
	uint64_t page_size; /* 0: base pages; 2 MiB: of the host's huge pages */
	/* The client's own memory instead of fresh one, [0] for lane 0 and so on: `bytes` each; NULL: fresh. */
	void *const *memory;
};

struct perf_end {
	struct tp_domain *domain;
	struct tp_listener *listener; /* server, until accepted */
	struct tp_mr *mr;
	struct tp_lane *lane;
	uint8_t *mem;
	struct tp_remote remote; /* the peer's memory: it may be written and read */
};

struct perf_path {
	const struct tp_ops *ops;
	struct tp_seal
		seal; /* the token is the key: what sealing costs can be measured, nothing is kept secret */
	struct tp_limits limits;
	uint64_t bytes;
	uint32_t slot;
	uint32_t n;
	struct perf_end end[PERF_LANES_MAX];
	bool own_memory;
	char device[64]; /* ours; "" over tcp */
	char peer_device[64];
};

/* "verbs" or "tcp" for "auto": verbs where both hosts have a device that is up and it was built.  ret_why: a
 * sentence.  Asks the server. */
int perf_path_choose(struct perf_peer *peer, const char *wanted, const char **ret_transport,
		     char *ret_why, size_t cap, struct mf_error *err);

/* Client.  On failure *path is zeroed and nothing is open; the server has closed its own. */
int perf_path_open(struct perf_peer *peer, const struct perf_path_params *params,
		   struct perf_path *path, struct mf_error *err);
/* Server, on {"do": "path", ...}: has answered when it returns.  max_bytes: what the client may ask for, all lanes
 * together. */
int perf_path_serve(struct perf_peer *peer, const json_t *request, uint64_t max_bytes,
		    struct perf_path *path, struct mf_error *err);
void perf_path_close(struct perf_path *path); /* zeroed: nothing */
/* Client: has the server close its own first.  Closed in any case; zeroed: nothing. */
int perf_path_end(struct perf_peer *peer, struct perf_path *path, struct mf_error *err);

/* Threads that keep lanes going whose owner has nothing to post: for a passive side.  busy: poll without sleeping. */
struct perf_keepers;
int perf_keepers_start(struct perf_path *path, bool busy, struct perf_keepers **ret,
		       struct mf_error *err);
void perf_keepers_stop(struct perf_keepers *keepers); /* NULL: nothing; joins */

/* Posts all n, reaping what is complete while the queue is full.  *in_flight is kept. */
int perf_post_all(struct tp_lane *lane, bool is_read, const struct tp_xfer *xfer, unsigned n,
		  uint64_t *in_flight, struct mf_error *err);
/* Reaps up to what there is; sleep: waits for one until the deadline.  Number reaped, or a negative code. */
int perf_reap(struct tp_lane *lane, bool sleep, uint64_t deadline_us, uint64_t *in_flight,
	      struct mf_error *err);
/* Waits until all writes posted are visible at the peer. */
int perf_flush(struct tp_lane *lane, bool sleep, uint64_t deadline_us, uint64_t *in_flight,
	       struct mf_error *err);

#endif
