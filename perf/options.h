/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The options of memferry-perf: one table for getopt_long(3), the help texts and the manual page.  Letters and long
 * names are those of perftest where it has them.
 */
#ifndef PERF_OPTIONS_H
#define PERF_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#include "base/error.h"

enum perf_verb {
	PERF_SERVER,
	PERF_BW,
	PERF_LAT,
	PERF_FAULT,
	PERF_REGISTER,
	PERF_SCAN,
	PERF_TRACK,
	PERF_MIGRATE,
	PERF_ESTIMATE,
	PERF_MESH,
	PERF_VERB_COUNT,
};

struct perf_verb_info {
	const char *name;
	const char *
		operand; /* "HOST[:PORT]", in brackets when it may be left out; "" when it takes none */
	const char *help;
};
extern const struct perf_verb_info perf_verbs[PERF_VERB_COUNT];

enum perf_option_type {
	PERF_FLAG,    /* bool */
	PERF_TEXT,    /* const char *, not empty */
	PERF_CHOICE,  /* const char *, one of the words in arg, separated by '|' */
	PERF_NUMBER,  /* uint64_t in [min, max] */
	PERF_REAL,    /* double, not negative */
	PERF_SIZE,    /* uint64_t in [min, max], with K M G T */
	PERF_NUMBERS, /* struct perf_list, separated by commas, each in [min, max] */
	PERF_SIZES,   /* likewise */
	PERF_WORDS,   /* const char *, words of arg ('|'), separated by commas, each at most once */
	PERF_IGNORED, /* perftest has it, and it changes nothing here */
};

struct perf_option {
	char letter; /* 0: none */
	const char *name;
	const char *arg; /* what its value is called; NULL: takes none */
	enum perf_option_type type;
	const char *value; /* the default, as it would be typed; NULL: none */
	uint64_t min, max;
	unsigned verbs; /* 1u << enum perf_verb */
	size_t offset;
	const char *help;
};
extern const struct perf_option perf_option_table[];
extern const size_t perf_n_options;

#define PERF_LIST_MAX 64u
struct perf_list {
	uint32_t n;
	uint64_t at[PERF_LIST_MAX];
};

/* Texts point into argv or are literals. */
struct perf_options {
	enum perf_verb verb;
	bool help;        /* nothing else was checked */
	const char *host; /* the operand; NULL: none */
	uint64_t port;

	/* the path */
	const char *transport; /* auto, verbs, tcp, both */
	const char *sealing;   /* none, integrity, encrypt */
	const char *device;
	uint64_t gid; /* UINT64_MAX: any */
	uint64_t lanes, depth, batch, cq_mod;
	bool events;

	/* bw, lat */
	const char *op; /* write, read */
	uint64_t size, buffer;
	bool all_sizes, both_ways;
	uint64_t iterations; /* 0: the test's own */
	uint64_t duration_s; /* 0: by iterations */
	bool report_gbits, cpu_util, histogram, unsorted;
	double limit_bw, limit_rate;

	/* all */
	uint64_t repeat, seed;
	bool json;             /* --out_json */
	const char *json_file; /* --out_json_file */
	const char *plot;

	/* fault, register, scan, track */
	uint64_t memory;
	struct perf_list pages;   /* 4K, 2M */
	struct perf_list threads; /* faulting, registering, scanning */
	struct perf_list uffds;
	struct perf_list sizes; /* register */
	const char *trackers;   /* NULL: every one */
	uint64_t dirty_pages;

	/* migrate, estimate */
	struct perf_list guest_sizes, hot, dirty, zero;
	const char *patterns, *modes;
	uint64_t max_downtime_ms, max_bandwidth;
	const char *verify;
	const char *guest; /* estimate: "qemu:..." */
	uint64_t watch_s;
	const char *against;  /* a report of memferry send --json */
	const char *estimate; /* an estimate's document */

	/* mesh */
	const char *rendezvous;
	double slow; /* a pair below this share of the median is named */

	/* server */
	const char *listen;
	bool once;
	uint64_t max_memory;
};

/* PERF_VERB_COUNT and a sentence when there is none of that name. */
enum perf_verb perf_find_verb(const char *name, struct mf_error *err);
/* Parses what follows the verb and checks what can be checked without the world.  0 or -MF_EUSAGE. */
int perf_parse(enum perf_verb verb, int argc, char *const argv[], struct perf_options *ret,
	       struct mf_error *err);
/* All options of the verb as they came out, by their long names; NULL when memory ran out. */
json_t *perf_options_json(const struct perf_options *o);

void perf_print_usage(FILE *to);
void perf_print_help(FILE *to, enum perf_verb verb);
void perf_print_man_options(FILE *to);

#endif
