/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the kernel shows of another process to those only who may trace it.  Done by this process, or, when that has
 * given its privilege up, by a helper that still has it (hv-adapters/attach/helper.h).
 */
#ifndef BASE_REACH_H
#define BASE_REACH_H

#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/freeze.h"
#include "base/placement.h"

enum base_reach_file {
	BASE_REACH_MAPS,
	BASE_REACH_PAGEMAP,
	BASE_REACH_CLEAR_REFS, /* for writing */
	BASE_REACH_MOUNTINFO,
	BASE_REACH_STAT,  /* hidden where /proc hides what is another user's */
	BASE_REACH_FILES, /* how many there are */
};

/* A descriptor of a file in /proc/PID; pid 0: this process.  tid: in that of one of its threads; 0: of the process.
 * -errno on failure. */
int base_reach_open(pid_t pid, pid_t tid, enum base_reach_file file);
/* For reading as text; NULL with errno. */
FILE *base_reach_fopen(pid_t pid, enum base_reach_file file);
/* 1: a descriptor of the process is one of vhost's; 0: none; -errno. */
int base_reach_has_vhost(pid_t pid);

/* What a helper does instead, of the functions above and of those in freeze.h and placement.h. */
struct base_reach {
	int (*open)(pid_t pid, pid_t tid, enum base_reach_file file);
	int (*has_vhost)(pid_t pid);
	int (*freeze)(pid_t pid, base_frozen_fn fn, void *ctx, struct mf_error *err);
	int (*find_memory)(pid_t pid, uint64_t addr, uint64_t len, uint64_t page_size,
			   struct base_place_memory *memory, struct mf_error *err);
};

/* From now on, for all processes but this one; NULL: nobody.  While there are no other threads. */
void base_reach_use(const struct base_reach *helper);
/* The helper for a process, or NULL: it is for us to do. */
const struct base_reach *base_reach_helper(pid_t pid);

#endif
