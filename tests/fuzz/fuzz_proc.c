/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whatever is read of /proc: the input stands for each file there.  That is done by the linker (--wrap), below the
 * code that is looked at.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/maps.h"
#include "core/engine.h"
#include "fuzz.h"
#include "hv-adapters/attach/attach_proc.h"
#include "tracker/softdirty/fit.h"
#include "transport/addr.h"

#define LOW  UINT64_C(0x1000)
#define HIGH UINT64_C(0x7fffffff0000)

FILE *__real_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode);
int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);

static struct {
	void *bytes;
	size_t size;
} file; /* bytes NULL: the real ones */

static bool is_ours(const char *path)
{
	return file.bytes && !strncmp(path, "/proc/", 6);
}

FILE *__wrap_fopen(const char *path, const char *mode)
{
	return is_ours(path) ? fmemopen(file.bytes, file.size, "r") : __real_fopen(path, mode);
}

int __wrap_open(const char *path, int flags, ...)
{
	va_list args;
	va_start(args, flags);
	mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
	va_end(args);
	if (!is_ours(path))
		return __real_open(path, flags, mode);
	int fd = memfd_create("proc", MFD_CLOEXEC);
	assert(fd >= 0 && write(fd, file.bytes, file.size) == (ssize_t)file.size);
	assert(lseek(fd, 0, SEEK_SET) == 0);
	return fd;
}

static int check_mapping(const struct base_mapping *m, void *ctx)
{
	unsigned *n = ctx;
	assert(m->start < HIGH && m->end > LOW);
	/* Looked at, so that memcheck sees one that was left to chance. */
	if (m->may_read || m->may_write || m->is_private)
		(*n)++;
	return m->inode == 4711 ? 1 : 0;
}

static void read_maps(void)
{
	struct mf_error err = { 0 };
	unsigned n = 0;
	int code = base_each_mapping(0, LOW, HIGH - LOW, check_mapping, &n, &err);
	assert(code == 0 || code == 1 || code == -EPROTO);
	if (code < 0)
		fuzz_check_error(&err, code);
	assert(n <= file.size);
}

static void read_status(void)
{
	struct attach_status status;
	assert(attach_proc_status(1, &status) == 0);
	(void)eng_check_memlock(UINT64_MAX, NULL);
	(void)tp_read_number("/proc/number", 1);
}

/* There is no memory behind the mappings, so that nothing can be found. */
static void find_insn(void)
{
	uint64_t insn;
	int code = attach_proc_find_insn(1, -1, &insn);
	assert(code == -ENOEXEC || code == -ESRCH);
}

/* Looks at much besides: only where there is a line like one of mountinfo. */
static void read_mounts(void)
{
	if (!memmem(file.bytes, file.size, " - ", 3))
		return;
	const struct trk_range range = { .addr = LOW, .len = HIGH - LOW, .page_size = 4096 };
	const struct trk_params params = { .pid = getppid(), .ranges = &range, .n_ranges = 1 };
	struct mf_error err = { 0 };
	int code = fit_process(&params, &err);
	if (code < 0)
		fuzz_check_error(&err, code);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	file.bytes = fuzz_copy(data, size);
	file.size = size;
	read_maps();
	read_status();
	find_insn();
	read_mounts();
	free(BASE_TAKE_PTR(file.bytes));
	return 0;
}
