/* SPDX-License-Identifier: BSD-2-Clause */
#include "inside.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE  4096u
#define BYTES ((size_t)INSIDE_PAGES * PAGE)

static void nap(void)
{
	(void)nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
}

static uint32_t *word_of(struct inside *g, uint32_t page)
{
	/* Not at the same place of each page. */
	return (uint32_t *)(g->mem + (size_t)page * PAGE + page % 1000 * 4);
}

/* One write in a window that moves slowly, every eighth anywhere. */
static void write_one(struct inside *g)
{
	uint32_t n = g->writes++, hash = n * 2654435761u;
	uint32_t page = (n % 8 ? n / 512 + hash % 64 : hash >> 8) % INSIDE_PAGES;
	uint32_t *word = word_of(g, page);
	if (*(volatile uint32_t *)word != g->counts[page])
		atomic_fetch_add(&g->wrong, 1);
	*(volatile uint32_t *)word = ++g->counts[page];
}

void inside_write(struct inside *g, uint32_t page)
{
	*word_of(g, page) = ++g->counts[page];
}

static void *write_on(void *arg)
{
	struct inside *g = arg;
	while (!atomic_load(&g->quit)) {
		if (!atomic_load(&g->run)) {
			atomic_store(&g->is_standing, true);
			nap();
			continue;
		}
		atomic_store(&g->is_standing, false);
		for (int i = 0; i < 16; i++)
			write_one(g);
		nap();
	}
	atomic_store(&g->is_standing, true);
	return NULL;
}

void inside_open(struct inside *g, enum inside_memory kind)
{
	*g = (struct inside){ .kind = kind, .fd = -1 };
	int flags = MAP_ANONYMOUS | (kind == INSIDE_PRIVATE ? MAP_PRIVATE : MAP_SHARED);
	if (kind == INSIDE_FILE) {
		g->fd = memfd_create("inside", MFD_CLOEXEC);
		assert_true(g->fd >= 0);
		assert_return_code(ftruncate(g->fd, (off_t)BYTES), errno);
		flags = MAP_SHARED;
	}
	g->mem = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, flags, g->fd, 0);
	assert_ptr_not_equal(g->mem, MAP_FAILED);
	atomic_store(&g->is_standing, true);
	assert_int_equal(pthread_create(&g->writer, NULL, write_on, g), 0);
}

void inside_close(struct inside *g)
{
	atomic_store(&g->quit, true);
	pthread_join(g->writer, NULL);
	(void)munmap(g->mem, BYTES);
	if (g->fd >= 0)
		close(g->fd);
}

static void stand(struct inside *g)
{
	atomic_store(&g->run, false);
	do
		nap();
	while (!atomic_load(&g->is_standing));
}

void inside_start(struct inside *g)
{
	atomic_store(&g->is_standing, false);
	atomic_store(&g->run, true);
}

bool inside_runs(const struct inside *g)
{
	return atomic_load(&g->run);
}

unsigned inside_check(struct inside *g)
{
	stand(g);
	unsigned wrong = atomic_load(&g->wrong);
	for (uint32_t page = 0; page < INSIDE_PAGES; page++)
		wrong += *word_of(g, page) != g->counts[page];
	return wrong;
}

/* ---- the adapter ---- */

static struct inside *called(void *hv)
{
	struct inside *g = hv;
	if (g->has_thread && !pthread_equal(pthread_self(), g->callback_thread))
		atomic_fetch_add(&g->strange_calls, 1);
	return g;
}

static int describe(void *hv, struct mf_guest *ret, struct mf_error *err)
{
	struct inside *g = called(hv);
	(void)err;
	*ret = (struct mf_guest){
		.kind = "inside",
		.name = "a guest in the test",
		.monitor = "test_library",
		.machine = "none",
		.cpu = "one thread",
		.pid = getpid(),
		.n_regions = 1,
		.regions[0] = { .name = "ram",
				.size = BYTES,
				.page_size = PAGE,
				.hva = (uintptr_t)g->mem,
				.fd = g->fd },
	};
	return 0;
}

static int prepare(void *hv, enum mf_side side, struct mf_error *err)
{
	(void)side, (void)err;
	called(hv)->prepared++;
	return 0;
}

static int pause_guest(void *hv, uint64_t *ret_stopped_us, struct mf_error *err)
{
	struct inside *g = called(hv);
	struct timespec now;
	if (g->pause_fails) {
		g->pause_fails--;
		(void)snprintf(err->msg, sizeof(err->msg), "the guest does not stand still");
		err->scope = MF_SCOPE_SESSION;
		return err->code = -EBUSY;
	}
	stand(g);
	g->paused++;
	clock_gettime(CLOCK_MONOTONIC, &now);
	*ret_stopped_us = (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
	return 0;
}

static int save_state(void *hv, mf_state_write_fn write, void *ctx, struct mf_error *err)
{
	struct inside *g = called(hv);
	(void)err;
	int r = write(ctx, &g->writes, sizeof(g->writes));
	return r < 0 ? r : write(ctx, g->counts, sizeof(g->counts));
}

static int read_whole(mf_state_read_fn read, void *ctx, void *to, size_t len)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = read(ctx, (uint8_t *)to + at, len - at);
		if (n <= 0)
			return n < 0 ? (int)n : -EPROTO;
		at += (size_t)n;
	}
	return 0;
}

static int load_state(void *hv, mf_state_read_fn read, void *ctx, struct mf_error *err)
{
	struct inside *g = called(hv);
	uint8_t more;
	(void)err;
	int r = read_whole(read, ctx, &g->writes, sizeof(g->writes));
	if (r == 0)
		r = read_whole(read, ctx, g->counts, sizeof(g->counts));
	if (r == 0 && read(ctx, &more, 1) != 0)
		r = -EPROTO;
	g->loaded++;
	/* Loading touches RAM, as with real devices: that page may have to be fetched. */
	if (r == 0 && *word_of(g, INSIDE_PAGES / 2) != g->counts[INSIDE_PAGES / 2])
		atomic_fetch_add(&g->wrong, 1);
	return r;
}

static int resume(void *hv, struct mf_error *err)
{
	struct inside *g = called(hv);
	if (g->resume_fails) {
		(void)snprintf(err->msg, sizeof(err->msg), "the guest does not start");
		err->scope = MF_SCOPE_SESSION;
		return err->code = -EIO;
	}
	g->resumed++;
	inside_start(g);
	return 0;
}

static void commit(void *hv)
{
	called(hv)->committed++;
}

static int abort_move(void *hv, struct mf_error *err)
{
	struct inside *g = called(hv);
	(void)err;
	g->aborted++;
	if (g->paused && !g->committed)
		inside_start(g);
	return 0;
}

static void finish(void *hv)
{
	called(hv)->finished++;
}

static void close_guest(void *hv)
{
	(void)hv;
}

static ssize_t list_needs(void *hv, void *bytes, size_t cap, struct mf_error *err)
{
	const struct inside *g = called(hv);
	(void)cap, (void)err;
	if (!g->needs)
		return 0;
	memcpy(bytes, g->needs, strlen(g->needs));
	return (ssize_t)strlen(g->needs);
}

static int check_needs(void *hv, const void *bytes, size_t len, struct mf_finding *ret,
		       unsigned cap, struct mf_error *err)
{
	const struct inside *g = called(hv);
	(void)cap, (void)err;
	const char *met = g->needs ? g->needs : "";
	if (len == strlen(met) && (!len || !memcmp(bytes, met, len)))
		return 0;
	*ret = (struct mf_finding){ .verdict = MF_REFUSE, .subject = "flux capacitor" };
	(void)snprintf(ret->detail, sizeof(ret->detail), "the guest has one, this host has not");
	return 1;
}

static void take_written(void *hv, uint32_t region, uint64_t first, uint64_t n, uint64_t *bits)
{
	struct inside *g = called(hv);
	(void)region, (void)n;
	g->taken++;
	/* What it says that it wrote, and the tracker knows as well. */
	if (first == 0 && (g->restless || g->written_at != g->writes))
		bits[0] |= 1;
	g->written_at = g->writes;
}

const struct mf_adapter_ops inside_ops = {
	.size = sizeof(inside_ops),
	.name = "inside",
	.describe = describe,
	.prepare = prepare,
	.pause = pause_guest,
	.save_state = save_state,
	.load_state = load_state,
	.resume = resume,
	.commit = commit,
	.abort = abort_move,
	.finish = finish,
	.close = close_guest,
	.list_needs = list_needs,
	.check_needs = check_needs,
	.take_written = take_written,
};
