/* SPDX-License-Identifier: BSD-2-Clause */
/* receive, send and check: one session from its options to its report. */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <memferry/guests.h>
#include <memferry/session.h>

#include "base/cleanup.h"

#include "control.h"
#include "no_room.h"
#include "report.h"
#include "run_dir.h"
#include "sandbox.h"
#include "show.h"
#include "verbs.h"

/* All that one move opens; closed in the opposite order. */
struct move {
	const struct cli_options *options;
	enum mf_side side;
	struct cli_run_dir run_dir;
	struct cli_show *show;
	struct mf_adapter guest;
	struct mf_session *session;
	struct mf_attach *attach;
	struct mf_guard *guard;
	struct cli_view view;
	struct cli_control *control;
};

static void view_progress(void *session, struct mf_progress *ret)
{
	mf_session_progress(session, ret, sizeof(*ret));
}

static void view_request(void *session, enum mf_request request)
{
	mf_session_request(session, request);
}

static void on_event(void *ctx, const struct mf_event *event)
{
	const struct move *move = ctx;
	struct mf_progress now;

	if (event->type == MF_EVENT_PHASE) {
		view_progress(move->session, &now);
		cli_no_room_session(move->run_dir.path, now.session);
	}
	cli_show_event(move->show, event);
}

static void on_notice(void *ctx, const char *text)
{
	cli_show_notice(ctx, text);
}

/*
 * Blocked in every thread from here on; the control thread takes them from a descriptor.  One that
 * comes before that thread runs waits for it.
 */
static int take_over_signals(struct mf_error *err)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	int r = pthread_sigmask(SIG_BLOCK, &signals, NULL);
	if (r)
		return base_error_sys(err, -r, MF_SCOPE_HOST, "signals");
	/* Whoever reads our output may leave; the move must not end for that. */
	if (sigaction(SIGPIPE, &(struct sigaction){ .sa_handler = SIG_IGN }, NULL))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "signals");
	return 0;
}

static enum mf_mode find_mode(const char *name)
{
	for (int mode = 0; mode < MF_MODE_COUNT; mode++) {
		if (!strcmp(name, mf_mode_name((enum mf_mode)mode)))
			return (enum mf_mode)mode;
	}
	assert(!"an option lets a mode through that the engine does not have");
	return MF_MODE_HYBRID;
}

static int create_session(struct move *move, struct mf_error *err)
{
	const struct cli_options *o = move->options;
	struct mf_session_params params = {
		.size = sizeof(params),
		.side = move->side,
		.address = o->verb == CLI_RECEIVE ? o->listen : o->operand,
		.guest = move->guest,
		.run_dir = move->run_dir.path,
		.mode = find_mode(o->mode),
		.verify = strcmp(o->verify, "full") ? MF_VERIFY_NONE : MF_VERIFY_FULL,
		.transport = o->transport,
		.lanes = (uint32_t)o->lanes,
		.max_downtime_ms = o->max_downtime_ms,
		.max_bandwidth = o->max_bandwidth,
		.connect_timeout_ms = o->connect_timeout_ms,
		.peer_timeout_ms = o->peer_timeout_ms,
		.lane_timeout_ms = o->lane_timeout_ms,
		.on_demand = o->on_demand,
		.insecure = o->insecure,
		.check_only = o->verb == CLI_CHECK,
		.on_event = on_event,
		.ctx = move,
		.tracker = o->tracker,
		.tls_dir = o->tls_dir,
		.tls_peers = o->tls_peers,
		.psk = o->psk,
		.sealing = o->encrypt     ? MF_SEALING_ENCRYPT
			   : o->integrity ? MF_SEALING_INTEGRITY
					  : MF_SEALING_NONE,
		.resume = o->resume,
		.safe_postcopy_pages = o->safe_postcopy,
		.recover_timeout_ms = o->recover_timeout_ms,
	};

	return mf_session_create(&params, &move->session, err);
}

/* While there are no threads: it forks.  Something to bring back there is in a send only. */
static int start_guard(struct move *move, struct mf_error *err)
{
	char socket[PATH_MAX + 72], name[64];

	if (move->options->verb != CLI_SEND || !move->guest.ops)
		return 0;
	cli_control_name(move->side, name, sizeof(name));
	(void)snprintf(socket, sizeof(socket), "%s/%s", move->run_dir.path, name);
	struct mf_guard_params params = {
		.size = sizeof(params),
		.run_dir = move->run_dir.path,
		.session = mf_session_report(move->session)->session,
		.stale = socket,
	};
	return mf_guard_start(&move->guest, &params, &move->guard, err);
}

static bool is_sandboxed(const struct move *move)
{
	return !strcmp(move->options->sandbox, "on");
}

/* The last thing before threads and connections.  Where system calls cannot be filtered, that is said, and all else holds. */
static int enter_sandbox(struct move *move, struct mf_error *err)
{
	const pid_t signalled[] = { mf_attach_pid(move->attach), mf_guard_pid(move->guard),
				    mf_guest_pid(&move->guest) };
	struct mf_error why = { 0 };

	if (!is_sandboxed(move))
		return 0;
	int r = cli_sandbox_enter(signalled, BASE_ARRAY_LEN(signalled), &why);
	if (r == -EOPNOTSUPP || r == -MF_EKERNEL)
		cli_show_notice(move->show, why.msg);
	else if (r < 0)
		return base_error(err, r, why.scope, "%s", why.msg);
	/* Said now, and not in the middle of a move. */
	if (access(move->run_dir.path, W_OK | X_OK))
		return base_error(err, -errno, MF_SCOPE_HOST,
				  "run directory %s: cannot be written to without privilege; name "
				  "another with --run-dir",
				  move->run_dir.path);
	return 0;
}

static int open_guest(struct move *move, bool *ret_has_ended, struct mf_error *err)
{
	const struct cli_options *o = move->options;

	int r = mf_guest_open(o->guest, move->side, &move->guest, err);
	if (r == -MF_EUSAGE)
		(void)base_error_prefix(err, "--guest: ");
	*ret_has_ended = r && r != -MF_EUSAGE && o->resume;
	return r;
}

/* What can go on without a guest does, when the guest has ended for certain. */
static int create_without_guest(struct move *move, struct mf_error *err)
{
	struct mf_error why = *err;

	*err = (struct mf_error){ 0 };
	int r = create_session(move, err);
	if (r == -MF_EREFUSED) { /* it lives, but cannot be talked to */
		struct mf_error refused = *err;
		*err = (struct mf_error){ 0 };
		(void)base_error(err, why.code, why.scope, "%s; %s", why.msg, refused.msg);
	}
	return r ? err->code : 0;
}

static int open_all(struct move *move, struct mf_error *err)
{
	const struct cli_options *o = move->options;
	bool has_ended = false;

	int r = take_over_signals(err);
	if (!r)
		r = cli_run_dir_open(o->run_dir, true, &move->run_dir, err);
	if (!r)
		r = cli_show_create(stdout, stderr, o->json, o->verb == CLI_CHECK, &move->show,
				    err);
	if (r)
		return r;
	r = open_guest(move, &has_ended, err);
	if (!r && is_sandboxed(move))
		r = mf_attach_start(&move->guest, &move->attach, err);
	if (has_ended)
		r = create_without_guest(move, err);
	else if (!r)
		r = create_session(move, err);
	if (!r)
		r = start_guard(move, err);
	if (!r)
		r = cli_no_room_watch(move->side, err);
	if (!r)
		r = enter_sandbox(move, err);
	if (r)
		return r;
	move->view = (struct cli_view){ view_progress, view_request, move->session };
	r = cli_control_start(&move->run_dir, move->side, &move->view, on_notice, move->show,
			      &move->control, err);
	return r ? r : cli_show_start(move->show, &move->view, err);
}

static int report_outcome(const struct move *move)
{
	const struct mf_report *report = mf_session_report(move->session);
	char clean[sizeof(report->error.msg) + 1];

	if (move->options->json) {
		cli_json_print(stdout, cli_json_report(report));
	} else {
		if (move->options->verb == CLI_CHECK)
			cli_text_findings(stdout, report);
		cli_text_report(stdout, report);
		(void)fflush(stdout);
	}
	if (report->error.code)
		fprintf(stderr, "memferry: %s\n",
			cli_clean(report->error.msg, clean, sizeof(clean)));
	return cli_exit_of_report(report);
}

int cli_verb_move(const struct cli_options *o)
{
	struct move move = { .options = o, .run_dir.fd = -1 };
	struct mf_error err = { 0 };
	int status;

	move.side = o->verb == CLI_RECEIVE ? MF_DESTINATION : MF_SOURCE;
	if (o->insecure)
		(void)fputs("memferry: the control channel is plain (--insecure): it is neither "
			    "encrypted nor "
			    "authenticated\n",
			    stderr);
	int r = open_all(&move, &err);
	if (!r) {
		/* What it returns is in the report, too. */
		(void)mf_session_run(move.session, &err);
	}
	cli_control_stop(move.control);
	if (move.show)
		cli_show_stop(move.show);
	status = r ? cli_fail(o, &err) : report_outcome(&move);
	mf_session_destroy(move.session);
	mf_guest_close(&move.guest);
	mf_attach_end(move.attach);
	mf_guard_end(move.guard);
	cli_show_destroy(move.show);
	cli_run_dir_close(&move.run_dir);
	return status;
}
