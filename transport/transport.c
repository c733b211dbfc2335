/* SPDX-License-Identifier: BSD-2-Clause */
/* The registry of backends, and the only callers of their tables. */
#include "transport/transport.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <string.h>

#ifdef MF_HAVE_VERBS
extern const struct tp_ops tp_verbs_ops;
#endif
#ifdef MF_HAVE_FABRIC
extern const struct tp_ops tp_fabric_ops;
#endif

static const struct tp_ops *const backends[] = {
#ifdef MF_HAVE_VERBS
	&tp_verbs_ops,
#endif
#ifdef MF_HAVE_FABRIC
	&tp_fabric_ops,
#endif
	NULL,
};

const struct tp_ops *const *tp_backends(void)
{
	return backends;
}

const struct tp_ops *tp_find(const char *name)
{
	for (size_t i = 0; backends[i]; i++) {
		if (!strcmp(backends[i]->name, name) || !strcmp(backends[i]->kind, name))
			return backends[i];
	}
	return NULL;
}

bool tp_are_neighbours(const char *a, uint32_t prefix_a, const char *b, uint32_t prefix_b)
{
	uint8_t x[16], y[16];
	int family = strchr(a, ':') ? AF_INET6 : AF_INET;
	uint32_t bits = family == AF_INET6 ? 128 : 32;
	if (prefix_a != prefix_b || prefix_a > bits || inet_pton(family, a, x) != 1 ||
	    inet_pton(family, b, y) != 1)
		return false;
	for (uint32_t i = 0; i < prefix_a; i++) {
		if ((x[i / 8] ^ y[i / 8]) & 0x80 >> i % 8)
			return false;
	}
	return true;
}

int tp_domain_open(const struct tp_ops *ops, const struct tp_domain_params *params,
		   struct tp_domain **ret_domain, struct mf_error *err)
{
	assert(params->depth > 0);
	return ops->domain_open(ops, params, ret_domain, err);
}

void tp_domain_close(struct tp_domain *domain)
{
	if (domain)
		domain->ops->domain_close(domain);
}

void tp_domain_limits(const struct tp_domain *domain, struct tp_limits *ret_limits)
{
	domain->ops->domain_limits(domain, ret_limits);
}

void tp_domain_stats(const struct tp_domain *domain, struct tp_domain_stats *ret_stats)
{
	domain->ops->domain_stats(domain, ret_stats);
}

int tp_paths(const struct tp_ops *ops, struct tp_path *ret, unsigned cap)
{
	return ops->paths(ret, cap);
}

int tp_mr_reg(struct tp_domain *domain, void *addr, uint64_t len, uint32_t access,
	      struct tp_mr **ret_mr, struct mf_error *err)
{
	assert(addr && len);
	return domain->ops->mr_reg(domain, addr, len, access, ret_mr, err);
}

void tp_mr_dereg(struct tp_mr *mr)
{
	if (mr)
		mr->domain->ops->mr_dereg(mr);
}

void tp_mr_remote(const struct tp_mr *mr, struct tp_remote *ret_remote)
{
	mr->domain->ops->mr_remote(mr, ret_remote);
}

int tp_listen(struct tp_domain *domain, const char *addr, struct tp_listener **ret_listener,
	      struct mf_error *err)
{
	return domain->ops->listen(domain, addr, ret_listener, err);
}

void tp_listener_addr(const struct tp_listener *listener, char *ret, size_t cap)
{
	listener->domain->ops->listener_addr(listener, ret, cap);
}

int tp_accept(struct tp_listener *listener, const uint8_t token[TP_TOKEN_SIZE],
	      uint64_t deadline_us, struct tp_lane **ret_lane, struct mf_error *err)
{
	return listener->domain->ops->accept(listener, token, deadline_us, ret_lane, err);
}

void tp_listener_close(struct tp_listener *listener)
{
	if (listener)
		listener->domain->ops->listener_close(listener);
}

int tp_connect(struct tp_domain *domain, const char *addr, const uint8_t token[TP_TOKEN_SIZE],
	       uint32_t lane_id, uint64_t deadline_us, struct tp_lane **ret_lane,
	       struct mf_error *err)
{
	return domain->ops->connect(domain, addr, token, lane_id, deadline_us, ret_lane, err);
}

void tp_lane_shutdown(struct tp_lane *lane)
{
	lane->domain->ops->lane_shutdown(lane);
}

void tp_lane_close(struct tp_lane *lane)
{
	if (lane)
		lane->domain->ops->lane_close(lane);
}

int tp_lane_lend(struct tp_lane *lane, struct tp_mr *const *mr, unsigned n, uint32_t access,
		 uint64_t deadline_us, struct tp_remote *ret_remote)
{
	for (unsigned i = 0; i < n; i++)
		assert(mr[i]->domain == lane->domain && mr[i]->access & TP_LENDABLE);
	if (!lane->domain->ops->lane_lend)
		return -EOPNOTSUPP;
	return lane->domain->ops->lane_lend(lane, mr, n, access, deadline_us, ret_remote);
}

int tp_lane_revoke(struct tp_lane *lane, uint64_t deadline_us)
{
	if (!lane->domain->ops->lane_revoke)
		return -EOPNOTSUPP;
	return lane->domain->ops->lane_revoke(lane, deadline_us);
}

static void check_xfer(const struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n)
{
	assert(n > 0);
	for (unsigned i = 0; i < n; i++) {
		const char *start = xfer[i].mr->addr, *local = xfer[i].local;
		assert(xfer[i].mr->domain == lane->domain && xfer[i].len > 0);
		assert(local >= start && xfer[i].len <= xfer[i].mr->len &&
		       (uint64_t)(local - start) <= xfer[i].mr->len - xfer[i].len);
	}
}

int tp_post_write(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n)
{
	check_xfer(lane, xfer, n);
	return lane->domain->ops->post_write(lane, xfer, n);
}

int tp_post_read(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n)
{
	check_xfer(lane, xfer, n);
	return lane->domain->ops->post_read(lane, xfer, n);
}

int tp_post_flush(struct tp_lane *lane, uint64_t cookie)
{
	return lane->domain->ops->post_flush(lane, cookie);
}

int tp_post_send(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n)
{
	check_xfer(lane, xfer, n);
	return lane->domain->ops->post_send(lane, xfer, n);
}

int tp_post_receive(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n)
{
	check_xfer(lane, xfer, n);
	return lane->domain->ops->post_receive(lane, xfer, n);
}

int tp_lane_poll(struct tp_lane *lane, struct tp_wc *wc, unsigned n)
{
	return lane->domain->ops->lane_poll(lane, wc, n);
}

int tp_lane_arm(struct tp_lane *lane, int *ret_fd)
{
	return lane->domain->ops->lane_arm(lane, ret_fd);
}

int tp_lane_wait(struct tp_lane *lane, uint64_t deadline_us)
{
	return lane->domain->ops->lane_wait(lane, deadline_us);
}

void tp_lane_wake(struct tp_lane *lane)
{
	lane->domain->ops->lane_wake(lane);
}

void tp_lane_stats(const struct tp_lane *lane, struct tp_lane_stats *ret_stats)
{
	lane->domain->ops->lane_stats(lane, ret_stats);
}
