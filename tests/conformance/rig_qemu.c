/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Two real QEMUs under TCG.  Their guest is a BIOS of two instructions in a loop: it adds one to a number in RAM, where
 * the test can read it from the memory file.
 */
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <memferry/guests.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define QEMU "qemu-system-x86_64"

enum {
	RAM_MB = 16,
	BIOS_SIZE = 64 << 10,
	COUNTER = 0x1000, /* guest-physical */
	PATIENCE_MS = 30000,
};

struct vm {
	pid_t pid;
	int monitor; /* a second QMP connection, the test's own */
	const volatile uint64_t *counter;
};

struct qemu_rig {
	char dir[64];
	struct vm vm[2];
};

static bool is_installed(const char *program)
{
	const char *from = getenv("PATH");
	while (from && *from) {
		size_t n = strcspn(from, ":");
		char path[512];
		(void)snprintf(path, sizeof(path), "%.*s/%s", (int)n, from, program);
		if (!access(path, X_OK))
			return true;
		from += n + (from[n] == ':');
	}
	return false;
}

void rig_qemu_need(void)
{
	if (!is_installed(QEMU)) {
		printf("SKIP: " QEMU " is not installed\n");
		exit(77);
	}
	if (access("/dev/shm", W_OK)) {
		printf("SKIP: /dev/shm is not writable\n");
		exit(77);
	}
}

static void path_of(char *buf, size_t cap, const struct qemu_rig *own, enum mf_side side,
		    const char *what)
{
	(void)snprintf(buf, cap, "%s/%s-%s", own->dir, side == MF_SOURCE ? "src" : "dst", what);
}

static void write_bios(const struct qemu_rig *own, enum mf_side side)
{
	static const unsigned char code[] = {
		0x31, 0xc0,                         /*    xor  ax, ax                   */
		0x8e, 0xd8,                         /*    mov  ds, ax                   */
		0x66, 0x83, 0x06, 0x00, 0x10, 0x01, /* 1: add  dword [COUNTER], 1       */
		0x66, 0x83, 0x16, 0x04, 0x10, 0x00, /*    adc  dword [COUNTER + 4], 0   */
		0xeb, 0xf2,                         /*    jmp  1b                       */
	};
	static const unsigned char reset[] = { 0xe9, 0x0d, 0x00 }; /* jmp 0; at 0xfff0 */
	unsigned char *bios = calloc(1, BIOS_SIZE);
	char path[128];

	assert_non_null(bios);
	memcpy(bios, code, sizeof(code));
	memcpy(bios + 0xfff0, reset, sizeof(reset));
	path_of(path, sizeof(path), own, side, "bios");
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fwrite(bios, 1, BIOS_SIZE, f), BIOS_SIZE);
	assert_int_equal(fclose(f), 0);
	free(bios);
}

static void map_counter(struct qemu_rig *own, enum mf_side side)
{
	char path[128];

	path_of(path, sizeof(path), own, side, "ram");
	base_autofd fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)RAM_MB << 20), 0);
	unsigned char *at = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(at, MAP_FAILED);
	own->vm[side].counter = (const volatile uint64_t *)(at + COUNTER);
}

static void start_vm(struct qemu_rig *own, enum mf_side side)
{
	char bios[128], object[256], qmp[160], own_qmp[160], path[128], log[128];

	write_bios(own, side);
	map_counter(own, side);
	path_of(bios, sizeof(bios), own, side, "bios");
	path_of(log, sizeof(log), own, side, "log");
	path_of(path, sizeof(path), own, side, "ram");
	(void)snprintf(object, sizeof(object),
		       "memory-backend-file,id=ram0,size=%dM,mem-path=%s,share=on", RAM_MB, path);
	path_of(path, sizeof(path), own, side, "qmp");
	(void)snprintf(qmp, sizeof(qmp), "unix:%s,server=on,wait=off", path);
	path_of(path, sizeof(path), own, side, "own");
	(void)snprintf(own_qmp, sizeof(own_qmp), "unix:%s,server=on,wait=off", path);
	const char *argv[] = {
		QEMU,
		"-machine",
		"pc,accel=tcg,memory-backend=ram0",
		"-object",
		object,
		"-m",
		"16M",
		"-bios",
		bios,
		"-nodefaults",
		"-display",
		"none",
		"-qmp",
		qmp,
		"-qmp",
		own_qmp,
		side == MF_DESTINATION ? "-incoming" : NULL,
		"defer",
		NULL,
	};

	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		int fd = open(log, O_WRONLY | O_CREAT, 0600);
		if (fd >= 0) {
			(void)dup2(fd, STDOUT_FILENO);
			(void)dup2(fd, STDERR_FILENO);
		}
		(void)execvp(QEMU, (char *const *)argv);
		_exit(127);
	}
	own->vm[side].pid = pid;
}

/* QEMU creates its sockets some time after its start, and says so to nobody. */
static int connect_monitor(struct qemu_rig *own, enum mf_side side, const char *what)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	uint64_t deadline = base_deadline_ms(PATIENCE_MS);

	path_of(addr.sun_path, sizeof(addr.sun_path), own, side, what);
	for (;;) {
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		assert_true(fd >= 0);
		if (!connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
			return fd;
		(void)close(fd);
		if (!base_left_ms(deadline) ||
		    waitpid(own->vm[side].pid, NULL, WNOHANG) == own->vm[side].pid) {
			own->vm[side].pid = 0;
			fail_msg(QEMU " does not start; see %s", own->dir);
		}
		(void)nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	}
}

/* The next line that holds one of two words; false: the connection ended. */
static bool read_answer(int fd, const char *word, const char *other, char *line, size_t cap)
{
	uint64_t deadline = base_deadline_ms(PATIENCE_MS);
	size_t len = 0;

	for (;;) {
		struct pollfd wait = { .fd = fd, .events = POLLIN };
		if (poll(&wait, 1, base_left_ms(deadline)) <= 0)
			fail_msg("no answer from the monitor");
		if (len + 1 >= cap || read(fd, line + len, 1) != 1)
			return false;
		if (line[len++] != '\n')
			continue;
		line[len] = '\0';
		if (strstr(line, word) || strstr(line, other))
			return true;
		len = 0;
	}
}

static bool tell(int fd, const char *command, char *line, size_t cap)
{
	char text[128];
	int n = snprintf(text, sizeof(text), "{\"execute\":\"%s\"}\n", command);
	if (send(fd, text, (size_t)n, MSG_NOSIGNAL) != n)
		return false;
	return read_answer(fd, "\"return\"", "\"error\"", line, cap);
}

static bool open_both(struct rig *rig)
{
	struct qemu_rig *own = calloc(1, sizeof(*own));
	char line[4096];

	assert_non_null(own);
	rig->own = own;
	(void)snprintf(own->dir, sizeof(own->dir), "/dev/shm/conf-adapter.XXXXXX");
	assert_non_null(mkdtemp(own->dir));
	start_vm(own, MF_SOURCE);
	start_vm(own, MF_DESTINATION);
	for (unsigned side = MF_SOURCE; side <= MF_DESTINATION; side++) {
		struct vm *vm = &own->vm[side];
		char spec[192], path[128];
		vm->monitor = connect_monitor(own, side, "own");
		assert_true(tell(vm->monitor, "qmp_capabilities", line, sizeof(line)));
		/* The adapter has its socket to itself, but it must be there. */
		(void)close(connect_monitor(own, side, "qmp"));
		path_of(path, sizeof(path), own, side, "qmp");
		(void)snprintf(spec, sizeof(spec), "qemu:%s", path);
		struct mf_error err = { 0 };
		if (mf_guest_open(spec, side, &rig->guest[side], &err)) {
			print_error("%s\n", err.msg);
			return false;
		}
	}
	return true;
}

static void end_vm(struct vm *vm)
{
	if (vm->pid > 0) {
		(void)kill(vm->pid, SIGKILL);
		(void)waitpid(vm->pid, NULL, 0);
	}
	if (vm->monitor > 0)
		(void)close(vm->monitor);
	if (vm->counter)
		(void)munmap((char *)(uintptr_t)vm->counter - COUNTER, 8192);
}

static void close_both(struct rig *rig)
{
	struct qemu_rig *own = rig->own;

	for (unsigned side = MF_SOURCE; side <= MF_DESTINATION; side++) {
		mf_guest_close(&rig->guest[side]);
		end_vm(&own->vm[side]);
		static const char *const files[] = { "bios", "ram", "qmp", "own", "log" };
		for (size_t i = 0; i < BASE_ARRAY_LEN(files); i++) {
			char path[128];
			path_of(path, sizeof(path), own, side, files[i]);
			(void)unlink(path);
		}
	}
	(void)rmdir(own->dir);
	free(own);
}

static bool running(struct rig *rig, enum mf_side side)
{
	struct qemu_rig *own = rig->own;
	char line[4096];

	assert_true(tell(own->vm[side].monitor, "query-status", line, sizeof(line)));
	return strstr(line, "\"running\": true") != NULL;
}

static uint64_t life(struct rig *rig, enum mf_side side)
{
	struct qemu_rig *own = rig->own;
	return *own->vm[side].counter;
}

static bool ended(struct rig *rig, enum mf_side side)
{
	struct qemu_rig *own = rig->own;
	uint64_t deadline = base_deadline_ms(PATIENCE_MS);
	char byte;

	/* The monitor's connection ends with the process. */
	for (;;) {
		struct pollfd wait = { .fd = own->vm[side].monitor, .events = POLLIN };
		if (poll(&wait, 1, base_left_ms(deadline)) <= 0)
			return false;
		if (read(wait.fd, &byte, 1) <= 0)
			return true;
	}
}

const struct rig_ops rig_qemu = {
	.open = open_both,
	.close = close_both,
	.running = running,
	.life = life,
	.ended = ended,
	.outlives_close = true,
};
