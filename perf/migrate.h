/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Moves of a built-in guest between client and server, by the library as any program uses it.
 *
 *   client                                server
 *   "migrate" with the guest     ──▶      opens a guest of that size, a session that listens
 *                                ◀──      its address
 *   a guest, a session: the move ══════▶
 *   "migrate_end"                ──▶      waits for its session's end
 *                                ◀──      its report, its CPU time
 *
 * The move's control channel is as plain as the connection that the two have: neither encrypted nor authenticated.
 */
#ifndef PERF_MIGRATE_H
#define PERF_MIGRATE_H

#include <stdbool.h>
#include <stdint.h>

#include <memferry/session.h>

#include "perf/cpu.h"
#include "perf/peer.h"

/* The guest's and the move's parameters: what both hosts have to know. */
struct perf_cell {
	uint64_t size;  /* bytes of RAM */
	uint64_t hot;   /* percent of them that are written to */
	uint64_t dirty; /* bytes a second */
	uint64_t zero;  /* percent of the pages */
	uint64_t seed;
	bool sequential;
	bool verify;
	enum mf_mode mode;     /* hybrid, precopy, postcopy, cold */
	const char *transport; /* "auto", "verbs", "tcp"; borrowed */
	uint32_t lanes;
	uint64_t max_downtime_ms, max_bandwidth;
};

/* One that was carried out; perf_move_free(). */
struct perf_move {
	json_t *report;      /* the source's, as memferry send --json prints it */
	json_t *destination; /* the destination's */
	json_t *timeline;  /* [{"ms", "phase", "bytes_per_s", "dirty_bytes_per_s", "done_bytes"}] */
	json_t *phases;    /* [{"phase", "start_ms", "end_ms"}] */
	json_t *rounds_at; /* [{"n", "end_ms"}] */
	struct mf_report *text; /* the source's, for printing */
	struct perf_cpu client, server;
};

/* Blocks until the move has ended.  0: the guest runs there; else what the source's report says. */
int perf_migrate_run(struct perf_peer *peer, const struct perf_cell *cell, struct perf_move *ret,
		     struct mf_error *err);
void perf_move_free(struct perf_move *move); /* zeroed: nothing */

/* Server, on {"do": "migrate", ...}. */
int perf_migrate_serve(struct perf_peer *peer, const json_t *request, uint64_t max_bytes,
		       struct mf_error *err);

/* "demo:1048576,hot=...": what both sides open. */
const char *perf_cell_guest(const struct perf_cell *cell, char *buf, size_t cap);
json_t *perf_cell_json(const struct perf_cell *cell);
/* Every number is checked; transport is borrowed from request. */
int perf_cell_parse(const json_t *request, uint64_t max_bytes, struct perf_cell *ret,
		    struct mf_error *err);
enum mf_mode perf_find_mode(const char *name, size_t len); /* MF_MODE_COUNT: none */

#endif
