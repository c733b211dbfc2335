/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The guardian: a child that sleeps until its program dies without a goodbye, and then gives the move up.
 *
 *   program                                      guardian
 *   fork ──────────────────────────────────────▶ lets go of all descriptors, signals, the terminal
 *   mf_guard_start() ◀────────────────── READY
 *   … the move …                                 sleeps
 *   mf_guard_end() ─── GOODBYE ────────────────▶ ends
 *   or it dies                                   hand-off record there: ends
 *                                                else the adapter's bring_back(), until it succeeds
 *
 * Of what the program may do it keeps what reaching into the guest takes (attach_confine()).  It acts when the program's last thread is gone, which its pidfd tells: nobody can write a record any more.  No record
 * means that COMMIT was not sent, as it is on disk before.  Whatever it cannot make out counts as a record.
 */
#include <memferry/guests.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "hv-adapters/adapters.h"
#include "hv-adapters/attach/helper.h"

enum {
	READY_MS = 5000,
	END_MS = 5000,
	BRING_BACK_MS = 60000,
	RETRY_MS = 100,
};

struct mf_guard {
	pid_t pid;
	int socket;
};

/* In the guardian. */
struct watch {
	const struct mf_guard_params *params;
	const struct mf_adapter *guest;
	struct hv_target guarded;
	pid_t program;
	int socket; /* to the program */
	int program_fd, guest_fd;
	struct stat run_dir; /* as it was */
};

/* ---- the guardian ---- */

static int open_process(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	return fd < 0 ? -errno : fd;
}

static bool has_ended(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	return poll(&p, 1, 0) != 0;
}

/* Keeps the socket only: whoever waits for the program's output to end must not wait for us, and QEMU's monitor is free
 * again when the program's own connection is closed. */
static int let_go_of_all(struct watch *w)
{
	sigset_t all;
	(void)sigfillset(&all);
	(void)sigprocmask(SIG_SETMASK, &all, NULL);
	(void)setsid();
	(void)prctl(PR_SET_NAME, "memferry-guard");
	if (w->socket != STDIN_FILENO && dup2(w->socket, STDIN_FILENO) < 0)
		return -errno;
	w->socket = STDIN_FILENO;
	if (syscall(SYS_close_range, STDIN_FILENO + 1, ~0u, 0) < 0)
		return -errno;
	if (open("/dev/null", O_WRONLY) != STDOUT_FILENO || dup2(STDOUT_FILENO, STDERR_FILENO) < 0)
		return -EIO;
	return 0;
}

static int begin_watch(struct watch *w)
{
	attach_helper_forget(); /* it ends with the program */
	int r = let_go_of_all(w);
	if (r == 0)
		r = w->program_fd = open_process(w->program);
	if (r >= 0 && getppid() != w->program)
		r = -ESRCH; /* it died meanwhile, and nothing had begun */
	if (r >= 0)
		r = w->guest_fd = open_process(w->guarded.pid);
	if (r >= 0 && stat(w->params->run_dir, &w->run_dir) < 0)
		r = -errno;
	if (r >= 0)
		r = attach_confine(w->guarded.pid, NULL);
	return r < 0 ? r : 0;
}

/* True: it said goodbye.  False: it is dead, with all its threads. */
static bool wait_for_end(const struct watch *w)
{
	struct pollfd p[2] = {
		{ .fd = w->socket, .events = POLLIN },
		{ .fd = w->program_fd, .events = POLLIN },
	};
	for (;;) {
		if (poll(p, 2, -1) < 0)
			continue;
		char goodbye;
		if (p[0].revents && read(w->socket, &goodbye, 1) == 1)
			return true;
		if (p[0].revents)
			p[0].fd = -1; /* dying: its descriptors are closed first */
		if (p[1].revents)
			return false;
	}
}

/* Only when the very directory that it would be in does not have it. */
static bool is_uncommitted(const struct watch *w)
{
	char path[512];
	struct stat now;
	int len = snprintf(path, sizeof(path), "%s/%s.source.record", w->params->run_dir,
			   w->params->session);
	if (len < 0 || (size_t)len >= sizeof(path))
		return false;
	if (stat(w->params->run_dir, &now) < 0 || now.st_dev != w->run_dir.st_dev ||
	    now.st_ino != w->run_dir.st_ino)
		return false;
	return lstat(path, &now) < 0 && errno == ENOENT;
}

static void remove_leavings(const struct watch *w)
{
	static const char *const names[] = { "record.new", "lock" };
	for (size_t i = 0; i < BASE_ARRAY_LEN(names); i++) {
		char path[512];
		int len = snprintf(path, sizeof(path), "%s/%s.source.%s", w->params->run_dir,
				   w->params->session, names[i]);
		if (len > 0 && (size_t)len < sizeof(path))
			(void)unlink(path);
	}
	if (w->params->stale)
		(void)unlink(w->params->stale);
}

static int bring_back(const struct watch *w, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(BRING_BACK_MS);
	for (;;) {
		*err = (struct mf_error){ 0 };
		int r = has_ended(w->guest_fd) ? -ESRCH : w->guarded.bring_back(w->guest->hv, err);
		if (r >= 0 || r == -ESRCH || !base_left_ms(deadline))
			return r;
		(void)poll(NULL, 0, RETRY_MS);
	}
}

static void guard(struct watch *w)
{
	int r = begin_watch(w);
	if (send(w->socket, &r, sizeof(r), MSG_NOSIGNAL) != sizeof(r) && r == 0)
		r = -ESRCH;
	if (r < 0 || wait_for_end(w))
		return;
	openlog("memferry-guard", LOG_PID, LOG_DAEMON);
	if (!is_uncommitted(w)) {
		syslog(LOG_WARNING,
		       "move %s: memferry (pid %d) was killed after the commit; the guest of pid "
		       "%d is "
		       "left as it is: look at the destination before resuming it",
		       w->params->session, (int)w->program, (int)w->guarded.pid);
		return;
	}
	struct mf_error err;
	r = bring_back(w, &err);
	remove_leavings(w);
	if (r < 0)
		syslog(LOG_ERR, "move %s: the guest of pid %d could not be brought back: %s",
		       w->params->session, (int)w->guarded.pid,
		       err.code ? err.msg : base_strerror(r));
	else
		syslog(LOG_NOTICE,
		       "move %s: memferry (pid %d) was killed; the guest of pid %d runs as before "
		       "it",
		       w->params->session, (int)w->program, (int)w->guarded.pid);
}

/* ---- the program ---- */

static int await_ready(int fd, int *ret_code)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint64_t deadline = base_deadline_ms(READY_MS);
	int r;
	do
		r = poll(&p, 1, base_left_ms(deadline));
	while (r < 0 && errno == EINTR);
	if (r == 0)
		return -ETIMEDOUT;
	return recv(fd, ret_code, sizeof(*ret_code), MSG_DONTWAIT) == sizeof(*ret_code) ? 0
											: -ECHILD;
}

/* It ends by itself; one that does not is ended. */
static void reap(struct mf_guard *g, uint64_t deadline_us)
{
	struct pollfd p = { .fd = g->socket, .events = POLLIN };
	int r;
	do
		r = poll(&p, 1, base_left_ms(deadline_us));
	while (r < 0 && errno == EINTR);
	if (r <= 0)
		(void)kill(g->pid, SIGKILL);
	base_closep(&g->socket);
	while (waitpid(g->pid, NULL, 0) < 0 && errno == EINTR)
		;
	free(g);
}

int mf_guard_start(const struct mf_adapter *guest, const struct mf_guard_params *params,
		   struct mf_guard **ret, struct mf_error *err)
{
	*ret = NULL;
	if (params->size < sizeof(*params))
		return base_error(err, -EINVAL, MF_SCOPE_HOST,
				  "guardian: mf_guard_params.size is not set");
	struct hv_target guarded = hv_find_target(guest);
	if (!guarded.bring_back)
		return 0;
	struct mf_guard *g = calloc(1, sizeof(*g));
	int pair[2];
	if (!g)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "guardian: no memory");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
		free(g);
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "guardian");
	}
	base_autofd theirs = pair[1];
	g->socket = pair[0];
	struct watch w = {
		.params = params,
		.guest = guest,
		.guarded = guarded,
		.program = getpid(),
		.socket = theirs,
	};
	g->pid = fork();
	if (g->pid == 0) {
		guard(&w);
		_exit(0);
	}
	if (g->pid < 0) {
		int r = -errno;
		base_closep(&g->socket);
		free(g);
		return base_error_sys(err, r, MF_SCOPE_HOST, "guardian");
	}
	base_closep(&theirs);
	int code = 0;
	int r = await_ready(g->socket, &code);
	if (r == 0)
		r = code;
	if (r < 0) {
		reap(g, base_now_us());
		return base_error_sys(err, r, MF_SCOPE_HOST, "guardian");
	}
	*ret = g;
	return 0;
}

pid_t mf_guard_pid(const struct mf_guard *g)
{
	return g ? g->pid : 0;
}

void mf_guard_end(struct mf_guard *g)
{
	if (!g)
		return;
	(void)send(g->socket, "", 1, MSG_NOSIGNAL);
	reap(g, base_deadline_ms(END_MS));
}
