/* SPDX-License-Identifier: BSD-2-Clause */
#include "transport/sealed/seal.h"

#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <stdlib.h>
#include <string.h>

#define NONCE_SIZE 12u
/* Said to derive the key that follows. */
static const char NEXT_KEY[] = "memferry next key";

struct seal {
	EVP_CIPHER_CTX *ctx;
	EVP_KDF *kdf;
	enum tp_sealing sealing;
	uint8_t key[TP_SEAL_KEY_SIZE];
	uint64_t number;      /* of the next record */
	uint64_t renew_every; /* records */
};

static int derive(EVP_KDF *kdf, const uint8_t key[TP_SEAL_KEY_SIZE], const void *said,
		  size_t said_len, uint8_t ret[TP_SEAL_KEY_SIZE])
{
	EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(kdf);
	if (!ctx)
		return -ENOMEM;
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)"SHA256", 0),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)key,
						  TP_SEAL_KEY_SIZE),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)said, said_len),
		OSSL_PARAM_construct_end(),
	};
	int done = EVP_KDF_derive(ctx, ret, TP_SEAL_KEY_SIZE, params);
	EVP_KDF_CTX_free(ctx);
	return done > 0 ? 0 : -EIO;
}

/* One context seals or opens: GCM is told which with each nonce. */
static int take_key(struct seal *seal)
{
	return EVP_CipherInit_ex2(seal->ctx, NULL, seal->key, NULL, -1, NULL) > 0 ? 0 : -EIO;
}

int seal_create(const struct tp_seal *how, const void *said, size_t said_len,
		struct seal **ret_seal)
{
	struct seal *seal = calloc(1, sizeof(*seal));
	EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	int ret = -ENOMEM;
	if (!seal || !cipher)
		goto out;
	seal->sealing = how->sealing;
	seal->renew_every = SEAL_RECORDS;
	seal->ctx = EVP_CIPHER_CTX_new();
	seal->kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	if (!seal->ctx || !seal->kdf ||
	    EVP_CipherInit_ex2(seal->ctx, cipher, NULL, NULL, 1, NULL) <= 0)
		goto out;
	ret = derive(seal->kdf, how->key, said, said_len, seal->key);
	if (!ret)
		ret = take_key(seal);
out:
	EVP_CIPHER_free(cipher);
	if (ret)
		seal_free(seal);
	else
		*ret_seal = seal;
	return ret;
}

void seal_free(struct seal *seal)
{
	if (!seal)
		return;
	EVP_CIPHER_CTX_free(seal->ctx); /* with its copy of the key */
	EVP_KDF_free(seal->kdf);
	OPENSSL_cleanse(seal->key, sizeof(seal->key));
	free(seal);
}

void seal_renew_every(struct seal *seal, uint64_t records)
{
	seal->renew_every = records;
}

static int renew(struct seal *seal)
{
	uint8_t next[TP_SEAL_KEY_SIZE];
	int ret = derive(seal->kdf, seal->key, NEXT_KEY, sizeof(NEXT_KEY) - 1, next);
	if (!ret)
		memcpy(seal->key, next, sizeof(next));
	OPENSSL_cleanse(next, sizeof(next));
	return ret ? ret : take_key(seal);
}

/* Sets the context to the next record. */
static int begin(struct seal *seal, int is_closing)
{
	uint8_t nonce[NONCE_SIZE] = { 0 };
	if (seal->number && seal->number % seal->renew_every == 0) {
		int ret = renew(seal);
		if (ret)
			return ret;
	}
	uint64_t number = seal->number++;
	for (unsigned i = 0; i < 8; i++)
		nonce[NONCE_SIZE - 1 - i] = (uint8_t)(number >> 8 * i);
	return EVP_CipherInit_ex2(seal->ctx, NULL, NULL, nonce, is_closing, NULL) > 0 ? 0 : -EIO;
}

/* to: where it goes when it is encrypted; NULL: it is only hashed. */
static int feed(struct seal *seal, uint8_t *to, const void *bytes, size_t len)
{
	int n;
	return !len || EVP_CipherUpdate(seal->ctx, to, &n, bytes, (int)len) > 0 ? 0 : -EIO;
}

int seal_close(struct seal *seal, const void *head, size_t head_len, const void *body,
	       size_t body_len, uint8_t *out)
{
	size_t len = head_len + body_len;
	int n, ret = begin(seal, 1);
	if (!ret && seal->sealing == TP_SEAL_ENCRYPT) {
		ret = feed(seal, out, head, head_len);
		if (!ret)
			ret = feed(seal, out + head_len, body, body_len);
	} else if (!ret) {
		memcpy(out, head, head_len);
		if (body_len)
			memcpy(out + head_len, body, body_len);
		ret = feed(seal, NULL, out, len);
	}
	if (!ret &&
	    (EVP_CipherFinal_ex(seal->ctx, out + len, &n) <= 0 ||
	     EVP_CIPHER_CTX_ctrl(seal->ctx, EVP_CTRL_AEAD_GET_TAG, SEAL_TAG_SIZE, out + len) <= 0))
		ret = -EIO;
	return ret;
}

int seal_open(struct seal *seal, uint8_t *record, size_t len)
{
	int n;
	if (len < SEAL_TAG_SIZE)
		return -EBADMSG;
	len -= SEAL_TAG_SIZE;
	int ret = begin(seal, 0);
	if (!ret)
		ret = feed(seal, seal->sealing == TP_SEAL_ENCRYPT ? record : NULL, record, len);
	if (!ret &&
	    EVP_CIPHER_CTX_ctrl(seal->ctx, EVP_CTRL_AEAD_SET_TAG, SEAL_TAG_SIZE, record + len) <= 0)
		ret = -EIO;
	if (!ret && EVP_CipherFinal_ex(seal->ctx, record + len, &n) <= 0)
		ret = -EBADMSG;
	return ret;
}
