/* SPDX-License-Identifier: BSD-2-Clause */
/* Filling and passing on struct mf_error; one function that says what to do about a scope. */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <memferry/error.h>

#define MF_MUST_CHECK   __attribute__((warn_unused_result))
#define MF_PRINTF(f, a) __attribute__((format(printf, f, a)))

/* Sets the record unless it already holds a failure (the first record wins).  err may be NULL.
 * Returns code, so that `return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "…")` works. */
int base_error(struct mf_error *err, int code, enum mf_scope scope, const char *fmt, ...)
	MF_PRINTF(4, 5);
/* Where a program calls in: what an earlier call left is over.  err may be NULL. */
static inline void base_error_clear(struct mf_error *err)
{
	if (err)
		*err = (struct mf_error){ 0 };
}

/* What a person typed wrong, in one sentence. */
#define base_usage_error(err, ...) base_error((err), -MF_EUSAGE, MF_SCOPE_HOST, __VA_ARGS__)
/* The same with ": strerror(-code)" appended. */
int base_error_sys(struct mf_error *err, int code, enum mf_scope scope, const char *fmt, ...)
	MF_PRINTF(4, 5);
/* "lane 3: " in front of what is there.  Returns err's code. */
int base_error_prefix(struct mf_error *err, const char *fmt, ...) MF_PRINTF(2, 3);
/* For codes of both kinds. */
const char *base_strerror(int code);
/* Stable names for reports: "canceled", "peer", "ECONNREFUSED". */
const char *base_error_name(int code);

#endif
