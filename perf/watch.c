/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/watch.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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

/* Windows of 1, 2, 4, ... ticks: what was written in each so far, and the sums of those that are over. */
struct window {
	uint64_t *bits[MF_REGIONS_MAX];
	uint64_t over;
	double bytes;
};

struct watch {
	const struct mf_adapter *guest;
	struct mf_guest *about;
	int uffd;
	struct trk *tracker;
	unsigned n_windows;
	struct window window[WATCH_WINDOWS_MAX];
	uint64_t *fresh[MF_REGIONS_MAX];
};

double perf_curve_at(const struct perf_curve *curve, double s, double most)
{
	double s0 = 0, b0 = 0, slope = 0;

	for (unsigned i = 0; i < curve->n; i++) {
		slope = (curve->bytes[i] - b0) / (curve->s[i] - s0);
		if (s <= curve->s[i])
			break;
		s0 = curve->s[i];
		b0 = curve->bytes[i];
	}
	double bytes = b0 + slope * (s - s0);
	return bytes < most ? bytes : most;
}

static uint64_t pages_of(const struct mf_region *region)
{
	return region->size / region->page_size;
}

/* Data and not zero, by a sample of what is there. */
static double region_data(const struct mf_region *region)
{
	uint64_t data = 0, looked = 0, zero = 0;
	off_t end = (off_t)(region->offset + region->size), at = (off_t)region->offset;

	if (region->fd < 0)
		return (double)region->size;
	uint8_t *map =
		mmap(NULL, region->size, PROT_READ, MAP_SHARED, region->fd, (off_t)region->offset);
	if (map == MAP_FAILED)
		return (double)region->size;
	uint64_t step = region->size / SAMPLES / PAGE * PAGE;
	step = step ? step : PAGE;
	while (at < end) {
		off_t from = lseek(region->fd, at, SEEK_DATA);
		off_t until = from < 0 ? -1 : lseek(region->fd, from, SEEK_HOLE);
		if (from < 0 || from >= end)
			break;
		until = until < 0 || until > end ? end : until;
		data += (uint64_t)(until - from);
		for (; at < until; at += (off_t)step) {
			if (at < from)
				continue;
			looked++;
			zero += base_is_zero(map + (at - (off_t)region->offset) / PAGE * PAGE,
					     PAGE);
		}
		at = at > until ? at : until;
	}
	(void)munmap(map, region->size);
	return looked ? (double)data * (double)(looked - zero) / (double)looked : (double)data;
}

static int allocate(struct watch *w, uint64_t seconds, struct mf_error *err)
{
	for (uint64_t ticks = 1;
	     w->n_windows < WATCH_WINDOWS_MAX && ticks * TICK_MS <= seconds * 1000; ticks *= 2)
		w->n_windows++;
	for (uint32_t r = 0; r < w->about->n_regions; r++) {
		size_t words = bitmap_words(pages_of(&w->about->regions[r]));
		bool failed = !(w->fresh[r] = calloc(words, sizeof(uint64_t)));
		for (unsigned k = 0; k < w->n_windows; k++)
			failed |= !(w->window[k].bits[r] = calloc(words, sizeof(uint64_t)));
		if (failed)
			return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	}
	return 0;
}

/* Not those that need the guest's own process, nor those that hold writers up. */
static const struct trk_ops *pick_tracker(const struct trk_params *params, struct mf_error *err)
{
	struct mf_error first = { 0 };

	for (const struct trk_ops *const *t = trk_backends(); *t; t++) {
		struct mf_error why = { 0 };
		if ((*t)->caps & (TRK_CAP_SYNC | TRK_CAP_NEEDS_KVM))
			continue;
		if (!trk_probe(*t, params, &why))
			return *t;
		if (!first.code)
			first = why;
	}
	(void)base_error(err, -MF_EREFUSED, MF_SCOPE_HOST, "this guest cannot be watched: %s",
			 first.msg);
	return NULL;
}

static int start(struct watch *w, struct perf_watch *ret, struct mf_error *err)
{
	struct trk_range ranges[MF_REGIONS_MAX];
	struct trk_params params = {
		.pid = w->about->pid, .uffd = -1, .ranges = ranges, .n_ranges = w->about->n_regions
	};

	for (uint32_t i = 0; i < w->about->n_regions; i++) {
		const struct mf_region *r = &w->about->regions[i];
		ranges[i] = (struct trk_range){ r->hva, r->size, r->page_size };
	}
	const struct trk_ops *ops = pick_tracker(&params, err);
	if (!ops)
		return -MF_EREFUSED;
	(void)snprintf(ret->tracker, sizeof(ret->tracker), "%s", ops->name);
	if (ops->caps & TRK_CAP_NEEDS_UFFD) {
		if (!w->guest->ops->open_userfaultfd)
			return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
					  "this kind of guest cannot be watched from outside");
		int code = w->guest->ops->open_userfaultfd(w->guest->hv, &w->uffd, err);
		if (code)
			return code;
	}
	params.uffd = w->uffd;
	int code = trk_open(ops, &params, &w->tracker, err);
	return code ? code : trk_start(w->tracker, err);
}

static int collect(struct watch *w, bool counts, struct mf_error *err)
{
	for (uint32_t r = 0; r < w->about->n_regions; r++) {
		uint64_t n = pages_of(&w->about->regions[r]), found = 0;
		memset(w->fresh[r], 0, bitmap_words(n) * sizeof(uint64_t));
		int ret = trk_collect(w->tracker, r, 0, n, w->fresh[r], &found, err);
		if (ret)
			return ret;
		for (unsigned k = 0; counts && k < w->n_windows; k++)
			bitmap_or(w->window[k].bits[r], w->fresh[r], n);
	}
	return 0;
}

/* Those windows that are over with this tick, counted from 1. */
static void close_windows(struct watch *w, uint64_t tick)
{
	for (unsigned k = 0; k < w->n_windows && !(tick % (UINT64_C(1) << k)); k++) {
		struct window *window = &w->window[k];
		window->over++;
		for (uint32_t r = 0; r < w->about->n_regions; r++) {
			const struct mf_region *region = &w->about->regions[r];
			uint64_t n = pages_of(region);
			window->bytes +=
				(double)(bitmap_count(window->bits[r], 0, n) * region->page_size);
			memset(window->bits[r], 0, bitmap_words(n) * sizeof(uint64_t));
		}
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

static int watch_ticks(struct watch *w, uint64_t seconds, struct perf_watch *ret,
		       struct mf_error *err)
{
	uint64_t ticks = seconds * 1000 / TICK_MS, begin;
	sigset_t signals;

	(void)sigemptyset(&signals);
	(void)sigaddset(&signals, SIGINT);
	(void)sigaddset(&signals, SIGTERM);
	(void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
	int code = collect(w, false, err); /* what was written before */
	begin = base_now_us();
	for (uint64_t tick = 1; !code && tick <= ticks; tick++) {
		perf_progress("watching %s, %" PRIu64 " of %" PRIu64 " s", ret->name,
			      tick * TICK_MS / 1000, seconds);
		code = sleep_until(begin + tick * TICK_MS * 1000, &signals, err);
		if (!code)
			code = collect(w, true, err);
		if (!code)
			close_windows(w, tick);
	}
	perf_progress_end();
	for (unsigned k = 0; !code && k < w->n_windows; k++) {
		if (!w->window[k].over)
			continue;
		ret->dirty.s[ret->dirty.n] = (double)(UINT64_C(1) << k) * TICK_MS / 1e3;
		ret->dirty.bytes[ret->dirty.n++] = w->window[k].bytes / (double)w->window[k].over;
	}
	return code;
}

static void end(struct watch *w)
{
	trk_close(w->tracker);
	base_closep(&w->uffd);
	if (w->guest->ops->close_userfaultfds)
		w->guest->ops->close_userfaultfds(w->guest->hv);
	for (uint32_t r = 0; r < MF_REGIONS_MAX; r++) {
		free(w->fresh[r]);
		for (unsigned k = 0; k < w->n_windows; k++)
			free(w->window[k].bits[r]);
	}
}

int perf_watch_run(const struct mf_adapter *guest, uint64_t seconds, struct perf_watch *ret,
		   struct mf_error *err)
{
	struct mf_guest *about base_cleanup(base_freep) = calloc(1, sizeof(*about));
	struct watch *w base_cleanup(base_freep) = calloc(1, sizeof(*w));

	*ret = (struct perf_watch){ 0 };
	if (!about || !w)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	int code = guest->ops->describe(guest->hv, about, err);
	if (code)
		return code;
	*w = (struct watch){ .guest = guest, .about = about, .uffd = -1 };
	(void)snprintf(ret->name, sizeof(ret->name), "%s", about->name);
	for (uint32_t r = 0; r < about->n_regions; r++) {
		ret->ram_bytes += (double)about->regions[r].size;
		ret->data_bytes += region_data(&about->regions[r]);
	}
	code = allocate(w, seconds, err);
	if (!code)
		code = start(w, ret, err);
	if (!code)
		code = watch_ticks(w, seconds, ret, err);
	end(w);
	return code;
}
