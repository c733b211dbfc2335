/* SPDX-License-Identifier: BSD-2-Clause */
/* What is said between the program and its helper: SOCK_SEQPACKET, one at a time, and both are one program, so the
 * structs are the format.  Private to this folder. */
#ifndef ATTACH_HELPER_WIRE_H
#define ATTACH_HELPER_WIRE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/placement.h"
#include "hv-adapters/attach/attach.h"

enum {
	HELPER_ITEMS = 64,
	HELPER_FILE_MS = 10000,   /* a request of /proc alone */
	HELPER_ATTACH_MS = 90000, /* one system call in the target, by the limits of attach.c */
	HELPER_ADVISE_MS = 5000,  /* more for each further one */
};

enum helper_op {
	HELPER_PROBE,
	HELPER_USERFAULTFD,    /* → fd, value: its number there */
	HELPER_DEVICE,         /* → fd: /dev/userfaultfd */
	HELPER_USERFAULTFD_BY, /* number: such a device's there → fd, value */
	HELPER_CLOSE_FDS,      /* n, fds */
	HELPER_FIND_FDS,       /* n: room → value: how many, fds */
	HELPER_GET_FD,         /* number: a userfaultfd's there → fd */
	HELPER_MADVISE,        /* number: advice; n, ranges */
	HELPER_OPEN_MAPPING,   /* mapping → fd */
	HELPER_KILL,
	HELPER_OPEN, /* number: enum base_reach_file; tid → fd */
	HELPER_HAS_VHOST,
	HELPER_FREEZE,      /* → value: a thread; stands still until */
	HELPER_THAW,        /* this, or too long */
	HELPER_FIND_MEMORY, /* ranges[0], number: bits of the page size → memory; code: how many */
};

struct helper_request {
	uint32_t op;
	uint32_t n;
	pid_t pid, tid;
	int32_t number;
	union {
		int32_t fds[HELPER_ITEMS];
		struct attach_range ranges[HELPER_ITEMS];
		struct attach_mapping mapping;
	};
};

struct helper_reply {
	int32_t code; /* as the function would return it */
	int32_t value;
	struct mf_error err;
	union {
		int32_t fds[HELPER_ITEMS];
		struct base_place_memory memory;
	};
};

/* A whole message, with a descriptor or -1.  0 or -errno; never waits but for room. */
int helper_send(int sock, const void *message, size_t len, int fd);
/* *ret_fd: what came along, or -1.  -EPIPE: the other side is gone; -ETIMEDOUT; -EBADMSG. */
int helper_receive(int sock, void *message, size_t len, int *ret_fd, uint64_t deadline_us);

/* In the helper, until the program is gone. */
void helper_serve(int sock, pid_t target, int pidfd);

/* Whether a helper has to be asked.  Then, helper_call(): the answer's code, or why there is none. */
bool helper_is_used(pid_t pid);
int helper_call(struct helper_request *request, struct helper_reply *reply, int *ret_fd,
		uint64_t ms, struct mf_error *err);

#endif
