/* SPDX-License-Identifier: BSD-2-Clause */
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "perf/doc.h"

/* One line, cut before a terminal would wrap it; standard error, so that results can go elsewhere. */
void perf_progress(const char *fmt, ...)
{
	char line[80];
	va_list ap;

	if (!isatty(STDERR_FILENO))
		return;
	va_start(ap, fmt);
	int n = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (n >= 0)
		(void)fprintf(stderr, "\r\033[K%s", line);
}

void perf_progress_end(void)
{
	if (isatty(STDERR_FILENO))
		(void)fputs("\r\033[K", stderr);
}
