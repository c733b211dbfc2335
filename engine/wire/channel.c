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
#include "wire/tls.h"

/* Messages read ahead of the session; past it the peer waits, by TCP's own flow control. */
enum { QUEUE_MAX = 64 };

struct wire_channel {
	/* after open read-only */
	int fd;
	int notify_fd; /* borrowed */
	int wake_fd;   /* wakes our thread: room in the queue, or stop */
	uint64_t timeout_us, handshake_us;
	pthread_t thread;
	char peer[96];
	struct wire_tls *tls; /* NULL: plain; has a lock of its own */
	bool is_server;       /* of TLS */

	pthread_mutex_t send_lock; /* one frame at a time on the socket */

	pthread_mutex_t lock; /* protects all below */
	wire_msg *queue[QUEUE_MAX];
	unsigned head, count;
	int failure;
	struct mf_error why; /* of the failure, where there is more to say than its code */
	bool secure;
	bool stop;

	/* the thread's own */
	uint8_t header[WIRE_HEADER];
	uint8_t *payload; /* WIRE_FRAME_MAX bytes */
	size_t got;       /* of header and payload */
	uint32_t len;
	uint64_t heard_us, pinged_us;
};

/* why: what there is to say beyond the code, if anything. */
static void fail(struct wire_channel *ch, int code, const struct mf_error *why)
{
	pthread_mutex_lock(&ch->lock);
	if (!ch->failure) {
		ch->failure = code;
		ch->why = *why;
	}
	pthread_mutex_unlock(&ch->lock);
	base_event_poke(ch->notify_fd);
}

/* After a failure, which stays. */
static int describe_failure(const struct wire_channel *ch, struct mf_error *err)
{
	int code = ch->failure;
	if (ch->why.code)
		return base_error(err, code, ch->why.scope, "%.80s: %.140s", ch->peer, ch->why.msg);
	switch (code) {
	case -ECONNRESET:
	case -EPIPE:
		return base_error(err, code, MF_SCOPE_SESSION,
				  "%s: the peer closed the control channel", ch->peer);
	case -ETIMEDOUT:
		return base_error(err, code, MF_SCOPE_SESSION,
				  "%s: the peer has been silent for %llu ms", ch->peer,
				  (unsigned long long)(ch->timeout_us / 1000));
	case -ETIME:
		return base_error(err, code, MF_SCOPE_SESSION,
				  "%s: the other host did not secure the channel within %llu ms",
				  ch->peer, (unsigned long long)(ch->handshake_us / 1000));
	case -EBADMSG:
		return base_error(
			err, code, MF_SCOPE_SESSION,
			"%s: a malformed control message; is it memferry that answers there?",
			ch->peer);
	default:
		return base_error_sys(err, code, MF_SCOPE_SESSION, "%s: control channel", ch->peer);
	}
}

static bool is_secure(struct wire_channel *ch)
{
	pthread_mutex_lock(&ch->lock);
	bool secure = ch->secure;
	pthread_mutex_unlock(&ch->lock);
	return secure;
}

static void set_secure(struct wire_channel *ch)
{
	pthread_mutex_lock(&ch->lock);
	ch->secure = true;
	pthread_mutex_unlock(&ch->lock);
	base_event_poke(ch->notify_fd);
}

/* More than none; -EAGAIN, or how it ended. */
static ssize_t receive(struct wire_channel *ch, void *bytes, size_t cap, struct mf_error *why)
{
	short events;
	if (ch->tls)
		return wire_tls_read(ch->tls, bytes, cap, &events, why);
	ssize_t n = recv(ch->fd, bytes, cap, 0);
	if (n == 0)
		return -ECONNRESET;
	return n > 0 ? n : errno == EINTR ? -EAGAIN : -errno;
}

static int ping(struct wire_channel *ch, struct mf_error *why);

/* A memferry with security came to one without; a frame tells it so. */
static int meet_tls(struct wire_channel *ch, struct mf_error *why)
{
	(void)ping(ch, NULL);
	return base_error(why, -MF_ESECURITY, MF_SCOPE_SESSION,
			  "the other host wants a secure channel, and this one was started with "
			  "--insecure; start both alike");
}

/* Reads what is there into the current frame.  1: a whole frame, 0: more is needed, negative: over. */
static int read_some(struct wire_channel *ch, struct mf_error *why)
{
	for (;;) {
		bool in_header = ch->got < WIRE_HEADER;
		uint8_t *to =
			in_header ? ch->header + ch->got : ch->payload + ch->got - WIRE_HEADER;
		size_t want =
			(in_header ? (size_t)WIRE_HEADER : WIRE_HEADER + (size_t)ch->len) - ch->got;
		if (want) {
			ssize_t n = receive(ch, to, want, why);
			if (n < 0)
				return n == -EAGAIN ? 0 : (int)n;
			ch->got += (size_t)n;
			ch->heard_us = base_now_us();
			if (ch->tls && !is_secure(ch))
				set_secure(ch); /* the server speaks to whom it has accepted */
		}
		if (in_header && !ch->tls && ch->got > 1 && wire_may_be_tls(ch->header, ch->got))
			return meet_tls(ch, why);
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

static int read_frames(struct wire_channel *ch, struct mf_error *why)
{
	for (;;) {
		pthread_mutex_lock(&ch->lock);
		bool full = ch->count == QUEUE_MAX;
		pthread_mutex_unlock(&ch->lock);
		if (full)
			return 0;
		int r = read_some(ch, why);
		if (r <= 0)
			return r;
		r = take_frame(ch);
		if (r < 0)
			return r;
	}
}

static ssize_t send_some(struct wire_channel *ch, const uint8_t *bytes, size_t len,
			 short *ret_events, struct mf_error *why)
{
	if (ch->tls)
		return wire_tls_write(ch->tls, bytes, len, ret_events, why);
	*ret_events = POLLOUT;
	ssize_t n = send(ch->fd, bytes, len, MSG_NOSIGNAL);
	return n >= 0 ? n : errno == EINTR ? -EAGAIN : -errno;
}

static int send_all(struct wire_channel *ch, const uint8_t *bytes, size_t len, struct mf_error *why)
{
	uint64_t deadline = base_now_us() + ch->timeout_us;
	while (len) {
		struct pollfd p = { .fd = ch->fd };
		ssize_t n = send_some(ch, bytes, len, &p.events, why);
		if (n > 0) {
			bytes += n;
			len -= (size_t)n;
			continue;
		}
		if (n < 0 && n != -EAGAIN)
			return (int)n;
		if (poll(&p, 1, base_left_ms(deadline)) == 0)
			return -ETIMEDOUT;
	}
	return 0;
}

static int ping(struct wire_channel *ch, struct mf_error *why)
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
	r = send_all(ch, bytes, len, why);
	pthread_mutex_unlock(&ch->send_lock);
	return r;
}

/* The deadline is the whole handshake's, however it drips in. */
static int shake_hands(struct wire_channel *ch, uint64_t deadline_us, struct mf_error *why)
{
	for (;;) {
		struct pollfd p[2] = { { .fd = ch->wake_fd, .events = POLLIN },
				       { .fd = ch->fd, .events = POLLIN } };
		pthread_mutex_lock(&ch->lock);
		bool stop = ch->stop;
		pthread_mutex_unlock(&ch->lock);
		int r = stop ? -ECANCELED : wire_tls_handshake(ch->tls, &p[1].events, why);
		if (r != -EAGAIN)
			return r;
		if (base_now_us() >= deadline_us)
			return -ETIME;
		(void)poll(p, 2, base_left_ms(deadline_us));
		if (p[0].revents)
			base_event_take(ch->wake_fd);
	}
}

static int secure(struct wire_channel *ch, uint64_t deadline_us, struct mf_error *why)
{
	if (!ch->tls)
		return 0;
	int r = shake_hands(ch, deadline_us, why);
	if (r == 0 && ch->is_server) {
		r = ping(ch, why);
		set_secure(ch);
	}
	return r;
}

static void *channel_main(void *arg)
{
	struct wire_channel *ch = arg;
	uint64_t period = ch->timeout_us / 4 < 1000000 ? ch->timeout_us / 4 : 1000000;
	(void)pthread_setname_np(pthread_self(), "mf-control");
	struct mf_error why = { 0 };
	uint64_t deadline_us = base_now_us() + ch->handshake_us;
	int r = secure(ch, deadline_us, &why);
	ch->heard_us = ch->pinged_us = base_now_us();

	while (r == 0) {
		pthread_mutex_lock(&ch->lock);
		bool stop = ch->stop, full = ch->count == QUEUE_MAX, waits = !ch->secure;
		pthread_mutex_unlock(&ch->lock);
		if (stop)
			return NULL;

		uint64_t now = base_now_us();
		if (now >= ch->pinged_us + period) {
			r = waits ? 0 : ping(ch, &why);
			ch->pinged_us = base_now_us();
		}
		if (full)
			ch->heard_us = base_now_us(); /* it is us who do not listen */
		else if (r == 0)
			r = read_frames(ch, &why);
		if (r == 0 && waits && base_now_us() >= deadline_us)
			r = is_secure(ch) ? 0 : -ETIME;
		if (r == 0 && base_now_us() > ch->heard_us + ch->timeout_us)
			r = -ETIMEDOUT;
		if (r < 0)
			break;
		struct pollfd p[2] = { { .fd = ch->wake_fd, .events = POLLIN },
				       /* full: a peer that hung up is not to wake us in vain */
				       { .fd = full ? -1 : ch->fd, .events = POLLIN } };
		uint64_t until = ch->pinged_us + period;
		(void)poll(p, 2, base_left_ms(waits && deadline_us < until ? deadline_us : until));
		if (p[0].revents)
			base_event_take(ch->wake_fd);
	}
	fail(ch, r, &why);
	return NULL;
}

static void free_channel(struct wire_channel *ch)
{
	while (ch->count) {
		wire_msg_free(ch->queue[ch->head]);
		ch->head = (ch->head + 1) % QUEUE_MAX;
		ch->count--;
	}
	wire_tls_free(ch->tls);
	base_closep(&ch->fd);
	base_closep(&ch->wake_fd);
	pthread_mutex_destroy(&ch->lock);
	pthread_mutex_destroy(&ch->send_lock);
	free(ch->payload);
	free(ch);
}

int wire_channel_open(int *fd, const struct wire_channel_params *params,
		      struct wire_channel **ret_channel, struct mf_error *err)
{
	struct wire_channel *ch = calloc(1, sizeof(*ch));
	if (!ch)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "control channel: out of memory");
	wire_peer_name(*fd, ch->peer, sizeof(ch->peer));
	ch->fd = base_take_fd(fd);
	ch->notify_fd = params->notify_fd;
	ch->timeout_us = params->peer_timeout_ms * 1000;
	ch->handshake_us = params->handshake_ms * 1000;
	ch->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&ch->lock, NULL);
	pthread_mutex_init(&ch->send_lock, NULL);
	ch->payload = malloc(WIRE_FRAME_MAX);
	int r = ch->wake_fd < 0 ? -errno : !ch->payload ? -ENOMEM : 0;
	if (r == 0 && params->security) {
		ch->is_server = wire_security_is_server(params->security);
		r = wire_tls_create(params->security, ch->fd, params->host, &ch->tls, err);
	}
	ch->secure = !ch->tls;
	if (r == 0)
		r = -pthread_create(&ch->thread, NULL, channel_main, ch);
	if (r < 0) {
		free_channel(ch);
		return base_error_sys(err, r, MF_SCOPE_HOST, "control channel");
	}
	*ret_channel = ch;
	return 0;
}

int wire_channel_is_secure(struct wire_channel *ch, struct mf_error *err)
{
	pthread_mutex_lock(&ch->lock);
	int r = ch->failure ? ch->failure : ch->secure;
	pthread_mutex_unlock(&ch->lock);
	return r < 0 ? describe_failure(ch, err) : r;
}

int wire_channel_has_message(struct wire_channel *ch, struct mf_error *err)
{
	pthread_mutex_lock(&ch->lock);
	int r = ch->count ? 1 : ch->failure;
	pthread_mutex_unlock(&ch->lock);
	return r < 0 ? describe_failure(ch, err) : r;
}

int wire_channel_export(struct wire_channel *ch, const char *label, uint8_t *key, size_t len)
{
	return ch->tls ? wire_tls_export(ch->tls, label, key, len) : -EOPNOTSUPP;
}

int wire_channel_fd(const struct wire_channel *ch)
{
	return ch->fd;
}

int wire_channel_send(struct wire_channel *ch, const wire_msg *msg, struct mf_error *err)
{
	base_autofree uint8_t *bytes = NULL;
	struct mf_error why = { 0 };
	size_t len;

	int r = wire_channel_is_secure(ch, err);
	assert(r);
	if (r < 0)
		return r;
	r = wire_msg_encode(msg, &bytes, &len);
	if (r < 0)
		return base_error_sys(err, r, MF_SCOPE_SESSION, "control message %s",
				      wire_msg_name(msg));
	pthread_mutex_lock(&ch->send_lock);
	r = send_all(ch, bytes, len, &why);
	pthread_mutex_unlock(&ch->send_lock);
	if (r < 0) {
		fail(ch, r, &why);
		return describe_failure(ch, err);
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
	return r < 0 ? describe_failure(ch, err) : r;
}

/* What was not read would make the kernel cut the connection, and with it what was said last. */
static void drain(int fd)
{
	char bytes[4096];
	for (unsigned i = 0; i < 64 && recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0; i++)
		;
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
	if (ch->tls)
		wire_tls_say_goodbye(ch->tls);
	(void)shutdown(ch->fd, SHUT_WR);
	drain(ch->fd);
	free_channel(ch);
}
