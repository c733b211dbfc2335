/* SPDX-License-Identifier: BSD-2-Clause */
/* How threads start here. */
#ifndef PERF_START_H
#define PERF_START_H

#include "base/error.h"
#include "base/thread.h"

/* With all signals blocked: they are for the thread that runs main(). */
static inline int perf_start_thread(pthread_t *ret, void *(*fn)(void *), void *arg,
				    struct mf_error *err)
{
	sigset_t all;

	(void)sigfillset(&all);
	int code = base_thread_start(ret, &all, fn, arg);
	return code ? base_error_sys(err, code, MF_SCOPE_HOST, "cannot start a thread") : 0;
}

#endif
