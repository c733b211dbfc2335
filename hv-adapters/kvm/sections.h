/* SPDX-License-Identifier: BSD-2-Clause */
/* What stands in a machine's state and in its needs; docs/kvm-state.md is the definition. */
#ifndef KVM_SECTIONS_H
#define KVM_SECTIONS_H

#include <stdint.h>

enum section {
	SEC_INFO = 1,    /* struct info */
	SEC_CLOCK = 2,   /* struct kvm_clock_data */
	SEC_IRQCHIP = 3, /* struct kvm_irqchip; instance: its chip_id */
	SEC_PIT = 4,     /* struct kvm_pit_state2 */
	/* instance: the vCPU */
	SEC_CPUID = 0x10,     /* struct kvm_cpuid_entry2, as many as there are */
	SEC_REGS = 0x11,      /* struct kvm_regs */
	SEC_SREGS = 0x12,     /* struct kvm_sregs */
	SEC_SREGS2 = 0x13,    /* struct kvm_sregs2 */
	SEC_XSAVE = 0x14,     /* struct kvm_xsave with what follows it */
	SEC_XCRS = 0x15,      /* struct kvm_xcrs */
	SEC_MSRS = 0x16,      /* struct kvm_msr_entry, as many as there are */
	SEC_EVENTS = 0x17,    /* struct kvm_vcpu_events */
	SEC_MP_STATE = 0x18,  /* struct kvm_mp_state */
	SEC_DEBUGREGS = 0x19, /* struct kvm_debugregs */
	SEC_NESTED = 0x1a,    /* struct kvm_nested_state with what follows it */
	SEC_LAPIC = 0x1b,     /* struct kvm_lapic_state */
	SEC_TSC = 0x1c,       /* struct tsc */
	SEC_DEVICES = 0x100,  /* the monitor's own bytes */
	/* needs only */
	SEC_NEED_MSRS = 0x200, /* struct need_msr, as many as there are */
	SEC_NEED_CAPS = 0x201, /* struct need_caps */
};

struct info {
	uint32_t n_vcpus;
	uint32_t irqchip; /* enum mf_kvm_irqchip */
	uint32_t has_pit;
	uint32_t reserved;
	uint64_t realtime_ns; /* CLOCK_REALTIME when the clocks were read */
};

struct tsc {
	uint64_t guest;       /* its counter at realtime_ns */
	uint64_t realtime_ns; /* CLOCK_REALTIME */
	uint64_t offset;      /* KVM_VCPU_TSC_OFFSET */
	uint32_t has_offset;
	uint32_t khz; /* of the guest's counter; 0: not known */
};

struct need_msr {
	uint32_t index;
	uint32_t is_set; /* it is not 0 now */
};

struct need_caps {
	uint64_t xsave_bytes; /* of KVM_CAP_XSAVE2, 4096 without */
	uint32_t tsc_khz;
	uint32_t is_nested; /* it runs guests of its own */
	uint32_t has_xcrs;
	uint32_t reserved;
};

#endif
