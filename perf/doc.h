/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The document that a run makes: everything else - tables, plots, exit statuses - is made from it.
 *
 *   {"schema": "memferry-perf/1", "test": "bw", "time": "2026-11-25T08:00:00Z",
 *    "options": {...},             as given and as they came out, with seed and repetitions
 *    "hosts": [{"role": "client", ...}, {"role": "server", ...}],    perf_facts()
 *    "results": [row, ...]}        one row a measurement; docs/perf-json.md has every field
 */
#ifndef PERF_DOC_H
#define PERF_DOC_H

#include <stdbool.h>
#include <stdio.h>

#include <jansson.h>

#include "base/error.h"

#define PERF_SCHEMA "memferry-perf/1"

/* Takes options over.  NULL when memory ran out. */
json_t *perf_doc_new(const char *test, json_t *options);
/* Take the object over. */
void perf_doc_add_host(json_t *doc, json_t *facts);
void perf_doc_add(json_t *doc, json_t *row);
json_t *perf_doc_rows(const json_t *doc); /* borrowed */
/* To a file of that name, whole or not at all; "-": standard output. */
int perf_doc_write(const json_t *doc, const char *path, struct mf_error *err);

/* {"role", "name", "kernel", "machine", "cpu": {"model", "cpus", "numa_nodes"}, "memory_bytes", "huge_pages",
 *  "page_size", "nics": [...], "versions": {...}} of this host.  NULL when memory ran out. */
json_t *perf_facts(const char *role);

/* Setting a field takes value over, and NULL (memory ran out) leaves it out. */
void perf_put(json_t *object, const char *key, json_t *value);
/* "cpu.client.user_ms": through objects; NULL when there is none. */
const json_t *perf_get(const json_t *object, const char *path);
/* Whatever number it is; 0 without one. */
double perf_number(const json_t *object, const char *path);
const char *perf_text(const json_t *object, const char *path); /* "" without one */

/* One column of a table made of rows. */
struct perf_column {
	const char *path; /* in the row */
	const char *heading;
	const char *format; /* for a double, as "%.2f"; NULL: text, to the left */
	double scale;       /* numbers are multiplied by it; 0: 1 */
};
/* Columns as wide as they have to be; "-" where a row has no such field, no column where none has. */
void perf_table(FILE *to, const struct perf_column *columns, size_t n, const json_t *rows);

/* On a terminal one line that is written over, else nothing: "bw tcp 64 KiB  3 of 12". */
void perf_progress(const char *fmt, ...) MF_PRINTF(1, 2);
void perf_progress_end(void);

#endif
