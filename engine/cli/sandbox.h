/* SPDX-License-Identifier: BSD-2-Clause */
/* What receive, send and check give up before they talk to anybody. */
#ifndef CLI_SANDBOX_H
#define CLI_SANDBOX_H

#include <sys/types.h>

#include <memferry/error.h>

/*
 * For good: all capabilities, and the ways to new ones; most system calls.  Who may be signalled: n processes, 0 for
 * none.  While there is one thread.  -EOPNOTSUPP, -MF_EKERNEL: all but the filter of system calls, which is not to be had.
 */
int cli_sandbox_enter(const pid_t *signalled, unsigned n, struct mf_error *err);

#endif
