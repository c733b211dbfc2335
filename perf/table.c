/* SPDX-License-Identifier: BSD-2-Clause */
/* Tables for people, out of a document's rows. */
#include <string.h>

#include "perf/doc.h"

#define CELL_MAX    64
#define COLUMNS_MAX 32u

static const char *format_cell(const struct perf_column *column, const json_t *row,
			       char buf[static CELL_MAX])
{
	const json_t *value = perf_get(row, column->path);

	if (json_is_number(value) && column->format) {
		double scale = column->scale != 0 ? column->scale : 1;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* from the tables of this program */
		(void)snprintf(buf, CELL_MAX, column->format, json_number_value(value) * scale);
#pragma GCC diagnostic pop
	} else {
		const char *text = json_string_value(value);
		(void)snprintf(buf, CELL_MAX, "%s", text ? text : "-");
	}
	return buf;
}

/* UTF-8: bytes that go on with a character take no place. */
static size_t width_of(const char *text)
{
	size_t n = 0;

	for (; *text; text++)
		n += ((unsigned char)*text & 0xc0) != 0x80;
	return n;
}

static bool has_any(const struct perf_column *column, const json_t *rows)
{
	size_t i;
	json_t *row;

	json_array_foreach(rows, i, row)
	{
		const json_t *value = perf_get(row, column->path);
		if (value && !json_is_null(value))
			return true;
	}
	return false;
}

static size_t column_width(const struct perf_column *column, const json_t *rows)
{
	size_t width = width_of(column->heading), i;
	char cell[CELL_MAX];
	json_t *row;

	json_array_foreach(rows, i, row)
	{
		size_t w = width_of(format_cell(column, row, cell));
		width = w > width ? w : width;
	}
	return width;
}

static void print_cell(FILE *to, const struct perf_column *column, const char *text, size_t width,
		       bool first)
{
	int pad = (int)(width - width_of(text));

	if (column->format)
		(void)fprintf(to, "%s%*s%s", first ? "" : "  ", pad, "", text);
	else
		(void)fprintf(to, "%s%s%*s", first ? "" : "  ", text, pad, "");
}

void perf_table(FILE *to, const struct perf_column *columns, size_t n, const json_t *rows)
{
	const struct perf_column *shown[COLUMNS_MAX];
	size_t width[COLUMNS_MAX], n_shown = 0, i;
	char cell[CELL_MAX];
	json_t *row;

	for (size_t c = 0; c < n && n_shown < COLUMNS_MAX; c++) {
		if (!has_any(&columns[c], rows))
			continue;
		shown[n_shown] = &columns[c];
		width[n_shown++] = column_width(&columns[c], rows);
	}
	for (size_t c = 0; c < n_shown; c++)
		print_cell(to, shown[c], shown[c]->heading, width[c], !c);
	(void)fputc('\n', to);
	json_array_foreach(rows, i, row)
	{
		for (size_t c = 0; c < n_shown; c++)
			print_cell(to, shown[c], format_cell(shown[c], row, cell), width[c], !c);
		(void)fputc('\n', to);
	}
}
