/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
	int code;
	const char *name, *text;
} own_codes[] = {
	{ MF_EVERSION, "version", "no common protocol version" },
	{ MF_EPEER, "peer", "the peer failed" },
	{ MF_EREFUSED, "refused", "refused by preflight" },
	{ MF_ECANCELED, "canceled", "canceled" },
	{ MF_ENOCONVERGE, "no-convergence", "pre-copy does not converge" },
	{ MF_EINTEGRITY, "integrity", "pages differ" },
	{ MF_EINDOUBT, "in-doubt", "the outcome is in doubt" },
	{ MF_EPAUSED, "paused", "paused in post-copy" },
	{ MF_EKERNEL, "kernel", "this kernel lacks what is needed" },
	{ MF_EUSAGE, "usage", "malformed argument" },
	{ MF_ESECURITY, "security", "the control channel is not secure" },
};

const char *base_strerror(int code)
{
	if (code < 0)
		code = -code;
	for (size_t i = 0; i < sizeof(own_codes) / sizeof(own_codes[0]); i++) {
		if (own_codes[i].code == code)
			return own_codes[i].text;
	}
	const char *text = strerrordesc_np(code);
	return text ? text : "unknown error";
}

const char *base_error_name(int code)
{
	if (code < 0)
		code = -code;
	for (size_t i = 0; i < sizeof(own_codes) / sizeof(own_codes[0]); i++) {
		if (own_codes[i].code == code)
			return own_codes[i].name;
	}
	const char *name = strerrorname_np(code);
	return name ? name : "unknown";
}

MF_PRINTF(4, 0)
static void fill(struct mf_error *err, int code, enum mf_scope scope, const char *fmt, va_list ap)
{
	err->code = code;
	err->scope = scope;
	if (vsnprintf(err->msg, sizeof(err->msg), fmt, ap) < 0)
		err->msg[0] = '\0';
}

int base_error(struct mf_error *err, int code, enum mf_scope scope, const char *fmt, ...)
{
	if (err && !err->code) {
		va_list ap;
		va_start(ap, fmt);
		fill(err, code, scope, fmt, ap);
		va_end(ap);
	}
	return code;
}

int base_error_sys(struct mf_error *err, int code, enum mf_scope scope, const char *fmt, ...)
{
	if (err && !err->code) {
		va_list ap;
		va_start(ap, fmt);
		fill(err, code, scope, fmt, ap);
		va_end(ap);
		size_t at = strlen(err->msg);
		(void)snprintf(err->msg + at, sizeof(err->msg) - at, ": %s", base_strerror(code));
	}
	return code;
}

int base_error_prefix(struct mf_error *err, const char *fmt, ...)
{
	if (!err)
		return 0;
	char old[sizeof(err->msg)];
	memcpy(old, err->msg, sizeof(old));
	va_list ap;
	va_start(ap, fmt);
	if (vsnprintf(err->msg, sizeof(err->msg), fmt, ap) < 0)
		err->msg[0] = '\0';
	va_end(ap);
	size_t at = strlen(err->msg);
	(void)snprintf(err->msg + at, sizeof(err->msg) - at, "%s", old);
	return err->code;
}
