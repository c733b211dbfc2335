/* SPDX-License-Identifier: BSD-2-Clause */
#include "options.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include <memferry/session.h>

#include "base/cleanup.h"
#include "base/parse.h"

#define V(verb) (1u << CLI_##verb)

#define MOVING  (V(RECEIVE) | V(SEND) | V(CHECK))
#define LEADING (V(SEND) | V(CHECK))
#define TALKING (V(STATUS) | V(CANCEL) | V(CUTOVER) | V(POSTCOPY) | V(RECOVER) | V(FORGET))

/* clang-format off */
const struct cli_verb_info cli_verbs[CLI_VERB_COUNT] = {
	[CLI_RECEIVE]  = { "receive", "", "--listen ADDR[:PORT] --guest GUEST",
			   "wait for a guest and take it over" },
	[CLI_SEND]     = { "send", "ADDR[:PORT]", "--guest GUEST",
			   "move a guest to the host where receive waits" },
	[CLI_CHECK]    = { "check", "ADDR[:PORT]", "--guest GUEST",
			   "say whether send would work, and move nothing" },
	[CLI_STATUS]   = { "status", "[SESSION]", "",
			   "show the moves that run on this host" },
	[CLI_CANCEL]   = { "cancel", "[SESSION]", "",
			   "end a move; the guest goes on at the source" },
	[CLI_CUTOVER]  = { "cutover", "[SESSION]", "",
			   "switch over after this round, whatever the downtime" },
	[CLI_POSTCOPY] = { "postcopy", "[SESSION]", "",
			   "switch to post-copy after this round" },
	[CLI_RECOVER]  = { "recover", "[SESSION]", "",
			   "post-copy: drop the connection and connect anew, at once" },
	[CLI_FORGET]   = { "forget", "SESSION", "",
			   "remove what a move that has ended on this host has left" },
	[CLI_DEVICES]  = { "devices", "", "",
			   "show what pages could move over, what auto picks, and why" },
	[CLI_HELP]     = { "help", "[VERB]", "",
			   "explain a verb" },
};

#define AT(field) offsetof(struct cli_options, field)

const struct cli_option cli_option_table[] = {
	{ "listen", "ADDR[:PORT]", CLI_ADDR, NULL, 0, 0, V(RECEIVE), AT(listen),
	  "where to wait for the source; port 7741 unless given, port 0 picks a free one and says "
	  "which" },
	{ "guest", "GUEST", CLI_TEXT, NULL, 0, 0, MOVING, AT(guest),
	  "the guest: qemu:QMP_SOCKET or demo:SIZE[,dirty=BYTES_PER_S][,KEY=VALUE]...; see GUESTS" },
	{ "mode", "hybrid|precopy|postcopy|warm|cold", CLI_CHOICE, "hybrid", 0, 0, LEADING, AT(mode),
	  "how pages move: before the switch, after it, or both; warm waits for memferry cutover, cold "
	  "pauses first" },
	{ "transport", "auto|verbs|tcp", CLI_CHOICE, "auto", 0, 0, MOVING, AT(transport),
	  "what pages move over, and why, is always said; verbs falls back on tcp when lost" },
	{ "tracker", "auto|pagemap|softdirty|writeprotect", CLI_CHOICE, "auto", 0, 0, LEADING, AT(tracker),
	  "how the guest's writes are found; auto takes the best that the kernel has, and says which" },
	{ "lanes", "N", CLI_NUMBER, "2", 1, 64, MOVING, AT(lanes),
	  "connections that carry pages between two devices, each with a thread of its own" },
	{ "max-downtime", "MS", CLI_NUMBER, "300", 1, 3600000, LEADING, AT(max_downtime_ms),
	  "switch over when the guest would stand still for at most this long" },
	{ "safe-postcopy", "PAGES", CLI_NUMBER, NULL, 1, UINT64_C(1) << 40, V(SEND), AT(safe_postcopy),
	  "switch to post-copy only when at most so many pages of 4 KiB are missing; see RECOVERY" },
	{ "max-bandwidth", "BYTES_PER_S", CLI_SIZE, "0", 0, 0, MOVING, AT(max_bandwidth),
	  "bytes a second over all lanes together: send's for rounds, receive's for the background of post-copy; 0 sets no limit" },
	{ "verify", "none|full", CLI_CHOICE, "none", 0, 0, LEADING, AT(verify),
	  "compare every page on both hosts at the end; lengthens the downtime" },
	{ "tls-dir", "DIR", CLI_TEXT, NULL, 0, 0, MOVING, AT(tls_dir),
	  "secure the control channel by the certificates in this directory; see FILES" },
	{ "tls-peer", "NAME[,NAME]...", CLI_TEXT, NULL, 0, 0, MOVING, AT(tls_peers),
	  "whom the other host's certificate may be for; unless given, send and check expect the host that they connect to, "
	  "and receive takes any certificate of the CA" },
	{ "psk", "FILE", CLI_TEXT, NULL, 0, 0, MOVING, AT(psk),
	  "secure the control channel by the pre-shared key in this file, the same on both hosts; see FILES" },
	{ "insecure", NULL, CLI_FLAG, NULL, 0, 0, MOVING, AT(insecure),
	  "permit a control channel that is neither encrypted nor authenticated" },
	{ "encrypt", NULL, CLI_FLAG, NULL, 0, 0, MOVING, AT(encrypt),
	  "send: encrypt pages on their way, by the threads of both hosts; receive: take no others" },
	{ "integrity", NULL, CLI_FLAG, NULL, 0, 0, MOVING, AT(integrity),
	  "the same, but only so that nobody can change pages on their way" },
	{ "resume", "SESSION", CLI_TEXT, NULL, 0, 0, V(RECEIVE) | V(SEND), AT(resume),
	  "go on with this move, whose process on this host has died after the hand-off; see RECOVERY" },
	{ "recover-timeout", "MS", CLI_NUMBER, "300000", 1, 86400000, V(RECEIVE) | V(SEND), AT(recover_timeout_ms),
	  "how long the other host is looked for when it is lost after the hand-off" },
	{ "connect-timeout", "MS", CLI_NUMBER, "10000", 1, 3600000, MOVING, AT(connect_timeout_ms),
	  "how long setting up one connection may take" },
	{ "peer-timeout", "MS", CLI_NUMBER, "10000", 1, 3600000, MOVING, AT(peer_timeout_ms),
	  "silence after which the other host counts as lost" },
	{ "lane-timeout", "MS", CLI_NUMBER, "3000", 100, 3600000, MOVING, AT(lane_timeout_ms),
	  "a connection over RDMA that nobody acknowledges for so long is lost" },
	{ "on-demand", NULL, CLI_FLAG, NULL, 0, 0, MOVING, AT(on_demand),
	  "let the RDMA device fault memory in instead of pinning it, where it can (ODP)" },
	{ "sandbox", "on|off", CLI_CHOICE, "on", 0, 0, MOVING, AT(sandbox),
	  "run without privilege and with few system calls once the guest is open; off is for finding faults" },
	{ "force", NULL, CLI_FLAG, NULL, 0, 0, V(FORGET), AT(force),
	  "forget also what the other host or the guest may need yet; see RECOVERY" },
	{ "run-dir", "DIR", CLI_TEXT, NULL, 0, 0, MOVING | TALKING, AT(run_dir),
	  "where a running move keeps its socket and records; see FILES" },
	{ "json", NULL, CLI_FLAG, NULL, 0, 0, MOVING | TALKING | V(DEVICES), AT(json),
	  "print one JSON object a line on standard output" },
};
/* clang-format on */
const size_t cli_n_options = BASE_ARRAY_LEN(cli_option_table);

#define WORD_MAX 40

/* Changes, insertions, deletions and swaps of neighbours between two words. */
static unsigned edit_distance(const char *a, const char *b)
{
	size_t n = strlen(a), m = strlen(b);
	if (n > WORD_MAX || m > WORD_MAX)
		return WORD_MAX;
	unsigned rows[3][WORD_MAX + 1]; /* before last, last, this */
	for (size_t j = 0; j <= m; j++)
		rows[2][j] = (unsigned)j;
	for (size_t i = 1; i <= n; i++) {
		memcpy(rows[0], rows[1], sizeof(rows[0]));
		memcpy(rows[1], rows[2], sizeof(rows[1]));
		rows[2][0] = (unsigned)i;
		for (size_t j = 1; j <= m; j++) {
			unsigned best = rows[1][j - 1] + (a[i - 1] != b[j - 1]);
			if (rows[1][j] + 1 < best)
				best = rows[1][j] + 1;
			if (rows[2][j - 1] + 1 < best)
				best = rows[2][j - 1] + 1;
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
			    rows[0][j - 2] + 1 < best)
				best = rows[0][j - 2] + 1;
			rows[2][j] = best;
		}
	}
	return rows[2][m];
}

const char *cli_nearest(const char *word, const char *const candidates[], size_t n)
{
	const char *best = NULL;
	size_t len = strlen(word);
	/* A third of the word may be wrong; more, and a guess would mislead. */
	unsigned limit = len < 3 ? 1 : (unsigned)(len / 3 > 3 ? 3 : len / 3);

	for (size_t i = 0; i < n; i++) {
		unsigned distance = edit_distance(word, candidates[i]);
		if (distance <= limit) {
			best = candidates[i];
			limit = distance ? distance - 1 : 0;
			if (!distance)
				return best;
		}
	}
	if (best || len < 3)
		return best;
	for (size_t i = 0; i < n; i++) { /* "bandwidth" for "max-bandwidth", "trans" */
		if (strstr(candidates[i], word))
			return candidates[i];
	}
	return NULL;
}

enum cli_verb cli_find_verb(const char *name, struct mf_error *err)
{
	const char *names[CLI_VERB_COUNT];

	for (unsigned v = 0; v < CLI_VERB_COUNT; v++) {
		names[v] = cli_verbs[v].name;
		if (!strcmp(name, names[v]))
			return (enum cli_verb)v;
	}
	if (name[0] == '-') {
		(void)base_usage_error(
			err, "%.40s: options go after the verb; memferry help lists the verbs",
			name);
		return CLI_VERB_COUNT;
	}
	const char *near = cli_nearest(name, names, CLI_VERB_COUNT);
	(void)(near ? base_usage_error(err, "'%.40s' is not a verb; did you mean %s?", name, near)
		    : base_usage_error(err, "'%.40s' is not a verb; memferry help lists them",
				       name));
	return CLI_VERB_COUNT;
}

static const struct cli_option *find_option(const char *name, size_t len)
{
	for (size_t i = 0; i < cli_n_options; i++) {
		const char *have = cli_option_table[i].name;
		if (strlen(have) == len && !strncmp(have, name, len))
			return &cli_option_table[i];
	}
	return NULL;
}

static int unknown_option(enum cli_verb verb, const char *name, size_t len, struct mf_error *err)
{
	const char *names[BASE_ARRAY_LEN(cli_option_table)];
	char word[WORD_MAX + 1];
	size_t n = 0;

	(void)snprintf(word, sizeof(word), "%.*s", (int)(len > WORD_MAX ? WORD_MAX : len), name);
	for (size_t i = 0; i < cli_n_options; i++) {
		if (cli_option_table[i].verbs & 1u << verb)
			names[n++] = cli_option_table[i].name;
	}
	const char *near = cli_nearest(word, names, n);
	if (near)
		return base_usage_error(err, "--%s: unknown option; did you mean --%s?", word,
					near);
	return base_usage_error(err, "--%s: unknown option; memferry %s --help lists them", word,
				cli_verbs[verb].name);
}

/* "send and check" */
static const char *list_verbs(unsigned verbs, char *buf, size_t cap)
{
	size_t at = 0;

	buf[0] = '\0';
	for (unsigned v = 0; v < CLI_VERB_COUNT && at < cap; v++) {
		if (!(verbs & 1u << v))
			continue;
		verbs &= ~(1u << v);
		at += (size_t)snprintf(buf + at, cap - at, "%s%s",
				       !at     ? ""
				       : verbs ? ", "
					       : " and ",
				       cli_verbs[v].name);
	}
	return buf;
}

static bool is_choice(const char *words, const char *text)
{
	size_t len = strlen(text);

	for (const char *word = words; word; word = strchr(word, '|')) {
		word += *word == '|';
		if (len && !strncmp(word, text, len) && (!word[len] || word[len] == '|'))
			return true;
	}
	return false;
}

static int check_address(const char *what, const char *text, struct mf_error *err)
{
	char host[MF_ADDRESS_MAX];
	uint16_t port;

	return base_parse_addr(text, what, MF_DEFAULT_PORT, host, sizeof(host), &port, err);
}

static int set_option(const struct cli_option *option, const char *text, struct cli_options *ret,
		      struct mf_error *err)
{
	void *field = (char *)ret + option->offset;
	char what[WORD_MAX + 2];

	(void)snprintf(what, sizeof(what), "--%s", option->name);
	switch (option->type) {
	case CLI_FLAG:
		*(bool *)field = true;
		return 0;
	case CLI_NUMBER:
		return base_parse_number(text, what, option->min, option->max, field, err);
	case CLI_SIZE:
		return base_parse_size(text, what, field, err);
	case CLI_CHOICE:
		if (!is_choice(option->arg, text))
			return base_usage_error(err, "%s: '%.40s' is none of %s", what, text,
						option->arg);
		break;
	case CLI_ADDR:
		if (check_address(what, text, err))
			return -MF_EUSAGE;
		break;
	case CLI_TEXT:
		if (!text[0])
			return base_usage_error(err, "%s: needs a value: %s", what, option->arg);
		break;
	}
	*(const char **)field = text;
	return 0;
}

static void set_defaults(enum cli_verb verb, int argc, char *const argv[], struct cli_options *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->verb = verb;
	for (size_t i = 0; i < cli_n_options; i++) {
		const struct cli_option *option = &cli_option_table[i];
		if (option->value && set_option(option, option->value, ret, NULL))
			assert(!"an option's default is not a value it takes");
	}
	/* Looked for ahead of all else: it says how even the first error is reported. */
	for (int i = 0; i < argc && strcmp(argv[i], "--"); i++)
		ret->json |= !strcmp(argv[i], "--json");
}

/* Takes "--name VALUE" or "--name=VALUE" at argv[0]; returns how many words it took. */
static int take_option(enum cli_verb verb, int argc, char *const argv[], struct cli_options *ret,
		       struct mf_error *err)
{
	const char *name = argv[0] + 2;
	size_t len = strcspn(name, "=");
	const char *text = name[len] ? name + len + 1 : NULL;
	const struct cli_option *option = find_option(name, len);
	char verbs[120];

	if (!option)
		return unknown_option(verb, name, len, err);
	if (!(option->verbs & 1u << verb))
		return base_usage_error(err, "--%s: %s does not take it; it belongs to %s",
					option->name, cli_verbs[verb].name,
					list_verbs(option->verbs, verbs, sizeof(verbs)));
	if (option->type == CLI_FLAG) {
		if (text)
			return base_usage_error(err, "--%s: takes no value", option->name);
		return set_option(option, NULL, ret, err) ? -MF_EUSAGE : 1;
	}
	if (text)
		return set_option(option, text, ret, err) ? -MF_EUSAGE : 1;
	if (argc < 2 || !strncmp(argv[1], "--", 2))
		return base_usage_error(err, "--%s: needs a value: %s", option->name, option->arg);
	return set_option(option, argv[1], ret, err) ? -MF_EUSAGE : 2;
}

static int take_operand(const char *text, struct cli_options *ret, struct mf_error *err)
{
	const struct cli_verb_info *info = &cli_verbs[ret->verb];

	if (!info->operand[0])
		return base_usage_error(
			err, "'%.60s': %s takes no argument but options%s", text, info->name,
			ret->verb == CLI_RECEIVE ? "; an address goes after --listen" : "");
	if (ret->operand)
		return base_usage_error(err, "'%.60s': %s takes only one %s, and '%.60s' was it",
					text, info->name, info->operand, ret->operand);
	ret->operand = text;
	return 0;
}

/* Plain must be asked for by name. */
static int check_security(const struct cli_options *o, struct mf_error *err)
{
	const char *first = o->tls_dir ? "tls-dir" : "psk";

	if (!!o->tls_dir + !!o->psk + o->insecure > 1)
		return base_usage_error(
			err, "--%s: goes without --%s; the control channel is secured in one way",
			first, o->insecure ? "insecure" : "psk");
	if (o->tls_peers && !o->tls_dir)
		return base_usage_error(
			err, "--tls-peer: names stand in certificates, it goes with --tls-dir");
	if ((o->encrypt || o->integrity) && o->insecure)
		return base_usage_error(
			err,
			"--%s: its keys come from a secured control channel; use --tls-dir or "
			"--psk instead of --insecure",
			o->encrypt ? "encrypt" : "integrity");
	if (!o->tls_dir && !o->psk && !o->insecure)
		return base_usage_error(
			err, "--tls-dir: the control channel must be secured by --tls-dir DIR or "
			     "--psk FILE, on both hosts alike; --insecure does without");
	return 0;
}

static int check_whole(const struct cli_options *o, struct mf_error *err)
{
	bool moves = MOVING & 1u << o->verb;

	if (o->verb == CLI_FORGET && !(o->operand && o->operand[0]))
		return base_usage_error(err, "SESSION: forget needs a move's name; memferry status "
					     "lists what was left");
	if (!moves)
		return 0;
	if (o->verb == CLI_RECEIVE && !o->listen)
		return base_usage_error(err, "--listen: receive needs an address to wait at, as in "
					     "--listen 192.0.2.7");
	if (o->verb != CLI_RECEIVE && !o->operand)
		return base_usage_error(err,
					"ADDR: %s needs the address where receive waits, as in "
					"memferry %s 192.0.2.7",
					cli_verbs[o->verb].name, cli_verbs[o->verb].name);
	if (o->operand && check_address("ADDR", o->operand, err))
		return -MF_EUSAGE;
	if (o->safe_postcopy && (!strcmp(o->mode, "postcopy") || !strcmp(o->mode, "cold")))
		return base_usage_error(
			err,
			"--safe-postcopy: mode %s has no rounds after which few pages "
			"are missing; use hybrid",
			o->mode);
	if (!o->guest)
		return base_usage_error(err,
					"--guest: %s needs a guest, as in --guest "
					"qemu:/run/vm1.qmp",
					cli_verbs[o->verb].name);
	return check_security(o, err);
}

int cli_parse(enum cli_verb verb, int argc, char *const argv[], struct cli_options *ret,
	      struct mf_error *err)
{
	assert(verb < CLI_VERB_COUNT);
	set_defaults(verb, argc, argv, ret);
	for (int i = 0; i < argc && strcmp(argv[i], "--"); i++) {
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			ret->help = true;
			return 0;
		}
	}
	bool only_operands = false;
	for (int i = 0, took; i < argc; i += took) {
		took = 1;
		if (!only_operands && !strcmp(argv[i], "--"))
			only_operands = true;
		else if (!only_operands && !strncmp(argv[i], "--", 2))
			took = take_option(verb, argc - i, argv + i, ret, err);
		else if (!only_operands && argv[i][0] == '-' && argv[i][1])
			took = base_usage_error(
				err, "%.40s: unknown option; options begin with two dashes",
				argv[i]);
		else if (take_operand(argv[i], ret, err))
			took = -MF_EUSAGE;
		if (took < 0)
			return took;
	}
	return check_whole(ret, err);
}

const char *cli_option_range(const struct cli_option *option, char *buf, size_t cap)
{
	size_t at = 0;

	buf[0] = '\0';
	if (option->value)
		at = (size_t)snprintf(buf, cap, "default %s", option->value);
	if (option->type == CLI_NUMBER && at < cap)
		(void)snprintf(buf + at, cap - at, "%s%" PRIu64 " to %" PRIu64, at ? ", " : "",
			       option->min, option->max);
	return buf;
}
