/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A session with one thread of a target, by ptrace.
 *
 * The thread is seized and interrupted, which leaves it in a "settled" stop: on its way to user space, signals and the
 * repetition of an interrupted system call still to be decided by the kernel.  A remote call goes one of two ways:
 *
 *   was in a call that        continue untouched ──▶ it repeats the call ──▶ entry stop: put our call in its place
 *   will be repeated                                                         exit stop: write "interrupted in it"
 *
 *   was elsewhere             registers := our call at a foreign ──▶ entry stop, go on
 *                             system call instruction                exit stop: write the registers back
 *
 * In both the last thing written is a state that the kernel takes on from by itself: PTRACE_DETACH, or our death, makes
 * the thread pass through signal handling once more on its way out, and there a pending signal is delivered, the
 * call repeated (with the time that was left) or ended with EINTR, a group stop resumed.
 *
 * No signal is ever blocked or held back: one that the kernel wants to deliver while we drive shows as a stop, the
 * thread's own registers are put back, and the signal is passed on as it is; its handler's frame is set up and
 * the thread settles at the handler's first instruction.  So there is no mask to restore, the temporary masks of ppoll
 * and its like stay the kernel's affair, and nothing of this is left behind if we are killed.
 *
 * If we are killed between "put our call" and "exit stop: write" (some 20 microseconds), the thread comes back from its
 * own call with the remote call's result and arguments in its registers; on the second way it goes on behind
 * a foreign instruction and will crash.  The choice of thread (attach_proc.c) makes the second way rare and prefers
 * threads whose call takes a wrong early return well.  PTRACE_O_EXITKILL is never set: it would end the guest.
 *
 * Stops come in wait status only: no descriptor reports them, and SIGCHLD belongs to the program, not to a library.
 * So await_event() asks without blocking, yields at first because a stop is microseconds away, then backs off.
 */
#include "hv-adapters/attach/attach.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "hv-adapters/attach/attach_arch.h"
#include "hv-adapters/attach/attach_proc.h"
#include "hv-adapters/attach/helper_wire.h"

enum { SYSCALL_STOP = SIGTRAP | 0x80 };

enum {
	STOP_MS = 5000,  /* until an interrupted thread stops */
	CALL_MS = 5000,  /* until a remote call is done */
	GRACE_MS = 2000, /* for a thread that was told to break off */
	AWAY_MS = 60000, /* the same where letting go would leave foreign registers behind */
	YIELD_US = 300,  /* waits shorter than this spin with sched_yield */
	BACKOFF_MAX_US = 1000,
	THREADS_TRIED = 8, /* begin's attempts when the thread picked ends at that moment */
};

enum place {
	PLACE_RUNNING, /* not stopped: before the first stop, or lost after a deadline */
	PLACE_SETTLED, /* event stop, registers untouched */
	PLACE_CALLED,  /* exit stop of a remote call, the thread's own state written back */
	PLACE_DEAD,
};

struct attach {
	pid_t pid, tid;
	bool is_child, is_seized;
	int mem;
	uint64_t insn;
	enum place place;
	/* While a remote call is set up or runs: the state to write at the next stop, whenever that comes. */
	bool is_away;
	struct attach_regs home;
	uint64_t stopped_at_us;
};

static int report_gone(struct attach *at, struct mf_error *err)
{
	return base_error(err, -ESRCH, MF_SCOPE_SESSION,
			  "process %d ended while we were attached to it", (int)at->pid);
}

/* Takes a dead thread's status, which the kernel holds back from its parent until its tracer has it. */
static void reap(struct attach *at)
{
	siginfo_t si;

	at->place = PLACE_DEAD;
	if (!at->is_child)
		(void)waitid(P_PID, (id_t)at->tid, &si, WEXITED | WNOHANG | __WALL);
}

/* -ESRCH: dead, and reaped. */
static int poll_event(struct attach *at, int *ret_status)
{
	siginfo_t si = { 0 };

	if (waitid(P_PID, (id_t)at->tid, &si, WSTOPPED | WEXITED | WNOHANG | WNOWAIT | __WALL) <
	    0) {
		if (errno == EINTR)
			return -EAGAIN;
		at->place = PLACE_DEAD;
		return -ESRCH;
	}
	if (si.si_pid == 0)
		return -EAGAIN;
	if (si.si_code != CLD_TRAPPED && si.si_code != CLD_STOPPED) {
		reap(at);
		return -ESRCH;
	}
	*ret_status = si.si_status;
	if (waitid(P_PID, (id_t)at->tid, &si, WSTOPPED | WNOHANG | __WALL) < 0 || si.si_pid == 0)
		return -EAGAIN; /* killed in between: the next look shows it */
	return 0;
}

/* The next stop of the thread; -ESRCH, or -ETIMEDOUT.  Fills no record. */
static int await_event(struct attach *at, uint64_t deadline_us, int *ret_status)
{
	uint64_t begun = base_now_us(), pause_us = 20;
	struct attach_status st;
	int rc;

	while ((rc = poll_event(at, ret_status)) == -EAGAIN) {
		uint64_t now = base_now_us();
		if (now >= deadline_us)
			return -ETIMEDOUT;
		if (now - begun < YIELD_US) {
			(void)sched_yield();
			continue;
		}
		/* A leader that has exited while other threads live shows no event at all. */
		if (pause_us == BACKOFF_MAX_US && attach_proc_status(at->tid, &st) == 0 &&
		    (st.state == 'Z' || st.state == 'X') && poll_event(at, ret_status) == -EAGAIN) {
			at->place = PLACE_DEAD;
			return -ESRCH;
		}
		(void)ppoll(NULL, 0, &(struct timespec){ .tv_nsec = (long)pause_us * 1000 }, NULL);
		pause_us = pause_us * 2 < BACKOFF_MAX_US ? pause_us * 2 : BACKOFF_MAX_US;
	}
	return rc;
}

/* What ptrace says of a stopped thread fails only with -ESRCH, when the thread was killed: collect that. */
static int lose(struct attach *at, int code, struct mf_error *err)
{
	int status;

	if (code != -ESRCH)
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "thread %d of process %d cannot be driven", (int)at->tid,
				      (int)at->pid);
	if (at->place != PLACE_DEAD)
		(void)await_event(at, base_deadline_ms(GRACE_MS), &status);
	return report_gone(at, err);
}

/* At any stop: the thread is given back what is its own. */
static int go_home(struct attach *at)
{
	int rc = at->is_away ? attach_arch_set(at->tid, &at->home) : 0;

	if (rc == 0)
		at->is_away = false;
	return rc;
}

/* A failure to resume means killed, which the wait that follows reports. */
static void resume(struct attach *at, int request, int signal)
{
	(void)ptrace(request, at->tid, NULL, (void *)(intptr_t)signal);
}

/*
 * Passes a signal on, with its siginfo, and asks for another stop: any stop uses up an interrupt that was pending.  The
 * thread's registers must be its own.
 */
static void pass_signal(struct attach *at, int signal)
{
	(void)ptrace(PTRACE_INTERRUPT, at->tid, NULL, NULL);
	resume(at, PTRACE_CONT, signal);
}

static bool is_event_stop(int status)
{
	return status >> 8 == PTRACE_EVENT_STOP;
}

/* Waits for an event stop (a group stop's too), passing on the signals that come before it. */
static int await_settled(struct attach *at, uint64_t deadline_us, struct mf_error *err)
{
	int status, rc;

	at->place = PLACE_RUNNING;
	while ((rc = await_event(at, deadline_us, &status)) == 0) {
		if ((rc = go_home(at)) < 0)
			return lose(at, rc, err);
		if (is_event_stop(status)) {
			at->place = PLACE_SETTLED;
			return 0;
		}
		pass_signal(at, status == SYSCALL_STOP ? 0 : status);
	}
	if (rc == -ESRCH)
		return report_gone(at, err);
	return base_error(
		err, rc, MF_SCOPE_SESSION,
		"thread %d of process %d does not stop: it is in an uninterruptible wait; see "
		"/proc/%d/stack",
		(int)at->tid, (int)at->pid, (int)at->tid);
}

/*
 * A thread in user space may stand in a restartable sequence.  The kernel makes one that was stopped go on at its abort
 * address, but forgets that when the thread goes on somewhere else first, and the sequence would end although it was
 * interrupted.  So what the kernel would do is done here.  True: regs changed.
 */
static bool abort_rseq(struct attach *at, struct attach_regs *regs)
{
	struct __ptrace_rseq_configuration conf;
	struct {
		uint32_t version, flags;
		uint64_t start_ip, post_commit_offset, abort_ip;
	} cs;
	uint64_t cs_at = 0;

	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, at->tid, (void *)sizeof(conf), &conf) !=
		    (long)sizeof(conf) ||
	    !conf.rseq_abi_pointer)
		return false;
	/* struct rseq: cpu_id_start, cpu_id, then the address of the sequence's descriptor. */
	if (pread(at->mem, &cs_at, sizeof(cs_at), (off_t)conf.rseq_abi_pointer + 8) !=
		    sizeof(cs_at) ||
	    !cs_at || pread(at->mem, &cs, sizeof(cs), (off_t)cs_at) != sizeof(cs) ||
	    attach_arch_pc(regs) - cs.start_ip >= cs.post_commit_offset)
		return false;
	attach_arch_set_pc(regs, cs.abort_ip);
	return true;
}

static bool is_call_insn(struct attach *at, uint64_t addr)
{
	unsigned char bytes[ATTACH_INSN_LEN];

	return pread(at->mem, bytes, sizeof(bytes), (off_t)addr) == (ssize_t)sizeof(bytes) &&
	       memcmp(bytes, ATTACH_INSN, sizeof(bytes)) == 0;
}

/* Brings the thread from where it is to a settled stop outside restartable sequences; its registers in *ret. */
static int settle(struct attach *at, uint64_t deadline_us, struct attach_regs *ret,
		  struct mf_error *err)
{
	uint64_t insn;
	int rc;

	if (at->place != PLACE_SETTLED) {
		(void)ptrace(PTRACE_INTERRUPT, at->tid, NULL, NULL);
		if (at->place == PLACE_CALLED)
			resume(at, PTRACE_CONT, 0);
		if ((rc = await_settled(at, deadline_us, err)) < 0)
			return rc;
	}
	if ((rc = attach_arch_get(at->tid, ret)) == -EOPNOTSUPP)
		return base_error(err, rc, MF_SCOPE_HOST,
				  "thread %d of process %d runs 32-bit code: only " ATTACH_ARCH_NAME
				  " threads can be reached",
				  (int)at->tid, (int)at->pid);
	if (rc == 0 && !(attach_arch_will_repeat(ret, &insn) && is_call_insn(at, insn)) &&
	    abort_rseq(at, ret))
		rc = attach_arch_set(at->tid, ret);
	return rc < 0 ? lose(at, rc, err) : 0;
}

/*
 * Lets a settled thread go on to the entry of a system call.  -EAGAIN: it took a signal first, and is settled
 * elsewhere with its own registers.
 */
static int reach_entry(struct attach *at, uint64_t deadline_us, struct mf_error *err)
{
	int status, rc;

	do {
		resume(at, PTRACE_SYSCALL, 0);
		at->place = PLACE_RUNNING;
		rc = await_event(at, deadline_us, &status);
		/* An event stop: a group stop began or ended.  We drive on, detaching takes it up again. */
	} while (rc == 0 && is_event_stop(status));
	if (rc == 0 && status == SYSCALL_STOP)
		return 0;
	if (rc == -ESRCH)
		return report_gone(at, err);
	if (rc < 0)
		return base_error(err, rc, MF_SCOPE_SESSION,
				  "thread %d of process %d does not come to its system call",
				  (int)at->tid, (int)at->pid);
	if ((rc = go_home(at)) < 0)
		return lose(at, rc, err);
	pass_signal(at, status);
	rc = await_settled(at, deadline_us, err);
	return rc < 0 ? rc : -EAGAIN;
}

/* From the entry stop of the remote call to its exit; there the thread's own state is written at once. */
static int finish_call(struct attach *at, uint64_t deadline_us, long *ret_value,
		       struct mf_error *err)
{
	struct attach_regs done;
	int status, rc, late = 0;

	resume(at, PTRACE_SYSCALL, 0);
	rc = await_event(at, deadline_us, &status);
	if (rc == -ETIMEDOUT) {
		late = rc;
		(void)ptrace(PTRACE_INTERRUPT, at->tid, NULL, NULL);
		rc = await_event(at, base_deadline_ms(AWAY_MS), &status);
	}
	if (rc == -ESRCH)
		return report_gone(at, err);
	if (rc < 0)
		return base_error(err, rc, MF_SCOPE_SESSION,
				  "thread %d of process %d is stuck in the system call run there",
				  (int)at->tid, (int)at->pid);
	if ((rc = attach_arch_get(at->tid, &done)) < 0 || (rc = go_home(at)) < 0)
		return lose(at, rc, err);
	at->place = PLACE_CALLED;
	*ret_value = attach_arch_result(&done);
	return late ? base_error(err, late, MF_SCOPE_SESSION,
				 "the system call run in process %d did not end in time",
				 (int)at->pid)
		    : 0;
}

static int write_away(struct attach *at, const struct attach_regs *home,
		      const struct attach_regs *regs, struct mf_error *err)
{
	at->home = *home;
	at->is_away = true;
	int rc = attach_arch_set(at->tid, regs);
	return rc < 0 ? lose(at, rc, err) : 0;
}

/* One attempt; -EAGAIN: a signal came first. */
static int try_call(struct attach *at, long nr, const unsigned long args[6], uint64_t deadline_us,
		    long *ret_value, struct mf_error *err)
{
	struct attach_regs own, regs, home;
	uint64_t insn;
	int rc;

	if ((rc = settle(at, deadline_us, &own, err)) < 0)
		return rc;
	if (attach_arch_will_repeat(&own, &insn) && is_call_insn(at, insn)) {
		if ((rc = reach_entry(at, deadline_us, err)) < 0)
			return rc;
		if ((rc = attach_arch_get(at->tid, &regs)) < 0)
			return lose(at, rc, err);
		home = regs;
		attach_arch_interrupted(&home, &own);
		attach_arch_replace_call(&regs, nr, args);
		if ((rc = write_away(at, &home, &regs, err)) < 0)
			return rc;
	} else {
		if (!is_call_insn(at, at->insn))
			return (rc = attach_arch_get(at->tid, &regs)) < 0
				       ? lose(at, rc, err)
				       : base_error(err, -ENOEXEC, MF_SCOPE_SESSION,
						    "process %d has just started another program: "
						    "try again",
						    (int)at->pid);
		regs = own;
		attach_arch_load_call(&regs, at->insn, nr, args);
		if ((rc = write_away(at, &own, &regs, err)) < 0 ||
		    (rc = reach_entry(at, deadline_us, err)) < 0)
			return rc;
	}
	return finish_call(at, deadline_us, ret_value, err);
}

/* Results that mean: a signal wants to be delivered before this call.  The signal is next, then the call again. */
static bool is_interrupted(long value)
{
	return value == -ATTACH_ERESTARTSYS || value == -ATTACH_ERESTARTNOINTR ||
	       value == -ATTACH_ERESTARTNOHAND || value == -ATTACH_ERESTART_RESTARTBLOCK;
}

int attach_syscall(struct attach *at, long nr, const unsigned long args[6], long *ret_value,
		   struct mf_error *err)
{
	uint64_t deadline_us = base_deadline_ms(CALL_MS);
	long value = 0;
	int rc;

	assert(at->is_seized);
	if (at->place == PLACE_DEAD)
		return report_gone(at, err);
	do {
		if (base_now_us() >= deadline_us)
			return base_error(
				err, -ETIMEDOUT, MF_SCOPE_SESSION,
				"process %d is so busy with signals that nothing can be run in it",
				(int)at->pid);
		rc = try_call(at, nr, args, deadline_us, &value, err);
	} while (rc == -EAGAIN || (rc == 0 && is_interrupted(value)));
	if (rc == 0)
		*ret_value = value;
	return rc;
}

/* -ESRCH without a record: the thread ended, another may be tried. */
static int seize(struct attach *at, const struct attach_pick *pick, struct mf_error *err)
{
	unsigned long options =
		PTRACE_O_TRACESYSGOOD | (pick->has_seccomp ? PTRACE_O_SUSPEND_SECCOMP : 0);
	struct attach_status st;
	char path[64];
	int rc;

	at->tid = pick->tid;
	at->is_child = pick->is_child;
	at->place = PLACE_RUNNING;
	base_closep(&at->mem);
	(void)snprintf(path, sizeof(path), "/proc/%d/mem", (int)at->tid);
	at->mem = open(path, O_RDONLY | O_CLOEXEC);
	if (at->mem < 0)
		return errno == ENOENT || errno == ESRCH
			       ? -ESRCH
			       : base_error_sys(err, -errno, MF_SCOPE_HOST, "%s cannot be opened",
						path);
	if ((rc = attach_proc_find_insn(at->tid, at->mem, &at->insn)) < 0)
		return rc == -ESRCH
			       ? rc
			       : base_error(err, rc, MF_SCOPE_HOST,
					    "process %d maps no readable code with a system call "
					    "instruction: nothing can be run in it",
					    (int)at->pid);
	if (ptrace(PTRACE_SEIZE, at->tid, NULL, (void *)options) == 0) {
		at->is_seized = true;
		return 0;
	}
	rc = -errno;
	if (rc == -EINVAL && pick->has_seccomp)
		return base_error(
			err, rc, MF_SCOPE_HOST,
			"process %d has a seccomp filter, which this kernel cannot suspend "
			"(CONFIG_CHECKPOINT_RESTORE): run the guest without a filter",
			(int)at->pid);
	if (rc == -ESRCH || attach_proc_status(at->tid, &st) < 0 || st.state == 'Z' ||
	    st.state == 'X')
		return -ESRCH;
	return rc == -EPERM || rc == -EACCES
		       ? attach_proc_explain_refusal(at->pid, at->tid, err)
		       : base_error_sys(err, rc, MF_SCOPE_HOST, "process %d cannot be traced",
					(int)at->pid);
}

int attach_probe(pid_t pid, struct mf_error *err)
{
	struct attach_pick pick;

	if (helper_is_used(pid)) {
		struct helper_request q = { .op = HELPER_PROBE, .pid = pid };
		struct helper_reply a;
		return helper_call(&q, &a, NULL, HELPER_FILE_MS, err);
	}
	return attach_proc_pick(pid, &pick, err);
}

static void end_sessionp(struct attach **at)
{
	attach_end(*at);
}

int attach_begin(pid_t pid, struct attach **ret, struct mf_error *err)
{
	base_cleanup(end_sessionp) struct attach *at = calloc(1, sizeof(*at));
	struct attach_pick pick;
	struct attach_regs regs;
	int rc = -ESRCH;

	if (!at)
		return base_error(err, -ENOMEM, MF_SCOPE_SESSION,
				  "a session with process %d: no memory", (int)pid);
	at->pid = pid;
	at->mem = -1;
	/* A thread that ends between being picked and being stopped is no failure while others live. */
	for (int i = 0; rc == -ESRCH && i < THREADS_TRIED; i++) {
		struct mf_error gone = { 0 };
		if ((rc = attach_proc_pick(pid, &pick, err)) < 0)
			return rc;
		at->is_seized = false;
		if ((rc = seize(at, &pick, err)) < 0)
			continue;
		at->stopped_at_us = base_now_us();
		rc = settle(at, base_deadline_ms(STOP_MS), &regs, &gone);
		if (rc < 0 && rc != -ESRCH)
			return base_error(err, rc, gone.scope, "%s", gone.msg);
	}
	if (rc < 0)
		return base_error(err, rc, MF_SCOPE_SESSION, "process %d is gone", (int)pid);
	*ret = BASE_TAKE_PTR(at);
	return 0;
}

void attach_end(struct attach *at)
{
	int status, signal = 0;

	if (!at)
		return;
	if (at->is_seized && at->place == PLACE_RUNNING) {
		/* A deadline passed: one more chance to find it stopped.  Otherwise the kernel lets it go when the
		 * calling thread ends. */
		(void)ptrace(PTRACE_INTERRUPT, at->tid, NULL, NULL);
		if (await_event(at, base_deadline_ms(at->is_away ? AWAY_MS : GRACE_MS), &status) ==
		    0) {
			signal = is_event_stop(status) || status == SYSCALL_STOP ? 0 : status;
			at->place = PLACE_SETTLED;
		}
	}
	if (at->is_seized && (at->place == PLACE_SETTLED || at->place == PLACE_CALLED)) {
		if (go_home(at) < 0 ||
		    ptrace(PTRACE_DETACH, at->tid, NULL, (void *)(intptr_t)signal) < 0)
			(void)await_event(at, base_deadline_ms(GRACE_MS),
					  &status); /* killed: reaped */
		base_debug("attach: thread %d of process %d stood still for %llu us", (int)at->tid,
			   (int)at->pid, (unsigned long long)(base_now_us() - at->stopped_at_us));
	}
	base_closep(&at->mem);
	free(at);
}
