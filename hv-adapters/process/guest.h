/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Inside the demo guest's process: the writers, and the control thread that commands them.
 *
 * Thread rule: the control thread never touches guest RAM, not even through a system call that would: a page may be
 * missing, and then only a writer may wait for it.  A writer in such a wait answers no order; the control thread's
 * own waits have deadlines.
 */
#ifndef HV_PROCESS_GUEST_H
#define HV_PROCESS_GUEST_H

#include <sys/types.h>

#include "hv-adapters/process/options.h"

struct guest;

/* In the parent, before the fork: maps nothing, makes no thread.  ram: where the regions are mapped, equal sizes. */
struct guest *guest_create(const struct options *opt, void *const ram[static GUEST_REGIONS]);
void guest_free(struct guest *g);

/* In the child: serves the control socket until it closes or says end. */
_Noreturn void guest_main(struct guest *g, int control, pid_t parent);

#endif
