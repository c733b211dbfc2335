/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Two ends of a transport in one process: "near" connects and posts, "far" listens, lends its
 * memory and has one thread per lane that does nothing but wait (TP_CAP_TARGET_PROGRESS).
 * Anything that goes wrong in here fails the running cmocka test.
 */
#ifndef TP_RIG_H
#define TP_RIG_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "transport/transport.h"

#define RIG_LANES_MAX 4
/* For what must happen; far beyond what a loaded machine takes. */
#define RIG_PATIENCE_MS 60000u

struct rig_params {
	const struct tp_ops *near_ops, *far_ops;
	uint32_t depth;
	unsigned n_lanes;
	uint64_t bytes; /* of memory at each end */
	uint32_t far_access;
	uint64_t silence_ms;
	bool on_demand;
	uint32_t receives;
	const struct tp_seal *seal; /* NULL: one that both ends have, where one is needed */
};

struct rig_pump {
	struct rig *rig;
	struct tp_lane *lane;
	pthread_t thread;
	_Atomic bool stop, shut_lane;
	_Atomic int ended; /* the code with which the lane failed */
	/* What the thread shall do in between, and that it has. */
	void (*_Atomic call)(struct tp_lane *lane, void *arg);
	void *call_arg;
	sem_t called;
	/* Messages that came, and receives that ended otherwise. */
	struct tp_wc mail[64];
	_Atomic unsigned n_mail;
};

struct rig {
	struct rig_params params;
	uint8_t token[TP_TOKEN_SIZE];
	struct tp_domain *near_domain, *far_domain;
	struct tp_listener *listener;
	char addr[TP_ADDR_MAX];
	uint8_t *near_mem, *far_mem;
	/* The same pages as far_mem, mapped again: how the far host's CPUs see them. */
	uint8_t *far_view;
	struct tp_mr *near_mr, *far_mr;
	struct tp_remote far_remote;
	struct tp_lane *lane[RIG_LANES_MAX];
	struct rig_pump pump[RIG_LANES_MAX];
};

/* An address of this host that the transport can use: $MEMFERRY_TEST_HOST, or 127.0.0.1. */
const char *rig_host(void);

/* Of sealed transports, unless a test says otherwise. */
extern struct tp_seal rig_seal;

/* Completions by cookie, which are indices here. */
#define LEDGER_MAX 65536u
struct ledger {
	uint32_t n_done, n_failed;
	uint8_t seen[LEDGER_MAX];
	int status[LEDGER_MAX];
};

void rig_open(struct rig *rig, const struct rig_params *params);
/* One more lane, over the same domains. */
void rig_add_lane(struct rig *rig, unsigned nr);
/* Shuts, drains and closes both ends of it. */
void rig_drop_lane(struct rig *rig, unsigned nr);
void rig_close(struct rig *rig);
/* Makes the far end of the lane shut it down. */
void rig_shut_far(struct rig *rig, unsigned nr);
/* Has the owner of the lane's far end call this, and waits for it. */
void rig_on_far(struct rig *rig, unsigned nr, void (*call)(struct tp_lane *lane, void *arg),
		void *arg);

/* Accepts one lane at the far end, in a thread that is to be joined. */
struct rig_acceptor {
	pthread_t thread;
	struct tp_listener *listener;
	uint8_t token[TP_TOKEN_SIZE];
	uint64_t deadline_us;
	struct tp_lane *lane;
	int ret;
	struct mf_error err;
};
void rig_start_acceptor(const struct rig *rig, struct rig_acceptor *acceptor, uint64_t deadline_us);

/* An operation between the same offset of both memories; the cookie is given. */
struct tp_xfer rig_xfer(const struct rig *rig, uint64_t near_at, uint64_t far_at, uint64_t len,
			uint64_t cookie);

/* Polls, and waits in between, until `n` completions in all are in the ledger. */
void ledger_collect(struct ledger *ledger, struct tp_lane *lane, uint32_t n);
/* The same until the lane says that it has failed; returns the code. */
int ledger_collect_failure(struct ledger *ledger, struct tp_lane *lane);
/* One poll; what tp_lane_poll() returned. */
int ledger_poll(struct ledger *ledger, struct tp_lane *lane, unsigned n);
/* Posts a flush and collects up to and including it. */
void ledger_flush(struct ledger *ledger, struct tp_lane *lane, uint64_t cookie);
/* Posts all of a batch, collecting where the queue is full. */
void ledger_post(struct ledger *ledger, struct tp_lane *lane, const struct tp_xfer *xfer,
		 unsigned n, int (*post)(struct tp_lane *, const struct tp_xfer *, unsigned));

#endif
