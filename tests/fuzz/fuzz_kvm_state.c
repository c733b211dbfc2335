/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A virtual machine's state and needs, as they come from another host.  The first byte of the input says how to take the rest:
 *
 *   's', 'n'   as it is, for a state or for needs
 *   'S', 'N'   as a list of sections, to be put into a container whose checksum is right:
 *              type u16 | instance u8 | flags u8 | length u16 | n u8 | n bytes, zeroes up to the length
 *
 * KVM itself is not asked: a machine that takes everything stands in for it (--wrap=ioctl), so that all is loaded.
 */
#include <errno.h>
#include <stdarg.h>
#include <sys/ioctl.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "hv-adapters/kvm/kvm.h"

enum {
	VCPUS = 2,
	MSRS = 4,
	FINDINGS = 6,
	HEAD = 7,
	LENGTH_MAX = 16 << 10,
};

int __wrap_ioctl(int fd, unsigned long request, ...);

static void put_msr_list(struct kvm_msr_list *list)
{
	if (list->nmsrs >= MSRS) {
		for (uint32_t i = 0; i < MSRS; i++)
			list->indices[i] = 0xc0000080 + i;
	}
	list->nmsrs = MSRS;
}

/* Every feature there is. */
static void put_cpuid(struct kvm_cpuid2 *cpuid)
{
	static const uint32_t leaves[] = { 0x1,        0x40000001, 0x80000001, 0x80000007,
					   0x80000008, 0x8000000a, 0x80000021 };
	static const uint32_t indexed[] = { 0x7, 0xd };
	cpuid->nent = 0;
	for (size_t i = 0; i < BASE_ARRAY_LEN(leaves); i++)
		cpuid->entries[cpuid->nent++] =
			(struct kvm_cpuid_entry2){ leaves[i], 0, 0, ~0u, ~0u, ~0u, ~0u, { 0 } };
	for (size_t i = 0; i < 2 * BASE_ARRAY_LEN(indexed); i++)
		cpuid->entries[cpuid->nent++] =
			(struct kvm_cpuid_entry2){ indexed[i / 2], i % 2, 1, ~0u, ~0u, ~0u, ~0u,
						   { 0 } };
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	va_start(args, request);
	uintptr_t arg = va_arg(args, uintptr_t);
	va_end(args);
	(void)fd;
	switch (request) {
	case KVM_CHECK_EXTENSION:
		return arg == KVM_CAP_XSAVE2 || arg == KVM_CAP_NESTED_STATE ? 8192 : 1;
	case KVM_GET_MSR_INDEX_LIST:
		put_msr_list((struct kvm_msr_list *)arg);
		return 0;
	case KVM_GET_CPUID2:
		put_cpuid((struct kvm_cpuid2 *)arg);
		return 0;
	case KVM_GET_TSC_KHZ:
		return 2000000;
	case KVM_GET_MSRS:
		return (int)((struct kvm_msrs *)arg)->nmsrs;
	case KVM_SET_MSRS: {
		/* Only those of the list; it stops at the first other one. */
		const struct kvm_msrs *msrs = (const struct kvm_msrs *)arg;
		uint32_t n = 0;
		while (n < msrs->nmsrs && msrs->entries[n].index >> 4 == 0xc000008)
			n++;
		return (int)n;
	}
	default:
		return 0;
	}
}

static int load_devices(void *ctx, const void *bytes, size_t len, struct mf_error *err)
{
	(void)ctx, (void)err;
	/* Reading them all is for the sanitizers. */
	unsigned sum = 0;
	for (size_t i = 0; i < len; i++)
		sum += ((const unsigned char *)bytes)[i];
	return sum == 4711 ? -EINVAL : 0;
}

static struct mf_kvm *machine(void)
{
	static struct mf_kvm *kvm;
	static struct vcpu vcpus[VCPUS];
	if (kvm)
		return kvm;
	kvm = calloc(1, sizeof(*kvm));
	assert(kvm);
	kvm->n_vcpus = VCPUS;
	kvm->vcpus = vcpus;
	kvm->params.irqchip = MF_KVM_IRQCHIP_FULL;
	kvm->params.has_pit = true;
	kvm->params.callbacks.load_devices = load_devices;
	assert(state_init(kvm, NULL) == 0);
	return kvm;
}

static void take(enum blob_kind kind, const void *bytes, size_t len)
{
	struct mf_finding findings[FINDINGS];
	struct mf_error err = { 0 };
	int code = kind == BLOB_STATE
			   ? state_load(machine(), bytes, len, &err)
			   : needs_check(machine(), bytes, len, findings, FINDINGS, &err);
	if (code < 0)
		fuzz_check_error(&err, code);
	for (int i = 0; kind == BLOB_NEEDS && i < code; i++) {
		assert(i < FINDINGS && findings[i].subject[0]);
		assert(memchr(findings[i].subject, '\0', sizeof(findings[i].subject)));
		assert(memchr(findings[i].detail, '\0', sizeof(findings[i].detail)));
	}
}

static void put_section(struct blob_writer *w, const uint8_t head[HEAD], const uint8_t *bytes)
{
	uint32_t type = head[0] | (uint32_t)head[1] << 8;
	size_t len = (head[4] | (size_t)head[5] << 8) % LENGTH_MAX;
	size_t n = head[6] < len ? head[6] : len;
	blob_open(w, type, head[2], head[3]);
	blob_put(w, bytes, n);
	(void)blob_room(w, len - n);
	blob_close(w);
}

static void take_sections(enum blob_kind kind, const uint8_t *data, size_t size)
{
	struct blob_writer w = { 0 };
	blob_begin(&w, kind);
	for (size_t at = 0; size - at >= HEAD && size - at - HEAD >= data[at + 6];
	     at += HEAD + (size_t)data[at + 6])
		put_section(&w, data + at, data + at + HEAD);
	assert(blob_end(&w) == 0);
	/* A copy of its own length. */
	base_autofree uint8_t *bytes = fuzz_copy(w.bytes, w.len);
	take(kind, bytes, w.len);
	blob_free(&w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	enum blob_kind kind = (data[0] | 0x20) == 'n' ? BLOB_NEEDS : BLOB_STATE;
	if (data[0] == 'S' || data[0] == 'N') {
		take_sections(kind, data + 1, size - 1);
		return 0;
	}
	base_autofree uint8_t *bytes = fuzz_copy(data + 1, size - 1);
	take(kind, bytes, size - 1);
	return 0;
}
