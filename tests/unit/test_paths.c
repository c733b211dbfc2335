/* SPDX-License-Identifier: BSD-2-Clause */
/* The ways out of this host that the tcp transport tells of, next to what the kernel says. */
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "transport/addr.h"

/* Whether the kernel has an address, written like this, at an interface of this name. */
static unsigned count_at_kernel(const char *interface, const char *address)
{
	struct ifaddrs *list;
	unsigned found = 0;
	char text[INET6_ADDRSTRLEN];

	assert_int_equal(getifaddrs(&list), 0);
	for (const struct ifaddrs *at = list; at; at = at->ifa_next) {
		const struct sockaddr *sa = at->ifa_addr;
		const void *bytes;
		if (!sa || (sa->sa_family != AF_INET && sa->sa_family != AF_INET6))
			continue;
		bytes = sa->sa_family == AF_INET
				? (const void *)&((const struct sockaddr_in *)sa)->sin_addr
				: (const void *)&((const struct sockaddr_in6 *)sa)->sin6_addr;
		assert_non_null(inet_ntop(sa->sa_family, bytes, text, sizeof(text)));
		if (address)
			found += !strcmp(at->ifa_name, interface) && !strcmp(text, address);
		else
			found += !(at->ifa_flags & IFF_LOOPBACK) && strncmp(text, "127.", 4) &&
				 strncmp(text, "169.254.", 8) && strncmp(text, "fe80:", 5) &&
				 strcmp(text, "::1");
	}
	freeifaddrs(list);
	return found;
}

static void every_address_but_loopback_is_a_path(void **state)
{
	static struct tp_path paths[256];
	const struct tp_ops *tcp = tp_find("tcp");

	(void)state;
	if (!tcp) {
		(void)printf("SKIP: the transport tcp was not built\n");
		skip();
	}
	int n = tp_paths(tcp, paths, BASE_ARRAY_LEN(paths));
	assert_in_range(n, 0, BASE_ARRAY_LEN(paths));
	assert_int_equal(n, count_at_kernel(NULL, NULL));
	for (int i = 0; i < n; i++) {
		assert_int_equal(count_at_kernel(paths[i].interface, paths[i].address), 1);
		assert_string_equal(paths[i].device, paths[i].interface);
		assert_in_range(paths[i].prefix, 0, strchr(paths[i].address, ':') ? 128 : 32);
		assert_true(paths[i].numa_node >= -1);
		assert_non_null(strstr(paths[i].detail, "MTU "));
	}
}

static void no_more_are_filled_in_than_fit(void **state)
{
	struct tp_path paths[2];

	(void)state;
	for (const struct tp_ops *const *ops = tp_backends(); *ops; ops++) {
		int n = tp_paths(*ops, NULL, 0);
		assert_true(n >= 0);
		memset(paths, 0x5a, sizeof(paths));
		assert_int_equal(tp_paths(*ops, paths, 1), n);
		assert_int_equal(paths[1].device[0], 0x5a);
	}
}

static void a_number_is_read_from_a_file_of_the_kernel(void **state)
{
	char path[] = "/tmp/test_paths.XXXXXX";

	(void)state;
	base_autofd fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(tp_read_number(path, 7), 7);
	assert_int_equal(write(fd, "-1\n", 3), 3);
	assert_int_equal(tp_read_number(path, 7), -1);
	assert_int_equal(pwrite(fd, "25000\n", 6, 0), 6);
	assert_int_equal(tp_read_number(path, 7), 25000);
	assert_int_equal(pwrite(fd, "unknown\n", 8, 0), 8);
	assert_int_equal(tp_read_number(path, 7), 7);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(tp_read_number(path, 7), 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_address_but_loopback_is_a_path),
		cmocka_unit_test(no_more_are_filled_in_than_fit),
		cmocka_unit_test(a_number_is_read_from_a_file_of_the_kernel),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
