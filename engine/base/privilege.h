/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Giving up what a process may do.  Each of these holds for the calling thread and for those that it makes later, so
 * call them while there is one thread; none can be taken back.  Used by processes that are memferry's own, never by
 * the library for the program that links it.
 */
#ifndef BASE_PRIVILEGE_H
#define BASE_PRIVILEGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* linux/capability.h has the numbers. */
#define BASE_CAP(bit) (UINT64_C(1) << (bit))

/* Keeps those of the capabilities given that the process has, in all its sets; the rest is gone from the bounding set,
 * too, where the process may change that.  No set-uid program gives any back (no_new_privs). */
int base_keep_capabilities(uint64_t keep, struct mf_error *err);
/* The effective ones. */
uint64_t base_capabilities(void);

/* What capabilities would allow, by limits instead: to lock memory (registering it for RDMA), and to raise a thread's
 * priority.  As far as the hard limits go, or beyond where that is permitted. */
void base_raise_limits(void);

/* Which system calls are left. */
enum base_filter {
	BASE_FILTER_MOVE,  /* moving a guest: network, devices, files, threads */
	BASE_FILTER_REACH, /* reaching into another process: ptrace, /proc, local sockets, threads */
};
#define BASE_FILTER_PIDS 4
/* kill() only of these processes, of ourselves, and with signal 0; unused ones are 0. */
struct base_filter_pids {
	pid_t pid[BASE_FILTER_PIDS];
};
/*
 * A seccomp filter.  What it does not know fails with ENOSYS, as on a kernel without that call, so that libraries fall
 * back where they can; with MEMFERRY_DEBUG set the kernel logs it (audit, type 1326).  Needs no_new_privs, which
 * base_keep_capabilities() sets.  -EOPNOTSUPP: built without libseccomp.
 */
int base_filter_calls(enum base_filter filter, const struct base_filter_pids *pids,
		      struct mf_error *err);

#endif
