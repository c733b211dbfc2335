/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The tests, as the command runs them and as the server serves them.
 *
 * A verb fills the document's results and prints its table; main() opens the document, connects, writes it to a
 * file, draws the plot.
 */
#ifndef PERF_VERBS_H
#define PERF_VERBS_H

#include <jansson.h>

#include "perf/options.h"
#include "perf/peer.h"

enum perf_exit {
	PERF_EXIT_OK = 0,
	PERF_EXIT_FAILED = 1, /* or a limit (-w, -y) was missed */
	PERF_EXIT_USAGE = 2,
	PERF_EXIT_REFUSED =
		3, /* this host or the other cannot do it; the sentence says what lacks */
};

struct perf_run {
	const struct perf_options *o;
	struct perf_peer *peer; /* NULL: no HOST was given */
	json_t *doc;
	FILE *out;         /* for tables: standard output, or standard error when JSON goes there */
	bool missed_limit; /* set by the verb: -w, -y */
};

/* 0 or a negative code with a sentence. */
typedef int (*perf_verb_fn)(struct perf_run *run, struct mf_error *err);

int perf_verb_bw(struct perf_run *run, struct mf_error *err);  /* verb_bw.c */
int perf_verb_lat(struct perf_run *run, struct mf_error *err); /* verb_lat.c */
int perf_verb_fault(struct perf_run *run, struct mf_error *err);
int perf_verb_register(struct perf_run *run, struct mf_error *err);
int perf_verb_scan(struct perf_run *run, struct mf_error *err);
int perf_verb_track(struct perf_run *run, struct mf_error *err);
int perf_verb_migrate(struct perf_run *run, struct mf_error *err);
int perf_verb_estimate(struct perf_run *run, struct mf_error *err);
int perf_verb_mesh(struct perf_run *run, struct mf_error *err);
/* Serves clients one after the other: until a signal, or one with --once. */
int perf_verb_server(struct perf_run *run, struct mf_error *err);

/*
 * What the server can be asked for; `do` of the request names it.  Called in the server's one thread; answers by
 * peer itself.  0, or a negative code: the server sends the sentence as the answer and goes on with this client,
 * but for -MF_EPEER, which ends the connection.
 */
struct perf_server;
typedef int (*perf_serve_fn)(struct perf_server *server, struct perf_peer *peer,
			     const json_t *request, struct mf_error *err);
struct perf_service {
	const char *name;
	perf_serve_fn serve;
};
extern const struct perf_service perf_services[]; /* services.c; ends with a NULL name */

/* A path stays open from "path" to "done", or to the end of the connection: services in between find it here, by the
 * request's "slot" (0 without one).  NULL and a sentence when there is none. */
struct perf_path *perf_server_path(struct perf_server *server, const json_t *request,
				   struct mf_error *err);
/* Serves one connected client to its end; for the verb and for mesh, whose processes are both. */
int perf_serve_client(struct perf_peer *peer, uint64_t max_bytes, struct mf_error *err);

/*
 * register, scan and track need no other host; with one, the server does the same and sends its rows: {"do":
 * "local", "test": "scan", "options": {...}}.  A local test takes its options as JSON, so that both hosts are told the
 * same, and returns rows (an array), each with "cpu": {"client": ...}.  max_bytes: memory that it may take.
 */
typedef int (*perf_local_fn)(const json_t *options, uint64_t max_bytes, json_t *ret_rows,
			     struct mf_error *err);
struct perf_local {
	const char *test;
	perf_local_fn run;
};
extern const struct perf_local perf_locals[]; /* services.c; ends with a NULL test */
/* Runs it here and, with a peer, there too; adds the rows to the document, each with "host": "client" or "server". */
int perf_local_run(struct perf_run *run, const char *test, const json_t *options,
		   struct mf_error *err);

#endif
