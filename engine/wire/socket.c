/* SPDX-License-Identifier: BSD-2-Clause */
#include "wire/socket.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"

static void freeaddrinfop(struct addrinfo **list)
{
	if (*list)
		freeaddrinfo(*list);
}

static int resolve(const char *host, uint16_t port, int flags, struct addrinfo **ret,
		   struct mf_error *err)
{
	char service[8];
	(void)snprintf(service, sizeof(service), "%u", port);
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV };
	int r = getaddrinfo(host, service, &hints, ret);
	if (r)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "%s: no such host (%s); check the name or give an address", host,
				  gai_strerror(r));
	return 0;
}

static void format_name(const struct sockaddr *sa, socklen_t len, bool with_port, char *ret,
			size_t cap)
{
	char host[NI_MAXHOST] = "?", service[NI_MAXSERV] = "?";
	(void)getnameinfo(sa, len, host, sizeof(host), service, sizeof(service),
			  NI_NUMERICHOST | NI_NUMERICSERV);
	if (!with_port)
		(void)snprintf(ret, cap, "%s", host);
	else
		(void)snprintf(ret, cap, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, service);
}

int wire_listen(const char *host, uint16_t port, int *ret_fd, char *ret_addr, size_t cap,
		struct mf_error *err)
{
	base_cleanup(freeaddrinfop) struct addrinfo *list = NULL;
	int r = resolve(host, port, AI_PASSIVE, &list, err);
	if (r < 0)
		return r;
	base_autofd fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "socket");
	int one = 1;
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, list->ai_addr, list->ai_addrlen) || listen(fd, 8)) {
		r = -errno;
		if (r == -EADDRINUSE)
			return base_error(err, r, MF_SCOPE_HOST,
					  "%s:%u: the port is in use; stop what listens there, or "
					  "choose another with --listen (port 0 picks a free one)",
					  host, port);
		if (r == -EADDRNOTAVAIL)
			return base_error(err, r, MF_SCOPE_HOST,
					  "%s: not an address of this host; listen on one that "
					  "`ip address` shows, or on 0.0.0.0",
					  host);
		if (r == -EACCES && port < 1024)
			return base_error(
				err, r, MF_SCOPE_HOST,
				"%s:%u: ports below 1024 take a privilege, which memferry "
				"does without: choose another with --listen",
				host, port);
		return base_error_sys(err, r, MF_SCOPE_HOST, "%s:%u: cannot listen", host, port);
	}
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	if (getsockname(fd, (struct sockaddr *)&sa, &len))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "getsockname");
	format_name((struct sockaddr *)&sa, len, true, ret_addr, cap);
	*ret_fd = base_take_fd(&fd);
	return 0;
}

static void tune(int fd)
{
	int one = 1;
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* 0: fd is ready for events; -EINTR: wake_fd is; -ETIMEDOUT. */
static int wait_for(int fd, short events, int wake_fd, uint64_t deadline_us)
{
	struct pollfd p[2] = { { .fd = fd, .events = events },
			       { .fd = wake_fd, .events = POLLIN } };
	for (;;) {
		int n = poll(p, 2, base_left_ms(deadline_us));
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			return p[1].revents ? -EINTR : 0;
		if (n == 0)
			return -ETIMEDOUT;
	}
}

int wire_accept(int listen_fd, int wake_fd, uint64_t deadline_us, int *ret_fd, struct mf_error *err)
{
	for (;;) {
		int r = wait_for(listen_fd, POLLIN, wake_fd, deadline_us);
		if (r < 0)
			return r;
		int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0) {
			tune(fd);
			*ret_fd = fd;
			return 0;
		}
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			return base_error_sys(err, -errno, MF_SCOPE_SESSION, "accept");
	}
}

static int connect_one(const struct addrinfo *ai, int wake_fd, uint64_t deadline_us, int *ret_fd)
{
	base_autofd fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, ai->ai_addr, ai->ai_addrlen) && errno != EINPROGRESS)
		return -errno;
	int r = wait_for(fd, POLLOUT, wake_fd, deadline_us);
	if (r < 0)
		return r;
	int failure = 0;
	socklen_t len = sizeof(failure);
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &len))
		return -errno;
	if (failure)
		return -failure;
	tune(fd);
	*ret_fd = base_take_fd(&fd);
	return 0;
}

int wire_connect(const char *host, uint16_t port, int wake_fd, uint64_t deadline_us, int *ret_fd,
		 struct mf_error *err)
{
	base_cleanup(freeaddrinfop) struct addrinfo *list = NULL;
	int r = resolve(host, port, 0, &list, err);
	if (r < 0)
		return r;
	for (const struct addrinfo *ai = list; ai; ai = ai->ai_next) {
		r = connect_one(ai, wake_fd, deadline_us, ret_fd);
		if (r == 0 || r == -EINTR || r == -ETIMEDOUT)
			break;
	}
	if (r == 0 || r == -EINTR)
		return r;
	const char *todo = "";
	if (r == -ECONNREFUSED)
		todo = "; start `memferry receive` there first, or check the port";
	else if (r == -ETIMEDOUT)
		todo = "; check the address and the firewall between the hosts";
	return base_error(err, r, MF_SCOPE_SESSION, "%s:%u: cannot connect: %s%s", host, port,
			  base_strerror(r), todo);
}

void wire_peer_name(int fd, char *ret, size_t cap)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t len = sizeof(sa);
	(void)getpeername(fd, (struct sockaddr *)&sa, &len);
	format_name((struct sockaddr *)&sa, len, true, ret, cap);
}

void wire_local_host(int fd, char *ret, size_t cap)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t len = sizeof(sa);
	(void)getsockname(fd, (struct sockaddr *)&sa, &len);
	format_name((struct sockaddr *)&sa, len, false, ret, cap);
}
