/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The container of a machine's state: sections that say what they are, behind a checksum.
 * docs/kvm-state.md is its definition.  Pure functions over bytes; all numbers are little-endian.
 */
#ifndef KVM_BLOB_H
#define KVM_BLOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <memferry/error.h>

#define BLOB_VERSION      1u
#define BLOB_ARCH_X86_64  1u
#define BLOB_MAX          (64u << 20)
#define BLOB_SECTIONS_MAX 16384u

enum blob_flag {
	BLOB_OPTIONAL = 1u << 0, /* whoever does not know the type goes on without */
};

enum blob_kind {
	BLOB_STATE,
	BLOB_NEEDS,
};

struct blob_writer {
	unsigned char *bytes; /* owned; kept for the next use */
	size_t cap, len;
	size_t section; /* where the open section's head is; 0: none is open */
	uint32_t n;
	bool failed; /* no memory, or too large: all later calls do nothing */
};

/* Room for so many bytes, so that writing allocates nothing.  False: no memory. */
bool blob_reserve(struct blob_writer *w, size_t cap);
void blob_begin(struct blob_writer *w, enum blob_kind kind);
void blob_open(struct blob_writer *w, uint32_t type, uint32_t instance, uint32_t flags);
/* Where the next `len` bytes of the open section go, zeroed; valid until the next call.  NULL: failed. */
void *blob_room(struct blob_writer *w, size_t len);
void blob_put(struct blob_writer *w, const void *bytes, size_t len);
void blob_close(struct blob_writer *w);
/* Drops the open section. */
void blob_drop(struct blob_writer *w);
/* -ENOMEM: something failed on the way. */
int blob_end(struct blob_writer *w);
void blob_free(struct blob_writer *w);

struct blob_section {
	uint32_t type, instance, flags;
	size_t len;
	const unsigned char *bytes; /* aligned to 8 when the blob is */
};

struct blob {
	uint32_t n;
	struct blob_section *sections; /* owned */
};

/*
 * Takes a blob apart, and nothing is done about it before all of it was understood.  `knows` tells the types: a
 * section of another one is left out when it is optional and refused otherwise.  -EBADMSG: not a blob, or
 * damaged; -MF_EVERSION: of a kind or version that is not ours.  `what` stands in sentences.
 */
int blob_parse(const void *bytes, size_t len, enum blob_kind kind, bool (*knows)(uint32_t type),
	       const char *what, struct blob *ret, struct mf_error *err);
void blob_forget(struct blob *blob);
/* NULL: there is none. */
const struct blob_section *blob_find(const struct blob *blob, uint32_t type, uint32_t instance);

#endif
