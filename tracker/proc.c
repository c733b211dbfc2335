/* SPDX-License-Identifier: BSD-2-Clause */
#include "tracker/proc.h"

#include <unistd.h>

#include "base/reach.h"

/* pagemap's unit. */
#define BASE_PAGE UINT64_C(4096)

int proc_open_pagemap(pid_t pid, struct mf_error *err)
{
	int fd = base_reach_open(pid, 0, BASE_REACH_PAGEMAP);
	if (fd >= 0)
		return fd;
	return pid ? base_error_sys(err, fd, MF_SCOPE_SESSION, "/proc/%d/pagemap cannot be opened",
				    (int)pid)
		   : base_error_sys(err, fd, MF_SCOPE_SESSION,
				    "/proc/self/pagemap cannot be opened");
}

bool proc_is_alive(int pagemap_fd, uint64_t addr)
{
	uint64_t entry;
	return pread(pagemap_fd, &entry, sizeof(entry),
		     (off_t)(addr / BASE_PAGE * sizeof(entry))) == sizeof(entry);
}
