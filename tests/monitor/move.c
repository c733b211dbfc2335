/* SPDX-License-Identifier: BSD-2-Clause */
#include "move.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"

enum {
	PATIENCE_MS = 120000,
};

static void on_event(void *ctx, const struct mf_event *event)
{
	struct move *move = ctx;
	pthread_mutex_lock(&move->lock);
	if (event->type == MF_EVENT_LISTENING)
		(void)snprintf(move->address, sizeof(move->address), "%s", event->text);
	if (event->type == MF_EVENT_PHASE)
		move->phase = event->phase;
	pthread_cond_broadcast(&move->changed);
	pthread_mutex_unlock(&move->lock);
	if (!move->loud)
		return;
	if (event->type == MF_EVENT_LISTENING)
		printf("listening: %s\n", event->text);
	else if (event->type == MF_EVENT_PHASE)
		printf("phase: %s\n", mf_phase_name(event->phase));
	else if (event->type == MF_EVENT_FINDING)
		printf("finding: %s: %s\n", event->finding->subject, event->finding->detail);
	else if (event->type == MF_EVENT_NOTICE)
		printf("notice: %s\n", event->text);
	(void)fflush(stdout);
}

int move_start(struct move *move, struct machine *m, const struct move_params *params,
	       struct mf_error *err)
{
	pthread_condattr_t attr;
	*move = (struct move){ .loud = params->loud };
	int r = mf_kvm_adapter(m->kvm, &move->adapter, err);
	if (r < 0)
		return r;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&move->lock, NULL);
	pthread_cond_init(&move->changed, &attr);
	pthread_condattr_destroy(&attr);
	const struct mf_session_params session = {
		.size = sizeof(session),
		.side = m->params.is_destination ? MF_DESTINATION : MF_SOURCE,
		.address = params->address,
		.guest = move->adapter,
		.run_dir = params->run_dir,
		.mode = params->mode,
		.verify = params->verify ? MF_VERIFY_FULL : MF_VERIFY_NONE,
		.transport = params->transport ?: "tcp",
		.max_bandwidth = params->max_bandwidth,
		.insecure = true,
		.on_event = on_event,
		.ctx = move,
		.tracker = params->tracker,
	};
	r = mf_session_create(&session, &move->session, err);
	if (r >= 0)
		r = mf_session_start(move->session, MF_DRIVE_THREAD, err);
	if (r < 0)
		move_end(move);
	return r;
}

static bool await(struct move *move, bool address, enum mf_phase phase)
{
	uint64_t deadline = base_deadline_ms(PATIENCE_MS / 2);
	struct timespec t = { .tv_sec = (time_t)(deadline / 1000000),
			      .tv_nsec = (long)(deadline % 1000000) * 1000 };
	pthread_mutex_lock(&move->lock);
	int r = 0;
	while (!r && (address ? !move->address[0] : move->phase < phase))
		r = pthread_cond_timedwait(&move->changed, &move->lock, &t);
	pthread_mutex_unlock(&move->lock);
	return !r;
}

const char *move_address(struct move *move)
{
	return await(move, true, MF_PHASE_IDLE) ? move->address : NULL;
}

bool move_await(struct move *move, enum mf_phase phase)
{
	return await(move, false, phase);
}

int move_wait(struct move *move, struct mf_error *err)
{
	return mf_session_wait(move->session, PATIENCE_MS, err);
}

const struct mf_report *move_report(const struct move *move)
{
	return mf_session_report(move->session);
}

void move_end(struct move *move)
{
	mf_session_destroy(move->session);
	move->adapter.ops->close(move->adapter.hv);
	pthread_cond_destroy(&move->changed);
	pthread_mutex_destroy(&move->lock);
}
