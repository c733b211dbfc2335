/* SPDX-License-Identifier: BSD-2-Clause */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/parse.h"

static const uint64_t untouched = UINT64_C(0xdeadbeef);

static void size_takes_what_people_write(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{ "0", 0 },
		{ "4096", 4096 },
		{ "64K", 64 << 10 },
		{ "64k", 64 << 10 },
		{ "512M", 512u << 20 },
		{ "1G", 1u << 30 },
		{ "1.5G", (1u << 30) + (1u << 29) },
		{ "0.5M", 1u << 19 },
		{ "2T", UINT64_C(2) << 40 },
		{ "10B", 10 },
		{ "1KB", 1024 },
		{ "1KiB", 1024 },
		{ "1.25MiB", (1u << 20) + (1u << 18) },
	};
	for (size_t i = 0; i < BASE_ARRAY_LEN(good); i++) {
		struct mf_error err = { 0 };
		uint64_t bytes = untouched;
		int ret = base_parse_size(good[i].text, "--size", &bytes, &err);
		if (ret || err.code || bytes != good[i].bytes)
			fail_msg("%s: %d, %llu bytes, '%s'", good[i].text, ret,
				 (unsigned long long)bytes, err.msg);
	}
}

static void size_refuses_the_rest_by_name(void **state)
{
	(void)state;
	static const char *const bad[] = {
		"",
		"K",
		"-1",
		"+1",
		" 1",
		"1 K",
		"1X",
		"1.",
		"1.5",
		"1.G",
		".5G",
		"0x10",
		"1KK",
		"1iB",
		"1,5G",
		"16777216T",
		"18446744073709551616",
		"99999999999G",
	};
	for (size_t i = 0; i < BASE_ARRAY_LEN(bad); i++) {
		struct mf_error err = { 0 };
		uint64_t bytes = untouched;
		int ret = base_parse_size(bad[i], "--size", &bytes, &err);
		if (ret != -MF_EUSAGE || err.code != ret || bytes != untouched ||
		    strncmp(err.msg, "--size: ", 8))
			fail_msg("'%s': %d, '%s'", bad[i], ret, err.msg);
	}
}

static void number_keeps_its_bounds(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	uint64_t n;
	assert_int_equal(base_parse_number("1", "--lanes", 1, 16, &n, &err), 0);
	assert_int_equal(n, 1);
	assert_int_equal(base_parse_number("16", "--lanes", 1, 16, &n, &err), 0);
	assert_int_equal(n, 16);
	assert_int_equal(base_parse_number("18446744073709551615", "--n", 0, UINT64_MAX, &n, &err),
			 0);
	assert_true(n == UINT64_MAX);

	static const char *const bad[] = { "0",  "17", "",   "-1",
					   "1x", "x",  " 2", "18446744073709551616" };
	for (size_t i = 0; i < BASE_ARRAY_LEN(bad); i++) {
		n = untouched;
		err = (struct mf_error){ 0 };
		if (base_parse_number(bad[i], "--lanes", 1, 16, &n, &err) != -MF_EUSAGE ||
		    n != untouched)
			fail_msg("'%s' passed", bad[i]);
		assert_string_not_equal(err.msg, "");
	}
}

static void addr_takes_every_form(void **state)
{
	(void)state;
	static const struct {
		const char *text, *host;
		uint16_t port;
	} good[] = {
		{ "host", "host", 7741 },        { "host:80", "host", 80 },
		{ "10.0.0.1:0", "10.0.0.1", 0 }, { "10.0.0.1", "10.0.0.1", 7741 },
		{ "::1", "::1", 7741 },          { "fe80::1%eth0", "fe80::1%eth0", 7741 },
		{ "[::1]", "::1", 7741 },        { "[::1]:65535", "::1", 65535 },
	};
	for (size_t i = 0; i < BASE_ARRAY_LEN(good); i++) {
		struct mf_error err = { 0 };
		char host[64];
		uint16_t port = 0;
		int ret = base_parse_addr(good[i].text, "--listen", 7741, host, sizeof(host), &port,
					  &err);
		if (ret)
			fail_msg("%s: %s", good[i].text, err.msg);
		assert_string_equal(host, good[i].host);
		assert_int_equal(port, good[i].port);
	}
}

static void addr_refuses_the_rest_by_name(void **state)
{
	(void)state;
	static const char *const bad[] = {
		"",           ":80",     "host:",    "host:x",
		"host:65536", "[::1",    "[]:80",    "[::1]x",
		"[::1]:",     "host:-1", "host:80 ", "a-name-that-is-longer-than-the-room-there-is",
	};
	for (size_t i = 0; i < BASE_ARRAY_LEN(bad); i++) {
		struct mf_error err = { 0 };
		char host[32] = "kept";
		uint16_t port = 1;
		int ret =
			base_parse_addr(bad[i], "--listen", 7741, host, sizeof(host), &port, &err);
		if (ret != -MF_EUSAGE || strncmp(err.msg, "--listen: ", 10))
			fail_msg("'%s': %d, '%s'", bad[i], ret, err.msg);
		assert_string_equal(host, "kept");
		assert_int_equal(port, 1);
	}
}

static void sizes_print_for_people(void **state)
{
	(void)state;
	char buf[32];
	assert_string_equal(base_format_size(0, buf, sizeof(buf)), "0 B");
	assert_string_equal(base_format_size(1023, buf, sizeof(buf)), "1023 B");
	assert_string_equal(base_format_size(1536, buf, sizeof(buf)), "1.50 KiB");
	assert_string_equal(base_format_size(UINT64_C(5) << 40, buf, sizeof(buf)), "5.00 TiB");
	assert_string_equal(base_format_size(UINT64_C(5) << 50, buf, sizeof(buf)), "5120.00 TiB");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(size_takes_what_people_write),
		cmocka_unit_test(size_refuses_the_rest_by_name),
		cmocka_unit_test(number_keeps_its_bounds),
		cmocka_unit_test(addr_takes_every_form),
		cmocka_unit_test(addr_refuses_the_rest_by_name),
		cmocka_unit_test(sizes_print_for_people),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
