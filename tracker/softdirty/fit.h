/* SPDX-License-Identifier: BSD-2-Clause */
/* Whether soft-dirty bits tell the truth about some memory of a process. */
#ifndef SOFTDIRTY_FIT_H
#define SOFTDIRTY_FIT_H

#include "base/error.h"
#include "tracker/tracker.h"

/* The kernel only. */
int fit_kernel(struct mf_error *err);
/* The process, its mappings, and settings of the host that could make the kernel forget a bit. */
int fit_process(const struct trk_params *params, struct mf_error *err);

#endif
