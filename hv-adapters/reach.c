/* SPDX-License-Identifier: BSD-2-Clause */
/* The helper that reaches into a guest's process, as programs start it. */
#include <memferry/guests.h>

#include "hv-adapters/adapters.h"
#include "hv-adapters/attach/helper.h"

int mf_attach_start(const struct mf_adapter *guest, struct mf_attach **ret, struct mf_error *err)
{
	pid_t pid = hv_find_target(guest).pid;

	*ret = NULL;
	return pid ? attach_helper_start(pid, ret, err) : 0;
}

pid_t mf_attach_pid(const struct mf_attach *attach)
{
	return attach_helper_pid(attach);
}

void mf_attach_end(struct mf_attach *attach)
{
	attach_helper_end(attach);
}
