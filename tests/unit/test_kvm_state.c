/* SPDX-License-Identifier: BSD-2-Clause */
/* The container of a machine's state: what is written comes back, and nothing else is believed. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <xxhash.h>

#include "hv-adapters/kvm/blob.h"

#define WHAT "the state"

static bool knows(uint32_t type)
{
	return type >= 1 && type <= 9;
}

static void add(struct blob_writer *w, uint32_t type, uint32_t instance, uint32_t flags,
		const char *text)
{
	blob_open(w, type, instance, flags);
	blob_put(w, text, strlen(text));
	blob_close(w);
}

static void make(struct blob_writer *w)
{
	*w = (struct blob_writer){ 0 };
	blob_begin(w, BLOB_STATE);
	add(w, 1, 0, 0, "one");
	add(w, 2, 7, 0, "eight by");
	add(w, 2, 8, 0, "");
	add(w, 77, 0, BLOB_OPTIONAL, "who knows");
	add(w, 3, 0, BLOB_OPTIONAL, "known and optional");
	assert_int_equal(blob_end(w), 0);
}

static int parse(const void *bytes, size_t len, struct blob *blob, struct mf_error *err)
{
	*err = (struct mf_error){ 0 };
	/* A copy of its own, so that a sanitizer sees what is read beyond. */
	void *copy = malloc(len ? len : 1);
	memcpy(copy, bytes, len);
	int code = blob_parse(copy, len, BLOB_STATE, knows, WHAT, blob, err);
	if (code < 0) {
		assert_int_equal(err->code, code);
		assert_true(!strncmp(err->msg, WHAT ": ", strlen(WHAT) + 2));
		assert_null(blob->sections);
		assert_int_equal(blob->n, 0);
		free(copy);
	} else {
		/* The test looks at bytes only while the writer's are there. */
		for (uint32_t i = 0; i < blob->n; i++)
			blob->sections[i].bytes =
				(const unsigned char *)bytes +
				(blob->sections[i].bytes - (const unsigned char *)copy);
		free(copy);
	}
	return code;
}

/* Makes the checksum right again after a change, as one would who means harm. */
static void seal(unsigned char *bytes, size_t len)
{
	uint64_t seed = XXH3_64bits(bytes, 24);
	uint64_t sum = XXH3_64bits_withSeed(bytes + 32, len - 32, seed);
	memcpy(bytes + 24, &sum, sizeof(sum));
}

static void what_is_written_comes_back(void **state)
{
	struct blob_writer w;
	struct blob blob;
	struct mf_error err;
	(void)state;
	make(&w);
	assert_int_equal(parse(w.bytes, w.len, &blob, &err), 0);
	assert_int_equal(blob.n, 4); /* without the optional one that nobody knows */
	const struct blob_section *s = blob_find(&blob, 2, 7);
	assert_non_null(s);
	assert_int_equal(s->len, 8);
	assert_memory_equal(s->bytes, "eight by", 8);
	assert_int_equal(blob_find(&blob, 2, 8)->len, 0);
	assert_int_equal(blob_find(&blob, 3, 0)->flags, BLOB_OPTIONAL);
	assert_null(blob_find(&blob, 77, 0));
	assert_null(blob_find(&blob, 2, 0));
	blob_forget(&blob);
	/* The writer can be used again, and a section dropped. */
	blob_begin(&w, BLOB_STATE);
	blob_open(&w, 1, 0, 0);
	blob_put(&w, "no", 2);
	blob_drop(&w);
	add(&w, 4, 0, 0, "yes");
	assert_int_equal(blob_end(&w), 0);
	assert_int_equal(parse(w.bytes, w.len, &blob, &err), 0);
	assert_int_equal(blob.n, 1);
	blob_forget(&blob);
	blob_free(&w);
}

static void each_truncation_is_refused(void **state)
{
	struct blob_writer w;
	struct blob blob;
	struct mf_error err;
	(void)state;
	make(&w);
	for (size_t len = 0; len < w.len; len++)
		assert_int_equal(parse(w.bytes, len, &blob, &err), -EBADMSG);
	/* With a head that agrees. */
	for (size_t len = 40; len < w.len; len++) {
		unsigned char *bytes = malloc(len);
		uint64_t says = len;
		memcpy(bytes, w.bytes, len);
		memcpy(bytes + 16, &says, sizeof(says));
		seal(bytes, len);
		assert_int_equal(parse(bytes, len, &blob, &err), -EBADMSG);
		free(bytes);
	}
	unsigned char *longer = calloc(1, w.len + 8);
	memcpy(longer, w.bytes, w.len);
	assert_int_equal(parse(longer, w.len + 8, &blob, &err), -EBADMSG);
	uint64_t says = w.len + 8;
	memcpy(longer + 16, &says, sizeof(says));
	seal(longer, w.len + 8);
	assert_int_equal(parse(longer, w.len + 8, &blob, &err), -EBADMSG);
	assert_non_null(strstr(err.msg, "left behind"));
	free(longer);
	blob_free(&w);
}

static void each_flipped_bit_is_refused(void **state)
{
	struct blob_writer w;
	struct blob blob;
	struct mf_error err;
	(void)state;
	make(&w);
	for (size_t bit = 0; bit < w.len * 8; bit++) {
		w.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
		assert_true(parse(w.bytes, w.len, &blob, &err) < 0);
		w.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
	}
	assert_int_equal(parse(w.bytes, w.len, &blob, &err), 0);
	blob_forget(&blob);
	blob_free(&w);
}

/* With a checksum that is right: whatever is believed lies inside. */
static void no_changed_byte_leads_outside(void **state)
{
	struct blob_writer w;
	struct blob blob;
	struct mf_error err;
	unsigned parsed = 0;
	(void)state;
	make(&w);
	for (size_t at = 0; at < w.len; at++) {
		for (unsigned value = 0; value < 256; value += 5) {
			unsigned char before = w.bytes[at];
			w.bytes[at] = (unsigned char)value;
			seal(w.bytes, w.len);
			if (parse(w.bytes, w.len, &blob, &err) == 0) {
				parsed++;
				for (uint32_t i = 0; i < blob.n; i++) {
					const struct blob_section *s = &blob.sections[i];
					assert_true(s->bytes >= w.bytes &&
						    s->bytes + s->len <= w.bytes + w.len);
				}
				blob_forget(&blob);
			}
			w.bytes[at] = before;
		}
	}
	assert_true(parsed > 0);
	blob_free(&w);
}

static void unknown_sections(void **state)
{
	struct blob_writer w = { 0 };
	struct blob blob;
	struct mf_error err;
	(void)state;
	blob_begin(&w, BLOB_STATE);
	add(&w, 1, 0, 0, "known");
	add(&w, 0x123, 0, 0, "not known, and not to be left out");
	assert_int_equal(blob_end(&w), 0);
	assert_int_equal(parse(w.bytes, w.len, &blob, &err), -MF_EVERSION);
	assert_non_null(strstr(err.msg, "0x123"));
	blob_begin(&w, BLOB_STATE);
	add(&w, 1, 0, 0, "twice");
	add(&w, 1, 0, 0, "twice");
	assert_int_equal(blob_end(&w), 0);
	assert_int_equal(parse(w.bytes, w.len, &blob, &err), -EBADMSG);
	assert_non_null(strstr(err.msg, "twice"));
	blob_free(&w);
}

static void other_versions_and_kinds_are_named(void **state)
{
	struct blob_writer w;
	struct blob blob;
	struct mf_error err;
	(void)state;
	make(&w);
	w.bytes[8] = 2;
	seal(w.bytes, w.len);
	assert_int_equal(parse(w.bytes, w.len, &blob, &err), -MF_EVERSION);
	assert_non_null(strstr(err.msg, "version is 2"));
	w.bytes[8] = 1;
	w.bytes[12] = 9;
	seal(w.bytes, w.len);
	assert_int_equal(parse(w.bytes, w.len, &blob, &err), -MF_EVERSION);
	assert_non_null(strstr(err.msg, "architecture"));
	blob_begin(&w, BLOB_NEEDS);
	assert_int_equal(blob_end(&w), 0);
	assert_int_equal(parse(w.bytes, w.len, &blob, &err), -EBADMSG);
	blob_free(&w);
}

static void too_much_fails_once_and_for_all(void **state)
{
	struct blob_writer w = { 0 };
	(void)state;
	blob_begin(&w, BLOB_STATE);
	blob_open(&w, 1, 0, 0);
	assert_null(blob_room(&w, (size_t)BLOB_MAX));
	blob_put(&w, "x", 1);
	blob_close(&w);
	blob_open(&w, 1, 0, 0);
	assert_int_equal(blob_end(&w), -ENOMEM);
	blob_begin(&w, BLOB_STATE);
	assert_int_equal(blob_end(&w), 0);
	blob_free(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written_comes_back),
		cmocka_unit_test(each_truncation_is_refused),
		cmocka_unit_test(each_flipped_bit_is_refused),
		cmocka_unit_test(no_changed_byte_leads_outside),
		cmocka_unit_test(unknown_sections),
		cmocka_unit_test(other_versions_and_kinds_are_named),
		cmocka_unit_test(too_much_fails_once_and_for_all),
	};
	return cmocka_run_group_tests_name("KVM state", tests, NULL, NULL);
}
