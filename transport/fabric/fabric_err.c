/* SPDX-License-Identifier: BSD-2-Clause */
/* libfabric's codes and its event queue, in our terms. */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "transport/fabric/fabric_priv.h"

/* libfabric's codes up to here are errno's; above are its own. */
#define FIRST_OWN_CODE 256

int tp_fabric_code(ssize_t ret)
{
	if (ret >= 0)
		return 0;
	if (ret > -FIRST_OWN_CODE)
		return (int)ret;
	switch (-ret) {
	case FI_ETOOSMALL:
	case FI_ETRUNC:
		return -EMSGSIZE;
	case FI_ENOEQ:
	case FI_ENOCQ:
	case FI_EOPBADSTATE:
		return -EINVAL;
	case FI_ENOKEY:
		return -EEXIST;
	default:
		return -EIO;
	}
}

int tp_fabric_error(struct mf_error *err, ssize_t ret, enum mf_scope scope, const char *fmt, ...)
{
	char what[sizeof(err->msg)];
	va_list ap;

	va_start(ap, fmt);
	if (vsnprintf(what, sizeof(what), fmt, ap) < 0)
		what[0] = '\0';
	va_end(ap);
	if (ret > -FIRST_OWN_CODE)
		return base_error_sys(err, tp_fabric_code(ret), scope, "%s", what);
	return base_error(err, tp_fabric_code(ret), scope, "%s: libfabric says '%s'", what,
			  fi_strerror((int)-ret));
}

ssize_t tp_fabric_eq_read(struct fid_eq *eq, uint32_t *ret_event, void *buf, size_t cap,
			  size_t *ret_len)
{
	/* The provider takes an errno that is left over from anything for the reason why it
	 * read nothing from a closed socket, and keeps that socket for good if it is EAGAIN. */
	errno = 0;
	ssize_t n = fi_eq_read(eq, ret_event, buf, cap, 0);
	if (n != -FI_EAVAIL)
		return n >= 0 ? n : tp_fabric_code(n);

	struct fi_eq_err_entry entry = { .err_data = buf, .err_data_size = cap };
	n = fi_eq_readerr(eq, &entry, 0);
	if (n < 0)
		return tp_fabric_code(n);
	*ret_len = entry.err_data == buf && entry.err_data_size <= cap ? entry.err_data_size : 0;
	int code = entry.err > 0 ? tp_fabric_code(-entry.err) : -EIO;
	return code == -EAGAIN ? -EIO : code;
}

ssize_t tp_fabric_eq_wait(struct fid_fabric *fabric, struct fid_eq *eq, int eq_fd,
			  uint64_t deadline_us, uint32_t *ret_event, void *buf, size_t cap,
			  size_t *ret_len)
{
	for (;;) {
		ssize_t n = tp_fabric_eq_read(eq, ret_event, buf, cap, ret_len);
		if (n != -EAGAIN)
			return n;
		int left = base_left_ms(deadline_us);
		if (!left)
			return -ETIMEDOUT;
		struct fid *fid = &eq->fid;
		if (fi_trywait(fabric, &fid, 1) != FI_SUCCESS)
			continue;
		struct pollfd pfd = { .fd = eq_fd, .events = POLLIN };
		if (poll(&pfd, 1, left) < 0 && errno != EINTR)
			return -errno;
	}
}
