/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/qemu/qemu_parse.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

size_t qemu_json_scan(struct qemu_json_scan *scan, const char *bytes, size_t len)
{
	for (; scan->at < len; scan->at++) {
		char c = bytes[scan->at];
		if (scan->in_string) {
			if (scan->is_escaped)
				scan->is_escaped = false;
			else if (c == '\\')
				scan->is_escaped = true;
			else if (c == '"')
				scan->in_string = false;
			continue;
		}
		if (!scan->depth) {
			if (c == ' ' || c == '\r' || c == '\n' || c == '\t')
				continue;
			if (c != '{')
				return QEMU_JSON_BAD;
		}
		if (c == '"') {
			scan->in_string = true;
		} else if (c == '{' || c == '[') {
			scan->depth++;
		} else if ((c == '}' || c == ']') && --scan->depth == 0) {
			size_t n = scan->at + 1;
			*scan = (struct qemu_json_scan){ 0 };
			return n;
		}
	}
	return 0;
}

/* Copies the line at *at and moves on; false at the end of the text. */
static bool next_line(const char **at, char *line, size_t cap)
{
	if (!**at)
		return false;
	size_t n = strcspn(*at, "\n");
	size_t kept = n < cap ? n : cap - 1;
	memcpy(line, *at, kept);
	line[kept] = '\0';
	if (kept && line[kept - 1] == '\r')
		line[kept - 1] = '\0';
	*at += n + ((*at)[n] == '\n');
	return true;
}

/* "    ram0    4 KiB  0xOFFSET 0xUSED 0xTOTAL …": found from the first number backwards, as a name may hold blanks. */
static bool parse_ramblock(char *line, struct qemu_ramblock *ret)
{
	char *numbers = strstr(line, " 0x");
	if (!numbers)
		return false;
	uint64_t offset, used, total;
	if (sscanf(numbers, " 0x%" SCNx64 " 0x%" SCNx64 " 0x%" SCNx64, &offset, &used, &total) != 3)
		return false;
	*numbers = '\0';
	char *iec = strstr(line, "iB");
	for (char *next; iec && (next = strstr(iec + 1, "iB"));)
		iec = next;
	if (!iec || iec - line < 4)
		return false;
	unsigned shift;
	switch (iec[-1]) {
	case 'K':
		shift = 10;
		break;
	case 'M':
		shift = 20;
		break;
	case 'G':
		shift = 30;
		break;
	default:
		return false;
	}
	char *digits = iec - 2;
	while (digits > line && *digits == ' ')
		digits--;
	while (digits > line && isdigit((unsigned char)digits[-1]))
		digits--;
	ret->page_size = strtoull(digits, NULL, 10) << shift;
	ret->used = used;
	*digits = '\0';
	char *name = line + strspn(line, " ");
	size_t n = strlen(name);
	while (n && name[n - 1] == ' ')
		name[--n] = '\0';
	(void)snprintf(ret->name, sizeof(ret->name), "%s", name);
	return true;
}

unsigned qemu_parse_ramblocks(const char *text, struct qemu_ramblock *ret, unsigned cap)
{
	char line[512];
	unsigned n = 0;
	while (next_line(&text, line, sizeof(line))) {
		struct qemu_ramblock block;
		if (!parse_ramblock(line, &block))
			continue;
		if (n < cap)
			ret[n] = block;
		n++;
	}
	return n;
}

bool qemu_ramblock_is(const char *block, const char *id)
{
	const char *slash = strrchr(block, '/');
	return strcmp(slash ? slash + 1 : block, id) == 0;
}

/* "  0000000000000000-000000000009ffff (prio 0, ram): ram0 @0000000000000000 KVM" */
static bool parse_flat_range(const char *line, const char *id, struct qemu_placed *ret)
{
	uint64_t first, last, offset = 0;
	if (sscanf(line, " %16" SCNx64 "-%16" SCNx64, &first, &last) != 2)
		return false;
	const char *name = strstr(line, "): ");
	if (!name)
		return false;
	name += 3;
	if (strncmp(name, "/objects/", 9) == 0)
		name += 9;
	size_t n = strlen(id);
	if (strncmp(name, id, n) != 0 || (name[n] && name[n] != ' '))
		return false;
	(void)sscanf(name + n, " @%16" SCNx64, &offset);
	*ret = (struct qemu_placed){ .gpa = first, .offset = offset };
	return true;
}

bool qemu_parse_placed(const char *text, const char *id, struct qemu_placed *ret)
{
	char line[512];
	bool is_ours = false, found = false;
	while (next_line(&text, line, sizeof(line))) {
		struct qemu_placed here;
		if (strncmp(line, "FlatView", 8) == 0)
			is_ours = false;
		else if (strstr(line, " AS \"memory\", root: "))
			is_ours = true;
		else if (is_ours && parse_flat_range(line, id, &here) &&
			 (!found || here.gpa < ret->gpa)) {
			*ret = here;
			found = true;
		}
	}
	return found;
}

bool qemu_parse_gpa2hva(const char *text, const char *id, uint64_t *ret_hva)
{
	const char *name = strchr(text, '(');
	const char *end = name ? strstr(name, ") is 0x") : NULL;
	if (!end)
		return false;
	char block[128];
	size_t n = (size_t)(end - name) - 1;
	if (n >= sizeof(block))
		return false;
	memcpy(block, name + 1, n);
	block[n] = '\0';
	if (!qemu_ramblock_is(block, id))
		return false;
	*ret_hva = strtoull(end + strlen(") is "), NULL, 16);
	return *ret_hva != 0;
}

bool qemu_parse_mapping(const char *line, struct qemu_mapping *ret)
{
	char perms[5] = "";
	int at = 0;
	struct qemu_mapping m = { 0 };
	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 "%n", &m.start,
		   &m.end, perms, &m.offset, &m.dev_major, &m.dev_minor, &m.inode, &at) != 7)
		return false;
	m.is_shared = perms[3] == 's';
	m.is_writable = perms[1] == 'w';
	m.path = line + at + strspn(line + at, " ");
	*ret = m;
	return true;
}

/* By the beginning of the QOM type name; the first that fits decides. */
static const struct {
	const char *prefix, *why;
	enum mf_verdict verdict;
} device_kinds[] = {
	{ "vfio-",
	  "is a passed-through device and writes guest RAM unseen: unplug it (device_del) before "
	  "moving",
	  MF_REFUSE },
	{ "vhost-user-",
	  "has its backend in another process, which writes guest RAM unseen: unplug it before "
	  "moving",
	  MF_REFUSE },
	{ "vhost-vdpa-", "is hardware that writes guest RAM unseen: unplug it before moving",
	  MF_REFUSE },
	{ "virtio-balloon",
	  "gives guest RAM back to the host while it moves: start QEMU without it", MF_REFUSE },
	{ "virtio-mem",
	  "takes guest RAM away while it moves: start QEMU without it, use fixed memory",
	  MF_REFUSE },
	{ "virtio-pmem",
	  "maps host files as guest RAM beyond what can be tracked: unplug it before moving",
	  MF_REFUSE },
	{ "ivshmem-", "shares RAM with other guests of this host: unplug it before moving",
	  MF_REFUSE },
	{ "pvrdma", "lets hardware write guest RAM unseen: unplug it before moving", MF_REFUSE },
	{ "x-pci-proxy-dev",
	  "has its device in another process, which writes guest RAM unseen: unplug it before "
	  "moving",
	  MF_REFUSE },
	{ "x-vfio-user-",
	  "has its device in another process, which writes guest RAM unseen: unplug it before "
	  "moving",
	  MF_REFUSE },
};

enum mf_verdict qemu_classify_device(const char *type, const char **ret_why)
{
	for (size_t i = 0; i < BASE_ARRAY_LEN(device_kinds); i++) {
		if (strncmp(type, device_kinds[i].prefix, strlen(device_kinds[i].prefix)) == 0) {
			*ret_why = device_kinds[i].why;
			return device_kinds[i].verdict;
		}
	}
	return MF_OK;
}

/* " \ net0: index=0,type=vhost-user,…" */
bool qemu_next_bad_netdev(const char **at, char *ret_name, size_t cap, const char **ret_why)
{
	static const struct {
		const char *type, *why;
	} bad[] = {
		{ "type=vhost-user", "vhost-user: its backend process writes guest RAM unseen: "
				     "use vhost=on or a tap without it" },
		{ "type=vhost-vdpa", "vhost-vdpa: hardware writes guest RAM unseen: use a tap" },
	};
	char line[512];
	while (next_line(at, line, sizeof(line))) {
		for (size_t i = 0; i < BASE_ARRAY_LEN(bad); i++) {
			const char *hit = strstr(line, bad[i].type);
			if (!hit || isalnum((unsigned char)hit[strlen(bad[i].type)]))
				continue;
			const char *name = line + strspn(line, " \\");
			(void)snprintf(ret_name, cap, "%.*s", (int)strcspn(name, ":"), name);
			*ret_why = bad[i].why;
			return true;
		}
	}
	return false;
}
