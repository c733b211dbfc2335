/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What QEMU says, taken apart: message boundaries of QMP, and the texts of its human monitor, which are the only
 * place where some of this is said.  Pure functions.  Texts are those of QEMU 7.2 to 10.2; lines that are not
 * understood are passed over, so that more columns or markers do no harm.
 */
#ifndef QEMU_PARSE_H
#define QEMU_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <memferry/adapter.h>

/* ---- where one JSON object ends in a stream of them; zeroed to begin with ---- */
struct qemu_json_scan {
	size_t at; /* looked at so far */
	unsigned depth;
	bool in_string, is_escaped;
};
#define QEMU_JSON_BAD SIZE_MAX
/* bytes: from the end of the message before, the same and more on each call.  Length of the first whole message
 * with the white space before it, 0: not whole yet, QEMU_JSON_BAD: no JSON object begins there. */
size_t qemu_json_scan(struct qemu_json_scan *scan, const char *bytes, size_t len);

/* ---- "info ramblock" ---- */
struct qemu_ramblock {
	char name[96]; /* "" for RAM that no device owns */
	uint64_t page_size, used;
};
/* Blocks found, at most cap of them stored. */
unsigned qemu_parse_ramblocks(const char *text, struct qemu_ramblock *ret, unsigned cap);
/* Is this the block of the memory backend `id`?  "ram0", "/objects/ram0" (old machine types), "0000:00:02.0/ram0". */
bool qemu_ramblock_is(const char *block, const char *id);

/* ---- "info mtree -f" ---- */
struct qemu_placed {
	uint64_t gpa;    /* the lowest address at which any of it is mapped */
	uint64_t offset; /* what of it is there */
};
/* Where the memory backend `id` is in the guest's physical address space; false: nowhere. */
bool qemu_parse_placed(const char *text, const char *id, struct qemu_placed *ret);

/* ---- "gpa2hva": "Host virtual address for 0x0 (ram0) is 0x7f1a7bfff000" ---- */
bool qemu_parse_gpa2hva(const char *text, const char *id, uint64_t *ret_hva);

/* ---- one line of /proc/PID/maps ---- */
struct qemu_mapping {
	uint64_t start, end, offset, inode;
	unsigned dev_major, dev_minor;
	bool is_shared, is_writable;
	const char *path; /* in the line; "" for none */
};
bool qemu_parse_mapping(const char *line, struct qemu_mapping *ret);

/* ---- devices ---- */
/* Can a guest with a device of this QOM type be moved?  MF_OK leaves *ret_why alone. */
enum mf_verdict qemu_classify_device(const char *type, const char **ret_why);
/* "info network": the next backend that cannot be moved, from *at on, which moves along.  False: no more. */
bool qemu_next_bad_netdev(const char **at, char *ret_name, size_t cap, const char **ret_why);

#endif
