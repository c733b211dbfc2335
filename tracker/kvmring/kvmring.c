/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tracking by KVM's dirty rings: one ring for each vCPU, into which KVM puts every page that it wrote, once
 * until the page is protected again.
 *
 *     KVM                          this file                      KVM
 *   ┌───────┐  page, slot      ┌───────────────┐            ┌────────────────────────┐
 *   │ DIRTY ├─────────────────▶│ read, RESET   ├───────────▶│ KVM_RESET_DIRTY_RINGS: │
 *   └───────┘  acquire         └───────┬───────┘  release   │ free, page protected   │
 *                                      ▼                    └────────────────────────┘
 *                              own bitmap, for collect()
 *
 * Order is law: a page is handed out by collect() only after the reset that protects it again, so that whoever reads
 * it then misses no write; so there is no clear().  The kernel's documentation asks for the same
 * (KVM_CAP_DIRTY_LOG_RING: the ioctl before the content is read, entries in sequence, none skipped).
 *
 * A full ring makes its vCPU leave KVM_RUN.  The adapter calls ring_full() then, on the vCPU's thread, and that
 * harvests all rings into the own bitmap.  The interleavings that this rests on:
 *
 *  - ring_full() during collect(): one lock, held over harvest, reset and the taking of bits.  Nobody who holds it
 *    waits for a vCPU: kick() is called before it is taken, set_ring_full(NULL) without it.  So a vCPU waits
 *    for one harvest at most, and for no owner that stands still.
 *  - ring_full() during stop(): the log is off first, so that rings do not fill again; they are emptied, and only then
 *    is ring_full() taken back.  A vCPU which found its ring full before finds it empty when it looks again.
 *  - A vCPU goes on pushing while its ring is read: at most to the entries that are RESET and not yet reset by
 *    KVM, so that a harvest ends.
 *  - An earlier tracker used the rings: where it stopped is not written down anywhere.  KVM pushes in sequence, so
 *    the first DIRTY entry behind one that is not is where to begin (find_next()).
 *
 * What the rings miss on x86: writes of the monitor, backends and devices, as with the log; those are the
 * adapter's (take_written in adapter.h).  KVM's own writes into guest memory are done by a vCPU there, and are seen;
 * its Xen emulation is the exception, whose shared pages are always dirty and not reported.
 * Elsewhere KVM also writes without a vCPU (arm64 saves its ITS tables so): a bitmap has these
 * (KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP), which is fetched by every collect().
 * On Intel a vCPU keeps the last pages it wrote in a buffer until it exits: vm->kick is for that, see kvm_vm.h.
 *
 * Never together with KVM_DIRTY_LOG_INITIALLY_SET: pages that are not protected from the start are in no ring.
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
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "tracker/kvm.h"

#ifndef KVM_DIRTY_LOG_PAGE_OFFSET
#define KVM_DIRTY_LOG_PAGE_OFFSET 0 /* this architecture has no rings */
#endif
/* How long a reset may be put off by signals to the thread that asks for it. */
#define RESET_MS 5000

struct ring {
	struct kvm_dirty_gfn *entries;
	uint32_t next; /* where the next DIRTY entry will be */
	bool knows_next;
};

struct kvmring {
	struct trk trk;
	const struct mf_kvm_vm *vm; /* borrowed */
	bool is_started;
	bool has_bitmap; /* for what is written without a vCPU */
	uint32_t n_ranges;
	struct trk_range *ranges;
	struct kvm_pieces pieces;
	uint32_t n_entries; /* of each ring; a power of two */
	uint32_t n_rings;
	pthread_mutex_t lock;
	/* all below under the lock */
	struct ring *rings;
	uint64_t **dirty; /* by range: harvested and not collected */
	uint64_t *log;    /* has_bitmap: one slot's, as large as the largest */
	uint32_t at;      /* piece that the last entry was in */
	int failed;       /* what a reset ended with: all later collects fail */
};

extern const struct trk_ops trk_kvmring_ops;

static struct kvmring *kvmring_of(struct trk *trk)
{
	return BASE_CONTAINER_OF(trk, struct kvmring, trk);
}

static int probe(const struct trk_params *params, struct mf_error *err)
{
	int code = kvm_is_ours(params, err);
	if (code < 0)
		return code;
	if (!params->kvm->ring_bytes)
		return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "the virtual machine was made without dirty rings");
	if (!params->kvm->set_ring_full || !KVM_DIRTY_LOG_PAGE_OFFSET)
		return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "the virtual machine's dirty rings cannot be read: nobody would "
				  "empty full ones");
	if (params->kvm->manual_protect)
		return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "the virtual machine has dirty rings and a log protected by "
				  "hand, together they lose writes");
	return 0;
}

static size_t ring_bytes(const struct kvmring *t)
{
	return (size_t)t->n_entries * sizeof(struct kvm_dirty_gfn);
}

static void close_tracker(struct trk *trk)
{
	struct kvmring *t = kvmring_of(trk);
	for (uint32_t i = 0; t->rings && i < t->n_rings; i++) {
		if (t->rings[i].entries)
			munmap(t->rings[i].entries, ring_bytes(t));
	}
	for (uint32_t i = 0; t->dirty && i < t->n_ranges; i++)
		free(t->dirty[i]);
	free(t->log);
	free(t->dirty);
	free(t->rings);
	free(t->pieces.piece);
	free(t->ranges);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

static bool allocate(struct kvmring *t)
{
	uint64_t words = 1;
	t->rings = calloc(t->n_rings, sizeof(*t->rings));
	t->dirty = calloc(t->n_ranges, sizeof(*t->dirty));
	for (uint32_t i = 0; t->dirty && i < t->n_ranges; i++) {
		t->dirty[i] = calloc(bitmap_words(t->ranges[i].len / t->ranges[i].page_size),
				     sizeof(**t->dirty));
		if (!t->dirty[i])
			return false;
	}
	for (uint32_t s = 0; t->has_bitmap && s < t->vm->n_slots; s++) {
		uint64_t n = bitmap_words(kvm_slot_pages(t->vm, s));
		words = n > words ? n : words;
	}
	t->log = calloc(words, sizeof(*t->log));
	return t->rings && t->dirty && t->log;
}

static int map_rings(struct kvmring *t, struct mf_error *err)
{
	off_t at = (off_t)KVM_DIRTY_LOG_PAGE_OFFSET * getpagesize();
	for (uint32_t i = 0; i < t->n_rings; i++) {
		void *ring = mmap(NULL, ring_bytes(t), PROT_READ | PROT_WRITE, MAP_SHARED,
				  t->vm->vcpu_fds[i], at);
		if (ring == MAP_FAILED)
			return base_error_sys(err, -errno, MF_SCOPE_SESSION,
					      "the dirty ring of vCPU %u cannot be mapped", i);
		t->rings[i].entries = ring;
	}
	return 0;
}

static int open_tracker(const struct trk_params *params, struct trk **ret_trk, struct mf_error *err)
{
	struct kvmring *t = calloc(1, sizeof(*t));
	if (!t)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the tracker");
	t->trk.ops = &trk_kvmring_ops;
	t->vm = params->kvm;
	t->n_ranges = params->n_ranges;
	t->n_rings = params->kvm->n_vcpus;
	t->n_entries = params->kvm->ring_bytes / (uint32_t)sizeof(struct kvm_dirty_gfn);
#ifdef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
	t->has_bitmap =
		ioctl(t->vm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0;
#endif
	pthread_mutex_init(&t->lock, NULL);
	t->ranges = calloc(params->n_ranges, sizeof(*t->ranges));
	int code = kvm_find_pieces(params, &t->pieces, err);
	if (code >= 0 && t->ranges) {
		memcpy(t->ranges, params->ranges, params->n_ranges * sizeof(*t->ranges));
		code = allocate(t) ? 0 : -ENOMEM;
	} else if (code >= 0) {
		code = -ENOMEM;
	}
	if (code < 0)
		base_error_sys(err, code, MF_SCOPE_SESSION, "no memory for the tracker");
	else
		code = map_rings(t, err);
	if (code < 0) {
		close_tracker(&t->trk);
		return code;
	}
	*ret_trk = &t->trk;
	return 0;
}

/* Page `page` of a slot, by its number: into the bitmap of each range that it lies in. */
static void note(struct kvmring *t, uint32_t slot, uint64_t page)
{
	/* What follows an entry mostly lies where it does. */
	for (uint32_t i = 0; i < t->pieces.n; i++) {
		uint32_t k = t->at + i < t->pieces.n ? t->at + i : t->at + i - t->pieces.n;
		const struct kvm_piece *p = &t->pieces.piece[k];
		const struct mf_kvm_slot *s = &t->vm->slots[p->slot];
		uint64_t addr = s->hva + page * KVM_PAGE;
		if (s->slot != slot || addr < p->addr || addr >= p->addr + p->len)
			continue;
		const struct trk_range *r = &t->ranges[p->range];
		bitmap_set(t->dirty[p->range], (addr - r->addr) / r->page_size, 1);
		t->at = k;
		return; /* ranges do not overlap */
	}
}

static bool is_dirty(const struct ring *ring, uint32_t i)
{
	/* Pairs with KVM's release: slot and page are there when the flag is. */
	return __atomic_load_n(&ring->entries[i].flags, __ATOMIC_ACQUIRE) == KVM_DIRTY_GFN_F_DIRTY;
}

/* An entry is looked at before the one in front of it: that one was pushed first, so that it cannot turn dirty between.
 * Never all are dirty: KVM keeps some in reserve. */
static void find_next(struct kvmring *t, struct ring *ring)
{
	for (uint32_t i = 0; i < t->n_entries && !ring->knows_next; i++) {
		if (is_dirty(ring, i) && !is_dirty(ring, (i - 1) & (t->n_entries - 1))) {
			ring->next = i;
			ring->knows_next = true;
		}
	}
}

static int reset_rings(struct kvmring *t)
{
	uint64_t deadline = base_deadline_ms(RESET_MS);
	/* Some kernels give up for a pending signal, with some rings done. */
	while (ioctl(t->vm->vm_fd, KVM_RESET_DIRTY_RINGS, 0) < 0) {
		if ((errno != EINTR && errno != EAGAIN) || base_now_us() >= deadline)
			return -errno;
	}
	return 0;
}

/* Under the lock.  All that is in the rings goes to the own bitmap, and is protected again. */
static void harvest(struct kvmring *t)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < t->n_rings; i++) {
		struct ring *ring = &t->rings[i];
		if (!ring->knows_next)
			find_next(t, ring);
		while (ring->knows_next && is_dirty(ring, ring->next)) {
			struct kvm_dirty_gfn *e = &ring->entries[ring->next];
			note(t, e->slot, e->offset);
			/* Pairs with KVM's acquire: it reads slot and page again, after us. */
			__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
			ring->next = (ring->next + 1) & (t->n_entries - 1);
			n++;
		}
	}
	int code = n ? reset_rings(t) : 0;
	if (code < 0)
		t->failed = code;
}

static void empty(struct kvmring *t)
{
	pthread_mutex_lock(&t->lock);
	harvest(t);
	pthread_mutex_unlock(&t->lock);
}

/* Any vCPU's thread. */
static void ring_full(void *ctx)
{
	empty(ctx);
}

static void stop(struct trk *trk)
{
	struct kvmring *t = kvmring_of(trk);
	if (!t->is_started)
		return;
	(void)kvm_log_writes(t->vm, &t->pieces, false, NULL);
	empty(t);
	t->vm->set_ring_full(t->vm->owner, NULL, NULL);
	t->is_started = false;
}

/* Under the lock.  Pages written without a vCPU; the log is cleared by being read. */
static int take_log(struct kvmring *t, uint32_t range)
{
	for (uint32_t i = 0; i < t->pieces.n; i++) {
		const struct kvm_piece *p = &t->pieces.piece[i];
		const struct mf_kvm_slot *s = &t->vm->slots[p->slot];
		if (p->range != range && range != UINT32_MAX)
			continue;
		struct kvm_dirty_log log = { .slot = s->slot };
		log.dirty_bitmap = t->log;
		if (ioctl(t->vm->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0)
			return -errno;
		uint64_t pages = kvm_slot_pages(t->vm, p->slot);
		for (uint64_t at = bitmap_next_set(t->log, 0, pages); at < pages;
		     at = bitmap_next_set(t->log, at + 1, pages))
			note(t, s->slot, at);
	}
	return 0;
}

static int start(struct trk *trk, struct mf_error *err)
{
	struct kvmring *t = kvmring_of(trk);
	assert(!t->is_started);
	for (uint32_t i = 0; i < t->n_ranges; i++)
		memset(t->dirty[i], 0,
		       bitmap_words(t->ranges[i].len / t->ranges[i].page_size) * sizeof(uint64_t));
	/* What an earlier tracker read and did not live to reset. */
	t->failed = reset_rings(t);
	t->vm->set_ring_full(t->vm->owner, ring_full, t);
	int code = kvm_is_gone(t->failed) ? 0 : t->failed;
	if (code < 0)
		base_error_sys(err, code, MF_SCOPE_SESSION, "the dirty rings cannot be reset");
	else
		code = kvm_log_writes(t->vm, &t->pieces, true, err);
	if (code >= 0 && t->has_bitmap) {
		pthread_mutex_lock(&t->lock);
		code = take_log(t, UINT32_MAX);
		pthread_mutex_unlock(&t->lock);
		if (code < 0)
			base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
				   "KVM writes guest memory without a vCPU here; enable "
				   "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP along with the rings");
	}
	t->is_started = true;
	if (code < 0) {
		stop(trk);
		return base_error_prefix(err, "tracking: ") ?: code;
	}
	return 0;
}

static int collect(struct trk *trk, uint32_t range, uint64_t first, uint64_t n, uint64_t *bits,
		   uint64_t *ret_pages, struct mf_error *err)
{
	struct kvmring *t = kvmring_of(trk);
	assert(t->is_started && range < t->n_ranges);
	const struct trk_range *r = &t->ranges[range];
	assert(first <= r->len / r->page_size && n <= r->len / r->page_size - first);
	if (t->vm->kick)
		t->vm->kick(t->vm->owner);

	pthread_mutex_lock(&t->lock);
	harvest(t);
	int code = t->has_bitmap ? take_log(t, range) : 0;
	if (t->failed)
		code = t->failed;
	/* Only what is protected again may be handed out. */
	if (!t->failed)
		*ret_pages += bitmap_take(t->dirty[range], first, n, bits, 0);
	pthread_mutex_unlock(&t->lock);
	if (kvm_is_gone(code))
		return base_error(err, -ESRCH, MF_SCOPE_SESSION,
				  "the virtual machine is gone, its writes cannot be collected");
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "the writes to range %u cannot be collected from KVM's rings",
				      range);
	return 0;
}

const struct trk_ops trk_kvmring_ops = {
	.name = "kvmring",
	.caps = TRK_CAP_NEEDS_KVM,
	.probe = probe,
	.open = open_tracker,
	.start = start,
	.collect = collect,
	.stop = stop,
	.close = close_tracker,
};
