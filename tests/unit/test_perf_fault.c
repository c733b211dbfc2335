/* SPDX-License-Identifier: BSD-2-Clause */
/* Page faults served from another host's memory: client and server in this process, over 127.0.0.1. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "perf/doc.h"
#include "perf/fault.h"
#include "perf/verbs.h"
#include "tracker/pager.h"

#define MIB         (UINT64_C(1) << 20)
#define PATIENCE_MS 30000u

struct fixture {
	int listen_fd;
	pthread_t server;
	int served; /* what became of the server */
	struct perf_peer *peer;
	struct perf_fault_bench *bench;
	struct perf_path path;
};

static void check(int code, const struct mf_error *err)
{
	if (code)
		fail_msg("%d: %s", code, err->msg);
}

static void *serve(void *arg)
{
	struct fixture *f = arg;
	struct mf_error err = { 0 };
	struct perf_peer *peer;
	int fd = accept(f->listen_fd, NULL, NULL);

	f->served = perf_peer_accepted(fd, base_deadline_ms(PATIENCE_MS), &peer, &err);
	if (f->served)
		return NULL;
	f->served = perf_serve_client(peer, 64 * MIB, &err);
	perf_peer_close(peer);
	return NULL;
}

static int setup(void **state)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	struct fixture *f = calloc(1, sizeof(*f));
	struct mf_error err = { 0 };
	char address[32];

	assert_non_null(f);
	f->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(f->listen_fd, (struct sockaddr *)&addr, len), 0);
	assert_int_equal(listen(f->listen_fd, 1), 0);
	assert_int_equal(getsockname(f->listen_fd, (struct sockaddr *)&addr, &len), 0);
	assert_int_equal(pthread_create(&f->server, NULL, serve, f), 0);
	(void)snprintf(address, sizeof(address), "127.0.0.1:%u", ntohs(addr.sin_port));
	check(perf_peer_connect(address, base_deadline_ms(PATIENCE_MS), &f->peer, &err), &err);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	if (f->path.n)
		(void)perf_path_end(f->peer, &f->path, NULL);
	perf_fault_close(f->bench);
	perf_peer_close(f->peer);
	pthread_join(f->server, NULL);
	assert_int_equal(f->served, 0);
	close(f->listen_fd);
	free(f);
	return 0;
}

/* A bench of that many pages, its lanes, and its contents on the server. */
static void open_bench(struct fixture *f, uint64_t pages, uint64_t page_size, uint32_t uffds)
{
	const struct perf_fault_params params = {
		.bytes = pages * page_size, .page_size = page_size, .uffds = uffds, .seed = 7
	};
	struct mf_error err = { 0 };

	check(perf_fault_open(&params, &f->bench, &err), &err);
	const struct perf_path_params lanes = { .transport = "tcp",
						.gid = -1,
						.lanes = uffds,
						.depth = 32,
						.bytes = perf_fault_lane_bytes(f->bench),
						.memory = perf_fault_memory(f->bench) };
	check(perf_path_open(f->peer, &lanes, &f->path, &err), &err);
	check(perf_fault_fill(f->bench, f->peer, &f->path, &err), &err);
}

static void expect_parts_to_sum_up(const struct perf_fault *got)
{
	double sum = got->wake_us.mean + got->read_us.mean + got->install_us.mean;

	/* Each touch's do, so their means do. */
	assert_true(fabs(sum - got->latency_us.mean) < 1e-6 * got->latency_us.mean);
	assert_true(got->wake_us.min > 0 && got->read_us.min > 0 && got->install_us.min > 0);
	assert_true(got->latency_us.max >= got->read_us.max);
}

static void expect_good(struct fixture *f, uint32_t threads, uint64_t touches, uint64_t expected,
			uint64_t page_size)
{
	const struct perf_fault_plan plan = { .threads = threads, .touches = touches };
	struct mf_error err = { 0 };
	struct perf_fault got;

	check(perf_fault_run(f->bench, f->peer, &f->path, &plan, &got, &err), &err);
	assert_int_equal(got.touches, expected);
	assert_int_equal(got.latency_us.n, expected);
	assert_int_equal(got.wake_us.n, expected);
	assert_true(got.seconds > 0);
	assert_true(fabs(got.faults_per_s * got.seconds - (double)expected) < 1e-3);
	assert_true(fabs(got.bytes_per_s - got.faults_per_s * (double)page_size) <
		    1e-6 * got.bytes_per_s);
	assert_true(got.server.wall_us > 0 && got.client.wall_us > 0);
	expect_parts_to_sum_up(&got);
}

static void every_page_comes_right(void **state)
{
	struct fixture *f = *state;

	open_bench(f, 512, 4096, 1);
	for (uint32_t threads = 1; threads <= 4; threads++)
		expect_good(f, threads, 0, 512, 4096);
}

static void several_userfaultfds_share_the_pages(void **state)
{
	struct fixture *f = *state;

	/* 3 do not divide 512: 510 pages. */
	open_bench(f, 512, 4096, 3);
	expect_good(f, 1, 0, 510, 4096);
	expect_good(f, 5, 0, 510, 4096);
}

static void touches_are_limited(void **state)
{
	struct fixture *f = *state;

	open_bench(f, 512, 4096, 2);
	expect_good(f, 2, 33, 33, 4096);
	/* More threads than touches, more touches than pages. */
	expect_good(f, 8, 3, 3, 4096);
	expect_good(f, 2, 100000, 512, 4096);
}

/* Another test may be waiting for them; the kernel keeps some for the tests. */
static void huge_pages_come_right(void **state)
{
	const struct perf_fault_params params = { .bytes = 16 * MIB,
						  .page_size = 2 * MIB,
						  .uffds = 2 };
	struct flock whole = { .l_type = F_WRLCK };
	struct fixture *f = *state;
	char why[224];

	base_autofd lock =
		open("/tmp/memferry-test-hugepages.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	assert_true(lock >= 0 && fcntl(lock, F_SETLKW, &whole) == 0);
	if (perf_fault_why_not(&params, why, sizeof(why))) {
		print_message("SKIP: %s\n", why);
		skip();
	}
	open_bench(f, 8, 2 * MIB, 2);
	expect_good(f, 3, 0, 8, 2 * MIB);
	expect_good(f, 1, 5, 5, 2 * MIB);
	(void)perf_path_end(f->peer, &f->path, NULL);
	perf_fault_close(BASE_TAKE_PTR(f->bench));
}

/* Puts a wrong byte into the server's memory of lane 0. */
static void spoil(struct fixture *f, uint64_t offset)
{
	struct perf_end *end = &f->path.end[0];
	const struct tp_xfer x = { .local = end->mem,
				   .mr = end->mr,
				   .remote = end->remote.addr + offset,
				   .key = end->remote.key,
				   .len = 1 };
	struct mf_error err = { 0 };
	uint64_t in_flight = 0;
	json_t *answer = NULL;

	check(perf_peer_call(f->peer, "keep", NULL, base_deadline_ms(PATIENCE_MS), &answer, &err),
	      &err);
	json_decref(answer);
	end->mem[0] = (uint8_t)~end->mem[offset];
	check(perf_post_all(end->lane, false, &x, 1, &in_flight, &err), &err);
	check(perf_flush(end->lane, true, base_deadline_ms(PATIENCE_MS), &in_flight, &err), &err);
	check(perf_peer_call(f->peer, "keep_stop", NULL, base_deadline_ms(PATIENCE_MS), &answer,
			     &err),
	      &err);
	json_decref(answer);
}

static void a_wrong_byte_is_a_failure(void **state)
{
	static const uint64_t offsets[] = { 9 * 4096, 17 * 4096 + 2001, 30 * 4096 + 4095 };
	const struct perf_fault_plan plan = { .threads = 2 };
	struct fixture *f = *state;
	struct perf_fault got;

	open_bench(f, 64, 4096, 2);
	for (size_t i = 0; i < BASE_ARRAY_LEN(offsets); i++) {
		struct mf_error err = { 0 };
		char page[32];
		check(perf_fault_fill(f->bench, f->peer, &f->path, &err), &err);
		spoil(f, offsets[i]);
		assert_int_equal(perf_fault_run(f->bench, f->peer, &f->path, &plan, &got, &err),
				 -MF_EINTEGRITY);
		(void)snprintf(page, sizeof(page), "page %llu ",
			       (unsigned long long)(offsets[i] / 4096));
		assert_non_null(strstr(err.msg, page));
	}
}

static void a_lost_lane_lets_everybody_go(void **state)
{
	const struct perf_fault_plan plan = { .threads = 4 };
	struct fixture *f = *state;
	struct mf_error err = { 0 };
	struct perf_fault got;

	open_bench(f, 128, 4096, 2);
	tp_lane_shutdown(f->path.end[1].lane);
	assert_true(perf_fault_run(f->bench, f->peer, &f->path, &plan, &got, &err) < 0);
	assert_non_null(strstr(err.msg, "lane 1: "));
	/* Nothing is left behind: new lanes do. */
	(void)perf_path_end(f->peer, &f->path, NULL);
	perf_fault_close(BASE_TAKE_PTR(f->bench));
	open_bench(f, 128, 4096, 2);
	expect_good(f, 4, 0, 128, 4096);
}

static void lanes_are_kept_once_and_stopped_once(void **state)
{
	struct fixture *f = *state;
	struct mf_error err = { 0 };
	json_t *answer = NULL;

	assert_true(perf_peer_call(f->peer, "keep", NULL, base_deadline_ms(PATIENCE_MS), &answer,
				   &err) < 0);
	assert_non_null(strstr(err.msg, "no lanes are open"));
	open_bench(f, 4, 4096, 1);
	err = (struct mf_error){ 0 };
	assert_true(perf_peer_call(f->peer, "keep_stop", NULL, base_deadline_ms(PATIENCE_MS),
				   &answer, &err) < 0);
	assert_non_null(strstr(err.msg, "no lanes are kept going"));
	err = (struct mf_error){ 0 };
	check(perf_peer_call(f->peer, "keep", NULL, base_deadline_ms(PATIENCE_MS), &answer, &err),
	      &err);
	json_decref(answer);
	assert_true(perf_peer_call(f->peer, "keep", NULL, base_deadline_ms(PATIENCE_MS), &answer,
				   &err) < 0);
	assert_non_null(strstr(err.msg, "kept going already"));
	/* The end of the path, in teardown, ends them, too. */
}

static void what_a_host_lacks_is_said(void **state)
{
	struct perf_fault_params params = { .bytes = 8192, .page_size = 4096, .uffds = 3 };
	char why[224];

	(void)state;
	assert_non_null(perf_fault_why_not(&params, why, sizeof(why)));
	assert_string_equal(why, "the memory has fewer pages than userfaultfds");
	params.uffds = 2;
	assert_null(perf_fault_why_not(&params, why, sizeof(why)));
	params = (struct perf_fault_params){ .bytes = UINT64_C(1) << 50,
					     .page_size = 2 * MIB,
					     .uffds = 1 };
	assert_non_null(perf_fault_why_not(&params, why, sizeof(why)));
	assert_non_null(strstr(why, "huge pages of 2048 KiB"));
	params.page_size = 8192;
	assert_non_null(perf_fault_why_not(&params, why, sizeof(why)));
	assert_string_equal(why, "this host has no huge pages of 8 KiB");
}

static void run_verb(struct fixture *f, char *const argv[], int argc, json_t **ret_doc,
		     char **ret_text)
{
	struct perf_options o;
	struct mf_error err = { 0 };
	size_t len;

	check(perf_parse(PERF_FAULT, argc, argv, &o, &err), &err);
	struct perf_run run = { .o = &o,
				.peer = f->peer,
				.doc = perf_doc_new("fault", perf_options_json(&o)),
				.out = open_memstream(ret_text, &len) };
	assert_non_null(run.out);
	check(perf_verb_fault(&run, &err), &err);
	assert_int_equal(fclose(run.out), 0);
	*ret_doc = run.doc;
}

static void expect_row(const json_t *row, int uffds, int threads)
{
	static const char *const numbers[] = {
		"median_faults_per_s",
		"median_bytes_per_s",
		"faults_per_s.min",
		"faults_per_s.max",
		"seconds",
		"latency_us.p50",
		"latency_us.p99_9",
		"latency_us.max",
		"wake_us.p99",
		"read_us.p50",
		"install_us.p50",
	};

	assert_string_equal(perf_text(row, "transport"), "tcp");
	assert_int_equal(perf_number(row, "page"), 4096);
	assert_int_equal(perf_number(row, "server_page"), 4096);
	assert_int_equal(perf_number(row, "memory"), 2 * MIB);
	assert_int_equal(perf_number(row, "uffds"), uffds);
	assert_int_equal(perf_number(row, "threads"), threads);
	assert_int_equal(perf_number(row, "touches"), 100);
	assert_int_equal(perf_number(row, "faults_per_s.n"), 2);
	assert_null(json_object_get(row, "skipped"));
	for (size_t i = 0; i < BASE_ARRAY_LEN(numbers); i++) {
		if (perf_number(row, numbers[i]) <= 0)
			fail_msg("%s is missing", numbers[i]);
	}
	assert_non_null(perf_get(row, "cpu.client.user_ms"));
	assert_non_null(perf_get(row, "cpu.server.user_ms"));
	assert_non_null(perf_get(row, "bytes_per_cpu_s"));
}

static void a_row_each_combination(void **state)
{
	char *argv[] = { (char *)"127.0.0.1", (char *)"--transport", (char *)"tcp",
			 (char *)"--memory",  (char *)"2M",          (char *)"--page",
			 (char *)"4K,8K",     (char *)"--threads",   (char *)"1,2",
			 (char *)"--uffds",   (char *)"1,2",         (char *)"--repeat",
			 (char *)"2",         (char *)"--iters",     (char *)"100" };
	struct fixture *f = *state;
	json_t *doc;
	char *text;

	run_verb(f, argv, BASE_ARRAY_LEN(argv), &doc, &text);
	const json_t *rows = perf_doc_rows(doc);
	assert_int_equal(json_array_size(rows), 8);
	for (int i = 0; i < 4; i++)
		expect_row(json_array_get(rows, (size_t)i), 1 + i / 2, 1 + i % 2);
	for (size_t i = 4; i < 8; i++) {
		const json_t *row = json_array_get(rows, i);
		assert_int_equal(perf_number(row, "page"), 8192);
		assert_string_equal(perf_text(row, "skipped"),
				    "this host has no huge pages of 8 KiB");
	}
	assert_non_null(strstr(text, "faults/s"));
	assert_non_null(strstr(text, "install p50[us]"));
	assert_non_null(strstr(text, "skipped: pages of 8 KiB: this host has no huge pages"));
	json_decref(doc);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_page_comes_right, setup, teardown),
		cmocka_unit_test_setup_teardown(several_userfaultfds_share_the_pages, setup,
						teardown),
		cmocka_unit_test_setup_teardown(touches_are_limited, setup, teardown),
		cmocka_unit_test_setup_teardown(huge_pages_come_right, setup, teardown),
		cmocka_unit_test_setup_teardown(a_wrong_byte_is_a_failure, setup, teardown),
		cmocka_unit_test_setup_teardown(a_lost_lane_lets_everybody_go, setup, teardown),
		cmocka_unit_test_setup_teardown(lanes_are_kept_once_and_stopped_once, setup,
						teardown),
		cmocka_unit_test(what_a_host_lacks_is_said),
		cmocka_unit_test_setup_teardown(a_row_each_combination, setup, teardown),
	};
	struct mf_error err = { 0 };

	if (pgr_probe(PGR_SHARED, 4096, &err)) {
		print_message("SKIP: %s\n", err.msg);
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
