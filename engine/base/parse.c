/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/parse.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int bad_size(const char *text, const char *what, struct mf_error *err)
{
	return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
			  "%s: '%s' is not a size; write bytes or a number with K, M, G or T, "
			  "as in 512M",
			  what, text);
}

int base_parse_size(const char *text, const char *what, uint64_t *ret, struct mf_error *err)
{
	static const char units[] = "KMGT";
	char *end;

	if (!isdigit((unsigned char)text[0]))
		return bad_size(text, what, err);
	errno = 0;
	uint64_t whole = strtoull(text, &end, 10);
	if (errno)
		return bad_size(text, what, err);
	/* Parts of 1000 after the point are plenty: "1.5G". */
	uint64_t part = 0, scale = 1;
	if (*end == '.') {
		for (end++; isdigit((unsigned char)*end); end++) {
			if (scale < 1000) {
				part = part * 10 + (uint64_t)(*end - '0');
				scale *= 10;
			}
		}
		if (scale == 1)
			return bad_size(text, what, err);
	}
	unsigned shift = 0;
	if (*end) {
		const char *unit = strchr(units, toupper((unsigned char)*end));
		if (unit) {
			shift = 10 * (unsigned)(unit - units + 1);
			end++;
			if (*end == 'i')
				end++;
		}
		if (*end == 'B')
			end++;
	}
	if (*end || (part && !shift) || whole > UINT64_MAX >> shift >> 1)
		return bad_size(text, what, err);
	*ret = (whole << shift) + (part << shift) / scale;
	return 0;
}

int base_parse_number(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *ret,
		      struct mf_error *err)
{
	char *end;
	errno = 0;
	uint64_t n = isdigit((unsigned char)text[0]) ? strtoull(text, &end, 10) : 0;
	if (!isdigit((unsigned char)text[0]) || errno || *end || n < min || n > max)
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "%s: '%s' is not a whole number from %" PRIu64 " to %" PRIu64,
				  what, text, min, max);
	*ret = n;
	return 0;
}

int base_parse_addr(const char *text, const char *what, uint16_t default_port, char *ret_host,
		    size_t cap, uint16_t *ret_port, struct mf_error *err)
{
	const char *host = text, *port = NULL;
	size_t len = strlen(text);

	if (text[0] == '[') {
		const char *close = strchr(text, ']');
		if (!close || (close[1] && close[1] != ':'))
			goto bad;
		host = text + 1;
		len = (size_t)(close - host);
		port = close[1] ? close + 2 : NULL;
	} else {
		const char *colon = strchr(text, ':');
		if (colon && !strchr(colon + 1, ':')) { /* more than one: a bare IPv6 address */
			len = (size_t)(colon - text);
			port = colon + 1;
		}
	}
	if (!len || len >= cap)
		goto bad;
	uint64_t number = default_port;
	if (port && base_parse_number(port, what, 0, UINT16_MAX, &number, NULL))
		goto bad;
	memcpy(ret_host, host, len);
	ret_host[len] = '\0';
	*ret_port = (uint16_t)number;
	return 0;
bad:
	return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
			  "%s: '%s' is not an address; write HOST, HOST:PORT or [IPV6]:PORT", what,
			  text);
}

const char *base_format_size(uint64_t bytes, char *buf, size_t cap)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double value = (double)bytes;
	size_t u = 0;
	while (value >= 1024 && u + 1 < sizeof(units) / sizeof(units[0])) {
		value /= 1024;
		u++;
	}
	(void)snprintf(buf, cap, u ? "%.2f %s" : "%.0f %s", value, units[u]);
	return buf;
}
