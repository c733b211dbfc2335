/* SPDX-License-Identifier: BSD-2-Clause */
/* memferry-perf migrate: every combination of what was asked for, in turns. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/report.h"
#include "perf/doc.h"
#include "perf/migrate.h"
#include "perf/stats.h"
#include "perf/verbs.h"

#define CELLS_MAX 1024u
#define BAR_WIDTH 50u

/* The words of a list, one after the other; NULL at its end. */
static const char *next_word(const char *at, size_t *ret_len)
{
	if (!*at)
		return NULL;
	at += *at == ',';
	*ret_len = strcspn(at, ",");
	return at;
}

static const char *transport_of(const struct perf_options *o, unsigned i)
{
	if (strcmp(o->transport, "both"))
		return i ? NULL : o->transport;
	return i == 0 ? "verbs" : i == 1 ? "tcp" : NULL;
}

/* Mode by mode, pattern by pattern, transport by transport, for one guest. */
static unsigned add_moves(const struct perf_options *o, struct perf_cell cell,
			  struct perf_cell *cells, unsigned n)
{
	size_t mode_len, len;

	for (const char *m = o->modes; (m = next_word(m, &mode_len)); m += mode_len) {
		cell.mode = perf_find_mode(m, mode_len);
		for (const char *p = o->patterns; (p = next_word(p, &len)); p += len) {
			cell.sequential = *p == 's';
			for (unsigned t = 0; (cell.transport = transport_of(o, t)); t++) {
				if (n < CELLS_MAX)
					cells[n] = cell;
				n++;
			}
		}
	}
	return n;
}

/* How many there are, of which at most CELLS_MAX are in cells. */
static unsigned make_cells(const struct perf_options *o, struct perf_cell *cells)
{
	struct perf_cell cell = { .seed = o->seed,
				  .verify = !strcmp(o->verify, "full"),
				  .lanes = (uint32_t)o->lanes,
				  .max_downtime_ms = o->max_downtime_ms,
				  .max_bandwidth = o->max_bandwidth };
	unsigned n = 0;

	for (uint32_t s = 0; s < o->guest_sizes.n; s++) {
		for (uint32_t h = 0; h < o->hot.n; h++) {
			for (uint32_t d = 0; d < o->dirty.n; d++) {
				for (uint32_t z = 0; z < o->zero.n; z++) {
					cell.size = o->guest_sizes.at[s];
					cell.hot = o->hot.at[h];
					cell.dirty = o->dirty.at[d];
					cell.zero = o->zero.at[z];
					n = add_moves(o, cell, cells, n);
				}
			}
		}
	}
	return n;
}

static double moved_bytes(const struct perf_move *move)
{
	return perf_number(move->report, "bytes_written") +
	       perf_number(move->destination, "bytes_read");
}

static double rate_of(const struct perf_move *move)
{
	double ms = perf_number(move->report, "total_ms");

	return ms > 0 ? moved_bytes(move) * 1e3 / ms : 0;
}

static double total_of(const struct perf_move *move)
{
	return perf_number(move->report, "total_ms");
}

static const struct perf_move *median_of(const struct perf_move *moves, unsigned n)
{
	double *totals base_cleanup(base_freep) = calloc(n, sizeof(*totals));

	for (unsigned i = 0; totals && i < n; i++)
		totals[i] = total_of(&moves[i]);
	return &moves[totals ? perf_median_of(totals, n) : 0];
}

static double downtime_of(const struct perf_move *move)
{
	return perf_number(move->report, "downtime_ms");
}

static void put_spread(json_t *row, const char *key, const struct perf_move *moves, unsigned n,
		       double (*figure)(const struct perf_move *move), bool is_rate)
{
	double *samples base_cleanup(base_freep) = calloc(n, sizeof(*samples));
	struct perf_stats stats;

	if (!samples)
		return;
	for (unsigned i = 0; i < n; i++)
		samples[i] = figure(&moves[i]);
	(is_rate ? perf_stats_of_rates : perf_stats_of)(samples, n, &stats);
	perf_put(row, key, perf_stats_json(&stats));
}

/* Median's figures; the spreads are of all. */
static json_t *make_row(const struct perf_cell *cell, const struct perf_move *moves, unsigned n)
{
	const struct perf_move *m = median_of(moves, n);
	json_t *row = perf_cell_json(cell), *cpu = json_object();

	put_spread(row, "total_spread_ms", moves, n, total_of, false);
	put_spread(row, "downtime_spread_ms", moves, n, downtime_of, false);
	put_spread(row, "bytes_per_s", moves, n, rate_of, true);
	perf_put(row, "transport", json_string(perf_text(m->report, "transport")));
	perf_put(row, "total_ms", json_real(perf_number(m->report, "total_ms")));
	perf_put(row, "downtime_ms", json_real(perf_number(m->report, "downtime_ms")));
	perf_put(row, "rounds",
		 json_integer((json_int_t)json_array_size(json_object_get(m->report, "rounds"))));
	perf_put(row, "bytes", json_real(moved_bytes(m)));
	perf_put(row, "report", json_incref(m->report));
	perf_put(row, "destination", json_incref(m->destination));
	perf_put(row, "timeline", json_incref(m->timeline));
	perf_put(row, "phases", json_incref(m->phases));
	perf_put(row, "rounds_at", json_incref(m->rounds_at));
	perf_put(cpu, "client", perf_cpu_json(&m->client));
	perf_put(cpu, "server", perf_cpu_json(&m->server));
	perf_put(row, "bytes_per_cpu_s", json_real(perf_bytes_per_cpu_s(cpu, moved_bytes(m))));
	perf_put(row, "cpu", cpu);
	return row;
}

/* Phases one below the other, each where it lies in the whole. */
static void print_timeline(FILE *to, const json_t *row)
{
	const json_t *phases = json_object_get(row, "phases"), *phase;
	double whole = 0;
	size_t i;

	json_array_foreach(phases, i, phase) whole =
		perf_number(phase, "end_ms") > whole ? perf_number(phase, "end_ms") : whole;
	(void)fprintf(to, "\ntimeline, %.0f ms\n", whole);
	json_array_foreach(phases, i, phase)
	{
		double start = perf_number(phase, "start_ms"), end = perf_number(phase, "end_ms");
		unsigned from = whole > 0 ? (unsigned)(start / whole * BAR_WIDTH) : 0;
		unsigned until = whole > 0 ? (unsigned)(end / whole * BAR_WIDTH + 0.999) : 0;
		(void)fprintf(to, "  %-11s|", perf_text(phase, "phase"));
		for (unsigned at = 0; at < BAR_WIDTH; at++)
			(void)fputc(at >= from && at < until ? '#' : ' ', to);
		(void)fprintf(to, "| %8.1f ms\n", end - start);
	}
}

static void print_matrix(const struct perf_run *run)
{
	static const struct perf_column columns[] = {
		{ "size", "guest[MiB]", "%.0f", 1.0 / 1048576 },
		{ "hot_percent", "hot[%]", "%.0f", 0 },
		{ "dirty_bytes_per_s", "dirty[MiB/s]", "%.0f", 1.0 / 1048576 },
		{ "zero_percent", "zero[%]", "%.0f", 0 },
		{ "pattern", "pattern", NULL, 0 },
		{ "mode", "mode", NULL, 0 },
		{ "transport", "transport", NULL, 0 },
		{ "total_ms", "total[ms]", "%.0f", 0 },
		{ "total_spread_ms.min", "min", "%.0f", 0 },
		{ "total_spread_ms.max", "max", "%.0f", 0 },
		{ "downtime_ms", "downtime[ms]", "%.0f", 0 },
		{ "rounds", "rounds", "%.0f", 0 },
		{ "bytes", "moved[MiB]", "%.0f", 1.0 / 1048576 },
		{ "bytes_per_s.p50", "GB/s", "%.3f", 1e-9 },
		{ "destination.postcopy.latency_us.p99", "fault p99[us]", "%.0f", 0 },
		{ "bytes_per_cpu_s", "GB/CPU-s", "%.3f", 1e-9 },
	};

	(void)fprintf(run->out, "\nmedians of %u\n", (unsigned)run->o->repeat);
	perf_table(run->out, columns, BASE_ARRAY_LEN(columns), perf_doc_rows(run->doc));
}

static int run_all(struct perf_run *run, const struct perf_cell *cells, unsigned n,
		   struct perf_move *moves, struct mf_error *err)
{
	unsigned repeat = (unsigned)run->o->repeat;
	struct perf_move warm;

	/* The first move of a host pays for what later ones find warm. */
	perf_progress("migrate: warming up");
	int ret = perf_migrate_run(run->peer, &cells[0], &warm, err);
	perf_move_free(&warm);
	for (unsigned i = 0; !ret && i < repeat * n; i++) {
		const struct perf_cell *cell = &cells[i % n];
		perf_progress("migrate: %s, move %u of %u", mf_mode_name(cell->mode), i + 1,
			      repeat * n);
		ret = perf_migrate_run(run->peer, cell, &moves[i % n * repeat + i / n], err);
		if (!ret &&
		    perf_number(moves[i % n * repeat + i / n].report, "verify.mismatches") > 0)
			ret = base_error(err, -MF_EINTEGRITY, MF_SCOPE_SESSION,
					 "both hosts' pages differ after a move");
	}
	perf_progress_end();
	return ret;
}

static void report(struct perf_run *run, const struct perf_cell *cells, unsigned n,
		   const struct perf_move *moves)
{
	unsigned repeat = (unsigned)run->o->repeat;

	for (unsigned i = 0; i < n; i++)
		perf_doc_add(run->doc, make_row(&cells[i], &moves[i * repeat], repeat));
	if (n == 1) {
		const struct perf_move *median = median_of(moves, repeat);
		if (median->text)
			cli_text_report(run->out, median->text);
		print_timeline(run->out, json_array_get(perf_doc_rows(run->doc), 0));
	}
	print_matrix(run);
}

int perf_verb_migrate(struct perf_run *run, struct mf_error *err)
{
	struct perf_cell *cells base_cleanup(base_freep) = calloc(CELLS_MAX, sizeof(*cells));
	unsigned n = cells ? make_cells(run->o, cells) : 0;

	if (n > CELLS_MAX)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "%u combinations are too many; %u are the most", n, CELLS_MAX);
	size_t n_moves = (size_t)n * run->o->repeat;
	struct perf_move *moves = calloc(n_moves + 1, sizeof(*moves));
	if (!cells || !moves) {
		free(moves);
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	}
	int ret = run_all(run, cells, n, moves, err);
	if (!ret)
		report(run, cells, n, moves);
	for (size_t i = 0; i < n_moves; i++)
		perf_move_free(&moves[i]);
	free(moves);
	return ret;
}
