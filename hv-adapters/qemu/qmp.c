/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/qemu/qmp.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/pass.h"
#include "hv-adapters/qemu/qemu_parse.h"

enum {
	READ_CHUNK = 64 << 10,
	MESSAGE_MAX = 64 << 20, /* a listing of a big machine's memory tree is under 1 MiB */
	EVENTS_KEPT = 64,
	EVENT_AGE_S = 10,
};

struct qmp {
	int fd;
	pid_t peer;
	bool gone;

	/* input: bytes not yet taken apart, and how far the scanner is in them */
	char *in;
	size_t len, cap;
	struct qemu_json_scan scan;

	/* the one command whose answer is awaited */
	uint64_t id;
	const char *command;
	bool awaited;
	json_t *reply;

	/* ring; when full the oldest event is overwritten */
	struct qmp_event events[EVENTS_KEPT];
	unsigned first, n_events;
};

static int say_gone(struct qmp *q, struct mf_error *err)
{
	q->gone = true;
	return base_error(err, -ESRCH, MF_SCOPE_SESSION,
			  "QEMU (pid %d) ended or closed its monitor: see its log for the reason",
			  (int)q->peer);
}

/* QEMU's own words as part of our sentence: one line, no dot at the end. */
static void tidy_words(const char *from, char *to, size_t cap)
{
	size_t n = strnlen(from, cap - 1);
	memcpy(to, from, n);
	to[n] = '\0';
	for (size_t i = 0; i < n; i++) {
		if ((unsigned char)to[i] < ' ')
			to[i] = ' ';
	}
	while (n && (to[n - 1] == '.' || to[n - 1] == ' '))
		to[--n] = '\0';
}

/* ---- input ---- */

static uint64_t event_time(const json_t *event)
{
	const json_t *stamp = json_object_get(event, "timestamp");
	json_int_t s = json_integer_value(json_object_get(stamp, "seconds"));
	json_int_t us = json_integer_value(json_object_get(stamp, "microseconds"));
	uint64_t now = base_now_us();
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	/* A wall clock that was set in between must not put the event anywhere strange. */
	if (s < t.tv_sec - EVENT_AGE_S || s > t.tv_sec || us < 0 || us >= 1000000)
		return now;
	int64_t age = (t.tv_sec - s) * 1000000 + t.tv_nsec / 1000 - us;
	if (age < 0 || (uint64_t)age > now)
		return now;
	return now - (uint64_t)age;
}

static void keep_event(struct qmp *q, const json_t *msg, const char *name)
{
	static const char *const wanted[] = { "STOP", "RESUME", "MIGRATION", "SHUTDOWN" };
	bool is_wanted = false;
	for (size_t i = 0; i < BASE_ARRAY_LEN(wanted); i++)
		is_wanted |= strcmp(name, wanted[i]) == 0;
	if (!is_wanted)
		return;
	if (q->n_events == EVENTS_KEPT) {
		q->first = (q->first + 1) % EVENTS_KEPT;
		q->n_events--;
	}
	struct qmp_event *e = &q->events[(q->first + q->n_events++) % EVENTS_KEPT];
	const char *status =
		json_string_value(json_object_get(json_object_get(msg, "data"), "status"));
	(void)snprintf(e->name, sizeof(e->name), "%s", name);
	(void)snprintf(e->status, sizeof(e->status), "%s", status ? status : "");
	e->at_us = event_time(msg);
	base_debug("qmp: event %s %s", e->name, e->status);
}

/* One whole message: an event, an answer, or (once) the greeting, which is returned like an answer. */
static int take_message(struct qmp *q, const char *bytes, size_t len, struct mf_error *err)
{
	json_error_t je;
	json_t *msg = json_loadb(bytes, len, 0, &je);
	if (!json_is_object(msg)) {
		json_decref(msg);
		return base_error(err, -EPROTO, MF_SCOPE_SESSION,
				  "QEMU's monitor sent something that is no QMP message: %s",
				  je.text);
	}
	const char *event = json_string_value(json_object_get(msg, "event"));
	if (event) {
		keep_event(q, msg, event);
	} else if (q->awaited && !q->reply &&
		   (json_object_get(msg, "QMP") ||
		    (uint64_t)json_integer_value(json_object_get(msg, "id")) == q->id)) {
		q->reply = msg;
		return 0;
	}
	json_decref(msg);
	return 0;
}

static int take_apart(struct qmp *q, struct mf_error *err)
{
	size_t used = 0, n;
	while ((n = qemu_json_scan(&q->scan, q->in + used, q->len - used)) > 0) {
		if (n == QEMU_JSON_BAD)
			return base_error(err, -EPROTO, MF_SCOPE_SESSION,
					  "QEMU's monitor does not speak QMP: give a socket made "
					  "with -qmp, not with -monitor");
		int r = take_message(q, q->in + used, n, err);
		if (r < 0)
			return r;
		used += n;
	}
	memmove(q->in, q->in + used, q->len - used);
	q->len -= used;
	return 0;
}

int qmp_pump(struct qmp *q, struct mf_error *err)
{
	if (q->gone)
		return say_gone(q, err);
	for (;;) {
		if (q->cap - q->len < READ_CHUNK) {
			char *bigger = realloc(q->in, q->cap * 2 + READ_CHUNK);
			if (!bigger)
				return base_error(err, -ENOMEM, MF_SCOPE_HOST,
						  "QEMU's answer: no memory");
			q->in = bigger;
			q->cap = q->cap * 2 + READ_CHUNK;
		}
		ssize_t n = recv(q->fd, q->in + q->len, READ_CHUNK, MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return 0;
		if (n <= 0)
			return say_gone(q, err);
		q->len += (size_t)n;
		int r = take_apart(q, err);
		if (r < 0)
			return r;
		if (q->len > MESSAGE_MAX)
			return base_error(err, -EPROTO, MF_SCOPE_SESSION,
					  "QEMU's monitor sent a message without end");
	}
}

bool qmp_take_event(struct qmp *q, struct qmp_event *ret)
{
	if (!q->n_events)
		return false;
	*ret = q->events[q->first];
	q->first = (q->first + 1) % EVENTS_KEPT;
	q->n_events--;
	return true;
}

void qmp_drop_events(struct qmp *q)
{
	q->n_events = 0;
}

/* ---- output ---- */

static int wait_fd(struct qmp *q, short events, uint64_t deadline_us)
{
	for (;;) {
		struct pollfd p = { .fd = q->fd, .events = events };
		int r = poll(&p, 1, base_left_ms(deadline_us));
		if (r > 0)
			return 0;
		if (r == 0)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

/* The descriptor goes with the first byte, as QEMU expects. */
static int send_all(struct qmp *q, const char *text, size_t len, int fd, uint64_t deadline_us)
{
	size_t sent = 0;
	while (sent < len) {
		ssize_t n =
			base_send_fd(q->fd, text + sent, len - sent, sent ? -1 : fd, MSG_DONTWAIT);
		if (n >= 0) {
			sent += (size_t)n;
			continue;
		}
		if (n != -EAGAIN && n != -EWOULDBLOCK)
			return (int)n;
		int r = wait_fd(q, POLLOUT, deadline_us);
		if (r < 0)
			return r;
	}
	return 0;
}

int qmp_send(struct qmp *q, const char *command, json_t *args, int fd, uint64_t deadline_us,
	     struct mf_error *err)
{
	json_decref(q->reply);
	q->reply = NULL;
	q->awaited = false;
	if (q->gone) {
		json_decref(args);
		return say_gone(q, err);
	}
	json_t *msg = json_pack("{s:s, s:I, s:o*}", "execute", command, "id",
				(json_int_t)(q->id + 1), "arguments", args);
	base_autofree char *text = msg ? json_dumps(msg, JSON_COMPACT) : NULL;
	json_decref(msg);
	if (!text)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "QMP command %s: no memory",
				  command);
	q->id++;
	q->command = command;
	q->awaited = true;
	base_debug("qmp: %s", text);
	int r = send_all(q, text, strlen(text), fd, deadline_us);
	if (r == -ETIMEDOUT)
		return base_error(err, r, MF_SCOPE_SESSION,
				  "QEMU (pid %d) does not read its monitor: it hangs",
				  (int)q->peer);
	/* Whatever else may be wrong with a connected local socket: nobody is behind it. */
	return r < 0 ? say_gone(q, err) : 0;
}

int qmp_wait_reply(struct qmp *q, uint64_t deadline_us, json_t **ret, struct mf_error *err)
{
	assert(q->awaited);
	while (!q->reply) {
		struct mf_error why = { 0 };
		int r = qmp_pump(q, &why);
		if (q->reply)
			break; /* answered, and ended right after it perhaps */
		if (r < 0)
			return base_error(err, r, why.scope, "%s", why.msg);
		if (wait_fd(q, POLLIN, deadline_us) < 0)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
					  "QEMU (pid %d) did not answer %s in time: it hangs",
					  (int)q->peer, q->command);
	}
	json_t *reply = BASE_TAKE_PTR(q->reply);
	q->awaited = false;
	const json_t *failure = json_object_get(reply, "error");
	int r = 0;
	if (failure) {
		const char *class = json_string_value(json_object_get(failure, "class"));
		const char *desc = json_string_value(json_object_get(failure, "desc"));
		char words[160];
		tidy_words(desc ? desc : "no reason given", words, sizeof(words));
		r = class && strcmp(class, "CommandNotFound") == 0 ? -EOPNOTSUPP : -EREMOTEIO;
		(void)base_error(err, r, MF_SCOPE_SESSION, "QEMU refused %s: %s", q->command,
				 words);
	} else if (ret) {
		*ret = json_incref(json_object_get(reply, "return"));
	}
	json_decref(reply);
	return r;
}

bool qmp_has_reply(const struct qmp *q)
{
	return q->reply;
}

int qmp_execute(struct qmp *q, const char *command, json_t *args, int fd, uint64_t deadline_us,
		json_t **ret, struct mf_error *err)
{
	int r = qmp_send(q, command, args, fd, deadline_us, err);
	return r < 0 ? r : qmp_wait_reply(q, deadline_us, ret, err);
}

/* ---- opening ---- */

#define HOW_TO_START "start QEMU with -qmp unix:PATH,server=on,wait=off"

static int connect_socket(const char *path, int *ret, struct mf_error *err)
{
	/* By a descriptor, so that a path longer than sun_path works too. */
	base_autofd at = open(path, O_PATH | O_CLOEXEC);
	if (at < 0 && errno == ENOENT)
		return base_error(err, -ENOENT, MF_SCOPE_HOST,
				  "QMP socket %s does not exist: " HOW_TO_START, path);
	if (at < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "QMP socket %s", path);
	struct stat st;
	if (fstat(at, &st) < 0 || !S_ISSOCK(st.st_mode))
		return base_error(
			err, -ENOTSOCK, MF_SCOPE_HOST,
			"%s is not a socket: give the path of QEMU's QMP socket, or " HOW_TO_START,
			path);
	base_autofd fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "QMP socket");
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/self/fd/%d", at);
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		int r = -errno;
		if (r == -ECONNREFUSED)
			return base_error(err, r, MF_SCOPE_HOST,
					  "QMP socket %s: nobody listens there, its QEMU has ended",
					  path);
		if (r == -EAGAIN)
			return base_error(err, -EBUSY, MF_SCOPE_HOST,
					  "QMP socket %s is busy with other clients: give memferry "
					  "one of its own (a second -qmp)",
					  path);
		if (r == -EPROTOTYPE)
			return base_error(err, r, MF_SCOPE_HOST,
					  "%s is not a QMP socket: " HOW_TO_START, path);
		return base_error_sys(err, r, MF_SCOPE_HOST, "QMP socket %s", path);
	}
	*ret = base_take_fd(&fd);
	return 0;
}

static int greet(struct qmp *q, const char *path, uint64_t deadline_us, struct mf_error *err)
{
	struct mf_error why = { 0 };
	q->command = "the greeting";
	q->awaited = true;
	while (!q->reply) {
		int r = qmp_pump(q, &why);
		if (r == -EPROTO)
			return base_error(err, r, MF_SCOPE_HOST,
					  "%s is a socket, but no QMP socket: " HOW_TO_START, path);
		if (r == -ESRCH)
			return base_error(
				err, r, MF_SCOPE_HOST,
				"QMP socket %s: closed before the greeting, its QEMU is ending "
				"or it is no QMP socket",
				path);
		if (r < 0)
			return base_error(err, r, MF_SCOPE_HOST, "%s", why.msg);
		if (q->reply)
			break;
		if (wait_fd(q, POLLIN, deadline_us) < 0)
			return base_error(
				err, -EBUSY, MF_SCOPE_HOST,
				"QMP socket %s gives no greeting: another client is connected, "
				"and QMP serves one: give memferry one of its own (a second "
				"-qmp)",
				path);
	}
	bool is_qmp = json_is_object(json_object_get(q->reply, "QMP"));
	json_decref(q->reply);
	q->reply = NULL;
	q->awaited = false;
	if (!is_qmp)
		return base_error(err, -EPROTO, MF_SCOPE_HOST,
				  "%s is a socket, but no QMP socket: " HOW_TO_START, path);
	return 0;
}

int qmp_open(const char *path, uint64_t deadline_us, struct qmp **ret, struct mf_error *err)
{
	base_autofd fd = -1;
	int r = connect_socket(path, &fd, err);
	if (r < 0)
		return r;
	struct ucred cred = { 0 };
	socklen_t len = sizeof(cred);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "QMP socket %s: its peer", path);
	struct qmp *q = calloc(1, sizeof(*q));
	if (!q)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "QMP socket %s: no memory", path);
	q->fd = base_take_fd(&fd);
	q->peer = cred.pid;
	r = greet(q, path, deadline_us, err);
	if (r >= 0)
		r = qmp_execute(q, "qmp_capabilities", NULL, -1, deadline_us, NULL, err);
	if (r < 0) {
		qmp_close(q);
		return r;
	}
	*ret = q;
	return 0;
}

void qmp_close(struct qmp *q)
{
	if (!q)
		return;
	(void)close(q->fd);
	json_decref(q->reply);
	free(q->in);
	free(q);
}

pid_t qmp_peer(const struct qmp *q)
{
	return q->peer;
}

int qmp_fd(const struct qmp *q)
{
	return q->fd;
}
