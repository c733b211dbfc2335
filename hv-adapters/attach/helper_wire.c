/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/attach/helper_wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"

union rights {
	struct cmsghdr head;
	char space[CMSG_SPACE(sizeof(int))];
};

int helper_send(int sock, const void *message, size_t len, int fd)
{
	struct iovec part = { (void *)(uintptr_t)message, len };
	union rights rights = { 0 };
	struct msghdr out = { .msg_iov = &part, .msg_iovlen = 1 };
	ssize_t n;

	if (fd >= 0) {
		out.msg_control = &rights;
		out.msg_controllen = sizeof(rights.space);
		struct cmsghdr *head = CMSG_FIRSTHDR(&out);
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(head), &fd, sizeof(fd));
	}
	do
		n = sendmsg(sock, &out, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	return 0;
}

static int take_descriptor(struct msghdr *in)
{
	int fd = -1;

	for (struct cmsghdr *head = CMSG_FIRSTHDR(in); head; head = CMSG_NXTHDR(in, head)) {
		if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
			memcpy(&fd, CMSG_DATA(head), sizeof(fd));
	}
	return fd;
}

int helper_receive(int sock, void *message, size_t len, int *ret_fd, uint64_t deadline_us)
{
	struct iovec part = { message, len };
	union rights rights;
	struct msghdr in = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &rights,
		/* Room for one: others are closed by the kernel. */
		.msg_controllen = CMSG_LEN(sizeof(int)),
	};
	struct pollfd wait = { .fd = sock, .events = POLLIN };
	ssize_t got;
	int r;

	*ret_fd = -1;
	do
		r = poll(&wait, 1, base_left_ms(deadline_us));
	while (r < 0 && errno == EINTR);
	if (r == 0)
		return -ETIMEDOUT;
	do
		got = recvmsg(sock, &in, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got == 0 || (got < 0 && errno == ECONNRESET))
		return -EPIPE;
	if (got < 0)
		return -errno;
	*ret_fd = take_descriptor(&in);
	if ((size_t)got == len)
		return 0;
	base_closep(ret_fd);
	return -EBADMSG;
}
