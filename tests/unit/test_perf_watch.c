/* SPDX-License-Identifier: BSD-2-Clause */
/* Watching a guest of another process: what is found, and that nothing of it stays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memferry/guests.h>

#include "base/error.h"
#include "perf/watch.h"

#define MIB 1048576.0

/* Half of its pages hold nothing and were never touched; 2 MiB of the others are written all the time. */
#define SEQUENTIAL "demo:32M,hot=2M,dirty=64M,zero=50,check=0,threads=1,pattern=sequential"
#define RANDOM     "demo:32M,hot=2M,dirty=8M,zero=50,check=0,threads=1,pattern=random"

static struct mf_adapter open_guest(const char *spec, struct mf_guest *ret)
{
	struct mf_adapter guest = { 0 };
	struct mf_error err = { 0 };

	if (mf_guest_open(spec, MF_SOURCE, &guest, &err) ||
	    guest.ops->describe(guest.hv, ret, &err))
		fail_msg("%s", err.msg);
	return guest;
}

static unsigned count_userfaultfds(pid_t pid)
{
	char path[300], target[64];
	unsigned n = 0;

	(void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	DIR *dir = opendir(path);
	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));) {
		(void)snprintf(path, sizeof(path), "/proc/%d/fd/%s", (int)pid, e->d_name);
		ssize_t len = readlink(path, target, sizeof(target) - 1);
		target[len > 0 ? len : 0] = '\0';
		n += !!strstr(target, "userfaultfd");
	}
	(void)closedir(dir);
	return n;
}

static uint64_t allocated(const struct mf_guest *about)
{
	struct stat st;

	assert_int_equal(fstat(about->regions[0].fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void assert_left_alone(const struct mf_guest *about)
{
	assert_int_equal(count_userfaultfds(about->pid), 0);
	assert_int_equal(count_userfaultfds(getpid()), 0);
}

/* Also when the host is so busy that windows are longer than they should be. */
static void watch_finds_what_is_written(void **state)
{
	(void)state;
	static struct mf_guest about;
	struct mf_adapter guest = open_guest(SEQUENTIAL, &about);
	struct mf_error err = { 0 };
	struct perf_watch w;
	uint64_t before = allocated(&about);

	if (perf_watch_run(&guest, 1, 16384, &w, &err))
		fail_msg("%s", err.msg);
	assert_left_alone(&about);
	assert_true(w.tracker[0] && w.name[0]);
	assert_true(w.ram_bytes == 32 * MIB);
	/* Holes are left alone, but for those that the guest itself writes to, and do not count; what is there is not zero. */
	assert_true(allocated(&about) <= before + (2 << 20));
	assert_true(w.allocated_bytes >= (double)before);
	assert_true(w.allocated_bytes <= (double)before + 2 * MIB);
	assert_true(w.allocated_bytes < 24 * MIB && w.allocated_bytes > 8 * MIB);
	assert_true(w.data_bytes == w.allocated_bytes);
	assert_int_equal(w.dirty.n, 4); /* 1, 2, 4, 8 ticks */
	for (unsigned i = 0; i < w.dirty.n; i++) {
		assert_true(w.dirty.s[i] >= 0.09 * (double)(1u << i));
		assert_true(w.dirty.bytes[i] > 0 && w.dirty.bytes[i] <= 2 * MIB);
		assert_true(w.dirty.runs[i] >= 0.5);
		assert_true(w.dirty.runs[i] * 4096 <= w.dirty.bytes[i]);
	}
	mf_guest_close(&guest);
}

static void close_neighbours_are_one_run(void **state)
{
	(void)state;
	static struct mf_guest about;
	struct mf_adapter guest = open_guest(RANDOM, &about);
	struct perf_watch apart, together;
	struct mf_error err = { 0 };

	if (perf_watch_run(&guest, 1, 0, &apart, &err) ||
	    perf_watch_run(&guest, 1, UINT64_C(1) << 30, &together, &err))
		fail_msg("%s", err.msg);
	assert_true(apart.dirty.runs[0] > together.dirty.runs[0]);
	assert_true(together.dirty.runs[0] <= 1);
	mf_guest_close(&guest);
}

static void pages_of_zeroes_do_not_count_as_data(void **state)
{
	(void)state;
	static struct mf_guest about;
	struct mf_adapter guest =
		open_guest("demo:32M,hot=4K,dirty=4K,zero=0,check=0,threads=1", &about);
	static const uint8_t zeroes[65536];
	struct perf_watch w;
	struct mf_error err = { 0 };

	/* Behind its back, and never looked at again: every other 8 MiB. */
	for (off_t at = 8 << 20; at < 16 << 20; at += sizeof(zeroes)) {
		assert_int_equal(pwrite(about.regions[0].fd, zeroes, sizeof(zeroes), at),
				 sizeof(zeroes));
		assert_int_equal(
			pwrite(about.regions[0].fd, zeroes, sizeof(zeroes), at + (16 << 20)),
			sizeof(zeroes));
	}
	if (perf_watch_run(&guest, 1, 0, &w, &err))
		fail_msg("%s", err.msg);
	assert_true(w.allocated_bytes == 32 * MIB);
	assert_true(w.data_bytes > 14 * MIB && w.data_bytes < 18 * MIB);
	mf_guest_close(&guest);
}

static void signal_ends_it(void **state)
{
	(void)state;
	static struct mf_guest about;
	const int numbers[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
	sigset_t signals, before;

	perf_watch_signals(&signals);
	assert_int_equal(pthread_sigmask(SIG_BLOCK, &signals, &before), 0);
	struct mf_adapter guest = open_guest(SEQUENTIAL, &about);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		struct mf_error err = { 0 };
		struct perf_watch w;
		assert_int_equal(raise(numbers[i]), 0); /* before it has begun */
		assert_int_equal(perf_watch_run(&guest, 3600, 0, &w, &err), -EINTR);
		assert_string_equal(err.msg, "stopped; the guest is as it was");
		assert_left_alone(&about);
	}
	mf_guest_close(&guest);
	assert_int_equal(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
}

/* Its table, with one call that fails. */
static int fail_to_open(void *hv, int *ret_fd, struct mf_error *err)
{
	(void)hv, (void)ret_fd;
	return base_error(err, -EPERM, MF_SCOPE_HOST, "it does not want to");
}

static void guest_that_cannot_be_watched_is_refused(void **state)
{
	(void)state;
	static struct mf_guest about;
	struct mf_adapter guest = open_guest(SEQUENTIAL, &about);
	struct mf_adapter_ops ops = *guest.ops;
	struct mf_adapter other = { .ops = &ops, .hv = guest.hv };
	struct mf_error err = { 0 };
	struct perf_watch w;

	ops.open_userfaultfd = fail_to_open;
	int code = perf_watch_run(&other, 1, 0, &w, &err);
	/* There are trackers that need none. */
	if (code) {
		assert_int_equal(code, -MF_EREFUSED);
		assert_non_null(strstr(err.msg, "this guest cannot be watched: "));
	}
	assert_left_alone(&about);
	mf_guest_close(&guest);
}

static void guest_that_ends_is_an_error(void **state)
{
	(void)state;
	static struct mf_guest about;
	struct mf_adapter guest = open_guest(SEQUENTIAL, &about);
	struct mf_error err = { 0 };
	struct perf_watch w;

	assert_int_equal(kill(about.pid, SIGKILL), 0);
	assert_true(perf_watch_run(&guest, 3600, 0, &w, &err) < 0);
	assert_true(err.msg[0]);
	mf_guest_close(&guest);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(watch_finds_what_is_written),
		cmocka_unit_test(close_neighbours_are_one_run),
		cmocka_unit_test(pages_of_zeroes_do_not_count_as_data),
		cmocka_unit_test(signal_ends_it),
		cmocka_unit_test(guest_that_cannot_be_watched_is_refused),
		cmocka_unit_test(guest_that_ends_is_an_error),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
