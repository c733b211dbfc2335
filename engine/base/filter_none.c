/* SPDX-License-Identifier: BSD-2-Clause */
#include <errno.h>

#include "base/privilege.h"

int base_filter_calls(enum base_filter filter, const struct base_filter_pids *pids,
		      struct mf_error *err)
{
	(void)filter;
	(void)pids;
	return base_error(err, -EOPNOTSUPP, MF_SCOPE_HOST,
			  "sandbox: built without libseccomp, so system calls are not filtered");
}
