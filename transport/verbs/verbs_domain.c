/* SPDX-License-Identifier: BSD-2-Clause */
/* Domains: which device, its memory and its asynchronous events; and the backend's ops. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "transport/verbs/verbs_priv.h"

/* Of one piece of advice, whose length is 32 bits. */
#define PREFETCH_BYTES (1ull << 30)

/* Which device */

static int open_device(struct ibv_device *device, uint8_t port, struct vrb_domain *domain,
		       struct mf_error *err)
{
	const char *name = ibv_get_device_name(device);
	struct ibv_port_attr attr;

	if (device->transport_type != IBV_TRANSPORT_IB)
		return base_error(err, -ENODEV, MF_SCOPE_HOST,
				  "RDMA device %s: is not of the InfiniBand or RoCE kind; use tcp",
				  name);
	domain->context = ibv_open_device(device);
	if (!domain->context)
		return base_error_sys(err, errno ? -errno : -ENODEV, MF_SCOPE_HOST,
				      "RDMA device %s: cannot be opened", name);
	int flags = fcntl(domain->context->async_fd, F_GETFL);
	if (flags < 0 || fcntl(domain->context->async_fd, F_SETFL, flags | O_NONBLOCK))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "RDMA device %s: its events",
				      name);
	int ret = ibv_query_device(domain->context, &domain->attr);
	if (!ret)
		ret = ibv_query_port(domain->context, port, &attr);
	if (ret)
		return base_error_sys(err, -ret, MF_SCOPE_HOST, "RDMA device %s: cannot be asked",
				      name);
	domain->windows = domain->attr.max_mw > 0 &&
			  domain->attr.device_cap_flags &
				  (IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B);
	domain->port = port;
	domain->retransmits = tp_verbs_retransmits(name, port);
	domain->max_op = attr.max_msg_sz < VRB_OP_MAX ? attr.max_msg_sz : VRB_OP_MAX;
	return 0;
}

static void free_device_list(struct ibv_device ***list)
{
	if (*list)
		ibv_free_device_list(*list);
}

/* The device that has the address, as the connection manager sees it. */
static int open_by_address(struct vrb_domain *domain, const char *local, struct mf_error *err)
{
	struct rdma_cm_id *id = NULL;

	struct rdma_event_channel *channel = rdma_create_event_channel();
	if (!channel)
		return base_error_sys(err, -ENODEV, MF_SCOPE_HOST,
				      "RDMA: its connection manager cannot be used (module "
				      "rdma_ucm, /dev/infiniband/rdma_cm)");
	int ret;
	if (rdma_create_id(channel, &id, NULL, RDMA_PS_TCP))
		ret = base_error_sys(err, -errno, MF_SCOPE_HOST, "RDMA: connection manager");
	else if (rdma_bind_addr(id, (struct sockaddr *)&domain->local) || !id->verbs)
		ret = base_error(err, -ENODEV, MF_SCOPE_HOST,
				 "address %s: no RDMA device has it; `rdma link` lists the "
				 "interfaces that have one",
				 local);
	else
		ret = open_device(id->verbs->device, id->port_num, domain, err);
	if (id)
		(void)rdma_destroy_id(id);
	rdma_destroy_event_channel(channel);
	return ret;
}

static uint8_t find_active_port(struct ibv_device *device)
{
	struct ibv_context *context = ibv_open_device(device);
	struct ibv_device_attr attr;
	struct ibv_port_attr port;
	uint8_t found = 0;

	if (!context)
		return 0;
	if (ibv_query_device(context, &attr))
		attr.phys_port_cnt = 0;
	for (uint8_t i = 1; i <= attr.phys_port_cnt && !found; i++) {
		if (!ibv_query_port(context, i, &port) && port.state == IBV_PORT_ACTIVE)
			found = i;
	}
	(void)ibv_close_device(context);
	return found;
}

/* Without an address there must be no choice: memory is registered before any lane is there. */
static int open_only_one(struct vrb_domain *domain, struct ibv_device **list, struct mf_error *err)
{
	struct ibv_device *found = NULL;
	uint8_t port = 0;

	for (; *list; list++) {
		uint8_t active = find_active_port(*list);
		if (!active)
			continue;
		if (found)
			return base_error(err, -EINVAL, MF_SCOPE_HOST,
					  "RDMA: there are several devices (%s, %s); give the "
					  "local address of the one to use",
					  ibv_get_device_name(found), ibv_get_device_name(*list));
		found = *list;
		port = active;
	}
	if (!found)
		return base_error(err, -ENODEV, MF_SCOPE_HOST,
				  "RDMA: no device has an active port; see `rdma link`");
	return open_device(found, port, domain, err);
}

static int find_device(struct vrb_domain *domain, const char *local, struct mf_error *err)
{
	struct ibv_device **list base_cleanup(free_device_list) = ibv_get_device_list(NULL);

	/* Before librdmacm is asked: without a device it cannot even start. */
	if (!list || !*list)
		return base_error(err, -ENODEV, MF_SCOPE_HOST, "RDMA: this host has no device");
	if (!local)
		return open_only_one(domain, list, err);
	int ret = tp_resolve_local(local, &domain->local, err);
	return ret ? ret : open_by_address(domain, local, err);
}

/* Opening and closing */

static int open_scratch(struct vrb_domain *domain)
{
	/* A page of its own: registering pins it whole. */
	domain->scratch = aligned_alloc(4096, 4096);
	if (!domain->scratch)
		return -ENOMEM;
	memset(domain->scratch, 0, sizeof(*domain->scratch));
	domain->lent_mr = ibv_reg_mr(domain->pd, &domain->scratch->lent, sizeof(uint64_t),
				     IBV_ACCESS_REMOTE_READ);
	if (!domain->lent_mr)
		return -errno;
	domain->sink_mr = ibv_reg_mr(domain->pd, &domain->scratch->sink, sizeof(uint64_t),
				     IBV_ACCESS_LOCAL_WRITE);
	return domain->sink_mr ? 0 : -errno;
}

static void free_domain(struct vrb_domain *domain)
{
	int ret = 0;

	if (domain->lent_mr)
		ret |= ibv_dereg_mr(domain->lent_mr);
	if (domain->sink_mr)
		ret |= ibv_dereg_mr(domain->sink_mr);
	if (domain->pd)
		ret |= ibv_dealloc_pd(domain->pd);
	if (domain->context)
		ret |= ibv_close_device(domain->context);
	assert(!ret); /* a refusal means that we have left something open that uses it */
	(void)ret;
	free(domain->scratch);
	(void)pthread_mutex_destroy(&domain->lock);
	free(domain);
}

/* Some drivers say they have windows, and then have no function for them. */
static void try_window(struct vrb_domain *domain)
{
	struct ibv_mw *mw = domain->windows ? ibv_alloc_mw(domain->pd, IBV_MW_TYPE_2) : NULL;

	domain->windows = mw && !ibv_dealloc_mw(mw);
}

/* Whether the device can ask for memory when it needs it, for all that our lanes do. */
static bool can_on_demand(struct ibv_context *context)
{
	const uint32_t need = IBV_ODP_SUPPORT_WRITE | IBV_ODP_SUPPORT_READ;
	struct ibv_device_attr_ex attr = { 0 };

	return !ibv_query_device_ex(context, NULL, &attr) &&
	       attr.odp_caps.general_caps & IBV_ODP_SUPPORT &&
	       (attr.odp_caps.per_transport_caps.rc_odp_caps & need) == need;
}

static uint32_t at_most(uint32_t depth, int limit)
{
	return limit > 0 && (uint32_t)limit < depth ? (uint32_t)limit : depth;
}

/*
 * The longest timeout whose tries all fit into the silence: what is timed is the peer's, and not a
 * loaded network's.  Hardware may take up to four times as long (IBTA vol. 1, 9.7.6.1.3), and has a
 * least timeout of its own.
 */
static uint8_t choose_ack_timeout(uint64_t silence_ms)
{
	const uint64_t silence_ns = (silence_ms ? silence_ms : VRB_SILENCE_MS) * 1000000u;
	uint8_t timeout = 1; /* 0 is for ever, and 31 the most */

	while (timeout < 31 && (VRB_RETRIES + 1) * (4096ull << (timeout + 1)) <= silence_ns)
		timeout++;
	return timeout;
}

static int domain_open(const struct tp_ops *ops, const struct tp_domain_params *params,
		       struct tp_domain **ret_domain, struct mf_error *err)
{
	struct vrb_domain *domain = calloc(1, sizeof(*domain));
	if (!domain)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_HOST, "RDMA");
	domain->base.ops = ops;
	domain->ack_timeout = choose_ack_timeout(params->silence_ms);
	(void)pthread_mutex_init(&domain->lock, NULL);

	int ret = find_device(domain, params->local, err);
	if (ret)
		goto fail;
	domain->depth = at_most(params->depth, VRB_DEPTH_MAX);
	domain->depth = at_most(domain->depth, domain->attr.max_qp_wr - (int)VRB_OWN_MAX);
	domain->receives = at_most(params->receives, VRB_DEPTH_MAX);
	domain->receives = at_most(domain->receives, domain->attr.max_qp_wr);
	domain->depth = at_most(domain->depth,
				domain->attr.max_cqe - (int)VRB_OWN_MAX - (int)domain->receives);
	domain->pd = ibv_alloc_pd(domain->context);
	ret = domain->pd ? open_scratch(domain) : -errno;
	if (ret) {
		ret = base_error_sys(err, ret, MF_SCOPE_HOST, "RDMA device %s: cannot be used",
				     ibv_get_device_name(domain->context->device));
		goto fail;
	}
	try_window(domain);
	domain->on_demand = params->on_demand && can_on_demand(domain->context);
	*ret_domain = &domain->base;
	return 0;
fail:
	free_domain(domain);
	return ret;
}

static void domain_close(struct tp_domain *base)
{
	struct vrb_domain *domain = BASE_CONTAINER_OF(base, struct vrb_domain, base);

	assert(!domain->lanes);
	free_domain(domain);
}

static void domain_limits(const struct tp_domain *base, struct tp_limits *ret_limits)
{
	const struct vrb_domain *domain = BASE_CONTAINER_OF(base, struct vrb_domain, base);
	uint64_t max_mr = domain->attr.max_mr_size;

	max_mr = max_mr && max_mr < INT64_MAX ? max_mr : INT64_MAX; /* 0: no limit */
	if (domain->windows && max_mr > VRB_WINDOW_MAX)
		max_mr = VRB_WINDOW_MAX;
	*ret_limits = (struct tp_limits){
		.depth = domain->depth,
		.max_op = domain->max_op,
		.max_mr = max_mr,
		.gap = VRB_GAP,
		.windows = domain->windows,
		.on_demand = domain->on_demand,
	};
}

/* Memory */

static int explain_reg_failure(int code, struct mf_error *err)
{
	switch (code) {
	case -ENOMEM:
		return base_error(err, code, MF_SCOPE_SESSION,
				  "memory registration: refused by the kernel; raise the limit of "
				  "locked memory (ulimit -l), or free memory");
	case -EFAULT:
		return base_error(err, code, MF_SCOPE_SESSION,
				  "memory registration: these pages cannot be pinned; back the "
				  "guest's RAM by tmpfs, hugetlbfs or a memfd");
	default:
		return base_error_sys(err, code, MF_SCOPE_SESSION, "memory registration");
	}
}

static void count_mr(struct vrb_domain *domain, const struct vrb_mr *mr, int change)
{
	uint64_t sign = (uint64_t)(int64_t)change;

	(void)__atomic_add_fetch(&domain->n_mrs, sign, __ATOMIC_RELAXED);
	if (!domain->on_demand)
		(void)__atomic_add_fetch(&domain->bytes_pinned, sign * mr->base.len,
					 __ATOMIC_RELAXED);
}

/* As /proc/self/maps says; where it says nothing, yes. */
static bool is_mapped_for_writing(const void *addr)
{
	FILE *file base_cleanup(base_fclosep) = fopen("/proc/self/maps", "re");
	uintptr_t start, end, at = (uintptr_t)addr;
	char line[512], may_write;

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*c%c", &start, &end, &may_write) ==
			    3 &&
		    at >= start && at < end)
			return may_write == 'w';
	}
	return true;
}

/*
 * Without pinning: the device asks when it misses a page, which is what a pinned one never costs,
 * so it is told of them before.  Of what the peer writes, all; of the rest those that are there, as
 * holes are to stay holes.  The kernel lets the device write what was registered for it, and faults
 * such pages in as written: memory that is mapped for reading only must not be among them.
 */
static struct ibv_mr *reg_on_demand(struct vrb_domain *domain, void *addr, uint64_t len, int rights)
{
	enum ibv_advise_mr_advice advice = rights & IBV_ACCESS_REMOTE_WRITE
						   ? IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE
						   : IBV_ADVISE_MR_ADVICE_PREFETCH_NO_FAULT;

	if (!is_mapped_for_writing(addr))
		rights &= ~IBV_ACCESS_LOCAL_WRITE;
	struct ibv_mr *mr = ibv_reg_mr(domain->pd, addr, len, rights | IBV_ACCESS_ON_DEMAND);
	for (uint64_t at = 0; mr && at < len; at += PREFETCH_BYTES) {
		uint64_t left = len - at;
		struct ibv_sge sge = { .addr = (uintptr_t)addr + at,
				       .length = (uint32_t)(left < PREFETCH_BYTES ? left
										  : PREFETCH_BYTES),
				       .lkey = mr->lkey };
		/* Advice: the kernel may be too old for it, or busy. */
		(void)ibv_advise_mr(domain->pd, advice, 0, &sge, 1);
	}
	return mr;
}

static struct ibv_mr *reg_pinned(struct vrb_domain *domain, void *addr, uint64_t len, int rights)
{
	struct ibv_mr *mr = ibv_reg_mr(domain->pd, addr, len, rights);

	if (!mr && errno == EFAULT && !(rights & IBV_ACCESS_REMOTE_WRITE))
		mr = ibv_reg_mr(domain->pd, addr, len, rights & ~IBV_ACCESS_LOCAL_WRITE);
	return mr;
}

/*
 * No relaxed ordering for anything: a flush relies on writes staying in order (verbs_lane.c).
 * What has no remote rights can be the sink of our own reads, unless it is mapped for reading only.
 */
static int mr_reg(struct tp_domain *base, void *addr, uint64_t len, uint32_t access,
		  struct tp_mr **ret_mr, struct mf_error *err)
{
	struct vrb_domain *domain = BASE_CONTAINER_OF(base, struct vrb_domain, base);
	int rights = IBV_ACCESS_LOCAL_WRITE;

	assert(domain->windows || !(access & TP_LENDABLE));
	struct vrb_mr *mr = calloc(1, sizeof(*mr));
	if (!mr)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "memory registration");
	mr->base = (struct tp_mr){ .domain = base, .addr = addr, .len = len, .access = access };
	if (access & TP_REMOTE_WRITE)
		rights |= IBV_ACCESS_REMOTE_WRITE;
	if (access & TP_REMOTE_READ)
		rights |= IBV_ACCESS_REMOTE_READ;
	if (access & TP_LENDABLE)
		rights |= IBV_ACCESS_MW_BIND;
	mr->mr = domain->on_demand ? reg_on_demand(domain, addr, len, rights)
				   : reg_pinned(domain, addr, len, rights);
	if (!mr->mr) {
		int ret = explain_reg_failure(-errno, err);
		free(mr);
		return ret;
	}
	count_mr(domain, mr, 1);
	*ret_mr = &mr->base;
	return 0;
}

/* The device knows the key no more when this returns. */
static void mr_dereg(struct tp_mr *base)
{
	struct vrb_mr *mr = BASE_CONTAINER_OF(base, struct vrb_mr, base);

	int ret = ibv_dereg_mr(mr->mr);
	assert(!ret); /* else the peer could go on */
	(void)ret;
	count_mr(BASE_CONTAINER_OF(base->domain, struct vrb_domain, base), mr, -1);
	free(mr);
}

static void mr_remote(const struct tp_mr *base, struct tp_remote *ret_remote)
{
	const struct vrb_mr *mr = BASE_CONTAINER_OF(base, const struct vrb_mr, base);

	*ret_remote = (struct tp_remote){ .addr = (uintptr_t)base->addr, .key = mr->mr->rkey };
}

/* Asynchronous events */

void tp_verbs_list_lane(struct vrb_domain *domain, struct vrb_lane *lane)
{
	(void)pthread_mutex_lock(&domain->lock);
	lane->prev = NULL;
	lane->next = domain->lanes;
	if (lane->next)
		lane->next->prev = lane;
	domain->lanes = lane;
	lane->listed = true;
	(void)pthread_mutex_unlock(&domain->lock);
}

void tp_verbs_unlist_lane(struct vrb_domain *domain, struct vrb_lane *lane)
{
	(void)pthread_mutex_lock(&domain->lock);
	if (lane->listed) {
		if (lane->next)
			lane->next->prev = lane->prev;
		if (lane->prev)
			lane->prev->next = lane->next;
		else
			domain->lanes = lane->next;
		lane->listed = false;
	}
	(void)pthread_mutex_unlock(&domain->lock);
}

/* The code that the event means for the lane, or 0. */
static int judge_event(const struct ibv_async_event *event, const struct vrb_lane *lane)
{
	switch (event->event_type) {
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
		return event->element.qp == lane->qp ? -EIO : 0;
	case IBV_EVENT_CQ_ERR:
		return event->element.cq == lane->cq ? -EIO : 0;
	case IBV_EVENT_PORT_ERR:
		return event->element.port_num == lane->port ? -ENETDOWN : 0;
	case IBV_EVENT_DEVICE_FATAL:
		return -ENODEV;
	default:
		return 0;
	}
}

void tp_verbs_take_async(struct vrb_domain *domain)
{
	struct ibv_async_event event;

	while (!ibv_get_async_event(domain->context, &event)) {
		(void)pthread_mutex_lock(&domain->lock);
		for (struct vrb_lane *lane = domain->lanes; lane; lane = lane->next) {
			int code = judge_event(&event, lane), none = 0;
			if (code && atomic_compare_exchange_strong(&lane->struck, &none, code))
				tp_verbs_lane_wake(&lane->base);
		}
		(void)pthread_mutex_unlock(&domain->lock);
		/* Destroying what the event is about waits for this. */
		ibv_ack_async_event(&event);
	}
}

static void domain_stats(const struct tp_domain *base, struct tp_domain_stats *ret_stats)
{
	const struct vrb_domain *domain = BASE_CONTAINER_OF(base, struct vrb_domain, base);
	uint64_t now =
		tp_verbs_retransmits(ibv_get_device_name(domain->context->device), domain->port);

	*ret_stats = (struct tp_domain_stats){
		.bytes_pinned = __atomic_load_n(&domain->bytes_pinned, __ATOMIC_RELAXED),
		.registrations = __atomic_load_n(&domain->n_mrs, __ATOMIC_RELAXED),
		/* A device that comes back begins anew. */
		.retransmits = now > domain->retransmits ? now - domain->retransmits : 0,
		.windows = __atomic_load_n(&domain->n_windows, __ATOMIC_RELAXED),
	};
}

/* rdma-core's libraries cannot be asked; this is what it was built with. */
static const char *version(char *buf, size_t cap)
{
	(void)snprintf(buf, cap, "librdmacm " MF_VERBS_VERSION);
	return buf;
}

const struct tp_ops tp_verbs_ops = {
	.name = "verbs",
	.kind = "verbs",
	.version = version,
	.caps = TP_CAP_PINS | TP_CAP_BY_PATH, /* the target's device answers by itself */
	.domain_open = domain_open,
	.domain_close = domain_close,
	.domain_limits = domain_limits,
	.domain_stats = domain_stats,
	.paths = tp_verbs_paths,
	.mr_reg = mr_reg,
	.mr_dereg = mr_dereg,
	.mr_remote = mr_remote,
	.listen = tp_verbs_listen,
	.listener_addr = tp_verbs_listener_addr,
	.accept = tp_verbs_accept,
	.listener_close = tp_verbs_listener_close,
	.connect = tp_verbs_connect,
	.lane_shutdown = tp_verbs_lane_shutdown,
	.lane_close = tp_verbs_lane_close,
	.lane_lend = tp_verbs_lane_lend,
	.lane_revoke = tp_verbs_lane_revoke,
	.post_write = tp_verbs_post_write,
	.post_read = tp_verbs_post_read,
	.post_flush = tp_verbs_post_flush,
	.post_send = tp_verbs_post_send,
	.post_receive = tp_verbs_post_receive,
	.lane_poll = tp_verbs_lane_poll,
	.lane_arm = tp_verbs_lane_arm,
	.lane_wait = tp_verbs_lane_wait,
	.lane_wake = tp_verbs_lane_wake,
	.lane_stats = tp_verbs_lane_stats,
};
