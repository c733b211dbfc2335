/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/process/state.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

#include "base/error.h"

#define STATE_MAGIC   0x31656d656476666du
#define STATE_VERSION 1u

enum {
	HEAD = 16,
	OPTIONS = 5 * 8 + 4 * 4,
	WRITER = 5 * 8,
	TAIL = 8,
};
_Static_assert(HEAD + OPTIONS + GUEST_THREADS * WRITER + TAIL <= STATE_MAX, "state fits");

static size_t encoded_size(uint32_t threads)
{
	return HEAD + OPTIONS + (size_t)threads * WRITER + TAIL;
}

static unsigned char *put32(unsigned char *at, uint32_t value)
{
	value = htole32(value);
	return (unsigned char *)memcpy(at, &value, sizeof(value)) + sizeof(value);
}

static unsigned char *put64(unsigned char *at, uint64_t value)
{
	value = htole64(value);
	return (unsigned char *)memcpy(at, &value, sizeof(value)) + sizeof(value);
}

static uint32_t get32(const unsigned char **at)
{
	uint32_t value;
	memcpy(&value, *at, sizeof(value));
	*at += sizeof(value);
	return le32toh(value);
}

static uint64_t get64(const unsigned char **at)
{
	uint64_t value;
	memcpy(&value, *at, sizeof(value));
	*at += sizeof(value);
	return le64toh(value);
}

size_t state_encode(const struct guest_state *state, unsigned char bytes[static STATE_MAX])
{
	const struct options *opt = &state->opt;
	size_t len = encoded_size(opt->threads);
	unsigned char *at = bytes;

	at = put64(at, STATE_MAGIC);
	at = put32(at, STATE_VERSION);
	at = put32(at, (uint32_t)len);
	at = put64(at, opt->size);
	at = put64(at, opt->hot);
	at = put64(at, opt->dirty);
	at = put64(at, opt->check);
	at = put64(at, opt->seed);
	at = put32(at, opt->threads);
	at = put32(at, opt->regions);
	at = put32(at, opt->zero);
	at = put32(at, opt->random);
	for (uint32_t i = 0; i < opt->threads; i++) {
		const struct writer_state *w = &state->writers[i];
		at = put64(at, w->steps);
		at = put64(at, w->heartbeat);
		at = put64(at, w->wrong);
		at = put64(at, w->passes);
		at = put64(at, w->scan);
	}
	at = put64(at, XXH3_64bits(bytes, (size_t)(at - bytes)));
	assert((size_t)(at - bytes) == len);
	return len;
}

static int malformed(struct mf_error *err, const char *why)
{
	return base_error(err, -EBADMSG, MF_SCOPE_SESSION, "demo guest's state: %s", why);
}

static int check_frame(const unsigned char *bytes, size_t len, struct mf_error *err)
{
	const unsigned char *at = bytes;

	if (len < HEAD + OPTIONS + TAIL || len > STATE_MAX)
		return malformed(err, "its length is impossible");
	if (get64(&at) != STATE_MAGIC)
		return malformed(err, "it is not the state of a demo guest");
	uint32_t version = get32(&at);
	if (version != STATE_VERSION)
		return base_error(err, -MF_EVERSION, MF_SCOPE_SESSION,
				  "demo guest's state: version %" PRIu32 " is not known here, "
				  "only %u; use the same memferry on both hosts",
				  version, STATE_VERSION);
	if (get32(&at) != len)
		return malformed(err, "it is cut short or has bytes after its end");
	at = bytes + len - TAIL;
	if (get64(&at) != XXH3_64bits(bytes, len - TAIL))
		return malformed(err, "its checksum is wrong");
	return 0;
}

int state_decode(const void *bytes, size_t len, const struct options *mine, struct guest_state *ret,
		 struct mf_error *err)
{
	int rc = check_frame(bytes, len, err);
	if (rc)
		return rc;

	const unsigned char *at = (const unsigned char *)bytes + HEAD;
	struct guest_state state = { .opt = { .page_size = STAMP_PAGE } };
	struct options *opt = &state.opt;
	opt->size = get64(&at);
	opt->hot = get64(&at);
	opt->dirty = get64(&at);
	opt->check = get64(&at);
	opt->seed = get64(&at);
	opt->threads = get32(&at);
	opt->regions = get32(&at);
	opt->zero = get32(&at);
	uint32_t random = get32(&at);
	opt->random = random;
	if (random > 1 || options_check(opt, NULL))
		return malformed(err, "its options are impossible");
	if (encoded_size(opt->threads) != len)
		return malformed(err, "its length is not that of its threads");
	if (opt->size != mine->size || opt->regions != mine->regions ||
	    opt->threads != mine->threads)
		return base_error(
			err, -MF_EREFUSED, MF_SCOPE_SESSION,
			"demo guest's state: it is of a guest with another size, number of "
			"regions or threads; give both hosts the same --guest");
	opt->page_size = mine->page_size;

	struct plan plan;
	options_plan(opt, &plan);
	for (uint32_t i = 0; i < opt->threads; i++) {
		struct writer_state *w = &state.writers[i];
		struct share share;
		w->steps = get64(&at);
		w->heartbeat = get64(&at);
		w->wrong = get64(&at);
		w->passes = get64(&at);
		w->scan = get64(&at);
		plan_share(&plan, i, &share);
		if (w->scan >= share.hot_n + share.cold_n)
			return malformed(err, "a writer's position is outside of its pages");
	}
	*ret = state;
	return 0;
}
