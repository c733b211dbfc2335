/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tracking by KVM's dirty log: a bitmap for each memory slot, which KVM keeps.
 *
 *   collect()   KVM_GET_DIRTY_LOG    tells what is dirty, and leaves it so
 *   clear()     KVM_CLEAR_DIRTY_LOG  right before a page is read: clean, and protected again
 *
 * That is the manual way (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2).  Between the two a page may be written
 * without another fault, and is read once with all of that; large slots are protected piece by piece, by those
 * who read them.  Where the monitor did not enable it, KVM_GET_DIRTY_LOG clears whole slots by itself: then
 * what was not asked for is kept here, and clear() has nothing to do.
 *
 * What a clear may touch is exactly what was reported and not cleared yet: `pending`.  A page that is not in it has
 * either a clean bit in KVM's log or one that nobody was told of, and clearing that would lose a write.
 * The interleavings that this rests on:
 *
 *  - The guest writes after the GET and before the clear: the page is dirty in KVM's log already, the write
 *    changes nothing, and the reader sees it, for it reads after the clear.
 *  - The guest writes after the clear: the page faults or gets its dirty bit, and the next GET has it.
 *  - The guest writes a page which shares a word of the log with pending ones: its bit in the mask given
 *    to KVM is 0, so it stays.
 *  - The same page is cleared twice, a write between: the bit of pending went with the first clear, so
 *    that the second does not touch KVM's.
 *  - Two threads clear one page at once: the second waits for the first (the lock), or it would read a page which
 *    is not protected yet.  KVM serves one such call at a time anyway.
 *
 * With KVM_DIRTY_LOG_INITIALLY_SET the first GET reports every page; they settle as they are cleared.  A page which
 * the guest touches for the first time may be reported though it was only read.
 *
 * What KVM does not see: writes of the monitor through its own mapping, of vhost and other backends, of other
 * processes, of devices.  The monitor's own are the adapter's (take_written in adapter.h).  On Intel, pages
 * in a vCPU's buffer (page modification logging) are flushed by the GET, which makes vCPUs exit
 * but does not wait for it: they may slip to the next collect while vCPUs run, and never do when they stand still.
 */
#include "tracker/tracker.h"

#include <assert.h>
#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "tracker/kvm.h"

/* Words of the log cleared by one call: 128 MiB of guest, for which KVM holds its lock. */
#define CLEAR_WORDS 512u

struct kvmlog {
	struct trk trk;
	const struct mf_kvm_vm *vm; /* borrowed */
	bool is_manual;             /* GET leaves the log as it is */
	bool is_started;
	uint32_t n_ranges;
	struct trk_range *ranges;
	struct kvm_pieces pieces;
	uint64_t *got;   /* one slot's log; as large as the largest */
	uint64_t *found; /* a collect's result; one bit a page of the largest range */
	pthread_mutex_t lock;
	/* Under the lock, by slot; NULL where no range lies.  Manual: reported and not cleared.  Else: taken from KVM
	 * and not reported. */
	uint64_t **pending;
	uint64_t mask[CLEAR_WORDS]; /* under the lock */
};

extern const struct trk_ops trk_kvmlog_ops;

static struct kvmlog *kvmlog_of(struct trk *trk)
{
	return BASE_CONTAINER_OF(trk, struct kvmlog, trk);
}

static int probe(const struct trk_params *params, struct mf_error *err)
{
	int code = kvm_is_ours(params, err);
	if (code < 0)
		return code;
	if (params->kvm->ring_bytes)
		return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "the virtual machine keeps dirty rings, which leaves it no log");
	return 0;
}

static void close_tracker(struct trk *trk)
{
	struct kvmlog *t = kvmlog_of(trk);
	for (uint32_t s = 0; t->pending && s < t->vm->n_slots; s++)
		free(t->pending[s]);
	free(t->pending);
	free(t->pieces.piece);
	free(t->found);
	free(t->got);
	free(t->ranges);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

static bool allocate(struct kvmlog *t)
{
	uint64_t slot_words = 0, range_words = 0;
	t->pending = calloc(t->vm->n_slots, sizeof(*t->pending));
	for (uint32_t i = 0; t->pending && i < t->pieces.n; i++) {
		uint32_t s = t->pieces.piece[i].slot;
		uint64_t words = bitmap_words(kvm_slot_pages(t->vm, s));
		if (!t->pending[s])
			t->pending[s] = calloc(words, sizeof(**t->pending));
		if (!t->pending[s])
			return false;
		slot_words = words > slot_words ? words : slot_words;
	}
	for (uint32_t i = 0; i < t->n_ranges; i++) {
		uint64_t words = bitmap_words(t->ranges[i].len / t->ranges[i].page_size);
		range_words = words > range_words ? words : range_words;
	}
	t->got = calloc(slot_words + 1, sizeof(*t->got));
	t->found = calloc(range_words, sizeof(*t->found));
	return t->pending && t->got && t->found;
}

static int open_tracker(const struct trk_params *params, struct trk **ret_trk, struct mf_error *err)
{
	struct kvmlog *t = calloc(1, sizeof(*t));
	if (!t)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the tracker");
	t->trk.ops = &trk_kvmlog_ops;
	t->vm = params->kvm;
	t->is_manual = params->kvm->manual_protect & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
	t->n_ranges = params->n_ranges;
	pthread_mutex_init(&t->lock, NULL);
	t->ranges = calloc(params->n_ranges, sizeof(*t->ranges));
	int code = kvm_find_pieces(params, &t->pieces, err);
	if (code >= 0 && t->ranges) {
		memcpy(t->ranges, params->ranges, params->n_ranges * sizeof(*t->ranges));
		code = allocate(t) ? 0 : -ENOMEM;
	} else if (code >= 0) {
		code = -ENOMEM;
	}
	if (code < 0) {
		base_error_sys(err, code, MF_SCOPE_SESSION, "no memory for the tracker");
		close_tracker(&t->trk);
		return code;
	}
	*ret_trk = &t->trk;
	return 0;
}

static int start(struct trk *trk, struct mf_error *err)
{
	struct kvmlog *t = kvmlog_of(trk);
	assert(!t->is_started);
	for (uint32_t s = 0; s < t->vm->n_slots; s++) {
		if (t->pending[s])
			memset(t->pending[s], 0,
			       bitmap_words(kvm_slot_pages(t->vm, s)) * sizeof(uint64_t));
	}
	int code = kvm_log_writes(t->vm, &t->pieces, true, err);
	if (code < 0)
		return base_error_prefix(err, "tracking: ") ?: code;
	t->is_started = true;
	return 0;
}

static void stop(struct trk *trk)
{
	struct kvmlog *t = kvmlog_of(trk);
	if (!t->is_started)
		return;
	(void)kvm_log_writes(t->vm, &t->pieces, false, NULL);
	t->is_started = false;
}

/* The pages of a slot that a piece and pages [first, first + n) of its range have in common. */
static bool cut(const struct kvmlog *t, const struct kvm_piece *p, uint64_t first, uint64_t n,
		uint64_t *ret_from, uint64_t *ret_to)
{
	const struct trk_range *r = &t->ranges[p->range];
	uint64_t from = r->addr + first * r->page_size, to = from + n * r->page_size;
	from = from > p->addr ? from : p->addr;
	to = to < p->addr + p->len ? to : p->addr + p->len;
	if (from >= to)
		return false;
	*ret_from = (from - t->vm->slots[p->slot].hva) / KVM_PAGE;
	*ret_to = (to - t->vm->slots[p->slot].hva) / KVM_PAGE;
	return true;
}

static int get_log(struct kvmlog *t, uint32_t slot)
{
	struct kvm_dirty_log log = { .slot = t->vm->slots[slot].slot };
	log.dirty_bitmap = t->got;
	return ioctl(t->vm->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0 ? -errno : 0;
}

/* Pages [from, to) of a slot that are dirty, as pages of the range from `first` on. */
static void report(struct kvmlog *t, const struct kvm_piece *p, const uint64_t *dirty,
		   uint64_t from, uint64_t to, uint64_t first)
{
	const struct trk_range *r = &t->ranges[p->range];
	uint64_t base = r->addr + first * r->page_size, hva = t->vm->slots[p->slot].hva;
	struct extent e;
	while (bitmap_next_extent(dirty, from, to, UINT64_MAX, &e)) {
		uint64_t a = (hva + e.first * KVM_PAGE - base) / r->page_size;
		uint64_t b =
			(hva + (e.first + e.n) * KVM_PAGE - base + r->page_size - 1) / r->page_size;
		bitmap_set(t->found, a, b - a);
		from = e.first + e.n;
	}
}

/* to |= from in [first, end). */
static void or_part(uint64_t *to, const uint64_t *from, uint64_t first, uint64_t end)
{
	for (uint64_t at = first; at < end;) {
		uint64_t next = (at / 64 + 1) * 64 < end ? (at / 64 + 1) * 64 : end;
		uint64_t mask = ~UINT64_C(0) << (at % 64);
		if (next % 64)
			mask &= ~(~UINT64_C(0) << (next % 64));
		to[at / 64] |= from[at / 64] & mask;
		at = next;
	}
}

static int collect_piece(struct kvmlog *t, const struct kvm_piece *p, uint64_t first, uint64_t n)
{
	uint64_t from, to;
	if (!cut(t, p, first, n, &from, &to))
		return 0;
	int code = get_log(t, p->slot);
	if (code < 0)
		return code;
	uint64_t *pending = t->pending[p->slot];
	pthread_mutex_lock(&t->lock);
	if (t->is_manual) {
		or_part(pending, t->got, from, to);
		report(t, p, t->got, from, to, first);
	} else {
		bitmap_or(pending, t->got, kvm_slot_pages(t->vm, p->slot));
		report(t, p, pending, from, to, first);
		bitmap_clear(pending, from, to - from);
	}
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static int collect(struct trk *trk, uint32_t range, uint64_t first, uint64_t n, uint64_t *bits,
		   uint64_t *ret_pages, struct mf_error *err)
{
	struct kvmlog *t = kvmlog_of(trk);
	assert(t->is_started && range < t->n_ranges);
	const struct trk_range *r = &t->ranges[range];
	assert(first <= r->len / r->page_size && n <= r->len / r->page_size - first);
	int code = 0;
	memset(t->found, 0, bitmap_words(n) * sizeof(*t->found));
	for (uint32_t i = 0; i < t->pieces.n && code >= 0; i++) {
		if (t->pieces.piece[i].range == range)
			code = collect_piece(t, &t->pieces.piece[i], first, n);
	}
	/* Also after a failure: without the manual way it is found only once. */
	*ret_pages += bitmap_count(t->found, 0, n);
	bitmap_or(bits, t->found, n);
	if (kvm_is_gone(code))
		return base_error(err, -ESRCH, MF_SCOPE_SESSION,
				  "the virtual machine is gone, its writes cannot be collected");
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "the writes to range %u cannot be collected from KVM's log",
				      range);
	return 0;
}

/* Under the lock: clears what is pending of the slot's pages [from, to), all in KVM's words. */
static int clear_part(struct kvmlog *t, uint32_t slot, uint64_t from, uint64_t to)
{
	uint64_t *pending = t->pending[slot];
	/* Straight to the first and the last that are: gaps between cost a zero word each. */
	from = bitmap_next_set(pending, from, to);
	if (from == to)
		return 0;
	uint64_t word = from / 64, n = bitmap_words(to) - word;
	memset(t->mask, 0, n * sizeof(*t->mask));
	struct extent e;
	for (uint64_t at = from; bitmap_next_extent(pending, at, to, UINT64_MAX, &e);
	     at = e.first + e.n)
		bitmap_set(t->mask, e.first - word * 64, e.n);
	while (!t->mask[n - 1])
		n--;
	uint64_t left = kvm_slot_pages(t->vm, slot) - word * 64;
	struct kvm_clear_dirty_log log = {
		.slot = t->vm->slots[slot].slot,
		.num_pages = (uint32_t)(n * 64 < left ? n * 64 : left),
		.first_page = word * 64,
	};
	log.dirty_bitmap = t->mask;
	if (ioctl(t->vm->vm_fd, KVM_CLEAR_DIRTY_LOG, &log) < 0)
		return -errno;
	for (uint64_t i = 0; i < n; i++)
		pending[word + i] &= ~t->mask[i];
	return 0;
}

static int clear(struct trk *trk, uint32_t range, uint64_t first, uint64_t n)
{
	struct kvmlog *t = kvmlog_of(trk);
	assert(t->is_started && range < t->n_ranges);
	int code = 0;
	if (!t->is_manual)
		return 0;
	pthread_mutex_lock(&t->lock);
	for (uint32_t i = 0; i < t->pieces.n && code >= 0; i++) {
		const struct kvm_piece *p = &t->pieces.piece[i];
		uint64_t from, to;
		if (p->range != range || !cut(t, p, first, n, &from, &to))
			continue;
		while (from < to && code >= 0) {
			uint64_t end = (from / 64 + CLEAR_WORDS) * 64;
			end = end < to ? end : to;
			code = clear_part(t, p->slot, from, end);
			from = end;
		}
	}
	pthread_mutex_unlock(&t->lock);
	return kvm_is_gone(code) ? -ESRCH : code;
}

const struct trk_ops trk_kvmlog_ops = {
	.name = "kvmlog",
	.caps = TRK_CAP_NEEDS_KVM | TRK_CAP_CLEARS_LATE,
	.probe = probe,
	.open = open_tracker,
	.start = start,
	.collect = collect,
	.clear = clear,
	.stop = stop,
	.close = close_tracker,
};
