/* SPDX-License-Identifier: BSD-2-Clause */
#include "sandbox.h"

#include <assert.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/privilege.h"

int cli_sandbox_enter(const pid_t *signalled, unsigned n, struct mf_error *err)
{
	struct base_filter_pids pids = { 0 };

	assert(n <= BASE_FILTER_PIDS);
	for (unsigned i = 0; i < n; i++)
		pids.pid[i] = signalled[i];
	base_raise_limits();
	int r = base_keep_capabilities(0, err);
	if (r < 0)
		return r;
	if (MF_SANITIZED)
		return 0; /* what finds leaks, at the end, traces the process from one that it makes */
	/* Nobody of the same user traces it, nor is the guest's memory dumped.  It makes /proc/self root's, so it is for root. */
	if (!geteuid())
		(void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	return base_filter_calls(BASE_FILTER_MOVE, &pids, err);
}
