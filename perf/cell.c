/* SPDX-License-Identifier: BSD-2-Clause */
/* A guest and a move as numbers, as JSON, and as the name by which its adapter is opened. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "perf/doc.h"
#include "perf/migrate.h"

#define PAGE     4096u
#define RATE_MAX (INT64_C(1) << 40)
#define CHECK_RATE    \
	(UINT64_C(64) \
	 << 20) /* the guest reads and checks its pages as fast, when it writes at all */

enum mf_mode perf_find_mode(const char *name, size_t len)
{
	for (int mode = 0; mode < MF_MODE_COUNT; mode++) {
		const char *have = mf_mode_name((enum mf_mode)mode);
		if (strlen(have) == len && !strncmp(have, name, len))
			return (enum mf_mode)mode;
	}
	return MF_MODE_COUNT;
}

/* The adapter wants whole pages, and one for its one writer at the least. */
const char *perf_cell_guest(const struct perf_cell *cell, char *buf, size_t cap)
{
	uint64_t size = cell->size / PAGE * PAGE;
	uint64_t hot = size / 100 * cell->hot / PAGE * PAGE;

	(void)snprintf(buf, cap,
		       "demo:%" PRIu64 ",hot=%" PRIu64 ",dirty=%" PRIu64 ",check=%" PRIu64
		       ",zero=%" PRIu64 ",seed=%" PRIu64 ",threads=1,pattern=%s",
		       size, hot ? hot : PAGE, hot ? cell->dirty : 0, cell->dirty ? CHECK_RATE : 0,
		       cell->zero, cell->seed, cell->sequential ? "sequential" : "random");
	return buf;
}

json_t *perf_cell_json(const struct perf_cell *cell)
{
	json_t *o = json_object();

	perf_put(o, "size", json_integer((json_int_t)cell->size));
	perf_put(o, "hot_percent", json_integer((json_int_t)cell->hot));
	perf_put(o, "dirty_bytes_per_s", json_integer((json_int_t)cell->dirty));
	perf_put(o, "zero_percent", json_integer((json_int_t)cell->zero));
	perf_put(o, "seed", json_integer((json_int_t)cell->seed));
	perf_put(o, "pattern", json_string(cell->sequential ? "sequential" : "random"));
	perf_put(o, "verify", json_string(cell->verify ? "full" : "none"));
	perf_put(o, "mode", json_string(mf_mode_name(cell->mode)));
	perf_put(o, "transport", json_string(cell->transport));
	perf_put(o, "lanes", json_integer(cell->lanes));
	perf_put(o, "max_downtime_ms", json_integer((json_int_t)cell->max_downtime_ms));
	perf_put(o, "max_bandwidth", json_integer((json_int_t)cell->max_bandwidth));
	return o;
}

static bool take(const json_t *request, const char *key, json_int_t most, uint64_t *ret)
{
	const json_t *value = json_object_get(request, key);
	json_int_t n = json_integer_value(value);

	*ret = (uint64_t)n;
	return json_is_integer(value) && n >= 0 && n <= most;
}

int perf_cell_parse(const json_t *request, uint64_t max_bytes, struct perf_cell *ret,
		    struct mf_error *err)
{
	const char *mode = perf_text(request, "mode"), *transport = perf_text(request, "transport");
	struct perf_cell cell = { .transport = transport };
	uint64_t lanes = 0;

	bool fits = take(request, "size", INT64_MAX, &cell.size) &&
		    take(request, "hot_percent", 100, &cell.hot) &&
		    take(request, "dirty_bytes_per_s", RATE_MAX, &cell.dirty) &&
		    take(request, "zero_percent", 100, &cell.zero) &&
		    take(request, "seed", UINT32_MAX, &cell.seed) &&
		    take(request, "lanes", 64, &lanes) &&
		    take(request, "max_downtime_ms", 3600000, &cell.max_downtime_ms) &&
		    take(request, "max_bandwidth", RATE_MAX, &cell.max_bandwidth);
	cell.mode = perf_find_mode(mode, strlen(mode));
	if (!fits || cell.size < PAGE || !lanes || cell.mode == MF_MODE_COUNT ||
	    (strcmp(transport, "auto") && strcmp(transport, "verbs") && strcmp(transport, "tcp")))
		return base_error(err, -EINVAL, MF_SCOPE_SESSION, "this guest makes no sense");
	if (cell.size > max_bytes)
		return base_error(err, -E2BIG, MF_SCOPE_SESSION,
				  "a guest of %" PRIu64
				  " bytes is more than the server gives to a client; see its "
				  "--max-memory",
				  cell.size);
	cell.lanes = (uint32_t)lanes;
	cell.sequential = !strcmp(perf_text(request, "pattern"), "sequential");
	cell.verify = !strcmp(perf_text(request, "verify"), "full");
	*ret = cell;
	return 0;
}
