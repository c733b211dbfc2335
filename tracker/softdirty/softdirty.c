/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tracking by soft-dirty bits: the kernel sets one in the page-table entry at the first write after they were cleared.
 * Linux 3.11 and newer with CONFIG_MEM_SOFT_DIRTY, x86 among few others.  For kernels older than PAGEMAP_SCAN.
 *
 * /proc/PID/pagemap reads the bits, a 4 written to /proc/PID/clear_refs clears them, those of the whole process.  The two
 * are not one step, and a write between them would be lost:
 *
 *     we: page 7 is clean          the process: writes page 7, its bit is set          we: clear all bits
 *
 * So from the first read to the clear no thread of the process runs (freeze.c).  A write is then either before, and read,
 * or after, and sets the bit again.  A thread inside the kernel, in the middle of a read(2) into the memory, is not
 * stopped before that is done with.
 *
 * One clear takes the bits of every range, one collect() asks for a part of one.  So all bits are moved into bitmaps of
 * our own, from which a part is then handed out (D5).  Whoever collects the ranges one after the other has the
 * process stopped for each, because what was written before the second call began must be in it.
 *
 * After the clear every page is read-only until its first write, and KVM's own page tables are emptied: that is the
 * price of a collect for the guest, besides the standstill.  Pages whose bit cannot be cleared (private ones that are
 * pinned) are reported by every collect.
 *
 * A page that was there at the last look and is not now is reported: nobody can tell what was written to it.  Where the
 * kernel drops pages by itself that is not enough, because it may have brought them back since; fit.c refuses those.
 *
 * What it cannot see: all that pagemap.c cannot, and writes of those who share or reach into the address space without
 * being threads of the process (a CLONE_VM child, process_vm_writev) if they come between read and clear.
 * The bits have no owner.  A second user of clear_refs, such as CRIU dumping the same process with --track-mem, takes
 * writes away from us unnoticed, and we take theirs: there must be none during a move.
 */
#include "tracker/tracker.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/freeze.h"
#include "base/reach.h"
#include "tracker/proc.h"
#include "tracker/softdirty/fit.h"

#define BASE_PAGE UINT64_C(4096)
/* Entries read at once, 128 KiB of them: they stay in a core's cache.  A multiple of a bitmap's word. */
#define ENTRIES (UINT64_C(1) << 14)

#define ENTRY_SOFT_DIRTY (UINT64_C(1) << 55)
#define ENTRY_IS_THERE   (UINT64_C(3) << 62) /* present, or swapped out */

struct watched {
	struct trk_range r;
	uint64_t pages;
	uint64_t *dirty; /* written, and not handed out yet */
	uint64_t *there; /* at the last look */
};

struct softdirty {
	struct trk trk;
	pid_t pid;
	int pagemap_fd, clear_fd;
	bool is_started;
	struct base_freeze *freeze;
	uint32_t n_ranges;
	struct watched *ranges;
	uint64_t *entries;
};

extern const struct trk_ops trk_softdirty_ops;

static struct softdirty *softdirty_of(struct trk *trk)
{
	return BASE_CONTAINER_OF(trk, struct softdirty, trk);
}

static int probe(const struct trk_params *params, struct mf_error *err)
{
	int code = fit_kernel(err);
	return code < 0 || !params ? code : fit_process(params, err);
}

static void close_tracker(struct trk *trk)
{
	struct softdirty *t = softdirty_of(trk);
	for (uint32_t i = 0; t->ranges && i < t->n_ranges; i++) {
		free(t->ranges[i].dirty);
		free(t->ranges[i].there);
	}
	free(t->ranges);
	free(t->entries);
	base_freeze_close(t->freeze);
	base_closep(&t->pagemap_fd);
	base_closep(&t->clear_fd);
	free(t);
}

static int allocate(struct softdirty *t, const struct trk_params *params, struct mf_error *err)
{
	t->n_ranges = params->n_ranges;
	t->ranges = calloc(t->n_ranges, sizeof(*t->ranges));
	t->entries = calloc(ENTRIES, sizeof(*t->entries));
	bool ok = t->ranges && t->entries;
	for (uint32_t i = 0; ok && i < t->n_ranges; i++) {
		struct watched *w = &t->ranges[i];
		w->r = params->ranges[i];
		w->pages = w->r.len / BASE_PAGE;
		w->dirty = calloc(bitmap_words(w->pages), sizeof(*w->dirty));
		w->there = calloc(bitmap_words(w->pages), sizeof(*w->there));
		ok = w->dirty && w->there;
	}
	return ok ? 0 : base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the tracker");
}

static int open_files(struct softdirty *t, struct mf_error *err)
{
	t->pagemap_fd = proc_open_pagemap(t->pid, err);
	if (t->pagemap_fd < 0)
		return t->pagemap_fd;
	t->clear_fd = base_reach_open(t->pid, 0, BASE_REACH_CLEAR_REFS);
	if (t->clear_fd < 0)
		return base_error_sys(err, t->clear_fd, MF_SCOPE_SESSION,
				      "/proc/%d/clear_refs cannot be opened", (int)t->pid);
	return base_freeze_open(t->pid, &t->freeze, err);
}

static int open_tracker(const struct trk_params *params, struct trk **ret_trk, struct mf_error *err)
{
	struct softdirty *t = calloc(1, sizeof(*t));
	if (!t)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the tracker");
	t->trk.ops = &trk_softdirty_ops;
	t->pid = params->pid;
	t->pagemap_fd = t->clear_fd = -1;
	/* Asked again, because here a wrong answer is silent. */
	int code = probe(params, err);
	if (!code)
		code = allocate(t, params, err);
	if (!code)
		code = open_files(t, err);
	if (code < 0) {
		close_tracker(&t->trk);
		return code;
	}
	*ret_trk = &t->trk;
	return 0;
}

static int report_gone(const struct softdirty *t, struct mf_error *err)
{
	return base_error(err, -ESRCH, MF_SCOPE_SESSION,
			  "process %d is gone, its writes cannot be collected", (int)t->pid);
}

/* ---- while the process stands still ---- */

/* 64 pages, or what is left of a range. */
static void take_word(const uint64_t *entries, uint64_t n, uint64_t *dirty, uint64_t *there)
{
	uint64_t is_dirty = 0, is_there = 0;
	for (uint64_t i = 0; i < n; i++) {
		is_dirty |= (entries[i] >> 55 & 1) << i;
		is_there |= (uint64_t) !!(entries[i] & ENTRY_IS_THERE) << i;
	}
	*dirty |= is_dirty | (*there & ~is_there);
	*there = is_there;
}

static int read_range(const struct softdirty *t, struct watched *w, struct mf_error *err)
{
	uint64_t base = w->r.addr / BASE_PAGE;
	for (uint64_t at = 0; at < w->pages;) {
		uint64_t n = w->pages - at < ENTRIES ? w->pages - at : ENTRIES;
		ssize_t got = pread(t->pagemap_fd, t->entries, n * sizeof(*t->entries),
				    (off_t)((base + at) * sizeof(*t->entries)));
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return base_error_sys(err, -errno, MF_SCOPE_SESSION,
					      "the page tables of process %d cannot be read",
					      (int)t->pid);
		uint64_t have = (uint64_t)got / sizeof(*t->entries);
		if (!have)
			return report_gone(t, err);
		/* Whole words, so that the next read begins with one. */
		if (have < n)
			have = have >= 64 ? have / 64 * 64 : 0;
		if (!have)
			return report_gone(t, err);
		for (uint64_t i = 0; i < have; i += 64)
			take_word(t->entries + i, have - i < 64 ? have - i : 64,
				  &w->dirty[(at + i) / 64], &w->there[(at + i) / 64]);
		at += have;
	}
	return 0;
}

static int write_clear(int fd)
{
	ssize_t put;
	do {
		put = pwrite(fd, "4", 1, 0);
	} while (put < 0 && errno == EINTR);
	return put < 0 ? -errno : 0;
}

/* The file of a dead leader clears nothing, and says nothing: its thread has left the address space. */
static int clear_all(const struct softdirty *t, pid_t tid, struct mf_error *err)
{
	int code;
	if (tid == t->pid) {
		code = write_clear(t->clear_fd);
	} else {
		base_autofd fd = base_reach_open(t->pid, tid, BASE_REACH_CLEAR_REFS);
		code = fd < 0 ? fd : write_clear(fd);
	}
	if (code == -ESRCH || code == -ENOENT)
		return report_gone(t, err);
	return code < 0 ? base_error_sys(err, code, MF_SCOPE_SESSION,
					 "the soft-dirty bits of process %d cannot be cleared",
					 (int)t->pid)
			: 0;
}

/* A failure on the way loses nothing: what was read stays in our bitmaps, and in the process if it was not cleared. */
static int harvest(void *ctx, pid_t tid, struct mf_error *err)
{
	struct softdirty *t = ctx;
	for (uint32_t i = 0; i < t->n_ranges; i++) {
		int code = read_range(t, &t->ranges[i], err);
		if (code < 0)
			return code;
	}
	return clear_all(t, tid, err);
}

/* ---- the contract ---- */

static void stop(struct trk *trk)
{
	/* Nothing to undo: each page takes one more fault, at its next write, and that is all. */
	softdirty_of(trk)->is_started = false;
}

static int start(struct trk *trk, struct mf_error *err)
{
	struct softdirty *t = softdirty_of(trk);
	assert(!t->is_started);
	/* New mappings read as dirty until they were cleared once.  That is done as every collect will do it, so that what
	 * hinders one is said before a move has begun; and it says which pages are there. */
	int code = base_freeze_run(t->freeze, harvest, t, err);
	if (code < 0)
		return base_error_prefix(err, "tracking: ") ?: code;
	for (uint32_t i = 0; i < t->n_ranges; i++)
		memset(t->ranges[i].dirty, 0,
		       bitmap_words(t->ranges[i].pages) * sizeof(*t->ranges[i].dirty));
	t->is_started = true;
	return 0;
}

static int collect(struct trk *trk, uint32_t range, uint64_t first, uint64_t n, uint64_t *bits,
		   uint64_t *ret_pages, struct mf_error *err)
{
	struct softdirty *t = softdirty_of(trk);
	assert(t->is_started && range < t->n_ranges);
	struct watched *w = &t->ranges[range];
	assert(first <= w->pages && n <= w->pages - first);
	if (!n)
		return 0;
	int code = base_freeze_run(t->freeze, harvest, t, err);
	if (code < 0)
		return code;
	*ret_pages += bitmap_take(w->dirty, first, n, bits, 0);
	return 0;
}

const struct trk_ops trk_softdirty_ops = {
	.name = "softdirty",
	.probe = probe,
	.open = open_tracker,
	.start = start,
	.collect = collect,
	.stop = stop,
	.close = close_tracker,
};
