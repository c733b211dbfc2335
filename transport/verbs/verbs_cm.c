/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connecting and admitting.
 *
 *   connecting side                              accepting side
 *   resolve address, route; queue pair: INIT
 *   rdma_connect(hello: proof, lane, scratch) ─▶ CONNECT_REQUEST: token right?
 *                                                  no:  rdma_reject(why), no queue pair ever
 *   CONNECT_RESPONSE ◀─ rdma_accept(welcome)       yes: queue pair: INIT, RTR, RTS, then
 *   queue pair: RTR, RTS
 *   rdma_establish ───────────────────────────▶ ESTABLISHED
 *
 * Memory is the domain's: all of it is reachable, as far as it has rights, once a queue pair is
 * ready, and no queue pair is ready for anybody without the token.
 */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "transport/token.h"
#include "transport/verbs/verbs_priv.h"

#define CM_MAGIC   0x6d656d66u /* "memf" */
#define CM_VERSION 1u
/* Requests that the kernel keeps until accept looks. */
#define BACKLOG 64
/* Reasons of the InfiniBand CM for which it rejects by itself (IBTA vol. 1, 12.6.7.2). */
#define REJECT_NO_LISTENER 8
#define REJECT_STALE       10
/* A queue pair number may still be known to the peer's CM from an earlier connection. */
#define STALE_TRIES 8
/* Bits of the attribute mask that are RoCE's; the kernel sets them for InfiniBand as well, and
 * librdmacm clears them there. */
#define ROCE_ATTRS 0xe00000
/* 255 has a meaning of its own to librdmacm. */
#define ATOMS_MAX 128

/* On the wire, little-endian, no padding.  A request carries at most 56 bytes, an answer 196, a
 * rejection 148; what arrives may be longer, filled up with zeroes. */
struct hello {
	uint32_t magic;
	uint16_t version, reserved;
	uint8_t proof[TP_TOKEN_SIZE];
	uint32_t lane_id;
	uint32_t scratch_key;
	uint64_t scratch_addr;
};
struct welcome {
	uint32_t magic;
	uint16_t version, reserved;
	uint32_t reserved2;
	uint32_t scratch_key;
	uint64_t scratch_addr;
};
struct refusal {
	uint32_t magic;
	uint16_t version, reason;
};
enum reason {
	REASON_TOKEN = 1,
	REASON_VERSION = 2,
	REASON_RESOURCES = 3,
};
static_assert(sizeof(struct hello) == 56 && sizeof(struct welcome) == 24 &&
		      sizeof(struct refusal) == 8,
	      "connection data has no padding");

static struct vrb_domain *to_domain(struct tp_domain *base)
{
	return BASE_CONTAINER_OF(base, struct vrb_domain, base);
}

/* Events */

int tp_verbs_channel_open(struct rdma_event_channel **ret_channel)
{
	struct rdma_event_channel *channel = rdma_create_event_channel();
	if (!channel)
		return errno ? -errno : -ENODEV;
	int flags = fcntl(channel->fd, F_GETFL);
	if (flags < 0 || fcntl(channel->fd, F_SETFL, flags | O_NONBLOCK)) {
		int ret = -errno;
		rdma_destroy_event_channel(channel);
		return ret;
	}
	*ret_channel = channel;
	return 0;
}

int tp_verbs_channel_next(struct rdma_event_channel *channel, struct vrb_event *ret_event)
{
	struct rdma_cm_event *event;

	if (rdma_get_cm_event(channel, &event))
		return -errno;
	const struct rdma_conn_param *conn = &event->param.conn;
	*ret_event = (struct vrb_event){
		.type = event->event,
		.status = event->status,
		.id = event->id,
		.responder_resources = conn->responder_resources,
		.initiator_depth = conn->initiator_depth,
	};
	if (conn->private_data) {
		ret_event->len = conn->private_data_len;
		memcpy(ret_event->data, conn->private_data, ret_event->len);
	}
	/* At once: whoever destroys an id waits until all its events have been. */
	(void)rdma_ack_cm_event(event);
	return 0;
}

int tp_verbs_channel_wait(struct rdma_event_channel *channel, uint64_t deadline_us,
			  struct vrb_event *ret_event)
{
	for (;;) {
		int ret = tp_verbs_channel_next(channel, ret_event);
		if (ret != -EAGAIN)
			return ret;
		int left = base_left_ms(deadline_us);
		if (!left)
			return -ETIMEDOUT;
		struct pollfd pfd = { .fd = channel->fd, .events = POLLIN };
		if (poll(&pfd, 1, left) < 0 && errno != EINTR)
			return -errno;
	}
}

/* Queue pairs */

static void set_ack_timeout(const struct vrb_domain *domain, struct rdma_cm_id *id)
{
	uint8_t timeout = domain->ack_timeout;

	/* Kernels before 5.3 have it not, and their own choice works, later. */
	(void)rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout,
			      sizeof(timeout));
}

static uint8_t atoms(int limit)
{
	return (uint8_t)(limit < ATOMS_MAX ? limit : ATOMS_MAX);
}

static int modify(struct vrb_lane *lane, struct rdma_cm_id *id, enum ibv_qp_state state,
		  const struct rdma_conn_param *accepted)
{
	struct ibv_qp_attr attr = { .qp_state = state };
	struct ibv_port_attr port;
	int mask;

	if (rdma_init_qp_attr(id, &attr, &mask))
		return -errno;
	int ret = ibv_query_port(lane->qp->context, lane->port, &port);
	if (ret)
		return -ret;
	if (port.link_layer == IBV_LINK_LAYER_INFINIBAND)
		mask &= ~ROCE_ATTRS;
	/* Each side by its own patience; the CM would give both the connecting one's retries. */
	if (mask & IBV_QP_TIMEOUT)
		attr.timeout = to_domain(lane->base.domain)->ack_timeout;
	if (mask & IBV_QP_RETRY_CNT)
		attr.retry_cnt = VRB_RETRIES;
	if (mask & IBV_QP_MIN_RNR_TIMER)
		attr.min_rnr_timer = VRB_RNR_TIMER;
	/* The accepting side's CM does not know them before its answer has gone out. */
	if (accepted && (mask & IBV_QP_MAX_DEST_RD_ATOMIC))
		attr.max_dest_rd_atomic = accepted->responder_resources;
	if (accepted && (mask & IBV_QP_MAX_QP_RD_ATOMIC))
		attr.max_rd_atomic = accepted->initiator_depth;
	return -ibv_modify_qp(lane->qp, &attr, mask);
}

static int make_ready(struct vrb_lane *lane, struct rdma_cm_id *id,
		      const struct rdma_conn_param *accepted)
{
	int ret = modify(lane, id, IBV_QPS_RTR, accepted);

	return ret ? ret : modify(lane, id, IBV_QPS_RTS, accepted);
}

static bool is_of_device(const struct rdma_cm_id *id, const struct vrb_domain *domain)
{
	return id->verbs && !strcmp(ibv_get_device_name(id->verbs->device),
				    ibv_get_device_name(domain->context->device));
}

/* Connecting */

static int explain_refusal(const struct vrb_event *event, const char *addr, struct mf_error *err)
{
	struct refusal refusal = { 0 };

	if (event->len >= sizeof(refusal))
		memcpy(&refusal, event->data, sizeof(refusal));
	if (le32toh(refusal.magic) != CM_MAGIC)
		return base_error(err, -ECONNREFUSED, MF_SCOPE_LANE,
				  event->status == REJECT_NO_LISTENER
					  ? "address %s: nobody listens there; start memferry "
					    "receive first"
					  : "address %s: the connection was refused",
				  addr);
	switch (le16toh(refusal.reason)) {
	case REASON_TOKEN:
		return base_error(err, -EACCES, MF_SCOPE_LANE,
				  "address %s: the peer does not know our session's token", addr);
	case REASON_VERSION:
		return base_error(err, -MF_EVERSION, MF_SCOPE_LANE,
				  "address %s: the peer speaks data protocol %u, we speak %u; run "
				  "the same memferry on both hosts",
				  addr, le16toh(refusal.version), CM_VERSION);
	default:
		return base_error(err, -MF_EPEER, MF_SCOPE_LANE,
				  "address %s: the peer could not set up its side of the lane; "
				  "see there",
				  addr);
	}
}

/* Waits for the one event that has to come next. */
static int await(struct rdma_event_channel *channel, enum rdma_cm_event_type type,
		 uint64_t deadline_us, const char *addr, struct vrb_event *ret_event,
		 struct mf_error *err)
{
	int ret = tp_verbs_channel_wait(channel, deadline_us, ret_event);

	if (!ret && ret_event->type == type)
		return 0;
	if (!ret && ret_event->type == RDMA_CM_EVENT_REJECTED) {
		if (ret_event->status == REJECT_STALE)
			return -ESTALE;
		return explain_refusal(ret_event, addr, err);
	}
	if (!ret)
		ret = ret_event->status < 0 ? ret_event->status : -ECONNRESET;
	if (ret == -ETIMEDOUT)
		return base_error(err, -ETIMEDOUT, MF_SCOPE_LANE,
				  "address %s: no answer in time; check that memferry receives "
				  "there and that RDMA (RoCE: UDP port 4791) gets through",
				  addr);
	return base_error_sys(err, ret, MF_SCOPE_LANE, "address %s: cannot connect", addr);
}

/* Which way it is to the peer, over this domain's device. */
static int resolve(struct vrb_domain *domain, struct rdma_event_channel *channel,
		   struct rdma_cm_id *id, const struct sockaddr *dst, uint64_t deadline_us,
		   const char *addr, struct mf_error *err)
{
	struct sockaddr *src = (struct sockaddr *)&domain->local;
	struct vrb_event event;

	if (src->sa_family == AF_UNSPEC)
		src = NULL;
	else if (src->sa_family != dst->sa_family)
		return base_error_sys(err, -EAFNOSUPPORT, MF_SCOPE_LANE, "address %s", addr);
	set_ack_timeout(domain, id);
	int left = base_left_ms(deadline_us);
	/* 0 is no timeout to librdmacm. */
	if (rdma_resolve_addr(id, src, (struct sockaddr *)dst, left > 0 ? left : 1))
		return base_error_sys(err, -errno, MF_SCOPE_LANE,
				      "address %s: cannot be reached over RDMA", addr);
	int ret = await(channel, RDMA_CM_EVENT_ADDR_RESOLVED, deadline_us, addr, &event, err);
	if (ret)
		return ret;
	if (!is_of_device(id, domain))
		return base_error(err, -EXDEV, MF_SCOPE_LANE,
				  "address %s: is not reached over RDMA device %s; give the local "
				  "address of the right one",
				  addr, ibv_get_device_name(domain->context->device));
	left = base_left_ms(deadline_us);
	if (rdma_resolve_route(id, left > 0 ? left : 1))
		return base_error_sys(err, -errno, MF_SCOPE_LANE, "address %s: has no RDMA route",
				      addr);
	return await(channel, RDMA_CM_EVENT_ROUTE_RESOLVED, deadline_us, addr, &event, err);
}

/* With a lane whose queue pair is initialised: the two messages with the peer. */
static int shake_hands(struct vrb_domain *domain, struct vrb_lane *lane,
		       const uint8_t token[TP_TOKEN_SIZE], uint64_t deadline_us, const char *addr,
		       struct mf_error *err)
{
	struct hello hello = {
		.magic = htole32(CM_MAGIC),
		.version = htole16(CM_VERSION),
		.lane_id = htole32(lane->base.id),
		.scratch_key = htole32(domain->lent_mr->rkey),
		.scratch_addr = htole64((uintptr_t)&domain->scratch->lent),
	};
	struct rdma_conn_param param = {
		.private_data = &hello,
		.private_data_len = sizeof(hello),
		.responder_resources = atoms(domain->attr.max_qp_rd_atom),
		.initiator_depth = atoms(domain->attr.max_qp_init_rd_atom),
		.retry_count = VRB_RETRIES,
		.rnr_retry_count = VRB_RNR_RETRIES,
		.qp_num = lane->qp->qp_num,
	};
	struct vrb_event event;
	struct welcome welcome;

	int ret = tp_lane_proof(token, lane->base.id, hello.proof);
	if (!ret && rdma_connect(lane->id, &param))
		ret = -errno;
	if (ret)
		return base_error_sys(err, ret, MF_SCOPE_LANE, "address %s: cannot connect", addr);
	ret = await(lane->channel, RDMA_CM_EVENT_CONNECT_RESPONSE, deadline_us, addr, &event, err);
	if (ret)
		return ret;
	if (event.len < sizeof(welcome))
		goto strange;
	memcpy(&welcome, event.data, sizeof(welcome));
	if (le32toh(welcome.magic) != CM_MAGIC || le16toh(welcome.version) != CM_VERSION)
		goto strange;
	lane->peer_scratch.addr = le64toh(welcome.scratch_addr);
	lane->peer_scratch.key = le32toh(welcome.scratch_key);
	ret = make_ready(lane, lane->id, NULL);
	if (!ret && rdma_establish(lane->id))
		ret = -errno;
	return ret ? base_error_sys(err, ret, MF_SCOPE_LANE, "address %s: cannot connect", addr)
		   : 0;
strange:
	return base_error(err, -MF_EPEER, MF_SCOPE_LANE,
			  "address %s: answers, but not as a memferry of this version does", addr);
}

/* -ESTALE: worth trying again, with another queue pair. */
static int connect_once(struct vrb_domain *domain, const struct sockaddr *dst,
			const uint8_t token[TP_TOKEN_SIZE], uint32_t lane_id, uint64_t deadline_us,
			struct vrb_lane **ret_lane, struct mf_error *err)
{
	struct rdma_event_channel *channel = NULL;
	struct rdma_cm_id *id = NULL;
	struct vrb_lane *lane = NULL;
	char addr[TP_ADDR_MAX];

	tp_format_addr(dst, addr, sizeof(addr));
	int ret = tp_verbs_channel_open(&channel);
	if (!ret && rdma_create_id(channel, &id, NULL, RDMA_PS_TCP))
		ret = -errno;
	if (ret)
		ret = base_error_sys(err, ret, MF_SCOPE_HOST, "RDMA connection manager");
	else
		ret = resolve(domain, channel, id, dst, deadline_us, addr, err);
	if (!ret)
		ret = tp_verbs_lane_create(domain, channel, id, lane_id, &lane, err);
	if (!ret)
		ret = shake_hands(domain, lane, token, deadline_us, addr, err);
	if (!ret) {
		*ret_lane = lane;
		return 0;
	}
	if (lane) {
		tp_verbs_lane_destroy(lane); /* with channel and id */
		return ret;
	}
	if (id)
		(void)rdma_destroy_id(id);
	if (channel)
		rdma_destroy_event_channel(channel);
	return ret;
}

static int connect_to(struct vrb_domain *domain, const struct sockaddr *dst,
		      const uint8_t token[TP_TOKEN_SIZE], uint32_t lane_id, uint64_t deadline_us,
		      struct vrb_lane **ret_lane, struct mf_error *err)
{
	int ret = -ESTALE;

	for (unsigned i = 0; i < STALE_TRIES && ret == -ESTALE; i++)
		ret = connect_once(domain, dst, token, lane_id, deadline_us, ret_lane, err);
	if (ret == -ESTALE)
		return base_error(err, ret, MF_SCOPE_LANE,
				  "peer: its connection manager takes us for an old connection "
				  "again and again; try later");
	return ret;
}

static bool is_worth_another_address(int code)
{
	return code == -ECONNREFUSED || code == -ENETUNREACH || code == -EHOSTUNREACH ||
	       code == -EAFNOSUPPORT || code == -ENODEV || code == -EADDRNOTAVAIL;
}

int tp_verbs_connect(struct tp_domain *base, const char *addr, const uint8_t token[TP_TOKEN_SIZE],
		     uint32_t lane_id, uint64_t deadline_us, struct tp_lane **ret_lane,
		     struct mf_error *err)
{
	struct vrb_domain *domain = to_domain(base);
	struct mf_error why = { 0 };
	struct vrb_lane *lane = NULL;
	struct addrinfo *list;

	int ret = tp_resolve_addr(addr, "peer's address", false, &list, err);
	if (ret)
		return ret;
	/* A name may have several addresses, of which the peer listens on some. */
	for (const struct addrinfo *ai = list; ai; ai = ai->ai_next) {
		why = (struct mf_error){ 0 };
		ret = connect_to(domain, ai->ai_addr, token, lane_id, deadline_us, &lane, &why);
		if (!is_worth_another_address(ret))
			break;
	}
	freeaddrinfo(list);
	if (ret)
		return base_error(err, ret, why.scope, "%s", why.msg);
	*ret_lane = &lane->base;
	return 0;
}

/* Listening */

int tp_verbs_listen(struct tp_domain *domain, const char *addr, struct tp_listener **ret_listener,
		    struct mf_error *err)
{
	struct addrinfo *list;

	int ret = tp_resolve_addr(addr, "address to listen on", true, &list, err);
	if (ret)
		return ret;
	struct vrb_listener *listener = calloc(1, sizeof(*listener));
	if (!listener) {
		freeaddrinfo(list);
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "address %s", addr);
	}
	listener->base.domain = domain;
	ret = tp_verbs_channel_open(&listener->channel);
	if (!ret &&
	    (rdma_create_id(listener->channel, &listener->id, NULL, RDMA_PS_TCP) ||
	     rdma_bind_addr(listener->id, list->ai_addr) || rdma_listen(listener->id, BACKLOG)))
		ret = -errno;
	freeaddrinfo(list);
	if (ret) {
		tp_verbs_listener_close(&listener->base);
		return base_error_sys(err, ret, MF_SCOPE_SESSION,
				      "address %s: cannot listen for RDMA connections", addr);
	}
	tp_format_addr(rdma_get_local_addr(listener->id), listener->addr, sizeof(listener->addr));
	*ret_listener = &listener->base;
	return 0;
}

void tp_verbs_listener_addr(const struct tp_listener *base, char *ret, size_t cap)
{
	(void)snprintf(ret, cap, "%s",
		       BASE_CONTAINER_OF(base, const struct vrb_listener, base)->addr);
}

/* The kernel rejects what is still waiting. */
void tp_verbs_listener_close(struct tp_listener *base)
{
	struct vrb_listener *listener = BASE_CONTAINER_OF(base, struct vrb_listener, base);

	if (listener->id)
		(void)rdma_destroy_id(listener->id);
	if (listener->channel)
		rdma_destroy_event_channel(listener->channel);
	free(listener);
}

/* Admitting */

static void refuse(struct rdma_cm_id *id, enum reason reason)
{
	struct refusal refusal = {
		.magic = htole32(CM_MAGIC),
		.version = htole16(CM_VERSION),
		.reason = htole16((uint16_t)reason),
	};
	(void)rdma_reject(id, &refusal, sizeof(refusal));
}

/* 0, or the reason for which this is none of ours. */
static int check_hello(const struct vrb_event *request, const uint8_t token[TP_TOKEN_SIZE],
		       struct hello *ret_hello)
{
	if (request->len < sizeof(*ret_hello))
		return REASON_TOKEN;
	memcpy(ret_hello, request->data, sizeof(*ret_hello));
	if (le32toh(ret_hello->magic) != CM_MAGIC)
		return REASON_TOKEN;
	if (le16toh(ret_hello->version) != CM_VERSION)
		return REASON_VERSION;
	return tp_proves(ret_hello->proof, token, le32toh(ret_hello->lane_id)) ? 0 : REASON_TOKEN;
}

/* The peer may answer as many reads at a time as both devices can. */
static int welcome_peer(struct vrb_domain *domain, struct vrb_lane *lane,
			const struct vrb_event *request)
{
	uint8_t answers = atoms(domain->attr.max_qp_rd_atom);
	uint8_t asks = atoms(domain->attr.max_qp_init_rd_atom);
	struct welcome welcome = {
		.magic = htole32(CM_MAGIC),
		.version = htole16(CM_VERSION),
		.scratch_key = htole32(domain->lent_mr->rkey),
		.scratch_addr = htole64((uintptr_t)&domain->scratch->lent),
	};
	struct rdma_conn_param param = {
		.private_data = &welcome,
		.private_data_len = sizeof(welcome),
		.responder_resources = request->responder_resources < answers
					       ? request->responder_resources
					       : answers,
		.initiator_depth =
			request->initiator_depth < asks ? request->initiator_depth : asks,
		.rnr_retry_count = VRB_RNR_RETRIES,
		.qp_num = lane->qp->qp_num,
	};

	int ret = make_ready(lane, lane->id, &param);
	if (ret)
		return ret;
	return rdma_accept(lane->id, &param) ? -errno : 0;
}

static int await_established(struct vrb_lane *lane)
{
	struct vrb_event event;

	int ret = tp_verbs_channel_wait(lane->channel, base_deadline_ms(TP_FINISH_MS), &event);
	if (!ret && event.type != RDMA_CM_EVENT_ESTABLISHED)
		ret = -ECONNRESET;
	return ret;
}

/* A lane for a request with the right token; on failure the id is as it was, its channel may be
 * *ret_channel, and err says what is wrong here. */
static int set_up(struct vrb_domain *domain, struct rdma_cm_id *id, uint32_t lane_id,
		  struct rdma_event_channel **ret_channel, struct vrb_lane **ret_lane,
		  struct mf_error *err)
{
	if (!is_of_device(id, domain))
		return base_error(err, -EXDEV, MF_SCOPE_LANE,
				  "lane %u: the peer came in over another RDMA device than %s",
				  lane_id, ibv_get_device_name(domain->context->device));
	int ret = tp_verbs_channel_open(ret_channel);
	if (ret)
		return base_error_sys(err, ret, MF_SCOPE_LANE, "RDMA connection manager");
	if (rdma_migrate_id(id, *ret_channel))
		return -ECONNRESET;
	set_ack_timeout(domain, id);
	return tp_verbs_lane_create(domain, *ret_channel, id, lane_id, ret_lane, err);
}

/* Answers one connection request: 1 and a lane, 0 when the peer was refused or went away, or a
 * negative code for what is wrong here. */
static int answer(struct vrb_domain *domain, const struct vrb_event *request,
		  const uint8_t token[TP_TOKEN_SIZE], struct vrb_lane **ret_lane,
		  struct mf_error *err)
{
	struct rdma_event_channel *channel = NULL;
	struct mf_error why = { 0 };
	struct vrb_lane *lane = NULL;
	struct hello hello;

	int reason = check_hello(request, token, &hello);
	if (reason) {
		refuse(request->id, (enum reason)reason);
		(void)rdma_destroy_id(request->id);
		return 0;
	}
	int ret = set_up(domain, request->id, le32toh(hello.lane_id), &channel, &lane, &why);
	if (ret) {
		refuse(request->id, REASON_RESOURCES);
		(void)rdma_destroy_id(request->id);
		if (channel)
			rdma_destroy_event_channel(channel);
		/* Without a peer the CM refuses to go on; that is no failure of ours. */
		return ret == -ECONNRESET ? 0 : base_error(err, ret, why.scope, "%s", why.msg);
	}
	lane->peer_scratch.addr = le64toh(hello.scratch_addr);
	lane->peer_scratch.key = le32toh(hello.scratch_key);
	ret = welcome_peer(domain, lane, request);
	if (ret)
		refuse(lane->id, REASON_RESOURCES);
	else
		ret = await_established(lane);
	if (ret) {
		tp_verbs_lane_destroy(lane);
		return 0; /* the peer has gone; others may come */
	}
	*ret_lane = lane;
	return 1;
}

int tp_verbs_accept(struct tp_listener *base, const uint8_t token[TP_TOKEN_SIZE],
		    uint64_t deadline_us, struct tp_lane **ret_lane, struct mf_error *err)
{
	struct vrb_listener *listener = BASE_CONTAINER_OF(base, struct vrb_listener, base);
	struct vrb_domain *domain = to_domain(base->domain);
	struct vrb_lane *lane = NULL;
	struct vrb_event event;

	for (;;) {
		int ret = tp_verbs_channel_wait(listener->channel, deadline_us, &event);
		if (!ret && event.type == RDMA_CM_EVENT_DEVICE_REMOVAL)
			ret = -ENODEV;
		if (!ret && event.type == RDMA_CM_EVENT_CONNECT_REQUEST)
			ret = answer(domain, &event, token, &lane, err);
		if (ret > 0) {
			*ret_lane = &lane->base;
			return 0;
		}
		/* However many strangers there are. */
		if (!ret && base_now_us() >= deadline_us)
			ret = -ETIMEDOUT;
		if (ret == -ETIMEDOUT)
			return base_error(err, ret, MF_SCOPE_LANE,
					  "address %s: the peer did not connect in time",
					  listener->addr);
		if (ret)
			return base_error_sys(err, ret, MF_SCOPE_LANE, "address %s: cannot accept",
					      listener->addr);
	}
}
