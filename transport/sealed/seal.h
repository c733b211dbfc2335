/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sealing records of one direction of one lane: AES-256-GCM, or its hash alone (GMAC) where only integrity is asked for.
 *
 * The nonce is the record's number, which is not sent: a record that was dropped, repeated or moved does not open.  A
 * key is used for SEAL_RECORDS records and then replaced by one derived from it: at 64 KiB each, 2^36 blocks, which
 * leaves an attacker an advantage of 2^-57 (RFC 8446, 5.5, has the same bound).
 */
#ifndef SEALED_SEAL_H
#define SEALED_SEAL_H

#include <stddef.h>
#include <stdint.h>

#include "transport/transport.h"

#define SEAL_TAG_SIZE 16u
#define SEAL_RECORDS  (UINT64_C(1) << 24)

struct seal;

/* A key of its own, from how->key and what is said of this lane and direction (HKDF-SHA256, RFC 5869). */
int seal_create(const struct tp_seal *how, const void *said, size_t said_len,
		struct seal **ret_seal);
void seal_free(struct seal *seal); /* NULL: nothing */
/* For tests: a new key after so many records. */
void seal_renew_every(struct seal *seal, uint64_t records);

/* head and body, sealed, and the tag, to out.  The body may change meanwhile: it is read once.  0, or -EIO. */
int seal_close(struct seal *seal, const void *head, size_t head_len, const void *body,
	       size_t body_len, uint8_t *out);
/* The next record, of len bytes with its tag, is opened in place.  -EBADMSG: it is not what was sealed. */
int seal_open(struct seal *seal, uint8_t *record, size_t len);

#endif
