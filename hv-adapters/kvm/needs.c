/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a guest needs of the KVM that it goes to, said by the source and looked through by the destination before
 * anything moves.  In the same container as the state (blob.h).
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "hv-adapters/kvm/kvm.h"
#include "hv-adapters/kvm/sections.h"

/* What the kernel lets pass for the same rate without hardware that scales it. */
#define TSC_TOLERANCE_PPM 250u

/* ---- CPUID ---- */

enum reg { EAX, EBX, ECX, EDX };
static const char *const reg_names[] = { "eax", "ebx", "ecx", "edx" };

/* Registers whose bits are features, each of which the destination must have.  `but`: bits that mirror what the guest
 * or the host's topology made of them. */
static const struct feature {
	uint32_t leaf, index;
	enum reg reg;
	uint32_t but;
} features[] = {
	{ 0x1, 0, ECX, 1u << 27 | 1u << 3 }, /* OSXSAVE, MONITOR */
	{ 0x1, 0, EDX, 1u << 9 },            /* APIC: enabled now */
	{ 0x7, 0, EBX, 0 },
	{ 0x7, 0, ECX, 1u << 4 }, /* OSPKE */
	{ 0x7, 0, EDX, 0 },
	{ 0x7, 1, EAX, 0 },
	{ 0x7, 1, EDX, 0 },
	{ 0xd, 0, EAX, 0 },
	{ 0xd, 0, EDX, 0 },
	{ 0xd, 1, EAX, 0 },
	{ 0xd, 1, ECX, 0 },
	{ 0xd, 1, EDX, 0 },
	{ 0x40000001, 0, EAX, 0 }, /* KVM's own */
	{ 0x80000001, 0, ECX, 0 },
	{ 0x80000001, 0, EDX, 1u << 9 },
	{ 0x80000007, 0, EDX, 0 },
	{ 0x80000008, 0, EBX, 0 },
	{ 0x8000000a, 0, EDX, 0 },
	{ 0x80000021, 0, EAX, 0 },
};

static uint32_t cpuid_bits(const struct kvm_cpuid2 *cpuid, const struct feature *f)
{
	for (uint32_t i = 0; i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
		bool has_index = e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
		if (e->function != f->leaf || (has_index ? e->index : 0) != f->index)
			continue;
		const uint32_t regs[] = { e->eax, e->ebx, e->ecx, e->edx };
		return regs[f->reg] & ~f->but;
	}
	return 0;
}

bool needs_cpuid_fits(const struct kvm_cpuid2 *want, const struct kvm_cpuid2 *has, char *why,
		      size_t cap)
{
	for (size_t i = 0; i < BASE_ARRAY_LEN(features); i++) {
		const struct feature *f = &features[i];
		uint32_t lacks = cpuid_bits(want, f) & ~cpuid_bits(has, f);
		if (!lacks)
			continue;
		(void)snprintf(why, cap, "CPUID 0x%x.%u %s lacks the bits 0x%x of the source's",
			       f->leaf, f->index, reg_names[f->reg], lacks);
		return false;
	}
	return true;
}

/* ---- the source's list ---- */

/* Mostly it is at `at`: all are read in the same order. */
static struct need_msr *find_need(struct need_msr *needs, uint32_t n, uint32_t at, uint32_t index)
{
	for (uint32_t i = 0; i < n; i++) {
		struct need_msr *need = &needs[(at + i) % n];
		if (need->index == index)
			return need;
	}
	return NULL;
}

/* Of all vCPUs: they differ in what is set, hardly in what can be read. */
static int list_msrs(struct mf_kvm *kvm, struct blob_writer *w, struct mf_error *err)
{
	blob_open(w, SEC_NEED_MSRS, 0, 0);
	struct need_msr *needs = blob_room(w, kvm->n_msrs * sizeof(*needs));
	if (!needs)
		return -ENOMEM;
	uint32_t n = 0;
	for (uint32_t v = 0; v < kvm->n_vcpus; v++) {
		int found = state_read_msrs(kvm, v);
		if (found < 0)
			return base_error_sys(err, found, MF_SCOPE_SESSION,
					      "the MSRs of vCPU %u cannot be read", v);
		for (uint32_t i = 0, at = 0; i < (uint32_t)found; i++) {
			struct need_msr *need = find_need(needs, n, at, kvm->values[i].index);
			if (!need)
				need = &needs[n++];
			need->index = kvm->values[i].index;
			need->is_set |= kvm->values[i].data != 0;
			at = (uint32_t)(need - needs) + 1;
		}
	}
	w->len -= (kvm->n_msrs - n) * sizeof(*needs);
	blob_close(w);
	return 0;
}

static int list_all(struct mf_kvm *kvm, struct blob_writer *w, struct mf_error *err)
{
	struct info info = { .n_vcpus = kvm->n_vcpus,
			     .irqchip = kvm->params.irqchip,
			     .has_pit = kvm->params.has_pit };
	struct need_caps caps = { .xsave_bytes = kvm->xsave_bytes,
				  .tsc_khz = state_tsc_khz(kvm, 0),
				  .has_xcrs = kvm->has_xcrs };
	for (uint32_t v = 0; v < kvm->n_vcpus; v++)
		caps.is_nested |= state_is_nested(kvm, v);
	int code = state_get_cpuid(kvm, 0, kvm->cpuid);
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "the CPUID of vCPU 0 cannot be read");
	blob_open(w, SEC_INFO, 0, 0);
	blob_put(w, &info, sizeof(info));
	blob_close(w);
	blob_open(w, SEC_NEED_CAPS, 0, 0);
	blob_put(w, &caps, sizeof(caps));
	blob_close(w);
	blob_open(w, SEC_CPUID, 0, 0);
	blob_put(w, kvm->cpuid->entries, kvm->cpuid->nent * sizeof(kvm->cpuid->entries[0]));
	blob_close(w);
	return list_msrs(kvm, w, err);
}

/* Asking a vCPU that is in KVM_RUN waits until it leaves that, which may be never: so all stand still for as long
 * as they are asked, some 50 us each. */
static int list_standing(struct mf_kvm *kvm, struct blob_writer *w, struct mf_error *err)
{
	bool runs = kvm->side == MF_SOURCE && !kvm->paused;
	int code = runs ? gate_close(kvm, err) : 0;
	if (code < 0)
		return code;
	code = list_all(kvm, w, err);
	if (runs)
		gate_open(kvm);
	return code;
}

ssize_t needs_list(struct mf_kvm *kvm, void *bytes, size_t cap, struct mf_error *err)
{
	struct blob_writer *w = &kvm->blob;
	blob_begin(w, BLOB_NEEDS);
	int code = list_standing(kvm, w, err);
	if (code >= 0)
		code = blob_end(w);
	if (code == -ENOMEM)
		base_error_sys(err, code, MF_SCOPE_SESSION, "no memory for the machine's needs");
	if (code < 0)
		return code;
	if (w->len > cap)
		return base_error(err, -ENOSPC, MF_SCOPE_SESSION,
				  "the machine's needs take %zu bytes, there is room for %zu",
				  w->len, cap);
	memcpy(bytes, w->bytes, w->len);
	return (ssize_t)w->len;
}

/* ---- the destination's answer ---- */

struct findings {
	struct mf_finding *at;
	unsigned n, cap;
	unsigned n_left_out;
};

/* The last place is for how many more there are. */
static __attribute__((format(printf, 4, 5))) void find(struct findings *f, enum mf_verdict verdict,
						       const char *subject, const char *fmt, ...)
{
	struct mf_finding *to = f->n < f->cap ? &f->at[f->n] : NULL;
	if (!to || (f->n + 1 == f->cap && f->n_left_out)) {
		f->n_left_out++;
		return;
	}
	*to = (struct mf_finding){ .verdict = verdict };
	(void)snprintf(to->subject, sizeof(to->subject), "%s", subject);
	va_list args;
	va_start(args, fmt);
	(void)vsnprintf(to->detail, sizeof(to->detail), fmt, args);
	va_end(args);
	f->n++;
}

static void check_msrs(const struct mf_kvm *kvm, const struct blob_section *s, struct findings *f)
{
	struct need_msr need;
	uint32_t n_idle = 0, first_idle = 0;
	for (size_t at = 0; at < s->len; at += sizeof(need)) {
		uint64_t value;
		memcpy(&need, s->bytes + at, sizeof(need));
		if (state_read_msr(kvm, 0, need.index, &value) == 0)
			continue;
		if (need.is_set)
			find(f, MF_REFUSE, "MSR", "MSR 0x%x is not known to this host's KVM",
			     need.index);
		else if (!n_idle++)
			first_idle = need.index;
	}
	/* A KVM lists many that no guest was given; they are 0, and loading that is no matter. */
	if (n_idle)
		find(f, MF_WARN, "MSR",
		     "%u MSRs that are 0 now are not known to this host's KVM (0x%x is the first); "
		     "the move will be given up if one is not when it switches over",
		     n_idle, first_idle);
}

static void check_caps(const struct mf_kvm *kvm, const struct need_caps *need, struct findings *f)
{
	uint32_t khz = state_tsc_khz(kvm, 0);
	uint64_t diff = khz > need->tsc_khz ? khz - need->tsc_khz : need->tsc_khz - khz;
	if (need->is_nested && !kvm->nested_bytes)
		find(f, MF_REFUSE, "nested guests",
		     "the guest runs guests of its own, whose state this host's KVM cannot load");
	if (need->has_xcrs && !kvm->has_xcrs)
		find(f, MF_REFUSE, "KVM_CAP_XCRS",
		     "this host's KVM cannot load extended control registers");
	if (need->xsave_bytes > kvm->xsave_bytes)
		find(f, MF_WARN, "XSAVE",
		     "the source's floating-point state takes %llu bytes, this host's KVM loads "
		     "%zu; the move will be given up if more is in use",
		     (unsigned long long)need->xsave_bytes, kvm->xsave_bytes);
	if (need->tsc_khz && khz && !kvm->has_tsc_control &&
	    diff * 1000000 > (uint64_t)khz * TSC_TOLERANCE_PPM)
		find(f, MF_REFUSE, "TSC",
		     "the guest's time stamp counter runs at %u kHz, this host's at %u, and its "
		     "CPU cannot scale it",
		     need->tsc_khz, khz);
}

static void check_info(const struct mf_kvm *kvm, const struct info *info, struct findings *f)
{
	if (info->n_vcpus != kvm->n_vcpus)
		find(f, MF_REFUSE, "vCPUs", "the guest has %u vCPUs, this machine has %u",
		     info->n_vcpus, kvm->n_vcpus);
	if (info->irqchip != kvm->params.irqchip)
		find(f, MF_REFUSE, "interrupt controllers",
		     "the guest's are of kind %u, this machine's of kind %u", info->irqchip,
		     kvm->params.irqchip);
	if (!info->has_pit != !kvm->params.has_pit)
		find(f, MF_REFUSE, "timer (PIT)", "%s has one in the kernel",
		     info->has_pit ? "only the source" : "only this machine");
}

static int check_cpuid(struct mf_kvm *kvm, const struct blob_section *s, struct findings *f,
		       struct mf_error *err)
{
	char why[128];
	kvm->other_cpuid->nent = (uint32_t)(s->len / sizeof(struct kvm_cpuid_entry2));
	memcpy(kvm->other_cpuid->entries, s->bytes, s->len);
	int code = state_get_cpuid(kvm, 0, kvm->cpuid);
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "the CPUID of vCPU 0 cannot be read");
	if (!needs_cpuid_fits(kvm->other_cpuid, kvm->cpuid, why, sizeof(why)))
		find(f, MF_REFUSE, "CPUID", "%s", why);
	return 0;
}

static bool knows_needs(uint32_t type)
{
	return type == SEC_INFO || type == SEC_CPUID || type == SEC_NEED_MSRS ||
	       type == SEC_NEED_CAPS;
}

static int check_all(struct mf_kvm *kvm, const struct blob *b, struct findings *f,
		     struct mf_error *err)
{
	const struct blob_section *info = blob_find(b, SEC_INFO, 0);
	const struct blob_section *caps = blob_find(b, SEC_NEED_CAPS, 0);
	const struct blob_section *cpuid = blob_find(b, SEC_CPUID, 0);
	const struct blob_section *msrs = blob_find(b, SEC_NEED_MSRS, 0);
	struct info the_info;
	struct need_caps the_caps;
	if (!info || info->len != sizeof(the_info) || !caps || caps->len != sizeof(the_caps) ||
	    !cpuid || cpuid->len % sizeof(struct kvm_cpuid_entry2) ||
	    cpuid->len > CPUID_MAX * sizeof(struct kvm_cpuid_entry2) || !msrs ||
	    msrs->len % sizeof(struct need_msr))
		return base_error(err, -EBADMSG, MF_SCOPE_SESSION,
				  "the source's needs: a section is missing or of the wrong size");
	memcpy(&the_info, info->bytes, sizeof(the_info));
	memcpy(&the_caps, caps->bytes, sizeof(the_caps));
	check_info(kvm, &the_info, f);
	check_caps(kvm, &the_caps, f);
	int code = check_cpuid(kvm, cpuid, f, err);
	if (code >= 0)
		check_msrs(kvm, msrs, f);
	return code;
}

int needs_check(struct mf_kvm *kvm, const void *bytes, size_t len, struct mf_finding *ret,
		unsigned cap, struct mf_error *err)
{
	struct findings f = { .at = ret, .cap = cap };
	struct blob blob;
	int code =
		blob_parse(bytes, len, BLOB_NEEDS, knows_needs, "the source's needs", &blob, err);
	if (code < 0)
		return code;
	code = check_all(kvm, &blob, &f, err);
	blob_forget(&blob);
	if (code >= 0 && f.n_left_out && f.n) {
		f.at[f.n - 1].verdict = MF_REFUSE;
		(void)snprintf(f.at[f.n - 1].detail, sizeof(f.at[f.n - 1].detail),
			       "%u more needs are not met by this host", f.n_left_out + 1);
	}
	return code < 0 ? code : (int)f.n;
}
