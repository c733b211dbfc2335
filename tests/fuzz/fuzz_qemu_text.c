/* SPDX-License-Identifier: BSD-2-Clause */
/* QEMU's human monitor: the input is an answer to "info ramblock", "info mtree -f", "gpa2hva" or "info network". */
#include "base/cleanup.h"
#include "fuzz.h"
#include "hv-adapters/qemu/qemu_parse.h"

enum { BLOCKS = 4 };

static void find_blocks(const char *text)
{
	struct qemu_ramblock blocks[BLOCKS];
	unsigned n = qemu_parse_ramblocks(text, blocks, BLOCKS);
	assert(n <= strlen(text));
	for (unsigned i = 0; i < n && i < BLOCKS; i++) {
		assert(memchr(blocks[i].name, '\0', sizeof(blocks[i].name)));
		(void)qemu_ramblock_is(blocks[i].name, "ram0");
	}
	/* How many there are does not depend on how many are kept. */
	assert(qemu_parse_ramblocks(text, NULL, 0) == n);
}

static void find_netdevs(const char *text)
{
	char name[16];
	const char *at = text, *why = NULL;
	for (const char *before = at; qemu_next_bad_netdev(&at, name, sizeof(name), &why);
	     before = at) {
		assert(at > before && at <= text + strlen(text));
		assert(memchr(name, '\0', sizeof(name)) && why && why[0]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	base_autofree char *text = fuzz_text(data, size);
	struct qemu_placed placed = { .gpa = 1, .offset = 1 };
	struct qemu_mapping mapping;
	const char *why = NULL;
	uint64_t hva = 0;

	find_blocks(text);
	find_netdevs(text);
	if (!qemu_parse_placed(text, "ram0", &placed))
		assert(placed.gpa == 1 && placed.offset == 1);
	if (qemu_parse_gpa2hva(text, "ram0", &hva))
		assert(hva);
	if (qemu_parse_mapping(text, &mapping)) {
		assert(mapping.path >= text && mapping.path <= text + strlen(text));
		/* Looked at, so that memcheck sees one that was left to chance. */
		assert(qemu_ramblock_is(mapping.is_shared ? "a" : "b/a", "a"));
	}
	enum mf_verdict verdict = qemu_classify_device(text, &why);
	assert(verdict == MF_OK ? !why : why && why[0]);
	return 0;
}
