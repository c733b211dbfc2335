/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Listening, and the peers that connect and then say nothing.
 *
 * The provider accepts TCP connections by itself, shows none before its connect request is in,
 * and never gives up on one: a silent peer would keep a descriptor for as long as the process
 * lives, even after the listener is closed.  It does clean up when such a socket is shut down.
 * So we look for them among our own descriptors: local port the listener's, not one byte received.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/tcp.h> /* the whole of struct tcp_info */

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/parse.h"
#include "transport/fabric/fabric_priv.h"

/* How long a peer may take from connecting to its request, and how often accept looks. */
#define SILENT_MAX_MS 5000u
#define SWEEP_US      1000000u
/* Rounds of the provider's event loop that closing a listener may take. */
#define CLOSE_ROUNDS 1000u

static uint16_t port_of(const struct sockaddr_storage *sa)
{
	if (sa->ss_family == AF_INET6)
		return ntohs(((const struct sockaddr_in6 *)sa)->sin6_port);
	return sa->ss_family == AF_INET ? ntohs(((const struct sockaddr_in *)sa)->sin_port) : 0;
}

static bool is_at_port(int fd, uint16_t port)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t len = sizeof(sa);

	return !getsockname(fd, (struct sockaddr *)&sa, &len) && port_of(&sa) == port;
}

static bool is_listening(int fd)
{
	int on = 0;
	socklen_t len = sizeof(on);

	return !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &len) && on;
}

/* Connected for at least min_ms, and nothing was ever received. */
static bool is_silent(int fd, unsigned min_ms)
{
	struct tcp_info info = { 0 };
	socklen_t len = sizeof(info);

	return !getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) &&
	       len >= offsetof(struct tcp_info, tcpi_segs_out) && !info.tcpi_bytes_received &&
	       info.tcpi_last_data_recv >= min_ms;
}

/* Shuts the connections at the port that are silent, and the listening socket itself if asked.
 * Returns the number of the former; a socket counts until the provider has closed it. */
static unsigned shut_silent_peers(uint16_t port, unsigned min_ms, bool listening_too)
{
	unsigned found = 0;
	DIR *dir = opendir("/proc/self/fd");
	if (!dir)
		return 0;
	const struct dirent *entry;
	while ((entry = readdir(dir))) {
		uint64_t nr;
		if (base_parse_number(entry->d_name, "descriptor", 0, INT32_MAX, &nr, NULL))
			continue; /* "." and ".." */
		/* A duplicate: whoever else closes and reuses the number, we mean this socket. */
		base_autofd fd = fcntl((int)nr, F_DUPFD_CLOEXEC, 0);
		if (fd < 0 || !is_at_port(fd, port))
			continue;
		if (is_listening(fd)) {
			if (listening_too)
				(void)shutdown(fd, SHUT_RDWR);
		} else if (is_silent(fd, min_ms)) {
			(void)shutdown(fd, SHUT_RDWR);
			found++;
		}
	}
	(void)closedir(dir);
	return found;
}

static int open_pep(struct fab_listener *listener, const struct sockaddr *src, struct mf_error *err)
{
	struct fab_domain *domain =
		BASE_CONTAINER_OF(listener->base.domain, struct fab_domain, base);
	struct fi_eq_attr eq_attr = { .wait_obj = FI_WAIT_FD };
	struct sockaddr_storage name = { 0 };
	size_t len = sizeof(name);
	struct fi_info *info;
	char addr[TP_ADDR_MAX];

	int ret = tp_fabric_getinfo(src, NULL, &info, err);
	if (ret)
		return ret;
	ret = fi_eq_open(domain->fabric, &eq_attr, &listener->eq, NULL);
	if (!ret)
		ret = fi_control(&listener->eq->fid, FI_GETWAIT, &listener->eq_fd);
	if (!ret)
		ret = fi_passive_ep(domain->fabric, info, &listener->pep, NULL);
	if (!ret)
		ret = fi_pep_bind(listener->pep, &listener->eq->fid, 0);
	if (!ret)
		ret = fi_listen(listener->pep);
	if (!ret)
		ret = fi_getname(&listener->pep->fid, &name, &len);
	fi_freeinfo(info);
	if (ret) {
		tp_format_addr(src, addr, sizeof(addr));
		return tp_fabric_error(err, ret, MF_SCOPE_SESSION, "address %s: cannot listen",
				       addr);
	}
	listener->port = port_of(&name);
	tp_format_addr((struct sockaddr *)&name, listener->addr, sizeof(listener->addr));
	return 0;
}

int tp_fabric_listen(struct tp_domain *domain, const char *addr, struct tp_listener **ret_listener,
		     struct mf_error *err)
{
	struct addrinfo *list;

	int ret = tp_resolve_addr(addr, "address to listen on", true, &list, err);
	if (ret)
		return ret;
	struct fab_listener *listener = calloc(1, sizeof(*listener));
	if (!listener) {
		freeaddrinfo(list);
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "address %s", addr);
	}
	listener->base.domain = domain;
	ret = open_pep(listener, list->ai_addr, err);
	freeaddrinfo(list);
	if (ret)
		tp_fabric_listener_close(&listener->base);
	else
		*ret_listener = &listener->base;
	return ret;
}

void tp_fabric_listener_addr(const struct tp_listener *base, char *ret, size_t cap)
{
	const struct fab_listener *listener =
		BASE_CONTAINER_OF(base, const struct fab_listener, base);

	(void)snprintf(ret, cap, "%s", listener->addr);
}

/* An event of the listener's EQ; its buffer is as large as such an event can be. */
struct request {
	union {
		struct fi_eq_cm_entry entry;
		uint8_t bytes[sizeof(struct fi_eq_cm_entry) + FAB_CM_DATA_MAX];
	};
};

int tp_fabric_accept(struct tp_listener *base, const uint8_t token[TP_TOKEN_SIZE],
		     uint64_t deadline_us, struct tp_lane **ret_lane, struct mf_error *err)
{
	struct fab_listener *listener = BASE_CONTAINER_OF(base, struct fab_listener, base);
	struct fab_domain *domain = BASE_CONTAINER_OF(base->domain, struct fab_domain, base);
	struct fab_lane *lane = NULL;
	struct request request;
	uint32_t event = 0;
	size_t len = 0;

	uint64_t sweep_us = base_now_us() + SWEEP_US;
	for (;;) {
		ssize_t n = tp_fabric_eq_wait(domain->fabric, listener->eq, listener->eq_fd,
					      sweep_us < deadline_us ? sweep_us : deadline_us,
					      &event, &request, sizeof(request), &len);
		if (base_now_us() >= sweep_us) {
			(void)shut_silent_peers(listener->port, SILENT_MAX_MS, false);
			sweep_us = base_now_us() + SWEEP_US;
		}
		if (n < (ssize_t)sizeof(request.entry) || event != FI_CONNREQ) {
			/* Nothing, or some stranger's failure. */
			if (base_now_us() < deadline_us)
				continue;
			return base_error(err, -ETIMEDOUT, MF_SCOPE_LANE,
					  "address %s: the peer did not connect in time",
					  listener->addr);
		}
		int ret = tp_fabric_answer(listener, request.entry.info,
					   request.bytes + sizeof(request.entry),
					   (size_t)n - sizeof(request.entry), token, &lane, err);
		if (ret < 0)
			return ret;
		if (ret) {
			*ret_lane = &lane->base;
			return 0;
		}
	}
}

/* Requests that nobody has accepted, and peers that have not sent one.  The endpoint has to be
 * open still: the provider's record of each refers to it. */
static void drop_waiting_peers(struct fab_listener *listener)
{
	struct request request;
	size_t len;

	for (unsigned i = 0; i < CLOSE_ROUNDS; i++) {
		unsigned silent = shut_silent_peers(listener->port, 0, true);
		uint32_t event = 0;
		ssize_t n =
			tp_fabric_eq_read(listener->eq, &event, &request, sizeof(request), &len);
		if (n >= (ssize_t)sizeof(request.entry) && event == FI_CONNREQ) {
			(void)fi_reject(listener->pep, request.entry.info->handle, NULL, 0);
			fi_freeinfo(request.entry.info);
		} else if (n == -EAGAIN && !silent) {
			return;
		}
	}
}

void tp_fabric_listener_close(struct tp_listener *base)
{
	struct fab_listener *listener = BASE_CONTAINER_OF(base, struct fab_listener, base);

	if (listener->pep && listener->eq && listener->port)
		drop_waiting_peers(listener);
	if (listener->pep)
		(void)fi_close(&listener->pep->fid);
	if (listener->eq)
		(void)fi_close(&listener->eq->fid);
	free(listener);
}
