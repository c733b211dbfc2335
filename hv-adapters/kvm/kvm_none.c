/* SPDX-License-Identifier: BSD-2-Clause */
/* Where the adapter does not know the processor's state: all is refused, so that programs link everywhere. */
#include <errno.h>

#include <memferry/kvm.h>

#include "base/error.h"

static int refuse(struct mf_error *err)
{
	return base_error(err, -EOPNOTSUPP, MF_SCOPE_HOST,
			  "guests on raw KVM move between 64-bit x86 hosts only");
}

int mf_kvm_open(const struct mf_kvm_params *params, struct mf_kvm **ret_kvm, struct mf_error *err)
{
	(void)params;
	(void)ret_kvm;
	return refuse(err);
}

void mf_kvm_close(struct mf_kvm *kvm)
{
	(void)kvm;
}

int mf_kvm_adapter(struct mf_kvm *kvm, struct mf_adapter *ret_adapter, struct mf_error *err)
{
	(void)kvm;
	(void)ret_adapter;
	return refuse(err);
}

int mf_kvm_run(struct mf_kvm *kvm, uint32_t vcpu)
{
	(void)kvm;
	(void)vcpu;
	return -EOPNOTSUPP;
}

int mf_kvm_leave(struct mf_kvm *kvm, uint32_t vcpu)
{
	(void)kvm;
	(void)vcpu;
	return -EOPNOTSUPP;
}

void mf_kvm_kick(struct mf_kvm *kvm, uint32_t vcpu)
{
	(void)kvm;
	(void)vcpu;
}

void mf_kvm_wrote(struct mf_kvm *kvm, uint64_t gpa, uint64_t len)
{
	(void)kvm;
	(void)gpa;
	(void)len;
}

int mf_kvm_choose_tracking(int kvm_fd, int vm_fd, const struct mf_kvm_hints *hints,
			   struct mf_kvm_tracking *ret_tracking, struct mf_error *err)
{
	(void)kvm_fd;
	(void)vm_fd;
	(void)hints;
	(void)ret_tracking;
	return refuse(err);
}
