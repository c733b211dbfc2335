/* SPDX-License-Identifier: BSD-2-Clause */
/* Scope-bound release of local temporaries, and handing them on. */
#ifndef BASE_CLEANUP_H
#define BASE_CLEANUP_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* A thing may be held for its scope alone: clang would call that unused. */
#define base_cleanup(fn) __attribute__((cleanup(fn), unused))

/* The pointer, and NULL in its place: ownership goes to the reader. */
#define BASE_TAKE_PTR(p)                    \
	({                                  \
		__typeof__(p) taken_ = (p); \
		(p) = NULL;                 \
		taken_;                     \
	})

static inline int base_take_fd(int *fd)
{
	int taken = *fd;
	*fd = -1;
	return taken;
}

static inline void base_closep(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
	*fd = -1;
}

static inline void base_freep(void *p)
{
	free(*(void **)p);
}

static inline void base_fclosep(FILE **f)
{
	if (*f)
		(void)fclose(*f);
}

#define base_autofd   base_cleanup(base_closep) int
#define base_autofree base_cleanup(base_freep)

#define BASE_CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define BASE_ARRAY_LEN(a)                    (sizeof(a) / sizeof((a)[0]))

#endif
