/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the two trackers by KVM share: where the watched ranges lie in the machine's memory slots,
 * and the switch that makes KVM log writes to those.
 */
#ifndef TRACKER_KVM_H
#define TRACKER_KVM_H

#include <stdbool.h>
#include <stdint.h>

#include "tracker/tracker.h"

/* KVM counts pages of this size, whatever lies behind them. */
#define KVM_PAGE UINT64_C(4096)

/* The piece of a slot that lies in a range.  A slot may have several, a range too, and two slots may
 * show the same memory to the guest at two addresses. */
struct kvm_piece {
	uint32_t slot;  /* place in vm->slots */
	uint32_t range; /* place in params->ranges */
	uint64_t addr;  /* in this process */
	uint64_t len;   /* bytes */
};

static inline uint64_t kvm_slot_pages(const struct mf_kvm_vm *vm, uint32_t slot)
{
	return vm->slots[slot].size / KVM_PAGE;
}

struct kvm_pieces {
	uint32_t n;
	struct kvm_piece *piece; /* by range, then by slot; to be freed */
};

/* -MF_EKERNEL: a virtual machine of another process. */
int kvm_is_ours(const struct trk_params *params, struct mf_error *err);

/* Slots that the guest cannot write to are left out; a range without any slot is refused: nobody could tell
 * what is written there. */
int kvm_find_pieces(const struct trk_params *params, struct kvm_pieces *ret, struct mf_error *err);

/* Turns logging on or off for each slot of a piece, once; vCPUs may run.  Off never fails for good: what
 * cannot be turned off is gone.  On failure of on: all are off again. */
int kvm_log_writes(const struct mf_kvm_vm *vm, const struct kvm_pieces *pieces, bool on,
		   struct mf_error *err);

/* Whether KVM means by it that there is no such machine any more: it was closed, has crashed, or was made
 * by the process that forked us. */
bool kvm_is_gone(int code);

#endif
