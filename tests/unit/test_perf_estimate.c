/* SPDX-License-Identifier: BSD-2-Clause */
/* What a move is predicted to take, and how a prediction is compared with what it took. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "perf/estimate.h"

#define MIB 1048576.0
#define GIB (1024 * MIB)

/* 4 GiB of RAM, of which half holds data, over a path of 1 GiB/s; nothing writes. */
static struct perf_estimate_in still_guest(enum mf_mode mode)
{
	return (struct perf_estimate_in){
		.mode = mode,
		.ram_bytes = 4 * GIB,
		.allocated_bytes = 3 * GIB,
		.data_bytes = 2 * GIB,
		.dirty = { .n = 2, .s = { 0.1, 0.2 } },
		.bytes_per_s = GIB,
		.pull_bytes_per_s = GIB / 2,
		.read_us = 20,
		.read_p99_us = 90,
		.switchover_us = 40000,
		.max_downtime_us = 300000,
	};
}

/* Each byte that is written is another one. */
static void write_all_over(struct perf_estimate_in *in, double bytes_per_s)
{
	in->dirty.n = WATCH_WINDOWS_MAX;
	for (unsigned i = 0; i < WATCH_WINDOWS_MAX; i++) {
		in->dirty.s[i] = 0.1 * (double)(1u << i);
		in->dirty.bytes[i] = bytes_per_s * in->dirty.s[i];
	}
}

/* After `bytes` of them the same ones again. */
static void write_hot_set(struct perf_estimate_in *in, double bytes_per_s, double bytes)
{
	write_all_over(in, bytes_per_s);
	for (unsigned i = 0; i < WATCH_WINDOWS_MAX; i++)
		in->dirty.bytes[i] = in->dirty.bytes[i] < bytes ? in->dirty.bytes[i] : bytes;
}

static void assert_near(double a, double b)
{
	double off = a > b ? a - b : b - a;
	if (off > 1e-6 * (b > 1 ? b : 1))
		fail_msg("%.9g is not %.9g", a, b);
}

static void curve_is_followed(void **state)
{
	(void)state;
	const struct perf_curve c = {
		.n = 3, .s = { 1, 2, 4 }, .bytes = { 100, 150, 170 }, .runs = { 10, 12, 8 }
	};
	double runs;

	assert_near(perf_curve_at(&c, 0, 1e9, &runs), 0);
	assert_near(runs, 0);
	assert_near(perf_curve_at(&c, 0.5, 1e9, &runs), 50);
	assert_near(runs, 5);
	assert_near(perf_curve_at(&c, 2, 1e9, NULL), 150);
	assert_near(perf_curve_at(&c, 3, 1e9, &runs), 160);
	assert_near(runs, 10);
	assert_near(perf_curve_at(&c, 8, 1e9, NULL), 210);
	assert_near(perf_curve_at(&c, 800, 1000, &runs), 1000);
	assert_near(runs, 0);
	const struct perf_curve none = { 0 };
	assert_near(perf_curve_at(&none, 5, 1e9, &runs), 0);
}

static void curve_never_falls(void **state)
{
	(void)state;
	const struct perf_curve noisy = { .n = 3, .s = { 1, 2, 4 }, .bytes = { 100, 90, 95 } };
	double last = 0;

	for (double s = 0; s < 10; s += 0.25) {
		double bytes = perf_curve_at(&noisy, s, 1e9, NULL);
		assert_true(bytes >= last);
		last = bytes;
	}
	assert_near(last, 100);
}

static void still_guest_takes_one_round(void **state)
{
	(void)state;
	const enum mf_mode modes[] = { MF_MODE_PRECOPY, MF_MODE_HYBRID };

	for (unsigned i = 0; i < BASE_ARRAY_LEN(modes); i++) {
		struct perf_estimate_in in = still_guest(modes[i]);
		struct perf_estimate e;
		perf_estimate(&in, &e);
		assert_true(e.converges && !e.postcopy);
		assert_int_equal(e.n_rounds, 2); /* the second with the guest paused, for nothing */
		assert_near(e.round[0].us, 2e6);
		assert_near(e.round[0].bytes, 2 * GIB);
		assert_near(e.round[1].bytes, 0);
		assert_near(e.bytes, 2 * GIB);
		assert_near(e.downtime_us, 40000);
		assert_near(e.total_us, 2e6 + 40000);
	}
}

static void cold_guest_stands_still_for_all_of_it(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_COLD);
	struct perf_estimate e;

	write_all_over(&in, 8 * GIB);
	perf_estimate(&in, &e);
	assert_true(e.converges && !e.postcopy);
	assert_int_equal(e.n_rounds, 1);
	assert_near(e.downtime_us, 2e6 + 40000);
	assert_near(e.total_us, e.downtime_us);
}

/* Zero pages are no holes: nobody knows of them before they are read. */
static void postcopy_pulls_what_is_no_hole(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_POSTCOPY);
	struct perf_estimate e;

	perf_estimate(&in, &e);
	assert_true(e.postcopy);
	assert_int_equal(e.n_rounds, 0);
	assert_near(e.missing_bytes, 3 * GIB);
	assert_near(e.postcopy_us, 6e6);
	assert_near(e.downtime_us, 40000);
	assert_near(e.total_us, 6e6 + 40000);
	assert_near(e.fault_us, 20);
	assert_near(e.fault_p99_us, 90);
}

static void writer_faster_than_the_path_never_converges(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_PRECOPY);
	struct perf_estimate e;

	write_all_over(&in, 2 * GIB);
	perf_estimate(&in, &e);
	assert_false(e.converges || e.postcopy);
	/* What it takes when it is told to cut over: more than the downtime that was wanted. */
	assert_true(e.downtime_us > in.max_downtime_us);
	assert_true(e.n_rounds >= 3);
	for (unsigned i = 0; i < e.n_rounds; i++)
		assert_true(e.round[i].dirty_bytes <= in.ram_bytes);

	in.mode = MF_MODE_HYBRID;
	perf_estimate(&in, &e);
	assert_true(e.postcopy && !e.converges);
	assert_near(e.missing_bytes, 4 * GIB);
	assert_near(e.downtime_us, 40000);
	assert_true(e.postcopy_us > 0 && e.total_us > e.postcopy_us);
}

static void rounds_shrink_until_the_downtime_fits(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_PRECOPY);
	struct perf_estimate e;

	write_all_over(&in, GIB / 2); /* each round leaves half of what it wrote */
	perf_estimate(&in, &e);
	assert_true(e.converges);
	/* 2, 1, 1/2 GiB leave 1, 1/2, 1/4: the last is 250 ms and 40. */
	assert_int_equal(e.n_rounds, 4);
	assert_near(e.round[2].dirty_bytes, GIB / 4);
	assert_near(e.round[3].bytes, GIB / 4);
	assert_near(e.downtime_us, 250000 + 40000);
	in.max_downtime_us = 50000;
	perf_estimate(&in, &e);
	assert_true(e.converges && e.n_rounds > 4 && e.downtime_us <= 50000);
}

static void hot_set_is_all_that_is_sent_again(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_PRECOPY);
	struct perf_estimate e;

	write_hot_set(&in, 8 * GIB, 128 * MIB);
	perf_estimate(&in, &e);
	assert_true(e.converges);
	assert_int_equal(e.n_rounds, 2);
	assert_near(e.round[0].dirty_bytes, 128 * MIB);
	assert_near(e.downtime_us, 125000 + 40000);

	write_hot_set(&in, 8 * GIB, GIB); /* as often as one likes */
	perf_estimate(&in, &e);
	assert_false(e.converges);
	for (unsigned i = 0; i < e.n_rounds; i++)
		assert_true(e.round[i].dirty_bytes <= GIB + 1);
}

static void more_bandwidth_is_never_worse(void **state)
{
	(void)state;
	for (int mode = 0; mode < MF_MODE_COUNT; mode++) {
		double total = 1e18, downtime = 1e18;
		if (mode == MF_MODE_WARM)
			continue;
		for (double rate = GIB; rate < 64 * GIB; rate *= 1.25) {
			struct perf_estimate_in in = still_guest((enum mf_mode)mode);
			struct perf_estimate e;
			write_hot_set(&in, GIB / 2, 200 * MIB);
			in.bytes_per_s = in.pull_bytes_per_s = rate;
			in.max_downtime_us = 60000;
			perf_estimate(&in, &e);
			assert_true(e.total_us <= total);
			/* A round less may be enough then, and leaves more: but never more than was allowed. */
			assert_true(e.downtime_us <= downtime ||
				    e.downtime_us <= in.max_downtime_us);
			total = e.total_us;
			downtime = e.downtime_us;
		}
	}
}

static void limit_is_for_the_running_guest(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_PRECOPY);
	struct perf_estimate e;

	write_hot_set(&in, 8 * GIB, 128 * MIB);
	in.max_bytes_per_s = GIB / 2;
	in.max_downtime_us = 1e6;
	perf_estimate(&in, &e);
	assert_near(e.round[0].us, 4e6);
	assert_near(e.downtime_us, 125000 + 40000);
	in.mode = MF_MODE_COLD;
	perf_estimate(&in, &e);
	assert_near(e.downtime_us, 2e6 + 40000);
}

static void scattered_pages_take_longer(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_PRECOPY);
	struct perf_estimate e;

	write_hot_set(&in, 8 * GIB, 64 * MIB);
	for (unsigned i = 0; i < in.dirty.n; i++)
		in.dirty.runs[i] = 1000;
	in.run_us = 50;
	perf_estimate(&in, &e);
	assert_int_equal(e.n_rounds, 2);
	assert_near(e.downtime_us, 62500 + 50000 + 40000);
}

static void first_touch_is_paid_once(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_PRECOPY);
	struct perf_estimate e;

	write_hot_set(&in, 8 * GIB, 64 * MIB);
	in.touch_bytes_per_s = GIB;
	perf_estimate(&in, &e);
	assert_near(e.round[0].us, 2e6 + 2e6);
	assert_near(e.downtime_us, 62500 + 40000);
	in.touches_ahead = true; /* all 4 GiB, while the lanes write */
	perf_estimate(&in, &e);
	assert_near(e.round[0].us, 4e6);
	in.touch_bytes_per_s = 100 * GIB;
	perf_estimate(&in, &e);
	assert_near(e.round[0].us, 2e6);
}

static void registering_is_over_before_the_pause(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_COLD);
	struct perf_estimate e;

	in.touch_bytes_per_s = GIB;
	in.touches_ahead = true;
	perf_estimate(&in, &e);
	assert_near(e.downtime_us, 2e6 + 40000);
	assert_near(e.total_us, 4e6 + 2e6 + 40000);
	in.mode = MF_MODE_POSTCOPY;
	perf_estimate(&in, &e);
	assert_near(e.downtime_us, 40000);
	assert_near(e.total_us, 4e6 + 6e6 + 40000);
}

/* ---- comparing ---- */

static json_t *document_of(const struct perf_estimate_in *in)
{
	json_t *doc = perf_doc_new("estimate", json_object());
	struct perf_estimate e;

	perf_estimate(in, &e);
	perf_doc_add(doc, perf_estimate_json(&e));
	return doc;
}

static const json_t *figure(const json_t *rows, const char *name)
{
	size_t i;
	json_t *row;

	json_array_foreach(rows, i, row)
	{
		if (!strcmp(perf_text(row, "figure"), name))
			return row;
	}
	fail_msg("no figure '%s'", name);
	return NULL;
}

static void estimate_is_compared_with_the_move(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_PRECOPY);
	json_t *doc = document_of(&in), *rows = json_array();
	/* Of the rounds in between the report keeps none. */
	json_t *report =
		json_pack("{s:s,s:s,s:i,s:i,s:I,s:[{s:i},{s:i}],s:n}", "outcome", "completed",
			  "mode", "precopy", "total_ms", 1020, "downtime_ms", 80, "bytes_written",
			  (json_int_t)GIB, "rounds", "n", 1, "n", 4, "postcopy");
	struct mf_error err = { 0 };

	assert_int_equal(perf_estimate_compare(doc, report, rows, &err), 0);
	assert_int_equal(json_array_size(rows), 4);
	assert_near(perf_number(figure(rows, "total"), "predicted"), 2040);
	assert_near(perf_number(figure(rows, "total"), "actual"), 1020);
	assert_near(perf_number(figure(rows, "total"), "off_percent"), 100);
	assert_near(perf_number(figure(rows, "downtime"), "off_percent"), -50);
	assert_near(perf_number(figure(rows, "rounds"), "actual"), 4);
	assert_near(perf_number(figure(rows, "written by the source"), "off_percent"), 100);
	json_decref(report);
	json_decref(rows);
	json_decref(doc);
}

static void what_was_pulled_is_compared(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_POSTCOPY);
	json_t *doc = document_of(&in), *rows = json_array();
	json_t *report =
		json_pack("{s:s,s:s,s:i,s:i,s:i,s:[],s:{s:i,s:i}}", "outcome", "completed", "mode",
			  "postcopy", "total_ms", 6040, "downtime_ms", 40, "bytes_written", 0,
			  "rounds", "postcopy", "ms", 3000, "pulled_pages", 3 * 256 * 1024);
	struct mf_error err = { 0 };

	assert_int_equal(perf_estimate_compare(doc, report, rows, &err), 0);
	assert_near(perf_number(figure(rows, "missing at the switch"), "off_percent"), 0);
	assert_near(perf_number(figure(rows, "until all are there"), "off_percent"), 100);
	assert_true(json_is_null(
		json_object_get(figure(rows, "written by the source"), "off_percent")));
	json_decref(report);
	json_decref(rows);
	json_decref(doc);
}

static void what_does_not_go_together_is_told(void **state)
{
	(void)state;
	struct perf_estimate_in in = still_guest(MF_MODE_PRECOPY);
	json_t *doc = document_of(&in), *rows = json_array();
	json_t *other = json_pack("{s:s,s:s}", "outcome", "completed", "mode", "cold");
	json_t *failed = json_pack("{s:s,s:s}", "outcome", "aborted", "mode", "precopy");
	struct mf_error err = { 0 };

	assert_int_equal(perf_estimate_compare(doc, other, rows, &err), -MF_EUSAGE);
	assert_string_equal(err.msg,
			    "--estimate: it holds no estimate for the mode of the move, cold");
	err = (struct mf_error){ 0 };
	assert_int_equal(perf_estimate_compare(doc, failed, rows, &err), -MF_EUSAGE);
	assert_string_equal(err.msg, "--against: it holds no report of a move that was completed");
	assert_int_equal(json_array_size(rows), 0);
	json_decref(failed);
	json_decref(other);
	json_decref(rows);
	json_decref(doc);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(curve_is_followed),
		cmocka_unit_test(curve_never_falls),
		cmocka_unit_test(still_guest_takes_one_round),
		cmocka_unit_test(cold_guest_stands_still_for_all_of_it),
		cmocka_unit_test(postcopy_pulls_what_is_no_hole),
		cmocka_unit_test(writer_faster_than_the_path_never_converges),
		cmocka_unit_test(rounds_shrink_until_the_downtime_fits),
		cmocka_unit_test(hot_set_is_all_that_is_sent_again),
		cmocka_unit_test(more_bandwidth_is_never_worse),
		cmocka_unit_test(limit_is_for_the_running_guest),
		cmocka_unit_test(scattered_pages_take_longer),
		cmocka_unit_test(first_touch_is_paid_once),
		cmocka_unit_test(registering_is_over_before_the_pause),
		cmocka_unit_test(estimate_is_compared_with_the_move),
		cmocka_unit_test(what_was_pulled_is_compared),
		cmocka_unit_test(what_does_not_go_together_is_told),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
