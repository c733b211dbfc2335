/* SPDX-License-Identifier: BSD-2-Clause */
/* The serving end; control_client.c is the asking one. */
#include "control.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "report.h"

#define CLIENTS_MAX       8
#define REQUEST_CAP       256
#define CLIENT_TIMEOUT_MS 5000

struct client {
	int fd; /* -1: free */
	uint64_t deadline_us;
	size_t len;
	char request[REQUEST_CAP];
};

struct cli_control {
	const struct cli_run_dir *dir;
	const struct cli_view *view;
	cli_notice_fn notice;
	void *ctx;
	enum mf_side side;
	char name[64]; /* of the socket in the run directory; "": not there yet */
	int listen_fd, signal_fd, stop_fd;
	struct client clients[CLIENTS_MAX];
	pthread_t thread;
};

void cli_control_name(enum mf_side side, char *ret, size_t cap)
{
	(void)snprintf(ret, cap, "%s-%d.sock", cli_side_name(side), (int)getpid());
}

/*
 * Bound under a name that nobody looks for and renamed when it listens: a socket under its final
 * name that refuses connections is dead for certain.  The way through /proc takes run directories
 * that are longer than a socket address.
 */
static int open_socket(struct cli_control *c, struct mf_error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	char name[64], draft[72];

	cli_control_name(c->side, name, sizeof(name));
	(void)snprintf(draft, sizeof(draft), ".%s.new", name);
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/self/fd/%d/%s", c->dir->fd,
		       draft);
	/* Left over from a process that had the same id. */
	(void)unlinkat(c->dir->fd, draft, 0);
	c->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->listen_fd < 0 || fchmod(c->listen_fd, 0600) ||
	    bind(c->listen_fd, (struct sockaddr *)&addr, sizeof(addr)))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "control socket in %s",
				      c->dir->path);
	if (listen(c->listen_fd, CLIENTS_MAX) || renameat(c->dir->fd, draft, c->dir->fd, name)) {
		int r = -errno;
		(void)unlinkat(c->dir->fd, draft, 0);
		return base_error_sys(err, r, MF_SCOPE_HOST, "control socket in %s", c->dir->path);
	}
	memcpy(c->name, name, sizeof(c->name));
	return 0;
}

static json_t *refuse(int code, const char *why)
{
	return json_pack("{s:b, s:{s:s, s:s}}", "ok", 0, "error", "code", base_error_name(code),
			 "message", why);
}

static json_t *answer_status(struct cli_control *c)
{
	struct mf_progress progress;

	c->view->progress(c->view->session, &progress);
	json_t *o = cli_json_progress("status", &progress);
	(void)json_object_set_new(o, "pid", json_integer(getpid()));
	(void)json_object_set_new(o, "ok", json_true());
	return o;
}

/* Too late and at the wrong end are said, not swallowed: the engine would silently ignore them. */
static json_t *answer_request(struct cli_control *c, enum mf_request request)
{
	struct mf_progress progress;

	c->view->progress(c->view->session, &progress);
	if (request == MF_REQUEST_RECOVER) {
		if (progress.phase != MF_PHASE_POSTCOPY && progress.phase != MF_PHASE_RECOVER)
			return refuse(-MF_EUSAGE,
				      "only a move in post-copy has a connection to lose and to "
				      "make anew");
		c->view->request(c->view->session, request);
		return answer_status(c);
	}
	if (request == MF_REQUEST_CANCEL && progress.phase == MF_PHASE_RECOVER) {
		c->view->request(c->view->session, request); /* only the search ends */
		return answer_status(c);
	}
	if (request != MF_REQUEST_CANCEL && c->side != MF_SOURCE)
		return refuse(-MF_EUSAGE, "the source decides when to switch over; ask there");
	if (progress.phase >= MF_PHASE_HANDOFF)
		return refuse(-EALREADY, "too late: the guest was handed over to the destination");
	if (request != MF_REQUEST_CANCEL && progress.phase == MF_PHASE_SWITCHOVER)
		return refuse(-EALREADY, "too late: the move is switching over already");
	c->view->request(c->view->session, request);
	return answer_status(c);
}

static json_t *answer(struct cli_control *c, const char *line, size_t len)
{
	json_t *o = json_loadb(line, len, 0, NULL);
	const char *command = json_string_value(json_object_get(o, "command"));
	json_t *reply = NULL;

	if (!command)
		reply = refuse(-MF_EUSAGE, "the request is not an object with a command");
	else if (!strcmp(command, "status"))
		reply = answer_status(c);
	else if (!strcmp(command, "cancel"))
		reply = answer_request(c, MF_REQUEST_CANCEL);
	else if (!strcmp(command, "cutover"))
		reply = answer_request(c, MF_REQUEST_CUTOVER);
	else if (!strcmp(command, "postcopy"))
		reply = answer_request(c, MF_REQUEST_POSTCOPY);
	else if (!strcmp(command, "recover"))
		reply = answer_request(c, MF_REQUEST_RECOVER);
	else
		reply = refuse(-MF_EUSAGE, "this version does not know that command");
	json_decref(o);
	return reply;
}

/* A reply is far smaller than an empty socket buffer, so that this neither blocks nor falls short;
 * whoever went away meanwhile does not get one. */
static void send_reply(int fd, json_t *reply)
{
	base_autofree char *text = reply ? json_dumps(reply, JSON_COMPACT) : NULL;
	size_t len = text ? strlen(text) : 0;

	if (text) {
		text[len] = '\n'; /* in place of the terminator */
		(void)send(fd, text, len + 1, MSG_NOSIGNAL | MSG_DONTWAIT);
	}
	json_decref(reply);
}

static void serve_client(struct cli_control *c, struct client *client)
{
	ssize_t n = read(client->fd, client->request + client->len, REQUEST_CAP - client->len);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0) {
		client->len += (size_t)n;
		const char *end = memchr(client->request, '\n', client->len);
		if (!end && client->len < REQUEST_CAP)
			return;
		send_reply(client->fd, answer(c, client->request,
					      end ? (size_t)(end - client->request) : client->len));
	}
	base_closep(&client->fd);
}

static void admit_client(struct cli_control *c)
{
	int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	for (size_t i = 0; fd >= 0 && i < CLIENTS_MAX; i++) {
		struct client *client = &c->clients[i];
		if (client->fd >= 0)
			continue;
		client->fd = base_take_fd(&fd);
		client->len = 0;
		client->deadline_us = base_deadline_ms(CLIENT_TIMEOUT_MS);
	}
	base_closep(&fd);
}

static void take_signal(struct cli_control *c)
{
	struct signalfd_siginfo info;
	struct mf_progress progress;

	if (read(c->signal_fd, &info, sizeof(info)) != sizeof(info))
		return;
	c->view->progress(c->view->session, &progress);
	c->view->request(c->view->session, MF_REQUEST_CANCEL);
	c->notice(c->ctx,
		  progress.phase == MF_PHASE_RECOVER ? "the other host is not looked for any more"
		  : progress.phase >= MF_PHASE_HANDOFF
			  ? "too late to cancel: the guest was handed over; the move goes on"
			  : "canceling");
}

static void expire_clients(struct cli_control *c)
{
	for (size_t i = 0; i < CLIENTS_MAX; i++) {
		if (c->clients[i].fd >= 0 && !base_left_ms(c->clients[i].deadline_us))
			base_closep(&c->clients[i].fd);
	}
}

enum { STOP, SIGNAL, LISTEN, FIRST_CLIENT, N_FDS = FIRST_CLIENT + CLIENTS_MAX };

/* Fills what to wait for; returns for how long. */
static int prepare_wait(const struct cli_control *c, struct pollfd fds[N_FDS])
{
	uint64_t deadline_us = BASE_NEVER;
	bool has_room = false;

	for (size_t i = 0; i < CLIENTS_MAX; i++) {
		const struct client *client = &c->clients[i];
		fds[FIRST_CLIENT + i] = (struct pollfd){ .fd = client->fd, .events = POLLIN };
		has_room |= client->fd < 0;
		if (client->fd >= 0 && client->deadline_us < deadline_us)
			deadline_us = client->deadline_us;
	}
	fds[STOP] = (struct pollfd){ .fd = c->stop_fd, .events = POLLIN };
	fds[SIGNAL] = (struct pollfd){ .fd = c->signal_fd, .events = POLLIN };
	fds[LISTEN] = (struct pollfd){ .fd = has_room ? c->listen_fd : -1, .events = POLLIN };
	return base_left_ms(deadline_us);
}

static void *run_control(void *arg)
{
	struct cli_control *c = arg;
	struct pollfd fds[N_FDS];

	(void)pthread_setname_np(pthread_self(), "control");
	for (;;) {
		int n = poll(fds, N_FDS, prepare_wait(c, fds));
		if (n < 0)
			continue; /* every signal that we take is blocked, so EINTR is a debugger's */
		if (fds[STOP].revents)
			return NULL;
		if (fds[SIGNAL].revents)
			take_signal(c);
		for (size_t i = 0; i < CLIENTS_MAX; i++) {
			if (fds[FIRST_CLIENT + i].revents)
				serve_client(c, &c->clients[i]);
		}
		expire_clients(c);
		if (fds[LISTEN].revents)
			admit_client(c);
	}
}

static void release(struct cli_control *c)
{
	if (c->name[0])
		(void)unlinkat(c->dir->fd, c->name, 0);
	for (size_t i = 0; i < CLIENTS_MAX; i++)
		base_closep(&c->clients[i].fd);
	base_closep(&c->listen_fd);
	base_closep(&c->signal_fd);
	base_closep(&c->stop_fd);
	free(c);
}

static int open_all(struct cli_control *c, struct mf_error *err)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	c->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	c->stop_fd = eventfd(0, EFD_CLOEXEC);
	if (c->signal_fd < 0 || c->stop_fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "control thread");
	int r = open_socket(c, err);
	if (r)
		return r;
	r = pthread_create(&c->thread, NULL, run_control, c);
	return r ? base_error_sys(err, -r, MF_SCOPE_HOST, "control thread") : 0;
}

int cli_control_start(const struct cli_run_dir *dir, enum mf_side side, const struct cli_view *view,
		      cli_notice_fn notice, void *ctx, struct cli_control **ret,
		      struct mf_error *err)
{
	struct cli_control *c = calloc(1, sizeof(*c));

	assert(dir->fd >= 0);
	if (!c)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_HOST, "control thread");
	c->dir = dir;
	c->side = side;
	c->view = view;
	c->notice = notice;
	c->ctx = ctx;
	c->listen_fd = c->signal_fd = c->stop_fd = -1;
	for (size_t i = 0; i < CLIENTS_MAX; i++)
		c->clients[i].fd = -1;
	int r = open_all(c, err);
	if (r) {
		release(c);
		return r;
	}
	*ret = c;
	return 0;
}

void cli_control_stop(struct cli_control *c)
{
	if (!c)
		return;
	(void)eventfd_write(c->stop_fd, 1);
	(void)pthread_join(c->thread, NULL);
	release(c);
}
