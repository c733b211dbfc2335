/* SPDX-License-Identifier: BSD-2-Clause */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "hv-adapters/attach/attach_arch.h"
#include "hv-adapters/attach/attach_proc.h"

enum {
	CAP_BIT_SYS_PTRACE = 19,
	CAP_BIT_SYS_ADMIN = 21,
	THREADS_LOOKED_AT = 128, /* of a target with more, any of the first will do */
	SCAN_CHUNK = 64 * 1024,
};

static int read_text(const char *path, char *buf, size_t cap)
{
	base_autofd fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t n = 0;

	if (fd < 0)
		return -errno;
	while (n < cap - 1) {
		ssize_t got = read(fd, buf + n, cap - 1 - n);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		n += (size_t)got;
	}
	buf[n] = '\0';
	return 0;
}

static uint64_t number_after(const char *text, const char *label, int base)
{
	const char *at = strstr(text, label);

	return at ? strtoull(at + strlen(label), NULL, base) : 0;
}

int attach_proc_status(pid_t tid, struct attach_status *ret)
{
	char path[64], text[4096];

	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)tid);
	/* ENOENT and ESRCH both mean gone; nothing else is expected of this file. */
	if (read_text(path, text, sizeof(text)) < 0)
		return -ESRCH;
	const char *state = strstr(text, "\nState:\t");
	*ret = (struct attach_status){
		.state = state ? state[8] : '\0',
		.tgid = (pid_t)number_after(text, "\nTgid:\t", 10),
		.ppid = (pid_t)number_after(text, "\nPPid:\t", 10),
		.tracer = (pid_t)number_after(text, "\nTracerPid:\t", 10),
		.uid = (uid_t)number_after(text, "\nUid:\t", 10),
		.seccomp = (int)number_after(text, "\nSeccomp:\t", 10),
		.cap_eff = number_after(text, "\nCapEff:\t", 16),
	};
	return 0;
}

static bool we_have_cap(int bit)
{
	struct attach_status self;

	return attach_proc_status((pid_t)syscall(SYS_gettid), &self) == 0 &&
	       (self.cap_eff >> bit & 1);
}

static int refuse_traced(pid_t pid, pid_t tracer, struct mf_error *err)
{
	char path[64], name[64];

	(void)snprintf(path, sizeof(path), "/proc/%d/comm", (int)tracer);
	if (read_text(path, name, sizeof(name)) < 0)
		(void)snprintf(name, sizeof(name), "gone");
	name[strcspn(name, "\n")] = '\0';
	return base_error(err, -EPERM, MF_SCOPE_HOST,
			  "process %d is traced already by process %d (%s): end that tracer first",
			  (int)pid, (int)tracer, name);
}

int attach_proc_explain_refusal(pid_t pid, pid_t tid, struct mf_error *err)
{
	/* Nothing is known of one that is just ending, or hidden from us. */
	struct attach_status st = { .uid = geteuid() };
	char text[32];
	long yama = -1;

	if (attach_proc_status(tid, &st) == 0 && st.tracer)
		return refuse_traced(pid, st.tracer, err);
	if (read_text("/proc/sys/kernel/yama/ptrace_scope", text, sizeof(text)) == 0)
		yama = strtol(text, NULL, 10);
	if (yama >= 3)
		return base_error(err, -EPERM, MF_SCOPE_HOST,
				  "process %d cannot be traced: kernel.yama.ptrace_scope is %ld, "
				  "which forbids it to everybody until the next boot",
				  (int)pid, yama);
	if (we_have_cap(CAP_BIT_SYS_PTRACE))
		return base_error(
			err, -EPERM, MF_SCOPE_HOST,
			"process %d cannot be traced although we have CAP_SYS_PTRACE: it is in "
			"another user namespace, or a security module forbids it",
			(int)pid);
	if (yama > 0)
		return base_error(
			err, -EPERM, MF_SCOPE_HOST,
			"process %d cannot be traced: kernel.yama.ptrace_scope is %ld and "
			"we lack CAP_SYS_PTRACE; give us that capability%s",
			(int)pid, yama, yama == 1 ? ", or set ptrace_scope to 0" : "");
	if (st.uid != geteuid())
		return base_error(err, -EPERM, MF_SCOPE_HOST,
				  "process %d belongs to uid %u and we lack CAP_SYS_PTRACE: run as "
				  "that user or with the capability",
				  (int)pid, (unsigned)st.uid);
	return base_error(err, -EPERM, MF_SCOPE_HOST,
			  "process %d is undumpable or has capabilities that we have not: run with "
			  "CAP_SYS_PTRACE",
			  (int)pid);
}

/*
 * How well a thread takes an interruption, 0 best.  poll and select go on with the time that is left, and even a
 * wrong early return would do no harm.  Calls of the last group return EINTR for any stop.
 */
enum { RANK_POLL, RANK_REPEATED, RANK_OTHER, RANK_EINTR, RANK_UNINTERRUPTIBLE, RANK_NONE };

static int rank_thread(pid_t tid, const struct attach_status *st)
{
	char path[64], text[256];

	if (st->state == 'D')
		return RANK_UNINTERRUPTIBLE;
	(void)snprintf(path, sizeof(path), "/proc/%d/syscall", (int)tid);
	if (read_text(path, text, sizeof(text)) < 0 || text[0] < '0' || text[0] > '9')
		return RANK_OTHER;
	switch (strtol(text, NULL, 10)) {
#ifdef SYS_poll
	case SYS_poll:
	case SYS_select:
#endif
	case SYS_ppoll:
	case SYS_pselect6:
		return RANK_POLL;
	case SYS_nanosleep:
	case SYS_clock_nanosleep:
	case SYS_restart_syscall:
	case SYS_futex:
	case SYS_read:
	case SYS_recvmsg:
	case SYS_wait4:
	case SYS_waitid:
		return RANK_REPEATED;
#ifdef SYS_epoll_wait
	case SYS_epoll_wait:
#endif
	case SYS_epoll_pwait:
	case SYS_semop:
	case SYS_semtimedop:
	case SYS_rt_sigtimedwait:
	case SYS_io_getevents:
	case SYS_io_uring_enter:
		return RANK_EINTR;
	default:
		return RANK_OTHER; /* ioctl(KVM_RUN) too: every VMM expects EINTR there */
	}
}

static int pick_thread(pid_t pid, bool is_ranked, pid_t *ret_tid, struct attach_status *ret_st,
		       struct mf_error *err)
{
	char path[64];
	int best = RANK_NONE, looked_at = 0;
	struct attach_status st;

	(void)snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	DIR *dir = opendir(path);
	/* The kernel lists the leader first, so that it wins among equals. */
	for (struct dirent *e;
	     dir && best != RANK_POLL && looked_at < THREADS_LOOKED_AT && (e = readdir(dir));) {
		uint64_t number;
		if (base_parse_number(e->d_name, "task", 1, INT_MAX, &number, NULL))
			continue; /* . and .. */
		pid_t tid = (pid_t)number;
		if (attach_proc_status(tid, &st) < 0 || st.state == 'Z' || st.state == 'X')
			continue;
		looked_at++;
		if (is_ranked && st.tracer) {
			(void)closedir(dir);
			return refuse_traced(pid, st.tracer, err);
		}
		int rank = is_ranked ? rank_thread(tid, &st) : RANK_POLL;
		if (rank < best) {
			best = rank;
			*ret_tid = tid;
			*ret_st = st;
		}
	}
	if (dir)
		(void)closedir(dir);
	if (best == RANK_NONE)
		return base_error(err, -ESRCH, MF_SCOPE_SESSION, "process %d is gone", (int)pid);
	return 0;
}

int attach_proc_live_thread(pid_t pid, pid_t *ret_tid, struct mf_error *err)
{
	struct attach_status st;

	return pick_thread(pid, false, ret_tid, &st, err);
}

/* The executable's ELF header: class and machine. */
static int check_architecture(pid_t pid, pid_t tid, struct mf_error *err)
{
	char path[64];
	unsigned char elf[20];

	(void)snprintf(path, sizeof(path), "/proc/%d/exe", (int)tid);
	base_autofd fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 && (errno == ENOENT || errno == ESRCH))
		return base_error(
			err, -ESRCH, MF_SCOPE_SESSION,
			"process %d has no program: it is a kernel thread, or just ending",
			(int)pid);
	if (fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "%s cannot be opened", path);
	/* Not ELF (an interpreter of a foreign format): the registers decide at the stop. */
	if (pread(fd, elf, sizeof(elf), 0) != sizeof(elf) || memcmp(elf, "\177ELF", 4) != 0)
		return 0;
	int machine = elf[18] | elf[19] << 8;
	if (elf[4] != 2 || machine != ATTACH_ELF_MACHINE)
		return base_error(
			err, -EOPNOTSUPP, MF_SCOPE_HOST,
			"process %d is a %s-bit program for machine %d: only " ATTACH_ARCH_NAME
			" programs can be reached",
			(int)pid, elf[4] == 2 ? "64" : "32", machine);
	return 0;
}

/* A filter might answer a call it does not know by killing the guest: suspended, or not begun at all. */
static int check_seccomp(pid_t pid, struct mf_error *err)
{
	struct attach_status self;

	if (!we_have_cap(CAP_BIT_SYS_ADMIN))
		return base_error(
			err, -EPERM, MF_SCOPE_HOST,
			"process %d has a seccomp filter and we lack CAP_SYS_ADMIN to "
			"suspend it: run with that capability, or the guest without a filter",
			(int)pid);
	if (attach_proc_status((pid_t)syscall(SYS_gettid), &self) == 0 && self.seccomp)
		return base_error(
			err, -EPERM, MF_SCOPE_HOST,
			"process %d has a seccomp filter, which we cannot suspend because we "
			"have one too: run outside this container",
			(int)pid);
	return 0;
}

int attach_proc_pick(pid_t pid, struct attach_pick *ret, struct mf_error *err)
{
	struct attach_status st;
	char path[64];
	pid_t tid;

	if (pid <= 0)
		return base_error(err, -EINVAL, MF_SCOPE_SESSION, "process %d cannot exist",
				  (int)pid);
	int rc = pick_thread(pid, true, &tid, &st, err);
	if (rc < 0)
		return rc;
	if (st.tgid == getpid())
		return base_error(err, -EINVAL, MF_SCOPE_SESSION,
				  "process %d is ourselves: a process cannot trace itself",
				  (int)pid);
	/* Opening mem asks for exactly the permission that attaching does. */
	(void)snprintf(path, sizeof(path), "/proc/%d/mem", (int)tid);
	base_autofd mem = open(path, O_RDONLY | O_CLOEXEC);
	if (mem < 0 && (errno == EACCES || errno == EPERM))
		return attach_proc_explain_refusal(pid, tid, err);
	if (mem < 0 && (errno == ENOENT || errno == ESRCH))
		return base_error(err, -ESRCH, MF_SCOPE_SESSION, "process %d is gone", (int)pid);
	if ((rc = check_architecture(pid, tid, err)) < 0 ||
	    (st.seccomp && (rc = check_seccomp(pid, err)) < 0))
		return rc;
	*ret = (struct attach_pick){
		.tid = tid,
		.has_seccomp = st.seccomp != 0,
		.is_child = tid == st.tgid && st.ppid == getpid(),
	};
	return 0;
}

static bool scan_range(int mem, uint64_t at, uint64_t end, uint64_t *ret_insn)
{
	base_autofree unsigned char *buf = malloc(SCAN_CHUNK);

	while (buf && at < end) {
		uint64_t want = end - at < SCAN_CHUNK ? end - at : SCAN_CHUNK;
		ssize_t got = pread(mem, buf, want, (off_t)at);
		if (got < (ssize_t)ATTACH_INSN_LEN)
			return false;
		for (size_t i = 0; i + ATTACH_INSN_LEN <= (size_t)got; i += ATTACH_INSN_ALIGN)
			if (memcmp(buf + i, ATTACH_INSN, ATTACH_INSN_LEN) == 0) {
				*ret_insn = at + i;
				return true;
			}
		/* One that straddles two chunks is not worth the overlap: any will do. */
		at += (uint64_t)got;
	}
	return false;
}

/* The vdso has one on every architecture and is two pages; other code is searched only where there is no vdso. */
int attach_proc_find_insn(pid_t tid, int mem, uint64_t *ret_insn)
{
	char path[64], line[512];
	bool has_memory = false;

	/* A third look tells a process without the instruction from one that lost its memory meanwhile. */
	(void)snprintf(path, sizeof(path), "/proc/%d/maps", (int)tid);
	for (int pass = 0; pass < 3; pass++) {
		has_memory = false;
		base_cleanup(base_fclosep) FILE *maps = fopen(path, "re");
		while (maps && fgets(line, sizeof(line), maps)) {
			uint64_t from, to;
			char prot[8] = "";
			has_memory = true;
			if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &from, &to, prot) != 3 ||
			    prot[0] != 'r' || prot[2] != 'x')
				continue;
			if (pass == 0 && !strstr(line, "[vdso]"))
				continue;
			if (scan_range(mem, from, to, ret_insn))
				return 0;
		}
	}
	return has_memory ? -ENOEXEC : -ESRCH;
}
