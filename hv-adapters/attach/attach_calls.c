/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What memferry runs in other processes: making and closing userfaultfds, and madvise.
 *
 * Each runs its session on a thread of its own, because the kernel lets a tracee go in whatever state it is when its
 * tracing thread ends: so a target that cannot be stopped in time is left alone in every case.
 */
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "hv-adapters/attach/attach.h"
#include "hv-adapters/attach/attach_proc.h"

#define USERFAULTFD_LINK "anon_inode:[userfaultfd]"

enum { PIDFD_OF_THREAD = O_EXCL }; /* PIDFD_THREAD, Linux 6.9 */

/* madvise cannot be broken off: pieces that take milliseconds, and keep every page size's alignment. */
#define ADVISE_CHUNK (UINT64_C(1) << 30)

struct job {
	pid_t pid;
	int (*run)(struct attach *at, struct job *job);
	int rc;
	struct mf_error *err;
	/* for run */
	const int *fds;
	const struct attach_range *ranges;
	unsigned n;
	int advice;
	int remote; /* result */
};

static void *run_session(void *arg)
{
	struct job *job = arg;
	struct attach *at;

	job->rc = attach_begin(job->pid, &at, job->err);
	if (job->rc == 0) {
		job->rc = job->run(at, job);
		attach_end(at);
	}
	return NULL;
}

static int run_job(struct job *job)
{
	pthread_t thread;
	int rc = pthread_create(&thread, NULL, run_session, job);

	if (rc != 0)
		return base_error_sys(job->err, -rc, MF_SCOPE_SESSION,
				      "a thread to attach to process %d cannot be started",
				      (int)job->pid);
	rc = pthread_join(thread, NULL);
	assert(rc == 0);
	return job->rc;
}

static bool is_userfaultfd(const char *dir, int fd)
{
	char path[80], link[64];

	(void)snprintf(path, sizeof(path), "%s/%d", dir, fd);
	ssize_t n = readlink(path, link, sizeof(link));
	return n == (ssize_t)strlen(USERFAULTFD_LINK) &&
	       memcmp(link, USERFAULTFD_LINK, (size_t)n) == 0;
}

/* The target's descriptors, seen through a live thread: an exited leader has none. */
static int name_fd_dir(pid_t pid, char *ret_dir, size_t cap, struct mf_error *err)
{
	pid_t tid;
	int rc = attach_proc_live_thread(pid, &tid, err);

	if (rc == 0)
		(void)snprintf(ret_dir, cap, "/proc/%d/fd", (int)tid);
	return rc;
}

static int open_pidfd(pid_t pid, struct mf_error *err)
{
	pid_t tid;
	int rc = attach_proc_live_thread(pid, &tid, err);

	if (rc < 0)
		return rc;
	int fd = tid == pid ? pidfd_open(pid, 0) : pidfd_open(tid, PIDFD_OF_THREAD);
	if (fd < 0 && errno == EINVAL)
		return base_error(
			err, -MF_EKERNEL, MF_SCOPE_HOST,
			"process %d has lost its first thread: its descriptors can be reached "
			"from Linux 6.9 on only",
			(int)pid);
	return fd < 0 ? base_error_sys(err, -errno, MF_SCOPE_SESSION, "process %d cannot be opened",
				       (int)pid)
		      : fd;
}

static int get_fd(int pidfd, pid_t pid, int remote, int *ret_fd, struct mf_error *err)
{
	int fd = pidfd_getfd(pidfd, remote, 0);

	if (fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_SESSION,
				      "descriptor %d of process %d cannot be fetched", remote,
				      (int)pid);
	*ret_fd = fd;
	return 0;
}

int attach_get_fd(pid_t pid, int remote, int *ret_fd, struct mf_error *err)
{
	base_autofd pidfd = open_pidfd(pid, err);

	return pidfd < 0 ? pidfd : get_fd(pidfd, pid, remote, ret_fd, err);
}

static int make_userfaultfd(struct attach *at, struct job *job)
{
	long value;
	int rc = attach_syscall(at, SYS_userfaultfd, (unsigned long[6]){ O_CLOEXEC | O_NONBLOCK },
				&value, job->err);

	if (rc < 0)
		return rc;
	switch (value) {
	case -EPERM:
		return base_error(job->err, -EPERM, MF_SCOPE_HOST,
				  "process %d may not catch page faults of the kernel: give it "
				  "CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd to 1",
				  (int)job->pid);
	case -ENOSYS:
		return base_error(job->err, -MF_EKERNEL, MF_SCOPE_HOST,
				  "this kernel has no userfaultfd (CONFIG_USERFAULTFD)");
	case -EMFILE:
		return base_error(job->err, -EMFILE, MF_SCOPE_HOST,
				  "process %d has no descriptor left for a userfaultfd: raise its "
				  "RLIMIT_NOFILE",
				  (int)job->pid);
	default:
		break;
	}
	if (value < 0)
		return base_error_sys(job->err, (int)value, MF_SCOPE_HOST,
				      "a userfaultfd cannot be made in process %d", (int)job->pid);
	job->remote = (int)value;
	return 0;
}

int attach_userfaultfd(pid_t pid, int *ret_fd, int *ret_remote, struct mf_error *err)
{
	struct job job = { .pid = pid, .run = make_userfaultfd, .err = err };
	int fd = -1, rc;

	/* Opened first: it stays this process even if the number is used again. */
	base_autofd pidfd = open_pidfd(pid, err);
	if (pidfd < 0)
		return pidfd;
	if ((rc = run_job(&job)) < 0)
		return rc;
	if ((rc = get_fd(pidfd, pid, job.remote, &fd, err)) < 0) {
		attach_close_fds(pid, &job.remote, 1);
		return rc;
	}
	if (!is_userfaultfd("/proc/self/fd", fd)) {
		(void)close(fd);
		return base_error(err, -EBADF, MF_SCOPE_SESSION,
				  "process %d closed the userfaultfd that was just made in it",
				  (int)pid);
	}
	*ret_fd = fd;
	*ret_remote = job.remote;
	return 0;
}

static int close_all(struct attach *at, struct job *job)
{
	char dir[64];
	long value;
	int rc = name_fd_dir(job->pid, dir, sizeof(dir), job->err);

	for (unsigned i = 0; rc == 0 && i < job->n; i++)
		if (is_userfaultfd(dir, job->fds[i]))
			rc = attach_syscall(at, SYS_close,
					    (unsigned long[6]){ (unsigned long)job->fds[i] },
					    &value, job->err);
	return rc;
}

void attach_close_fds(pid_t pid, const int *remote, unsigned n)
{
	struct job job = { .pid = pid, .run = close_all, .fds = remote, .n = n };
	char dir[64];
	bool any = false;

	if (name_fd_dir(pid, dir, sizeof(dir), NULL) < 0)
		return;
	for (unsigned i = 0; i < n; i++)
		any = any || is_userfaultfd(dir, remote[i]);
	if (any)
		(void)run_job(&job);
}

int attach_find_userfaultfds(pid_t pid, int *ret_remote, unsigned cap, struct mf_error *err)
{
	char name[64];
	unsigned n = 0;
	int rc = name_fd_dir(pid, name, sizeof(name), err);

	if (rc < 0)
		return rc;
	DIR *dir = opendir(name);
	if (!dir && (errno == EACCES || errno == EPERM)) {
		pid_t tid;
		rc = attach_proc_live_thread(pid, &tid, err);
		return rc < 0 ? rc : attach_proc_explain_refusal(pid, tid, err);
	}
	if (!dir)
		return base_error_sys(err, -errno, MF_SCOPE_SESSION, "%s cannot be read", name);
	for (struct dirent *e; n < cap && (e = readdir(dir));) {
		uint64_t fd;
		if (!base_parse_number(e->d_name, "fd", 0, INT_MAX, &fd, NULL) &&
		    is_userfaultfd(name, (int)fd))
			ret_remote[n++] = (int)fd;
	}
	(void)closedir(dir);
	return (int)n;
}

static int advise_all(struct attach *at, struct job *job)
{
	for (unsigned i = 0; i < job->n; i++) {
		const struct attach_range *r = &job->ranges[i];
		uint64_t done = 0;
		do {
			uint64_t len = r->len - done < ADVISE_CHUNK ? r->len - done : ADVISE_CHUNK;
			long value;
			int rc = attach_syscall(at, SYS_madvise,
						(unsigned long[6]){ r->addr + done, len,
								    (unsigned long)job->advice },
						&value, job->err);
			if (rc < 0)
				return rc;
			if (value < 0)
				return base_error_sys(job->err, (int)value, MF_SCOPE_SESSION,
						      "madvise(%d) of %" PRIu64
						      " bytes at %#" PRIx64 " in process %d failed",
						      job->advice, len, r->addr + done,
						      (int)job->pid);
			done += len;
		} while (done < r->len);
	}
	return 0;
}

int attach_madvise(pid_t pid, const struct attach_range *ranges, unsigned n, int advice,
		   struct mf_error *err)
{
	struct job job = {
		.pid = pid,
		.run = advise_all,
		.err = err,
		.ranges = ranges,
		.n = n,
		.advice = advice,
	};

	return n == 0 ? 0 : run_job(&job);
}
