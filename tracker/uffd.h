/* SPDX-License-Identifier: BSD-2-Clause */
/* What every user of a userfaultfd here needs: is it able, make it ready, register. */
#ifndef TRACKER_UFFD_H
#define TRACKER_UFFD_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* "6.1.0-18-amd64", for sentences about this kernel; returns buf. */
const char *uffd_kernel_release(char *buf, size_t cap);

/* 0 when this kernel's userfaultfd has all the features (UFFD_FEATURE_*), else -MF_EKERNEL. */
int uffd_probe(uint64_t features, struct mf_error *err);

/* UFFDIO_API.  A descriptor made ready by an earlier life of ours (it outlives a crash in the
 * watched process) is taken as it is; addr, len: any part of what it watches. */
int uffd_enable(int fd, uint64_t features, uint64_t addr, uint64_t len, struct mf_error *err);

/* ioctls: bits (1 << _UFFDIO_*) that must work on the range afterwards; else it is undone. */
int uffd_register(int fd, uint64_t addr, uint64_t len, uint64_t mode, uint64_t ioctls,
		  struct mf_error *err);
/* Also wakes whoever waits there.  The code is for callers that have another way. */
int uffd_unregister(int fd, uint64_t addr, uint64_t len);
void uffd_wake(int fd, uint64_t addr, uint64_t len);

#endif
