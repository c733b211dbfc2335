/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A lane's data path: posting, completions, waiting, dying.
 *
 * Operations are numbered as they are posted, and the number is the wr_id.  One queue pair works
 * them off in order, so a completion with number n is the completion of all up to n; only every
 * few are signalled, and always the last of a call, after which nothing need ever follow.
 *
 * A lane dies once and for all: by shutdown, an error of any operation, or an event of the CM or
 * the device.  Its queue pair is destroyed at that moment: from then on the device touches none of
 * the memory, and what had not completed is completed here, with the reason.
 *
 * A flush is a READ of 8 bytes behind the writes.  A WRITE's acknowledgement says that the
 * responder has taken it in, not where the bytes are (IBTA vol. 1, 9.7.5.1.6).  The responder
 * of a reliable connection executes requests in order (IBTA vol. 1, 9.5); its read of host memory
 * does not pass the writes that it posted before, on no PCIe path (PCIe base specification, 2.4.1,
 * no relaxed ordering): when the read's data has come back, CPUs there see the writes.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "transport/stats.h"
#include "transport/verbs/verbs_priv.h"

/* Work requests chained at a time, completions taken at a time. */
#define POST_BATCH 32u
#define REAP_BATCH 32
/* At the latest so many operations, or so many bytes, until the next signalled one. */
#define SIGNAL_EVERY 16u
#define SIGNAL_BYTES (256u << 10)
/* Polls that find nothing until the CM and the device are looked at: two system calls, in which a
 * completion would go unseen for longer than in twenty polls. */
#define QUIET_POLLS 1024
/* In a wr_id: a request of the lane's own, or a receive, and the rest is its number among those. */
#define OWN      (1ull << 63)
#define RECEIVED (1ull << 62)

static struct vrb_lane *to_lane(struct tp_lane *base)
{
	return BASE_CONTAINER_OF(base, struct vrb_lane, base);
}

static struct vrb_domain *domain_of(const struct vrb_lane *lane)
{
	return BASE_CONTAINER_OF(lane->base.domain, struct vrb_domain, base);
}

static struct vrb_op *op_of(const struct vrb_ring *ring, uint64_t nr)
{
	return &ring->ops[nr & ring->mask];
}

static int alloc_ring(struct vrb_ring *ring, uint32_t most)
{
	uint32_t n = 1;

	while (n < most)
		n *= 2;
	ring->mask = n - 1;
	ring->ops = calloc(n, sizeof(*ring->ops));
	return ring->ops ? 0 : -ENOMEM;
}

static bool is_idle(const struct vrb_ring *ring)
{
	return ring->done == ring->posted;
}

static bool has_done(const struct vrb_ring *ring)
{
	return ring->taken < ring->done;
}

/* Creation */

static int set_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ? -errno : 0;
}

static int open_queues(struct vrb_lane *lane, struct vrb_domain *domain)
{
	lane->comp = ibv_create_comp_channel(domain->context);
	if (!lane->comp)
		return -errno;
	int ret = set_nonblocking(lane->comp->fd);
	if (ret)
		return ret;
	uint32_t entries = lane->depth + (domain->windows ? VRB_OWN_MAX : 0);
	lane->cq = ibv_create_cq(domain->context, (int)(entries + lane->receives), NULL, lane->comp,
				 0);
	if (!lane->cq)
		return -errno;
	struct ibv_qp_init_attr attr = {
		.qp_type = IBV_QPT_RC,
		.send_cq = lane->cq,
		.recv_cq = lane->cq,
		/* Not every driver takes an empty receive queue. */
		.cap = { .max_send_wr = entries,
			 .max_recv_wr = lane->receives ? lane->receives : 1,
			 .max_send_sge = 1,
			 .max_recv_sge = 1 },
	};
	lane->qp = ibv_create_qp(domain->pd, &attr);
	return lane->qp ? 0 : -errno;
}

static int open_descriptors(struct vrb_lane *lane, const struct vrb_domain *domain, int cm_fd)
{
	lane->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	lane->wait_fd = epoll_create1(EPOLL_CLOEXEC);
	if (lane->wake_fd < 0 || lane->wait_fd < 0)
		return -errno;
	const int fds[] = { lane->comp->fd, cm_fd, domain->context->async_fd, lane->wake_fd };
	for (unsigned i = 0; i < BASE_ARRAY_LEN(fds); i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.fd = fds[i] };
		if (epoll_ctl(lane->wait_fd, EPOLL_CTL_ADD, fds[i], &event))
			return -errno;
	}
	return 0;
}

/* Both directions: which memory a peer may read or write is said by its registration. */
static int initialise_qp(struct vrb_lane *lane, struct rdma_cm_id *id)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT };
	int mask;

	if (rdma_init_qp_attr(id, &attr, &mask))
		return -ECONNRESET; /* the peer has gone */
	attr.qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
	return -ibv_modify_qp(lane->qp, &attr, mask | IBV_QP_ACCESS_FLAGS);
}

int tp_verbs_lane_create(struct vrb_domain *domain, struct rdma_event_channel *channel,
			 struct rdma_cm_id *id, uint32_t lane_id, struct vrb_lane **ret_lane,
			 struct mf_error *err)
{
	struct vrb_lane *lane = calloc(1, sizeof(*lane));
	if (!lane)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_LANE, "lane %u", lane_id);
	lane->base = (struct tp_lane){ .domain = &domain->base, .id = lane_id };
	lane->wake_fd = lane->wait_fd = -1;
	lane->depth = domain->depth;
	lane->receives = domain->receives;
	lane->signal_every = lane->depth / 4 < SIGNAL_EVERY ? lane->depth / 4 : SIGNAL_EVERY;
	lane->port = id->port_num;

	int ret = alloc_ring(&lane->sent, lane->depth);
	if (!ret)
		ret = alloc_ring(&lane->received, lane->receives);
	if (!ret)
		ret = open_queues(lane, domain);
	if (!ret)
		ret = open_descriptors(lane, domain, channel->fd);
	if (!ret)
		ret = initialise_qp(lane, id);
	if (ret) {
		tp_verbs_lane_destroy(lane);
		return base_error_sys(err, ret, MF_SCOPE_LANE, "lane %u: cannot be set up",
				      lane_id);
	}
	lane->channel = channel;
	lane->id = id;
	tp_verbs_list_lane(domain, lane);
	*ret_lane = lane;
	return 0;
}

/* Waits for whoever is dealing with its asynchronous events. */
static void destroy_qp(struct vrb_lane *lane)
{
	tp_verbs_unlist_lane(domain_of(lane), lane);
	if (!lane->qp)
		return;
	tp_verbs_free_windows(lane);
	int ret = ibv_destroy_qp(lane->qp);
	assert(!ret); /* else the device could go on */
	(void)ret;
	lane->qp = NULL;
}

void tp_verbs_lane_destroy(struct vrb_lane *lane)
{
	int ret = 0;

	destroy_qp(lane);
	if (lane->id)
		(void)rdma_destroy_id(lane->id);
	if (lane->channel)
		rdma_destroy_event_channel(lane->channel);
	if (lane->cq)
		ret |= ibv_destroy_cq(lane->cq);
	if (lane->comp)
		ret |= ibv_destroy_comp_channel(lane->comp);
	assert(!ret);
	(void)ret;
	base_closep(&lane->wait_fd);
	base_closep(&lane->wake_fd);
	free(lane->sent.ops);
	free(lane->received.ops);
	free(lane);
}

void tp_verbs_lane_close(struct tp_lane *base)
{
	struct vrb_lane *lane = to_lane(base);

	assert(lane->sent.taken == lane->sent.posted);
	assert(lane->received.taken == lane->received.posted);
	tp_verbs_lane_destroy(lane);
}

/* Completions and failure */

static void finish_to(struct vrb_ring *ring, uint64_t end, int status)
{
	assert(end <= ring->posted);
	for (; ring->done < end; ring->done++)
		op_of(ring, ring->done)->status = status;
}

static int code_of(enum ibv_wc_status status)
{
	switch (status) {
	case IBV_WC_SUCCESS:
		return 0;
	case IBV_WC_WR_FLUSH_ERR:
		return -ECONNRESET; /* the queue pair was in the error state already */
	case IBV_WC_REM_ACCESS_ERR:
		return -EACCES;
	case IBV_WC_RETRY_EXC_ERR:
	case IBV_WC_RNR_RETRY_EXC_ERR:
		return -ETIMEDOUT;
	case IBV_WC_LOC_PROT_ERR:
		return -EFAULT;
	case IBV_WC_LOC_LEN_ERR:
		return -EMSGSIZE;
	default:
		return -EIO;
	}
}

/* Takes what the CQ has.  Unsignalled operations that end in a failing one's shadow count as
 * failed: some devices tell of each of them, others of none. */
static void reap(struct vrb_lane *lane)
{
	struct ibv_wc wc[REAP_BATCH];
	int broken = lane->failed, n;

	do {
		bool idle = is_idle(&lane->sent) && is_idle(&lane->received) &&
			    lane->own_done == lane->own_posted;
		n = idle ? 0 : ibv_poll_cq(lane->cq, REAP_BATCH, wc);
		for (int i = 0; i < n; i++) {
			int code = code_of(wc[i].status);
			bool flushed = wc[i].status == IBV_WC_WR_FLUSH_ERR;
			int status = flushed && broken ? broken : code;
			if (wc[i].wr_id & OWN) {
				lane->own_done = (wc[i].wr_id & ~OWN) + 1;
			} else if (wc[i].wr_id & RECEIVED) {
				uint64_t nr = wc[i].wr_id & ~RECEIVED;
				op_of(&lane->received, nr)->len = code ? 0 : wc[i].byte_len;
				finish_to(&lane->received, nr + 1, status);
			} else {
				finish_to(&lane->sent, wc[i].wr_id + 1, status);
			}
			broken = broken ? broken : code;
		}
	} while (n == REAP_BATCH);
	if (n < 0)
		broken = broken ? broken : -EIO;
	if (broken)
		tp_verbs_fail_lane(lane, broken);
}

/* A goodbye over a link that is down reaches nobody; and Soft-RoCE's queue pair for the connection manager's messages
 * goes into the error state over it, for good: no connection could be made when the link is back.  A lane that
 * failed by itself says nothing, as its link may be the reason; closing it does. */
static bool port_is_active(const struct vrb_lane *lane)
{
	struct ibv_port_attr port;

	return !ibv_query_port(domain_of(lane)->context, lane->port, &port) &&
	       port.state == IBV_PORT_ACTIVE;
}

void tp_verbs_fail_lane(struct vrb_lane *lane, int code)
{
	if (lane->failed)
		return;
	lane->failed = code;
	reap(lane); /* what has happened has happened */
	if (code == -ECANCELED && port_is_active(lane))
		(void)rdma_disconnect(lane->id);
	destroy_qp(lane);
	finish_to(&lane->sent, lane->sent.posted, code);
	finish_to(&lane->received, lane->received.posted, code);
	lane->own_done = lane->own_posted;
}

void tp_verbs_lane_shutdown(struct tp_lane *base)
{
	tp_verbs_fail_lane(to_lane(base), -ECANCELED);
}

/* A connected lane's CM has one thing to say. */
static void check_cm(struct vrb_lane *lane)
{
	struct vrb_event event;

	for (;;) {
		int ret = tp_verbs_channel_next(lane->channel, &event);
		if (ret == -EAGAIN)
			return;
		if (ret)
			tp_verbs_fail_lane(lane, ret);
		if (ret)
			return;
		switch (event.type) {
		case RDMA_CM_EVENT_ESTABLISHED:
		case RDMA_CM_EVENT_ADDR_CHANGE:
		case RDMA_CM_EVENT_TIMEWAIT_EXIT:
			break;
		case RDMA_CM_EVENT_DEVICE_REMOVAL:
			tp_verbs_fail_lane(lane, -ENODEV);
			break;
		case RDMA_CM_EVENT_DISCONNECTED:
			(void)rdma_disconnect(
				lane->id); /* the peer's own goodbye came through: answer it */
			tp_verbs_fail_lane(lane, -ECONNRESET);
			break;
		default:
			tp_verbs_fail_lane(lane, -ECONNRESET);
		}
	}
}

static void check_for_work(struct vrb_lane *lane)
{
	int struck = atomic_load_explicit(&lane->struck, memory_order_relaxed);

	if (struck)
		tp_verbs_fail_lane(lane, struck);
	if (!lane->failed)
		reap(lane);
}

/* True: poll would have something. */
static bool has_something(struct vrb_lane *lane)
{
	bool any = has_done(&lane->sent) || has_done(&lane->received);

	if (!any || atomic_load_explicit(&lane->struck, memory_order_relaxed))
		check_for_work(lane);
	return has_done(&lane->sent) || has_done(&lane->received) || lane->failed;
}

static unsigned take_done(struct vrb_ring *ring, bool received, struct tp_wc *wc, unsigned n)
{
	unsigned got = 0;

	for (; got < n && has_done(ring); ring->taken++) {
		const struct vrb_op *op = op_of(ring, ring->taken);
		wc[got++] = (struct tp_wc){ .cookie = op->cookie,
					    .status = op->status,
					    .received = received,
					    .len = received ? op->len : 0 };
	}
	return got;
}

int tp_verbs_lane_poll(struct tp_lane *base, struct tp_wc *wc, unsigned n)
{
	struct vrb_lane *lane = to_lane(base);
	unsigned got = 0;

	bool slept = lane->slept;

	lane->slept = false;
	tp_count(&lane->stats.polls, 1);
	if (!has_something(lane)) {
		if (++lane->quiet >= QUIET_POLLS) {
			lane->quiet = 0;
			tp_verbs_take_async(domain_of(lane));
			check_cm(lane);
		}
		return 0;
	}
	got = take_done(&lane->sent, false, wc, n);
	got += take_done(&lane->received, true, wc + got, n - got);
	lane->quiet = 0;
	tp_count(slept ? &lane->stats.evented : &lane->stats.polled, got);
	return got ? (int)got : lane->failed;
}

/* Posting */

/* Room for how many of n; 0 is counted. */
static unsigned room_for(struct vrb_lane *lane, unsigned n)
{
	uint64_t room = lane->depth - (lane->sent.posted - lane->sent.taken);

	tp_count(&lane->stats.eagain, !room);
	return room < n ? (unsigned)room : n;
}

/* Hands a chain of n to the device; returns how many it took.  Fewer: the lane has failed. */
static unsigned post_chain(struct vrb_lane *lane, struct ibv_send_wr *wr, unsigned n,
			   const uint64_t *cookies)
{
	struct ibv_send_wr *bad = NULL;

	for (unsigned i = 0; i < n; i++) {
		wr[i].wr_id = lane->sent.posted + i;
		wr[i].next = i + 1 < n ? &wr[i + 1] : NULL;
		op_of(&lane->sent, lane->sent.posted + i)->cookie = cookies[i];
	}
	int ret = ibv_post_send(lane->qp, wr, &bad);
	unsigned taken = ret ? (unsigned)(bad - wr) : n, signalled = 0;
	for (unsigned i = 0; i < taken; i++)
		signalled += wr[i].send_flags & IBV_SEND_SIGNALED ? 1 : 0;
	tp_count(&lane->stats.signalled, signalled);
	tp_count(&lane->stats.unsignalled, taken - signalled);
	lane->sent.posted += taken;
	if (ret)
		tp_verbs_fail_lane(lane, -ret);
	return taken;
}

/* The last one of a chain is signalled, and enough of those before it. */
static void choose_signalled(const struct vrb_lane *lane, struct ibv_send_wr *wr, unsigned n)
{
	unsigned ops = 0;
	uint64_t bytes = 0;

	for (unsigned i = 0; i < n; i++) {
		bytes += wr[i].sg_list->length;
		if (++ops < lane->signal_every && bytes < SIGNAL_BYTES && i + 1 < n)
			continue;
		wr[i].send_flags = IBV_SEND_SIGNALED;
		ops = 0;
		bytes = 0;
	}
}

static int post(struct vrb_lane *lane, const struct tp_xfer *xfer, unsigned n,
		enum ibv_wr_opcode opcode, uint64_t *ret_bytes)
{
	struct ibv_send_wr wr[POST_BATCH];
	struct ibv_sge sge[POST_BATCH];
	uint64_t cookies[POST_BATCH];
	unsigned done = 0;

	if (lane->failed)
		return lane->failed;
	n = room_for(lane, n);
	if (!n)
		return -EAGAIN;
	while (done < n && !lane->failed) {
		unsigned chain = n - done < POST_BATCH ? n - done : POST_BATCH;
		for (unsigned i = 0; i < chain; i++) {
			const struct tp_xfer *x = &xfer[done + i];
			const struct vrb_mr *mr = BASE_CONTAINER_OF(x->mr, struct vrb_mr, base);
			assert(x->len <= domain_of(lane)->max_op);
			sge[i] = (struct ibv_sge){ .addr = (uintptr_t)x->local,
						   .length = (uint32_t)x->len,
						   .lkey = mr->mr->lkey };
			wr[i] = (struct ibv_send_wr){
				.sg_list = &sge[i],
				.num_sge = 1,
				.opcode = opcode,
				.wr.rdma = { .remote_addr = x->remote, .rkey = (uint32_t)x->key },
			};
			cookies[i] = x->cookie;
		}
		choose_signalled(lane, wr, chain);
		unsigned taken = post_chain(lane, wr, chain, cookies);
		for (unsigned i = 0; i < taken; i++)
			*ret_bytes += sge[i].length;
		done += taken;
	}
	return done ? (int)done : lane->failed;
}

int tp_verbs_post_write(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	struct vrb_lane *lane = to_lane(base);
	uint64_t bytes = 0;

	int ret = post(lane, xfer, n, IBV_WR_RDMA_WRITE, &bytes);
	if (ret > 0) {
		tp_count(&lane->stats.writes, (unsigned)ret);
		tp_count(&lane->stats.bytes_written, bytes);
	}
	return ret;
}

/* The device itself holds back those above what the peer answers at a time. */
int tp_verbs_post_read(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	struct vrb_lane *lane = to_lane(base);
	uint64_t bytes = 0;

	int ret = post(lane, xfer, n, IBV_WR_RDMA_READ, &bytes);
	if (ret > 0) {
		tp_count(&lane->stats.reads, (unsigned)ret);
		tp_count(&lane->stats.bytes_read, bytes);
	}
	return ret;
}

int tp_verbs_post_flush(struct tp_lane *base, uint64_t cookie)
{
	struct vrb_lane *lane = to_lane(base);
	const struct vrb_domain *domain = domain_of(lane);

	if (lane->failed)
		return lane->failed;
	if (!room_for(lane, 1))
		return -EAGAIN;
	struct ibv_sge sge = { .addr = (uintptr_t)&domain->scratch->sink,
			       .length = sizeof(domain->scratch->sink),
			       .lkey = domain->sink_mr->lkey };
	struct ibv_send_wr wr = {
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = IBV_WR_RDMA_READ,
		.send_flags = IBV_SEND_SIGNALED,
		.wr.rdma = { .remote_addr = lane->peer_scratch.addr,
			     .rkey = lane->peer_scratch.key },
	};
	if (!post_chain(lane, &wr, 1, &cookie))
		return lane->failed;
	tp_count(&lane->stats.flushes, 1);
	return 0;
}

/* No remote memory: what `post` says of it is not looked at by the device. */
int tp_verbs_post_send(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	struct vrb_lane *lane = to_lane(base);
	uint64_t bytes = 0;

	int ret = post(lane, xfer, n, IBV_WR_SEND, &bytes);
	if (ret > 0) {
		tp_count(&lane->stats.writes, (unsigned)ret);
		tp_count(&lane->stats.bytes_written, bytes);
	}
	return ret;
}

int tp_verbs_post_receive(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	struct vrb_lane *lane = to_lane(base);
	struct vrb_ring *ring = &lane->received;
	unsigned done = 0;

	if (lane->failed)
		return lane->failed;
	for (; done < n && ring->posted - ring->taken < lane->receives; done++) {
		const struct vrb_mr *mr = BASE_CONTAINER_OF(xfer[done].mr, struct vrb_mr, base);
		struct ibv_sge sge = { .addr = (uintptr_t)xfer[done].local,
				       .length = (uint32_t)xfer[done].len,
				       .lkey = mr->mr->lkey };
		struct ibv_recv_wr wr = { .wr_id = RECEIVED | ring->posted,
					  .sg_list = &sge,
					  .num_sge = 1 };
		struct ibv_recv_wr *bad;
		int ret = ibv_post_recv(lane->qp, &wr, &bad);
		if (ret) {
			tp_verbs_fail_lane(lane, -ret);
			break;
		}
		op_of(ring, ring->posted++)->cookie = xfer[done].cookie;
	}
	if (done)
		return (int)done;
	return lane->failed ? lane->failed : -EAGAIN;
}

/* Waiting */

static void arm_cq(struct vrb_lane *lane)
{
	if (lane->armed || lane->failed)
		return;
	int ret = ibv_req_notify_cq(lane->cq, 0);
	if (ret)
		tp_verbs_fail_lane(lane, -ret);
	lane->armed = true;
}

static void take_cq_events(struct vrb_lane *lane)
{
	struct ibv_cq *cq;
	void *context;

	while (!ibv_get_cq_event(lane->comp, &cq, &context)) {
		ibv_ack_cq_events(cq, 1);
		lane->armed = false;
	}
}

static bool take_wake(struct vrb_lane *lane)
{
	uint64_t n;

	return read(lane->wake_fd, &n, sizeof(n)) == (ssize_t)sizeof(n);
}

/* Sleeps until something happens, and deals with it.  True: it was lane_wake(). */
static bool await_events(struct vrb_lane *lane, int timeout_ms)
{
	struct vrb_domain *domain = domain_of(lane);
	struct epoll_event event[4];
	bool woken = false;

	int n = epoll_wait(lane->wait_fd, event, BASE_ARRAY_LEN(event), timeout_ms);
	for (int i = 0; i < n; i++) {
		if (event[i].data.fd == lane->wake_fd)
			woken = take_wake(lane);
		else if (event[i].events & (EPOLLERR | EPOLLHUP))
			tp_verbs_fail_lane(lane, -ENODEV); /* the device was taken away */
		else if (event[i].data.fd == lane->comp->fd)
			take_cq_events(lane);
		else if (event[i].data.fd == lane->channel->fd)
			check_cm(lane);
		else
			tp_verbs_take_async(domain);
	}
	return woken;
}

int tp_verbs_run_own(struct vrb_lane *lane, struct ibv_send_wr *wr, unsigned n,
		     uint64_t deadline_us)
{
	struct ibv_send_wr *bad;
	bool woken = false;

	assert(n && n <= VRB_OWN_MAX && lane->own_done == lane->own_posted);
	for (unsigned i = 0; i < n; i++) {
		wr[i].wr_id = OWN | (lane->own_posted + i);
		wr[i].next = i + 1 < n ? &wr[i + 1] : NULL;
	}
	wr[n - 1].send_flags = IBV_SEND_SIGNALED;
	int ret = ibv_post_send(lane->qp, wr, &bad);
	if (ret)
		tp_verbs_fail_lane(lane, -ret);
	else
		lane->own_posted += n;
	for (;;) {
		check_for_work(lane);
		if (lane->failed || lane->own_done == lane->own_posted)
			break;
		int left = base_left_ms(deadline_us);
		if (!left)
			tp_verbs_fail_lane(lane, -ETIMEDOUT);
		arm_cq(lane);
		check_for_work(lane);
		if (lane->failed || lane->own_done == lane->own_posted)
			break;
		woken |= await_events(lane, left);
	}
	if (woken)
		tp_verbs_lane_wake(&lane->base); /* it was meant for the next wait */
	return lane->failed;
}

int tp_verbs_lane_arm(struct tp_lane *base, int *ret_fd)
{
	struct vrb_lane *lane = to_lane(base);

	do {
		if (has_something(lane))
			return -EAGAIN;
		/* A completion between the last look and arming makes no event: look again. */
		arm_cq(lane);
		if (has_something(lane) || await_events(lane, 0) || lane->failed)
			return -EAGAIN;
	} while (!lane->armed);
	lane->slept = true;
	*ret_fd = lane->wait_fd;
	return 0;
}

int tp_verbs_lane_wait(struct tp_lane *base, uint64_t deadline_us)
{
	struct vrb_lane *lane = to_lane(base);

	for (;;) {
		if (has_something(lane))
			return 0;
		int left = base_left_ms(deadline_us);
		if (left) {
			arm_cq(lane);
			if (has_something(lane))
				return 0;
			tp_count(&lane->stats.waits, 1);
			lane->slept = true;
		}
		if (await_events(lane, left))
			return 0;
		if (!left)
			return has_something(lane) ? 0 : -ETIMEDOUT;
	}
}

void tp_verbs_lane_wake(struct tp_lane *base)
{
	struct vrb_lane *lane = to_lane(base);

	base_event_poke(lane->wake_fd);
}

void tp_verbs_lane_stats(const struct tp_lane *base, struct tp_lane_stats *ret_stats)
{
	const struct vrb_lane *lane = BASE_CONTAINER_OF(base, const struct vrb_lane, base);

	tp_copy_stats(&lane->stats, ret_stats);
}
