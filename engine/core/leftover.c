/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sessions whose process on this host has ended: what their files mean, and their end.
 *
 *   SESSION.SIDE.record       how far the hand-off came
 *   SESSION.SIDE.record.new   the draft of one
 *   SESSION.SIDE.lock         held as long as somebody goes on with it
 *   SESSION.present           of the destination: pages that are here
 *
 * Guests are not touched.  A destination's that lacks pages keeps the userfaultfd that its touches wait in.
 */
#include <memferry/session.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "core/engine.h"

#define SIDES 2

/* In the order in which they are removed: as long as the lock is there, nobody else begins. */
static const struct {
	const char *suffix;
	enum mf_side side;
} kinds[] = {
	{ ".source.record", MF_SOURCE },
	{ ".source.record.new", MF_SOURCE },
	{ ".source.lock", MF_SOURCE },
	{ ".destination.record", MF_DESTINATION },
	{ ".destination.record.new", MF_DESTINATION },
	{ ".present", MF_DESTINATION },
	{ ".destination.lock", MF_DESTINATION },
};

/* ---- what it means ---- */

static bool exists(const char *path)
{
	return access(path, F_OK) == 0;
}

static void judge_source(struct mf_leftover *l)
{
	l->needed = l->guest_lives;
	if (!l->guest_lives)
		(void)snprintf(l->text, sizeof(l->text),
			       "the guest (pid %d) has ended here: memferry send ... --resume %s "
			       "asks whether the destination has all of it",
			       l->pid, l->session);
	else
		(void)snprintf(l->text, sizeof(l->text),
			       "the destination may need the paused guest (pid %d), or never have "
			       "run its own: memferry send ... --resume %s asks and goes on",
			       l->pid, l->session);
}

/* has_present: of one that is complete: the process died before it had let go of the guest. */
static void judge_destination(struct mf_leftover *l, enum eng_record what, bool has_present)
{
	bool is_whole = what == ENG_RECORD_COMPLETE || (what == ENG_RECORD_RUNNING && !l->postcopy);
	if (what == ENG_RECORD_READY) {
		l->needed = true;
		(void)snprintf(l->text, sizeof(l->text),
			       "the source may wait for an answer: memferry receive ... --resume "
			       "%s tells it that the guest never ran here",
			       l->session);
	} else if (what == ENG_RECORD_ABORTED) {
		(void)snprintf(l->text, sizeof(l->text),
			       "the guest never ran here: a source that asks hears it from "
			       "memferry receive ... --resume %s",
			       l->session);
	} else if (is_whole && !(has_present && l->guest_lives)) {
		(void)snprintf(l->text, sizeof(l->text),
			       "the guest came here whole: a source that asks hears it from "
			       "memferry receive ... --resume %s",
			       l->session);
	} else if (l->guest_lives) {
		l->needed = true;
		(void)snprintf(l->text, sizeof(l->text),
			       "the guest (pid %d) is here and %s: memferry receive ... --resume "
			       "%s goes on",
			       l->pid,
			       is_whole      ? "may wait in pages that came"
			       : l->postcopy ? "waits for pages that it lacks"
					     : "may wait to be resumed",
			       l->session);
	} else {
		(void)snprintf(l->text, sizeof(l->text),
			       "the guest (pid %d) has ended here: nothing can go on with it",
			       l->pid);
	}
}

static void judge(const char *run_dir, struct mf_leftover *l)
{
	char path[512];
	struct eng_record_entry found;
	eng_record_path(run_dir, l->session, l->side, "lock", path, sizeof(path));
	l->held = eng_record_is_held(path);
	eng_record_path(run_dir, l->session, l->side, "record", path, sizeof(path));
	int r = eng_record_parse(path, l->session, l->side, &found);
	if (r == -ENOENT) {
		(void)snprintf(l->text, sizeof(l->text),
			       "nothing was handed over: only files are left");
		return;
	}
	if (r < 0) {
		l->needed = true;
		(void)snprintf(l->record, sizeof(l->record), "unknown");
		(void)snprintf(l->text, sizeof(l->text),
			       "not a record that this version of memferry has written: use the "
			       "one that has");
		return;
	}
	(void)snprintf(l->record, sizeof(l->record), "%s", eng_record_name(found.what));
	l->postcopy = found.postcopy;
	l->pid = found.guest.pid;
	l->guest_lives = base_process_lives(&found.guest);
	eng_present_path(run_dir, l->session, path, sizeof(path));
	if (l->side == MF_SOURCE)
		judge_source(l);
	else
		judge_destination(l, found.what, exists(path));
}

/* ---- finding ---- */

static bool parse_name(const char *name, struct mf_leftover *ret)
{
	size_t len = strcspn(name, ".");
	if (!len || len >= sizeof(ret->session))
		return false;
	*ret = (struct mf_leftover){ 0 };
	memcpy(ret->session, name, len);
	if (!eng_is_session_name(ret->session))
		return false;
	for (size_t i = 0; i < BASE_ARRAY_LEN(kinds); i++) {
		if (!strcmp(name + len, kinds[i].suffix)) {
			ret->side = kinds[i].side;
			return true;
		}
	}
	return false;
}

int mf_leftovers(const char *run_dir, struct mf_leftover *ret, size_t size, unsigned cap,
		 struct mf_error *err)
{
	struct mf_leftover one;
	size_t copied = size < sizeof(one) ? size : sizeof(one);
	unsigned n = 0;
	base_error_clear(err);
	if (size < offsetof(struct mf_leftover, held))
		return base_error(err, -EINVAL, MF_SCOPE_HOST,
				  "leftovers: set their size to sizeof(struct mf_leftover)");
	DIR *dir = opendir(run_dir);
	if (!dir)
		return errno == ENOENT ? 0
				       : base_error_sys(err, -errno, MF_SCOPE_HOST,
							"run directory %s", run_dir);
	for (struct dirent *entry; n < cap && (entry = readdir(dir));) {
		bool is_new = parse_name(entry->d_name, &one);
		for (unsigned i = 0; is_new && i < n; i++) {
			const struct mf_leftover *other =
				(const void *)((const char *)ret + i * size);
			is_new = other->side != one.side || strcmp(other->session, one.session);
		}
		if (!is_new)
			continue;
		judge(run_dir, &one);
		memcpy((char *)ret + n++ * size, &one, copied);
	}
	(void)closedir(dir);
	return (int)n;
}

/* ---- forgetting ---- */

/* Whether there is anything of this side; held from here on when there is. */
static int claim(const char *run_dir, struct mf_leftover *l, int *ret_lock, struct mf_error *err)
{
	char path[512];
	bool any = false;
	for (size_t i = 0; i < BASE_ARRAY_LEN(kinds); i++) {
		(void)snprintf(path, sizeof(path), "%s/%s%s", run_dir, l->session, kinds[i].suffix);
		any = any || (kinds[i].side == l->side && exists(path));
	}
	if (!any)
		return 0;
	eng_record_path(run_dir, l->session, l->side, "lock", path, sizeof(path));
	*ret_lock = eng_record_lock(path, O_CREAT);
	if (*ret_lock == -EWOULDBLOCK)
		return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
				  "session %s goes on, in a process of this host", l->session);
	if (*ret_lock < 0)
		return base_error_sys(err, *ret_lock, MF_SCOPE_HOST, "%s", path);
	return 1;
}

static int remove_files(const char *run_dir, const char *session, enum mf_side side,
			struct mf_error *err)
{
	char path[512];
	for (size_t i = 0; i < BASE_ARRAY_LEN(kinds); i++) {
		(void)snprintf(path, sizeof(path), "%s/%s%s", run_dir, session, kinds[i].suffix);
		if (kinds[i].side == side && unlink(path) && errno != ENOENT)
			return base_error_sys(err, -errno, MF_SCOPE_HOST, "%s", path);
	}
	return 0;
}

static int forget(const char *run_dir, const char *session, bool force, int lock[SIDES],
		  struct mf_error *err)
{
	bool found[SIDES] = { 0 };
	for (int side = 0; side < SIDES; side++) {
		struct mf_leftover l = { .side = (enum mf_side)side };
		(void)snprintf(l.session, sizeof(l.session), "%s", session);
		int r = claim(run_dir, &l, &lock[side], err);
		if (r < 0)
			return r;
		found[side] = r;
		if (r)
			judge(run_dir, &l);
		if (l.needed && !force)
			return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
					  "session %s: %s; only --force forgets it", session,
					  l.text);
	}
	if (!found[MF_SOURCE] && !found[MF_DESTINATION])
		return base_error(err, -ENOENT, MF_SCOPE_HOST,
				  "session %s: nothing is left of it in %s", session, run_dir);
	for (int side = 0; side < SIDES; side++) {
		int r = found[side] ? remove_files(run_dir, session, (enum mf_side)side, err) : 0;
		if (r < 0)
			return r;
	}
	return 0;
}

int mf_forget(const char *run_dir, const char *session, bool force, struct mf_error *err)
{
	int lock[SIDES] = { -1, -1 };
	base_error_clear(err);
	if (!eng_is_session_name(session))
		return base_error(
			err, -MF_EUSAGE, MF_SCOPE_HOST,
			"'%.40s' is not a session's name, which has only 0 to 9 and a to f",
			session);
	int r = forget(run_dir, session, force, lock, err);
	for (int side = 0; side < SIDES; side++)
		base_closep(&lock[side]);
	return r;
}
