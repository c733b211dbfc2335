/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The hand-off's memory: what is on disk before a message says it, and what is asked when an
 * answer was lost.
 *
 *   source       committed   recorded, then COMMIT is sent
 *   destination  owner       recorded, then the guest is resumed, then RUNNING is sent
 *                aborted     recorded, then queries are answered so
 *
 * A record is one JSON object in RUN_DIR/SESSION.SIDE.record, written whole or not at all.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "core/engine.h"
#include "wire/socket.h"

static void record_path(const struct mf_session *s, const char *suffix, char *ret, size_t cap)
{
	(void)snprintf(ret, cap, "%s/%s.%s.record%s", s->run_dir, s->report.session,
		       s->params.side == MF_SOURCE ? "source" : "destination", suffix);
}

static int write_synced(const char *path, const char *text)
{
	base_autofd fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	size_t len = strlen(text);
	ssize_t n = write(fd, text, len);
	if (n != (ssize_t)len)
		return n < 0 ? -errno : -ENOSPC;
	return fsync(fd) ? -errno : 0;
}

int eng_record_write(struct mf_session *s, const char *what, struct mf_error *err)
{
	char path[512], temporary[520], text[512];
	record_path(s, "", path, sizeof(path));
	record_path(s, ".new", temporary, sizeof(temporary));
	(void)snprintf(text, sizeof(text),
		       "{\"version\":1,\"session\":\"%s\",\"side\":\"%s\",\"state\":\"%s\","
		       "\"peer\":\"%s\",\"time\":%lld}\n",
		       s->report.session, s->params.side == MF_SOURCE ? "source" : "destination",
		       what, s->peer_name, (long long)time(NULL));

	if (mkdir(s->run_dir, 0700) && errno != EEXIST)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "%s: cannot be created",
				      s->run_dir);
	int r = write_synced(temporary, text);
	if (r == 0 && rename(temporary, path))
		r = -errno;
	if (r == 0) {
		/* It may be there from here on, also when it is not sure to stay. */
		s->record_written = true;
		base_autofd dir = open(s->run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		/* tmpfs, the usual run directory, has nothing to sync */
		if (dir < 0 || (fsync(dir) && errno != EINVAL))
			r = -errno;
	}
	if (r < 0) {
		(void)unlink(temporary);
		return base_error_sys(
			err, r, MF_SCOPE_HOST,
			"%s: the hand-off record cannot be written; nothing is committed", path);
	}
	return 0;
}

void eng_record_remove(struct mf_session *s)
{
	char path[512];
	if (!s->record_written)
		return;
	record_path(s, "", path, sizeof(path));
	(void)unlink(path);
	s->record_written = false;
}

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

/* One question on one new connection; its Bye says that the answer was heard. */
static int ask_once(struct mf_session *s, uint64_t deadline_us, Mf__Wire__Answer__State *ret)
{
	base_autofd fd = -1;
	int r = wire_connect(s->host, s->port, -1, deadline_us, &fd, NULL);
	if (r < 0)
		return r;
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
	r = await_secure(s, ch, deadline_us);
	if (r == 0)
		r = wire_channel_send(ch, &msg, NULL);
	if (r == 0)
		r = next_message(s, ch, deadline_us, &answer);
	if (r > 0) {
		r = -EBADMSG;
		if (answer->body_case == WIRE_BODY(ANSWER)) {
			Mf__Wire__Bye heard = MF__WIRE__BYE__INIT;
			*ret = answer->answer->state;
			msg.body_case = WIRE_BODY(BYE);
			msg.bye = &heard;
			(void)wire_channel_send(ch, &msg, NULL);
			r = 0;
		}
		wire_msg_free(answer);
	}
	wire_channel_close(ch);
	return r;
}

Mf__Wire__Answer__State eng_query_peer(struct mf_session *s, uint64_t deadline_us)
{
	uint64_t pause_us = 100000;
	for (;;) {
		Mf__Wire__Answer__State state = MF__WIRE__ANSWER__STATE__UNKNOWN;
		uint64_t now = base_now_us(), one = now + 3000000;
		if (ask_once(s, one < deadline_us ? one : deadline_us, &state) == 0 &&
		    state != MF__WIRE__ANSWER__STATE__PENDING)
			return state;
		now = base_now_us();
		if (now >= deadline_us)
			return MF__WIRE__ANSWER__STATE__UNKNOWN;
		/* Nothing to wait for: the other host comes back when it does.  Back off to a second. */
		uint64_t until = now + pause_us < deadline_us ? now + pause_us : deadline_us;
		while (base_now_us() < until)
			eng_sleep(s, until);
		pause_us = pause_us < 500000 ? pause_us * 2 : 1000000;
	}
}

/* 0: the source asked and heard the answer.  One that has given up waiting may still stand in the queue. */
static int answer_one(struct mf_session *s, struct wire_channel *ch, uint64_t patience_ms,
		      Mf__Wire__Answer__State state)
{
	wire_msg *query, *bye;
	int r = next_message(s, ch, base_deadline_ms(patience_ms), &query);
	bool ours = r > 0 && query->body_case == WIRE_BODY(QUERY) &&
		    !strcmp(query->query->session, s->report.session);
	if (r > 0)
		wire_msg_free(query);
	if (!ours)
		return -EAGAIN;
	Mf__Wire__Answer body = MF__WIRE__ANSWER__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(ANSWER);
	msg.answer = &body;
	body.state = state;
	r = wire_channel_send(ch, &msg, NULL);
	if (r == 0)
		r = next_message(s, ch, base_deadline_ms(patience_ms), &bye);
	bool heard = r > 0 && bye->body_case == WIRE_BODY(BYE);
	if (r > 0)
		wire_msg_free(bye);
	return heard ? 0 : -EAGAIN;
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

uint64_t eng_doubt_deadline(const struct mf_session *s)
{
	return base_deadline_ms(3 * s->params.peer_timeout_ms);
}

void eng_answer_queries(struct mf_session *s, Mf__Wire__Answer__State state)
{
	uint64_t deadline_us = eng_doubt_deadline(s);
	uint64_t patience_ms = s->params.peer_timeout_ms < 3000 ? s->params.peer_timeout_ms : 3000;
	struct wire_acceptor *acceptor;
	bool heard = false;
	if (eng_open_acceptor(s, patience_ms, &acceptor, NULL) < 0)
		return;
	while (!heard && base_now_us() < deadline_us && !source_knows(s)) {
		struct wire_channel *ch;
		int r = wire_acceptor_next(acceptor, deadline_us, &ch, NULL);
		if (r == -EINTR) {
			eng_sleep(s, 0); /* takes the wake-up */
			continue;
		}
		if (r < 0)
			break;
		heard = answer_one(s, ch, patience_ms, state) == 0;
		wire_channel_close(ch);
	}
	wire_acceptor_close(acceptor);
}
