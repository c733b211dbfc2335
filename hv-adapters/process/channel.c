/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/process/channel.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/pass.h"

enum {
	KILL_MS = 5000, /* a killed process is gone long before */
};

static int gone(const struct channel *ch, struct mf_error *err)
{
	return base_error(err, -ESRCH, MF_SCOPE_SESSION,
			  "demo guest: its process %d has died; start the move again",
			  (int)ch->pid);
}

/* No handler of ours may run in the child before it has put them all back. */
static pid_t fork_guest(struct guest *g, int control)
{
	sigset_t all, before;
	pid_t parent = getpid();

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &before);
	pid_t pid = fork();
	if (!pid)
		guest_main(g, control, parent);
	int saved = errno;
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	errno = saved;
	return pid;
}

int channel_spawn(struct guest *g, struct channel *ret, struct mf_error *err)
{
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "demo guest: socketpair");
	base_autofd ours = pair[0];
	base_autofd theirs = pair[1];

	struct channel ch = { .pid = fork_guest(g, theirs), .pidfd = -1, .sock = -1 };
	if (ch.pid < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "demo guest: fork");
	ch.pidfd = pidfd_open(ch.pid, 0);
	if (ch.pidfd < 0) {
		int code = -errno;
		(void)channel_end(&ch, 0);
		return base_error_sys(err, code, MF_SCOPE_HOST, "demo guest: pidfd_open");
	}
	ch.sock = base_take_fd(&ours);
	*ret = ch;
	return 0;
}

int channel_alive(const struct channel *ch, struct mf_error *err)
{
	struct pollfd fd = { .fd = ch->pidfd, .events = POLLIN };

	if (!ch->pid || poll(&fd, 1, 0) > 0)
		return gone(ch, err);
	return 0;
}

/* One answer, whichever request it is for: 0, -EAGAIN, or what is wrong. */
static int take_answer(struct channel *ch, struct control_message *msg, int *ret_fd,
		       struct mf_error *err)
{
	ssize_t got = base_receive_fd(ch->sock, msg, sizeof(*msg), ret_fd, MSG_DONTWAIT);
	if (got == -EAGAIN)
		return -EAGAIN;
	if (got <= 0)
		return gone(ch, err);
	if ((size_t)got < offsetof(struct control_message, bytes) || msg->len > STATE_MAX ||
	    (size_t)got != control_size(msg))
		return base_error(err, -EBADMSG, MF_SCOPE_SESSION,
				  "demo guest: its process answers nonsense");
	return 0;
}

int channel_call(struct channel *ch, struct control_message *msg, int *ret_fd, uint64_t deadline_us,
		 struct mf_error *err)
{
	if (!ch->pid)
		return gone(ch, err);
	msg->seq = ++ch->seq;
	/* A request is one datagram into an empty queue: it fits, or the process has not answered before. */
	if (send(ch->sock, msg, control_size(msg), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
		if (errno == EPIPE || errno == ECONNRESET)
			return gone(ch, err);
		return base_error_sys(err, -errno, MF_SCOPE_SESSION,
				      "demo guest: its process takes no orders");
	}
	for (;;) {
		base_autofd fd = -1;
		int rc = take_answer(ch, msg, &fd, err);
		if (!rc && msg->seq == ch->seq) {
			if (ret_fd)
				*ret_fd = base_take_fd(&fd);
			return msg->code;
		}
		if (!rc) /* to a request that was given up */
			continue;
		if (rc != -EAGAIN)
			return rc;
		struct pollfd wait = { .fd = ch->sock, .events = POLLIN };
		int left = base_left_ms(deadline_us);
		if (!left)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
					  "demo guest: its process %d does not answer",
					  (int)ch->pid);
		(void)poll(&wait, 1, left);
	}
}

static bool wait_exit(const struct channel *ch, uint64_t deadline_us)
{
	struct pollfd fd = { .fd = ch->pidfd, .events = POLLIN };
	int rc, left;

	if (ch->pidfd < 0)
		return false;
	do {
		left = base_left_ms(deadline_us);
		rc = poll(&fd, 1, left);
	} while (rc < 0 && errno == EINTR);
	return rc > 0;
}

int channel_end(struct channel *ch, uint64_t deadline_us)
{
	int status = 0;
	bool reaped = false;

	if (!ch->pid)
		return -1;
	if (!wait_exit(ch, deadline_us)) {
		(void)kill(ch->pid, SIGKILL);
		(void)wait_exit(ch, base_deadline_ms(KILL_MS));
	}
	if (ch->pidfd >= 0)
		reaped = waitpid(ch->pid, &status, WNOHANG) == ch->pid;
	else
		reaped = waitpid(ch->pid, &status, 0) == ch->pid;
	ch->pid = 0;
	base_closep(&ch->pidfd);
	base_closep(&ch->sock);
	return reaped && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
