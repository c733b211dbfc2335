/* SPDX-License-Identifier: BSD-2-Clause */
/* What is left in a run directory: what each record means, what is forgotten and what is refused. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <memferry/session.h>

#include "base/cleanup.h"
#include "base/process.h"

#define SESSION "0123456789abcdef"

static char run_dir[64];

static int make_run_dir(void **state)
{
	(void)state;
	(void)snprintf(run_dir, sizeof(run_dir), "/tmp/memferry-left-XXXXXX");
	return mkdtemp(run_dir) ? 0 : -1;
}

static int remove_run_dir(void **state)
{
	char command[128];
	(void)state;
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", run_dir);
	return system(command); /* NOLINT(cert-env33-c) */
}

static const char *path_of(const char *suffix)
{
	static char path[128];
	(void)snprintf(path, sizeof(path), "%s/" SESSION ".%s", run_dir, suffix);
	return path;
}

static void put(const char *suffix, const char *text)
{
	base_cleanup(base_fclosep) FILE *f = fopen(path_of(suffix), "we");
	assert_non_null(f);
	(void)fputs(text, f);
}

static void put_record_of(const char *side, const char *what, bool postcopy,
			  const struct base_process *guest)
{
	char text[400], suffix[32];
	(void)snprintf(
		text, sizeof(text),
		"{\"version\":4,\"session\":\"" SESSION "\",\"side\":\"%s\",\"state\":\"%s\","
		"\"postcopy\":%s,\"ran\":true,\"sealing\":0,\"pid\":%d,\"started\":%" PRIu64
		",\"pid_ns\":%" PRIu64 ",\"peer\":\"192.0.2.7:7741\",\"time\":1}\n",
		side, what, postcopy ? "true" : "false", guest->pid, guest->started, guest->pid_ns);
	(void)snprintf(suffix, sizeof(suffix), "%s.record", side);
	put(suffix, text);
	(void)snprintf(suffix, sizeof(suffix), "%s.lock", side);
	put(suffix, "");
}

static void put_record(const char *side, const char *what, bool postcopy, int pid)
{
	struct base_process guest;
	base_process_identify(pid, &guest);
	put_record_of(side, what, postcopy, &guest);
}

static int dead_pid(void)
{
	pid_t pid = fork();
	if (pid == 0)
		_exit(0);
	assert_true(pid > 0 && waitpid(pid, NULL, 0) == pid);
	return pid;
}

static void find_one(struct mf_leftover *ret)
{
	struct mf_leftover all[4];
	struct mf_error err;
	assert_int_equal(mf_leftovers(run_dir, all, sizeof(all[0]), 4, &err), 1);
	assert_string_equal(all[0].session, SESSION);
	*ret = all[0];
}

static void expect_empty(void)
{
	struct mf_leftover all[4];
	assert_int_equal(mf_leftovers(run_dir, all, sizeof(all[0]), 4, NULL), 0);
	assert_int_equal(rmdir(run_dir), 0); /* and nothing else */
	assert_int_equal(make_run_dir(NULL), 0);
}

static void each_record_means_what_it_should(void **state)
{
	static const struct {
		const char *side, *what;
		bool postcopy, lives, present, needed;
	} cases[] = {
		{ "source", "committed", false, true, false, true },
		{ "source", "committed", true, true, false, true },
		{ "source", "committed", true, false, false, false },
		{ "destination", "ready", false, true, false, true },
		{ "destination", "ready", true, false, true, true },
		{ "destination", "aborted", true, false, false, false },
		{ "destination", "owner", false, true, false, true },
		{ "destination", "owner", true, true, true, true },
		{ "destination", "owner", false, false, false, false },
		{ "destination", "running", false, true, false, false },
		{ "destination", "running", true, true, true, true },
		{ "destination", "running", true, false, true, false },
		{ "destination", "complete", false, true, false, false },
		{ "destination", "complete", true, true, false, false },
		/* it died before it had let go of the userfaultfd */
		{ "destination", "complete", true, true, true, true },
		{ "destination", "complete", true, false, true, false },
		/* of another version */
		{ "source", "burnt", false, true, false, true },
	};
	(void)state;
	int dead = dead_pid();
	for (unsigned i = 0; i < BASE_ARRAY_LEN(cases); i++) {
		struct mf_leftover l;
		struct mf_error err;
		print_message("%s %s\n", cases[i].side, cases[i].what);
		put_record(cases[i].side, cases[i].what, cases[i].postcopy,
			   cases[i].lives ? getpid() : dead);
		if (cases[i].present)
			put("present", "");
		find_one(&l);
		assert_false(l.held);
		assert_int_equal(l.needed, cases[i].needed);
		assert_true(l.text[0] && strlen(l.text) < sizeof(l.text) - 1);
		int r = mf_forget(run_dir, SESSION, false, &err);
		assert_int_equal(r, cases[i].needed ? -MF_EREFUSED : 0);
		if (cases[i].needed) {
			assert_non_null(strstr(err.msg, "--force")); /* not cut off */
			find_one(&l);
			assert_int_equal(mf_forget(run_dir, SESSION, true, &err), 0);
		}
		expect_empty();
	}
}

/* Children that nobody has waited for have ended; of what is no process nobody knows that it has. */
static void a_guest_has_ended_for_certain(void **state)
{
	struct mf_leftover l;
	siginfo_t info;
	(void)state;
	pid_t pid = fork();
	if (pid == 0)
		_exit(0);
	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	put_record("source", "committed", true, pid);
	find_one(&l);
	assert_false(l.guest_lives);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	put_record("source", "committed", true, 0);
	find_one(&l);
	assert_true(l.guest_lives && l.needed);
	assert_int_equal(mf_forget(run_dir, SESSION, true, NULL), 0);
	expect_empty();
}

static void files_without_a_record_go(void **state)
{
	static const char *const files[] = { "source.lock", "source.record.new", "destination.lock",
					     "destination.record.new", "present" };
	(void)state;
	for (unsigned i = 0; i < BASE_ARRAY_LEN(files); i++) {
		struct mf_leftover l;
		put(files[i], "");
		find_one(&l);
		assert_string_equal(l.record, "");
		assert_int_equal(mf_forget(run_dir, SESSION, false, NULL), 0);
		expect_empty();
	}
}

static void who_holds_the_lock_is_let_alone(void **state)
{
	struct mf_leftover l;
	struct mf_error err;
	(void)state;
	put_record("destination", "aborted", false, 1);
	put_record("source", "committed", false, dead_pid());
	base_autofd fd = open(path_of("destination.lock"), O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0 && flock(fd, LOCK_EX) == 0);
	assert_int_equal(mf_forget(run_dir, SESSION, true, &err), -MF_EREFUSED);
	assert_non_null(strstr(err.msg, "goes on"));
	/* neither side of it was touched */
	assert_int_equal(access(path_of("source.record"), F_OK), 0);
	assert_int_equal(unlink(path_of("source.record")) | unlink(path_of("source.lock")), 0);
	find_one(&l);
	assert_true(l.held);
	base_closep(&fd);
	assert_int_equal(mf_forget(run_dir, SESSION, false, &err), 0);
	expect_empty();
}

static void others_are_not_touched(void **state)
{
	struct mf_leftover all[4];
	struct mf_error err;
	char other[128];
	(void)state;
	put_record("source", "committed", false, dead_pid());
	put_record("destination", "aborted", false, 1);
	(void)snprintf(other, sizeof(other), "%s/0123456789abcdef0.source.record", run_dir);
	base_autofd fd = open(other, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(mf_leftovers(run_dir, all, sizeof(all[0]), 4, NULL), 3);
	assert_int_equal(mf_forget(run_dir, SESSION, false, NULL), 0);
	assert_int_equal(mf_leftovers(run_dir, all, sizeof(all[0]), 4, NULL), 1);
	assert_string_equal(all[0].session, SESSION "0");
	assert_int_equal(unlink(other), 0);
	assert_int_equal(mf_forget(run_dir, SESSION, false, &err), -ENOENT);
	assert_int_equal(mf_forget(run_dir, "../x", false, &err), -MF_EUSAGE);
	expect_empty();
	/* no run directory: nothing is left */
	assert_int_equal(mf_leftovers("/nonexistent", all, sizeof(all[0]), 4, NULL), 0);
}

static void *tell_tid(void *fds)
{
	pid_t tid = (pid_t)syscall(SYS_gettid);
	char end;
	assert_int_equal(write(((int *)fds)[1], &tid, sizeof(tid)), sizeof(tid));
	assert_int_equal(read(((int *)fds)[2], &end, 1), 0); /* until it is closed */
	return NULL;
}

static void a_thread_is_not_a_process(void **state)
{
	int fds[4];
	pthread_t thread;
	struct base_process it = { 0 };
	(void)state;
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(pipe2(fds + 2, O_CLOEXEC), 0);
	assert_int_equal(pthread_create(&thread, NULL, tell_tid, fds), 0);
	assert_int_equal(read(fds[0], &it.pid, sizeof(it.pid)), sizeof(it.pid));
	assert_true(it.pid != getpid());
	assert_false(base_process_lives(&it));
	(void)close(fds[3]);
	assert_int_equal(pthread_join(thread, NULL), 0);
	for (int i = 0; i < 3; i++)
		(void)close(fds[i]);
}

/* A number that another process has by now is no guest that lives; one of another namespace may be. */
static void a_number_is_not_a_process(void **state)
{
	struct base_process guest, other;
	struct mf_leftover l;
	(void)state;
	base_process_identify(getpid(), &guest);
	assert_int_equal(guest.pid, getpid());
	assert_true(guest.started && guest.pid_ns);
	assert_true(base_process_is(&guest, getpid()) && base_process_lives(&guest));

	other = guest;
	other.started++;
	assert_false(base_process_is(&other, getpid()) || base_process_lives(&other));
	put_record_of("source", "committed", true, &other);
	find_one(&l);
	assert_false(l.guest_lives);
	assert_int_equal(mf_forget(run_dir, SESSION, false, NULL), 0);

	base_process_identify(dead_pid(), &other);
	assert_int_equal(other.started, 0);
	assert_false(base_process_lives(&other));
	other.pid_ns = guest.pid_ns + 1;
	assert_true(base_process_lives(&other));
	other.pid = getpid();
	assert_false(base_process_is(&other, getpid()) || base_process_is_ours(&other));
	put_record_of("destination", "owner", true, &other);
	find_one(&l);
	assert_true(l.guest_lives && l.needed);
	assert_int_equal(mf_forget(run_dir, SESSION, false, NULL), -MF_EREFUSED);
	assert_int_equal(mf_forget(run_dir, SESSION, true, NULL), 0);
	expect_empty();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_record_means_what_it_should),
		cmocka_unit_test(a_number_is_not_a_process),
		cmocka_unit_test(a_thread_is_not_a_process),
		cmocka_unit_test(a_guest_has_ended_for_certain),
		cmocka_unit_test(files_without_a_record_go),
		cmocka_unit_test(who_holds_the_lock_is_let_alone),
		cmocka_unit_test(others_are_not_touched),
	};
	return cmocka_run_group_tests(tests, make_run_dir, remove_run_dir);
}
