/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who runs a session, and in which thread the program is called back.
 *
 *   run      the caller's thread runs the session; callbacks come in it
 *   thread   a thread of ours runs it; callbacks come in that one
 *   loop     a thread of ours runs it and only waits, decides and talks to the peer; callbacks come out of
 *            mf_session_step(), in the thread that calls it
 *
 * A loop's callbacks are handed over one at a time: the session's thread posts a call and sleeps until step() has made it,
 * so nothing that a callback sees changes under it.  Events are queued, so that the session need not wait for
 * the loop to look at them.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "base/thread.h"
#include "core/engine.h"

/* An event and what it points to. */
struct eng_said {
	struct mf_event event;
	char text[EVENT_TEXT_MAX];
	struct mf_round round;
	struct mf_finding finding;
};

int eng_drive_init(struct eng_drive *d, struct mf_error *err)
{
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d->changed, &attr);
	pthread_condattr_destroy(&attr);
	pthread_mutex_init(&d->lock, NULL);
	d->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return d->fd < 0 ? base_error_sys(err, -errno, MF_SCOPE_HOST, "eventfd") : 0;
}

void eng_drive_free(struct eng_drive *d)
{
	pthread_mutex_destroy(&d->lock);
	pthread_cond_destroy(&d->changed);
	base_closep(&d->fd);
	free(d->queue);
}

/* ---- the session's thread ---- */

int64_t eng_in_drivers_thread(struct mf_session *s, eng_call_fn fn, void *ctx)
{
	struct eng_drive *d = &s->drive;
	if (d->kind != DRIVEN_BY_LOOP)
		return fn(s, ctx);
	pthread_mutex_lock(&d->lock);
	assert(!d->call);
	d->call = fn;
	d->call_ctx = ctx;
	d->call_made = false;
	base_event_poke(d->fd);
	while (!d->call_made)
		pthread_cond_wait(&d->changed, &d->lock);
	d->call = NULL;
	int64_t ret = d->call_ret;
	pthread_mutex_unlock(&d->lock);
	return ret;
}

void eng_drive_event(struct mf_session *s, const struct mf_event *event)
{
	struct eng_drive *d = &s->drive;
	if (!s->params.on_event)
		return;
	if (d->kind != DRIVEN_BY_LOOP) {
		s->params.on_event(s->params.ctx, event);
		return;
	}
	pthread_mutex_lock(&d->lock);
	while (d->n_queued == EVENTS_QUEUED)
		pthread_cond_wait(&d->changed, &d->lock);
	struct eng_said *said = &d->queue[(d->first_queued + d->n_queued++) % EVENTS_QUEUED];
	*said = (struct eng_said){ .event = *event };
	if (event->text)
		(void)snprintf(said->text, sizeof(said->text), "%s", event->text);
	if (event->round)
		said->round = *event->round;
	if (event->finding)
		said->finding = *event->finding;
	base_event_poke(d->fd);
	pthread_mutex_unlock(&d->lock);
}

static void *run_it(void *arg)
{
	struct mf_session *s = arg;
	struct eng_drive *d = &s->drive;
	struct mf_error error = { 0 };
	int result = eng_run_out(s, &error);

	pthread_mutex_lock(&d->lock);
	d->result = result;
	d->error = error;
	d->ended = true;
	pthread_cond_broadcast(&d->changed);
	base_event_poke(d->fd);
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

/* ---- the program's threads ---- */

int mf_session_run(struct mf_session *s, struct mf_error *err)
{
	struct eng_drive *d = &s->drive;
	base_error_clear(err);
	if (d->kind != NOT_DRIVEN)
		return base_error(err, -EALREADY, MF_SCOPE_HOST, "the session was started before");
	d->kind = DRIVEN_BY_RUN;
	d->result = eng_run_out(s, &d->error);
	d->ended = true;
	if (err && d->result < 0)
		*err = d->error;
	return d->result;
}

int mf_session_start(struct mf_session *s, enum mf_drive drive, struct mf_error *err)
{
	struct eng_drive *d = &s->drive;
	static const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS };
	sigset_t mask;

	base_error_clear(err);
	if (d->kind != NOT_DRIVEN)
		return base_error(err, -EALREADY, MF_SCOPE_HOST, "the session was started before");
	if (drive != MF_DRIVE_THREAD && drive != MF_DRIVE_LOOP)
		return base_error(err, -EINVAL, MF_SCOPE_HOST, "no such way to drive a session");
	if (drive == MF_DRIVE_LOOP && !(d->queue = calloc(EVENTS_QUEUED, sizeof(*d->queue))))
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	d->kind = drive == MF_DRIVE_LOOP ? DRIVEN_BY_LOOP : DRIVEN_BY_THREAD;
	/* The program's signals are for its own threads; what a callback brings upon itself is for its handler. */
	sigfillset(&mask);
	for (size_t i = 0; i < BASE_ARRAY_LEN(own); i++)
		sigdelset(&mask, own[i]);
	int r = base_thread_start(&d->thread, &mask, run_it, s);
	if (r < 0) {
		d->kind = NOT_DRIVEN;
		free(d->queue);
		d->queue = NULL;
		return base_error_sys(err, r, MF_SCOPE_HOST, "the session's thread");
	}
	(void)pthread_setname_np(d->thread, "mf-session");
	return 0;
}

int mf_session_fd(const struct mf_session *s)
{
	return s->drive.fd;
}

/* It has ended: its thread is joined, once, and what came of it is told. */
static int take_result(struct eng_drive *d, struct mf_error *err)
{
	if (d->kind != DRIVEN_BY_RUN && !d->joined) {
		pthread_join(d->thread, NULL);
		d->joined = true;
	}
	if (err && d->result < 0)
		*err = d->error;
	return d->result;
}

/* The oldest event, out of the queue; false: there is none. */
static bool next_event(struct eng_drive *d, struct eng_said *ret)
{
	if (!d->n_queued)
		return false;
	*ret = d->queue[d->first_queued];
	d->first_queued = (d->first_queued + 1) % EVENTS_QUEUED;
	d->n_queued--;
	pthread_cond_broadcast(&d->changed);
	return true;
}

int mf_session_step(struct mf_session *s, struct mf_error *err)
{
	struct eng_drive *d = &s->drive;
	struct eng_said said;

	base_error_clear(err);
	if (d->kind != DRIVEN_BY_LOOP)
		return base_error(err, -EINVAL, MF_SCOPE_HOST,
				  "only a session started with MF_DRIVE_LOOP takes steps");
	base_event_take(d->fd);
	pthread_mutex_lock(&d->lock);
	while (next_event(d, &said)) {
		pthread_mutex_unlock(&d->lock);
		if (said.event.text)
			said.event.text = said.text;
		if (said.event.round)
			said.event.round = &said.round;
		if (said.event.finding)
			said.event.finding = &said.finding;
		s->params.on_event(s->params.ctx, &said.event);
		pthread_mutex_lock(&d->lock);
	}
	if (d->call && !d->call_made) {
		eng_call_fn fn = d->call;
		void *ctx = d->call_ctx;
		pthread_mutex_unlock(&d->lock);
		int64_t ret = fn(s, ctx);
		pthread_mutex_lock(&d->lock);
		d->call_ret = ret;
		d->call_made = true;
		pthread_cond_broadcast(&d->changed);
	}
	bool ended = d->ended && !d->n_queued;
	pthread_mutex_unlock(&d->lock);
	return ended ? take_result(d, err) : 1;
}

int mf_session_wait(struct mf_session *s, uint64_t timeout_ms, struct mf_error *err)
{
	struct eng_drive *d = &s->drive;
	base_error_clear(err);
	if (d->kind != DRIVEN_BY_THREAD)
		return base_error(err, -EINVAL, MF_SCOPE_HOST,
				  "only a session started with MF_DRIVE_THREAD is waited for");
	uint64_t deadline_us = base_deadline_ms(timeout_ms);
	struct timespec until = { .tv_sec = (time_t)(deadline_us / 1000000),
				  .tv_nsec = (long)(deadline_us % 1000000) * 1000 };
	int r = 0;
	pthread_mutex_lock(&d->lock);
	while (!d->ended && r == 0)
		r = pthread_cond_timedwait(&d->changed, &d->lock, &until);
	bool ended = d->ended;
	pthread_mutex_unlock(&d->lock);
	return ended ? take_result(d, err) : 1;
}

void eng_drive_end(struct mf_session *s)
{
	struct eng_drive *d = &s->drive;
	if (d->kind == NOT_DRIVEN || d->kind == DRIVEN_BY_RUN || d->joined)
		return;
	mf_session_request(s, MF_REQUEST_CANCEL);
	if (d->kind == DRIVEN_BY_LOOP) {
		while (mf_session_step(s, NULL) > 0) {
			struct pollfd p = { .fd = d->fd, .events = POLLIN };
			(void)poll(&p, 1, 1000);
		}
	} else {
		pthread_join(d->thread, NULL);
		d->joined = true;
	}
}
