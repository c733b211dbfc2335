/* SPDX-License-Identifier: BSD-2-Clause */
#include "wire/security.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "wire/security_priv.h"

#define FILE_MAX (1u << 20)

/* ---- files ---- */

/* A whole file; wiped when it goes, whatever it was. */
struct content {
	char *bytes;
	size_t len;
};

static void wipe_content(struct content *c)
{
	if (c->bytes)
		OPENSSL_cleanse(c->bytes, c->len);
	free(c->bytes);
}

static int read_all(int fd, const char *path, struct content *ret, struct mf_error *err)
{
	ret->bytes = malloc(FILE_MAX);
	if (!ret->bytes)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "%s: out of memory", path);
	while (ret->len < FILE_MAX) {
		ssize_t n = read(fd, ret->bytes + ret->len, FILE_MAX - ret->len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return base_usage_error(err, "%.120s: cannot be read: %s", path,
						base_strerror(errno));
		if (n == 0)
			return 0;
		ret->len += (size_t)n;
	}
	return base_usage_error(err, "%.120s: too long for what it should be", path);
}

static int read_file(const char *path, bool is_secret, struct content *ret, struct mf_error *err)
{
	struct stat st;
	/* Not to hang at a pipe that nobody writes. */
	base_autofd fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st))
		return base_usage_error(err, "%.120s: cannot be read: %s", path,
					base_strerror(errno));
	if (!S_ISREG(st.st_mode))
		return base_usage_error(err, "%.120s: not a file", path);
	if (is_secret && st.st_mode & 077)
		return base_usage_error(
			err, "%.120s: others may read this key (mode %04o); chmod 600 it", path,
			(unsigned)st.st_mode & 07777);
	return read_all(fd, path, ret, err);
}

/* ---- certificates ---- */

static int no_passphrase(char *to, int cap, int writing, void *ctx)
{
	(void)to, (void)cap, (void)writing, (void)ctx;
	return -1;
}

static void free_bio(BIO **bio)
{
	BIO_free(*bio);
}

static void free_certificate(X509 **cert)
{
	X509_free(*cert);
}

static void free_key(EVP_PKEY **key)
{
	EVP_PKEY_free(*key);
}

static void free_list(X509_CRL **list)
{
	X509_CRL_free(*list);
}

static const char *reason(void)
{
	const char *text = ERR_reason_error_string(ERR_peek_last_error());
	return text ? text : "no reason given";
}

static void place(const struct wire_security *s, const char *name, char *ret, size_t cap)
{
	(void)snprintf(ret, cap, "%s/%s", s->dir, name);
}

static int load_ca(struct wire_security *s, struct mf_error *err)
{
	char path[4096];
	base_cleanup(wipe_content) struct content file = { 0 };
	X509_STORE *store = SSL_CTX_get_cert_store(s->ctx);
	unsigned n = 0;

	place(s, "ca-cert.pem", path, sizeof(path));
	int r = read_file(path, false, &file, err);
	if (r < 0)
		return r;
	base_cleanup(free_bio) BIO *bio = BIO_new_mem_buf(file.bytes, (int)file.len);
	for (;; n++) {
		base_cleanup(free_certificate) X509 *cert =
			bio ? PEM_read_bio_X509(bio, NULL, no_passphrase, NULL) : NULL;
		if (!cert)
			break;
		if (!X509_STORE_add_cert(store, cert))
			return base_usage_error(err, "%.120s: %s", path, reason());
	}
	if (!n)
		return base_usage_error(err, "%.120s: holds no certificate in PEM format", path);
	return 0;
}

/* Who is not accepted any more; the one file that need not be there. */
static int load_revoked(struct wire_security *s, struct mf_error *err)
{
	char path[4096];
	base_cleanup(wipe_content) struct content file = { 0 };
	X509_STORE *store = SSL_CTX_get_cert_store(s->ctx);

	place(s, "ca-crl.pem", path, sizeof(path));
	if (access(path, F_OK) && errno == ENOENT)
		return 0;
	int r = read_file(path, false, &file, err);
	if (r < 0)
		return r;
	base_cleanup(free_bio) BIO *bio = BIO_new_mem_buf(file.bytes, (int)file.len);
	base_cleanup(free_list) X509_CRL *list =
		bio ? PEM_read_bio_X509_CRL(bio, NULL, no_passphrase, NULL) : NULL;
	if (!list || !X509_STORE_add_crl(store, list))
		return base_usage_error(
			err, "%.120s: holds no list of revoked certificates in PEM format", path);
	X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
	return 0;
}

/* Its own, and those between it and the CA. */
static int load_certificate(struct wire_security *s, const char *name, struct mf_error *err)
{
	char path[4096];
	base_cleanup(wipe_content) struct content file = { 0 };
	place(s, name, path, sizeof(path));
	int r = read_file(path, false, &file, err);
	if (r < 0)
		return r;
	base_cleanup(free_bio) BIO *bio = BIO_new_mem_buf(file.bytes, (int)file.len);
	for (unsigned n = 0;; n++) {
		base_cleanup(free_certificate) X509 *cert =
			bio ? PEM_read_bio_X509(bio, NULL, no_passphrase, NULL) : NULL;
		if (!cert && !n)
			return base_usage_error(err, "%.120s: holds no certificate in PEM format",
						path);
		if (!cert)
			return 0;
		if (n ? !SSL_CTX_add1_chain_cert(s->ctx, cert)
		      : !SSL_CTX_use_certificate(s->ctx, cert))
			return base_usage_error(err, "%.120s: %s", path, reason());
	}
}

static int load_key(struct wire_security *s, const char *name, const char *certificate,
		    struct mf_error *err)
{
	char path[4096];
	base_cleanup(wipe_content) struct content file = { 0 };
	place(s, name, path, sizeof(path));
	int r = read_file(path, true, &file, err);
	if (r < 0)
		return r;
	base_cleanup(free_bio) BIO *bio = BIO_new_mem_buf(file.bytes, (int)file.len);
	base_cleanup(free_key) EVP_PKEY *key =
		bio ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL) : NULL;
	if (!key)
		return base_usage_error(
			err, "%.120s: holds no private key in PEM format without a passphrase",
			path);
	X509 *own = SSL_CTX_get0_certificate(s->ctx);
	if (!X509_check_private_key(own, key))
		return base_usage_error(err, "%.120s: is not the key of %s", path, certificate);
	if (!SSL_CTX_use_PrivateKey(s->ctx, key))
		return base_usage_error(err, "%.120s: %s", path, reason());
	return 0;
}

static int load_certificates(struct wire_security *s, struct mf_error *err)
{
	const char *certificate = s->is_server ? "server-cert.pem" : "client-cert.pem";
	int r = load_ca(s, err);
	if (r == 0)
		r = load_revoked(s, err);
	if (r == 0)
		r = load_certificate(s, certificate, err);
	if (r == 0)
		r = load_key(s, s->is_server ? "server-key.pem" : "client-key.pem", certificate,
			     err);
	return r;
}

/* ---- the pre-shared key ---- */

static int digit(char c)
{
	return c >= '0' && c <= '9'                     ? c - '0'
	       : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10
							: -1;
}

static size_t trim(const char **line, size_t len)
{
	while (len && isspace((unsigned char)(*line)[len - 1]))
		len--;
	while (len && isspace((unsigned char)**line)) {
		(*line)++;
		len--;
	}
	return len;
}

/* "hex" or "name:hex" */
static int take_key(struct wire_security *s, const char *path, const char *line, size_t len,
		    struct mf_error *err)
{
	const char *colon = memchr(line, ':', len);
	if (colon) {
		len -= (size_t)(colon + 1 - line);
		line = colon + 1;
	}
	if (s->key_len)
		return base_usage_error(err, "%.120s: holds more than one key", path);
	if (len < 2 * PSK_MIN)
		return base_usage_error(
			err,
			"%.120s: the key is shorter than 128 bits; openssl rand -hex 32 makes one",
			path);
	if (len > 2 * PSK_MAX || len % 2)
		return base_usage_error(
			err, "%.120s: the key must be 32 to 128 hexadecimal digits, two for a byte",
			path);
	for (size_t i = 0; i < len; i += 2) {
		int high = digit(line[i]), low = digit(line[i + 1]);
		if (high < 0 || low < 0)
			return base_usage_error(
				err,
				"%.120s: the key must be one line of hexadecimal digits, as "
				"openssl rand -hex 32 prints it",
				path);
		s->key[i / 2] = (uint8_t)(high << 4 | low);
	}
	s->key_len = len / 2;
	return 0;
}

static int load_psk(struct wire_security *s, const char *path, struct mf_error *err)
{
	base_cleanup(wipe_content) struct content file = { 0 };
	int r = read_file(path, true, &file, err);
	for (size_t at = 0; r == 0 && at < file.len;) {
		const char *line = file.bytes + at, *end = memchr(line, '\n', file.len - at);
		size_t len = end ? (size_t)(end - line) : file.len - at;
		at += len + 1;
		len = trim(&line, len);
		if (len && *line != '#')
			r = take_key(s, path, line, len, err);
	}
	if (r == 0 && !s->key_len)
		r = base_usage_error(err, "%.120s: holds no key; openssl rand -hex 32 makes one",
				     path);
	return r;
}

/* ---- all of it ---- */

static int take_names(struct wire_security *s, const char *text, struct mf_error *err)
{
	size_t n = 1;
	for (const char *c = text; *c; c++)
		n += *c == ',';
	s->names = calloc(n, sizeof(*s->names));
	for (const char *name = text; s->names && s->n_names < n; name++) {
		size_t len = strcspn(name, ",");
		/* A leading dot would stand for every name below it. */
		if (!len || len > 253 || *name == '.' || memchr(name, ' ', len))
			return base_usage_error(
				err,
				"peer names '%.80s': want host names or addresses with commas "
				"between them",
				text);
		s->names[s->n_names] = strndup(name, len);
		if (!s->names[s->n_names])
			break;
		s->n_names++;
		name += len;
	}
	if (s->n_names < n)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	return 0;
}

static void freep(struct wire_security **s)
{
	wire_security_free(*s);
}

int wire_security_load(const struct wire_security_params *params,
		       struct wire_security **ret_security, struct mf_error *err)
{
	base_cleanup(freep) struct wire_security *s = calloc(1, sizeof(*s));
	if (!s)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	ERR_clear_error();
	s->is_server = params->is_server;
	if (params->tls_dir && !(s->dir = strdup(params->tls_dir)))
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	int r = wire_tls_set_up(s, err);
	if (r == 0 && params->peers)
		r = take_names(s, params->peers, err);
	if (r == 0)
		r = s->dir ? load_certificates(s, err) : load_psk(s, params->psk, err);
	ERR_clear_error();
	if (r == 0)
		*ret_security = BASE_TAKE_PTR(s);
	return r;
}

bool wire_security_is_server(const struct wire_security *s)
{
	return s->is_server;
}

void wire_security_free(struct wire_security *s)
{
	if (!s)
		return;
	wire_tls_tear_down(s);
	for (size_t i = 0; i < s->n_names; i++)
		free(s->names[i]);
	free(s->names);
	free(s->dir);
	OPENSSL_cleanse(s->key, sizeof(s->key));
	free(s);
}
