/* SPDX-License-Identifier: BSD-2-Clause */
/* Which way of tracking to enable; the rule and its reasons are in memferry/kvm.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/error.h"
#include "hv-adapters/kvm/kvm.h"

#define RING_RAM_MIN   (UINT64_C(512) << 30)
#define RING_RATE_MAX  (UINT64_C(64) << 20)
#define RING_ENTRY     ((uint32_t)sizeof(struct kvm_dirty_gfn))
#define RING_BYTES_MIN (4096u * RING_ENTRY)

static int cap_of(int fd, long cap)
{
	int r = ioctl(fd, KVM_CHECK_EXTENSION, cap);
	return r > 0 ? r : 0;
}

static int enable(int vm_fd, uint32_t cap, uint64_t arg)
{
	struct kvm_enable_cap how = { .cap = cap, .args = { arg } };
	return ioctl(vm_fd, KVM_ENABLE_CAP, &how) < 0 ? -errno : 0;
}

/* A second's writes of one vCPU, if that is known: then a ring is rarely full before it is read. */
static uint32_t ring_bytes(const struct mf_kvm_hints *hints, uint32_t max)
{
	uint64_t vcpus = hints->n_vcpus ? hints->n_vcpus : 1;
	uint64_t want = hints->dirty_bytes_per_s / 4096 / vcpus * RING_ENTRY;
	uint32_t size = RING_BYTES_MIN;
	while (size < want && size < max)
		size *= 2;
	while (size > max)
		size /= 2;
	return size;
}

static int take_rings(int vm_fd, const struct mf_kvm_hints *hints, uint32_t cap, uint32_t max,
		      struct mf_kvm_tracking *ret, struct mf_error *err)
{
	uint32_t size = ring_bytes(hints, max);
	int code = enable(vm_fd, cap, size);
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_HOST,
				      "dirty rings of %u bytes cannot be enabled before the first "
				      "vCPU",
				      size);
	ret->way = MF_KVM_TRACK_RING;
	ret->ring_bytes = size;
	return 0;
}

static int take_log(int vm_fd, int bits, struct mf_kvm_tracking *ret, struct mf_error *err)
{
	uint32_t want = (uint32_t)bits &
			(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
	int code = enable(vm_fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, want);
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_HOST,
				      "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 cannot be enabled");
	ret->way = MF_KVM_TRACK_LOG;
	ret->manual_protect = want;
	return 0;
}

static enum mf_kvm_tracking_way choose(const struct mf_kvm_hints *h, bool has_rings, int log_bits,
				       char *why, size_t cap)
{
	enum mf_kvm_tracking_way way = MF_KVM_TRACK_LOG;
	if (h->forced != MF_KVM_TRACK_AUTO) {
		(void)snprintf(why, cap, "asked for");
		return h->forced;
	}
	if (h->ram_bytes >= RING_RAM_MIN && h->dirty_bytes_per_s &&
	    h->dirty_bytes_per_s < RING_RATE_MAX && has_rings) {
		(void)snprintf(why, cap,
			       "%llu GiB of RAM are much to look through for %llu MiB written a "
			       "second",
			       (unsigned long long)(h->ram_bytes >> 30),
			       (unsigned long long)(h->dirty_bytes_per_s >> 20));
		way = MF_KVM_TRACK_RING;
	} else if (log_bits) {
		(void)snprintf(why, cap,
			       "the cost of KVM's log does not grow with the guest's writes, and "
			       "its RAM is %s",
			       h->ram_bytes < RING_RAM_MIN ? "small enough" : "busy enough");
	} else {
		(void)snprintf(why, cap,
			       "this KVM's log cannot be protected by hand, so that the plain one "
			       "is used");
		way = MF_KVM_TRACK_NONE;
	}
	return way;
}

int mf_kvm_choose_tracking(int kvm_fd, int vm_fd, const struct mf_kvm_hints *hints,
			   struct mf_kvm_tracking *ret_tracking, struct mf_error *err)
{
	uint32_t cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL;
	int max = cap_of(vm_fd, cap);
	if (!max && cap_of(kvm_fd, KVM_CAP_DIRTY_LOG_RING)) {
		cap = KVM_CAP_DIRTY_LOG_RING; /* x86 before 6.1, where order is no matter */
		max = cap_of(vm_fd, cap);
	}
	int bits = cap_of(vm_fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	struct mf_kvm_tracking chosen = { .way = MF_KVM_TRACK_NONE };
	enum mf_kvm_tracking_way way =
		choose(hints, max > 0, bits, chosen.reason, sizeof(chosen.reason));
	int code = 0;
	if (way == MF_KVM_TRACK_RING)
		code = max ? take_rings(vm_fd, hints, cap, (uint32_t)max, &chosen, err)
			   : base_error(err, -EOPNOTSUPP, MF_SCOPE_HOST,
					"this host's KVM has no dirty rings (Linux 5.11 brought "
					"them)");
	else if (way == MF_KVM_TRACK_LOG)
		code = bits ? take_log(vm_fd, bits, &chosen, err)
			    : base_error(
				      err, -EOPNOTSUPP, MF_SCOPE_HOST,
				      "this host's KVM has no "
				      "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (Linux 5.1 brought it)");
	if (code < 0)
		return code;
	*ret_tracking = chosen;
	return 0;
}
