/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One side of a move, as `memferry send` and `receive` run it, whose allocations or posts fail: for the matrix of failures.
 *
 *   fault_session send|receive ADDRESS GUEST RUN_DIR [mode=M] [bandwidth=BYTES] [peer=MS]
 *                 [transport=tcp|verbs] [verify]
 *                 [alloc=PHASE:N | post=PHASE:N | lanes=PHASE]
 *
 * alloc: from the beginning of that phase on the N-th allocation fails; post: the N-th post; lanes: all lanes are lost.
 * Prints the command's JSON, and at the end
 *
 *   {"event":"judged","struck":B,"judge":B,"runs":B,"wrong":N,"pages":N}
 *
 * judge: the guest could be asked (a demo guest at its source); runs: its heart beats; wrong: its own check of all its pages.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include <memferry/guests.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/parse.h"
#include "cli/report.h"
#include "core/engine.h"
#include "hv-adapters/process/process.h"
#include "transport/faulty/faulty.h"

/* ---- allocations of our own code: the linker sends them here (--wrap) ---- */

static _Atomic long allocations_left; /* 0: none fails */
static _Atomic bool struck;

static bool fails(void)
{
	if (atomic_load_explicit(&allocations_left, memory_order_relaxed) <= 0 ||
	    atomic_fetch_sub_explicit(&allocations_left, 1, memory_order_relaxed) != 1)
		return false;
	atomic_store(&struck, true);
	return true;
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size)
{
	return fails() ? NULL : __real_malloc(size);
}

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	return fails() ? NULL : __real_calloc(n, size);
}

void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size)
{
	return fails() ? NULL : __real_realloc(old, size);
}

char *__real_strdup(const char *s);
char *__wrap_strdup(const char *s);
char *__wrap_strdup(const char *s)
{
	return fails() ? NULL : __real_strdup(s);
}

/* ---- the plan ---- */

enum fault { NONE, ALLOC, POST, LANES };

struct plan {
	enum fault fault;
	enum mf_phase phase;
	uint64_t n;
	const char *transport;
	struct tp_faulty_plan faults;
	bool armed;
};

static void arm(struct plan *p)
{
	if (p->armed)
		return;
	p->armed = true;
	if (p->fault == ALLOC)
		atomic_store(&allocations_left, (long)p->n);
	else if (p->fault == POST)
		atomic_store(&p->faults.fail_post_at, atomic_load(&p->faults.posts) + p->n);
	else if (p->fault == LANES) {
		atomic_store(&p->faults.drop_lane, TP_FAULTY_ANY_LANE);
		atomic_store(&p->faults.drop_now, true);
	}
}

static void on_event(void *ctx, const struct mf_event *event)
{
	struct plan *p = ctx;
	cli_json_print(stdout, cli_json_event(event));
	if (event->type == MF_EVENT_PHASE && event->phase >= p->phase && p->fault)
		arm(p);
}

static enum mf_phase find_phase(const char *name, size_t len)
{
	for (int i = 0; i < MF_PHASE_COUNT; i++) {
		const char *known = mf_phase_name((enum mf_phase)i);
		if (strlen(known) == len && !strncmp(known, name, len))
			return (enum mf_phase)i;
	}
	(void)fprintf(stderr, "no such phase: %s\n", name);
	exit(2);
}

static const char *value_of(const char *arg, const char *key)
{
	size_t n = strlen(key);
	return !strncmp(arg, key, n) && arg[n] == '=' ? arg + n + 1 : NULL;
}

static void read_fault(struct plan *p, enum fault fault, const char *value)
{
	const char *colon = strchrnul(value, ':');
	p->fault = fault;
	p->phase = find_phase(value, (size_t)(colon - value));
	p->n = *colon ? strtoull(colon + 1, NULL, 10) : 1;
}

static void read_option(struct mf_session_params *params, struct plan *plan, const char *arg)
{
	static const struct {
		const char *key;
		enum fault fault;
	} faults[] = { { "alloc", ALLOC }, { "post", POST }, { "lanes", LANES } };
	const char *v;
	for (size_t i = 0; i < BASE_ARRAY_LEN(faults); i++) {
		if ((v = value_of(arg, faults[i].key))) {
			read_fault(plan, faults[i].fault, v);
			return;
		}
	}
	if ((v = value_of(arg, "mode"))) {
		for (int m = 0; m < MF_MODE_COUNT; m++)
			if (!strcmp(v, mf_mode_name((enum mf_mode)m)))
				params->mode = (enum mf_mode)m;
	} else if ((v = value_of(arg, "bandwidth"))) {
		params->max_bandwidth = strtoull(v, NULL, 10);
	} else if ((v = value_of(arg, "peer"))) {
		params->peer_timeout_ms = params->connect_timeout_ms = strtoull(v, NULL, 10);
	} else if ((v = value_of(arg, "transport"))) {
		plan->transport = v;
	} else if (!strcmp(arg, "verify")) {
		params->verify = MF_VERIFY_FULL;
	} else {
		(void)fprintf(stderr, "no such option: %s\n", arg);
		exit(2);
	}
}

/* ---- the judge ---- */

static bool heart_beats(void *hv)
{
	struct hv_process_status first, now;
	uint64_t deadline = base_deadline_ms(10000);
	if (hv_process_status(hv, &first, NULL) < 0 || !first.running)
		return false;
	do {
		if (hv_process_status(hv, &now, NULL) < 0 || base_now_us() >= deadline)
			return false;
	} while (now.heartbeat == first.heartbeat);
	return true;
}

static void judge(struct mf_adapter *guest, enum mf_side side)
{
	struct hv_process_status status = { 0 };
	struct mf_finding finding;
	bool can_be_asked = side == MF_SOURCE && !strcmp(guest->ops->name, "demo");
	bool runs = can_be_asked && heart_beats(guest->hv);
	/* The check stops it. */
	if (runs && (guest->ops->self_check(guest->hv, &finding) != 1 ||
		     hv_process_status(guest->hv, &status, NULL) < 0))
		status.wrong_pages = UINT32_MAX;
	(void)printf("{\"event\":\"judged\",\"struck\":%s,\"judge\":%s,\"runs\":%s,\"wrong\":%llu,"
		     "\"pages\":%llu}\n",
		     atomic_load(&struck) ? "true" : "false", can_be_asked ? "true" : "false",
		     runs ? "true" : "false", (unsigned long long)status.wrong_pages,
		     (unsigned long long)status.verified_pages);
	(void)fflush(stdout);
}

static int give_up(const char *what, const struct mf_error *err)
{
	(void)fprintf(stderr, "fault_session: %s: %s\n", what, err->msg);
	return CLI_EXIT_FAILED;
}

int main(int argc, char **argv)
{
	struct mf_error err = { 0 };
	struct mf_adapter guest = { 0 };
	struct mf_session *session;
	struct plan plan = { .transport = "tcp" };

	if (argc < 5)
		return CLI_EXIT_USAGE;
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	struct mf_session_params params = {
		.size = sizeof(params),
		.side = strcmp(argv[1], "send") ? MF_DESTINATION : MF_SOURCE,
		.address = argv[2],
		.run_dir = argv[4],
		.insecure = true,
		.on_event = on_event,
		.ctx = &plan,
	};
	for (int i = 5; i < argc; i++)
		read_option(&params, &plan, argv[i]);
	params.transport = plan.transport;
	if (mf_guest_open(argv[3], params.side, &guest, &err) < 0)
		return give_up(argv[3], &err);
	params.guest = guest;
	if (mf_session_create(&params, &session, &err) < 0)
		return give_up("session", &err);
	const struct tp_ops *inner = tp_find(plan.transport);
	const struct tp_ops *tp = inner ? tp_faulty_create(inner, &plan.faults) : NULL;
	if (!tp) {
		(void)fprintf(stderr, "fault_session: no transport %s\n", plan.transport);
		return CLI_EXIT_USAGE;
	}
	session->tp_given = tp;
	(void)mf_session_run(session, &err);
	/* What is judged is the move, and not the judging. */
	atomic_store(&allocations_left, 0);
	if (atomic_load(&plan.faults.faults))
		atomic_store(&struck, true);
	const struct mf_report *report = mf_session_report(session);
	int status = cli_exit_of_report(report);
	cli_json_print(stdout, cli_json_report(report));
	judge(&guest, params.side);
	mf_session_destroy(session);
	tp_faulty_destroy(tp);
	mf_guest_close(&guest);
	return status;
}
