/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A sealed lane: shaking hands, operations to records and back, waiting, dying.
 *
 * An operation stands in `todo` until all of it is on its way, then, but for a read, in `unacked` until the peer has dealt
 * with it, then in `done` until it is polled.  A read waits for its bytes by its number.
 *
 * A lane dies once and for all, by shutdown, the inner lane's end, or a record that is not as it must be; what is under
 * way completes here, as no memory but the buffers was ever given to the inner lane.
 */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "transport/sealed/sealed_priv.h"
#include "transport/stats.h"

/* Completions of the inner lane that are taken at a time, and in one go. */
#define REAP_BATCH  16
#define REAP_MOST   (2 * SEALED_RECEIVES)
#define HELLO_MAGIC 0x3153464du /* "MFS1" */
#define DRAIN_MS    5000u

static_assert(sizeof(struct sealed_head) == 48, "blocks of the cipher, and nothing between");
static_assert(sizeof(struct sealed_hello) <= SEALED_ACK_MAX, "goes out of an Ack's buffer");

static struct sealed_lane *to_lane(struct tp_lane *base)
{
	return BASE_CONTAINER_OF(base, struct sealed_lane, base);
}

/* ---- queues ---- */

static int fifo_alloc(struct sealed_fifo *fifo, uint32_t cap)
{
	fifo->cap = cap;
	fifo->item = calloc(cap, sizeof(*fifo->item));
	return fifo->item ? 0 : -ENOMEM;
}

static void fifo_put(struct sealed_fifo *fifo, uint32_t item)
{
	assert(fifo->n < fifo->cap);
	fifo->item[(fifo->first + fifo->n++) % fifo->cap] = item;
}

static uint32_t fifo_peek(const struct sealed_fifo *fifo)
{
	assert(fifo->n);
	return fifo->item[fifo->first];
}

static uint32_t fifo_take(struct sealed_fifo *fifo)
{
	uint32_t item = fifo_peek(fifo);
	fifo->first = (fifo->first + 1) % fifo->cap;
	fifo->n--;
	return item;
}

static uint8_t *receive_buffer(const struct sealed_lane *lane, uint64_t nr)
{
	assert(nr < SEALED_RECEIVES);
	return lane->buffers + nr * SEALED_RECORD_MAX;
}

static uint8_t *send_buffer(const struct sealed_lane *lane, uint64_t nr)
{
	uint8_t *sends = lane->buffers + SEALED_RECEIVES * SEALED_RECORD_MAX;
	assert(nr < SEALED_SENDS);
	return nr < SEALED_WINDOW ? sends + nr * SEALED_RECORD_MAX
				  : sends + SEALED_WINDOW * SEALED_RECORD_MAX +
					    (nr - SEALED_WINDOW) * SEALED_ACK_MAX;
}

static size_t buffer_bytes(void)
{
	return (SEALED_RECEIVES + SEALED_WINDOW) * SEALED_RECORD_MAX +
	       (SEALED_SENDS - SEALED_WINDOW) * SEALED_ACK_MAX;
}

/* ---- the end of operations, and of the lane ---- */

static void finish(struct sealed_lane *lane, uint32_t nr, int status)
{
	struct sealed_op *op = &lane->ops[nr];
	assert(!op->is_done);
	op->is_done = true;
	op->status = status;
	fifo_put(&lane->done, nr);
}

static void fail(struct sealed_lane *lane, int code)
{
	if (lane->failed)
		return;
	lane->failed = code;
	tp_lane_shutdown(lane->inner);
	for (uint32_t i = 0; i < lane->depth; i++) {
		if (lane->ops[i].kind && !lane->ops[i].is_done)
			finish(lane, i, code);
	}
	lane->todo.n = lane->unacked.n = lane->n_requests = 0;
}

void tp_sealed_lane_shutdown(struct tp_lane *base)
{
	fail(to_lane(base), -ECANCELED);
}

/* ---- records out ---- */

static int post_buffer(struct sealed_lane *lane, uint32_t nr, uint32_t len)
{
	struct tp_xfer x = {
		.local = send_buffer(lane, nr), .mr = lane->buffers_mr, .len = len, .cookie = nr
	};
	int r = tp_post_send(lane->inner, &x, 1);
	lane->stuck = r == -EAGAIN ? nr : SEALED_SENDS;
	lane->stuck_len = len;
	return r < 0 && r != -EAGAIN ? r : 0;
}

/* What is in the way of the next record, if anything: its number is part of the seal, so it goes before all others. */
static bool is_stuck(struct sealed_lane *lane)
{
	if (lane->stuck != SEALED_SENDS) {
		int r = post_buffer(lane, lane->stuck, lane->stuck_len);
		if (r < 0)
			fail(lane, r);
	}
	return lane->stuck != SEALED_SENDS;
}

/* In host order; `acked` is filled in.  To be called when there is a buffer. */
static void send_record(struct sealed_lane *lane, struct sealed_head head, const uint8_t *body)
{
	bool is_ack = head.kind == SEALED_ACK;
	uint32_t nr = fifo_take(is_ack ? &lane->free_acks : &lane->free_sends);
	uint32_t body_len = head.len;
	head.len = htole32(head.len);
	head.id = htole32(head.id);
	head.key = htole64(head.key);
	head.at = htole64(head.at);
	head.total = htole64(head.total);
	head.acked = htole64(lane->taken);
	lane->told = lane->taken;
	lane->sent += is_ack ? 0 : 1;
	int r = seal_close(lane->out, &head, sizeof(head), body, body_len, send_buffer(lane, nr));
	if (!r)
		r = post_buffer(lane, nr, (uint32_t)sizeof(head) + body_len + SEAL_TAG_SIZE);
	if (r < 0)
		fail(lane, r);
}

static uint64_t body_of(uint64_t left)
{
	return left < SEALED_BODY ? left : SEALED_BODY;
}

/* The next piece of the oldest request of the peer. */
static void answer(struct sealed_lane *lane)
{
	struct sealed_domain *domain = sealed_domain_of(&lane->base);
	struct sealed_request *rq = &lane->requests[lane->first_request];
	uint64_t n = body_of(rq->len - rq->at);
	struct sealed_head head = {
		.kind = SEALED_DATA, .len = (uint32_t)n, .id = rq->id, .at = rq->at
	};
	(void)pthread_rwlock_rdlock(&domain->lock);
	const uint8_t *from =
		tp_sealed_memory(domain, rq->key, rq->from + rq->at, n, TP_REMOTE_READ);
	if (from)
		send_record(lane, head, from);
	else
		fail(lane, -EACCES);
	(void)pthread_rwlock_unlock(&domain->lock);
	rq->at += n;
	if (rq->at == rq->len && lane->n_requests) {
		lane->first_request = (lane->first_request + 1) % lane->peer_depth;
		lane->n_requests--;
	}
}

/* The next record of the oldest operation of ours. */
static void advance(struct sealed_lane *lane)
{
	uint32_t nr = fifo_peek(&lane->todo);
	struct sealed_op *op = &lane->ops[nr];
	struct sealed_head head = {
		.kind = op->kind, .id = nr, .key = op->key, .at = op->remote + op->at
	};
	const uint8_t *body = NULL;
	if (op->kind == SEALED_WRITE) {
		head.len = (uint32_t)body_of(op->len - op->at);
		body = op->local + op->at;
		op->at += head.len;
	} else if (op->kind == SEALED_READ) {
		head.total = op->len;
	}
	if (op->kind != SEALED_WRITE || op->at == op->len) {
		(void)fifo_take(&lane->todo);
		op->last = lane->sent + 1;
		if (op->kind != SEALED_READ)
			fifo_put(&lane->unacked, nr);
	}
	send_record(lane, head, body);
}

static void push(struct sealed_lane *lane)
{
	while (!lane->failed && !is_stuck(lane) && lane->free_sends.n &&
	       lane->sent - lane->peer_acked < SEALED_WINDOW) {
		if (lane->n_requests)
			answer(lane);
		else if (lane->todo.n)
			advance(lane);
		else
			return;
	}
}

static void tell(struct sealed_lane *lane)
{
	if (!lane->failed && lane->told != lane->taken && !is_stuck(lane) && lane->free_acks.n)
		send_record(lane, (struct sealed_head){ .kind = SEALED_ACK }, NULL);
}

/* ---- records in ---- */

/* The peer has dealt with so many. */
static int take_acked(struct sealed_lane *lane, uint64_t acked)
{
	if (acked < lane->peer_acked || acked > lane->sent)
		return -EBADMSG;
	lane->peer_acked = acked;
	while (lane->unacked.n && lane->ops[fifo_peek(&lane->unacked)].last <= acked)
		finish(lane, fifo_take(&lane->unacked), 0);
	return 0;
}

static int take_write(struct sealed_lane *lane, const struct sealed_head *head, const uint8_t *body)
{
	struct sealed_domain *domain = sealed_domain_of(&lane->base);
	(void)pthread_rwlock_rdlock(&domain->lock);
	uint8_t *to = tp_sealed_memory(domain, head->key, head->at, head->len, TP_REMOTE_WRITE);
	if (to)
		memcpy(to, body, head->len);
	(void)pthread_rwlock_unlock(&domain->lock);
	return to ? 0 : -EACCES;
}

static int take_read(struct sealed_lane *lane, const struct sealed_head *head)
{
	struct sealed_domain *domain = sealed_domain_of(&lane->base);
	if (lane->n_requests == lane->peer_depth)
		return -EBADMSG;
	(void)pthread_rwlock_rdlock(&domain->lock);
	bool may = tp_sealed_memory(domain, head->key, head->at, head->total, TP_REMOTE_READ);
	(void)pthread_rwlock_unlock(&domain->lock);
	if (!may)
		return -EACCES;
	uint32_t slot = (lane->first_request + lane->n_requests++) % lane->peer_depth;
	lane->requests[slot] = (struct sealed_request){
		.id = head->id, .key = head->key, .from = head->at, .len = head->total
	};
	return 0;
}

static int take_data(struct sealed_lane *lane, const struct sealed_head *head, const uint8_t *body)
{
	struct sealed_op *op = head->id < lane->depth ? &lane->ops[head->id] : NULL;
	if (!op || op->kind != SEALED_READ || op->is_done || !op->last || head->at != op->at ||
	    !head->len || head->len > op->len - op->at)
		return -EBADMSG;
	memcpy(op->local + op->at, body, head->len);
	op->at += head->len;
	if (op->at == op->len)
		finish(lane, head->id, 0);
	return 0;
}

static int take_record(struct sealed_lane *lane, uint8_t *record, uint32_t len)
{
	struct sealed_head head;
	const uint8_t *body = record + sizeof(head);
	int r = seal_open(lane->in, record, len);
	if (r < 0)
		return r;
	if (len < sizeof(head) + SEAL_TAG_SIZE)
		return -EBADMSG;
	memcpy(&head, record, sizeof(head));
	head.len = le32toh(head.len);
	head.id = le32toh(head.id);
	head.key = le64toh(head.key);
	head.at = le64toh(head.at);
	head.total = le64toh(head.total);
	if (head.len != len - sizeof(head) - SEAL_TAG_SIZE)
		return -EBADMSG;
	r = take_acked(lane, le64toh(head.acked));
	if (r < 0 || head.kind == SEALED_ACK)
		return r;
	/* Told only after it was dealt with, below. */
	lane->taken++;
	switch (head.kind) {
	case SEALED_WRITE:
		return take_write(lane, &head, body);
	case SEALED_READ:
		return take_read(lane, &head);
	case SEALED_DATA:
		return take_data(lane, &head, body);
	case SEALED_FLUSH:
		return 0;
	default:
		return -EBADMSG;
	}
}

static int post_receive(struct sealed_lane *lane, uint64_t nr)
{
	struct tp_xfer x = { .local = receive_buffer(lane, nr),
			     .mr = lane->buffers_mr,
			     .len = SEALED_RECORD_MAX,
			     .cookie = nr };
	int r = tp_post_receive(lane->inner, &x, 1);
	return r < 0 ? r : 0;
}

static void free_send(struct sealed_lane *lane, uint64_t nr)
{
	fifo_put(nr < SEALED_WINDOW ? &lane->free_sends : &lane->free_acks, (uint32_t)nr);
}

static void take_completion(struct sealed_lane *lane, const struct tp_wc *wc)
{
	int r = wc->status;
	if (!wc->received)
		free_send(lane, wc->cookie);
	else if (r == 0)
		r = take_record(lane, receive_buffer(lane, wc->cookie), wc->len);
	if (r == 0 && wc->received)
		r = post_receive(lane, wc->cookie);
	if (r < 0)
		fail(lane, r);
}

static bool awaits_answer(const struct sealed_lane *lane)
{
	return !lane->failed && lane->in_flight > lane->done.n &&
	       lane->free_sends.n + lane->free_acks.n == SEALED_SENDS;
}

/* T12: see sealed_priv.h. */
static void probe(struct sealed_lane *lane)
{
	if (!awaits_answer(lane))
		return;
	uint64_t now = base_now_us();
	if (now - lane->heard_us < sealed_domain_of(&lane->base)->probe_us)
		return;
	lane->heard_us = now;
	send_record(lane, (struct sealed_head){ .kind = SEALED_ACK }, NULL);
}

/* Deals with what there is, and sends what may go.  How many completions of the inner lane there were. */
static unsigned progress(struct sealed_lane *lane)
{
	struct tp_wc wc[REAP_BATCH];
	unsigned all = 0;
	while (!lane->failed && all < REAP_MOST) {
		int n = tp_lane_poll(lane->inner, wc, REAP_BATCH);
		if (n < 0)
			fail(lane, n);
		for (int i = 0; i < n && !lane->failed; i++)
			take_completion(lane, &wc[i]);
		push(lane);
		if (n <= 0)
			break;
		/* Room that is given early keeps the peer from waiting for all of it. */
		if (lane->taken - lane->told >= SEALED_WINDOW / 4)
			tell(lane);
		all += (unsigned)n;
	}
	tell(lane);
	if (all)
		lane->heard_us = base_now_us();
	else
		probe(lane);
	return all;
}

/* ---- creation ---- */

/* Until the inner lane has given back everything. */
static void drain(struct sealed_lane *lane)
{
	uint64_t deadline = base_deadline_ms(DRAIN_MS);
	struct tp_wc wc[REAP_BATCH];
	while (tp_lane_poll(lane->inner, wc, REAP_BATCH) >= 0 && base_now_us() < deadline)
		(void)tp_lane_wait(lane->inner, base_deadline_ms(1));
}

static void destroy(struct sealed_lane *lane)
{
	tp_lane_shutdown(lane->inner);
	drain(lane);
	tp_lane_close(lane->inner);
	tp_mr_dereg(lane->buffers_mr);
	seal_free(lane->out);
	seal_free(lane->in);
	if (lane->buffers)
		(void)munmap(lane->buffers, buffer_bytes());
	struct sealed_fifo *fifos[] = { &lane->free, &lane->todo,       &lane->unacked,
					&lane->done, &lane->free_sends, &lane->free_acks };
	for (unsigned i = 0; i < BASE_ARRAY_LEN(fifos); i++)
		free(fifos[i]->item);
	free(lane->requests);
	free(lane->ops);
	free(lane);
}

static int alloc_queues(struct sealed_lane *lane)
{
	struct sealed_fifo *fifos[] = { &lane->free, &lane->todo, &lane->unacked, &lane->done };
	lane->ops = calloc(lane->depth, sizeof(*lane->ops));
	int r = lane->ops ? 0 : -ENOMEM;
	for (unsigned i = 0; r == 0 && i < BASE_ARRAY_LEN(fifos); i++)
		r = fifo_alloc(fifos[i], lane->depth);
	if (r == 0)
		r = fifo_alloc(&lane->free_sends, SEALED_SENDS);
	if (r == 0)
		r = fifo_alloc(&lane->free_acks, SEALED_SENDS);
	for (uint32_t i = 0; r == 0 && i < lane->depth; i++)
		fifo_put(&lane->free, i);
	for (uint32_t i = 0; r == 0 && i < SEALED_SENDS; i++)
		free_send(lane, i);
	return r;
}

static int open_buffers(struct sealed_lane *lane, struct mf_error *err)
{
	void *map = mmap(NULL, buffer_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);
	if (map == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "buffers of a sealed lane");
	lane->buffers = map;
	int r = tp_mr_reg(sealed_domain_of(&lane->base)->inner, map, buffer_bytes(), TP_LOCAL,
			  &lane->buffers_mr, err);
	for (uint64_t i = 0; r == 0 && i < SEALED_RECEIVES; i++) {
		r = post_receive(lane, i);
		if (r < 0)
			base_error_sys(err, r, MF_SCOPE_HOST, "receives of a sealed lane");
	}
	return r;
}

/* The next message of a lane that is not one yet.  The caller posts its receive again. */
static int await_message(struct sealed_lane *lane, uint64_t deadline_us, struct tp_wc *ret)
{
	for (;;) {
		int n = tp_lane_poll(lane->inner, ret, 1);
		if (n < 0 || (n && ret->status < 0))
			return n < 0 ? n : ret->status;
		if (n && ret->received)
			return 0;
		if (n) {
			free_send(lane, ret->cookie);
			continue;
		}
		uint64_t soon = base_deadline_ms(1);
		bool is_long = !is_stuck(lane) || deadline_us < soon;
		int r = tp_lane_wait(lane->inner, is_long ? deadline_us : soon);
		if (r < 0 && (r != -ETIMEDOUT || base_now_us() >= deadline_us))
			return r;
	}
}

static int say_hello(struct sealed_lane *lane, struct sealed_hello *ret)
{
	const struct sealed_domain *domain = sealed_domain_of(&lane->base);
	uint32_t nr = fifo_take(&lane->free_acks);
	*ret = (struct sealed_hello){ .magic = htole32(HELLO_MAGIC),
				      .version = htole32(SEALED_VERSION),
				      .sealing = htole32(domain->seal.sealing),
				      .depth = htole32(lane->depth) };
	if (getrandom(ret->random, sizeof(ret->random), 0) != sizeof(ret->random))
		return -errno;
	memcpy(send_buffer(lane, nr), ret, sizeof(*ret));
	return post_buffer(lane, nr, sizeof(*ret));
}

static int hear_hello(struct sealed_lane *lane, uint64_t deadline_us, struct sealed_hello *ret)
{
	const struct sealed_domain *domain = sealed_domain_of(&lane->base);
	struct tp_wc wc;
	int r = await_message(lane, deadline_us, &wc);
	if (r < 0)
		return r;
	if (wc.len != sizeof(*ret))
		return -MF_EPEER;
	memcpy(ret, receive_buffer(lane, wc.cookie), sizeof(*ret));
	lane->peer_depth = le32toh(ret->depth);
	if (le32toh(ret->magic) != HELLO_MAGIC || le32toh(ret->version) != SEALED_VERSION ||
	    le32toh(ret->sealing) != domain->seal.sealing || !lane->peer_depth ||
	    lane->peer_depth > SEALED_DEPTH_MAX)
		return -MF_EPEER;
	lane->requests = calloc(lane->peer_depth, sizeof(*lane->requests));
	return lane->requests ? post_receive(lane, wc.cookie) : -ENOMEM;
}

/* Keys of both directions, from what both have said. */
static int make_keys(struct sealed_lane *lane, bool connects, const struct sealed_hello *ours,
		     const struct sealed_hello *theirs)
{
	const struct sealed_domain *domain = sealed_domain_of(&lane->base);
	struct {
		struct sealed_hello connector, acceptor;
		uint8_t lane_id[4];
		uint8_t from_connector;
	} said = { .connector = connects ? *ours : *theirs,
		   .acceptor = connects ? *theirs : *ours,
		   .from_connector = connects };
	uint32_t id = htole32(lane->base.id);
	memcpy(said.lane_id, &id, sizeof(id));
	int r = seal_create(&domain->seal, &said, offsetof(typeof(said), from_connector) + 1,
			    &lane->out);
	said.from_connector = !connects;
	return r < 0 ? r
		     : seal_create(&domain->seal, &said, offsetof(typeof(said), from_connector) + 1,
				   &lane->in);
}

/* Our first record proves that we have the key. */
static int prove(struct sealed_lane *lane, uint64_t deadline_us)
{
	while (!lane->failed && is_stuck(lane)) {
		if (base_now_us() >= deadline_us)
			return -ETIMEDOUT;
		(void)tp_lane_wait(lane->inner, base_deadline_ms(1));
	}
	if (!lane->failed)
		send_record(lane, (struct sealed_head){ .kind = SEALED_ACK }, NULL);
	return lane->failed;
}

static int see_proof(struct sealed_lane *lane, uint64_t deadline_us)
{
	struct tp_wc wc;
	int r = await_message(lane, deadline_us, &wc);
	if (r == 0)
		r = take_record(lane, receive_buffer(lane, wc.cookie), wc.len);
	return r < 0 ? r : post_receive(lane, wc.cookie);
}

static int explain(int code, struct mf_error *err)
{
	switch (code) {
	case -EBADMSG:
		return base_error(
			err, -EACCES, MF_SCOPE_LANE,
			"the first record of a sealed lane did not open: it was changed on "
			"the way, or the peer has another key");
	case -MF_EPEER:
		return base_error(err, -MF_EPEER, MF_SCOPE_LANE,
				  "the peer does not speak of a sealed lane as we do; run the same "
				  "memferry with the same --encrypt or --integrity on both hosts");
	default:
		return base_error_sys(err, code, MF_SCOPE_LANE,
				      "the peer refused a sealed lane, or did not answer on it");
	}
}

/* Who accepts says last that it does: a connection that was made is a lane to both. */
static int shake_hands(struct sealed_lane *lane, bool connects, uint64_t deadline_us,
		       struct mf_error *err)
{
	struct sealed_hello ours, theirs;
	int r = say_hello(lane, &ours);
	if (r == 0)
		r = hear_hello(lane, deadline_us, &theirs);
	if (r < 0)
		return explain(r, err);
	r = make_keys(lane, connects, &ours, &theirs);
	if (r < 0)
		return base_error_sys(err, r, MF_SCOPE_HOST, "keys of a sealed lane");
	if (connects)
		r = prove(lane, deadline_us);
	if (r == 0)
		r = see_proof(lane, deadline_us);
	if (r == 0 && !connects)
		r = prove(lane, deadline_us);
	return r < 0 ? explain(r, err) : 0;
}

int tp_sealed_lane_create(struct sealed_domain *domain, struct tp_lane *inner, bool connects,
			  uint64_t deadline_us, struct tp_lane **ret_lane, struct mf_error *err)
{
	struct sealed_lane *lane = calloc(1, sizeof(*lane));
	if (!lane) {
		tp_lane_shutdown(inner);
		tp_lane_close(inner);
		return base_error_sys(err, -ENOMEM, MF_SCOPE_HOST, "sealed lane");
	}
	lane->base = (struct tp_lane){ .domain = &domain->base, .id = inner->id };
	lane->inner = inner;
	lane->depth = domain->depth;
	lane->stuck = SEALED_SENDS;
	int r = alloc_queues(lane);
	if (r < 0)
		base_error_sys(err, r, MF_SCOPE_HOST, "sealed lane");
	if (r == 0)
		r = open_buffers(lane, err);
	if (r == 0) {
		lane->heard_us = base_now_us();
		r = shake_hands(lane, connects, deadline_us, err);
	}
	if (r < 0) {
		destroy(lane);
		return r;
	}
	*ret_lane = &lane->base;
	return 0;
}

void tp_sealed_lane_close(struct tp_lane *base)
{
	struct sealed_lane *lane = to_lane(base);
	assert(!lane->in_flight);
	destroy(lane);
}

/* ---- posting ---- */

static int post(struct sealed_lane *lane, enum sealed_kind kind, const struct tp_xfer *xfer,
		unsigned n)
{
	if (lane->failed)
		return lane->failed;
	unsigned room = lane->depth - lane->in_flight;
	if (!room) {
		tp_count(&lane->stats.eagain, 1);
		return -EAGAIN;
	}
	n = n < room ? n : room;
	for (unsigned i = 0; i < n; i++) {
		uint32_t nr = fifo_take(&lane->free);
		assert(xfer[i].len <= SEALED_OP_MAX);
		lane->ops[nr] = (struct sealed_op){ .cookie = xfer[i].cookie,
						    .kind = kind,
						    .local = xfer[i].local,
						    .key = xfer[i].key,
						    .remote = xfer[i].remote,
						    .len = xfer[i].len };
		fifo_put(&lane->todo, nr);
		lane->in_flight++;
	}
	tp_count(&lane->stats.signalled, n);
	push(lane);
	return (int)n;
}

static uint64_t bytes_of(const struct tp_xfer *xfer, int n)
{
	uint64_t bytes = 0;
	for (int i = 0; i < n; i++)
		bytes += xfer[i].len;
	return bytes;
}

int tp_sealed_post_write(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	struct sealed_lane *lane = to_lane(base);
	int done = post(lane, SEALED_WRITE, xfer, n);
	if (done > 0) {
		tp_count(&lane->stats.writes, (unsigned)done);
		tp_count(&lane->stats.bytes_written, bytes_of(xfer, done));
	}
	return done;
}

int tp_sealed_post_read(struct tp_lane *base, const struct tp_xfer *xfer, unsigned n)
{
	struct sealed_lane *lane = to_lane(base);
	int done = post(lane, SEALED_READ, xfer, n);
	if (done > 0) {
		tp_count(&lane->stats.reads, (unsigned)done);
		tp_count(&lane->stats.bytes_read, bytes_of(xfer, done));
	}
	return done;
}

int tp_sealed_post_flush(struct tp_lane *base, uint64_t cookie)
{
	struct sealed_lane *lane = to_lane(base);
	const struct tp_xfer flush = { .cookie = cookie };
	int done = post(lane, SEALED_FLUSH, &flush, 1);
	if (done < 0)
		return done;
	tp_count(&lane->stats.flushes, 1);
	return 0;
}

/* ---- completions and waiting ---- */

static bool has_something(const struct sealed_lane *lane)
{
	return lane->done.n || lane->failed;
}

int tp_sealed_lane_poll(struct tp_lane *base, struct tp_wc *wc, unsigned n)
{
	struct sealed_lane *lane = to_lane(base);
	uint64_t *found = lane->slept ? &lane->stats.evented : &lane->stats.polled;
	unsigned got = 0;

	lane->slept = false;
	tp_count(&lane->stats.polls, 1);
	if (!lane->done.n)
		(void)progress(lane);
	for (; got < n && lane->done.n; got++) {
		uint32_t nr = fifo_take(&lane->done);
		struct sealed_op *op = &lane->ops[nr];
		wc[got] = (struct tp_wc){ .cookie = op->cookie, .status = op->status };
		op->kind = 0;
		fifo_put(&lane->free, nr);
		lane->in_flight--;
	}
	tp_count(found, got);
	if (got)
		return (int)got;
	return lane->failed && !lane->in_flight ? lane->failed : 0;
}

/* The inner lane is woken for each of its completions, and may have used up our wake-up with one of them. */
static bool take_wake(struct sealed_lane *lane)
{
	/* acquire: what was written before the wake-up is seen */
	return atomic_exchange_explicit(&lane->woken, false, memory_order_acquire);
}

void tp_sealed_lane_wake(struct tp_lane *base)
{
	struct sealed_lane *lane = to_lane(base);
	/* Before the inner one: who is woken by it finds it. */
	atomic_store_explicit(&lane->woken, true, memory_order_release);
	tp_lane_wake(lane->inner);
}

int tp_sealed_lane_arm(struct tp_lane *base, int *ret_fd)
{
	struct sealed_lane *lane = to_lane(base);
	do {
		(void)progress(lane);
		if (has_something(lane) || take_wake(lane))
			return -EAGAIN;
		if (lane->stuck != SEALED_SENDS) /* to be tried again: no event tells when */
			return -EAGAIN;
		if (tp_lane_arm(lane->inner, ret_fd) == 0) {
			lane->slept = true;
			return 0;
		}
	} while (progress(lane));
	return -EAGAIN;
}

int tp_sealed_lane_wait(struct tp_lane *base, uint64_t deadline_us)
{
	struct sealed_lane *lane = to_lane(base);
	int r = 0;
	for (;;) {
		(void)progress(lane);
		if (has_something(lane) || take_wake(lane))
			return 0;
		if ((r < 0 && r != -ETIMEDOUT) || !base_left_ms(deadline_us))
			return r < 0 ? r : -ETIMEDOUT;
		tp_count(&lane->stats.waits, 1);
		lane->slept = true;
		/* What met a full queue is tried again, as its room is no event. */
		uint64_t until = deadline_us, soon = base_deadline_ms(1);
		uint64_t probe_us = lane->heard_us + sealed_domain_of(&lane->base)->probe_us;
		if (awaits_answer(lane) && probe_us < until)
			until = probe_us;
		if (lane->stuck != SEALED_SENDS && soon < until)
			until = soon;
		r = tp_lane_wait(lane->inner, until);
	}
}

void tp_sealed_lane_stats(const struct tp_lane *base, struct tp_lane_stats *ret_stats)
{
	const struct sealed_lane *lane = BASE_CONTAINER_OF(base, const struct sealed_lane, base);

	tp_copy_stats(&lane->stats, ret_stats);
}
