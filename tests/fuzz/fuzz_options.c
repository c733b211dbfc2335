/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Command lines, a word a line: the first one is a verb of memferry or of memferry-perf, or what describes a demo guest.
 * What was taken lies within the bounds that the tables name.
 */
#include "base/cleanup.h"
#include "cli/options.h"
#include "fuzz.h"
#include "hv-adapters/process/options.h"
#include "perf/options.h"

enum { WORDS_MAX = 40 };

static void check_failure(int code, const struct mf_error *err)
{
	assert(code == -MF_EUSAGE);
	fuzz_check_error(err, code);
}

static void parse_memferry(enum cli_verb verb, int argc, char **argv)
{
	struct cli_options o;
	struct mf_error err = { 0 };
	int code = cli_parse(verb, argc, argv, &o, &err);
	assert(o.verb == verb);
	if (code) {
		check_failure(code, &err);
		return;
	}
	for (size_t i = 0; i < cli_n_options; i++) {
		const struct cli_option *option = &cli_option_table[i];
		const uint64_t *field = (const void *)((const char *)&o + option->offset);
		if (option->type == CLI_NUMBER && (option->value || *field))
			assert(*field >= option->min && *field <= option->max);
	}
}

static void check_perf_option(const struct perf_option *option, const struct perf_options *o)
{
	const void *field = (const char *)o + option->offset;
	const struct perf_list *list = field;
	const uint64_t *number = field;
	switch (option->type) {
	case PERF_NUMBER:
	case PERF_SIZE:
		/* 0 and the largest mean that it was not given. */
		assert((!option->value && (!*number || *number == UINT64_MAX)) ||
		       (*number >= option->min && *number <= option->max));
		break;
	case PERF_NUMBERS:
	case PERF_SIZES:
		assert(list->n <= PERF_LIST_MAX);
		for (uint32_t i = 0; i < list->n; i++)
			assert(list->at[i] >= option->min && list->at[i] <= option->max);
		break;
	default:
		break;
	}
}

static void parse_perf(enum perf_verb verb, int argc, char **argv)
{
	struct perf_options o;
	struct mf_error err = { 0 };
	int code = perf_parse(verb, argc, argv, &o, &err);
	assert(o.verb == verb);
	if (code) {
		check_failure(code, &err);
		return;
	}
	for (size_t i = 0; i < perf_n_options; i++) {
		if (perf_option_table[i].verbs & 1u << verb && perf_option_table[i].type)
			check_perf_option(&perf_option_table[i], &o);
	}
	json_t *object = perf_options_json(&o);
	assert(object);
	json_decref(object);
}

static void parse_guest(const char *spec)
{
	struct options o;
	struct mf_error err = { 0 };
	int code = options_parse(spec, &o, &err);
	if (code) {
		check_failure(code, &err);
		return;
	}
	assert(options_check(&o, NULL) == 0);
	/* Every page belongs to one writer. */
	struct plan plan;
	uint64_t hot = 0, cold = 0;
	options_plan(&o, &plan);
	for (uint32_t i = 0; i < plan.writers; i++) {
		struct share share;
		plan_share(&plan, i, &share);
		assert(share.hot_n && share.hot_first == hot);
		hot += share.hot_n;
		cold += share.cold_n;
	}
	assert(hot == plan.hot && hot + cold == plan.pages);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	base_autofree char *text = fuzz_text(data, size);
	char *words[WORDS_MAX + 1] = { NULL }, *rest = text;
	int n = 0;

	while (n < WORDS_MAX && (words[n] = strsep(&rest, "\n")))
		n++;
	enum cli_verb verb = cli_find_verb(words[0], NULL);
	enum perf_verb perf_verb = perf_find_verb(words[0], NULL);
	if (verb < CLI_VERB_COUNT)
		parse_memferry(verb, n - 1, words + 1);
	else if (perf_verb < PERF_VERB_COUNT)
		parse_perf(perf_verb, n - 1, words + 1);
	else
		parse_guest(words[0]);
	return 0;
}
