/* SPDX-License-Identifier: BSD-2-Clause */
#include "wire/channel.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "wire/socket.h"

/* Messages read ahead of the session; past it the peer waits, by TCP's own flow control. */
enum { QUEUE_MAX = 64 };

struct wire_channel {
	/* after open read-only */
	int fd;
	int notify_fd; /* borrowed */
	int wake_fd;   /* wakes our thread: room in the queue, or stop */
	uint64_t timeout_us;
	pthread_t thread;
	char peer[96];

	pthread_mutex_t send_lock; /* one frame at a time on the socket */

	pthread_mutex_t lock; /* protects all below */
	wire_msg *queue[QUEUE_MAX];
	unsigned head, count;
	int failure;
	bool stop;

	/* the thread's own */
	uint8_t header[WIRE_HEADER];
	uint8_t *payload; /* WIRE_FRAME_MAX bytes */
	size_t got;       /* of header and payload */
	uint32_t len;
	uint64_t heard_us, pinged_us;
};

static void fail(struct wire_channel *ch, int code)
{
	pthread_mutex_lock(&ch->lock);
	if (!ch->failure)
		ch->failure = code;
	pthread_mutex_unlock(&ch->lock);
	base_event_poke(ch->notify_fd);
}

static int describe_failure(const struct wire_channel *ch, int code, struct mf_error *err)
{
	switch (code) {
	case -ECONNRESET:
	case -EPIPE:
		return base_error(err, code, MF_SCOPE_SESSION,
				  "%s: the peer closed the control channel", ch->peer);
	case -ETIMEDOUT:
		return base_error(err, code, MF_SCOPE_SESSION,
				  "%s: the peer has been silent for %llu ms", ch->peer,
				  (unsigned long long)(ch->timeout_us / 1000));
	case -EBADMSG:
		return base_error(
			err, code, MF_SCOPE_SESSION,
			"%s: a malformed control message; is it memferry that answers there?",
			ch->peer);
	default:
		return base_error_sys(err, code, MF_SCOPE_SESSION, "%s: control channel", ch->peer);
	}
}

/* Reads what is there into the current frame.  1: a whole frame, 0: more is needed, negative: over. */
static int read_some(struct wire_channel *ch)
{
	for (;;) {
		bool in_header = ch->got < WIRE_HEADER;
		uint8_t *to =
			in_header ? ch->header + ch->got : ch->payload + ch->got - WIRE_HEADER;
		size_t want =
			(in_header ? (size_t)WIRE_HEADER : WIRE_HEADER + (size_t)ch->len) - ch->got;
		if (want) {
			ssize_t n = recv(ch->fd, to, want, 0);
			if (n == 0)
				return -ECONNRESET;
			if (n < 0)
				return errno == EAGAIN ? 0 : errno == EINTR ? 0 : -errno;
			ch->got += (size_t)n;
			ch->heard_us = base_now_us();
		}
		if (in_header && ch->got == WIRE_HEADER) {
			int r = wire_header_decode(ch->header, &ch->len);
			if (r < 0)
				return r;
		}
		if (ch->got >= WIRE_HEADER && ch->got == WIRE_HEADER + (size_t)ch->len) {
			ch->got = 0;
			return 1;
		}
	}
}

static int take_frame(struct wire_channel *ch)
{
	wire_msg *msg;
	int r = wire_msg_decode(ch->payload, ch->len, &msg);
	if (r < 0)
		return r;
	if (msg->body_case == WIRE_BODY(PING)) {
		wire_msg_free(msg);
		return 0;
	}
	pthread_mutex_lock(&ch->lock);
	assert(ch->count < QUEUE_MAX);
	ch->queue[(ch->head + ch->count++) % QUEUE_MAX] = msg;
	pthread_mutex_unlock(&ch->lock);
	base_event_poke(ch->notify_fd);
	return 0;
}

static int read_frames(struct wire_channel *ch)
{
	for (;;) {
		pthread_mutex_lock(&ch->lock);
		bool full = ch->count == QUEUE_MAX;
		pthread_mutex_unlock(&ch->lock);
		if (full)
			return 0;
		int r = read_some(ch);
		if (r <= 0)
			return r;
		r = take_frame(ch);
		if (r < 0)
			return r;
	}
}

static int send_all(struct wire_channel *ch, const uint8_t *bytes, size_t len)
{
	uint64_t deadline = base_now_us() + ch->timeout_us;
	while (len) {
		ssize_t n = send(ch->fd, bytes, len, MSG_NOSIGNAL);
		if (n > 0) {
			bytes += n;
			len -= (size_t)n;
			continue;
		}
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		struct pollfd p = { .fd = ch->fd, .events = POLLOUT };
		if (poll(&p, 1, base_left_ms(deadline)) == 0)
			return -ETIMEDOUT;
	}
	return 0;
}

static int ping(struct wire_channel *ch)
{
	Mf__Wire__Ping body = MF__WIRE__PING__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(PING);
	msg.ping = &body;
	base_autofree uint8_t *bytes = NULL;
	size_t len;
	int r = wire_msg_encode(&msg, &bytes, &len);
	if (r < 0)
		return r;
	/* A send under way is as good as a ping. */
	if (pthread_mutex_trylock(&ch->send_lock))
		return 0;
	r = send_all(ch, bytes, len);
	pthread_mutex_unlock(&ch->send_lock);
	return r;
}

static void *channel_main(void *arg)
{
	struct wire_channel *ch = arg;
	uint64_t period = ch->timeout_us / 4 < 1000000 ? ch->timeout_us / 4 : 1000000;
	(void)pthread_setname_np(pthread_self(), "mf-control");
	ch->heard_us = ch->pinged_us = base_now_us();

	for (;;) {
		pthread_mutex_lock(&ch->lock);
		bool stop = ch->stop, full = ch->count == QUEUE_MAX;
		pthread_mutex_unlock(&ch->lock);
		if (stop)
			return NULL;

		uint64_t now = base_now_us();
		int r = 0;
		if (now >= ch->pinged_us + period) {
			r = ping(ch);
			ch->pinged_us = base_now_us();
		}
		if (full)
			ch->heard_us = base_now_us(); /* it is us who do not listen */
		else if (r == 0)
			r = read_frames(ch);
		if (r == 0 && base_now_us() > ch->heard_us + ch->timeout_us)
			r = -ETIMEDOUT;
		if (r < 0) {
			fail(ch, r);
			return NULL;
		}
		struct pollfd p[2] = { { .fd = ch->wake_fd, .events = POLLIN },
				       /* full: a peer that hung up is not to wake us in vain */
				       { .fd = full ? -1 : ch->fd, .events = POLLIN } };
		(void)poll(p, 2, base_left_ms(ch->pinged_us + period));
		if (p[0].revents)
			base_event_take(ch->wake_fd);
	}
}

static void free_channel(struct wire_channel *ch)
{
	while (ch->count) {
		wire_msg_free(ch->queue[ch->head]);
		ch->head = (ch->head + 1) % QUEUE_MAX;
		ch->count--;
	}
	base_closep(&ch->fd);
	base_closep(&ch->wake_fd);
	pthread_mutex_destroy(&ch->lock);
	pthread_mutex_destroy(&ch->send_lock);
	free(ch->payload);
	free(ch);
}

int wire_channel_open(int *fd, uint64_t peer_timeout_ms, int notify_fd,
		      struct wire_channel **ret_channel, struct mf_error *err)
{
	struct wire_channel *ch = calloc(1, sizeof(*ch));
	if (!ch)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "control channel: out of memory");
	wire_peer_name(*fd, ch->peer, sizeof(ch->peer));
	ch->fd = base_take_fd(fd);
	ch->notify_fd = notify_fd;
	ch->timeout_us = peer_timeout_ms * 1000;
	ch->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&ch->lock, NULL);
	pthread_mutex_init(&ch->send_lock, NULL);
	ch->payload = malloc(WIRE_FRAME_MAX);
	int r = ch->wake_fd < 0 ? -errno : !ch->payload ? -ENOMEM : 0;
	if (r == 0)
		r = -pthread_create(&ch->thread, NULL, channel_main, ch);
	if (r < 0) {
		free_channel(ch);
		return base_error_sys(err, r, MF_SCOPE_HOST, "control channel");
	}
	*ret_channel = ch;
	return 0;
}

int wire_channel_send(struct wire_channel *ch, const wire_msg *msg, struct mf_error *err)
{
	base_autofree uint8_t *bytes = NULL;
	size_t len;

	pthread_mutex_lock(&ch->lock);
	int r = ch->failure;
	pthread_mutex_unlock(&ch->lock);
	if (r < 0)
		return describe_failure(ch, r, err);
	r = wire_msg_encode(msg, &bytes, &len);
	if (r < 0)
		return base_error_sys(err, r, MF_SCOPE_SESSION, "control message %s",
				      wire_msg_name(msg));
	pthread_mutex_lock(&ch->send_lock);
	r = send_all(ch, bytes, len);
	pthread_mutex_unlock(&ch->send_lock);
	if (r < 0) {
		fail(ch, r);
		return describe_failure(ch, r, err);
	}
	return 0;
}

int wire_channel_next(struct wire_channel *ch, wire_msg **ret, struct mf_error *err)
{
	int r = 0;
	pthread_mutex_lock(&ch->lock);
	bool was_full = ch->count == QUEUE_MAX;
	if (ch->count) {
		*ret = ch->queue[ch->head];
		ch->head = (ch->head + 1) % QUEUE_MAX;
		ch->count--;
		r = 1;
	} else {
		r = ch->failure;
	}
	pthread_mutex_unlock(&ch->lock);
	if (was_full)
		base_event_poke(ch->wake_fd);
	return r < 0 ? describe_failure(ch, r, err) : r;
}

void wire_channel_close(struct wire_channel *ch)
{
	if (!ch)
		return;
	pthread_mutex_lock(&ch->lock);
	ch->stop = true;
	pthread_mutex_unlock(&ch->lock);
	base_event_poke(ch->wake_fd);
	pthread_join(ch->thread, NULL);
	/* An orderly end: what is still in the socket's buffer reaches the peer. */
	(void)shutdown(ch->fd, SHUT_WR);
	free_channel(ch);
}
