/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What became of the other side: asked by the source, answered by the destination, on connections of their own.
 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "core/engine.h"
#include "wire/socket.h"

#define ACT_MS 15000u

/* The next message of a channel that is not the session's: 1, or negative. */
static int next_message(struct mf_session *s, struct wire_channel *ch, uint64_t deadline_us,
			wire_msg **ret)
{
	int r;
	while ((r = wire_channel_next(ch, ret, NULL)) == 0) {
		if (base_now_us() >= deadline_us)
			return -ETIMEDOUT;
		eng_sleep(s, deadline_us);
	}
	return r;
}

static int await_secure(struct mf_session *s, struct wire_channel *ch, uint64_t deadline_us)
{
	int r;
	while ((r = wire_channel_is_secure(ch, NULL)) == 0) {
		if (base_now_us() >= deadline_us)
			return -ETIMEDOUT;
		eng_sleep(s, deadline_us);
	}
	return r < 0 ? r : 0;
}

int eng_ask_peer(struct mf_session *s, uint64_t deadline_us, struct eng_answer *ret)
{
	base_autofd fd = -1;
	int r = wire_connect(s->host, s->port, -1, deadline_us, &fd, NULL);
	if (r < 0)
		return r;
	eng_note_addresses(s, fd);
	const struct wire_channel_params params = eng_channel_params(s);
	struct wire_channel *ch;
	r = wire_channel_open(&fd, &params, &ch, NULL);
	if (r < 0)
		return r;
	Mf__Wire__Query body = MF__WIRE__QUERY__INIT;
	wire_msg msg = WIRE_INIT, *answer;
	msg.body_case = WIRE_BODY(QUERY);
	msg.query = &body;
	body.session = s->report.session;
	body.goes_on = !s->guest_has_ended;
	r = await_secure(s, ch, deadline_us);
	if (r == 0)
		r = wire_channel_send(ch, &msg, NULL);
	if (r == 0)
		r = next_message(s, ch, deadline_us, &answer);
	if (r > 0) {
		r = answer->body_case == WIRE_BODY(ANSWER) ? 0 : -EBADMSG;
		if (r == 0)
			*ret = (struct eng_answer){ answer->answer->state,
						    answer->answer->goes_on };
		wire_msg_free(answer);
	}
	if (r < 0)
		wire_channel_close(ch);
	else
		s->channel = ch;
	return r < 0 ? r : 0;
}

static int send_answer(struct wire_channel *ch, const struct eng_answer *answer)
{
	Mf__Wire__Answer body = MF__WIRE__ANSWER__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(ANSWER);
	msg.answer = &body;
	body.state = answer->state;
	body.goes_on = answer->goes_on;
	return wire_channel_send(ch, &msg, NULL);
}

static uint64_t patience_ms(const struct mf_session *s)
{
	return s->params.peer_timeout_ms < 3000 ? s->params.peer_timeout_ms : 3000;
}

/* An asker that has given up waiting may still stand in the queue, and its question is read: only Bye tells that the
 * answer was heard. */
static int answer_one(struct mf_session *s, struct wire_channel *ch,
		      const struct eng_answer *answer)
{
	wire_msg *msg;
	struct eng_answer ours = *answer;
	int r = next_message(s, ch, base_deadline_ms(patience_ms(s)), &msg);
	if (r > 0) {
		r = msg->body_case == WIRE_BODY(QUERY) &&
				    !strcmp(msg->query->session, s->report.session)
			    ? 0
			    : -EBADMSG;
		if (r == 0)
			ours.goes_on = ours.goes_on && msg->query->goes_on;
		wire_msg_free(msg);
	}
	if (r == 0)
		r = send_answer(ch, &ours);
	if (r == 0 && ours.goes_on)
		return 1;
	/* It does first what the answer means: ends its guest, say. */
	if (r == 0)
		r = next_message(s, ch, base_deadline_ms(patience_ms(s) + ACT_MS), &msg);
	if (r > 0) {
		r = msg->body_case == WIRE_BODY(BYE) ? 0 : -EBADMSG;
		wire_msg_free(msg);
	}
	return r;
}

int eng_answer_next(struct mf_session *s, struct wire_acceptor *acceptor, uint64_t deadline_us,
		    const struct eng_answer *answer)
{
	struct wire_channel *ch;
	int r = wire_acceptor_next(acceptor, deadline_us, &ch, NULL);
	if (r == -EINTR)
		eng_sleep(s, 0); /* takes the wake-up */
	if (r < 0)
		return r;
	r = answer_one(s, ch, answer);
	if (r != 1) {
		wire_channel_close(ch);
		return r < 0 ? -EAGAIN : 0;
	}
	s->channel = ch;
	eng_note_addresses(s, wire_channel_fd(ch));
	return 1;
}

int eng_open_answering(struct mf_session *s, struct wire_acceptor **ret_acceptor)
{
	return eng_open_acceptor(s, patience_ms(s), ret_acceptor, NULL);
}

/* It said so on the session's own channel: Bye, or before its commit that it gave up. */
static bool source_knows(struct mf_session *s)
{
	wire_msg *msg;
	bool bye = false;
	while (!bye && !s->peer_gave_up && eng_receive(s, 0, &msg, NULL) > 0) {
		bye = msg->body_case == WIRE_BODY(BYE);
		wire_msg_free(msg);
	}
	return bye || s->peer_gave_up;
}

bool eng_answer_queries(struct mf_session *s, Mf__Wire__Answer__State state)
{
	/* The source noticed the lost connection at most one of its limits before or after we did. */
	uint64_t deadline_us = base_deadline_ms(3 * s->params.peer_timeout_ms);
	const struct eng_answer answer = { state, false };
	struct wire_acceptor *acceptor;
	bool heard = false;
	int r = eng_open_answering(s, &acceptor);
	if (r < 0)
		return false;
	while (!heard && base_now_us() < deadline_us) {
		heard = source_knows(s);
		if (!heard)
			r = eng_answer_next(s, acceptor, deadline_us, &answer);
		heard = heard || r == 0;
		if (r < 0 && r != -EINTR && r != -EAGAIN)
			break;
	}
	wire_acceptor_close(acceptor);
	return heard;
}
