/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"

bool base_debug_on(void)
{
	static int on = -1; /* benign race: every thread finds the same */
	int known = __atomic_load_n(&on, __ATOMIC_RELAXED);
	if (known < 0) {
		const char *value = getenv("MEMFERRY_DEBUG");
		known = value && *value;
		__atomic_store_n(&on, known, __ATOMIC_RELAXED);
	}
	return known;
}

void base_debug_line(const char *fmt, ...)
{
	int saved = errno;
	char text[512];
	va_list ap;
	va_start(ap, fmt);
	if (vsnprintf(text, sizeof(text), fmt, ap) < 0)
		text[0] = '\0';
	va_end(ap);
	uint64_t now = base_now_us();
	(void)fprintf(stderr, "memferry[%d] %llu.%06llu %s\n", getpid(),
		      (unsigned long long)(now / 1000000), (unsigned long long)(now % 1000000),
		      text);
	errno = saved;
}
