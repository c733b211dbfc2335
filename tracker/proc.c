/* SPDX-License-Identifier: BSD-2-Clause */
#include "tracker/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

/* pagemap's unit. */
#define BASE_PAGE UINT64_C(4096)

const char *proc_path(char *buf, size_t cap, pid_t pid, const char *file)
{
	if (pid)
		(void)snprintf(buf, cap, "/proc/%d/%s", (int)pid, file);
	else
		(void)snprintf(buf, cap, "/proc/self/%s", file);
	return buf;
}

int proc_open_pagemap(pid_t pid, struct mf_error *err)
{
	char path[64];
	int fd = open(proc_path(path, sizeof(path), pid, "pagemap"), O_RDONLY | O_CLOEXEC);
	return fd < 0 ? base_error_sys(err, -errno, MF_SCOPE_SESSION, "%s cannot be opened", path)
		      : fd;
}

bool proc_is_alive(int pagemap_fd, uint64_t addr)
{
	uint64_t entry;
	return pread(pagemap_fd, &entry, sizeof(entry),
		     (off_t)(addr / BASE_PAGE * sizeof(entry))) == sizeof(entry);
}
