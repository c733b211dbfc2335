/* SPDX-License-Identifier: BSD-2-Clause */
#include "no_room.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"

#include "report.h"

/* What the handler needs is written before, and published by is_committed. */
static struct {
	enum mf_side side;
	atomic_bool is_committed;
	char go_on[160];
	atomic_flag said;
} watch = { .said = ATOMIC_FLAG_INIT };

static void say(const char *text)
{
	size_t len = strlen(text);

	while (len) {
		ssize_t n = write(STDERR_FILENO, text, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		text += n;
		len -= (size_t)n;
	}
}

static void on_bus_error(int sig, siginfo_t *info, void *context)
{
	(void)context;
	bool is_lost = info->si_code == BUS_MCEERR_AR;
	if (info->si_code != BUS_ADRERR && !is_lost) {
		(void)signal(sig, SIG_DFL); /* ours: the same again, and its end */
		return;
	}
	/* One of several threads speaks; it ends them all. */
	while (atomic_flag_test_and_set(&watch.said))
		(void)pause();
	say(is_lost ? "memferry: a memory error of this host's hardware has taken a page of the "
		      "guest's RAM"
		    : "memferry: there is no room for a page of the guest's RAM: the file system "
		      "that it is on is full, or no huge "
		      "page is left");
	if (!atomic_load_explicit(&watch.is_committed, memory_order_acquire)) {
		say(watch.side == MF_SOURCE
			    ? "; nothing was committed, the guest stays as it was\n"
			    : "; nothing was committed, the guest runs on at the source\n");
		_exit(CLI_EXIT_FAILED);
	}
	say(watch.go_on);
	_exit(CLI_EXIT_UNFINISHED);
}

int cli_no_room_watch(enum mf_side side, struct mf_error *err)
{
	const struct sigaction action = { .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO };

	watch.side = side;
	if (sigaction(SIGBUS, &action, NULL))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "signals");
	return 0;
}

void cli_no_room_phase(enum mf_phase phase, const char *session)
{
	if (phase < MF_PHASE_HANDOFF || phase == MF_PHASE_DONE ||
	    atomic_load_explicit(&watch.is_committed, memory_order_relaxed))
		return;
	(void)snprintf(watch.go_on, sizeof(watch.go_on),
		       "; mend that, then 'memferry %s --resume %s' goes on\n",
		       watch.side == MF_SOURCE ? "send" : "receive", session);
	atomic_store_explicit(&watch.is_committed, true, memory_order_release);
}
