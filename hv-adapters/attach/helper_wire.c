/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/attach/helper_wire.h"

#include <errno.h>
#include <poll.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/pass.h"

/* However the other end's going away shows. */
static int code_of(ssize_t n)
{
	return n == -ECONNRESET ? -EPIPE : n < 0 ? (int)n : 0;
}

int helper_send(int sock, const void *message, size_t len, int fd)
{
	return code_of(base_send_fd(sock, message, len, fd, 0));
}

int helper_receive(int sock, void *message, size_t len, int *ret_fd, uint64_t deadline_us)
{
	struct pollfd wait = { .fd = sock, .events = POLLIN };
	int r;

	*ret_fd = -1;
	do
		r = poll(&wait, 1, base_left_ms(deadline_us));
	while (r < 0 && errno == EINTR);
	if (r == 0)
		return -ETIMEDOUT;
	ssize_t got = base_receive_fd(sock, message, len, ret_fd, 0);
	if (got <= 0)
		return got ? code_of(got) : -EPIPE;
	if ((size_t)got == len)
		return 0;
	base_closep(ret_fd);
	return -EBADMSG;
}
