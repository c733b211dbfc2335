/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The pager contract's laws, P1 to P8, over every kind of memory, and this as well as another
 * process.  The bytes of every page are known beforehand; what the file holds when the guest
 * wakes up is stale, so that a touch let through too early is seen.
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
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tests/conformance/conf_guest.h"
#include "tracker/pager.h"
#include "tracker/userfault/priv.h"

#define PAGES_MAX  4096
#define WORDS_FREE 16 /* of each page: the touchers' */
#define TOUCHERS   4
#define GIVE_UP_MS 60000

struct variant {
	enum backing backing;
	bool is_other;
	unsigned shards;
};

/* ---- contents ---- */

static bool is_private(const struct guest *g)
{
	return g->backing == BACK_ANON || g->backing == BACK_ANON_THP;
}

/* Pages that the source never wrote: the file has a hole there. */
static bool is_hole(const struct guest *g, uint64_t page)
{
	return !is_private(g) && page % 5 == 0;
}

static uint64_t expected(const struct guest *g, uint64_t page, uint64_t word)
{
	return is_hole(g, page) ? 0 : (page + 1) * UINT64_C(0x9e3779b97f4a7c15) + word;
}

static void write_page(const struct guest *g, uint64_t page, uint64_t *to)
{
	for (uint64_t w = 0; w < g->page_size / 8; w++)
		to[w] = expected(g, page, w);
}

/* ---- the guest ---- */

/* In the guest's shared page. */
struct tale {
	atomic_uchar touched[PAGES_MAX]; /* set after the first touch of the page */
	atomic_ullong bad;
	atomic_ullong running;
};

enum touch {
	TOUCH_READ,
	TOUCH_WRITE,
	TOUCH_KERNEL_READ,  /* write(2) from the page */
	TOUCH_KERNEL_WRITE, /* read(2) into the page */
	TOUCH_MIXED,        /* each toucher its own way */
};

static int64_t count_bad_words(const struct guest *g, uint64_t page, const uint64_t *words)
{
	int64_t bad = 0;
	for (uint64_t w = WORDS_FREE; w < g->page_size / 8; w++)
		bad += words[w] != expected(g, page, w);
	return bad;
}

static int64_t touch_page(struct guest *g, uint64_t page, enum touch how, unsigned slot, int file,
			  uint64_t *buffer)
{
	struct tale *tale = g->shm;
	uint64_t *words = (uint64_t *)(g->mem + page * g->page_size);
	int64_t bad = 0;
	switch (how) {
	case TOUCH_READ:
		buffer[0] = *(volatile uint64_t *)&words[WORDS_FREE];
		break;
	case TOUCH_WRITE:
		bad = __atomic_fetch_add(&words[slot], 1, __ATOMIC_RELAXED) !=
		      expected(g, page, slot);
		break;
	case TOUCH_KERNEL_READ:
		if (pwrite(file, words + WORDS_FREE, g->page_size - 8 * WORDS_FREE, 0) < 0 ||
		    pread(file, buffer + WORDS_FREE, g->page_size - 8 * WORDS_FREE, 0) < 0)
			return 1;
		break;
	case TOUCH_KERNEL_WRITE:
		buffer[0] = page + slot;
		if (pwrite(file, buffer, 8, 0) != 8 || pread(file, &words[slot], 8, 0) != 8)
			return 1;
		bad = words[slot] != page + slot;
		break;
	default:
		abort();
	}
	atomic_store(&tale->touched[page], 1);
	return bad + count_bad_words(g, page, how == TOUCH_KERNEL_READ ? buffer : words);
}

struct toucher {
	pthread_t thread;
	struct guest *g;
	const uint64_t *args;
	unsigned id;
};

/* args: first page, number, enum touch. */
static void *touch_on(void *arg)
{
	struct toucher *t = arg;
	struct guest *g = t->g;
	struct tale *tale = g->shm;
	uint64_t first = t->args[0], n = t->args[1];
	enum touch how = t->args[2] == TOUCH_MIXED ? (enum touch)(t->id % 4) : t->args[2];
	base_autofd file = memfd_create("kernel's end", MFD_CLOEXEC);
	base_autofree uint64_t *buffer = malloc(g->page_size);
	/* Every page once, each toucher in an order of its own. */
	uint64_t step = n > 4 ? (const uint64_t[]){ 1, 769, 1283, 257 }[t->id % 4] % n | 1 : 1;
	uint64_t at = t->id * n / 4;
	for (uint64_t i = 0; i < n; i++, at += step) {
		int64_t bad = touch_page(g, first + at % n, how, t->id, file, buffer);
		if (bad)
			atomic_fetch_add(&tale->bad, 1);
	}
	return NULL;
}

/* args: as above, and the number of touchers.  Returns the number of pages found wrong. */
static int64_t touch(struct guest *g, const uint64_t *args)
{
	struct toucher touchers[TOUCHERS];
	struct tale *tale = g->shm;
	uint64_t before = atomic_load(&tale->bad);
	for (unsigned i = 0; i < args[3]; i++) {
		touchers[i] = (struct toucher){ .g = g, .args = args, .id = i };
		if (pthread_create(&touchers[i].thread, NULL, touch_on, &touchers[i]))
			return -1;
	}
	for (unsigned i = 0; i < args[3]; i++)
		pthread_join(touchers[i].thread, NULL);
	return (int64_t)(atomic_load(&tale->bad) - before);
}

static int64_t count_nonzero(struct guest *g, const uint64_t *args)
{
	(void)args;
	int64_t n = 0;
	for (uint64_t p = 0; p < g->pages; p++)
		n += *(volatile uint64_t *)(g->mem + p * g->page_size) != 0;
	return n;
}

static int64_t forget(struct guest *g, const uint64_t *args)
{
	(void)args;
	return madvise(g->mem, g->len, MADV_DONTNEED);
}

static int64_t map_all(struct guest *g, const uint64_t *args)
{
	(void)args;
	for (uint64_t p = 0; p < g->pages; p++) {
		if (!is_hole(g, p))
			(void)*(volatile uint64_t *)(g->mem + p * g->page_size);
	}
	return 0;
}

/* ---- the owner: who fills and completes ---- */

enum { MISSING, FILLING, PRESENT };

struct bench {
	struct guest g;
	unsigned shards;
	struct pgr *pgr;
	struct tale *tale;
	int stop_fd;
	atomic_bool stop;
	bool only_reported; /* complete no page but those reported */
	atomic_uchar state[PAGES_MAX];
	atomic_uchar reported[PAGES_MAX];
	atomic_ullong failures, too_early;
	pthread_t handlers[GUEST_UFFDS];
	struct owner {
		struct bench *b;
		unsigned shard;
	} owners[GUEST_UFFDS];
};

static void check(int code, const struct mf_error *err)
{
	if (code < 0)
		fail_msg("%d: %s", code, err->msg);
}

static int open_pager(const struct guest *g, unsigned shards, struct pgr **ret,
		      struct mf_error *err)
{
	struct pgr_range range = { .addr = (uintptr_t)g->mem,
				   .len = g->len,
				   .page_size = g->page_size,
				   .kind = is_private(g) ? PGR_ANON : PGR_SHARED,
				   .local = g->local };
	struct pgr_params params = {
		.uffds = g->uffds, .n_uffds = shards, .ranges = &range, .n_ranges = 1
	};
	return pgr_open(&params, ret, err);
}

static void make_stale(const struct guest *g)
{
	for (uint64_t p = 0; g->local && p < g->pages; p++) {
		/* Some pages are in the file with other bytes, some are not there yet. */
		if (!is_hole(g, p) && p % 3)
			memset(g->local + p * g->page_size, 0x5a, g->page_size);
	}
}

static bool set_up(struct bench **ret, void **state)
{
	const struct variant *v = *state;
	struct bench *b = calloc(1, sizeof(*b));
	const char *why = guest_open(&b->g, v->backing, v->is_other);
	if (why) {
		print_message("SKIP: %s: %s\n", backing_name(v->backing), why);
		free(b);
		return false;
	}
	b->tale = b->g.shm;
	b->shards = v->shards;
	b->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct mf_error err = { 0 };
	make_stale(&b->g);
	guest_run(&b->g, map_all, 0, 0, 0, 0);
	check(open_pager(&b->g, b->shards, &b->pgr, &err), &err);
	*ret = b;
	return true;
}

static void arm(struct bench *b, const struct pgr_extent *extents, size_t n)
{
	struct mf_error err = { 0 };
	check(pgr_arm(b->pgr, extents, n, &err), &err);
	assert_int_equal(guest_run(&b->g, forget, 0, 0, 0, 0), 0);
}

static void tear_down(struct bench *b)
{
	pgr_close(b->pgr);
	close(b->stop_fd);
	guest_close(&b->g);
	free(b);
}

static bool claim(struct bench *b, uint64_t page)
{
	unsigned char missing = MISSING;
	/* Before the claim nobody can have got past the page. */
	bool is_touched = atomic_load(&b->tale->touched[page]);
	if (!atomic_compare_exchange_strong(&b->state[page], &missing, FILLING))
		return false;
	if (is_touched)
		atomic_fetch_add(&b->too_early, 1);
	return true;
}

static void complete(struct bench *b, uint64_t first, uint64_t n, const void *bytes)
{
	struct pgr_extent e = { 0, first, n };
	if (pgr_complete(b->pgr, &e, bytes) < 0)
		atomic_fetch_add(&b->failures, 1);
}

/* Claimed pages: puts the bytes there, says so, completes. */
static void fill(struct bench *b, uint64_t first, uint64_t n)
{
	const struct guest *g = &b->g;
	base_autofree char *bytes = is_private(g) ? malloc(n * g->page_size) : NULL;
	for (uint64_t p = first; p < first + n; p++) {
		char *to = bytes ? bytes + (p - first) * g->page_size : g->local + p * g->page_size;
		if (!is_hole(g, p))
			write_page(g, p, (uint64_t *)to);
	}
	/* Anonymous bytes are lost if somebody else completes the page first. */
	if (bytes)
		complete(b, first, n, bytes);
	for (uint64_t p = first; p < first + n; p++)
		atomic_store(&b->state[p], PRESENT);
	if (!bytes)
		complete(b, first, n, NULL);
}

static void fill_run(struct bench *b, uint64_t first, uint64_t max)
{
	uint64_t n = 0;
	while (n < max && first + n < b->g.pages && claim(b, first + n))
		n++;
	if (n)
		fill(b, first, n);
}

/* A page complete already: with other bytes, if the kind has any, which must not get in. */
static void complete_again(struct bench *b, uint64_t first, uint64_t n)
{
	base_autofree void *bytes = is_private(&b->g) ? calloc(n, b->g.page_size) : NULL;
	complete(b, first, n, bytes);
}

static void answer(struct bench *b, const struct pgr_fault *fault)
{
	if (fault->range || fault->page >= b->g.pages) {
		atomic_fetch_add(&b->failures, 1);
		return;
	}
	atomic_store(&b->reported[fault->page], 1);
	switch (atomic_load(&b->state[fault->page])) {
	case MISSING:
		fill_run(b, fault->page, b->only_reported ? 1 : 1 + fault->page % 4);
		break;
	case FILLING: /* its filler completes it */
		break;
	default:
		complete_again(b, fault->page, 1);
	}
}

static void *handle(void *arg)
{
	const struct owner *o = arg;
	struct bench *b = o->b;
	struct pgr_fault faults[16];
	while (!atomic_load(&b->stop)) {
		int n = pgr_next(b->pgr, o->shard, faults, BASE_ARRAY_LEN(faults), 20,
				 base_deadline_ms(GIVE_UP_MS), b->stop_fd);
		if (n < 0) {
			atomic_fetch_add(&b->failures, 1);
			break;
		}
		for (int i = 0; i < n; i++)
			answer(b, &faults[i]);
	}
	return NULL;
}

static void start_handlers(struct bench *b)
{
	for (unsigned i = 0; i < b->shards; i++) {
		b->owners[i] = (struct owner){ b, i };
		assert_int_equal(pthread_create(&b->handlers[i], NULL, handle, &b->owners[i]), 0);
	}
}

static void stop_handlers(struct bench *b)
{
	atomic_store(&b->stop, true);
	assert_int_equal(eventfd_write(b->stop_fd, 1), 0);
	for (unsigned i = 0; i < b->shards; i++)
		pthread_join(b->handlers[i], NULL);
	assert_int_equal(atomic_load(&b->failures), 0);
	assert_int_equal(atomic_load(&b->too_early), 0);
}

static void *fill_in_background(void *arg)
{
	struct bench *b = arg;
	for (uint64_t p = 0; p < b->g.pages; p++)
		fill_run(b, p, b->g.page_size > 4096 ? 2 : 1 + p % 32);
	return NULL;
}

/* ---- laws ---- */

static void p1_no_touch_gets_past(void **state)
{
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	arm(b, NULL, 0);
	start_handlers(b);
	assert_int_equal(guest_run(&b->g, touch, 0, b->g.pages, TOUCH_MIXED, TOUCHERS), 0);
	stop_handlers(b);
	for (uint64_t p = 0; p < b->g.pages; p++)
		assert_int_equal(atomic_load(&b->state[p]), PRESENT);
	tear_down(b);
}

static void p1_background_and_touches_race(void **state)
{
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	arm(b, NULL, 0);
	start_handlers(b);
	pthread_t background;
	guest_start(&b->g, touch, 0, b->g.pages, TOUCH_MIXED, TOUCHERS);
	assert_int_equal(pthread_create(&background, NULL, fill_in_background, b), 0);
	assert_int_equal(guest_finish(&b->g), 0);
	pthread_join(background, NULL);
	/* All is there: what the touchers wrote, and nothing touched twice by the fillers. */
	stop_handlers(b);
	pgr_disarm(b->pgr);
	for (uint64_t p = 0; p < b->g.pages; p++) {
		uint64_t have[4];
		guest_read(&b->g, p * b->g.page_size, have, sizeof(have));
		assert_int_equal(have[TOUCH_WRITE], expected(&b->g, p, TOUCH_WRITE) + 1);
		assert_int_equal(have[TOUCH_KERNEL_WRITE], p + TOUCH_KERNEL_WRITE);
	}
	tear_down(b);
}

static void p1_scattered_extents(void **state)
{
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	/* Only every other page is missing, in no order; the rest is there. */
	size_t n = b->g.pages / 2;
	base_autofree struct pgr_extent *extents = calloc(n, sizeof(*extents));
	for (size_t i = 0; i < n; i++)
		extents[n - 1 - i] = (struct pgr_extent){ 0, 2 * i + 1, 1 };
	for (uint64_t p = 0; p < b->g.pages && b->g.local; p += 2) {
		if (!is_hole(&b->g, p))
			write_page(&b->g, p, (uint64_t *)(b->g.local + p * b->g.page_size));
		atomic_store(&b->state[p], PRESENT);
	}
	arm(b, extents, n);
	start_handlers(b);
	if (b->g.local)
		assert_int_equal(guest_run(&b->g, touch, 0, b->g.pages, TOUCH_MIXED, TOUCHERS), 0);
	/* Anonymous pages that are there cannot be forgotten: touch only the others. */
	for (uint64_t p = 1; p < b->g.pages && !b->g.local; p += 64)
		assert_int_equal(guest_run(&b->g, touch, p, 1, TOUCH_MIXED, TOUCHERS), 0);
	/* Pages not armed are passed over. */
	complete_again(b, 0, b->g.pages);
	stop_handlers(b);
	tear_down(b);
}

static void p2_every_touched_page_is_reported(void **state)
{
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	b->only_reported = true;
	arm(b, NULL, 0);
	start_handlers(b);
	uint64_t first = b->g.pages / 4, n = b->g.pages / 2;
	assert_int_equal(guest_run(&b->g, touch, first, n, TOUCH_MIXED, TOUCHERS), 0);
	stop_handlers(b);
	for (uint64_t p = 0; p < b->g.pages; p++)
		assert_int_equal(atomic_load(&b->reported[p]), p >= first && p < first + n);
	tear_down(b);
}

static void p3_completing_twice_is_harmless(void **state)
{
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	arm(b, NULL, 0);
	start_handlers(b);
	guest_start(&b->g, touch, 0, b->g.pages, TOUCH_MIXED, TOUCHERS);
	for (uint64_t p = 0; p < b->g.pages; p++) {
		fill_run(b, p, 1);
		if (atomic_load(&b->state[p]) == PRESENT)
			complete_again(b, p, 1);
	}
	assert_int_equal(guest_finish(&b->g), 0);
	complete_again(b, 0, b->g.pages);
	stop_handlers(b);
	/* What the touchers wrote has stayed. */
	for (uint64_t p = 0; p < b->g.pages; p++) {
		uint64_t have[4];
		guest_read(&b->g, p * b->g.page_size, have, sizeof(have));
		assert_int_equal(have[TOUCH_WRITE], expected(&b->g, p, TOUCH_WRITE) + 1);
	}
	tear_down(b);
}

static void p3_extent_with_present_pages_wakes_all(void **state)
{
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	arm(b, NULL, 0);
	/* Every third page is complete; then one completion of all of them. */
	for (uint64_t p = 0; p < b->g.pages; p += 3)
		fill_run(b, p, 1);
	guest_start(&b->g, touch, 0, b->g.pages, TOUCH_MIXED, TOUCHERS);
	struct pgr_fault faults[4];
	for (unsigned s = 0, n = 0; !n; s = (s + 1) % b->shards)
		n = (unsigned)pgr_next(b->pgr, s, faults, 4, 0, base_now_us() + 1000, -1);
	base_autofree char *bytes = is_private(&b->g) ? malloc(b->g.len) : NULL;
	for (uint64_t p = 0; p < b->g.pages; p++) {
		char *base = bytes ? bytes : b->g.local;
		if (p % 3 && !is_hole(&b->g, p))
			write_page(&b->g, p, (uint64_t *)(base + p * b->g.page_size));
	}
	/* Nobody answers faults: this one completion must wake everybody, for good. */
	complete(b, 0, b->g.pages, bytes);
	assert_int_equal(guest_finish(&b->g), 0);
	assert_int_equal(atomic_load(&b->failures), 0);
	tear_down(b);
}

static void p4_completed_before_touched(void **state)
{
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	arm(b, NULL, 0);
	fill_in_background(b);
	start_handlers(b);
	assert_int_equal(guest_run(&b->g, touch, 0, b->g.pages, TOUCH_MIXED, TOUCHERS), 0);
	stop_handlers(b);
	tear_down(b);
}

static void p5_holes_complete_as_zeroes(void **state)
{
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	if (is_private(&b->g)) {
		tear_down(b);
		skip();
		return;
	}
	/* The whole file is one hole; one completion for all of it, and touches meanwhile. */
	assert_int_equal(madvise(b->g.local, b->g.len, MADV_REMOVE), 0);
	arm(b, NULL, 0);
	complete(b, 0, b->g.pages / 2, NULL);
	guest_start(&b->g, count_nonzero, 0, 0, 0, 0);
	complete(b, b->g.pages / 2, b->g.pages - b->g.pages / 2, NULL);
	assert_int_equal(guest_finish(&b->g), 0);
	assert_int_equal(atomic_load(&b->failures), 0);
	tear_down(b);
}

static void p6_disarm_lets_all_through(void **state)
{
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	arm(b, NULL, 0);
	for (uint64_t p = 0; p < b->g.pages && b->g.local; p++) {
		if (!is_hole(&b->g, p))
			write_page(&b->g, p, (uint64_t *)(b->g.local + p * b->g.page_size));
	}
	/* Anonymous memory has nothing but zeroes to let through. */
	guest_start(&b->g, b->g.local ? touch : count_nonzero, 0, b->g.pages, TOUCH_MIXED,
		    TOUCHERS);
	struct pgr_fault faults[4];
	for (unsigned s = 0, n = 0; !n; s = (s + 1) % b->shards)
		n = (unsigned)pgr_next(b->pgr, s, faults, 4, 0, base_now_us() + 1000, -1);
	pgr_disarm(b->pgr);
	assert_int_equal(guest_finish(&b->g), 0);
	assert_false(guest_has_vmflag(&b->g, "um"));
	assert_false(guest_has_vmflag(&b->g, "ui"));
	pgr_disarm(b->pgr); /* harmless */
	tear_down(b);
}

/* Opens, arms, waits for a fault, and is never seen to do anything again. */
static void own_and_hang(const struct guest *g, unsigned shards, int tell)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	struct pgr *pgr;
	if (open_pager(g, shards, &pgr, NULL) < 0 || pgr_arm(pgr, NULL, 0, NULL) < 0 ||
	    write(tell, "a", 1) != 1)
		_exit(1);
	struct pgr_fault faults[4];
	int n = 0;
	for (unsigned s = 0; !n; s = (s + 1) % shards)
		n = pgr_next(pgr, s, faults, 4, 0, base_now_us() + 1000, -1);
	if (n < 0 || write(tell, "f", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

static void p7_a_crash_answers_nothing(void **state)
{
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	/* The pager under test is another process's; set_up's is the one that takes over. */
	pgr_close(BASE_TAKE_PTR(b->pgr));
	int tell[2];
	assert_int_equal(pipe(tell), 0);
	pid_t owner = fork();
	if (!owner)
		own_and_hang(&b->g, b->shards, tell[1]);
	char what;
	assert_int_equal(read(tell[0], &what, 1), 1);
	assert_int_equal(guest_run(&b->g, forget, 0, 0, 0, 0), 0);
	/* One toucher: nobody else's report can bring its page. */
	guest_start(&b->g, touch, b->g.pages / 2, b->g.pages / 2, TOUCH_WRITE, 1);
	assert_int_equal(read(tell[0], &what, 1), 1);
	assert_int_equal(what, 'f');
	kill(owner, SIGKILL);
	waitpid(owner, NULL, 0);
	close(tell[0]);
	close(tell[1]);

	/* Take the descriptors from where they stayed open. */
	for (int i = 0; i < GUEST_UFFDS && b->g.is_other; i++) {
		close(b->g.uffds[i]);
		base_autofd pidfd = (int)syscall(SYS_pidfd_open, b->g.pid, 0);
		b->g.uffds[i] = (int)syscall(SYS_pidfd_getfd, pidfd, b->g.remote[i], 0);
		assert_true(b->g.uffds[i] >= 0);
	}
	struct mf_error err = { 0 };
	check(open_pager(&b->g, b->shards, &b->pgr, &err), &err);
	/* Closing without disarm is a crash in good manners. */
	check(pgr_arm(b->pgr, NULL, 0, &err), &err);
	pgr_close(b->pgr);
	check(open_pager(&b->g, b->shards, &b->pgr, &err), &err);
	for (uint64_t p = 0; p < b->g.pages; p++)
		assert_int_equal(atomic_load(&b->tale->touched[p]), 0);
	check(pgr_arm(b->pgr, NULL, 0, &err), &err);
	start_handlers(b);
	assert_int_equal(guest_finish(&b->g), 0);
	stop_handlers(b);
	tear_down(b);
}

static void p8_next_returns_by_its_deadline(void **state)
{
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	arm(b, NULL, 0);
	struct pgr_fault fault;
	for (uint64_t spin = 0; spin <= 100000; spin += 20000) {
		uint64_t deadline = base_deadline_ms(20);
		assert_int_equal(pgr_next(b->pgr, 0, &fault, 1, spin, deadline, -1), 0);
		assert_true(base_now_us() >= deadline);
	}
	/* One long past costs a look, which finds what is there. */
	assert_int_equal(pgr_next(b->pgr, 0, &fault, 1, 0, 0, -1), 0);
	/* The other descriptor ends the sleep. */
	assert_int_equal(eventfd_write(b->stop_fd, 1), 0);
	assert_int_equal(pgr_next(b->pgr, 0, &fault, 1, 0, BASE_NEVER, b->stop_fd), 0);
	/* A fault does, sleeping or spinning. */
	guest_start(&b->g, touch, 0, 2, TOUCH_READ, 1);
	assert_int_equal(pgr_next(b->pgr, 0, &fault, 1, 0, BASE_NEVER, -1), 1);
	assert_int_equal(fault.page, 0);
	assert_false(fault.is_write);
	fill_run(b, 0, 1);
	assert_int_equal(pgr_next(b->pgr, 0, &fault, 1, UINT64_MAX / 2, BASE_NEVER, -1), 1);
	assert_int_equal(fault.page, 1);
	fill_run(b, 1, 1);
	assert_int_equal(guest_finish(&b->g), 0);
	assert_true(pgr_fd(b->pgr, 0) == b->g.uffds[0]);
	tear_down(b);
}

static void failures_name_the_cause(void **state)
{
	const struct variant *v = *state;
	struct bench *b;
	if (!set_up(&b, state))
		skip();
	arm(b, NULL, 0);
	/* Watched by somebody else already. */
	struct mf_error err = { 0 };
	struct guest second = b->g;
	second.uffds[0] = b->g.uffds[2];
	struct pgr *other;
	if (b->shards < 3) {
		check(open_pager(&second, 1, &other, &err), &err);
		assert_int_equal(pgr_arm(other, NULL, 0, &err), -EBUSY);
		assert_non_null(strstr(err.msg, "another userfaultfd"));
		pgr_close(other);
	}
	/* Gone. */
	if (v->is_other) {
		guest_kill(&b->g);
		struct pgr_extent e = { 0, 0, b->g.pages };
		base_autofree void *bytes = is_private(&b->g) ? calloc(1, b->g.len) : NULL;
		assert_int_equal(pgr_complete(b->pgr, &e, bytes), -ESRCH);
		pgr_disarm(b->pgr);
	}
	tear_down(b);
}

/* No kernel needed: the list that is armed covers what was asked, is no longer than allowed, and
 * closes the smallest gaps. */
static void runs_are_merged_by_the_smallest_gaps(void **state)
{
	(void)state;
	uint64_t random = 1;
	for (int round = 0; round < 200; round++) {
		struct pgr_run runs[64];
		unsigned char armed[2][512] = { 0 }, asked[2][512] = { 0 };
		size_t n = 1 + (size_t)round % 64, max = 1 + (size_t)round % 13;
		for (size_t i = 0; i < n; i++) {
			random = random * 6364136223846793005u + 1442695040888963407u;
			uint64_t first = random >> 33 & 255, len = 1 + (random >> 50 & 7);
			runs[i] = (struct pgr_run){ random >> 60 & 1, first, first + len };
			memset(&asked[runs[i].range][first], 1, len);
		}
		/* The gaps there are, smallest first. */
		unsigned gaps[256], n_gaps = 0, n_runs = 0, closed = 0, least = 0;
		for (int r = 0; r < 2; r++) {
			for (int p = 0, last = -1; p < 512; p++) {
				if (!asked[r][p])
					continue;
				if (last < 0 || p > last + 1)
					n_runs++;
				if (last >= 0 && p > last + 1)
					gaps[n_gaps++] = (unsigned)(p - last - 1);
				last = p;
			}
		}
		for (unsigned i = 0; i < n_gaps; i++) {
			for (unsigned j = i + 1; j < n_gaps; j++) {
				if (gaps[j] < gaps[i]) {
					unsigned swap = gaps[i];
					gaps[i] = gaps[j];
					gaps[j] = swap;
				}
			}
		}
		for (unsigned i = 0; i < n_gaps && n_runs - i > max; i++)
			least += gaps[i];
		size_t left = pgr_merge_runs(runs, n, max);
		size_t want =
			n_runs <= max ? n_runs : (max > n_runs - n_gaps ? max : n_runs - n_gaps);
		assert_int_equal(left, want);
		for (size_t i = 0; i < left; i++)
			memset(&armed[runs[i].range][runs[i].first], 1,
			       runs[i].end - runs[i].first);
		for (int i = 0; i < 1024; i++) {
			assert_true(armed[i / 512][i % 512] >= asked[i / 512][i % 512]);
			closed += (unsigned)(armed[i / 512][i % 512] - asked[i / 512][i % 512]);
		}
		assert_int_equal(closed, least);
	}
}

static const struct {
	const char *name;
	CMUnitTestFunction fn;
} laws[] = {
	{ "P1 no touch gets past", p1_no_touch_gets_past },
	{ "P1 background and touches race", p1_background_and_touches_race },
	{ "P1 scattered extents", p1_scattered_extents },
	{ "P2 every touched page is reported", p2_every_touched_page_is_reported },
	{ "P3 completing twice is harmless", p3_completing_twice_is_harmless },
	{ "P3 an extent with present pages wakes all", p3_extent_with_present_pages_wakes_all },
	{ "P4 completed before touched", p4_completed_before_touched },
	{ "P5 holes complete as zeroes", p5_holes_complete_as_zeroes },
	{ "P6 disarm lets all through", p6_disarm_lets_all_through },
	{ "P7 a crash answers nothing", p7_a_crash_answers_nothing },
	{ "P8 next returns by its deadline", p8_next_returns_by_its_deadline },
	{ "failures name the cause", failures_name_the_cause },
};

int main(void)
{
	struct mf_error err = { 0 };
	if (pgr_probe(PGR_SHARED, 4096, &err) < 0 || pgr_probe(PGR_ANON, 4096, &err) < 0) {
		printf("SKIP: %s\n", err.msg);
		return 77;
	}
	if (pgr_probe(PGR_SHARED, 2 << 20, &err) < 0)
		printf("SKIP: hugetlb: %s\n", err.msg);
	static struct variant variants[BACK_COUNT * 2];
	static struct CMUnitTest tests[BACK_COUNT * 2 * BASE_ARRAY_LEN(laws) + 1];
	static char names[BASE_ARRAY_LEN(tests)][96];
	size_t n = 0;
	for (int i = 0; i < BACK_COUNT * 2; i++) {
		if (i / 2 == BACK_HUGETLB && err.code)
			continue;
		variants[i] = (struct variant){ i / 2, i % 2, 1 + (unsigned)i % GUEST_UFFDS };
		for (size_t l = 0; l < BASE_ARRAY_LEN(laws); l++, n++) {
			(void)snprintf(names[n], sizeof(names[n]), "%s: %s, %s process, %u shards",
				       laws[l].name, backing_name(i / 2), i % 2 ? "other" : "this",
				       variants[i].shards);
			tests[n] = (struct CMUnitTest){ .name = names[n],
							.test_func = laws[l].fn,
							.initial_state = &variants[i] };
		}
	}
	tests[n++] = (struct CMUnitTest)cmocka_unit_test(runs_are_merged_by_the_smallest_gaps);
	return _cmocka_run_group_tests("pager", tests, n, NULL, NULL);
}
