/* SPDX-License-Identifier: BSD-2-Clause */
/* The demo guest's state: as it came, and with head and checksum made right, as one would who means harm. */
#include <endian.h>

#include <xxhash.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "hv-adapters/process/state.h"

enum {
	LENGTH_AT = 12,
	SIZE_AT = 16,
	THREADS_AT = 56,
	REGIONS_AT = 60,
	LEAST = 80,
};

static void decode(const uint8_t *bytes, size_t len, const struct options *mine)
{
	unsigned char again[STATE_MAX];
	struct guest_state state;
	struct mf_error err = { 0 };
	int code = state_decode(bytes, len, mine, &state, &err);
	if (code) {
		fuzz_check_error(&err, code);
		return;
	}
	assert(state.opt.page_size == mine->page_size);
	state.opt.page_size = STAMP_PAGE;
	assert(options_check(&state.opt, NULL) == 0);
	assert(state_encode(&state, again) == len && !memcmp(again, bytes, len));
}

/* The guest that it is to be loaded into is the one that it says. */
static void adapt(const uint8_t *bytes, struct options *ret)
{
	memcpy(&ret->size, bytes + SIZE_AT, sizeof(ret->size));
	memcpy(&ret->threads, bytes + THREADS_AT, sizeof(ret->threads));
	memcpy(&ret->regions, bytes + REGIONS_AT, sizeof(ret->regions));
	ret->size = le64toh(ret->size);
	ret->threads = le32toh(ret->threads);
	ret->regions = le32toh(ret->regions);
}

static void seal(uint8_t *bytes, size_t len)
{
	static const char magic[] = "mfvdeme1\1\0\0";
	uint32_t says = htole32((uint32_t)len);
	memcpy(bytes, magic, sizeof(magic));
	memcpy(bytes + LENGTH_AT, &says, sizeof(says));
	uint64_t sum = htole64(XXH3_64bits(bytes, len - sizeof(sum)));
	memcpy(bytes + len - sizeof(sum), &sum, sizeof(sum));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	base_autofree uint8_t *bytes = fuzz_copy(data, size);
	struct options mine = { .size = 1 << 20, .threads = 2, .regions = 1, .page_size = 4096 };

	decode(bytes, size, &mine);
	if (size < LEAST)
		return 0;
	seal(bytes, size);
	decode(bytes, size, &mine);
	adapt(bytes, &mine);
	decode(bytes, size, &mine);
	return 0;
}
