/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * scan: how fast the engine's function finds zero pages, next to how fast the same memory can be read and copied.
 *
 * Each repetition goes through all contents, and reads the memory right after each scan.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/zero.h"
#include "perf/doc.h"
#include "perf/local.h"
#include "perf/random.h"
#include "perf/team.h"

#define WORDS (LOCAL_PAGE / sizeof(uint64_t))

enum content { ZERO, FIRST, LAST, MIX, CONTENTS };
static const char *const names[CONTENTS] = { "zero", "first", "last", "mix" };

struct scan {
	char *mem;
	uint64_t pages, seed, repeat;
	unsigned threads;
	enum content content, next; /* what the pages hold, and what they are to */
	uint64_t counted[LOCAL_THREADS_MAX];
};

/* Of one number of threads; [content * repeat + repetition], but copies, which have no content. */
struct samples {
	double *scan, *read, *copy;
	uint64_t zero_pages[CONTENTS];
	struct perf_cpu cpu[CONTENTS];
};

/* The one word of the page that is not zero; WORDS: none. */
static uint64_t word_of(const struct scan *s, enum content content, uint64_t page)
{
	uint64_t random = perf_hash(s->seed ^ perf_hash(page));

	switch (content) {
	case FIRST:
		return 0;
	case LAST:
		return WORDS - 1;
	case MIX:
		return random & 1 ? WORDS : (random >> 1) % WORDS;
	default:
		return WORDS;
	}
}

static void share_of(const struct scan *s, unsigned i, uint64_t *ret_first, uint64_t *ret_end)
{
	*ret_first = s->pages * i / s->threads;
	*ret_end = s->pages * (i + 1) / s->threads;
}

static int set_content(void *ctx, unsigned i, struct mf_error *err)
{
	struct scan *s = ctx;
	uint64_t page, end, zero = 0;

	(void)err;
	for (share_of(s, i, &page, &end); page < end; page++) {
		uint64_t *words = (uint64_t *)(s->mem + page * LOCAL_PAGE);
		uint64_t before = word_of(s, s->content, page), now = word_of(s, s->next, page);
		if (before < WORDS)
			words[before] = 0;
		if (now < WORDS)
			words[now] = 1;
		zero += now == WORDS;
	}
	s->counted[i] = zero;
	return 0;
}

static int scan_share(void *ctx, unsigned i, struct mf_error *err)
{
	struct scan *s = ctx;
	uint64_t page, end, zero = 0;

	(void)err;
	for (share_of(s, i, &page, &end); page < end; page++)
		zero += base_is_zero(s->mem + page * LOCAL_PAGE, LOCAL_PAGE);
	s->counted[i] = zero;
	return 0;
}

/* As any program would: in order, and with nothing asked for ahead. */
static int read_share(void *ctx, unsigned i, struct mf_error *err)
{
	typedef uint64_t pair __attribute__((vector_size(16), may_alias));
	const struct scan *s = ctx;
	uint64_t first, end;
	pair a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 };

	(void)err;
	share_of(s, i, &first, &end);
	const pair *at = (const void *)(s->mem + first * LOCAL_PAGE);
	const pair *stop = (const void *)(s->mem + end * LOCAL_PAGE);
	for (; at < stop; at += 4) {
		a |= at[0];
		b |= at[1];
		c |= at[2];
		d |= at[3];
	}
	a |= (b | c) | d;
	__asm__ volatile("" : : "m"(a)); /* the compiler must not see that nobody wants it */
	return 0;
}

/* The first half of each share onto its second: of zeroes only, so that they stay what they are. */
static int copy_share(void *ctx, unsigned i, struct mf_error *err)
{
	const struct scan *s = ctx;
	uint64_t first, end;

	(void)err;
	share_of(s, i, &first, &end);
	uint64_t half = (end - first) / 2;
	memcpy(s->mem + (first + half) * LOCAL_PAGE, s->mem + first * LOCAL_PAGE,
	       half * LOCAL_PAGE);
	return 0;
}

static uint64_t counted(const struct scan *s)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < s->threads; i++)
		n += s->counted[i];
	return n;
}

static double rate(uint64_t bytes, uint64_t ns)
{
	return (double)bytes * 1e9 / (double)(ns ? ns : 1);
}

static uint64_t copied_bytes(const struct scan *s)
{
	uint64_t first, end, pages = 0;

	for (unsigned i = 0; i < s->threads; i++) {
		share_of(s, i, &first, &end);
		pages += (end - first) / 2;
	}
	return pages * LOCAL_PAGE;
}

static int fill(struct scan *s, struct perf_team *team, enum content content, struct mf_error *err)
{
	s->next = content;
	int ret = perf_team_do(team, set_content, s, NULL, err);
	s->content = content;
	return ret;
}

static int measure_copy(struct scan *s, struct perf_team *team, double *ret, struct mf_error *err)
{
	uint64_t ns = 0;

	int code = fill(s, team, ZERO, err);
	if (!code)
		code = perf_team_do(team, copy_share, s, &ns, err);
	*ret = rate(copied_bytes(s), ns);
	return code;
}

static int measure_content(struct scan *s, struct perf_team *team, enum content content,
			   struct samples *ret, uint64_t repetition, struct mf_error *err)
{
	uint64_t bytes = s->pages * LOCAL_PAGE, read_ns = 0, scan_ns = 0;
	uint64_t at = content * s->repeat + repetition;
	struct perf_cpu start;

	int code = fill(s, team, content, err);
	uint64_t expected = ret->zero_pages[content] = counted(s);
	if (!code) /* what setting the content has left in the caches goes */
		code = perf_team_do(team, read_share, s, NULL, err);
	perf_cpu_now(&start);
	if (!code)
		code = perf_team_do(team, scan_share, s, &scan_ns, err);
	local_add_cpu(&ret->cpu[content], &start);
	uint64_t found = counted(s);
	if (!code)
		code = perf_team_do(team, read_share, s, &read_ns, err);
	if (code)
		return code;
	if (found != expected)
		return base_error(err, -MF_EINTEGRITY, MF_SCOPE_HOST,
				  "the scan found %" PRIu64 " zero pages where %" PRIu64 " are",
				  found, expected);
	ret->read[at] = rate(bytes, read_ns);
	ret->scan[at] = rate(bytes, scan_ns);
	return 0;
}

static json_t *make_row(const struct scan *s, enum content content, struct samples *samples)
{
	uint64_t n = s->repeat;
	double *scan = samples->scan + content * n, *read = samples->read + content * n;
	double *ratio base_cleanup(base_freep) = calloc(n, sizeof(*ratio));
	double *copy base_cleanup(base_freep) = calloc(n, sizeof(*copy));
	json_t *row = json_object();

	for (uint64_t i = 0; ratio && i < n; i++)
		ratio[i] = scan[i] / read[i];
	perf_put(row, "threads", json_integer(s->threads));
	perf_put(row, "content", json_string(names[content]));
	perf_put(row, "bytes", json_integer((json_int_t)(s->pages * LOCAL_PAGE)));
	perf_put(row, "page_bytes", json_integer(LOCAL_PAGE));
	perf_put(row, "zero_pages", json_integer((json_int_t)samples->zero_pages[content]));
	local_put_rates(row, "read_bytes_per_s", read, n);
	if (copy) {
		memcpy(copy, samples->copy, n * sizeof(*copy));
		local_put_rates(row, "copy_bytes_per_s", copy, n);
	}
	if (ratio)
		local_put_times(row, "ratio_to_read", ratio, n, 1);
	local_put_rates(row, "bytes_per_s", scan, n); /* last: the spread is of this */
	perf_put(row, "median_pages_per_s",
		 json_real(perf_number(row, "median_bytes_per_s") / (double)LOCAL_PAGE));
	local_put_cpu(row, &samples->cpu[content], (double)(n * s->pages * LOCAL_PAGE));
	return row;
}

static int measure(struct scan *s, struct perf_team *team, struct samples *samples,
		   struct mf_error *err)
{
	double warm;

	/* Memory that the kernel has just got may cost its host something yet. */
	int code = measure_copy(s, team, &warm, err);
	for (uint64_t i = 0; !code && i < s->repeat; i++) {
		perf_progress("scan %u threads  %" PRIu64 " of %" PRIu64, s->threads, i + 1,
			      s->repeat);
		code = measure_copy(s, team, &samples->copy[i], err);
		for (unsigned c = 0; !code && c < CONTENTS; c++)
			code = measure_content(s, team, (enum content)c, samples, i, err);
	}
	return code;
}

static int measure_threads(struct scan *s, json_t *rows, struct mf_error *err)
{
	double *buf base_cleanup(base_freep) = calloc((2 * CONTENTS + 1) * s->repeat, sizeof(*buf));
	struct perf_team *team = NULL;

	if (!buf)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	struct samples samples = { .scan = buf,
				   .read = buf + CONTENTS * s->repeat,
				   .copy = buf + 2 * CONTENTS * s->repeat };
	int code = perf_team_start(s->threads, &team, err);
	if (!code)
		code = measure(s, team, &samples, err);
	perf_team_end(team);
	for (unsigned c = 0; !code && c < CONTENTS; c++)
		(void)json_array_append_new(rows, make_row(s, (enum content)c, &samples));
	return code;
}

static int take_options(const json_t *options, struct scan *s, struct perf_list *threads,
			struct mf_error *err)
{
	uint64_t bytes = 0;

	int code = local_number(options, "memory", UINT64_C(2) << 20, LOCAL_BYTES_MAX, &bytes, err);
	if (!code)
		code = local_list(options, "threads", 1, LOCAL_THREADS_MAX, threads, err);
	if (!code)
		code = local_number(options, "repeat", 1, LOCAL_REPEAT_MAX, &s->repeat, err);
	if (!code)
		code = local_number(options, "seed", 0, UINT32_MAX, &s->seed, err);
	s->pages = bytes / LOCAL_PAGE;
	return code;
}

int local_scan(const json_t *options, uint64_t max_bytes, json_t *ret_rows, struct mf_error *err)
{
	struct scan s = { .content = ZERO };
	struct perf_list threads = { 0 };
	void *mem = NULL;

	int code = take_options(options, &s, &threads, err);
	if (!code)
		code = local_allow(s.pages * LOCAL_PAGE, max_bytes, err);
	if (!code)
		code = local_map(s.pages * LOCAL_PAGE, local_base_page(), &mem, err);
	if (code)
		return code;
	s.mem = mem;
	code = local_populate(mem, s.pages * LOCAL_PAGE, LOCAL_PAGE, err);
	for (uint32_t i = 0; !code && i < threads.n; i++) {
		s.threads = (unsigned)threads.at[i];
		code = measure_threads(&s, ret_rows, err);
	}
	perf_progress_end();
	(void)munmap(mem, s.pages * LOCAL_PAGE);
	return code;
}
