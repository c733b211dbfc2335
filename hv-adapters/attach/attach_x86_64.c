/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * 64-bit x86.  The kernel decides about repeating a call when the thread leaves for user space, after the stop that
 * ptrace shows: orig_rax not -1 means "was in a call", rax then holds the restart code, and rip is behind the
 * instruction.  So all of that state is visible here, and writing it back restores it.
 */
#include <elf.h>
#include <errno.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include "hv-adapters/attach/attach_arch.h"

enum { CS_64BIT = 0x33 };

int attach_arch_get(pid_t tid, struct attach_regs *ret)
{
	struct iovec iov = { &ret->gp, sizeof(ret->gp) };

	if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &iov) < 0)
		return -errno;
	/* A shorter set is a 32-bit task's; a 64-bit one may still be in a 32-bit code segment. */
	if (iov.iov_len != sizeof(ret->gp) || ret->gp.cs != CS_64BIT)
		return -EOPNOTSUPP;
	return 0;
}

int attach_arch_set(pid_t tid, const struct attach_regs *regs)
{
	struct iovec iov = { (void *)&regs->gp, sizeof(regs->gp) };

	return ptrace(PTRACE_SETREGSET, tid, (void *)NT_PRSTATUS, &iov) < 0 ? -errno : 0;
}

uint64_t attach_arch_pc(const struct attach_regs *regs)
{
	return regs->gp.rip;
}

void attach_arch_set_pc(struct attach_regs *regs, uint64_t pc)
{
	regs->gp.rip = pc;
}

static void put_args(struct attach_regs *regs, const unsigned long args[6])
{
	regs->gp.rdi = args[0];
	regs->gp.rsi = args[1];
	regs->gp.rdx = args[2];
	regs->gp.r10 = args[3];
	regs->gp.r8 = args[4];
	regs->gp.r9 = args[5];
}

void attach_arch_load_call(struct attach_regs *regs, uint64_t insn, long nr,
			   const unsigned long args[6])
{
	put_args(regs, args);
	regs->gp.rip = insn;
	regs->gp.rax = (unsigned long)nr;
	/* Not in a call: or the kernel would rewind rip when rax looks like a restart code. */
	regs->gp.orig_rax = -1UL;
}

void attach_arch_replace_call(struct attach_regs *regs, long nr, const unsigned long args[6])
{
	put_args(regs, args);
	regs->gp.orig_rax = (unsigned long)nr;
}

long attach_arch_result(const struct attach_regs *regs)
{
	return (long)regs->gp.rax;
}

bool attach_arch_will_repeat(const struct attach_regs *stopped, uint64_t *ret_insn)
{
	if ((long)stopped->gp.orig_rax < 0)
		return false;
	switch (-(long)stopped->gp.rax) {
	case ATTACH_ERESTARTSYS:
	case ATTACH_ERESTARTNOINTR:
	case ATTACH_ERESTARTNOHAND:
	case ATTACH_ERESTART_RESTARTBLOCK:
		*ret_insn = stopped->gp.rip - ATTACH_INSN_LEN;
		return true;
	default:
		return false;
	}
}

void attach_arch_interrupted(struct attach_regs *entry, const struct attach_regs *stopped)
{
	entry->gp.rax = stopped->gp.rax;
}
