/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/pass.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

union rights {
	struct cmsghdr head;
	char space[CMSG_SPACE(sizeof(int))];
};

ssize_t base_send_fd(int sock, const void *message, size_t len, int fd, int flags)
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
		n = sendmsg(sock, &out, flags | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

ssize_t base_receive_fd(int sock, void *message, size_t cap, int *ret_fd, int flags)
{
	struct iovec part = { message, cap };
	union rights rights;
	struct msghdr in = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &rights,
		.msg_controllen = CMSG_LEN(sizeof(int)),
	};
	ssize_t n;

	*ret_fd = -1;
	do
		n = recvmsg(sock, &in, flags | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	for (struct cmsghdr *head = CMSG_FIRSTHDR(&in); head; head = CMSG_NXTHDR(&in, head)) {
		if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
			memcpy(ret_fd, CMSG_DATA(head), sizeof(*ret_fd));
	}
	return n;
}
