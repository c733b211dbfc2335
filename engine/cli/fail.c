/* SPDX-License-Identifier: BSD-2-Clause */
#include "report.h"
#include "verbs.h"

#include <stdio.h>
#include <string.h>

static bool has_report(enum cli_verb verb)
{
	return verb == CLI_RECEIVE || verb == CLI_SEND || verb == CLI_CHECK;
}

/* The report of a move that never began: the guest is where it was. */
static void print_empty_report(const struct cli_options *o, const struct mf_error *err)
{
	static const struct mf_report nothing = { .outcome = MF_OUTCOME_ABORTED, .transport = "" };
	struct mf_report report = nothing;

	report.side = o->verb == CLI_RECEIVE ? MF_DESTINATION : MF_SOURCE;
	for (int mode = 0; o->mode && mode < MF_MODE_COUNT; mode++) {
		if (!strcmp(o->mode, mf_mode_name((enum mf_mode)mode)))
			report.mode = (enum mf_mode)mode;
	}
	report.error = *err;
	cli_json_print(stdout, cli_json_report(&report));
}

int cli_fail(const struct cli_options *o, const struct mf_error *err)
{
	char clean[sizeof(err->msg) + 1];

	if (o->json && has_report(o->verb))
		print_empty_report(o, err);
	else if (o->json)
		cli_json_print(stdout, cli_json_error(err));
	fprintf(stderr, "memferry: %s\n", cli_clean(err->msg, clean, sizeof(clean)));
	return cli_exit_of_error(err->code);
}
