/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What libc, OpenSSL, libfabric, librdmacm with the drivers of libibverbs, hwloc and memferry itself call, on Debian 12 and
 * 13.  Libraries are loaded while a move goes on (drivers, name services), so code may be mapped, but not written.
 * No process is made: clone() makes threads only, and clone3(), whose arguments a filter cannot see, is not there.
 */
#include <errno.h>
#include <linux/prctl.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/privilege.h"

enum {
	MOVE = 1 << BASE_FILTER_MOVE,
	REACH = 1 << BASE_FILTER_REACH,
	BOTH = MOVE | REACH,
};

struct rule {
	int call;
	unsigned filters;
	unsigned n; /* conditions on its arguments */
	struct scmp_arg_cmp arg[1];
};

#define CALL(name, filters)                          \
	{                                            \
		SCMP_SYS(name), filters, 0,          \
		{                                    \
			{                            \
				0, SCMP_CMP_EQ, 0, 0 \
			}                            \
		}                                    \
	}
#define IF(name, filters, nr, value)                      \
	{                                                 \
		SCMP_SYS(name), filters, 1,               \
		{                                         \
			{                                 \
				nr, SCMP_CMP_EQ, value, 0 \
			}                                 \
		}                                         \
	}
#define IF_BITS(name, filters, nr, mask, value)                     \
	{                                                           \
		SCMP_SYS(name), filters, 1,                         \
		{                                                   \
			{                                           \
				nr, SCMP_CMP_MASKED_EQ, mask, value \
			}                                           \
		}                                                   \
	}

/* _IOC(…, type, …): requests of one kind of device. */
#define IOCTLS_OF(type, filters) IF_BITS(ioctl, filters, 1, 0xff00, (type) << 8)

static const struct rule rules[] = {
	/* itself */
	CALL(exit, BOTH),
	CALL(exit_group, BOTH),
	CALL(futex, BOTH),
	CALL(futex_waitv, BOTH),
	CALL(set_robust_list, BOTH),
	CALL(get_robust_list, BOTH),
	CALL(rseq, BOTH),
	CALL(set_tid_address, BOTH),
	CALL(getpid, BOTH),
	CALL(getppid, BOTH),
	CALL(gettid, BOTH),
	CALL(getuid, BOTH),
	CALL(geteuid, BOTH),
	CALL(getgid, BOTH),
	CALL(getegid, BOTH),
	CALL(getgroups, BOTH),
	CALL(capget, BOTH),
	CALL(uname, BOTH),
	CALL(sysinfo, BOTH),
	CALL(getrusage, BOTH),
	CALL(times, BOTH),
	CALL(getrlimit, BOTH),
	IF(prlimit64, BOTH, 2, 0), /* asks only */
	CALL(getrandom, BOTH),
	CALL(restart_syscall, BOTH),
	IF_BITS(clone, BOTH, 0, CLONE_THREAD, CLONE_THREAD),
	IF(prctl, BOTH, 0, PR_SET_NAME),
	IF(prctl, BOTH, 0, PR_GET_NAME),
	IF(prctl, BOTH, 0, PR_GET_DUMPABLE),
	IF(prctl, BOTH, 0, PR_SET_VMA),
	IF(prctl, BOTH, 0, PR_CAPBSET_READ),
	CALL(sched_yield, BOTH),
	CALL(sched_getaffinity, BOTH),
	CALL(sched_setaffinity, BOTH),
	IF(setpriority, MOVE, 0, PRIO_PROCESS),
	CALL(sched_getparam, BOTH),
	CALL(sched_getscheduler, BOTH),
	CALL(sched_get_priority_min, BOTH),
	CALL(sched_get_priority_max, BOTH),
	CALL(getcpu, BOTH),
	CALL(wait4, BOTH),
	CALL(waitid, BOTH),

	/* signals */
	CALL(rt_sigaction, BOTH),
	CALL(rt_sigprocmask, BOTH),
	CALL(rt_sigreturn, BOTH),
	CALL(rt_sigpending, BOTH),
	CALL(rt_sigtimedwait, BOTH),
	CALL(sigaltstack, BOTH),
	CALL(signalfd4, MOVE),
	IF(kill, BOTH, 1, 0),

	/* time */
	CALL(clock_gettime, BOTH),
	CALL(clock_getres, BOTH),
	CALL(clock_nanosleep, BOTH),
	CALL(nanosleep, BOTH),
	CALL(gettimeofday, BOTH),
	CALL(time, BOTH),
	CALL(timerfd_create, MOVE),
	CALL(timerfd_settime, MOVE),
	CALL(timerfd_gettime, MOVE),

	/* memory */
	CALL(brk, BOTH),
	IF_BITS(mmap, BOTH, 2, PROT_WRITE | PROT_EXEC, 0),
	IF_BITS(mmap, BOTH, 2, PROT_WRITE | PROT_EXEC, PROT_WRITE),
	IF_BITS(mmap, BOTH, 2, PROT_WRITE | PROT_EXEC, PROT_EXEC),
	CALL(munmap, BOTH),
	CALL(mremap, BOTH),
	IF_BITS(mprotect, BOTH, 2, PROT_EXEC, 0),
	CALL(madvise, BOTH),
	CALL(mincore, BOTH),
	CALL(msync, MOVE),
	CALL(mlock, MOVE),
	CALL(mlock2, MOVE),
	CALL(munlock, MOVE),
	CALL(mbind, MOVE),
	CALL(get_mempolicy, MOVE),
	CALL(set_mempolicy, MOVE),
	CALL(move_pages, BOTH),
	CALL(membarrier, BOTH),
	CALL(memfd_create, MOVE),
	CALL(userfaultfd, MOVE),

	/* descriptors */
	CALL(read, BOTH),
	CALL(readv, BOTH),
	CALL(pread64, BOTH),
	CALL(preadv, MOVE),
	CALL(write, BOTH),
	CALL(writev, BOTH),
	CALL(pwrite64, BOTH),
	CALL(pwritev, MOVE),
	CALL(close, BOTH),
	CALL(close_range, BOTH),
	CALL(dup, BOTH),
	CALL(dup2, BOTH),
	CALL(dup3, BOTH),
	CALL(fcntl, BOTH),
	CALL(lseek, BOTH),
	CALL(pipe, MOVE),
	CALL(pipe2, MOVE),
	CALL(eventfd2, MOVE),
	CALL(poll, BOTH),
	CALL(ppoll, BOTH),
	CALL(select, BOTH),
	CALL(pselect6, BOTH),
	CALL(epoll_create, MOVE),
	CALL(epoll_create1, MOVE),
	CALL(epoll_ctl, MOVE),
	CALL(epoll_wait, MOVE),
	CALL(epoll_pwait, MOVE),
	CALL(epoll_pwait2, MOVE),

	/* files */
	CALL(open, BOTH),
	CALL(openat, BOTH),
	CALL(stat, BOTH),
	CALL(lstat, BOTH),
	CALL(fstat, BOTH),
	CALL(newfstatat, BOTH),
	CALL(statx, BOTH),
	CALL(statfs, BOTH),
	CALL(fstatfs, BOTH),
	CALL(access, BOTH),
	CALL(faccessat, BOTH),
	CALL(faccessat2, BOTH),
	CALL(readlink, BOTH),
	CALL(readlinkat, BOTH),
	CALL(getdents64, BOTH),
	CALL(getcwd, BOTH),
	CALL(fadvise64, BOTH),
	CALL(mkdir, MOVE),
	CALL(mkdirat, MOVE),
	CALL(rename, MOVE),
	CALL(renameat, MOVE),
	CALL(renameat2, MOVE),
	CALL(unlink, BOTH), /* the guardian tidies up */
	CALL(unlinkat, BOTH),
	CALL(fchmod, MOVE),
	CALL(ftruncate, MOVE),
	CALL(fallocate, MOVE),
	CALL(fsync, MOVE),
	CALL(fdatasync, MOVE),
	CALL(flock, MOVE),
	CALL(umask, MOVE),

	/* sockets */
	IF(socket, BOTH, 0, AF_UNIX),
	IF(socket, MOVE, 0, AF_INET),
	IF(socket, MOVE, 0, AF_INET6),
	IF(socket, MOVE, 0, AF_NETLINK),
	IF(socketpair, BOTH, 0, AF_UNIX),
	CALL(connect, BOTH),
	CALL(bind, MOVE),
	CALL(listen, MOVE),
	CALL(accept, MOVE),
	CALL(accept4, MOVE),
	CALL(shutdown, BOTH),
	CALL(sendto, BOTH),
	CALL(sendmsg, BOTH),
	CALL(sendmmsg, MOVE),
	CALL(recvfrom, BOTH),
	CALL(recvmsg, BOTH),
	CALL(recvmmsg, MOVE),
	CALL(getsockopt, BOTH),
	CALL(setsockopt, BOTH),
	CALL(getsockname, BOTH),
	CALL(getpeername, BOTH),

	/* requests to devices: userfaultfd, page tables, RDMA, sockets; of a terminal, what it is */
	IOCTLS_OF(0xaa, MOVE),
	IOCTLS_OF('f', MOVE),
	IOCTLS_OF(0x1b, MOVE),
	IOCTLS_OF(0x89, MOVE),
	IF(ioctl, BOTH, 1, 0x5401), /* TCGETS */
	IF(ioctl, MOVE, 1, 0x5413), /* TIOCGWINSZ */
	IF(ioctl, MOVE, 1, 0x541b), /* FIONREAD */
	IF(ioctl, MOVE, 1, 0x5421), /* FIONBIO */

	/* other processes */
	CALL(pidfd_open, BOTH),
	CALL(ptrace, REACH),
	CALL(pidfd_getfd, REACH),
	CALL(pidfd_send_signal, REACH),
};

static int add_rules(scmp_filter_ctx ctx, enum base_filter filter,
		     const struct base_filter_pids *pids)
{
	for (size_t i = 0; i < BASE_ARRAY_LEN(rules); i++) {
		const struct rule *r = &rules[i];
		/* Calls that this processor does not have are passed over. */
		int code = r->filters & 1u << filter ? seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW,
									      r->call, r->n, r->arg)
						     : 0;
		if (code < 0)
			return code;
	}
	pid_t may_signal[BASE_FILTER_PIDS + 1] = { getpid() };
	for (unsigned i = 0; pids && i < BASE_FILTER_PIDS; i++)
		may_signal[i + 1] = pids->pid[i];
	for (size_t i = 0; i < BASE_ARRAY_LEN(may_signal); i++) {
		const struct scmp_arg_cmp is_it = { 0, SCMP_CMP_EQ, (scmp_datum_t)may_signal[i],
						    0 };
		if (!may_signal[i])
			continue;
		int code = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(kill), 1, &is_it);
		if (code == 0 && i == 0) /* abort() */
			code = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
						      &is_it);
		if (code < 0)
			return code;
	}
	return 0;
}

int base_filter_calls(enum base_filter filter, const struct base_filter_pids *pids,
		      struct mf_error *err)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
	if (!ctx)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_HOST, "sandbox: a seccomp filter");
	(void)seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (base_debug_on())
		(void)seccomp_attr_set(ctx, SCMP_FLTATR_CTL_LOG, 1);
	int code = add_rules(ctx, filter, pids);
	if (code == 0)
		code = seccomp_load(ctx);
	seccomp_release(ctx);
	if (code == -ECANCELED || code == -EINVAL)
		code = -MF_EKERNEL; /* what libseccomp makes of a kernel that does not take it */
	return code < 0 ? base_error_sys(err, code, MF_SCOPE_HOST, "sandbox: a seccomp filter") : 0;
}
