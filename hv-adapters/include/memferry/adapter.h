/* SPDX-License-Identifier: BSD-2-Clause */
/**
 * @file adapter.h
 * The adapter contract: what the engine needs to know of one kind of guest.
 *
 * An adapter describes a guest's RAM, pauses and resumes it, and carries its
 * device state as an opaque byte stream.  It moves no pages and knows nothing
 * of transports, trackers or the protocol.  A table of callbacks, sized so that
 * it can grow at its end.
 *
 * All calls come one at a time, in the thread that session.h names for the way in which
 * the session is run.  Each may block, until a deadline of its own.
 *
 * Two kinds of guest.  One lives in another process (mf_guest.pid): its regions need file
 * descriptors, and its adapter reaches into that process.  The other lives in this one, as
 * when a monitor links memferry: its regions may be known by their addresses alone, and its
 * adapter leaves open_userfaultfd, close_userfaultfds and forget_ram NULL.
 *
 * Laws (each has a test of the same number in tests/conformance):
 *  A1  Until commit() every failure ends with the source guest running,
 *      unharmed: whatever was called before, abort() brings it back.
 *  A2  When pause() returns 0 no vCPU and no device writes guest memory until
 *      abort() or resume().
 *  A3  save_state() after pause() yields the whole device state, load_state()
 *      takes exactly those bytes; neither runs the guest.
 *  A4  load_state() leaves the guest stopped; only resume() runs it.
 *  A5  commit() is the source's point of no return and cannot fail; after it
 *      the source guest does not run again.  finish() ends it for good.
 *  A6  describe() is stable: regions keep order, address and size until close.
 *  A7  close() at any time releases all that the adapter holds of the guest, and
 *      is safe after any failure.  It never resumes a guest that was committed.
 *      It gives a move up that was not; but a destination that has loaded a guest
 *      stays as it is, and so do its userfaultfds, as touches may wait in them.
 *  A8  abort() is idempotent and also undoes prepare() at the destination.
 */
#ifndef MF_ADAPTER_H
#define MF_ADAPTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <memferry/error.h>
#include <memferry/kvm_vm.h>
#include <memferry/region.h>

#ifdef __cplusplus
extern "C" {
#endif

enum mf_side {
	MF_SOURCE,
	MF_DESTINATION,
};

/** What preflight says of one point. */
enum mf_verdict {
	MF_OK,
	MF_WARN,
	MF_REFUSE,
};

/** One line of preflight: `subject: detail`. */
struct mf_finding {
	enum mf_verdict verdict;
	char subject[48];
	char detail[200];
};

#define MF_FINDINGS_MAX 32

enum mf_guest_flag {
	/** Devices write guest RAM through pages that the kernel pinned earlier (direct I/O): such a write
	 *  shows in no page table, so that writes can be collected only while hold() lasts. */
	MF_GUEST_PINS_RAM = 1u << 0,
};

/** What describe() tells.  Owned by the caller; strings are terminated. */
struct mf_guest {
	char kind[16];    /**< "qemu", "demo", … */
	char name[64];    /**< for people */
	char monitor[64]; /**< VMM and its version: "QEMU 7.2.22" */
	char machine[64]; /**< machine type; both hosts must agree */
	char cpu[128];    /**< CPU model and count; both hosts must agree */
	uint32_t flags;   /**< enum mf_guest_flag */
	pid_t pid;        /**< the process whose address space holds the guest's RAM */
	uint32_t n_regions;
	struct mf_region regions[MF_REGIONS_MAX];
	uint32_t n_findings; /**< what the adapter itself has to say in preflight */
	struct mf_finding findings[MF_FINDINGS_MAX];
	/** Its virtual machine, when that is KVM's and this process's; else NULL. */
	const struct mf_kvm_vm *kvm;
};

#define MF_NEEDS_MAX (64u << 10)

/** Where save_state() puts bytes.  0, or a negative code that ends the saving. */
typedef int (*mf_state_write_fn)(void *ctx, const void *bytes, size_t len);
/** Where load_state() gets bytes: count, 0 at the end, or a negative code. */
typedef ssize_t (*mf_state_read_fn)(void *ctx, void *bytes, size_t cap);

struct mf_adapter_ops {
	size_t size;      /**< sizeof(struct mf_adapter_ops) of whoever wrote the table */
	const char *name; /**< "qemu" */

	/** Fills @p ret.  The region descriptors stay the adapter's, open until close(). */
	int (*describe)(void *hv, struct mf_guest *ret, struct mf_error *err);

	/**
	 * Once, after both sides agreed and before any page moves.  Source: sets what
	 * saving will need.  Destination: makes sure that the guest will not run by
	 * itself.  May change the guest's configuration, never its execution.
	 */
	int (*prepare)(void *hv, enum mf_side side, struct mf_error *err);

	/**
	 * These three are optional for a guest in this process: without them the engine does it.
	 *
	 * A userfaultfd of the guest's address space, UFFDIO_API not yet done, O_NONBLOCK
	 * and O_CLOEXEC.  The descriptor returned is a duplicate and the caller's to close;
	 * the original stays open in the guest's process until close_userfaultfds(), so
	 * that a crash of ours leaves faults waiting.
	 */
	int (*open_userfaultfd)(void *hv, int *ret_fd, struct mf_error *err);
	/** Closes every original that open_userfaultfd() made.  Faults must be done with. */
	void (*close_userfaultfds)(void *hv);

	/**
	 * Destination, guest stopped: makes the guest's address space forget all mappings of
	 * its RAM (MADV_DONTNEED on every region; the file keeps the bytes), so that each next
	 * touch faults.
	 */
	int (*forget_ram)(void *hv, struct mf_error *err);

	/** Source.  Returns with the guest stopped; @p ret_stopped_us is when (monotonic µs). */
	int (*pause)(void *hv, uint64_t *ret_stopped_us, struct mf_error *err);
	/** Source, after pause(). */
	int (*save_state)(void *hv, mf_state_write_fn write, void *ctx, struct mf_error *err);
	/** Destination, after prepare().  RAM may fault while it runs.  The bytes are all there: @p read never blocks. */
	int (*load_state)(void *hv, mf_state_read_fn read, void *ctx, struct mf_error *err);
	/** Destination, after load_state() and the commit: the guest runs. */
	int (*resume)(void *hv, struct mf_error *err);

	/** Source: from now on abort() must not run the guest. */
	void (*commit)(void *hv);
	/** Source: back to running, from anywhere before commit().  Destination: drop what
	 *  was loaded; the guest there never runs. */
	int (*abort)(void *hv, struct mf_error *err);
	/** Source, after the destination has every page: end the guest. */
	void (*finish)(void *hv);

	/** Optional: slow the guest's vCPUs by @p percent (0 to 99).  -EOPNOTSUPP without. */
	int (*throttle)(void *hv, unsigned percent, struct mf_error *err);

	/** Releases everything.  Never fails. */
	void (*close)(void *hv);

	/**
	 * Optional, destination, after the last page is in: a guest that can check its own memory
	 * does, and says what it found (MF_REFUSE: a page is wrong).  1 and *ret, or 0 without an opinion.
	 * May stop the guest: it is for guests that exist to be checked.
	 */
	int (*self_check)(void *hv, struct mf_finding *ret);

	/**
	 * Optional, source, needed for pre-copy of guests with MF_GUEST_PINS_RAM: the guest stands still and all that
	 * was under way into its RAM has landed, until let_go().  abort() lets go, too.
	 */
	int (*hold)(void *hv, struct mf_error *err);
	int (*let_go)(void *hv, struct mf_error *err);

	/**
	 * Optional, source: what the guest needs of the host it goes to (CPU features, state that the kernel must be
	 * able to load), in a form that only the adapter's other side reads.  Bytes written, at most @p cap
	 * (MF_NEEDS_MAX), or a negative code.
	 */
	ssize_t (*list_needs)(void *hv, void *bytes, size_t cap, struct mf_error *err);
	/**
	 * Optional, destination, before anything moves: says which of the source's needs are not met here, a finding
	 * each, at most @p cap.  Their number, 0 when all are met, or a negative code: they make no sense.
	 * An adapter without it meets no needs but an empty list.
	 */
	int (*check_needs)(void *hv, const void *bytes, size_t len, struct mf_finding *ret,
			   unsigned cap, struct mf_error *err);

	/**
	 * Optional, source: pages that the monitor itself wrote where a tracker cannot see it (KVM's own tracking sees
	 * vCPUs and KVM only).  ORs into @p bits, whose bit 0 is page @p first of the region, what was written since it
	 * was last asked, and forgets it.  Called after the tracker was asked for the same pages.
	 */
	void (*take_written)(void *hv, uint32_t region, uint64_t first, uint64_t n, uint64_t *bits);

	/**
	 * Optional, both or none: for guests that outlive the process that moves them.  After describe() and instead of
	 * prepare(), when that process has died after the hand-off began: the adapter stands where its table would after
	 * save_state() at the source (which is about to be committed), or after load_state() at the destination.
	 * @p ran: what ran() said then.  @p ret_runs: whether the guest runs now.  Changes nothing of the guest.
	 */
	int (*take_over)(void *hv, bool ran, bool *ret_runs, struct mf_error *err);
	/**
	 * Destination, after take_over(): a duplicate of the userfaultfd that the dead process had open_userfaultfd()
	 * make, as that function gives it.  The original is closed by close_userfaultfds() from now on.  -ENOENT: there is none.
	 */
	int (*find_userfaultfd)(void *hv, int *ret_fd, struct mf_error *err);

	/**
	 * Optional, for take_over(): whether the guest ran when pause() was called, so that it is to run again: at the
	 * source after pause(), at the destination after load_state().  Without it a guest that is taken over is to run.
	 */
	bool (*ran)(void *hv);
};

/** An open guest: the table and what it works on.  The session copies the table (of older
 *  programs too, whose tables are shorter) and calls what it knows of it; close() is for
 *  whoever opened the guest. */
struct mf_adapter {
	const struct mf_adapter_ops *ops;
	void *hv;
};

#ifdef __cplusplus
}
#endif
#endif
