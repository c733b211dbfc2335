/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the threads beside the session thread may do with a running session: look and ask.  Both
 * calls may come from any thread.  A table, so that tests can stand in for a session.
 */
#ifndef CLI_VIEW_H
#define CLI_VIEW_H

#include <memferry/session.h>

struct cli_view {
	void (*progress)(void *session, struct mf_progress *ret);
	void (*request)(void *session, enum mf_request request);
	void *session;
};

#endif
