/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The transport over libfabric's tcp provider (1.17 and 2.x), FI_EP_MSG.
 *
 *   tp_domain ── fid_fabric
 *     └ lane  ── fid_domain, fid_eq, fid_cq, fid_ep: one of each, nothing shared
 *     └ mr    ── one fid_mr per lane, all under the same random key
 *
 * A lane has a fid_domain of its own because 2.x serialises all endpoints of one under one
 * lock.  What follows: a registration has to be repeated in every lane, those that come later
 * included.  domain->lock covers the lists that this needs; the provider's own locks
 * (FI_THREAD_SAFE) cover registering in a lane that another thread is driving.
 *
 * What the provider does not give, and who does:
 *   back pressure    lane->free: a post takes an op or gets -EAGAIN
 *   completion once  op->busy: 1.17 reports a read twice when the connection breaks in its
 *                    middle, and nothing may be lost either (fabric_lane.c)
 *   delivery         a flagged write of 8 bytes into scratch memory that both sides exchange
 *                    while connecting; acknowledgements come in order, so it covers all before it
 *   admission        a token in the connect request, checked before fi_accept (fabric_cm.c)
 *   half-open peers  fabric_listen.c closes them
 */
#ifndef FABRIC_PRIV_H
#define FABRIC_PRIV_H

#include <netinet/in.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/socket.h>

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

#include "base/error.h"
#include "transport/addr.h"
#include "transport/transport.h"

#define FAB_VERSION   FI_VERSION(1, 17)
#define FAB_LANES_MAX 64
#define FAB_DEPTH_MAX 4096
/* One read or write; more would keep a lane's other work waiting for too long. */
#define FAB_OP_MAX (1ull << 30)
/* fi_rma_bw over loopback, 1.17: 4 KiB at 0.9 GB/s, 1 MiB at 4.3: an operation costs 3.6 us, in
 * which 15 KiB go.  Between 4 and 64 KiB, where copying dominates, perf/versus says 4 to 7. */
#define FAB_GAP (16ull << 10)
/* The provider's limit for connection data, in both versions. */
#define FAB_CM_DATA_MAX 256

struct fab_mr {
	struct tp_mr base;
	uint64_t key;
	/* protected by domain->lock */
	struct fab_mr *next, *prev;
	struct fid_mr *fids[FAB_LANES_MAX]; /* by lane->slot; NULL: no such lane */
};

struct fab_domain {
	struct tp_domain base;
	/* read-only after opening */
	struct fid_fabric *fabric;
	struct fi_info *info; /* a template: provider, capabilities, mr_mode */
	uint64_t mr_mode;
	uint32_t depth, receives;
	struct sockaddr_storage local; /* ss_family AF_UNSPEC: any */
	/* lock protects what follows */
	pthread_mutex_t lock;
	struct fab_mr *mrs;
	uint64_t n_mrs;
	struct fab_lane *lanes[FAB_LANES_MAX];
};

struct fab_listener {
	struct tp_listener base;
	struct fid_pep *pep;
	struct fid_eq *eq;
	int eq_fd;
	uint16_t port;
	char addr[TP_ADDR_MAX];
};

/* An operation in flight; its address is the provider's context for it. */
struct fab_op {
	uint64_t cookie;
	bool busy;
};

struct fab_lane {
	struct tp_lane base;
	/* read-only after connecting */
	unsigned slot; /* FAB_LANES_MAX: not in the domain's table */
	struct fid_domain *domain;
	struct fid_eq *eq;
	struct fid_cq *cq;
	struct fid_ep *ep;
	int eq_fd, wake_fd;
	int wait_fd;         /* epoll over the CQ's, the EQ's and wake_fd */
	uint64_t scratch[2]; /* [0] is the peer's to write, [1] what we write there */
	struct fid_mr *scratch_mr[2];
	uint64_t scratch_key;
	struct tp_remote peer_scratch;
	/* owner thread */
	int failed; /* 0 or the negative code that the lane died of */
	bool slept; /* since the last poll */
	uint32_t depth, n_ops, in_flight, quiet;
	struct fab_op *ops; /* n_ops: depth of them, and then receives */
	struct fab_stack {
		struct fab_op **op;
		uint32_t n;
	} free, free_receives;
	/* Completions that lane_wait() came across, for the next poll: a ring of n_ops entries. */
	struct tp_wc *kept;
	uint32_t kept_first, n_kept;
	struct tp_lane_stats stats;
};

extern const struct tp_ops tp_fabric_ops;

/* fabric_err.c */
/* A libfabric return value as one of ours. */
int tp_fabric_code(ssize_t ret);
int tp_fabric_error(struct mf_error *err, ssize_t ret, enum mf_scope scope, const char *fmt, ...)
	MF_PRINTF(4, 5);
/* Next event of the EQ into buf: its length >= 0 and *ret_event; -EAGAIN for none; for an error
 * event its negative code, with what the peer sent along in buf and *ret_len. */
ssize_t tp_fabric_eq_read(struct fid_eq *eq, uint32_t *ret_event, void *buf, size_t cap,
			  size_t *ret_len);
/* The same, sleeping until the deadline: -ETIMEDOUT. */
ssize_t tp_fabric_eq_wait(struct fid_fabric *fabric, struct fid_eq *eq, int eq_fd,
			  uint64_t deadline_us, uint32_t *ret_event, void *buf, size_t cap,
			  size_t *ret_len);

/* fabric_addr.c */
/* What to ask of fi_getinfo(); src and dst may be NULL.  Freed by fi_freeinfo(). */
int tp_fabric_getinfo(const struct sockaddr *src, const struct sockaddr *dst,
		      struct fi_info **ret_info, struct mf_error *err);

/* fabric_domain.c */
int tp_fabric_random_key(uint64_t *ret_key, struct mf_error *err);
/* Registers in one lane's fid_domain, with rights in our terms. */
int tp_fabric_reg_in_lane(struct fab_lane *lane, void *addr, uint64_t len, uint32_t access,
			  uint64_t key, struct fid_mr **ret_fid);
/* Makes all memory of the domain, also that to come, known to the lane; and the opposite. */
int tp_fabric_attach_lane(struct fab_domain *domain, struct fab_lane *lane, struct mf_error *err);
void tp_fabric_detach_lane(struct fab_domain *domain, struct fab_lane *lane);

/* fabric_lane.c */
/* All of a lane but its connection: registered, enabled, not connected. */
int tp_fabric_lane_create(struct fab_domain *domain, struct fi_info *info, uint32_t id,
			  struct fab_lane **ret_lane, struct mf_error *err);
void tp_fabric_lane_destroy(struct fab_lane *lane);
void tp_fabric_lane_shutdown(struct tp_lane *lane);
void tp_fabric_lane_close(struct tp_lane *lane);
int tp_fabric_post_write(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_fabric_post_read(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_fabric_post_flush(struct tp_lane *lane, uint64_t cookie);
int tp_fabric_post_send(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_fabric_post_receive(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_fabric_lane_poll(struct tp_lane *lane, struct tp_wc *wc, unsigned n);
int tp_fabric_lane_arm(struct tp_lane *lane, int *ret_fd);
int tp_fabric_lane_wait(struct tp_lane *lane, uint64_t deadline_us);
void tp_fabric_lane_wake(struct tp_lane *lane);
void tp_fabric_lane_stats(const struct tp_lane *lane, struct tp_lane_stats *ret_stats);

/* fabric_cm.c, fabric_listen.c */
int tp_fabric_connect(struct tp_domain *domain, const char *addr,
		      const uint8_t token[TP_TOKEN_SIZE], uint32_t lane_id, uint64_t deadline_us,
		      struct tp_lane **ret_lane, struct mf_error *err);
/* Answers one connection request: 1 and a lane, 0 when the peer was refused or went away, or a
 * negative code for what is wrong here.  Consumes info. */
int tp_fabric_answer(struct fab_listener *listener, struct fi_info *info, const void *hello,
		     size_t hello_len, const uint8_t token[TP_TOKEN_SIZE],
		     struct fab_lane **ret_lane, struct mf_error *err);
int tp_fabric_listen(struct tp_domain *domain, const char *addr, struct tp_listener **ret_listener,
		     struct mf_error *err);
void tp_fabric_listener_addr(const struct tp_listener *listener, char *ret, size_t cap);
int tp_fabric_accept(struct tp_listener *listener, const uint8_t token[TP_TOKEN_SIZE],
		     uint64_t deadline_us, struct tp_lane **ret_lane, struct mf_error *err);
void tp_fabric_listener_close(struct tp_listener *listener);

#endif
