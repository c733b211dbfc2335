/* SPDX-License-Identifier: BSD-2-Clause */
/* The verbs; each returns the command's exit status and prints its own errors. */
#ifndef CLI_VERBS_H
#define CLI_VERBS_H

#include <memferry/session.h>

#include "options.h"
#include "run_dir.h"

int cli_verb_move(const struct cli_options *options); /* receive, send, check */
int cli_verb_status(const struct cli_options *options);
int cli_verb_request(const struct cli_options *options); /* cancel, cutover, postcopy */
int cli_verb_forget(const struct cli_options *options);
int cli_verb_devices(const struct cli_options *options);

/* verb_forget.c: for status, too.  Those whose names begin so (NULL: all), at most CLI_LEFTOVERS_MAX, in
 * order; with_held: also those that a process goes on with.  How many, or a negative code. */
#define CLI_LEFTOVERS_MAX 256
int cli_find_leftovers(const struct cli_run_dir *dir, const char *prefix, bool with_held,
		       struct mf_leftover *ret, struct mf_error *err);
void cli_print_leftovers(const struct cli_options *options, const struct mf_leftover *list,
			 unsigned n);

/* The one sentence on standard error; with --json also on standard output, as the report where the
 * verb has one.  Returns the exit status that belongs to it. */
int cli_fail(const struct cli_options *options, const struct mf_error *err);

#endif
