/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * 64-bit arm.  The kernel prepares a repetition before the stop that ptrace shows: pc already points at the svc again,
 * x0 holds the first argument again, and the restart code is in a kernel variable that no register shows and
 * that is lost when pc changes.  Hence the way by the entry of the thread's own call (attach.c): there orig_x0 is that
 * call's, and at the exit a state "interrupted in it" can be written that the kernel takes up by itself.
 *
 * x7 reads as 0 or 1 at the stops of a call and cannot be written there; the kernel keeps the real one.
 */
#include <elf.h>
#include <errno.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "hv-adapters/attach/attach_arch.h"

#ifndef NT_ARM_SYSTEM_CALL
#define NT_ARM_SYSTEM_CALL 0x404
#endif

int attach_arch_get(pid_t tid, struct attach_regs *ret)
{
	struct iovec iov = { &ret->gp, sizeof(ret->gp) };

	if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &iov) < 0)
		return -errno;
	if (iov.iov_len != sizeof(ret->gp))
		return -EOPNOTSUPP;
	iov = (struct iovec){ &ret->nr, sizeof(ret->nr) };
	return ptrace(PTRACE_GETREGSET, tid, (void *)NT_ARM_SYSTEM_CALL, &iov) < 0 ? -errno : 0;
}

int attach_arch_set(pid_t tid, const struct attach_regs *regs)
{
	struct iovec iov = { (void *)&regs->gp, sizeof(regs->gp) };

	if (ptrace(PTRACE_SETREGSET, tid, (void *)NT_PRSTATUS, &iov) < 0)
		return -errno;
	iov = (struct iovec){ (void *)&regs->nr, sizeof(regs->nr) };
	return ptrace(PTRACE_SETREGSET, tid, (void *)NT_ARM_SYSTEM_CALL, &iov) < 0 ? -errno : 0;
}

uint64_t attach_arch_pc(const struct attach_regs *regs)
{
	return regs->gp.pc;
}

void attach_arch_set_pc(struct attach_regs *regs, uint64_t pc)
{
	regs->gp.pc = pc;
}

static void put_call(struct attach_regs *regs, long nr, const unsigned long args[6])
{
	for (int i = 0; i < 6; i++)
		regs->gp.regs[i] = args[i];
	regs->gp.regs[8] = (unsigned long)nr;
}

void attach_arch_load_call(struct attach_regs *regs, uint64_t insn, long nr,
			   const unsigned long args[6])
{
	put_call(regs, nr, args);
	regs->gp.pc = insn;
	regs->nr = -1;
}

void attach_arch_replace_call(struct attach_regs *regs, long nr, const unsigned long args[6])
{
	put_call(regs, nr, args);
	regs->nr = (int)nr;
}

long attach_arch_result(const struct attach_regs *regs)
{
	return (long)regs->gp.regs[0];
}

bool attach_arch_will_repeat(const struct attach_regs *stopped, uint64_t *ret_insn)
{
	/* A thread that had merely come to its svc is taken for one to be repeated; its call has the same effect. */
	*ret_insn = stopped->gp.pc;
	return true;
}

void attach_arch_interrupted(struct attach_regs *entry, const struct attach_regs *stopped)
{
	long code = ATTACH_ERESTARTSYS;

	(void)stopped; /* does not tell; the call does */
	switch (entry->nr) {
	case SYS_restart_syscall:
		code = ATTACH_ERESTART_RESTARTBLOCK;
		break;
	case SYS_ppoll:
	case SYS_pselect6:
	case SYS_rt_sigsuspend:
	case SYS_clock_nanosleep: /* up to a point in time; a span comes back as restart_syscall */
		code = ATTACH_ERESTARTNOHAND;
		break;
	case SYS_clone:
	case SYS_clone3:
		code = ATTACH_ERESTARTNOINTR;
		break;
	default:
		break;
	}
	entry->gp.regs[0] = (unsigned long)-code;
}
