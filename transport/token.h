/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How a connection shows that it knows the session's token, which itself never goes over the data network: by a proof
 * that is good for one lane only.  Who has listened has proofs of lanes that are connected already.
 */
#ifndef TRANSPORT_TOKEN_H
#define TRANSPORT_TOKEN_H

#include <stdbool.h>
#include <stdint.h>

#include "transport/transport.h"

/* HMAC-SHA256 by the token of "memferry lane" and the lane's number, 32 bits, little-endian.  0, or -EIO. */
int tp_lane_proof(const uint8_t token[TP_TOKEN_SIZE], uint32_t lane_id, uint8_t ret[TP_TOKEN_SIZE]);
/* Takes the same time for all proofs. */
bool tp_proves(const uint8_t proof[TP_TOKEN_SIZE], const uint8_t token[TP_TOKEN_SIZE],
	       uint32_t lane_id);

#endif
