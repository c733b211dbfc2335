/* SPDX-License-Identifier: BSD-2-Clause */
/* The client's side of a move: the source, and what is seen of it while it goes on. */
#include "perf/migrate.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <memferry/guests.h>

#include "base/clock.h"
#include "cli/report.h"
#include "cli/run_dir.h"
#include "perf/doc.h"

#define SAMPLES_MAX 400u
#define SAMPLE_MS   20u
#define END_MS      90000u
#define MARKS_MAX   256u

/* Something that happened, by the session's own thread. */
struct mark {
	uint64_t us;
	bool is_round;
	uint32_t what; /* phase, or the round that ended */
};

struct source {
	struct cli_run_dir run_dir;
	struct mf_adapter guest;
	struct mf_session *session;
	uint64_t start_us;
	/* Written by the session's thread, read when that has ended. */
	uint32_t n_marks;
	struct mark mark[MARKS_MAX];
	uint32_t n_samples, every_ms;
	struct {
		uint64_t us;
		struct mf_progress progress;
	} sample[SAMPLES_MAX];
};

static void on_event(void *ctx, const struct mf_event *event)
{
	struct source *s = ctx;

	if ((event->type != MF_EVENT_PHASE && event->type != MF_EVENT_ROUND) ||
	    s->n_marks == MARKS_MAX)
		return;
	bool is_round = event->type == MF_EVENT_ROUND;
	s->mark[s->n_marks++] =
		(struct mark){ .us = base_now_us(),
			       .is_round = is_round,
			       .what = is_round ? event->round->n : (uint32_t)event->phase };
}

static int open_session(const struct perf_cell *cell, const char *address, struct source *s,
			struct mf_error *err)
{
	char spec[256];

	int ret = cli_run_dir_open(NULL, true, &s->run_dir, err);
	if (!ret)
		ret = mf_guest_open(perf_cell_guest(cell, spec, sizeof(spec)), MF_SOURCE, &s->guest,
				    err);
	if (ret)
		return ret;
	const struct mf_session_params params = {
		.size = sizeof(params),
		.side = MF_SOURCE,
		.address = address,
		.guest = s->guest,
		.run_dir = s->run_dir.path,
		.mode = cell->mode,
		.verify = cell->verify ? MF_VERIFY_FULL : MF_VERIFY_NONE,
		.transport = cell->transport,
		.lanes = cell->lanes,
		.max_downtime_ms = cell->max_downtime_ms,
		.max_bandwidth = cell->max_bandwidth,
		.insecure = true,
		.on_event = on_event,
		.ctx = s,
	};
	return mf_session_create(&params, &s->session, err);
}

/* When the samples are used up, every second one goes and the next ones come half as often. */
static void take_sample(struct source *s)
{
	if (s->n_samples == SAMPLES_MAX) {
		for (uint32_t i = 0; i < SAMPLES_MAX / 2; i++)
			s->sample[i] = s->sample[2 * i];
		s->n_samples = SAMPLES_MAX / 2;
		s->every_ms *= 2;
	}
	s->sample[s->n_samples].us = base_now_us();
	mf_session_progress(s->session, &s->sample[s->n_samples].progress,
			    sizeof(struct mf_progress));
	s->n_samples++;
}

static int follow(struct source *s, struct mf_error *err)
{
	s->start_us = base_now_us();
	s->every_ms = SAMPLE_MS;
	int ret = mf_session_start(s->session, MF_DRIVE_THREAD, err);
	if (ret)
		return ret;
	do {
		take_sample(s);
		ret = mf_session_wait(s->session, s->every_ms, err);
	} while (ret == 1);
	return ret;
}

static json_t *ms_since(const struct source *s, uint64_t us)
{
	return json_real((double)(us > s->start_us ? us - s->start_us : 0) / 1e3);
}

static json_t *timeline_of(const struct source *s)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < s->n_samples; i++) {
		const struct mf_progress *p = &s->sample[i].progress;
		json_t *o = json_object();
		perf_put(o, "ms", ms_since(s, s->sample[i].us));
		perf_put(o, "phase", json_string(mf_phase_name(p->phase)));
		perf_put(o, "bytes_per_s", json_integer((json_int_t)p->bytes_per_s));
		perf_put(o, "dirty_bytes_per_s", json_integer((json_int_t)p->dirty_bytes_per_s));
		perf_put(o, "done_bytes", json_integer((json_int_t)p->done_bytes));
		(void)json_array_append_new(array, o);
	}
	return array;
}

/* Each phase ends where the next begins. */
static json_t *phases_of(const struct source *s, uint64_t end_us)
{
	json_t *array = json_array(), *last = NULL;

	for (uint32_t i = 0; i < s->n_marks; i++) {
		if (s->mark[i].is_round)
			continue;
		if (last)
			perf_put(last, "end_ms", ms_since(s, s->mark[i].us));
		last = json_object();
		perf_put(last, "phase", json_string(mf_phase_name((enum mf_phase)s->mark[i].what)));
		perf_put(last, "start_ms", ms_since(s, s->mark[i].us));
		(void)json_array_append_new(array, last);
	}
	if (last)
		perf_put(last, "end_ms", ms_since(s, end_us));
	return array;
}

static json_t *rounds_of(const struct source *s)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < s->n_marks; i++) {
		if (!s->mark[i].is_round)
			continue;
		json_t *o = json_object();
		perf_put(o, "n", json_integer(s->mark[i].what));
		perf_put(o, "end_ms", ms_since(s, s->mark[i].us));
		(void)json_array_append_new(array, o);
	}
	return array;
}

static void take_story(const struct source *s, uint64_t end_us, struct perf_move *ret)
{
	const struct mf_report *report = mf_session_report(s->session);

	ret->report = cli_json_report(report);
	ret->timeline = timeline_of(s);
	ret->phases = phases_of(s, end_us);
	ret->rounds_at = rounds_of(s);
	ret->text = malloc(sizeof(*ret->text));
	if (ret->text)
		*ret->text = *report;
}

/* Whatever became of the source, the destination ends too. */
static int end_there(struct perf_peer *peer, bool failed, struct perf_move *move,
		     struct mf_error *err)
{
	json_t *request = json_object(), *answer = NULL;

	perf_put(request, "failed", json_boolean(failed));
	int ret = perf_peer_call(peer, "migrate_end", request, base_deadline_ms(END_MS), &answer,
				 err);
	if (ret)
		return ret;
	perf_cpu_parse(json_object_get(answer, "cpu"), &move->server);
	move->destination = json_incref(json_object_get(answer, "report"));
	json_decref(answer);
	if (!failed && strcmp(perf_text(move->destination, "outcome"), "completed"))
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION, "the destination: %.160s",
				  perf_text(move->destination, "error.message"));
	return 0;
}

static int carry_out(struct perf_peer *peer, const struct perf_cell *cell, const char *address,
		     struct source *s, struct perf_move *ret, struct mf_error *err)
{
	struct mf_error there = { 0 };
	struct perf_cpu start;

	int code = open_session(cell, address, s, err);
	perf_cpu_now(&start);
	if (!code)
		code = follow(s, err);
	perf_cpu_since(&start, &ret->client);
	if (s->session && s->start_us)
		take_story(s, base_now_us(), ret);
	int said = end_there(peer, code != 0, ret, &there);
	if (!code && said)
		code = base_error(err, said, there.scope, "%s", there.msg);
	mf_session_destroy(s->session);
	mf_guest_close(&s->guest);
	cli_run_dir_close(&s->run_dir);
	return code;
}

int perf_migrate_run(struct perf_peer *peer, const struct perf_cell *cell, struct perf_move *ret,
		     struct mf_error *err)
{
	struct source *s = calloc(1, sizeof(*s));
	json_t *answer = NULL;

	*ret = (struct perf_move){ 0 };
	if (!s)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	s->run_dir.fd = -1;
	int code = perf_peer_call(peer, "migrate", perf_cell_json(cell),
				  base_deadline_ms(2 * PERF_ANSWER_MS), &answer, err);
	if (!code)
		code = carry_out(peer, cell, perf_text(answer, "address"), s, ret, err);
	json_decref(answer);
	free(s);
	return code;
}

void perf_move_free(struct perf_move *move)
{
	json_decref(move->report);
	json_decref(move->destination);
	json_decref(move->timeline);
	json_decref(move->phases);
	json_decref(move->rounds_at);
	free(move->text);
	*move = (struct perf_move){ 0 };
}
