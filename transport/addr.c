/* SPDX-License-Identifier: BSD-2-Clause */
#include "transport/addr.h"

#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/parse.h"

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

static bool is_reachable(const struct sockaddr *sa)
{
	if (sa->sa_family == AF_INET) {
		uint32_t addr = ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr);
		return !IN_MULTICAST(addr) && addr >> 16 != 0xa9fe && addr != INADDR_ANY &&
		       addr >> IN_CLASSA_NSHIFT != IN_LOOPBACKNET;
	}
	const struct in6_addr *addr = &((const struct sockaddr_in6 *)sa)->sin6_addr;
	return !IN6_IS_ADDR_LINKLOCAL(addr) && !IN6_IS_ADDR_MULTICAST(addr) &&
	       !IN6_IS_ADDR_UNSPECIFIED(addr) && !IN6_IS_ADDR_LOOPBACK(addr);
}

static uint8_t count_prefix(const struct sockaddr *mask)
{
	const uint8_t *byte;
	unsigned n = 0, bits = 0;

	if (mask && mask->sa_family == AF_INET) {
		byte = (const uint8_t *)&((const struct sockaddr_in *)mask)->sin_addr;
		n = 4;
	} else if (mask && mask->sa_family == AF_INET6) {
		byte = (const uint8_t *)&((const struct sockaddr_in6 *)mask)->sin6_addr;
		n = 16;
	}
	while (bits < n * 8 && byte[bits / 8] & 0x80 >> bits % 8)
		bits++;
	return (uint8_t)bits;
}

int tp_interfaces(struct tp_interface *ret, unsigned cap)
{
	struct ifaddrs *list;
	unsigned n = 0;

	if (getifaddrs(&list))
		return -errno;
	for (const struct ifaddrs *at = list; at; at = at->ifa_next) {
		const struct sockaddr *sa = at->ifa_addr;
		if (!sa || (sa->sa_family != AF_INET && sa->sa_family != AF_INET6) ||
		    at->ifa_flags & IFF_LOOPBACK || !is_reachable(sa))
			continue;
		if (n < cap) {
			struct tp_interface *to = &ret[n];
			memset(to, 0, sizeof(*to));
			(void)snprintf(to->name, sizeof(to->name), "%s", at->ifa_name);
			memcpy(&to->addr, sa,
			       sa->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
							 : sizeof(struct sockaddr_in));
			to->prefix = count_prefix(at->ifa_netmask);
			to->up = at->ifa_flags & IFF_UP && at->ifa_flags & IFF_RUNNING;
		}
		n++;
	}
	freeifaddrs(list);
	return (int)n;
}

void tp_path_of(const struct tp_interface *interface, struct tp_path *ret_path)
{
	const struct sockaddr *sa = (const struct sockaddr *)&interface->addr;
	socklen_t len = sa->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
						  : sizeof(struct sockaddr_in);

	*ret_path = (struct tp_path){
		.prefix = interface->prefix, .up = interface->up, .numa_node = -1, .gid_index = -1
	};
	memcpy(ret_path->interface, interface->name, sizeof(ret_path->interface));
	if (getnameinfo(sa, len, ret_path->address, sizeof(ret_path->address), NULL, 0,
			NI_NUMERICHOST))
		(void)snprintf(ret_path->address, sizeof(ret_path->address), "?");
}

int64_t tp_read_number(const char *path, int64_t instead)
{
	char text[32];
	int64_t n;

	base_autofd fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return instead;
	ssize_t len = read(fd, text, sizeof(text) - 1);
	if (len <= 0)
		return instead;
	text[len] = '\0';
	return sscanf(text, "%" SCNd64, &n) == 1 ? n : instead;
}
