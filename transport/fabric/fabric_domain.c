/* SPDX-License-Identifier: BSD-2-Clause */
/* Domains, memory, the table of lanes; and the backend's ops. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "transport/fabric/fabric_priv.h"

static void free_domain(struct fab_domain *domain)
{
	if (domain->fabric)
		(void)fi_close(&domain->fabric->fid);
	fi_freeinfo(domain->info);
	(void)pthread_mutex_destroy(&domain->lock);
	free(domain);
}

static int domain_open(const struct tp_ops *ops, const struct tp_domain_params *params,
		       struct tp_domain **ret_domain, struct mf_error *err)
{
	struct fab_domain *domain = calloc(1, sizeof(*domain));
	if (!domain)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_HOST, "tcp transport");
	domain->base.ops = ops;
	domain->depth = params->depth < FAB_DEPTH_MAX ? params->depth : FAB_DEPTH_MAX;
	domain->receives = params->receives < FAB_DEPTH_MAX ? params->receives : FAB_DEPTH_MAX;
	(void)pthread_mutex_init(&domain->lock, NULL);

	int ret = params->local ? tp_resolve_local(params->local, &domain->local, err) : 0;
	if (!ret)
		ret = tp_fabric_getinfo((struct sockaddr *)&domain->local, NULL, &domain->info,
					err);
	if (ret)
		goto fail;
	domain->mr_mode = (uint64_t)domain->info->domain_attr->mr_mode;
	if (domain->mr_mode & FI_MR_PROV_KEY) {
		ret = base_error(err, -EOPNOTSUPP, MF_SCOPE_HOST,
				 "libfabric: its tcp provider insists on choosing memory keys, "
				 "which this version of it was not expected to do");
		goto fail;
	}
	ret = fi_fabric(domain->info->fabric_attr, &domain->fabric, NULL);
	if (ret) {
		ret = tp_fabric_error(err, ret, MF_SCOPE_HOST, "libfabric: cannot open tcp");
		goto fail;
	}
	*ret_domain = &domain->base;
	return 0;
fail:
	free_domain(domain);
	return ret;
}

static void domain_close(struct tp_domain *base)
{
	struct fab_domain *domain = BASE_CONTAINER_OF(base, struct fab_domain, base);

	assert(!domain->mrs);
	for (unsigned i = 0; i < FAB_LANES_MAX; i++)
		assert(!domain->lanes[i]);
	free_domain(domain);
}

static void domain_limits(const struct tp_domain *base, struct tp_limits *ret_limits)
{
	const struct fab_domain *domain = BASE_CONTAINER_OF(base, struct fab_domain, base);
	uint64_t max_msg = domain->info->ep_attr->max_msg_size;

	*ret_limits = (struct tp_limits){
		.depth = domain->depth,
		.max_op = max_msg < FAB_OP_MAX ? max_msg : FAB_OP_MAX,
		.max_mr = INT64_MAX,
		.gap = FAB_GAP,
	};
}

int tp_fabric_random_key(uint64_t *ret_key, struct mf_error *err)
{
	/* 8 bytes are never cut short, and the pool was filled long ago. */
	if (getrandom(ret_key, sizeof(*ret_key), 0) != (ssize_t)sizeof(*ret_key))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "random key");
	return 0;
}

int tp_fabric_reg_in_lane(struct fab_lane *lane, void *addr, uint64_t len, uint32_t access,
			  uint64_t key, struct fid_mr **ret_fid)
{
	const struct fab_domain *domain =
		BASE_CONTAINER_OF(lane->base.domain, struct fab_domain, base);
	uint64_t rights = 0;

	if (access & TP_REMOTE_WRITE)
		rights |= FI_REMOTE_WRITE;
	if (access & TP_REMOTE_READ)
		rights |= FI_REMOTE_READ;
	if (domain->mr_mode & FI_MR_LOCAL)
		rights |= FI_READ | FI_WRITE;
	*ret_fid = NULL;
	if (!rights)
		return 0; /* memory that only we use needs no registration here */
	return fi_mr_reg(lane->domain, addr, len, rights, 0, key, 0, ret_fid, NULL);
}

static int reg_mr_in_lane(struct fab_mr *mr, struct fab_lane *lane)
{
	return tp_fabric_reg_in_lane(lane, mr->base.addr, mr->base.len, mr->base.access, mr->key,
				     &mr->fids[lane->slot]);
}

static void dereg_mr_in_lane(struct fab_mr *mr, unsigned slot)
{
	if (!mr->fids[slot])
		return;
	int ret = fi_close(&mr->fids[slot]->fid);
	assert(!ret); /* else the peer could go on */
	(void)ret;
	mr->fids[slot] = NULL;
}

static void dereg_mr_everywhere(struct fab_mr *mr)
{
	for (unsigned i = 0; i < FAB_LANES_MAX; i++)
		dereg_mr_in_lane(mr, i);
}

/* Written with the lock held, read without. */
static void count_mr(struct fab_domain *domain, int change)
{
	__atomic_store_n(&domain->n_mrs, domain->n_mrs + (uint64_t)(int64_t)change,
			 __ATOMIC_RELAXED);
}

static int mr_reg(struct tp_domain *base, void *addr, uint64_t len, uint32_t access,
		  struct tp_mr **ret_mr, struct mf_error *err)
{
	struct fab_domain *domain = BASE_CONTAINER_OF(base, struct fab_domain, base);
	struct fab_mr *mr = calloc(1, sizeof(*mr));
	if (!mr)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "memory registration");
	mr->base = (struct tp_mr){ .domain = base, .addr = addr, .len = len, .access = access };

	int ret = tp_fabric_random_key(&mr->key, err);
	if (ret) {
		free(mr);
		return ret;
	}
	(void)pthread_mutex_lock(&domain->lock);
	for (unsigned i = 0; i < FAB_LANES_MAX && !ret; i++) {
		if (domain->lanes[i])
			ret = reg_mr_in_lane(mr, domain->lanes[i]);
	}
	if (ret) {
		dereg_mr_everywhere(mr);
	} else {
		mr->next = domain->mrs;
		if (mr->next)
			mr->next->prev = mr;
		domain->mrs = mr;
		count_mr(domain, 1);
	}
	(void)pthread_mutex_unlock(&domain->lock);
	if (ret) {
		free(mr);
		return tp_fabric_error(err, ret, MF_SCOPE_SESSION, "memory registration");
	}
	*ret_mr = &mr->base;
	return 0;
}

/* An operation whose request the target has already taken in may still run to its end; all that
 * come later find no key.  Whoever needs more ends with a flush (T5) or closes the lanes first. */
static void mr_dereg(struct tp_mr *base)
{
	struct fab_domain *domain = BASE_CONTAINER_OF(base->domain, struct fab_domain, base);
	struct fab_mr *mr = BASE_CONTAINER_OF(base, struct fab_mr, base);

	(void)pthread_mutex_lock(&domain->lock);
	dereg_mr_everywhere(mr);
	if (mr->next)
		mr->next->prev = mr->prev;
	if (mr->prev)
		mr->prev->next = mr->next;
	else
		domain->mrs = mr->next;
	count_mr(domain, -1);
	(void)pthread_mutex_unlock(&domain->lock);
	free(mr);
}

static void mr_remote(const struct tp_mr *base, struct tp_remote *ret_remote)
{
	const struct fab_domain *domain = BASE_CONTAINER_OF(base->domain, struct fab_domain, base);
	const struct fab_mr *mr = BASE_CONTAINER_OF(base, struct fab_mr, base);
	bool virt = domain->mr_mode & FI_MR_VIRT_ADDR;

	*ret_remote =
		(struct tp_remote){ .addr = virt ? (uintptr_t)base->addr : 0, .key = mr->key };
}

int tp_fabric_attach_lane(struct fab_domain *domain, struct fab_lane *lane, struct mf_error *err)
{
	int ret = 0;

	(void)pthread_mutex_lock(&domain->lock);
	unsigned slot = 0;
	while (slot < FAB_LANES_MAX && domain->lanes[slot])
		slot++;
	if (slot == FAB_LANES_MAX) {
		ret = base_error(err, -EMFILE, MF_SCOPE_LANE,
				 "tcp transport: %d lanes are open, and that is the limit",
				 FAB_LANES_MAX);
		goto unlock;
	}
	lane->slot = slot;
	for (struct fab_mr *mr = domain->mrs; mr && !ret; mr = mr->next)
		ret = reg_mr_in_lane(mr, lane);
	if (ret) {
		for (struct fab_mr *mr = domain->mrs; mr; mr = mr->next)
			dereg_mr_in_lane(mr, slot);
		lane->slot = FAB_LANES_MAX;
		ret = tp_fabric_error(err, ret, MF_SCOPE_LANE, "memory registration");
		goto unlock;
	}
	domain->lanes[slot] = lane;
unlock:
	(void)pthread_mutex_unlock(&domain->lock);
	return ret;
}

void tp_fabric_detach_lane(struct fab_domain *domain, struct fab_lane *lane)
{
	if (lane->slot == FAB_LANES_MAX)
		return;
	(void)pthread_mutex_lock(&domain->lock);
	assert(domain->lanes[lane->slot] == lane);
	for (struct fab_mr *mr = domain->mrs; mr; mr = mr->next)
		dereg_mr_in_lane(mr, lane->slot);
	domain->lanes[lane->slot] = NULL;
	(void)pthread_mutex_unlock(&domain->lock);
	lane->slot = FAB_LANES_MAX;
}

static void domain_stats(const struct tp_domain *base, struct tp_domain_stats *ret_stats)
{
	const struct fab_domain *domain = BASE_CONTAINER_OF(base, const struct fab_domain, base);

	/* Nothing is pinned, and the sockets, which know what was sent again, are the provider's. */
	*ret_stats = (struct tp_domain_stats){
		.registrations = __atomic_load_n(&domain->n_mrs, __ATOMIC_RELAXED),
	};
}

static int64_t of_interface(const struct tp_interface *interface, const char *file, int64_t instead)
{
	char path[128];

	(void)snprintf(path, sizeof(path), "/sys/class/net/%s/%s", interface->name, file);
	return tp_read_number(path, instead);
}

/* Every address of every interface; TCP has no devices but those. */
static int paths(struct tp_path *ret, unsigned cap)
{
	struct tp_interface *list base_cleanup(base_freep) = calloc(cap + 1, sizeof(*list));
	if (!list)
		return -ENOMEM;
	int n = tp_interfaces(list, cap);
	for (int i = 0; i < n && (unsigned)i < cap; i++) {
		tp_path_of(&list[i], &ret[i]);
		memcpy(ret[i].device, list[i].name, sizeof(list[i].name));
		(void)snprintf(ret[i].detail, sizeof(ret[i].detail), "MTU %" PRId64,
			       of_interface(&list[i], "mtu", 0));
		/* -1, or an error: it is down, or has none (bridges, tunnels). */
		int64_t mbit = of_interface(&list[i], "speed", 0);
		ret[i].mbit_per_s = mbit > 0 ? (uint64_t)mbit : 0;
		ret[i].numa_node = (int)of_interface(&list[i], "device/numa_node", -1);
	}
	return n;
}

static const char *version(char *buf, size_t cap)
{
	(void)snprintf(buf, cap, "libfabric %u.%u", FI_MAJOR(fi_version()), FI_MINOR(fi_version()));
	return buf;
}

const struct tp_ops tp_fabric_ops = {
	.name = "fabric",
	.kind = "tcp",
	.version = version,
	.caps = TP_CAP_TARGET_PROGRESS,
	.domain_open = domain_open,
	.domain_close = domain_close,
	.domain_limits = domain_limits,
	.domain_stats = domain_stats,
	.paths = paths,
	.mr_reg = mr_reg,
	.mr_dereg = mr_dereg,
	.mr_remote = mr_remote,
	.listen = tp_fabric_listen,
	.listener_addr = tp_fabric_listener_addr,
	.accept = tp_fabric_accept,
	.listener_close = tp_fabric_listener_close,
	.connect = tp_fabric_connect,
	.lane_shutdown = tp_fabric_lane_shutdown,
	.lane_close = tp_fabric_lane_close,
	.post_write = tp_fabric_post_write,
	.post_read = tp_fabric_post_read,
	.post_flush = tp_fabric_post_flush,
	.post_send = tp_fabric_post_send,
	.post_receive = tp_fabric_post_receive,
	.lane_poll = tp_fabric_lane_poll,
	.lane_arm = tp_fabric_lane_arm,
	.lane_wait = tp_fabric_lane_wait,
	.lane_wake = tp_fabric_lane_wake,
	.lane_stats = tp_fabric_lane_stats,
};
