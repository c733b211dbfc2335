/* SPDX-License-Identifier: BSD-2-Clause */
/* Pictures of a document, by gnuplot(1). */
#ifndef PERF_PLOT_H
#define PERF_PLOT_H

#include <jansson.h>

#include "base/error.h"

/* Whether the file's name ends in .svg or .png and gnuplot is installed; before anything is measured. */
int perf_plot_check(const char *file, struct mf_error *err);
/* bw: bandwidth by size; lat: distributions; fault: rate and latency by threads; migrate: the timeline.  Others:
 * -EOPNOTSUPP. */
int perf_plot(const json_t *doc, const char *file, struct mf_error *err);

#endif
