/* SPDX-License-Identifier: BSD-2-Clause */
/* The session's state machine: one table, one setter. */
#include <assert.h>

#include "base/clock.h"
#include "base/log.h"
#include "core/engine.h"

#define TO(s) (1u << ENG_##s)

static const struct {
	const char *name;
	enum mf_phase phase;
	uint32_t next; /* states that may follow */
} states[ENG_STATE_COUNT] = {
	[ENG_IDLE] = { "idle", MF_PHASE_IDLE, TO(CONNECT) | TO(RECOVER) },
	[ENG_CONNECT] = { "connect", MF_PHASE_CONNECT, TO(CHECK) | TO(ABORTED) },
	[ENG_CHECK] = { "check", MF_PHASE_CHECK,
			TO(PREPARE) | TO(CHECKED) | TO(ABORTED) | TO(CONNECT) },
	[ENG_PREPARE] = { "prepare", MF_PHASE_PREPARE, TO(PRECOPY) | TO(SWITCHOVER) | TO(ABORTED) },
	[ENG_PRECOPY] = { "precopy", MF_PHASE_PRECOPY, TO(SWITCHOVER) | TO(ABORTED) },
	[ENG_SWITCHOVER] = { "switchover", MF_PHASE_SWITCHOVER, TO(READY) | TO(ABORTED) },
	[ENG_READY] = { "ready", MF_PHASE_HANDOFF, TO(COMMITTED) | TO(ABORTED) },
	[ENG_COMMITTED] = { "committed", MF_PHASE_HANDOFF,
			    TO(FINISHING) | TO(POSTCOPY) | TO(RECOVER) | TO(PAUSED) },
	[ENG_FINISHING] = { "finishing", MF_PHASE_HANDOFF, TO(COMPLETED) },
	[ENG_POSTCOPY] = { "postcopy", MF_PHASE_POSTCOPY, TO(COMPLETED) | TO(RECOVER) },
	/* recover -> aborted: the destination has recorded that it never became the owner */
	[ENG_RECOVER] = { "recover", MF_PHASE_RECOVER,
			  TO(POSTCOPY) | TO(FINISHING) | TO(PAUSED) | TO(IN_DOUBT) | TO(ABORTED) },
	[ENG_COMPLETED] = { "completed", MF_PHASE_DONE, 0 },
	[ENG_ABORTED] = { "aborted", MF_PHASE_DONE, 0 },
	[ENG_PAUSED] = { "paused", MF_PHASE_DONE, 0 },
	[ENG_IN_DOUBT] = { "in-doubt", MF_PHASE_DONE, 0 },
	[ENG_CHECKED] = { "checked", MF_PHASE_DONE, 0 },
};

bool eng_state_may_follow(enum eng_state from, enum eng_state to)
{
	return states[from].next >> to & 1;
}

const char *eng_state_name(enum eng_state state)
{
	return states[state].name;
}

bool eng_state_is_end(enum eng_state state)
{
	return !states[state].next;
}

void eng_set_state(struct mf_session *s, enum eng_state to)
{
	assert(eng_state_may_follow(s->state, to));
	base_debug("%s: %s -> %s", s->report.session, states[s->state].name, states[to].name);
	enum mf_phase before = states[s->state].phase;
	s->state = to;

	pthread_mutex_lock(&s->progress_lock);
	s->progress.phase = states[to].phase;
	pthread_mutex_unlock(&s->progress_lock);
	if (states[to].phase != before)
		eng_emit(s, MF_EVENT_PHASE, "%s", mf_phase_name(states[to].phase));
}
