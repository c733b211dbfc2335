/* SPDX-License-Identifier: BSD-2-Clause */
/* Events, progress and reports as JSON and as text for people. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include <memferry/session.h>

/* Of the objects that --json prints; goes up when a field changes its meaning or goes. */
#define CLI_JSON_SCHEMA 1

/* The exit status of the command; see EXIT STATUS in the man page. */
enum cli_exit {
	CLI_EXIT_MOVED = 0,
	CLI_EXIT_FAILED = 1,
	CLI_EXIT_USAGE = 2,
	CLI_EXIT_REFUSED = 3,
	CLI_EXIT_UNFINISHED = 4,
};

enum cli_exit cli_exit_of_error(int code);
enum cli_exit cli_exit_of_report(const struct mf_report *report);

const char *cli_side_name(enum mf_side side);
const char *cli_verdict_name(enum mf_verdict verdict);

/* A copy fit for a terminal and for JSON: what may come from a peer holds no control characters and
 * no broken UTF-8.  Returns buf. */
const char *cli_clean(const char *text, char *buf, size_t cap);

/* report_json.c: NULL only when memory ran out.  cli_json_print() takes the object over, prints it
 * as one line and flushes. */
json_t *cli_json_event(const struct mf_event *event);
json_t *cli_json_progress(const char *event, const struct mf_progress *progress);
json_t *cli_json_error(const struct mf_error *err);
json_t *cli_json_device(const struct mf_device *device);
json_t *cli_json_leftover(const char *event, const struct mf_leftover *left);
json_t *cli_json_report(const struct mf_report *report);
void cli_json_print(FILE *to, json_t *object);

/* report_text.c */
const char *cli_format_ms(uint64_t ms, char *buf, size_t cap);
void cli_text_findings(FILE *to, const struct mf_report *report);
void cli_text_report(FILE *to, const struct mf_report *report);
/* "round 3  …" without a newline. */
void cli_text_round(const struct mf_round *round, char *buf, size_t cap);

#endif
