/* SPDX-License-Identifier: BSD-2-Clause */
/* The mappings of a process, as /proc/PID/maps has them. */
#ifndef BASE_MAPS_H
#define BASE_MAPS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct base_mapping {
	uint64_t start, end;
	bool may_read, may_write, is_private;
	uint64_t offset; /* of start in its file */
	unsigned dev_major, dev_minor;
	uint64_t inode; /* 0: anonymous, private memory */
};

/* Calls fn for each mapping of the process (0: this one) that overlaps [addr, addr + len), ascending, until it returns
 * other than 0, which is then returned.  Negative errors of its own come with a record. */
int base_each_mapping(pid_t pid, uint64_t addr, uint64_t len,
		      int (*fn)(const struct base_mapping *m, void *ctx), void *ctx,
		      struct mf_error *err);

#endif
