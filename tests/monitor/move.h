/* SPDX-License-Identifier: BSD-2-Clause */
/* One side of a move of a machine: all that the monitor knows of sessions. */
#ifndef MONITOR_MOVE_H
#define MONITOR_MOVE_H

#include <pthread.h>
#include <stdbool.h>

#include <memferry/session.h>

#include "machine.h"

struct move_params {
	const char *address; /* source: where to; destination: where to listen, port 0 picks one */
	const char *run_dir;
	enum mf_mode mode;
	const char *tracker;   /* NULL: the best */
	const char *transport; /* NULL: "tcp" */
	bool verify;
	uint64_t max_bandwidth; /* 0: no limit */
	bool loud;              /* events go to stdout */
};

struct move {
	struct mf_adapter adapter;
	struct mf_session *session;
	bool loud;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	char address[MF_ADDRESS_MAX]; /* under the lock: where it listens */
	enum mf_phase phase;          /* likewise */
};

/* Opens the machine's adapter and starts a session in a thread of its own.  Source or destination: as the machine was
 * opened.  move_end() is due only when it returns 0. */
int move_start(struct move *move, struct machine *m, const struct move_params *params,
	       struct mf_error *err);
/* Destination: where it listens; NULL: it does not. */
const char *move_address(struct move *move);
/* Until the session is in that phase or a later one; false: not within a minute. */
bool move_await(struct move *move, enum mf_phase phase);
/* Waits for the end, a minute and more; as mf_session_wait(). */
int move_wait(struct move *move, struct mf_error *err);
const struct mf_report *move_report(const struct move *move);
void move_end(struct move *move);

#endif
