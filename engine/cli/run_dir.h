/* SPDX-License-Identifier: BSD-2-Clause */
/* The run directory: where running moves keep their sockets and the engine its records. */
#ifndef CLI_RUN_DIR_H
#define CLI_RUN_DIR_H

#include <limits.h>
#include <stdbool.h>

#include "base/error.h"

struct cli_run_dir {
	char path[PATH_MAX];
	int fd; /* -1: not there */
};

/*
 * The one that --run-dir names (option, may be NULL), else $MEMFERRY_RUN_DIR, else the user's
 * default.  create: makes it, mode 0700, when it is not there.  One that others could write to is
 * refused: who can put a socket or a record there can end a move.  Without create a missing
 * directory is no error, and fd stays -1.
 */
int cli_run_dir_open(const char *option, bool create, struct cli_run_dir *ret,
		     struct mf_error *err);
void cli_run_dir_close(struct cli_run_dir *dir);

#endif
