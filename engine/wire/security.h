/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What one side proves itself with on the control channel, and whom it accepts: certificates, or a pre-shared key.
 * Read once, never changed; any thread may use it.  Plain channels have none (NULL).
 *
 * TLS 1.3 and nothing older, no session tickets, no early data: every connection is a whole handshake with fresh
 * randomness of both sides, so that a recorded one is worth nothing.
 */
#ifndef WIRE_SECURITY_H
#define WIRE_SECURITY_H

#include <stdbool.h>

#include "base/error.h"

struct wire_security;

struct wire_security_params {
	bool is_server;      /* it listens */
	const char *tls_dir; /* ca-cert.pem and {server,client}-{cert,key}.pem; or NULL */
	const char *psk;     /* file with a key; or NULL */
	/* Certificates only.  "a,b": names the other host may have.  NULL: a server takes any certificate of the CA, a
	 * client the one that is for the host it connects to. */
	const char *peers;
};

/* One of tls_dir and psk.  -MF_EUSAGE and a sentence when a file is not as it must be. */
int wire_security_load(const struct wire_security_params *params,
		       struct wire_security **ret_security, struct mf_error *err);
bool wire_security_is_server(const struct wire_security *security);
void wire_security_free(struct wire_security *security); /* NULL: nothing */

#endif
