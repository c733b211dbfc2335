/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Running system calls inside another, unmodified process, and leaving it as it was.
 *
 * A session with a target is short: attach_begin() stops one thread of it (the others run on), attach_syscall()
 * runs calls in its address space, attach_end() puts registers and signal state back and lets it go.  While
 * it lasts the thread stands still: measured in tens of microseconds, plus what the call itself takes.
 *
 * All calls of a session come from one thread, the kernel's rule for tracers; meanwhile no other thread of this process may
 * wait for children of any kind (waitpid(-1)), or it takes our events.  A target that did not stop within its
 * deadline is let go when that thread ends; the functions built on a session have a thread of their own for that.
 *
 * Calls that the kernel ends with EINTR for any stop, handler or not (signal(7): epoll_wait, semop, sigtimedwait,
 * io_getevents, KVM_RUN), end so here too; a thread in another call is preferred where there is one.  A seccomp
 * filter of the target is suspended for our calls (CAP_SYS_ADMIN), or the target refused.
 *
 * Laws (tests/unit/test_attach.c):
 *  X1  After attach_end() the target's thread goes on as if nothing had happened: registers (also vector
 *      state), signal mask, pending signals, a system call that was under way (it is restarted, or returns
 *      EINTR only where the kernel would have done so for a caught stop).
 *  X2  Signals that arrive meanwhile are delivered after attach_end(), none lost, none twice.
 *  X3  A target that dies meanwhile is an error (-ESRCH), never a hang.
 *  X4  A target that somebody else traces is refused (-EPERM), naming the tracer.
 *  X5  A group-stopped (SIGSTOP) target is stopped again afterwards.
 *  X6  Every wait has a deadline.
 *  X7  If we are killed meanwhile, the kernel detaches; the thread must not be left at a foreign instruction
 *      pointer for longer than one system call.  What remains of that window: attach.c.
 */
#ifndef HV_ATTACH_H
#define HV_ATTACH_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct attach;

/* 0, or why reaching into pid will not work (privilege, Yama, traced already, other architecture). Touches nothing. */
int attach_probe(pid_t pid, struct mf_error *err);
int attach_begin(pid_t pid, struct attach **ret, struct mf_error *err);
/* The system call's result as the kernel gives it (negative errno on failure) in *ret_value; the return value says
 * whether it could be run at all.  For quick calls: one that is not done after 5 s is broken off, -ETIMEDOUT. */
int attach_syscall(struct attach *at, long nr, const unsigned long args[6], long *ret_value,
		   struct mf_error *err);
/* Always succeeds in letting go; NULL: nothing. */
void attach_end(struct attach *at);

/* Built on the above, one session each; these and attach_probe() go through a helper where there is one (helper.h). */

/* A userfaultfd made in the target and a duplicate of it here (O_CLOEXEC | O_NONBLOCK).  *ret_remote is its number
 * in the target. */
int attach_userfaultfd(pid_t pid, int *ret_fd, int *ret_remote, struct mf_error *err);
/* The device that userfaultfds can be made from, for a target that may not make one by itself: here, or -errno. */
int attach_open_device(pid_t pid);
/* As attach_userfaultfd(), from such a device whose number in the target is given. */
int attach_userfaultfd_by(pid_t pid, int device, int *ret_fd, int *ret_remote,
			  struct mf_error *err);
/* Closes userfaultfds in the target; numbers that are gone, or another file's by now, are skipped. */
void attach_close_fds(pid_t pid, const int *remote, unsigned n);
/* Userfaultfds that are open in the target: leftovers of an earlier attach (or the target's own).  Returns their number,
 * at most cap. */
int attach_find_userfaultfds(pid_t pid, int *ret_remote, unsigned cap, struct mf_error *err);
/* A duplicate here of a userfaultfd of the target (pidfd_getfd); -EBADF: of another kind. */
int attach_get_userfaultfd(pid_t pid, int remote, int *ret_fd, struct mf_error *err);
/* madvise(addr, len, advice) in the target for each of n ranges, in one stop; ends at the first that fails. */
struct attach_range {
	uint64_t addr, len;
};
int attach_madvise(pid_t pid, const struct attach_range *ranges, unsigned n, int advice,
		   struct mf_error *err);

/*
 * What needs no session, but the same privilege.
 */
/* A shared mapping of the target, as its maps have it. */
struct attach_mapping {
	uint64_t start, end, inode;
	uint32_t dev_major, dev_minor;
};
/* The file behind it, for reading and writing, or -errno: through the process itself, as the file's name may be gone, be in
 * another mount namespace, or never have been. */
int attach_open_mapping(pid_t pid, const struct attach_mapping *mapping);
/* SIGKILL, by the helper or by a descriptor of the process; where neither can be used, by its number.  0 or -errno. */
int attach_kill(pid_t pid, int pidfd);
/* Is there still somebody who can do all this?  Without a helper: yes. */
int attach_check(pid_t pid, struct mf_error *err);

#endif
