/* SPDX-License-Identifier: BSD-2-Clause */
/* The record of a hand-off, as it is found on disk; the linker puts the input in the place of the file (--wrap). */
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/engine.h"
#include "fuzz.h"

int __wrap_open(const char *path, int flags, ...);

static const uint8_t *bytes;
static size_t len;

int __wrap_open(const char *path, int flags, ...)
{
	(void)path, (void)flags;
	int fd = memfd_create("record", MFD_CLOEXEC);
	assert(fd >= 0 && write(fd, bytes, len) == (ssize_t)len && lseek(fd, 0, SEEK_SET) == 0);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char run_dir[] = "none";
	static struct mf_session s = { .run_dir = run_dir, .lock_fd = 0 }; /* locked already */
	struct eng_record_entry found = { .what = ENG_RECORD_COUNT };
	struct mf_error err = { 0 };

	bytes = data;
	len = size;
	(void)snprintf(s.report.session, sizeof(s.report.session), "0123456789abcdef");
	s.params.side = size % 2 ? MF_SOURCE : MF_DESTINATION;
	int code = eng_record_read(&s, &found, &err);
	assert(code == 0 || code == -EBADMSG);
	if (code < 0)
		fuzz_check_error(&err, code);
	else
		assert(found.what < ENG_RECORD_COUNT);
	return 0;
}
