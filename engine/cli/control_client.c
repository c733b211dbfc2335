/* SPDX-License-Identifier: BSD-2-Clause */
/* The asking end of control.h: finds the moves of this host and talks to one. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/parse.h"
#include "control.h"
#include "report.h"

#define REPLY_CAP      4096
#define ASK_TIMEOUT_MS 5000

static int connect_to(const struct cli_run_dir *dir, const char *name)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct timeval limit = { .tv_sec = ASK_TIMEOUT_MS / 1000 };
	base_autofd fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/self/fd/%d/%s", dir->fd, name);
	/* Also bounds connect(), which waits while the server's queue is full. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) ||
	    connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		return -errno;
	return base_take_fd(&fd);
}

/* Reads up to the newline or the end.  Length, or a negative code. */
static ssize_t read_line(int fd, char *buf, size_t cap)
{
	uint64_t deadline_us = base_deadline_ms(ASK_TIMEOUT_MS);
	size_t len = 0;

	while (len < cap && !memchr(buf, '\n', len)) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		int n = poll(&p, 1, base_left_ms(deadline_us));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ETIMEDOUT;
		ssize_t got = read(fd, buf + len, cap - len);
		if (got < 0 && errno != EINTR)
			return -errno;
		if (!got)
			break;
		len += got > 0 ? (size_t)got : 0;
	}
	return (ssize_t)len;
}

static int exchange(int fd, const char *command, json_t **ret)
{
	char request[64], reply[REPLY_CAP];

	int len = snprintf(request, sizeof(request), "{\"command\":\"%s\"}\n", command);
	if (send(fd, request, (size_t)len, MSG_NOSIGNAL) != len)
		return -errno;
	ssize_t got = read_line(fd, reply, sizeof(reply));
	if (got < 0)
		return (int)got;
	json_t *o = json_loadb(reply, (size_t)got, 0, NULL);
	if (!json_is_object(o) || !json_is_boolean(json_object_get(o, "ok"))) {
		json_decref(o);
		return got ? -EBADMSG : -ECONNRESET; /* it ended just now */
	}
	*ret = o;
	return 0;
}

int cli_control_ask(const struct cli_run_dir *dir, const char *socket, const char *command,
		    json_t **ret_reply, struct mf_error *err)
{
	base_autofd fd = connect_to(dir, socket);
	int r = fd < 0 ? fd : exchange(fd, command, ret_reply);

	if (r)
		return base_error_sys(err, r, MF_SCOPE_HOST, "%s/%s: ask the running memferry",
				      dir->path, socket);
	return 0;
}

/* "source-123.sock" */
static bool parse_name(const char *name, struct cli_peer *ret)
{
	char pid_text[16];
	uint64_t pid;

	for (int side = MF_SOURCE; side <= MF_DESTINATION; side++) {
		size_t len = strlen(cli_side_name((enum mf_side)side));
		if (strncmp(name, cli_side_name((enum mf_side)side), len) != 0 || name[len] != '-')
			continue;
		const char *digits = name + len + 1;
		size_t n = strspn(digits, "0123456789");
		if (n >= sizeof(pid_text) || strcmp(digits + n, ".sock") != 0)
			return false;
		memcpy(pid_text, digits, n);
		pid_text[n] = '\0';
		if (base_parse_number(pid_text, "pid", 1, INT_MAX, &pid, NULL))
			return false;
		ret->pid = (int)pid;
		ret->side = (enum mf_side)side;
		(void)snprintf(ret->socket, sizeof(ret->socket), "%s-%d.sock",
			       cli_side_name(ret->side), ret->pid);
		return true;
	}
	return false;
}

/* False: nobody is there, or it ends right now. */
static bool ask_status(const struct cli_run_dir *dir, struct cli_peer *peer)
{
	base_autofd fd = connect_to(dir, peer->socket);

	/* A socket gets its name after it listens, so that a refusal means nobody ever will. */
	if (fd == -ECONNREFUSED)
		(void)unlinkat(dir->fd, peer->socket, 0);
	if (fd < 0 || exchange(fd, "status", &peer->status))
		return false;
	const char *session = json_string_value(json_object_get(peer->status, "session"));
	(void)snprintf(peer->session, sizeof(peer->session), "%s", session ? session : "");
	return true;
}

static int compare_peers(const void *a, const void *b)
{
	const struct cli_peer *left = a, *right = b;
	int by_session = strcmp(left->session, right->session);

	return by_session ? by_session : (left->pid > right->pid) - (left->pid < right->pid);
}

int cli_control_list(const struct cli_run_dir *dir, struct cli_peer *ret, unsigned cap,
		     struct mf_error *err)
{
	unsigned n = 0;

	if (dir->fd < 0)
		return 0;
	int fd = openat(dir->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *stream = fd >= 0 ? fdopendir(fd) : NULL;
	if (!stream) {
		int r = -errno;
		base_closep(&fd);
		return base_error_sys(err, r, MF_SCOPE_HOST, "run directory %s", dir->path);
	}
	for (struct dirent *entry; n < cap && (entry = readdir(stream));) {
		struct cli_peer peer = { 0 };
		if (parse_name(entry->d_name, &peer) && ask_status(dir, &peer))
			ret[n++] = peer;
	}
	(void)closedir(stream);
	qsort(ret, n, sizeof(*ret), compare_peers);
	return (int)n;
}
