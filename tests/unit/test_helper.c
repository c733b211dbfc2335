/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reaching into another process by a helper: a program without any privilege gets what it needs, and nothing else; neither
 * side's sudden end harms the process that is reached into.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/maps.h"
#include "base/privilege.h"
#include "base/process.h"
#include "base/reach.h"
#include "hv-adapters/attach/helper.h"
#include "hv-adapters/attach/helper_wire.h"

#define SHARED_LEN (UINT64_C(16) * 4096)
#define GIVE_UP_MS 30000
#define OTHER_USER 65534
#define WAIT_MS    10000

/* Shared with the target. */
struct stage {
	atomic_ullong steps;
	pid_t helper; /* told by a program in a child */
};
static struct stage *stage;

struct target {
	pid_t pid;
	int ram_fd, secret_fd; /* the same numbers there */
	char *shared, *private;
};

static struct target target;

static void await(bool (*is_so)(void), const char *what)
{
	uint64_t deadline = base_deadline_ms(GIVE_UP_MS);
	while (!is_so()) {
		if (base_now_us() >= deadline)
			fail_msg("never: %s", what);
		(void)usleep(200);
	}
}

static unsigned long long steps_seen;
static bool has_moved(void)
{
	return atomic_load(&stage->steps) > steps_seen + 3;
}

static void expect_moving(void)
{
	steps_seen = atomic_load(&stage->steps);
	await(has_moved, "the target goes on");
}

static _Noreturn void run_target(uid_t uid)
{
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (uid && (setgid(uid) < 0 || setuid(uid) < 0))
		_exit(3);
	/* What setuid() takes away, and an exec would bring. */
	(void)prctl(PR_SET_DUMPABLE, 1);
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		atomic_fetch_add(&stage->steps, 1);
		(void)usleep(100);
	}
}

static void start_target(uid_t uid)
{
	stage = mmap(NULL, sizeof(*stage), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	assert_ptr_not_equal(stage, MAP_FAILED);
	target.ram_fd = memfd_create("ram", MFD_CLOEXEC);
	target.secret_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_true(target.ram_fd >= 0 && target.secret_fd >= 0);
	assert_int_equal(ftruncate(target.ram_fd, (off_t)SHARED_LEN), 0);
	target.shared =
		mmap(NULL, SHARED_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, target.ram_fd, 0);
	target.private =
		mmap(NULL, SHARED_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(target.shared, MAP_FAILED);
	assert_ptr_not_equal(target.private, MAP_FAILED);
	memset(target.shared, 1, SHARED_LEN);
	memset(target.private, 1, SHARED_LEN);
	target.pid = fork();
	assert_true(target.pid >= 0);
	if (target.pid == 0)
		run_target(uid);
	expect_moving();
}

static void end_target(void)
{
	int status;
	expect_moving();
	assert_int_equal(kill(target.pid, SIGKILL), 0);
	assert_int_equal(waitpid(target.pid, &status, 0), target.pid);
	(void)munmap(target.shared, SHARED_LEN);
	(void)munmap(target.private, SHARED_LEN);
	(void)munmap(stage, sizeof(*stage));
	(void)close(target.ram_fd);
	(void)close(target.secret_fd);
}

static struct mf_attach *start_helper(void)
{
	struct mf_attach *helper = NULL;
	struct mf_error err = { 0 };
	if (attach_helper_start(target.pid, &helper, &err) < 0)
		fail_msg("%s", err.msg);
	return helper;
}

/* ---- what it does ---- */

static int take_mapping(const struct base_mapping *m, void *ctx)
{
	*(struct attach_mapping *)ctx = (struct attach_mapping){
		.start = m->start,
		.end = m->end,
		.inode = m->inode,
		.dev_major = m->dev_major,
		.dev_minor = m->dev_minor,
	};
	return 1;
}

static int see_still(void *ctx, pid_t tid, struct mf_error *err)
{
	(void)ctx;
	unsigned long long before = atomic_load(&stage->steps);
	base_autofd fd = base_reach_open(target.pid, tid, BASE_REACH_CLEAR_REFS);
	(void)usleep(20000);
	if (fd < 0)
		return base_error(err, fd, MF_SCOPE_SESSION, "clear_refs");
	return atomic_load(&stage->steps) == before ? 7 : -EBUSY;
}

/* Every request once; the sentence of the first that fails. */
static int use_all(struct mf_error *err)
{
	int fd = -1, remote = -1, found[4];
	pid_t pid = target.pid;
	struct attach_mapping mapping;
	struct attach_range range = { (uintptr_t)target.shared, SHARED_LEN };
	struct base_freeze *freeze = NULL;
	char path[64];

	int r = attach_probe(pid, err);
	if (r == 0)
		r = base_each_mapping(pid, range.addr, range.len, take_mapping, &mapping, err);
	if (r != 1)
		return r < 0 ? r : -ENOENT;
	base_autofd ram = attach_open_mapping(pid, &mapping);
	if (ram < 0)
		return base_error_sys(err, ram, MF_SCOPE_HOST, "its RAM");
	if (pwrite(ram, "\2", 1, 0) != 1 || target.shared[0] != 2)
		return base_error(err, -EIO, MF_SCOPE_HOST, "another file");
	if ((r = attach_userfaultfd(pid, &fd, &remote, err)) == -EPERM) {
		/* as the adapter of QEMU does: a device's number there comes from its monitor */
		*err = (struct mf_error){ 0 };
		base_autofd device = attach_open_device(pid);
		if (device < 0)
			return base_error_sys(err, device, MF_SCOPE_HOST, "the device");
	} else if (r < 0) {
		return r;
	} else {
		(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (attach_find_userfaultfds(pid, found, 4, err) != 1 || found[0] != remote)
			return base_error(err, -ENOENT, MF_SCOPE_HOST, "it is not found");
		base_autofd again = -1;
		if ((r = attach_get_userfaultfd(pid, remote, &again, err)) < 0)
			return r;
		attach_close_fds(pid, &remote, 1);
		if (attach_find_userfaultfds(pid, found, 4, err) != 0)
			return base_error(err, -EEXIST, MF_SCOPE_HOST, "it is not closed");
		base_closep(&fd);
	}
	if ((r = attach_madvise(pid, &range, 1, MADV_DONTNEED, err)) < 0)
		return r;
	base_autofd pagemap = base_reach_open(pid, 0, BASE_REACH_PAGEMAP);
	if (pagemap < 0)
		return base_error_sys(err, pagemap, MF_SCOPE_HOST, "pagemap");
	uint64_t entry;
	if (pread(pagemap, &entry, sizeof(entry), (off_t)(range.addr / 4096 * 8)) !=
		    sizeof(entry) ||
	    entry >> 63)
		return base_error(err, -EIO, MF_SCOPE_HOST, "the page is still there");
	struct base_process who;
	base_process_identify(pid, &who);
	if (!who.started || !base_process_lives(&who))
		return base_error(err, -ESRCH, MF_SCOPE_HOST, "when it was started");
	if (base_reach_has_vhost(pid) != 0)
		return base_error(err, -EIO, MF_SCOPE_HOST, "vhost");
	if ((r = base_freeze_open(pid, &freeze, err)) < 0)
		return r;
	r = base_freeze_run(freeze, see_still, NULL, err);
	base_freeze_close(freeze);
	if (r != 7)
		return r < 0 ? r : -EIO;
	return attach_check(pid, err);
}

static void test_it_does_what_is_needed(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	start_target(0);
	struct mf_attach *helper = start_helper();
	if (use_all(&err) < 0)
		fail_msg("%s", err.msg);
	attach_helper_end(helper);
	end_target();
}

/* As the unit has it (ProtectProc=invisible): who has no privilege sees nobody else's processes. */
static int hide_processes(struct mf_error *err)
{
	if (unshare(CLONE_NEWNS) || mount(NULL, "/proc", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("proc", "/proc", "proc", 0,
		  "hidepid=invisible,gid=65534")) /* root's group is exempt else */
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "/proc");
	return 0;
}

/* In a child, which must not be able to do it alone: then nobody helped. */
static int use_without_privilege(void)
{
	struct mf_error err = { 0 };
	struct mf_attach *helper = NULL;
	struct base_filter_pids pids = { 0 };
	int r = hide_processes(&err);
	if (r == 0)
		r = attach_helper_start(target.pid, &helper, &err);
	pids.pid[0] = attach_helper_pid(helper);
	if (r == 0)
		r = base_keep_capabilities(0, &err);
	if (r == 0 && MF_HAVE_SECCOMP)
		r = base_filter_calls(BASE_FILTER_MOVE, &pids, &err);
	char path[64];
	(void)snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)target.pid);
	base_autofd alone = open(path, O_RDONLY | O_CLOEXEC);
	if (r == 0 && alone >= 0)
		r = base_error(&err, -EEXIST, MF_SCOPE_HOST, "it still has its privilege");
	if (r == 0)
		r = use_all(&err);
	attach_helper_end(helper);
	if (r < 0)
		fprintf(stderr, "  %s\n", err.msg);
	return r < 0;
}

static void test_for_a_program_without_privilege(void **state)
{
	(void)state;
	int status;
	if (geteuid() != 0) {
		print_message("SKIP: only root has a privilege to give up\n");
		skip();
	}
	start_target(OTHER_USER);
	pid_t program = fork();
	if (program == 0)
		_exit(use_without_privilege());
	assert_int_equal(waitpid(program, &status, 0), program);
	assert_int_equal(status, 0);
	end_target();
}

static uint64_t status_of(pid_t pid, const char *key, int base)
{
	char path[64], line[128];
	uint64_t value = UINT64_MAX;
	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	base_cleanup(base_fclosep) FILE *f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		if (!strncmp(line, key, strlen(key)))
			value = strtoull(line + strlen(key), NULL, base);
	}
	return value;
}

static void test_it_has_what_it_needs_and_no_more(void **state)
{
	(void)state;
	uint64_t most = BASE_CAP(CAP_SYS_PTRACE) | BASE_CAP(CAP_DAC_OVERRIDE) | BASE_CAP(CAP_KILL) |
			BASE_CAP(CAP_CHECKPOINT_RESTORE);
	start_target(0);
	struct mf_attach *helper = start_helper();
	pid_t pid = attach_helper_pid(helper);
	assert_int_equal(status_of(pid, "CapEff:", 16), most & base_capabilities());
	assert_int_equal(status_of(pid, "CapPrm:", 16), most & base_capabilities());
	assert_int_equal(status_of(pid, "NoNewPrivs:", 10), 1);
	assert_int_equal(status_of(pid, "Seccomp:", 10), MF_HAVE_SECCOMP ? 2 : 0);
	attach_helper_end(helper);
	end_target();
}

/* ---- what it does not ---- */

static int ask(struct helper_request q)
{
	struct helper_reply a;
	struct mf_error err = { 0 };
	base_autofd fd = -1;
	int r = helper_call(&q, &a, &fd, WAIT_MS, &err);
	assert_true(r >= 0 || fd < 0);
	return r;
}

static void test_nothing_else_can_be_had_of_it(void **state)
{
	(void)state;
	start_target(0);
	struct mf_attach *helper = start_helper();
	pid_t pid = target.pid;
	struct helper_request q = { .pid = getpid(), .op = HELPER_PROBE };
	assert_int_equal(ask(q), -EPERM); /* another process */

	q = (struct helper_request){ .pid = pid, .op = HELPER_FIND_MEMORY + 1 };
	assert_int_equal(ask(q), -EPERM); /* no such request */

	static const int files[] = { -1, BASE_REACH_FILES };
	for (size_t i = 0; i < BASE_ARRAY_LEN(files); i++) {
		q = (struct helper_request){ .pid = pid, .op = HELPER_OPEN, .number = files[i] };
		assert_int_equal(ask(q), -EPERM);
	}
	q = (struct helper_request){
		.pid = pid, .op = HELPER_OPEN, .number = BASE_REACH_MAPS, .tid = getpid()
	};
	assert_int_equal(ask(q), -ENOENT); /* no thread of it */

	/* A descriptor that is no userfaultfd, and one that is no device. */
	q = (struct helper_request){ .pid = pid, .op = HELPER_GET_FD, .number = target.secret_fd };
	assert_int_equal(ask(q), -EBADF);
	q.op = HELPER_USERFAULTFD_BY;
	assert_int_equal(ask(q), -EBADF);
	q = (struct helper_request){ .pid = pid, .op = HELPER_CLOSE_FDS, .n = 1 };
	q.fds[0] = target.secret_fd;
	assert_int_equal(ask(q), 0);
	char path[64];
	(void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, target.secret_fd);
	assert_int_equal(access(path, F_OK), 0);

	/* Advice that would change what is read, and memory that is the target's own. */
	struct attach_range shared = { (uintptr_t)target.shared, SHARED_LEN };
	struct attach_range private = { (uintptr_t)target.private, SHARED_LEN };
	struct attach_range around = { 0, UINT64_MAX };
	q = (struct helper_request){ .pid = pid,
				     .op = HELPER_MADVISE,
				     .number = MADV_REMOVE,
				     .n = 1,
				     .ranges = { shared } };
	assert_int_equal(ask(q), -EPERM);
	q.number = MADV_DONTNEED;
	q.ranges[0] = private;
	assert_int_equal(ask(q), -EPERM);
	q.ranges[0] = around;
	assert_int_equal(ask(q), -EPERM);
	q.ranges[0] = shared;
	q.n = HELPER_ITEMS + 1;
	assert_int_equal(ask(q), -EPERM);
	q.n = 1;
	assert_int_equal(ask(q), 0);

	/* Files that it does not map, or not shared. */
	struct attach_mapping mapping = { 0 };
	assert_int_equal(base_each_mapping(pid, shared.addr, 1, take_mapping, &mapping, NULL), 1);
	q = (struct helper_request){ .pid = pid, .op = HELPER_OPEN_MAPPING, .mapping = mapping };
	q.mapping.inode++;
	assert_int_equal(ask(q), -EPERM);
	assert_int_equal(base_each_mapping(pid, private.addr, 1, take_mapping, &mapping, NULL), 1);
	q.mapping = mapping;
	assert_int_equal(ask(q), -EPERM);

	/* A target that stands still is not the place for more. */
	q = (struct helper_request){ .pid = pid, .op = HELPER_FREEZE };
	assert_int_equal(ask(q), 0);
	q.op = HELPER_PROBE;
	assert_int_equal(ask(q), -EPERM);
	q.op = HELPER_THAW;
	assert_int_equal(ask(q), 0);
	q.op = HELPER_PROBE;
	assert_int_equal(ask(q), 0);
	attach_helper_end(helper);
	end_target();
}

/* ---- ends ---- */

static void test_a_target_that_is_gone(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	int status;
	start_target(0);
	struct mf_attach *helper = start_helper();
	assert_int_equal(attach_kill(target.pid, -1), 0); /* the one it was started for */
	assert_int_equal(waitpid(target.pid, &status, 0), target.pid);
	assert_int_equal(attach_probe(target.pid, &err), -ESRCH);
	assert_int_equal(base_reach_open(target.pid, 0, BASE_REACH_MAPS), -ESRCH);
	assert_int_equal(attach_check(target.pid, &err), 0);
	attach_helper_end(helper);
	struct mf_error why = { 0 };
	helper = NULL;
	assert_int_equal(attach_helper_start(target.pid, &helper, &why), -ESRCH);
	assert_null(helper);
	assert_non_null(strstr(why.msg, "memferry-attach"));
}

/* By its pidfd: a process loses its memory well before its descriptors, and its socket is what is judged here. */
static void expect_gone(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	assert_true(pidfd >= 0);
	assert_int_equal(poll(&p, 1, GIVE_UP_MS), 1);
}

static void test_a_helper_that_is_killed(void **state)
{
	(void)state;
	struct mf_error err = { 0 };
	start_target(0);
	struct mf_attach *helper = start_helper();
	base_autofd pidfd = pidfd_open(attach_helper_pid(helper), 0);
	/* The worst moment: the target stands still by it. */
	assert_int_equal(ask((struct helper_request){ .pid = target.pid, .op = HELPER_FREEZE }), 0);
	assert_int_equal(kill(attach_helper_pid(helper), SIGKILL), 0);
	expect_moving();
	expect_gone(pidfd);
	assert_int_equal(attach_check(target.pid, &err), -EPIPE);
	assert_non_null(strstr(err.msg, "memferry-attach"));
	err = (struct mf_error){ 0 };
	assert_int_equal(attach_probe(target.pid, &err), -EPIPE);
	assert_int_equal(base_reach_open(target.pid, 0, BASE_REACH_MAPS), -EPIPE);
	attach_helper_end(helper);
	assert_int_equal(attach_probe(target.pid, &err), 0); /* by ourselves */
	end_target();
}

/* A QEMU that hangs must end, whether there is a helper left or not. */
static void test_killing_without_the_helper(void **state)
{
	(void)state;
	int status;
	start_target(0);
	base_autofd pidfd = pidfd_open(target.pid, 0);
	struct mf_attach *helper = start_helper();
	assert_int_equal(kill(attach_helper_pid(helper), SIGKILL), 0);
	assert_int_equal(attach_kill(target.pid, pidfd), 0);
	expect_gone(pidfd);
	assert_int_equal(attach_kill(target.pid, pidfd), -ESRCH);
	assert_int_equal(attach_kill(target.pid, -1), -ESRCH);
	assert_int_equal(waitpid(target.pid, &status, 0), target.pid);
	attach_helper_end(helper);
}

static bool has_told(void)
{
	return *(volatile pid_t *)&stage->helper;
}

static void test_a_program_that_is_killed(void **state)
{
	(void)state;
	int status;
	start_target(0);
	pid_t program = fork();
	if (program == 0) {
		pid_t pid = attach_helper_pid(start_helper());
		if (ask((struct helper_request){ .pid = target.pid, .op = HELPER_FREEZE }) == 0)
			*(volatile pid_t *)&stage->helper = pid;
		for (;;)
			(void)pause();
	}
	await(has_told, "the target stands still");
	base_autofd pidfd = pidfd_open(stage->helper, 0);
	assert_int_equal(kill(program, SIGKILL), 0);
	assert_int_equal(waitpid(program, &status, 0), program);
	expect_gone(pidfd);
	end_target();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_it_does_what_is_needed),
		cmocka_unit_test(test_for_a_program_without_privilege),
		cmocka_unit_test(test_it_has_what_it_needs_and_no_more),
		cmocka_unit_test(test_nothing_else_can_be_had_of_it),
		cmocka_unit_test(test_a_target_that_is_gone),
		cmocka_unit_test(test_a_helper_that_is_killed),
		cmocka_unit_test(test_killing_without_the_helper),
		cmocka_unit_test(test_a_program_that_is_killed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
