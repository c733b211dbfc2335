/* SPDX-License-Identifier: BSD-2-Clause */
/* The memferry-perf command: finds the test, parses its options, connects, runs it, keeps its document. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "cli/report.h"
#include "perf/doc.h"
#include "perf/plot.h"
#include "perf/verbs.h"

#define CONNECT_MS 10000u

static const perf_verb_fn verb_functions[PERF_VERB_COUNT] = {
	/* clang-format off */
	[PERF_SERVER] = perf_verb_server,
	[PERF_BW] = perf_verb_bw,
	[PERF_LAT] = perf_verb_lat,
	[PERF_FAULT] = perf_verb_fault,
	[PERF_REGISTER] = perf_verb_register,
	[PERF_SCAN] = perf_verb_scan,
	[PERF_TRACK] = perf_verb_track,
	[PERF_MIGRATE] = perf_verb_migrate,
	[PERF_ESTIMATE] = perf_verb_estimate,
	[PERF_MESH] = perf_verb_mesh,
	/* clang-format on */
};

static enum perf_exit exit_of(int code)
{
	switch (code) {
	case -MF_EUSAGE:
		return PERF_EXIT_USAGE;
	case -MF_EREFUSED:
	case -MF_EKERNEL:
	case -ENODEV:
		return PERF_EXIT_REFUSED;
	default:
		return PERF_EXIT_FAILED;
	}
}

static int fail(const struct mf_error *err)
{
	char clean[sizeof(err->msg)];

	perf_progress_end();
	(void)fprintf(stderr, "memferry-perf: %s\n", cli_clean(err->msg, clean, sizeof(clean)));
	return exit_of(err->code);
}

/* "HOST" with --port, or "HOST:PORT". */
static const char *address_of(const struct perf_options *o, char *buf, size_t cap)
{
	const char *colon = strrchr(o->host, ':');
	bool bracketed = o->host[0] == '[';
	bool has_port =
		bracketed ? !!strstr(o->host, "]:") : colon && colon == strchr(o->host, ':');

	if (has_port)
		(void)snprintf(buf, cap, "%s", o->host);
	else
		(void)snprintf(buf, cap, !bracketed && colon ? "[%s]:%u" : "%s:%u", o->host,
			       (unsigned)o->port);
	return buf;
}

static int connect_to_server(struct perf_run *run, struct mf_error *err)
{
	char address[300];
	json_t *facts = NULL;

	int ret = perf_peer_connect(address_of(run->o, address, sizeof(address)),
				    base_deadline_ms(CONNECT_MS), &run->peer, err);
	if (!ret)
		ret = perf_peer_call(run->peer, "facts", NULL, base_deadline_ms(PERF_ANSWER_MS),
				     &facts, err);
	if (!ret)
		perf_doc_add_host(run->doc, facts);
	return ret;
}

static int keep(const struct perf_run *run, struct mf_error *err)
{
	const struct perf_options *o = run->o;
	int ret = 0;

	if (!json_array_size(perf_doc_rows(run->doc)))
		return 0; /* mesh: not the rank that has the results */
	if (o->json)
		ret = perf_doc_write(run->doc, "-", err);
	if (!ret && o->json_file)
		ret = perf_doc_write(run->doc, o->json_file, err);
	if (!ret && o->plot)
		ret = perf_plot(run->doc, o->plot, err);
	return ret;
}

static int run_test(struct perf_run *run, struct mf_error *err)
{
	const struct perf_options *o = run->o;
	/* Of a mesh only one rank draws; it looks itself. */
	int ret = o->plot && o->verb != PERF_MESH ? perf_plot_check(o->plot, err) : 0;

	if (ret)
		return ret;
	run->doc = perf_doc_new(perf_verbs[o->verb].name, perf_options_json(o));
	if (!run->doc)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	if (o->verb != PERF_SERVER && o->verb != PERF_MESH)
		perf_doc_add_host(run->doc, perf_facts("client"));
	if (o->host)
		ret = connect_to_server(run, err);
	if (!ret)
		ret = verb_functions[o->verb](run, err);
	perf_progress_end();
	return ret ? ret : keep(run, err);
}

int main(int argc, char *argv[])
{
	struct perf_options options;
	struct mf_error err = { 0 };

	if (argc < 2) {
		perf_print_usage(stderr);
		return PERF_EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		perf_print_usage(stdout);
		return 0;
	}
	if (!strcmp(argv[1], "--version")) {
		puts("memferry-perf " MF_VERSION);
		return 0;
	}
	enum perf_verb verb = perf_find_verb(argv[1], &err);
	if (verb == PERF_VERB_COUNT || perf_parse(verb, argc - 2, argv + 2, &options, &err))
		return fail(&err);
	if (options.help) {
		perf_print_help(stdout, verb);
		return 0;
	}
	struct perf_run run = { .o = &options, .out = options.json ? stderr : stdout };
	int ret = run_test(&run, &err);
	perf_peer_close(run.peer);
	json_decref(run.doc);
	if (ret)
		return fail(&err);
	return run.missed_limit ? PERF_EXIT_FAILED : PERF_EXIT_OK;
}
