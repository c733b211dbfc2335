/* SPDX-License-Identifier: BSD-2-Clause */
/* Everything that is said about tests and options, made from the tables in options.c. */
#include <inttypes.h>
#include <string.h>

#include "base/parse.h"
#include "cli/options.h"
#include "perf/options.h"

static const char *option_range(const struct perf_option *option, char *buf, size_t cap)
{
	size_t at = 0;

	buf[0] = '\0';
	if (option->value)
		at = (size_t)snprintf(buf, cap, "default %s", option->value);
	if ((option->type == PERF_NUMBER || option->type == PERF_NUMBERS) && at < cap)
		(void)snprintf(buf + at, cap - at, "%s%" PRIu64 " to %" PRIu64, at ? ", " : "",
			       option->min, option->max);
	return buf;
}

void perf_print_usage(FILE *to)
{
	(void)fputs("usage: memferry-perf TEST [HOST[:PORT]] [OPTION]...\n", to);
	for (unsigned v = 0; v < PERF_VERB_COUNT; v++)
		fprintf(to, "  %-9s %s\n", perf_verbs[v].name, perf_verbs[v].help);
	(void)fputs("memferry-perf TEST --help explains one of them\n", to);
}

static void print_option(FILE *to, const struct perf_option *option)
{
	char range[80], text[400], name[4] = "  ";

	if (option->letter)
		(void)snprintf(name, sizeof(name), "-%c", option->letter);
	size_t at = (size_t)fprintf(to, "  %s%s --%s%s%s", name, option->letter ? "," : " ",
				    option->name, option->arg ? " " : "",
				    option->arg ? option->arg : "");
	(void)option_range(option, range, sizeof(range));
	(void)snprintf(text, sizeof(text), "%s%s%s%s", option->help, range[0] ? " (" : "", range,
		       range[0] ? ")" : "");
	cli_print_wrapped(to, at, text);
}

void perf_print_help(FILE *to, enum perf_verb verb)
{
	const struct perf_verb_info *info = &perf_verbs[verb];

	fprintf(to, "usage: memferry-perf %s%s%s [OPTION]...\n%s\n", info->name,
		info->operand[0] ? " " : "", info->operand, info->help);
	(void)fputs("\noptions (sizes and rates take K, M, G and T, powers of 1024):\n", to);
	for (size_t i = 0; i < perf_n_options; i++) {
		if (perf_option_table[i].verbs & 1u << verb)
			print_option(to, &perf_option_table[i]);
	}
	(void)fputs("\nmemferry-perf(1) has the rest: tables, JSON, exit status, examples\n", to);
}

void perf_print_man_options(FILE *to)
{
	for (size_t i = 0; i < perf_n_options; i++) {
		const struct perf_option *option = &perf_option_table[i];
		char range[80];

		(void)fputs(".TP\n", to);
		if (option->letter)
			fprintf(to, "\\fB\\-%c\\fR, ", option->letter);
		(void)fputs("\\fB\\-\\-", to);
		cli_print_roff(to, option->name);
		(void)fputs("\\fR", to);
		if (option->arg) {
			(void)fputs(" \\fI", to);
			cli_print_roff(to, option->arg);
			(void)fputs("\\fR", to);
		}
		(void)fputc('\n', to);
		cli_print_roff(to, option->help);
		(void)option_range(option, range, sizeof(range));
		fprintf(to, "%s%s%s\n.br\nWith", range[0] ? " (" : "", range, range[0] ? ")" : "");
		for (unsigned v = 0; v < PERF_VERB_COUNT; v++) {
			if (option->verbs & 1u << v)
				fprintf(to, " %s", perf_verbs[v].name);
		}
		(void)fputs(".\n", to);
	}
}
