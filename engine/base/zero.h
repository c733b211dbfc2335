/* SPDX-License-Identifier: BSD-2-Clause */
/* Whether memory holds nothing but zeroes. */
#ifndef BASE_ZERO_H
#define BASE_ZERO_H

#include <stdbool.h>
#include <stddef.h>

/* Any address, any length; true for none.  Made for pages, one after the other: most that hold data show it in the first
 * word or the last, which are looked at first, and what follows within 1 KiB is fetched ahead, also past the end (which
 * never faults).  Memory that is written meanwhile is seen as it was at some moment, word by word. */
bool base_is_zero(const void *at, size_t len);

#endif
