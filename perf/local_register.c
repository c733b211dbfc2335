/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * register: what it costs to make memory reachable to a device.
 *
 * Two fresh mappings a sample: one is registered as it is, untouched; the other is faulted in first, then registered, so that
 * the device's share of the cost can be told from the kernel's.  Each thread has a part of the memory and registers
 * it in pieces, as the engine does.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "core/engine.h"
#include "perf/doc.h"
#include "perf/local.h"
#include "perf/path_priv.h"
#include "perf/team.h"
#include "transport/transport.h"

#define DEPTH     128u
#define LINKS_MAX 2u

/* One device, and what was measured with it for the present row. */
struct link {
	const struct tp_ops *ops;
	struct tp_domain *domain;
	struct tp_limits limits;
	char device[64];
	struct mf_error why; /* without a domain */
	double *fault, *cold, *warm, *dereg;
	struct perf_cpu cpu;
};

struct piece {
	char *at;
	uint64_t len;
	struct tp_mr *mr;
};

/* The memory of one sample. */
struct work {
	struct link *link;
	char *mem;
	uint64_t bytes, page;
	unsigned threads;
	struct piece *piece;
	uint64_t n_pieces;
	uint64_t first[LOCAL_THREADS_MAX + 1]; /* piece of each thread */
};

struct job {
	struct perf_list sizes, pages, threads;
	uint64_t repeat;
	unsigned n_links;
	struct link link[LINKS_MAX];
};

/* ---- one sample ---- */

static uint64_t piece_most(const struct work *w)
{
	uint64_t most = w->link->limits.max_mr < ENG_PIECE ? w->link->limits.max_mr : ENG_PIECE;

	return most / w->page * w->page;
}

static void share_of(const struct work *w, unsigned i, uint64_t *ret_at, uint64_t *ret_end)
{
	uint64_t pages = w->bytes / w->page;

	*ret_at = pages * i / w->threads * w->page;
	*ret_end = pages * (i + 1) / w->threads * w->page;
}

static int cut_pieces(struct work *w, struct mf_error *err)
{
	uint64_t most = piece_most(w), at, end;
	char text[32];

	if (!most)
		return base_error(err, -E2BIG, MF_SCOPE_HOST,
				  "the device registers less at once than a page of %s",
				  base_format_size(w->page, text, sizeof(text)));
	w->piece = calloc(w->bytes / most + 2 * w->threads, sizeof(*w->piece));
	if (!w->piece)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	for (unsigned i = 0; i < w->threads; i++) {
		w->first[i] = w->n_pieces;
		for (share_of(w, i, &at, &end); at < end; at += most)
			w->piece[w->n_pieces++] =
				(struct piece){ .at = w->mem + at,
						.len = end - at < most ? end - at : most };
	}
	w->first[w->threads] = w->n_pieces;
	return 0;
}

static int fault_share(void *ctx, unsigned i, struct mf_error *err)
{
	const struct work *w = ctx;
	uint64_t at, end;

	share_of(w, i, &at, &end);
	return local_populate(w->mem + at, end - at, w->page, err);
}

static int register_share(void *ctx, unsigned i, struct mf_error *err)
{
	struct work *w = ctx;
	/* As the destination does: lent to lanes later where that can be, else written by the peer. */
	uint32_t access = w->link->limits.windows ? TP_LENDABLE : TP_REMOTE_WRITE;
	int code = 0;

	for (uint64_t k = w->first[i]; !code && k < w->first[i + 1]; k++)
		code = tp_mr_reg(w->link->domain, w->piece[k].at, w->piece[k].len, access,
				 &w->piece[k].mr, err);
	return code;
}

static int deregister_share(void *ctx, unsigned i, struct mf_error *err)
{
	struct work *w = ctx;

	(void)err;
	for (uint64_t k = w->first[i]; k < w->first[i + 1]; k++)
		tp_mr_dereg(BASE_TAKE_PTR(w->piece[k].mr));
	return 0;
}

/* Fresh memory: registered, and faulted in before if `warm`.  Whatever fails, nothing is left. */
static int sample(struct work *w, struct perf_team *team, bool warm, uint64_t *ret_fault,
		  uint64_t *ret_register, uint64_t *ret_deregister, struct mf_error *err)
{
	void *mem = NULL;

	int code = local_map(w->bytes, w->page, &mem, err);
	if (code)
		return code;
	w->mem = mem;
	w->n_pieces = 0;
	code = cut_pieces(w, err);
	if (!code && warm)
		code = perf_team_do(team, fault_share, w, ret_fault, err);
	if (!code)
		code = perf_team_do(team, register_share, w, ret_register, err);
	if (w->piece)
		(void)perf_team_do(team, deregister_share, w, ret_deregister, NULL);
	free(BASE_TAKE_PTR(w->piece));
	(void)munmap(mem, w->bytes);
	return code;
}

static int measure_once(struct work *w, struct perf_team *team, uint64_t i, struct mf_error *err)
{
	struct link *link = w->link;
	uint64_t fault = 0, cold = 0, warm = 0, dereg = 0;
	struct perf_cpu start;

	perf_cpu_now(&start);
	int code = sample(w, team, false, &fault, &cold, &dereg, err);
	if (!code)
		code = sample(w, team, true, &fault, &warm, &dereg, err);
	local_add_cpu(&link->cpu, &start);
	link->fault[i] = (double)fault;
	link->cold[i] = (double)cold;
	link->warm[i] = (double)warm;
	link->dereg[i] = (double)dereg;
	return code;
}

/* ---- rows ---- */

static json_t *start_row(const struct work *w)
{
	json_t *row = json_object();

	perf_put(row, "transport", json_string(w->link->ops->kind));
	perf_put(row, "device", json_string(w->link->device));
	perf_put(row, "page_bytes", json_integer((json_int_t)w->page));
	perf_put(row, "bytes", json_integer((json_int_t)w->bytes));
	perf_put(row, "threads", json_integer(w->threads));
	return row;
}

static json_t *make_row(const struct work *w, uint64_t n)
{
	struct link *link = w->link;
	double *rate base_cleanup(base_freep) = calloc(n, sizeof(*rate));
	json_t *row = start_row(w);

	for (uint64_t i = 0; rate && i < n; i++)
		rate[i] = (double)w->bytes * 1e9 / (link->warm[i] > 0 ? link->warm[i] : 1);
	perf_put(row, "registrations", json_integer((json_int_t)w->n_pieces));
	perf_put(row, "pins",
		 json_boolean(link->ops->caps & TP_CAP_PINS && !link->limits.on_demand));
	local_put_times(row, "fault_in_ms", link->fault, n, 1e-6);
	local_put_times(row, "register_cold_ms", link->cold, n, 1e-6);
	local_put_times(row, "register_warm_ms", link->warm, n, 1e-6);
	local_put_times(row, "deregister_ms", link->dereg, n, 1e-6);
	if (rate)
		local_put_rates(row, "bytes_per_s", rate, n);
	local_put_cpu(row, &link->cpu, (double)(n * w->bytes));
	return row;
}

static void skip_row(const struct work *w, json_t *rows, struct mf_error *why)
{
	json_t *row = start_row(w);

	local_put_skipped(row, why);
	(void)json_array_append_new(rows, row);
}

/* What cannot be measured here, though all else can.  False: it can. */
static bool is_impossible(const struct work *w, struct mf_error *why)
{
	char size[32], page[32];
	void *mem = NULL;

	(void)base_format_size(w->bytes, size, sizeof(size));
	(void)base_format_size(w->page, page, sizeof(page));
	if (!w->link->domain) {
		*why = w->link->why;
		return true;
	}
	if (w->bytes % w->page)
		return base_error(why, -EINVAL, MF_SCOPE_OP, "%s are no whole pages of %s", size,
				  page) < 0;
	if (w->bytes / w->page < w->threads)
		return base_error(why, -EINVAL, MF_SCOPE_OP,
				  "%s are less than a page of %s for each of %u threads", size,
				  page, w->threads);
	if (local_map(w->bytes, w->page, &mem, why))
		return true;
	(void)munmap(mem, w->bytes);
	return false;
}

static int measure(struct job *job, struct work *work, bool *skipped, struct perf_team *team,
		   struct mf_error *err)
{
	uint64_t ns;
	int code = 0;

	for (unsigned k = 0; !code && k < job->n_links; k++) { /* code and threads, woken once */
		if (!skipped[k])
			code = sample(&work[k], team, false, &ns, &ns, &ns, err);
	}
	for (uint64_t i = 0; !code && i < job->repeat * job->n_links; i++) {
		unsigned k = (unsigned)(i % job->n_links);
		if (!skipped[k])
			code = measure_once(&work[k], team, i / job->n_links, err);
	}
	return code;
}

/* One size, page size and number of threads; the transports take turns. */
static int measure_all(struct job *job, uint64_t bytes, uint64_t page, unsigned threads,
		       json_t *rows, struct mf_error *err)
{
	struct work work[LINKS_MAX];
	bool skipped[LINKS_MAX];
	struct perf_team *team = NULL;

	for (unsigned k = 0; k < job->n_links; k++) {
		struct mf_error why = { 0 };
		job->link[k].cpu = (struct perf_cpu){ 0 };
		work[k] = (struct work){
			.link = &job->link[k], .bytes = bytes, .page = page, .threads = threads
		};
		skipped[k] = is_impossible(&work[k], &why);
		if (skipped[k])
			skip_row(&work[k], rows, &why);
	}
	int code = perf_team_start(threads, &team, err);
	if (!code)
		code = measure(job, work, skipped, team, err);
	perf_team_end(team);
	for (unsigned k = 0; !code && k < job->n_links; k++) {
		if (!skipped[k])
			(void)json_array_append_new(rows, make_row(&work[k], job->repeat));
	}
	return code;
}

static int measure_rows(struct job *job, json_t *rows, struct mf_error *err)
{
	uint32_t all = job->pages.n * job->sizes.n * job->threads.n;
	int code = 0;

	for (uint32_t i = 0; !code && i < all; i++) {
		perf_progress("register  %u of %u", i + 1, all);
		code = measure_all(job, job->sizes.at[i / job->threads.n % job->sizes.n],
				   job->pages.at[i / job->threads.n / job->sizes.n],
				   (unsigned)job->threads.at[i % job->threads.n], rows, err);
	}
	perf_progress_end();
	return code;
}

/* ---- devices ---- */

static uint64_t largest(const struct job *job)
{
	uint64_t most = 0;

	for (uint32_t i = 0; i < job->sizes.n; i++)
		most = job->sizes.at[i] > most ? job->sizes.at[i] : most;
	return most;
}

static int open_link(struct link *link, const char *device, uint64_t most, struct mf_error *err)
{
	const struct path_wish wish = { .device = device, .gid = -1, .own = "" };
	struct tp_path path = { .address = "" };
	bool pins = link->ops->caps & TP_CAP_PINS; /* else no device is asked about memory */

	int code = pins ? path_pick(link->ops, &wish, &path, err) : 0;
	struct tp_domain_params params = { .local = pins ? path.address : NULL, .depth = DEPTH };
	if (!code)
		code = tp_domain_open(link->ops, &params, &link->domain, err);
	if (code)
		return code;
	tp_domain_limits(link->domain, &link->limits);
	(void)snprintf(link->device, sizeof(link->device), "%s", path.device);
	return pins ? eng_check_memlock(most, err) : 0;
}

/* Verbs without a device is an error where it was asked for alone, and rows without figures next to tcp. */
static int open_links(struct job *job, const char *transport, const char *device,
		      struct mf_error *err)
{
	bool both = !strcmp(transport, "both");
	const char *one = strcmp(transport, "auto") ? transport
			  : path_has_verbs()        ? "verbs"
						    : "tcp";
	const char *kinds[LINKS_MAX] = { both ? "verbs" : one, "tcp" };
	int code = 0;

	for (unsigned k = 0; !code && k < (both ? 2 : 1); k++) {
		struct link *link = &job->link[k];
		struct mf_error why = { 0 };
		link->ops = tp_find(kinds[k]);
		if (!link->ops)
			return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
					  "this memferry-perf was built without %.20s", kinds[k]);
		job->n_links++;
		code = open_link(link, device, largest(job), &why);
		if (code == -ENODEV && both && k == 0) {
			link->why = why;
			code = 0;
		} else if (code) {
			return base_error(err, code, why.scope, "%s", why.msg);
		}
	}
	return code;
}

static void close_links(struct job *job)
{
	for (unsigned k = 0; k < job->n_links; k++) {
		tp_domain_close(job->link[k].domain);
		free(job->link[k].fault);
	}
}

static int allocate(struct job *job, struct mf_error *err)
{
	for (unsigned k = 0; k < job->n_links; k++) {
		struct link *link = &job->link[k];
		link->fault = calloc(4 * job->repeat, sizeof(*link->fault));
		if (!link->fault)
			return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
		link->cold = link->fault + job->repeat;
		link->warm = link->cold + job->repeat;
		link->dereg = link->warm + job->repeat;
	}
	return 0;
}

static int take_options(const json_t *options, struct job *job, struct mf_error *err)
{
	int code = local_list(options, "sizes", LOCAL_PAGE, LOCAL_BYTES_MAX, &job->sizes, err);

	if (!code)
		code = local_pages(options, &job->pages, err);
	if (!code)
		code = local_list(options, "threads", 1, LOCAL_THREADS_MAX, &job->threads, err);
	if (!code)
		code = local_number(options, "repeat", 1, LOCAL_REPEAT_MAX, &job->repeat, err);
	return code;
}

int local_register(const json_t *options, uint64_t max_bytes, json_t *ret_rows,
		   struct mf_error *err)
{
	const char *device = perf_text(options, "ib-dev");
	struct job job = { .n_links = 0 };

	int code = take_options(options, &job, err);
	if (!code)
		code = local_allow(largest(&job), max_bytes, err);
	if (!code)
		code = open_links(&job, perf_text(options, "transport"), device[0] ? device : NULL,
				  err);
	if (!code)
		code = allocate(&job, err);
	if (!code)
		code = measure_rows(&job, ret_rows, err);
	close_links(&job);
	return code;
}
