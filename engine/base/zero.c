/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/zero.h"

#include <stdint.h>

#define BLOCK 256u
#define AHEAD 1024u
#define LINE  64u

/* For any address: guests' pages are aligned, and loads that need not be cost the same there. */
typedef uint64_t word __attribute__((aligned(1), may_alias));
typedef uint64_t pair __attribute__((vector_size(16), aligned(1), may_alias));

static bool is_block_zero(const char *at)
{
	const pair *v = (const void *)at;
	pair low = ((v[0] | v[1]) | (v[2] | v[3])) | ((v[4] | v[5]) | (v[6] | v[7]));
	pair high = ((v[8] | v[9]) | (v[10] | v[11])) | ((v[12] | v[13]) | (v[14] | v[15]));
	pair all = low | high;

	return !(all[0] | all[1]);
}

static bool is_short_zero(const char *at, size_t len)
{
	char all = 0;

	for (size_t i = 0; i < len; i++)
		all |= at[i];
	return !all;
}

bool base_is_zero(const void *at, size_t len)
{
	const char *bytes = at;

	if (len < BLOCK)
		return is_short_zero(bytes, len);
	if (*(const word *)bytes || *(const word *)(bytes + len - sizeof(word)))
		return false;
	for (size_t i = 0; i + BLOCK <= len; i += BLOCK) {
		for (size_t line = 0; line < BLOCK; line += LINE)
			__builtin_prefetch(bytes + i + AHEAD + line);
		if (!is_block_zero(bytes + i))
			return false;
	}
	/* What is left, with some that was seen. */
	return is_block_zero(bytes + len - BLOCK);
}
