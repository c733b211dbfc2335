/* SPDX-License-Identifier: BSD-2-Clause */
/* Descriptors that go over local sockets (SCM_RIGHTS), one beside a message. */
#ifndef BASE_PASS_H
#define BASE_PASS_H

#include <stddef.h>
#include <sys/types.h>

/* sendmsg(2), with the descriptor unless it is negative.  What was sent, or -errno; never -EINTR, and no SIGPIPE. */
ssize_t base_send_fd(int sock, const void *message, size_t len, int fd, int flags);
/* recvmsg(2).  *ret_fd: what came along, close-on-exec, the caller's; -1: nothing did.  There is room for one: the kernel
 * closes others.  What was received, 0 at the end, or -errno; never -EINTR. */
ssize_t base_receive_fd(int sock, void *message, size_t cap, int *ret_fd, int flags);

#endif
