/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * QEMU's own migration, with its RAM left out, as the way to stop a guest and to get and set its device state.
 *
 *   source                                         destination
 *   pause:  getfd, migrate fd:
 *           … private RAM (video, ROMs) → head
 *           MIGRATION pre-switchover: stopped
 *   save:   head, migrate-continue, the rest  ──▶  load: getfd, migrate-incoming fd:, MIGRATION completed
 *   abort:  migrate_cancel, or cont                resume: cont, announce-self
 *
 * What save_state() writes: an own header of 16 bytes, then QEMU's stream to its end.
 *
 *   0        8         9       10            16
 *   "MFQEMUST"|version=1|flags  |zero         |      flags bit 0: the guest ran when it was paused
 */
#include "hv-adapters/qemu/qemu.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "hv-adapters/attach/attach.h"

#define FD_NAME    "memferry-state"
#define HEAD_MAGIC "MFQEMUST"

enum {
	HEADER_LEN = 16,
	HEADER_VERSION = 1,
	FLAG_RAN = 1,
	PUMP_BYTES = 256 << 10,
	HEAD_MAX = 1 << 30, /* private RAM of a guest: its video memory and ROMs */
	SETTLE_MS = 10000,
	NUDGE_MS = 100,
	QUIT_MS = 10000,
};

/* ---- waiting ---- */

/* Until the monitor or (stream_events != 0) the stream has something.  Takes in what the monitor has.
 * *ret_stream: what poll says of the stream. */
static int wait_any(struct qemu *hv, short stream_events, uint64_t deadline_us, short *ret_stream,
		    struct mf_error *err)
{
	for (;;) {
		struct pollfd p[2] = {
			{ .fd = qmp_fd(hv->qmp), .events = POLLIN },
			{ .fd = stream_events ? hv->stream : -1, .events = stream_events },
		};
		int r = poll(p, 2, base_left_ms(deadline_us));
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return base_error_sys(err, -errno, MF_SCOPE_SESSION, "QEMU: poll");
		if (r == 0)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
					  "QEMU (pid %d) makes no headway with its device state",
					  (int)hv->pid);
		*ret_stream = p[1].revents;
		return p[0].revents ? qmp_pump(hv->qmp, err) : 0;
	}
}

/* Until the monitor tells an event, also one that came before and was not looked at: after it ask again. */
static int wait_event(struct qemu *hv, uint64_t deadline_us, struct mf_error *err)
{
	struct qmp_event e;
	while (!qmp_take_event(hv->qmp, &e)) {
		short unused;
		int r = wait_any(hv, 0, deadline_us, &unused, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static bool is_final(const char *status)
{
	return strcmp(status, "completed") == 0 || strcmp(status, "failed") == 0 ||
	       strcmp(status, "cancelled") == 0;
}

/* A migration ended otherwise than it should have: says why, in QEMU's words where it has some. */
static int say_failed(struct qemu *hv, const char *what, struct mf_error *err)
{
	char status[32], why[128];
	int r = qemu_migration_status(hv, status, sizeof(status), why, sizeof(why), err);
	if (r < 0)
		return r;
	return base_error(err, -EREMOTEIO, MF_SCOPE_SESSION, "QEMU (pid %d) could not %s (%s): %s",
			  (int)hv->pid, what, status, why[0] ? why : "see its log for the reason");
}

/* Waits for a final status that was or will be told by an event. */
static int wait_completed(struct qemu *hv, const char *what, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(QEMU_STATE_MS);
	for (;;) {
		struct qmp_event e;
		while (qmp_take_event(hv->qmp, &e)) {
			if (strcmp(e.name, "MIGRATION") != 0 || !is_final(e.status))
				continue;
			return strcmp(e.status, "completed") == 0 ? 0 : say_failed(hv, what, err);
		}
		short unused;
		int r = wait_any(hv, 0, deadline, &unused, err);
		if (r < 0)
			return r;
	}
}

/* ---- the stream ---- */

/* A socket pair: one end is given to QEMU under FD_NAME, the other is hv->stream. */
static int open_stream(struct qemu *hv, struct mf_error *err)
{
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_SESSION, "QEMU's state: socketpair");
	base_autofd ours = pair[0];
	base_autofd theirs = pair[1];
	int r = qmp_execute(hv->qmp, "getfd", json_pack("{s:s}", "fdname", FD_NAME), theirs,
			    base_deadline_ms(QEMU_COMMAND_MS), NULL, err);
	if (r < 0)
		return r;
	assert(hv->stream < 0);
	hv->stream = base_take_fd(&ours);
	return 0;
}

static void drop_stream(struct qemu *hv)
{
	base_closep(&hv->stream);
	free(hv->head);
	hv->head = NULL;
	hv->head_len = hv->head_cap = 0;
}

/* The descriptor was handed over, but the command that takes it was refused. */
static void take_back_stream(struct qemu *hv)
{
	(void)qemu_command(hv, "closefd", json_pack("{s:s}", "fdname", FD_NAME), NULL, NULL);
	drop_stream(hv);
}

static int reserve_head(struct qemu *hv, size_t room, struct mf_error *err)
{
	if (hv->head_cap - hv->head_len >= room)
		return 0;
	size_t cap = hv->head_cap * 2 + room;
	uint8_t *bigger = cap <= HEAD_MAX ? realloc(hv->head, cap) : NULL;
	if (!bigger)
		return base_error(
			err, -ENOMEM, MF_SCOPE_SESSION,
			"QEMU's private RAM is too big to keep: give it less video memory");
	hv->head = bigger;
	hv->head_cap = cap;
	return 0;
}

/* Takes in what QEMU has sent so far.  *ret_ended: it has closed its end. */
static int drain_to_head(struct qemu *hv, bool *ret_ended, struct mf_error *err)
{
	for (;;) {
		int r = reserve_head(hv, PUMP_BYTES, err);
		if (r < 0)
			return r;
		ssize_t n = recv(hv->stream, hv->head + hv->head_len, hv->head_cap - hv->head_len,
				 MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return 0;
		if (n <= 0) {
			*ret_ended = true;
			return 0;
		}
		hv->head_len += (size_t)n;
	}
}

/* ---- source ---- */

static int wait_stopped(struct qemu *hv, uint64_t *ret_stopped_us, struct mf_error *err)
{
	uint64_t stopped_us = 0;
	bool is_ended = false, is_stopped = false;
	while (!is_stopped) {
		struct qmp_event e;
		while (qmp_take_event(hv->qmp, &e)) {
			if (strcmp(e.name, "STOP") == 0)
				stopped_us = e.at_us;
			else if (strcmp(e.name, "MIGRATION") == 0 && is_final(e.status))
				return say_failed(hv, "stop the guest for the move", err);
			else if (strcmp(e.name, "MIGRATION") == 0)
				is_stopped = strcmp(e.status, "pre-switchover") == 0;
		}
		if (is_stopped)
			break;
		short stream = 0;
		int r = wait_any(hv, is_ended ? 0 : POLLIN, base_deadline_ms(QEMU_STATE_MS),
				 &stream, err);
		if (r >= 0 && stream)
			r = drain_to_head(hv, &is_ended, err);
		if (r < 0)
			return r;
	}
	*ret_stopped_us = stopped_us;
	return 0;
}

int qemu_pause(struct qemu *hv, uint64_t *ret_stopped_us, struct mf_error *err)
{
	assert(hv->side == MF_SOURCE && hv->undo->is_prepared && hv->undo->move == QEMU_MOVE_NONE);
	uint64_t began_us = base_now_us();
	char state[32];
	int r = qemu_run_state(hv, state, sizeof(state), &hv->undo->was_running, err);
	if (r >= 0)
		r = open_stream(hv, err);
	if (r < 0)
		return r;
	qmp_drop_events(hv->qmp);
	/* From the sending on it may have begun, whatever the answer. */
	hv->undo->move = QEMU_MOVE_STARTED;
	r = qemu_command(hv, "migrate", json_pack("{s:s}", "uri", "fd:" FD_NAME), NULL, err);
	if (r == -EREMOTEIO || r == -EOPNOTSUPP) {
		hv->undo->move = QEMU_MOVE_NONE;
		take_back_stream(hv);
	}
	if (r < 0)
		return r;
	uint64_t stopped_us = 0;
	r = wait_stopped(hv, &stopped_us, err);
	if (r < 0)
		return r;
	hv->undo->move = QEMU_MOVE_PAUSED;
	if (!hv->undo->was_running || stopped_us < began_us)
		stopped_us =
			began_us; /* paused by its user before: as good as from the beginning */
	base_debug("qemu: stopped, %zu bytes of stream so far", hv->head_len);
	*ret_stopped_us = stopped_us;
	return 0;
}

int qemu_hold(struct qemu *hv, struct mf_error *err)
{
	assert(hv->side == MF_SOURCE && !hv->undo->is_held && hv->undo->move == QEMU_MOVE_NONE);
	char state[32];
	bool is_running;
	int r = qemu_run_state(hv, state, sizeof(state), &is_running, err);
	if (r < 0 || !is_running)
		return r;
	/* `stop` answers when the vCPUs stand and all block I/O is drained.  Held from the sending on. */
	hv->undo->is_held = true;
	return qemu_command(hv, "stop", NULL, NULL, err);
}

int qemu_let_go(struct qemu *hv, struct mf_error *err)
{
	if (!hv->undo->is_held)
		return 0;
	int r = qemu_command(hv, "cont", NULL, NULL, err);
	if (r >= 0)
		hv->undo->is_held = false;
	return r;
}

static int hand_on(mf_state_write_fn write, void *ctx, const void *bytes, size_t len,
		   struct mf_error *err)
{
	int r = len ? write(ctx, bytes, len) : 0;
	return r < 0 ? base_error(err, r, MF_SCOPE_SESSION,
				  "QEMU's state could not be handed on: %s", base_strerror(r))
		     : 0;
}

int qemu_save_state(struct qemu *hv, mf_state_write_fn write, void *ctx, struct mf_error *err)
{
	assert(hv->side == MF_SOURCE && hv->undo->move == QEMU_MOVE_PAUSED);
	uint8_t header[HEADER_LEN] = HEAD_MAGIC;
	header[8] = HEADER_VERSION;
	header[9] = hv->undo->was_running ? FLAG_RAN : 0;
	int r = reserve_head(hv, PUMP_BYTES, err);
	/* Only sent: QEMU may fill the stream, holding the lock that the answer needs, before it answers. */
	if (r >= 0)
		r = qmp_send(hv->qmp, "migrate-continue",
			     json_pack("{s:s}", "state", "pre-switchover"), -1,
			     base_deadline_ms(QEMU_COMMAND_MS), err);
	if (r >= 0)
		r = hand_on(write, ctx, header, sizeof(header), err);
	if (r >= 0)
		r = hand_on(write, ctx, hv->head, hv->head_len, err);
	hv->head_len = 0;
	bool is_ended = false, is_answered = false;
	while (r >= 0 && !(is_ended && is_answered)) {
		short stream = 0;
		if (!is_answered && qmp_has_reply(hv->qmp)) {
			is_answered = true;
			r = qmp_wait_reply(hv->qmp, 0, NULL, err);
			continue;
		}
		r = wait_any(hv, is_ended ? 0 : POLLIN, base_deadline_ms(QEMU_STATE_MS), &stream,
			     err);
		if (r < 0 || !stream)
			continue;
		ssize_t n = recv(hv->stream, hv->head, hv->head_cap, MSG_DONTWAIT);
		if (n > 0)
			r = hand_on(write, ctx, hv->head, (size_t)n, err);
		else
			is_ended = n == 0 || (errno != EAGAIN && errno != EINTR);
	}
	if (r >= 0)
		r = wait_completed(hv, "save its device state", err);
	if (r < 0)
		return r;
	hv->undo->move = QEMU_MOVE_DONE;
	drop_stream(hv);
	return 0;
}

/* ---- destination ---- */

static int read_header(struct qemu *hv, mf_state_read_fn read, void *ctx, struct mf_error *err)
{
	uint8_t header[HEADER_LEN];
	size_t have = 0;
	while (have < sizeof(header)) {
		ssize_t n = read(ctx, header + have, sizeof(header) - have);
		if (n < 0)
			return base_error(err, (int)n, MF_SCOPE_SESSION,
					  "QEMU's state did not arrive: %s", base_strerror((int)n));
		if (n == 0)
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "QEMU's state ended before it began");
		have += (size_t)n;
	}
	if (memcmp(header, HEAD_MAGIC, 8) != 0 || header[8] != HEADER_VERSION)
		return base_error(
			err, -MF_EVERSION, MF_SCOPE_SESSION,
			"QEMU's state is not in the form that is known here: use the same "
			"memferry on both hosts");
	hv->undo->was_running = header[9] & FLAG_RAN;
	return 0;
}

/* Sends to QEMU.  1: it takes no more, whatever the reason. */
static int feed(struct qemu *hv, const uint8_t *bytes, size_t len, struct mf_error *err)
{
	while (len) {
		ssize_t n = send(hv->stream, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n >= 0) {
			bytes += n;
			len -= (size_t)n;
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EWOULDBLOCK)
			return 1;
		short stream;
		int r = wait_any(hv, POLLOUT, base_deadline_ms(QEMU_STATE_MS), &stream, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int qemu_load_state(struct qemu *hv, mf_state_read_fn read, void *ctx, struct mf_error *err)
{
	assert(hv->side == MF_DESTINATION && hv->undo->is_prepared &&
	       hv->undo->move == QEMU_MOVE_NONE);
	base_autofree uint8_t *buf = malloc(PUMP_BYTES);
	if (!buf)
		return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "QEMU's state: no memory");
	int r = read_header(hv, read, ctx, err);
	if (r >= 0)
		r = open_stream(hv, err);
	if (r < 0)
		return r;
	qmp_drop_events(hv->qmp);
	json_t *args = json_pack("{s:s}", "uri", "fd:" FD_NAME);
	/* So that a failure can be asked for its reason; older versions exit, and say it in their log only. */
	if (hv->version >= QEMU_VERSION(9, 1, 0))
		(void)json_object_set_new(args, "exit-on-error", json_false());
	hv->undo->move = QEMU_MOVE_STARTED;
	r = qemu_command(hv, "migrate-incoming", args, NULL, err);
	if (r == -EREMOTEIO || r == -EOPNOTSUPP) {
		hv->undo->move = QEMU_MOVE_NONE;
		take_back_stream(hv);
	}
	bool is_refused = false;
	while (r >= 0 && !is_refused) {
		ssize_t n = read(ctx, buf, PUMP_BYTES);
		if (n == 0)
			break;
		if (n < 0) {
			r = base_error(err, (int)n, MF_SCOPE_SESSION,
				       "QEMU's state did not arrive whole: %s",
				       base_strerror((int)n));
			break;
		}
		r = feed(hv, buf, (size_t)n, err);
		is_refused = r > 0;
	}
	if (r < 0)
		return r;
	(void)shutdown(hv->stream, SHUT_WR);
	r = wait_completed(hv, "load the guest's device state", err);
	if (r < 0)
		return r;
	hv->undo->move = QEMU_MOVE_DONE;
	drop_stream(hv);
	char state[32];
	bool is_running;
	r = qemu_run_state(hv, state, sizeof(state), &is_running, err);
	if (r >= 0 && is_running) {
		/* Somebody else said `cont` meanwhile; it must not go on. */
		(void)qemu_command(hv, "stop", NULL, NULL, NULL);
		return base_error(err, -EBUSY, MF_SCOPE_SESSION,
				  "QEMU (pid %d) was made to run by another client of its monitor",
				  (int)hv->pid);
	}
	return r;
}

static int run_guest(struct qemu *hv, struct mf_error *err)
{
	char state[32];
	bool is_running;
	int r = qemu_command(hv, "cont", NULL, NULL, err);
	if (r >= 0)
		r = qemu_run_state(hv, state, sizeof(state), &is_running, err);
	if (r >= 0 && !is_running)
		return base_error(err, -EREMOTEIO, MF_SCOPE_SESSION,
				  "QEMU (pid %d) does not run the guest, it is in state %s",
				  (int)hv->pid, state);
	return r;
}

int qemu_resume(struct qemu *hv, struct mf_error *err)
{
	assert(hv->side == MF_DESTINATION);
	char state[32];
	bool is_running;
	int r = qemu_run_state(hv, state, sizeof(state), &is_running, err);
	if (r < 0)
		return r;
	/* `cont` would be accepted, and take effect on some later load. */
	if (strcmp(state, "inmigrate") == 0)
		return base_error(err, -EINVAL, MF_SCOPE_SESSION,
				  "QEMU (pid %d) has no guest to run yet", (int)hv->pid);
	if (!is_running && hv->undo->was_running) {
		r = run_guest(hv, err);
		if (r < 0)
			return r;
	}
	hv->is_resumed = true;
	/* Switches learn the guest's new place; a guest without a network card does not mind. */
	(void)qemu_command(hv, "announce-self",
			   json_pack("{s:i, s:i, s:i, s:i}", "initial", 50, "max", 550, "rounds", 5,
				     "step", 100),
			   NULL, NULL);
	return 0;
}

/* ---- after another process ---- */

int qemu_take_over(struct qemu *hv, bool ran, bool *ret_runs, struct mf_error *err)
{
	char state[32];
	assert(!hv->undo->is_prepared && hv->undo->move == QEMU_MOVE_NONE);
	int r = qemu_run_state(hv, state, sizeof(state), ret_runs, err);
	if (r < 0)
		return r;
	/* A monitor that was started anew has nothing of the move. */
	bool has_guest = hv->side == MF_SOURCE ? strcmp(state, "prelaunch") != 0
					       : strcmp(state, "inmigrate") != 0;
	if (!has_guest)
		return base_error(
			err, -MF_EREFUSED, MF_SCOPE_HOST,
			"QEMU (pid %d) is in state %s: the guest of this move is not in it",
			(int)hv->pid, state);
	hv->undo->was_running = ran;
	qemu_assume_settings(hv);
	hv->undo->move = QEMU_MOVE_DONE;
	hv->undo->is_prepared = true;
	return 0;
}

/* ---- back ---- */

/* Waits until QEMU's migration has come to an end of whatever kind.  One that is cancelled while QEMU stops the guest waits
 * for migrate-continue all the same, for ever (seen with 7.2): it is told again and again, as it forgets what it was told
 * before it waits. */
static int settle(struct qemu *hv, char *status, size_t cap, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(SETTLE_MS);
	for (;;) {
		struct mf_error late = { 0 };
		int r = qemu_migration_status(hv, status, cap, NULL, 0, err);
		if (r < 0 || is_final(status) || strcmp(status, "none") == 0)
			return r;
		if (strcmp(status, "cancelling") == 0)
			(void)qemu_command(hv, "migrate-continue",
					   json_pack("{s:s}", "state", status), NULL, NULL);
		r = wait_event(hv, base_deadline_ms(NUDGE_MS), &late);
		if (r == -ETIMEDOUT && base_now_us() < deadline)
			continue;
		if (r < 0 && err)
			*err = late;
		if (r < 0)
			return r;
	}
}

/* The guest as it was before pause().  A cancelled migration starts it again by itself, a completed one does not. */
static int run_as_before(struct qemu *hv, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(SETTLE_MS);
	for (;;) {
		char state[32];
		bool is_running;
		int r = qemu_run_state(hv, state, sizeof(state), &is_running, err);
		if (r < 0 || is_running)
			return r;
		if (strcmp(state, "finish-migrate") != 0) {
			if (hv->undo->was_running)
				return run_guest(hv, err);
			/* Paused by its user; QEMU may call that "postmigrate" from now on. */
			return 0;
		}
		r = wait_event(hv, deadline, err);
		if (r < 0)
			return r;
	}
}

static int abort_source(struct qemu *hv, struct mf_error *err)
{
	int r = 0;
	if (hv->undo->move != QEMU_MOVE_NONE) {
		char status[32];
		uint64_t deadline = base_deadline_ms(QEMU_COMMAND_MS);
		/* Cancel first, so that it counts as cancelled; close before the answer, as QEMU may be
		 * blocked in writing to us. */
		r = qmp_send(hv->qmp, "migrate_cancel", NULL, -1, deadline, err);
		drop_stream(hv);
		if (r >= 0)
			r = qmp_wait_reply(hv->qmp, deadline, NULL, err);
		if (r >= 0)
			r = settle(hv, status, sizeof(status), err);
		if (r >= 0)
			r = run_as_before(hv, err);
		if (r < 0)
			return r;
		hv->undo->move = QEMU_MOVE_NONE;
	}
	r = qemu_restore_settings(hv, err);
	hv->undo->is_prepared = false;
	return r;
}

static int abort_destination(struct qemu *hv, struct mf_error *err)
{
	if (hv->undo->move != QEMU_MOVE_NONE) {
		/* Half or whole, what it holds is a second copy of a guest that runs elsewhere. */
		qemu_quit(hv);
		hv->undo->move = QEMU_MOVE_NONE;
		hv->undo->is_prepared = false;
		return 0;
	}
	int r = qemu_restore_settings(hv, err);
	hv->undo->is_prepared = false;
	return r == -ESRCH ? 0 : r;
}

int qemu_abort(struct qemu *hv, struct mf_error *err)
{
	if (hv->undo->is_held)
		(void)qemu_let_go(hv, NULL); /* what follows finds out if it failed */
	if (hv->undo->is_committed || hv->is_resumed)
		return base_error(
			err, -EPERM, MF_SCOPE_SESSION,
			"QEMU (pid %d): the guest has been handed over, there is no way back",
			(int)hv->pid);
	return hv->side == MF_SOURCE ? abort_source(hv, err) : abort_destination(hv, err);
}

void qemu_quit(struct qemu *hv)
{
	uint64_t deadline = base_deadline_ms(QUIT_MS);
	/* Opened while the monitor's peer is known to live, so that it is nobody else later. */
	base_autofd pidfd = (int)syscall(SYS_pidfd_open, hv->pid, 0);
	int r = qmp_send(hv->qmp, "quit", NULL, -1, deadline, NULL);
	drop_stream(hv);
	while (r >= 0) {
		short unused;
		r = wait_any(hv, 0, deadline, &unused, NULL);
	}
	/* Hangs in a touch of RAM that never comes; it has no guest to lose.  Only what was seen to hold the RAM. */
	if (r == -ETIMEDOUT && pidfd >= 0 && hv->n_regions)
		(void)attach_kill(hv->pid, pidfd);
	if (pidfd >= 0) {
		struct pollfd p = { .fd = pidfd, .events = POLLIN };
		(void)poll(&p, 1, base_left_ms(deadline) + 1000);
	}
}
