/* SPDX-License-Identifier: BSD-2-Clause */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/zero.h"

#define PAGE 4096u

/* Pages with one that may not be touched on either side. */
static char *fenced_pages(size_t n)
{
	char *at = mmap(NULL, (n + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(at, MAP_FAILED);
	assert_int_equal(mprotect(at + PAGE, n * PAGE, PROT_READ | PROT_WRITE), 0);
	return at + PAGE;
}

static void free_pages(char *pages, size_t n)
{
	munmap(pages - PAGE, (n + 2) * PAGE);
}

static void a_byte_is_found_wherever_it_is(void **state)
{
	char *page = fenced_pages(1);

	(void)state;
	assert_true(base_is_zero(page, PAGE));
	for (size_t i = 0; i < PAGE; i++) {
		for (unsigned bit = 0; bit < 8; bit++) {
			page[i] = (char)(1u << bit);
			assert_false(base_is_zero(page, PAGE));
		}
		page[i] = 0;
	}
	assert_true(base_is_zero(page, PAGE));
	free_pages(page, 1);
}

/* All lengths up to some blocks, at every alignment: a byte inside is found, one next to it is none of ours. */
static void any_address_and_length(void **state)
{
	enum { MOST = 600 };
	char *page = fenced_pages(1);

	(void)state;
	for (size_t len = 0; len <= MOST; len++) {
		size_t from = 8 + len % 17;
		memset(page, 1, PAGE);
		memset(page + from, 0, len);
		assert_true(base_is_zero(page + from, len));
		for (size_t i = 0; i < len; i++) {
			page[from + i] = 1;
			assert_false(base_is_zero(page + from, len));
			page[from + i] = 0;
		}
	}
	free_pages(page, 1);
}

/* Up to the very end of what may be read, and from its very beginning. */
static void nothing_outside_is_read(void **state)
{
	char *page = fenced_pages(1);

	(void)state;
	for (size_t len = 0; len <= PAGE; len++) {
		assert_true(base_is_zero(page, len));
		assert_true(base_is_zero(page + PAGE - len, len));
	}
	free_pages(page, 1);
}

static void a_huge_page(void **state)
{
	enum { HUGE = 2 << 20 };
	char *page = fenced_pages(HUGE / PAGE);

	(void)state;
	assert_true(base_is_zero(page, HUGE));
	for (size_t i = 0; i < HUGE; i += 4093) {
		page[i] = 1;
		assert_false(base_is_zero(page, HUGE));
		page[i] = 0;
	}
	free_pages(page, HUGE / PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_byte_is_found_wherever_it_is),
		cmocka_unit_test(any_address_and_length),
		cmocka_unit_test(nothing_outside_is_read),
		cmocka_unit_test(a_huge_page),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
