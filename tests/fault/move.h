/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A whole move within the test's process: a source and a destination session in a thread each, on loopback, over
 * demo guests whose adapter, transport and control channel fail as a plan says.
 */
#ifndef FAULT_MOVE_H
#define FAULT_MOVE_H

#include <memferry/session.h>
#include <pthread.h>
#include <stdatomic.h>

#include "relay.h"
#include "transport/faulty/faulty.h"
#include "transport/sealed/sealed.h"

/* A callback of the adapter. */
enum step {
	STEP_NONE,
	STEP_DESCRIBE,
	STEP_PREPARE,
	STEP_USERFAULTFD,
	STEP_FORGET,
	STEP_PAUSE,
	STEP_SAVE,
	STEP_LOAD,
	STEP_RESUME,
	STEP_COUNT,
};

/* How a move may end. */
enum ending {
	MOVED,  /* whole at the destination, both sides know */
	STAYED, /* the source guest runs on */
	PAUSED, /* committed; pages are missing or nobody could resume it: the source guest stands still */
};

struct move;

struct side {
	struct move *move;
	enum mf_side which;

	/* the plan */
	enum step fail;  /* this callback fails */
	bool fail_after; /* when it has done its work */
	struct tp_faulty_plan faults;
	uint64_t peer_timeout_ms; /* 0: the move's */
	const char *key;          /* of the control channel, in hexadecimal; NULL: it is plain */
	enum mf_sealing sealing;

	/* what comes of it */
	struct mf_adapter guest;   /* the demo guest */
	struct mf_adapter_ops ops; /* its table, with our steps in between; hv is this struct */
	const struct tp_ops *tp;
	struct tp_sealed_table
		sealed; /* over tp, where the move is sealed: faults strike what is sealed */
	struct mf_session *session;
	pthread_t thread;
	bool started;
	int result;
	struct mf_error error;
	struct mf_report report;
	unsigned resumed, finished; /* calls that succeeded */
};

struct move {
	/* the plan; zeroes: a plain hybrid move */
	enum mf_mode mode;
	enum mf_verify verify;
	const char *guest; /* after "demo:"; NULL: a small one */
	uint32_t lanes;
	uint64_t peer_timeout_ms;    /* 0: 30 s */
	uint64_t recover_timeout_ms; /* 0: 60 s */
	struct relay_rule rule;      /* .body 0 and no hook: no relay */
	void (*on_phase)(struct side *side, enum mf_phase phase); /* in the session's thread */
	enum mf_phase phase;                                      /* for on_phase */
	enum mf_side at;                                          /* likewise */
	void (*on_notice)(struct side *side, const char *text);   /* likewise */
	void (*on_running)(struct side *side); /* likewise; before the source is told */
	/* The faulty transport stands for one of devices that are found by these paths, and plain TCP stands by.
	 * NULL: it is all there is. */
	int (*device_paths)(struct tp_path *ret, unsigned cap);
	const char *inner; /* the backend that the faulty one wraps; NULL: tcp */
	void (*before)(struct move *m, uint16_t port); /* the destination listens; main thread */
	enum mf_request request;                       /* for on_phase */

	/* what comes of it */
	struct side side[2];
	char run_dir[64];
	pthread_mutex_t lock; /* protects what follows */
	pthread_cond_t changed;
	uint16_t port; /* where the destination listens */
	bool destination_ended;
	bool rule_met;
	int fds, tasks; /* before */
};

/* Sets the plan's defaults. */
void move_init(struct move *m);
/* Opens the guests and runs both sessions out. */
void move_run(struct move *m);
/* Asserts that it ended so on both sides, that one guest runs and no page of it is wrong, and that
 * nothing is left over.  Closes all. */
void move_check(struct move *m, enum ending ending);
/* Without judging how it ended: only that nothing is left over. */
void move_close(struct move *m);
/* move_run() and move_check(). */
void move_expect(struct move *m, enum ending ending);

/* The guest of this side exists and does not run. */
void move_assert_stands_still(struct side *side);
/* In the session's thread: its control channel is cut, both ways. */
void move_cut_channel(struct side *side);
/* For on_phase, at m->phase of m->at: does m->request; loses its lanes, from there on; cuts its channel, once. */
void move_request_at(struct side *side, enum mf_phase phase);
void move_drop_lanes_at(struct side *side, enum mf_phase phase);
void move_cut_channel_at(struct side *side, enum mf_phase phase);
/* For on_notice: lanes are lost no more once the destination is looking for the source. */
void move_end_of_trouble(struct side *side, const char *text);
/* For device_paths: "one", at the loopback address. */
int move_one_device(struct tp_path *ret, unsigned cap);

#endif
