/* SPDX-License-Identifier: BSD-2-Clause */
/* TCP sockets of the control channel: every wait has a deadline (base_now_us()). */
#ifndef WIRE_SOCKET_H
#define WIRE_SOCKET_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* Listens; ret_addr: "host:port" with the port that was picked. */
int wire_listen(const char *host, uint16_t port, int *ret_fd, char *ret_addr, size_t cap,
		struct mf_error *err);
/* A connection, or -ETIMEDOUT, or -EINTR when wake_fd became readable first. */
int wire_accept(int listen_fd, int wake_fd, uint64_t deadline_us, int *ret_fd,
		struct mf_error *err);
int wire_connect(const char *host, uint16_t port, int wake_fd, uint64_t deadline_us, int *ret_fd,
		 struct mf_error *err);
/* "host:port" of the peer (or of our end). */
void wire_peer_name(int fd, char *ret, size_t cap);
void wire_local_host(int fd, char *ret, size_t cap);

#endif
