/* SPDX-License-Identifier: BSD-2-Clause */
#include "tracker/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/cleanup.h"

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

int proc_each_mapping(pid_t pid, uint64_t addr, uint64_t len,
		      int (*fn)(const struct proc_mapping *m, void *ctx), void *ctx,
		      struct mf_error *err)
{
	char path[64];
	base_cleanup(base_fclosep) FILE *f =
		fopen(proc_path(path, sizeof(path), pid, "maps"), "re");
	if (!f)
		return base_error_sys(err, -errno, MF_SCOPE_SESSION, "%s cannot be opened", path);
	base_autofree char *line = NULL;
	size_t cap = 0;
	while (getline(&line, &cap, f) > 0) {
		struct proc_mapping m;
		int got = sscanf(line, "%" SCNx64 "-%" SCNx64 " %*4c %*x %x:%x %" SCNu64, &m.start,
				 &m.end, &m.dev_major, &m.dev_minor, &m.inode);
		if (got != 5)
			return base_error(err, -EPROTO, MF_SCOPE_HOST,
					  "%s has a line of unknown form", path);
		if (m.start >= addr + len)
			break;
		if (m.end <= addr)
			continue;
		int r = fn(&m, ctx);
		if (r)
			return r;
	}
	return 0;
}
