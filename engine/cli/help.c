/* SPDX-License-Identifier: BSD-2-Clause */
/* Everything that is said about verbs and options, made from the tables in options.c. */
#include <string.h>

#include "options.h"

#define HELP_COLUMN 26
#define LINE_WIDTH  79

void cli_print_wrapped(FILE *to, size_t at, const char *text)
{
	if (at + 2 > HELP_COLUMN) {
		(void)fputc('\n', to);
		at = 0;
	}
	fprintf(to, "%*s", (int)(HELP_COLUMN - at), "");
	at = HELP_COLUMN;
	while (*text) {
		size_t len = strcspn(text, " ");
		if (at > HELP_COLUMN && at + 1 + len > LINE_WIDTH) {
			fprintf(to, "\n%*s", HELP_COLUMN, "");
			at = HELP_COLUMN;
		}
		at += (size_t)fprintf(to, "%s%.*s", at > HELP_COLUMN ? " " : "", (int)len, text);
		text += len + (text[len] == ' ');
	}
	(void)fputc('\n', to);
}

static void print_synopsis(FILE *to, enum cli_verb verb)
{
	const struct cli_verb_info *info = &cli_verbs[verb];
	bool has_options = false;

	for (size_t i = 0; i < cli_n_options; i++)
		has_options |= cli_option_table[i].verbs >> verb & 1;
	fprintf(to, "memferry %s%s%s%s%s%s\n", info->name, info->operand[0] ? " " : "",
		info->operand, info->required[0] ? " " : "", info->required,
		has_options ? " [OPTION]..." : "");
}

void cli_print_usage(FILE *to)
{
	(void)fputs("usage: memferry VERB [OPTION]...\n", to);
	for (unsigned v = 0; v < CLI_VERB_COUNT; v++)
		fprintf(to, "  %-9s %s\n", cli_verbs[v].name, cli_verbs[v].help);
	(void)fputs("memferry VERB --help explains one of them\n", to);
}

static void print_option(FILE *to, const struct cli_option *option)
{
	char range[80], text[400];
	size_t at = (size_t)fprintf(to, "  --%s%s%s", option->name, option->arg ? " " : "",
				    option->arg ? option->arg : "");

	(void)cli_option_range(option, range, sizeof(range));
	(void)snprintf(text, sizeof(text), "%s%s%s%s", option->help, range[0] ? " (" : "", range,
		       range[0] ? ")" : "");
	cli_print_wrapped(to, at, text);
}

void cli_print_help(FILE *to, enum cli_verb verb)
{
	bool any = false;

	(void)fputs("usage: ", to);
	print_synopsis(to, verb);
	fprintf(to, "%s\n", cli_verbs[verb].help);
	for (size_t i = 0; i < cli_n_options; i++) {
		if (!(cli_option_table[i].verbs & 1u << verb))
			continue;
		if (!any)
			(void)fputs(
				"\noptions (sizes and rates take K, M, G and T, powers of 1024):\n",
				to);
		any = true;
		print_option(to, &cli_option_table[i]);
	}
	(void)fputs(any ? "\nmemferry(1) has the rest: guests, exit status, JSON, examples\n" : "",
		    to);
}

void cli_print_roff(FILE *to, const char *text)
{
	for (; *text; text++) {
		if (*text == '-')
			(void)fputc('\\', to);
		(void)fputc(*text, to);
	}
}

void cli_print_man_options(FILE *to)
{
	for (size_t i = 0; i < cli_n_options; i++) {
		const struct cli_option *option = &cli_option_table[i];
		char range[80];

		(void)fputs(".TP\n\\fB\\-\\-", to);
		cli_print_roff(to, option->name);
		(void)fputs("\\fR", to);
		if (option->arg) {
			(void)fputs(" \\fI", to);
			cli_print_roff(to, option->arg);
			(void)fputs("\\fR", to);
		}
		(void)fputc('\n', to);
		cli_print_roff(to, option->help);
		(void)cli_option_range(option, range, sizeof(range));
		fprintf(to, "%s%s%s\n.br\nWith", range[0] ? " (" : "", range, range[0] ? ")" : "");
		for (unsigned v = 0; v < CLI_VERB_COUNT; v++) {
			if (option->verbs & 1u << v)
				fprintf(to, " %s", cli_verbs[v].name);
		}
		(void)fputs(".\n", to);
	}
}
