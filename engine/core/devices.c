/* SPDX-License-Identifier: BSD-2-Clause */
/* What the data plane could use on this host. */
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"
#include "core/engine.h"

#include <errno.h>

static unsigned add(struct mf_device *ret, unsigned cap, unsigned n, const struct mf_device *d)
{
	if (n < cap)
		ret[n] = *d;
	return n + 1;
}

/* One line for each transport that the interface could serve; the better one is picked. */
static unsigned add_interface(struct mf_device *ret, unsigned cap, unsigned n,
			      const struct ifaddrs *i)
{
	char host[NI_MAXHOST];
	struct mf_error missing = { 0 };
	bool is_up = i->ifa_flags & IFF_UP, is_loopback = i->ifa_flags & IFF_LOOPBACK;
	const struct tp_ops *verbs = tp_find("verbs");
	socklen_t len = i->ifa_addr->sa_family == AF_INET ? sizeof(struct sockaddr_in)
							  : sizeof(struct sockaddr_in6);
	if (getnameinfo(i->ifa_addr, len, host, sizeof(host), NULL, 0, NI_NUMERICHOST))
		return n;

	bool has_verbs = verbs && is_up && eng_try_transport(verbs, host, &missing) == 0;
	if (has_verbs) {
		struct mf_device d = { .usable = true, .picked = !is_loopback };
		(void)snprintf(d.transport, sizeof(d.transport), "verbs");
		(void)snprintf(d.name, sizeof(d.name), "%s", i->ifa_name);
		(void)snprintf(d.detail, sizeof(d.detail), "%.100s, RDMA", host);
		(void)snprintf(d.reason, sizeof(d.reason),
			       "used when the other host is reached through it and has RDMA, too");
		n = add(ret, cap, n, &d);
	}
	if (!tp_find("tcp"))
		return n;
	struct mf_device d = { .usable = is_up, .picked = is_up && !is_loopback && !has_verbs };
	(void)snprintf(d.transport, sizeof(d.transport), "tcp");
	(void)snprintf(d.name, sizeof(d.name), "%s", i->ifa_name);
	(void)snprintf(d.detail, sizeof(d.detail), "%.100s, libfabric tcp", host);
	if (!is_up)
		(void)snprintf(d.reason, sizeof(d.reason), "the interface is down");
	else if (has_verbs)
		(void)snprintf(d.reason, sizeof(d.reason), "used when the other host has no RDMA");
	else
		(void)snprintf(d.reason, sizeof(d.reason),
			       "used when the other host is reached through it; %.100s",
			       verbs ? missing.msg : "no RDMA verbs in this build");
	return add(ret, cap, n, &d);
}

int mf_devices(struct mf_device *ret, unsigned cap, struct mf_error *err)
{
	unsigned n = 0;
	struct ifaddrs *list;
	if (getifaddrs(&list))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "network interfaces");
	for (const struct ifaddrs *i = list; i; i = i->ifa_next) {
		bool is_ip = i->ifa_addr && (i->ifa_addr->sa_family == AF_INET ||
					     i->ifa_addr->sa_family == AF_INET6);
		if (is_ip)
			n = add_interface(ret, cap, n, i);
	}
	freeifaddrs(list);
	return (int)n;
}
