/* SPDX-License-Identifier: BSD-2-Clause */
/* What a demo guest was asked to be. */
#ifndef HV_PROCESS_OPTIONS_H
#define HV_PROCESS_OPTIONS_H

#include <memferry/error.h>

#include "hv-adapters/process/pages.h"

#define GUEST_REGIONS 2u

struct options {
	uint64_t size;      /* of all regions, equal in size */
	uint64_t page_size; /* of the backing: 4 KiB or 2 MiB */
	uint64_t hot;       /* bytes rewritten; the rest is only checked */
	uint64_t dirty;     /* bytes a second, all writers together */
	uint64_t check;     /* likewise, walked and checked */
	uint64_t seed;
	uint32_t threads;
	uint32_t regions;
	uint32_t zero; /* percent of the pages that start as zeroes */
	bool random;
};

/* spec: what follows "demo:".  -MF_EUSAGE. */
int options_parse(const char *spec, struct options *ret, struct mf_error *err);
/* 0, or -MF_EUSAGE: what options_parse() promises of its result. */
int options_check(const struct options *opt, struct mf_error *err);
void options_plan(const struct options *opt, struct plan *ret);

#endif
