/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The files that a side proves itself with, and the names of --tls-peer.  The first line of the input says what is loaded:
 *
 *   p          a pre-shared key
 *   c, s       certificates of a client, of a server; what else is in the line are the names
 *
 * Then come the files, cut by form feeds: one, or the certificate of the CA, the certificate, the key, the list of those that
 * were revoked, which may be missing.  The linker puts them in the place of the real ones (--wrap).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "wire/security_priv.h"

enum { FILES = 4 };

int __wrap_open(const char *path, int flags, ...);
int __wrap_access(const char *path, int mode);

static struct {
	const char *bytes; /* NULL: it is not there */
	size_t len;
} files[FILES];

static int number_of(const char *path)
{
	return strstr(path, "-crl.pem") ? 3 : strstr(path, "-key.pem") ? 2 : !strstr(path, "/ca-");
}

int __wrap_open(const char *path, int flags, ...)
{
	int i = strstr(path, ".pem") ? number_of(path) : 0;
	(void)flags;
	if (!files[i].bytes) {
		errno = ENOENT;
		return -1;
	}
	int fd = memfd_create("file", MFD_CLOEXEC);
	assert(fd >= 0 && fchmod(fd, 0600) == 0);
	assert(write(fd, files[i].bytes, files[i].len) == (ssize_t)files[i].len);
	assert(lseek(fd, 0, SEEK_SET) == 0);
	return fd;
}

int __wrap_access(const char *path, int mode)
{
	(void)mode;
	errno = ENOENT;
	return files[number_of(path)].bytes ? 0 : -1;
}

static void cut(const char *text, size_t len)
{
	memset(files, 0, sizeof(files));
	for (int i = 0; i < FILES && text; i++) {
		const char *end = i < FILES - 1 ? memchr(text, '\f', len) : NULL;
		files[i].bytes = text;
		files[i].len = end ? (size_t)(end - text) : len;
		len -= files[i].len + (end != NULL);
		text = end ? end + 1 : NULL;
	}
}

static void load(const struct wire_security_params *params)
{
	struct wire_security *s = NULL;
	struct mf_error err = { 0 };
	int code = wire_security_load(params, &s, &err);
	if (code) {
		assert(code == -MF_EUSAGE && !s);
		fuzz_check_error(&err, code);
		return;
	}
	assert(wire_security_is_server(s) == params->is_server);
	assert(!params->psk || (s->key_len >= PSK_MIN && s->key_len <= PSK_MAX));
	assert(!params->peers == !s->n_names);
	for (size_t i = 0; i < s->n_names; i++)
		assert(s->names[i][0] && s->names[i][0] != '.' && !strpbrk(s->names[i], ", "));
	wire_security_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	base_autofree char *text = fuzz_text(data, size);
	char *end = memchr(text, '\n', size);
	struct wire_security_params params = { .is_server = text[0] == 's' };

	if (!end || !strchr("pcs", text[0]))
		return 0;
	*end = '\0';
	cut(end + 1, size - (size_t)(end + 1 - text));
	if (text[0] == 'p')
		params.psk = "key";
	else
		params.tls_dir = "dir";
	params.peers = text[0] != 'p' && text[1] ? text + 1 : NULL;
	load(&params);
	return 0;
}
