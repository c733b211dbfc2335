/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A target is one function over bytes that may come from anywhere.  libFuzzer calls it in the preset `fuzz`; replay.c
 * calls it for each file of the target's corpus in all others.  What must hold is asserted.
 */
#ifndef FUZZ_FUZZ_H
#define FUZZ_FUZZ_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A copy of its own, so that a sanitizer sees what is read beyond.  Never NULL. */
static inline void *fuzz_copy(const uint8_t *data, size_t size)
{
	void *copy = calloc(1, size ? size : 1);
	assert(copy);
	if (size)
		memcpy(copy, data, size);
	return copy;
}

/* Likewise, as a string. */
static inline char *fuzz_text(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);
	assert(text);
	if (size)
		memcpy(text, data, size);
	text[size] = '\0';
	return text;
}

/* Every failure has a record, and its sentence is a whole one. */
static inline void fuzz_check_error(const struct mf_error *err, int code)
{
	assert(code < 0 && err->code == code);
	assert(err->msg[0] && memchr(err->msg, '\0', sizeof(err->msg)));
}

#endif
