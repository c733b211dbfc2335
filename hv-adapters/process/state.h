/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The demo guest's device state as bytes, little-endian:
 *
 *   magic u64 | version u32 | length u32 (of everything) | options | writers × (5 × u64) | checksum u64
 *
 * Decoding trusts nothing: the bytes come from another host.
 */
#ifndef HV_PROCESS_STATE_H
#define HV_PROCESS_STATE_H

#include <stddef.h>
#include <stdint.h>

#include <memferry/error.h>

#include "hv-adapters/process/options.h"

#define STATE_MAX 4096u

/* A writer's registers. */
struct writer_state {
	uint64_t steps;
	uint64_t heartbeat;
	uint64_t wrong;  /* distinct pages found wrong */
	uint64_t passes; /* checking walks completed */
	uint64_t scan;   /* where the current one is, in pages of the writer's share */
};

struct guest_state {
	struct options opt; /* page_size does not travel: it is the host's affair */
	struct writer_state writers[GUEST_THREADS];
};

/* Returns the number of bytes, at most STATE_MAX. */
size_t state_encode(const struct guest_state *state, unsigned char bytes[static STATE_MAX]);
/* mine: the guest it is to be loaded into.  -EBADMSG: malformed; -MF_EREFUSED: of another guest. */
int state_decode(const void *bytes, size_t len, const struct options *mine, struct guest_state *ret,
		 struct mf_error *err);

#endif
