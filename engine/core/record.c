/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The hand-off's memory: what is on disk before a message says it.
 *
 *   source       committed   recorded, then COMMIT is sent
 *   destination  ready       recorded, then READY is sent: from here on a commit may come
 *                aborted     recorded, then queries are answered so
 *                owner       recorded, then the guest is resumed, then RUNNING is sent
 *                running     it was resumed: who goes on after a crash leaves it as it is
 *                complete    every page is here, and the source has not heard of it
 *
 * A record is one JSON object in RUN_DIR/SESSION.SIDE.record, written whole or not at all.  Its owner holds the lock of
 * RUN_DIR/SESSION.SIDE.lock, so that nobody goes on with a move that goes on already.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#include "base/cleanup.h"
#include "core/engine.h"

#define TEXT_MAX 512
/* Who only looks whether it is held has it for less. */
#define LOCK_TRIES    20
#define LOCK_PAUSE_MS 10

static const char *const names[ENG_RECORD_COUNT] = {
	[ENG_RECORD_COMMITTED] = "committed", [ENG_RECORD_READY] = "ready",
	[ENG_RECORD_ABORTED] = "aborted",     [ENG_RECORD_OWNER] = "owner",
	[ENG_RECORD_RUNNING] = "running",     [ENG_RECORD_COMPLETE] = "complete",
};

const char *eng_record_name(enum eng_record what)
{
	return names[what];
}

static const char *side_name(enum mf_side side)
{
	return side == MF_SOURCE ? "source" : "destination";
}

void eng_record_path(const char *run_dir, const char *session, enum mf_side side,
		     const char *suffix, char *ret, size_t cap)
{
	(void)snprintf(ret, cap, "%s/%s.%s.%s", run_dir, session, side_name(side), suffix);
}

static void file_path(const struct mf_session *s, const char *suffix, char *ret, size_t cap)
{
	eng_record_path(s->run_dir, s->report.session, s->params.side, suffix, ret, cap);
}

static int write_synced(const char *path, const char *text)
{
	base_autofd fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	size_t len = strlen(text);
	ssize_t n = write(fd, text, len);
	if (n != (ssize_t)len)
		return n < 0 ? -errno : -ENOSPC;
	return fsync(fd) ? -errno : 0;
}

int eng_record_lock(const char *path, int flags)
{
	base_autofd fd = open(path, O_RDWR | O_CLOEXEC | flags, 0600);
	if (fd < 0)
		return -errno;
	for (int i = 0; flock(fd, LOCK_EX | LOCK_NB); i++) {
		if (errno != EWOULDBLOCK || i == LOCK_TRIES)
			return -errno;
		(void)poll(NULL, 0, LOCK_PAUSE_MS);
	}
	return base_take_fd(&fd);
}

bool eng_record_is_held(const char *path)
{
	base_autofd fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK;
}

static int lock(struct mf_session *s, int flags)
{
	char path[512];
	if (s->lock_fd >= 0)
		return 0;
	file_path(s, "lock", path, sizeof(path));
	int fd = eng_record_lock(path, flags);
	if (fd >= 0)
		s->lock_fd = fd;
	return fd < 0 ? fd : 0;
}

static void say(struct mf_session *s, enum eng_record what, bool postcopy, char text[TEXT_MAX])
{
	const struct base_process *guest = s->guest.pid ? &s->guest_process : &s->record.guest;
	(void)snprintf(text, TEXT_MAX,
		       "{\"version\":4,\"session\":\"%s\",\"side\":\"%s\",\"state\":\"%s\","
		       "\"postcopy\":%s,\"ran\":%s,\"sealing\":%d,\"pid\":%d,"
		       "\"started\":%" PRIu64 ",\"pid_ns\":%" PRIu64 ",\"peer\":\"%s\","
		       "\"time\":%lld}\n",
		       s->report.session, side_name(s->params.side), names[what],
		       postcopy ? "true" : "false", eng_guest_ran(s) ? "true" : "false",
		       (int)s->report.sealing, guest->pid, guest->started, guest->pid_ns,
		       s->peer_name, (long long)time(NULL));
}

/* A promise that may not stay must not be found later, but what was promised before must.  What follows a promise only
 * says more. */
static void take_back(struct mf_session *s, enum eng_record what, bool postcopy, const char *path,
		      const char *temporary)
{
	char text[TEXT_MAX];
	if (what != ENG_RECORD_COMMITTED && what != ENG_RECORD_OWNER)
		return;
	say(s, ENG_RECORD_READY, postcopy, text);
	if (what == ENG_RECORD_COMMITTED || write_synced(temporary, text) ||
	    rename(temporary, path))
		(void)unlink(path);
}

int eng_record_write(struct mf_session *s, enum eng_record what, bool postcopy,
		     struct mf_error *err)
{
	char path[512], temporary[512], text[TEXT_MAX];
	file_path(s, "record", path, sizeof(path));
	file_path(s, "record.new", temporary, sizeof(temporary));
	say(s, what, postcopy, text);

	if (mkdir(s->run_dir, 0700) && errno != EEXIST)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "%s: cannot be created",
				      s->run_dir);
	int r = lock(s, O_CREAT);
	if (r == 0)
		r = write_synced(temporary, text);
	if (r == 0 && rename(temporary, path))
		r = -errno;
	bool renamed = r == 0;
	if (renamed) {
		base_autofd dir = open(s->run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		/* tmpfs, the usual run directory, has nothing to sync */
		if (dir < 0 || (fsync(dir) && errno != EINVAL))
			r = -errno;
	}
	if (r < 0) {
		if (renamed)
			take_back(s, what, postcopy, path, temporary);
		(void)unlink(temporary);
		return base_error_sys(
			err, r, MF_SCOPE_HOST,
			"%s: the hand-off record cannot be written; nothing is committed", path);
	}
	return 0;
}

int eng_record_parse(const char *path, const char *session, enum mf_side side,
		     struct eng_record_entry *ret)
{
	char text[512], of[MF_SESSION_NAME_MAX], at[16], state[16], postcopy[8], ran[8], sealing[2];
	base_autofd fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t n = read(fd, text, sizeof(text) - 1);
	text[n > 0 ? n : 0] = '\0';
	*ret = (struct eng_record_entry){ .what = ENG_RECORD_COUNT };
	if (sscanf(text,
		   "{\"version\":4,\"session\":\"%39[0-9a-f]\",\"side\":\"%15[a-z]\",\"state\":\"%"
		   "15[a-z]\","
		   "\"postcopy\":%7[a-z],\"ran\":%7[a-z],\"sealing\":%1[0-2],\"pid\":%d,"
		   "\"started\":%" SCNu64 ",\"pid_ns\":%" SCNu64 ",",
		   of, at, state, postcopy, ran, sealing, &ret->guest.pid, &ret->guest.started,
		   &ret->guest.pid_ns) == 9 &&
	    !strcmp(of, session) && !strcmp(at, side_name(side))) {
		for (int i = 0; i < ENG_RECORD_COUNT; i++) {
			if (!strcmp(state, names[i]))
				ret->what = (enum eng_record)i;
		}
		ret->postcopy = !strcmp(postcopy, "true");
		ret->ran = !strcmp(ran, "true");
		ret->sealing = (enum mf_sealing)(sealing[0] - '0');
	}
	return ret->what == ENG_RECORD_COUNT ? -EBADMSG : 0;
}

int eng_record_read(struct mf_session *s, struct eng_record_entry *ret, struct mf_error *err)
{
	char path[512];
	file_path(s, "record", path, sizeof(path));
	int r = lock(s, 0);
	if (r == -EWOULDBLOCK)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "session %s goes on already, in another process of this host",
				  s->report.session);
	if (r == 0)
		r = eng_record_parse(path, s->report.session, s->params.side, ret);
	if (r == -EBADMSG)
		return base_error(err, -EBADMSG, MF_SCOPE_HOST,
				  "%s: not a record that this version has written", path);
	if (r < 0)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "session %s: nothing to go on with: %s has no record of it as "
				  "this move's %s",
				  s->report.session, s->run_dir, side_name(s->params.side));
	return 0;
}

int eng_record_claim(struct mf_session *s, struct mf_error *err)
{
	int r = lock(s, O_CREAT);
	return r < 0 ? base_error_sys(err, r, MF_SCOPE_HOST,
				      "session %s: its lock in %s cannot be had", s->report.session,
				      s->run_dir)
		     : 0;
}

void eng_record_remove(struct mf_session *s)
{
	char path[512];
	if (s->lock_fd < 0)
		return;
	file_path(s, "record", path, sizeof(path));
	(void)unlink(path);
	file_path(s, "lock", path, sizeof(path));
	(void)unlink(path);
	base_closep(&s->lock_fd);
}
