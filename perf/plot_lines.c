/* SPDX-License-Identifier: BSD-2-Clause */
/* Lines: bandwidth by size, latency by share or by size, page faults by threads. */
#include <math.h>
#include <string.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "perf/plot_priv.h"

#define CURVES_MAX 8u /* distributions that eyes can keep apart in one picture */

static const char *direction_of(const json_t *row)
{
	return json_is_true(json_object_get(row, "bidirectional")) ? " both ways" : "";
}

static bool name_stream(const json_t *row, char *name, size_t cap)
{
	(void)snprintf(name, cap, "%.16s %.16s%s", perf_text(row, "transport"),
		       perf_text(row, "op"), direction_of(row));
	return perf_number(row, "bytes") > 0;
}

static bool name_curve(const json_t *row, char *name, size_t cap)
{
	char size[32];

	plot_format_bytes(perf_number(row, "bytes"), size, sizeof(size));
	(void)snprintf(name, cap, "%.16s %.16s, %s", perf_text(row, "transport"),
		       perf_text(row, "op"), size);
	return perf_number(row, "latency_us.n") > 0;
}

static bool name_faults(const json_t *row, char *name, size_t cap)
{
	double uffds = perf_number(row, "uffds");
	char size[32];

	plot_format_bytes(perf_number(row, "page"), size, sizeof(size));
	(void)snprintf(name, cap, "%.16s, %s pages, %.0f userfaultfd%s",
		       perf_text(row, "transport"), size, uffds, uffds == 1 ? "" : "s");
	return perf_number(row, "faults_per_s.p50") > 0;
}

/* One datablock a series, $PREFIX0 and so on: a line a row, ascending by the first field. */
struct block {
	const char *prefix;
	plot_name_fn name;
	const char *const *fields; /* numbers in the row */
	size_t n_fields;
};

static void write_number(FILE *to, const json_t *row, const char *path)
{
	const json_t *value = perf_get(row, path);

	if (json_is_number(value))
		(void)fprintf(to, "%.9g ", json_number_value(value));
	else
		(void)fputs("NaN ", to);
}

/* The row of the series with the least value of the field that is more than *last. */
static const json_t *next_row(const struct block *block, const json_t *rows, const char *series,
			      double *last)
{
	char name[sizeof(((struct plot_series *)0)->name)];
	const json_t *found = NULL;
	double least = INFINITY;
	json_t *row;
	size_t i;

	json_array_foreach(rows, i, row)
	{
		double value = perf_number(row, block->fields[0]);
		if (value > *last && value < least && block->name(row, name, sizeof(name)) &&
		    !strcmp(name, series)) {
			found = row;
			least = value;
		}
	}
	*last = least;
	return found;
}

static void write_blocks(FILE *to, const struct block *block, const json_t *rows,
			 const struct plot_list *list)
{
	for (uint32_t s = 0; s < list->n; s++) {
		double last = 0;
		const json_t *row;
		(void)fprintf(to, "$%s%u << EOD\n", block->prefix, s);
		while ((row = next_row(block, rows, list->at[s].name, &last))) {
			for (size_t f = 0; f < block->n_fields; f++)
				write_number(to, row, block->fields[f]);
			(void)fputc('\n', to);
		}
		(void)fputs("EOD\n", to);
	}
}

static void write_grid(FILE *to)
{
	(void)fputs("set grid back linecolor rgb '#dddddd' linetype 1\n"
		    "set border 3 linecolor rgb '#606060'\n"
		    "set bars 0.6\n"
		    "set key tmargin center horizontal Left reverse samplen 2\n"
		    "set rmargin 8\n",
		    to);
}

struct line {
	const char *prefix;
	const char *columns; /* "1:2" */
	const char *style;   /* "linespoints" */
	bool in_key;
	uint32_t dash;
};

/* One line of every series, continuing a plot command; separator before the first. */
static void write_lines(FILE *to, const struct plot_list *list, const struct line *line,
			const char *separator)
{
	for (uint32_t s = 0; s < list->n; s++) {
		(void)fprintf(to,
			      "%s$%s%u using %s with %s linewidth 2 dashtype %u linecolor rgb '%s' "
			      "pointtype %u pointsize 0.7 %s",
			      s ? ", " : separator, line->prefix, s, line->columns, line->style,
			      line->dash, plot_colour(s), s % 2 ? 5u : 7u,
			      line->in_key ? "title " : "notitle");
		if (line->in_key)
			plot_quote(to, list->at[s].name);
	}
}

uint32_t plot_bw(FILE *to, const json_t *doc)
{
	static const char *const fields[] = { "bytes", "bytes_per_s.p50", "bytes_per_s.min",
					      "bytes_per_s.max" };
	const struct block block = { "bw", name_stream, fields, BASE_ARRAY_LEN(fields) };
	const struct line line = { "bw", "1:($2/1e9):($3/1e9):($4/1e9)", "yerrorlines", true, 1 };
	const json_t *rows = perf_doc_rows(doc);
	struct plot_list list;

	plot_group(rows, name_stream, &list);
	write_blocks(to, &block, rows, &list);
	write_grid(to);
	plot_title(to, doc, "set multiplot layout 1,1 title", "Bandwidth by size of operation");
	plot_size_axis(to, rows, "bytes");
	(void)fputs("set xlabel 'bytes of one operation'\n"
		    "set ylabel 'GB/s (10^9 bytes/s): median, least and most'\n"
		    "set yrange [0:*]\nset offsets 0, 0, graph 0.05, 0\n"
		    "set ytics nomirror\n"
		    "set link y2 via y*8 inverse y/8\n"
		    "set y2label 'Gb/s (10^9 bits/s)'\n"
		    "set y2tics\n"
		    "set border 11\n"
		    "plot ",
		    to);
	write_lines(to, &list, &line, "");
	(void)fputs("\nunset multiplot\n", to);
	return list.n;
}

/* From a share of p on, all take at least so long: x is 1 / (1 - p), the last one's share ends at n. */
static void write_step(FILE *to, double before, double after, double n, double us)
{
	double end = after < 1 ? 1 / (1 - after) : n;

	(void)fprintf(to, "%.9g %.9g\n%.9g %.9g\n", 1 / (1 - before), us, end < n ? end : n, us);
}

static void write_histogram(FILE *to, const json_t *histogram)
{
	double n = 0, seen = 0;
	json_t *bin;
	size_t i;

	json_array_foreach(histogram, i, bin) n += json_number_value(json_array_get(bin, 1));
	json_array_foreach(histogram, i, bin)
	{
		double count = json_number_value(json_array_get(bin, 1));
		if (count <= 0)
			continue;
		write_step(to, seen / n, (seen + count) / n, n,
			   json_number_value(json_array_get(bin, 0)));
		seen += count;
	}
}

/* Without a histogram the percentiles have to do. */
static void write_percentiles(FILE *to, const json_t *row)
{
	static const struct {
		const char *path;
		double x;
	} known[] = { { "latency_us.min", 1 },
		      { "latency_us.p50", 2 },
		      { "latency_us.p90", 10 },
		      { "latency_us.p99", 100 },
		      { "latency_us.p99_9", 1000 } };
	double n = perf_number(row, "latency_us.n");

	for (size_t i = 0; i < BASE_ARRAY_LEN(known) && known[i].x <= n; i++)
		(void)fprintf(to, "%.9g %.9g\n", known[i].x, perf_number(row, known[i].path));
	if (n > 1)
		(void)fprintf(to, "%.9g %.9g\n", n, perf_number(row, "latency_us.max"));
}

static void write_curve(FILE *to, const json_t *rows, const char *series)
{
	char name[sizeof(((struct plot_series *)0)->name)];
	json_t *row;
	size_t i;

	json_array_foreach(rows, i, row)
	{
		const json_t *histogram = json_object_get(row, "histogram");
		if (!name_curve(row, name, sizeof(name)) || strcmp(name, series) != 0)
			continue;
		if (json_array_size(histogram))
			write_histogram(to, histogram);
		else
			write_percentiles(to, row);
		return;
	}
}

static void plot_curves(FILE *to, const json_t *doc, const struct plot_list *list)
{
	const struct line line = { "lat", "1:2", "lines", true, 1 };
	double most = 10;
	json_t *row;
	size_t i;

	for (uint32_t s = 0; s < list->n; s++) {
		(void)fprintf(to, "$lat%u << EOD\n", s);
		write_curve(to, perf_doc_rows(doc), list->at[s].name);
		(void)fputs("EOD\n", to);
	}
	json_array_foreach(perf_doc_rows(doc), i, row)
	{
		double n = perf_number(row, "latency_us.n");
		most = n > most ? n : most;
	}
	plot_title(to, doc, "set multiplot layout 1,1 title",
		   "Latency: what share of the operations took how long");
	(void)fputs(
		"set logscale x 10\nset logscale y 10\n"
		"set xtics nomirror ('0 %%' 1, '50 %%' 2, '90 %%' 10, '99 %%' 100, '99.9 %%' 1e3, "
		"'99.99 %%' 1e4, '99.999 %%' 1e5, '99.9999 %%' 1e6)\n"
		"set xlabel 'share of the operations that took no longer'\n"
		"set ylabel 'µs'\n"
		"set xrange [1:*]\n"
		"set offsets 0, 0, graph 0.05, graph 0.05\n"
		"set ytics nomirror\n"
		"plot ",
		to);
	write_lines(to, list, &line, "");
	(void)fputs("\nunset multiplot\n", to);
}

static void plot_latency_by_size(FILE *to, const json_t *doc)
{
	static const char *const fields[] = { "bytes", "latency_us.p50", "latency_us.p99",
					      "latency_us.p99_9" };
	static const struct line lines[] = { { "lat", "1:2", "linespoints", true, 1 },
					     { "lat", "1:3", "linespoints", false, 2 },
					     { "lat", "1:4", "linespoints", false, 3 } };
	const struct block block = { "lat", name_stream, fields, BASE_ARRAY_LEN(fields) };
	const json_t *rows = perf_doc_rows(doc);
	struct plot_list list;

	plot_group(rows, name_stream, &list);
	write_blocks(to, &block, rows, &list);
	plot_title(to, doc, "set multiplot layout 1,1 title", "Latency by size of operation");
	plot_size_axis(to, rows, "bytes");
	(void)fputs("set logscale y 10\n"
		    "set xlabel 'bytes of one operation'\n"
		    "set ylabel 'µs (solid: p50, dashed: p99, dotted: p99.9)'\n"
		    "set ytics nomirror\n"
		    "plot ",
		    to);
	for (size_t i = 0; i < BASE_ARRAY_LEN(lines); i++)
		write_lines(to, &list, &lines[i], i ? ", " : "");
	(void)fputs("\nunset multiplot\n", to);
}

uint32_t plot_lat(FILE *to, const json_t *doc)
{
	struct plot_list list;

	plot_group(perf_doc_rows(doc), name_curve, &list);
	write_grid(to);
	if (list.n > CURVES_MAX)
		plot_latency_by_size(to, doc);
	else
		plot_curves(to, doc, &list);
	return list.n;
}

uint32_t plot_fault(FILE *to, const json_t *doc)
{
	static const char *const fields[] = { "threads",          "faults_per_s.p50",
					      "faults_per_s.min", "faults_per_s.max",
					      "latency_us.p50",   "latency_us.p99" };
	static const struct line rate = { "fault", "1:($2/1e3):($3/1e3):($4/1e3)", "yerrorlines",
					  true, 1 };
	static const struct line p50 = { "fault", "1:5", "linespoints", false, 1 };
	static const struct line p99 = { "fault", "1:6", "linespoints", false, 2 };
	const struct block block = { "fault", name_faults, fields, BASE_ARRAY_LEN(fields) };
	const json_t *rows = perf_doc_rows(doc);
	struct plot_list list;

	plot_group(rows, name_faults, &list);
	write_blocks(to, &block, rows, &list);
	write_grid(to);
	plot_title(to, doc, "set multiplot layout 2,1 title",
		   "Page faults served from the other host's memory");
	plot_count_axis(to, rows, "threads");
	(void)fputs("set xlabel 'threads that touch pages'\n"
		    "set ytics nomirror\n"
		    "set ylabel '1000 faults/s: median, least and most'\n"
		    "set yrange [0:*]\nset offsets 0, 0, graph 0.05, 0\n"
		    "plot ",
		    to);
	write_lines(to, &list, &rate, "");
	(void)fputs("\nset ylabel 'µs from the touch on (solid: p50, dashed: p99)'\n"
		    "set autoscale y\nset logscale y 10\nset offsets 0, 0, 0, 0\n"
		    "plot ",
		    to);
	write_lines(to, &list, &p50, "");
	write_lines(to, &list, &p99, ", ");
	(void)fputs("\nunset multiplot\n", to);
	return list.n;
}
