/* SPDX-License-Identifier: BSD-2-Clause */
/* How a running guest writes its memory, found out without moving it. */
#ifndef PERF_WATCH_H
#define PERF_WATCH_H

#include <stdint.h>

#include <memferry/adapter.h>

#define WATCH_WINDOWS_MAX 16u

/* Distinct bytes that are written within a time; both ascending. */
struct perf_curve {
	unsigned n;
	double s[WATCH_WINDOWS_MAX];
	double bytes[WATCH_WINDOWS_MAX];
};
/* Between the points: straight lines, from nothing in no time.  Beyond the last: on as between the last two, up to `most`. */
double perf_curve_at(const struct perf_curve *curve, double s, double most);

struct perf_watch {
	double ram_bytes;
	double data_bytes; /* that a first round sends: neither holes nor, by a sample of the pages, zeroes */
	struct perf_curve dirty;
	char tracker[16];
	char name[64]; /* the guest, for people */
};

/*
 * Watches for `seconds`, at least one.  What it opened in the guest is closed again on every way out.  SIGINT and SIGTERM end it with
 * -EINTR; they are blocked from then on.  A guest that cannot be watched without holding its writers up: -MF_EREFUSED.
 */
int perf_watch_run(const struct mf_adapter *guest, uint64_t seconds, struct perf_watch *ret,
		   struct mf_error *err);

#endif
