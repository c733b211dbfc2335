/* SPDX-License-Identifier: BSD-2-Clause */
/* Addresses as people write them: what all backends share. */
#ifndef TRANSPORT_ADDR_H
#define TRANSPORT_ADDR_H

#include <netdb.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#include "base/error.h"

/* "host" or "host:port" as a list to be freed by freeaddrinfo(). */
int tp_resolve_addr(const char *addr, const char *what, bool passive, struct addrinfo **ret_list,
		    struct mf_error *err);
/* The host's part only, port 0: what to bind to when the port is the kernel's choice. */
int tp_resolve_local(const char *local, struct sockaddr_storage *ret, struct mf_error *err);
/* "1.2.3.4:7741", "[fe80::1]:7741" */
void tp_format_addr(const struct sockaddr *sa, char *ret, size_t cap);

#endif
