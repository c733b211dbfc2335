/* SPDX-License-Identifier: BSD-2-Clause */
/* Starting and ending the helper, and asking it. */
#include "hv-adapters/attach/helper.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/privilege.h"
#include "base/reach.h"
#include "hv-adapters/attach/attach_proc.h"
#include "hv-adapters/attach/helper_wire.h"

enum {
	READY_MS = 5000,
	END_MS = 5000,
	/* Longer than the helper's own limit (freeze.c). */
	FREEZE_MS = 15000,
};

struct mf_attach {
	pid_t pid, target;
	int socket; /* -1: it broke off */
	int gone;   /* why */
	pthread_mutex_t lock;
};

static struct mf_attach *used;

/* ---- confinement ---- */

/*
 * CAP_SYS_PTRACE reaches into the target; CAP_DAC_OVERRIDE opens its /proc files, its monitor's socket and its RAM, which
 * may be another user's; CAP_CHECKPOINT_RESTORE follows map_files; CAP_KILL ends a monitor that hangs.  The target's own
 * seccomp filter is suspended by CAP_SYS_ADMIN, and only by who has no filter: the kernel's rule.
 */
int attach_confine(pid_t target, struct mf_error *err)
{
	struct attach_status st;
	uint64_t keep = BASE_CAP(CAP_SYS_PTRACE) | BASE_CAP(CAP_DAC_OVERRIDE) | BASE_CAP(CAP_KILL) |
			BASE_CAP(CAP_CHECKPOINT_RESTORE);
	bool has_filter = attach_proc_status(target, &st) == 0 && st.seccomp;

	if (has_filter)
		keep |= BASE_CAP(CAP_SYS_ADMIN);
	int r = base_keep_capabilities(keep, err);
	if (r < 0)
		return r;
	(void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (has_filter) {
		base_debug("attach: no filter of our own, as process %d has one", (int)target);
		return 0;
	}
	struct mf_error why = { 0 };
	r = base_filter_calls(BASE_FILTER_REACH, NULL, &why);
	if (r == -EOPNOTSUPP || r == -MF_EKERNEL)
		return 0;
	return r < 0 ? base_error(err, r, why.scope, "%s", why.msg) : 0;
}

/* ---- asking ---- */

bool helper_is_used(pid_t pid)
{
	return used && pid != getpid();
}

static int say_gone(struct mf_attach *h, int code, struct mf_error *err)
{
	base_closep(&h->socket); /* an answer that comes late must not be taken for another's */
	/* One that hangs may hold the target; the kernel lets go for it.  Not reaped yet, so it is nobody else. */
	if (code != -EPIPE)
		(void)kill(h->pid, SIGKILL);
	if (!h->gone)
		h->gone = code;
	code = h->gone;
	if (code == -EPIPE)
		return base_error(
			err, code, MF_SCOPE_SESSION,
			"memferry-attach (pid %d), which reaches into process %d for this command, "
			"was killed: start the move again",
			(int)h->pid, (int)h->target);
	return base_error_sys(err, code, MF_SCOPE_SESSION,
			      "memferry-attach (pid %d), which reaches into process %d for this "
			      "command, does not answer",
			      (int)h->pid, (int)h->target);
}

static int exchange(struct mf_attach *h, const struct helper_request *request,
		    struct helper_reply *reply, int *ret_fd, uint64_t ms, struct mf_error *err)
{
	int fd = -1;
	int r = h->socket < 0 ? h->gone : helper_send(h->socket, request, sizeof(*request), -1);

	if (r == 0)
		r = helper_receive(h->socket, reply, sizeof(*reply), &fd, base_deadline_ms(ms));
	if (r < 0)
		return say_gone(h, r, err);
	if (ret_fd)
		*ret_fd = base_take_fd(&fd);
	base_closep(&fd);
	if (reply->code < 0 && reply->err.code)
		return base_error(err, reply->code, reply->err.scope, "%s", reply->err.msg);
	return reply->code;
}

int helper_call(struct helper_request *request, struct helper_reply *reply, int *ret_fd,
		uint64_t ms, struct mf_error *err)
{
	(void)pthread_mutex_lock(&used->lock);
	int r = exchange(used, request, reply, ret_fd, ms, err);
	(void)pthread_mutex_unlock(&used->lock);
	return r;
}

/* Its end of the socket is closed when it ends. */
int attach_check(pid_t pid, struct mf_error *err)
{
	if (!helper_is_used(pid))
		return 0;
	(void)pthread_mutex_lock(&used->lock);
	struct pollfd p = { .fd = used->socket, .events = POLLRDHUP };
	int r = used->socket < 0 || poll(&p, 1, 0) > 0 ? say_gone(used, -EPIPE, err) : 0;
	(void)pthread_mutex_unlock(&used->lock);
	return r;
}

/* ---- base/reach.h, helped ---- */

static int open_file(pid_t pid, pid_t tid, enum base_reach_file file)
{
	struct helper_request q = {
		.op = HELPER_OPEN, .pid = pid, .tid = tid, .number = (int)file
	};
	struct helper_reply a;
	int fd = -1;
	int r = helper_call(&q, &a, &fd, HELPER_FILE_MS, NULL);

	return r < 0 ? r : fd < 0 ? -EMFILE : fd;
}

static int has_vhost(pid_t pid)
{
	struct helper_request q = { .op = HELPER_HAS_VHOST, .pid = pid };
	struct helper_reply a;

	return helper_call(&q, &a, NULL, HELPER_FILE_MS, NULL);
}

static int freeze(pid_t pid, base_frozen_fn fn, void *ctx, struct mf_error *err)
{
	struct helper_request q = { .op = HELPER_FREEZE, .pid = pid };
	struct helper_reply a;
	int r = helper_call(&q, &a, NULL, FREEZE_MS, err);

	if (r < 0)
		return r;
	r = fn(ctx, a.value, err);
	q.op = HELPER_THAW;
	struct mf_error why = { 0 };
	/* Where it was let go before this, what fn saw is not what was there. */
	int thawed = helper_call(&q, &a, NULL, FREEZE_MS, &why);
	if (r >= 0 && thawed < 0)
		return base_error(err, thawed, why.scope, "%s", why.msg);
	return r;
}

static int find_memory(pid_t pid, uint64_t addr, uint64_t len, uint64_t page_size,
		       struct base_place_memory *memory, struct mf_error *err)
{
	struct helper_request q = {
		.op = HELPER_FIND_MEMORY,
		.pid = pid,
		.number = __builtin_ctzll(page_size),
		.ranges = { { addr, len } },
	};
	struct helper_reply a;
	int r = helper_call(&q, &a, NULL, HELPER_FILE_MS, err);

	for (int i = 0; r >= 0 && i < BASE_PLACE_NODES; i++)
		memory->bytes[i] += a.memory.bytes[i];
	return r;
}

static const struct base_reach helped = {
	.open = open_file,
	.has_vhost = has_vhost,
	.freeze = freeze,
	.find_memory = find_memory,
};

/* ---- its life ---- */

/* Keeps the socket, and where there are debug lines standard error: whoever waits for the program's output to end must
 * not wait for us. */
static int let_go_of_all(int *sock)
{
	sigset_t all;
	(void)sigfillset(&all);
	(void)sigprocmask(SIG_SETMASK, &all, NULL);
	(void)setsid();
	(void)prctl(PR_SET_NAME, "memferry-attach");
	if (*sock != STDIN_FILENO && dup2(*sock, STDIN_FILENO) < 0)
		return -errno;
	*sock = STDIN_FILENO;
	if (!base_debug_on()) {
		int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
		if (null < 0 || dup2(null, STDERR_FILENO) < 0)
			return -errno;
	}
	(void)close(STDOUT_FILENO);
	return syscall(SYS_close_range, STDERR_FILENO + 1, ~0u, 0) < 0 ? -errno : 0;
}

static void run(int sock, pid_t target)
{
	struct helper_reply ready = { 0 };
	int pidfd = -1;

	attach_helper_forget();
	int r = let_go_of_all(&sock);
	if (r == 0 && (pidfd = pidfd_open(target, 0)) < 0)
		r = -errno;
	if (r < 0)
		(void)base_error_sys(&ready.err, r, MF_SCOPE_HOST, "memferry-attach: process %d",
				     (int)target);
	else
		r = attach_confine(target, &ready.err);
	ready.code = r;
	if (helper_send(sock, &ready, sizeof(ready), -1) < 0 || r < 0)
		return;
	helper_serve(sock, target, pidfd);
}

static void reap(struct mf_attach *h, uint64_t deadline_us)
{
	base_autofd pidfd = pidfd_open(h->pid, 0);
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	int r = 1;

	base_closep(&h->socket);
	if (pidfd >= 0) {
		do
			r = poll(&p, 1, base_left_ms(deadline_us));
		while (r < 0 && errno == EINTR);
	}
	if (r <= 0)
		(void)kill(h->pid, SIGKILL);
	while (waitpid(h->pid, NULL, 0) < 0 && errno == EINTR)
		;
	(void)pthread_mutex_destroy(&h->lock);
	free(h);
}

int attach_helper_start(pid_t target, struct mf_attach **ret, struct mf_error *err)
{
	struct mf_attach *h = calloc(1, sizeof(*h));
	int pair[2];

	assert(!used);
	if (!h)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "memferry-attach: no memory");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
		int code = -errno;
		free(h);
		return base_error_sys(err, code, MF_SCOPE_HOST, "memferry-attach");
	}
	base_autofd theirs = pair[1];
	h->socket = pair[0];
	h->target = target;
	(void)pthread_mutex_init(&h->lock, NULL);
	h->pid = fork();
	if (h->pid == 0) {
		run(theirs, target);
		_exit(0);
	}
	if (h->pid < 0) {
		int code = -errno;
		base_closep(&h->socket);
		free(h);
		return base_error_sys(err, code, MF_SCOPE_HOST, "memferry-attach");
	}
	base_closep(&theirs);
	struct helper_reply ready = { 0 };
	int fd;
	int r = helper_receive(h->socket, &ready, sizeof(ready), &fd, base_deadline_ms(READY_MS));
	if (r < 0)
		r = base_error_sys(err, r, MF_SCOPE_HOST, "memferry-attach");
	else if (ready.code < 0)
		r = base_error(err, ready.code, ready.err.scope, "%s", ready.err.msg);
	if (r < 0) {
		reap(h, base_now_us());
		return r;
	}
	used = h;
	base_reach_use(&helped);
	*ret = h;
	return 0;
}

pid_t attach_helper_pid(const struct mf_attach *h)
{
	return h ? h->pid : 0;
}

void attach_helper_end(struct mf_attach *h)
{
	if (!h)
		return;
	assert(used == h);
	attach_helper_forget();
	reap(h, base_deadline_ms(END_MS));
}

void attach_helper_forget(void)
{
	used = NULL;
	base_reach_use(NULL);
}
