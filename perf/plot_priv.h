/* SPDX-License-Identifier: BSD-2-Clause */
/* What the pictures' scripts for gnuplot share.  Data stand in the scripts, as datablocks. */
#ifndef PERF_PLOT_PRIV_H
#define PERF_PLOT_PRIV_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#define PLOT_SERIES_MAX 64u
#define PLOT_SIZES_MAX  64u

/* Rows of one line of a picture: those with the same name. */
struct plot_series {
	char name[96];
	uint32_t n;
};
struct plot_list {
	uint32_t n; /* what is beyond the most is not drawn */
	struct plot_series at[PLOT_SERIES_MAX];
};

/* Fills name; false: the row is not drawn. */
typedef bool (*plot_name_fn)(const json_t *row, char *name, size_t cap);
void plot_group(const json_t *rows, plot_name_fn name, struct plot_list *ret);

/* As gnuplot reads it, quotes around it: nothing in it is obeyed. */
void plot_quote(FILE *to, const char *text);
/* The same for labels of ticks, which are formats to gnuplot. */
void plot_quote_tick(FILE *to, const char *text);
/* "64 KiB". */
void plot_format_bytes(double bytes, char *ret, size_t cap);
/* A colour that is told from its neighbours by colour-blind eyes, too: "#0072b2". */
const char *plot_colour(uint32_t i);
/* "set title": what, the hosts, the time. */
void plot_title(FILE *to, const json_t *doc, const char *command, const char *what);
/* Ticks of the x axis at the sizes that rows have in a field, as "64 KiB", and its range; for a log axis. */
void plot_size_axis(FILE *to, const json_t *rows, const char *path);
/* Likewise at whole numbers, for an axis of base 2. */
void plot_count_axis(FILE *to, const json_t *rows, const char *path);

/* Writes the whole script but for the terminal.  0: nothing in the rows that could be drawn. */
typedef uint32_t (*plot_script_fn)(FILE *to, const json_t *doc);
uint32_t plot_bw(FILE *to, const json_t *doc);
uint32_t plot_lat(FILE *to, const json_t *doc);
uint32_t plot_fault(FILE *to, const json_t *doc);
uint32_t plot_migrate(FILE *to, const json_t *doc);
uint32_t plot_mesh(FILE *to, const json_t *doc);

#endif
