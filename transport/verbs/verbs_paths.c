/* SPDX-License-Identifier: BSD-2-Clause */
/* The ways out of this host over RDMA: what addresses its devices have, and what is behind them;
 * and what the kernel counts there. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "transport/verbs/verbs_priv.h"

/* Addresses of interfaces that are looked at, and entries of a device's GID table. */
#define INTERFACES_MAX 512
#define GIDS_MAX       1024

/* Bits of a number that is one of these: IBTA vol. 1, 14.2.5.6 (LinkWidthActive, LinkSpeedActive). */
static unsigned lanes_of(uint8_t width)
{
	switch (width) {
	case 1:
		return 1;
	case 2:
		return 4;
	case 4:
		return 8;
	case 8:
		return 12;
	case 16:
		return 2;
	default:
		return 0;
	}
}

static uint64_t mbit_of(uint8_t speed)
{
	switch (speed) {
	case 1:
		return 2500;
	case 2:
		return 5000;
	case 4: /* QDR */
	case 8: /* FDR10 */
		return 10000;
	case 16: /* FDR */
		return 14000;
	case 32: /* EDR */
		return 25000;
	case 64: /* HDR */
		return 50000;
	case 128: /* NDR */
		return 100000;
	default:
		return 0;
	}
}

/* The GID that stands for the address, or the first of an InfiniBand port: its index, or -1. */
static int describe_gid(struct ibv_context *context, uint8_t port, bool infiniband,
			const struct sockaddr_storage *addr, char *ret, size_t cap)
{
	struct ibv_gid_entry *table base_cleanup(base_freep) = calloc(GIDS_MAX, sizeof(*table));
	struct in6_addr want = { 0 };
	char text[INET6_ADDRSTRLEN];

	if (addr->ss_family == AF_INET6) {
		want = ((const struct sockaddr_in6 *)addr)->sin6_addr;
	} else {
		want.s6_addr[10] = want.s6_addr[11] = 0xff;
		memcpy(&want.s6_addr[12], &((const struct sockaddr_in *)addr)->sin_addr, 4);
	}
	ssize_t n = table ? ibv_query_gid_table(context, table, GIDS_MAX, 0) : 0;
	for (ssize_t i = 0; i < n; i++) {
		const struct ibv_gid_entry *at = &table[i];
		bool fits = infiniband ? at->gid_type == IBV_GID_TYPE_IB && !at->gid_index
				       : at->gid_type == IBV_GID_TYPE_ROCE_V2 &&
						 !memcmp(at->gid.raw, &want, sizeof(want));
		if (at->port_num != port || !fits)
			continue;
		(void)snprintf(ret, cap, ", GID %u %s", at->gid_index,
			       inet_ntop(AF_INET6, at->gid.raw, text, sizeof(text)));
		return (int)at->gid_index;
	}
	*ret = '\0';
	return -1;
}

/* False: none of ours. */
static bool describe(const struct rdma_cm_id *id, const struct tp_interface *interface,
		     struct tp_path *ret_path)
{
	struct ibv_device *device = id->verbs->device;
	struct ibv_port_attr port;
	char path[256], gid[72];

	if (device->transport_type != IBV_TRANSPORT_IB ||
	    ibv_query_port(id->verbs, id->port_num, &port))
		return false;
	bool infiniband = port.link_layer == IBV_LINK_LAYER_INFINIBAND;
	tp_path_of(interface, ret_path);
	(void)snprintf(ret_path->device, sizeof(ret_path->device), "%s",
		       ibv_get_device_name(device));
	ret_path->gid_index = describe_gid(id->verbs, id->port_num, infiniband, &interface->addr,
					   gid, sizeof(gid));
	(void)snprintf(ret_path->detail, sizeof(ret_path->detail), "port %u, %s%s", id->port_num,
		       infiniband ? "InfiniBand" : "RoCE v2", gid);
	ret_path->up = port.state == IBV_PORT_ACTIVE;
	ret_path->mbit_per_s = lanes_of(port.active_width) * mbit_of(port.active_speed);
	(void)snprintf(path, sizeof(path), "/sys/class/infiniband/%s/device/numa_node",
		       ret_path->device);
	ret_path->numa_node = (int)tp_read_number(path, -1);
	return true;
}

/* 1: it is a path. */
static int look_at(struct rdma_event_channel *channel, const struct tp_interface *interface,
		   struct tp_path *ret_path)
{
	struct rdma_cm_id *id;
	int found = 0;

	if (rdma_create_id(channel, &id, NULL, RDMA_PS_TCP))
		return -errno;
	if (!rdma_bind_addr(id, (struct sockaddr *)&interface->addr) && id->verbs)
		found = describe(id, interface, ret_path);
	(void)rdma_destroy_id(id);
	return found;
}

int tp_verbs_paths(struct tp_path *ret, unsigned cap)
{
	struct tp_interface *list base_cleanup(base_freep) = NULL;
	struct tp_path path;
	int n_devices = 0, found = 0;

	struct ibv_device **devices = ibv_get_device_list(&n_devices);
	if (devices)
		ibv_free_device_list(devices);
	if (n_devices <= 0)
		return 0;
	list = calloc(INTERFACES_MAX, sizeof(*list));
	if (!list)
		return -ENOMEM;
	int n = tp_interfaces(list, INTERFACES_MAX);
	if (n > INTERFACES_MAX)
		n = INTERFACES_MAX;
	struct rdma_event_channel *channel = n > 0 ? rdma_create_event_channel() : NULL;
	if (!channel)
		return n < 0 ? n : 0;
	for (int i = 0; i < n; i++) {
		if (look_at(channel, &list[i], &path) <= 0)
			continue;
		if ((unsigned)found < cap)
			ret[found] = path;
		found++;
	}
	rdma_destroy_event_channel(channel);
	return found;
}

/* Each counts one reason for which a requester begins again.  Files in hw_counters, by driver. */
static const char *const retransmit_counters[] = {
	"completer_retry_err",   /* rxe: rxe_hw_counters.c; all reasons */
	"local_ack_timeout_err", /* mlx5, mlx5/counters.c: no answer */
	"packet_seq_err",        /* mlx5: the responder missed one */
	"implied_nak_seq_err",   /* mlx5: an answer to a read was missing */
	"rnr_nak_retry_err",     /* mlx5: the responder was not ready */
	"to_retransmits",        /* bnxt_re, bnxt_re/hw_counters.c: no answer */
	"seq_err_naks_rcvd",     /* bnxt_re: the responder missed one */
	"rnr_naks_rcvd",         /* bnxt_re: the responder was not ready */
};

uint64_t tp_verbs_retransmits(const char *device, uint8_t port)
{
	uint64_t sum = 0;
	char path[256];

	for (size_t i = 0; i < BASE_ARRAY_LEN(retransmit_counters); i++) {
		(void)snprintf(path, sizeof(path),
			       "/sys/class/infiniband/%s/ports/%u/hw_counters/%s", device, port,
			       retransmit_counters[i]);
		int64_t n = tp_read_number(path, 0);
		sum += n > 0 ? (uint64_t)n : 0;
	}
	return sum;
}
