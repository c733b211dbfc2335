/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/qemu/qemu.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/log.h"
#include "hv-adapters/adapters.h"
#include "hv-adapters/attach/attach.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

#define GREETING_MS 3000

/* ---- asking ---- */

int qemu_command(struct qemu *hv, const char *command, json_t *args, json_t **ret,
		 struct mf_error *err)
{
	return qmp_execute(hv->qmp, command, args, -1, base_deadline_ms(QEMU_COMMAND_MS), ret, err);
}

char *qemu_human(struct qemu *hv, const char *line, struct mf_error *err)
{
	qmp_autojson text = NULL;
	int r = qemu_command(hv, "human-monitor-command", json_pack("{s:s}", "command-line", line),
			     &text, err);
	if (r < 0)
		return NULL;
	if (!json_is_string(text)) {
		(void)base_error(err, -EPROTO, MF_SCOPE_HOST, "QEMU has no answer to \"%s\"", line);
		return NULL;
	}
	char *copy = strdup(json_string_value(text));
	if (!copy)
		(void)base_error(err, -ENOMEM, MF_SCOPE_HOST, "QEMU: no memory");
	return copy;
}

int qemu_run_state(struct qemu *hv, char *ret_state, size_t cap, bool *ret_is_running,
		   struct mf_error *err)
{
	qmp_autojson status = NULL;
	int r = qemu_command(hv, "query-status", NULL, &status, err);
	if (r < 0)
		return r;
	const char *state = json_string_value(json_object_get(status, "status"));
	(void)snprintf(ret_state, cap, "%s", state ? state : "unknown");
	*ret_is_running = json_is_true(json_object_get(status, "running"));
	return 0;
}

int qemu_migration_status(struct qemu *hv, char *ret_status, size_t cap, char *ret_why,
			  size_t why_cap, struct mf_error *err)
{
	qmp_autojson info = NULL;
	int r = qemu_command(hv, "query-migrate", NULL, &info, err);
	if (r < 0)
		return r;
	const char *status = json_string_value(json_object_get(info, "status"));
	const char *why = json_string_value(json_object_get(info, "error-desc"));
	/* A destination that listens by itself says only where, not that it does. */
	if (!status)
		status =
			json_array_size(json_object_get(info, "socket-address")) ? "setup" : "none";
	(void)snprintf(ret_status, cap, "%s", status);
	if (ret_why)
		(void)snprintf(ret_why, why_cap, "%s", why ? why : "");
	return 0;
}

/* ---- userfaultfds ---- */

/* Those of a session that was killed: nobody waits in them before a move begins, and they would be in the way. */
static int close_leftovers(struct qemu *hv, struct mf_error *err)
{
	int remote[QEMU_UFFDS_MAX];
	int n = attach_find_userfaultfds(hv->pid, remote, QEMU_UFFDS_MAX, err);
	if (n > 0) {
		base_debug("qemu: closing %d userfaultfds left behind", n);
		attach_close_fds(hv->pid, remote, (unsigned)n);
		n = attach_find_userfaultfds(hv->pid, remote, QEMU_UFFDS_MAX, err);
	}
	if (n > 0)
		return base_error(
			err, -EAGAIN, MF_SCOPE_HOST,
			"QEMU (pid %d): %d userfaultfds of a move before could not be closed",
			(int)hv->pid, n);
	return n;
}

/*
 * A QEMU without privilege may not make one that also catches the kernel's touches, as KVM's are.  We may: QEMU is
 * handed our /dev/userfaultfd, and the one made from that inside it belongs to its address space.
 */
static int open_by_device(struct qemu *hv, int *ret_fd, int *ret_remote, struct mf_error *err)
{
	base_autofd device = attach_open_device(hv->pid);
	if (device < 0)
		return base_error_sys(
			err, device, MF_SCOPE_HOST,
			"QEMU (pid %d) may not make a userfaultfd and /dev/userfaultfd is "
			"of no help: run memferry as root on Linux 6.1 or newer",
			(int)hv->pid);
	qmp_autojson set = NULL;
	int r = qmp_execute(hv->qmp, "add-fd", NULL, device, base_deadline_ms(QEMU_COMMAND_MS),
			    &set, err);
	if (r < 0)
		return r;
	r = attach_userfaultfd_by(hv->pid, (int)json_integer_value(json_object_get(set, "fd")),
				  ret_fd, ret_remote, err);
	(void)qemu_command(hv, "remove-fd",
			   json_pack("{s:O}", "fdset-id", json_object_get(set, "fdset-id")), NULL,
			   NULL);
	return r;
}

static int open_userfaultfd(void *p, int *ret_fd, struct mf_error *err)
{
	struct qemu *hv = p;
	if (hv->n_remote == QEMU_UFFDS_MAX)
		return base_error(err, -EMFILE, MF_SCOPE_SESSION,
				  "QEMU (pid %d): more than %d userfaultfds", (int)hv->pid,
				  QEMU_UFFDS_MAX);
	int remote = -1;
	struct mf_error why = { 0 };
	int r = attach_userfaultfd(hv->pid, ret_fd, &remote, &why);
	if (r == -EPERM || r == -EACCES) {
		why = (struct mf_error){ 0 };
		r = open_by_device(hv, ret_fd, &remote, &why);
	}
	if (r < 0)
		return base_error(err, r, why.scope, "%s", why.msg);
	hv->remote[hv->n_remote++] = remote;
	return 0;
}

static void close_userfaultfds(void *p)
{
	struct qemu *hv = p;
	if (hv->n_remote)
		attach_close_fds(hv->pid, hv->remote, hv->n_remote);
	hv->n_remote = 0;
}

static int forget_ram(void *p, struct mf_error *err)
{
	struct qemu *hv = p;
	assert(hv->side == MF_DESTINATION && hv->n_regions);
	struct attach_range ranges[MF_REGIONS_MAX];
	for (uint32_t i = 0; i < hv->n_regions; i++)
		ranges[i] = (struct attach_range){ hv->regions[i].hva, hv->regions[i].size };
	struct mf_error why = { 0 };
	int r = attach_madvise(hv->pid, ranges, hv->n_regions, MADV_DONTNEED, &why);
	if (r == -EINVAL) {
		/* RAM locked by -overcommit mem-lock=on. */
		why = (struct mf_error){ 0 };
		r = attach_madvise(hv->pid, ranges, hv->n_regions, MADV_DONTNEED_LOCKED, &why);
	}
	return r < 0 ? base_error(err, r, why.scope, "%s", why.msg) : 0;
}

/* ---- the rest of the table ---- */

static int describe(void *hv, struct mf_guest *ret, struct mf_error *err)
{
	return qemu_describe(hv, ret, err);
}

static int prepare(void *p, enum mf_side side, struct mf_error *err)
{
	struct qemu *hv = p;
	assert(side == hv->side && !hv->undo->is_prepared);
	(void)side;
	int r = qemu_check_state(hv, err);
	hv->undo->is_prepared = r >= 0;
	if (r >= 0)
		r = close_leftovers(hv, err);
	if (r >= 0)
		r = qemu_apply_settings(hv, err);
	/* While QEMU waits for a guest this means: do not run it by yourself. */
	if (r >= 0 && hv->side == MF_DESTINATION) {
		r = qemu_command(hv, "stop", NULL, NULL, err);
		if (r < 0)
			(void)qemu_restore_settings(hv, NULL);
	}
	hv->undo->is_prepared = r >= 0;
	return r;
}

/* While there is a way back: who cannot reach into QEMU any more could not end what it began in there. */
static int pause_guest(void *p, uint64_t *ret_stopped_us, struct mf_error *err)
{
	struct qemu *hv = p;
	int r = attach_check(hv->pid, err);
	return r < 0 ? r : qemu_pause(hv, ret_stopped_us, err);
}

static int save_state(void *hv, mf_state_write_fn write, void *ctx, struct mf_error *err)
{
	return qemu_save_state(hv, write, ctx, err);
}

static int load_state(void *p, mf_state_read_fn read, void *ctx, struct mf_error *err)
{
	struct qemu *hv = p;
	int r = attach_check(hv->pid, err);
	return r < 0 ? r : qemu_load_state(hv, read, ctx, err);
}

static int resume(void *hv, struct mf_error *err)
{
	return qemu_resume(hv, err);
}

static void commit(void *p)
{
	struct qemu *hv = p;
	assert(hv->side == MF_SOURCE && hv->undo->move == QEMU_MOVE_DONE);
	hv->undo->is_committed = true;
}

static int abort_move(void *hv, struct mf_error *err)
{
	return qemu_abort(hv, err);
}

static void finish(void *p)
{
	struct qemu *hv = p;
	assert(hv->undo->is_committed);
	qemu_quit(hv);
	hv->n_remote = 0;
}

static int throttle(void *hv, unsigned percent, struct mf_error *err)
{
	(void)hv;
	(void)percent;
	return base_error(err, -EOPNOTSUPP, MF_SCOPE_OP,
			  "QEMU's vCPUs cannot be slowed down from outside");
}

static int hold(void *hv, struct mf_error *err)
{
	return qemu_hold(hv, err);
}

static int let_go(void *hv, struct mf_error *err)
{
	return qemu_let_go(hv, err);
}

static void close_guest(void *p)
{
	struct qemu *hv = p;
	if (hv->qmp) {
		bool is_over = hv->undo->is_committed || hv->is_resumed;
		/* A destination that has loaded a guest is left as it is: who goes on with this move later
		 * finds it there, stopped, and touches of RAM still wait in its userfaultfds. */
		bool is_loaded = hv->side == MF_DESTINATION && hv->undo->move == QEMU_MOVE_DONE;
		if (!is_over && !is_loaded &&
		    (hv->undo->is_prepared || hv->undo->is_held ||
		     hv->undo->move != QEMU_MOVE_NONE))
			(void)qemu_abort(hv, NULL);
		else if (hv->is_resumed)
			(void)qemu_restore_settings(hv, NULL);
		if (!is_loaded && !hv->undo->is_committed)
			close_userfaultfds(hv);
	}
	base_closep(&hv->stream);
	for (uint32_t i = 0; i < hv->n_regions; i++)
		base_closep(&hv->regions[i].fd);
	free(hv->head);
	qmp_close(hv->qmp);
	free(hv->socket_path);
	(void)munmap(hv->undo, sizeof(*hv->undo));
	free(hv);
}

static int take_over(void *hv, bool ran, bool *ret_runs, struct mf_error *err)
{
	return qemu_take_over(hv, ran, ret_runs, err);
}

static bool ran(void *hv)
{
	return ((const struct qemu *)hv)->undo->was_running;
}

/* prepare() closes all that it finds, so what there is was made for this move. */
static int find_userfaultfd(void *p, int *ret_fd, struct mf_error *err)
{
	struct qemu *hv = p;
	int n = attach_find_userfaultfds(hv->pid, hv->remote, QEMU_UFFDS_MAX, err);
	if (n < 0)
		return n;
	if (n != 1)
		return base_error(err, n ? -EEXIST : -ENOENT, MF_SCOPE_SESSION,
				  "QEMU (pid %d) holds %d userfaultfds instead of the one that was "
				  "made for this move",
				  (int)hv->pid, n);
	hv->n_remote = 1;
	return attach_get_userfaultfd(hv->pid, hv->remote[0], ret_fd, err);
}

static const struct mf_adapter_ops qemu_ops = {
	.size = sizeof(struct mf_adapter_ops),
	.name = "qemu",
	.describe = describe,
	.prepare = prepare,
	.open_userfaultfd = open_userfaultfd,
	.close_userfaultfds = close_userfaultfds,
	.forget_ram = forget_ram,
	.pause = pause_guest,
	.save_state = save_state,
	.load_state = load_state,
	.resume = resume,
	.commit = commit,
	.abort = abort_move,
	.finish = finish,
	.throttle = throttle,
	.close = close_guest,
	.hold = hold,
	.let_go = let_go,
	.take_over = take_over,
	.find_userfaultfd = find_userfaultfd,
	.ran = ran,
};

/* ---- a guardian's part ---- */

pid_t hv_qemu_pid(const void *p)
{
	return ((const struct qemu *)p)->pid;
}

/* hv is a copy: what it points to besides `undo`, and its descriptors, were the killed process's. */
int hv_qemu_bring_back(void *p, struct mf_error *err)
{
	struct qemu *hv = p;
	/* Written by a process that had less privilege: its bounds are looked at. */
	static struct qemu_undo copy;
	struct qemu_undo *undo = &copy;
	*undo = *hv->undo;
	hv->undo = undo;
	if (undo->n_old_caps > QEMU_CAPABILITIES_MAX)
		undo->n_old_caps = 0;
	for (unsigned i = 0; i < undo->n_old_caps; i++)
		undo->old_caps[i].name[sizeof(undo->old_caps[i].name) - 1] = '\0';
	undo->old_params[sizeof(undo->old_params) - 1] = '\0';
	bool is_begun = undo->is_prepared || undo->is_held || undo->move != QEMU_MOVE_NONE;
	if (hv->side != MF_SOURCE || undo->is_committed || !is_begun)
		return 0;
	/* First: a thread of QEMU may wait in one, and the one that serves the monitor, too. */
	struct mf_error why = { 0 };
	if (close_leftovers(hv, &why) < 0)
		base_debug("qemu: %s", why.msg);
	hv->stream = -1;
	hv->head = NULL;
	hv->head_len = hv->head_cap = 0;
	int r = qmp_open(hv->socket_path, base_deadline_ms(GREETING_MS), &hv->qmp, err);
	if (r < 0)
		return r;
	if (qmp_peer(hv->qmp) != hv->pid)
		r = base_error(err, -ESRCH, MF_SCOPE_HOST, "QEMU (pid %d) has left %s",
			       (int)hv->pid, hv->socket_path);
	if (r >= 0)
		r = qemu_abort(hv, err);
	qmp_close(hv->qmp);
	return r;
}

/* ---- opening ---- */

static int read_version(struct qemu *hv, struct mf_error *err)
{
	qmp_autojson version = NULL;
	int r = qemu_command(hv, "query-version", NULL, &version, err);
	if (r < 0)
		return r;
	const json_t *v = json_object_get(version, "qemu");
	hv->version = QEMU_VERSION((int)json_integer_value(json_object_get(v, "major")),
				   (int)json_integer_value(json_object_get(v, "minor")),
				   (int)json_integer_value(json_object_get(v, "micro")));
	return 0;
}

int hv_qemu_open(const char *socket_path, enum mf_side side, struct mf_adapter *ret,
		 struct mf_error *err)
{
	struct qemu *hv = calloc(1, sizeof(*hv));
	struct qemu_undo *undo = mmap(NULL, sizeof(*undo), PROT_READ | PROT_WRITE,
				      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *path = strdup(socket_path);
	if (!hv || undo == MAP_FAILED || !path) {
		if (undo != MAP_FAILED)
			(void)munmap(undo, sizeof(*undo));
		free(path);
		free(hv);
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "QEMU: no memory");
	}
	hv->side = side;
	hv->stream = -1;
	hv->socket_path = path;
	hv->undo = undo;
	hv->undo->was_running = true;
	int r = qmp_open(socket_path, base_deadline_ms(GREETING_MS), &hv->qmp, err);
	if (r >= 0) {
		hv->pid = qmp_peer(hv->qmp);
		if (!hv->pid)
			r = base_error(
				err, -ESRCH, MF_SCOPE_HOST,
				"QEMU behind %s is in another process namespace: run memferry "
				"in the same one, or on the host",
				socket_path);
	}
	if (r >= 0)
		r = read_version(hv, err);
	if (r < 0) {
		close_guest(hv);
		return r;
	}
	*ret = (struct mf_adapter){ .ops = &qemu_ops, .hv = hv };
	return 0;
}
