/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Stopping every thread of another process, by ptrace.
 *
 * PTRACE_SEIZE sends no signal and makes no event of its own; PTRACE_INTERRUPT asks for a stop.  Whatever stop comes
 * first will do, because a thread in any of them stands still and is let go from where it is:
 *
 *   event stop               nothing was about to happen: detach
 *   event stop, group stop   the process was stopped, or is just being: detach, and the kernel resumes the group stop
 *   signal delivery stop     detach with that signal: it is delivered with its siginfo, as if we had not been there
 *   exit                     it runs no more
 *
 * So no signal is eaten, none is made (SIGTRAP least of all), and a system call that was under way is repeated by the
 * kernel.  The few that end with EINTR after any stop, signal(7) names them, do so here too.
 *
 * Who is stopped?  A listing of /proc/PID/task misses threads when one ends under it, so a listing without news is no
 * proof.  The directory's link count is: it has the number of threads in it, and every thread that we trace is one of
 * them until we let go (the kernel keeps even dead ones for their tracer).  When all that we trace stand still and are
 * as many as there are threads, there is no other that could run or make one.  Only a leader that had exited before
 * cannot be traced; it stays until the last thread is gone, so it can be counted.
 *
 * Each attempt is made by a thread of its own, because the kernel lets tracees go in whatever state they are when
 * their tracing thread ends: those that did not stop in time, dead leaders whose parent waits for the news, and everything
 * if we are killed.  PTRACE_O_EXITKILL is never set.  For the length of an attempt, which is bounded, a stopped
 * (SIGSTOP) owner holds up the watched process.
 */
#include "base/freeze.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/reach.h"
#include "base/thread.h"

enum {
	THREADS_MAX = 4096,
	LISTING = 32 * 1024, /* bytes of directory entries taken at once */
	/* A thread in a long uninterruptible wait makes all others stand still for one attempt; the pause between
	 * lets them do some work, and its wait end. */
	ATTEMPT_MS = 500,
	PAUSE_MS = 50,
	TOTAL_MS = 5000,
	YIELD_US = 300, /* stops are microseconds away: so long without sleeping */
	BACKOFF_MAX_US = 1000,
};

enum state {
	RUNNING, /* asked to stop */
	STOPPED,
	DEAD,
};

struct thread {
	pid_t tid;
	enum state state;
	int signal; /* to be delivered when it goes on */
};

struct base_freeze {
	pid_t pid;
	int task_fd; /* the directory /proc/PID/task */
	atomic_int last_tracer;
	unsigned n;
	bool is_unsettled; /* something was seen that is on its way out: list again */
	bool has_dead_leader;
	struct thread threads[THREADS_MAX];
	_Alignas(8) char listing[LISTING];
};

static int report_gone(const struct base_freeze *f, struct mf_error *err)
{
	return base_error(err, -ESRCH, MF_SCOPE_SESSION,
			  "process %d is gone, its writes cannot be collected", (int)f->pid);
}

/* State letter and tracer of a thread.  False: it is gone. */
static bool look(const struct base_freeze *f, pid_t tid, char *ret_state, pid_t *ret_tracer)
{
	char path[32], text[1024];
	(void)snprintf(path, sizeof(path), "%d/status", (int)tid);
	base_autofd fd = openat(f->task_fd, path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (got <= 0)
		return false;
	text[got] = '\0';
	const char *state = strstr(text, "\nState:\t"), *tracer = strstr(text, "\nTracerPid:\t");
	*ret_state = state ? state[8] : '?';
	*ret_tracer = tracer ? (pid_t)strtol(tracer + 12, NULL, 10) : 0;
	return true;
}

/* ---- getting hold of threads ---- */

static bool is_held(const struct base_freeze *f, pid_t tid)
{
	for (unsigned i = 0; i < f->n; i++) {
		if (f->threads[i].tid == tid)
			return true;
	}
	return false;
}

static int refused(struct base_freeze *f, pid_t tid, int code, struct mf_error *err)
{
	char state = 'X';
	pid_t tracer = 0;
	f->is_unsettled |= tid != f->pid;
	if (code == -ESRCH || !look(f, tid, &state, &tracer) || state == 'Z' || state == 'X') {
		f->has_dead_leader |= tid == f->pid && state == 'Z';
		return 0;
	}
	/* Our last attempt's thread has ended, but the kernel is not done with it. */
	if (tracer && tracer == atomic_load(&f->last_tracer)) {
		f->is_unsettled = true;
		return 0;
	}
	if (tracer)
		return base_error(err, -EBUSY, MF_SCOPE_SESSION,
				  "process %d cannot be stopped for a moment: process %d is "
				  "tracing it; end that debugger first",
				  (int)f->pid, (int)tracer);
	return base_error(
		err, code, MF_SCOPE_SESSION,
		"process %d may not be stopped for a moment: %s (needs CAP_SYS_PTRACE, or "
		"the same user and kernel.yama.ptrace_scope 0)",
		(int)f->pid, base_strerror(code));
}

static int hold(struct base_freeze *f, pid_t tid, struct mf_error *err)
{
	if (is_held(f, tid))
		return 0;
	if (f->n == THREADS_MAX)
		return base_error(err, -E2BIG, MF_SCOPE_SESSION,
				  "process %d has more than %d threads: too many to be stopped",
				  (int)f->pid, THREADS_MAX);
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) < 0)
		return refused(f, tid, -errno, err);
	f->threads[f->n++] = (struct thread){ .tid = tid };
	return 0;
}

struct entry { /* struct linux_dirent64 */
	uint64_t ino;
	int64_t off;
	uint16_t len;
	uint8_t type;
	char name[];
};

static int list(struct base_freeze *f, struct mf_error *err)
{
	f->is_unsettled = f->has_dead_leader = false;
	if (lseek(f->task_fd, 0, SEEK_SET) < 0)
		return report_gone(f, err);
	for (;;) {
		long got = syscall(SYS_getdents64, f->task_fd, f->listing, sizeof(f->listing));
		if (got < 0)
			return report_gone(f, err);
		if (!got)
			return 0;
		for (long at = 0; at < got;) {
			const struct entry *e = (const struct entry *)(f->listing + at);
			pid_t tid = (pid_t)strtol(e->name, NULL, 10); /* 0: "." and ".." */
			int code = tid ? hold(f, tid, err) : 0;
			if (code < 0)
				return code;
			at += e->len;
		}
	}
}

/* All are seized before the first is stopped: the standstill begins when the listing is done. */
static int hold_listed(struct base_freeze *f, struct mf_error *err)
{
	unsigned before = f->n;
	int code = list(f, err);
	/* Fails for the dead, which is found out when they are waited for. */
	for (unsigned i = before; !code && i < f->n; i++)
		(void)ptrace(PTRACE_INTERRUPT, f->threads[i].tid, NULL, NULL);
	return code;
}

/* ---- waiting until they stop ---- */

/* Takes no status away: who else waits for the process is none the worse, and ptrace does not need it. */
static void peek(struct thread *t)
{
	siginfo_t si = { 0 };
	if (waitid(P_PID, (id_t)t->tid, &si, WSTOPPED | WEXITED | WNOHANG | WNOWAIT | __WALL) < 0) {
		if (errno != EINTR)
			t->state = DEAD;
		return;
	}
	if (!si.si_pid)
		return;
	if (si.si_code != CLD_TRAPPED && si.si_code != CLD_STOPPED) {
		t->state = DEAD;
		return;
	}
	t->state = STOPPED;
	t->signal = si.si_status >> 8 ? 0 : si.si_status;
}

/* A leader that exits while other threads live shows no event. */
static void peek_closely(struct base_freeze *f, struct thread *t)
{
	char state;
	pid_t tracer;
	if (t->tid == f->pid && look(f, t->tid, &state, &tracer) && state == 'Z')
		t->state = DEAD;
}

static int await_all(struct base_freeze *f, uint64_t deadline_us, struct mf_error *err)
{
	uint64_t begun = base_now_us(), pause_us = 20;
	for (;;) {
		struct thread *waiting = NULL;
		for (unsigned i = 0; i < f->n; i++) {
			struct thread *t = &f->threads[i];
			if (t->state == RUNNING)
				peek(t);
			if (t->state == RUNNING && pause_us > 20)
				peek_closely(f, t);
			if (t->state == RUNNING)
				waiting = t;
		}
		if (!waiting)
			return 0;
		uint64_t now = base_now_us();
		if (now >= deadline_us)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
					  "thread %d of process %d does not stop: it is in an "
					  "uninterruptible wait; see /proc/%d/stack",
					  (int)waiting->tid, (int)f->pid, (int)waiting->tid);
		if (now - begun < YIELD_US) {
			(void)sched_yield();
			continue;
		}
		(void)nanosleep(&(struct timespec){ .tv_nsec = (long)pause_us * 1000 }, NULL);
		pause_us = pause_us * 2 < BACKOFF_MAX_US ? pause_us * 2 : BACKOFF_MAX_US;
	}
}

/* ---- all together ---- */

/* The leader is listed first and so held first, if it can be.  0: all are dead. */
static pid_t pick_living(const struct base_freeze *f)
{
	for (unsigned i = 0; i < f->n; i++) {
		if (f->threads[i].state == STOPPED)
			return f->threads[i].tid;
	}
	return 0;
}

static int hold_all(struct base_freeze *f, struct mf_error *err)
{
	uint64_t deadline_us = base_deadline_ms(ATTEMPT_MS);
	for (;;) {
		int code = hold_listed(f, err);
		if (!code)
			code = await_all(f, deadline_us, err);
		if (code < 0)
			return code;
		struct stat st;
		if (fstat(f->task_fd, &st) < 0 || st.st_nlink <= 2)
			return report_gone(f, err);
		if (!f->is_unsettled && f->n + f->has_dead_leader == st.st_nlink - 2)
			return pick_living(f) ? 0 : report_gone(f, err);
		if (base_now_us() >= deadline_us)
			return base_error(
				err, -ETIMEDOUT, MF_SCOPE_SESSION,
				"process %d makes threads faster than they can be stopped",
				(int)f->pid);
		(void)sched_yield();
	}
}

static void let_go(struct base_freeze *f)
{
	for (unsigned i = 0; i < f->n; i++) {
		struct thread *t = &f->threads[i];
		/* Fails for one that was killed meanwhile.  The rest is let go when this thread ends. */
		if (t->state == STOPPED)
			(void)ptrace(PTRACE_DETACH, t->tid, NULL, (void *)(intptr_t)t->signal);
	}
	f->n = 0;
}

struct attempt {
	struct base_freeze *f;
	base_frozen_fn fn;
	void *ctx;
	int code;
	bool is_held;
	struct mf_error err;
};

static void *run_attempt(void *arg)
{
	struct attempt *a = arg;
	(void)pthread_setname_np(pthread_self(), "mf-freeze");
	uint64_t begun = base_now_us();
	a->code = hold_all(a->f, &a->err);
	a->is_held = a->code == 0;
	if (a->is_held)
		a->code = a->fn(a->ctx, pick_living(a->f), &a->err);
	let_go(a->f);
	base_debug("softdirty: process %d stood still for less than %llu us", (int)a->f->pid,
		   (unsigned long long)(base_now_us() - begun));
	atomic_store(&a->f->last_tracer, (int)syscall(SYS_gettid));
	return NULL;
}

/* The program's signals are not for this thread. */
static int start_thread(pthread_t *ret, struct attempt *a)
{
	sigset_t all;
	(void)sigfillset(&all);
	return base_thread_start(ret, &all, run_attempt, a);
}

int base_freeze_run(struct base_freeze *f, base_frozen_fn fn, void *ctx, struct mf_error *err)
{
	const struct base_reach *helper = base_reach_helper(f->pid);
	if (helper)
		return helper->freeze(f->pid, fn, ctx, err);
	uint64_t deadline_us = base_deadline_ms(TOTAL_MS);
	for (;;) {
		struct attempt a = { .f = f, .fn = fn, .ctx = ctx };
		pthread_t thread;
		int code = start_thread(&thread, &a);
		if (code < 0)
			return base_error_sys(err, code, MF_SCOPE_SESSION,
					      "the thread that stops process %d cannot be started",
					      (int)f->pid);
		(void)pthread_join(thread, NULL); /* ends within an attempt's time, and fn's */
		if (a.code >= 0)
			return a.code;
		if (a.is_held || a.code != -ETIMEDOUT || base_now_us() >= deadline_us)
			return base_error(err, a.code, a.err.scope, "%s", a.err.msg);
		(void)nanosleep(&(struct timespec){ .tv_nsec = PAUSE_MS * 1000000L }, NULL);
	}
}

int base_freeze_open(pid_t pid, struct base_freeze **ret, struct mf_error *err)
{
	char path[64];
	(void)snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	struct base_freeze *f = calloc(1, sizeof(*f));
	if (!f)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "no memory for the tracker");
	f->pid = pid;
	f->task_fd = -1;
	if (base_reach_helper(pid)) {
		*ret = f;
		return 0;
	}
	f->task_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (f->task_fd < 0) {
		int code = -errno;
		base_freeze_close(f);
		return base_error_sys(err, code, MF_SCOPE_SESSION, "%s cannot be opened", path);
	}
	*ret = f;
	return 0;
}

void base_freeze_close(struct base_freeze *f)
{
	if (!f)
		return;
	base_closep(&f->task_fd);
	free(f);
}
