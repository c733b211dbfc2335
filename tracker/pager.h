/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The pager contract: touches of pages that have not arrived are caught, and answered
 * when the bytes are there.
 *
 * The pager never fetches.  It reports the touch; somebody puts the bytes where they belong
 * and completes the extent.  For shared memory (PGR_SHARED) the bytes go through another
 * mapping of the same file, and completing maps them without a copy; for anonymous memory
 * (PGR_ANON) completing copies them in.
 *
 * Thread rule: next() belongs to one thread (a shard's handler); complete() may be called
 * from any thread at any time between arm() and disarm(); arm(), disarm() and close() from
 * the owner while no other call runs.
 *
 * What the address space has mapped already does not fault: arm first, then make it forget
 * (MADV_DONTNEED there; the file keeps the bytes), then rely on P1.
 *
 * After a crash another pager takes over with the same descriptors, in the same order, and the same ranges:
 * open, arm (what waits is woken and touches again), go on.
 *
 * Laws (tests/conformance/conf_pager.c has a test of each number):
 *  P1  After arm(), no touch of an armed, uncompleted page of the address space (read, write,
 *      or the kernel's own on its behalf) proceeds, and none returns wrong bytes.  Pages next to
 *      those asked for may be armed too (neighbouring extents are joined when there are many).
 *  P2  Each touched page is reported by next() at least once; several touches of one page
 *      may be one report.
 *  P3  complete() wakes every waiter of the extent, also when the page was completed before:
 *      completing twice is harmless and changes no byte.
 *  P4  A page completed before it was touched is never missed: later touches see its bytes,
 *      with or without another report (report: complete it again).
 *  P5  A page of the file that was never written (a hole) completes as zeroes.
 *  P6  disarm() lets every touch through to what is there and wakes all waiters; the caller
 *      has completed everything first.
 *  P7  close() without disarm() leaves the waiters waiting as long as the original descriptor
 *      is open in the watched process: a crash answers nothing wrongly.
 *  P8  next() returns by its deadline; polls first for spin_us, so that a stream of touches
 *      is answered without sleeping, then sleeps.
 */
#ifndef PAGER_H
#define PAGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <memferry/error.h>

enum pgr_kind {
	PGR_SHARED, /* a shared file: complete() maps what the file holds */
	PGR_ANON,   /* anonymous memory: complete() copies bytes in */
};

struct pgr_range {
	uint64_t addr;      /* in the guest's address space */
	uint64_t len;       /* bytes */
	uint64_t page_size; /* unit of faults and completions */
	enum pgr_kind kind;
	void *local; /* PGR_SHARED: our own mapping of the same bytes, writable, aligned; else NULL */
};

struct pgr_params {
	/* One per shard, API not yet done, or done by an earlier pager; borrowed until close. */
	const int *uffds;
	uint32_t n_uffds;               /* shards: range pages are divided among them, disjoint */
	const struct pgr_range *ranges; /* copied */
	uint32_t n_ranges;
};

/* A run of pages of one range. */
struct pgr_extent {
	uint32_t range;
	uint64_t first; /* page */
	uint64_t n;     /* pages */
};

struct pgr_fault {
	uint32_t range;
	uint64_t page;
	bool is_write;
	uint64_t seen_us; /* when it was read here */
};

struct pgr;

/* 0: this kernel has what is needed; else -MF_EKERNEL and a sentence naming what lacks. */
int pgr_probe(enum pgr_kind kind, uint64_t page_size, struct mf_error *err);
/* A userfaultfd of this process, for memory that is in it: UFFDIO_API not done, O_NONBLOCK and O_CLOEXEC, and it
 * catches the kernel's own touches as well (KVM).  The caller's to close. */
int pgr_open_userfaultfd(int *ret_fd, struct mf_error *err);
int pgr_open(const struct pgr_params *params, struct pgr **ret_pgr, struct mf_error *err);
/* Arms the extents given (n 0: every range whole).  May be called once. */
int pgr_arm(struct pgr *pgr, const struct pgr_extent *extents, size_t n, struct mf_error *err);
/* Faults of one shard: their number, 0 at the deadline or when extra_fd woke it, or a negative code.
 * extra_fd (or -1): another descriptor whose readability ends the sleep. */
int pgr_next(struct pgr *pgr, uint32_t shard, struct pgr_fault *faults, unsigned cap,
	     uint64_t spin_us, uint64_t deadline_us, int extra_fd);
/* The descriptor of a shard, for a caller that polls by itself (then pgr_next with a deadline of 0). */
int pgr_fd(const struct pgr *pgr, uint32_t shard);
/* bytes: PGR_ANON: where the extent's bytes are; PGR_SHARED: NULL.
 * Pages not armed are passed over.  -ESRCH: the process is gone; -EFAULT: the file cannot hold the
 * page (beyond its end, no memory).  After a failure the waiters wait: complete again. */
int pgr_complete(struct pgr *pgr, const struct pgr_extent *extent, const void *bytes);
void pgr_disarm(struct pgr *pgr);
void pgr_close(struct pgr *pgr); /* NULL: nothing */

#endif
