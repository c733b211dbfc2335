/* SPDX-License-Identifier: BSD-2-Clause */
#include <memferry/guests.h>

#include <assert.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "hv-adapters/adapters.h"

typedef int (*open_fn)(const char *rest, enum mf_side side, struct mf_adapter *ret,
		       struct mf_error *err);

static const struct {
	const char *prefix;
	open_fn open;
} kinds[] = {
#ifdef MF_HAVE_QEMU
	{ "qemu:", hv_qemu_open },
#endif
#ifdef MF_HAVE_PROCESS
	{ "demo:", hv_process_open },
#endif
};

int mf_guest_open(const char *spec, enum mf_side side, struct mf_adapter *ret, struct mf_error *err)
{
	assert(spec && ret);
	for (size_t i = 0; i < BASE_ARRAY_LEN(kinds); i++) {
		size_t n = strlen(kinds[i].prefix);
		if (strncmp(spec, kinds[i].prefix, n) != 0)
			continue;
		if (!spec[n])
			return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
					  "guest \"%s\": nothing follows the colon", spec);
		struct mf_adapter opened = { 0 };
		int r = kinds[i].open(spec + n, side, &opened, err);
		if (r >= 0)
			*ret = opened;
		return r;
	}
	return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
			  "guest \"%s\": give qemu:QMP_SOCKET or demo:SIZE", spec);
}

void mf_guest_close(struct mf_adapter *adapter)
{
	if (!adapter || !adapter->ops)
		return;
	adapter->ops->close(adapter->hv);
	*adapter = (struct mf_adapter){ 0 };
}
