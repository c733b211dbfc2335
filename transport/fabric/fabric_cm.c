/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connecting and admitting.
 *
 *   connecting side                           accepting side
 *   fi_connect(hello: proof, lane, scratch) ─▶ FI_CONNREQ: token right?
 *                                                no:  fi_reject(why)
 *   FI_CONNECTED ◀─ fi_accept(welcome: scratch)  yes: lane, memory registered, then
 *
 * Both sides have all memory registered before the other can know that it is connected.
 */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "transport/fabric/fabric_priv.h"
#include "transport/token.h"

#define CM_MAGIC   0x6d656d66u /* "memf" */
#define CM_VERSION 1u

/* On the wire, little-endian, no padding. */
struct hello {
	uint32_t magic, version;
	uint8_t proof[TP_TOKEN_SIZE];
	uint32_t lane_id, reserved;
	uint64_t scratch_addr, scratch_key;
};
struct welcome {
	uint32_t magic, version;
	uint64_t scratch_addr, scratch_key;
};
struct refusal {
	uint32_t magic, version, reason, reserved;
};
enum reason {
	REASON_TOKEN = 1,
	REASON_VERSION = 2,
	REASON_RESOURCES = 3,
};
static_assert(sizeof(struct hello) == 64 && sizeof(struct welcome) == 24 &&
		      sizeof(struct refusal) == 16,
	      "connection data has no padding");

static uint64_t scratch_addr(const struct fab_lane *lane)
{
	const struct fab_domain *domain =
		BASE_CONTAINER_OF(lane->base.domain, struct fab_domain, base);

	return domain->mr_mode & FI_MR_VIRT_ADDR ? (uintptr_t)&lane->scratch[0] : 0;
}

/* Connecting */

static int explain_refusal(const uint8_t *data, size_t len, const char *addr, int code,
			   struct mf_error *err)
{
	struct refusal refusal;

	if (len != sizeof(refusal))
		return base_error_sys(err, code, MF_SCOPE_LANE, "address %s: cannot connect", addr);
	memcpy(&refusal, data, sizeof(refusal));
	switch (le32toh(refusal.reason)) {
	case REASON_TOKEN:
		return base_error(err, -EACCES, MF_SCOPE_LANE,
				  "address %s: the peer does not know our session's token", addr);
	case REASON_VERSION:
		return base_error(err, -MF_EVERSION, MF_SCOPE_LANE,
				  "address %s: the peer speaks data protocol %u, we speak %u; run "
				  "the same memferry on both hosts",
				  addr, le32toh(refusal.version), CM_VERSION);
	default:
		return base_error(err, -MF_EPEER, MF_SCOPE_LANE,
				  "address %s: the peer could not set up its side of the lane; "
				  "see there",
				  addr);
	}
}

/* Until the peer has welcomed us. */
static int await_welcome(struct fab_lane *lane, const char *addr, uint64_t deadline_us,
			 struct mf_error *err)
{
	const struct fab_domain *domain =
		BASE_CONTAINER_OF(lane->base.domain, struct fab_domain, base);
	union {
		struct fi_eq_cm_entry entry;
		uint8_t bytes[sizeof(struct fi_eq_cm_entry) + FAB_CM_DATA_MAX];
	} buf;
	uint32_t event = 0;
	size_t len = 0;

	ssize_t n = tp_fabric_eq_wait(domain->fabric, lane->eq, lane->eq_fd, deadline_us, &event,
				      &buf, sizeof(buf), &len);
	if (n == -ETIMEDOUT)
		return base_error(err, -ETIMEDOUT, MF_SCOPE_LANE,
				  "address %s: no answer in time; check that memferry receives "
				  "there and that no filter drops the connection",
				  addr);
	if (n < 0)
		return explain_refusal(buf.bytes, len, addr, (int)n, err);
	if (event != FI_CONNECTED)
		return base_error(err, -ECONNRESET, MF_SCOPE_LANE,
				  "address %s: the peer closed the connection while it was made",
				  addr);
	struct welcome welcome;
	if ((size_t)n != sizeof(buf.entry) + sizeof(welcome))
		goto strange;
	memcpy(&welcome, buf.bytes + sizeof(buf.entry), sizeof(welcome));
	if (le32toh(welcome.magic) != CM_MAGIC || le32toh(welcome.version) != CM_VERSION)
		goto strange;
	lane->peer_scratch.addr = le64toh(welcome.scratch_addr);
	lane->peer_scratch.key = le64toh(welcome.scratch_key);
	return 0;
strange:
	return base_error(err, -MF_EPEER, MF_SCOPE_LANE,
			  "address %s: answers, but not as a memferry of this version does", addr);
}

static int connect_to(struct fab_domain *domain, const struct sockaddr *dst,
		      const uint8_t token[TP_TOKEN_SIZE], uint32_t lane_id, uint64_t deadline_us,
		      struct fab_lane **ret_lane, struct mf_error *err)
{
	struct fi_info *info;
	struct fab_lane *lane;
	char addr[TP_ADDR_MAX];

	tp_format_addr(dst, addr, sizeof(addr));
	int ret = tp_fabric_getinfo((struct sockaddr *)&domain->local, dst, &info, err);
	if (ret)
		return ret;
	ret = tp_fabric_lane_create(domain, info, lane_id, &lane, err);
	if (ret)
		goto out;
	struct hello hello = {
		.magic = htole32(CM_MAGIC),
		.version = htole32(CM_VERSION),
		.lane_id = htole32(lane_id),
		.scratch_addr = htole64(scratch_addr(lane)),
		.scratch_key = htole64(lane->scratch_key),
	};
	ret = tp_lane_proof(token, lane_id, hello.proof);
	if (!ret)
		ret = fi_connect(lane->ep, info->dest_addr, &hello, sizeof(hello));
	if (ret)
		ret = tp_fabric_error(err, ret, MF_SCOPE_LANE, "address %s: cannot connect", addr);
	else
		ret = await_welcome(lane, addr, deadline_us, err);
	if (ret)
		tp_fabric_lane_destroy(lane);
	else
		*ret_lane = lane;
out:
	fi_freeinfo(info);
	return ret;
}

int tp_fabric_connect(struct tp_domain *base, const char *addr, const uint8_t token[TP_TOKEN_SIZE],
		      uint32_t lane_id, uint64_t deadline_us, struct tp_lane **ret_lane,
		      struct mf_error *err)
{
	struct fab_domain *domain = BASE_CONTAINER_OF(base, struct fab_domain, base);
	struct mf_error why = { 0 };
	struct fab_lane *lane = NULL;
	struct addrinfo *list;

	int ret = tp_resolve_addr(addr, "peer's address", false, &list, err);
	if (ret)
		return ret;
	/* A name may have several addresses, of which the peer listens on some. */
	for (const struct addrinfo *ai = list; ai; ai = ai->ai_next) {
		why = (struct mf_error){ 0 };
		ret = connect_to(domain, ai->ai_addr, token, lane_id, deadline_us, &lane, &why);
		if (ret != -ECONNREFUSED && ret != -ENETUNREACH && ret != -EAFNOSUPPORT)
			break;
	}
	freeaddrinfo(list);
	if (ret)
		return base_error(err, ret, why.scope, "%s", why.msg);
	*ret_lane = &lane->base;
	return 0;
}

/* Admitting */

static void refuse(struct fab_listener *listener, struct fi_info *info, enum reason reason)
{
	struct refusal refusal = {
		.magic = htole32(CM_MAGIC),
		.version = htole32(CM_VERSION),
		.reason = htole32(reason),
	};
	(void)fi_reject(listener->pep, info->handle, &refusal, sizeof(refusal));
}

/* 0, or the reason for which this is none of ours. */
static int check_hello(const void *data, size_t len, const uint8_t token[TP_TOKEN_SIZE],
		       struct hello *ret_hello)
{
	if (len < 2 * sizeof(uint32_t))
		return REASON_TOKEN;
	memcpy(ret_hello, data, len < sizeof(*ret_hello) ? len : sizeof(*ret_hello));
	if (le32toh(ret_hello->magic) != CM_MAGIC)
		return REASON_TOKEN;
	if (le32toh(ret_hello->version) != CM_VERSION)
		return REASON_VERSION;
	if (len != sizeof(*ret_hello) ||
	    !tp_proves(ret_hello->proof, token, le32toh(ret_hello->lane_id)))
		return REASON_TOKEN;
	return 0;
}

static int finish_accept(struct fab_lane *lane)
{
	const struct fab_domain *domain =
		BASE_CONTAINER_OF(lane->base.domain, struct fab_domain, base);
	uint8_t buf[sizeof(struct fi_eq_cm_entry) + FAB_CM_DATA_MAX];
	uint32_t event = 0;
	size_t len;

	ssize_t n =
		tp_fabric_eq_wait(domain->fabric, lane->eq, lane->eq_fd,
				  base_deadline_ms(TP_FINISH_MS), &event, buf, sizeof(buf), &len);
	if (n < 0)
		return (int)n;
	return event == FI_CONNECTED ? 0 : -ECONNRESET;
}

int tp_fabric_answer(struct fab_listener *listener, struct fi_info *info, const void *data,
		     size_t len, const uint8_t token[TP_TOKEN_SIZE], struct fab_lane **ret_lane,
		     struct mf_error *err)
{
	struct fab_domain *domain =
		BASE_CONTAINER_OF(listener->base.domain, struct fab_domain, base);
	struct fab_lane *lane = NULL;
	struct hello hello = { 0 };

	int reason = check_hello(data, len, token, &hello);
	if (reason) {
		refuse(listener, info, (enum reason)reason);
		fi_freeinfo(info);
		return 0;
	}
	int ret = tp_fabric_lane_create(domain, info, le32toh(hello.lane_id), &lane, err);
	if (ret) {
		refuse(listener, info, REASON_RESOURCES);
		fi_freeinfo(info);
		return ret;
	}
	lane->peer_scratch.addr = le64toh(hello.scratch_addr);
	lane->peer_scratch.key = le64toh(hello.scratch_key);
	struct welcome welcome = {
		.magic = htole32(CM_MAGIC),
		.version = htole32(CM_VERSION),
		.scratch_addr = htole64(scratch_addr(lane)),
		.scratch_key = htole64(lane->scratch_key),
	};
	ret = fi_accept(lane->ep, &welcome, sizeof(welcome));
	if (ret) {
		/* The endpoint owns the socket; what is left to reject is a handle to be freed. */
		tp_fabric_lane_destroy(lane);
		refuse(listener, info, REASON_RESOURCES);
	} else if (finish_accept(lane)) {
		tp_fabric_lane_destroy(lane);
		ret = -ECONNRESET;
	}
	fi_freeinfo(info);
	if (ret)
		return 0; /* the peer has gone; others may come */
	*ret_lane = lane;
	return 1;
}
