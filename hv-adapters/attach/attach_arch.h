/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What differs between processors: where a system call keeps its number, arguments and result, and how the
 * kernel notes that one is to be repeated.  Private to this folder; one .c file a processor.
 */
#ifndef ATTACH_ARCH_H
#define ATTACH_ARCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

/* The kernel's own codes for "repeat this call"; a program never sees them, a tracer does. */
enum {
	ATTACH_ERESTARTSYS = 512,    /* repeat, or EINTR after a handler without SA_RESTART */
	ATTACH_ERESTARTNOINTR = 513, /* repeat always */
	ATTACH_ERESTARTNOHAND = 514, /* repeat, or EINTR after any handler */
	ATTACH_ERESTART_RESTARTBLOCK =
		516, /* go on by restart_syscall, or EINTR after any handler */
};

#if defined(__x86_64__)
#define ATTACH_INSN        "\x0f\x05" /* syscall */
#define ATTACH_INSN_LEN    2u
#define ATTACH_INSN_ALIGN  1u
#define ATTACH_ELF_MACHINE 62
#define ATTACH_ARCH_NAME   "64-bit x86"

struct attach_regs {
	struct user_regs_struct gp;
};
#elif defined(__aarch64__)
#define ATTACH_INSN        "\x01\x00\x00\xd4" /* svc #0 */
#define ATTACH_INSN_LEN    4u
#define ATTACH_INSN_ALIGN  4u
#define ATTACH_ELF_MACHINE 183
#define ATTACH_ARCH_NAME   "64-bit arm"

struct attach_regs {
	struct user_regs_struct gp; /* user_pt_regs */
	int nr;                     /* NT_ARM_SYSTEM_CALL; -1: in none */
};
#else
#error "attach knows 64-bit x86 and 64-bit arm"
#endif

/* -EOPNOTSUPP when the thread is a 32-bit one, else -errno of ptrace. */
int attach_arch_get(pid_t tid, struct attach_regs *ret);
int attach_arch_set(pid_t tid, const struct attach_regs *regs);

uint64_t attach_arch_pc(const struct attach_regs *regs);
void attach_arch_set_pc(struct attach_regs *regs, uint64_t pc);

/* From a thread outside system calls: one that is about to run a call by the instruction at insn. */
void attach_arch_load_call(struct attach_regs *regs, uint64_t insn, long nr,
			   const unsigned long args[6]);
/* From a thread at the entry of its own call: one at the entry of another call. */
void attach_arch_replace_call(struct attach_regs *regs, long nr, const unsigned long args[6]);
/* At the exit of a call. */
long attach_arch_result(const struct attach_regs *regs);

/*
 * Will the kernel repeat the system call in which the thread was stopped?  Then *ret_insn is where its instruction
 * should be, for the caller to check: on arm this says yes to everything, and the instruction decides.
 */
bool attach_arch_will_repeat(const struct attach_regs *stopped, uint64_t *ret_insn);
/* From a thread at the entry of its own call: one that was interrupted in it, for the kernel to repeat or to end with
 * EINTR as signals demand.  `stopped` is what attach_arch_will_repeat() saw. */
void attach_arch_interrupted(struct attach_regs *entry, const struct attach_regs *stopped);

#endif
