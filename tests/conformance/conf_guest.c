/* SPDX-License-Identifier: BSD-2-Clause */
#include "tests/conformance/conf_guest.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HUGE_PAGE   (UINT64_C(2) << 20)
#define HUGE_PAGES  8
#define SMALL_PAGES 4096
#define GIVE_UP_S   60

static const char *const names[BACK_COUNT] = {
	[BACK_MEMFD] = "memfd",       [BACK_FILE] = "tmpfs",      [BACK_SPLIT] = "two-mappings",
	[BACK_THP] = "tmpfs-thp",     [BACK_HUGETLB] = "hugetlb", [BACK_ANON] = "anon",
	[BACK_ANON_THP] = "anon-thp",
};

const char *backing_name(enum backing backing)
{
	return names[backing];
}

static void die(const char *what)
{
	fprintf(stderr, "test guest: %s: %s\n", what, strerror(errno));
	abort();
}

static bool is_private(enum backing backing)
{
	return backing == BACK_ANON || backing == BACK_ANON_THP;
}

/* ---- huge pages: one test at a time, and the host is left as it was ---- */

#define NR_HUGE "/proc/sys/vm/nr_hugepages"

static long meminfo(const char *field)
{
	char line[128];
	long value = -1;
	FILE *f = fopen("/proc/meminfo", "r");
	while (f && fgets(line, sizeof(line), f)) {
		if (!strncmp(line, field, strlen(field)))
			value = strtol(line + strlen(field), NULL, 10);
	}
	if (f)
		(void)fclose(f);
	return value;
}

static bool set_nr_huge(long n)
{
	FILE *f = fopen(NR_HUGE, "w");
	if (!f)
		return false;
	fprintf(f, "%ld\n", n);
	return !fclose(f);
}

static const char *reserve_huge(struct guest *g)
{
	if (meminfo("Hugepagesize:") != (long)(HUGE_PAGE >> 10))
		return "huge pages are not of 2 MiB here";
	g->lock_fd = open("/tmp/memferry-test-hugepages.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	/* Not flock(2): a test that failed has left the lock to its process. */
	struct flock whole = { .l_type = F_WRLCK };
	if (g->lock_fd < 0 || fcntl(g->lock_fd, F_SETLKW, &whole) < 0)
		return "the lock for huge pages cannot be taken";
	long have = meminfo("HugePages_Free:") - meminfo("HugePages_Rsvd:");
	if (have >= 2 * HUGE_PAGES)
		return NULL;
	long total = meminfo("HugePages_Total:");
	if (!set_nr_huge(total + 2 * HUGE_PAGES - have))
		return "huge pages cannot be reserved: " NR_HUGE " is not ours to write";
	g->reserved = meminfo("HugePages_Total:") - total;
	if (meminfo("HugePages_Free:") - meminfo("HugePages_Rsvd:") < 2 * HUGE_PAGES)
		return "the kernel gives no huge pages";
	return NULL;
}

static void release_huge(struct guest *g)
{
	if (g->reserved > 0)
		set_nr_huge(meminfo("HugePages_Total:") - g->reserved);
	if (g->lock_fd >= 0)
		close(g->lock_fd);
	g->lock_fd = -1;
	g->reserved = 0;
}

/* ---- memory ---- */

static int open_huge_tmpfs(void)
{
	int fs = fsopen("tmpfs", FSOPEN_CLOEXEC), dir = -1, fd = -1;
	if (fs >= 0 && !fsconfig(fs, FSCONFIG_SET_STRING, "huge", "always", 0) &&
	    !fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		dir = fsmount(fs, FSMOUNT_CLOEXEC, 0);
	if (dir >= 0)
		fd = openat(dir, "ram", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fs >= 0)
		close(fs);
	if (dir >= 0)
		close(dir);
	return fd;
}

static const char *open_files(struct guest *g)
{
	switch (g->backing) {
	case BACK_MEMFD:
		g->fds[0] = memfd_create("guest", MFD_CLOEXEC);
		break;
	case BACK_SPLIT:
		g->fds[1] = memfd_create("guest-high", MFD_CLOEXEC);
		g->fds[0] = memfd_create("guest-low", MFD_CLOEXEC);
		break;
	case BACK_FILE:
		g->fds[0] = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		break;
	case BACK_THP:
		g->fds[0] = open_huge_tmpfs();
		break;
	case BACK_HUGETLB: /* MFD_HUGE_2MB, which glibc does not name */
		g->fds[0] = memfd_create("guest", MFD_CLOEXEC | MFD_HUGETLB | 21u << 26);
		break;
	default:
		return NULL;
	}
	if (g->fds[0] < 0)
		return "its memory cannot be made";
	uint64_t len = g->backing == BACK_SPLIT ? g->len / 2 : g->len;
	if (ftruncate(g->fds[0], (off_t)len) ||
	    (g->backing == BACK_SPLIT && ftruncate(g->fds[1], (off_t)len)))
		die("ftruncate");
	return NULL;
}

static char *map(const struct guest *g)
{
	/* Aligned, so that huge pages are possible. */
	char *at = mmap(NULL, g->len + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		die("mmap");
	char *end = at + g->len + HUGE_PAGE;
	char *mem = (char *)(((uintptr_t)at + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	if (mem > at)
		munmap(at, (size_t)(mem - at));
	if (end > mem + g->len)
		munmap(mem + g->len, (size_t)(end - mem - g->len));

	int flags = MAP_FIXED | (is_private(g->backing) ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
	uint64_t len = g->backing == BACK_SPLIT ? g->len / 2 : g->len;
	int prot = PROT_READ | PROT_WRITE;
	if (mmap(mem, len, prot, flags, g->fds[0], 0) == MAP_FAILED)
		die("mmap");
	if (g->backing == BACK_SPLIT &&
	    mmap(mem + len, len, prot, flags, g->fds[1], 0) == MAP_FAILED)
		die("mmap");
	if (g->backing == BACK_ANON_THP)
		madvise(mem, g->len, MADV_HUGEPAGE);
	return mem;
}

static bool make_uffds(struct guest *g)
{
	for (int i = 0; i < GUEST_UFFDS; i++) {
		g->remote[i] = g->uffds[i] = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		if (g->uffds[i] < 0)
			return false;
	}
	return true;
}

/* ---- the other process ---- */

struct hello {
	char *mem;
	int remote[GUEST_UFFDS];
};

struct call {
	guest_fn fn;
	uint64_t args[4];
};

static void send_hello(const struct guest *g, bool ok)
{
	struct hello hello = { .mem = g->mem };
	memcpy(hello.remote, g->remote, sizeof(hello.remote));
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int[GUEST_UFFDS]))];
	} control = { 0 };
	struct iovec iov = { &hello, ok ? sizeof(hello) : 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	if (ok) {
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int[GUEST_UFFDS]));
		memcpy(CMSG_DATA(c), g->uffds, sizeof(int[GUEST_UFFDS]));
	}
	if (sendmsg(g->sock, &msg, 0) < 0)
		_exit(1);
}

static const char *receive_hello(struct guest *g)
{
	struct hello hello;
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int[GUEST_UFFDS]))];
	} control;
	struct iovec iov = { &hello, sizeof(hello) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	if (recvmsg(g->sock, &msg, MSG_CMSG_CLOEXEC) != sizeof(hello) || !CMSG_FIRSTHDR(&msg))
		return "userfaultfd(2) is not permitted";
	memcpy(g->uffds, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int[GUEST_UFFDS]));
	memcpy(g->remote, hello.remote, sizeof(hello.remote));
	g->mem = hello.mem;
	return NULL;
}

static void serve(struct guest *g, pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
	g->pid = getpid();
	g->mem = map(g);
	send_hello(g, make_uffds(g));
	struct call call;
	while (recv(g->sock, &call, sizeof(call), 0) == sizeof(call)) {
		int64_t result = call.fn(g, call.args);
		if (send(g->sock, &result, sizeof(result), 0) != sizeof(result))
			break;
	}
	_exit(0);
}

static const char *open_other(struct guest *g)
{
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		die("socketpair");
	pid_t parent = getpid();
	g->pid = fork();
	if (g->pid < 0)
		die("fork");
	g->sock = pair[g->pid ? 0 : 1];
	close(pair[g->pid ? 1 : 0]);
	if (!g->pid)
		serve(g, parent);
	return receive_hello(g);
}

const char *guest_open(struct guest *g, enum backing backing, bool is_other)
{
	*g = (struct guest){
		.backing = backing,
		.is_other = is_other,
		.page_size = backing == BACK_HUGETLB ? HUGE_PAGE : 4096,
		.pages = backing == BACK_HUGETLB ? HUGE_PAGES : SMALL_PAGES,
		.uffds = { -1, -1, -1 },
		.fds = { -1, -1 },
		.sock = -1,
		.lock_fd = -1,
	};
	g->len = g->pages * g->page_size;
	g->shm = mmap(NULL, GUEST_SHM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (g->shm == MAP_FAILED)
		die("mmap");
	const char *why = backing == BACK_HUGETLB ? reserve_huge(g) : NULL;
	if (!why)
		why = open_files(g);
	if (!why && is_other) {
		why = open_other(g);
	} else if (!why) {
		g->pid = getpid();
		g->mem = map(g);
		if (!make_uffds(g))
			why = "userfaultfd(2) is not permitted";
	}
	if (!why && !is_private(backing))
		g->local = map(g);
	if (why)
		guest_close(g);
	return why;
}

void guest_kill(struct guest *g)
{
	kill(g->pid, SIGKILL);
	waitpid(g->pid, NULL, 0);
	g->pid = 0;
}

void guest_close(struct guest *g)
{
	if (g->is_other && g->pid > 0)
		guest_kill(g);
	for (int i = 0; i < GUEST_UFFDS; i++) {
		if (g->uffds[i] >= 0)
			close(g->uffds[i]);
	}
	if (!g->is_other && g->mem)
		munmap(g->mem, g->len);
	if (g->local)
		munmap(g->local, g->len);
	munmap(g->shm, GUEST_SHM);
	for (int i = 0; i < 2; i++) {
		if (g->fds[i] >= 0)
			close(g->fds[i]);
	}
	if (g->sock >= 0)
		close(g->sock);
	release_huge(g);
}

/* ---- calls ---- */

static void *run_here(void *arg)
{
	struct guest *g = arg;
	g->result = g->fn(g, g->args);
	return NULL;
}

void guest_start(struct guest *g, guest_fn fn, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	struct call call = { fn, { a, b, c, d } };
	if (g->is_other) {
		if (send(g->sock, &call, sizeof(call), MSG_NOSIGNAL) != sizeof(call))
			die("the guest is gone");
		return;
	}
	g->fn = fn;
	memcpy(g->args, call.args, sizeof(g->args));
	if (pthread_create(&g->thread, NULL, run_here, g))
		die("pthread_create");
}

int64_t guest_finish(struct guest *g)
{
	if (!g->is_other) {
		struct timespec until;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += GIVE_UP_S;
		errno = pthread_timedjoin_np(g->thread, NULL, &until);
		if (errno)
			die("the guest does not come back");
		return g->result;
	}
	struct pollfd p = { .fd = g->sock, .events = POLLIN };
	int64_t result;
	if (poll(&p, 1, GIVE_UP_S * 1000) != 1) {
		errno = ETIMEDOUT;
		die("the guest does not come back");
	}
	if (recv(g->sock, &result, sizeof(result), 0) != sizeof(result))
		die("the guest is gone");
	return result;
}

int64_t guest_run(struct guest *g, guest_fn fn, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	guest_start(g, fn, a, b, c, d);
	return guest_finish(g);
}

void guest_read(const struct guest *g, uint64_t offset, void *to, size_t len)
{
	struct iovec here = { to, len }, there = { g->mem + offset, len };
	if (process_vm_readv(g->pid, &here, 1, &there, 1, 0) != (ssize_t)len)
		die("process_vm_readv");
}

bool guest_has_vmflag(const struct guest *g, const char *flag)
{
	char path[64], line[512];
	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)g->pid);
	FILE *f = fopen(path, "r");
	if (!f)
		die(path);
	bool is_inside = false, found = false;
	while (fgets(line, sizeof(line), f)) {
		unsigned long start, end;
		char word[8];
		(void)snprintf(word, sizeof(word), " %s ", flag);
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			is_inside = start < (uintptr_t)g->mem + g->len && end > (uintptr_t)g->mem;
		else if (is_inside && !strncmp(line, "VmFlags:", 8) && strstr(line, word))
			found = true;
	}
	(void)fclose(f);
	return found;
}
