/* SPDX-License-Identifier: BSD-2-Clause */
#include "qemu_vm.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define PATIENCE_MS 60000

static const char *binary(void)
{
	const char *own = getenv("MEMFERRY_TEST_QEMU");
	return own ? own : "qemu-system-x86_64";
}

struct args {
	const char *v[96];
	char text[16][256];
	unsigned n, n_text;
};

static void add(struct args *a, const char *word)
{
	assert_true(a->n + 1 < BASE_ARRAY_LEN(a->v));
	a->v[a->n++] = word;
}

MF_PRINTF(2, 3)
static void addf(struct args *a, const char *fmt, ...)
{
	assert_true(a->n_text < BASE_ARRAY_LEN(a->text));
	char *text = a->text[a->n_text++];
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(a->text[0]), fmt, ap);
	va_end(ap);
	add(a, text);
}

static void add_ram(struct args *a, struct vm *vm, const struct vm_params *p, unsigned i)
{
	add(a, "-object");
	switch (p->ram[i]) {
	case VM_RAM_TMPFS:
		(void)snprintf(vm->file[i], sizeof(vm->file[i]), "/dev/shm/%s.m%u",
			       strrchr(vm->dir, '/') + 1, i);
		addf(a, "memory-backend-file,id=m%u,size=%uM,mem-path=%s,share=on", i, p->ram_mib,
		     vm->file[i]);
		break;
	case VM_RAM_DISK:
		(void)snprintf(vm->file[i], sizeof(vm->file[i]), "/tmp/%s/m%u",
			       strrchr(vm->dir, '/') + 1, i);
		addf(a, "memory-backend-file,id=m%u,size=%uM,mem-path=%s,share=on", i, p->ram_mib,
		     vm->file[i]);
		break;
	case VM_RAM_MEMFD:
		addf(a, "memory-backend-memfd,id=m%u,size=%uM,share=on", i, p->ram_mib);
		break;
	case VM_RAM_HUGETLB:
		/* a directory: QEMU makes a file in it and removes its name */
		addf(a, "memory-backend-file,id=m%u,size=%uM,mem-path=%s/huge,share=on", i,
		     p->ram_mib, vm->dir);
		break;
	case VM_RAM_PRIVATE:
		addf(a, "memory-backend-ram,id=m%u,size=%uM", i, p->ram_mib);
		break;
	}
	add(a, "-numa");
	addf(a, "node,memdev=m%u", i);
}

static void run_qemu(struct args *a, struct vm *vm, const struct vm_params *p)
{
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (unsigned i = 0; i < p->n_ram; i++) {
		if (p->ram[i] != VM_RAM_HUGETLB)
			continue;
		char path[64];
		(void)snprintf(path, sizeof(path), "%s/huge", vm->dir);
		if (unshare(CLONE_NEWNS) < 0 ||
		    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
		    mkdir(path, 0700) < 0 || mount("none", path, "hugetlbfs", 0, "pagesize=2M") < 0)
			_exit(3);
		break;
	}
	if (p->uid && (setgroups(0, NULL) < 0 || setgid(p->uid) < 0 || setuid(p->uid) < 0))
		_exit(3);
	/* setuid() takes it away */
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	execvp(a->v[0], (char *const *)(uintptr_t)a->v);
	_exit(127);
}

/* QEMU says nothing when its monitor is there: tried again until it is, or QEMU ends. */
static const char *reach_monitor(struct vm *vm, const char *path)
{
	uint64_t deadline = base_deadline_ms(PATIENCE_MS);
	static char why[224];
	for (;;) {
		struct mf_error err = { 0 };
		int r = qmp_open(path, deadline, &vm->monitor, &err);
		if (r == 0)
			return NULL;
		int status;
		if (waitpid(vm->pid, &status, WNOHANG) == vm->pid) {
			vm->pid = -1;
			(void)snprintf(why, sizeof(why), "%s did not start (status 0x%x)", binary(),
				       status);
			return why;
		}
		if (base_now_us() > deadline) {
			(void)snprintf(why, sizeof(why), "%s", err.msg);
			return why;
		}
		(void)poll(NULL, 0, 5);
	}
}

const char *vm_start(struct vm *vm, const struct vm_params *p)
{
	*vm = (struct vm){ .pid = -1, .serial = -1 };
	(void)snprintf(vm->dir, sizeof(vm->dir), "/tmp/mf-qemu-XXXXXX");
	assert_non_null(mkdtemp(vm->dir));
	assert_int_equal(chmod(vm->dir, 0777), 0);
	(void)snprintf(vm->qmp, sizeof(vm->qmp), "%s/qmp", vm->dir);
	char own[64];
	(void)snprintf(own, sizeof(own), "%s/own", vm->dir);
	int serial[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, serial), 0);
	assert_int_equal(fcntl(serial[0], F_SETFD, FD_CLOEXEC), 0);

	struct args a = { 0 };
	add(&a, binary());
	add(&a, "-nodefaults");
	add(&a, "-no-user-config");
	add(&a, "-display");
	add(&a, "none");
	add(&a, "-accel");
	add(&a, p->is_kvm ? "kvm" : "tcg");
	add(&a, "-machine");
	add(&a, "pc");
	add(&a, "-m");
	addf(&a, "%u", p->ram_mib * (p->n_ram ? p->n_ram : 1));
	for (unsigned i = 0; i < p->n_ram; i++)
		add_ram(&a, vm, p, i);
	add(&a, "-qmp");
	addf(&a, "unix:%s,server=on,wait=off", vm->qmp);
	add(&a, "-qmp");
	addf(&a, "unix:%s,server=on,wait=off", own);
	add(&a, "-chardev");
	addf(&a, "socket,id=serial,fd=%d", serial[1]);
	add(&a, "-serial");
	add(&a, "chardev:serial");
	if (p->kernel) {
		add(&a, "-kernel");
		add(&a, p->kernel);
		add(&a, "-append");
		add(&a, p->guest_params ? p->guest_params : "hot=2M rate=8M check=16M hb=50");
	}
	if (p->is_incoming) {
		add(&a, "-incoming");
		add(&a, "defer");
	}
	for (unsigned i = 0; p->extra[i]; i++)
		add(&a, p->extra[i]);

	vm->pid = fork();
	assert_true(vm->pid >= 0);
	if (vm->pid == 0)
		run_qemu(&a, vm, p);
	(void)close(serial[1]);
	vm->serial = serial[0];
	const char *why = reach_monitor(vm, own);
	/* RAM must not outlive a test that fails, and moving it must not need its name. */
	for (unsigned i = 0; i < p->n_ram && vm->file[i][0]; i++) {
		struct stat st;
		if (stat(vm->file[i], &st) == 0)
			vm->inode[i] = st.st_ino;
		(void)unlink(vm->file[i]);
	}
	if (why)
		vm_stop(vm);
	return why;
}

void vm_stop(struct vm *vm)
{
	if (vm->pid > 0) {
		(void)kill(vm->pid, SIGKILL);
		(void)waitpid(vm->pid, NULL, 0);
	}
	vm->pid = -1;
	qmp_close(vm->monitor);
	vm->monitor = NULL;
	base_closep(&vm->serial);
	static const char *const names[] = { "qmp", "own" };
	char path[64];
	for (size_t i = 0; i < BASE_ARRAY_LEN(names) && vm->dir[0]; i++) {
		(void)snprintf(path, sizeof(path), "%s/%s", vm->dir, names[i]);
		(void)unlink(path);
	}
	if (vm->dir[0]) {
		(void)snprintf(path, sizeof(path), "%s/huge", vm->dir);
		(void)rmdir(path);
		(void)rmdir(vm->dir);
	}
	vm->dir[0] = '\0';
}

bool vm_wait_gone(struct vm *vm)
{
	uint64_t deadline = base_deadline_ms(20000);
	while (base_now_us() < deadline) {
		if (waitpid(vm->pid, NULL, WNOHANG) == vm->pid) {
			vm->pid = -1;
			return true;
		}
		(void)poll(NULL, 0, 2);
	}
	return false;
}

/* 1: a line, 0: nothing more now, -1: the port is closed. */
static int take_line(struct vm *vm)
{
	for (;;) {
		char *end = memchr(vm->buf, '\n', vm->len);
		if (end) {
			size_t n = (size_t)(end - vm->buf);
			size_t kept = n < sizeof(vm->line) - 1 ? n : sizeof(vm->line) - 1;
			memcpy(vm->line, vm->buf, kept);
			vm->line[kept] = '\0';
			memmove(vm->buf, end + 1, vm->len - n - 1);
			vm->len -= n + 1;
			return 1;
		}
		if (vm->len == sizeof(vm->buf))
			vm->len = 0;
		ssize_t n = recv(vm->serial, vm->buf + vm->len, sizeof(vm->buf) - vm->len,
				 MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n <= 0)
			return -1;
		vm->len += (size_t)n;
	}
}

bool vm_wait_line(struct vm *vm, const char *prefix, uint64_t deadline_us)
{
	for (;;) {
		int r = take_line(vm);
		if (r > 0) {
			if (strncmp(vm->line, "WRONG", 5) == 0)
				fail_msg("the guest: %s", vm->line);
			if (strncmp(vm->line, prefix, strlen(prefix)) == 0)
				return true;
			continue;
		}
		struct pollfd p = { .fd = vm->serial, .events = POLLIN };
		if (r < 0 || poll(&p, 1, base_left_ms(deadline_us)) == 0)
			return false;
	}
}

void vm_expect_running(struct vm *vm, unsigned heartbeats)
{
	while (take_line(vm) > 0) {
		if (strncmp(vm->line, "WRONG", 5) == 0)
			fail_msg("the guest: %s", vm->line);
	}
	vm->len = 0;
	/* One may have been half said, and one be on its way. */
	for (unsigned i = 0; i < heartbeats + 2; i++) {
		if (!vm_wait_line(vm, "HB ", base_deadline_ms(PATIENCE_MS)))
			fail_msg("the guest does not run");
		if (!strstr(vm->line, "wrong=0"))
			fail_msg("the guest: %s", vm->line);
	}
}

void vm_expect_whole(struct vm *vm)
{
	assert_int_equal(send(vm->serial, "v", 1, MSG_NOSIGNAL), 1);
	assert_true(vm_wait_line(vm, "CHECKED ", base_deadline_ms(PATIENCE_MS)));
	if (!strstr(vm->line, "wrong=0"))
		fail_msg("the guest: %s", vm->line);
}

void vm_command(struct vm *vm, const char *command, json_t *args, json_t **ret)
{
	struct mf_error err = { 0 };
	if (qmp_execute(vm->monitor, command, args, -1, base_deadline_ms(PATIENCE_MS), ret, &err) <
	    0)
		fail_msg("%s: %s", command, err.msg);
}

void vm_expect_state(struct vm *vm, const char *state, bool is_running)
{
	qmp_autojson status = NULL;
	vm_command(vm, "query-status", NULL, &status);
	assert_string_equal(json_string_value(json_object_get(status, "status")), state);
	assert_int_equal(json_is_true(json_object_get(status, "running")), is_running);
}
