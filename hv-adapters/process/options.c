/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/process/options.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/parse.h"

enum {
	SPEC_MAX = 256,
};

/* Where a rate stops making sense, and credit arithmetic (guest.c) still fits 64 bits. */
#define RATE_MAX       (1ull << 40)
#define SIZE_MAX_GUEST (1ull << 44)

static int usage(struct mf_error *err, const char *what, const char *why)
{
	return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST, "demo guest: %s %s", what, why);
}

static int parse_number(const char *text, const char *what, uint64_t min, uint64_t max,
			uint32_t *ret, struct mf_error *err)
{
	uint64_t value;
	int rc = base_parse_number(text, what, min, max, &value, err);
	if (!rc)
		*ret = (uint32_t)value;
	return rc;
}

static int parse_pattern(const char *text, bool *ret_random, struct mf_error *err)
{
	if (strcmp(text, "random") && strcmp(text, "sequential"))
		return usage(err, "pattern", "is random or sequential");
	*ret_random = !strcmp(text, "random");
	return 0;
}

static int parse_option(const char *key, const char *value, struct options *opt,
			struct mf_error *err)
{
	if (!strcmp(key, "dirty"))
		return base_parse_size(value, "dirty", &opt->dirty, err);
	if (!strcmp(key, "check"))
		return base_parse_size(value, "check", &opt->check, err);
	if (!strcmp(key, "hot"))
		return base_parse_size(value, "hot", &opt->hot, err);
	if (!strcmp(key, "page"))
		return base_parse_size(value, "page", &opt->page_size, err);
	if (!strcmp(key, "pattern"))
		return parse_pattern(value, &opt->random, err);
	if (!strcmp(key, "threads"))
		return parse_number(value, "threads", 1, GUEST_THREADS, &opt->threads, err);
	if (!strcmp(key, "regions"))
		return parse_number(value, "regions", 1, GUEST_REGIONS, &opt->regions, err);
	if (!strcmp(key, "zero"))
		return parse_number(value, "zero", 0, 100, &opt->zero, err);
	if (!strcmp(key, "seed"))
		return base_parse_number(value, "seed", 0, UINT64_MAX, &opt->seed, err);
	return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
			  "demo guest: '%s' is no option; there are dirty, pattern, threads, hot, "
			  "zero, seed, page, regions and check",
			  key);
}

int options_check(const struct options *opt, struct mf_error *err)
{
	if (opt->page_size != 4096 && opt->page_size != 2u << 20)
		return usage(err, "page", "is 4K or 2M");
	if (!opt->regions || opt->regions > GUEST_REGIONS)
		return usage(err, "regions", "is 1 or 2");
	if (!opt->size || opt->size > SIZE_MAX_GUEST || opt->size % (opt->page_size * opt->regions))
		return usage(err, "size", "must be a multiple of the page size, in each region");
	if (!opt->threads || opt->threads > GUEST_THREADS)
		return usage(err, "threads", "is 1 to 64");
	if (opt->hot % STAMP_PAGE || opt->hot > opt->size || opt->hot / STAMP_PAGE < opt->threads)
		return usage(err, "hot",
			     "must be whole pages of 4 KiB, at least one a thread, and no more "
			     "than the size");
	if (opt->dirty > RATE_MAX || opt->check > RATE_MAX)
		return usage(err, "rate", "is too large; 1T is the most");
	if (opt->zero > 100)
		return usage(err, "zero", "is a percentage");
	return 0;
}

int options_parse(const char *spec, struct options *ret, struct mf_error *err)
{
	char text[SPEC_MAX], *rest = text;
	struct options opt = {
		.page_size = 4096,
		.dirty = 8u << 20,
		.check = 64u << 20,
		.seed = 1,
		.threads = 2,
		.regions = 1,
		.random = true,
	};

	if ((size_t)snprintf(text, sizeof(text), "%s", spec) >= sizeof(text))
		return usage(err, "description", "is too long");
	int rc = base_parse_size(strsep(&rest, ","), "demo guest's size", &opt.size, err);
	if (rc)
		return rc;
	opt.hot = opt.size;
	for (char *key; (key = strsep(&rest, ","));) {
		char *value = key;
		(void)strsep(&value, "=");
		if (!value)
			return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
					  "demo guest: option '%s' has no value", key);
		rc = parse_option(key, value, &opt, err);
		if (rc)
			return rc;
	}
	rc = options_check(&opt, err);
	if (!rc)
		*ret = opt;
	return rc;
}

void options_plan(const struct options *opt, struct plan *ret)
{
	*ret = (struct plan){
		.pages = opt->size / STAMP_PAGE,
		.hot = opt->hot / STAMP_PAGE,
		.seed = opt->seed,
		.writers = opt->threads,
		.zero = opt->zero,
		.random = opt->random,
	};
}
