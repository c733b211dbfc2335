/* SPDX-License-Identifier: BSD-2-Clause */
/* Which tracker watches the guest, and what it found: picked, started before anything is sent, asked between rounds. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "core/source.h"

/* What trackers are asked of the guest; the ranges are the caller's. */
static struct trk_params tracker_params(const struct mf_session *s, struct trk_range *ranges)
{
	for (uint32_t i = 0; i < s->guest.n_regions; i++) {
		const struct mf_region *d = &s->guest.regions[i];
		ranges[i] = (struct trk_range){ d->hva, d->size, d->page_size };
	}
	return (struct trk_params){
		.pid = s->guest.pid == getpid() ? 0 : s->guest.pid,
		.uffd = -1,
		.ranges = ranges,
		.n_ranges = s->guest.n_regions,
		.kvm = s->guest.kvm,
	};
}

/* The first after `last` (NULL: of all), without unwanted caps, that can track the guest here; *ret_why gets what the best of the others, of
 * those that are for this kind of guest, says that it lacks. */
static const struct trk_ops *next_tracker(const struct mf_session *s,
					  const struct trk_params *params, uint32_t unwanted,
					  const struct trk_ops *last, struct mf_error *ret_why)
{
	const struct trk_ops *const *t = trk_backends();
	while (last && *t && *t++ != last)
		;
	for (; *t; t++) {
		struct mf_error lacks = { 0 };
		bool is_meant =
			!strcmp(s->tracker_name, "auto") || !strcmp(s->tracker_name, (*t)->name);
		if (!is_meant || (*t)->caps & unwanted)
			continue;
		if (trk_probe(*t, params, &lacks) == 0)
			return *t;
		bool is_asked_for = strcmp(s->tracker_name, "auto") != 0;
		if (!ret_why->code &&
		    (is_asked_for || params->kvm || !((*t)->caps & TRK_CAP_NEEDS_KVM)))
			*ret_why = lacks;
	}
	if (!ret_why->code)
		base_error(ret_why, -MF_EKERNEL, MF_SCOPE_HOST,
			   "no way to track writes in this build");
	return NULL;
}

const struct trk_ops *eng_pick_tracker(const struct mf_session *s, struct mf_error *err)
{
	struct trk_range ranges[MF_REGIONS_MAX];
	const struct trk_params params = tracker_params(s, ranges);
	struct mf_error why = { 0 };
	const struct trk_ops *t = next_tracker(s, &params, 0, NULL, &why);
	if (!t && err)
		*err = why;
	return t;
}

static int start_one(struct mf_session *s, const struct trk_ops *t, struct trk_params *params,
		     struct mf_error *err)
{
	int r = t->caps & TRK_CAP_NEEDS_UFFD ? eng_open_userfaultfd(s, &s->tracker_uffd, err) : 0;
	if (r < 0)
		return r;
	/* Where writers wait for us, they must not wait for ever when we die: the last descriptor goes with us. */
	if (t->caps & TRK_CAP_SYNC && s->tracker_uffd >= 0)
		eng_close_userfaultfds(s);
	params->uffd = s->tracker_uffd;
	r = trk_open(t, params, &s->tracker, err);
	return r < 0 ? r : trk_start(s->tracker, err);
}

/* What a probe cannot know shows here: then the next best is tried. */
static int start_tracker(struct mf_session *s, uint32_t unwanted, struct mf_error *err)
{
	struct trk_range ranges[MF_REGIONS_MAX];
	struct trk_params params = tracker_params(s, ranges);
	struct mf_error first = { 0 }, why = { 0 };
	const struct trk_ops *t = NULL;
	while ((t = next_tracker(s, &params, unwanted, t, &why))) {
		struct mf_error lacks = { 0 };
		int r = start_one(s, t, &params, &lacks);
		if (r == 0) {
			(void)snprintf(s->report.tracker, sizeof(s->report.tracker), "%s", t->name);
			return 0;
		}
		eng_tracker_stop(s);
		if (!lacks.code)
			base_error_sys(&lacks, r, MF_SCOPE_SESSION, "%s", t->name);
		if (!first.code)
			first = lacks;
		if (!strcmp(s->tracker_name, "auto"))
			eng_emit(s, MF_EVENT_NOTICE, "writes cannot be tracked by %s: %s", t->name,
				 lacks.msg);
	}
	if (err)
		*err = first.code ? first : why;
	return first.code ? first.code : why.code;
}

/* A tracker that clears late may begin with every page dirty, holes too.  That is taken, and forgotten: the first round
 * clears it chunk by chunk, and looks then what there is to send (write_chunk). */
static int forget_first(struct mf_session *s, struct mf_error *err)
{
	int r = 0;
	for (uint32_t i = 0; r == 0 && i < s->memory.n; i++) {
		uint64_t n = s->memory.region[i].pages, pages = 0;
		base_autofree uint64_t *bits = calloc(bitmap_words(n), sizeof(*bits));
		r = bits ? trk_collect(s->tracker, i, 0, n, bits, &pages, err)
			 : base_error(err, -ENOMEM, MF_SCOPE_SESSION, "out of memory");
	}
	return r;
}

/* D1: tracking first, then the list of what to send; and that before memory is registered, which allocates the holes
 * around what is pinned. */
int eng_tracker_start(struct mf_session *s, uint32_t unwanted, struct mf_error *err)
{
	int r = start_tracker(s, unwanted, err);
	if (r == 0 && s->tracker->ops->caps & TRK_CAP_CLEARS_LATE)
		r = forget_first(s, err);
	if (r < 0) {
		eng_tracker_stop(s);
		return r;
	}
	eng_memory_seed(s);
	s->report.pages_zero = (s->memory.bytes - eng_memory_todo_bytes(s)) / ENG_PAGE;
	return 0;
}

void eng_tracker_stop(struct mf_session *s)
{
	bool had_uffd = s->tracker_uffd >= 0;
	trk_close(s->tracker);
	s->tracker = NULL;
	base_closep(&s->tracker_uffd);
	if (had_uffd)
		eng_close_userfaultfds(s);
}

/* What the monitor says that it wrote comes after the tracker's: it says so after the write (adapter.h), so that what
 * is told too late for this collect is told to the next. */
int eng_collect(struct mf_session *s, struct mf_error *err)
{
	for (uint32_t i = 0; i < s->memory.n; i++) {
		struct eng_region *r = &s->memory.region[i];
		uint64_t pages = 0;
		int code = trk_collect(s->tracker, i, 0, r->pages, r->todo, &pages, err);
		if (code < 0)
			return code;
	}
	eng_guest_take_written(s);
	return 0;
}

int eng_collect_running(struct mf_session *s, struct mf_error *err)
{
	if (!(s->guest.flags & MF_GUEST_PINS_RAM))
		return eng_collect(s, err);
	int r = eng_guest_hold(s, err);
	if (r == 0)
		r = eng_collect(s, err);
	int go = eng_guest_let_go(s, err);
	return r < 0 ? r : go;
}
