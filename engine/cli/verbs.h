/* SPDX-License-Identifier: BSD-2-Clause */
/* The verbs; each returns the command's exit status and prints its own errors. */
#ifndef CLI_VERBS_H
#define CLI_VERBS_H

#include "options.h"

int cli_verb_move(const struct cli_options *options); /* receive, send, check */
int cli_verb_status(const struct cli_options *options);
int cli_verb_request(const struct cli_options *options); /* cancel, cutover, postcopy */
int cli_verb_devices(const struct cli_options *options);

/* The one sentence on standard error; with --json also on standard output, as the report where the
 * verb has one.  Returns the exit status that belongs to it. */
int cli_fail(const struct cli_options *options, const struct mf_error *err);

#endif
