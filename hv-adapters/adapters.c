/* SPDX-License-Identifier: BSD-2-Clause */
#include <memferry/guests.h>

#include <assert.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "hv-adapters/adapters.h"

typedef int (*open_fn)(const char *rest, enum mf_side side, struct mf_adapter *ret,
		       struct mf_error *err);

static const struct kind {
	const char *prefix; /* the name in the adapter's table, and a colon */
	open_fn open;
	pid_t (*pid)(const void *hv);
	int (*bring_back)(void *hv, struct mf_error *err);
} kinds[] = {
#ifdef MF_HAVE_QEMU
	{ "qemu:", hv_qemu_open, hv_qemu_pid, hv_qemu_bring_back },
#endif
#ifdef MF_HAVE_PROCESS
	{ "demo:", hv_process_open, hv_process_pid, NULL }, /* ends with who opened it */
#endif
};

struct hv_target hv_find_target(const struct mf_adapter *guest)
{
	for (size_t i = 0; guest->ops && i < BASE_ARRAY_LEN(kinds); i++) {
		const struct kind *k = &kinds[i];
		size_t n = strlen(k->prefix) - 1;
		if (strlen(guest->ops->name) == n && strncmp(k->prefix, guest->ops->name, n) == 0)
			return (struct hv_target){ k->pid(guest->hv), k->bring_back };
	}
	return (struct hv_target){ 0 };
}

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

pid_t mf_guest_pid(const struct mf_adapter *adapter)
{
	return hv_find_target(adapter).pid;
}

void mf_guest_close(struct mf_adapter *adapter)
{
	if (!adapter || !adapter->ops)
		return;
	adapter->ops->close(adapter->hv);
	*adapter = (struct mf_adapter){ 0 };
}
