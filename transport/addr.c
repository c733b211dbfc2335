/* SPDX-License-Identifier: BSD-2-Clause */
#include "transport/addr.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "base/parse.h"
#include "transport/transport.h"

int tp_resolve_addr(const char *addr, const char *what, bool passive, struct addrinfo **ret_list,
		    struct mf_error *err)
{
	char host[TP_ADDR_MAX], service[8];
	uint16_t port;

	int ret = base_parse_addr(addr, what, 0, host, sizeof(host), &port, err);
	if (ret)
		return ret;
	(void)snprintf(service, sizeof(service), "%u", port);
	struct addrinfo hints = {
		.ai_family = AF_UNSPEC,
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0),
	};
	int gai = getaddrinfo(host, service, &hints, ret_list);
	if (gai == EAI_SYSTEM)
		return base_error_sys(err, -errno, MF_SCOPE_SESSION, "%s: cannot look up '%s'",
				      what, host);
	if (gai)
		return base_error(err, -EADDRNOTAVAIL, MF_SCOPE_SESSION,
				  "%s: cannot look up '%s' (%s); write an address or a known name",
				  what, host, gai_strerror(gai));
	return 0;
}

int tp_resolve_local(const char *local, struct sockaddr_storage *ret, struct mf_error *err)
{
	struct addrinfo *list;

	int code = tp_resolve_addr(local, "local address", true, &list, err);
	if (code)
		return code;
	memset(ret, 0, sizeof(*ret));
	memcpy(ret, list->ai_addr, list->ai_addrlen);
	freeaddrinfo(list);
	if (ret->ss_family == AF_INET6)
		((struct sockaddr_in6 *)ret)->sin6_port = 0;
	else
		((struct sockaddr_in *)ret)->sin_port = 0;
	return 0;
}

void tp_format_addr(const struct sockaddr *sa, char *ret, size_t cap)
{
	char host[NI_MAXHOST], service[NI_MAXSERV];
	socklen_t len = sa->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
						  : sizeof(struct sockaddr_in);

	if (getnameinfo(sa, len, host, sizeof(host), service, sizeof(service),
			NI_NUMERICHOST | NI_NUMERICSERV))
		(void)snprintf(ret, cap, "?");
	else
		(void)snprintf(ret, cap, sa->sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host,
			       service);
}
