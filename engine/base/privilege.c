/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/privilege.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CAPS_MAX 64
/* Counted from 20 downwards: any nice value. */
#define NICE_MOST 40

/* libc has no names for these two. */
static int get_caps(struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };

	return syscall(SYS_capget, &head, data) < 0 ? -errno : 0;
}

static int set_caps(const struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };

	return syscall(SYS_capset, &head, data) < 0 ? -errno : 0;
}

uint64_t base_capabilities(void)
{
	struct __user_cap_data_struct data[2];

	return get_caps(data) < 0 ? 0 : data[0].effective | (uint64_t)data[1].effective << 32;
}

int base_keep_capabilities(uint64_t keep, struct mf_error *err)
{
	struct __user_cap_data_struct data[2];

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "sandbox: no_new_privs");
	if (base_capabilities() & BASE_CAP(CAP_SETPCAP)) {
		for (int cap = 0; cap < CAPS_MAX; cap++) {
			if (!(keep & BASE_CAP(cap)))
				(void)prctl(PR_CAPBSET_DROP, cap, 0, 0, 0); /* EINVAL: none such */
		}
	}
	(void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	int code = get_caps(data);
	for (int i = 0; code == 0 && i < 2; i++) {
		data[i].permitted &= (uint32_t)(keep >> 32 * i);
		data[i].effective = data[i].permitted;
		data[i].inheritable = 0;
	}
	if (code == 0)
		code = set_caps(data);
	return code < 0 ? base_error_sys(err, code, MF_SCOPE_HOST, "sandbox: capabilities") : 0;
}

static void raise_limit(__rlimit_resource_t which, rlim_t value)
{
	struct rlimit limit = { value, value };

	if (!setrlimit(which, &limit) || getrlimit(which, &limit))
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(which, &limit);
}

void base_raise_limits(void)
{
	raise_limit(RLIMIT_MEMLOCK, RLIM_INFINITY);
	raise_limit(RLIMIT_NICE, NICE_MOST);
}
