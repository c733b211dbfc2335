/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The verbs and options of the memferry command: two tables that parsing, the help texts and
 * the man page's option list are all made from.  Parsing prints nothing and touches nothing but
 * its result, so that a test can see every sentence.
 */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

enum cli_verb {
	CLI_RECEIVE,
	CLI_SEND,
	CLI_CHECK,
	CLI_STATUS,
	CLI_CANCEL,
	CLI_CUTOVER,
	CLI_POSTCOPY,
	CLI_RECOVER,
	CLI_FORGET,
	CLI_DEVICES,
	CLI_HELP,
	CLI_VERB_COUNT,
};

struct cli_verb_info {
	const char *name;
	const char *operand;  /* "" when it takes none; in brackets when it may be left out */
	const char *required; /* options that must be given, for the synopsis */
	const char *help;
};

enum cli_option_type {
	CLI_FLAG,   /* bool */
	CLI_TEXT,   /* const char *, not empty */
	CLI_ADDR,   /* const char *, HOST or HOST:PORT */
	CLI_CHOICE, /* const char *, one of the words in arg, separated by '|' */
	CLI_NUMBER, /* uint64_t in [min, max] */
	CLI_SIZE,   /* uint64_t, with K M G T */
};

struct cli_option {
	const char *name; /* without the dashes */
	const char *arg;  /* what its value is called; NULL for a flag */
	enum cli_option_type type;
	const char *value; /* the default, as it would be typed; NULL: none */
	uint64_t min, max; /* CLI_NUMBER only */
	unsigned verbs;    /* 1u << enum cli_verb */
	size_t offset;     /* of its value in struct cli_options */
	const char *help;
};

/* What was asked for.  Texts point into argv or are literals. */
struct cli_options {
	enum cli_verb verb;
	bool help;           /* --help: nothing else was checked */
	const char *operand; /* address, session or verb; NULL: none */
	const char *listen;
	const char *guest;
	const char *mode;
	const char *transport;
	const char *tracker;
	const char *verify;
	const char *tls_dir;
	const char *tls_peers;
	const char *psk;
	const char *resume;
	const char *run_dir;
	uint64_t lanes;
	uint64_t max_downtime_ms;
	uint64_t max_bandwidth;
	uint64_t safe_postcopy;
	uint64_t connect_timeout_ms;
	uint64_t peer_timeout_ms;
	uint64_t lane_timeout_ms;
	uint64_t recover_timeout_ms;
	bool insecure;
	const char *sandbox;
	bool encrypt, integrity;
	bool on_demand;
	bool force;
	bool json;
};

extern const struct cli_verb_info cli_verbs[CLI_VERB_COUNT];
extern const struct cli_option cli_option_table[];
extern const size_t cli_n_options;

/* CLI_VERB_COUNT and a sentence when there is none of that name. */
enum cli_verb cli_find_verb(const char *name, struct mf_error *err);

/*
 * Parses what follows the verb and checks all that can be checked without the world.
 * 0 or -MF_EUSAGE.  ret->verb, ret->json and all defaults are set in any case, so that the
 * error can be reported in the form that was asked for.
 */
int cli_parse(enum cli_verb verb, int argc, char *const argv[], struct cli_options *ret,
	      struct mf_error *err);

/* The candidate that a mistyped word most likely meant; NULL when none is near. */
const char *cli_nearest(const char *word, const char *const candidates[], size_t n);

/* "default 2, 1 to 64", "" when there is nothing to say; returns buf. */
const char *cli_option_range(const struct cli_option *option, char *buf, size_t cap);

/* help.c */
void cli_print_usage(FILE *to);
void cli_print_help(FILE *to, enum cli_verb verb);
/* The man page's option list, in man(7) macros; a test holds the page to it. */
void cli_print_man_options(FILE *to);
/* Words from column `at` on, wrapped and indented to the column where help texts stand. */
void cli_print_wrapped(FILE *to, size_t at, const char *text);
/* Text with its dashes escaped for man(7). */
void cli_print_roff(FILE *to, const char *text);

#endif
