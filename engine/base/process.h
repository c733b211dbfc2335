/* SPDX-License-Identifier: BSD-2-Clause */
/* Which process a number means: numbers are given again, and are others in another namespace. */
#ifndef BASE_PROCESS_H
#define BASE_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

/* 0 in `started` or `pid_ns`: not known. */
struct base_process {
	int pid;          /* as this process's namespace has it; 0: none */
	uint64_t started; /* clock ticks after the boot, proc(5) */
	uint64_t pid_ns;  /* inode of the namespace that pid is a number in */
};

/* Of another process or this one; what cannot be found out is 0. */
void base_process_identify(int pid, struct base_process *ret);
/* False: pid is a number in another namespace, and says nothing here. */
bool base_process_is_ours(const struct base_process *process);
/* The process of this namespace with that number is that one, for all that is known. */
bool base_process_is(const struct base_process *process, int pid);
/* False only when it has ended for certain. */
bool base_process_lives(const struct base_process *process);

#endif
