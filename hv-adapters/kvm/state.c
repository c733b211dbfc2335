/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * All that KVM keeps of a machine but its RAM.  Each kind of state is a section whose bytes are KVM's own structure,
 * which is part of the kernel's ABI.
 *
 * Order of saving: KVM_GET_MP_STATE first, as it works off start-up interrupts that are pending, and may change
 * registers by that.
 *
 * Order of loading, each for its reason:
 *   SREGS      APIC_BASE says whether the local APIC is an x2APIC, EFER.SVME and CR4.VMXE allow nested state
 *   NESTED     changes what SREGS mean
 *   REGS       drops pending exceptions, so before EVENTS
 *   XSAVE, XCRS
 *   TSC        before the local APIC, whose timer counts in it
 *   MSRS       features first, as others hang on them
 *   LAPIC
 *   TSC_DEADLINE  armed only while the local APIC's timer is in that mode
 *   EVENTS, MP_STATE, DEBUGREGS
 * then, once, IRQCHIP and PIT, and last the clock.
 *
 * Time: guests see three clocks, the TSC, KVM's clock and timers.  Timers are held as what is left of them, and go on
 * from there.  The other two shall go on as if nobody had stopped them: by CLOCK_REALTIME, on which both hosts must
 * agree.  A difference below 0 counts as 0, so that no guest's time goes back; one of more than GAP_MAX_NS is not
 * believed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "hv-adapters/kvm/kvm.h"
#include "hv-adapters/kvm/sections.h"

#define NS_PER_S   UINT64_C(1000000000)
#define GAP_MAX_NS (600 * NS_PER_S)

#define MSR_TSC          0x10u
#define MSR_FEATURE_CTL  0x3au
#define MSR_MCG_CAP      0x179u
#define MSR_MC0_CTL      0x400u
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_HV_REFCOUNT  0x40000020u
#define EFER_SVME        (UINT64_C(1) << 12)
#define XSAVE_BYTES      sizeof(struct kvm_xsave)
/* KVM refuses 256 in one call. */
#define MSRS_AT_ONCE 128u

/* What KVM_GET_MSR_INDEX_LIST leaves out in some versions, and a guest keeps all the same: memory types. */
static const uint32_t more_msrs[] = {
	0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209,
	0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268,
	0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x277, 0x2ff,
};

static int failed(struct mf_error *err, int code, const char *what, uint32_t vcpu)
{
	return base_error_sys(err, code, MF_SCOPE_SESSION, "the %s of vCPU %u", what, vcpu);
}

static int call(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg) < 0 ? -errno : 0;
}

/* ---- what this KVM can ---- */

static bool is_listed(const struct mf_kvm *kvm, uint32_t index)
{
	for (uint32_t i = 0; i < kvm->n_msrs; i++) {
		if (kvm->msr_list[i] == index)
			return true;
	}
	return false;
}

static void add_msr(struct mf_kvm *kvm, uint32_t index)
{
	/* Clocks have sections of their own; the reference counter can only be read. */
	if (index != MSR_TSC && index != MSR_TSC_DEADLINE && index != MSR_HV_REFCOUNT &&
	    !is_listed(kvm, index))
		kvm->msr_list[kvm->n_msrs++] = index;
}

static int list_msrs(struct mf_kvm *kvm, struct mf_error *err)
{
	struct kvm_msr_list none = { 0 };
	(void)ioctl(kvm->params.kvm_fd, KVM_GET_MSR_INDEX_LIST, &none);
	base_autofree struct kvm_msr_list *list =
		calloc(1, sizeof(*list) + none.nmsrs * sizeof(list->indices[0]));
	uint64_t mcg_cap = 0;
	(void)state_read_msr(kvm, 0, MSR_MCG_CAP, &mcg_cap);
	uint32_t banks = mcg_cap & 0xff;
	kvm->msr_list = calloc(none.nmsrs + BASE_ARRAY_LEN(more_msrs) + banks * 4 + 1,
			       sizeof(*kvm->msr_list));
	if (!list || !kvm->msr_list)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for MSRs");
	list->nmsrs = none.nmsrs;
	if (ioctl(kvm->params.kvm_fd, KVM_GET_MSR_INDEX_LIST, list) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "KVM does not list its MSRs");
	/* It locks itself, and others hang on it. */
	for (uint32_t i = 0; i < list->nmsrs; i++) {
		if (list->indices[i] == MSR_FEATURE_CTL)
			add_msr(kvm, MSR_FEATURE_CTL);
	}
	for (uint32_t i = 0; i < list->nmsrs; i++)
		add_msr(kvm, list->indices[i]);
	for (size_t i = 0; i < BASE_ARRAY_LEN(more_msrs); i++)
		add_msr(kvm, more_msrs[i]);
	for (uint32_t i = 0; i < banks * 4; i++)
		add_msr(kvm, MSR_MC0_CTL + i);
	return 0;
}

int state_init(struct mf_kvm *kvm, struct mf_error *err)
{
	int n = kvm_cap(kvm, KVM_CAP_XSAVE2);
	kvm->has_xsave2 = n > 0;
	kvm->xsave_bytes = (size_t)n > XSAVE_BYTES ? (size_t)n : XSAVE_BYTES;
	kvm->has_xcrs = kvm_cap(kvm, KVM_CAP_XCRS) > 0;
	kvm->has_sregs2 = kvm_cap(kvm, KVM_CAP_SREGS2) > 0;
	kvm->has_debugregs = kvm_cap(kvm, KVM_CAP_DEBUGREGS) > 0;
	kvm->has_tsc_control = kvm_cap(kvm, KVM_CAP_TSC_CONTROL) > 0;
	kvm->clock_flags = (uint32_t)kvm_cap(kvm, KVM_CAP_ADJUST_CLOCK);
	kvm->nested_bytes = (size_t)kvm_cap(kvm, KVM_CAP_NESTED_STATE);
	int code = list_msrs(kvm, err);
	if (code < 0)
		return code;
	size_t cpuid = sizeof(struct kvm_cpuid2) + CPUID_MAX * sizeof(struct kvm_cpuid_entry2);
	kvm->xsave = calloc(1, kvm->xsave_bytes);
	kvm->nested = kvm->nested_bytes ? calloc(1, kvm->nested_bytes) : NULL;
	kvm->cpuid = calloc(1, cpuid);
	kvm->other_cpuid = calloc(1, cpuid);
	kvm->values = calloc(kvm->n_msrs + 1, sizeof(*kvm->values));
	kvm->msrs = calloc(1, sizeof(*kvm->msrs) + MSRS_AT_ONCE * sizeof(kvm->msrs->entries[0]));
	bool ok = kvm->values && kvm->msrs && kvm->xsave && kvm->cpuid && kvm->other_cpuid &&
		  (kvm->nested || !kvm->nested_bytes);
	return ok ? 0
		  : base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION,
				   "no memory for the machine's state");
}

void state_destroy(struct mf_kvm *kvm)
{
	free(kvm->values);
	free(kvm->msrs);
	free(kvm->msr_list);
	free(kvm->xsave);
	free(kvm->nested);
	free(kvm->cpuid);
	free(kvm->other_cpuid);
	blob_free(&kvm->blob);
	blob_free(&kvm->devices);
}

/* ---- saving ---- */

/* Room for a call about one MSR. */
union one_msr {
	struct kvm_msrs msrs;
	unsigned char room[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
};

int state_read_msr(const struct mf_kvm *kvm, uint32_t vcpu, uint32_t index, uint64_t *ret)
{
	union one_msr one = { .room = { 0 } };
	one.msrs.nmsrs = 1;
	one.msrs.entries[0].index = index;
	int n = ioctl(kvm->vcpus[vcpu].fd, KVM_GET_MSRS, &one);
	if (n != 1)
		return n < 0 ? -errno : -ENOENT;
	*ret = one.msrs.entries[0].data;
	return 0;
}

static int write_msr(const struct mf_kvm *kvm, uint32_t vcpu, uint32_t index, uint64_t value)
{
	union one_msr one = { .room = { 0 } };
	one.msrs.nmsrs = 1;
	one.msrs.entries[0] = (struct kvm_msr_entry){ .index = index, .data = value };
	int n = ioctl(kvm->vcpus[vcpu].fd, KVM_SET_MSRS, &one);
	return n == 1 ? 0 : n < 0 ? -errno : -EINVAL;
}

int state_get_cpuid(const struct mf_kvm *kvm, uint32_t vcpu, struct kvm_cpuid2 *ret)
{
	ret->nent = CPUID_MAX;
	return call(kvm->vcpus[vcpu].fd, KVM_GET_CPUID2, ret);
}

uint32_t state_tsc_khz(const struct mf_kvm *kvm, uint32_t vcpu)
{
	int khz = ioctl(kvm->vcpus[vcpu].fd, KVM_GET_TSC_KHZ, 0);
	return khz > 0 ? (uint32_t)khz : 0;
}

static uint64_t realtime_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static int tsc_offset(const struct mf_kvm *kvm, uint32_t vcpu, bool set, uint64_t *offset)
{
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL,
					.attr = KVM_VCPU_TSC_OFFSET,
					.addr = (uintptr_t)offset };
	return call(kvm->vcpus[vcpu].fd, set ? KVM_SET_DEVICE_ATTR : KVM_GET_DEVICE_ATTR, &attr);
}

/* All vCPUs' counters for one instant: those behind the first by the difference of their offsets, where KVM tells them,
 * so that counters which agree at the source agree at the destination to the last tick. */
static int read_tsc(const struct mf_kvm *kvm, uint32_t vcpu, struct tsc *ret,
		    const struct tsc *base)
{
	*ret = (struct tsc){ .khz = state_tsc_khz(kvm, vcpu) };
	ret->has_offset = tsc_offset(kvm, vcpu, false, &ret->offset) == 0;
	ret->realtime_ns = realtime_ns();
	int code = state_read_msr(kvm, vcpu, MSR_TSC, &ret->guest);
	if (code >= 0 && vcpu && base->has_offset && ret->has_offset) {
		ret->realtime_ns = base->realtime_ns;
		ret->guest = base->guest + (ret->offset - base->offset);
	}
	return code;
}

/* KVM stops at the first that it cannot read, which is left out. */
int state_read_msrs(struct mf_kvm *kvm, uint32_t vcpu)
{
	struct kvm_msrs *msrs = kvm->msrs;
	uint32_t found = 0;
	for (uint32_t at = 0; at < kvm->n_msrs;) {
		uint32_t left = kvm->n_msrs - at;
		msrs->nmsrs = left < MSRS_AT_ONCE ? left : MSRS_AT_ONCE;
		for (uint32_t i = 0; i < msrs->nmsrs; i++)
			msrs->entries[i] = (struct kvm_msr_entry){ .index = kvm->msr_list[at + i] };
		int n = ioctl(kvm->vcpus[vcpu].fd, KVM_GET_MSRS, msrs);
		if (n < 0)
			return -errno;
		memcpy(kvm->values + found, msrs->entries, (size_t)n * sizeof(msrs->entries[0]));
		found += (uint32_t)n;
		at += (uint32_t)n + ((uint32_t)n < msrs->nmsrs);
	}
	return (int)found;
}

static int save_msrs(struct mf_kvm *kvm, uint32_t vcpu)
{
	struct blob_writer *w = &kvm->blob;
	int n = state_read_msrs(kvm, vcpu);
	if (n < 0)
		return n;
	blob_open(w, SEC_MSRS, vcpu, 0);
	blob_put(w, kvm->values, (size_t)n * sizeof(kvm->values[0]));
	uint64_t deadline = 0;
	if (state_read_msr(kvm, vcpu, MSR_TSC_DEADLINE, &deadline) == 0) {
		struct kvm_msr_entry last = { .index = MSR_TSC_DEADLINE, .data = deadline };
		blob_put(w, &last, sizeof(last));
	}
	blob_close(w);
	return 0;
}

/* Whether there is state of guests of its own. */
bool state_is_nested(const struct mf_kvm *kvm, uint32_t vcpu)
{
	struct kvm_nested_state head = { .size = sizeof(head) };
	struct kvm_sregs sregs;
	struct kvm_nested_state *s = kvm->nested ?: &head;
	if (kvm->nested)
		s->size = (uint32_t)kvm->nested_bytes;
	if (call(kvm->vcpus[vcpu].fd, KVM_GET_SREGS, &sregs) == 0 && sregs.efer & EFER_SVME)
		return true;
	if (!kvm->nested || call(kvm->vcpus[vcpu].fd, KVM_GET_NESTED_STATE, s) < 0)
		return false;
	return s->flags & KVM_STATE_NESTED_GUEST_MODE ||
	       (s->format == KVM_STATE_NESTED_FORMAT_VMX && s->hdr.vmx.vmxon_pa != UINT64_MAX);
}

static int save_nested(struct mf_kvm *kvm, uint32_t vcpu, struct mf_error *err)
{
	if (!state_is_nested(kvm, vcpu))
		return 0;
	if (!kvm->nested)
		return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "vCPU %u runs a guest of its own, and this KVM cannot save that",
				  vcpu);
	kvm->nested->size = (uint32_t)kvm->nested_bytes;
	int code = call(kvm->vcpus[vcpu].fd, KVM_GET_NESTED_STATE, kvm->nested);
	if (code < 0)
		return failed(err, code, "nested state cannot be saved", vcpu);
	blob_open(&kvm->blob, SEC_NESTED, vcpu, 0);
	blob_put(&kvm->blob, kvm->nested, kvm->nested->size);
	blob_close(&kvm->blob);
	return 0;
}

/* Parts of a vCPU that are one structure each, in the order of saving. */
static const struct part {
	enum section type;
	uint32_t flags;
	size_t len;
	unsigned long get, set;
	const char *name;
} parts[] = {
	{ SEC_MP_STATE, 0, sizeof(struct kvm_mp_state), KVM_GET_MP_STATE, KVM_SET_MP_STATE,
	  "run state" },
	{ SEC_REGS, 0, sizeof(struct kvm_regs), KVM_GET_REGS, KVM_SET_REGS, "registers" },
	{ SEC_SREGS, 0, sizeof(struct kvm_sregs), KVM_GET_SREGS, KVM_SET_SREGS,
	  "system registers" },
	{ SEC_SREGS2, BLOB_OPTIONAL, sizeof(struct kvm_sregs2), KVM_GET_SREGS2, KVM_SET_SREGS2,
	  "system registers" },
	{ SEC_XCRS, 0, sizeof(struct kvm_xcrs), KVM_GET_XCRS, KVM_SET_XCRS,
	  "extended control registers" },
	{ SEC_EVENTS, 0, sizeof(struct kvm_vcpu_events), KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS,
	  "pending events" },
	{ SEC_DEBUGREGS, 0, sizeof(struct kvm_debugregs), KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS,
	  "debug registers" },
	{ SEC_LAPIC, 0, sizeof(struct kvm_lapic_state), KVM_GET_LAPIC, KVM_SET_LAPIC,
	  "local APIC" },
};

static bool has_part(const struct mf_kvm *kvm, enum section type)
{
	switch (type) {
	case SEC_SREGS2:
		return kvm->has_sregs2;
	case SEC_XCRS:
		return kvm->has_xcrs;
	case SEC_DEBUGREGS:
		return kvm->has_debugregs;
	case SEC_LAPIC:
		return kvm->params.irqchip != MF_KVM_IRQCHIP_NONE;
	default:
		return true;
	}
}

static int save_vcpu(struct mf_kvm *kvm, uint32_t vcpu, const struct tsc *tsc, struct mf_error *err)
{
	struct blob_writer *w = &kvm->blob;
	int fd = kvm->vcpus[vcpu].fd, code;
	for (size_t i = 0; i < BASE_ARRAY_LEN(parts); i++) {
		const struct part *p = &parts[i];
		if (!has_part(kvm, p->type))
			continue;
		blob_open(w, p->type, vcpu, p->flags);
		void *room = blob_room(w, p->len);
		code = room ? call(fd, p->get, room) : -ENOMEM;
		if (code < 0)
			return base_error_sys(err, code, MF_SCOPE_SESSION,
					      "the %s of vCPU %u cannot be saved", p->name, vcpu);
		blob_close(w);
	}
	code = call(fd, kvm->has_xsave2 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, kvm->xsave);
	if (code < 0)
		return failed(err, code, "floating-point state cannot be saved", vcpu);
	blob_open(w, SEC_XSAVE, vcpu, 0);
	blob_put(w, kvm->xsave, kvm->xsave_bytes);
	blob_close(w);
	code = state_get_cpuid(kvm, vcpu, kvm->cpuid);
	if (code < 0)
		return failed(err, code, "CPUID cannot be read", vcpu);
	blob_open(w, SEC_CPUID, vcpu, 0);
	blob_put(w, kvm->cpuid->entries, kvm->cpuid->nent * sizeof(kvm->cpuid->entries[0]));
	blob_close(w);
	code = save_msrs(kvm, vcpu);
	if (code < 0)
		return failed(err, code, "MSRs cannot be saved", vcpu);
	blob_open(w, SEC_TSC, vcpu, 0);
	blob_put(w, tsc, sizeof(*tsc));
	blob_close(w);
	return save_nested(kvm, vcpu, err);
}

static int save_devices_in_kernel(struct mf_kvm *kvm, struct mf_error *err)
{
	struct blob_writer *w = &kvm->blob;
	int vm = kvm->params.vm_fd, code = 0;
	for (uint32_t chip = 0; kvm->params.irqchip == MF_KVM_IRQCHIP_FULL && chip < 3; chip++) {
		blob_open(w, SEC_IRQCHIP, chip, 0);
		struct kvm_irqchip *room = blob_room(w, sizeof(*room));
		if (room)
			room->chip_id = chip;
		code = room ? call(vm, KVM_GET_IRQCHIP, room) : -ENOMEM;
		if (code < 0)
			return base_error_sys(err, code, MF_SCOPE_SESSION,
					      "interrupt controller %u cannot be saved", chip);
		blob_close(w);
	}
	if (kvm->params.has_pit) {
		blob_open(w, SEC_PIT, 0, 0);
		void *room = blob_room(w, sizeof(struct kvm_pit_state2));
		code = room ? call(vm, KVM_GET_PIT2, room) : -ENOMEM;
		if (code < 0)
			return base_error_sys(err, code, MF_SCOPE_SESSION,
					      "the timer (PIT) cannot be saved");
		blob_close(w);
	}
	return 0;
}

static int save_all(struct mf_kvm *kvm, struct mf_error *err)
{
	struct blob_writer *w = &kvm->blob;
	struct tsc first = { 0 }, tsc;
	struct kvm_clock_data clock = { 0 };
	int code = 0;
	blob_open(w, SEC_INFO, 0, 0);
	/* The clocks first and close together: all that follows takes time. */
	struct info info = { .n_vcpus = kvm->n_vcpus,
			     .irqchip = kvm->params.irqchip,
			     .has_pit = kvm->params.has_pit,
			     .realtime_ns = realtime_ns() };
	if (kvm->clock_flags)
		code = call(kvm->params.vm_fd, KVM_GET_CLOCK, &clock);
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_SESSION, "KVM's clock cannot be saved");
	blob_put(w, &info, sizeof(info));
	blob_close(w);
	if (kvm->clock_flags) {
		blob_open(w, SEC_CLOCK, 0, 0);
		blob_put(w, &clock, sizeof(clock));
		blob_close(w);
	}
	for (uint32_t i = 0; i < kvm->n_vcpus; i++) {
		code = read_tsc(kvm, i, &tsc, &first);
		if (code < 0)
			return failed(err, code, "time stamp counter cannot be read", i);
		if (!i)
			first = tsc;
		code = save_vcpu(kvm, i, &tsc, err);
		if (code < 0)
			return code;
	}
	code = save_devices_in_kernel(kvm, err);
	if (code < 0 || !kvm->params.callbacks.save_devices)
		return code;
	blob_open(w, SEC_DEVICES, 0, 0);
	blob_put(w, kvm->devices.bytes, kvm->devices.len);
	blob_close(w);
	return 0;
}

int state_save(struct mf_kvm *kvm, struct mf_error *err)
{
	blob_begin(&kvm->blob, BLOB_STATE);
	int code = save_all(kvm, err);
	if (code >= 0)
		code = blob_end(&kvm->blob);
	if (code == -ENOMEM)
		base_error_sys(err, code, MF_SCOPE_SESSION,
			       "no memory for the machine's state, or it is larger than 64 MiB");
	return code;
}

/* ---- loading ---- */

static bool knows_state(uint32_t type)
{
	return (type >= SEC_INFO && type <= SEC_PIT) || (type >= SEC_CPUID && type <= SEC_TSC) ||
	       type == SEC_DEVICES;
}

static int nonsense(struct mf_error *err, const char *what, uint32_t instance)
{
	return base_error(err, -EBADMSG, MF_SCOPE_SESSION,
			  "the machine's state: %s %u is missing or of the wrong size", what,
			  instance);
}

static bool has_len(const struct blob *b, enum section type, uint32_t instance, size_t len)
{
	const struct blob_section *s = blob_find(b, type, instance);
	return s && s->len == len;
}

/* A list whose elements have that size. */
static bool is_list(const struct blob *b, enum section type, uint32_t instance, size_t each)
{
	const struct blob_section *s = blob_find(b, type, instance);
	return s && s->len % each == 0;
}

static int check_vcpu(struct mf_kvm *kvm, const struct blob *b, uint32_t i, struct mf_error *err)
{
	for (size_t k = 0; k < BASE_ARRAY_LEN(parts); k++) {
		const struct part *p = &parts[k];
		bool is_there = blob_find(b, p->type, i);
		if (is_there ? !has_len(b, p->type, i, p->len)
			     : p->type != SEC_SREGS2 && has_part(kvm, p->type))
			return nonsense(err, "vCPU's part", p->type);
		if (is_there && !has_part(kvm, p->type) && p->type != SEC_SREGS2)
			return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
					  "the %s of vCPU %u cannot be loaded by this machine",
					  p->name, i);
	}
	const struct blob_section *cpuid = blob_find(b, SEC_CPUID, i);
	const struct blob_section *xsave = blob_find(b, SEC_XSAVE, i);
	const struct blob_section *nested = blob_find(b, SEC_NESTED, i);
	if (!is_list(b, SEC_CPUID, i, sizeof(struct kvm_cpuid_entry2)) ||
	    cpuid->len > CPUID_MAX * sizeof(struct kvm_cpuid_entry2))
		return nonsense(err, "the CPUID of vCPU", i);
	if (!is_list(b, SEC_MSRS, i, sizeof(struct kvm_msr_entry)))
		return nonsense(err, "the MSRs of vCPU", i);
	if (!has_len(b, SEC_TSC, i, sizeof(struct tsc)))
		return nonsense(err, "the time stamp counter of vCPU", i);
	if (!xsave || xsave->len < XSAVE_BYTES)
		return nonsense(err, "the floating-point state of vCPU", i);
	for (size_t at = kvm->xsave_bytes; at < xsave->len; at++) {
		if (xsave->bytes[at])
			return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
					  "the floating-point state of vCPU %u takes %zu bytes, "
					  "this host's KVM loads %zu",
					  i, xsave->len, kvm->xsave_bytes);
	}
	if (nested && (nested->len < sizeof(*kvm->nested) || nested->len > kvm->nested_bytes))
		return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "vCPU %u runs a guest of its own, whose state this host's KVM "
				  "cannot load",
				  i);
	return 0;
}

/* All that can be known before the first register is changed. */
static int check_all(struct mf_kvm *kvm, const struct blob *b, struct mf_error *err)
{
	struct info info;
	if (!has_len(b, SEC_INFO, 0, sizeof(info)))
		return nonsense(err, "section", SEC_INFO);
	memcpy(&info, blob_find(b, SEC_INFO, 0)->bytes, sizeof(info));
	if (info.n_vcpus != kvm->n_vcpus || info.irqchip != kvm->params.irqchip ||
	    !info.has_pit != !kvm->params.has_pit)
		return base_error(err, -EINVAL, MF_SCOPE_SESSION,
				  "the machine's state is of %u vCPUs with interrupt controllers "
				  "of kind %u and %s PIT, this machine has %u, %u and %s",
				  info.n_vcpus, info.irqchip, info.has_pit ? "a" : "no",
				  kvm->n_vcpus, kvm->params.irqchip,
				  kvm->params.has_pit ? "one" : "none");
	for (uint32_t chip = 0; kvm->params.irqchip == MF_KVM_IRQCHIP_FULL && chip < 3; chip++) {
		if (!has_len(b, SEC_IRQCHIP, chip, sizeof(struct kvm_irqchip)))
			return nonsense(err, "interrupt controller", chip);
	}
	if (kvm->params.has_pit && !has_len(b, SEC_PIT, 0, sizeof(struct kvm_pit_state2)))
		return nonsense(err, "timer", 0);
	if (blob_find(b, SEC_CLOCK, 0) && !has_len(b, SEC_CLOCK, 0, sizeof(struct kvm_clock_data)))
		return nonsense(err, "clock", 0);
	if (blob_find(b, SEC_DEVICES, 0) && !kvm->params.callbacks.load_devices)
		return base_error(err, -EOPNOTSUPP, MF_SCOPE_SESSION,
				  "the machine's state has devices of the monitor's own, and this "
				  "monitor loads none");
	for (uint32_t i = 0; i < kvm->n_vcpus; i++) {
		int code = check_vcpu(kvm, b, i, err);
		if (code < 0)
			return code;
	}
	return 0;
}

/* What has passed since, as far as it is believed. */
static uint64_t gap_ns(uint64_t since, uint64_t now)
{
	return now > since && now - since <= GAP_MAX_NS ? now - since : 0;
}

static uint64_t ns_to_ticks(uint64_t ns, uint32_t khz)
{
	return (uint64_t)((unsigned __int128)ns * khz / 1000000u);
}

/*
 * guest = f(host) + offset, f being the scaling, if any.  f(host) is what the counter shows less the offset it has now;
 * so the offset wanted follows without a host's counter that we would have to read at the same moment.
 */
static int load_tsc(const struct mf_kvm *kvm, const struct blob *b, uint32_t vcpu,
		    const struct tsc *first, uint64_t *first_offset, struct mf_error *err)
{
	struct tsc tsc;
	memcpy(&tsc, blob_find(b, SEC_TSC, vcpu)->bytes, sizeof(tsc));
	uint32_t khz = state_tsc_khz(kvm, vcpu);
	if (tsc.khz && tsc.khz != khz &&
	    ioctl(kvm->vcpus[vcpu].fd, KVM_SET_TSC_KHZ, (unsigned long)tsc.khz) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_SESSION,
				      "the time stamp counter of vCPU %u cannot run at %u kHz, "
				      "here it is %u",
				      vcpu, tsc.khz, khz);
	khz = tsc.khz ? tsc.khz : khz;
	uint64_t have = 0, offset = 0;
	bool has_offset = tsc_offset(kvm, vcpu, false, &offset) == 0;
	/* The wanted one is of a moment before the reading, never after: a counter may lose a microsecond, and
	 * would still not go back. */
	uint64_t want = tsc.guest + ns_to_ticks(gap_ns(tsc.realtime_ns, realtime_ns()), khz);
	int code = state_read_msr(kvm, vcpu, MSR_TSC, &have);
	if (code < 0)
		return failed(err, code, "time stamp counter cannot be read", vcpu);
	if (!has_offset) {
		code = write_msr(kvm, vcpu, MSR_TSC, want);
	} else {
		offset = want - (have - offset);
		if (vcpu && first->has_offset && tsc.has_offset)
			offset = *first_offset + (tsc.offset - first->offset);
		if (!vcpu)
			*first_offset = offset;
		code = tsc_offset(kvm, vcpu, true, &offset);
	}
	return code < 0 ? failed(err, code, "time stamp counter cannot be set", vcpu) : 0;
}

/* An MSR that KVM does not take is no harm when it has that value already, or the guest's is 0, which is what a
 * KVM that does not know it pretends. */
static int load_stubborn_msr(const struct mf_kvm *kvm, uint32_t vcpu, const struct kvm_msr_entry *e,
			     struct mf_error *err)
{
	uint64_t have = 0;
	if (!e->data || (state_read_msr(kvm, vcpu, e->index, &have) == 0 && have == e->data))
		return 0;
	return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
			  "MSR 0x%x of vCPU %u is 0x%llx, which this host's KVM does not take",
			  e->index, vcpu, (unsigned long long)e->data);
}

/* Many at once; KVM stops at the first that it does not take. */
static int load_msrs(struct mf_kvm *kvm, const struct blob *b, uint32_t vcpu, bool deadline,
		     struct mf_error *err)
{
	const struct blob_section *s = blob_find(b, SEC_MSRS, vcpu);
	struct kvm_msrs *msrs = kvm->msrs;
	size_t at = 0;
	int code = 0;
	while (at < s->len && code >= 0) {
		size_t from = at;
		msrs->nmsrs = 0;
		/* The one to stop at must be known by its place in the state. */
		for (; at < s->len && msrs->nmsrs < MSRS_AT_ONCE; at += sizeof(msrs->entries[0])) {
			struct kvm_msr_entry e;
			memcpy(&e, s->bytes + at, sizeof(e));
			if ((e.index == MSR_TSC_DEADLINE) == deadline && e.index != MSR_TSC)
				msrs->entries[msrs->nmsrs++] =
					(struct kvm_msr_entry){ .index = e.index, .data = e.data };
			else if (msrs->nmsrs)
				break;
			else
				from = at + sizeof(e);
		}
		if (!msrs->nmsrs)
			break;
		int n = ioctl(kvm->vcpus[vcpu].fd, KVM_SET_MSRS, msrs);
		n = n < 0 ? 0 : n; /* one by one, so that the error names it */
		at = from + (size_t)n * sizeof(msrs->entries[0]);
		if ((uint32_t)n < msrs->nmsrs) {
			code = load_stubborn_msr(kvm, vcpu, &msrs->entries[n], err);
			at += sizeof(msrs->entries[0]);
		}
	}
	return code;
}

static int load_part(const struct mf_kvm *kvm, const struct blob *b, enum section type,
		     uint32_t vcpu, struct mf_error *err)
{
	const struct blob_section *s = blob_find(b, type, vcpu);
	_Alignas(8) unsigned char bytes[2048];
	const struct part *p = parts;
	while (p->type != type)
		p++;
	if (!s || !has_part(kvm, type))
		return 0;
	memcpy(bytes, s->bytes, p->len < sizeof(bytes) ? p->len : sizeof(bytes));
	/* Without a local APIC in the kernel there is but one state, and it cannot be set. */
	if (type == SEC_MP_STATE && kvm->params.irqchip == MF_KVM_IRQCHIP_NONE)
		return 0;
	int code = call(kvm->vcpus[vcpu].fd, p->set, bytes);
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "the %s of vCPU %u cannot be loaded", p->name, vcpu);
	return 0;
}

static int load_xsave(struct mf_kvm *kvm, const struct blob *b, uint32_t vcpu, struct mf_error *err)
{
	const struct blob_section *s = blob_find(b, SEC_XSAVE, vcpu);
	memset(kvm->xsave, 0, kvm->xsave_bytes);
	memcpy(kvm->xsave, s->bytes, s->len < kvm->xsave_bytes ? s->len : kvm->xsave_bytes);
	int code = call(kvm->vcpus[vcpu].fd, KVM_SET_XSAVE, kvm->xsave);
	return code < 0 ? failed(err, code, "floating-point state cannot be loaded", vcpu) : 0;
}

static int load_nested(struct mf_kvm *kvm, const struct blob *b, uint32_t vcpu,
		       struct mf_error *err)
{
	const struct blob_section *s = blob_find(b, SEC_NESTED, vcpu);
	if (!s)
		return 0;
	memcpy(kvm->nested, s->bytes, s->len);
	kvm->nested->size = (uint32_t)s->len;
	int code = call(kvm->vcpus[vcpu].fd, KVM_SET_NESTED_STATE, kvm->nested);
	return code < 0 ? failed(err, code, "nested state cannot be loaded", vcpu) : 0;
}

static int load_vcpu(struct mf_kvm *kvm, const struct blob *b, uint32_t i, const struct tsc *first,
		     uint64_t *first_offset, struct mf_error *err)
{
	/* One or the other: the larger has all of the smaller but a pending interrupt, which is an event, too. */
	bool two = kvm->has_sregs2 && blob_find(b, SEC_SREGS2, i);
	int code = load_part(kvm, b, two ? SEC_SREGS2 : SEC_SREGS, i, err);
	if (code >= 0)
		code = load_nested(kvm, b, i, err);
	if (code >= 0)
		code = load_part(kvm, b, SEC_REGS, i, err);
	if (code >= 0)
		code = load_xsave(kvm, b, i, err);
	if (code >= 0)
		code = load_part(kvm, b, SEC_XCRS, i, err);
	if (code >= 0)
		code = load_tsc(kvm, b, i, first, first_offset, err);
	if (code >= 0)
		code = load_msrs(kvm, b, i, false, err);
	if (code >= 0)
		code = load_part(kvm, b, SEC_LAPIC, i, err);
	if (code >= 0)
		code = load_msrs(kvm, b, i, true, err);
	if (code >= 0)
		code = load_part(kvm, b, SEC_EVENTS, i, err);
	if (code >= 0)
		code = load_part(kvm, b, SEC_MP_STATE, i, err);
	if (code >= 0)
		code = load_part(kvm, b, SEC_DEBUGREGS, i, err);
	return code;
}

static int load_clock(const struct mf_kvm *kvm, const struct blob *b, struct mf_error *err)
{
	const struct blob_section *s = blob_find(b, SEC_CLOCK, 0);
	struct kvm_clock_data from, to = { 0 };
	struct info info;
	if (!s || !kvm->clock_flags)
		return 0;
	memcpy(&from, s->bytes, sizeof(from));
	memcpy(&info, blob_find(b, SEC_INFO, 0)->bytes, sizeof(info));
	to.clock = from.clock;
	bool is_stamped = from.flags & KVM_CLOCK_REALTIME;
	uint64_t since = is_stamped ? from.realtime : info.realtime_ns;
	uint64_t gap = gap_ns(since, realtime_ns());
	if (gap && is_stamped && kvm->clock_flags & KVM_CLOCK_REALTIME) {
		to.flags = KVM_CLOCK_REALTIME; /* KVM adds what has passed, at the same instant */
		to.realtime = from.realtime;
	} else {
		to.clock += gap;
	}
	int code = call(kvm->params.vm_fd, KVM_SET_CLOCK, &to);
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_SESSION, "KVM's clock cannot be loaded");
	return 0;
}

static int load_devices_in_kernel(const struct mf_kvm *kvm, const struct blob *b,
				  struct mf_error *err)
{
	struct kvm_irqchip chip;
	struct kvm_pit_state2 pit;
	int code = 0;
	for (uint32_t i = 0; kvm->params.irqchip == MF_KVM_IRQCHIP_FULL && i < 3 && !code; i++) {
		memcpy(&chip, blob_find(b, SEC_IRQCHIP, i)->bytes, sizeof(chip));
		chip.chip_id = i;
		code = call(kvm->params.vm_fd, KVM_SET_IRQCHIP, &chip);
	}
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "the interrupt controllers cannot be loaded");
	if (!kvm->params.has_pit)
		return 0;
	memcpy(&pit, blob_find(b, SEC_PIT, 0)->bytes, sizeof(pit));
	code = call(kvm->params.vm_fd, KVM_SET_PIT2, &pit);
	return code < 0 ? base_error_sys(err, code, MF_SCOPE_SESSION,
					 "the timer (PIT) cannot be loaded")
			: 0;
}

/* The monitor set CPUID on this side: it must have what the guest was told at the source. */
static int check_cpuid(struct mf_kvm *kvm, const struct blob *b, uint32_t vcpu,
		       struct mf_error *err)
{
	const struct blob_section *s = blob_find(b, SEC_CPUID, vcpu);
	char why[128];
	kvm->other_cpuid->nent = (uint32_t)(s->len / sizeof(struct kvm_cpuid_entry2));
	memcpy(kvm->other_cpuid->entries, s->bytes, s->len);
	int code = state_get_cpuid(kvm, vcpu, kvm->cpuid);
	if (code < 0)
		return failed(err, code, "CPUID cannot be read", vcpu);
	if (!needs_cpuid_fits(kvm->other_cpuid, kvm->cpuid, why, sizeof(why)))
		return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "vCPU %u is another one than at the source: %s", vcpu, why);
	return 0;
}

static int load_all(struct mf_kvm *kvm, const struct blob *b, struct mf_error *err)
{
	struct tsc first;
	uint64_t first_offset = 0;
	int code = check_all(kvm, b, err);
	for (uint32_t i = 0; i < kvm->n_vcpus && code >= 0; i++)
		code = check_cpuid(kvm, b, i, err);
	if (code < 0)
		return code;
	memcpy(&first, blob_find(b, SEC_TSC, 0)->bytes, sizeof(first));
	for (uint32_t i = 0; i < kvm->n_vcpus && code >= 0; i++)
		code = load_vcpu(kvm, b, i, &first, &first_offset, err);
	if (code >= 0)
		code = load_devices_in_kernel(kvm, b, err);
	if (code >= 0)
		code = load_clock(kvm, b, err);
	const struct blob_section *devices = blob_find(b, SEC_DEVICES, 0);
	if (code < 0 || !devices)
		return code;
	code = kvm->params.callbacks.load_devices(kvm->params.ctx, devices->bytes, devices->len,
						  err);
	return code < 0 ? base_error_sys(err, code, MF_SCOPE_SESSION,
					 "the monitor's devices cannot be loaded")
			: 0;
}

int state_load(struct mf_kvm *kvm, const void *bytes, size_t len, struct mf_error *err)
{
	struct blob blob;
	int code =
		blob_parse(bytes, len, BLOB_STATE, knows_state, "the machine's state", &blob, err);
	if (code < 0)
		return code;
	code = load_all(kvm, &blob, err);
	blob_forget(&blob);
	return code;
}
