/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the files of the sealed transport share.
 *
 *   initiator                                      target
 *   Write {key, at}, bytes ──────────────────────▶ copies
 *   Read {id, key, at, total} ───────────────────▶
 *            ◀────────────────────────────────────  Data {id, at}, bytes   as many as it takes
 *   Flush ───────────────────────────────────────▶
 *            ◀────────────────────────────────────  Ack                    when nothing else goes that way
 *
 * Every record says how many of the peer's have been dealt with, Acks not counted.  That completes writes and flushes,
 * and is the credit to send more: at most SEALED_WINDOW are on their way, for which, and for as many Acks, the peer has
 * receives posted.  Each Ack that the peer has not seen tells of a record at least that it still counts as on its way: so
 * there are no more of them than that.
 *
 * Who waits for an answer, has nothing under way below and hears nothing for half of params.silence_ms sends an Ack that
 * tells nothing: whether it arrives is what the lane below watches over (T12).  A peer whose owner does not run takes
 * them until its receives are used up; then the next one stays under way, and no more are sent.
 *
 * A lane begins with a Hello each way, in the clear; the keys come from the session's and from both Hellos, which hold
 * fresh random bytes: no two lanes have the same, and a Hello that was changed makes keys that fit nothing.  Then who
 * connected sends an Ack, who accepted opens it and sends its own: it is a lane to nobody who has not opened the other's.
 */
#ifndef SEALED_PRIV_H
#define SEALED_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/error.h"
#include "transport/sealed/seal.h"
#include "transport/sealed/sealed.h"

#define SEALED_VERSION 1u
/* Bytes of the peer's or our memory in a record: fits into a core's cache, and is opened there. */
#define SEALED_BODY (64u << 10)
/* Records each way without an answer: 1 MiB a lane. */
#define SEALED_WINDOW     16u
#define SEALED_DEPTH_MAX  4096u
#define SEALED_SILENCE_MS 3000u
/* A peer that is one says Hello at once; who does not holds up those that do. */
#define SEALED_HELLO_MS 3000u
#define SEALED_OP_MAX   (1ull << 30)

enum sealed_kind {
	SEALED_ACK = 1,
	SEALED_WRITE,
	SEALED_READ,
	SEALED_DATA,
	SEALED_FLUSH,
};

/* Little-endian, as all of it. */
struct sealed_head {
	uint8_t kind, unused[3];
	uint32_t len;   /* of the body */
	uint32_t id;    /* Read, Data: the initiator's number of the operation */
	uint32_t spare; /* makes the head a multiple of the cipher's blocks */
	uint64_t key;   /* Write, Read */
	uint64_t at;    /* Write, Read: in the memory of that key; Data: in the operation */
	uint64_t total; /* Read: bytes wanted */
	uint64_t acked; /* the peer's records that were dealt with, ever */
};

struct sealed_hello {
	uint32_t magic, version;
	uint32_t sealing;
	uint32_t depth; /* reads that may be asked for at a time */
	uint8_t random[32];
};

#define SEALED_RECORD_MAX (sizeof(struct sealed_head) + SEALED_BODY + SEAL_TAG_SIZE)
#define SEALED_ACK_MAX    (sizeof(struct sealed_head) + SEAL_TAG_SIZE)
/* Buffers for records; receives hold any, sends by number: those of a window, and those for Acks. */
#define SEALED_RECEIVES (2 * SEALED_WINDOW)
#define SEALED_SENDS    (2 * SEALED_WINDOW)

struct sealed_mr {
	struct tp_mr base;
	uint64_t key; /* its slot in the table, and random bits */
};

struct sealed_domain {
	struct tp_domain base;
	struct tp_domain *inner;
	struct tp_seal seal;
	uint32_t depth;
	uint64_t probe_us; /* half of the silence */
	/* Lanes that copy hold it for reading: who has it for writing has all of them out of the memory. */
	pthread_rwlock_t lock;
	struct sealed_mr **mr; /* n_slots */
	uint32_t n_slots, n_mrs;
};

struct sealed_listener {
	struct tp_listener base;
	struct tp_listener *inner;
};

/* A queue of numbers, of a fixed size. */
struct sealed_fifo {
	uint32_t *item;
	uint32_t first, n, cap;
};

struct sealed_op {
	uint64_t cookie;
	int status;
	uint8_t kind; /* SEALED_WRITE, SEALED_READ or SEALED_FLUSH */
	bool is_done;
	uint8_t *local;
	uint64_t key, remote, len;
	uint64_t at;   /* bytes that were sent; of a read, that have come */
	uint64_t last; /* the peer's acked, once it is complete */
};

/* What the peer wants to read. */
struct sealed_request {
	uint32_t id;
	uint64_t key, from, at, len;
};

struct sealed_lane {
	struct tp_lane base;
	struct tp_lane *inner;
	struct seal *out, *in;
	uint8_t *buffers; /* receives, then sends */
	struct tp_mr *buffers_mr;
	_Atomic bool woken;
	/* owner thread */
	int failed; /* 0 or the negative code that the lane died of */
	bool slept; /* since the last poll */
	uint32_t in_flight, depth;
	struct sealed_op *ops;
	struct sealed_fifo free, todo, unacked, done; /* of ops */
	struct sealed_request *requests;              /* a ring, as long as the peer's depth */
	uint32_t first_request, n_requests, peer_depth;
	uint64_t sent, peer_acked; /* records of ours, but Acks */
	uint64_t taken, told;      /* of the peer's; `told` is what it knows */
	struct sealed_fifo free_sends, free_acks;
	uint64_t heard_us;         /* something, or asked for a sign */
	uint32_t stuck, stuck_len; /* a buffer whose send met a full queue; SEALED_SENDS: none */
	struct tp_lane_stats stats;
};

static inline struct sealed_domain *sealed_domain_of(const struct tp_lane *lane)
{
	return (struct sealed_domain *)lane->domain;
}

/* The memory that the peer names, with at least this right; NULL: there is none.  lock is held. */
uint8_t *tp_sealed_memory(const struct sealed_domain *domain, uint64_t key, uint64_t at,
			  uint64_t len, uint32_t access);

/* sealed_lane.c */
/* Takes inner, also on failure; shakes hands with the peer.  What is the peer's fault has the scope of a lane. */
int tp_sealed_lane_create(struct sealed_domain *domain, struct tp_lane *inner, bool connects,
			  uint64_t deadline_us, struct tp_lane **ret_lane, struct mf_error *err);
void tp_sealed_lane_shutdown(struct tp_lane *lane);
void tp_sealed_lane_close(struct tp_lane *lane);
int tp_sealed_post_write(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_sealed_post_read(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_sealed_post_flush(struct tp_lane *lane, uint64_t cookie);
int tp_sealed_lane_poll(struct tp_lane *lane, struct tp_wc *wc, unsigned n);
int tp_sealed_lane_arm(struct tp_lane *lane, int *ret_fd);
int tp_sealed_lane_wait(struct tp_lane *lane, uint64_t deadline_us);
void tp_sealed_lane_wake(struct tp_lane *lane);
void tp_sealed_lane_stats(const struct tp_lane *lane, struct tp_lane_stats *ret_stats);

#endif
