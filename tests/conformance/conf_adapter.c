/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The laws of memferry/adapter.h, a test for each, over one kind of guest:
 *
 *   conf_adapter [demo|qemu|kvm]
 *
 * "Runs" is seen from outside of the adapter: by the monitor's word, and by something that changes while the guest runs.
 */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <xxhash.h>

#include <memferry/guests.h>

#include "base/clock.h"
#include "rig.h"

enum {
	PATIENCE_MS = 30000,
	STATE_CAP = 16 << 20,
};

#define must(call)                                                  \
	do {                                                        \
		struct mf_error err = { 0 };                        \
		int rc_ = (call);                                   \
		if (rc_ < 0)                                        \
			fail_msg("%s: %d %s", #call, rc_, err.msg); \
	} while (0)

/* Calls of one side: `on(rig, MF_SOURCE, pause, &stopped)`. */
#define on(rig, side, op, ...) \
	must((rig)->guest[side].ops->op((rig)->guest[side].hv, ##__VA_ARGS__, &err))

static const struct rig_ops *kind = &rig_demo;

static int setup(void **state)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	assert_non_null(rig);
	*state = rig;
	rig->ops = kind;
	if (rig->ops->open(rig))
		return 0;
	rig->ops->close(rig);
	free(rig);
	return -1;
}

static int teardown(void **state)
{
	struct rig *rig = *state;
	rig->ops->close(rig);
	free(rig);
	return 0;
}

/* --- what is seen from outside ---------------------------------------------------------------- */

static void breathe(void)
{
	(void)nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
}

static void assert_lives(struct rig *rig, enum mf_side side)
{
	uint64_t deadline = base_deadline_ms(PATIENCE_MS), before = rig->ops->life(rig, side);
	assert_true(rig->ops->running(rig, side));
	while (rig->ops->life(rig, side) == before) {
		if (!base_left_ms(deadline))
			fail_msg("the guest is said to run, and does not");
		breathe();
	}
}

static void assert_stands(struct rig *rig, enum mf_side side)
{
	uint64_t before = rig->ops->life(rig, side);
	assert_false(rig->ops->running(rig, side));
	breathe();
	assert_int_equal(rig->ops->life(rig, side), before);
}

static void describe(struct rig *rig, enum mf_side side, struct mf_guest *ret)
{
	on(rig, side, describe, ret);
}

/* Each region's bytes through its descriptor. */
static unsigned char *map_region(const struct mf_region *region)
{
	void *at = mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd,
			(off_t)region->offset);
	assert_ptr_not_equal(at, MAP_FAILED);
	return at;
}

static uint64_t hash_ram(struct rig *rig, enum mf_side side)
{
	static struct mf_guest desc;
	uint64_t hash = 0;
	describe(rig, side, &desc);
	for (uint32_t i = 0; i < desc.n_regions; i++) {
		unsigned char *at = map_region(&desc.regions[i]);
		hash = XXH3_64bits_withSeed(at, desc.regions[i].size, hash);
		(void)munmap(at, desc.regions[i].size);
	}
	return hash;
}

static void copy_ram(struct rig *rig)
{
	static struct mf_guest src, dst;
	describe(rig, MF_SOURCE, &src);
	describe(rig, MF_DESTINATION, &dst);
	assert_int_equal(src.n_regions, dst.n_regions);
	for (uint32_t i = 0; i < src.n_regions; i++) {
		assert_string_equal(src.regions[i].name, dst.regions[i].name);
		assert_int_equal(src.regions[i].size, dst.regions[i].size);
		assert_int_equal(src.regions[i].gpa, dst.regions[i].gpa);
		unsigned char *from = map_region(&src.regions[i]);
		unsigned char *to = map_region(&dst.regions[i]);
		memcpy(to, from, src.regions[i].size);
		(void)munmap(from, src.regions[i].size);
		(void)munmap(to, src.regions[i].size);
	}
}

static unsigned count_fds(void)
{
	unsigned n = 0;
	DIR *dir = opendir("/proc/self/fd");
	assert_non_null(dir);
	while (readdir(dir))
		n++;
	(void)closedir(dir);
	return n;
}

/* --- a move's steps --------------------------------------------------------------------------- */

struct stream {
	unsigned char *bytes;
	size_t len, at, limit; /* of bytes to take before failing; 0: none */
	unsigned ends;         /* times the end was read */
};

static int put(void *ctx, const void *bytes, size_t len)
{
	struct stream *s = ctx;
	if (s->limit && s->len + len > s->limit)
		return -EIO;
	if (len > STATE_CAP - s->len)
		return -ENOSPC;
	memcpy(s->bytes + s->len, bytes, len);
	s->len += len;
	return 0;
}

static ssize_t take(void *ctx, void *bytes, size_t cap)
{
	struct stream *s = ctx;
	size_t n = s->len - s->at < cap ? s->len - s->at : cap;
	if (n > 5000)
		n = 5000;
	memcpy(bytes, s->bytes + s->at, n);
	s->at += n;
	s->ends += !n;
	return (ssize_t)n;
}

static void stream_open(struct stream *s)
{
	*s = (struct stream){ .bytes = malloc(STATE_CAP) };
	assert_non_null(s->bytes);
}

static void prepare_both(struct rig *rig)
{
	on(rig, MF_SOURCE, prepare, MF_SOURCE);
	on(rig, MF_DESTINATION, prepare, MF_DESTINATION);
}

static void pause_source(struct rig *rig)
{
	uint64_t stopped = 0, before = base_now_us();
	on(rig, MF_SOURCE, pause, &stopped);
	assert_in_range(stopped, before, base_now_us());
}

/* Up to and with load_state(). */
static void bring_over(struct rig *rig)
{
	struct stream s;
	stream_open(&s);
	prepare_both(rig);
	pause_source(rig);
	copy_ram(rig);
	on(rig, MF_SOURCE, save_state, put, &s);
	on(rig, MF_DESTINATION, load_state, take, &s);
	free(s.bytes);
}

/* --- the laws --------------------------------------------------------------------------------- */

static void a1_after_prepare(void **state)
{
	struct rig *rig = *state;
	assert_lives(rig, MF_SOURCE);
	on(rig, MF_SOURCE, prepare, MF_SOURCE);
	assert_lives(rig, MF_SOURCE);
	on(rig, MF_SOURCE, abort);
	assert_lives(rig, MF_SOURCE);
}

static void a1_after_pause(void **state)
{
	struct rig *rig = *state;
	on(rig, MF_SOURCE, prepare, MF_SOURCE);
	pause_source(rig);
	assert_stands(rig, MF_SOURCE);
	on(rig, MF_SOURCE, abort);
	assert_lives(rig, MF_SOURCE);
}

static void a1_after_save(void **state)
{
	struct rig *rig = *state;
	struct stream s;
	stream_open(&s);
	on(rig, MF_SOURCE, prepare, MF_SOURCE);
	pause_source(rig);
	on(rig, MF_SOURCE, save_state, put, &s);
	assert_stands(rig, MF_SOURCE);
	on(rig, MF_SOURCE, abort);
	assert_lives(rig, MF_SOURCE);
	free(s.bytes);
}

/* The stream breaks: with its first byte, or in its middle. */
static void break_stream(struct rig *rig, size_t limit)
{
	struct stream s;
	struct mf_error said = { 0 };
	stream_open(&s);
	s.limit = limit;
	on(rig, MF_SOURCE, prepare, MF_SOURCE);
	pause_source(rig);
	struct mf_adapter *src = &rig->guest[MF_SOURCE];
	assert_true(src->ops->save_state(src->hv, put, &s, &said) < 0);
	assert_true(said.code < 0 && said.msg[0]);
	on(rig, MF_SOURCE, abort);
	assert_lives(rig, MF_SOURCE);
	free(s.bytes);
}

static void a1_stream_breaks_at_once(void **state)
{
	break_stream(*state, 1);
}

static void a1_stream_breaks_midway(void **state)
{
	break_stream(*state, kind == &rig_qemu ? 20000 : 100);
}

/* The destination has taken everything, and only then it is called off. */
static void a1_after_load(void **state)
{
	struct rig *rig = *state;
	bring_over(rig);
	on(rig, MF_DESTINATION, abort);
	on(rig, MF_SOURCE, abort);
	assert_lives(rig, MF_SOURCE);
}

static void a2_pause_stops_all_writes(void **state)
{
	struct rig *rig = *state;
	on(rig, MF_SOURCE, prepare, MF_SOURCE);
	assert_lives(rig, MF_SOURCE);
	pause_source(rig);
	uint64_t hash = hash_ram(rig, MF_SOURCE);
	assert_stands(rig, MF_SOURCE);
	assert_true(hash_ram(rig, MF_SOURCE) == hash);
	on(rig, MF_SOURCE, abort);
	assert_lives(rig, MF_SOURCE);
}

static void a3_state_is_carried_whole(void **state)
{
	struct rig *rig = *state;
	struct stream s;
	stream_open(&s);
	prepare_both(rig);
	pause_source(rig);
	copy_ram(rig);
	on(rig, MF_SOURCE, save_state, put, &s);
	assert_true(s.len > 0);
	assert_stands(rig, MF_SOURCE);
	on(rig, MF_DESTINATION, load_state, take, &s);
	assert_int_equal(s.at, s.len);
	assert_false(rig->ops->running(rig, MF_DESTINATION));
	assert_stands(rig, MF_SOURCE);
	rig->guest[MF_SOURCE].ops->commit(rig->guest[MF_SOURCE].hv);
	on(rig, MF_DESTINATION, resume);
	assert_lives(rig, MF_DESTINATION);
	free(s.bytes);
}

static void a3_part_of_a_state_is_refused(void **state)
{
	struct rig *rig = *state;
	struct stream s;
	struct mf_error said = { 0 };
	stream_open(&s);
	prepare_both(rig);
	pause_source(rig);
	copy_ram(rig);
	on(rig, MF_SOURCE, save_state, put, &s);
	s.len /= 10; /* three quarters of QEMU's is a description for people, which may lack */
	struct mf_adapter *dst = &rig->guest[MF_DESTINATION];
	assert_true(dst->ops->load_state(dst->hv, take, &s, &said) < 0);
	assert_true(said.code < 0 && said.msg[0]);
	on(rig, MF_SOURCE, abort);
	assert_lives(rig, MF_SOURCE);
	free(s.bytes);
}

static void a4_only_resume_runs_it(void **state)
{
	struct rig *rig = *state;
	bring_over(rig);
	assert_stands(rig, MF_DESTINATION);
	rig->guest[MF_SOURCE].ops->commit(rig->guest[MF_SOURCE].hv);
	assert_stands(rig, MF_DESTINATION);
	on(rig, MF_DESTINATION, resume);
	assert_lives(rig, MF_DESTINATION);
	assert_stands(rig, MF_SOURCE);
}

static void a5_committed_never_runs_again(void **state)
{
	struct rig *rig = *state;
	struct mf_adapter *src = &rig->guest[MF_SOURCE];
	bring_over(rig);
	src->ops->commit(src->hv);
	assert_stands(rig, MF_SOURCE);
	(void)src->ops->abort(src->hv, NULL);
	assert_stands(rig, MF_SOURCE);
	on(rig, MF_DESTINATION, resume);
	src->ops->finish(src->hv);
	assert_true(rig->ops->ended(rig, MF_SOURCE));
	assert_lives(rig, MF_DESTINATION);
}

static void assert_same_regions(struct rig *rig, enum mf_side side, const struct mf_guest *before)
{
	static struct mf_guest now;
	describe(rig, side, &now);
	assert_int_equal(now.n_regions, before->n_regions);
	assert_int_equal(now.pid, before->pid);
	assert_string_equal(now.kind, before->kind);
	assert_string_equal(now.machine, before->machine);
	assert_string_equal(now.cpu, before->cpu);
	for (uint32_t i = 0; i < now.n_regions; i++) {
		const struct mf_region *a = &now.regions[i], *b = &before->regions[i];
		assert_string_equal(a->name, b->name);
		assert_int_equal(a->size, b->size);
		assert_int_equal(a->page_size, b->page_size);
		assert_int_equal(a->gpa, b->gpa);
		assert_int_equal(a->hva, b->hva);
		assert_int_equal(a->offset, b->offset);
		assert_int_equal(a->fd, b->fd);
	}
}

static void a6_description_is_stable(void **state)
{
	struct rig *rig = *state;
	static struct mf_guest src, dst;
	describe(rig, MF_SOURCE, &src);
	describe(rig, MF_DESTINATION, &dst);
	assert_true(src.n_regions > 0 && src.kind[0] && src.monitor[0] && src.machine[0] &&
		    src.cpu[0]);
	assert_string_equal(src.machine, dst.machine);
	assert_string_equal(src.cpu, dst.cpu);
	assert_true(src.pid > 0 && (kind->in_process ? src.pid == dst.pid : src.pid != dst.pid));
	for (uint32_t i = 0; i < src.n_regions; i++) {
		assert_true(src.regions[i].fd >= 0 && src.regions[i].page_size >= 4096);
		assert_int_equal(src.regions[i].size % src.regions[i].page_size, 0);
		for (uint32_t k = 0; k < i; k++)
			assert_string_not_equal(src.regions[i].name, src.regions[k].name);
	}
	bring_over(rig);
	assert_same_regions(rig, MF_SOURCE, &src);
	assert_same_regions(rig, MF_DESTINATION, &dst);
	rig->guest[MF_SOURCE].ops->commit(rig->guest[MF_SOURCE].hv);
	on(rig, MF_DESTINATION, resume);
	assert_same_regions(rig, MF_DESTINATION, &dst);
}

/* Closing in the state that the steps before left; nothing of ours may stay open. */
static void close_and_count(struct rig *rig, unsigned before)
{
	mf_guest_close(&rig->guest[MF_SOURCE]);
	mf_guest_close(&rig->guest[MF_DESTINATION]);
	assert_true(count_fds() < before); /* at least the RAM's descriptors */
}

static void a7_close_at_once(void **state)
{
	close_and_count(*state, count_fds());
}

static void a7_close_prepared(void **state)
{
	struct rig *rig = *state;
	int fd = -1;
	prepare_both(rig);
	if (!kind->in_process) /* else it is the engine's */
		on(rig, MF_SOURCE, open_userfaultfd, &fd);
	if (fd >= 0)
		(void)close(fd);
	close_and_count(rig, count_fds());
	if (rig->ops->outlives_close)
		assert_lives(rig, MF_SOURCE);
}

static void a7_close_committed(void **state)
{
	struct rig *rig = *state;
	bring_over(rig);
	rig->guest[MF_SOURCE].ops->commit(rig->guest[MF_SOURCE].hv);
	close_and_count(rig, count_fds());
	if (rig->ops->outlives_close) {
		assert_stands(rig, MF_SOURCE);
		assert_stands(rig, MF_DESTINATION);
	}
}

/* Open and close again and again: as many descriptors as at first. */
static void a7_leaks_nothing(void **state)
{
	(void)state;
	unsigned before = count_fds();
	for (unsigned i = 0; i < 2; i++) {
		void *rig;
		assert_int_equal(setup(&rig), 0);
		bring_over(rig);
		assert_int_equal(teardown(&rig), 0);
		assert_int_equal(count_fds(), before);
	}
}

static void a8_abort_twice(void **state)
{
	struct rig *rig = *state;
	on(rig, MF_SOURCE, abort); /* nothing to undo */
	assert_lives(rig, MF_SOURCE);
	bring_over(rig);
	for (unsigned i = 0; i < 3; i++) {
		on(rig, MF_DESTINATION, abort);
		on(rig, MF_SOURCE, abort);
		assert_lives(rig, MF_SOURCE);
	}
	/* What was loaded is dropped: it can no longer be run. */
	struct mf_adapter *dst = &rig->guest[MF_DESTINATION];
	assert_true(dst->ops->resume(dst->hv, NULL) < 0);
	assert_lives(rig, MF_SOURCE);
}

static void a8_abort_undoes_prepare(void **state)
{
	struct rig *rig = *state;
	prepare_both(rig);
	on(rig, MF_DESTINATION, abort);
	on(rig, MF_DESTINATION, abort);
	on(rig, MF_SOURCE, abort);
	assert_lives(rig, MF_SOURCE);
}

#define law(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		law(a1_after_prepare),
		law(a1_after_pause),
		law(a1_after_save),
		law(a1_stream_breaks_at_once),
		law(a1_stream_breaks_midway),
		law(a1_after_load),
		law(a2_pause_stops_all_writes),
		law(a3_state_is_carried_whole),
		law(a3_part_of_a_state_is_refused),
		law(a4_only_resume_runs_it),
		law(a5_committed_never_runs_again),
		law(a6_description_is_stable),
		law(a7_close_at_once),
		law(a7_close_prepared),
		law(a7_close_committed),
		cmocka_unit_test(a7_leaks_nothing),
		law(a8_abort_twice),
		law(a8_abort_undoes_prepare),
	};
	const char *name = argc > 1 ? argv[1] : "demo";

	if (!strcmp(name, "qemu")) {
		rig_qemu_need();
		kind = &rig_qemu;
	}
#ifdef MF_HAVE_MACHINE
	if (!strcmp(name, "kvm")) {
		rig_kvm_need();
		kind = &rig_kvm;
	}
#endif
	return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
