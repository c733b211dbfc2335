/* SPDX-License-Identifier: BSD-2-Clause */
/* The file that says which pages are here: as many bits as all regions have pages, each region's from a page of its own on. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "core/engine.h"

#define PATH_CAP 512

void eng_present_path(const char *run_dir, const char *session, char *ret, size_t cap)
{
	(void)snprintf(ret, cap, "%s/%s.present", run_dir, session);
}

static void path_of(const struct mf_session *s, char ret[PATH_CAP])
{
	eng_present_path(s->run_dir, s->report.session, ret, PATH_CAP);
}

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

static uint64_t bytes_of(const struct mf_session *s)
{
	uint64_t bytes = 0;
	for (uint32_t i = 0; i < s->memory.n; i++)
		bytes += round_up(bitmap_words(s->memory.region[i].pages) * 8, 4096);
	return bytes;
}

static int map_all(struct mf_session *s, int fd, const char *path, struct mf_error *err)
{
	off_t at = 0;
	for (uint32_t i = 0; i < s->memory.n; i++) {
		struct eng_region *region = &s->memory.region[i];
		size_t len = bitmap_words(region->pages) * 8;
		void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
		if (map == MAP_FAILED)
			return base_error_sys(err, -errno, MF_SCOPE_HOST, "%s", path);
		region->present = map;
		at += (off_t)round_up(len, 4096);
	}
	return 0;
}

int eng_present_create(struct mf_session *s, struct mf_error *err)
{
	char path[PATH_CAP];
	path_of(s, path);
	(void)mkdir(s->run_dir, 0700);
	base_autofd fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "%s", path);
	/* Allocated now: a full disk must not become a SIGBUS later. */
	int r = -posix_fallocate(fd, 0, (off_t)bytes_of(s));
	if (r < 0)
		return base_error_sys(err, r, MF_SCOPE_HOST, "%s", path);
	r = map_all(s, fd, path, err);
	for (uint32_t i = 0; r == 0 && i < s->memory.n; i++) {
		struct eng_region *region = &s->memory.region[i];
		for (size_t w = 0; w < bitmap_words(region->pages); w++)
			region->present[w] = ~region->todo[w];
	}
	return r;
}

/* What another process has left: pages that it was fetching are missing, too. */
int eng_present_open(struct mf_session *s, struct mf_error *err)
{
	char path[PATH_CAP];
	path_of(s, path);
	struct stat st;
	base_autofd fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		return base_error_sys(err, -errno, MF_SCOPE_HOST,
				      "%s, which tells the pages that are missing", path);
	if ((uint64_t)st.st_size != bytes_of(s))
		return base_error(err, -EBADMSG, MF_SCOPE_HOST,
				  "%s is of a guest with other memory than this one", path);
	int r = map_all(s, fd, path, err);
	for (uint32_t i = 0; r == 0 && i < s->memory.n; i++) {
		struct eng_region *region = &s->memory.region[i];
		for (uint64_t n = 0; n < region->pages; n++) {
			if (!bitmap_test(region->present, n))
				bitmap_set(region->todo, n, 1);
		}
	}
	return r;
}

bool eng_present_exists(const struct mf_session *s)
{
	char path[PATH_CAP];
	path_of(s, path);
	return access(path, F_OK) == 0;
}

void eng_present_remove(const struct mf_session *s)
{
	char path[PATH_CAP];
	path_of(s, path);
	(void)unlink(path);
}
