/* SPDX-License-Identifier: BSD-2-Clause */
#include "run_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

static int choose_path(const char *option, char *ret, size_t cap, struct mf_error *err)
{
	const char *env = getenv("MEMFERRY_RUN_DIR");
	const char *user = getenv("XDG_RUNTIME_DIR");
	int len;

	if (option)
		len = snprintf(ret, cap, "%s", option);
	else if (env && env[0])
		len = snprintf(ret, cap, "%s", env);
	else if (!geteuid())
		len = snprintf(ret, cap, "/run/memferry");
	else if (user && user[0])
		len = snprintf(ret, cap, "%s/memferry", user);
	else
		return base_error(
			err, -ENOENT, MF_SCOPE_HOST,
			"run directory: XDG_RUNTIME_DIR is not set; name one with --run-dir");
	if (len < 0 || (size_t)len >= cap)
		return base_error_sys(err, -ENAMETOOLONG, MF_SCOPE_HOST, "run directory");
	return 0;
}

/* Root may look at what another user's moves do, and end them. */
static int check_trust(const char *path, int fd, bool create, struct mf_error *err)
{
	struct stat st;

	if (fstat(fd, &st))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "run directory %s", path);
	if (st.st_uid != geteuid() && (geteuid() || create))
		return base_error(err, -EPERM, MF_SCOPE_HOST,
				  "run directory %s: belongs to user %u; name one of your own with "
				  "--run-dir",
				  path, (unsigned)st.st_uid);
	if (st.st_mode & (S_IWGRP | S_IWOTH))
		return base_error(
			err, -EPERM, MF_SCOPE_HOST,
			"run directory %s: others may write to it; chmod it to 700 or name "
			"another with --run-dir",
			path);
	return 0;
}

int cli_run_dir_open(const char *option, bool create, struct cli_run_dir *ret, struct mf_error *err)
{
	ret->fd = -1;
	int r = choose_path(option, ret->path, sizeof(ret->path), err);
	if (r)
		return r;
	if (create && mkdir(ret->path, 0700) && errno != EEXIST)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "run directory %s: create it",
				      ret->path);
	base_autofd fd = open(ret->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT && !create)
		return 0;
	if (fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "run directory %s", ret->path);
	r = check_trust(ret->path, fd, create, err);
	if (r)
		return r;
	ret->fd = base_take_fd(&fd);
	return 0;
}

void cli_run_dir_close(struct cli_run_dir *dir)
{
	base_closep(&dir->fd);
}
