/* SPDX-License-Identifier: BSD-2-Clause */
/* What is left to a process that has given its privilege up: each case in a child, as none can be taken back. */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/prctl.h>
#include <linux/rtnetlink.h>
#include <netdb.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/privilege.h"

#define PAGE 4096u

static int failures; /* in a child: its exit status */

static void expect(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "  not so: %s (errno %d)\n", what, errno);
		failures++;
	}
}

static void in_child(void (*fn)(void))
{
	int status;
	(void)fflush(NULL);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		failures = 0;
		fn();
		_exit(failures ? 1 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static uint64_t status_of_self(const char *key, int base)
{
	char line[128];
	uint64_t value = UINT64_MAX;
	base_cleanup(base_fclosep) FILE *f = fopen("/proc/self/status", "re");
	while (f && fgets(line, sizeof(line), f)) {
		if (!strncmp(line, key, strlen(key)))
			value = strtoull(line + strlen(key), NULL, base);
	}
	return value;
}

/* ---- capabilities ---- */

static void keep_one(void)
{
	uint64_t want = BASE_CAP(CAP_SYS_PTRACE) & base_capabilities();
	expect(base_keep_capabilities(BASE_CAP(CAP_SYS_PTRACE), NULL) == 0, "dropping");
	expect(status_of_self("CapEff:", 16) == want, "effective");
	expect(status_of_self("CapPrm:", 16) == want, "permitted");
	expect(status_of_self("CapInh:", 16) == 0, "inheritable");
	expect(status_of_self("CapAmb:", 16) == 0, "ambient");
	expect(status_of_self("NoNewPrivs:", 10) == 1, "no_new_privs");
	if (want) /* with CAP_SETPCAP too, then */
		expect(status_of_self("CapBnd:", 16) == want, "bounding");
}

static void keep_none(void)
{
	bool was_root = base_capabilities() & BASE_CAP(CAP_SETPCAP);
	expect(base_keep_capabilities(0, NULL) == 0, "dropping");
	expect(base_capabilities() == 0, "effective");
	expect(status_of_self("CapPrm:", 16) == 0, "permitted");
	if (was_root)
		expect(status_of_self("CapBnd:", 16) == 0, "bounding");
	expect(base_keep_capabilities(~UINT64_C(0), NULL) == 0, "asking for all");
	expect(base_capabilities() == 0, "none came back");
}

static void raise_priority(void)
{
	bool may = base_capabilities() & BASE_CAP(CAP_SYS_RESOURCE);
	base_raise_limits();
	expect(base_keep_capabilities(0, NULL) == 0, "dropping");
	struct rlimit limit;
	(void)getrlimit(RLIMIT_MEMLOCK, &limit);
	expect(limit.rlim_cur == limit.rlim_max, "locked memory");
	if (!may)
		return;
	expect(limit.rlim_cur == RLIM_INFINITY, "locked memory without limit");
	expect(setpriority(PRIO_PROCESS, 0, -15) == 0, "priority without CAP_SYS_NICE");
}

static void test_one_capability_is_kept(void **state)
{
	(void)state;
	in_child(keep_one);
}

static void test_none_is_kept(void **state)
{
	(void)state;
	in_child(keep_none);
}

static void test_limits_stand_in_for_capabilities(void **state)
{
	(void)state;
	in_child(raise_priority);
}

/* ---- the filter ---- */

static pid_t friend;

static void enter(enum base_filter filter)
{
	struct base_filter_pids pids = { .pid = { friend } };
	struct mf_error err = { 0 };
	expect(base_keep_capabilities(filter == BASE_FILTER_REACH ? BASE_CAP(CAP_SYS_PTRACE) : 0,
				      &err) == 0,
	       "dropping");
	if (base_filter_calls(filter, &pids, &err) < 0) {
		fprintf(stderr, "  %s\n", err.msg);
		_exit(1);
	}
	expect(status_of_self("Seccomp:", 10) == 2, "a filter is there");
}

struct call {
	const char *what;
	long nr;
	unsigned long args[4];
};

#define NR(name, ...)               \
	{                           \
#name, SYS_##name,  \
		{                   \
			__VA_ARGS__ \
		}                   \
	}

/* With arguments that would do nothing where they were let through, but to fail otherwise. */
static const struct call never[] = {
	NR(execve, 0),
	NR(execveat, (unsigned long)-1),
	NR(clone, 0, 0, 0, 0),
	NR(clone, SIGCHLD, 0, 0, 0),
	NR(clone3, 0, 0),
#ifdef SYS_fork
	NR(fork, 0),
	NR(vfork, 0),
#endif
	NR(mount, 0),
	NR(umount2, 0),
	NR(pivot_root, 0),
	NR(chroot, 0),
	NR(unshare, 0),
	NR(setns, (unsigned long)-1),
	NR(init_module, 0),
	NR(finit_module, (unsigned long)-1),
	NR(delete_module, 0),
	NR(kexec_load, 0),
	NR(reboot, 0),
	NR(bpf, 0),
	NR(perf_event_open, 0),
	NR(io_uring_setup, 0),
	NR(keyctl, 0),
	NR(add_key, 0),
	NR(request_key, 0),
	NR(setuid, 0),
	NR(setgid, 0),
	NR(setresuid, 0),
	NR(setresgid, 0),
	NR(setgroups, 0),
	NR(setfsuid, 0),
	NR(capset, 0),
	NR(seccomp, 99),
	NR(personality, 0),
	NR(process_vm_readv, 0),
	NR(process_vm_writev, 0),
	NR(process_madvise, (unsigned long)-1),
	NR(open_by_handle_at, (unsigned long)-1),
	NR(name_to_handle_at, (unsigned long)-1),
	NR(fsopen, 0),
	NR(open_tree, (unsigned long)-1),
	NR(move_mount, (unsigned long)-1),
	NR(quotactl, 0),
	NR(swapon, 0),
	NR(acct, 0),
	NR(settimeofday, 0),
	NR(clock_settime, 99),
	NR(sethostname, 0),
	NR(chown, 0),
	NR(fchown, (unsigned long)-1),
	NR(chmod, 0),
	NR(link, 0),
	NR(symlink, 0),
	NR(mknod, 0),
	NR(setxattr, 0),
	NR(prctl, PR_SET_DUMPABLE, 1),
	NR(prctl, PR_SET_MM, 99),
	NR(prlimit64, 0, RLIMIT_CORE, 1),
	NR(socket, AF_PACKET, SOCK_RAW, 0),
	NR(socket, AF_VSOCK, SOCK_STREAM, 0),
	NR(socket, AF_ALG, SOCK_SEQPACKET, 0),
	NR(ioctl, (unsigned long)-1, 0x5412 /* TIOCSTI */, 0),
	NR(ioctl, (unsigned long)-1, 0xae01 /* KVM_CREATE_VM */, 0),
	NR(mmap, 0, PAGE, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS),
	NR(mmap, 0, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS),
	NR(mprotect, 0, 0, PROT_READ | PROT_EXEC),
	NR(kill, 1, SIGCONT),
	NR(tgkill, 1, 1, SIGCONT),
	NR(pidfd_getfd, (unsigned long)-1),
	NR(pidfd_send_signal, (unsigned long)-1),
	NR(ptrace, 99),
};

static const struct call never_reaching[] = {
	NR(execve, 0),
	NR(clone, SIGCHLD, 0, 0, 0),
	NR(clone3, 0, 0),
	NR(mount, 0),
	NR(init_module, 0),
	NR(bpf, 0),
	NR(setuid, 0),
	NR(capset, 0),
	NR(process_vm_readv, 0),
	NR(process_vm_writev, 0),
	NR(open_by_handle_at, (unsigned long)-1),
	NR(socket, AF_INET, SOCK_STREAM, 0),
	NR(socket, AF_INET6, SOCK_STREAM, 0),
	NR(socket, AF_NETLINK, SOCK_RAW, 0),
	NR(bind, (unsigned long)-1),
	NR(listen, (unsigned long)-1),
	NR(rename, 0),
	NR(mkdir, 0),
	NR(ftruncate, (unsigned long)-1),
	NR(kill, 1, SIGCONT),
};

static void refuse_all(const struct call *calls, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const struct call *c = &calls[i];
		errno = 0;
		long r = syscall(c->nr, c->args[0], c->args[1], c->args[2], c->args[3]);
		if (r == 0 && (c->nr == SYS_clone)) /* a child: it was let through */
			_exit(1);
		expect(r == -1 && errno == ENOSYS, c->what);
	}
}

static void *do_nothing(void *arg)
{
	return arg;
}

static void see_threads(void)
{
	pthread_t thread;
	void *result = NULL;
	expect(pthread_create(&thread, NULL, do_nothing, NULL) == 0 &&
		       pthread_join(thread, &result) == 0,
	       "threads");
}

static void move_refuses(void)
{
	enter(BASE_FILTER_MOVE);
	refuse_all(never, BASE_ARRAY_LEN(never));
}

static void reach_refuses(void)
{
	enter(BASE_FILTER_REACH);
	refuse_all(never_reaching, BASE_ARRAY_LEN(never_reaching));
}

static void see_sockets(void)
{
	static const int families[] = { AF_INET, AF_INET6, AF_UNIX };
	for (size_t i = 0; i < BASE_ARRAY_LEN(families); i++) {
		base_autofd fd = socket(families[i], SOCK_STREAM | SOCK_CLOEXEC, 0);
		expect(fd >= 0 || errno == EAFNOSUPPORT, "a stream socket");
	}
	base_autofd link = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	expect(link >= 0, "netlink");
	base_autofd server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in at = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(at);
	expect(bind(server, (struct sockaddr *)&at, sizeof(at)) == 0 && listen(server, 1) == 0 &&
		       getsockname(server, (struct sockaddr *)&at, &len) == 0,
	       "listening");
	base_autofd client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	expect(connect(client, (struct sockaddr *)&at, sizeof(at)) == 0, "connecting");
	base_autofd accepted = accept4(server, NULL, NULL, SOCK_CLOEXEC);
	expect(accepted >= 0 && send(client, "x", 1, MSG_NOSIGNAL) == 1, "accepting");
	struct addrinfo *found = NULL;
	expect(getaddrinfo("localhost", "7741", NULL, &found) == 0, "getaddrinfo");
	if (found)
		freeaddrinfo(found);
}

static void see_memory(void)
{
	void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	expect(at != MAP_FAILED && madvise(at, PAGE, MADV_DONTNEED) == 0 &&
		       mprotect(at, PAGE, PROT_READ) == 0 && mlock(at, PAGE) == 0 &&
		       munmap(at, PAGE) == 0,
	       "memory");
	base_autofd ram = memfd_create("ram", MFD_CLOEXEC);
	expect(ram >= 0 && ftruncate(ram, PAGE) == 0 &&
		       fallocate(ram, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE) == 0,
	       "a file of RAM");
	long uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* UFFD_USER_MODE_ONLY */);
	expect(uffd >= 0, "a userfaultfd");
	/* Code is loaded while a move goes on. */
	void *lib = dlopen("libm.so.6", RTLD_NOW);
	expect(lib != NULL, "a library");
	base_autofd pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	errno = 0;
	expect(pagemap >= 0 && ioctl(pagemap, 0xc0606610 /* PAGEMAP_SCAN */, NULL) == -1 &&
		       errno != ENOSYS,
	       "a request to pagemap");
}

static void see_files(void)
{
	char dir[] = "/tmp/test-privilege-XXXXXX";
	char a[64], b[64];
	expect(mkdtemp(dir) != NULL, "a directory");
	(void)snprintf(a, sizeof(a), "%s/a", dir);
	(void)snprintf(b, sizeof(b), "%s/b", dir);
	base_autofd fd = open(a, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	expect(fd >= 0 && write(fd, "x", 1) == 1 && fdatasync(fd) == 0 && rename(a, b) == 0 &&
		       unlink(b) == 0 && rmdir(dir) == -1 && errno == ENOSYS &&
		       unlinkat(AT_FDCWD, dir, AT_REMOVEDIR) == 0,
	       "files");
	base_autofd event = eventfd(0, EFD_CLOEXEC);
	base_autofd poll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event want = { .events = EPOLLIN };
	expect(event >= 0 && poll >= 0 && epoll_ctl(poll, EPOLL_CTL_ADD, event, &want) == 0 &&
		       eventfd_write(event, 1) == 0 && epoll_wait(poll, &want, 1, 1000) == 1,
	       "events");
}

static void move_allows(void)
{
	enter(BASE_FILTER_MOVE);
	see_threads();
	see_sockets();
	see_memory();
	see_files();
	expect(setpriority(PRIO_PROCESS, 0, 19) == 0, "priority");
	expect(prctl(PR_SET_NAME, "name") == 0, "a name");
	expect(kill(getpid(), 0) == 0, "a signal to itself");
	expect(kill(getppid(), 0) == 0, "looking whether one lives");
	expect(kill(friend, SIGKILL) == 0, "a signal to one that was named");
	struct rlimit limit;
	expect(getrlimit(RLIMIT_MEMLOCK, &limit) == 0, "a limit");
}

/* Abort must end it: otherwise asserts would go on. */
static void move_aborts(void)
{
	(void)prctl(PR_SET_DUMPABLE, 0); /* no core file */
	enter(BASE_FILTER_MOVE);
	abort();
}

static pid_t start_friend(void)
{
	pid_t pid = fork();
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			(void)pause();
	}
	assert_true(pid > 0);
	return pid;
}

static void reach_allows(void)
{
	int status;
	pid_t pid = start_friend();
	enter(BASE_FILTER_REACH);
	see_threads();
	expect(ptrace(PTRACE_SEIZE, pid, NULL, NULL) == 0 &&
		       ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) == 0 &&
		       waitpid(pid, &status, __WALL) == pid &&
		       ptrace(PTRACE_DETACH, pid, NULL, NULL) == 0,
	       "tracing");
	base_autofd pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	base_autofd copy = (int)syscall(SYS_pidfd_getfd, pidfd, 2, 0);
	expect(copy >= 0, "a descriptor of another process");
	expect(syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) == 0, "killing it");
	base_autofd sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	expect(sock >= 0, "a local socket");
}

static void test_moving_refuses(void **state)
{
	(void)state;
	in_child(move_refuses);
}

static void test_moving_allows(void **state)
{
	(void)state;
	friend = start_friend();
	in_child(move_allows);
	int status;
	assert_int_equal(waitpid(friend, &status, 0), friend);
	assert_true(WIFSIGNALED(status));
	friend = 0;
}

static void test_moving_can_abort(void **state)
{
	(void)state;
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		move_aborts();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void test_reaching_refuses(void **state)
{
	(void)state;
	in_child(reach_refuses);
}

static void test_reaching_allows(void **state)
{
	(void)state;
	in_child(reach_allows);
}

int main(void)
{
	const struct CMUnitTest capabilities[] = {
		cmocka_unit_test(test_one_capability_is_kept),
		cmocka_unit_test(test_none_is_kept),
		cmocka_unit_test(test_limits_stand_in_for_capabilities),
	};
	const struct CMUnitTest filters[] = {
		cmocka_unit_test(test_moving_refuses),   cmocka_unit_test(test_moving_allows),
		cmocka_unit_test(test_moving_can_abort), cmocka_unit_test(test_reaching_refuses),
		cmocka_unit_test(test_reaching_allows),
	};
	int failed = cmocka_run_group_tests(capabilities, NULL, NULL);
	if (MF_HAVE_SECCOMP)
		return failed + cmocka_run_group_tests(filters, NULL, NULL);
	puts("SKIP: filters: built without libseccomp");
	return failed;
}
