/* SPDX-License-Identifier: BSD-2-Clause */
/* Pictures of documents, by the real gnuplot: that they are there, and what their texts are. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "perf/plot.h"

struct fixture {
	char dir[64], file[96];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	(void)snprintf(f->dir, sizeof(f->dir), "/tmp/test-perf-plot-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	*state = f;
	return 0;
}

/* Nothing but the picture was left there. */
static int teardown(void **state)
{
	struct fixture *f = *state;

	if (f->file[0])
		(void)unlink(f->file);
	assert_int_equal(rmdir(f->dir), 0);
	free(f);
	return 0;
}

/* rows: JSON, with ' for ". */
static json_t *make_doc(const char *test, const char *rows)
{
	json_error_t error;
	char *text = strdup(rows);

	assert_non_null(text);
	for (char *at = text; (at = strchr(at, '\''));)
		*at = '"';
	json_t *doc = perf_doc_new(test, json_object());
	json_t *results = json_loads(text, 0, &error);
	if (!results)
		fail_msg("%s: %s", rows, error.text);
	perf_doc_add_host(doc, json_pack("{s:s, s:s}", "role", "client", "name", "alpha"));
	perf_doc_add_host(doc, json_pack("{s:s, s:s}", "role", "server", "name", "beta"));
	assert_int_equal(json_array_extend(perf_doc_rows(doc), results), 0);
	json_decref(results);
	free(text);
	return doc;
}

static char *read_file(const char *path, size_t *ret_len)
{
	FILE *f base_cleanup(base_fclosep) = fopen(path, "re");
	char *text = calloc(1, 1 << 20);

	assert_non_null(f);
	assert_non_null(text);
	*ret_len = fread(text, 1, (1 << 20) - 1, f);
	return text;
}

static void draw(struct fixture *f, const json_t *doc, const char *name)
{
	struct mf_error err = { 0 };

	if (f->file[0])
		assert_int_equal(unlink(f->file), 0);
	(void)snprintf(f->file, sizeof(f->file), "%s/%s", f->dir, name);
	if (perf_plot(doc, f->file, &err))
		fail_msg("%s: %s", name, err.msg);
}

static void expect_png(struct fixture *f, const json_t *doc)
{
	static const unsigned char magic[] = { 0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n' };
	static const char end[] = "IEND";
	size_t len;

	draw(f, doc, "picture.png");
	char *bytes base_cleanup(base_freep) = read_file(f->file, &len);
	assert_true(len > 2000);
	assert_memory_equal(bytes, magic, sizeof(magic));
	assert_memory_equal(bytes + len - 8, end, 4);
}

/* Labels: each is text of the picture; NULL ends them. */
static void expect_svg(struct fixture *f, const json_t *doc, const char *const *labels)
{
	size_t len;

	draw(f, doc, "picture.svg");
	char *text base_cleanup(base_freep) = read_file(f->file, &len);
	assert_non_null(strstr(text, "<svg "));
	assert_non_null(strstr(text, "</svg>"));
	for (; *labels; labels++) {
		if (!strstr(text, *labels))
			fail_msg("'%s' is not in the picture", *labels);
	}
}

static void expect_both(struct fixture *f, const char *test, const char *rows,
			const char *const *labels)
{
	json_t *doc = make_doc(test, rows);

	expect_svg(f, doc, labels);
	expect_png(f, doc);
	json_decref(doc);
}

#define RATE(x) "{'n':3,'min':" x "e9,'p50':" x ".2e9,'max':" x ".5e9}"

static void bandwidth_by_size(void **state)
{
	static const char *const labels[] = { "Bandwidth by size of operation",
					      "alpha to beta, 20",
					      "tcp write",
					      "verbs write both ways",
					      "4 KiB",
					      "1 MiB",
					      "GB/s (10^9 bytes/s)",
					      "Gb/s (10^9 bits/s)",
					      "bytes of one operation",
					      NULL };

	expect_both(*state, "bw",
		    "[{'transport':'tcp','op':'write','bytes':1048576,'bytes_per_s':" RATE(
			    "3") "},"
				 "{'transport':'tcp','op':'write','bytes':4096,'bytes_per_s':" RATE(
					 "1") "},"
					      "{'transport':'verbs','op':'write','bidirectional':"
					      "true,'bytes':4096,"
					      "'bytes_per_s':" RATE("9") "}]",
		    labels);
}

#define LATENCY "'latency_us':{'n':1000,'min':2,'p50':3,'p90':4,'p99':9,'p99_9':20,'max':90}"

static void latency_as_distributions(void **state)
{
	static const char *const labels[] = { "Latency: what share of the operations",
					      "verbs read, 2 B",
					      "tcp read, 64 B",
					      "99.9 %",
					      "share of the operations that took no longer",
					      NULL };

	expect_both(*state, "lat",
		    "[{'transport':'verbs','op':'read','bytes':2," LATENCY
		    ",'histogram':[[2,10],[3,890],[9.5,99],[90,1]]},"
		    "{'transport':'tcp','op':'read','bytes':64," LATENCY "}]",
		    labels);
}

/* Too many for distributions next to each other. */
static void latency_of_a_sweep_by_size(void **state)
{
	static const char *const labels[] = { "Latency by size of operation", "tcp write", "512 B",
					      "dotted: p99.9", NULL };
	char rows[4096] = "[";
	size_t at = 1;

	for (unsigned i = 1; i <= 9; i++)
		at += (size_t)snprintf(rows + at, sizeof(rows) - at,
				       "%s{'transport':'tcp','op':'write','bytes':%u," LATENCY "}",
				       i > 1 ? "," : "", 1u << i);
	(void)snprintf(rows + at, sizeof(rows) - at, "]");
	expect_both(*state, "lat", rows, labels);
}

#define FAULTS "'faults_per_s':{'n':3,'min':9000,'p50':10000,'max':11000}," LATENCY

static void faults_by_threads(void **state)
{
	static const char *const labels[] = { "Page faults served from the other host",
					      "tcp, 4 KiB pages, 1 userfaultfd",
					      "tcp, 4 KiB pages, 2 userfaultfds",
					      "1000 faults/s",
					      "threads that touch pages",
					      "dashed: p99",
					      NULL };

	expect_both(*state, "fault",
		    "[{'transport':'tcp','page':4096,'threads':1,'uffds':1," FAULTS "},"
		    "{'transport':'tcp','page':4096,'threads':4,'uffds':1," FAULTS "},"
		    "{'transport':'tcp','page':4096,'threads':4,'uffds':2," FAULTS "},"
		    "{'transport':'tcp','page':2097152,'threads':4,'uffds':2,'skipped':'none'}]",
		    labels);
}

#define MOVE                                                                                       \
	"'transport':'tcp','guest_bytes':1073741824,'downtime_ms':35,"                             \
	"'phases':[{'phase':'precopy','start_ms':10,'end_ms':1000},"                               \
	"{'phase':'switchover','start_ms':1000,'end_ms':1030},"                                    \
	"{'phase':'postcopy','start_ms':1040,'end_ms':1500}],"                                     \
	"'timeline':[{'ms':0,'phase':'precopy','bytes_per_s':0,'dirty_bytes_per_s':0,'done_bytes'" \
	":"                                                                                        \
	"0},{'ms':500,'phase':'precopy','bytes_per_s':1e9,'dirty_bytes_per_s':2e8,'done_bytes':1}" \
	","                                                                                        \
	"{'ms':1200,'phase':'postcopy','bytes_per_s':8e8,'dirty_bytes_per_s':0,'done_bytes':2}]"

static void a_move_as_timeline(void **state)
{
	static const char *const labels[] = { "Timeline of a move: hybrid, tcp, guest of 1 GiB",
					      "bandwidth",
					      "dirty rate",
					      "precopy",
					      "switchover",
					      "postcopy",
					      "downtime 35 ms",
					      "GB/s (10^9 bytes/s)",
					      "s since the start of the move",
					      NULL };

	expect_both(*state, "migrate", "[{'mode':'hybrid'," MOVE "}]", labels);
}

static void a_matrix_of_moves_as_panels(void **state)
{
	static const char *const labels[] = { "Timelines of the first 4 of 5 moves",
					      "hybrid, tcp, guest of 1 GiB",
					      "cold, tcp, guest of 1 GiB", NULL };

	expect_both(*state, "migrate",
		    "[{'mode':'hybrid'," MOVE "},{'mode':'precopy'," MOVE
		    "},{'mode':'postcopy'," MOVE "},{'mode':'cold'," MOVE "},{'mode':'hybrid'," MOVE
		    "}]",
		    labels);
}

static void a_mesh_as_map(void **state)
{
	static const char *const labels[] = { "Bandwidth from each host to each other",
					      "node1",
					      "100%s",
					      "12.5",
					      "GB/s (10^9 bytes/s)",
					      NULL };

	expect_both(*state, "mesh",
		    "[{'from':'node1','to':'100%s','bytes_per_s':12.5e9},"
		    "{'from':'100%s','to':'node1','bytes_per_s':3e9}]",
		    labels);
}

/* Names come from other hosts: they are shown, and nothing in them is obeyed. */
static void texts_are_not_obeyed(void **state)
{
	static const char *const labels[] = { "a&lt;&amp;>'`touch ", "_{x}^2 @y $z \\n",
					      "tcp'; system", NULL };
	struct fixture *f = *state;
	char name[128], witness[96];
	json_t *doc = make_doc("bw", "[]");

	(void)snprintf(witness, sizeof(witness), "%s/obeyed", f->dir);
	(void)snprintf(name, sizeof(name), "a<&>'`touch %s`\n\"_{x}^2 @y $z \\n", witness);
	perf_doc_add(doc, json_pack("{s:s, s:s, s:i, s:{s:f, s:f, s:f}}", "transport",
				    "tcp'; system", "op", "'`date`", "bytes", 64, "bytes_per_s",
				    "min", 1e9, "p50", 1e9, "max", 1e9));
	json_object_set_new(json_array_get(json_object_get(doc, "hosts"), 0), "name",
			    json_string(name));
	expect_svg(f, doc, labels);
	assert_int_equal(access(witness, F_OK), -1);
	json_decref(doc);
}

static void expect_refusal(const char *test, const char *rows, const char *file, int code,
			   const char *sentence)
{
	json_t *doc = make_doc(test, rows);
	struct mf_error err = { 0 };

	assert_int_equal(perf_plot(doc, file, &err), code);
	assert_int_equal(err.code, code);
	assert_string_equal(err.msg, sentence);
	json_decref(doc);
}

static void refusals_are_sentences(void **state)
{
	static const char nothing[] = "no result of this fault run can be drawn: rows are missing, "
				      "or were skipped";
	struct fixture *f = *state;
	char file[96];

	(void)snprintf(file, sizeof(file), "%s/x.svg", f->dir);
	expect_refusal("bw", "[]", "x.pdf", -MF_EUSAGE,
		       "--plot: 'x.pdf' ends neither in .svg nor in .png");
	expect_refusal("bw", "[]", "/tmp/.svg", -MF_EUSAGE,
		       "--plot: '/tmp/.svg' ends neither in .svg nor in .png");
	expect_refusal("bw", "[]", file, -ENODATA,
		       "this bw run has no results that could be drawn");
	expect_refusal("fault", "[{'transport':'tcp','threads':1,'skipped':'none'}]", file,
		       -ENODATA, nothing);
	expect_refusal("scan", "[{'bytes':1}]", file, -EOPNOTSUPP,
		       "there is no picture of scan results; there are of bw, lat, fault, migrate "
		       "and mesh");
	assert_int_equal(access(file, F_OK), -1);
}

/* Its folder is missing: nothing is drawn, gnuplot's failure or not. */
static void a_file_that_cannot_be_written_is_an_error(void **state)
{
	struct fixture *f = *state;
	json_t *doc = make_doc(
		"bw", "[{'transport':'tcp','op':'write','bytes':2,'bytes_per_s':" RATE("1") "}]");
	struct mf_error err = { 0 };
	char file[96];

	(void)snprintf(file, sizeof(file), "%s/none/x.svg", f->dir);
	assert_int_equal(perf_plot(doc, file, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "cannot write "));
	json_decref(doc);
}

static void put_program(const char *path, const char *script)
{
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	assert_true(fputs(script, f) >= 0);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(path, 0755), 0);
}

/* A stand-in for gnuplot that fails as it would: the last thing it says is told, no file is left. */
static void gnuplot_that_fails_is_an_error(void **state)
{
	struct fixture *f = *state;
	json_t *doc = make_doc(
		"bw", "[{'transport':'tcp','op':'write','bytes':2,'bytes_per_s':" RATE("1") "}]");
	char *path = strdup(getenv("PATH")), program[96], file[96];
	struct mf_error err = { 0 };

	(void)snprintf(program, sizeof(program), "%s/gnuplot", f->dir);
	(void)snprintf(file, sizeof(file), "%s/x.svg", f->dir);
	put_program(program,
		    "#!/bin/sh\necho partly\nprintf 'plot x\\n  ^\\nline 3: odd\\n' >&2\nexit 3\n");
	assert_int_equal(setenv("PATH", f->dir, 1), 0);
	int failed = perf_plot(doc, file, &err);
	put_program(program, "#!/bin/sh\nexit 0\n");
	struct mf_error mute = { 0 };
	int empty = perf_plot(doc, file, &mute);
	assert_int_equal(setenv("PATH", path, 1), 0);
	assert_int_equal(unlink(program), 0);
	free(path);
	assert_int_equal(failed, -EIO);
	assert_string_equal(err.msg, "gnuplot failed with status 3: line 3: odd");
	assert_int_equal(empty, -EIO);
	assert_string_equal(mute.msg, "gnuplot drew nothing: it said nothing");
	json_decref(doc);
}

static void gnuplot_that_is_missing_is_named(void **state)
{
	struct fixture *f = *state;
	char *path = strdup(getenv("PATH"));
	struct mf_error err = { 0 };

	assert_int_equal(perf_plot_check("x.png", &err), 0);
	assert_int_equal(setenv("PATH", f->dir, 1), 0);
	int code = perf_plot_check("x.png", &err);
	assert_int_equal(setenv("PATH", path, 1), 0);
	free(path);
	assert_int_equal(code, -ENOENT);
	assert_non_null(strstr(err.msg, "package gnuplot-nox"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(bandwidth_by_size, setup, teardown),
		cmocka_unit_test_setup_teardown(latency_as_distributions, setup, teardown),
		cmocka_unit_test_setup_teardown(latency_of_a_sweep_by_size, setup, teardown),
		cmocka_unit_test_setup_teardown(faults_by_threads, setup, teardown),
		cmocka_unit_test_setup_teardown(a_move_as_timeline, setup, teardown),
		cmocka_unit_test_setup_teardown(a_matrix_of_moves_as_panels, setup, teardown),
		cmocka_unit_test_setup_teardown(a_mesh_as_map, setup, teardown),
		cmocka_unit_test_setup_teardown(texts_are_not_obeyed, setup, teardown),
		cmocka_unit_test_setup_teardown(refusals_are_sentences, setup, teardown),
		cmocka_unit_test_setup_teardown(a_file_that_cannot_be_written_is_an_error, setup,
						teardown),
		cmocka_unit_test_setup_teardown(gnuplot_that_fails_is_an_error, setup, teardown),
		cmocka_unit_test_setup_teardown(gnuplot_that_is_missing_is_named, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
