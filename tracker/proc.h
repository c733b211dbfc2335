/* SPDX-License-Identifier: BSD-2-Clause */
/* What /proc says of a watched process.  pid 0 is this process. */
#ifndef TRACKER_PROC_H
#define TRACKER_PROC_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* Descriptor of /proc/PID/pagemap: 8 bytes for every base page of the address space that the process has now. */
int proc_open_pagemap(pid_t pid, struct mf_error *err);
/* Whether that address space is still there.  pagemap has an entry for every address while it is, and end of
 * file afterwards. */
bool proc_is_alive(int pagemap_fd, uint64_t addr);

#endif
