/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A guest that lives in the test's own process, as a monitor that links the library has one: some memory, a thread that
 * writes it without end, and an adapter for it, written against the installed headers only.
 *
 * Each page carries how often it was written; the writer keeps the same numbers as its device state.  A page that is
 * touched and does not say what the writer knows was lost, or came too late.
 */
#ifndef LIBRARY_INSIDE_H
#define LIBRARY_INSIDE_H

#include <memferry/session.h>
#include <pthread.h>
#include <stdatomic.h>

#define INSIDE_PAGES 2048u /* 8 MiB */

enum inside_memory {
	INSIDE_FILE,    /* a memfd, known by its descriptor */
	INSIDE_SHARED,  /* anonymous and shared, known by its address */
	INSIDE_PRIVATE, /* anonymous and private, known by its address */
	INSIDE_KINDS,
};

struct inside {
	enum inside_memory kind;
	uint8_t *mem;
	int fd; /* -1: known by its address */
	uint32_t counts[INSIDE_PAGES];
	uint32_t writes;

	pthread_t writer;
	atomic_bool run, quit;   /* the writer's orders */
	atomic_bool is_standing; /* and its answer */
	atomic_uint wrong;       /* pages that did not say what they should */

	/* what was asked of it */
	pthread_t callback_thread; /* all callbacks must come in it, where has_thread */
	bool has_thread;
	atomic_uint strange_calls;
	unsigned prepared, paused, loaded, resumed, aborted, committed, finished, taken;
	const char *needs;    /* source: what it lists; destination: what it meets */
	unsigned pause_fails; /* the next calls that fail */
	bool resume_fails;
	uint32_t written_at; /* of take_written */
	bool restless; /* take_written always has something to tell: no guest that stands still does */
};

extern const struct mf_adapter_ops inside_ops;

/* Makes the memory, and the writer, which stands. */
void inside_open(struct inside *g, enum inside_memory kind);
void inside_close(struct inside *g);
void inside_start(struct inside *g);
/* Once, while it stands. */
void inside_write(struct inside *g, uint32_t page);
bool inside_runs(const struct inside *g);
/* Stops it and looks at every page: how many are wrong, those that the writer met included. */
unsigned inside_check(struct inside *g);

#endif
