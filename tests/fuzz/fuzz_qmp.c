/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What comes from QEMU's monitor: the greeting, answers and events.  The input is what QEMU says, cut by form feeds: one
 * piece when it is connected to, then one after each command; at the end it hangs up.  The other end is a socket pair,
 * which the linker puts in the place of connect() and sendmsg() (--wrap).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "fuzz.h"
#include "hv-adapters/qemu/qmp.h"

enum { COMMANDS = 4 };

int __real_connect(int fd, const struct sockaddr *addr, socklen_t len);
int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t len);
ssize_t __real_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags);

static struct {
	const uint8_t *said;
	size_t left;
	int fd; /* QEMU's end */
} peer;

static void say_more(void)
{
	const uint8_t *end = peer.left ? memchr(peer.said, '\f', peer.left) : NULL;
	size_t n = end ? (size_t)(end - peer.said) : peer.left;
	assert(n == 0 || send(peer.fd, peer.said, n, MSG_NOSIGNAL) == (ssize_t)n);
	peer.said += n + (end != NULL);
	peer.left -= n + (end != NULL);
	if (!peer.left)
		(void)shutdown(peer.fd, SHUT_WR);
}

int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	int pair[2];
	(void)addr, (void)len;
	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	assert(dup3(pair[0], fd, O_CLOEXEC) == fd);
	(void)close(pair[0]);
	peer.fd = pair[1];
	say_more();
	return 0;
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags)
{
	char command[512];
	ssize_t n = __real_sendmsg(fd, msg, flags);
	while (recv(peer.fd, command, sizeof(command), MSG_DONTWAIT) > 0)
		;
	say_more();
	return n;
}

static void check_code(int code, const struct mf_error *err)
{
	/* The last two: nothing was said, and all there is to say lies there already. */
	assert(code == -ESRCH || code == -EOPNOTSUPP || code == -EREMOTEIO || code == -EPROTO ||
	       code == -ETIMEDOUT || code == -EBUSY);
	fuzz_check_error(err, code);
}

static void check_events(struct qmp *q)
{
	struct qmp_event e;
	while (qmp_take_event(q, &e)) {
		assert(e.name[0] && memchr(e.name, '\0', sizeof(e.name)));
		assert(memchr(e.status, '\0', sizeof(e.status)));
		assert(e.at_us <= base_now_us());
	}
}

static void talk(struct qmp *q)
{
	for (int i = 0; i < COMMANDS; i++) {
		struct mf_error err = { 0 };
		json_t *answer = NULL;
		int code = qmp_execute(q, "query-status", NULL, -1, base_now_us(), &answer, &err);
		if (code < 0)
			check_code(code, &err);
		json_decref(answer);
		check_events(q);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int any; /* a socket to be found by its path */
	static char path[32];
	struct mf_error err = { 0 };
	struct qmp *q = NULL;

	if (!any) {
		any = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		assert(any > 0);
		(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", any);
	}
	peer.said = data;
	peer.left = size;
	int code = qmp_open(path, base_now_us(), &q, &err);
	if (code < 0)
		check_code(code, &err);
	else
		talk(q);
	qmp_close(q);
	(void)close(peer.fd);
	return 0;
}
