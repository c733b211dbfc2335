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
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "hv-adapters/attach/attach.h"
#include "hv-adapters/attach/attach_proc.h"
#include "hv-adapters/attach/helper_wire.h"

#define USERFAULTFD_LINK "anon_inode:[userfaultfd]"
#define DEVICE           "/dev/userfaultfd"

/* _IO(USERFAULTFD_IOC, 0) of the kernel's interface. */
#define NEW_USERFAULTFD _IO(0xAA, 0x00)

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

/* Of the helper: a descriptor, and with ret_remote what its number in the target is. */
static int ask_for_fd(struct helper_request *q, int *ret_fd, int *ret_remote, struct mf_error *err)
{
	struct helper_reply a;
	base_autofd fd = -1;
	int rc = helper_call(q, &a, &fd, HELPER_ATTACH_MS, err);

	if (rc < 0)
		return rc;
	if (fd < 0) {
		pid_t pid = q->pid;
		if (ret_remote)
			attach_close_fds(pid, &a.value, 1);
		return base_error(err, -EMFILE, MF_SCOPE_SESSION,
				  "a descriptor of process %d did not arrive: raise ulimit -n",
				  (int)pid);
	}
	*ret_fd = base_take_fd(&fd);
	if (ret_remote)
		*ret_remote = a.value;
	return 0;
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

int attach_get_userfaultfd(pid_t pid, int remote, int *ret_fd, struct mf_error *err)
{
	base_autofd fd = -1;
	int rc;

	if (helper_is_used(pid)) {
		struct helper_request q = { .op = HELPER_GET_FD, .pid = pid, .number = remote };
		return ask_for_fd(&q, ret_fd, NULL, err);
	}
	base_autofd pidfd = open_pidfd(pid, err);
	if (pidfd < 0)
		return pidfd;
	if ((rc = get_fd(pidfd, pid, remote, &fd, err)) < 0)
		return rc;
	if (!is_userfaultfd("/proc/self/fd", fd))
		return base_error(err, -EBADF, MF_SCOPE_SESSION,
				  "descriptor %d of process %d is no userfaultfd", remote,
				  (int)pid);
	*ret_fd = base_take_fd(&fd);
	return 0;
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

/* In a target that may not make one itself. */
static int make_userfaultfd_by(struct attach *at, struct job *job)
{
	unsigned long args[6] = { (unsigned long)job->remote, NEW_USERFAULTFD,
				  O_CLOEXEC | O_NONBLOCK };
	long value;
	int rc = attach_syscall(at, SYS_ioctl, args, &value, job->err);

	if (rc == 0 && value < 0)
		return base_error_sys(job->err, (int)value, MF_SCOPE_HOST,
				      "process %d makes no userfaultfd from " DEVICE,
				      (int)job->pid);
	job->remote = (int)value;
	return rc;
}

/* Runs what makes one, and fetches it. */
static int fetch_made(struct job *job, int *ret_fd, int *ret_remote)
{
	struct mf_error *err = job->err;
	pid_t pid = job->pid;
	int fd = -1, rc;

	/* Opened first: it stays this process even if the number is used again. */
	base_autofd pidfd = open_pidfd(pid, err);
	if (pidfd < 0)
		return pidfd;
	if ((rc = run_job(job)) < 0)
		return rc;
	if ((rc = get_fd(pidfd, pid, job->remote, &fd, err)) < 0) {
		attach_close_fds(pid, &job->remote, 1);
		return rc;
	}
	if (!is_userfaultfd("/proc/self/fd", fd)) {
		(void)close(fd);
		return base_error(err, -EBADF, MF_SCOPE_SESSION,
				  "process %d closed the userfaultfd that was just made in it",
				  (int)pid);
	}
	*ret_fd = fd;
	*ret_remote = job->remote;
	return 0;
}

int attach_userfaultfd(pid_t pid, int *ret_fd, int *ret_remote, struct mf_error *err)
{
	struct job job = { .pid = pid, .run = make_userfaultfd, .err = err };

	if (helper_is_used(pid)) {
		struct helper_request q = { .op = HELPER_USERFAULTFD, .pid = pid };
		return ask_for_fd(&q, ret_fd, ret_remote, err);
	}
	return fetch_made(&job, ret_fd, ret_remote);
}

int attach_open_device(pid_t pid)
{
	int fd = -1;

	if (helper_is_used(pid)) {
		struct helper_request q = { .op = HELPER_DEVICE, .pid = pid };
		int rc = ask_for_fd(&q, &fd, NULL, NULL);
		return rc < 0 ? rc : fd;
	}
	fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* That number of the target's is the device: nothing else is to get its request. */
static bool is_device(pid_t pid, int number)
{
	struct stat ours, theirs;
	char dir[64], path[80];

	if (name_fd_dir(pid, dir, sizeof(dir), NULL) < 0)
		return false;
	(void)snprintf(path, sizeof(path), "%s/%d", dir, number);
	return stat(DEVICE, &ours) == 0 && stat(path, &theirs) == 0 && S_ISCHR(theirs.st_mode) &&
	       ours.st_rdev == theirs.st_rdev;
}

int attach_userfaultfd_by(pid_t pid, int device, int *ret_fd, int *ret_remote, struct mf_error *err)
{
	struct job job = { .pid = pid, .run = make_userfaultfd_by, .err = err, .remote = device };

	if (helper_is_used(pid)) {
		struct helper_request q = { .op = HELPER_USERFAULTFD_BY,
					    .pid = pid,
					    .number = device };
		return ask_for_fd(&q, ret_fd, ret_remote, err);
	}
	if (!is_device(pid, device))
		return base_error(err, -EBADF, MF_SCOPE_SESSION,
				  "descriptor %d of process %d is not " DEVICE, device, (int)pid);
	return fetch_made(&job, ret_fd, ret_remote);
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

	if (helper_is_used(pid)) {
		struct helper_request q = { .op = HELPER_CLOSE_FDS, .pid = pid, .n = n };
		struct helper_reply a;
		assert(n <= HELPER_ITEMS);
		memcpy(q.fds, remote, n * sizeof(*remote));
		(void)helper_call(&q, &a, NULL, HELPER_ATTACH_MS, NULL);
		return;
	}
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

	if (helper_is_used(pid)) {
		struct helper_request q = { .op = HELPER_FIND_FDS, .pid = pid, .n = cap };
		struct helper_reply a;
		int found = helper_call(&q, &a, NULL, HELPER_FILE_MS, err);
		assert(found <= (int)cap);
		for (int i = 0; i < found; i++)
			ret_remote[i] = a.fds[i];
		return found;
	}
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

	if (n && helper_is_used(pid)) {
		struct helper_request q = {
			.op = HELPER_MADVISE, .pid = pid, .n = n, .number = advice
		};
		struct helper_reply a;
		uint64_t ms = HELPER_ATTACH_MS;
		assert(n <= HELPER_ITEMS);
		memcpy(q.ranges, ranges, n * sizeof(*ranges));
		for (unsigned i = 0; i < n; i++)
			ms += ranges[i].len / ADVISE_CHUNK * HELPER_ADVISE_MS;
		return helper_call(&q, &a, NULL, ms, err);
	}
	return n == 0 ? 0 : run_job(&job);
}

/* ---- without a session ---- */

static bool is_file(int fd, const struct attach_mapping *m)
{
	struct stat st;
	return fstat(fd, &st) == 0 && st.st_ino == m->inode;
}

int attach_open_mapping(pid_t pid, const struct attach_mapping *m)
{
	char path[96];
	int found = -ENOENT;

	if (helper_is_used(pid)) {
		struct helper_request q = { .op = HELPER_OPEN_MAPPING, .pid = pid, .mapping = *m };
		int rc = ask_for_fd(&q, &found, NULL, NULL);
		return rc < 0 ? rc : found;
	}
	(void)snprintf(path, sizeof(path), "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, (int)pid,
		       m->start, m->end);
	base_autofd fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0 && is_file(fd, m))
		return base_take_fd(&fd);
	(void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	DIR *dir = opendir(path);
	if (!dir)
		return -errno;
	for (struct dirent *e; found < 0 && (e = readdir(dir));) {
		struct stat st;
		(void)snprintf(path, sizeof(path), "/proc/%d/fd/%.20s", (int)pid, e->d_name);
		if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_ino != m->inode ||
		    st.st_dev != makedev(m->dev_major, m->dev_minor))
			continue;
		int rc = open(path, O_RDWR | O_CLOEXEC);
		found = rc < 0 ? -errno : rc;
	}
	(void)closedir(dir);
	return found;
}

int attach_kill(pid_t pid, int pidfd)
{
	struct helper_request q = { .op = HELPER_KILL, .pid = pid };
	struct helper_reply a;
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	int r = helper_is_used(pid) ? helper_call(&q, &a, NULL, HELPER_FILE_MS, NULL)
				    : pidfd_send_signal(pidfd, SIGKILL, NULL, 0);
	if (r >= 0)
		return 0;
	/* The helper is gone or hangs, or a filter denies us that call.  By number, which is the target's own while that has not
	 * ended. */
	if (pidfd < 0 || poll(&p, 1, 0) != 0)
		return -ESRCH;
	return kill(pid, SIGKILL) < 0 ? -errno : 0;
}
