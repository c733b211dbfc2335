/* SPDX-License-Identifier: BSD-2-Clause */
/* Addresses as people write them: what all backends share. */
#ifndef TRANSPORT_ADDR_H
#define TRANSPORT_ADDR_H

#include <netdb.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/error.h"
#include "transport/transport.h"

/* "host" or "host:port" as a list to be freed by freeaddrinfo(). */
int tp_resolve_addr(const char *addr, const char *what, bool passive, struct addrinfo **ret_list,
		    struct mf_error *err);
/* The host's part only, port 0: what to bind to when the port is the kernel's choice. */
int tp_resolve_local(const char *local, struct sockaddr_storage *ret, struct mf_error *err);
/* "1.2.3.4:7741", "[fe80::1]:7741" */
void tp_format_addr(const struct sockaddr *sa, char *ret, size_t cap);

/* An address that others can reach this host by: none of loopback, none that is only of a link. */
struct tp_interface {
	char name[16];
	struct sockaddr_storage addr; /* port 0 */
	uint8_t prefix;               /* leading bits that all addresses of the subnet share */
	bool up;
};
/* Those of all interfaces, also of those that are down: how many, of which at most cap are in ret;
 * or a negative code. */
int tp_interfaces(struct tp_interface *ret, unsigned cap);
/* What a path has of it. */
void tp_path_of(const struct tp_interface *interface, struct tp_path *ret_path);
/* The number that a file of the kernel consists of; or instead, when it cannot be read. */
int64_t tp_read_number(const char *path, int64_t instead);

#endif
