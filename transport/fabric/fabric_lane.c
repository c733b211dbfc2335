/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A lane's data path: posting, completions, waiting, dying.
 *
 * A lane dies once and for all: by shutdown, an error of any operation, or a disconnect that the
 * EQ tells of.  `failed` keeps the first reason; fi_shutdown() then makes the provider give back
 * what it holds, and what it forgets is completed here.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "transport/fabric/fabric_priv.h"
#include "transport/stats.h"

/* CQ entries taken at a time, and polls that find nothing until the EQ is looked at. */
#define REAP_BATCH  32
#define QUIET_POLLS 64

static struct fab_lane *to_lane(struct tp_lane *base)
{
	return BASE_CONTAINER_OF(base, struct fab_lane, base);
}

static const struct fab_domain *domain_of(const struct fab_lane *lane)
{
	return BASE_CONTAINER_OF(lane->base.domain, struct fab_domain, base);
}

/* Creation */

static int open_queues(struct fab_lane *lane, struct fid_fabric *fabric)
{
	struct fi_eq_attr eq_attr = { .wait_obj = FI_WAIT_FD };
	struct fi_cq_attr cq_attr = {
		/* Room for more than there are, as 1.17 may report a broken read twice. */
		.size = lane->n_ops * 2 + 16,
		.format = FI_CQ_FORMAT_MSG, /* with lengths */
		.wait_obj = FI_WAIT_FD,
	};
	int cq_fd;

	int ret = fi_eq_open(fabric, &eq_attr, &lane->eq, NULL);
	if (!ret)
		ret = fi_cq_open(lane->domain, &cq_attr, &lane->cq, NULL);
	if (!ret)
		ret = fi_control(&lane->eq->fid, FI_GETWAIT, &lane->eq_fd);
	if (!ret)
		ret = fi_control(&lane->cq->fid, FI_GETWAIT, &cq_fd);
	if (ret)
		return ret;

	lane->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	lane->wait_fd = epoll_create1(EPOLL_CLOEXEC);
	if (lane->wake_fd < 0 || lane->wait_fd < 0)
		return -errno;
	const int fds[] = { cq_fd, lane->eq_fd, lane->wake_fd };
	for (unsigned i = 0; i < BASE_ARRAY_LEN(fds); i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.fd = fds[i] };
		if (epoll_ctl(lane->wait_fd, EPOLL_CTL_ADD, fds[i], &event))
			return -errno;
	}
	return 0;
}

static int open_endpoint(struct fab_lane *lane, struct fi_info *info)
{
	int ret = fi_endpoint(lane->domain, info, &lane->ep, NULL);
	if (!ret)
		ret = fi_ep_bind(lane->ep, &lane->eq->fid, 0);
	if (!ret)
		ret = fi_ep_bind(lane->ep, &lane->cq->fid, FI_TRANSMIT | FI_RECV);
	if (!ret)
		ret = fi_enable(lane->ep);
	return ret;
}

/* The word that the peer flushes into, and the one that we flush from. */
static int open_scratch(struct fab_lane *lane, struct mf_error *err)
{
	uint64_t own_key;

	int ret = tp_fabric_random_key(&lane->scratch_key, err);
	if (!ret)
		ret = tp_fabric_random_key(&own_key, err);
	if (ret)
		return ret;
	ret = tp_fabric_reg_in_lane(lane, &lane->scratch[0], sizeof(uint64_t), TP_REMOTE_WRITE,
				    lane->scratch_key, &lane->scratch_mr[0]);
	if (!ret)
		ret = tp_fabric_reg_in_lane(lane, &lane->scratch[1], sizeof(uint64_t), TP_LOCAL,
					    own_key, &lane->scratch_mr[1]);
	return ret ? tp_fabric_error(err, ret, MF_SCOPE_LANE, "memory registration") : 0;
}

static int fill_stack(struct fab_stack *stack, struct fab_op *ops, uint32_t n)
{
	/* NOLINTNEXTLINE(bugprone-sizeof-expression): an array of pointers */
	stack->op = calloc(n ? n : 1, sizeof(*stack->op));
	if (!stack->op)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++)
		stack->op[i] = &ops[n - 1 - i];
	stack->n = n;
	return 0;
}

static int alloc_ops(struct fab_lane *lane)
{
	lane->ops = calloc(lane->n_ops, sizeof(*lane->ops));
	lane->kept = calloc(lane->n_ops, sizeof(*lane->kept));
	if (!lane->ops || !lane->kept)
		return -ENOMEM;
	int ret = fill_stack(&lane->free, lane->ops, lane->depth);
	return ret ? ret
		   : fill_stack(&lane->free_receives, lane->ops + lane->depth,
				lane->n_ops - lane->depth);
}

int tp_fabric_lane_create(struct fab_domain *domain, struct fi_info *info, uint32_t id,
			  struct fab_lane **ret_lane, struct mf_error *err)
{
	struct fab_lane *lane = calloc(1, sizeof(*lane));
	if (!lane)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_LANE, "lane %u", id);
	lane->base = (struct tp_lane){ .domain = &domain->base, .id = id };
	lane->slot = FAB_LANES_MAX;
	lane->wake_fd = lane->wait_fd = -1;
	lane->depth = domain->depth;
	lane->n_ops = domain->depth + domain->receives;

	int ret = alloc_ops(lane);
	if (!ret)
		ret = fi_domain(domain->fabric, info, &lane->domain, NULL);
	if (!ret)
		ret = open_queues(lane, domain->fabric);
	if (!ret)
		ret = open_endpoint(lane, info);
	if (ret) {
		ret = tp_fabric_error(err, ret, MF_SCOPE_LANE, "lane %u: cannot be set up", id);
		goto fail;
	}
	ret = open_scratch(lane, err);
	if (!ret)
		ret = tp_fabric_attach_lane(domain, lane, err);
	if (ret)
		goto fail;
	*ret_lane = lane;
	return 0;
fail:
	tp_fabric_lane_destroy(lane);
	return ret;
}

static void close_fid(struct fid *fid)
{
	int ret = fi_close(fid);
	assert(!ret); /* a refusal means that we have left something open that uses it */
	(void)ret;
}

void tp_fabric_lane_destroy(struct fab_lane *lane)
{
	struct fab_domain *domain = BASE_CONTAINER_OF(lane->base.domain, struct fab_domain, base);

	if (lane->ep)
		close_fid(&lane->ep->fid);
	tp_fabric_detach_lane(domain, lane);
	for (unsigned i = 0; i < BASE_ARRAY_LEN(lane->scratch_mr); i++) {
		if (lane->scratch_mr[i])
			close_fid(&lane->scratch_mr[i]->fid);
	}
	base_closep(&lane->wait_fd);
	base_closep(&lane->wake_fd);
	if (lane->cq)
		close_fid(&lane->cq->fid);
	if (lane->eq)
		close_fid(&lane->eq->fid);
	if (lane->domain)
		close_fid(&lane->domain->fid);
	free(lane->kept);
	free(lane->free.op);
	free(lane->free_receives.op);
	free(lane->ops);
	free(lane);
}

void tp_fabric_lane_close(struct tp_lane *base)
{
	struct fab_lane *lane = to_lane(base);

	assert(!lane->in_flight && !lane->n_kept);
	tp_fabric_lane_destroy(lane);
}

/* Failure */

static void fail_lane(struct fab_lane *lane, int code)
{
	if (lane->failed)
		return;
	lane->failed = code;
	(void)fi_shutdown(lane->ep, 0);
}

void tp_fabric_lane_shutdown(struct tp_lane *base)
{
	fail_lane(to_lane(base), -ECANCELED);
}

/* The EQ of a connected lane has one thing to say. */
static void check_eq(struct fab_lane *lane)
{
	uint32_t event = 0;
	uint8_t buf[sizeof(struct fi_eq_cm_entry) + FAB_CM_DATA_MAX];
	size_t len;

	while (!lane->failed) {
		ssize_t n = tp_fabric_eq_read(lane->eq, &event, buf, sizeof(buf), &len);
		if (n == -EAGAIN)
			return;
		if (n < 0 || event == FI_SHUTDOWN)
			fail_lane(lane, n < 0 ? (int)n : -ECONNRESET);
	}
}

/* Posting */

static bool is_receive(const struct fab_lane *lane, const struct fab_op *op)
{
	return op >= lane->ops + lane->depth;
}

static struct fab_op *take_op(struct fab_lane *lane, struct fab_stack *from, uint64_t cookie)
{
	struct fab_op *op = from->op[--from->n];

	assert(!op->busy);
	op->cookie = cookie;
	op->busy = true;
	lane->in_flight++;
	return op;
}

static void give_back_op(struct fab_lane *lane, struct fab_op *op)
{
	struct fab_stack *to = is_receive(lane, op) ? &lane->free_receives : &lane->free;

	op->busy = false;
	to->op[to->n++] = op;
	lane->in_flight--;
}

/* How a batch ends that got as far as `done`; ret is why it went no further. */
static int end_batch(struct fab_lane *lane, unsigned done, ssize_t ret)
{
	if (ret == -FI_EAGAIN)
		tp_count(&lane->stats.eagain, done == 0);
	else if (ret)
		fail_lane(lane, tp_fabric_code(ret));
	return done ? (int)done : tp_fabric_code(ret);
}

static void *local_desc(const struct fab_lane *lane, struct tp_mr *base)
{
	if (!(domain_of(lane)->mr_mode & FI_MR_LOCAL))
		return NULL;
	return fi_mr_desc(BASE_CONTAINER_OF(base, struct fab_mr, base)->fids[lane->slot]);
}

/* Gives one operation to the provider, which may move its bytes right here. */
typedef ssize_t (*start_fn)(struct fab_lane *lane, const struct tp_xfer *xfer, struct fab_op *op);

static ssize_t start_write(struct fab_lane *lane, const struct tp_xfer *x, struct fab_op *op)
{
	return fi_write(lane->ep, x->local, x->len, local_desc(lane, x->mr), 0, x->remote, x->key,
			op);
}

static ssize_t start_read(struct fab_lane *lane, const struct tp_xfer *x, struct fab_op *op)
{
	return fi_read(lane->ep, x->local, x->len, local_desc(lane, x->mr), 0, x->remote, x->key,
		       op);
}

static ssize_t start_send(struct fab_lane *lane, const struct tp_xfer *x, struct fab_op *op)
{
	return fi_send(lane->ep, x->local, x->len, local_desc(lane, x->mr), 0, op);
}

static ssize_t start_receive(struct fab_lane *lane, const struct tp_xfer *x, struct fab_op *op)
{
	return fi_recv(lane->ep, x->local, x->len, local_desc(lane, x->mr), 0, op);
}

/* As T1 has it. */
static int post(struct fab_lane *lane, struct fab_stack *free, start_fn start,
		const struct tp_xfer *xfer, unsigned n)
{
	ssize_t ret = 0;
	unsigned i;

	if (lane->failed)
		return lane->failed;
	for (i = 0; i < n; i++) {
		assert(xfer[i].len <= FAB_OP_MAX);
		if (!free->n) {
			ret = -FI_EAGAIN;
			break;
		}
		struct fab_op *op = take_op(lane, free, xfer[i].cookie);
		ret = start(lane, &xfer[i], op);
		if (ret) {
			give_back_op(lane, op);
			break;
		}
	}
	return end_batch(lane, i, ret);
}

/* Of what was accepted: how many operations, and their bytes. */
static int count_posted(struct fab_lane *lane, uint64_t *ops, uint64_t *bytes,
			const struct tp_xfer *xfer, int done)
{
	for (int i = 0; i < done; i++)
		tp_count(bytes, xfer[i].len);
	if (done > 0) {
		tp_count(ops, (unsigned)done);
		tp_count(&lane->stats.signalled,
			 (unsigned)done); /* as all are: the CQ has no selective ones */
	}
	return done;
}

int tp_fabric_post_write(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	struct fab_lane *lane = to_lane(base);

	return count_posted(lane, &lane->stats.writes, &lane->stats.bytes_written, xfer,
			    post(lane, &lane->free, start_write, xfer, n));
}

int tp_fabric_post_read(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	struct fab_lane *lane = to_lane(base);

	return count_posted(lane, &lane->stats.reads, &lane->stats.bytes_read, xfer,
			    post(lane, &lane->free, start_read, xfer, n));
}

int tp_fabric_post_send(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	struct fab_lane *lane = to_lane(base);

	return count_posted(lane, &lane->stats.writes, &lane->stats.bytes_written, xfer,
			    post(lane, &lane->free, start_send, xfer, n));
}

int tp_fabric_post_receive(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	struct fab_lane *lane = to_lane(base);

	return post(lane, &lane->free_receives, start_receive, xfer, n);
}

/* fi_writemsg(), as 1.17 drops FI_DELIVERY_COMPLETE from all other calls. */
int tp_fabric_post_flush(struct tp_lane *base, uint64_t cookie)
{
	struct fab_lane *lane = to_lane(base);

	if (lane->failed)
		return lane->failed;
	if (!lane->free.n)
		return end_batch(lane, 0, -FI_EAGAIN);
	struct fab_op *op = take_op(lane, &lane->free, cookie);
	struct iovec iov = { &lane->scratch[1], sizeof(uint64_t) };
	void *desc = lane->scratch_mr[1] ? fi_mr_desc(lane->scratch_mr[1]) : NULL;
	struct fi_rma_iov remote = { lane->peer_scratch.addr, sizeof(uint64_t),
				     lane->peer_scratch.key };
	struct fi_msg_rma msg = {
		.msg_iov = &iov,
		.desc = &desc,
		.iov_count = 1,
		.rma_iov = &remote,
		.rma_iov_count = 1,
		.context = op,
	};
	ssize_t ret = fi_writemsg(lane->ep, &msg, FI_DELIVERY_COMPLETE | FI_COMPLETION);
	if (ret) {
		give_back_op(lane, op);
		return end_batch(lane, 0, ret);
	}
	tp_count(&lane->stats.flushes, 1);
	tp_count(&lane->stats.signalled, 1);
	return 0;
}

/* Completions */

/* 1 and *wc, or 0 for a report that is none: 1.17 gives the read in whose middle a connection
 * breaks twice, the second time without a context. */
static unsigned finish_op(struct fab_lane *lane, struct fab_op *op, int status, size_t len,
			  struct tp_wc *wc)
{
	if (!op || !op->busy)
		return 0;
	bool received = is_receive(lane, op);
	*wc = (struct tp_wc){ .cookie = op->cookie,
			      .status = status,
			      .received = received,
			      .len = received ? (uint32_t)len : 0 };
	give_back_op(lane, op);
	return 1;
}

static unsigned reap_error(struct fab_lane *lane, struct tp_wc *wc)
{
	struct fi_cq_err_entry entry = { 0 };

	ssize_t ret = fi_cq_readerr(lane->cq, &entry, 0);
	if (ret < 0)
		return 0;
	/* All that can go wrong with an operation ends the connection, and the EQ knows it if
	 * that came from the peer. */
	check_eq(lane);
	fail_lane(lane, -ECONNRESET);
	int code = entry.err > 0 ? tp_fabric_code(-entry.err) : -EIO;
	return finish_op(lane, entry.op_context, code == -ECANCELED ? lane->failed : code, 0, wc);
}

/* What the provider has, at most n; drives its progress. */
static unsigned reap(struct fab_lane *lane, struct tp_wc *wc, unsigned n)
{
	struct fi_cq_msg_entry entry[REAP_BATCH];
	unsigned got = 0;

	while (got < n) {
		unsigned want = n - got < REAP_BATCH ? n - got : REAP_BATCH;
		ssize_t ret = fi_cq_read(lane->cq, entry, want);
		if (ret == -FI_EAVAIL) {
			got += reap_error(lane, &wc[got]);
			continue;
		}
		if (ret < 0) {
			if (ret != -FI_EAGAIN)
				fail_lane(lane, tp_fabric_code(ret));
			break;
		}
		for (ssize_t i = 0; i < ret; i++)
			got += finish_op(lane, entry[i].op_context, 0, entry[i].len, &wc[got]);
		if ((unsigned)ret < want)
			break;
	}
	return got;
}

/* After the lane has failed and the provider has no more to tell: what it has forgotten. */
static unsigned reap_forgotten(struct fab_lane *lane, struct tp_wc *wc, unsigned n)
{
	unsigned got = 0;

	for (uint32_t i = 0; i < lane->n_ops && got < n && lane->in_flight; i++)
		got += finish_op(lane, &lane->ops[i], lane->failed, 0, &wc[got]);
	return got;
}

static unsigned collect(struct fab_lane *lane, struct tp_wc *wc, unsigned n)
{
	unsigned got = reap(lane, wc, n);

	if (!got && lane->failed && lane->in_flight)
		got = reap(lane, wc, n); /* it may have failed just now */
	if (!got && lane->failed)
		got = reap_forgotten(lane, wc, n);
	return got;
}

int tp_fabric_lane_poll(struct tp_lane *base, struct tp_wc *wc, unsigned n)
{
	struct fab_lane *lane = to_lane(base);
	uint64_t *found = lane->slept ? &lane->stats.evented : &lane->stats.polled;
	unsigned got = 0;

	lane->slept = false;
	tp_count(&lane->stats.polls, 1);
	while (got < n && lane->n_kept) {
		wc[got++] = lane->kept[lane->kept_first];
		lane->kept_first = (lane->kept_first + 1) % lane->n_ops;
		lane->n_kept--;
	}
	if (!got)
		got = collect(lane, wc, n);
	if (got) {
		lane->quiet = 0;
		tp_count(found, got);
		return (int)got;
	}
	if (!lane->failed && ++lane->quiet >= QUIET_POLLS) {
		lane->quiet = 0;
		check_eq(lane);
	}
	return lane->failed && !lane->in_flight ? lane->failed : 0;
}

/* Waiting */

/* Drives progress and keeps what it brings: true if poll would have something. */
static bool progress(struct fab_lane *lane)
{
	assert(!lane->n_kept);
	lane->kept_first = 0;
	lane->n_kept = collect(lane, lane->kept, lane->n_ops);
	return lane->n_kept || lane->failed;
}

static bool take_wake(struct fab_lane *lane)
{
	uint64_t n;

	return read(lane->wake_fd, &n, sizeof(n)) == (ssize_t)sizeof(n);
}

/* False: there is, or was, something to do. */
static bool may_sleep_on(struct fab_lane *lane, struct fid *fid)
{
	return fi_trywait(domain_of(lane)->fabric, &fid, 1) == FI_SUCCESS;
}

/* True: nothing is left in the EQ, and its descriptor says when that changes.  To be done before
 * trying the CQ, which makes progress in 1.17: what that brings must signal the EQ afterwards. */
static bool settle_eq(struct fab_lane *lane)
{
	check_eq(lane);
	return may_sleep_on(lane, &lane->eq->fid);
}

int tp_fabric_lane_arm(struct tp_lane *base, int *ret_fd)
{
	struct fab_lane *lane = to_lane(base);

	if (lane->n_kept || progress(lane) || !settle_eq(lane) || lane->failed || take_wake(lane) ||
	    !may_sleep_on(lane, &lane->cq->fid))
		return -EAGAIN;
	lane->slept = true;
	*ret_fd = lane->wait_fd;
	return 0;
}

int tp_fabric_lane_wait(struct tp_lane *base, uint64_t deadline_us)
{
	struct fab_lane *lane = to_lane(base);
	bool eq_ready = true;

	if (lane->n_kept)
		return 0;
	for (;;) {
		if (progress(lane))
			return 0;
		if (eq_ready)
			eq_ready = !settle_eq(lane);
		if (lane->failed)
			return 0;
		int left = base_left_ms(deadline_us);
		bool sleep = left && !eq_ready && may_sleep_on(lane, &lane->cq->fid);
		struct epoll_event event[3];
		int n = epoll_wait(lane->wait_fd, event, BASE_ARRAY_LEN(event), sleep ? left : 0);
		tp_count(&lane->stats.waits, sleep);
		lane->slept |= sleep;
		for (int i = 0; i < n; i++) {
			if (event[i].data.fd == lane->wake_fd && take_wake(lane))
				return 0;
			eq_ready |= event[i].data.fd == lane->eq_fd;
		}
		if (!left)
			return progress(lane) ? 0 : -ETIMEDOUT;
	}
}

void tp_fabric_lane_wake(struct tp_lane *base)
{
	struct fab_lane *lane = to_lane(base);

	base_event_poke(lane->wake_fd);
}

void tp_fabric_lane_stats(const struct tp_lane *base, struct tp_lane_stats *ret_stats)
{
	const struct fab_lane *lane = BASE_CONTAINER_OF(base, const struct fab_lane, base);

	tp_copy_stats(&lane->stats, ret_stats);
}
