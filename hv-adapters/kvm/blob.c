/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/kvm/blob.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/cleanup.h"
#include "base/error.h"

/* Field by field in docs/kvm-state.md.  Read and written as they lie: the component is for x86_64 only. */
struct head {
	char magic[8];
	uint32_t version, arch;
	uint64_t len; /* of all, this head included */
	uint64_t checksum;
	uint32_t n_sections, reserved;
};

struct section_head {
	uint32_t type, instance, flags, reserved;
	uint64_t len; /* of the payload; zeroes up to a multiple of 8 follow */
};

_Static_assert(sizeof(struct head) == 40 && sizeof(struct section_head) == 24, "fixed layout");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "fields are little-endian");

static const char magics[][9] = {
	[BLOB_STATE] = "MFKVMSTA",
	[BLOB_NEEDS] = "MFKVMNED",
};

static uint64_t checksum(const unsigned char *bytes, size_t len)
{
	uint64_t seed = XXH3_64bits(bytes, offsetof(struct head, checksum));
	size_t rest = offsetof(struct head, n_sections);
	return XXH3_64bits_withSeed(bytes + rest, len - rest, seed);
}

bool blob_reserve(struct blob_writer *w, size_t cap)
{
	if (cap <= w->cap)
		return true;
	unsigned char *bytes = cap <= BLOB_MAX ? realloc(w->bytes, cap) : NULL;
	if (!bytes)
		return false;
	w->bytes = bytes;
	w->cap = cap;
	return true;
}

/* `len` more bytes, zeroed; NULL: failed, and stays so. */
static void *grow(struct blob_writer *w, size_t len)
{
	size_t doubled = w->cap * 2 < BLOB_MAX ? w->cap * 2 : BLOB_MAX;
	if (w->failed || len > BLOB_MAX - w->len ||
	    (w->len + len > w->cap &&
	     !blob_reserve(w, w->len + len > doubled ? w->len + len : doubled))) {
		w->failed = true;
		return NULL;
	}
	void *at = w->bytes + w->len;
	memset(at, 0, len);
	w->len += len;
	return at;
}

void blob_begin(struct blob_writer *w, enum blob_kind kind)
{
	w->len = w->section = 0;
	w->n = 0;
	w->failed = false;
	struct head *head = grow(w, sizeof(*head));
	if (!head)
		return;
	memcpy(head->magic, magics[kind], sizeof(head->magic));
	head->version = BLOB_VERSION;
	head->arch = BLOB_ARCH_X86_64;
}

void blob_open(struct blob_writer *w, uint32_t type, uint32_t instance, uint32_t flags)
{
	assert(!w->section || w->failed);
	size_t at = w->len;
	struct section_head *head = grow(w, sizeof(*head));
	if (!head)
		return;
	*head = (struct section_head){ .type = type, .instance = instance, .flags = flags };
	w->section = at;
}

void *blob_room(struct blob_writer *w, size_t len)
{
	return grow(w, len);
}

void blob_put(struct blob_writer *w, const void *bytes, size_t len)
{
	void *at = grow(w, len);
	if (at && len)
		memcpy(at, bytes, len);
}

void blob_close(struct blob_writer *w)
{
	if (w->failed)
		return;
	assert(w->section);
	uint64_t len = w->len - w->section - sizeof(struct section_head);
	if (!grow(w, (8 - len % 8) % 8))
		return;
	struct section_head *head = (void *)(w->bytes + w->section);
	head->len = len;
	w->section = 0;
	w->n++;
}

void blob_drop(struct blob_writer *w)
{
	if (w->failed)
		return;
	assert(w->section);
	w->len = w->section;
	w->section = 0;
}

int blob_end(struct blob_writer *w)
{
	if (w->failed || w->n > BLOB_SECTIONS_MAX)
		return -ENOMEM;
	assert(!w->section);
	struct head *head = (void *)w->bytes;
	head->len = w->len;
	head->n_sections = w->n;
	head->checksum = checksum(w->bytes, w->len);
	return 0;
}

void blob_free(struct blob_writer *w)
{
	free(w->bytes);
	*w = (struct blob_writer){ 0 };
}

static int damaged(struct mf_error *err, const char *what, const char *why)
{
	return base_error(err, -EBADMSG, MF_SCOPE_SESSION, "%s: %s", what, why);
}

static int check_head(const unsigned char *bytes, size_t len, enum blob_kind kind, const char *what,
		      struct head *ret, struct mf_error *err)
{
	if (len < sizeof(*ret))
		return damaged(err, what, "it is too short");
	memcpy(ret, bytes, sizeof(*ret));
	if (memcmp(ret->magic, magics[kind], sizeof(ret->magic)) != 0)
		return damaged(err, what, "it does not begin as it should");
	if (ret->version != BLOB_VERSION)
		return base_error(
			err, -MF_EVERSION, MF_SCOPE_SESSION,
			"%s: its version is %u, this side knows %u; use the same memferry "
			"on both hosts",
			what, ret->version, BLOB_VERSION);
	if (ret->arch != BLOB_ARCH_X86_64)
		return base_error(err, -MF_EVERSION, MF_SCOPE_SESSION,
				  "%s: it is of another architecture (%u)", what, ret->arch);
	if (ret->len != len || len > BLOB_MAX)
		return damaged(err, what, "its length is not what it says");
	if (ret->checksum != checksum(bytes, len))
		return damaged(err, what, "its checksum is wrong");
	if (ret->reserved || ret->n_sections > BLOB_SECTIONS_MAX)
		return damaged(err, what, "its head makes no sense");
	return 0;
}

/* One section; *at moves behind it. */
static int take_section(const unsigned char *bytes, size_t len, size_t *at,
			struct blob_section *ret, const char *what, struct mf_error *err)
{
	struct section_head head;
	if (len - *at < sizeof(head))
		return damaged(err, what, "a section is cut off");
	memcpy(&head, bytes + *at, sizeof(head));
	*at += sizeof(head);
	if (head.len > len - *at || head.reserved)
		return damaged(err, what, "a section is longer than the whole");
	*ret = (struct blob_section){ head.type, head.instance, head.flags, (size_t)head.len,
				      bytes + *at };
	size_t padded = (head.len + 7) / 8 * 8;
	if (padded > len - *at)
		return damaged(err, what, "a section is cut off");
	*at += padded;
	return 0;
}

int blob_parse(const void *bytes, size_t len, enum blob_kind kind, bool (*knows)(uint32_t type),
	       const char *what, struct blob *ret, struct mf_error *err)
{
	struct head head;
	size_t at = sizeof(head);
	*ret = (struct blob){ 0 };
	int code = check_head(bytes, len, kind, what, &head, err);
	if (code < 0)
		return code;
	struct blob blob = { .sections =
				     calloc((size_t)head.n_sections + 1, sizeof(*blob.sections)) };
	if (!blob.sections)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "%s", what);
	for (uint32_t i = 0; i < head.n_sections && code >= 0; i++) {
		struct blob_section *s = &blob.sections[blob.n];
		code = take_section(bytes, len, &at, s, what, err);
		if (code < 0)
			break;
		if (!knows(s->type) && !(s->flags & BLOB_OPTIONAL))
			code = base_error(err, -MF_EVERSION, MF_SCOPE_SESSION,
					  "%s: it has a section of type 0x%x, which this side does "
					  "not know and may not leave out",
					  what, s->type);
		else if (knows(s->type) && blob_find(&blob, s->type, s->instance))
			code = damaged(err, what, "a section is there twice");
		else if (knows(s->type))
			blob.n++;
	}
	if (code >= 0 && at != len)
		code = damaged(err, what, "bytes are left behind the last section");
	if (code < 0)
		blob_forget(&blob);
	*ret = blob;
	return code;
}

void blob_forget(struct blob *blob)
{
	free(blob->sections);
	*blob = (struct blob){ 0 };
}

const struct blob_section *blob_find(const struct blob *blob, uint32_t type, uint32_t instance)
{
	for (uint32_t i = 0; i < blob->n; i++) {
		if (blob->sections[i].type == type && blob->sections[i].instance == instance)
			return &blob->sections[i];
	}
	return NULL;
}
