/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/process.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"

/* The state is field 3, behind a name that may have blanks and brackets in it; the start is field 22. */
#define FIELDS_BETWEEN 19

static uint64_t start_of(int pid)
{
	char path[32], text[1024];
	uint64_t started = 0;
	(void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	base_autofd fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	text[n > 0 ? n : 0] = '\0';
	const char *at = strrchr(text, ')');
	for (int i = 0; at && i <= FIELDS_BETWEEN; i++)
		at = strchr(at + 1, ' ');
	return at && sscanf(at, " %" SCNu64, &started) == 1 ? started : 0;
}

static uint64_t our_namespace(void)
{
	struct stat st;
	return stat("/proc/self/ns/pid", &st) ? 0 : st.st_ino;
}

void base_process_identify(int pid, struct base_process *ret)
{
	*ret = (struct base_process){ .pid = pid };
	if (pid <= 0)
		return;
	ret->started = start_of(pid);
	ret->pid_ns = our_namespace();
}

bool base_process_is_ours(const struct base_process *process)
{
	uint64_t ours = our_namespace();
	return !process->pid_ns || !ours || process->pid_ns == ours;
}

bool base_process_is(const struct base_process *process, int pid)
{
	uint64_t started = process->started ? start_of(pid) : 0;
	return process->pid == pid && base_process_is_ours(process) &&
	       (!started || started == process->started);
}

bool base_process_lives(const struct base_process *process)
{
	if (process->pid <= 0 || !base_process_is_ours(process))
		return true;
	base_autofd fd = (int)syscall(SYS_pidfd_open, process->pid, 0);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	if (fd < 0)
		return errno != ESRCH;
	return poll(&p, 1, 0) == 0 && base_process_is(process, process->pid);
}
