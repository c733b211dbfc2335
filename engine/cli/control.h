/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How other commands on this host reach a running move: a unix socket SIDE-PID.sock in the run
 * directory.  One JSON object a line each way, then the server closes:
 *
 *   {"command":"status"|"cancel"|"cutover"|"postcopy"}
 *   {"ok":true,"pid":…, and the progress of the session}
 *   {"ok":false,"error":{"code":…,"message":…}}
 *
 * The same thread takes SIGINT and SIGTERM, which every thread must have blocked, as "cancel".
 */
#ifndef CLI_CONTROL_H
#define CLI_CONTROL_H

#include <jansson.h>

#include "run_dir.h"
#include "view.h"

struct cli_control;

/* What this process's socket is called in the run directory. */
void cli_control_name(enum mf_side side, char *ret, size_t cap);

typedef void (*cli_notice_fn)(void *ctx, const char *text);

/* All borrowed until cli_control_stop().  notice is called by the control thread. */
int cli_control_start(const struct cli_run_dir *dir, enum mf_side side, const struct cli_view *view,
		      cli_notice_fn notice, void *ctx, struct cli_control **ret,
		      struct mf_error *err);
/* NULL: nothing. */
void cli_control_stop(struct cli_control *control);

/* A move found on this host, as its status reply tells. */
struct cli_peer {
	int pid;
	enum mf_side side;
	char session[MF_SESSION_NAME_MAX];
	char socket[64]; /* its name in the run directory */
	json_t *status;
};

#define CLI_PEERS_MAX 256

/* Asks every move in the directory; sockets that nobody serves any more are removed.  Returns how
 * many were put into ret, whose status objects are the caller's. */
int cli_control_list(const struct cli_run_dir *dir, struct cli_peer *ret, unsigned cap,
		     struct mf_error *err);
/* Returns once the move has acknowledged.  ret_reply is the caller's. */
int cli_control_ask(const struct cli_run_dir *dir, const char *socket, const char *command,
		    json_t **ret_reply, struct mf_error *err);

#endif
