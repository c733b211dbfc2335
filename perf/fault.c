/* SPDX-License-Identifier: BSD-2-Clause */
/* One measurement: threads that touch, threads that answer, and what came of it. */
#include "perf/fault.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "perf/fault_priv.h"
#include "perf/start.h"

/* As the engine's fault service has them. */
#define FAULTS_TAKEN 32u
#define SPIN_US      60u
#define SLEEP_MS     500u
/* Without a single page more: the peer is lost, or a fault. */
#define STUCK_MS 30000u

struct run;

struct handler {
	struct run *run;
	uint32_t shard;
	struct tp_lane *lane;
	pthread_t thread;
	uint64_t in_flight;
	_Atomic uint64_t served;
	/* What ended it early: read when it was joined. */
	int failure;
	const char *what;
};

struct toucher {
	struct run *run;
	uint64_t first, end; /* of bench->order */
	pthread_t thread;
};

struct run {
	struct perf_fault_bench *bench;
	struct perf_path *path;
	struct pgr *pgr;
	uint64_t n; /* touches */
	/* Held for writing until all touchers are there: they begin at once. */
	pthread_rwlock_t gate;
	int event_fd;                /* a toucher is through, or a handler has failed */
	_Atomic bool stop;           /* touchers and handlers end */
	_Atomic bool failed;         /* a handler has */
	_Atomic uint32_t touching;   /* touchers that are not through */
	_Atomic uint64_t wrong_page; /* UINT64_MAX: none */
	uint32_t n_handlers, n_touchers;
	struct handler handlers[PERF_UFFDS_MAX];
	struct toucher touchers[PERF_FAULT_THREADS_MAX];
};

/* ---- who touches ---- */

/* The first word is the touch; the last one has to be there, too.  The rest is looked at when no clock runs. */
static bool touch(struct perf_fault_bench *bench, uint64_t page)
{
	uint64_t words = bench->params.page_size / 8;
	const uint64_t *at = (const uint64_t *)(bench->guest + page * bench->params.page_size);
	struct fault_touch *t = &bench->touches[page];
	uint64_t want = fault_first_word(bench->params.seed, page);

	/* release: pairs with take_fault() */
	atomic_store_explicit(&t->began, base_now_ns(), memory_order_release);
	uint64_t first = __atomic_load_n(at, __ATOMIC_RELAXED);
	t->resumed = base_now_ns();
	uint64_t last = __atomic_load_n(at + words - 1, __ATOMIC_RELAXED);
	return first == want && last == want + (words - 1) * FAULT_STEP;
}

static void *toucher_main(void *arg)
{
	struct toucher *toucher = arg;
	struct run *run = toucher->run;

	(void)pthread_rwlock_rdlock(&run->gate);
	(void)pthread_rwlock_unlock(&run->gate);
	for (uint64_t i = toucher->first; i < toucher->end; i++) {
		if (atomic_load_explicit(&run->stop, memory_order_acquire))
			break;
		uint64_t page = run->bench->order[i];
		bool right = touch(run->bench, page);
		/* Woken by disarming, it saw anything: `stop` was set before. */
		if (!right && !atomic_load_explicit(&run->stop, memory_order_acquire))
			atomic_store_explicit(&run->wrong_page, page, memory_order_relaxed);
	}
	/* release: pairs with wait_for_touchers() */
	atomic_fetch_sub_explicit(&run->touching, 1, memory_order_release);
	base_event_poke(run->event_fd);
	return NULL;
}

/* ---- who answers ---- */

static int fail(struct handler *h, int code, const char *what)
{
	h->failure = code;
	h->what = what;
	return code;
}

static int install(struct handler *h, uint64_t page)
{
	const struct pgr_extent extent = { .first = page, .n = 1 };
	int code = pgr_complete(h->run->pgr, &extent, NULL);

	return code < 0 ? fail(h, code, "a page that came cannot be mapped") : 0;
}

/* Number of reads that were complete. */
static int take_reads(struct handler *h)
{
	struct tp_wc wc[16];
	int n = tp_lane_poll(h->lane, wc, BASE_ARRAY_LEN(wc)), code = 0;

	if (n < 0)
		return fail(h, n, "the lane failed");
	uint64_t now = n ? base_now_ns() : 0;
	for (int i = 0; i < n; i++)
		h->run->bench->touches[wc[i].cookie].come = now;
	h->in_flight -= (unsigned)n;
	for (int i = 0; i < n && !code; i++)
		code = wc[i].status < 0 ? fail(h, wc[i].status, "a read of a page failed")
					: install(h, wc[i].cookie);
	if (code < 0)
		return code;
	if (n)
		atomic_fetch_add_explicit(&h->served, (unsigned)n, memory_order_relaxed);
	return n;
}

static int post_read(struct handler *h, uint64_t page)
{
	const struct perf_fault_bench *bench = h->run->bench;
	const struct perf_end *end = &h->run->path->end[h->shard];
	uint64_t size = bench->params.page_size;
	uint64_t at = (page - h->shard * bench->span) * size;
	const struct tp_xfer x = { .local = end->mem + at,
				   .mr = end->mr,
				   .remote = end->remote.addr + at,
				   .key = end->remote.key,
				   .len = size,
				   .cookie = page };
	int code;

	while ((code = tp_post_read(h->lane, &x, 1)) == -EAGAIN) {
		code = take_reads(h);
		if (code < 0)
			return code;
	}
	if (code < 0)
		return fail(h, code, "a read of a page cannot be posted");
	h->in_flight++;
	return 0;
}

static int take_fault(struct handler *h, const struct pgr_fault *fault)
{
	struct fault_touch *t = &h->run->bench->touches[fault->page];

	/* acquire: pairs with touch() */
	if (!atomic_load_explicit(&t->began, memory_order_acquire))
		return fail(h, -EIO, "a page was missed that no thread had touched");
	if (t->seen) /* told again: it is on its way, or has to be mapped once more */
		return t->come ? install(h, fault->page) : 0;
	t->seen = base_now_ns();
	return post_read(h, fault->page);
}

static int serve_once(struct handler *h, uint64_t *active_us)
{
	struct pgr_fault faults[FAULTS_TAKEN];
	uint64_t deadline = 0;
	int lane_fd = -1;

	/* Armed: a completion that comes from here on makes lane_fd readable. */
	if (base_now_us() - *active_us > SPIN_US && tp_lane_arm(h->lane, &lane_fd) == 0)
		deadline = base_deadline_ms(SLEEP_MS);
	int n = pgr_next(h->run->pgr, h->shard, faults, FAULTS_TAKEN, 0, deadline, lane_fd);
	if (n < 0)
		return fail(h, n, "faults cannot be read");
	for (int i = 0; i < n; i++) {
		int code = take_fault(h, &faults[i]);
		if (code < 0)
			return code;
	}
	int done = take_reads(h);
	if (n > 0 || done > 0)
		*active_us = base_now_us();
	return done;
}

static void *handler_main(void *arg)
{
	struct handler *h = arg;
	struct run *run = h->run;
	uint64_t active_us = 0;
	int code = 0;

	while (code >= 0 && !atomic_load_explicit(&run->stop, memory_order_acquire))
		code = serve_once(h, &active_us);
	/* Only after a failure elsewhere: reads must not land in memory that is used again. */
	uint64_t deadline = base_deadline_ms(STUCK_MS);
	while (code >= 0 && h->in_flight) {
		code = take_reads(h);
		if (code >= 0 && h->in_flight && tp_lane_wait(h->lane, deadline) < 0)
			code = fail(h, -ETIMEDOUT, "a read of a page");
	}
	if (code < 0) {
		atomic_store_explicit(&run->failed, true, memory_order_release);
		base_event_poke(run->event_fd);
	}
	return NULL;
}

/* ---- starting and ending ---- */

static int start_handlers(struct run *run, struct mf_error *err)
{
	int ret = 0;

	for (uint32_t i = 0; !ret && i < run->bench->params.uffds; i++) {
		struct handler *h = &run->handlers[i];
		h->run = run;
		h->shard = i;
		h->lane = run->path->end[i].lane;
		ret = perf_start_thread(&h->thread, handler_main, h, err);
		run->n_handlers += !ret;
	}
	return ret;
}

static int start_touchers(struct run *run, uint32_t threads, struct mf_error *err)
{
	int ret = 0;

	for (uint32_t i = 0; !ret && i < threads; i++) {
		struct toucher *toucher = &run->touchers[i];
		*toucher = (struct toucher){ .run = run,
					     .first = run->n * i / threads,
					     .end = run->n * (i + 1) / threads };
		atomic_fetch_add_explicit(&run->touching, 1, memory_order_relaxed);
		ret = perf_start_thread(&toucher->thread, toucher_main, toucher, err);
		run->n_touchers += !ret;
	}
	return ret;
}

static uint64_t count_served(struct run *run)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < run->n_handlers; i++)
		n += atomic_load_explicit(&run->handlers[i].served, memory_order_relaxed);
	return n;
}

static int wait_for_touchers(struct run *run, struct mf_error *err)
{
	uint64_t served = 0, deadline = base_deadline_ms(STUCK_MS);

	/* acquire: pairs with toucher_main() */
	while (atomic_load_explicit(&run->touching, memory_order_acquire)) {
		struct pollfd p = { .fd = run->event_fd, .events = POLLIN };
		if (atomic_load_explicit(&run->failed, memory_order_acquire))
			return -EIO; /* whose failure it is, join_handlers() tells */
		uint64_t now_served = count_served(run);
		if (now_served != served)
			deadline = base_deadline_ms(STUCK_MS);
		else if (base_now_us() >= deadline)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
					  "no page has come for %u s, after %" PRIu64
					  " of %" PRIu64,
					  STUCK_MS / 1000, served, run->n);
		served = now_served;
		if (poll(&p, 1, 1000) > 0)
			base_event_take(run->event_fd);
	}
	return 0;
}

static void join_handlers(struct run *run, int *ret, struct mf_error *err)
{
	for (uint32_t i = 0; i < run->n_handlers; i++)
		tp_lane_wake(run->handlers[i].lane);
	for (uint32_t i = 0; i < run->n_handlers; i++)
		(void)pthread_join(run->handlers[i].thread, NULL);
	for (uint32_t i = 0; i < run->n_handlers; i++) {
		const struct handler *h = &run->handlers[i];
		if (h->failure)
			*ret = base_error_sys(err, h->failure, MF_SCOPE_SESSION,
					      "userfaultfd %u, lane %u: %s", i, i, h->what);
	}
}

/* In any case all threads have ended, and nothing is armed any more. */
static int touch_all(struct run *run, const struct perf_fault_plan *plan, struct perf_cpu *client,
		     struct mf_error *err)
{
	struct perf_cpu start;

	(void)pthread_rwlock_wrlock(&run->gate);
	int ret = start_handlers(run, err);
	if (!ret)
		ret = start_touchers(run, plan->threads, err);
	if (ret)
		atomic_store_explicit(&run->stop, true, memory_order_release);
	perf_cpu_now(&start);
	(void)pthread_rwlock_unlock(&run->gate);
	if (!ret)
		ret = wait_for_touchers(run, err);
	perf_cpu_since(&start, client);
	/* release: whoever is woken from now on, by no page, sees it. */
	atomic_store_explicit(&run->stop, true, memory_order_release);
	join_handlers(run, &ret, err);
	pgr_disarm(run->pgr);
	for (uint32_t i = 0; i < run->n_touchers; i++)
		(void)pthread_join(run->touchers[i].thread, NULL);
	return ret;
}

/* All local pages are there and wrong, none is mapped where it will be touched. */
static int prepare(struct run *run, struct mf_error *err)
{
	struct perf_fault_bench *bench = run->bench;
	uint64_t len = bench->pages * bench->params.page_size;
	const struct pgr_range range = { .addr = (uintptr_t)bench->guest,
					 .len = len,
					 .page_size = bench->params.page_size,
					 .kind = PGR_SHARED,
					 .local = bench->local };
	const struct pgr_params params = { .uffds = bench->uffds,
					   .n_uffds = bench->params.uffds,
					   .ranges = &range,
					   .n_ranges = 1 };

	fault_poison(bench);
	memset(bench->touches, 0, bench->pages * sizeof(*bench->touches));
	int ret = pgr_open(&params, &run->pgr, err);
	if (!ret)
		ret = pgr_arm(run->pgr, NULL, 0, err);
	if (!ret && madvise(bench->guest, len, MADV_DONTNEED))
		ret = base_error_sys(err, -errno, MF_SCOPE_HOST, "MADV_DONTNEED");
	return ret;
}

/* ---- what came of it ---- */

/* Each touch was caught, its times are in order - so that its parts sum up - and all its bytes are right. */
static int check_touches(const struct run *run, struct mf_error *err)
{
	const struct perf_fault_bench *bench = run->bench;

	for (uint64_t i = 0; i < run->n; i++) {
		uint64_t page = bench->order[i], wrong = fault_wrong_word(bench, page);
		const struct fault_touch *t = &bench->touches[page];
		if (wrong != UINT64_MAX)
			return base_error(err, -MF_EINTEGRITY, MF_SCOPE_SESSION,
					  "page %" PRIu64 " came with wrong bytes at %" PRIu64,
					  page, wrong);
		if (!t->seen || !t->come)
			return base_error(err, -EIO, MF_SCOPE_HOST,
					  "a touch of page %" PRIu64 " was not caught", page);
		if (t->began > t->seen || t->seen > t->come || t->come > t->resumed)
			return base_error(err, -EIO, MF_SCOPE_HOST,
					  "the clock went back while page %" PRIu64 " was fetched",
					  page);
	}
	uint64_t early = atomic_load_explicit(&run->wrong_page, memory_order_relaxed);
	if (early != UINT64_MAX)
		return base_error(err, -MF_EINTEGRITY, MF_SCOPE_SESSION,
				  "page %" PRIu64 " was mapped before its bytes were there", early);
	return 0;
}

enum part { WHOLE, WAKE, READ, INSTALL };

static double part_us(const struct fault_touch *t, enum part part)
{
	switch (part) {
	case WAKE:
		return (double)(t->seen - t->began) / 1e3;
	case READ:
		return (double)(t->come - t->seen) / 1e3;
	case INSTALL:
		return (double)(t->resumed - t->come) / 1e3;
	default:
		return (double)(t->resumed - t->began) / 1e3;
	}
}

static void describe(const struct run *run, enum part part, struct perf_stats *ret)
{
	const struct perf_fault_bench *bench = run->bench;

	for (uint64_t i = 0; i < run->n; i++)
		bench->samples[i] = part_us(&bench->touches[bench->order[i]], part);
	perf_stats_of(bench->samples, run->n, ret);
}

static void sum_up(const struct run *run, struct perf_fault *ret)
{
	const struct perf_fault_bench *bench = run->bench;
	uint64_t first = UINT64_MAX, last = 0;

	for (uint64_t i = 0; i < run->n; i++) {
		const struct fault_touch *t = &bench->touches[bench->order[i]];
		first = t->began < first ? t->began : first;
		last = t->resumed > last ? t->resumed : last;
	}
	ret->touches = run->n;
	ret->seconds = (double)(last - first) / 1e9;
	ret->faults_per_s = (double)run->n / ret->seconds;
	ret->bytes_per_s = ret->faults_per_s * (double)bench->params.page_size;
	describe(run, WHOLE, &ret->latency_us);
	describe(run, WAKE, &ret->wake_us);
	describe(run, READ, &ret->read_us);
	describe(run, INSTALL, &ret->install_us);
}

/* With the server's keepers at work. */
static int measure(struct run *run, struct perf_peer *peer, const struct perf_fault_plan *plan,
		   struct perf_fault *ret, struct mf_error *err)
{
	struct mf_error again = { 0 };

	int code = fault_keep(peer, run->path, err);
	if (code)
		return code;
	code = touch_all(run, plan, &ret->client, err);
	/* Also after a failure: the server is to be asked for other things afterwards. */
	int stopped = fault_keep_stop(peer, run->path, &ret->server, code ? &again : err);
	code = code ? code : stopped;
	if (!code)
		code = check_touches(run, err);
	if (!code)
		sum_up(run, ret);
	return code;
}

int perf_fault_run(struct perf_fault_bench *bench, struct perf_peer *peer, struct perf_path *path,
		   const struct perf_fault_plan *plan, struct perf_fault *ret, struct mf_error *err)
{
	struct run *run base_cleanup(base_freep) = calloc(1, sizeof(*run));

	assert(plan->threads && plan->threads <= PERF_FAULT_THREADS_MAX);
	assert(path->n == bench->params.uffds && path->bytes == perf_fault_lane_bytes(bench));
	if (!run)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	*ret = (struct perf_fault){ 0 };
	run->bench = bench;
	run->path = path;
	run->n = plan->touches && plan->touches < bench->pages ? plan->touches : bench->pages;
	atomic_init(&run->wrong_page, UINT64_MAX);
	run->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (run->event_fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "eventfd");
	(void)pthread_rwlock_init(&run->gate, NULL);
	int code = prepare(run, err);
	if (!code)
		code = measure(run, peer, plan, ret, err);
	if (run->pgr)
		pgr_disarm(run->pgr);
	pgr_close(run->pgr);
	(void)pthread_rwlock_destroy(&run->gate);
	(void)close(run->event_fd);
	return code;
}
