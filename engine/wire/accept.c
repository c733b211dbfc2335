/* SPDX-License-Identifier: BSD-2-Clause */
#include "wire/accept.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "wire/socket.h"

#define NOBODY UINT_MAX

struct pending {
	struct wire_channel *channel;
	uint64_t deadline_us;
	char peer[96];
};

struct wire_acceptor {
	struct wire_acceptor_params params;
	/* The oldest first; one more for whoever comes just when the last stranger proves that it is none. */
	struct pending pending[WIRE_PENDING_MAX + 1];
	unsigned n;
};

int wire_acceptor_open(const struct wire_acceptor_params *params,
		       struct wire_acceptor **ret_acceptor, struct mf_error *err)
{
	struct wire_acceptor *a = calloc(1, sizeof(*a));
	if (!a)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	a->params = *params;
	*ret_acceptor = a;
	return 0;
}

static struct wire_channel *take_out(struct wire_acceptor *a, unsigned i)
{
	struct wire_channel *channel = a->pending[i].channel;
	a->n--;
	memmove(&a->pending[i], &a->pending[i + 1], (a->n - i) * sizeof(a->pending[0]));
	return channel;
}

static void refuse(struct wire_acceptor *a, unsigned i, const char *why)
{
	wire_channel_close(take_out(a, i));
	if (a->params.on_refused)
		a->params.on_refused(a->params.ctx, why);
}

/* Whoever has spoken, or NULL; those who failed or took too long are gone then. */
static struct wire_channel *look(struct wire_acceptor *a, uint64_t *until)
{
	uint64_t now = base_now_us();
	for (unsigned i = 0; i < a->n;) {
		struct pending *p = &a->pending[i];
		struct mf_error why = { 0 };
		int r = wire_channel_has_message(p->channel, &why);
		if (r > 0)
			return take_out(a, i);
		if (r == 0 && now >= p->deadline_us)
			r = base_error(&why, -ETIMEDOUT, MF_SCOPE_SESSION,
				       "%s: it did not say what it wants within %llu ms", p->peer,
				       (unsigned long long)a->params.channel.handshake_ms);
		if (r < 0) {
			refuse(a, i, why.msg);
			continue;
		}
		if (p->deadline_us < *until)
			*until = p->deadline_us;
		i++;
	}
	return NULL;
}

/* Who has proven nothing gives way to the next, the oldest first: silence in every place would else keep that one
 * out. */
static unsigned find_unknown(struct wire_acceptor *a)
{
	unsigned i = 0;
	for (; i < a->n; i++) {
		struct wire_channel *channel = a->pending[i].channel;
		bool is_known =
			a->params.channel.security && wire_channel_is_secure(channel, NULL) > 0;
		if (!is_known && wire_channel_has_message(channel, NULL) <= 0)
			return i;
	}
	return NOBODY;
}

static bool is_full(struct wire_acceptor *a)
{
	return a->n >= WIRE_PENDING_MAX && find_unknown(a) == NOBODY;
}

static void make_room(struct wire_acceptor *a)
{
	unsigned i = a->n >= WIRE_PENDING_MAX ? find_unknown(a) : NOBODY;
	if (i != NOBODY) {
		struct mf_error why = { 0 };
		(void)base_error(&why, -EAGAIN, MF_SCOPE_SESSION,
				 "%s: too many connections that say nothing", a->pending[i].peer);
		refuse(a, i, why.msg);
	}
}

static int admit(struct wire_acceptor *a, int *fd, struct mf_error *err)
{
	struct pending *p = &a->pending[a->n];
	wire_peer_name(*fd, p->peer, sizeof(p->peer));
	p->deadline_us = base_deadline_ms(a->params.channel.handshake_ms);
	int r = wire_channel_open(fd, &a->params.channel, &p->channel, err);
	if (r == 0)
		a->n++;
	return r;
}

int wire_acceptor_next(struct wire_acceptor *a, uint64_t deadline_us,
		       struct wire_channel **ret_channel, struct mf_error *err)
{
	for (;;) {
		base_autofd fd = -1;
		uint64_t until = deadline_us;
		*ret_channel = look(a, &until);
		if (*ret_channel)
			return 0;
		/* When every place is taken by somebody known, the next waits in the kernel's queue. */
		int r = wire_accept(is_full(a) ? -1 : a->params.listen_fd,
				    a->params.channel.notify_fd, until, &fd, err);
		if (r == -ETIMEDOUT && base_now_us() < deadline_us)
			continue;
		if (r == 0) {
			make_room(a);
			r = admit(a, &fd, err);
		}
		if (r < 0)
			return r;
	}
}

void wire_acceptor_close(struct wire_acceptor *a)
{
	while (a && a->n)
		wire_channel_close(take_out(a, 0));
	free(a);
}
