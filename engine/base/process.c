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
#include "base/reach.h"

/* The state is field 3, behind a name that may have blanks and brackets in it; the start is field 22. */
#define FIELDS_BETWEEN 19

/* Another time namespace than the host's counts from another moment. */
static bool is_time_shifted(void)
{
	char text[128];
	long long seconds, ns;
	base_autofd fd = open("/proc/self/timens_offsets", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	text[n > 0 ? n : 0] = '\0';
	const char *at = strstr(text, "boottime");
	return at && sscanf(at, "boottime %lld %lld", &seconds, &ns) == 2 && (seconds || ns);
}

static uint64_t start_of(int pid)
{
	char text[1024];
	uint64_t started = 0;
	if (is_time_shifted())
		return 0;
	base_autofd fd = base_reach_open(pid, 0, BASE_REACH_STAT);
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
	int r;
	if (fd < 0) /* none, or the number is a thread's by now */
		return errno != ESRCH && errno != EINVAL && errno != ENOENT;
	do
		r = poll(&p, 1, 0);
	while (r < 0 && errno == EINTR);
	return r != 1 && base_process_is(process, process->pid);
}
