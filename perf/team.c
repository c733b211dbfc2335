/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/team.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/thread.h"

struct member {
	struct perf_team *team;
	unsigned i;
	pthread_t thread;
	uint64_t from_ns, to_ns;
	int code;
	struct mf_error err;
};

struct perf_team {
	pthread_mutex_t lock;
	pthread_cond_t go, done;
	/* under the lock */
	uint64_t turn;
	unsigned left; /* of this turn, still at it */
	bool end;
	perf_share_fn fn;
	void *ctx;
	/* of this turn, awake: those spin until all are */
	unsigned ready;
	unsigned n;
	struct member member[];
};

/* False: it was the last turn. */
static bool await_turn(struct perf_team *team, uint64_t seen)
{
	(void)pthread_mutex_lock(&team->lock);
	while (team->turn == seen && !team->end)
		(void)pthread_cond_wait(&team->go, &team->lock);
	bool goes_on = !team->end;
	(void)pthread_mutex_unlock(&team->lock);
	return goes_on;
}

static void report_done(struct perf_team *team)
{
	(void)pthread_mutex_lock(&team->lock);
	if (!--team->left)
		(void)pthread_cond_signal(&team->done);
	(void)pthread_mutex_unlock(&team->lock);
}

static void *member_main(void *arg)
{
	struct member *m = arg;
	struct perf_team *team = m->team;

	for (uint64_t turn = 0; await_turn(team, turn); turn++) {
		(void)__atomic_add_fetch(&team->ready, 1, __ATOMIC_RELAXED);
		while (__atomic_load_n(&team->ready, __ATOMIC_RELAXED) < team->n)
			(void)sched_yield(); /* there may be more of us than CPUs */
		m->err = (struct mf_error){ 0 };
		m->from_ns = base_now_ns();
		m->code = team->fn(team->ctx, m->i, &m->err);
		m->to_ns = base_now_ns();
		report_done(team);
	}
	return NULL;
}

int perf_team_start(unsigned n, struct perf_team **ret, struct mf_error *err)
{
	struct perf_team *team = calloc(1, sizeof(*team) + n * sizeof(team->member[0]));
	sigset_t all;

	assert(n);
	if (!team)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	(void)pthread_mutex_init(&team->lock, NULL);
	(void)pthread_cond_init(&team->go, NULL);
	(void)pthread_cond_init(&team->done, NULL);
	(void)sigfillset(&all);
	for (; team->n < n; team->n++) {
		struct member *m = &team->member[team->n];
		*m = (struct member){ .team = team, .i = team->n };
		int code = base_thread_start(&m->thread, &all, member_main, m);
		if (code) {
			(void)base_error_sys(err, code, MF_SCOPE_HOST, "thread %u of %u",
					     team->n + 1, n);
			perf_team_end(team);
			return code;
		}
	}
	*ret = team;
	return 0;
}

int perf_team_do(struct perf_team *team, perf_share_fn fn, void *ctx, uint64_t *ret_ns,
		 struct mf_error *err)
{
	uint64_t from = UINT64_MAX, to = 0;

	(void)pthread_mutex_lock(&team->lock);
	team->fn = fn;
	team->ctx = ctx;
	team->left = team->n;
	__atomic_store_n(&team->ready, 0, __ATOMIC_RELAXED);
	team->turn++;
	(void)pthread_cond_broadcast(&team->go);
	while (team->left)
		(void)pthread_cond_wait(&team->done, &team->lock);
	(void)pthread_mutex_unlock(&team->lock);
	for (unsigned i = 0; i < team->n; i++) {
		const struct member *m = &team->member[i];
		if (m->code < 0)
			return base_error(err, m->code, m->err.scope, "%s", m->err.msg);
		from = m->from_ns < from ? m->from_ns : from;
		to = m->to_ns > to ? m->to_ns : to;
	}
	if (ret_ns)
		*ret_ns = to - from;
	return 0;
}

void perf_team_end(struct perf_team *team)
{
	if (!team)
		return;
	(void)pthread_mutex_lock(&team->lock);
	team->end = true;
	(void)pthread_cond_broadcast(&team->go);
	(void)pthread_mutex_unlock(&team->lock);
	for (unsigned i = 0; i < team->n; i++)
		(void)pthread_join(team->member[i].thread, NULL);
	(void)pthread_cond_destroy(&team->go);
	(void)pthread_cond_destroy(&team->done);
	(void)pthread_mutex_destroy(&team->lock);
	free(team);
}
