/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * TLS over one connected, non-blocking socket; the channel's, and nobody else's.  Nothing here blocks: -EAGAIN with
 * the poll(2) events to wait for.  One thread may read while others write: a lock of its own keeps them apart.
 */
#ifndef WIRE_TLS_H
#define WIRE_TLS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "wire/security.h"

struct wire_tls;

/* Client, host: whom it connected to.  fd and security are borrowed until free. */
int wire_tls_create(const struct wire_security *security, int fd, const char *host,
		    struct wire_tls **ret_tls, struct mf_error *err);
/* 0: done.  -EAGAIN; else a code and, without an object, the sentence. */
int wire_tls_handshake(struct wire_tls *tls, short *ret_events, struct mf_error *err);
/* How many bytes (more than none), -EAGAIN, -ECONNRESET at the end, or another code with its sentence. */
ssize_t wire_tls_read(struct wire_tls *tls, void *bytes, size_t cap, short *ret_events,
		      struct mf_error *err);
ssize_t wire_tls_write(struct wire_tls *tls, const void *bytes, size_t len, short *ret_events,
		       struct mf_error *err);
/* After the handshake: a key that both ends get alike, and nobody else. */
int wire_tls_export(struct wire_tls *tls, const char *label, uint8_t *key, size_t len);
void wire_tls_say_goodbye(struct wire_tls *tls);
void wire_tls_free(struct wire_tls *tls); /* NULL: nothing */

/* A connection that begins so may speak TLS: a handshake, or an alert. */
static inline bool wire_may_be_tls(const uint8_t *bytes, size_t len)
{
	return len && (bytes[0] == 0x16 || bytes[0] == 0x15) && (len < 2 || bytes[1] == 3);
}

#endif
