/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A virtual machine in care, and what the files of this folder do with it:
 *
 *   kvm.c     opening, and the adapter's table
 *   gate.c    running, pausing and kicking vCPUs
 *   state.c   registers, devices in the kernel and clocks, to and from a blob
 *   needs.c   what the other host must be able to load
 *   choose.c  which way of tracking to enable
 */
#ifndef KVM_KVM_H
#define KVM_KVM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <sys/types.h>

#include <memferry/kvm.h>

#include "hv-adapters/kvm/blob.h"

enum gate {
	GATE_OPEN,
	GATE_CLOSED,
	GATE_ENDED, /* the guest is gone, threads may end */
};

/* Under the gate's lock but for fd, run and the buffers. */
struct vcpu {
	int fd;
	struct kvm_run *run;
	pid_t tid;       /* of the thread that runs it; 0: none does, it stands still */
	bool in_guest;   /* that thread is in KVM_RUN, or about to be */
	bool parked;     /* it waits at the gate */
	bool settled;    /* KVM owes the last exit nothing */
	bool kicked;     /* mf_kvm_run() shall return -EINTR */
	bool leaves;     /* mf_kvm_leave() is completing the last exit */
	uint64_t n_left; /* times KVM_RUN came back */
};

struct mf_kvm {
	struct mf_kvm_params params; /* strings and arrays are below */
	char name[64], monitor[64], machine[64], cpu[128];
	int kick_signal;
	uint32_t n_vcpus;
	struct vcpu *vcpus;
	int *vcpu_fds;
	struct mf_kvm_slot *slots;
	struct mf_region *regions;
	uint64_t **written; /* by region: pages that the monitor wrote; atomic */
	struct mf_kvm_vm vm;

	/* What this KVM can. */
	size_t run_bytes, xsave_bytes, nested_bytes;
	bool has_xsave2, has_xcrs, has_sregs2, has_tsc_control, has_debugregs;
	uint32_t clock_flags; /* of KVM_GET_CLOCK and KVM_SET_CLOCK */
	uint32_t n_msrs;
	uint32_t *msr_list;           /* in the order of loading */
	struct kvm_msr_entry *values; /* what state_read_msrs() found; the session's thread only */
	struct kvm_msrs *msrs;        /* room for one call; likewise */
	struct kvm_xsave *xsave;      /* xsave_bytes; the session's thread only */
	struct kvm_nested_state *nested; /* nested_bytes, NULL without; likewise */
	struct kvm_cpuid2 *cpuid;        /* for CPUID_MAX entries; likewise */
	struct kvm_cpuid2 *other_cpuid;  /* likewise */

	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum gate gate;
	mf_kvm_ring_full_fn ring_full;
	void *ring_ctx;
	uint32_t n_ring_full; /* vCPUs that are inside of it */

	/* The move; the session's thread only. */
	bool is_open; /* an adapter is */
	enum mf_side side;
	bool prepared, devices_stopped, paused, committed, loaded, resumed, finished;
	int *region_fds; /* duplicates, while an adapter is open */
	struct blob_writer blob, devices;
};

#define CPUID_MAX 256

/* ---- gate.c ---- */

int gate_init(struct mf_kvm *kvm, struct mf_error *err);
void gate_destroy(struct mf_kvm *kvm);
/* Returns when no vCPU runs and each one's state is whole; on failure all go on. */
int gate_close(struct mf_kvm *kvm, struct mf_error *err);
void gate_open(struct mf_kvm *kvm);
void gate_end(struct mf_kvm *kvm);
/* For struct mf_kvm_vm. */
void gate_set_ring_full(void *owner, mf_kvm_ring_full_fn full, void *ctx);
void gate_kick_all(void *owner);

/* ---- state.c ---- */

/* Finds out what this KVM can save, and makes room for it. */
int state_init(struct mf_kvm *kvm, struct mf_error *err);
void state_destroy(struct mf_kvm *kvm);
/* vCPUs stand still.  Into kvm->blob. */
int state_save(struct mf_kvm *kvm, struct mf_error *err);
/* Nothing is loaded before all of it made sense. */
int state_load(struct mf_kvm *kvm, const void *bytes, size_t len, struct mf_error *err);
/* All of msr_list that can be read, into kvm->values; how many.  The vCPU is not in KVM_RUN, or this waits for it. */
int state_read_msrs(struct mf_kvm *kvm, uint32_t vcpu);
int state_read_msr(const struct mf_kvm *kvm, uint32_t vcpu, uint32_t index, uint64_t *ret);
int state_get_cpuid(const struct mf_kvm *kvm, uint32_t vcpu, struct kvm_cpuid2 *ret);
/* In kHz; 0: not known. */
uint32_t state_tsc_khz(const struct mf_kvm *kvm, uint32_t vcpu);
bool state_is_nested(const struct mf_kvm *kvm, uint32_t vcpu);

/* ---- needs.c ---- */

ssize_t needs_list(struct mf_kvm *kvm, void *bytes, size_t cap, struct mf_error *err);
int needs_check(struct mf_kvm *kvm, const void *bytes, size_t len, struct mf_finding *ret,
		unsigned cap, struct mf_error *err);
/* The first feature that `has` lacks of `want`: false and a phrase like "CPUID 0x7.0 ebx lacks bits 0x20". */
bool needs_cpuid_fits(const struct kvm_cpuid2 *want, const struct kvm_cpuid2 *has, char *why,
		      size_t cap);

/* KVM's word for a capability of the machine; 0: no. */
int kvm_cap(const struct mf_kvm *kvm, long cap);

#endif
