/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/estimate.h"

#include <string.h>

#include "core/converge.h"
#include "perf/doc.h"

static void add_round(struct perf_estimate *e, double us, double bytes, double dirty)
{
	if (e->n_rounds < ESTIMATE_ROUNDS_MAX) {
		e->round[e->n_rounds].us = us;
		e->round[e->n_rounds].bytes = bytes;
		e->round[e->n_rounds].dirty_bytes = dirty;
	}
	e->n_rounds++;
	e->bytes += bytes;
	e->total_us += us;
}

/* The lanes' time for pages that the destination has memory for. */
static double write_us(const struct perf_estimate_in *in, double bytes, double runs)
{
	return bytes * 1e6 / in->bytes_per_s + runs * in->run_us;
}

/* With the guest running: its neighbours get their share. */
static double limit_us(const struct perf_estimate_in *in, double bytes, double us)
{
	double least = in->max_bytes_per_s > 0 ? bytes * 1e6 / in->max_bytes_per_s : 0;

	return us > least ? us : least;
}

/* What the first touch of so much memory adds for whoever writes it. */
static double touch_us(const struct perf_estimate_in *in, double bytes)
{
	return in->touch_bytes_per_s > 0 && !in->touches_ahead ? bytes * 1e6 / in->touch_bytes_per_s
							       : 0;
}

/* Registering touches all memory, and has to be through before the guest is paused. */
static double register_us(const struct perf_estimate_in *in)
{
	return in->touch_bytes_per_s > 0 && in->touches_ahead
		       ? in->ram_bytes * 1e6 / in->touch_bytes_per_s
		       : 0;
}

/* The guest stands until this is over. */
static void stop_and_copy(const struct perf_estimate_in *in, double us, double bytes,
			  struct perf_estimate *e)
{
	e->downtime_us = us + in->switchover_us;
	add_round(e, e->downtime_us, bytes, 0);
}

static void pull(const struct perf_estimate_in *in, double us, double bytes,
		 struct perf_estimate *e)
{
	e->postcopy = bytes > 0;
	e->missing_bytes = bytes;
	e->postcopy_us = us;
	e->fault_us = e->postcopy ? in->read_us : 0;
	e->fault_p99_us = e->postcopy ? in->read_p99_us : 0;
	e->downtime_us = in->switchover_us;
	e->bytes += bytes;
	e->total_us += e->downtime_us + e->postcopy_us;
}

static double first_us(const struct perf_estimate_in *in)
{
	double us = write_us(in, in->data_bytes, 0) + touch_us(in, in->data_bytes);
	double ahead = register_us(in);

	us = us > ahead ? us : ahead;
	return limit_us(in, in->data_bytes, us);
}

static void precopy(const struct perf_estimate_in *in, struct perf_estimate *e)
{
	struct converge state = { 0 };
	double bytes = in->data_bytes, us = first_us(in);
	uint64_t downtime_us;

	for (unsigned n = 0; n < ESTIMATE_ROUNDS_MAX; n++) {
		double runs, dirty = perf_curve_at(&in->dirty, us / 1e6, in->ram_bytes, &runs);
		add_round(e, us, bytes, dirty);
		const struct converge_input input = {
			.mode = in->mode,
			.round_us = (uint64_t)us + 1,
			.round_bytes = (uint64_t)bytes,
			.dirty_bytes = (uint64_t)dirty,
			.overhead_us = CONVERGE_SWITCHOVER_US,
			.max_downtime_us = (uint64_t)in->max_downtime_us,
		};
		enum converge_verdict verdict = converge_decide(&state, &input, &downtime_us);
		bytes = dirty;
		us = write_us(in, bytes, runs);
		e->converges = verdict == CONVERGE_STOP;
		if (verdict == CONVERGE_POSTCOPY) {
			pull(in, bytes * 1e6 / in->pull_bytes_per_s, bytes, e);
			return;
		}
		if (verdict != CONVERGE_AGAIN)
			break;
		us = limit_us(in, bytes, us);
	}
	stop_and_copy(in, us, bytes, e);
}

void perf_estimate(const struct perf_estimate_in *in, struct perf_estimate *ret)
{
	double all = in->allocated_bytes;

	*ret = (struct perf_estimate){ .mode = in->mode };
	switch (in->mode) {
	case MF_MODE_COLD:
		ret->converges = true;
		ret->total_us = register_us(in);
		stop_and_copy(in, write_us(in, in->data_bytes, 0) + touch_us(in, in->data_bytes),
			      in->data_bytes, ret);
		break;
	case MF_MODE_POSTCOPY:
		ret->total_us = register_us(in);
		pull(in, all * 1e6 / in->pull_bytes_per_s + touch_us(in, all), all, ret);
		break;
	default:
		precopy(in, ret);
	}
}

json_t *perf_estimate_json(const struct perf_estimate *e)
{
	json_t *o = json_object(), *rounds = json_array();

	for (unsigned i = 0; i < e->n_rounds && i < ESTIMATE_ROUNDS_MAX; i++) {
		json_t *round = json_object();
		perf_put(round, "n", json_integer(i + 1));
		perf_put(round, "ms", json_real(e->round[i].us / 1e3));
		perf_put(round, "bytes", json_real(e->round[i].bytes));
		perf_put(round, "dirty_bytes", json_real(e->round[i].dirty_bytes));
		(void)json_array_append_new(rounds, round);
	}
	perf_put(o, "mode", json_string(mf_mode_name(e->mode)));
	perf_put(o, "n_rounds", json_integer(e->n_rounds));
	perf_put(o, "rounds", rounds);
	perf_put(o, "converges", json_boolean(e->converges));
	perf_put(o, "outcome",
		 json_string(e->mode == MF_MODE_COLD ? "paused for all of it"
			     : e->postcopy           ? "pages are pulled after the switch"
			     : e->converges          ? "converges"
					    : "does not converge: slowed down or cut over"));
	perf_put(o, "total_ms", json_real(e->total_us / 1e3));
	perf_put(o, "downtime_ms", json_real(e->downtime_us / 1e3));
	perf_put(o, "bytes", json_real(e->bytes));
	perf_put(o, "postcopy_ms", json_real(e->postcopy_us / 1e3));
	perf_put(o, "missing_bytes", json_real(e->missing_bytes));
	perf_put(o, "fault_us", json_real(e->fault_us));
	perf_put(o, "fault_p99_us", json_real(e->fault_p99_us));
	return o;
}

static const json_t *row_of_mode(const json_t *document, const char *mode)
{
	size_t i;
	json_t *row;

	json_array_foreach(perf_doc_rows(document), i, row)
	{
		if (!strcmp(perf_text(row, "mode"), mode))
			return row;
	}
	return NULL;
}

static void add_figure(json_t *rows, const char *figure, const char *unit, double predicted,
		       double actual)
{
	json_t *o = json_object();

	perf_put(o, "figure", json_string(figure));
	perf_put(o, "unit", json_string(unit));
	perf_put(o, "predicted", json_real(predicted));
	perf_put(o, "actual", json_real(actual));
	perf_put(o, "off_percent",
		 actual > 0 ? json_real(100 * (predicted - actual) / actual) : json_null());
	(void)json_array_append_new(rows, o);
}

/* The report keeps the first rounds and the last, which has its number. */
static double rounds_of(const json_t *report)
{
	const json_t *rounds = json_object_get(report, "rounds");
	size_t n = json_array_size(rounds);

	return n ? perf_number(json_array_get(rounds, n - 1), "n") : 0;
}

static void compare_postcopy(const json_t *row, const json_t *report, json_t *rows)
{
	add_figure(rows, "missing at the switch", "MiB",
		   perf_number(row, "missing_bytes") / 1048576,
		   perf_number(report, "postcopy.pulled_pages") / 256);
	add_figure(rows, "until all are there", "ms", perf_number(row, "postcopy_ms"),
		   perf_number(report, "postcopy.ms"));
}

int perf_estimate_compare(const json_t *document, const json_t *report, json_t *rows,
			  struct mf_error *err)
{
	const char *mode = perf_text(report, "mode");
	const json_t *row = row_of_mode(document, mode);

	if (strcmp(perf_text(report, "outcome"), "completed"))
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "--against: it holds no report of a move that was completed");
	if (strcmp(perf_text(document, "test"), "estimate") || !row)
		return base_error(
			err, -MF_EUSAGE, MF_SCOPE_HOST,
			"--estimate: it holds no estimate for the mode of the move, %.16s", mode);
	add_figure(rows, "total", "ms", perf_number(row, "total_ms"),
		   perf_number(report, "total_ms"));
	add_figure(rows, "downtime", "ms", perf_number(row, "downtime_ms"),
		   perf_number(report, "downtime_ms"));
	add_figure(rows, "rounds", "", perf_number(row, "n_rounds"), rounds_of(report));
	add_figure(rows, "written by the source", "MiB",
		   (perf_number(row, "bytes") - perf_number(row, "missing_bytes")) / 1048576,
		   perf_number(report, "bytes_written") / 1048576);
	if (perf_number(row, "missing_bytes") > 0 ||
	    json_is_object(json_object_get(report, "postcopy")))
		compare_postcopy(row, report, rows);
	return 0;
}
