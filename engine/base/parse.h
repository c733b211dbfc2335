/* SPDX-License-Identifier: BSD-2-Clause */
/* Numbers, sizes and addresses as people write them.  Nothing is changed on failure. */
#ifndef BASE_PARSE_H
#define BASE_PARSE_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* "4096", "64K", "1.5G": bytes; K M G T are powers of 1024, a trailing iB or B is allowed.
 * -MF_EUSAGE names the argument `what`. */
int base_parse_size(const char *text, const char *what, uint64_t *ret, struct mf_error *err);
/* A decimal whole number in [min, max]. */
int base_parse_number(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *ret,
		      struct mf_error *err);
/* "host", "host:port", "[v6]:port", "v6"; a missing port is default_port. */
int base_parse_addr(const char *text, const char *what, uint16_t default_port, char *ret_host,
		    size_t cap, uint16_t *ret_port, struct mf_error *err);
/* "1.50 GiB"; returns buf. */
const char *base_format_size(uint64_t bytes, char *buf, size_t cap);

#endif
