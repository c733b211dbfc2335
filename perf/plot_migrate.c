/* SPDX-License-Identifier: BSD-2-Clause */
/* Timelines of moves: phases, bandwidth, dirty rate, downtime; a panel a move. */
#include <string.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "perf/plot_priv.h"

#define PANELS_MAX 4u

/* In the order of a move; light, so that lines show. */
static const struct phase {
	const char *name, *colour;
} phases[] = {
	{ "connect", "#eeeeee" },  { "check", "#e4e4e4" },      { "prepare", "#f3e9d2" },
	{ "precopy", "#dcecf7" },  { "switchover", "#f9d5bf" }, { "handoff", "#f2c6de" },
	{ "postcopy", "#d4efe4" },
};

static const struct phase *find_phase(const char *name)
{
	for (size_t i = 0; i < BASE_ARRAY_LEN(phases); i++) {
		if (!strcmp(phases[i].name, name))
			return &phases[i];
	}
	return NULL;
}

static bool is_drawn(const json_t *row)
{
	return json_array_size(json_object_get(row, "timeline")) ||
	       json_array_size(json_object_get(row, "phases"));
}

static double end_of(const json_t *row)
{
	double end = 0;
	json_t *at;
	size_t i;

	json_array_foreach(json_object_get(row, "phases"), i, at) end =
		perf_number(at, "end_ms") > end ? perf_number(at, "end_ms") : end;
	json_array_foreach(json_object_get(row, "timeline"), i, at) end =
		perf_number(at, "ms") > end ? perf_number(at, "ms") : end;
	return end > 0 ? end : 1;
}

/* The dirty rate is 0 where it is not known. */
static void write_timeline(FILE *to, const json_t *row, uint32_t panel)
{
	json_t *at;
	size_t i;

	(void)fprintf(to, "$time%u << EOD\n", panel);
	json_array_foreach(json_object_get(row, "timeline"), i, at)
	{
		double dirty = perf_number(at, "dirty_bytes_per_s");
		(void)fprintf(to, "%.9g %.9g ", perf_number(at, "ms"),
			      perf_number(at, "bytes_per_s"));
		(void)(dirty > 0 ? fprintf(to, "%.9g\n", dirty) : fprintf(to, "NaN\n"));
	}
	/* A block without a line would be an error. */
	(void)fputs("NaN NaN NaN\nEOD\n", to);
}

/* The guest stands still from the switchover on. */
static double downtime_start(const json_t *row)
{
	json_t *at;
	size_t i;

	json_array_foreach(json_object_get(row, "phases"), i, at)
	{
		if (!strcmp(perf_text(at, "phase"), "switchover"))
			return perf_number(at, "start_ms");
	}
	return -1;
}

static void write_phases(FILE *to, const json_t *row)
{
	json_t *at;
	size_t i;

	(void)fputs("unset object\nunset arrow\nunset label\n", to);
	json_array_foreach(json_object_get(row, "phases"), i, at)
	{
		const struct phase *phase = find_phase(perf_text(at, "phase"));
		double start = perf_number(at, "start_ms"), end = perf_number(at, "end_ms");
		if (phase && end > start)
			(void)fprintf(to,
				      "set object rectangle from first %.9g, graph 0 to first "
				      "%.9g, graph 1 behind fillcolor rgb '%s' fillstyle solid "
				      "noborder\n",
				      start / 1e3, end / 1e3, phase->colour);
	}
}

static void write_downtime(FILE *to, const json_t *row, double end_ms)
{
	double ms = perf_number(row, "downtime_ms"), start = downtime_start(row);
	bool is_late = start > 0.7 * end_ms;
	char text[64];

	if (start < 0 || !json_is_number(json_object_get(row, "downtime_ms")))
		return;
	(void)snprintf(text, sizeof(text), is_late ? "downtime %.3g ms " : " downtime %.3g ms", ms);
	/* Two lines: where it is too short to be seen as a range, they become one. */
	for (unsigned i = 0; i < 2; i++)
		(void)fprintf(
			to,
			"set arrow from first %.9g, graph 0 to first %.9g, graph 1 nohead front "
			"linewidth 1.5 dashtype 3 linecolor rgb '#a00000'\n",
			(start + i * ms) / 1e3, (start + i * ms) / 1e3);
	(void)fputs("set label ", to);
	plot_quote(to, text);
	(void)fprintf(to, " at first %.9g, graph 0.95 %s front textcolor rgb '#a00000'\n",
		      (is_late ? start : start + ms) / 1e3, is_late ? "right" : "left");
}

static bool has_phase(const json_t *doc, const char *name)
{
	json_t *row, *at;
	size_t i, k;

	json_array_foreach(perf_doc_rows(doc), i, row)
	{
		json_array_foreach(json_object_get(row, "phases"), k, at)
		{
			if (!strcmp(perf_text(at, "phase"), name))
				return true;
		}
	}
	return false;
}

/* Shades are objects, which have no entries in a key: lines of nothing have. */
static void write_key_of_phases(FILE *to, const json_t *doc)
{
	for (size_t i = 0; i < BASE_ARRAY_LEN(phases); i++) {
		if (has_phase(doc, phases[i].name))
			(void)fprintf(
				to,
				", NaN with boxes fillstyle solid noborder linecolor rgb '%s' "
				"title '%s'",
				phases[i].colour, phases[i].name);
	}
}

/* "hybrid, tcp": what a panel is about, as far as the row says. */
static void name_move(const json_t *row, char *ret, size_t cap)
{
	char size[32] = "";

	if (perf_number(row, "guest_bytes") > 0)
		plot_format_bytes(perf_number(row, "guest_bytes"), size, sizeof(size));
	(void)snprintf(ret, cap, "%.24s%s%.24s%s%s", perf_text(row, "mode"),
		       perf_text(row, "mode")[0] ? ", " : "", perf_text(row, "transport"),
		       size[0] ? ", guest of " : "", size);
}

static void write_panel(FILE *to, const json_t *doc, const json_t *row, uint32_t panel, bool last)
{
	double end = end_of(row);

	(void)fprintf(to, "set xrange [0:%.9g]\n%s\n", end / 1e3,
		      last ? "set key at screen 0.5, screen 0.015 center bottom horizontal Left "
			     "reverse samplen 2 maxrows 2"
			   : "unset key");
	write_phases(to, row);
	write_downtime(to, row, end);
	(void)fprintf(to,
		      "plot $time%u using ($1/1e3):($2/1e9) with lines linewidth 2.5 "
		      "linecolor rgb '#0072b2' title 'bandwidth', "
		      "$time%u using ($1/1e3):($3/1e9) with lines linewidth 2 dashtype 2 "
		      "linecolor rgb '#d55e00' title 'dirty rate'",
		      panel, panel);
	write_key_of_phases(to, doc);
	(void)fputc('\n', to);
}

static uint32_t count_panels(const json_t *rows, uint32_t *ret_all)
{
	json_t *row;
	size_t i;

	*ret_all = 0;
	json_array_foreach(rows, i, row) *ret_all += is_drawn(row);
	return *ret_all < PANELS_MAX ? *ret_all : PANELS_MAX;
}

static void start_panels(FILE *to, const json_t *doc, uint32_t n, uint32_t all)
{
	char title[80], command[160];

	if (n < all)
		(void)snprintf(title, sizeof(title), "Timelines of the first %u of %u moves", n,
			       all);
	else
		(void)snprintf(title, sizeof(title), "Timelines of %u moves", n);
	(void)snprintf(command, sizeof(command),
		       "set multiplot layout 2,%u margins screen 0.07, 0.97, 0.19, 0.86 spacing "
		       "screen 0.08, 0.19 title",
		       n > 2 ? 2u : 1u);
	plot_title(to, doc, command, title);
}

/* Of a panel among several, or of the whole picture. */
static void name_panel(FILE *to, const json_t *doc, const json_t *row, uint32_t n)
{
	char name[120], title[160];

	name_move(row, name, sizeof(name));
	if (n > 1) {
		(void)fputs("set title ", to);
		plot_quote(to, name);
		(void)fputc('\n', to);
		return;
	}
	(void)snprintf(title, sizeof(title), "Timeline of a move%s%s", name[0] ? ": " : "", name);
	plot_title(to, doc, "set bmargin 7\nset title", title);
}

uint32_t plot_migrate(FILE *to, const json_t *doc)
{
	const json_t *rows = perf_doc_rows(doc);
	uint32_t all, n = count_panels(rows, &all), panel = 0;
	json_t *row;
	size_t i;

	(void)fputs("set border 3 linecolor rgb '#606060'\n"
		    "set grid linecolor rgb '#cccccc' linetype 1\n"
		    "set ytics nomirror\nset xtics nomirror\n"
		    "set xlabel 's since the start of the move'\n"
		    "set ylabel 'GB/s (10^9 bytes/s)'\n"
		    "set yrange [0:*]\nset offsets 0, 0, graph 0.12, 0\n",
		    to);
	if (n > 1)
		start_panels(to, doc, n, all);
	json_array_foreach(rows, i, row)
	{
		if (panel == n || !is_drawn(row))
			continue;
		write_timeline(to, row, panel);
		name_panel(to, doc, row, n);
		write_panel(to, doc, row, panel, panel + 1 == n);
		panel++;
	}
	(void)fputs(n > 1 ? "unset multiplot\n" : "", to);
	return n;
}
