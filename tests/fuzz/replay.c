/* SPDX-License-Identifier: BSD-2-Clause */
/* Runs a target over the files of a folder: what was found once is looked at in every build. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "fuzz.h"

static int run_file(int dir, const char *name)
{
	base_autofd fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	struct stat st;
	if (fd < 0 || fstat(fd, &st))
		return -errno;
	base_autofree uint8_t *bytes = malloc((size_t)st.st_size + 1);
	if (!bytes)
		return -ENOMEM;
	if (read(fd, bytes, (size_t)st.st_size) != st.st_size)
		return -EIO;
	/* Its name is the last that is read where a target ends the program. */
	(void)printf("%s\n", name);
	(void)fflush(stdout);
	return LLVMFuzzerTestOneInput(bytes, (size_t)st.st_size);
}

int main(int argc, char **argv)
{
	DIR *dir = argc == 2 ? opendir(argv[1]) : NULL;
	unsigned n = 0;
	int r = 0;
	if (!dir) {
		(void)fprintf(stderr, "%s: give it the folder of a corpus\n", argv[0]);
		return 2;
	}
	for (const struct dirent *e; r == 0 && (e = readdir(dir));) {
		if (e->d_name[0] == '.')
			continue;
		r = run_file(dirfd(dir), e->d_name);
		n++;
	}
	(void)closedir(dir);
	(void)printf("%u files\n", n);
	return r || !n;
}
