/* SPDX-License-Identifier: BSD-2-Clause */
#include "no_room.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"

#include "report.h"

/* Written before is_named says so, for a handler that may run in any thread and format nothing. */
static struct {
	enum mf_side side;
	bool has_live_line;
	atomic_bool is_named;
	char session[MF_SESSION_NAME_MAX];
	char record[PATH_MAX + MF_SESSION_NAME_MAX + 32];
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
	bool is_lost = info->si_code == BUS_MCEERR_AR || info->si_code == BUS_MCEERR_AO;
	if (info->si_code != BUS_ADRERR && !is_lost) {
		/* A defect, or somebody's kill(): as if we were not there. */
		(void)signal(sig, SIG_DFL);
		(void)raise(sig);
		return;
	}
	/* One of several threads speaks; it ends them all. */
	while (atomic_flag_test_and_set(&watch.said))
		(void)poll(NULL, 0, -1);
	/* What is on disk decides, not what this process has heard of it. */
	bool is_recorded = atomic_load_explicit(&watch.is_named, memory_order_acquire) &&
			   access(watch.record, F_OK) == 0;
	if (watch.has_live_line)
		say("\r\033[K");
	say(is_lost ? "memferry: a memory error of this host's hardware has taken a page of the "
		      "guest's RAM"
		    : "memferry: there is no room for a page of the guest's RAM: the file system "
		      "that it is on "
		      "is full, or no huge page is left");
	if (is_recorded)
		say(watch.go_on);
	else if (watch.side == MF_SOURCE)
		say("; nothing was committed, the guest stays as it was\n");
	else
		say("; nothing was committed, the guest runs on at the source\n");
	_exit(is_recorded ? CLI_EXIT_UNFINISHED : CLI_EXIT_FAILED);
}

int cli_no_room_watch(enum mf_side side, struct mf_error *err)
{
	const struct sigaction action = { .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO };

	watch.side = side;
	watch.has_live_line = isatty(STDERR_FILENO);
	if (sigaction(SIGBUS, &action, NULL))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "signals");
	return 0;
}

void cli_no_room_session(const char *run_dir, const char *session)
{
	bool is_source = watch.side == MF_SOURCE;

	if (!strcmp(session, watch.session))
		return;
	atomic_store_explicit(&watch.is_named, false, memory_order_relaxed);
	(void)snprintf(watch.session, sizeof(watch.session), "%s", session);
	(void)snprintf(watch.record, sizeof(watch.record), "%s/%s.%s.record", run_dir, session,
		       is_source ? "source" : "destination");
	(void)snprintf(watch.go_on, sizeof(watch.go_on),
		       "; mend that, then 'memferry %s --resume %s' goes on\n",
		       is_source ? "send" : "receive", session);
	atomic_store_explicit(&watch.is_named, session[0] != '\0', memory_order_release);
}
