/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/parse.h"
#include "perf/doc.h"
#include "wire/socket.h"

#define PROTOCOL  1
#define CHUNK     65536u
#define NAME_MAX_ 128
/* A host that is gone is noticed within a minute, however long its answer may take. */
#define IDLE_S     30
#define INTERVAL_S 10
#define PROBES     3

struct perf_peer {
	int fd;
	char *line; /* what was read and not yet taken */
	size_t have, cap;
	char local[NAME_MAX_], remote[NAME_MAX_];
};

static void watch_over(int fd)
{
	const int on = 1, idle = IDLE_S, interval = INTERVAL_S, probes = PROBES;

	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

/* "10.0.0.1:7742" and "[fd77::1]:7742" without the port. */
static void strip_port(char *name)
{
	char *colon = strrchr(name, ':');
	size_t len;

	if (colon)
		*colon = '\0';
	len = strlen(name);
	if (len > 1 && name[0] == '[' && name[len - 1] == ']') {
		memmove(name, name + 1, len - 2);
		name[len - 2] = '\0';
	}
}

static int new_peer(int fd, struct perf_peer **ret, struct mf_error *err)
{
	struct perf_peer *peer = calloc(1, sizeof(*peer));

	if (!peer) {
		(void)close(fd);
		return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "out of memory");
	}
	peer->fd = fd;
	(void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); /* waits have deadlines */
	watch_over(fd);
	wire_local_host(fd, peer->local, sizeof(peer->local));
	wire_peer_name(fd, peer->remote, sizeof(peer->remote));
	strip_port(peer->remote);
	*ret = peer;
	return 0;
}

static int greet(struct perf_peer *peer, struct mf_error *err)
{
	json_t *hello = json_object();

	perf_put(hello, "memferry-perf", json_integer(PROTOCOL));
	perf_put(hello, "version", json_string(MF_VERSION));
	return perf_peer_send(peer, hello, err);
}

static int check_greeting(struct perf_peer *peer, uint64_t deadline_us, struct mf_error *err)
{
	json_t *hello = NULL;
	int ret = perf_peer_recv(peer, deadline_us, &hello, err);

	if (ret)
		return ret;
	const char *said = perf_text(hello, "error.message");
	if (said[0])
		ret = base_error(err, -EBUSY, MF_SCOPE_SESSION, "%s: %.200s", peer->remote, said);
	else if (json_integer_value(json_object_get(hello, "memferry-perf")) != PROTOCOL)
		ret = base_error(
			err, -MF_EPEER, MF_SCOPE_SESSION,
			"%s is no memferry-perf of this version (%s); install the same on both",
			peer->remote, MF_VERSION);
	json_decref(hello);
	return ret;
}

static int connect_to(const char *address, uint64_t deadline_us, int *ret_fd, struct mf_error *err)
{
	struct mf_error why = { 0 };
	char host[NAME_MAX_];
	uint16_t port;

	int ret =
		base_parse_addr(address, "HOST", PERF_DEFAULT_PORT, host, sizeof(host), &port, err);
	if (ret)
		return ret;
	ret = wire_connect(host, port, -1, deadline_us, ret_fd, &why);
	if (ret == -ECONNREFUSED)
		return base_error(
			err, ret, MF_SCOPE_SESSION,
			"%s:%u: nobody listens there; start `memferry-perf server` first, "
			"or check the port",
			host, port);
	if (ret)
		return base_error(err, ret, MF_SCOPE_SESSION, "%s",
				  why.code ? why.msg : base_strerror(ret));
	return 0;
}

int perf_peer_connect(const char *address, uint64_t deadline_us, struct perf_peer **ret,
		      struct mf_error *err)
{
	struct perf_peer *peer = NULL;
	int fd = -1;

	int code = connect_to(address, deadline_us, &fd, err);
	if (!code)
		code = new_peer(fd, &peer, err);
	if (code)
		return code;
	code = greet(peer, err);
	if (!code)
		code = check_greeting(peer, deadline_us, err);
	if (code)
		perf_peer_close(peer);
	else
		*ret = peer;
	return code;
}

int perf_peer_accepted(int fd, uint64_t deadline_us, struct perf_peer **ret, struct mf_error *err)
{
	struct perf_peer *peer = NULL;

	int code = new_peer(fd, &peer, err);
	if (code)
		return code;
	code = check_greeting(peer, deadline_us, err);
	if (!code)
		code = greet(peer, err);
	if (code)
		perf_peer_close(peer);
	else
		*ret = peer;
	return code;
}

void perf_peer_close(struct perf_peer *peer)
{
	if (!peer)
		return;
	(void)close(peer->fd);
	free(peer->line);
	free(peer);
}

void perf_peer_shutdown(struct perf_peer *peer)
{
	(void)shutdown(peer->fd, SHUT_RDWR);
}

int perf_peer_fd(const struct perf_peer *peer)
{
	return peer->fd;
}

const char *perf_peer_local(const struct perf_peer *peer)
{
	return peer->local;
}

const char *perf_peer_remote(const struct perf_peer *peer)
{
	return peer->remote;
}

static int gone(const struct perf_peer *peer, int code, struct mf_error *err)
{
	return base_error(err, -MF_EPEER, MF_SCOPE_SESSION, "%s ended the connection%s%s",
			  peer->remote, code ? ": " : "", code ? base_strerror(code) : "");
}

/* 0: ready; -ETIMEDOUT. */
static int wait_for(const struct perf_peer *peer, short events, uint64_t deadline_us)
{
	struct pollfd p = { .fd = peer->fd, .events = events };

	for (;;) {
		int n = poll(&p, 1, base_left_ms(deadline_us));
		if (n > 0)
			return 0;
		if (!n)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

static int send_all(struct perf_peer *peer, const char *bytes, size_t len, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(PERF_ANSWER_MS);

	while (len) {
		ssize_t n = send(peer->fd, bytes, len, MSG_NOSIGNAL);
		if (n >= 0) {
			bytes += n;
			len -= (size_t)n;
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EWOULDBLOCK)
			return gone(peer, -errno, err);
		int ret = wait_for(peer, POLLOUT, deadline);
		if (ret)
			return gone(peer, ret, err);
	}
	return 0;
}

int perf_peer_send(struct perf_peer *peer, json_t *msg, struct mf_error *err)
{
	char *text = msg ? json_dumps(msg, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
	size_t len = text ? strlen(text) : 0;
	int ret;

	json_decref(msg);
	if (!text)
		return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "out of memory");
	text[len] = '\n'; /* instead of the end of the string */
	ret = send_all(peer, text, len + 1, err);
	free(text);
	return ret;
}

/* Takes the first line, if one is there whole. */
static int take_line(struct perf_peer *peer, json_t **ret, struct mf_error *err)
{
	char *end = peer->have ? memchr(peer->line, '\n', peer->have) : NULL;
	json_error_t why;

	if (!end)
		return -EAGAIN;
	size_t len = (size_t)(end - peer->line);
	*ret = json_loadb(peer->line, len, JSON_REJECT_DUPLICATES, &why);
	peer->have -= len + 1;
	memmove(peer->line, end + 1, peer->have);
	if (json_is_object(*ret))
		return 0;
	json_decref(*ret);
	*ret = NULL;
	return base_error(err, -MF_EPEER, MF_SCOPE_SESSION, "%s sent what is no JSON object",
			  peer->remote);
}

static int read_more(struct perf_peer *peer, uint64_t deadline_us, struct mf_error *err)
{
	if (peer->cap - peer->have < CHUNK) {
		if (peer->have >= PERF_LINE_MAX)
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "%s sent a line of more than %u bytes", peer->remote,
					  PERF_LINE_MAX);
		char *more = realloc(peer->line, peer->have + 2 * CHUNK);
		if (!more)
			return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "out of memory");
		peer->line = more;
		peer->cap = peer->have + 2 * CHUNK;
	}
	ssize_t n = recv(peer->fd, peer->line + peer->have, peer->cap - peer->have, 0);
	if (n > 0) {
		peer->have += (size_t)n;
		return 0;
	}
	if (!n)
		return gone(peer, 0, err);
	if (errno == EINTR)
		return 0;
	if (errno != EAGAIN && errno != EWOULDBLOCK)
		return gone(peer, -errno, err);
	int ret = wait_for(peer, POLLIN, deadline_us);
	if (ret == -ETIMEDOUT)
		return base_error(err, ret, MF_SCOPE_SESSION, "%s did not answer in time",
				  peer->remote);
	return ret ? gone(peer, ret, err) : 0;
}

int perf_peer_recv(struct perf_peer *peer, uint64_t deadline_us, json_t **ret, struct mf_error *err)
{
	int code;

	while ((code = take_line(peer, ret, err)) == -EAGAIN) {
		code = read_more(peer, deadline_us, err);
		if (code)
			break;
	}
	return code;
}

/* The code that the server meant, where it has the same meaning here. */
static int code_of(const json_t *answer)
{
	json_int_t code = json_integer_value(perf_get(answer, "error.code"));

	return code < 0 && code >= -MF_EUSAGE ? (int)code : -MF_EPEER;
}

int perf_peer_call(struct perf_peer *peer, const char *what, json_t *request, uint64_t deadline_us,
		   json_t **ret_answer, struct mf_error *err)
{
	json_t *answer = NULL;

	if (!request)
		request = json_object();
	perf_put(request, "do", json_string(what));
	int ret = perf_peer_send(peer, request, err);
	if (!ret)
		ret = perf_peer_recv(peer, deadline_us, &answer, err);
	if (!ret && json_object_get(answer, "error"))
		ret = base_error(err, code_of(answer), MF_SCOPE_SESSION, "%s: %.400s", peer->remote,
				 perf_text(answer, "error.message"));
	if (ret || !ret_answer)
		json_decref(answer);
	else
		*ret_answer = answer;
	return ret;
}

int perf_peer_send_error(struct perf_peer *peer, const struct mf_error *failure,
			 struct mf_error *err)
{
	json_t *o = json_object(), *what = json_object();

	perf_put(what, "code", json_integer(failure->code));
	perf_put(what, "message", json_string(failure->code ? failure->msg : "failed"));
	perf_put(o, "error", what);
	return perf_peer_send(peer, o, err);
}
