/* SPDX-License-Identifier: BSD-2-Clause */
/* Another process stands still while something is done, and goes on as if nothing had been. */
#ifndef BASE_FREEZE_H
#define BASE_FREEZE_H

#include <sys/types.h>

#include "base/error.h"

struct base_freeze;

typedef int (*base_frozen_fn)(void *ctx, pid_t tid, struct mf_error *err);

/* Allocates all that base_freeze_run() needs. */
int base_freeze_open(pid_t pid, struct base_freeze **ret, struct mf_error *err);
void base_freeze_close(struct base_freeze *f); /* NULL: nothing */

/*
 * Runs fn, maybe on another thread, while no thread of the process runs; what fn returns is returned.  It is told a
 * thread that lives, the leader if that does.  -ESRCH: the process is gone; -EBUSY: a debugger has it; -EPERM: we may
 * not; -ETIMEDOUT: a thread could not be stopped.
 */
int base_freeze_run(struct base_freeze *f, base_frozen_fn fn, void *ctx, struct mf_error *err);

#endif
