/* SPDX-License-Identifier: BSD-2-Clause */
/* How a running guest writes its memory, found out without moving it. */
#ifndef PERF_WATCH_H
#define PERF_WATCH_H

#include <signal.h>
#include <stdint.h>

#include <memferry/adapter.h>

#define WATCH_WINDOWS_MAX 16u

/* What is written within a time: distinct bytes, and the runs they lie in when small gaps count as written.  Times ascend. */
struct perf_curve {
	unsigned n;
	double s[WATCH_WINDOWS_MAX];
	double bytes[WATCH_WINDOWS_MAX];
	double runs[WATCH_WINDOWS_MAX];
};
/* Between the points: straight lines, from nothing in no time.  Beyond the last: on as between the last two.  Never less with more time,
 * and never more bytes than `most`; ret_runs (NULL: not wanted) goes with them. */
double perf_curve_at(const struct perf_curve *curve, double s, double most, double *ret_runs);

struct perf_watch {
	double ram_bytes;
	double allocated_bytes; /* not holes of the file: post-copy pulls so much */
	double data_bytes; /* of them those that are not zero, by a sample of the pages: a first round sends so much */
	struct perf_curve dirty;
	char tracker[16];
	char name[64]; /* the guest, for people */
};

/* Signals that would end this process: to be blocked in all its threads before a guest is opened for watching, so that none of them
 * ends it with something left behind in the guest. */
void perf_watch_signals(sigset_t *ret);

/*
 * Watches for `seconds`, at least one.  gap: bytes; see perf_curve.  What it opened in the guest is closed again on every way out.  A signal
 * of perf_watch_signals() that comes, or has come, ends it with -EINTR.  A guest that cannot be watched without holding its writers
 * up: -MF_EREFUSED.  Memory: for each doubling of the 100 ms between two looks, up to `seconds`, a bit for each page.
 */
int perf_watch_run(const struct mf_adapter *guest, uint64_t seconds, uint64_t gap,
		   struct perf_watch *ret, struct mf_error *err);

#endif
