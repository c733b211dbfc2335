/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the command takes, what it says when it does not, and that the man page lists the same.
 *   test_cli_options                  the tests
 *   test_cli_options --man-options    print the man page's option list
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include <memferry/session.h>

#include "base/cleanup.h"
#include "engine/cli/options.h"
#include "engine/cli/report.h"
#include "engine/cli/show.h"

#define WORDS_MAX 16

/* Parses a line whose words are parted by single blanks; the first one is the verb. */
static int parse(const char *line, struct cli_options *ret, struct mf_error *err)
{
	static char text[512]; /* options point into it */
	char *words[WORDS_MAX], *rest = text;
	int n = 0;

	(void)snprintf(text, sizeof(text), "%s", line);
	memset(err, 0, sizeof(*err));
	for (char *word; (word = strsep(&rest, " "));)
		words[n++] = word;
	enum cli_verb verb = cli_find_verb(words[0], err);
	assert_int_not_equal(verb, CLI_VERB_COUNT);
	return cli_parse(verb, n - 1, words + 1, ret, err);
}

static void expect_good(const char *line, struct cli_options *ret)
{
	struct mf_error err;

	if (parse(line, ret, &err) || err.code)
		fail_msg("%s: %s", line, err.msg);
}

static void every_verb_parses(void **state)
{
	(void)state;
	static const char *const lines[CLI_VERB_COUNT] = {
		[CLI_RECEIVE] = "receive --listen 192.0.2.7 --guest demo:1G --insecure",
		[CLI_SEND] = "send 192.0.2.7:99 --guest demo:1G --insecure",
		[CLI_CHECK] = "check [::1]:99 --guest demo:1G --insecure",
		[CLI_STATUS] = "status",
		[CLI_CANCEL] = "cancel abc --run-dir /x",
		[CLI_CUTOVER] = "cutover",
		[CLI_POSTCOPY] = "postcopy abc --json",
		[CLI_FORGET] = "forget abc --force --run-dir /x --json",
		[CLI_DEVICES] = "devices --json",
		[CLI_HELP] = "help send",
	};
	struct cli_options o;

	for (int verb = 0; verb < CLI_VERB_COUNT; verb++) {
		if (!lines[verb]) {
			assert_int_equal(verb, CLI_RECOVER); /* always refused, see below */
			continue;
		}
		expect_good(lines[verb], &o);
		assert_int_equal(o.verb, verb);
	}
}

static void defaults_are_the_documented_ones(void **state)
{
	(void)state;
	struct cli_options o;

	expect_good("send host --guest demo:1G --insecure", &o);
	assert_string_equal(o.operand, "host");
	assert_string_equal(o.guest, "demo:1G");
	assert_string_equal(o.mode, "hybrid");
	assert_string_equal(o.transport, "auto");
	assert_string_equal(o.verify, "none");
	assert_true(o.lanes == 2);
	assert_true(o.max_downtime_ms == 300);
	assert_true(o.max_bandwidth == 0);
	assert_true(o.connect_timeout_ms == 10000);
	assert_true(o.peer_timeout_ms == 10000);
	assert_true(o.insecure);
	assert_false(o.json);
	assert_false(o.help);
	assert_null(o.listen);
	assert_null(o.run_dir);
	assert_null(o.resume);
}

static void options_are_taken_in_every_form(void **state)
{
	(void)state;
	struct cli_options o;

	expect_good(
		"send --guest=qemu:/a=b --mode warm --transport=tcp host --lanes 64 --verify full "
		"--max-downtime=20 --max-bandwidth 1.5G --insecure --json",
		&o);
	assert_string_equal(o.operand, "host");
	assert_string_equal(o.guest, "qemu:/a=b");
	assert_string_equal(o.mode, "warm");
	assert_string_equal(o.transport, "tcp");
	assert_string_equal(o.verify, "full");
	assert_true(o.lanes == 64);
	assert_true(o.max_downtime_ms == 20);
	assert_true(o.max_bandwidth == UINT64_C(3) << 29);
	assert_true(o.json);
	expect_good(
		"send --insecure --guest demo:1G --connect-timeout 1 --peer-timeout 2 --run-dir /r "
		"-- host",
		&o);
	assert_true(o.connect_timeout_ms == 1);
	assert_true(o.peer_timeout_ms == 2);
	assert_string_equal(o.run_dir, "/r");
	expect_good("status -- --strange", &o);
	assert_string_equal(o.operand, "--strange");
	/* The last one counts. */
	expect_good("send host --guest demo:1G --insecure --lanes 3 --lanes 4", &o);
	assert_true(o.lanes == 4);
}

static void modes_are_those_of_the_engine(void **state)
{
	(void)state;
	char line[120];

	for (int mode = 0; mode < MF_MODE_COUNT; mode++) {
		struct cli_options o;
		(void)snprintf(line, sizeof(line), "send host --guest demo:1 --insecure --mode %s",
			       mf_mode_name((enum mf_mode)mode));
		expect_good(line, &o);
	}
}

static void sizes_take_units(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		uint64_t bytes;
	} sizes[] = {
		{ "0", 0 },
		{ "4096", 4096 },
		{ "3K", 3 << 10 },
		{ "100M", 100 << 20 },
		{ "2G", UINT64_C(2) << 30 },
		{ "1T", UINT64_C(1) << 40 },
	};
	char line[120];

	for (size_t i = 0; i < BASE_ARRAY_LEN(sizes); i++) {
		struct cli_options o;
		(void)snprintf(line, sizeof(line),
			       "send host --guest demo:1 --insecure --max-bandwidth %s",
			       sizes[i].text);
		expect_good(line, &o);
		assert_true(o.max_bandwidth == sizes[i].bytes);
	}
}

static void help_wins_over_everything(void **state)
{
	(void)state;
	struct cli_options o;

	expect_good("send --help", &o);
	assert_true(o.help);
	expect_good("receive --lanes x -h", &o);
	assert_true(o.help);
}

/* Every sentence, whole: they are what people see most of a command. */
static void errors_are_one_sentence_about_one_argument(void **state)
{
	(void)state;
	static const struct {
		const char *line, *sentence;
	} bad[] = {
		{ "receive --guest demo:1G --insecure",
		  "--listen: receive needs an address to wait at, as in --listen 192.0.2.7" },
		{ "receive 192.0.2.7 --guest demo:1G", "'192.0.2.7': receive takes no argument but "
						       "options; an address goes after --listen" },
		{ "receive --listen a:b --guest demo:1G",
		  "--listen: 'a:b' is not an address; write HOST, HOST:PORT or [IPV6]:PORT" },
		{ "receive --listen a --insecure",
		  "--guest: receive needs a guest, as in --guest qemu:/run/vm1.qmp" },
		{ "receive --mode cold",
		  "--mode: receive does not take it; it belongs to send and check" },
		{ "send --guest demo:1G --insecure", "ADDR: send needs the address where receive "
						     "waits, as in memferry send 192.0.2.7" },
		{ "check --guest demo:1G --insecure", "ADDR: check needs the address where receive "
						      "waits, as in memferry check 192.0.2.7" },
		{ "send a:99999 --guest demo:1G --insecure",
		  "ADDR: 'a:99999' is not an address; write HOST, HOST:PORT or [IPV6]:PORT" },
		{ "send a b", "'b': send takes only one ADDR[:PORT], and 'a' was it" },
		{ "send a --listen b", "--listen: send does not take it; it belongs to receive" },
		{ "send a --guest", "--guest: needs a value: GUEST" },
		{ "send a --guest --json", "--guest: needs a value: GUEST" },
		{ "send a --guest=", "--guest: needs a value: GUEST" },
		{ "send a --lanes 0", "--lanes: '0' is not a whole number from 1 to 64" },
		{ "send a --lanes 65", "--lanes: '65' is not a whole number from 1 to 64" },
		{ "send a --lanes two", "--lanes: 'two' is not a whole number from 1 to 64" },
		{ "send a --max-downtime 0",
		  "--max-downtime: '0' is not a whole number from 1 to 3600000" },
		{ "send a --connect-timeout 1s",
		  "--connect-timeout: '1s' is not a whole number from 1 to 3600000" },
		{ "send a --peer-timeout -1",
		  "--peer-timeout: '-1' is not a whole number from 1 to 3600000" },
		{ "send a --max-bandwidth fast", "--max-bandwidth: 'fast' is not a size; write "
						 "bytes or a number with K, M, G or T, as "
						 "in 512M" },
		{ "send a --mode fast",
		  "--mode: 'fast' is none of hybrid|precopy|postcopy|warm|cold" },
		{ "send a --mode pre",
		  "--mode: 'pre' is none of hybrid|precopy|postcopy|warm|cold" },
		{ "send a --mode=", "--mode: '' is none of hybrid|precopy|postcopy|warm|cold" },
		{ "send a --transport rdma", "--transport: 'rdma' is none of auto|verbs|tcp" },
		{ "send a --verify all", "--verify: 'all' is none of none|full" },
		{ "send a --json=yes", "--json: takes no value" },
		{ "send a --lane 3", "--lane: unknown option; did you mean --lanes?" },
		{ "send a --bandwidth 3",
		  "--bandwidth: unknown option; did you mean --max-bandwidth?" },
		{ "send a --colour", "--colour: unknown option; memferry send --help lists them" },
		{ "send a -v", "-v: unknown option; options begin with two dashes" },
		{ "send a --guest demo:1G",
		  "--tls-dir: the control channel must be secured by --tls-dir DIR or --psk FILE, "
		  "on both hosts alike; --insecure does without" },
		{ "send a --guest demo:1G --tls-dir /x --insecure",
		  "--tls-dir: goes without --insecure; the control channel is secured in one way" },
		{ "receive --listen a --guest demo:1G --psk /x --insecure",
		  "--psk: goes without --insecure; the control channel is secured in one way" },
		{ "check a --guest demo:1G --psk /x --tls-dir /y",
		  "--tls-dir: goes without --psk; the control channel is secured in one way" },
		{ "check a --guest demo:1G --psk /x --tls-peer b",
		  "--tls-peer: names stand in certificates, it goes with --tls-dir" },
		{ "send a --guest demo:1G --insecure --tls-peer b",
		  "--tls-peer: names stand in certificates, it goes with --tls-dir" },
		{ "check a --resume x",
		  "--resume: check does not take it; it belongs to receive and send" },
		{ "recover a b", "'b': recover takes only one [SESSION], and 'a' was it" },
		{ "forget", "SESSION: forget needs a move's name; memferry status lists what was "
			    "left" },
		{ "forget ", "SESSION: forget needs a move's name; memferry status lists what was "
			     "left" },
		{ "status a b", "'b': status takes only one [SESSION], and 'a' was it" },
		{ "cancel --insecure",
		  "--insecure: cancel does not take it; it belongs to receive, send and check" },
		{ "devices lo", "'lo': devices takes no argument but options" },
	};

	for (size_t i = 0; i < BASE_ARRAY_LEN(bad); i++) {
		struct cli_options o;
		struct mf_error err;
		if (parse(bad[i].line, &o, &err) != -MF_EUSAGE || err.code != -MF_EUSAGE)
			fail_msg("%s: not refused", bad[i].line);
		if (strcmp(err.msg, bad[i].sentence) != 0)
			fail_msg("%s: says \"%s\"", bad[i].line, err.msg);
		assert_null(strchr(err.msg, '\n'));
	}
}

static void json_is_known_even_when_parsing_fails(void **state)
{
	(void)state;
	struct cli_options o;
	struct mf_error err;

	assert_int_equal(parse("send --nonsense --json", &o, &err), -MF_EUSAGE);
	assert_true(o.json);
	assert_int_equal(o.verb, CLI_SEND);
	assert_string_equal(o.mode, "hybrid");
	assert_int_equal(parse("send --nonsense -- --json", &o, &err), -MF_EUSAGE);
	assert_false(o.json);
}

static void verbs_are_suggested(void **state)
{
	(void)state;
	static const struct {
		const char *word, *sentence;
	} bad[] = {
		{ "recieve", "'recieve' is not a verb; did you mean receive?" },
		{ "sned", "'sned' is not a verb; did you mean send?" },
		{ "move", "'move' is not a verb; memferry help lists them" },
		{ "--json", "--json: options go after the verb; memferry help lists the verbs" },
		{ "", "'' is not a verb; memferry help lists them" },
	};

	for (size_t i = 0; i < BASE_ARRAY_LEN(bad); i++) {
		struct mf_error err = { 0 };
		assert_int_equal(cli_find_verb(bad[i].word, &err), CLI_VERB_COUNT);
		assert_string_equal(err.msg, bad[i].sentence);
	}
}

static void nearest_is_near(void **state)
{
	(void)state;
	static const char *const names[] = { "listen",        "guest",  "mode", "max-downtime",
					     "max-bandwidth", "verify", "json" };
	static const struct {
		const char *word, *near;
	} pairs[] = {
		{ "lsiten", "listen" },
		{ "guets", "guest" },
		{ "mod", "mode" },
		{ "jsn", "json" },
		{ "downtime", "max-downtime" },
		{ "max-dowmtime", "max-downtime" },
		{ "max_bandwidth", "max-bandwidth" },
		{ "verfy", "verify" },
		{ "xyzzy", NULL },
		{ "g", NULL },
		{ "", NULL },
	};

	for (size_t i = 0; i < BASE_ARRAY_LEN(pairs); i++) {
		const char *near = cli_nearest(pairs[i].word, names, BASE_ARRAY_LEN(names));
		if (!near != !pairs[i].near || (near && strcmp(near, pairs[i].near) != 0))
			fail_msg("%s: %s", pairs[i].word, near ? near : "nothing");
	}
	/* A word longer than any option is no reason to fall over. */
	char longest[200];
	memset(longest, 'a', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	assert_null(cli_nearest(longest, names, BASE_ARRAY_LEN(names)));
}

/* Returns what print() wrote; the caller's to free. */
static char *capture(void (*print)(FILE *to, int arg), int arg)
{
	char *text = NULL;
	size_t len;
	FILE *to = open_memstream(&text, &len);

	assert_non_null(to);
	print(to, arg);
	(void)fclose(to);
	return text;
}

static void print_help(FILE *to, int verb)
{
	cli_print_help(to, (enum cli_verb)verb);
}

static void print_usage(FILE *to, int unused)
{
	(void)unused;
	cli_print_usage(to);
}

static void print_man_options(FILE *to, int unused)
{
	(void)unused;
	cli_print_man_options(to);
}

static void help_lists_what_a_verb_takes(void **state)
{
	(void)state;
	base_autofree char *usage = capture(print_usage, 0);

	for (int verb = 0; verb < CLI_VERB_COUNT; verb++) {
		base_autofree char *help = capture(print_help, verb);
		char word[64];

		assert_non_null(strstr(usage, cli_verbs[verb].name));
		for (size_t i = 0; i < cli_n_options; i++) {
			const struct cli_option *option = &cli_option_table[i];
			(void)snprintf(word, sizeof(word), "\n  --%s%s", option->name,
				       option->arg ? " " : "");
			if (!strstr(help, word) != !(option->verbs >> verb & 1))
				fail_msg("help of %s and option %s", cli_verbs[verb].name,
					 option->name);
		}
		for (const char *line = help; *line; line += strcspn(line, "\n") + 1)
			assert_true(strcspn(line, "\n") < 80);
	}
}

static void man_page_lists_the_options(void **state)
{
	(void)state;
	base_autofree char *list = capture(print_man_options, 0);
	char page[64 * 1024];
	FILE *file = fopen(MF_MAN_PAGE, "r");

	assert_non_null(file);
	size_t len = fread(page, 1, sizeof(page) - 1, file);
	page[len] = '\0';
	(void)fclose(file);
	if (!strstr(page, list))
		fail_msg("%s does not have the option list that --man-options prints", MF_MAN_PAGE);
	for (int verb = 0; verb < CLI_VERB_COUNT; verb++) {
		char heading[64];
		(void)snprintf(heading, sizeof(heading), ".TP\n\\fB%s\\fR", cli_verbs[verb].name);
		if (!strstr(page, heading))
			fail_msg("%s does not explain %s", MF_MAN_PAGE, cli_verbs[verb].name);
	}
}

/* ---- the report ---- */

static struct mf_report *new_report(void)
{
	struct mf_report *r = calloc(1, sizeof(*r));

	assert_non_null(r);
	r->outcome = MF_OUTCOME_COMPLETED;
	r->side = MF_DESTINATION;
	r->transport = "tcp";
	(void)snprintf(r->session, sizeof(r->session), "s1");
	(void)snprintf(r->transport_reason, sizeof(r->transport_reason), "no verbs device");
	(void)snprintf(r->tracker, sizeof(r->tracker), "pagemap");
	r->total_ms = 1000;
	r->downtime_ms = 12;
	r->n_rounds = 2;
	r->rounds[0] = (struct mf_round){ 1, 900, 1000, 24, 4096000, 10 };
	r->rounds[1] = (struct mf_round){ 2, 5, 10, 0, 40960, 0 };
	r->bytes_written = 4136960;
	r->bytes_read = 8192;
	r->pages_total = 1024;
	r->pages_zero = 24;
	r->pages_resent = 10;
	r->pages_bridged = 3;
	r->n_rails = 1;
	r->rails[0] = (struct mf_rail_report){ .transport = "verbs",
					       .device = "mlx5_0",
					       .local = "10.0.0.2",
					       .peer = "10.0.0.1",
					       .place = "node 1, cpus 12-15",
					       .joined = true,
					       .lost = true,
					       .reason = "gone",
					       .registration_ms = 5,
					       .bytes_pinned = 4096,
					       .retransmits = 6,
					       .retries = 7 };
	r->n_lanes = 1;
	r->lanes[0] = (struct mf_lane_report){ .id = 2,
					       .urgent = true,
					       .bytes_written = 1,
					       .bytes_read = 2,
					       .writes = 3,
					       .reads = 4,
					       .flushes = 5,
					       .signalled = 6,
					       .unsignalled = 7,
					       .retries = 8,
					       .polled = 9,
					       .evented = 10 };
	r->has_postcopy = true;
	r->postcopy = (struct mf_postcopy_report){ .ms = 7, .faults = 2, .pulled_pages = 2 };
	r->postcopy.latency_us.p50 = 20;
	r->postcopy.latency_us.p90 = 30;
	r->postcopy.latency_us.p99 = 40;
	r->postcopy.latency_us.p99_9 = 50;
	r->postcopy.latency_us.max = 60;
	r->postcopy.latency_log2_us[4] = 2;
	r->cpu_user_ms = 100;
	r->cpu_system_ms = 200;
	r->has_verify = true;
	r->verify_pages = 1024;
	r->n_findings = 1;
	r->findings[0] = (struct mf_finding){ MF_WARN, "memlock", "8 MiB" };
	return r;
}

static void report_has_exactly_the_promised_fields(void **state)
{
	(void)state;
	static const char whole[] =
		"{\"event\":\"report\",\"schema\":1,\"session\":\"s1\",\"side\":\"destination\","
		"\"outcome\":\"completed\",\"mode\":\"hybrid\",\"transport\":\"tcp\","
		"\"transport_reason\":\"no verbs device\",\"tracker\":\"pagemap\","
		"\"total_ms\":1000,\"downtime_ms\":12,"
		"\"rounds\":[{\"n\":1,\"ms\":900,\"pages\":1000,\"zero_pages\":24,\"bytes\":"
		"4096000,"
		"\"dirty_pages\":10},{\"n\":2,\"ms\":5,\"pages\":10,\"zero_pages\":0,\"bytes\":"
		"40960,"
		"\"dirty_pages\":0}],\"bytes_written\":4136960,\"bytes_read\":8192,\"pages_total\":"
		"1024,"
		"\"pages_zero\":24,\"pages_resent\":10,\"pages_bridged\":3,\"rails\":[{\"id\":0,"
		"\"transport\":\"verbs\",\"device\":\"mlx5_0\",\"local\":\"10.0.0.2\","
		"\"peer\":\"10.0.0.1\",\"place\":\"node 1, cpus 12-15\",\"state\":\"lost\","
		"\"reason\":\"gone\",\"registration_ms\":5,\"bytes_pinned\":4096,"
		"\"retransmits\":6,\"retries\":7}],\"lanes\":[{\"rail\":0,\"id\":2,"
		"\"urgent\":true,\"transport\":\"verbs\",\"device\":\"mlx5_0\","
		"\"state\":\"up\",\"bytes_written\":1,\"bytes_read\":2,\"writes\":3,"
		"\"reads\":4,\"flushes\":5,\"signalled\":6,\"unsignalled\":7,\"retries\":8,"
		"\"polled\":9,\"evented\":10}],\"postcopy\":{\"ms\":7,\"faults\":2,"
		"\"pulled_pages\":2,\"latency_us\":{\"p50\":20,\"p90\":30,\"p99\":40,\"p99_9\":50,"
		"\"max\":60},\"latency_log2_us\":[0,0,0,0,2,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,"
		"0,0,0,0,"
		"0,0,0,0]},\"recoveries\":0,\"cpu_ms\":{\"user\":100,\"system\":200},\"verify\":{"
		"\"pages\":1024,"
		"\"mismatches\":0},\"error\":null,\"findings\":[{\"verdict\":\"warn\","
		"\"subject\":\"memlock\",\"detail\":\"8 MiB\"}]}";
	base_autofree struct mf_report *r = new_report();
	json_t *o = cli_json_report(r);
	base_autofree char *text = json_dumps(o, JSON_COMPACT);

	json_decref(o);
	assert_string_equal(text, whole);
}

static void report_says_null_for_what_was_not(void **state)
{
	(void)state;
	base_autofree struct mf_report *r = new_report();

	r->has_postcopy = r->has_verify = false;
	r->outcome = MF_OUTCOME_ABORTED;
	r->error =
		(struct mf_error){ -MF_ECANCELED, MF_SCOPE_SESSION, "told \x1b[2J to \xff stop" };
	r->n_rounds = MF_ROUNDS_KEPT + 5;
	json_t *o = cli_json_report(r);
	assert_true(json_is_null(json_object_get(o, "postcopy")));
	assert_true(json_is_null(json_object_get(o, "verify")));
	assert_int_equal(json_array_size(json_object_get(o, "rounds")), MF_ROUNDS_KEPT);
	const json_t *error = json_object_get(o, "error");
	assert_string_equal(json_string_value(json_object_get(error, "code")), "canceled");
	assert_string_equal(json_string_value(json_object_get(error, "message")),
			    "told ?[2J to ? stop");
	json_decref(o);
}

static void exit_status_follows_the_outcome(void **state)
{
	(void)state;
	static const struct {
		enum mf_outcome outcome;
		int code;
		uint64_t mismatches;
		enum cli_exit status;
	} cases[] = {
		{ MF_OUTCOME_COMPLETED, 0, 0, CLI_EXIT_MOVED },
		{ MF_OUTCOME_COMPLETED, -MF_EINTEGRITY, 3, CLI_EXIT_FAILED },
		{ MF_OUTCOME_COMPLETED, 0, 3, CLI_EXIT_FAILED },
		{ MF_OUTCOME_ABORTED, -MF_ECANCELED, 0, CLI_EXIT_FAILED },
		{ MF_OUTCOME_ABORTED, -ECONNREFUSED, 0, CLI_EXIT_FAILED },
		{ MF_OUTCOME_ABORTED, 0, 0, CLI_EXIT_FAILED },
		{ MF_OUTCOME_ABORTED, -MF_EREFUSED, 0, CLI_EXIT_REFUSED },
		{ MF_OUTCOME_ABORTED, -MF_EUSAGE, 0, CLI_EXIT_USAGE },
		{ MF_OUTCOME_PAUSED, -MF_EPAUSED, 0, CLI_EXIT_UNFINISHED },
		{ MF_OUTCOME_PAUSED, -MF_EPEER, 0, CLI_EXIT_UNFINISHED },
		{ MF_OUTCOME_IN_DOUBT, -MF_EINDOUBT, 0, CLI_EXIT_UNFINISHED },
		{ MF_OUTCOME_CHECKED, 0, 0, CLI_EXIT_MOVED },
		{ MF_OUTCOME_CHECKED, -MF_EREFUSED, 0, CLI_EXIT_REFUSED },
	};

	for (size_t i = 0; i < BASE_ARRAY_LEN(cases); i++) {
		base_autofree struct mf_report *r = new_report();
		r->outcome = cases[i].outcome;
		r->error.code = cases[i].code;
		r->verify_mismatches = cases[i].mismatches;
		assert_int_equal(cli_exit_of_report(r), cases[i].status);
	}
}

/* ---- texts ---- */

static void clean_keeps_words_and_drops_controls(void **state)
{
	(void)state;
	static const struct {
		const char *text, *clean;
	} pairs[] = {
		{ "plain", "plain" },
		{ "two\nlines\t", "two?lines?" },
		{ "\x1b]0;title\x07", "?]0;title?" },
		{ "größer ≥ 𝄞", "größer ≥ 𝄞" },
		{ "\xc2\x9b"
		  "31m",
		  "??31m" },               /* a C1 control */
		{ "\xc0\xaf", "??" },      /* overlong */
		{ "\xed\xa0\x80", "???" }, /* surrogate */
		{ "cut \xe2\x89", "cut ??" },
	};
	char buf[64];

	for (size_t i = 0; i < BASE_ARRAY_LEN(pairs); i++)
		assert_string_equal(cli_clean(pairs[i].text, buf, sizeof(buf)), pairs[i].clean);
	/* Cut between characters, never inside one. */
	assert_string_equal(cli_clean("aä", buf, 3), "a");
	assert_string_equal(cli_clean("aä", buf, 4), "aä");
}

static void live_line_fits_every_width(void **state)
{
	(void)state;
	struct mf_progress p = {
		.phase = MF_PHASE_PRECOPY,
		.round = 3,
		.done_bytes = 45,
		.round_bytes = 100,
		.bytes_per_s = UINT64_C(5) << 28,
		.dirty_bytes_per_s = 312 << 20,
		.predicted_downtime_ms = 84,
		.left_ms = 12300,
	};
	char buf[320];

	assert_string_equal(cli_format_live(&p, 120, buf, sizeof(buf)),
			    "round 3  [=============>                ]  45%  1.25 GiB/s  dirty 312 "
			    "MiB/s  down ~84 ms  12.3 s left");
	assert_string_equal(
		cli_format_live(&p, 80, buf, sizeof(buf)),
		"round 3  [===>    ]  45%  1.25 GiB/s  dirty 312 MiB/s  down ~84 ms  12.3 s "
		"left");
	assert_string_equal(cli_format_live(&p, 52, buf, sizeof(buf)),
			    "round 3  [====>     ]  45%  1.25 GiB/s  12.3 s left");
	for (unsigned width = 1; width < 200; width++) {
		for (int phase = 0; phase < MF_PHASE_COUNT; phase++) {
			p.phase = (enum mf_phase)phase;
			(void)cli_format_live(&p, width, buf, sizeof(buf));
			assert_true(strlen(buf) < (width > 2 ? width : 2));
		}
	}
	p = (struct mf_progress){ .phase = MF_PHASE_SWITCHOVER };
	assert_string_equal(cli_format_live(&p, 80, buf, sizeof(buf)), "switching over");
	p = (struct mf_progress){
		.phase = MF_PHASE_POSTCOPY, .done_bytes = 9, .round_bytes = 9, .faults = 7
	};
	assert_string_equal(cli_format_live(&p, 60, buf, sizeof(buf)),
			    "post-copy  [==============================] 100%  7 faults");
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_verb_parses),
		cmocka_unit_test(defaults_are_the_documented_ones),
		cmocka_unit_test(options_are_taken_in_every_form),
		cmocka_unit_test(modes_are_those_of_the_engine),
		cmocka_unit_test(sizes_take_units),
		cmocka_unit_test(help_wins_over_everything),
		cmocka_unit_test(errors_are_one_sentence_about_one_argument),
		cmocka_unit_test(json_is_known_even_when_parsing_fails),
		cmocka_unit_test(verbs_are_suggested),
		cmocka_unit_test(nearest_is_near),
		cmocka_unit_test(help_lists_what_a_verb_takes),
		cmocka_unit_test(man_page_lists_the_options),
		cmocka_unit_test(report_has_exactly_the_promised_fields),
		cmocka_unit_test(report_says_null_for_what_was_not),
		cmocka_unit_test(exit_status_follows_the_outcome),
		cmocka_unit_test(clean_keeps_words_and_drops_controls),
		cmocka_unit_test(live_line_fits_every_width),
	};

	if (argc > 1 && !strcmp(argv[1], "--man-options")) {
		cli_print_man_options(stdout);
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
