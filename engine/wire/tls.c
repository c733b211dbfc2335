/* SPDX-License-Identifier: BSD-2-Clause */
#include "wire/tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "wire/security_priv.h"

/* A pre-shared key has no name on the wire: there is one. */
static const unsigned char identity[] = "memferry";
/* Keys are bound to a hash, and this is the suite with the longer one. */
#define PSK_SUITE "TLS_AES_256_GCM_SHA384"
static const unsigned char psk_suite_id[] = { 0x13, 0x02 };

/* The plain channel's frames begin so. */
static const char plain_magic[4] = { 'M', 'F', 'C', '1' };

struct wire_tls {
	const struct wire_security *security;
	int fd;
	char *host;
	bool is_secure; /* the handshake is over */

	pthread_mutex_t lock; /* protects all below */
	SSL *ssl;
	enum {
		NOTHING_YET,
		TLS,
		PLAIN,
		SOMETHING_ELSE,
	} heard;          /* by the first bytes that came */
	uint8_t first[4]; /* these */
	size_t n_first;
	bool saw_certificate; /* where a pre-shared key was meant */
	int depth;            /* of the certificate that was refused, from the other host's own */
	char certified_name[80]; /* the other host's, when it is not one that was expected */
};

/* ---- the socket ---- */

/* The first bytes, which may come one by one, show who speaks. */
static void note_first(struct wire_tls *tls, const char *bytes, size_t len)
{
	for (size_t i = 0; i < len && tls->n_first < sizeof(tls->first); i++)
		tls->first[tls->n_first++] = (uint8_t)bytes[i];
	if (wire_may_be_tls(tls->first, tls->n_first))
		tls->heard = tls->n_first < 2 ? NOTHING_YET : TLS;
	else if (memcmp(tls->first, plain_magic, tls->n_first) != 0)
		tls->heard = SOMETHING_ELSE;
	else if (tls->n_first == sizeof(plain_magic))
		tls->heard = PLAIN;
}

static int socket_read(BIO *bio, char *bytes, int cap)
{
	struct wire_tls *tls = BIO_get_data(bio);
	BIO_clear_retry_flags(bio);
	ssize_t n = recv(tls->fd, bytes, (size_t)cap, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		BIO_set_retry_read(bio);
	if (n <= 0 || tls->heard == TLS)
		return (int)n;
	note_first(tls, bytes, (size_t)n);
	if (wire_may_be_tls(tls->first, tls->n_first))
		return (int)n;
	/* Nothing is made of what somebody else says. */
	if (tls->heard == NOTHING_YET)
		BIO_set_retry_read(bio);
	return -1;
}

static int socket_write(BIO *bio, const char *bytes, int len)
{
	const struct wire_tls *tls = BIO_get_data(bio);
	BIO_clear_retry_flags(bio);
	ssize_t n = send(tls->fd, bytes, (size_t)len, MSG_NOSIGNAL);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		BIO_set_retry_write(bio);
	return (int)n;
}

static long socket_control(BIO *bio, int cmd, long number, void *ptr)
{
	(void)bio, (void)number, (void)ptr;
	return cmd == BIO_CTRL_FLUSH;
}

/* ---- whom to believe ---- */

static bool has_name(X509 *cert, const char *name, unsigned flags)
{
	/* Of an address of one link, certificates have no link. */
	char bare[256];
	(void)snprintf(bare, sizeof(bare), "%.*s", (int)strcspn(name, "%"), name);
	if (X509_check_ip_asc(cert, bare, 0) == 1)
		return true;
	return X509_check_host(cert, name, 0, flags | X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, NULL) ==
	       1;
}

/* The first of its names that other hosts go by; false: it has none. */
static bool name_by_extension(X509 *cert, char *ret, size_t cap)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	bool found = false;
	for (int i = 0; i < sk_GENERAL_NAME_num(names) && !found; i++) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
		const ASN1_STRING *text = name->d.ia5;
		if (name->type == GEN_DNS) {
			(void)snprintf(ret, cap, "%.*s", ASN1_STRING_length(text),
				       (const char *)ASN1_STRING_get0_data(text));
			found = true;
		} else if (name->type == GEN_IPADD) {
			int family = ASN1_STRING_length(text) == 4    ? AF_INET
				     : ASN1_STRING_length(text) == 16 ? AF_INET6
								      : AF_UNSPEC;
			found = inet_ntop(family, ASN1_STRING_get0_data(text), ret,
					  (socklen_t)cap) != NULL;
		}
	}
	GENERAL_NAMES_free(names);
	return found;
}

/* For people: what it is for, or else whose it is. */
static void name_certificate(X509 *cert, char *ret, size_t cap)
{
	if (!name_by_extension(cert, ret, cap) &&
	    X509_NAME_get_text_by_NID(X509_get_subject_name(cert), NID_commonName, ret, (int)cap) <
		    0)
		(void)snprintf(ret, cap, "nobody");
	/* It is the other host's text. */
	for (char *c = ret; *c; c++) {
		if (*c < ' ' || *c > '~')
			*c = '?';
	}
}

static bool is_expected(const struct wire_tls *tls, X509 *cert)
{
	const struct wire_security *s = tls->security;
	/* Clients' certificates often have a subject and no other name; beside others it counts as well. */
	unsigned flags = s->is_server ? X509_CHECK_FLAG_ALWAYS_CHECK_SUBJECT : 0;
	for (size_t i = 0; i < s->n_names; i++) {
		if (has_name(cert, s->names[i], flags))
			return true;
	}
	return !s->n_names && (s->is_server || has_name(cert, tls->host, flags));
}

static int check_certificate(int good, X509_STORE_CTX *chain)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(chain, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct wire_tls *tls = SSL_get_app_data(ssl);
	int depth = X509_STORE_CTX_get_error_depth(chain);
	X509 *cert = X509_STORE_CTX_get_current_cert(chain);
	if (!good)
		tls->depth = depth;
	if (!good || depth > 0 || is_expected(tls, cert))
		return good;
	name_certificate(cert, tls->certified_name, sizeof(tls->certified_name));
	X509_STORE_CTX_set_error(chain, X509_V_ERR_HOSTNAME_MISMATCH);
	return 0;
}

/* A client with a pre-shared key believes nothing else. */
static int refuse_certificate(X509_STORE_CTX *chain, void *ctx)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(chain, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct wire_tls *tls = SSL_get_app_data(ssl);
	(void)ctx;
	tls->saw_certificate = true;
	X509_STORE_CTX_set_error(chain, X509_V_ERR_APPLICATION_VERIFICATION);
	return 0;
}

static SSL_SESSION *key_session(SSL *ssl)
{
	const struct wire_tls *tls = SSL_get_app_data(ssl);
	const struct wire_security *s = tls->security;
	SSL_SESSION *session = SSL_SESSION_new();
	if (session && SSL_SESSION_set1_master_key(session, s->key, s->key_len) &&
	    SSL_SESSION_set_cipher(session, SSL_CIPHER_find(ssl, psk_suite_id)) &&
	    SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION))
		return session;
	SSL_SESSION_free(session);
	return NULL;
}

static int offer_key(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_len,
		     SSL_SESSION **ret)
{
	(void)md; /* one suite, one hash */
	*ret = key_session(ssl);
	*id = identity;
	*id_len = sizeof(identity) - 1;
	return *ret != NULL;
}

static int find_key(SSL *ssl, const unsigned char *id, size_t id_len, SSL_SESSION **ret)
{
	*ret = NULL;
	if (id_len != sizeof(identity) - 1 || memcmp(id, identity, id_len) != 0)
		return 1;
	*ret = key_session(ssl);
	return *ret != NULL;
}

/* ---- a context ---- */

int wire_tls_set_up(struct wire_security *s, struct mf_error *err)
{
	s->ctx = SSL_CTX_new(s->is_server ? TLS_server_method() : TLS_client_method());
	s->bio = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "memferry");
	if (!s->ctx || !s->bio)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "TLS: out of memory");
	(void)BIO_meth_set_read(s->bio, socket_read);
	(void)BIO_meth_set_write(s->bio, socket_write);
	(void)BIO_meth_set_ctrl(s->bio, socket_control);

	/* Nothing is taken from the host's own configuration of OpenSSL. */
	SSL_CTX_set_security_level(s->ctx, 2);
	bool good =
		SSL_CTX_set_min_proto_version(s->ctx, TLS1_3_VERSION) &&
		SSL_CTX_set_max_proto_version(s->ctx, TLS1_3_VERSION) &&
		SSL_CTX_set_ciphersuites(s->ctx, s->dir ? PSK_SUITE ":TLS_CHACHA20_POLY1305_SHA256"
								    ":TLS_AES_128_GCM_SHA256"
							: PSK_SUITE) &&
		/* No session goes on in another connection. */
		SSL_CTX_set_num_tickets(s->ctx, 0);
	SSL_CTX_set_session_cache_mode(s->ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_options(s->ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION);
	SSL_CTX_clear_options(s->ctx, SSL_OP_ALLOW_NO_DHE_KEX);
	SSL_CTX_set_mode(s->ctx,
			 SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	if (s->dir) {
		SSL_CTX_set_verify(s->ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT,
				   check_certificate);
	} else if (s->is_server) {
		SSL_CTX_set_psk_find_session_callback(s->ctx, find_key);
	} else {
		SSL_CTX_set_psk_use_session_callback(s->ctx, offer_key);
		SSL_CTX_set_verify(s->ctx, SSL_VERIFY_PEER, NULL);
		SSL_CTX_set_cert_verify_callback(s->ctx, refuse_certificate, NULL);
	}
	if (!good)
		return base_error(err, -MF_ESECURITY, MF_SCOPE_HOST,
				  "this host's OpenSSL cannot do TLS 1.3");
	return 0;
}

void wire_tls_tear_down(struct wire_security *s)
{
	SSL_CTX_free(s->ctx);
	BIO_meth_free(s->bio);
}

/* ---- why not ---- */

static int refuse(struct mf_error *err, const char *text)
{
	return base_error(err, -MF_ESECURITY, MF_SCOPE_SESSION, "%s", text);
}

/* What this side found wrong with the other's certificate. */
static int explain_certificate(const struct wire_tls *tls, long code, struct mf_error *err)
{
	const struct wire_security *s = tls->security;
	const char *whose = tls->depth ? "the CA's certificate" : "the other host's certificate";
	switch (code) {
	case X509_V_ERR_CERT_HAS_EXPIRED:
		return base_error(err, -MF_ESECURITY, MF_SCOPE_SESSION, "%s has expired", whose);
	case X509_V_ERR_CERT_NOT_YET_VALID:
		return base_error(err, -MF_ESECURITY, MF_SCOPE_SESSION,
				  "%s is not valid yet; see whether both hosts' clocks are right",
				  whose);
	case X509_V_ERR_CERT_REVOKED:
		return base_error(err, -MF_ESECURITY, MF_SCOPE_SESSION, "%s has been revoked",
				  whose);
	case X509_V_ERR_CRL_HAS_EXPIRED:
		return base_error(
			err, -MF_ESECURITY, MF_SCOPE_SESSION,
			"the list of revoked certificates in %.80s/ca-crl.pem has expired", s->dir);
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
	case X509_V_ERR_CERT_SIGNATURE_FAILURE:
		return base_error(err, -MF_ESECURITY, MF_SCOPE_SESSION,
				  "the other host's certificate is not signed by the CA in %.80s",
				  s->dir);
	case X509_V_ERR_HOSTNAME_MISMATCH:
		if (!s->n_names)
			return base_error(
				err, -MF_ESECURITY, MF_SCOPE_SESSION,
				"the other host's certificate is for %s, not for %.60s; --tls-peer "
				"names whom to expect",
				tls->certified_name, tls->host);
		return base_error(err, -MF_ESECURITY, MF_SCOPE_SESSION,
				  "the other host's certificate is for %s, and --tls-peer does not "
				  "name that",
				  tls->certified_name);
	case X509_V_ERR_INVALID_PURPOSE:
		return base_error(err, -MF_ESECURITY, MF_SCOPE_SESSION,
				  "the other host's certificate is not meant for a %s",
				  s->is_server ? "client" : "server");
	default:
		return base_error(err, -MF_ESECURITY, MF_SCOPE_SESSION, "%s is refused: %s", whose,
				  X509_verify_cert_error_string(code));
	}
}

/* What the other side found wrong. */
static int explain_alert(const struct wire_tls *tls, int alert, struct mf_error *err)
{
	const struct wire_security *s = tls->security;
	bool has_key = !s->dir;
	switch (alert) {
	case SSL_AD_CERTIFICATE_EXPIRED:
		return refuse(err, "the other host refuses this one's certificate: it has expired");
	case SSL_AD_CERTIFICATE_REVOKED:
		return refuse(err, "the other host refuses this one's certificate: it was revoked");
	case SSL_AD_UNKNOWN_CA:
		if (has_key)
			break;
		return refuse(err, "the other host refuses this one's certificate: it is not "
				   "signed by the CA that the other host has");
	case SSL_AD_BAD_CERTIFICATE:
	case SSL_AD_ACCESS_DENIED:
		return refuse(err,
			      "the other host refuses this one's certificate: it is for "
			      "somebody whom the other host does not expect, or not valid yet");
	case SSL_AD_UNSUPPORTED_CERTIFICATE:
	case SSL_AD_CERTIFICATE_UNKNOWN:
		return refuse(err, "the other host refuses this one's certificate: it is not meant "
				   "for this, or damaged");
	case TLS13_AD_CERTIFICATE_REQUIRED:
		return refuse(err, "the other host wants a certificate; see --tls-dir");
	case SSL_AD_PROTOCOL_VERSION:
		return refuse(err, "the other host does not speak TLS 1.3");
	case SSL_AD_ILLEGAL_PARAMETER:
	case SSL_AD_DECRYPT_ERROR:
		if (has_key)
			return refuse(err, "the pre-shared keys of the two hosts differ");
		break;
	case SSL_AD_HANDSHAKE_FAILURE:
		if (s->is_server)
			return refuse(err, has_key ? "the other host wants certificates, and this "
						     "one was started with --psk"
						   : "the other host wants a pre-shared key, and "
						     "this one was started with --tls-dir");
		return refuse(err, has_key ? "the other host wants no pre-shared key; start both "
					     "with --psk, or both with --tls-dir"
					   : "the other host takes no certificates; start both "
					     "with --tls-dir, or both with --psk");
	default:
		break;
	}
	return base_error(err, -MF_ESECURITY, MF_SCOPE_SESSION,
			  "the other host ended the secure connection: %s",
			  SSL_alert_desc_string_long(alert));
}

/* So that a plain memferry can tell what it met. */
static void answer_plain(const struct wire_tls *tls)
{
	static const uint8_t alert[] = { 0x15, 3, 3, 0, 2, SSL3_AL_FATAL, SSL_AD_PROTOCOL_VERSION };
	(void)!send(tls->fd, alert, sizeof(alert), MSG_NOSIGNAL);
}

/* Of all that is in the queue, what TLS itself says: the layers below it have numbers of their own. */
static int take_reason(const char **ret_text)
{
	int code = 0;
	*ret_text = NULL;
	for (unsigned long e; (e = ERR_get_error());) {
		bool is_tls = ERR_GET_LIB(e) == ERR_LIB_SSL;
		if (!code && (is_tls || !*ret_text))
			*ret_text = ERR_reason_error_string(e);
		if (!code && is_tls)
			code = ERR_GET_REASON(e);
	}
	return code;
}

static int explain_library(const struct wire_tls *tls, struct mf_error *err)
{
	const struct wire_security *s = tls->security;
	const char *text;
	int code = take_reason(&text);
	if (code >= SSL_AD_REASON_OFFSET && code < SSL_AD_REASON_OFFSET + 256)
		return explain_alert(tls, code - SSL_AD_REASON_OFFSET, err);
	switch (code) {
	case SSL_R_CERTIFICATE_VERIFY_FAILED:
		if (tls->saw_certificate)
			return refuse(err, "the other host shows a certificate, and this one was "
					   "started with --psk; start both alike");
		return explain_certificate(tls, SSL_get_verify_result(tls->ssl), err);
	case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
		return refuse(err, "the other host has no certificate to show");
	case SSL_R_BINDER_DOES_NOT_VERIFY:
		return refuse(err, "the pre-shared keys of the two hosts differ");
	case SSL_R_NO_SHARED_CIPHER:
	case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
	case SSL_R_NO_SUITABLE_KEY_SHARE:
		if (!s->dir)
			return refuse(err, "the other host offers no pre-shared key that is known "
					   "here; start both with --psk, or both with --tls-dir");
		break;
	case SSL_R_UNSUPPORTED_PROTOCOL:
	case SSL_R_WRONG_SSL_VERSION:
	case SSL_R_BAD_PROTOCOL_VERSION_NUMBER:
		return refuse(err, "the other host does not speak TLS 1.3, and nothing older is "
				   "taken");
	case SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
	case SSL_R_DIGEST_CHECK_FAILED:
		return refuse(err, "what came was not made for this connection: it was changed on "
				   "the way, or is a recording of another");
	default:
		break;
	}
	return base_error(err, -MF_ESECURITY, MF_SCOPE_SESSION, "no secure connection: %s",
			  text ? text : "TLS failed");
}

/* lock held; the library's own queue of errors is this thread's. */
static int explain(struct wire_tls *tls, int ret, int os_code, short *ret_events,
		   struct mf_error *err)
{
	switch (SSL_get_error(tls->ssl, ret)) {
	case SSL_ERROR_WANT_READ:
		*ret_events = POLLIN;
		return -EAGAIN;
	case SSL_ERROR_WANT_WRITE:
		*ret_events = POLLOUT;
		return -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
		return -ECONNRESET;
	default:
		break;
	}
	if (tls->heard == PLAIN) {
		if (tls->security->is_server)
			answer_plain(tls);
		return refuse(err, "the other host does not speak TLS: it was started with "
				   "--insecure; start both alike");
	}
	if (tls->heard == SOMETHING_ELSE)
		return refuse(err, "what came is not TLS; is it memferry at the other end?");
	unsigned long code = ERR_peek_error();
	if (!code || ERR_GET_REASON(code) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
		if (tls->is_secure)
			return os_code && os_code != EAGAIN ? -os_code : -ECONNRESET;
		return refuse(err, "the other host hung up before the channel was secure");
	}
	return explain_library(tls, err);
}

/* ---- one connection ---- */

int wire_tls_create(const struct wire_security *s, int fd, const char *host,
		    struct wire_tls **ret_tls, struct mf_error *err)
{
	struct wire_tls *tls = calloc(1, sizeof(*tls));
	BIO *bio = BIO_new(s->bio);
	if (tls) {
		tls->ssl = SSL_new(s->ctx);
		tls->host = strdup(host ? host : "");
	}
	if (!tls || !bio || !tls->ssl || !tls->host) {
		BIO_free(bio);
		if (tls) {
			SSL_free(tls->ssl);
			free(tls->host);
		}
		free(tls);
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "TLS: out of memory");
	}
	pthread_mutex_init(&tls->lock, NULL);
	tls->security = s;
	tls->fd = fd;
	BIO_set_data(bio, tls);
	BIO_set_init(bio, 1);
	SSL_set_bio(tls->ssl, bio, bio);
	SSL_set_app_data(tls->ssl, tls);
	if (s->is_server)
		SSL_set_accept_state(tls->ssl);
	else
		SSL_set_connect_state(tls->ssl);
	*ret_tls = tls;
	return 0;
}

int wire_tls_handshake(struct wire_tls *tls, short *ret_events, struct mf_error *err)
{
	int r = 0;
	pthread_mutex_lock(&tls->lock);
	ERR_clear_error();
	errno = 0;
	int n = SSL_do_handshake(tls->ssl);
	if (n == 1) {
		tls->is_secure = true;
		/* A key that was not used proves nothing. */
		if (!tls->security->dir && !SSL_session_reused(tls->ssl))
			r = refuse(err, "the other host did not use the pre-shared key");
	} else {
		r = explain(tls, n, errno, ret_events, err);
	}
	pthread_mutex_unlock(&tls->lock);
	return r;
}

ssize_t wire_tls_read(struct wire_tls *tls, void *bytes, size_t cap, short *ret_events,
		      struct mf_error *err)
{
	size_t got = 0;
	pthread_mutex_lock(&tls->lock);
	ERR_clear_error();
	errno = 0;
	int n = SSL_read_ex(tls->ssl, bytes, cap, &got);
	ssize_t r = n == 1 ? (ssize_t)got : explain(tls, n, errno, ret_events, err);
	pthread_mutex_unlock(&tls->lock);
	return r;
}

ssize_t wire_tls_write(struct wire_tls *tls, const void *bytes, size_t len, short *ret_events,
		       struct mf_error *err)
{
	size_t put = 0;
	pthread_mutex_lock(&tls->lock);
	ERR_clear_error();
	errno = 0;
	int n = SSL_write_ex(tls->ssl, bytes, len, &put);
	ssize_t r = n == 1 ? (ssize_t)put : explain(tls, n, errno, ret_events, err);
	pthread_mutex_unlock(&tls->lock);
	return r;
}

int wire_tls_export(struct wire_tls *tls, const char *label, uint8_t *key, size_t len)
{
	pthread_mutex_lock(&tls->lock);
	int r = !tls->is_secure ? -ENOTCONN
		: SSL_export_keying_material(tls->ssl, key, len, label, strlen(label), NULL, 0,
					     0) == 1
			? 0
			: -EINVAL;
	ERR_clear_error();
	pthread_mutex_unlock(&tls->lock);
	return r;
}

void wire_tls_say_goodbye(struct wire_tls *tls)
{
	pthread_mutex_lock(&tls->lock);
	ERR_clear_error();
	if (tls->is_secure)
		(void)SSL_shutdown(tls->ssl);
	ERR_clear_error();
	pthread_mutex_unlock(&tls->lock);
}

void wire_tls_free(struct wire_tls *tls)
{
	if (!tls)
		return;
	SSL_free(tls->ssl);
	free(tls->host);
	pthread_mutex_destroy(&tls->lock);
	free(tls);
}
