/* SPDX-License-Identifier: BSD-2-Clause */
/* Another process stands still while something is done, and goes on as if nothing had been. */
#ifndef SOFTDIRTY_FREEZE_H
#define SOFTDIRTY_FREEZE_H

#include <sys/types.h>

#include "base/error.h"

struct freeze;

/* Allocates all that freeze_run() needs. */
int freeze_open(pid_t pid, struct freeze **ret, struct mf_error *err);
void freeze_close(struct freeze *f); /* NULL: nothing */

/*
 * Runs fn, on another thread, while no thread of the process runs; what fn returns is returned.  It is told a thread that
 * lives, the leader if that does.  -ESRCH: the process is gone; -EBUSY: a debugger has it; -EPERM: we may not; -ETIMEDOUT: a thread could not be stopped.
 */
int freeze_run(struct freeze *f, int (*fn)(void *ctx, pid_t tid, struct mf_error *err), void *ctx,
	       struct mf_error *err);

#endif
