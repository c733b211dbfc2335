/* SPDX-License-Identifier: BSD-2-Clause */
/* The memferry command: finds the verb, parses its options, runs it. */
#include <stdio.h>
#include <string.h>

#include "report.h"
#include "verbs.h"

static int run_help(const struct cli_options *o)
{
	struct mf_error err = { 0 };

	if (!o->operand) {
		cli_print_usage(stdout);
		return 0;
	}
	enum cli_verb verb = cli_find_verb(o->operand, &err);
	if (verb == CLI_VERB_COUNT)
		return cli_fail(o, &err);
	cli_print_help(stdout, verb);
	return 0;
}

static int (*const verb_functions[CLI_VERB_COUNT])(const struct cli_options *) = {
	[CLI_RECEIVE] = cli_verb_move,
	[CLI_SEND] = cli_verb_move,
	[CLI_CHECK] = cli_verb_move,
	[CLI_STATUS] = cli_verb_status,
	[CLI_CANCEL] = cli_verb_request,
	[CLI_CUTOVER] = cli_verb_request,
	[CLI_POSTCOPY] = cli_verb_request,
	[CLI_RECOVER] = cli_verb_request,
	[CLI_FORGET] = cli_verb_forget,
	[CLI_DEVICES] = cli_verb_devices,
	[CLI_HELP] = run_help,
};

int main(int argc, char *argv[])
{
	struct cli_options options = { .verb = CLI_HELP };
	struct mf_error err = { 0 };

	if (argc < 2) {
		cli_print_usage(stderr);
		return CLI_EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		cli_print_usage(stdout);
		return 0;
	}
	if (!strcmp(argv[1], "--version")) {
		puts("memferry " MF_VERSION);
		return 0;
	}
	enum cli_verb verb = cli_find_verb(argv[1], &err);
	if (verb == CLI_VERB_COUNT)
		return cli_fail(&options, &err);
	if (cli_parse(verb, argc - 2, argv + 2, &options, &err))
		return cli_fail(&options, &err);
	if (options.help) {
		cli_print_help(stdout, verb);
		return 0;
	}
	return verb_functions[verb](&options);
}
