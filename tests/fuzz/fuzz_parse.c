/* SPDX-License-Identifier: BSD-2-Clause */
/* Numbers, sizes, addresses and lists of hosts as people and launchers write them. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "fuzz.h"
#include "perf/launcher.h"

static void parse_size(const char *text)
{
	struct mf_error err = { 0 };
	uint64_t bytes = 7, again;
	char buf[32];
	int code = base_parse_size(text, "size", &bytes, &err);
	if (code) {
		fuzz_check_error(&err, code);
		assert(code == -MF_EUSAGE && bytes == 7);
		return;
	}
	(void)snprintf(buf, sizeof(buf), "%" PRIu64, bytes);
	assert(base_parse_size(buf, "size", &again, NULL) == 0 && again == bytes);
	(void)base_format_size(bytes, buf, sizeof(buf));
	assert(strlen(buf) < sizeof(buf) - 1);
}

static void parse_number(const char *text)
{
	struct mf_error err = { 0 };
	uint64_t n = 7;
	int code = base_parse_number(text, "number", 10, 5000, &n, &err);
	if (code) {
		fuzz_check_error(&err, code);
		assert(code == -MF_EUSAGE && n == 7);
		return;
	}
	assert(n >= 10 && n <= 5000);
}

static void parse_addr(const char *text)
{
	struct mf_error err = { 0 };
	char host[40] = "", again[40], buf[64];
	uint16_t port = 7, port_again;
	int code = base_parse_addr(text, "addr", 1234, host, sizeof(host), &port, &err);
	if (code) {
		fuzz_check_error(&err, code);
		assert(code == -MF_EUSAGE && !host[0] && port == 7);
		return;
	}
	assert(host[0]);
	/* Written out in full it says the same. */
	if (strchr(host, ']'))
		return;
	(void)snprintf(buf, sizeof(buf), "[%s]:%u", host, port);
	assert(base_parse_addr(buf, "addr", 0, again, sizeof(again), &port_again, NULL) == 0);
	assert(!strcmp(host, again) && port == port_again);
}

static void parse_nodelist(const char *text)
{
	char host[32];
	for (uint32_t n = 0; n < 4; n++) {
		struct mf_error err = { 0 };
		int code = perf_nodelist_nth(text, n, host, sizeof(host), &err);
		assert(code == 0 || code == -ERANGE || code == -MF_EUSAGE);
		if (code == -MF_EUSAGE)
			fuzz_check_error(&err, code);
		if (code)
			return;
		assert(memchr(host, '\0', sizeof(host)));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	base_autofree char *text = fuzz_text(data, size);

	parse_size(text);
	parse_number(text);
	parse_addr(text);
	parse_nodelist(text);
	return 0;
}
