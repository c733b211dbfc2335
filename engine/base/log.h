/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Debug lines to stderr, off unless MEMFERRY_DEBUG is set in the environment.  Library layers
 * return errors and do not log them; nothing here is for users.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

#include "base/error.h"

bool base_debug_on(void);
void base_debug_line(const char *fmt, ...) MF_PRINTF(1, 2);

#define base_debug(...)                               \
	do {                                          \
		if (base_debug_on())                  \
			base_debug_line(__VA_ARGS__); \
	} while (0)

#endif
