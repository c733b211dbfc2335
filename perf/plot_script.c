/* SPDX-License-Identifier: BSD-2-Clause */
/* Parts of scripts: names, colours, titles, axes. */
#include <string.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "perf/plot_priv.h"

#define TICKS_MAX 12u

/* Single quotes: gnuplot looks into it for nothing but the end. */
static void quote(FILE *to, const char *text, bool is_format)
{
	(void)fputc('\'', to);
	for (; *text; text++) {
		if (*text == '\'' || (*text == '%' && is_format))
			(void)fputc(*text, to);
		(void)fputc((unsigned char)*text < ' ' || *text == 127 ? ' ' : *text, to);
	}
	(void)fputc('\'', to);
}

void plot_quote(FILE *to, const char *text)
{
	quote(to, text, false);
}

void plot_quote_tick(FILE *to, const char *text)
{
	quote(to, text, true);
}

/* Okabe and Ito's, without the yellow, which is lost on white. */
const char *plot_colour(uint32_t i)
{
	static const char *const colours[] = { "#0072b2", "#d55e00", "#009e73", "#cc79a7",
					       "#e69f00", "#56b4e9", "#000000" };

	return colours[i % BASE_ARRAY_LEN(colours)];
}

static struct plot_series *find_series(struct plot_list *list, const char *name)
{
	for (uint32_t i = 0; i < list->n; i++) {
		if (!strcmp(list->at[i].name, name))
			return &list->at[i];
	}
	if (list->n == PLOT_SERIES_MAX)
		return NULL;
	struct plot_series *series = &list->at[list->n++];
	*series = (struct plot_series){ 0 };
	(void)snprintf(series->name, sizeof(series->name), "%s", name);
	return series;
}

void plot_group(const json_t *rows, plot_name_fn name, struct plot_list *ret)
{
	char text[sizeof(ret->at[0].name)];
	json_t *row;
	size_t i;

	ret->n = 0;
	json_array_foreach(rows, i, row)
	{
		struct plot_series *series =
			name(row, text, sizeof(text)) ? find_series(ret, text) : NULL;
		if (series)
			series->n++;
	}
}

static const char *host_of(const json_t *doc, const char *role)
{
	json_t *host;
	size_t i;

	json_array_foreach(json_object_get(doc, "hosts"), i, host)
	{
		if (!strcmp(perf_text(host, "role"), role))
			return perf_text(host, "name");
	}
	return "";
}

void plot_title(FILE *to, const json_t *doc, const char *command, const char *what)
{
	const char *client = host_of(doc, "client"), *server = host_of(doc, "server");
	char text[512];

	(void)fprintf(to, "%s ", command);
	plot_quote(to, what);
	if (client[0] && server[0])
		(void)snprintf(text, sizeof(text), "%.150s to %.150s, %.40s", client, server,
			       perf_text(doc, "time"));
	else
		(void)snprintf(text, sizeof(text), "%zu hosts, %.40s",
			       json_array_size(json_object_get(doc, "hosts")),
			       perf_text(doc, "time"));
	(void)fputs(".\"\\n\".", to);
	plot_quote(to, text);
	(void)fputc('\n', to);
}

/* Distinct values, ascending; those beyond the most are left out. */
static uint32_t list_values(const json_t *rows, const char *path, double ret[PLOT_SIZES_MAX])
{
	uint32_t n = 0;
	json_t *row;
	size_t i;

	json_array_foreach(rows, i, row)
	{
		double value = perf_number(row, path);
		uint32_t at = n;
		while (at && ret[at - 1] > value)
			at--;
		if (value <= 0 || n == PLOT_SIZES_MAX || (at && ret[at - 1] == value))
			continue;
		memmove(&ret[at + 1], &ret[at], (n - at) * sizeof(*ret));
		ret[at] = value;
		n++;
	}
	return n;
}

void plot_format_bytes(double bytes, char *ret, size_t cap)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	size_t unit = 0;

	while (bytes >= 1024 && unit + 1 < BASE_ARRAY_LEN(units)) {
		bytes /= 1024;
		unit++;
	}
	(void)snprintf(ret, cap, "%.4g %s", bytes, units[unit]);
}

static void format_count(double count, char *ret, size_t cap)
{
	(void)snprintf(ret, cap, "%.0f", count);
}

static void value_axis(FILE *to, const json_t *rows, const char *path,
		       void (*format)(double value, char *ret, size_t cap))
{
	double value[PLOT_SIZES_MAX];
	uint32_t n = list_values(rows, path, value);
	uint32_t step = (n + TICKS_MAX - 1) / TICKS_MAX;
	char text[32];

	if (!n)
		return;
	(void)fprintf(to, "set logscale x 2\nset xrange [%.9g:%.9g]\nset xtics nomirror (",
		      value[0] / 1.3, value[n - 1] * 1.3);
	for (uint32_t i = 0; i < n; i += step) {
		format(value[i], text, sizeof(text));
		(void)fprintf(to, "%s'%s' %.9g", i ? ", " : "", text, value[i]);
	}
	(void)fputs(")\n", to);
}

void plot_size_axis(FILE *to, const json_t *rows, const char *path)
{
	value_axis(to, rows, path, plot_format_bytes);
}

void plot_count_axis(FILE *to, const json_t *rows, const char *path)
{
	value_axis(to, rows, path, format_count);
}
