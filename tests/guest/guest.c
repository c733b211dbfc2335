/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A guest that finds a lost write by itself.
 *
 * It fills a share of its RAM with incompressible stamped pages and leaves the
 * rest zero, then goes on writing a hot set and checking every page, and says
 * on the serial port how it is doing.  What each page must hold follows from
 * its number and its generation; the generations stand in a table of the
 * guest's own, so a stale page, a torn page, a foreign page and a page that
 * should be zero all show, and so does a stale table (its sum is known too).
 *
 * One thread, no paging, no interrupt handlers that touch memory: a page is
 * never checked in the middle of a write.  See README.md for the parameters.
 */
#include "machine.h"

#define PAGE        4096U
#define PAGE_WORDS  (PAGE / 4)
#define MULTIBOOT   0x2BADB002U
#define PAGE_MAGIC  0x70616765U
#define WRONG_SHOWN 16U
#define WRITE_SLICE 128U
#define CHECK_SLICE 32U
/* The firmware's leftovers lie within so much of the end of RAM. */
#define LITTERED_PAGES ((18U << 20) / PAGE)
/* Credit kept over a standstill, ms: no burst to catch up after a move. */
#define CREDIT_MAX_MS 50U

struct multiboot {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline;
};

enum pattern {
	SEQUENTIAL,
	RANDOM,
};

struct params {
	uint64_t hot;   /* bytes */
	uint64_t rate;  /* written bytes per second; 0: as fast as it goes */
	uint64_t check; /* checked bytes per second; 0: on request only */
	uint32_t zero;  /* percent of RAM that stays zero */
	uint64_t data;  /* at most so many bytes of data; 0: by zero= alone */
	uint32_t run;   /* pages in a row that are data, or zero */
	uint32_t seed;
	uint32_t heartbeat;   /* ms */
	enum pattern pattern; /* of the writes */
	bool spread;          /* the hot set lies all over the data, not at its start */
	bool full;            /* a write renews the whole page, not its first and last words */
	bool idle;            /* neither writes nor checks by itself */
	bool nap;             /* sleeps when nothing is due */
};

/* So many pages a second, by the clock. */
struct pace {
	uint64_t last, credit;
	uint32_t cost; /* ticks a page; 0: no limit */
};

/* Latencies by log2 of nanoseconds with 8 steps within each. */
#define STEPS   8U
#define BUCKETS (40U * STEPS)

extern char image_start[], image_const_end[], image_end[];
void guest_main(uint32_t magic, const struct multiboot *info);

static struct params params = {
	.hot = 16 << 20,
	.rate = 64 << 20,
	.check = 128 << 20,
	.zero = 50,
	.run = 16,
	.seed = 1,
	.heartbeat = 100,
	.nap = true,
};

static uint32_t first_page, n_pages; /* under test */
static uint32_t *generation;         /* by page; 0: zero */
static uint32_t *data_pages, n_data; /* their numbers */
static uint32_t n_hot, hot_stride;
static uint32_t hot_next, random_state;
static uint32_t const_sum; /* of our own code */
static struct pace write_pace, check_pace;
static uint64_t started, heartbeat_last;
static uint64_t heartbeats, writes, checked, passes, wrong;
static uint32_t check_next;
static bool writing = true;
static uint32_t latency[BUCKETS];

static uint32_t mix(uint32_t x)
{
	x ^= x >> 16;
	x *= 0x7FEB352DU;
	x ^= x >> 15;
	x *= 0x846CA68BU;
	return x ^ x >> 16;
}

static uint32_t *page_at(uint32_t page)
{
	return (uint32_t *)(uintptr_t)((first_page + page) * PAGE);
}

static uint32_t stamp_of(uint32_t page, uint32_t gen)
{
	return mix(mix(page ^ params.seed * 0x9E3779B9U) + gen);
}

/* word i of a body whose previous word was x */
static inline uint32_t next_word(uint32_t x)
{
	return x * 1664525U + 1013904223U;
}

static inline uint32_t shown(uint32_t x)
{
	return x ^ x >> 15;
}

static void write_page(uint32_t page, bool body)
{
	uint32_t *w = page_at(page), gen = ++generation[page], stamp = stamp_of(page, gen);

	w[0] = PAGE_MAGIC ^ page;
	w[1] = gen;
	w[2] = stamp;
	if (body) {
		uint32_t x = stamp_of(page, params.full ? gen : 1);

		for (uint32_t i = 3; i < PAGE_WORDS - 2; i++) {
			x = next_word(x);
			w[i] = shown(x);
		}
	}
	w[PAGE_WORDS - 2] = gen;
	w[PAGE_WORDS - 1] = stamp;
}

/* The first word that is not as it must be; PAGE_WORDS: all are. */
static uint32_t check_words(uint32_t page)
{
	const uint32_t *w = page_at(page);
	uint32_t gen = generation[page], stamp, x;

	if (!gen) {
		for (uint32_t i = 0; i < PAGE_WORDS; i++)
			if (w[i])
				return i;
		return PAGE_WORDS;
	}
	stamp = stamp_of(page, gen);
	if (w[0] != (PAGE_MAGIC ^ page))
		return 0;
	if (w[1] != gen)
		return 1;
	if (w[2] != stamp)
		return 2;
	x = stamp_of(page, params.full ? gen : 1);
	for (uint32_t i = 3; i < PAGE_WORDS - 2; i++) {
		x = next_word(x);
		if (w[i] != shown(x))
			return i;
	}
	if (w[PAGE_WORDS - 2] != gen)
		return PAGE_WORDS - 2;
	return w[PAGE_WORDS - 1] == stamp ? PAGE_WORDS : PAGE_WORDS - 1;
}

static void check_page(uint32_t page)
{
	uint32_t word = check_words(page);
	const uint32_t *w = page_at(page);

	checked++;
	if (word == PAGE_WORDS)
		return;
	if (wrong++ < WRONG_SHOWN)
		print("WRONG page=%u gpa=0x%x word=%u holds=0x%x page_generation=%u expected=%u\n",
		      page, (uint32_t)(uintptr_t)w, word, w[word], w[1], generation[page]);
}

static uint32_t sum_const(void)
{
	uint32_t sum = 0;

	for (const uint32_t *w = (const uint32_t *)image_start;
	     w + 1 <= (const uint32_t *)image_const_end; w++)
		sum = mix(sum + *w);
	return sum;
}

/* What no single page can tell: every write that was counted is in the table. */
static void end_pass(void)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n_pages; i++)
		sum += generation[i];
	if (sum != n_data + writes) {
		if (wrong++ < WRONG_SHOWN)
			print("WRONG table sum=%U expected=%U\n", sum, n_data + writes);
	}
	if (sum_const() != const_sum) {
		if (wrong++ < WRONG_SHOWN)
			print("WRONG code\n");
	}
	passes++;
	check_next = 0;
}

static void check_some(uint32_t n)
{
	while (n-- > 0) {
		check_page(check_next);
		if (++check_next == n_pages)
			end_pass();
	}
}

static void write_some(uint32_t n)
{
	while (n-- > 0) {
		uint32_t i = hot_next;

		if (params.pattern == RANDOM) {
			random_state = next_word(random_state);
			i = (uint64_t)mix(random_state) * n_hot >> 32;
		} else if (++hot_next == n_hot) {
			hot_next = 0;
		}
		write_page(data_pages[i * hot_stride], params.full);
		writes++;
	}
}

static void start_pace(struct pace *pace, uint64_t bytes_per_s)
{
	uint64_t per_s = (uint64_t)ticks_per_ms() * 1000;

	pace->last = ticks();
	if (bytes_per_s) {
		uint64_t pages_per_s = bytes_per_s / PAGE;
		uint64_t cost = per_s / (pages_per_s ? pages_per_s : 1);

		pace->cost = cost > UINT32_MAX ? UINT32_MAX : (cost ? cost : 1);
	}
}

/* How many pages are due now, at most max. */
static uint32_t take(struct pace *pace, uint64_t now, uint32_t max)
{
	uint64_t most = (uint64_t)ticks_per_ms() * CREDIT_MAX_MS, due;

	if (!pace->cost)
		return max;
	if (most < pace->cost)
		most = pace->cost;
	pace->credit += now - pace->last;
	pace->last = now;
	if (pace->credit > most)
		pace->credit = most;
	due = pace->credit / pace->cost;
	if (due > max)
		due = max;
	pace->credit -= due * pace->cost;
	return due;
}

static void beat(uint64_t now)
{
	heartbeat_last = now;
	heartbeats++;
	print("HB n=%U ms=%U writes=%U checked=%U passes=%U wrong=%U\n", heartbeats,
	      (now - started) / ticks_per_ms(), writes, checked, passes, wrong);
}

static void beat_if_due(uint64_t now)
{
	/* unsigned: a clock that jumps back only brings the next beat forward */
	if (now - heartbeat_last >= (uint64_t)params.heartbeat * ticks_per_ms())
		beat(now);
}

static uint32_t log2_of(uint32_t x)
{
	return x ? 31 - __builtin_clz(x) : 0;
}

static uint32_t bucket_of(uint32_t ns)
{
	uint32_t log = log2_of(ns);

	if (log < 3)
		return ns;
	return (log - 2) * STEPS + ((ns >> (log - 3)) & (STEPS - 1));
}

/* the middle of a bucket, ns */
static uint32_t bucket_value(uint32_t bucket)
{
	uint32_t log = bucket / STEPS + 2, step = bucket % STEPS;

	if (bucket < STEPS)
		return bucket;
	return (STEPS + step) * (1U << (log - 3)) + (1U << (log - 3)) / 2;
}

static uint32_t percentile(uint32_t n, uint32_t per_mille10)
{
	uint64_t want = ((uint64_t)n * per_mille10 + 9999) / 10000, seen = 0;

	for (uint32_t i = 0; i < BUCKETS; i++) {
		seen += latency[i];
		if (seen >= want && latency[i])
			return bucket_value(i);
	}
	return 0;
}

static void print_us(const char *name, uint32_t ns)
{
	uint32_t tenths = ns % 1000 / 100;

	print(" %s=%u.%u", name, ns / 1000, tenths);
}

/* Reads a word of every data page once, in random order, and times each. */
static void touch_all(void)
{
	uint32_t mask, x = mix(params.seed + (uint32_t)heartbeats), max = 0, bad = 0;
	uint64_t begin = ticks();

	for (uint32_t i = 0; i < BUCKETS; i++)
		latency[i] = 0;
	for (mask = 1; mask < n_data; mask <<= 1)
		;
	/* next_word has full period modulo any power of two */
	for (uint32_t i = 0; i < mask; i++) {
		uint32_t page, ns;
		uint64_t t0, t1, took;

		x = next_word(x) & (mask - 1);
		if (x >= n_data)
			continue;
		page = data_pages[x];
		t0 = ticks();
		if (((volatile uint32_t *)page_at(page))[0] != (PAGE_MAGIC ^ page))
			bad++;
		t1 = ticks();
		took = (t1 - t0) * 1000000 / ticks_per_ms();
		ns = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
		if (ns > max)
			max = ns;
		latency[bucket_of(ns)]++;
		beat_if_due(t1);
	}
	wrong += bad;
	print("TOUCH pages=%u wrong=%u ms=%U", n_data, bad, (ticks() - begin) / ticks_per_ms());
	print_us("p50_us", percentile(n_data, 5000));
	print_us("p90_us", percentile(n_data, 9000));
	print_us("p99_us", percentile(n_data, 9900));
	print_us("p99_9_us", percentile(n_data, 9990));
	print_us("max_us", max);
	print(" log2_us=");
	/* by powers of two of a microsecond; [0] is all below 2 */
	for (uint32_t log = 0, done = 0, last = log2_of(max / 1000); log <= last; log++) {
		uint32_t n = 0;

		for (; done < BUCKETS; done++) {
			if (log < last && bucket_value(done) / 1000 >= 2U << log)
				break;
			n += latency[done];
		}
		print(log ? ",%u" : "%u", n);
	}
	print("\n");
}

/* A whole pass at once. */
static void check_all(void)
{
	uint64_t before = wrong;

	check_next = 0;
	do {
		check_page(check_next);
		if (check_next % CHECK_SLICE == 0)
			beat_if_due(ticks());
	} while (++check_next < n_pages);
	end_pass();
	print("CHECKED pages=%u passes=%U wrong=%U new=%U\n", n_pages, passes, wrong,
	      wrong - before);
}

static void obey(int command)
{
	switch (command) {
	case 't':
		touch_all();
		break;
	case 'v':
		check_all();
		break;
	case 'p':
		writing = false;
		print("PAUSED writes=%U\n", writes);
		break;
	case 'g':
		writing = true;
		print("GOING writes=%U\n", writes);
		break;
	default:
		break;
	}
}

static bool word_is(const char *word, size_t len, const char *name)
{
	while (len && *name && *word == *name) {
		word++;
		name++;
		len--;
	}
	return !len && !*name;
}

static uint64_t parse_size(const char *s)
{
	uint64_t value = 0;

	while (*s >= '0' && *s <= '9')
		value = value * 10 + (uint64_t)(*s++ - '0');
	switch (*s) {
	case 'K':
		return value << 10;
	case 'M':
		return value << 20;
	case 'G':
		return value << 30;
	default:
		return value;
	}
}

static void parse_param(const char *name, size_t len, const char *value)
{
	if (word_is(name, len, "hot"))
		params.hot = parse_size(value);
	else if (word_is(name, len, "rate"))
		params.rate = parse_size(value);
	else if (word_is(name, len, "check"))
		params.check = parse_size(value);
	else if (word_is(name, len, "zero"))
		params.zero = (uint32_t)parse_size(value);
	else if (word_is(name, len, "data"))
		params.data = parse_size(value);
	else if (word_is(name, len, "run"))
		params.run = (uint32_t)parse_size(value);
	else if (word_is(name, len, "seed"))
		params.seed = (uint32_t)parse_size(value);
	else if (word_is(name, len, "hb"))
		params.heartbeat = (uint32_t)parse_size(value);
	else if (word_is(name, len, "pattern"))
		params.pattern = *value == 'r' ? RANDOM : SEQUENTIAL;
	else if (word_is(name, len, "spread"))
		params.spread = *value == '1';
	else if (word_is(name, len, "full"))
		params.full = *value == '1';
	else if (word_is(name, len, "idle"))
		params.idle = *value == '1';
	else if (word_is(name, len, "nap"))
		params.nap = *value == '1';
	else
		print("UNKNOWN parameter\n");
}

/* name=value words; the first word is the image's path */
static void parse_cmdline(const char *s)
{
	while (*s) {
		const char *name = s, *value = NULL;

		while (*s && *s != ' ') {
			if (*s == '=' && !value)
				value = s + 1;
			s++;
		}
		if (value && *name != '/')
			parse_param(name, (size_t)(value - 1 - name), value);
		while (*s == ' ')
			s++;
	}
	if (!params.run)
		params.run = 1;
	if (!params.heartbeat)
		params.heartbeat = 1;
	if (params.idle) {
		params.hot = 0;
		params.check = 0;
	}
}

/* Image, table, list of data pages, then the pages under test up to the end of RAM. */
static void lay_out(const struct multiboot *info)
{
	uint32_t end = 0x100000U / PAGE + info->mem_upper / 4;
	uint32_t begin = (uint32_t)(uintptr_t)image_end / PAGE;
	uint32_t table_pages = ((end - begin) * 8 + PAGE - 1) / PAGE;

	first_page = begin + table_pages;
	n_pages = end - first_page;
	generation = (uint32_t *)(uintptr_t)(begin * PAGE);
	data_pages = generation + n_pages;
}

static void clear_page(uint32_t page)
{
	uint32_t *w = page_at(page);

	for (uint32_t i = 0; i < PAGE_WORDS; i++)
		if (w[i])
			w[i] = 0;
}

static void fill(void)
{
	uint64_t most = params.data ? params.data / PAGE : n_pages;

	for (uint32_t page = 0; page < n_pages; page++) {
		generation[page] = 0;
		if (mix(page / params.run + params.seed) % 100 < params.zero || n_data >= most) {
			/* elsewhere not even read: the host shall have holes */
			if (page + LITTERED_PAGES >= n_pages)
				clear_page(page);
			continue;
		}
		write_page(page, true);
		data_pages[n_data++] = page;
	}
	n_hot = params.hot / PAGE < n_data ? params.hot / PAGE : n_data;
	hot_stride = params.spread && n_hot ? n_data / n_hot : 1;
}

void guest_main(uint32_t magic, const struct multiboot *info)
{
	machine_init();
	if (magic != MULTIBOOT || !(info->flags & 1)) {
		print("PANIC not loaded by multiboot\n");
		return;
	}
	if (info->flags & 4)
		parse_cmdline((const char *)(uintptr_t)info->cmdline);
	lay_out(info);
	const_sum = sum_const();
	fill();
	print("READY pages=%u first_gpa=0x%x table_gpa=0x%x data=%u hot=%u ticks_per_ms=%u\n",
	      n_pages, first_page * PAGE, (uint32_t)(uintptr_t)generation, n_data, n_hot,
	      ticks_per_ms());

	started = heartbeat_last = ticks();
	start_pace(&write_pace, params.rate);
	start_pace(&check_pace, params.check);
	for (;;) {
		uint64_t now = ticks();
		uint32_t n_write = n_hot && writing ? take(&write_pace, now, WRITE_SLICE) : 0;
		uint32_t n_check = params.check ? take(&check_pace, now, CHECK_SLICE) : 0;

		beat_if_due(now);
		write_some(n_write);
		check_some(n_check);
		obey(serial_get());
		if (!n_write && !n_check && params.nap)
			nap();
	}
}
