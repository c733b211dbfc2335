/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The tracker contract's laws, D1 to D7, over one backend (named by the first argument), every kind of
 * memory, and this as well as another process.  The second argument, a pattern, picks cases.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "tests/conformance/conf_guest.h"
#include "tracker/tracker.h"

#define WRITERS   2
#define PAGES_MAX 4096
#define ROUNDS    60

struct variant {
	const struct trk_ops *ops;
	enum backing backing;
	bool is_other;
};

/* In the guest's shared page: what the writers say they have done. */
struct diary {
	atomic_bool stop;
	atomic_ullong done[WRITERS][PAGES_MAX]; /* the counter last written, after writing it */
	atomic_ullong visits, signals, signal_sum, traps;
	atomic_ullong asked, answered; /* of the thread that outlives its leader */
};

struct bench {
	struct guest g;
	struct trk *trk;
	struct diary *diary;
	uint64_t *bits;
	bool is_skipped;
};

static void check(int code, const struct mf_error *err)
{
	if (code < 0)
		fail_msg("%d: %s", code, err->msg);
}

/* Why the backend does not track this guest here; NULL: it does. */
static const char *refusal(const struct guest *g, const struct trk_ops *ops, struct mf_error *err)
{
	struct trk_range range = { (uintptr_t)g->mem, g->len, g->page_size };
	struct trk_params params = {
		.pid = g->is_other ? g->pid : 0, .uffd = -1, .ranges = &range, .n_ranges = 1
	};
	return trk_probe(ops, &params, err) < 0 ? err->msg : NULL;
}

/* Where the backend may report pages around those written, at once. */
static bool is_coarse(const struct variant *v)
{
	bool may_be_huge = v->backing == BACK_ANON || v->backing == BACK_ANON_THP;
	return v->ops->caps & TRK_CAP_SYNC || (!strcmp(v->ops->name, "softdirty") && may_be_huge);
}

static void watch(struct bench *b, const struct trk_ops *ops, int uffd, struct trk **ret)
{
	struct mf_error err = { 0 };
	struct trk_range range = { (uintptr_t)b->g.mem, b->g.len, b->g.page_size };
	struct trk_params params = {
		.pid = b->g.is_other ? b->g.pid : 0, .uffd = uffd, .ranges = &range, .n_ranges = 1
	};
	check(trk_open(ops, &params, ret, &err), &err);
	check(trk_start(*ret, &err), &err);
}

/* False: skipped, and said so. */
static bool make_guest(struct bench *b, const struct variant *v)
{
	*b = (struct bench){ 0 };
	struct mf_error err = { 0 };
	const char *why = guest_open(&b->g, v->backing, v->is_other);
	bool is_open = !why;
	if (is_open)
		why = refusal(&b->g, v->ops, &err);
	if (!why)
		return true;
	print_message("SKIP: %s: %s\n", backing_name(v->backing), why);
	if (is_open)
		guest_close(&b->g);
	return false;
}

static bool set_up(struct bench *b, void **state, guest_fn before)
{
	const struct variant *v = *state;
	if (!make_guest(b, v))
		return false;
	b->diary = b->g.shm;
	b->bits = calloc(bitmap_words(b->g.pages), sizeof(*b->bits));
	if (before)
		guest_run(&b->g, before, 0, b->g.pages, 7, 0);
	watch(b, v->ops, b->g.uffds[0], &b->trk);
	return true;
}

static void tear_down(struct bench *b)
{
	trk_close(b->trk);
	guest_close(&b->g);
	free(b->bits);
}

static uint64_t collect_part(struct bench *b, uint64_t first, uint64_t n, uint64_t *bits)
{
	struct mf_error err = { 0 };
	uint64_t pages = 0;
	check(trk_collect(b->trk, 0, first, n, bits, &pages, &err), &err);
	return pages;
}

static uint64_t collect(struct bench *b)
{
	memset(b->bits, 0, bitmap_words(b->g.pages) * sizeof(*b->bits));
	uint64_t pages = collect_part(b, 0, b->g.pages, b->bits);
	assert_int_equal(pages, bitmap_count(b->bits, 0, b->g.pages));
	return pages;
}

/* ---- what the guest does ---- */

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static int64_t write_pages(struct guest *g, const uint64_t *args)
{
	for (uint64_t p = args[0]; p < args[0] + args[1]; p++)
		*(volatile uint64_t *)(g->mem + p * g->page_size + 2048) = args[2] + p;
	return 0;
}

static int64_t write_half(struct guest *g, const uint64_t *args)
{
	(void)args;
	uint64_t half[4] = { 0, g->pages / 2, 3 };
	return write_pages(g, half);
}

static int64_t read_pages(struct guest *g, const uint64_t *args)
{
	uint64_t sum = 0;
	for (uint64_t p = args[0]; p < args[0] + args[1]; p++)
		sum += *(volatile uint64_t *)(g->mem + p * g->page_size);
	return sum == UINT64_MAX;
}

/* The kernel writes for us: read(2) into each page, where no writer writes. */
static int64_t write_pages_by_kernel(struct guest *g, const uint64_t *args)
{
	int pair[2];
	if (pipe(pair))
		return -1;
	int64_t bad = 0;
	for (uint64_t p = args[0]; p < args[0] + args[1]; p++) {
		uint64_t value = args[2] + p;
		if (write(pair[1], &value, sizeof(value)) != sizeof(value) ||
		    read(pair[0], g->mem + p * g->page_size + 1024 + 32, sizeof(value)) !=
			    sizeof(value))
			bad++;
	}
	close(pair[0]);
	close(pair[1]);
	return bad;
}

struct writer {
	pthread_t thread;
	struct guest *g;
	unsigned id;
};
static struct writer writers[WRITERS]; /* of the guest's process */

static void *write_on(void *arg)
{
	const struct writer *w = arg;
	struct guest *g = w->g;
	struct diary *d = g->shm;
	uint64_t random = 88172645463325252u + w->id, n = 0;
	while (!atomic_load(&d->stop)) {
		uint64_t r = next_random(&random);
		/* Now and then a run, mostly single pages of a slowly moving window. */
		uint64_t page = n++ % 64 ? (r % 256 + n / 4096) % g->pages : r % g->pages;
		char *at = g->mem + page * g->page_size;
		uint64_t count = atomic_load(&d->done[w->id][page]) + 1;
		/* Anywhere in the page, in this writer's own words. */
		uint64_t slot = (r >> 20) % (g->page_size / 64) * 64 + w->id * 8;
		*(volatile uint64_t *)(at + slot) = count;
		*(volatile uint64_t *)(at + w->id * 8) = count;
		atomic_store(&d->done[w->id][page], count);
	}
	return NULL;
}

static int64_t start_writers(struct guest *g, const uint64_t *args)
{
	(void)args;
	for (unsigned i = 0; i < WRITERS; i++) {
		writers[i] = (struct writer){ .g = g, .id = i };
		if (pthread_create(&writers[i].thread, NULL, write_on, &writers[i]))
			return -1;
	}
	return 0;
}

static int64_t stop_writers(struct guest *g, const uint64_t *args)
{
	(void)args;
	struct diary *d = g->shm;
	atomic_store(&d->stop, true);
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(writers[i].thread, NULL);
	return 0;
}

/* ---- laws ---- */

/* The copy of the guest that a move would make: only pages reported are ever copied. */
static void copy_reported(struct bench *b, char *shadow)
{
	struct extent e;
	for (uint64_t at = 0; bitmap_next_extent(b->bits, at, b->g.pages, b->g.pages, &e);
	     at = e.first + e.n)
		guest_read(&b->g, e.first * b->g.page_size, shadow + e.first * b->g.page_size,
			   e.n * b->g.page_size);
}

static void check_not_older(const struct bench *b, const char *shadow, uint64_t *seen)
{
	for (unsigned w = 0; w < WRITERS; w++) {
		for (uint64_t p = 0; p < b->g.pages; p++) {
			uint64_t have;
			memcpy(&have, shadow + p * b->g.page_size + w * 8, sizeof(have));
			if (have < seen[w * PAGES_MAX + p])
				fail_msg("page %llu: writer %u had written %llu, reported was %llu",
					 (unsigned long long)p, w,
					 (unsigned long long)seen[w * PAGES_MAX + p],
					 (unsigned long long)have);
		}
	}
}

static void snapshot(const struct bench *b, uint64_t *seen)
{
	for (unsigned w = 0; w < WRITERS; w++) {
		for (uint64_t p = 0; p < b->g.pages; p++)
			seen[w * PAGES_MAX + p] = atomic_load(&b->diary->done[w][p]);
	}
}

static void check_equal(const struct bench *b, const char *shadow)
{
	base_autofree char *page = malloc(b->g.page_size);
	for (uint64_t p = 0; p < b->g.pages; p++) {
		guest_read(&b->g, p * b->g.page_size, page, b->g.page_size);
		if (memcmp(page, shadow + p * b->g.page_size, b->g.page_size))
			fail_msg("page %llu differs from what was reported", (unsigned long long)p);
	}
}

static void d1_every_write_is_reported(void **state)
{
	struct bench b;
	if (!set_up(&b, state, write_half))
		skip();
	base_autofree char *shadow = malloc(b.g.len);
	base_autofree uint64_t *seen = calloc(WRITERS * PAGES_MAX, sizeof(*seen));
	guest_read(&b.g, 0, shadow, b.g.len);
	assert_int_equal(guest_run(&b.g, start_writers, 0, 0, 0, 0), 0);
	uint64_t part = b.g.pages / 3;
	for (int round = 0; round < ROUNDS; round++) {
		snapshot(&b, seen);
		if (round % 2) {
			collect(&b);
		} else {
			/* In parts, the bitmap of one word-aligned piece each. */
			memset(b.bits, 0, bitmap_words(b.g.pages) * sizeof(*b.bits));
			part = part >= 64 ? part / 64 * 64 : b.g.pages;
			for (uint64_t at = 0; at < b.g.pages; at += part)
				collect_part(&b, at, b.g.pages - at < part ? b.g.pages - at : part,
					     b.bits + at / 64);
		}
		copy_reported(&b, shadow);
		check_not_older(&b, shadow, seen);
	}
	guest_run(&b.g, stop_writers, 0, 0, 0, 0);
	collect(&b);
	copy_reported(&b, shadow);
	check_equal(&b, shadow);
	tear_down(&b);
}

static void d2_collect_after_the_writers_leaves_nothing(void **state)
{
	struct bench b;
	if (!set_up(&b, state, NULL))
		skip();
	base_autofree char *shadow = malloc(b.g.len);
	guest_read(&b.g, 0, shadow, b.g.len);
	collect(&b);
	copy_reported(&b, shadow);
	for (int i = 0; i < 3; i++) {
		atomic_store(&b.diary->stop, false);
		assert_int_equal(guest_run(&b.g, start_writers, 0, 0, 0, 0), 0);
		assert_int_equal(guest_run(&b.g, write_pages_by_kernel, i, b.g.pages / 2, i, 0), 0);
		guest_run(&b.g, stop_writers, 0, 0, 0, 0);
		collect(&b);
		copy_reported(&b, shadow);
		check_equal(&b, shadow);
	}
	tear_down(&b);
}

static void d3_collect_reads_clears_and_ors(void **state)
{
	struct bench b;
	if (!set_up(&b, state, write_pages))
		skip();
	collect(&b);
	guest_run(&b.g, write_pages, 2, 3, 1, 0);
	memset(b.bits, 0, bitmap_words(b.g.pages) * sizeof(*b.bits));
	bitmap_set(b.bits, 0, 1);
	bitmap_set(b.bits, 3, 1);
	bitmap_set(b.bits, 7, 1);
	uint64_t pages = collect_part(&b, 0, b.g.pages, b.bits);
	uint64_t expected = 1u << 0 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 7;
	assert_int_equal(b.bits[0] & expected, expected);
	if (!is_coarse(*state)) {
		assert_int_equal(pages, 3);
		assert_int_equal(bitmap_count(b.bits, 0, b.g.pages), 5);
	}
	/* read means cleared */
	assert_int_equal(collect(&b), 0);
	tear_down(&b);
}

static void d4_over_reporting_settles(void **state)
{
	struct bench b;
	if (!set_up(&b, state, write_half))
		skip();
	/* What was there, what was not: nobody wrote, so nothing may be left after one collect;
	 * reading is not writing. */
	collect(&b);
	assert_int_equal(collect(&b), 0);
	guest_run(&b.g, read_pages, 0, b.g.pages, 0, 0);
	collect(&b);
	guest_run(&b.g, read_pages, 0, b.g.pages, 0, 0);
	assert_int_equal(collect(&b), 0);
	/* Written once, reported once. */
	guest_run(&b.g, write_pages, 0, b.g.pages, 1, 0);
	assert_int_equal(collect(&b), b.g.pages);
	assert_int_equal(collect(&b), 0);
	guest_run(&b.g, write_pages, 5, 1, 1, 0);
	uint64_t pages = collect(&b);
	assert_true(bitmap_test(b.bits, 5) && (pages == 1 || is_coarse(*state)));
	assert_int_equal(collect(&b), 0);
	tear_down(&b);
}

static void d5_collect_of_a_part_clears_that_part(void **state)
{
	struct bench b;
	if (!set_up(&b, state, NULL))
		skip();
	guest_run(&b.g, write_pages, 0, b.g.pages, 1, 0);
	uint64_t n = b.g.pages / 2;
	memset(b.bits, 0, bitmap_words(b.g.pages) * sizeof(*b.bits));
	assert_int_equal(collect_part(&b, 3, n, b.bits), n);
	assert_int_equal(bitmap_count(b.bits, 0, n), n);
	assert_int_equal(bitmap_next_set(b.bits, n, b.g.pages), b.g.pages);
	assert_int_equal(collect(&b), b.g.pages - n);
	assert_int_equal(bitmap_next_set(b.bits, 3, 3 + n), 3 + n);
	assert_int_equal(collect_part(&b, 1, 0, b.bits), 0);
	tear_down(&b);
}

static void check_nothing_stays(const struct bench *b)
{
	assert_false(guest_has_vmflag(&b->g, "uw"));
	char path[64];
	(void)snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)b->g.pid);
	base_autofd fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t entries[512];
	for (uint64_t at = 0; at < b->g.len / 4096; at += 512) {
		uint64_t from = ((uintptr_t)b->g.mem / 4096 + at) * 8;
		assert_int_equal(pread(fd, entries, sizeof(entries), (off_t)from), sizeof(entries));
		for (int i = 0; i < 512; i++)
			assert_int_equal(entries[i] >> 57 & 1, 0); /* write-protected */
	}
}

static void d6_stop_leaves_it_as_it_was(void **state)
{
	const struct variant *v = *state;
	struct bench b;
	if (!set_up(&b, state, write_half))
		skip();
	assert_int_equal(guest_run(&b.g, start_writers, 0, 0, 0, 0), 0);
	collect(&b);
	trk_stop(b.trk);
	trk_stop(b.trk); /* harmless */
	guest_run(&b.g, stop_writers, 0, 0, 0, 0);
	check_nothing_stays(&b);
	guest_run(&b.g, write_pages, 0, b.g.pages, 9, 0);
	for (uint64_t p = 0; p < b.g.pages; p++) {
		uint64_t have;
		guest_read(&b.g, p * b.g.page_size + 2048, &have, sizeof(have));
		assert_int_equal(have, 9 + p);
	}
	/* Started again, by the same tracker, and by another one with its own descriptor. */
	struct mf_error err = { 0 };
	check(trk_start(b.trk, &err), &err);
	guest_run(&b.g, write_pages, 1, 2, 1, 0);
	collect(&b);
	assert_true(bitmap_test(b.bits, 1) && bitmap_test(b.bits, 2));
	trk_close(b.trk);
	check_nothing_stays(&b);
	watch(&b, v->ops, b.g.uffds[1], &b.trk);
	/* An earlier tracker's descriptor serves a later one. */
	trk_close(b.trk);
	watch(&b, v->ops, b.g.uffds[0], &b.trk);
	guest_run(&b.g, write_pages, 1, 2, 1, 0);
	collect(&b);
	assert_true(bitmap_test(b.bits, 1) && bitmap_test(b.bits, 2));
	tear_down(&b);
}

static void d6_stop_is_safe_when_the_process_is_gone(void **state)
{
	struct bench b;
	if (!set_up(&b, state, NULL))
		skip();
	guest_run(&b.g, write_pages, 0, b.g.pages, 1, 0);
	guest_kill(&b.g);
	struct mf_error err = { 0 };
	uint64_t pages = 0;
	assert_int_equal(trk_collect(b.trk, 0, 0, b.g.pages, b.bits, &pages, &err), -ESRCH);
	assert_non_null(strstr(err.msg, "gone"));
	tear_down(&b);
}

/* The owner is a process of its own, and stands still. */
static void d7_a_stopped_owner_stops_nobody(void **state)
{
	const struct variant *v = *state;
	struct bench b;
	if (!make_guest(&b, v))
		skip();
	guest_run(&b.g, write_half, 0, 0, 0, 0);
	struct trk_range range = { (uintptr_t)b.g.mem, b.g.len, b.g.page_size };
	struct trk_params params = {
		.pid = b.g.pid, .uffd = b.g.uffds[0], .ranges = &range, .n_ranges = 1
	};
	pid_t owner = fork();
	if (!owner) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		struct mf_error err = { 0 };
		if (trk_open(v->ops, &params, &b.trk, &err) < 0 || trk_start(b.trk, &err) < 0)
			_exit(1);
		(void)raise(SIGSTOP);
		_exit(0);
	}
	int status;
	assert_int_equal(waitpid(owner, &status, WUNTRACED), owner);
	assert_true(WIFSTOPPED(status));
	if (v->ops->caps & TRK_CAP_NEEDS_UFFD)
		assert_true(guest_has_vmflag(&b.g, "uw"));
	assert_int_equal(guest_run(&b.g, write_pages, 0, b.g.pages, 1, 0), 0);
	assert_int_equal(guest_run(&b.g, write_pages_by_kernel, 0, b.g.pages, 1, 0), 0);
	kill(owner, SIGKILL);
	waitpid(owner, NULL, 0);
	/* Nor does a dead one. */
	assert_int_equal(guest_run(&b.g, write_pages, 0, b.g.pages, 2, 0), 0);
	guest_close(&b.g);
}

static void failures_name_the_cause(void **state)
{
	const struct variant *v = *state;
	struct bench b;
	if (!set_up(&b, state, NULL))
		skip();
	/* Memory that somebody else watches. */
	struct mf_error err = { 0 };
	struct trk *other = NULL;
	struct trk_range range = { (uintptr_t)b.g.mem, b.g.len, b.g.page_size };
	struct trk_params params = { .pid = b.g.is_other ? b.g.pid : 0,
				     .uffd = b.g.uffds[1],
				     .ranges = &range,
				     .n_ranges = 1 };
	check(trk_open(v->ops, &params, &other, &err), &err);
	assert_int_equal(trk_start(other, &err), -EBUSY);
	assert_non_null(strstr(err.msg, "another userfaultfd"));
	trk_close(other);
	/* ... and the first one goes on. */
	guest_run(&b.g, write_pages, 0, 1, 1, 0);
	collect(&b);
	assert_true(bitmap_test(b.bits, 0));
	tear_down(&b);
}

/* ---- what a busy process goes through while it is collected ---- */

static void *visit(void *arg)
{
	struct guest *g = arg;
	struct diary *d = g->shm;
	uint64_t n = atomic_fetch_add(&d->visits, 1), page = n % g->pages;
	*(volatile uint64_t *)(g->mem + page * g->page_size) = n / g->pages + 1;
	atomic_store(&d->done[0][page], n / g->pages + 1);
	return NULL;
}

static void *send_visitors(void *arg)
{
	struct guest *g = arg;
	struct diary *d = g->shm;
	pthread_t thread;
	while (!atomic_load(&d->stop)) {
		if (!pthread_create(&thread, NULL, visit, g))
			pthread_join(thread, NULL);
	}
	return NULL;
}

/* Threads that live for one write each. */
static int64_t come_and_go(struct guest *g, const uint64_t *args)
{
	(void)args;
	pthread_t other;
	if (pthread_create(&other, NULL, send_visitors, g))
		return -1;
	send_visitors(g);
	return pthread_join(other, NULL);
}

static void d1_threads_come_and_go(void **state)
{
	struct bench b;
	if (!set_up(&b, state, NULL))
		skip();
	base_autofree char *shadow = malloc(b.g.len);
	base_autofree uint64_t *seen = calloc(WRITERS * PAGES_MAX, sizeof(*seen));
	guest_read(&b.g, 0, shadow, b.g.len);
	guest_start(&b.g, come_and_go, 0, 0, 0, 0);
	for (int round = 0; round < ROUNDS; round++) {
		snapshot(&b, seen);
		collect(&b);
		copy_reported(&b, shadow);
		check_not_older(&b, shadow, seen);
	}
	atomic_store(&b.diary->stop, true);
	assert_int_equal(guest_finish(&b.g), 0);
	collect(&b);
	copy_reported(&b, shadow);
	check_equal(&b, shadow);
	tear_down(&b);
}

static struct diary *handlers_diary; /* of the guest's process */

static void note_signal(int sig, siginfo_t *info, void *ctx)
{
	(void)ctx;
	if (sig == SIGTRAP) {
		atomic_fetch_add(&handlers_diary->traps, 1);
		return;
	}
	atomic_fetch_add(&handlers_diary->signals, 1);
	atomic_fetch_add(&handlers_diary->signal_sum, (unsigned)info->si_value.sival_int);
}

static int64_t note_signals(struct guest *g, const uint64_t *args)
{
	(void)args;
	handlers_diary = g->shm;
	struct sigaction act = { .sa_sigaction = note_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
	return sigaction(SIGRTMIN, &act, NULL) | sigaction(SIGTRAP, &act, NULL);
}

#define SIGNALS 3000u

static void *send_signals(void *arg)
{
	const struct guest *g = arg;
	for (unsigned i = 1; i <= SIGNALS; i++) {
		while (sigqueue(g->pid, SIGRTMIN, (union sigval){ .sival_int = (int)i }) < 0 &&
		       errno == EAGAIN)
			usleep(100);
	}
	return NULL;
}

/* None is lost, doubled or changed, and none is made. */
static void signals_reach_the_watched_process(void **state)
{
	struct bench b;
#ifdef __SANITIZE_THREAD__
	print_message("SKIP: the thread sanitizer delivers signals itself, and merges them\n");
	skip();
#endif
	if (!set_up(&b, state, NULL))
		skip();
	assert_int_equal(guest_run(&b.g, note_signals, 0, 0, 0, 0), 0);
	assert_int_equal(guest_run(&b.g, start_writers, 0, 0, 0, 0), 0);
	pthread_t sender;
	assert_int_equal(pthread_create(&sender, NULL, send_signals, &b.g), 0);
	uint64_t deadline = base_deadline_ms(60000);
	while (atomic_load(&b.diary->signals) < SIGNALS && base_now_us() < deadline)
		collect(&b);
	pthread_join(sender, NULL);
	guest_run(&b.g, stop_writers, 0, 0, 0, 0);
	assert_int_equal(atomic_load(&b.diary->signals), SIGNALS);
	assert_int_equal(atomic_load(&b.diary->signal_sum), SIGNALS * (SIGNALS + 1) / 2);
	assert_int_equal(atomic_load(&b.diary->traps), 0);
	tear_down(&b);
}

static char state_of(pid_t pid)
{
	char path[64], line[256];
	(void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	base_cleanup(base_fclosep) FILE *f = fopen(path, "re");
	const char *name_end = f && fgets(line, sizeof(line), f) ? strrchr(line, ')') : NULL;
	return name_end ? name_end[2] : '?';
}

static void await_state(pid_t pid, char state)
{
	uint64_t deadline = base_deadline_ms(10000);
	while (state_of(pid) != state) {
		if (base_now_us() >= deadline)
			fail_msg("process %d is %c, not %c", (int)pid, state_of(pid), state);
		usleep(1000);
	}
}

static void a_stopped_process_stays_stopped(void **state)
{
	struct bench b;
	if (!set_up(&b, state, NULL))
		skip();
	collect(&b);
	guest_run(&b.g, write_pages, 9, 1, 1, 0);
	assert_int_equal(guest_run(&b.g, start_writers, 0, 0, 0, 0), 0);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(kill(b.g.pid, SIGSTOP), 0);
		await_state(b.g.pid, 'T');
		collect(&b);
		assert_true(i || bitmap_test(b.bits, 9));
		usleep(20000);
		assert_int_equal(state_of(b.g.pid), 'T');
		collect(&b);
		if (!is_coarse(*state))
			assert_int_equal(collect(&b), 0);
		assert_int_equal(kill(b.g.pid, SIGCONT), 0);
	}
	guest_run(&b.g, stop_writers, 0, 0, 0, 0);
	collect(&b);
	guest_run(&b.g, write_pages, 9, 1, 1, 0);
	collect(&b);
	assert_true(bitmap_test(b.bits, 9));
	tear_down(&b);
}

static void *answer(void *arg)
{
	struct guest *g = arg;
	struct diary *d = g->shm;
	for (;;) {
		uint64_t page = atomic_load(&d->asked);
		if (page == atomic_load(&d->answered)) {
			usleep(500);
			continue;
		}
		uint64_t one[4] = { page, 1, page };
		write_pages(g, one);
		atomic_store(&d->answered, page);
	}
	return NULL;
}

static int64_t leave_a_thread(struct guest *g, const uint64_t *args)
{
	(void)args;
	pthread_t thread;
	if (pthread_create(&thread, NULL, answer, g))
		return -1;
	pthread_exit(NULL);
}

static void a_dead_leader_hides_no_thread(void **state)
{
	struct bench b;
	if (!set_up(&b, state, NULL))
		skip();
	guest_start(&b.g, leave_a_thread, 0, 0, 0, 0);
	await_state(b.g.pid, 'Z');
	collect(&b);
	for (uint64_t page = 1; page < 20; page++) {
		atomic_store(&b.diary->asked, page);
		uint64_t deadline = base_deadline_ms(10000);
		while (atomic_load(&b.diary->answered) != page && base_now_us() < deadline)
			usleep(100);
		collect(&b);
		assert_true(bitmap_test(b.bits, page));
		assert_false(bitmap_test(b.bits, page - 1));
	}
	/* Nor is its end hidden from its parent. */
	guest_kill(&b.g);
	tear_down(&b);
}

/* In the guest: its own copies go, so that the tracker's owner has the last ones. */
static int64_t close_uffds(struct guest *g, const uint64_t *args)
{
	(void)args;
	for (int i = 0; i < GUEST_UFFDS; i++)
		close(g->remote[i]);
	return 0;
}

static void keep_collecting(struct bench *b, const struct trk_ops *ops, int uffd)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	watch(b, ops, uffd, &b->trk);
	atomic_store(&b->diary->answered, 1);
	for (;;)
		collect(b);
}

/* Killed at any moment, also while it holds the process or owes a writer an answer. */
static void d7_an_owner_that_dies_lets_everybody_go(void **state)
{
	const struct variant *v = *state;
	bool is_sync = v->ops->caps & TRK_CAP_SYNC;
	struct bench b;
	if (!make_guest(&b, v))
		skip();
	b.diary = b.g.shm;
	b.bits = calloc(bitmap_words(b.g.pages), sizeof(*b.bits));
	if (is_sync)
		guest_run(&b.g, close_uffds, 0, 0, 0, 0);
	for (int i = 0; i < (is_sync ? GUEST_UFFDS : 20); i++) {
		int uffd = b.g.uffds[is_sync ? i : 0];
		atomic_store(&b.diary->answered, 0);
		atomic_store(&b.diary->stop, false);
		assert_int_equal(guest_run(&b.g, start_writers, 0, 0, 0, 0), 0);
		pid_t owner = fork();
		if (!owner) {
			for (int k = 0; is_sync && k < GUEST_UFFDS; k++) {
				if (k != i && b.g.uffds[k] >= 0)
					close(b.g.uffds[k]);
			}
			keep_collecting(&b, v->ops, uffd);
		}
		if (is_sync) {
			close(uffd);
			b.g.uffds[i] = -1;
		}
		uint64_t deadline = base_deadline_ms(20000);
		while (!atomic_load(&b.diary->answered) && base_now_us() < deadline)
			usleep(1000);
		usleep(1000 + (unsigned)i * 777 % 5000);
		kill(owner, SIGKILL);
		waitpid(owner, NULL, 0);
		assert_true(atomic_load(&b.diary->answered));
		guest_run(&b.g, stop_writers, 0, 0, 0, 0);
		assert_int_equal(guest_run(&b.g, write_pages, 0, b.g.pages, 1, 0), 0);
	}
	guest_close(&b.g);
	free(b.bits);
}

/* ---- what only concerns a tracker that stops the process ---- */

static int try_collect(struct bench *b, struct mf_error *err)
{
	uint64_t pages = 0;
	return trk_collect(b->trk, 0, 0, b->g.pages, b->bits, &pages, err);
}

static void a_debugger_is_named(void **state)
{
	struct bench b;
	if (!set_up(&b, state, NULL))
		skip();
	guest_run(&b.g, write_pages, 3, 1, 1, 0);
	pid_t debugger = fork();
	if (!debugger) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (ptrace(PTRACE_SEIZE, b.g.pid, NULL, NULL))
			_exit(1);
		(void)raise(SIGSTOP);
		_exit(0);
	}
	int status;
	assert_int_equal(waitpid(debugger, &status, WUNTRACED), debugger);
	assert_true(WIFSTOPPED(status));
	struct mf_error err = { 0 };
	char name[64];
	(void)snprintf(name, sizeof(name), "process %d is tracing it", (int)debugger);
	assert_int_equal(try_collect(&b, &err), -EBUSY);
	assert_non_null(strstr(err.msg, name));
	kill(debugger, SIGKILL);
	waitpid(debugger, NULL, 0);
	/* Nothing was lost. */
	collect(&b);
	assert_true(bitmap_test(b.bits, 3));
	tear_down(&b);
}

/* The caller of vfork(2) cannot be stopped before its child ends. */
static int64_t wait_for_a_child(struct guest *g, const uint64_t *args)
{
	(void)args;
	struct diary *d = g->shm;
	pid_t child = vfork();
	if (!child) {
		while (!atomic_load(&d->asked))
			syscall(SYS_nanosleep, &(struct timespec){ .tv_nsec = 1000000 }, NULL);
		_exit(0);
	}
	return waitpid(child, NULL, 0) == child ? 0 : -1;
}

static void a_thread_that_cannot_be_stopped_is_named(void **state)
{
	struct bench b;
	if (!set_up(&b, state, NULL))
		skip();
	guest_run(&b.g, write_pages, 3, 1, 1, 0);
	assert_int_equal(guest_run(&b.g, start_writers, 0, 0, 0, 0), 0);
	guest_start(&b.g, wait_for_a_child, 0, 0, 0, 0);
	await_state(b.g.pid, 'D');
	struct mf_error err = { 0 };
	char name[64];
	(void)snprintf(name, sizeof(name), "thread %d of process %d", (int)b.g.pid, (int)b.g.pid);
	uint64_t before = base_now_us();
	assert_int_equal(try_collect(&b, &err), -ETIMEDOUT);
	assert_true(base_now_us() - before < 20000000);
	assert_non_null(strstr(err.msg, name));
	/* The others go on. */
	uint64_t written = atomic_load(&b.diary->done[0][0]);
	for (int i = 0; i < 1000 && atomic_load(&b.diary->done[0][0]) == written; i++)
		usleep(10000);
	assert_true(atomic_load(&b.diary->done[0][0]) > written);
	atomic_store(&b.diary->asked, 1);
	assert_int_equal(guest_finish(&b.g), 0);
	collect(&b);
	assert_true(bitmap_test(b.bits, 3));
	guest_run(&b.g, stop_writers, 0, 0, 0, 0);
	tear_down(&b);
}

static void this_process_is_refused(void **state)
{
	const struct variant *v = *state;
	struct guest g;
	struct mf_error err = { 0 };
	const char *why = guest_open(&g, v->backing, false);
	if (why)
		fail_msg("%s", why);
	assert_non_null(refusal(&g, v->ops, &err));
	assert_int_equal(err.code, -MF_EKERNEL);
	assert_non_null(strstr(err.msg, "this one"));
	guest_close(&g);
}

/* Of which trackers, and whose memory, a case makes sense. */
enum scope {
	ALL,
	OF_ANOTHER_PROCESS,
	NOT_SYNC,
	WITH_UFFD,
	STOPPING, /* the tracker stops the process for each collect */
};

struct law {
	const char *name;
	CMUnitTestFunction fn;
	enum scope scope;
};

static const struct law laws[] = {
	{ "D1 every write is reported", d1_every_write_is_reported, ALL },
	{ "D2 the collect after the writers leaves nothing",
	  d2_collect_after_the_writers_leaves_nothing, ALL },
	{ "D3 collect reads, clears and ORs", d3_collect_reads_clears_and_ors, ALL },
	{ "D4 over-reporting settles", d4_over_reporting_settles, ALL },
	{ "D5 collect of a part clears that part", d5_collect_of_a_part_clears_that_part, ALL },
	{ "D6 stop leaves it as it was", d6_stop_leaves_it_as_it_was, ALL },
	{ "D6 stop is safe when the process is gone", d6_stop_is_safe_when_the_process_is_gone,
	  OF_ANOTHER_PROCESS },
	{ "D7 a stopped owner stops nobody", d7_a_stopped_owner_stops_nobody, NOT_SYNC },
	{ "failures name the cause", failures_name_the_cause, WITH_UFFD },
};

/* Over one kind of memory, of another process. */
static const struct law more[] = {
	{ "D1 threads come and go", d1_threads_come_and_go, ALL },
	{ "D7 an owner that dies lets everybody go", d7_an_owner_that_dies_lets_everybody_go, ALL },
	{ "signals reach the watched process", signals_reach_the_watched_process, ALL },
	{ "a stopped process stays stopped", a_stopped_process_stays_stopped, ALL },
	{ "a dead leader hides no thread", a_dead_leader_hides_no_thread, ALL },
	{ "a debugger is named", a_debugger_is_named, STOPPING },
	{ "a thread that cannot be stopped is named", a_thread_that_cannot_be_stopped_is_named,
	  STOPPING },
	{ "this process is refused", this_process_is_refused, STOPPING },
};

static bool applies(const struct law *law, const struct variant *v)
{
	switch (law->scope) {
	case OF_ANOTHER_PROCESS:
		return v->is_other;
	case NOT_SYNC:
		return !(v->ops->caps & TRK_CAP_SYNC);
	case WITH_UFFD:
		return v->ops->caps & TRK_CAP_NEEDS_UFFD;
	case STOPPING:
		return !strcmp(v->ops->name, "softdirty");
	default:
		return true;
	}
}

#define VARIANTS (BACK_COUNT * 2)

int main(int argc, char **argv)
{
	const struct trk_ops *ops = argc > 1 ? trk_find(argv[1]) : NULL;
	if (!ops) {
		fprintf(stderr, "usage: conf_tracker BACKEND [PATTERN]\n");
		return 2;
	}
	struct mf_error err = { 0 };
	if (trk_probe(ops, NULL, &err) < 0) {
		printf("SKIP: %s: %s\n", ops->name, err.msg);
		return 77;
	}
	static struct variant variants[VARIANTS], memfd_of_other;
	static struct CMUnitTest tests[VARIANTS * BASE_ARRAY_LEN(laws) + BASE_ARRAY_LEN(more)];
	static char names[BASE_ARRAY_LEN(tests)][96];
	size_t n = 0;
	for (int i = 0; i < VARIANTS; i++) {
		variants[i] = (struct variant){ ops, i / 2, i % 2 };
		for (size_t l = 0; l < BASE_ARRAY_LEN(laws); l++) {
			if (!applies(&laws[l], &variants[i]))
				continue;
			(void)snprintf(names[n], sizeof(names[n]), "%s: %s, %s process",
				       laws[l].name, backing_name(i / 2), i % 2 ? "other" : "this");
			tests[n] = (struct CMUnitTest){ .name = names[n],
							.test_func = laws[l].fn,
							.initial_state = &variants[i] };
			n++;
		}
	}
	memfd_of_other = (struct variant){ ops, BACK_MEMFD, true };
	for (size_t i = 0; i < BASE_ARRAY_LEN(more); i++) {
		if (applies(&more[i], &memfd_of_other))
			tests[n++] = (struct CMUnitTest){ .name = more[i].name,
							  .test_func = more[i].fn,
							  .initial_state = &memfd_of_other };
	}
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return _cmocka_run_group_tests("tracker", tests, n, NULL, NULL);
}
