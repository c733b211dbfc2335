/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/options.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "cli/options.h"
#include "perf/doc.h"

#define V(verb) (1u << PERF_##verb)

#define STREAM  (V(BW) | V(LAT))
#define LANES   (STREAM | V(FAULT) | V(MIGRATE) | V(ESTIMATE) | V(MESH))
#define LOCAL   (V(REGISTER) | V(SCAN) | V(TRACK))
#define MOVES   (V(MIGRATE) | V(ESTIMATE))
#define MEASURE (LANES | LOCAL)

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

/* clang-format off */
const struct perf_verb_info perf_verbs[PERF_VERB_COUNT] = {
	[PERF_SERVER]   = { "server", "", "wait for clients and be their other host" },
	[PERF_BW]       = { "bw", "HOST[:PORT]", "bandwidth of one-sided writes or reads" },
	[PERF_LAT]      = { "lat", "HOST[:PORT]", "latency of one-sided writes or reads" },
	[PERF_FAULT]    = { "fault", "HOST[:PORT]", "page faults served from the other host's memory" },
	[PERF_REGISTER] = { "register", "[HOST[:PORT]]", "what registering memory costs" },
	[PERF_SCAN]     = { "scan", "[HOST[:PORT]]", "how fast zero pages are found" },
	[PERF_TRACK]    = { "track", "[HOST[:PORT]]", "what each way of finding a guest's writes costs" },
	[PERF_MIGRATE]  = { "migrate", "HOST[:PORT]", "moves of a built-in guest, or a matrix of them" },
	[PERF_ESTIMATE] = { "estimate", "[HOST[:PORT]]", "what a move of a running guest would take, without moving it" },
	[PERF_MESH]     = { "mesh", "", "all pairs of the hosts that srun or mpirun started it on" },
};

#define AT(field) offsetof(struct perf_options, field)

const struct perf_option perf_option_table[] = {
	{ 'p', "port", "PORT", PERF_NUMBER, "7742", 0, 65535, ~V(MESH), AT(port),
	  "of the server; 0 lets the server pick a free one, which it prints" },
	{ 0, "transport", "auto|verbs|tcp|both", PERF_CHOICE, "auto", 0, 0, LANES | V(REGISTER), AT(transport),
	  "what to measure; auto takes verbs where both hosts have it, and says why; both puts them side by side" },
	{ 0, "sealing", "none|integrity|encrypt", PERF_CHOICE, "none", 0, 0, STREAM | V(FAULT), AT(sealing),
	  "as send's --integrity and --encrypt do it, by the threads of both hosts, to see what it costs; the key is no secret" },
	{ 'd', "ib-dev", "DEVICE", PERF_TEXT, NULL, 0, 0, LANES | V(REGISTER), AT(device),
	  "this host's RDMA device or network interface, as memferry devices names it" },
	{ 'x', "gid-index", "N", PERF_NUMBER, NULL, 0, 1023, STREAM | V(FAULT), AT(gid),
	  "this host's address with that GID index" },
	{ 'q', "qp", "N", PERF_NUMBER, "1", 1, 64, LANES & ~V(FAULT), AT(lanes),
	  "lanes: connections, each with a queue pair and a thread" },
	{ 't', "tx-depth", "N", PERF_NUMBER, "128", 1, 4096, LANES, AT(depth),
	  "operations in flight a lane" },
	{ 'l', "post_list", "N", PERF_NUMBER, "16", 1, 1024, STREAM, AT(batch),
	  "operations handed to the transport in one call" },
	{ 'Q', "cq-mod", "N", PERF_NUMBER, "0", 0, 1024, V(BW), AT(cq_mod),
	  "ask for a completion once in N operations at most; 0 leaves it to the transport" },
	{ 'e', "events", NULL, PERF_FLAG, NULL, 0, 0, STREAM, AT(events),
	  "sleep until completions come, instead of polling for them" },

	{ 0, "op", "write|read", PERF_CHOICE, "write", 0, 0, STREAM, AT(op), "what to measure" },
	{ 's', "size", "BYTES", PERF_SIZE, NULL, 1, GIB, STREAM, AT(size),
	  "of one operation; without it 65536 for bw and 2 for lat, as perftest has it" },
	{ 'a', "all", NULL, PERF_FLAG, NULL, 0, 0, STREAM, AT(all_sizes),
	  "all sizes from 2 to 2^23 bytes" },
	{ 0, "buffer", "BYTES", PERF_SIZE, "0", 0, GIB, V(BW), AT(buffer),
	  "memory of each lane that operations walk through, on both hosts; 0 is one operation's, as in "
	  "perftest, which stays in the caches" },
	{ 'b', "bidirectional", NULL, PERF_FLAG, NULL, 0, 0, V(BW), AT(both_ways),
	  "both hosts at the same time; figures are of both together" },
	{ 'n', "iters", "N", PERF_NUMBER, "0", 0, 1000000000, STREAM | V(FAULT), AT(iterations),
	  "operations; 0 is 5000 for bw, 1000 for lat, and each page once for fault" },
	{ 'D', "duration", "SECONDS", PERF_NUMBER, "0", 0, 86400, STREAM, AT(duration_s),
	  "by time, not by number" },
	{ 0, "report_gbits", NULL, PERF_FLAG, NULL, 0, 0, STREAM, AT(report_gbits),
	  "Gb/s (10^9 bits) instead of MiB/s (2^20 bytes) in the first table and for -w" },
	{ 0, "cpu_util", NULL, PERF_FLAG, NULL, 0, 0, STREAM, AT(cpu_util),
	  "a column with the share of this host's CPUs that was busy" },
	{ 'H', "report-histogram", NULL, PERF_FLAG, NULL, 0, 0, V(LAT), AT(histogram),
	  "every result, sorted" },
	{ 'U', "report-unsorted", NULL, PERF_FLAG, NULL, 0, 0, V(LAT), AT(unsorted),
	  "every result, in the order of time" },
	{ 'w', "limit_bw", "BW", PERF_REAL, "0", 0, 0, V(BW), AT(limit_bw),
	  "exit status 1 if the average is below, in MiB/s, or Gb/s with --report_gbits" },
	{ 'y', "limit_msgrate", "MPPS", PERF_REAL, "0", 0, 0, V(BW), AT(limit_rate),
	  "exit status 1 if there are less million operations a second" },
	{ 'R', "rdma_cm", NULL, PERF_IGNORED, NULL, 0, 0, STREAM, 0,
	  "for perftest's sake: connections are always made by rdma_cm" },
	{ 'F', "CPU-freq", NULL, PERF_IGNORED, NULL, 0, 0, STREAM, 0,
	  "for perftest's sake: CPU frequencies are no reason to fail" },

	{ 0, "memory", "BYTES", PERF_SIZE, "256M", 2 * MIB, TIB, V(FAULT) | V(SCAN) | V(TRACK), AT(memory),
	  "how much to work on" },
	{ 0, "page", "BYTES[,...]", PERF_SIZES, "4K", 4 * KIB, GIB, V(FAULT) | V(REGISTER) | V(TRACK), AT(pages),
	  "page sizes to measure: 4K, 2M" },
	{ 0, "threads", "N[,...]", PERF_NUMBERS, "1,2,4", 1, 256, V(FAULT) | V(REGISTER) | V(SCAN), AT(threads),
	  "numbers of threads to measure, that touch, register or scan" },
	{ 0, "uffds", "N[,...]", PERF_NUMBERS, "1,2", 1, 16, V(FAULT), AT(uffds),
	  "numbers of userfaultfds to measure; each has a range of the memory and a thread that answers" },
	{ 0, "sizes", "BYTES[,...]", PERF_SIZES, "4K,64K,1M,16M,256M", 4 * KIB, TIB, V(REGISTER), AT(sizes),
	  "of the memory to register" },
	{ 0, "trackers", "NAME[,...]", PERF_TEXT, NULL, 0, 0, V(TRACK), AT(trackers),
	  "which to measure; without it all that this kernel has" },
	{ 0, "dirty-pages", "N", PERF_NUMBER, "10000", 1, 1000000000, V(TRACK), AT(dirty_pages),
	  "pages to write at random before each collect" },

	{ 0, "guest-size", "BYTES[,...]", PERF_SIZES, "1G", MIB, TIB, V(MIGRATE), AT(guest_sizes),
	  "of the built-in guest's RAM" },
	{ 0, "hot", "PERCENT[,...]", PERF_NUMBERS, "25", 0, 100, V(MIGRATE), AT(hot),
	  "share of its RAM that it writes to" },
	{ 0, "dirty", "BYTES_PER_S[,...]", PERF_SIZES, "64M", 0, TIB, V(MIGRATE), AT(dirty),
	  "how fast it writes" },
	{ 0, "pattern", "random|sequential", PERF_WORDS, "random", 0, 0, V(MIGRATE), AT(patterns),
	  "in which order" },
	{ 0, "zero", "PERCENT[,...]", PERF_NUMBERS, "0", 0, 100, V(MIGRATE), AT(zero),
	  "share of its pages that are zero" },
	{ 0, "mode", "hybrid|precopy|postcopy|cold", PERF_WORDS, NULL, 0, 0, MOVES, AT(modes),
	  "how pages move, as with memferry send; without it hybrid for migrate, and all for estimate" },
	{ 0, "max-downtime", "MS", PERF_NUMBER, "300", 1, 3600000, MOVES, AT(max_downtime_ms),
	  "as with memferry send" },
	{ 0, "max-bandwidth", "BYTES_PER_S", PERF_SIZE, "0", 0, TIB, MOVES, AT(max_bandwidth),
	  "as with memferry send; 0 sets no limit" },
	{ 0, "verify", "none|full", PERF_CHOICE, "none", 0, 0, V(MIGRATE), AT(verify),
	  "compare every page on both hosts at the end" },
	{ 0, "guest", "GUEST", PERF_TEXT, NULL, 0, 0, V(ESTIMATE), AT(guest),
	  "the running guest to watch: qemu:QMP_SOCKET; demo:SIZE,... starts a built-in one, and ends it" },
	{ 0, "watch", "SECONDS", PERF_NUMBER, "10", 1, 3600, V(ESTIMATE), AT(watch_s),
	  "how long to watch the guest's writes" },
	{ 0, "against", "REPORT", PERF_TEXT, NULL, 0, 0, V(ESTIMATE), AT(against),
	  "what memferry send --json printed, or a document of migrate: say how far off the estimate in --estimate was" },
	{ 0, "estimate", "FILE", PERF_TEXT, NULL, 0, 0, V(ESTIMATE), AT(estimate),
	  "an estimate that was kept by --out_json_file; for --against" },

	{ 0, "rendezvous", "HOST[:PORT]", PERF_TEXT, NULL, 0, 0, V(MESH), AT(rendezvous),
	  "where rank 0 can be reached; without it the launcher's environment says" },
	{ 0, "slow", "SHARE", PERF_REAL, "0.8", 0, 0, V(MESH), AT(slow),
	  "name the pairs whose bandwidth is below this share of the median" },

	{ 'r', "repeat", "N", PERF_NUMBER, "3", 1, 1000, MEASURE, AT(repeat),
	  "measurements of each kind; rows have the median one's figures and the spread of all" },
	{ 0, "seed", "N", PERF_NUMBER, "1", 0, UINT32_MAX, MEASURE, AT(seed),
	  "of everything that is random" },
	{ 0, "out_json", NULL, PERF_FLAG, NULL, 0, 0, MEASURE, AT(json),
	  "JSON to standard output, tables to standard error" },
	{ 0, "out_json_file", "FILE", PERF_TEXT, NULL, 0, 0, MEASURE, AT(json_file),
	  "JSON to a file; tables as ever" },
	{ 0, "plot", "FILE.svg|FILE.png", PERF_TEXT, NULL, 0, 0, LANES & ~V(ESTIMATE), AT(plot),
	  "draw the results, by gnuplot" },

	{ 0, "listen", "ADDR", PERF_TEXT, NULL, 0, 0, V(SERVER), AT(listen),
	  "the address to wait at; without it all" },
	{ 0, "once", NULL, PERF_FLAG, NULL, 0, 0, V(SERVER), AT(once),
	  "end after the first client" },
	{ 0, "max-memory", "BYTES", PERF_SIZE, "4G", MIB, 64 * TIB, V(SERVER) | V(MESH), AT(max_memory),
	  "the most that a client may make this host allocate" },
};
/* clang-format on */
const size_t perf_n_options = BASE_ARRAY_LEN(perf_option_table);

/* getopt_long() returns the option's place in the table and this. */
#define FIRST_VALUE 256

enum perf_verb perf_find_verb(const char *name, struct mf_error *err)
{
	const char *names[PERF_VERB_COUNT];

	for (unsigned v = 0; v < PERF_VERB_COUNT; v++) {
		names[v] = perf_verbs[v].name;
		if (!strcmp(name, names[v]))
			return (enum perf_verb)v;
	}
	const char *near = cli_nearest(name, names, PERF_VERB_COUNT);
	(void)(near ? base_usage_error(err, "'%.40s' is not a test; did you mean %s?", name, near)
		    : base_usage_error(
			      err, "'%.40s' is not a test; memferry-perf --help lists them", name));
	return PERF_VERB_COUNT;
}

static bool is_word(const char *words, const char *text, size_t len)
{
	for (const char *word = words; word; word = strchr(word, '|')) {
		word += *word == '|';
		if (len && !strncmp(word, text, len) && (!word[len] || word[len] == '|'))
			return true;
	}
	return false;
}

/* Words separated by commas, each one of `words` and each once. */
static int check_words(const char *what, const char *words, const char *text, struct mf_error *err)
{
	for (const char *at = text;; at++) {
		size_t len = strcspn(at, ",");
		if (!is_word(words, at, len))
			return base_usage_error(err, "%s: '%.*s' is none of %s", what,
						(int)(len < 40 ? len : 40), at, words);
		for (const char *before = text; before < at; before++) {
			size_t other = strcspn(before, ",");
			if (other == len && !strncmp(before, at, len))
				return base_usage_error(err, "%s: '%.*s' is there twice", what,
							(int)len, at);
			before += other;
		}
		at += len;
		if (!*at)
			return 0;
	}
}

static int parse_real(const char *what, const char *text, double *ret, struct mf_error *err)
{
	char *end;

	errno = 0;
	double value = strtod(text, &end);
	if (errno || end == text || *end || !isfinite(value) || value < 0)
		return base_usage_error(err, "%s: '%.40s' is not a number of 0 or more", what,
					text);
	*ret = value;
	return 0;
}

static int parse_size(const struct perf_option *option, const char *what, const char *text,
		      uint64_t *ret, struct mf_error *err)
{
	char least[32], most[32];
	uint64_t value;

	if (base_parse_size(text, what, &value, err))
		return -MF_EUSAGE;
	if (value < option->min || value > option->max)
		return base_usage_error(err, "%s: '%.40s' is not between %s and %s", what, text,
					base_format_size(option->min, least, sizeof(least)),
					base_format_size(option->max, most, sizeof(most)));
	*ret = value;
	return 0;
}

static int parse_list(const struct perf_option *option, const char *what, const char *text,
		      struct perf_list *ret, struct mf_error *err)
{
	struct perf_list list = { 0 };

	for (const char *at = text;; at++) {
		char word[40];
		size_t len = strcspn(at, ",");
		if (!len || len >= sizeof(word))
			return base_usage_error(
				err, "%s: '%.40s' is no list of values separated by commas", what,
				text);
		if (list.n == PERF_LIST_MAX)
			return base_usage_error(err, "%s: more than %u values", what,
						PERF_LIST_MAX);
		(void)snprintf(word, sizeof(word), "%.*s", (int)len, at);
		if (option->type == PERF_SIZES
			    ? parse_size(option, what, word, &list.at[list.n], err)
			    : base_parse_number(word, what, option->min, option->max,
						&list.at[list.n], err))
			return -MF_EUSAGE;
		list.n++;
		at += len;
		if (!*at)
			break;
	}
	*ret = list;
	return 0;
}

static int set_option(const struct perf_option *option, const char *text, struct perf_options *ret,
		      struct mf_error *err)
{
	void *field = (char *)ret + option->offset;
	char what[48];

	(void)snprintf(what, sizeof(what), "--%s", option->name);
	switch (option->type) {
	case PERF_IGNORED:
		return 0;
	case PERF_FLAG:
		*(bool *)field = true;
		return 0;
	case PERF_NUMBER:
		return base_parse_number(text, what, option->min, option->max, field, err);
	case PERF_REAL:
		return parse_real(what, text, field, err);
	case PERF_SIZE:
		return parse_size(option, what, text, field, err);
	case PERF_NUMBERS:
	case PERF_SIZES:
		return parse_list(option, what, text, field, err);
	case PERF_WORDS:
		if (check_words(what, option->arg, text, err))
			return -MF_EUSAGE;
		break;
	case PERF_CHOICE:
		if (!is_word(option->arg, text, strlen(text)))
			return base_usage_error(err, "%s: '%.40s' is none of %s", what, text,
						option->arg);
		break;
	case PERF_TEXT:
		if (!text[0])
			return base_usage_error(err, "%s: needs a value: %s", what, option->arg);
		break;
	}
	*(const char **)field = text;
	return 0;
}

static void set_defaults(enum perf_verb verb, struct perf_options *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->verb = verb;
	ret->gid = UINT64_MAX;
	for (size_t i = 0; i < perf_n_options; i++) {
		const struct perf_option *option = &perf_option_table[i];
		if (option->value && set_option(option, option->value, ret, NULL))
			assert(!"an option's default is not a value it takes");
	}
}

/* What getopt_long() made nothing of. */
static int unknown_option(enum perf_verb verb, const char *word, int letter, struct mf_error *err)
{
	const char *names[BASE_ARRAY_LEN(perf_option_table)];
	char name[48];
	size_t n = 0;

	if (letter)
		return base_usage_error(err,
					"-%c: unknown option; memferry-perf %s --help lists them",
					isprint(letter) ? letter : '?', perf_verbs[verb].name);
	word += strspn(word, "-");
	(void)snprintf(name, sizeof(name), "%.*s", (int)strcspn(word, "="), word);
	for (size_t i = 0; i < perf_n_options; i++) {
		if (perf_option_table[i].verbs & 1u << verb)
			names[n++] = perf_option_table[i].name;
	}
	const char *near = cli_nearest(name, names, n);
	if (near)
		return base_usage_error(err, "--%s: unknown option; did you mean --%s?", name,
					near);
	return base_usage_error(err, "--%s: unknown option; memferry-perf %s --help lists them",
				name, perf_verbs[verb].name);
}

static int take_options(enum perf_verb verb, int argc, char *const argv[], struct perf_options *ret,
			struct mf_error *err)
{
	struct option longs[BASE_ARRAY_LEN(perf_option_table) + 1] = { 0 };
	char shorts[2 * BASE_ARRAY_LEN(perf_option_table) + 2] = ":";
	size_t at = 1;

	for (size_t i = 0; i < perf_n_options; i++) {
		const struct perf_option *option = &perf_option_table[i];
		longs[i] =
			(struct option){ .name = option->name,
					 .has_arg = option->arg ? required_argument : no_argument,
					 .val = FIRST_VALUE + (int)i };
		if (!option->letter)
			continue;
		shorts[at++] = option->letter;
		if (option->arg)
			shorts[at++] = ':';
	}
	opterr = 0;
	optind = 0; /* from the start again, after an earlier call */
	for (int c; (c = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
		const char *word = argv[optind - 1];
		if (c == '?')
			return unknown_option(verb, word, optopt < FIRST_VALUE ? optopt : 0, err);
		if (c == ':')
			return base_usage_error(err, "%.40s: needs a value", word);
		const struct perf_option *option = NULL;
		for (size_t i = 0; i < perf_n_options; i++) {
			if (c == FIRST_VALUE + (int)i || c == perf_option_table[i].letter)
				option = &perf_option_table[i];
		}
		if (!(option->verbs & 1u << verb))
			return base_usage_error(err, "--%s: %s does not take it", option->name,
						perf_verbs[verb].name);
		if (set_option(option, optarg, ret, err))
			return -MF_EUSAGE;
	}
	return 0;
}

static int check_whole(const struct perf_options *o, struct mf_error *err)
{
	const char *name = perf_verbs[o->verb].name;

	if (!o->host && perf_verbs[o->verb].operand[0] == 'H')
		return base_usage_error(err,
					"%s needs the host where memferry-perf server waits, as in "
					"memferry-perf %s 192.0.2.7",
					name, name);
	if (!o->port && o->verb != PERF_SERVER)
		return base_usage_error(err, "--port: 0 is for server only");
	if (o->all_sizes && o->size)
		return base_usage_error(err, "--all: goes without --size");
	if (o->duration_s && o->iterations)
		return base_usage_error(err, "--duration: goes without --iters");
	if (o->histogram && o->unsorted)
		return base_usage_error(err, "--report-histogram: goes without --report-unsorted");
	if (o->verb == PERF_LAT && o->events && !strcmp(o->op, "write"))
		return base_usage_error(
			err, "--events: a write tells nothing to the CPU it goes to; it goes "
			     "with --op read");
	if (o->verb == PERF_ESTIMATE && !o->against == !o->guest)
		return base_usage_error(err,
					"estimate needs either --guest to watch, or --estimate and "
					"--against to compare");
	if (!o->against != !o->estimate)
		return base_usage_error(err, "--%s: needs --%s, too",
					o->against ? "against" : "estimate",
					o->against ? "estimate" : "against");
	if (o->guest && !o->host)
		return base_usage_error(err,
					"estimate needs the host where memferry-perf server waits");
	for (uint32_t i = 0; i < o->pages.n; i++) {
		if (o->pages.at[i] & (o->pages.at[i] - 1))
			return base_usage_error(err, "--page: %" PRIu64 " is no size of pages",
						o->pages.at[i]);
	}
	return 0;
}

int perf_parse(enum perf_verb verb, int argc, char *const argv[], struct perf_options *ret,
	       struct mf_error *err)
{
	/* getopt_long() wants to put operands last, and a word before the first. */
	char **words base_cleanup(base_freep) = calloc((size_t)argc + 2, sizeof(*words));

	assert(verb < PERF_VERB_COUNT);
	set_defaults(verb, ret);
	if (!words)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	words[0] = (char *)perf_verbs[verb].name;
	for (int i = 0; i < argc; i++) {
		words[i + 1] = argv[i];
		ret->json |=
			!strcmp(argv[i], "--out_json"); /* says how even the first error is told */
	}
	for (int i = 0; i < argc && strcmp(argv[i], "--"); i++) {
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			ret->help = true;
			return 0;
		}
	}
	if (take_options(verb, argc + 1, words, ret, err))
		return -MF_EUSAGE;
	for (int i = optind; i < argc + 1; i++) {
		if (!perf_verbs[verb].operand[0])
			return base_usage_error(err, "'%.60s': %s takes no argument but options",
						words[i], perf_verbs[verb].name);
		if (ret->host)
			return base_usage_error(
				err, "'%.60s': %s takes only one host, and '%.60s' was it",
				words[i], perf_verbs[verb].name, ret->host);
		ret->host = words[i];
	}
	if (!ret->modes)
		ret->modes = verb == PERF_ESTIMATE ? "precopy,hybrid,postcopy,cold" : "hybrid";
	return check_whole(ret, err);
}

static json_t *list_json(const struct perf_list *list)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < list->n; i++)
		(void)json_array_append_new(array, json_integer((json_int_t)list->at[i]));
	return array;
}

static json_t *option_json(const struct perf_option *option, const struct perf_options *o)
{
	const void *field = (const char *)o + option->offset;
	const char *text;

	switch (option->type) {
	case PERF_IGNORED:
		return NULL;
	case PERF_FLAG:
		return json_boolean(*(const bool *)field);
	case PERF_NUMBER:
	case PERF_SIZE:
		return *(const uint64_t *)field > INT64_MAX
			       ? json_null()
			       : json_integer((json_int_t) * (const uint64_t *)field);
	case PERF_REAL:
		return json_real(*(const double *)field);
	case PERF_NUMBERS:
	case PERF_SIZES:
		return list_json(field);
	default:
		text = *(const char *const *)field;
		return text ? json_string(text) : json_null();
	}
}

json_t *perf_options_json(const struct perf_options *o)
{
	json_t *object = json_object();

	if (o->host)
		perf_put(object, "host", json_string(o->host));
	for (size_t i = 0; i < perf_n_options; i++) {
		const struct perf_option *option = &perf_option_table[i];
		if (option->verbs & 1u << o->verb)
			perf_put(object, option->name, option_json(option, o));
	}
	return object;
}
