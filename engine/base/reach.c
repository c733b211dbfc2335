/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/reach.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"

#define VHOST "/dev/vhost-"

static const struct base_reach *helper;

void base_reach_use(const struct base_reach *by)
{
	helper = by;
}

const struct base_reach *base_reach_helper(pid_t pid)
{
	return pid && pid != getpid() ? helper : NULL;
}

int base_reach_open(pid_t pid, pid_t tid, enum base_reach_file file)
{
	static const struct {
		const char *name;
		int flags;
	} files[BASE_REACH_FILES] = {
		[BASE_REACH_MAPS] = { "maps", O_RDONLY },
		[BASE_REACH_PAGEMAP] = { "pagemap", O_RDONLY },
		[BASE_REACH_CLEAR_REFS] = { "clear_refs", O_WRONLY },
		[BASE_REACH_MOUNTINFO] = { "mountinfo", O_RDONLY },
		[BASE_REACH_STAT] = { "stat", O_RDONLY },
	};
	const struct base_reach *by = base_reach_helper(pid);
	char path[96];

	if (by)
		return by->open(pid, tid, file);
	if (!pid)
		(void)snprintf(path, sizeof(path), "/proc/self/%s", files[file].name);
	else if (!tid)
		(void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, files[file].name);
	else
		(void)snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", (int)pid, (int)tid,
			       files[file].name);
	int fd = open(path, files[file].flags | O_CLOEXEC, 0);
	return fd < 0 ? -errno : fd;
}

FILE *base_reach_fopen(pid_t pid, enum base_reach_file file)
{
	base_autofd fd = base_reach_open(pid, 0, file);
	if (fd < 0) {
		errno = -fd;
		return NULL;
	}
	FILE *f = fdopen(fd, "r");
	if (f)
		fd = -1;
	return f;
}

int base_reach_has_vhost(pid_t pid)
{
	const struct base_reach *by = base_reach_helper(pid);
	char path[64], target[64];

	if (by)
		return by->has_vhost(pid);
	(void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	DIR *dir = opendir(path);
	if (!dir)
		return -errno;
	bool has = false;
	for (const struct dirent *e; !has && (e = readdir(dir));) {
		ssize_t got = readlinkat(dirfd(dir), e->d_name, target, sizeof(target));
		has = got >= (ssize_t)strlen(VHOST) && !memcmp(target, VHOST, strlen(VHOST));
	}
	(void)closedir(dir);
	return has;
}
