/* SPDX-License-Identifier: BSD-2-Clause */
/* The tests of one host, with tiny sizes: rows are whole, and what makes no sense is refused with a sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "perf/local.h"
#include "perf/team.h"
#include "tracker/tracker.h"

typedef int (*local_fn)(const json_t *options, uint64_t max_bytes, json_t *ret_rows,
			struct mf_error *err);

static json_t *run_within(local_fn fn, const char *options, uint64_t max_bytes, int *ret_code,
			  struct mf_error *err)
{
	json_error_t at;
	json_t *o = json_loads(options, 0, &at), *rows = json_array();

	if (!o)
		fail_msg("%s: %s", options, at.text);
	*ret_code = fn(o, max_bytes, rows, err);
	json_decref(o);
	return rows;
}

static json_t *run(local_fn fn, const char *options)
{
	struct mf_error err = { 0 };
	int code;
	json_t *rows = run_within(fn, options, UINT64_MAX, &code, &err);

	if (code)
		fail_msg("%s: %d, %s", options, code, err.msg);
	assert_true(json_array_size(rows) > 0);
	return rows;
}

static void check_refused(local_fn fn, const char *options, uint64_t max_bytes, int expected,
			  const char *sentence)
{
	struct mf_error err = { 0 };
	int code;
	json_t *rows = run_within(fn, options, max_bytes, &code, &err);

	if (code != expected || !strstr(err.msg, sentence))
		fail_msg("%s: %d, '%s', not %d, '%s'", options, code, err.msg, expected, sentence);
	assert_int_equal(json_array_size(rows), 0);
	json_decref(rows);
}

static void check_positive(const json_t *row, const char *path)
{
	if (!(perf_number(row, path) > 0))
		fail_msg("%s is %f", path, perf_number(row, path));
}

static void check_stats(const json_t *row, const char *key, unsigned n)
{
	char path[64];

	(void)snprintf(path, sizeof(path), "%s.n", key);
	assert_int_equal((int)perf_number(row, path), n);
	(void)snprintf(path, sizeof(path), "%s.p50", key);
	check_positive(row, path);
	(void)snprintf(path, sizeof(path), "%s.min", key);
	check_positive(row, path);
}

static bool is_skipped(const json_t *row)
{
	return perf_text(row, "skipped")[0];
}

static uint64_t whole(const json_t *row, const char *path)
{
	return (uint64_t)perf_number(row, path);
}

/* ---- scan ---- */

static void scan_has_a_row_for_each_content_and_thread_count(void **state)
{
	static const char *const contents[] = { "zero", "first", "last", "mix" };
	json_t *rows =
		run(local_scan,
		    "{\"memory\": 2097152, \"threads\": [1, 3], \"repeat\": 2, \"seed\": 7}");

	(void)state;
	assert_int_equal(json_array_size(rows), 8);
	for (size_t i = 0; i < 8; i++) {
		const json_t *row = json_array_get(rows, i);
		assert_string_equal(perf_text(row, "content"), contents[i % 4]);
		assert_int_equal(whole(row, "threads"), i < 4 ? 1 : 3);
		assert_int_equal(whole(row, "bytes"), 2097152);
		check_stats(row, "bytes_per_s", 2);
		check_stats(row, "read_bytes_per_s", 2);
		check_stats(row, "copy_bytes_per_s", 2);
		check_stats(row, "ratio_to_read", 2);
		check_positive(row, "median_bytes_per_s");
		check_positive(row, "median_pages_per_s");
		check_positive(row, "cpu.client.ms");
	}
	assert_int_equal(whole(json_array_get(rows, 0), "zero_pages"), 512);
	assert_int_equal(whole(json_array_get(rows, 1), "zero_pages"), 0);
	assert_int_equal(whole(json_array_get(rows, 2), "zero_pages"), 0);
	uint64_t mixed = whole(json_array_get(rows, 3), "zero_pages");
	assert_true(mixed > 128 && mixed < 384);
	/* By the seed, whoever scans. */
	assert_int_equal(whole(json_array_get(rows, 7), "zero_pages"), mixed);
	json_decref(rows);
}

static void scan_refuses_what_it_cannot_do(void **state)
{
	(void)state;
	check_refused(local_scan,
		      "{\"memory\": 4096, \"threads\": [1], \"repeat\": 1, \"seed\": 1}",
		      UINT64_MAX, -MF_EUSAGE, "--memory: has to be between 2097152 and");
	check_refused(local_scan,
		      "{\"memory\": 4194304, \"threads\": [0], \"repeat\": 1, \"seed\": 1}",
		      UINT64_MAX, -MF_EUSAGE, "--threads: has to be between 1 and 256");
	check_refused(local_scan,
		      "{\"memory\": 4194304, \"threads\": [], \"repeat\": 1, \"seed\": 1}",
		      UINT64_MAX, -MF_EUSAGE, "--threads: takes 1 to 64 values");
	check_refused(local_scan,
		      "{\"memory\": 4194304, \"threads\": 3, \"repeat\": 1, \"seed\": 1}",
		      UINT64_MAX, -MF_EUSAGE, "--threads: takes 1 to 64 values");
	check_refused(local_scan,
		      "{\"memory\": 4194304, \"threads\": [1], \"repeat\": 1001, \"seed\": 1}",
		      UINT64_MAX, -MF_EUSAGE, "--repeat: has to be between 1 and 1000");
	check_refused(local_scan,
		      "{\"memory\": 4194304, \"threads\": [1], \"repeat\": 1, \"seed\": -1}",
		      UINT64_MAX, -MF_EUSAGE, "--seed: has to be between 0 and 4294967295");
	check_refused(local_scan,
		      "{\"memory\": \"4M\", \"threads\": [1], \"repeat\": 1, \"seed\": 1}",
		      UINT64_MAX, -MF_EUSAGE, "--memory: has to be between");
	check_refused(local_scan,
		      "{\"memory\": 4194304, \"threads\": [1], \"repeat\": 1, \"seed\": 1}",
		      4194303, -MF_EREFUSED, "4.00 MiB of memory are more than the server allows");
}

/* ---- register ---- */

static void check_registered(const json_t *row, unsigned repeat)
{
	check_stats(row, "fault_in_ms", repeat);
	check_stats(row, "register_cold_ms", repeat);
	check_stats(row, "register_warm_ms", repeat);
	check_stats(row, "deregister_ms", repeat);
	check_stats(row, "bytes_per_s", repeat);
	check_positive(row, "median_bytes_per_s");
	check_positive(row, "cpu.client.ms");
	assert_int_equal(whole(row, "registrations"), whole(row, "threads"));
}

static void register_has_a_row_for_each_size_and_thread_count(void **state)
{
	json_t *rows = run(local_register,
			   "{\"sizes\": [4096, 1048576], \"page\": [4096], \"threads\": [1, 2],"
			   " \"transport\": \"tcp\", \"repeat\": 3}");

	(void)state;
	assert_int_equal(json_array_size(rows), 4);
	for (size_t i = 0; i < 4; i++) {
		const json_t *row = json_array_get(rows, i);
		assert_string_equal(perf_text(row, "transport"), "tcp");
		assert_int_equal(whole(row, "bytes"), i < 2 ? 4096 : 1048576);
		assert_int_equal(whole(row, "page_bytes"), 4096);
		assert_int_equal(whole(row, "threads"), 1 + i % 2);
		if (i == 1) /* one page, two threads */
			assert_non_null(strstr(perf_text(row, "skipped"), "each of 2 threads"));
		else
			check_registered(row, 3);
	}
	json_decref(rows);
}

/* Huge pages may be there or not; a row there is, and it says which. */
static void register_says_what_huge_pages_lack(void **state)
{
	json_t *rows =
		run(local_register, "{\"sizes\": [65536, 1099511627776], \"page\": [2097152],"
				    " \"threads\": [1], \"transport\": \"tcp\", \"repeat\": 1}");

	(void)state;
	assert_int_equal(json_array_size(rows), 2);
	assert_non_null(strstr(perf_text(json_array_get(rows, 0), "skipped"),
			       "64.00 KiB are no whole pages of 2.00 MiB"));
	assert_non_null(strstr(perf_text(json_array_get(rows, 1), "skipped"), "huge pages of"));
	json_decref(rows);
}

static void register_refuses_what_it_cannot_do(void **state)
{
	(void)state;
	check_refused(local_register,
		      "{\"sizes\": [100], \"page\": [4096], \"threads\": [1],"
		      " \"transport\": \"tcp\", \"repeat\": 1}",
		      UINT64_MAX, -MF_EUSAGE, "--sizes: has to be between 4096 and");
	check_refused(local_register,
		      "{\"sizes\": [4096], \"page\": [12288], \"threads\": [1],"
		      " \"transport\": \"tcp\", \"repeat\": 1}",
		      UINT64_MAX, -MF_EUSAGE, "--page: 12288 is no size of pages");
	check_refused(local_register,
		      "{\"sizes\": [4096, 8192], \"page\": [4096], \"threads\": [1],"
		      " \"transport\": \"tcp\", \"repeat\": 1}",
		      8191, -MF_EREFUSED, "8.00 KiB of memory are more than the server allows");
	check_refused(local_register,
		      "{\"sizes\": [4096], \"page\": [4096], \"threads\": [1],"
		      " \"transport\": \"pigeon\", \"repeat\": 1}",
		      UINT64_MAX, -MF_EREFUSED, "built without pigeon");
}

/* ---- track ---- */

static void check_tracked(const json_t *row, unsigned repeat, uint64_t dirty)
{
	check_stats(row, "start_ms", repeat);
	check_stats(row, "untracked_write_ns", repeat);
	check_stats(row, "first_write_ns", repeat);
	check_stats(row, "second_write_ns", repeat);
	check_stats(row, "collect_idle_ms", repeat);
	check_stats(row, "collect_dirty_ms", repeat);
	check_stats(row, "stop_ms", repeat);
	assert_int_equal((int)perf_number(row, "penalty_ns.n"), repeat);
	assert_int_equal(whole(row, "dirty_pages"), dirty);
	assert_true(whole(row, "reported_pages") >= dirty);
	check_positive(row, "cpu.client.ms");
}

static void track_has_a_row_for_each_tracker(void **state)
{
	json_t *rows = run(local_track, "{\"memory\": 4194304, \"page\": [4096], \"repeat\": 2,"
					" \"seed\": 1, \"dirty-pages\": 100}");
	unsigned n = 0;

	(void)state;
	for (; trk_backends()[n]; n++) {
		const json_t *row = json_array_get(rows, n);
		struct mf_error why = { 0 };
		bool can = trk_probe(trk_backends()[n], NULL, &why) == 0;
		assert_string_equal(perf_text(row, "tracker"), trk_backends()[n]->name);
		if (can && !is_skipped(row))
			check_tracked(row, 2, 100);
		else if (!can)
			assert_string_equal(perf_text(row, "skipped"), why.msg);
		else /* for this memory, or by permission */
			assert_int_equal(json_object_size(row), 4);
	}
	assert_int_equal(json_array_size(rows), n);
	json_decref(rows);
}

/* More than there are. */
static void track_writes_every_page_at_most_once(void **state)
{
	json_t *rows =
		run(local_track, "{\"memory\": 2097152, \"page\": [4096, 2097152, 1073741824],"
				 " \"repeat\": 1, \"seed\": 1, \"dirty-pages\": 1000000000,"
				 " \"trackers\": \"writeprotect\"}");

	(void)state;
	assert_int_equal(json_array_size(rows), 3);
	if (!is_skipped(json_array_get(rows, 0)))
		check_tracked(json_array_get(rows, 0), 1, 512);
	if (!is_skipped(json_array_get(rows, 1)))
		check_tracked(json_array_get(rows, 1), 1, 1);
	assert_true(is_skipped(json_array_get(rows, 2)));
	json_decref(rows);
}

static void track_refuses_what_it_cannot_do(void **state)
{
	(void)state;
	check_refused(local_track,
		      "{\"memory\": 2097152, \"page\": [4096], \"repeat\": 1, \"seed\": 1,"
		      " \"dirty-pages\": 1, \"trackers\": \"pagemap,magic\"}",
		      UINT64_MAX, -MF_EUSAGE, "--trackers: 'magic' is none; there are ");
	check_refused(local_track,
		      "{\"memory\": 2097152, \"page\": [4096], \"repeat\": 1, \"seed\": 1,"
		      " \"dirty-pages\": 0}",
		      UINT64_MAX, -MF_EUSAGE, "--dirty-pages: has to be between 1 and");
	check_refused(local_track,
		      "{\"memory\": 2097152, \"page\": [4096], \"repeat\": 1, \"seed\": 1,"
		      " \"dirty-pages\": 1}",
		      2097151, -MF_EREFUSED, "2.00 MiB of memory are more than the server allows");
}

/* ---- a team ---- */

struct tally {
	unsigned runs[5];
	int fails; /* the member that does; -1: none */
};

static int count(void *ctx, unsigned i, struct mf_error *err)
{
	struct tally *t = ctx;

	t->runs[i]++;
	return (int)i == t->fails ? base_error(err, -5, MF_SCOPE_OP, "member %u fails", i) : 0;
}

static void each_member_takes_its_share_once_a_turn(void **state)
{
	struct tally t = { .fails = -1 };
	struct perf_team *team;
	struct mf_error err = { 0 };
	uint64_t ns;

	(void)state;
	assert_int_equal(perf_team_start(5, &team, &err), 0);
	for (unsigned turn = 1; turn <= 100; turn++) {
		ns = 0;
		assert_int_equal(perf_team_do(team, count, &t, &ns, &err), 0);
		assert_true(ns > 0);
		for (unsigned i = 0; i < 5; i++)
			assert_int_equal(t.runs[i], turn);
	}
	t.fails = 3;
	assert_int_equal(perf_team_do(team, count, &t, &ns, &err), -5);
	assert_string_equal(err.msg, "member 3 fails");
	assert_int_equal(t.runs[4], 101); /* the others were waited for */
	perf_team_end(team);
	perf_team_end(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(scan_has_a_row_for_each_content_and_thread_count),
		cmocka_unit_test(scan_refuses_what_it_cannot_do),
		cmocka_unit_test(register_has_a_row_for_each_size_and_thread_count),
		cmocka_unit_test(register_says_what_huge_pages_lack),
		cmocka_unit_test(register_refuses_what_it_cannot_do),
		cmocka_unit_test(track_has_a_row_for_each_tracker),
		cmocka_unit_test(track_writes_every_page_at_most_once),
		cmocka_unit_test(track_refuses_what_it_cannot_do),
		cmocka_unit_test(each_member_takes_its_share_once_a_turn),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
