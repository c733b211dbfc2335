/* SPDX-License-Identifier: BSD-2-Clause */
#include "tracker/kvm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/error.h"

int kvm_is_ours(const struct trk_params *params, struct mf_error *err)
{
	if (params->pid && params->pid != getpid())
		return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "the virtual machine is process %d's, and KVM tells nobody else "
				  "what it wrote",
				  (int)params->pid);
	return 0;
}

bool kvm_is_gone(int code)
{
	return code == -EIO || code == -EBADF;
}

/* The overlap, or false. */
static bool overlap(const struct trk_range *range, const struct mf_kvm_slot *slot,
		    struct kvm_piece *ret)
{
	uint64_t from = range->addr > slot->hva ? range->addr : slot->hva;
	uint64_t range_end = range->addr + range->len, slot_end = slot->hva + slot->size;
	uint64_t to = range_end < slot_end ? range_end : slot_end;
	ret->addr = from;
	ret->len = from < to ? to - from : 0;
	return from < to;
}

int kvm_find_pieces(const struct trk_params *params, struct kvm_pieces *ret, struct mf_error *err)
{
	const struct mf_kvm_vm *vm = params->kvm;
	*ret = (struct kvm_pieces){ 0 };
	ret->piece = calloc((size_t)params->n_ranges * vm->n_slots + 1, sizeof(*ret->piece));
	if (!ret->piece)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the tracker");
	for (uint32_t r = 0; r < params->n_ranges; r++) {
		bool is_known = false;
		for (uint32_t s = 0; s < vm->n_slots; s++) {
			struct kvm_piece *p = &ret->piece[ret->n];
			if (!overlap(&params->ranges[r], &vm->slots[s], p))
				continue;
			is_known = true;
			p->slot = s;
			p->range = r;
			if (!(vm->slots[s].flags & KVM_MEM_READONLY))
				ret->n++;
		}
		if (!is_known) {
			free(ret->piece);
			*ret = (struct kvm_pieces){ 0 };
			return base_error(err, -EINVAL, MF_SCOPE_SESSION,
					  "range %u lies in none of the virtual machine's %u "
					  "memory slots",
					  r, vm->n_slots);
		}
	}
	return 0;
}

static int log_slot(const struct mf_kvm_vm *vm, const struct mf_kvm_slot *slot, bool on)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot->slot,
		.flags = slot->flags | (on ? KVM_MEM_LOG_DIRTY_PAGES : 0),
		.guest_phys_addr = slot->gpa,
		.memory_size = slot->size,
		.userspace_addr = slot->hva,
	};
	return ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}

static bool has_piece(const struct kvm_pieces *pieces, uint32_t slot)
{
	for (uint32_t i = 0; i < pieces->n; i++) {
		if (pieces->piece[i].slot == slot)
			return true;
	}
	return false;
}

int kvm_log_writes(const struct mf_kvm_vm *vm, const struct kvm_pieces *pieces, bool on,
		   struct mf_error *err)
{
	for (uint32_t s = 0; s < vm->n_slots; s++) {
		int code = has_piece(pieces, s) ? log_slot(vm, &vm->slots[s], on) : 0;
		if (code >= 0 || !on)
			continue;
		while (s--) {
			if (has_piece(pieces, s))
				(void)log_slot(vm, &vm->slots[s], false);
		}
		if (kvm_is_gone(code))
			return base_error(err, -ESRCH, MF_SCOPE_SESSION,
					  "the virtual machine is gone, its writes cannot be "
					  "logged");
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "KVM cannot log the writes to the guest's memory");
	}
	return 0;
}
