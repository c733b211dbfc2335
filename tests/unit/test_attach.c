/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The laws of hv-adapters/attach/attach.h against real processes: each target is a child in one state that matters,
 * attached to again and again, which then says by itself whether it noticed anything.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "hv-adapters/attach/attach.h"

enum { DEADLINE_MS = 30000, NOBODY = 65534 };

/* Shared by a target and the test. */
struct stage {
	atomic_int ready, stop, word;
	atomic_long count, sum, bad, result, error;
	atomic_long attempt, committed, aborted, seen_inside;
	int pipe[2];
	void *map;
};

struct target {
	pid_t pid;
	struct stage *st;
};

static const unsigned long no_args[6];

static struct target start_target(void (*body)(struct stage *st))
{
	struct target t;
	pid_t parent = getpid();

	t.st = mmap(NULL, sizeof(*t.st), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(t.st, MAP_FAILED);
	assert_int_equal(pipe2(t.st->pipe, O_CLOEXEC), 0);
	t.st->map =
		mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(t.st->map, MAP_FAILED);
	t.pid = fork();
	assert_true(t.pid >= 0);
	if (t.pid == 0) {
		if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
			_exit(99);
		body(t.st);
		_exit(0);
	}
	return t;
}

/* There is no event for "another process has come to this state": asked again and again, within a deadline. */
#define WAIT_UNTIL(cond)                                                                     \
	do {                                                                                 \
		uint64_t deadline_ = base_deadline_ms(DEADLINE_MS);                          \
		while (!(cond)) {                                                            \
			if (base_now_us() > deadline_)                                       \
				fail_msg("never came true: %s", #cond);                      \
			(void)ppoll(NULL, 0, &(struct timespec){ .tv_nsec = 100000 }, NULL); \
		}                                                                            \
	} while (0)

static char read_state(pid_t tid)
{
	char path[64], text[512];

	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)tid);
	base_cleanup(base_fclosep) FILE *f = fopen(path, "re");
	while (f && fgets(text, sizeof(text), f))
		if (strncmp(text, "State:\t", 7) == 0)
			return text[7];
	return 0;
}

static long read_syscall(pid_t tid)
{
	char path[64], text[256] = "";

	(void)snprintf(path, sizeof(path), "/proc/%d/syscall", (int)tid);
	base_cleanup(base_fclosep) FILE *f = fopen(path, "re");
	if (!f || !fgets(text, sizeof(text), f) || text[0] < '0' || text[0] > '9')
		return -1;
	return strtol(text, NULL, 10);
}

static int reap_target(struct target *t)
{
	int status = -1;
	uint64_t deadline = base_deadline_ms(DEADLINE_MS);

	while (waitpid(t->pid, &status, WNOHANG) == 0) {
		if (base_now_us() > deadline) {
			(void)kill(t->pid, SIGKILL);
			fail_msg("target %d in state %c, call %ld, does not end", (int)t->pid,
				 read_state(t->pid), read_syscall(t->pid));
		}
		(void)ppoll(NULL, 0, &(struct timespec){ .tv_nsec = 200000 }, NULL);
	}
	return status;
}

static void free_target(struct target *t)
{
	(void)close(t->st->pipe[0]);
	(void)close(t->st->pipe[1]);
	(void)munmap(t->st->map, 16 * 4096);
	(void)munmap(t->st, sizeof(*t->st));
}

static void expect_clean_exit(struct target *t)
{
	int status = reap_target(t);

	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		fail_msg("target ended with status %#x, result %ld errno %ld", status,
			 (long)t->st->result, (long)t->st->error);
	free_target(t);
}

static void kill_target(struct target *t)
{
	(void)kill(t->pid, SIGKILL);
	(void)reap_target(t);
	free_target(t);
}

static uint64_t visit_us[4096];
static unsigned visits;

/* One round: a harmless call run in the target.  False when it has ended. */
static bool visit(struct target *t)
{
	struct mf_error err = { 0 };
	struct attach *at;
	long value = 0;
	uint64_t begun = base_now_us();
	int rc = attach_begin(t->pid, &at, &err);

	if (rc == 0) {
		rc = attach_syscall(at, SYS_getpid, no_args, &value, &err);
		attach_end(at);
	}
	if (rc == -ESRCH)
		return false;
	if (rc < 0)
		fail_msg("visit: %d %s", rc, err.msg);
	assert_int_equal(value, t->pid);
	if (visits < BASE_ARRAY_LEN(visit_us))
		visit_us[visits++] = base_now_us() - begun;
	return true;
}

static void visit_times(struct target *t, int n)
{
	while (n-- > 0)
		assert_true(visit(t));
}

static void visit_until_end(struct target *t)
{
	uint64_t deadline = base_deadline_ms(DEADLINE_MS);

	while (read_state(t->pid) != 'Z' && visit(t))
		if (base_now_us() > deadline) {
			(void)kill(t->pid, SIGKILL);
			fail_msg("the target's wait never ends: it is begun anew each time");
		}
}

static struct stage *handler_stage;

static void count_signal(int sig)
{
	(void)sig;
	handler_stage->count++;
}

static void count_queued(int sig, siginfo_t *si, void *ctx)
{
	(void)sig;
	(void)ctx;
	/* Queued ones of one number come in order, with their values. */
	if (si->si_value.sival_int != handler_stage->count || si->si_code != SI_QUEUE)
		handler_stage->bad++;
	handler_stage->count++;
}

static void on_signal(struct stage *st, int sig, void (*fn)(int))
{
	handler_stage = st;
	(void)sigaction(sig, &(struct sigaction){ .sa_handler = fn }, NULL);
}

/* user space */

typedef uint32_t vec __attribute__((vector_size(16)));

static uint64_t compute(unsigned rounds)
{
	vec a = { 1, 2, 3, 4 }, b = { 5, 6, 7, 8 }, c = { 9, 10, 11, 12 };
	uint64_t x = 1, y = 2, z = 3;
	double d = 1.0;

	for (unsigned i = 0; i < rounds; i++) {
		a += b ^ c;
		b = (b << 3) - a;
		c ^= a >> 5;
		x = x * 6364136223846793005u + y;
		y ^= x >> 17;
		z += x ^ y;
		d = d * 0.999999 + (double)(i & 7);
	}
	uint64_t bits;
	memcpy(&bits, &d, sizeof(bits));
	a += b + c;
	return x ^ y ^ z ^ bits ^ a[0] ^ (uint64_t)a[1] << 32 ^ a[2] ^ (uint64_t)a[3] << 16;
}

static void spin(struct stage *st)
{
	uint64_t want = compute(100000);

	st->ready = 1;
	while (!st->stop) {
		if (compute(100000) != want)
			st->bad++;
		st->count++;
	}
}

static void spinning_thread_keeps_all_registers(void **state)
{
	(void)state;
	struct target t = start_target(spin);
	WAIT_UNTIL(t.st->ready);
	visit_times(&t, 300);
	long seen = t.st->count;
	WAIT_UNTIL(t.st->count > seen + 1);
	t.st->stop = 1;
	WAIT_UNTIL(read_state(t.pid) == 'Z');
	assert_int_equal(t.st->bad, 0);
	expect_clean_exit(&t);
}

/* blocked in a call */

static void sleep_once(struct stage *st)
{
	struct timespec span = { .tv_nsec = 300 * 1000000 };
	uint64_t begun = base_now_us();

	st->ready = 1;
	st->result = syscall(SYS_nanosleep, &span, NULL);
	if (st->result == 0)
		st->result = clock_nanosleep(CLOCK_MONOTONIC, 0, &span, NULL);
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec++;
	if (st->result == 0)
		st->result = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
	_exit(st->result == 0 && base_now_us() - begun >= 1600000 ? 0 : 1);
}

static void sleeper_sleeps_its_time(void **state)
{
	(void)state;
	struct target t = start_target(sleep_once);
	WAIT_UNTIL(t.st->ready);
	visit_until_end(&t);
	expect_clean_exit(&t);
}

static void poll_once(struct stage *st)
{
	struct timespec span = { .tv_nsec = 400 * 1000000 };
	sigset_t none, blocked, after;

	on_signal(st, SIGUSR1, count_signal);
	sigemptyset(&none);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	st->ready = 1;
	st->result = ppoll(NULL, 0, &span, &none);
	sigprocmask(SIG_SETMASK, NULL, &after);
	_exit(st->result == 0 && sigismember(&after, SIGUSR1) && !sigismember(&after, SIGUSR2) ? 0
											       : 1);
}

static void ppoll_times_out_at_its_time(void **state)
{
	(void)state;
	struct target t = start_target(poll_once);
	WAIT_UNTIL(t.st->ready);
	visit_until_end(&t);
	expect_clean_exit(&t);
}

/* Waits for SIGUSR1, which only the call's temporary mask admits; count says how often the handler ran. */
static void wait_in_ppoll(struct stage *st)
{
	struct pollfd p = { .fd = st->pipe[0], .events = POLLIN };
	sigset_t none, blocked, after;

	on_signal(st, SIGUSR1, count_signal);
	sigemptyset(&none);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	st->ready = 1;
	st->result = ppoll(&p, 1, NULL, &none);
	st->error = errno;
	sigprocmask(SIG_SETMASK, NULL, &after);
	_exit(st->result == -1 && st->error == EINTR && st->count == 1 &&
			      sigismember(&after, SIGUSR1)
		      ? 0
		      : 1);
}

static void wait_in_sigsuspend(struct stage *st)
{
	sigset_t none, blocked;

	on_signal(st, SIGUSR1, count_signal);
	sigemptyset(&none);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	st->ready = 1;
	st->result = sigsuspend(&none);
	st->error = errno;
	_exit(st->error == EINTR && st->count == 1 ? 0 : 1);
}

/* No mask: whoever loses the EINTR of this one sleeps forever. */
static void wait_in_pause(struct stage *st)
{
	on_signal(st, SIGUSR1, count_signal);
	st->ready = 1;
	st->result = pause();
	st->error = errno;
	_exit(st->error == EINTR && st->count == 1 ? 0 : 1);
}

static void wait_in_sigwait(struct stage *st)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	st->ready = 1;
	/* The kernel ends this one with EINTR at any stop, handler or not. */
	int got;
	do {
		got = sigwaitinfo(&set, NULL);
	} while (got < 0 && errno == EINTR);
	st->result = got;
	_exit(got == SIGUSR1 ? 0 : 1);
}

static const struct {
	void (*body)(struct stage *st);
	long nr;
} signal_waits[] = {
	{ wait_in_ppoll, SYS_ppoll },
	{ wait_in_sigsuspend, SYS_rt_sigsuspend },
#ifdef SYS_pause
	{ wait_in_pause, SYS_pause },
#else
	{ wait_in_pause, SYS_ppoll },
#endif
	{ wait_in_sigwait, SYS_rt_sigtimedwait },
};

static void wait_for_a_signal_ends_by_one_sent_after(void **state)
{
	(void)state;
	for (size_t i = 0; i < BASE_ARRAY_LEN(signal_waits); i++) {
		struct target t = start_target(signal_waits[i].body);
		WAIT_UNTIL(t.st->ready && read_syscall(t.pid) == signal_waits[i].nr);
		visit_times(&t, 20);
		WAIT_UNTIL(read_syscall(t.pid) == signal_waits[i].nr);
		assert_int_equal(kill(t.pid, SIGUSR1), 0);
		expect_clean_exit(&t);
	}
}

/* The signal comes at every possible moment of a session in turn. */
static void wait_for_a_signal_ends_by_one_sent_meanwhile(void **state)
{
	(void)state;
	for (size_t i = 0; i < BASE_ARRAY_LEN(signal_waits); i++)
		for (int moment = 0; moment < 3; moment++) {
			struct target t = start_target(signal_waits[i].body);
			struct attach *at;
			long value;
			WAIT_UNTIL(t.st->ready && read_syscall(t.pid) == signal_waits[i].nr);
			assert_int_equal(attach_begin(t.pid, &at, NULL), 0);
			for (int m = 0; m < 3; m++) {
				if (m == moment)
					assert_int_equal(kill(t.pid, SIGUSR1), 0);
				if (m < 2) {
					assert_int_equal(attach_syscall(at, SYS_getpid, no_args,
									&value, NULL),
							 0);
					assert_int_equal(value, t.pid);
				}
			}
			attach_end(at);
			expect_clean_exit(&t);
		}
}

static void wait_on_futex(struct stage *st)
{
	struct timespec span = { .tv_nsec = 400 * 1000000 };

	st->ready = 1;
	st->result = syscall(SYS_futex, &st->word, FUTEX_WAIT, 0, NULL, NULL, 0);
	st->error = errno;
	if (st->result == 0) {
		st->ready = 2;
		st->result = syscall(SYS_futex, &st->word, FUTEX_WAIT, 0, &span, NULL, 0);
		st->error = errno;
	}
	_exit(st->ready == 2 && st->result == -1 && st->error == ETIMEDOUT ? 0 : 1);
}

static void futex_waits_on(void **state)
{
	(void)state;
	struct target t = start_target(wait_on_futex);
	WAIT_UNTIL(t.st->ready && read_syscall(t.pid) == SYS_futex);
	visit_times(&t, 50);
	WAIT_UNTIL(read_syscall(t.pid) == SYS_futex);
	WAIT_UNTIL(syscall(SYS_futex, &t.st->word, FUTEX_WAKE, 1, NULL, NULL, 0) == 1);
	WAIT_UNTIL(t.st->ready == 2);
	visit_until_end(&t);
	expect_clean_exit(&t);
}

static void read_pipe(struct stage *st)
{
	char byte;

	st->ready = 1;
	st->result = read(st->pipe[0], &byte, 1);
	st->error = errno;
	_exit(st->result == 1 ? 0 : 1);
}

static void read_sees_no_eintr(void **state)
{
	(void)state;
	struct target t = start_target(read_pipe);
	WAIT_UNTIL(t.st->ready && read_syscall(t.pid) == SYS_read);
	visit_times(&t, 50);
	assert_int_equal(write(t.st->pipe[1], "x", 1), 1);
	expect_clean_exit(&t);
}

/* signal(7): epoll_wait and some others return EINTR after any stop, without a handler.  Nothing else may come. */
static void wait_on_epoll(struct stage *st)
{
	struct epoll_event ev = { .events = EPOLLIN }, got;
	int fd = epoll_create1(EPOLL_CLOEXEC);

	(void)epoll_ctl(fd, EPOLL_CTL_ADD, st->pipe[0], &ev);
	st->ready = 1;
	for (;;) {
		st->result = epoll_wait(fd, &got, 1, -1);
		if (st->result != -1 || errno != EINTR)
			_exit(st->result == 1 ? 0 : 1);
		st->count++;
	}
}

static void epoll_wait_sees_eintr_at_most(void **state)
{
	(void)state;
	struct target t = start_target(wait_on_epoll);
	WAIT_UNTIL(t.st->ready && read_state(t.pid) == 'S');
	visit_times(&t, 50);
	print_message("epoll_wait returned EINTR %ld times in 50 visits\n", (long)t.st->count);
	assert_true(t.st->count <= 50);
	assert_int_equal(write(t.st->pipe[1], "x", 1), 1);
	expect_clean_exit(&t);
}

/* signals */

enum { STORM = 20000, IN_FLIGHT = 16 };

static void take_storm(struct stage *st)
{
	uint64_t want = compute(1000);

	handler_stage = st;
	(void)sigaction(SIGRTMIN,
			&(struct sigaction){ .sa_sigaction = count_queued, .sa_flags = SA_SIGINFO },
			NULL);
	st->ready = 1;
	while (st->count < STORM) {
		if (compute(1000) != want)
			st->bad++;
		(void)poll(NULL, 0, 1);
	}
	_exit(st->bad == 0 && st->count == STORM ? 0 : 1);
}

static void *send_storm(void *arg)
{
	struct target *t = arg;

	for (int i = 0; i < STORM; i++) {
		while (i - t->st->count >= IN_FLIGHT && read_state(t->pid) != 'Z')
			(void)sched_yield();
		while (sigqueue(t->pid, SIGRTMIN, (union sigval){ .sival_int = i }) < 0 &&
		       errno == EAGAIN)
			(void)sched_yield();
	}
	return NULL;
}

static void queued_signals_all_come_once_and_in_order(void **state)
{
	(void)state;
	struct target t = start_target(take_storm);
	pthread_t sender;
	WAIT_UNTIL(t.st->ready);
	assert_int_equal(pthread_create(&sender, NULL, send_storm, &t), 0);
	int n = 0;
	while (t.st->count < STORM && visit(&t))
		n++;
	assert_int_equal(pthread_join(sender, NULL), 0);
	print_message("%d visits during %d signals\n", n, (int)t.st->count);
	expect_clean_exit(&t);
}

static void stopped_target_stays_stopped(void **state)
{
	(void)state;
	struct target t = start_target(spin);
	int status;
	WAIT_UNTIL(t.st->ready);
	assert_int_equal(kill(t.pid, SIGSTOP), 0);
	assert_int_equal(waitpid(t.pid, &status, WUNTRACED), t.pid);
	for (int i = 0; i < 20; i++) {
		visit_times(&t, 1);
		WAIT_UNTIL(read_state(t.pid) == 'T');
	}
	long seen = t.st->count;
	assert_int_equal(kill(t.pid, SIGCONT), 0);
	WAIT_UNTIL(t.st->count > seen);

	/* Stopped while we are at it: stopped afterwards. */
	struct attach *at;
	long value;
	assert_int_equal(attach_begin(t.pid, &at, NULL), 0);
	assert_int_equal(kill(t.pid, SIGSTOP), 0);
	assert_int_equal(attach_syscall(at, SYS_getpid, no_args, &value, NULL), 0);
	assert_int_equal(value, t.pid);
	attach_end(at);
	WAIT_UNTIL(read_state(t.pid) == 'T');

	/* Continued while we are at it: runs afterwards. */
	assert_int_equal(attach_begin(t.pid, &at, NULL), 0);
	assert_int_equal(kill(t.pid, SIGCONT), 0);
	assert_int_equal(attach_syscall(at, SYS_getpid, no_args, &value, NULL), 0);
	attach_end(at);
	seen = t.st->count;
	WAIT_UNTIL(t.st->count > seen);
	t.st->stop = 1;
	assert_int_equal(reap_target(&t), 0);
	assert_int_equal(t.st->bad, 0);
	free_target(&t);
}

static void stopped_sleeper_stays_stopped(void **state)
{
	(void)state;
	struct target t = start_target(read_pipe);
	int status;
	WAIT_UNTIL(t.st->ready && read_syscall(t.pid) == SYS_read);
	assert_int_equal(kill(t.pid, SIGSTOP), 0);
	assert_int_equal(waitpid(t.pid, &status, WUNTRACED), t.pid);
	for (int i = 0; i < 20; i++) {
		visit_times(&t, 1);
		WAIT_UNTIL(read_state(t.pid) == 'T');
	}
	assert_int_equal(kill(t.pid, SIGCONT), 0);
	assert_int_equal(write(t.st->pipe[1], "x", 1), 1);
	expect_clean_exit(&t);
}

/* threads */

static void *spin_thread(void *arg)
{
	spin(arg);
	_exit(((struct stage *)arg)->bad != 0);
}

static void exit_leader(struct stage *st)
{
	pthread_t thread;

	(void)pthread_create(&thread, NULL, spin_thread, st);
	pthread_exit(NULL);
}

static void exited_leader_does_not_matter(void **state)
{
	(void)state;
	struct target t = start_target(exit_leader);
	struct mf_error err = { 0 };
	int fd = -1, remote = -1, found[4];
	WAIT_UNTIL(t.st->ready && read_state(t.pid) == 'Z');
	visit_times(&t, 50);
	int rc = attach_userfaultfd(t.pid, &fd, &remote, &err);
	if (rc == -MF_EKERNEL) {
		print_message("no PIDFD_THREAD here: %s\n", err.msg);
	} else {
		assert_string_equal(err.msg, "");
		assert_int_equal(attach_find_userfaultfds(t.pid, found, 4, NULL), 1);
		assert_int_equal(found[0], remote);
		attach_close_fds(t.pid, &remote, 1);
		assert_int_equal(attach_find_userfaultfds(t.pid, found, 4, NULL), 0);
		(void)close(fd);
	}
	t.st->stop = 1;
	expect_clean_exit(&t);
}

static void *take_turns(void *arg)
{
	struct stage *st = arg;
	uint64_t want = compute(2000);

	for (int i = 0; !st->stop; i++) {
		struct timespec span = { .tv_nsec = 200000 };
		if (compute(2000) != want)
			st->bad++;
		if (i % 3 == 0 && nanosleep(&span, NULL) < 0 && errno != EINTR)
			st->bad++;
		if (i % 3 == 1 && ppoll(NULL, 0, &span, NULL) < 0 && errno != EINTR)
			st->bad++;
		if (i % 3 == 2 &&
		    syscall(SYS_futex, &st->word, FUTEX_WAIT, 0, &span, NULL, 0) < 0 &&
		    errno != ETIMEDOUT && errno != EINTR)
			st->bad++;
		st->sum++;
	}
	return NULL;
}

static void be_busy(struct stage *st)
{
	pthread_t threads[3];
	struct itimerval often = { { 0, 1000 }, { 0, 1000 } };

	on_signal(st, SIGALRM, count_signal);
	for (int i = 0; i < 3; i++)
		(void)pthread_create(&threads[i], NULL, take_turns, st);
	(void)setitimer(ITIMER_REAL, &often, NULL);
	st->ready = 1;
	take_turns(st);
	for (int i = 0; i < 3; i++)
		(void)pthread_join(threads[i], NULL);
	_exit(st->bad == 0 ? 0 : 1);
}

static int compare_us(const void *a, const void *b)
{
	return (*(const uint64_t *)a > *(const uint64_t *)b) -
	       (*(const uint64_t *)a < *(const uint64_t *)b);
}

static void busy_target_survives_a_thousand_visits(void **state)
{
	(void)state;
	struct target t = start_target(be_busy);
	WAIT_UNTIL(t.st->ready);
	visits = 0;
	visit_times(&t, 1000);
	long ticks = t.st->count, turns = t.st->sum;
	WAIT_UNTIL(t.st->count > ticks && t.st->sum > turns + 10);
	t.st->stop = 1;
	assert_int_equal(reap_target(&t), 0);
	assert_int_equal(t.st->bad, 0);
	free_target(&t);
	qsort(visit_us, visits, sizeof(visit_us[0]), compare_us);
	print_message("a visit with one call, all threads busy: median %llu us, p99 %llu us\n",
		      (unsigned long long)visit_us[visits / 2],
		      (unsigned long long)visit_us[visits * 99 / 100]);
}

/* Standstill of an idle target's main loop, by its own clock's view: begin to end, choosing the thread excluded. */
static void standstill_is_reported(void **state)
{
	(void)state;
	struct target t = start_target(wait_in_ppoll);
	WAIT_UNTIL(t.st->ready && read_syscall(t.pid) == SYS_ppoll);
	uint64_t us[200];
	for (size_t i = 0; i < BASE_ARRAY_LEN(us); i++) {
		struct attach *at;
		long value;
		assert_int_equal(attach_begin(t.pid, &at, NULL), 0);
		uint64_t begun = base_now_us();
		assert_int_equal(attach_syscall(at, SYS_getpid, no_args, &value, NULL), 0);
		attach_end(at);
		us[i] = base_now_us() - begun;
	}
	qsort(us, BASE_ARRAY_LEN(us), sizeof(us[0]), compare_us);
	print_message("stopped thread to detached, one call: median %llu us, p90 %llu us\n",
		      (unsigned long long)us[100], (unsigned long long)us[180]);
	kill_target(&t);
}

/* endings and refusals */

static void killed_target_is_esrch(void **state)
{
	(void)state;
	for (int moment = 0; moment < 2; moment++) {
		struct target t = start_target(spin);
		struct mf_error err = { 0 };
		struct attach *at;
		long value;
		WAIT_UNTIL(t.st->ready);
		assert_int_equal(attach_begin(t.pid, &at, NULL), 0);
		if (moment)
			assert_int_equal(attach_syscall(at, SYS_getpid, no_args, &value, NULL), 0);
		assert_int_equal(kill(t.pid, SIGKILL), 0);
		assert_int_equal(attach_syscall(at, SYS_getpid, no_args, &value, &err), -ESRCH);
		assert_non_null(strstr(err.msg, "ended"));
		attach_end(at);
		assert_int_equal(reap_target(&t), SIGKILL);
		free_target(&t);
	}
}

static void *kill_soon(void *arg)
{
	struct target *t = arg;
	unsigned seed = (unsigned)t->pid;

	(void)ppoll(NULL, 0, &(struct timespec){ .tv_nsec = rand_r(&seed) % 2000000 }, NULL);
	(void)kill(t->pid, SIGKILL);
	return NULL;
}

static void target_killed_at_any_moment_is_no_hang(void **state)
{
	(void)state;
	for (int i = 0; i < 50; i++) {
		struct target t = start_target(i % 2 ? spin : be_busy);
		pthread_t killer;
		WAIT_UNTIL(t.st->ready);
		assert_int_equal(pthread_create(&killer, NULL, kill_soon, &t), 0);
		while (visit(&t))
			continue;
		assert_int_equal(pthread_join(killer, NULL), 0);
		assert_int_equal(reap_target(&t), SIGKILL);
		free_target(&t);
	}
}

static void gone_process_is_esrch(void **state)
{
	(void)state;
	struct target t = start_target(spin);
	struct mf_error err = { 0 };
	struct attach *at;
	assert_int_equal(kill(t.pid, SIGKILL), 0);
	WAIT_UNTIL(read_state(t.pid) == 'Z');
	assert_int_equal(attach_probe(t.pid, &err), -ESRCH);
	assert_int_equal(attach_begin(t.pid, &at, NULL), -ESRCH);
	(void)reap_target(&t);
	assert_int_equal(attach_probe(t.pid, NULL), -ESRCH);
	assert_int_equal(attach_find_userfaultfds(t.pid, (int[1]){ 0 }, 1, NULL), -ESRCH);
	free_target(&t);
	assert_int_equal(attach_probe(getpid(), NULL), -EINVAL);
	assert_int_equal(attach_probe(-1, NULL), -EINVAL);
}

static void traced_target_is_refused_naming_the_tracer(void **state)
{
	(void)state;
	struct target t = start_target(spin);
	struct mf_error err = { 0 };
	struct attach *at;
	int ready[2];
	char byte, name[32];
	WAIT_UNTIL(t.st->ready);
	assert_int_equal(pipe(ready), 0);
	pid_t tracer = fork();
	if (tracer == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)prctl(PR_SET_NAME, "othertracer");
		if (ptrace(PTRACE_SEIZE, t.pid, NULL, NULL) < 0 || write(ready[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			(void)pause();
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(attach_probe(t.pid, &err), -EPERM);
	(void)snprintf(name, sizeof(name), "%d (othertracer)", (int)tracer);
	assert_non_null(strstr(err.msg, name));
	assert_int_equal(attach_begin(t.pid, &at, NULL), -EPERM);
	(void)kill(tracer, SIGKILL);
	assert_int_equal(waitpid(tracer, NULL, 0), tracer);
	assert_int_equal(attach_probe(t.pid, NULL), 0);
	(void)close(ready[0]);
	(void)close(ready[1]);
	visit_times(&t, 1);
	t.st->stop = 1;
	expect_clean_exit(&t);
}

static void lack_of_privilege_is_said(void **state)
{
	(void)state;
	if (geteuid() != 0) {
		print_message("SKIP: only root can drop privileges\n");
		skip();
	}
	struct target t = start_target(spin);
	WAIT_UNTIL(t.st->ready);
	int out[2];
	assert_int_equal(pipe(out), 0);
	pid_t other = fork();
	if (other == 0) {
		struct mf_error err = { 0 };
		struct attach *at;
		if (setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
			_exit(9);
		int rc = attach_begin(t.pid, &at, &err);
		(void)!write(out[1], err.msg, strlen(err.msg));
		_exit(rc == -EPERM && attach_find_userfaultfds(t.pid, &rc, 1, NULL) == -EPERM ? 0
											      : 1);
	}
	int status;
	char msg[300] = "";
	assert_int_equal(waitpid(other, &status, 0), other);
	assert_true(read(out[0], msg, sizeof(msg) - 1) > 0);
	print_message("said: %s\n", msg);
	assert_int_equal(status, 0);
	assert_non_null(strstr(msg, "CAP_SYS_PTRACE"));
	(void)close(out[0]);
	(void)close(out[1]);
	kill_target(&t);
}

static void call_that_blocks_is_broken_off(void **state)
{
	(void)state;
	struct target t = start_target(spin);
	struct mf_error err = { 0 };
	struct attach *at;
	long value;
	WAIT_UNTIL(t.st->ready);
	assert_int_equal(attach_begin(t.pid, &at, NULL), 0);
	assert_int_equal(attach_syscall(at, SYS_ppoll, no_args, &value, &err), -ETIMEDOUT);
	assert_non_null(strstr(err.msg, "did not end in time"));
	/* The session is still good. */
	assert_int_equal(attach_syscall(at, SYS_getpid, no_args, &value, NULL), 0);
	assert_int_equal(value, t.pid);
	attach_end(at);
	visit_times(&t, 1);
	t.st->stop = 1;
	expect_clean_exit(&t);
}

/* what is built on it */

static void userfaultfd_is_made_found_and_closed(void **state)
{
	(void)state;
	struct target t = start_target(read_pipe);
	struct mf_error err = { 0 };
	int fd = -1, remote = -1, found[4], dup = -1;
	WAIT_UNTIL(t.st->ready && read_syscall(t.pid) == SYS_read);
	assert_int_equal(attach_find_userfaultfds(t.pid, found, 4, NULL), 0);
	assert_int_equal(attach_userfaultfd(t.pid, &fd, &remote, &err), 0);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
	assert_int_equal(attach_find_userfaultfds(t.pid, found, 4, NULL), 1);
	assert_int_equal(found[0], remote);
	assert_int_equal(attach_get_userfaultfd(t.pid, remote, &dup, &err), 0);
	(void)close(dup);
	assert_int_equal(attach_get_userfaultfd(t.pid, 1000, &dup, &err), -EBADF);
	/* Anything but a userfaultfd is left alone: the number may be the target's own by now. */
	int wrong[3] = { t.st->pipe[0], remote, 1000 };
	attach_close_fds(t.pid, wrong, 3);
	assert_int_equal(attach_find_userfaultfds(t.pid, found, 4, NULL), 0);
	(void)close(fd);
	assert_int_equal(write(t.st->pipe[1], "x", 1), 1);
	expect_clean_exit(&t);
}

static void fill_map(struct stage *st)
{
	memset(st->map, 7, 16L * 4096);
	st->ready = 1;
	while (!st->stop)
		(void)poll(NULL, 0, 1);
	for (size_t i = 0; i < 16L * 4096; i++)
		st->sum += ((char *)st->map)[i];
}

static void madvise_runs_on_each_range(void **state)
{
	(void)state;
	struct target t = start_target(fill_map);
	struct mf_error err = { 0 };
	uint64_t at = (uintptr_t)t.st->map;
	struct attach_range ranges[3] = { { at, 4096 },
					  { at + 8192, 8192 },
					  { 4096 * 3 + 1, 4096 } };
	WAIT_UNTIL(t.st->ready);
	assert_int_equal(attach_madvise(t.pid, ranges, 2, MADV_DONTNEED, &err), 0);
	assert_int_equal(attach_madvise(t.pid, ranges, 3, MADV_DONTNEED, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "0x3001"));
	assert_int_equal(attach_madvise(t.pid, NULL, 0, MADV_DONTNEED, NULL), 0);
	t.st->stop = 1;
	assert_int_equal(reap_target(&t), 0);
	assert_int_equal(t.st->sum, 13 * 4096 * 7);
	free_target(&t);
}

/* Killed with the session open, or after it: the target goes on, what was left is found. */
static void death_of_the_tracer_leaves_the_target_whole(void **state)
{
	(void)state;
	static const struct {
		void (*body)(struct stage *st);
		bool is_open;
	} cases[] = { { spin, true }, { sleep_once, true }, { spin, false } };
	for (size_t i = 0; i < BASE_ARRAY_LEN(cases); i++) {
		struct target t = start_target(cases[i].body);
		WAIT_UNTIL(t.st->ready);
		pid_t other = fork();
		if (other == 0) {
			struct attach *at;
			long value;
			int fd, remote;
			if (cases[i].is_open &&
			    (attach_begin(t.pid, &at, NULL) < 0 ||
			     attach_syscall(at, SYS_userfaultfd, (unsigned long[6]){ O_CLOEXEC },
					    &value, NULL) < 0))
				_exit(1);
			if (!cases[i].is_open && attach_userfaultfd(t.pid, &fd, &remote, NULL) < 0)
				_exit(1);
			(void)kill(getpid(), SIGKILL);
		}
		int status, found[4];
		assert_int_equal(waitpid(other, &status, 0), other);
		assert_int_equal(status, SIGKILL);
		assert_int_equal(attach_find_userfaultfds(t.pid, found, 4, NULL), 1);
		attach_close_fds(t.pid, found, 1);
		assert_int_equal(attach_find_userfaultfds(t.pid, found, 4, NULL), 0);
		t.st->stop = 1;
		expect_clean_exit(&t);
	}
}

static void forbid_userfaultfd(struct stage *st)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { BASE_ARRAY_LEN(code), code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, 2, &prog) < 0)
		_exit(1);
	st->ready = 1;
	while (!st->stop)
		(void)poll(NULL, 0, 1);
	(void)syscall(SYS_userfaultfd, 0); /* the filter is back */
}

static void seccomp_filter_does_not_kill_the_target(void **state)
{
	(void)state;
	struct target t = start_target(forbid_userfaultfd);
	struct mf_error err = { 0 };
	int fd = -1, remote = -1;
	WAIT_UNTIL(t.st->ready);
	if (attach_probe(t.pid, &err) == -EPERM) {
		print_message("SKIP: %s\n", err.msg);
		kill_target(&t);
		skip();
	}
	assert_int_equal(attach_userfaultfd(t.pid, &fd, &remote, &err), 0);
	(void)close(fd);
	t.st->stop = 1;
	assert_int_equal(WTERMSIG(reap_target(&t)), SIGSYS);
	free_target(&t);
}

#if defined(__x86_64__)
/*
 * attempt is written as the first thing inside the sequence, committed as the last.  A sequence that was interrupted
 * inside must not commit.
 */
static void run_sequences(struct stage *st)
{
	struct rseq *self = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

	if (__rseq_size == 0)
		_exit(77);
	st->ready = 1;
	for (long n = 1; !st->stop; n++) {
		long turns = 3000;
		__asm__ volatile goto(
			".pushsection __rseq_cs, \"aw\"\n\t"
			".balign 32\n\t"
			"9: .long 0, 0\n\t"
			".quad 1f, 2f - 1f, 4f\n\t"
			".popsection\n\t"
			"leaq 9b(%%rip), %%rax\n\t"
			"movq %%rax, %[cs]\n\t"
			"1: movq %[n], %[attempt]\n\t"
			"movq %[turns], %%rcx\n\t"
			"3: decq %%rcx\n\t"
			"jnz 3b\n\t"
			"movq %[n], %[committed]\n\t"
			"2: jmp 5f\n\t"
			".byte 0x0f, 0xb9, 0x3d\n\t"
			".long 0x53053053\n\t"
			"4: jmp %l[aborted]\n\t"
			"5:\n\t"
			:
			: [cs] "m"(self->rseq_cs), [attempt] "m"(st->attempt), [n] "r"(n),
			  [turns] "r"(turns), [committed] "m"(st->committed)
			: "rax", "rcx", "memory", "cc"
			: aborted);
		if (st->seen_inside == n)
			st->bad++;
		continue;
aborted:
		st->aborted = n;
		st->count++;
	}
	_exit(0);
}

static void restartable_sequence_is_aborted(void **state)
{
	(void)state;
	struct target t = start_target(run_sequences);
	int inside = 0;
	WAIT_UNTIL(t.st->ready || read_state(t.pid) == 'Z');
	if (!t.st->ready) {
		print_message("SKIP: the C library registers no rseq here\n");
		kill_target(&t);
		skip();
	}
	for (int i = 0; i < 300; i++) {
		struct attach *at;
		long value;
		assert_int_equal(attach_begin(t.pid, &at, NULL), 0);
		assert_int_equal(attach_syscall(at, SYS_getpid, no_args, &value, NULL), 0);
		long n = t.st->attempt;
		if (t.st->committed < n && t.st->aborted < n) {
			t.st->seen_inside = n;
			inside++;
		}
		attach_end(at);
	}
	t.st->stop = 1;
	assert_int_equal(reap_target(&t), 0);
	print_message("%d of 300 visits hit a sequence, %ld aborted\n", inside, (long)t.st->count);
	assert_int_equal(t.st->bad, 0);
	free_target(&t);
}

/* A guest that counts in real mode; the VMM answers EINTR by running on, as every VMM does. */
static void run_guest(struct stage *st)
{
	static const unsigned char code[] = { 0x66, 0x40, 0xeb, 0xfc }; /* inc eax; jmp back */
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	char *ram = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = 0x1000,
		.memory_size = 4096,
		.userspace_addr = (uintptr_t)ram,
	};
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };

	memcpy(ram, code, sizeof(code));
	int vcpu = vm < 0 ? -1 : ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0 ||
	    ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		_exit(77);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
		_exit(77);
	st->ready = 1;
	while (!st->stop) {
		int rc = ioctl(vcpu, KVM_RUN, 0);
		if (rc == 0 || errno != EINTR)
			_exit(1);
		st->count++;
		if (ioctl(vcpu, KVM_GET_REGS, &regs) < 0)
			_exit(2);
		st->sum = (long)regs.rax;
		if (regs.rip < 0x1000 || regs.rip > 0x1002)
			st->bad++;
	}
}

static void vcpu_runs_on(void **state)
{
	(void)state;
	struct target t = start_target(run_guest);
	WAIT_UNTIL(t.st->ready || read_state(t.pid) == 'Z');
	if (!t.st->ready) {
		print_message("SKIP: /dev/kvm runs no guest here\n");
		kill_target(&t);
		skip();
	}
	WAIT_UNTIL(read_syscall(t.pid) == SYS_ioctl || read_syscall(t.pid) == -1);
	visit_times(&t, 100);
	WAIT_UNTIL(visit(&t) && t.st->sum > 0);
	print_message("KVM_RUN returned EINTR %ld times in 100 visits, the guest counted to %ld\n",
		      (long)t.st->count, (long)t.st->sum);
	int fd = -1, remote = -1;
	assert_int_equal(attach_userfaultfd(t.pid, &fd, &remote, NULL), 0);
	attach_close_fds(t.pid, &remote, 1);
	(void)close(fd);
	t.st->stop = 1;
	visit_until_end(&t); /* each makes it look */
	assert_int_equal(reap_target(&t), 0);
	assert_int_equal(t.st->bad, 0);
	free_target(&t);
}
#endif

/* May a child be traced at all (containers often forbid it)? */
static bool can_trace(void)
{
	struct target t = start_target(spin);
	struct mf_error err = { 0 };
	int rc = attach_probe(t.pid, &err);

	if (rc < 0)
		print_message("SKIP: %s\n", err.msg);
	kill_target(&t);
	return rc == 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(spinning_thread_keeps_all_registers),
		cmocka_unit_test(sleeper_sleeps_its_time),
		cmocka_unit_test(ppoll_times_out_at_its_time),
		cmocka_unit_test(wait_for_a_signal_ends_by_one_sent_after),
		cmocka_unit_test(wait_for_a_signal_ends_by_one_sent_meanwhile),
		cmocka_unit_test(futex_waits_on),
		cmocka_unit_test(read_sees_no_eintr),
		cmocka_unit_test(epoll_wait_sees_eintr_at_most),
		cmocka_unit_test(queued_signals_all_come_once_and_in_order),
		cmocka_unit_test(stopped_target_stays_stopped),
		cmocka_unit_test(stopped_sleeper_stays_stopped),
		cmocka_unit_test(exited_leader_does_not_matter),
		cmocka_unit_test(busy_target_survives_a_thousand_visits),
		cmocka_unit_test(standstill_is_reported),
		cmocka_unit_test(killed_target_is_esrch),
		cmocka_unit_test(target_killed_at_any_moment_is_no_hang),
		cmocka_unit_test(gone_process_is_esrch),
		cmocka_unit_test(traced_target_is_refused_naming_the_tracer),
		cmocka_unit_test(lack_of_privilege_is_said),
		cmocka_unit_test(call_that_blocks_is_broken_off),
		cmocka_unit_test(userfaultfd_is_made_found_and_closed),
		cmocka_unit_test(madvise_runs_on_each_range),
		cmocka_unit_test(death_of_the_tracer_leaves_the_target_whole),
		cmocka_unit_test(seccomp_filter_does_not_kill_the_target),
#if defined(__x86_64__)
		cmocka_unit_test(restartable_sequence_is_aborted),
		cmocka_unit_test(vcpu_runs_on),
#endif
	};

#ifdef __SANITIZE_THREAD__
	/* It gives every target a thread of its own, which attach would rather choose than the one under test. */
	print_message("SKIP: built with the thread sanitizer\n");
	return 77;
#endif
	return can_trace() ? cmocka_run_group_tests(tests, NULL, NULL) : 77;
}
