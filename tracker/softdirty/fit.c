/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A soft-dirty bit lives in the page-table entry.  For private memory the kernel carries it along wherever the page
 * goes.  For pages of a file it drops the entry where it could make it anew: when it takes the page away (swap, or
 * write-back on a disk), and when huge pages are put together or split.  The entry that is made at the next
 * touch is clean, and a write is lost without a trace.  So memory of files is taken only where none of that can happen.
 * Not looked at again later: who turns swap or huge pages on during a move must not use this tracker.
 */
#include "tracker/softdirty/fit.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/cleanup.h"
#include "base/maps.h"
#include "base/reach.h"
#include "tracker/proc.h"
#include "tracker/uffd.h"

#define BASE_PAGE UINT64_C(4096)
#define THP       "/sys/kernel/mm/transparent_hugepage/"

/* A page just written is soft-dirty, where there is such a bit.  Asked of a page of our own that is new, so
 * nobody's bits are cleared, and no process made. */
int fit_kernel(struct mf_error *err)
{
	char release[80];
	base_autofd fd = proc_open_pagemap(0, err);
	if (fd < 0)
		return fd;
	char *page =
		mmap(NULL, BASE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "no memory for one page");
	__atomic_store_n(page, 1, __ATOMIC_RELAXED);
	uint64_t entry = 0;
	ssize_t got = pread(fd, &entry, sizeof(entry),
			    (off_t)((uintptr_t)page / BASE_PAGE * sizeof(entry)));
	(void)munmap(page, BASE_PAGE);
	if (got != sizeof(entry))
		return base_error(err, -EIO, MF_SCOPE_HOST, "/proc/self/pagemap cannot be read");
	if (entry >> 55 & 1)
		return 0;
	return base_error(err, -MF_EKERNEL, MF_SCOPE_HOST,
			  "this kernel (%s) has no soft-dirty bits: it was built without "
			  "CONFIG_MEM_SOFT_DIRTY",
			  uffd_kernel_release(release, sizeof(release)));
}

/* vhost before Linux 6.4 writes from kernel threads, which are none of the process's and cannot be stopped. */
static int check_writers(pid_t pid, struct mf_error *err)
{
	int has_vhost = base_reach_has_vhost(pid);
	if (has_vhost < 0)
		return base_error_sys(err, has_vhost, MF_SCOPE_SESSION,
				      "/proc/%d/fd cannot be listed", (int)pid);
	return has_vhost ? base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
				      "process %d uses vhost, whose writes soft-dirty tracking "
				      "could miss",
				      (int)pid)
			 : 0;
}

static bool is_swap_on(void)
{
	char line[256];
	base_cleanup(base_fclosep) FILE *f = fopen("/proc/swaps", "re");
	unsigned lines = 0;
	while (f && fgets(line, sizeof(line), f))
		lines++;
	return lines > 1; /* the first is a heading */
}

/* The setting in [brackets]; "" where the kernel has no such file. */
static const char *selected(const char *path, char *buf, size_t cap)
{
	char line[128] = "";
	base_cleanup(base_fclosep) FILE *f = fopen(path, "re");
	if (f && !fgets(line, sizeof(line), f))
		line[0] = '\0';
	char *open = strchr(line, '['), *end = open ? strchr(open, ']') : NULL;
	if (end)
		*end = '\0';
	(void)snprintf(buf, cap, "%s", end ? open + 1 : "");
	return buf;
}

/* Anonymous shared memory and memfds: settings of the host, for all sizes together and for each (Linux 6.11). */
static bool can_be_huge_inside(const char *all)
{
	if (*all && strcmp(all, "never") != 0 && strcmp(all, "deny") != 0)
		return true;
	glob_t found;
	if (glob(THP "hugepages-*kB/shmem_enabled", GLOB_NOSORT, NULL, &found))
		return false;
	bool can = false;
	for (size_t i = 0; i < found.gl_pathc; i++) {
		char one[32];
		selected(found.gl_pathv[i], one, sizeof(one));
		can |= *one && strcmp(one, "never") != 0 && strcmp(one, "inherit") != 0;
	}
	globfree(&found);
	return can;
}

enum place { PLACE_UNKNOWN, PLACE_TMPFS, PLACE_HUGE_TMPFS };

/* What is mounted with that device number, as the process sees it. */
static enum place find_mount(pid_t pid, const struct base_mapping *m)
{
	base_cleanup(base_fclosep) FILE *f = base_reach_fopen(pid, BASE_REACH_MOUNTINFO);
	base_autofree char *line = NULL;
	size_t cap = 0;
	while (f && getline(&line, &cap, f) > 0) {
		unsigned dev_major, dev_minor;
		const char *rest = strstr(line, " - ");
		if (sscanf(line, "%*d %*d %u:%u ", &dev_major, &dev_minor) != 2 || !rest ||
		    dev_major != m->dev_major || dev_minor != m->dev_minor)
			continue;
		if (strncmp(rest, " - tmpfs ", 9) != 0)
			return PLACE_UNKNOWN;
		const char *huge = strstr(rest, "huge=");
		return huge && strncmp(huge, "huge=never", 10) != 0 ? PLACE_HUGE_TMPFS
								    : PLACE_TMPFS;
	}
	return PLACE_UNKNOWN;
}

struct check {
	pid_t pid;
	dev_t inside; /* where memfds are */
	struct mf_error *err;
};

static int check_mapping(const struct base_mapping *m, void *ctx)
{
	const struct check *c = ctx;
	char all[32];
	if (!m->inode)
		return 0;
	selected(THP "shmem_enabled", all, sizeof(all));
	bool is_inside = m->dev_major == major(c->inside) && m->dev_minor == minor(c->inside);
	enum place place = is_inside ? PLACE_TMPFS : find_mount(c->pid, m);
	if (place == PLACE_UNKNOWN)
		return base_error(c->err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "the memory at %#llx of process %d is a file of a kind whose "
				  "soft-dirty bits cannot be relied on",
				  (unsigned long long)m->start, (int)c->pid);
	if (is_swap_on())
		return base_error(c->err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "shared memory loses its soft-dirty bits when it is swapped out, "
				  "and swap is on (/proc/swaps)");
	bool can_be_huge = is_inside ? can_be_huge_inside(all)
				     : strcmp(all, "deny") != 0 &&
					       (place == PLACE_HUGE_TMPFS || !strcmp(all, "force"));
	if (can_be_huge)
		return base_error(c->err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "shared memory loses its soft-dirty bits when it becomes huge "
				  "pages, and %s",
				  is_inside ? "a " THP "*shmem_enabled is not \"never\""
					    : "its tmpfs is mounted with huge=");
	return 0;
}

int fit_process(const struct trk_params *params, struct mf_error *err)
{
	if (!params->pid || params->pid == getpid())
		return base_error(
			err, -MF_EKERNEL, MF_SCOPE_SESSION,
			"soft-dirty tracking stops all of a process while it looks, so it "
			"cannot watch this one");
	int code = check_writers(params->pid, err);
	if (code < 0)
		return code;
	/* Not counted against anything, and gone at once: it says where the kernel keeps such memory. */
	base_autofd fd = memfd_create("where", MFD_CLOEXEC);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "a memfd cannot be made");
	struct check check = { .pid = params->pid, .inside = st.st_dev, .err = err };
	for (uint32_t i = 0; i < params->n_ranges && !code; i++) {
		const struct trk_range *r = &params->ranges[i];
		if (r->page_size != BASE_PAGE)
			return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
					  "huge pages have no soft-dirty bits (range %u of process "
					  "%d)",
					  i, (int)params->pid);
		code = base_each_mapping(params->pid, r->addr, r->len, check_mapping, &check, err);
	}
	return code;
}
