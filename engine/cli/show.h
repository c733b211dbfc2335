/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tells what a move is doing while it runs, in one of three forms: JSON lines on standard output;
 * a live line on a terminal, with ordinary lines above it; ordinary lines alone.
 *
 * cli_show_event() is called by the session thread, cli_show_notice() by any; a thread of its own
 * redraws the live line and prints progress objects.
 */
#ifndef CLI_SHOW_H
#define CLI_SHOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "view.h"

struct cli_show;

/* out takes JSON, err takes lines for people; both borrowed.  is_check: preflight's findings are
 * left to the report. */
int cli_show_create(FILE *out, FILE *err, bool json, bool is_check, struct cli_show **ret,
		    struct mf_error *error);
/* From here on progress is shown; view is borrowed until cli_show_stop(). */
int cli_show_start(struct cli_show *show, const struct cli_view *view, struct mf_error *error);
/* Joins the thread and takes the live line away.  Nothing when it was not started. */
void cli_show_stop(struct cli_show *show);
void cli_show_destroy(struct cli_show *show); /* NULL: nothing; stops */

void cli_show_event(struct cli_show *show, const struct mf_event *event);
void cli_show_notice(struct cli_show *show, const char *text);

/* The live line for a terminal of `width` columns; never as wide as that, so that no terminal
 * wraps it.  Returns buf. */
const char *cli_format_live(const struct mf_progress *progress, unsigned width, char *buf,
			    size_t cap);

#endif
