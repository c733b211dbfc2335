/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The tracker contract: which pages did the guest write?
 *
 * A tracker watches ranges of one address space, this process's or another's, and is
 * asked for what was written since it was last asked.  It copies nothing and knows no
 * guest, lanes or rounds.
 *
 * Thread rule: one owner thread, but for clear(), which any thread may call between two
 * collects.  collect() may block for the time of one walk over the page tables asked for.
 *
 * Laws (tests/conformance/conf_tracker.c has a test of each number, with writer threads):
 *  D1  After start() every write is reported by some collect().  A write that finished
 *      before a collect began is in that one or an earlier one; one that overlaps may slip
 *      to the next.  Over-reporting is allowed, under-reporting never.
 *  D2  The first collect after all writers stopped leaves nothing unreported.
 *  D3  collect() reads and clears, and ORs into the bitmap: bits already set stay.
 *  D4  A page that nobody wrote since its last collect is not reported for ever: over-
 *      reporting settles (a collect without any writer after it reports nothing).
 *  D5  collect() of a part clears that part only.
 *  D6  stop() and close() leave the watched process as it was: no protection stays, writes
 *      go at full speed; they are safe after the watched process is gone.
 *  D7  Writers never wait for the tracker's owner: a stopped owner stops no guest.
 *      (Not promised by trackers with TRK_CAP_SYNC.)
 *  D8  With TRK_CAP_CLEARS_LATE a reported page stays as it was until clear() of it: before
 *      that, writes to it may go unnoticed; after it, they are reported again.  So whoever
 *      reads a reported page clears it first.  clear() touches no page that was not reported,
 *      and clearing twice is harmless.  D3 to D5 hold of collect() together with clear() of
 *      what it reported.  Without the cap there is no clear(), and collect() does it all.  The
 *      first collect after start() may report every page.
 */
#ifndef TRACKER_H
#define TRACKER_H

#include <stdint.h>
#include <sys/types.h>

#include <memferry/error.h>
#include <memferry/kvm_vm.h>

enum trk_cap {
	TRK_CAP_SYNC = 1u << 0,        /* a write waits until the owner has served it */
	TRK_CAP_NEEDS_UFFD = 1u << 1,  /* params.uffd must be given */
	TRK_CAP_NEEDS_KVM = 1u << 2,   /* params.kvm must be given */
	TRK_CAP_CLEARS_LATE = 1u << 3, /* has clear(): law D8 */
};

/* One range of the watched address space. */
struct trk_range {
	uint64_t addr;      /* in the watched address space, aligned to page_size */
	uint64_t len;       /* bytes, multiple of page_size */
	uint64_t page_size; /* one bit of the bitmap; a power of two */
};

struct trk_params {
	pid_t pid; /* whose address space; 0: this process */
	int uffd; /* its userfaultfd, API not yet done, or by an earlier tracker; borrowed until close */
	const struct trk_range *ranges; /* copied */
	uint32_t n_ranges;
	const struct mf_kvm_vm *
		kvm; /* its virtual machine, in this process; NULL: not known; borrowed until close */
};

struct trk_ops;
struct trk {
	const struct trk_ops *ops;
};

struct trk_ops {
	const char *name; /* "pagemap" */
	uint32_t caps;
	/* 0: this kernel can track the ranges; else -MF_EKERNEL and a sentence naming what lacks.  Looks at params'
	 * pid, ranges and kvm only.  NULL: base pages of any other process. */
	int (*probe)(const struct trk_params *params, struct mf_error *err);
	int (*open)(const struct trk_params *params, struct trk **ret_trk, struct mf_error *err);
	int (*start)(struct trk *trk, struct mf_error *err);
	/* ORs into bits, whose bit 0 is page `first` of that range; adds the number of pages found
	 * (bits found set by the tracker, new or not) to *ret_pages.  On failure what was found so far is
	 * in both all the same.  -ESRCH: the watched process is gone. */
	int (*collect)(struct trk *trk, uint32_t range, uint64_t first, uint64_t n, uint64_t *bits,
		       uint64_t *ret_pages, struct mf_error *err);
	/* TRK_CAP_CLEARS_LATE: reported pages of [first, first + n) are about to be read. */
	int (*clear)(struct trk *trk, uint32_t range, uint64_t first, uint64_t n);
	void (*stop)(struct trk *trk);
	void (*close)(struct trk *trk);
};

const struct trk_ops *const *trk_backends(void); /* best first, NULL-terminated */
const struct trk_ops *trk_find(const char *name);

int trk_probe(const struct trk_ops *ops, const struct trk_params *params, struct mf_error *err);
int trk_open(const struct trk_ops *ops, const struct trk_params *params, struct trk **ret_trk,
	     struct mf_error *err);
int trk_start(struct trk *trk, struct mf_error *err);
int trk_collect(struct trk *trk, uint32_t range, uint64_t first, uint64_t n, uint64_t *bits,
		uint64_t *ret_pages, struct mf_error *err);
/* Without TRK_CAP_CLEARS_LATE: nothing.  Any thread.  Negative: the pages may not be read. */
int trk_clear(struct trk *trk, uint32_t range, uint64_t first, uint64_t n);
void trk_stop(struct trk *trk);
void trk_close(struct trk *trk); /* NULL: nothing; stops first */

#endif
