/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * memferry-perf's ground: figures, options, tables, what two hosts say to each other; and bandwidth and latency over TCP
 * with both ends in this process.
 *
 *   test_perf --man-options    print the man page's option list
 */
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "perf/bw.h"
#include "perf/doc.h"
#include "perf/slices.h"
#include "perf/verbs.h"

/* ---- figures ---- */

static void percentiles_are_samples(void **state)
{
	(void)state;
	double few[] = { 4, 1, 3, 2 }, one[] = { 7 };
	struct perf_stats s;

	perf_stats_of(few, 4, &s);
	assert_true(s.n == 4 && s.min == 1 && s.p50 == 2 && s.p90 == 4 && s.p99_9 == 4 &&
		    s.max == 4);
	assert_true(s.mean == 2.5 && s.stdev > 1.2909 && s.stdev < 1.291);
	perf_stats_of_rates(few, 4, &s); /* less is worse */
	assert_true(s.p50 == 3 && s.p90 == 1 && s.p99_9 == 1);
	perf_stats_of(one, 1, &s);
	assert_true(s.p50 == 7 && s.p99 == 7 && s.stdev == 0);
	perf_stats_of(one, 0, &s);
	assert_true(s.n == 0 && s.max == 0);
}

/* perftest computes it in integers: below one microsecond it says 0. */
static void small_deviations_are_not_lost(void **state)
{
	(void)state;
	double near[] = { 1000000.1, 1000000.3, 1000000.2 };
	struct perf_stats s;

	perf_stats_of(near, 3, &s);
	assert_true(s.stdev > 0.09 && s.stdev < 0.11);
}

static void the_median_run_is_one_of_them(void **state)
{
	(void)state;
	assert_int_equal(perf_median_of((double[]){ 5 }, 1), 0);
	assert_int_equal(perf_median_of((double[]){ 5, 1, 3 }, 3), 2);
	assert_int_equal(perf_median_of((double[]){ 2, 2, 2 }, 3), 1);
	assert_int_equal(perf_median_of((double[]){ 9, 1, 8, 2 }, 4), 3); /* the lower of the two */
}

static void stats_survive_the_wire(void **state)
{
	(void)state;
	double few[] = { 4, 1, 3, 2 };
	struct perf_stats s, back;

	perf_stats_of(few, 4, &s);
	json_t *o = perf_stats_json(&s);
	perf_stats_parse(o, &back);
	json_decref(o);
	assert_memory_equal(&s, &back, sizeof(s));
}

/* Ten seconds at a constant rate, in slices that begin at 1 ms. */
static void slices_become_longer(void **state)
{
	(void)state;
	struct slices *s = calloc(1, sizeof(*s));
	struct perf_stats stats;

	slices_start(s, 1000);
	for (uint64_t us = 0; us < 10000000; us += 100)
		slices_add(s, 1000 + us, 100);
	assert_true(s->width_us == 4000);
	slices_rates(s, 1000 + 10000000, 100, 16, &stats);
	assert_int_equal(stats.n, 2500);
	assert_true(stats.min == 1e6 && stats.p50 == 1e6 && stats.max == 1e6);
	free(s);
}

/* One operation in 10 ms: slices of 1 ms would tell of bursts and of standstills. */
static void slices_hold_several_operations(void **state)
{
	(void)state;
	struct slices *s = calloc(1, sizeof(*s));
	struct perf_stats stats;

	slices_start(s, 0);
	for (uint64_t us = 0; us < 10240000; us += 10000)
		slices_add(s, us, 1u << 20);
	slices_rates(s, 10240000, 1u << 20, 16, &stats);
	assert_true(stats.n >= 10 && s->width_us >= 160000);
	assert_true(stats.min > 0.8 * stats.max);
	free(s);
}

/* Many operations at once, then none for a while: batches of completions, not of bytes. */
static void batches_of_completions_are_no_standstills(void **state)
{
	(void)state;
	struct slices *s = calloc(1, sizeof(*s));
	struct perf_stats stats;

	slices_start(s, 0);
	for (uint64_t us = 0; us < 1024000; us += 8000)
		slices_add(s, us, 1000 * 64);
	slices_rates(s, 1024000, 64, 16, &stats);
	assert_true(stats.n >= 10 && stats.p99 > 0 && stats.min > 0.8 * stats.max);
	free(s);
}

static void a_short_run_has_one_slice(void **state)
{
	(void)state;
	struct slices *s = calloc(1, sizeof(*s));
	struct perf_stats stats;

	slices_start(s, 0);
	slices_add(s, 100, 500);
	slices_rates(s, 500, 500, 16, &stats);
	assert_true(stats.n == 1 && stats.p50 == 1e6);
	free(s);
}

/* ---- options ---- */

struct sentence {
	enum perf_verb verb;
	const char *args[6];
	const char *said;
};

static const struct sentence sentences[] = {
	{ PERF_BW,
	  { NULL },
	  "bw needs the host where memferry-perf server waits, as in memferry-perf bw 192.0.2.7" },
	{ PERF_BW, { "a", "b" }, "'b': bw takes only one host, and 'a' was it" },
	{ PERF_SERVER, { "a" }, "'a': server takes no argument but options" },
	{ PERF_BW, { "a", "--sizes", "1" }, "--sizes: bw does not take it" },
	{ PERF_BW,
	  { "a", "--bidirectinal" },
	  "--bidirectinal: unknown option; did you mean --bidirectional?" },
	{ PERF_BW, { "a", "-z" }, "-z: unknown option; memferry-perf bw --help lists them" },
	{ PERF_BW, { "a", "-s" }, "-s: needs a value" },
	{ PERF_BW, { "a", "-s", "2G" }, "--size: '2G' is not between 1 B and 1.00 GiB" },
	{ PERF_BW, { "a", "-s", "2", "-a" }, "--all: goes without --size" },
	{ PERF_BW, { "a", "-n", "2", "-D", "1" }, "--duration: goes without --iters" },
	{ PERF_BW, { "a", "-w", "fast" }, "--limit_bw: 'fast' is not a number of 0 or more" },
	{ PERF_BW, { "a", "-w", "-1" }, "--limit_bw: '-1' is not a number of 0 or more" },
	{ PERF_BW, { "a", "--op", "send" }, "--op: 'send' is none of write|read" },
	{ PERF_BW, { "a", "-p", "0" }, "--port: 0 is for server only" },
	{ PERF_LAT,
	  { "a", "-e" },
	  "--events: a write tells nothing to the CPU it goes to; it goes with --op read" },
	{ PERF_FAULT,
	  { "a", "--threads", "1,,2" },
	  "--threads: '1,,2' is no list of values separated by commas" },
	{ PERF_FAULT, { "a", "--page", "6K" }, "--page: 6144 is no size of pages" },
	{ PERF_MIGRATE,
	  { "a", "--mode", "precopy,warm" },
	  "--mode: 'warm' is none of hybrid|precopy|postcopy|cold" },
	{ PERF_MIGRATE, { "a", "--mode", "cold,cold" }, "--mode: 'cold' is there twice" },
	{ PERF_ESTIMATE,
	  { "a" },
	  "estimate needs either --guest to watch, or --estimate and --against to compare" },
	{ PERF_ESTIMATE, { "--against", "r" }, "--against: needs --estimate, too" },
};

static int parse(enum perf_verb verb, const char *const *args, struct perf_options *ret,
		 struct mf_error *err)
{
	char *argv[8] = { 0 };
	int argc = 0;

	for (; argc < 6 && args[argc]; argc++)
		argv[argc] = (char *)args[argc];
	return perf_parse(verb, argc, argv, ret, err);
}

static void bad_options_are_told(void **state)
{
	(void)state;
	for (size_t i = 0; i < BASE_ARRAY_LEN(sentences); i++) {
		struct perf_options o;
		struct mf_error err = { 0 };
		assert_int_equal(parse(sentences[i].verb, sentences[i].args, &o, &err), -MF_EUSAGE);
		assert_string_equal(err.msg, sentences[i].said);
	}
}

static void perftest_users_are_understood(void **state)
{
	(void)state;
	static const char *const args[] = { "-s1M", "-n", "10", "-bF", "host", "-q4" };
	struct mf_error err = { 0 };
	struct perf_options o;

	assert_int_equal(parse(PERF_BW, args, &o, &err), 0);
	assert_string_equal(o.host, "host");
	assert_true(o.size == 1u << 20 && o.iterations == 10 && o.both_ways && o.lanes == 4);
	assert_true(o.depth == 128 && o.gid == UINT64_MAX && o.port == 7742);
	json_t *json = perf_options_json(&o);
	assert_int_equal(json_integer_value(json_object_get(json, "size")), 1 << 20);
	assert_null(json_object_get(json, "threads"));
	json_decref(json);
}

static char *capture(void (*print)(FILE *))
{
	char *text = NULL;
	size_t len;
	FILE *to = open_memstream(&text, &len);

	print(to);
	(void)fclose(to);
	return text;
}

static void man_page_lists_the_options(void **state)
{
	(void)state;
	base_autofree char *list = capture(perf_print_man_options);
	char page[64 * 1024];
	FILE *file = fopen(MF_MAN_PAGE, "r");

	assert_non_null(file);
	page[fread(page, 1, sizeof(page) - 1, file)] = '\0';
	(void)fclose(file);
	if (!strstr(page, list))
		fail_msg("%s does not have the option list that --man-options prints", MF_MAN_PAGE);
	for (unsigned v = 0; v < PERF_VERB_COUNT; v++) {
		char heading[64];
		(void)snprintf(heading, sizeof(heading), ".TP\n\\fB%s\\fR", perf_verbs[v].name);
		if (!strstr(page, heading))
			fail_msg("%s does not explain %s", MF_MAN_PAGE, perf_verbs[v].name);
	}
}

/* ---- tables ---- */

static void print_a_table(FILE *to)
{
	static const struct perf_column columns[] = {
		{ "name", "name", NULL, 0 },
		{ "cpu.client.ms", "ms", "%.1f", 1e-3 },
		{ "nothing", "never", "%.0f", 0 },
		{ "some", "some", "%.0f", 0 },
	};
	json_t *rows = json_pack("[{s:s,s:{s:{s:f}}},{s:s,s:i}]", "name", "\xc3\xa4", "cpu",
				 "client", "ms", 1234.5, "name", "long", "some", 7);

	perf_table(to, columns, BASE_ARRAY_LEN(columns), rows);
	json_decref(rows);
}

static void tables_are_aligned(void **state)
{
	(void)state;
	base_autofree char *text = capture(print_a_table);

	assert_string_equal(text, "name   ms  some\n\xc3\xa4     1.2     -\nlong    -     7\n");
}

/* ---- the control connection ---- */

struct server {
	int fd;
	uint64_t max_bytes;
	int ret;
	struct mf_error err;
};

static void *server_main(void *arg)
{
	struct server *s = arg;
	struct perf_peer *peer = NULL;

	s->ret = perf_peer_accepted(s->fd, base_deadline_ms(10000), &peer, &s->err);
	if (!s->ret)
		s->ret = perf_serve_client(peer, s->max_bytes, &s->err);
	perf_peer_close(peer);
	return NULL;
}

/* A client's connection to a server in a thread; both over the loopback device. */
struct pair {
	struct server server;
	pthread_t thread;
	struct perf_peer *peer;
};

static int listen_here(char address[static 64])
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0 && !bind(fd, (struct sockaddr *)&sa, len) && !listen(fd, 1));
	assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
	(void)snprintf(address, 64, "127.0.0.1:%u", ntohs(sa.sin_port));
	return fd;
}

/* The client greets and waits for the greeting: somebody must answer meanwhile. */
struct opener {
	char address[64];
	struct perf_peer *peer;
	int ret;
	struct mf_error err;
};

static void *opener_main(void *arg)
{
	struct opener *o = arg;

	o->ret = perf_peer_connect(o->address, base_deadline_ms(10000), &o->peer, &o->err);
	return NULL;
}

static int open_pair(void **state)
{
	struct pair *p = calloc(1, sizeof(*p));
	struct opener opener = { 0 };
	pthread_t thread;

	int fd = listen_here(opener.address);
	assert_int_equal(pthread_create(&thread, NULL, opener_main, &opener), 0);
	p->server = (struct server){ .fd = accept(fd, NULL, NULL), .max_bytes = 64u << 20 };
	assert_true(p->server.fd >= 0);
	assert_int_equal(pthread_create(&p->thread, NULL, server_main, &p->server), 0);
	(void)pthread_join(thread, NULL);
	(void)close(fd);
	if (opener.ret)
		fail_msg("%s", opener.err.msg);
	p->peer = opener.peer;
	*state = p;
	return 0;
}

static int close_pair(void **state)
{
	struct pair *p = *state;

	perf_peer_close(p->peer);
	(void)pthread_join(p->thread, NULL);
	int ret = p->server.ret;
	if (ret)
		print_error("server: %s\n", p->server.err.msg);
	free(p);
	return ret;
}

static void unknown_requests_change_nothing(void **state)
{
	struct pair *p = *state;
	struct mf_error err = { 0 };
	json_t *answer = NULL;

	assert_true(perf_peer_call(p->peer, "format the disk", NULL, base_deadline_ms(5000), NULL,
				   &err) < 0);
	assert_string_equal(err.msg, "127.0.0.1: the server knows no request 'format the disk'");
	assert_int_equal(perf_peer_call(p->peer, "facts", NULL, base_deadline_ms(PERF_ANSWER_MS),
					&answer, NULL),
			 0);
	assert_string_equal(perf_text(answer, "role"), "server");
	assert_true(perf_number(answer, "cpu.cpus") >= 1);
	json_decref(answer);
}

/* What a hostile client could ask for, and what is said of it. */
static void requests_are_checked(void **state)
{
	static const struct {
		const char *what, *request, *said;
	} bad[] = {
		{ "bw", "{}", "no lanes are open for this" },
		{ "bw", "{\"slot\":7}", "there is no such slot for a path" },
		{ "done", "{\"slot\":-1}", "there is no such slot for a path" },
		{ "path", "{\"transport\":\"tcp\"}", "this request for lanes makes no sense" },
		{ "path",
		  "{\"transport\":\"tcp\",\"lanes\":65,\"depth\":1,\"bytes\":1,\"token\":"
		  "\"0000000000000000000000000000000000000000000000000000000000000000\"}",
		  "this request for lanes makes no sense" },
		{ "path",
		  "{\"transport\":\"tcp\",\"lanes\":2,\"depth\":1,\"bytes\":33554433,\"token\":"
		  "\"0000000000000000000000000000000000000000000000000000000000000000\"}",
		  "2 lanes of 33554433 bytes are more than the server gives to a client (64.00 "
		  "MiB); see its "
		  "--max-memory" },
		{ "path",
		  "{\"transport\":\"tcp\",\"lanes\":1,\"depth\":1,\"bytes\":4096,\"token\":"
		  "\"0000000000000000000000000000000000000000000000000000000000000000\"}",
		  "the other host's addresses make no sense" },
		{ "local", "{\"test\":\"nothing\"}", "there is no such test" },
	};
	struct pair *p = *state;

	for (size_t i = 0; i < BASE_ARRAY_LEN(bad); i++) {
		struct mf_error err = { 0 };
		json_t *request = json_loads(bad[i].request, 0, NULL);
		assert_non_null(request);
		assert_true(perf_peer_call(p->peer, bad[i].what, request, base_deadline_ms(5000),
					   NULL, &err) < 0);
		assert_string_equal(strchr(err.msg, ' ') + 1, bad[i].said);
	}
}

static void what_is_no_json_ends_the_connection(void **state)
{
	(void)state;
	int fd[2];
	struct perf_peer *peer = NULL;
	struct mf_error err = { 0 };

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
	assert_int_equal(write(fd[0], "GET / HTTP/1.0\r\n\r\n", 18), 18);
	assert_int_equal(perf_peer_accepted(fd[1], base_deadline_ms(5000), &peer, &err), -MF_EPEER);
	assert_non_null(strstr(err.msg, "sent what is no JSON object"));
	(void)close(fd[0]);
}

static void a_silent_client_is_given_up(void **state)
{
	(void)state;
	int fd[2];
	struct perf_peer *peer = NULL;
	struct mf_error err = { 0 };

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
	assert_int_equal(perf_peer_accepted(fd[1], base_deadline_ms(50), &peer, &err), -ETIMEDOUT);
	(void)close(fd[0]);
}

static void nobody_listens(void **state)
{
	(void)state;
	struct perf_peer *peer = NULL;
	struct mf_error err = { 0 };
	char address[64];

	(void)close(listen_here(address));
	assert_int_equal(perf_peer_connect(address, base_deadline_ms(5000), &peer, &err),
			 -ECONNREFUSED);
	assert_non_null(strstr(err.msg, "start `memferry-perf server` first"));
}

/* ---- bandwidth and latency ---- */

static void open_path(struct pair *p, uint32_t lanes, uint64_t bytes, struct perf_path *path)
{
	const struct perf_path_params params = {
		.transport = "tcp", .gid = -1, .lanes = lanes, .depth = 64, .bytes = bytes
	};
	struct mf_error err = { 0 };

	if (perf_path_open(p->peer, &params, path, &err))
		fail_msg("%s", err.msg);
}

static void run_bw(struct pair *p, struct perf_path *path, const struct perf_plan *plan,
		   uint64_t operations)
{
	struct mf_error err = { 0 };
	struct perf_bw bw;

	if (perf_bw_run(p->peer, path, plan, &bw, &err))
		fail_msg("%s", err.msg);
	if (operations)
		assert_int_equal(bw.iterations, operations);
	assert_true(bw.iterations > 0 && bw.bytes_per_s > 0 && bw.seconds > 0);
	assert_true(bw.slices.n && bw.slices.max >= bw.slices.p99);
	assert_true(bw.client.wall_us && bw.server.wall_us);
}

static void bandwidth_counts_every_operation(void **state)
{
	struct pair *p = *state;
	struct perf_path path;

	open_path(p, 2, 1u << 20, &path);
	for (unsigned i = 0; i < 8; i++) {
		const struct perf_plan plan = { .is_read = i & 1,
						.size = i & 2 ? 65536 : 3,
						.span = i & 2 ? 1u << 20 : 3,
						.iterations = 300,
						.batch = 16,
						.sleep = i & 4 };
		run_bw(p, &path, &plan, 600);
	}
	assert_int_equal(perf_path_end(p->peer, &path, NULL), 0);
}

/* Each end posts on lanes that the other needs to go on. */
static void both_ways_at_once(void **state)
{
	struct pair *p = *state;
	struct perf_path path;

	open_path(p, 3, 256u << 10, &path);
	for (unsigned i = 0; i < 4; i++) {
		const struct perf_plan plan = { .is_read = i & 1,
						.size = 256u << 10,
						.span = 256u << 10,
						.iterations = 100,
						.batch = 16,
						.sleep = i & 2,
						.both_ways = true };
		run_bw(p, &path, &plan, 600);
	}
	assert_int_equal(perf_path_end(p->peer, &path, NULL), 0);
}

static void bandwidth_by_time(void **state)
{
	const struct perf_plan plan = {
		.size = 4096, .span = 4096, .duration_ms = 100, .batch = 16, .sleep = true
	};
	struct pair *p = *state;
	struct perf_path path;

	open_path(p, 1, 4096, &path);
	run_bw(p, &path, &plan, 0);
	assert_int_equal(perf_path_end(p->peer, &path, NULL), 0);
}

static void latency_has_every_sample(void **state)
{
	struct pair *p = *state;
	struct perf_path path;

	open_path(p, 1, 16384, &path);
	for (unsigned i = 0; i < 6; i++) {
		const struct perf_plan plan = { .is_read = i % 3 > 0,
						.size = i < 3 ? 1 : 8192,
						.span = i < 3 ? 1 : 8192,
						.iterations =
							300, /* turns are numbered by a byte */
						.batch = 1,
						.sleep = i % 3 > 1 };
		struct mf_error err = { 0 };
		struct perf_lat lat;
		if (perf_lat_run(p->peer, &path, &plan, &lat, &err))
			fail_msg("%s", err.msg);
		assert_true(lat.iterations == 300 && lat.us.n == 300);
		for (unsigned k = 0; k < 300; k++)
			assert_true(lat.samples_us[k] > 0);
		assert_true(lat.us.min > 0 && lat.us.min <= lat.us.p50 &&
			    lat.us.p99_9 <= lat.us.max);
		free(lat.samples_us);
	}
	assert_int_equal(perf_path_end(p->peer, &path, NULL), 0);
}

/* A plan that would write beyond the lanes' memory, from a client that does not check. */
static void plans_stay_inside_the_memory(void **state)
{
	static const char *const plans[] = {
		"{\"size\":8193,\"span\":8193,\"iterations\":1,\"batch\":1}",
		"{\"size\":4096,\"span\":65536,\"iterations\":1,\"batch\":1,\"both_ways\":true}",
		"{\"size\":4096,\"span\":2048,\"iterations\":1,\"batch\":1}",
		"{\"size\":1,\"span\":1,\"iterations\":1,\"batch\":100000}",
		"{\"size\":1,\"span\":1,\"iterations\":0,\"batch\":1}",
		"{\"size\":-1,\"span\":1,\"iterations\":1,\"batch\":1}",
	};
	struct pair *p = *state;
	struct perf_path path;

	open_path(p, 1, 8192, &path);
	for (size_t i = 0; i < BASE_ARRAY_LEN(plans); i++) {
		struct mf_error err = { 0 };
		assert_true(perf_peer_call(p->peer, "bw", json_loads(plans[i], 0, NULL),
					   base_deadline_ms(5000), NULL, &err) < 0);
		assert_non_null(strstr(err.msg, "this plan makes no sense"));
	}
	struct mf_error err = { 0 };
	json_t *half =
		json_loads("{\"size\":4097,\"span\":4097,\"iterations\":1,\"batch\":1}", 0, NULL);
	assert_true(perf_peer_call(p->peer, "lat", half, base_deadline_ms(5000), NULL, &err) < 0);
	assert_int_equal(perf_path_end(p->peer, &path, NULL), 0);
}

int main(int argc, char *argv[])
{
#define WITH_PAIR(test) cmocka_unit_test_setup_teardown(test, open_pair, close_pair)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(percentiles_are_samples),
		cmocka_unit_test(small_deviations_are_not_lost),
		cmocka_unit_test(the_median_run_is_one_of_them),
		cmocka_unit_test(stats_survive_the_wire),
		cmocka_unit_test(slices_become_longer),
		cmocka_unit_test(slices_hold_several_operations),
		cmocka_unit_test(batches_of_completions_are_no_standstills),
		cmocka_unit_test(a_short_run_has_one_slice),
		cmocka_unit_test(bad_options_are_told),
		cmocka_unit_test(perftest_users_are_understood),
		cmocka_unit_test(man_page_lists_the_options),
		cmocka_unit_test(tables_are_aligned),
		cmocka_unit_test(what_is_no_json_ends_the_connection),
		cmocka_unit_test(a_silent_client_is_given_up),
		cmocka_unit_test(nobody_listens),
		WITH_PAIR(unknown_requests_change_nothing),
		WITH_PAIR(requests_are_checked),
		WITH_PAIR(bandwidth_counts_every_operation),
		WITH_PAIR(both_ways_at_once),
		WITH_PAIR(bandwidth_by_time),
		WITH_PAIR(latency_has_every_sample),
		WITH_PAIR(plans_stay_inside_the_memory),
	};

	if (argc > 1 && !strcmp(argv[1], "--man-options")) {
		perf_print_man_options(stdout);
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
