/* SPDX-License-Identifier: BSD-2-Clause */
/* What /proc says about a target before it is stopped.  Private to this folder. */
#ifndef ATTACH_PROC_H
#define ATTACH_PROC_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct attach_status {
	char state; /* R S D T t Z X I; 0: not told */
	pid_t tgid, ppid, tracer;
	uid_t uid;
	int seccomp;
	uint64_t cap_eff;
};

/* -ESRCH: no such thread. */
int attach_proc_status(pid_t tid, struct attach_status *ret);

/*
 * The thread to stop: alive (the leader may have exited), and in a call that takes an interruption well.  Refuses what
 * cannot be reached: gone, ourselves, traced, a kernel thread, another architecture, no privilege, seccomp that we
 * may not suspend.  Changes nothing.
 */
struct attach_pick {
	pid_t tid;
	bool has_seccomp;
	bool is_child; /* of ours: its exit status is not for us to take */
};
int attach_proc_pick(pid_t pid, struct attach_pick *ret, struct mf_error *err);
/* Any live thread of pid; needs no privilege. */
int attach_proc_live_thread(pid_t pid, pid_t *ret_tid, struct mf_error *err);

/* Fills err with the reason why the kernel will not let us trace a thread of pid; returns -EPERM. */
int attach_proc_explain_refusal(pid_t pid, pid_t tid, struct mf_error *err);

/*
 * The address of a system call instruction in the thread's memory, which mem (/proc/PID/mem) reads.  -ENOEXEC: none
 * there; -ESRCH: no memory there, the thread is ending.
 */
int attach_proc_find_insn(pid_t tid, int mem, uint64_t *ret_insn);

#endif
