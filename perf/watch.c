/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/watch.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/zero.h"
#include "perf/doc.h"
#include "tracker/tracker.h"

#define TICK_MS 100u
#define SAMPLES 2048u /* pages of a region that are looked at for zeroes */
#define PAGE    UINT64_C(4096)

/*
 * Windows of 1, 2, 4, ... ticks, each next to the one before of its length, and the sums of those that are over.  A tick's writes go into the
 * shortest; what is over goes into the next longer one, so that each bit is looked at twice a tick, however many windows there are.
 */
struct window {
	uint64_t *bits[MF_REGIONS_MAX];
	uint64_t over, since_us;
	double s, bytes, runs;
};

struct watch {
	const struct mf_adapter *guest;
	struct mf_guest *about;
	uint64_t gap; /* bytes */
	int uffd;
	struct trk *tracker;
	unsigned n_windows;
	struct window window[WATCH_WINDOWS_MAX];
};

void perf_watch_signals(sigset_t *ret)
{
	(void)sigemptyset(ret);
	(void)sigaddset(ret, SIGINT);
	(void)sigaddset(ret, SIGTERM);
	(void)sigaddset(ret, SIGHUP);
	(void)sigaddset(ret, SIGQUIT);
}

double perf_curve_at(const struct perf_curve *curve, double s, double most, double *ret_runs)
{
	double s0 = 0, b0 = 0, r0 = 0, slope = 0, runs_slope = 0;

	for (unsigned i = 0; i < curve->n; i++) {
		/* Windows of one length and of twice that are no exact match. */
		double b1 = curve->bytes[i] > b0 ? curve->bytes[i] : b0;
		slope = (b1 - b0) / (curve->s[i] - s0);
		runs_slope = (curve->runs[i] - r0) / (curve->s[i] - s0);
		if (s <= curve->s[i])
			break;
		s0 = curve->s[i];
		b0 = b1;
		r0 = curve->runs[i];
	}
	double bytes = b0 + slope * (s - s0), runs = r0 + runs_slope * (s - s0);
	bytes = bytes < most ? bytes : most;
	if (ret_runs)
		*ret_runs = runs > 0 ? runs : 0;
	return bytes;
}

static uint64_t pages_of(const struct mf_region *region)
{
	return region->size / region->page_size;
}

/* Reading by file leaves holes alone; reading a mapping would fill them. */
static bool is_zero(const struct mf_region *region, off_t at, uint8_t buf[static PAGE])
{
	return pread(region->fd, buf, PAGE, at) == (ssize_t)PAGE && base_is_zero(buf, PAGE);
}

/* What is there, and by a sample of it what is not zero. */
static void add_data(const struct mf_region *region, struct perf_watch *ret)
{
	off_t end = (off_t)(region->offset + region->size), at = (off_t)region->offset;
	off_t step = (off_t)(region->size / SAMPLES / PAGE * PAGE + PAGE), next = at;
	uint64_t looked = 0, zero = 0;
	double data = 0;
	uint8_t page[PAGE];

	while (at < end) {
		off_t from = lseek(region->fd, at, SEEK_DATA);
		if (from < 0 && errno != ENXIO)
			from = at; /* cannot tell */
		off_t until = from < 0 ? -1 : lseek(region->fd, from, SEEK_HOLE);
		if (from < 0 || from >= end)
			break;
		at = until <= from || until > end ? end : until;
		data += (double)(at - from);
		for (next = next < from ? from : next; next < at; next += step) {
			looked++;
			zero += is_zero(region, next, page);
		}
	}
	ret->allocated_bytes += data;
	ret->data_bytes += looked ? data * (double)(looked - zero) / (double)looked : data;
}

static int allocate(struct watch *w, uint64_t seconds, struct mf_error *err)
{
	for (uint64_t ticks = 1;
	     w->n_windows < WATCH_WINDOWS_MAX && ticks * TICK_MS <= seconds * 1000; ticks *= 2)
		w->n_windows++;
	for (uint32_t r = 0; r < w->about->n_regions; r++) {
		size_t words = bitmap_words(pages_of(&w->about->regions[r]));
		for (unsigned k = 0; k < w->n_windows; k++) {
			w->window[k].bits[r] = calloc(words, sizeof(uint64_t));
			if (!w->window[k].bits[r])
				return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
		}
	}
	return 0;
}

static int start_one(struct watch *w, const struct trk_ops *ops, struct trk_params *params,
		     struct mf_error *err)
{
	int code = 0;

	if (ops->caps & TRK_CAP_NEEDS_UFFD && w->uffd < 0)
		code = w->guest->ops->open_userfaultfd
			       ? w->guest->ops->open_userfaultfd(w->guest->hv, &w->uffd, err)
			       : base_error(err, -EOPNOTSUPP, MF_SCOPE_HOST,
					    "it cannot be watched from outside");
	params->uffd = w->uffd;
	if (!code)
		code = trk_open(ops, params, &w->tracker, err);
	return code ? code : trk_start(w->tracker, err);
}

/* Nothing of the tracker, or of ours, is left in the guest. */
static void stop(struct watch *w)
{
	trk_close(BASE_TAKE_PTR(w->tracker));
	if (w->uffd < 0)
		return;
	base_closep(&w->uffd);
	w->guest->ops->close_userfaultfds(w->guest->hv);
}

/* The first that can, but for those that need the guest's own process, and those that hold writers up. */
static int start(struct watch *w, struct perf_watch *ret, struct mf_error *err)
{
	struct trk_range ranges[MF_REGIONS_MAX];
	struct trk_params params = {
		.pid = w->about->pid, .uffd = -1, .ranges = ranges, .n_ranges = w->about->n_regions
	};
	struct mf_error first = { 0 };

	for (uint32_t i = 0; i < w->about->n_regions; i++) {
		const struct mf_region *r = &w->about->regions[i];
		ranges[i] = (struct trk_range){ r->hva, r->size, r->page_size };
	}
	for (const struct trk_ops *const *t = trk_backends(); *t; t++) {
		struct mf_error why = { 0 };
		if ((*t)->caps & (TRK_CAP_SYNC | TRK_CAP_NEEDS_KVM))
			continue;
		int code = trk_probe(*t, &params, &why);
		if (!code)
			code = start_one(w, *t, &params, &why);
		if (!code) {
			(void)snprintf(ret->tracker, sizeof(ret->tracker), "%s", (*t)->name);
			return 0;
		}
		stop(w);
		if (!first.code)
			(void)base_error(&first, code, MF_SCOPE_HOST, "%s", why.msg);
	}
	return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST, "this guest cannot be watched: %s",
			  first.msg);
}

/* Into the shortest window. */
static int collect(struct watch *w, struct mf_error *err)
{
	int code = 0;

	for (uint32_t r = 0; !code && r < w->about->n_regions; r++) {
		uint64_t found = 0;
		code = trk_collect(w->tracker, r, 0, pages_of(&w->about->regions[r]),
				   w->window[0].bits[r], &found, err);
	}
	return code;
}

/* What was written before counts nowhere. */
static int forget_first(struct watch *w, struct mf_error *err)
{
	int code = collect(w, err);
	uint64_t now = base_now_us();

	for (uint32_t r = 0; r < w->about->n_regions; r++)
		bitmap_clear(w->window[0].bits[r], 0, pages_of(&w->about->regions[r]));
	for (unsigned k = 0; k < w->n_windows; k++)
		w->window[k].since_us = now;
	return code;
}

static uint64_t count_runs(const uint64_t *bits, uint64_t pages, uint64_t gap)
{
	struct extent e;
	uint64_t n = 0, end = 0;

	for (uint64_t at = 0; bitmap_next_extent(bits, at, pages, pages, &e); at = end) {
		n += !n || e.first - end > gap;
		end = e.first + e.n;
	}
	return n;
}

/* Adds what the window holds of the region to its sums, and hands it on to the next longer one, if there is one. */
static void close_region(struct watch *w, unsigned k, uint32_t r)
{
	const struct mf_region *region = &w->about->regions[r];
	struct window *window = &w->window[k];
	uint64_t n = pages_of(region), *bits = window->bits[r];

	window->bytes += (double)bitmap_count(bits, 0, n) * (double)region->page_size;
	window->runs += (double)count_runs(bits, n, w->gap / region->page_size);
	if (k + 1 < w->n_windows)
		bitmap_or(w->window[k + 1].bits[r], bits, n);
	bitmap_clear(bits, 0, n);
}

/* Those windows that are over with this tick, counted from 1. */
static void close_windows(struct watch *w, uint64_t tick)
{
	uint64_t now = base_now_us();

	for (unsigned k = 0; k < w->n_windows && !(tick % (UINT64_C(1) << k)); k++) {
		struct window *window = &w->window[k];
		for (uint32_t r = 0; r < w->about->n_regions; r++)
			close_region(w, k, r);
		window->over++;
		window->s += (double)(now - window->since_us) / 1e6;
		window->since_us = now;
	}
}

/* Until the next tick; -EINTR: a person wants it to end. */
static int sleep_until(uint64_t us, const sigset_t *signals, struct mf_error *err)
{
	for (;;) {
		uint64_t now = base_now_us();
		uint64_t left = us > now ? us - now : 0;
		const struct timespec t = { .tv_sec = (time_t)(left / 1000000),
					    .tv_nsec = (long)(left % 1000000) * 1000 };
		if (!left)
			return 0;
		if (sigtimedwait(signals, NULL, &t) >= 0)
			return base_error(err, -EINTR, MF_SCOPE_HOST,
					  "stopped; the guest is as it was");
		if (errno == EAGAIN)
			return 0;
	}
}

/* A host that is too busy to look in time looks later: windows have the length that they had. */
static int watch_ticks(struct watch *w, uint64_t seconds, struct perf_watch *ret,
		       struct mf_error *err)
{
	uint64_t end = seconds * 1000 / TICK_MS, next;
	sigset_t signals;

	perf_watch_signals(&signals);
	int code = forget_first(w, err);
	next = base_now_us();
	for (uint64_t tick = 1; !code && tick <= end; tick++) {
		perf_progress("watching %s, %" PRIu64 " of %" PRIu64 " s", ret->name,
			      tick * TICK_MS / 1000, seconds);
		uint64_t now = base_now_us();
		next = (next > now ? next : now) + TICK_MS * 1000;
		code = sleep_until(next, &signals, err);
		if (!code)
			code = collect(w, err);
		if (!code)
			close_windows(w, tick);
	}
	perf_progress_end();
	return code;
}

static void make_curve(const struct watch *w, struct perf_curve *ret)
{
	for (unsigned k = 0; k < w->n_windows && w->window[k].over; k++) {
		double n = (double)w->window[k].over;
		ret->s[k] = w->window[k].s / n;
		ret->bytes[k] = w->window[k].bytes / n;
		ret->runs[k] = w->window[k].runs / n;
		ret->n++;
	}
}

static void end(struct watch *w)
{
	stop(w);
	for (uint32_t r = 0; r < MF_REGIONS_MAX; r++) {
		for (unsigned k = 0; k < w->n_windows; k++)
			free(w->window[k].bits[r]);
	}
}

/* What could not be moved is not watched either. */
static int check_guest(const struct mf_guest *about, struct mf_error *err)
{
	for (uint32_t i = 0; i < about->n_findings; i++) {
		const struct mf_finding *f = &about->findings[i];
		if (f->verdict == MF_REFUSE)
			return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST, "%s: %s", f->subject,
					  f->detail);
	}
	for (uint32_t r = 0; r < about->n_regions; r++) {
		if (about->regions[r].fd < 0)
			return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
					  "region %.40s: no file is behind it, so it cannot be "
					  "watched from outside",
					  about->regions[r].name);
	}
	return 0;
}

int perf_watch_run(const struct mf_adapter *guest, uint64_t seconds, uint64_t gap,
		   struct perf_watch *ret, struct mf_error *err)
{
	struct mf_guest *about base_cleanup(base_freep) = calloc(1, sizeof(*about));
	struct watch *w base_cleanup(base_freep) = calloc(1, sizeof(*w));

	*ret = (struct perf_watch){ 0 };
	if (!about || !w)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	int code = guest->ops->describe(guest->hv, about, err);
	if (!code)
		code = check_guest(about, err);
	if (code)
		return code;
	*w = (struct watch){ .guest = guest, .about = about, .uffd = -1, .gap = gap };
	(void)snprintf(ret->name, sizeof(ret->name), "%s", about->name);
	for (uint32_t r = 0; r < about->n_regions; r++) {
		ret->ram_bytes += (double)about->regions[r].size;
		add_data(&about->regions[r], ret);
	}
	code = allocate(w, seconds, err);
	if (!code)
		code = start(w, ret, err);
	if (!code)
		code = watch_ticks(w, seconds, ret, err);
	if (!code)
		make_curve(w, &ret->dirty);
	end(w);
	return code;
}
