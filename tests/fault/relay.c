/* SPDX-License-Identifier: BSD-2-Clause */
#include "relay.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/cleanup.h"

enum { CONNECTIONS = 16 };

struct stream {
	uint8_t *bytes; /* a message not yet whole */
	size_t len, cap;
	uint8_t *last; /* RELAY_LAST: the message before */
	size_t last_len;
};

struct connection {
	int fd[2]; /* source's, destination's */
	bool silent;
	struct stream from[2];
};

struct relay {
	struct relay_rule rule;
	uint16_t port;
	int listen_fd, stop_fd;
	pthread_t thread;
	unsigned seen;
	_Atomic bool met;
	struct connection connection[CONNECTIONS];
};

static struct sockaddr_in loopback(uint16_t port)
{
	return (struct sockaddr_in){ .sin_family = AF_INET,
				     .sin_port = htons(port),
				     .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

int relay_connect(uint16_t port)
{
	struct sockaddr_in to = loopback(port);
	base_autofd fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)))
		return -1;
	return base_take_fd(&fd);
}

static void close_connection(struct connection *c)
{
	for (int i = 0; i < 2; i++) {
		base_closep(&c->fd[i]);
		free(c->from[i].bytes);
		free(c->from[i].last);
		c->from[i] = (struct stream){ 0 };
	}
	c->silent = false;
}

static void accept_one(struct relay *r)
{
	base_autofd fd = accept4(r->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0 || (r->rule.alone && atomic_load(&r->met)))
		return;
	for (int i = 0; i < CONNECTIONS; i++) {
		struct connection *c = &r->connection[i];
		if (c->fd[0] >= 0)
			continue;
		c->fd[1] = relay_connect(r->port);
		if (c->fd[1] >= 0)
			c->fd[0] = base_take_fd(&fd);
		return;
	}
}

/* A peer that is gone is met when it is read from. */
static void forward(int fd, const uint8_t *bytes, size_t len)
{
	while (len) {
		ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);
		if (n <= 0)
			return;
		bytes += n;
		len -= (size_t)n;
	}
}

static bool is_meant(struct relay *r, const uint8_t *frame, size_t len)
{
	wire_msg *msg;
	if (!r->rule.body || wire_msg_decode(frame + WIRE_HEADER, len - WIRE_HEADER, &msg) < 0)
		return false;
	bool same = msg->body_case == r->rule.body;
	wire_msg_free(msg);
	return same && ++r->seen == (r->rule.nth ? r->rule.nth : 1);
}

static bool is_kind(const struct relay *r, const uint8_t *frame, size_t len)
{
	wire_msg *msg;
	if (wire_msg_decode(frame + WIRE_HEADER, len - WIRE_HEADER, &msg) < 0)
		return false;
	bool same = msg->body_case == r->rule.body;
	wire_msg_free(msg);
	return same;
}

/* False: the connection is closed. */
static bool act(struct relay *r, struct connection *c, int way, const uint8_t *frame, size_t len)
{
	static const uint8_t noise[64] = "this is not a message of any protocol that is known here";
	const struct stream *from = &c->from[way];
	int to = c->fd[!way];
	atomic_store(&r->met, true);
	if (r->rule.hook)
		r->rule.hook(r->rule.ctx, r->port);
	switch (r->rule.action) {
	case RELAY_CUT:
		close_connection(c);
		return false;
	case RELAY_SILENCE:
		c->silent = true;
		return true;
	case RELAY_TWICE:
		forward(to, frame, len);
		break;
	case RELAY_GARBAGE:
		forward(to, noise, sizeof(noise));
		return true;
	case RELAY_LAST:
		forward(to, from->last, from->last_len);
		return true;
	case RELAY_PASS:
		break;
	}
	forward(to, frame, len);
	return true;
}

static bool pass(struct relay *r, struct connection *c, int way, const uint8_t *frame, size_t len)
{
	if (c->silent)
		return true;
	if (is_meant(r, frame, len))
		return act(r, c, way, frame, len);
	if (r->rule.action == RELAY_LAST && is_kind(r, frame, len)) {
		struct stream *from = &c->from[way];
		free(from->last);
		from->last = malloc(len);
		from->last_len = from->last ? len : 0;
		if (from->last)
			memcpy(from->last, frame, len);
	}
	forward(c->fd[!way], frame, len);
	return true;
}

/* False: the connection is closed. */
static bool read_from(struct relay *r, struct connection *c, int way)
{
	struct stream *s = &c->from[way];
	if (s->cap - s->len < 65536) {
		uint8_t *more = realloc(s->bytes, s->cap + (1u << 20));
		if (!more)
			return true;
		s->bytes = more;
		s->cap += 1u << 20;
	}
	ssize_t n = recv(c->fd[way], s->bytes + s->len, 65536, 0);
	if (n <= 0) {
		close_connection(c);
		return false;
	}
	s->len += (size_t)n;
	size_t at = 0;
	while (s->len - at >= WIRE_HEADER) {
		uint32_t len;
		if (wire_header_decode(s->bytes + at, &len) < 0 ||
		    s->len - at < WIRE_HEADER + (size_t)len)
			break;
		if (!pass(r, c, way, s->bytes + at, WIRE_HEADER + (size_t)len))
			return false;
		at += WIRE_HEADER + (size_t)len;
	}
	memmove(s->bytes, s->bytes + at, s->len - at);
	s->len -= at;
	return true;
}

static void *relay_main(void *arg)
{
	struct relay *r = arg;
	for (;;) {
		struct pollfd p[2 + 2 * CONNECTIONS] = { { .fd = r->stop_fd, .events = POLLIN },
							 { .fd = r->listen_fd, .events = POLLIN } };
		for (int i = 0; i < CONNECTIONS; i++) {
			for (int way = 0; way < 2; way++)
				p[2 + 2 * i + way] =
					(struct pollfd){ .fd = r->connection[i].fd[way],
							 .events = POLLIN };
		}
		(void)poll(p, BASE_ARRAY_LEN(p), -1);
		if (p[0].revents)
			return NULL;
		for (int i = 0; i < CONNECTIONS; i++) {
			bool open = r->connection[i].fd[0] >= 0;
			for (int way = 0; way < 2 && open; way++) {
				if (p[2 + 2 * i + way].revents)
					open = read_from(r, &r->connection[i], way);
			}
		}
		if (p[1].revents)
			accept_one(r);
	}
}

struct relay *relay_start(uint16_t port, const struct relay_rule *rule, uint16_t *ret_port)
{
	struct relay *r = calloc(1, sizeof(*r));
	struct sockaddr_in at = loopback(0);
	socklen_t len = sizeof(at);
	if (!r)
		return NULL;
	r->rule = *rule;
	r->port = port;
	for (int i = 0; i < CONNECTIONS; i++)
		r->connection[i].fd[0] = r->connection[i].fd[1] = -1;
	r->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	r->stop_fd = eventfd(0, EFD_CLOEXEC);
	if (r->listen_fd < 0 || r->stop_fd < 0 ||
	    bind(r->listen_fd, (struct sockaddr *)&at, sizeof(at)) || listen(r->listen_fd, 16) ||
	    getsockname(r->listen_fd, (struct sockaddr *)&at, &len) ||
	    pthread_create(&r->thread, NULL, relay_main, r)) {
		base_closep(&r->listen_fd);
		base_closep(&r->stop_fd);
		free(r);
		return NULL;
	}
	*ret_port = ntohs(at.sin_port);
	return r;
}

bool relay_met(const struct relay *r)
{
	return atomic_load(&r->met);
}

void relay_stop(struct relay *r)
{
	if (!r)
		return;
	uint64_t one = 1;
	(void)!write(r->stop_fd, &one, sizeof(one));
	pthread_join(r->thread, NULL);
	for (int i = 0; i < CONNECTIONS; i++)
		close_connection(&r->connection[i]);
	base_closep(&r->listen_fd);
	base_closep(&r->stop_fd);
	free(r);
}
