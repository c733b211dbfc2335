/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/maps.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "base/reach.h"

static bool parse(const char *line, struct base_mapping *ret)
{
	char perms[5] = "";
	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &ret->start,
		   &ret->end, perms, &ret->offset, &ret->dev_major, &ret->dev_minor,
		   &ret->inode) != 7)
		return false;
	ret->may_read = perms[0] == 'r';
	ret->may_write = perms[1] == 'w';
	ret->is_private = perms[3] == 'p';
	return true;
}

int base_each_mapping(pid_t pid, uint64_t addr, uint64_t len,
		      int (*fn)(const struct base_mapping *m, void *ctx), void *ctx,
		      struct mf_error *err)
{
	char path[64] = "/proc/self/maps";
	if (pid)
		(void)snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	base_cleanup(base_fclosep) FILE *f = base_reach_fopen(pid, BASE_REACH_MAPS);
	if (!f)
		return base_error_sys(err, -errno, MF_SCOPE_SESSION, "%s cannot be opened", path);
	base_autofree char *line = NULL;
	size_t cap = 0;
	while (getline(&line, &cap, f) > 0) {
		struct base_mapping m;
		if (!parse(line, &m))
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
