/* SPDX-License-Identifier: BSD-2-Clause */
/**
 * @file kvm.h
 * The adapter for monitors that drive KVM themselves and link this library.
 *
 * The monitor keeps its virtual machine: descriptors, memory, device models, threads.
 * It hands the machine to mf_kvm_open(), runs its vCPUs by mf_kvm_run() instead of
 * ioctl(KVM_RUN), and says by mf_kvm_wrote() what it wrote into guest memory itself.
 * When the guest is to move, mf_kvm_adapter() gives a struct mf_adapter for a session.
 *
 *     start:        mf_kvm_choose_tracking()    after KVM_CREATE_VM, before vCPUs and slots
 *                   … vCPUs, irqchip, memory, CPUID, as ever …
 *                   mf_kvm_open()
 *     each vCPU:    while (mf_kvm_run(kvm, i) …) handle run->exit_reason
 *     a move:       mf_kvm_adapter(), a session with it, ops->close()
 *     end:          mf_kvm_close(), when no thread is in mf_kvm_run() any more
 *
 * Pausing is a gate in mf_kvm_run().  A vCPU that is in the guest, or halted in the kernel, is
 * taken out by a signal; one that the monitor serves an exit for is waited for: it comes to
 * the gate by itself, and there KVM completes what the exit left open (a read of a
 * port takes its value only when the vCPU is entered again).  Then its state is whole.
 *
 * 64-bit x86 only; elsewhere mf_kvm_open() fails with -EOPNOTSUPP.
 */
#ifndef MF_KVM_H
#define MF_KVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <memferry/adapter.h>
#include <memferry/error.h>
#include <memferry/kvm_vm.h>
#include <memferry/region.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Which interrupt controllers live in the kernel. */
enum mf_kvm_irqchip {
	MF_KVM_IRQCHIP_NONE,  /**< none, nor a local APIC */
	MF_KVM_IRQCHIP_SPLIT, /**< KVM_CAP_SPLIT_IRQCHIP: local APICs only */
	MF_KVM_IRQCHIP_FULL,  /**< KVM_CREATE_IRQCHIP: local APICs, two PICs, the I/O APIC */
};

/** What the monitor does for the adapter.  All are optional, are called by the thread that calls
 *  the adapter, never by two threads at once, and must not call mf_kvm_run(). */
struct mf_kvm_callbacks {
	/** vCPUs stand still: stop all devices that write guest memory.  On failure all goes on
	 *  (start_devices is called, then vCPUs run). */
	int (*stop_devices)(void *ctx, struct mf_error *err);
	/** Devices may go on: the move was given up, or the guest is about to run here. */
	void (*start_devices)(void *ctx);
	/** Source, all stopped: the monitor's own state, for load_devices; by write(write_ctx, …),
	 *  which may be called many times.  At most 32 MiB in all. */
	int (*save_devices)(void *ctx, mf_state_write_fn write, void *write_ctx,
			    struct mf_error *err);
	/** Destination, everything of KVM's is loaded: exactly the bytes that save_devices wrote.
	 *  May touch guest memory, which may then be fetched from the source. */
	int (*load_devices)(void *ctx, const void *bytes, size_t len, struct mf_error *err);
	/** Source: the guest lives at the destination and every page is there.  From now on
	 *  mf_kvm_run() returns -ECANCELED.  Must not wait for the vCPUs' threads. */
	void (*finished)(void *ctx);
};

/** A virtual machine, as the monitor made it.  Copied by mf_kvm_open(), with all arrays. */
struct mf_kvm_params {
	size_t size; /**< sizeof(struct mf_kvm_params) */
	int kvm_fd;  /**< of /dev/kvm; the monitor's, open until mf_kvm_close(), like all below */
	int vm_fd;
	uint32_t n_vcpus;
	const int *vcpu_fds; /**< by vCPU; their CPUID is set */
	uint32_t n_slots;
	/** Those that hold guest RAM, none missing; without KVM_MEM_LOG_DIRTY_PAGES.  Fixed until
	 *  mf_kvm_close(): what trackers watch must not change. */
	const struct mf_kvm_slot *slots;
	uint32_t n_regions;
	const struct mf_region *regions; /**< the guest's RAM */
	const char *name;                /**< of the guest, for people */
	const char *monitor;             /**< name and version: "mymon 1.2" */
	const char *machine; /**< its virtual hardware; both hosts must agree: "mymon-pc-1" */
	const char *cpu; /**< CPU model; both hosts must agree.  NULL: the number of vCPUs only */
	enum mf_kvm_irqchip irqchip;
	bool has_pit;            /**< KVM_CREATE_PIT2 was called */
	uint32_t ring_bytes;     /**< as in struct mf_kvm_tracking */
	uint32_t manual_protect; /**< likewise */
	/** A machine to move into: no vCPU runs before the move is complete, mf_kvm_run() waits.
	 *  Its RAM is empty, its vCPUs have never run. */
	bool is_destination;
	/** The signal that takes a vCPU's thread out of KVM_RUN; 0: SIGRTMIN.  If its action is the
	 *  default one, a handler that does nothing is installed and stays for good; a handler
	 *  of the monitor's is left in place and sees spurious signals.  An ignored signal is refused;
	 *  0 is refused, too, where SIGRTMIN has a handler that is not this library's.
	 *  mf_kvm_run() unblocks the signal in its thread. */
	int kick_signal;
	uint32_t pause_ms; /**< how long vCPUs may take to stop; 0: 5000 */
	struct mf_kvm_callbacks callbacks;
	void *ctx; /**< for the callbacks */
};

struct mf_kvm;

/**
 * Takes the virtual machine into care; no vCPU may be in KVM_RUN.  Blocks for milliseconds; allocates a bit for each page of RAM.
 * -EINVAL: parameters that contradict each other; -EOPNOTSUPP: not on this architecture; or what
 * KVM said.  The caller owns *ret_kvm.
 */
__attribute__((visibility("default"))) int
mf_kvm_open(const struct mf_kvm_params *params, struct mf_kvm **ret_kvm, struct mf_error *err);

/** NULL: nothing.  No thread may be in mf_kvm_run(), no adapter of it may be open. */
__attribute__((visibility("default"))) void mf_kvm_close(struct mf_kvm *kvm);

/**
 * An adapter for one move of this machine, one at a time (-EBUSY).  Its ops->close() ends the move,
 * not the machine: a source that was not committed runs on, a committed one stays stopped until
 * mf_kvm_run() returns -ECANCELED.  A source may be moved again after a failure.
 */
__attribute__((visibility("default"))) int
mf_kvm_adapter(struct mf_kvm *kvm, struct mf_adapter *ret_adapter, struct mf_error *err);

/**
 * Runs vCPU @p vcpu until there is something for the monitor to do; instead of ioctl(KVM_RUN).  One
 * thread a vCPU, always the same one until it calls mf_kvm_leave().  Blocks as KVM_RUN does, and
 * while the guest is paused.  KVM_EXIT_DIRTY_RING_FULL is handled inside while a tracker reads the rings.
 *
 *   0           see exit_reason in its struct kvm_run
 *   -EINTR      by mf_kvm_kick(), a signal, or for no reason at all: call it again
 *   -ECANCELED  the guest has gone to another host, this thread may end
 *   else        KVM_RUN's error
 *
 * kvm_run.immediate_exit belongs to this library; mf_kvm_kick() is for monitors that set it.
 * A handler of an exit that blocks keeps the guest from being paused.
 */
__attribute__((visibility("default"))) int mf_kvm_run(struct mf_kvm *kvm, uint32_t vcpu);

/**
 * The vCPU's thread, which calls this, will not come back soon or is about to end, and has handled its last
 * exit.  KVM completes that, and from then on pausing does not wait for this thread; any later
 * mf_kvm_run() takes the vCPU back.  0; -EAGAIN: completing it made another exit, to be handled first
 * (the next piece of a string instruction); or KVM_RUN's error.
 */
__attribute__((visibility("default"))) int mf_kvm_leave(struct mf_kvm *kvm, uint32_t vcpu);

/** Makes the vCPU's present or next mf_kvm_run() return -EINTR soon; while the guest is paused, too.
 *  Any thread. */
__attribute__((visibility("default"))) void mf_kvm_kick(struct mf_kvm *kvm, uint32_t vcpu);

/**
 * The monitor has written guest memory: device models, loaders, whoever does it by the mapping instead of
 * through a vCPU.  To be called AFTER the write, before the guest is told of it; before it
 * the page could be sent without the write.  Any thread, lock-free, never fails; what is no RAM is left out.
 */
__attribute__((visibility("default"))) void mf_kvm_wrote(struct mf_kvm *kvm, uint64_t gpa,
							 uint64_t len);

/** How writes of vCPUs will be found. */
enum mf_kvm_tracking_way {
	MF_KVM_TRACK_AUTO, /**< a hint only: by the rule below */
	MF_KVM_TRACK_NONE, /**< nothing enabled: KVM's log in its plain form, or pagemap */
	MF_KVM_TRACK_LOG,  /**< the log, protected again by hand */
	MF_KVM_TRACK_RING, /**< dirty rings */
};

/** What the monitor knows of the guest; 0: not known. */
struct mf_kvm_hints {
	uint64_t ram_bytes;
	uint64_t dirty_bytes_per_s;
	uint32_t n_vcpus;
	enum mf_kvm_tracking_way forced; /**< not AUTO: that way, or failure */
};

/** For mf_kvm_params. */
struct mf_kvm_tracking {
	enum mf_kvm_tracking_way way;
	uint32_t ring_bytes;     /**< of each vCPU's ring, 0 without */
	uint32_t manual_protect; /**< bits of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 0 without */
	char reason[200];        /**< one sentence, for people */
};

/**
 * Chooses how writes will be tracked and enables it.  After KVM_CREATE_VM, before the first vCPU and
 * the first memory slot; the machine has it for life.
 *
 * The rule: the log, unless RAM is 512 GiB or more and the guest is known to write less than
 * 64 MiB/s.  The log's cost goes with RAM: each collect copies a bit for each 4 KiB, 16 MiB
 * at 512 GiB, some 3 ms, of which the last is downtime.  The rings' cost goes with writes: an entry,
 * a fault and a share of a reset for each page written.  Measured for QEMU by the author of its rings
 * (24 GB, 8 vCPUs, 800 MB/s written): 55 s by the log, 73 s by rings; idle guests: no difference.
 * What KVM does not have is not chosen.
 *
 * 0, or -EOPNOTSUPP when the forced way is not there, or what KVM_ENABLE_CAP said.
 */
__attribute__((visibility("default"))) int
mf_kvm_choose_tracking(int kvm_fd, int vm_fd, const struct mf_kvm_hints *hints,
		       struct mf_kvm_tracking *ret_tracking, struct mf_error *err);

#ifdef __cplusplus
}
#endif
#endif
