/* SPDX-License-Identifier: BSD-2-Clause */
#include "transport/token.h"

#include <endian.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

int tp_lane_proof(const uint8_t token[TP_TOKEN_SIZE], uint32_t lane_id, uint8_t ret[TP_TOKEN_SIZE])
{
	uint8_t said[] = "memferry lane....";
	unsigned len = 0;

	lane_id = htole32(lane_id);
	memcpy(said + sizeof(said) - 1 - sizeof(lane_id), &lane_id, sizeof(lane_id));
	return HMAC(EVP_sha256(), token, TP_TOKEN_SIZE, said, sizeof(said) - 1, ret, &len) &&
			       len == TP_TOKEN_SIZE
		       ? 0
		       : -EIO;
}

bool tp_proves(const uint8_t proof[TP_TOKEN_SIZE], const uint8_t token[TP_TOKEN_SIZE],
	       uint32_t lane_id)
{
	uint8_t want[TP_TOKEN_SIZE];

	return !tp_lane_proof(token, lane_id, want) && !CRYPTO_memcmp(want, proof, sizeof(want));
}
