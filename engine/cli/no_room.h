/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Guest RAM that cannot be touched: the tmpfs that it is on is full, no huge page is left, or the hardware has lost it.  The
 * kernel says so by SIGBUS, to whichever thread touches it, which may be deep in a library.  The process says what happened
 * and what to do, and ends there, which the other side, the guardian and --resume take as they take a kill.
 */
#ifndef CLI_NO_ROOM_H
#define CLI_NO_ROOM_H

#include <memferry/session.h>

/* For the rest of this process.  0 or a negative code. */
int cli_no_room_watch(enum mf_side side, struct mf_error *err);
/* Its record, where there is one, says that something may be committed; "": it has no name yet.  One thread calls this. */
void cli_no_room_session(const char *run_dir, const char *session);

#endif
