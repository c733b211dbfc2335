/* SPDX-License-Identifier: BSD-2-Clause */
/* The text of the live line: what fits, the most important first to stay. */
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "report.h"
#include "show.h"

enum { RATE, DIRTY, DOWNTIME, LEFT, N_PARTS };

#define BAR_MIN 6u
#define BAR_MAX 30u

/* What goes first when the terminal is narrow. */
static const unsigned char drop_order[N_PARTS] = { DIRTY, DOWNTIME, RATE, LEFT };

static void say_phase(const struct mf_progress *p, char *buf, size_t cap)
{
	static const char *const words[MF_PHASE_COUNT] = {
		[MF_PHASE_IDLE] = "starting",
		[MF_PHASE_CONNECT] = "connecting",
		[MF_PHASE_CHECK] = "checking",
		[MF_PHASE_PREPARE] = "preparing",
		[MF_PHASE_PRECOPY] = "pre-copy",
		[MF_PHASE_SWITCHOVER] = "switching over",
		[MF_PHASE_HANDOFF] = "handing over",
		[MF_PHASE_POSTCOPY] = "post-copy",
		[MF_PHASE_RECOVER] = "looking for the other host",
		[MF_PHASE_DONE] = "done",
	};

	if (p->phase == MF_PHASE_PRECOPY && p->round)
		(void)snprintf(buf, cap, "round %" PRIu32, p->round);
	else
		(void)snprintf(buf, cap, "%s", p->phase < MF_PHASE_COUNT ? words[p->phase] : "?");
}

/* Three digits: base_format_size() says more than a line that changes all the time can show. */
static const char *format_rate(uint64_t bytes_per_s, char *buf, size_t cap)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double value = (double)bytes_per_s;
	size_t u = 0;

	for (; value >= 1000 && u + 1 < BASE_ARRAY_LEN(units); u++)
		value /= 1024;
	(void)snprintf(buf, cap, "%.*f %s/s",
		       !u || value >= 100 ? 0
		       : value >= 10      ? 1
					  : 2,
		       value, units[u]);
	return buf;
}

static void say_parts(const struct mf_progress *p, char parts[N_PARTS][48])
{
	char value[32];

	memset(parts, 0, N_PARTS * sizeof(parts[0]));
	if (p->bytes_per_s)
		(void)snprintf(parts[RATE], sizeof(parts[0]), "  %s",
			       format_rate(p->bytes_per_s, value, sizeof(value)));
	if (p->phase == MF_PHASE_POSTCOPY && p->faults)
		(void)snprintf(parts[DIRTY], sizeof(parts[0]), "  %" PRIu64 " faults", p->faults);
	else if (p->phase == MF_PHASE_PRECOPY && p->dirty_bytes_per_s)
		(void)snprintf(parts[DIRTY], sizeof(parts[0]), "  dirty %s",
			       format_rate(p->dirty_bytes_per_s, value, sizeof(value)));
	if (p->phase == MF_PHASE_PRECOPY && p->predicted_downtime_ms)
		(void)snprintf(parts[DOWNTIME], sizeof(parts[0]), "  down ~%s",
			       cli_format_ms(p->predicted_downtime_ms, value, sizeof(value)));
	if (p->left_ms)
		(void)snprintf(parts[LEFT], sizeof(parts[0]), "  %s left",
			       cli_format_ms(p->left_ms, value, sizeof(value)));
}

static void draw_bar(const struct mf_progress *p, unsigned cells, char *buf, size_t cap)
{
	uint64_t done = p->done_bytes < p->round_bytes ? p->done_bytes : p->round_bytes;
	double part = (double)done / (double)p->round_bytes;
	unsigned full = (unsigned)(part * cells);
	char bar[BAR_MAX + 1];

	memset(bar, ' ', cells);
	memset(bar, '=', full);
	if (full < cells)
		bar[full] = '>';
	bar[cells] = '\0';
	(void)snprintf(buf, cap, "  [%s] %3u%%", bar, (unsigned)(part * 100));
}

const char *cli_format_live(const struct mf_progress *p, unsigned width, char *buf, size_t cap)
{
	const unsigned around_bar = 9; /* blanks, brackets, percent */
	char phase[40], bar[BAR_MAX + 16] = "", parts[N_PARTS][48];
	bool has_bar = p->round_bytes > 0;
	size_t room = width > 1 ? width - 1 : 1;

	say_phase(p, phase, sizeof(phase));
	say_parts(p, parts);
	size_t used = strlen(phase) + (has_bar ? around_bar + BAR_MIN : 0);
	for (unsigned i = 0; i < N_PARTS; i++)
		used += strlen(parts[i]);
	for (unsigned i = 0; used > room && i < N_PARTS; i++) {
		used -= strlen(parts[drop_order[i]]);
		parts[drop_order[i]][0] = '\0';
	}
	if (has_bar && used <= room) {
		size_t spare = room - used;
		draw_bar(p,
			 BAR_MIN +
				 (unsigned)(spare < BAR_MAX - BAR_MIN ? spare : BAR_MAX - BAR_MIN),
			 bar, sizeof(bar));
	}
	(void)snprintf(buf, cap, "%s%s%s%s%s%s", phase, bar, parts[RATE], parts[DIRTY],
		       parts[DOWNTIME], parts[LEFT]);
	if (strlen(buf) > room)
		buf[room] = '\0';
	return buf;
}
