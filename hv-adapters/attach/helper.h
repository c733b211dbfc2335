/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A process of our own that reaches into one other for a program that gives up the privilege to.
 *
 *   program                                     helper "memferry-attach"                target
 *   attach_helper_start() ── fork ────────────▶ pidfd of the target
 *                                               few capabilities, a filter
 *                         ◀──────────────────── ready
 *   drops its privilege
 *   attach_*(), base_reach_*() ── request ────▶ does it ──────────── ptrace, /proc ────▶
 *                         ◀── code, descriptor
 *   ends, or is killed ── end of file ────────▶ finishes what it is at, and ends
 *
 * It serves the requests of helper_wire.h and no others, for that target alone, as long as that lives.  The program may
 * be taken over by whoever it talks to: so ranges must be shared files, descriptors userfaultfds, and files those named
 * in base/reach.h.  Killed, it is missed by the program only: the kernel lets go of what it had stopped (X7).
 */
#ifndef ATTACH_HELPER_H
#define ATTACH_HELPER_H

#include <sys/types.h>

#include "base/error.h"

struct mf_attach; /* memferry/guests.h */

/* From now on all that attach.h and base/reach.h do goes through it.  Forks: while there are no other threads. */
int attach_helper_start(pid_t target, struct mf_attach **ret, struct mf_error *err);
pid_t attach_helper_pid(const struct mf_attach *helper);
/* Ends it and waits until it is gone.  NULL: nothing. */
void attach_helper_end(struct mf_attach *helper);
/* In a process forked from the program: all is done here again. */
void attach_helper_forget(void);

/* For a process of ours that reaches into the target and does nothing else: what else it may do is given up. */
int attach_confine(pid_t target, struct mf_error *err);

#endif
