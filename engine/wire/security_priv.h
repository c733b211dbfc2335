/* SPDX-License-Identifier: BSD-2-Clause */
/* What security.c keeps and tls.c uses. */
#ifndef WIRE_SECURITY_PRIV_H
#define WIRE_SECURITY_PRIV_H

#include <stddef.h>
#include <stdint.h>

#include "wire/security.h"

#define PSK_MIN 16 /* bytes; 128 bits */
#define PSK_MAX 64

struct wire_security {
	bool is_server;
	struct ssl_ctx_st *ctx;    /* with the certificates, when there are any */
	struct bio_method_st *bio; /* how TLS reaches sockets; tls.c's */
	char *dir;                 /* of certificates; NULL: a pre-shared key */
	char **names;              /* whom the other host may be; none: see is_server */
	size_t n_names;
	uint8_t key[PSK_MAX];
	size_t key_len;
};

/* tls.c: what a context needs for its connections. */
int wire_tls_set_up(struct wire_security *security, struct mf_error *err);
void wire_tls_tear_down(struct wire_security *security);

#endif
