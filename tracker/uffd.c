/* SPDX-License-Identifier: BSD-2-Clause */
#include "tracker/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

#include "base/cleanup.h"
#include "tracker/uapi.h"

static const struct {
	uint64_t bit;
	const char *name, *since;
} features_known[] = {
	{ UFFD_FEATURE_MISSING_HUGETLBFS, "missing faults on hugetlbfs", "4.11" },
	{ UFFD_FEATURE_MISSING_SHMEM, "missing faults on shared memory", "4.11" },
	{ UFFD_FEATURE_MINOR_HUGETLBFS, "minor faults on hugetlbfs", "5.13" },
	{ UFFD_FEATURE_MINOR_SHMEM, "minor faults on shared memory", "5.14" },
	{ UFFD_FEATURE_PAGEFAULT_FLAG_WP, "write protection", "5.7" },
	{ UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "write protection of shared memory", "5.19" },
	{ UFFD_FEATURE_WP_UNPOPULATED, "write protection of empty pages", "6.4" },
	{ UFFD_FEATURE_WP_ASYNC, "asynchronous write protection", "6.7" },
};

const char *uffd_kernel_release(char *buf, size_t cap)
{
	struct utsname u;
	if (uname(&u) < 0)
		(void)snprintf(u.release, sizeof(u.release), "release unknown");
	(void)snprintf(buf, cap, "%s", u.release);
	return buf;
}

/* One that serves user-mode touches only needs no privilege and knows the same features. */
static int open_for_query(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 && errno == EPERM)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	return fd < 0 ? -errno : fd;
}

int uffd_probe(uint64_t features, struct mf_error *err)
{
	char release[80];
	uffd_kernel_release(release, sizeof(release));

	base_autofd fd = open_for_query();
	if (fd == -ENOSYS)
		return base_error(err, -MF_EKERNEL, MF_SCOPE_HOST,
				  "this kernel (%s) has no userfaultfd: it was built without "
				  "CONFIG_USERFAULTFD",
				  release);
	if (fd < 0)
		return base_error_sys(err, fd, MF_SCOPE_HOST,
				      "a userfaultfd cannot be made to ask what kernel %s can do",
				      release);

	/* Features 0 asks for all there are. */
	struct uffdio_api api = { .api = UFFD_API };
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST,
				      "the userfaultfd of kernel %s refuses our API version",
				      release);
	for (size_t i = 0; i < BASE_ARRAY_LEN(features_known); i++) {
		if (features & ~api.features & features_known[i].bit)
			return base_error(err, -MF_EKERNEL, MF_SCOPE_HOST,
					  "the userfaultfd of this kernel (%s) lacks %s, which "
					  "Linux %s brought",
					  release, features_known[i].name, features_known[i].since);
	}
	if (features & ~api.features)
		return base_error(err, -MF_EKERNEL, MF_SCOPE_HOST,
				  "the userfaultfd of this kernel (%s) lacks features %#llx",
				  release, (unsigned long long)(features & ~api.features));
	return 0;
}

int uffd_enable(int fd, uint64_t features, uint64_t addr, uint64_t len, struct mf_error *err)
{
	/* A read must never block: handlers poll.  It also makes poll(2) work at all. */
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_SESSION,
				      "the userfaultfd %d is not usable", fd);

	struct uffdio_api api = { .api = UFFD_API, .features = features };
	if (!ioctl(fd, UFFDIO_API, &api))
		return 0;
	int code = -errno;

	/* EINVAL is "feature unknown" as well as "done before"; any other request tells, because
	 * all fail on a descriptor whose API was not done. */
	struct uffdio_range range = { .start = addr, .len = len };
	if (code == -EINVAL && !ioctl(fd, UFFDIO_WAKE, &range))
		return 0;
	if (code == -EINVAL && uffd_probe(features, err) < 0)
		return err ? err->code : -MF_EKERNEL;
	return base_error_sys(err, code, MF_SCOPE_SESSION, "the userfaultfd cannot be made ready");
}

int uffd_register(int fd, uint64_t addr, uint64_t len, uint64_t mode, uint64_t ioctls,
		  struct mf_error *err)
{
	struct uffdio_register reg = { .range = { addr, len }, .mode = mode };
	if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0) {
		int code = -errno;
		const char *hint = "";
		if (code == -EBUSY)
			hint = " (another userfaultfd watches it: close that one first)";
		else if (code == -ENOMEM)
			hint = " (the process is gone, or has as many mappings as "
			       "vm.max_map_count allows)";
		else if (code == -EINVAL)
			hint = " (not mapped, or of a kind that userfaultfd cannot watch)";
		return base_error(err, code, MF_SCOPE_SESSION,
				  "the memory at %#llx, %llu bytes, cannot be watched: %s%s",
				  (unsigned long long)addr, (unsigned long long)len,
				  base_strerror(code), hint);
	}
	if ((reg.ioctls & ioctls) != ioctls) {
		(void)uffd_unregister(fd, addr, len);
		return base_error(err, -EOPNOTSUPP, MF_SCOPE_SESSION,
				  "the memory at %#llx is of a kind that userfaultfd cannot serve "
				  "in full (lacks %#llx)",
				  (unsigned long long)addr,
				  (unsigned long long)(ioctls & ~reg.ioctls));
	}
	return 0;
}

int uffd_unregister(int fd, uint64_t addr, uint64_t len)
{
	struct uffdio_range range = { .start = addr, .len = len };
	return ioctl(fd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

void uffd_wake(int fd, uint64_t addr, uint64_t len)
{
	struct uffdio_range range = { .start = addr, .len = len };
	(void)ioctl(fd, UFFDIO_WAKE, &range);
}
