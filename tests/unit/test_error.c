/* SPDX-License-Identifier: BSD-2-Clause */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/error.h"

static void first_record_wins(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	assert_int_equal(base_error(&err, -ENOMEM, MF_SCOPE_LANE, "lane %d: no memory", 3),
			 -ENOMEM);
	assert_int_equal(err.code, -ENOMEM);
	assert_int_equal(err.scope, MF_SCOPE_LANE);
	assert_string_equal(err.msg, "lane 3: no memory");

	/* The later failure is returned, but it does not cover up the cause. */
	assert_int_equal(base_error(&err, -EIO, MF_SCOPE_HOST, "other"), -EIO);
	assert_int_equal(base_error_sys(&err, -EIO, MF_SCOPE_HOST, "other"), -EIO);
	assert_int_equal(err.code, -ENOMEM);
	assert_string_equal(err.msg, "lane 3: no memory");
}

static void no_record_is_allowed(void **state)
{
	(void)state;
	assert_int_equal(base_error(NULL, -EIO, MF_SCOPE_OP, "x"), -EIO);
	assert_int_equal(base_error_sys(NULL, -EIO, MF_SCOPE_OP, "x"), -EIO);
	assert_int_equal(base_error_prefix(NULL, "x: "), 0);
}

static void sys_says_what_the_code_means(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	base_error_sys(&err, -ECONNREFUSED, MF_SCOPE_SESSION, "connect to %s", "h:1");
	assert_string_equal(err.msg, "connect to h:1: Connection refused");
	err = (struct mf_error){ 0 };
	base_error_sys(&err, -MF_EPEER, MF_SCOPE_SESSION, "hello");
	assert_string_equal(err.msg, "hello: the peer failed");
}

static void prefix_goes_in_front(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	base_error(&err, -EIO, MF_SCOPE_LANE, "no route");
	assert_int_equal(base_error_prefix(&err, "lane %u: ", 2u), -EIO);
	assert_string_equal(err.msg, "lane 2: no route");
	assert_int_equal(err.scope, MF_SCOPE_LANE);
}

/* Text past the room there is gets cut; the record stays terminated and the front is kept. */
static void long_text_is_cut(void **state)
{
	(void)state;
	char text[2 * sizeof(((struct mf_error *)NULL)->msg)];
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	struct mf_error err = { 0 };
	base_error_sys(&err, -EIO, MF_SCOPE_OP, "%s", text);
	assert_int_equal(strlen(err.msg), sizeof(err.msg) - 1);
	base_error_prefix(&err, "front: ");
	assert_int_equal(strlen(err.msg), sizeof(err.msg) - 1);
	assert_memory_equal(err.msg, "front: xxx", 10);
	base_error_prefix(&err, "%s", text);
	assert_int_equal(strlen(err.msg), sizeof(err.msg) - 1);
}

static void codes_have_stable_names(void **state)
{
	(void)state;
	assert_string_equal(base_error_name(-MF_ECANCELED), "canceled");
	assert_string_equal(base_error_name(MF_ECANCELED), "canceled");
	assert_string_equal(base_error_name(-ECONNREFUSED), "ECONNREFUSED");
	assert_string_equal(base_error_name(-99999), "unknown");
	for (int code = MF_EVERSION; code <= MF_EUSAGE; code++) {
		assert_string_not_equal(base_error_name(-code), "unknown");
		assert_string_not_equal(base_strerror(-code), "unknown error");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(first_record_wins),
		cmocka_unit_test(no_record_is_allowed),
		cmocka_unit_test(sys_says_what_the_code_means),
		cmocka_unit_test(prefix_goes_in_front),
		cmocka_unit_test(long_text_is_cut),
		cmocka_unit_test(codes_have_stable_names),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
