/* SPDX-License-Identifier: BSD-2-Clause */
/**
 * @file kvm_vm.h
 * What KVM itself knows of a guest's RAM: enough for the trackers that read KVM's dirty
 * log or its dirty rings.  Only for guests whose virtual machine lives in this process:
 * KVM answers nobody else.
 */
#ifndef MF_KVM_VM_H
#define MF_KVM_VM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** A memory slot as it was given to KVM_SET_USER_MEMORY_REGION. */
struct mf_kvm_slot {
	uint32_t slot;  /**< with its address space in the upper 16 bits */
	uint32_t flags; /**< without KVM_MEM_LOG_DIRTY_PAGES, which trackers set and clear */
	uint64_t gpa;   /**< of its first byte */
	uint64_t size;  /**< bytes */
	uint64_t hva;   /**< userspace_addr */
};

/** Called by a vCPU's thread that left KVM_RUN with KVM_EXIT_DIRTY_RING_FULL, before it
 *  enters the guest again.  Takes microseconds up to milliseconds, never fails. */
typedef void (*mf_kvm_ring_full_fn)(void *ctx);

/** A virtual machine of this process.  All descriptors and arrays stay the adapter's and
 *  valid until its close(). */
struct mf_kvm_vm {
	int vm_fd;
	uint32_t n_vcpus;
	const int *vcpu_fds;
	uint32_t n_slots;
	const struct mf_kvm_slot *slots; /**< those that hold the guest's regions */
	/** Bytes of each vCPU's dirty ring, as given to KVM_ENABLE_CAP before the vCPUs were
	 *  made; 0: no rings.  A machine with rings has no dirty log. */
	uint32_t ring_bytes;
	/** KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 was enabled with these bits; 0: it was not. */
	uint32_t manual_protect;
	/** Rings: says what to call when one is full; NULL takes it back, and returns when no
	 *  vCPU is inside of it any more.  May be NULL without rings. */
	void (*set_ring_full)(void *owner, mf_kvm_ring_full_fn full, void *ctx);
	void *owner; /**< for set_ring_full() and kick() */
	/** Optional: returns when every vCPU that was in guest mode has left it once, or after a deadline of
	 *  its own; they go on by themselves.  Intel's page modification logging keeps up to 512 written
	 *  pages in a buffer that only an exit empties, and reading a ring makes no vCPU exit (reading the
	 *  log does).  Without it such writes are reported late, never lost: by the collect after the
	 *  next exit, at the latest by the one after the pause. */
	void (*kick)(void *owner);
};

#ifdef __cplusplus
}
#endif
#endif
