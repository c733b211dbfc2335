/* SPDX-License-Identifier: BSD-2-Clause */
/* The bandwidth of all pairs as a map: a row of cells a sender, a column a receiver. */
#include <math.h>
#include <string.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "perf/plot_priv.h"

#define NAMES_MAX   512u
#define NUMBERS_MAX 16u /* with more hosts there is no room for a number in a cell */
#define TICKS_MAX   40u

struct names {
	uint32_t n;
	char at[NAMES_MAX][64];
};

static void text_of(const json_t *row, const char *key, char ret[static 64])
{
	const json_t *value = json_object_get(row, key);

	if (json_is_integer(value))
		(void)snprintf(ret, 64, "%lld", (long long)json_integer_value(value));
	else
		(void)snprintf(ret, 64, "%s", perf_text(row, key));
}

/* Its place, and NAMES_MAX for those that have none. */
static uint32_t place_of(struct names *names, const char *text)
{
	for (uint32_t i = 0; i < names->n; i++) {
		if (!strcmp(names->at[i], text))
			return i;
	}
	if (names->n == NAMES_MAX || !text[0])
		return NAMES_MAX;
	(void)snprintf(names->at[names->n], sizeof(names->at[0]), "%s", text);
	return names->n++;
}

static double rate_of(const json_t *row)
{
	double rate = perf_number(row, "bytes_per_s");

	return rate > 0 ? rate : perf_number(row, "bytes_per_s.p50");
}

static uint32_t write_cells(FILE *to, const json_t *rows, struct names *names, double *ret_most)
{
	char from[64], into[64];
	uint32_t drawn = 0;
	json_t *row;
	size_t i;

	(void)fputs("$mesh << EOD\n", to);
	json_array_foreach(rows, i, row)
	{
		text_of(row, "from", from);
		text_of(row, "to", into);
		uint32_t y = place_of(names, from), x = place_of(names, into);
		double rate = rate_of(row);
		if (x == NAMES_MAX || y == NAMES_MAX || rate <= 0)
			continue;
		(void)fprintf(to, "%u %u %.9g\n", x, y, rate / 1e9);
		*ret_most = rate / 1e9 > *ret_most ? rate / 1e9 : *ret_most;
		drawn++;
	}
	(void)fputs("EOD\n", to);
	return drawn;
}

static void write_ticks(FILE *to, const char *axis, const struct names *names)
{
	uint32_t step = (names->n + TICKS_MAX - 1) / TICKS_MAX;

	(void)fprintf(to, "set %s (", axis);
	for (uint32_t i = 0; i < names->n; i += step) {
		(void)fputs(i ? ", " : "", to);
		plot_quote_tick(to, names->at[i]);
		(void)fprintf(to, " %u", i);
	}
	(void)fputs(")\n", to);
}

uint32_t plot_mesh(FILE *to, const json_t *doc)
{
	struct names *names base_cleanup(base_freep) = calloc(1, sizeof(*names));
	double most = 0;
	uint32_t drawn = names ? write_cells(to, perf_doc_rows(doc), names, &most) : 0;

	if (!drawn)
		return 0;
	plot_title(to, doc, "set title", "Bandwidth from each host to each other");
	write_ticks(to, "xtics rotate by 45 right nomirror", names);
	write_ticks(to, "ytics nomirror", names);
	/* Cividis: one order for all eyes, and on paper. */
	(void)fprintf(
		to,
		"set palette defined (0 '#00224e', 0.25 '#434e6c', 0.5 '#7d7c78', 0.75 '#bcae6c', "
		"1 '#fee838')\n"
		"set cbrange [0:%.9g]\n"
		"set cblabel 'GB/s (10^9 bytes/s)'\n"
		"set xlabel 'to'\nset ylabel 'from'\n"
		"set xrange [-0.5:%u.5]\nset yrange [%u.5:-0.5]\n"
		"set size ratio -1\n"
		"set tics scale 0\nunset key\n"
		"plot $mesh using 1:2:($1-0.5):($1+0.5):($2-0.5):($2+0.5):3 with boxxyerror "
		"fillstyle solid noborder linecolor palette",
		most, names->n - 1, names->n - 1);
	if (names->n <= NUMBERS_MAX)
		(void)fprintf(to,
			      ", $mesh using 1:2:(sprintf('%%.3g', $3)):($3 > %.9g ? 0x000000 : "
			      "0xffffff) with labels textcolor rgb variable",
			      most * 0.55);
	(void)fputc('\n', to);
	return drawn;
}
