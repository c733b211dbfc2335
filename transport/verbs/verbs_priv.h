/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The transport over RDMA verbs: libibverbs for the data, librdmacm for connections.  InfiniBand
 * and RoCE; iWARP devices are refused.
 *
 *   tp_domain ── ibv_context, ibv_pd: one device, found by the local address
 *     └ mr    ── ibv_mr, usable on every lane
 *     └ lane  ── rdma_cm_id with its event channel, ibv_qp (RC), ibv_cq with its channel
 *
 * Queue pairs are ours and not librdmacm's (rdma_create_qp): so is the ibv_context, and with it the
 * descriptor of asynchronous events, which librdmacm would share between all domains of a process.
 *
 * What the hardware does not give, and who does:
 *   back pressure    sent.posted - sent.taken never exceeds depth, and the queues hold depth
 *   cookies          a ring of them by sequence number, which is the wr_id: a signalled completion
 *                    completes the unsignalled operations before it (verbs_lane.c)
 *   lending          memory windows, bound and invalidated by requests of the lane's own
 *                    (verbs_window.c)
 *   delivery         a READ of 8 bytes of the peer's scratch memory behind the writes
 *   admission        a token in the connect request, checked before there is a queue pair (verbs_cm.c)
 *   dead peers       the CM's disconnect event, asynchronous events, retry timeouts of the queue pair
 *
 * Messages meet a receive that is there, as their sender sees to it (T14); one that comes before the first of them is sent
 * again after VRB_RNR_TIMER.
 */
#ifndef VERBS_PRIV_H
#define VERBS_PRIV_H

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "base/error.h"
#include "transport/addr.h"
#include "transport/transport.h"

#define VRB_DEPTH_MAX 4096u
/* Requests of a lane's own at a time, beside the operations of its user. */
#define VRB_OWN_MAX 16u
/* One read or write; more would keep a lane's other work waiting for too long. */
#define VRB_OP_MAX (1ull << 30)
/* A queue pair of ConnectX-4 starts 2.6 million writes a second (perftest, 2 bytes) and moves 12
 * GB/s at 100 Gbit/s: 4.6 KB go in the time of one.  Soft-RoCE: 0.5 to 1.5 KiB (perf/versus). */
#define VRB_GAP (4ull << 10)
/* Tries again of a request without acknowledgement, and without a receive.  Three bits each; 7 is
 * for ever with the latter, and with Soft-RoCE also with the former (rxe_comp.c). */
#define VRB_RETRIES     6u
#define VRB_RNR_RETRIES 7u
#define VRB_SILENCE_MS  3000u
/* How long a peer is to wait that asks for memory which the device first has to ask us for, or sends what meets no
 * receive yet: 60 us.  The CM's choice is 0, which is 655 ms. */
#define VRB_RNR_TIMER 5u

/* mlx5 writes a window's length into 32 bits and checks nothing (rdma-core, set_umr_data_seg). */
#define VRB_WINDOW_MAX (1ull << 31)

struct vrb_mr {
	struct tp_mr base;
	struct ibv_mr *mr;
};

/* Memory that peers read to flush, and where we put what we read of theirs. */
struct vrb_scratch {
	uint64_t lent;
	uint64_t apart[7]; /* another cache line */
	uint64_t sink;
};

struct vrb_domain {
	struct tp_domain base;
	/* read-only after opening */
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_device_attr attr;
	uint32_t depth, receives;
	uint64_t max_op;
	uint8_t port;
	uint64_t retransmits; /* that the port counted when the domain was opened */
	uint8_t ack_timeout;  /* 4.096 us * 2^this for each try */
	bool windows, on_demand;
	struct sockaddr_storage local; /* ss_family AF_UNSPEC: any address of the device */
	struct vrb_scratch *scratch;
	struct ibv_mr *lent_mr, *sink_mr;
	/* any thread, atomic */
	uint64_t n_windows; /* lent now */
	uint64_t n_mrs, bytes_pinned;
	/* lock protects what follows */
	pthread_mutex_t lock;
	struct vrb_lane *lanes; /* those with a queue pair: whom asynchronous events may concern */
};

struct vrb_listener {
	struct tp_listener base;
	struct rdma_event_channel *channel;
	struct rdma_cm_id *id;
	char addr[TP_ADDR_MAX];
};

struct vrb_op {
	uint64_t cookie;
	int status;
	uint32_t len; /* of what was received */
};

/* Operations by sequence number: taken <= done <= posted. */
struct vrb_ring {
	uint64_t posted, done, taken;
	struct vrb_op *ops; /* number n is ops[n & mask] */
	uint32_t mask;      /* of the power of two that all fit into */
};

struct vrb_lane {
	struct tp_lane base;
	/* read-only after connecting */
	struct rdma_event_channel *channel;
	struct rdma_cm_id *id;
	struct ibv_comp_channel *comp;
	struct ibv_cq *cq;
	uint8_t port;
	int wake_fd;
	int wait_fd; /* epoll over the CQ's, the CM's and the device's events, and wake_fd */
	struct {
		uint64_t addr;
		uint32_t key;
	} peer_scratch;
	/* protected by domain->lock */
	struct vrb_lane *next, *prev;
	bool listed;
	/* The code of an asynchronous event, set by whichever lane's owner came across it. */
	_Atomic int struck;
	/* owner thread */
	struct ibv_qp *qp; /* NULL after the lane has failed */
	int failed;        /* 0 or the negative code that the lane died of */
	bool slept;        /* since the last poll */
	bool armed;        /* the CQ is going to say, or has said, something to comp */
	uint32_t depth, receives, quiet;
	uint32_t signal_every;
	struct vrb_ring sent;     /* at most depth */
	struct vrb_ring received; /* at most receives */
	/* Requests of the lane's own (verbs_window.c), with numbers of their own. */
	uint64_t own_posted, own_done;
	struct ibv_mw **windows; /* the first n_lent are bound */
	unsigned n_windows, n_lent;
	struct tp_lane_stats stats;
};

extern const struct tp_ops tp_verbs_ops;

/* verbs_domain.c */
/* Takes asynchronous events of the device and tells the lanes that they concern. */
void tp_verbs_take_async(struct vrb_domain *domain);
void tp_verbs_list_lane(struct vrb_domain *domain, struct vrb_lane *lane);
void tp_verbs_unlist_lane(struct vrb_domain *domain, struct vrb_lane *lane);

/* verbs_paths.c */
int tp_verbs_paths(struct tp_path *ret, unsigned cap);
/* What the port has sent again, as far as its driver counts it. */
uint64_t tp_verbs_retransmits(const char *device, uint8_t port);

/* verbs_lane.c */
/* A lane around an id whose device is the domain's, with a queue pair in INIT.  The id and its
 * channel are the lane's from here on, also on failure. */
int tp_verbs_lane_create(struct vrb_domain *domain, struct rdma_event_channel *channel,
			 struct rdma_cm_id *id, uint32_t lane_id, struct vrb_lane **ret_lane,
			 struct mf_error *err);
void tp_verbs_lane_destroy(struct vrb_lane *lane);
void tp_verbs_fail_lane(struct vrb_lane *lane, int code);
/* Posts n requests of the lane's own, at most VRB_OWN_MAX, and sleeps until they have completed.
 * 0, or the code with which the lane has failed. */
int tp_verbs_run_own(struct vrb_lane *lane, struct ibv_send_wr *wr, unsigned n,
		     uint64_t deadline_us);
void tp_verbs_lane_shutdown(struct tp_lane *lane);
void tp_verbs_lane_close(struct tp_lane *lane);
int tp_verbs_post_write(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_verbs_post_read(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_verbs_post_flush(struct tp_lane *lane, uint64_t cookie);
int tp_verbs_post_send(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_verbs_post_receive(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_verbs_lane_poll(struct tp_lane *lane, struct tp_wc *wc, unsigned n);
int tp_verbs_lane_arm(struct tp_lane *lane, int *ret_fd);
int tp_verbs_lane_wait(struct tp_lane *lane, uint64_t deadline_us);
void tp_verbs_lane_wake(struct tp_lane *lane);
void tp_verbs_lane_stats(const struct tp_lane *lane, struct tp_lane_stats *ret_stats);

/* verbs_window.c */
void tp_verbs_free_windows(struct vrb_lane *lane);
int tp_verbs_lane_lend(struct tp_lane *lane, struct tp_mr *const *mr, unsigned n, uint32_t access,
		       uint64_t deadline_us, struct tp_remote *ret_remote);
int tp_verbs_lane_revoke(struct tp_lane *lane, uint64_t deadline_us);

/* verbs_cm.c */
/* An event without what librdmacm keeps: it has been acknowledged. */
struct vrb_event {
	enum rdma_cm_event_type type;
	int status;
	struct rdma_cm_id *id;
	uint8_t responder_resources, initiator_depth;
	uint8_t data[UINT8_MAX];
	uint8_t len; /* of data; may be more than was sent, filled up with zeroes */
};
/* A channel whose events are taken without blocking. */
int tp_verbs_channel_open(struct rdma_event_channel **ret_channel);
/* -EAGAIN: none. */
int tp_verbs_channel_next(struct rdma_event_channel *channel, struct vrb_event *ret_event);
/* The same, sleeping until the deadline: -ETIMEDOUT. */
int tp_verbs_channel_wait(struct rdma_event_channel *channel, uint64_t deadline_us,
			  struct vrb_event *ret_event);
int tp_verbs_connect(struct tp_domain *domain, const char *addr, const uint8_t token[TP_TOKEN_SIZE],
		     uint32_t lane_id, uint64_t deadline_us, struct tp_lane **ret_lane,
		     struct mf_error *err);
int tp_verbs_listen(struct tp_domain *domain, const char *addr, struct tp_listener **ret_listener,
		    struct mf_error *err);
void tp_verbs_listener_addr(const struct tp_listener *listener, char *ret, size_t cap);
int tp_verbs_accept(struct tp_listener *listener, const uint8_t token[TP_TOKEN_SIZE],
		    uint64_t deadline_us, struct tp_lane **ret_lane, struct mf_error *err);
void tp_verbs_listener_close(struct tp_listener *listener);

#endif
