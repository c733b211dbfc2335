/* SPDX-License-Identifier: BSD-2-Clause */
/* What threads here have in common. */
#ifndef BASE_THREAD_H
#define BASE_THREAD_H

#include <pthread.h>
#include <signal.h>

/* A thread in which these signals are blocked from its first instruction on; the caller's own mask stays.  0, or
 * -errno. */
static inline int base_thread_start(pthread_t *ret, const sigset_t *blocked, void *(*fn)(void *),
				    void *arg)
{
	sigset_t before;
	(void)pthread_sigmask(SIG_SETMASK, blocked, &before);
	int code = -pthread_create(ret, NULL, fn, arg);
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	return code;
}

/* In a loop that looks for something without sleeping. */
static inline void base_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

#endif
