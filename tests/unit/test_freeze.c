/* SPDX-License-Identifier: BSD-2-Clause */
/* Stopping another process for a moment: nothing of it moves meanwhile, and nothing of the stop is left. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/freeze.h"

#define FREEZES 100
#define SIGNALS 20000u
#define GIVE_UP 60000 /* ms */

/* Shared with the watched process. */
struct shared {
	atomic_ullong steps, signals, signal_sum, traps, woken, bad;
	int pipe[2];
};
static struct shared *sh;

struct fixture {
	pid_t pid;
	struct base_freeze *f;
};

static void check(int code, const struct mf_error *err)
{
	if (code < 0)
		fail_msg("%d: %s", code, err->msg);
}

static void pause_us(long us)
{
	(void)nanosleep(&(struct timespec){ .tv_nsec = us * 1000 }, NULL);
}

static void await(atomic_ullong *what, uint64_t value)
{
	uint64_t deadline = base_deadline_ms(GIVE_UP);
	while (atomic_load(what) < value) {
		if (base_now_us() >= deadline)
			fail_msg("waited for %llu, is %llu", (unsigned long long)value,
				 (unsigned long long)atomic_load(what));
		pause_us(200);
	}
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
	uint64_t deadline = base_deadline_ms(GIVE_UP);
	while (state_of(pid) != state && base_now_us() < deadline)
		pause_us(500);
	assert_int_equal(state_of(pid), state);
}

/* ---- the watched process ---- */

static void *step_once(void *arg)
{
	(void)arg;
	for (int i = 0; i < 50; i++)
		atomic_fetch_add(&sh->steps, 1);
	return NULL;
}

static void *step_on(void *arg)
{
	(void)arg;
	for (;;)
		atomic_fetch_add(&sh->steps, 1);
	return NULL;
}

static void *send_steppers(void *arg)
{
	pthread_t thread;
	for (;;) {
		if (!pthread_create(&thread, NULL, step_once, arg))
			pthread_join(thread, NULL);
	}
	return NULL;
}

/* A thread makes its successor and ends, so that no listing is right for long. */
static void *relay(void *arg)
{
	pthread_t thread;
	pthread_attr_t attr;
	step_once(NULL);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	while (pthread_create(&thread, &attr, relay, arg))
		;
	pthread_attr_destroy(&attr);
	return NULL;
}

static void start(void *(*fn)(void *))
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, fn, NULL))
		_exit(1);
}

static void note_signal(int sig, siginfo_t *info, void *ctx)
{
	(void)ctx;
	if (sig == SIGTRAP) {
		atomic_fetch_add(&sh->traps, 1);
		return;
	}
	atomic_fetch_add(&sh->signals, 1);
	atomic_fetch_add(&sh->signal_sum, (unsigned)info->si_value.sival_int);
}

static void be_busy(void)
{
	struct sigaction act = { .sa_sigaction = note_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
	if (sigaction(SIGRTMIN, &act, NULL) | sigaction(SIGTRAP, &act, NULL))
		_exit(1);
	start(step_on);
	start(send_steppers);
	start(send_steppers);
	start(relay);
}

static void *read_once(void *arg)
{
	(void)arg;
	char c;
	if (read(sh->pipe[0], &c, 1) != 1)
		atomic_fetch_add(&sh->bad, 1);
	atomic_fetch_add(&sh->woken, 1);
	return NULL;
}

static void *sleep_once(void *arg)
{
	(void)arg;
	uint64_t before = base_now_us();
	if (nanosleep(&(struct timespec){ .tv_sec = 1 }, NULL) || base_now_us() - before < 1000000)
		atomic_fetch_add(&sh->bad, 1);
	atomic_fetch_add(&sh->woken, 1);
	return NULL;
}

static void wait_in_calls(void)
{
	start(read_once);
	start(sleep_once);
	start(step_on);
}

static void leave_a_thread(void)
{
	start(step_on);
	pthread_exit(NULL);
}

static struct fixture open_process(void (*fn)(void))
{
	struct fixture fx;
	struct mf_error err = { 0 };
	memset(sh, 0, sizeof(*sh));
	if (pipe(sh->pipe))
		fail_msg("pipe: %s", strerror(errno));
	fx.pid = fork();
	if (!fx.pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fn();
		for (;;)
			pause();
	}
	await(&sh->steps, 1000);
	check(base_freeze_open(fx.pid, &fx.f, &err), &err);
	return fx;
}

static void close_process(struct fixture *fx)
{
	base_freeze_close(fx->f);
	kill(fx->pid, SIGKILL);
	assert_int_equal(waitpid(fx->pid, NULL, 0), fx->pid);
	close(sh->pipe[0]);
	close(sh->pipe[1]);
}

/* ---- cases ---- */

static int see_that_nothing_moves(void *ctx, pid_t tid, struct mf_error *err)
{
	uint64_t before = atomic_load(&sh->steps);
	(void)ctx;
	(void)tid;
	for (int i = 0; i < 20; i++) {
		pause_us(100);
		if (atomic_load(&sh->steps) != before)
			return base_error(err, -EIO, MF_SCOPE_SESSION, "a thread runs");
	}
	return 0;
}

static void freeze_often(struct fixture *fx, int times)
{
	struct mf_error err = { 0 };
	for (int i = 0; i < times; i++) {
		uint64_t before = atomic_load(&sh->steps);
		check(base_freeze_run(fx->f, see_that_nothing_moves, NULL, &err), &err);
		await(&sh->steps, before + 1);
	}
}

static void nothing_moves(void **state)
{
	(void)state;
	struct fixture fx = open_process(be_busy);
	freeze_often(&fx, FREEZES);
	assert_int_equal(atomic_load(&sh->traps), 0);
	close_process(&fx);
}

static void *send_signals(void *arg)
{
	const struct fixture *fx = arg;
	for (unsigned i = 1; i <= SIGNALS; i++) {
		while (sigqueue(fx->pid, SIGRTMIN, (union sigval){ .sival_int = (int)i }) < 0 &&
		       errno == EAGAIN)
			pause_us(100);
		if (i % 8 == 0)
			pause_us(50);
	}
	return NULL;
}

static int do_nothing(void *ctx, pid_t tid, struct mf_error *err)
{
	(void)ctx;
	(void)tid;
	(void)err;
	return 7;
}

static void signals_arrive(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
#ifdef __SANITIZE_THREAD__
	print_message("SKIP: the thread sanitizer delivers signals itself, and merges them\n");
	skip();
#endif
	struct fixture fx = open_process(be_busy);
	pthread_t sender;
	assert_int_equal(pthread_create(&sender, NULL, send_signals, &fx), 0);
	uint64_t deadline = base_deadline_ms(GIVE_UP);
	while (atomic_load(&sh->signals) < SIGNALS && base_now_us() < deadline)
		assert_int_equal(base_freeze_run(fx.f, do_nothing, NULL, &err), 7);
	pthread_join(sender, NULL);
	assert_int_equal(atomic_load(&sh->signals), SIGNALS);
	assert_int_equal(atomic_load(&sh->signal_sum), SIGNALS * (SIGNALS + 1) / 2);
	assert_int_equal(atomic_load(&sh->traps), 0);
	close_process(&fx);
}

static void calls_go_on(void **state)
{
	(void)state;
	struct fixture fx = open_process(wait_in_calls);
	freeze_often(&fx, 50);
	await(&sh->woken, 1); /* the sleeper, after the time it asked for */
	assert_int_equal(write(sh->pipe[1], "x", 1), 1);
	await(&sh->woken, 2);
	assert_int_equal(atomic_load(&sh->bad), 0);
	close_process(&fx);
}

static void a_stopped_process_stays_stopped(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	struct fixture fx = open_process(be_busy);
	for (int i = 0; i < 5; i++) {
		kill(fx.pid, SIGSTOP);
		if (i % 2) /* else: while it is stopping */
			await_state(fx.pid, 'T');
		check(base_freeze_run(fx.f, see_that_nothing_moves, NULL, &err), &err);
		await_state(fx.pid, 'T');
		pause_us(10000);
		check(see_that_nothing_moves(NULL, 0, &err), &err);
		uint64_t before = atomic_load(&sh->steps);
		kill(fx.pid, SIGCONT);
		await(&sh->steps, before + 1);
	}
	close_process(&fx);
}

static int is_not_the_leader(void *ctx, pid_t tid, struct mf_error *err)
{
	const struct fixture *fx = ctx;
	return tid == fx->pid ? base_error(err, -EIO, MF_SCOPE_SESSION, "the leader is dead") : 0;
}

static void a_dead_leader(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	struct fixture fx = open_process(leave_a_thread);
	await_state(fx.pid, 'Z');
	freeze_often(&fx, 10);
	check(base_freeze_run(fx.f, is_not_the_leader, &fx, &err), &err);
	close_process(&fx);
}

static void a_debugger(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	struct fixture fx = open_process(be_busy);
	pid_t debugger = fork();
	if (!debugger) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (ptrace(PTRACE_SEIZE, fx.pid, NULL, NULL))
			_exit(1);
		(void)raise(SIGSTOP);
		_exit(0);
	}
	int status;
	assert_int_equal(waitpid(debugger, &status, WUNTRACED), debugger);
	assert_true(WIFSTOPPED(status));
	assert_int_equal(base_freeze_run(fx.f, do_nothing, NULL, &err), -EBUSY);
	assert_non_null(strstr(err.msg, "is tracing it"));
	uint64_t before = atomic_load(&sh->steps);
	await(&sh->steps, before + 1000);
	kill(debugger, SIGKILL);
	waitpid(debugger, NULL, 0);
	freeze_often(&fx, 1);
	close_process(&fx);
}

static void killed_meanwhile(void **state)
{
	(void)state;
	for (int i = 0; i < 10; i++) {
		struct mf_error err = { 0 };
		struct fixture fx = open_process(be_busy);
		pid_t killer = fork();
		if (!killer) {
			pause_us(100 + i * 300);
			kill(fx.pid, SIGKILL);
			_exit(0);
		}
		int code;
		do {
			code = base_freeze_run(fx.f, do_nothing, NULL, &err);
		} while (code == 7);
		assert_int_equal(code, -ESRCH);
		assert_non_null(strstr(err.msg, "is gone"));
		waitpid(killer, NULL, 0);
		close_process(&fx); /* its parent gets to know */
	}
}

int main(void)
{
	sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED)
		return 1;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_moves),
		cmocka_unit_test(signals_arrive),
		cmocka_unit_test(calls_go_on),
		cmocka_unit_test(a_stopped_process_stays_stopped),
		cmocka_unit_test(a_dead_leader),
		cmocka_unit_test(a_debugger),
		cmocka_unit_test(killed_meanwhile),
	};
	return cmocka_run_group_tests_name("freeze", tests, NULL, NULL);
}
