/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The transport contract: moving bytes one-sidedly between registered memory of
 * two hosts.  A backend knows no pages, rounds or protocol.
 *
 *   domain   everything of one session on one device or address; owns memory
 *            registrations, listeners and lanes.
 *   mr       registered memory, usable on every lane of its domain, now or later.
 *   lane     one connection with its own queue.  Owner thread: all calls on a lane
 *            come from one thread at a time, tp_lane_wake() from any.
 *
 * Backends create no threads.  Where a target has to run for a peer's operations to
 * proceed (TP_CAP_TARGET_PROGRESS) its owner calls tp_lane_poll() or tp_lane_wait()
 * all the time; the engine does so for every lane on both sides.
 *
 * Laws (tests/conformance/conf_transport*.c has a test of each number):
 *  T1  post_* accepts a prefix of the batch and returns its length, at least 1, or
 *      returns a negative code having accepted nothing.
 *  T2  -EAGAIN means: queue full, poll first.  It changes nothing.
 *  T3  Every accepted operation completes exactly once; after lane_shutdown() and after a
 *      failure too, then with a negative status.
 *  T4  A write's or read's completion frees its local memory.  A read's completion means
 *      that the bytes are there.
 *  T5  A flush completes after all writes posted before it on that lane are visible to the
 *      CPUs of the other host.  A write's own completion promises no such thing.
 *  T6  In-flight operations never exceed limits.depth; the backend bounds itself by it.
 *  T7  poll returns at most n and never blocks.  wait returns by its deadline.
 *  T8  A failed lane disturbs no other lane.
 *  T9  Memory is reachable to the peer only with the rights given at registration, and not
 *      at all after mr_dereg(): a late operation fails.
 *  T10 A connection without the right token is refused and never becomes a lane.  The token itself is
 *      not sent: what is shown admits the lane of that number only.
 *  T11 connect and accept return by their deadlines.  A refused or silent peer is an error.
 *      Accept lets a peer that has shown the token in time finish, for at most TP_FINISH_MS more.
 *  T12 A vanished peer fails the lane: each operation outstanding completes with an error.
 *      One that answers nothing any more does so, too, once something was posted and
 *      params.silence_ms have passed.  (A silent peer of an idle lane is the engine's to
 *      notice: heartbeats of the control channel.)
 *  T13 What lane_lend() lent is reachable on that lane only, with the rights lent.  When
 *      lane_revoke() has returned, whatever it returned, no operation of the peer on that lane
 *      reaches that memory any more; our own operations with it go on.
 *  T14 A message goes, whole and in the order of sends, into the oldest receive of the peer's
 *      lane, whose completion says how long it is.  Its sender sees to it that there is one: a
 *      message that meets none holds up all of the lane.  One that is longer than its receive
 *      fails both lanes.  A send's completion frees its memory.  Receives are bounded by
 *      params.receives and not by limits.depth; T1 to T4 hold for them, too.
 *  T15 Sealed transports: what was changed, dropped, repeated or put in between on the way fails
 *      the lane, and nothing of it reaches memory.  A lane whose peer has another key is refused
 *      like one with a wrong token.
 */
#ifndef TRANSPORT_H
#define TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <memferry/error.h>

#define TP_TOKEN_SIZE 32
/* From a right token to an established connection, only the peer's kernel and process are asked. */
#define TP_FINISH_MS 10000u
/* "[v6 address]:port", "name:port" */
#define TP_ADDR_MAX 128

enum tp_cap {
	TP_CAP_TARGET_PROGRESS = 1u << 0, /* the target's lane owner must run */
	TP_CAP_PINS = 1u << 1,            /* registering pins: RLIMIT_MEMLOCK, no holes any more */
	TP_CAP_BY_PATH = 1u << 2,         /* goes from path to path; else wherever IP goes */
};

enum tp_access {
	TP_LOCAL = 0,              /* source or sink of our own operations only */
	TP_REMOTE_WRITE = 1u << 0, /* the peer may write */
	TP_REMOTE_READ = 1u << 1,  /* the peer may read */
	TP_LENDABLE = 1u << 2,     /* to be lent, lane by lane; only with limits.windows */
};

/* How a sealed transport protects what it moves.  The key is known to both ends and to nobody else; each lane derives its
 * own from it. */
#define TP_SEAL_KEY_SIZE 32
struct tp_seal {
	enum tp_sealing {
		TP_SEAL_NONE,
		TP_SEAL_INTEGRITY, /* nobody else can change it */
		TP_SEAL_ENCRYPT,   /* nor read it */
	} sealing;
	uint8_t key[TP_SEAL_KEY_SIZE];
};

struct tp_ops;

/* Base structs; a backend's own embed them as their first member. */
struct tp_domain {
	const struct tp_ops *ops;
};
struct tp_mr {
	struct tp_domain *domain;
	void *addr;
	uint64_t len;
	uint32_t access;
};
struct tp_listener {
	struct tp_domain *domain;
};
struct tp_lane {
	struct tp_domain *domain;
	uint32_t id; /* given by the connecting side, the same on both */
};

struct tp_domain_params {
	const char *local;   /* address to bind to or reach out from; NULL: any.  Borrowed. */
	uint32_t depth;      /* operations in flight per lane that the engine wants */
	uint64_t silence_ms; /* a peer that acknowledges nothing for so long is lost; 0: 3 s */
	bool on_demand;      /* register without pinning, where the device can; else as ever */
	uint32_t receives;   /* receives per lane that may be posted at a time; 0: none */
	const struct tp_seal *seal; /* sealed transports only; NULL: for no lanes.  Copied */
};

struct tp_limits {
	uint32_t depth;  /* operations in flight per lane */
	uint64_t max_op; /* bytes of one operation */
	uint64_t max_mr; /* bytes of one registration */
	uint64_t gap;    /* so many bytes more in one operation cost less than a second operation */
	bool windows;    /* memory can be lent and revoked lane by lane, without registering anew */
	bool on_demand;  /* registrations do not pin */
};

/* One way out of this host: an address that lanes can be opened on. */
struct tp_path {
	char device[64];           /* "mlx5_0"; tcp: the interface's name */
	char interface[16];        /* network interface that has the address */
	char address[TP_ADDR_MAX]; /* without a port, "10.0.0.1" or "fd77::1" */
	char detail[96];           /* for people: port, link layer, GID */
	uint8_t prefix;            /* leading bits that all addresses of the subnet share */
	bool up;
	uint64_t mbit_per_s; /* 0: not known */
	int numa_node;       /* -1: not known */
	int gid_index;       /* -1: has none */
};

/* What the peer needs to reach an mr: opaque numbers, carried by the control channel. */
struct tp_remote {
	uint64_t addr; /* of the first byte; add offsets to it */
	uint64_t key;
};

/* One operation.  [local, local+len) lies in mr, [remote, remote+len) in one mr of the peer; messages have no remote. */
struct tp_xfer {
	void *local;
	struct tp_mr *mr;
	uint64_t remote;
	uint64_t key;
	uint64_t len;
	uint64_t cookie; /* comes back with the completion */
};

struct tp_wc {
	uint64_t cookie;
	int status;    /* 0 or a negative code */
	bool received; /* of a receive */
	uint32_t len;  /* bytes that it received */
};

/* Counters of a lane, written by its owner only. */
struct tp_lane_stats {
	uint64_t writes, reads, flushes; /* messages count as writes */
	uint64_t bytes_written, bytes_read;
	uint64_t eagain; /* posts that met a full queue and have to be tried again */
	uint64_t polls;  /* looks for completions */
	uint64_t waits;  /* times its owner slept for some */
	/* Operations by whether they ask the device for a completion of their own. */
	uint64_t signalled, unsignalled;
	/* Completions by whether polling found them, or an event after sleeping. */
	uint64_t polled, evented;
};

/* Counters of a domain. */
struct tp_domain_stats {
	uint64_t bytes_pinned;  /* now */
	uint64_t registrations; /* now */
	uint64_t windows;       /* now */
	uint64_t retransmits;   /* by its port since the domain was opened; all users of the port */
};

struct tp_ops {
	const char *name; /* "fabric" */
	const char *kind; /* as users say it: "tcp", "verbs" */
	uint32_t caps;
	/* "libfabric 1.17": what it stands on, for people; returns buf.  NULL: nothing to say. */
	const char *(*version)(char *buf, size_t cap);

	/* domain - slow path, any one thread.  ops: the table it was called through. */
	int (*domain_open)(const struct tp_ops *ops, const struct tp_domain_params *params,
			   struct tp_domain **ret_domain, struct mf_error *err);
	void (*domain_close)(struct tp_domain *domain); /* no lanes, listeners, mrs left */
	void (*domain_limits)(const struct tp_domain *domain, struct tp_limits *ret_limits);
	void (*domain_stats)(const struct tp_domain *domain, struct tp_domain_stats *ret_stats);
	/* All ways out of this host, also those that are down; fills at most cap, returns how many
	 * there are.  Loopback is none. */
	int (*paths)(struct tp_path *ret, unsigned cap);

	/* memory - slow path, thread-safe within the domain */
	int (*mr_reg)(struct tp_domain *domain, void *addr, uint64_t len, uint32_t access,
		      struct tp_mr **ret_mr, struct mf_error *err);
	void (*mr_dereg)(struct tp_mr *mr);
	void (*mr_remote)(const struct tp_mr *mr, struct tp_remote *ret_remote);

	/* connection - slow path; deadlines are absolute, base_now_us() */
	int (*listen)(struct tp_domain *domain, const char *addr, struct tp_listener **ret_listener,
		      struct mf_error *err); /* port 0: the kernel picks */
	void (*listener_addr)(const struct tp_listener *listener, char *ret, size_t cap);
	/* Refuses wrong tokens on the way (T10) and goes on waiting. -ETIMEDOUT at the deadline. */
	int (*accept)(struct tp_listener *listener, const uint8_t token[TP_TOKEN_SIZE],
		      uint64_t deadline_us, struct tp_lane **ret_lane, struct mf_error *err);
	void (*listener_close)(struct tp_listener *listener);
	int (*connect)(struct tp_domain *domain, const char *addr,
		       const uint8_t token[TP_TOKEN_SIZE], uint32_t lane_id, uint64_t deadline_us,
		       struct tp_lane **ret_lane, struct mf_error *err);
	/* Fails all that is outstanding: poll gives each of them (T3).  The peer's lane fails. */
	void (*lane_shutdown)(struct tp_lane *lane);
	/* After shutdown and after every completion was polled, or before any post. */
	void (*lane_close)(struct tp_lane *lane);

	/* Lends the memory of n mrs registered with TP_LENDABLE to the peer of this lane; nothing
	 * else is in flight on it.  ret_remote has n entries.  Blocks.  On failure the lane has
	 * failed and nothing is lent.  NULL without limits.windows. */
	int (*lane_lend)(struct tp_lane *lane, struct tp_mr *const *mr, unsigned n, uint32_t access,
			 uint64_t deadline_us, struct tp_remote *ret_remote);
	/* Takes back all that was lent on this lane (T13).  Blocks.  0, or the lane has failed. */
	int (*lane_revoke)(struct tp_lane *lane, uint64_t deadline_us);

	/* transfer - data path */
	int (*post_write)(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
	int (*post_read)(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
	int (*post_flush)(struct tp_lane *lane, uint64_t cookie);
	/* Messages (T14), with params.receives. */
	int (*post_send)(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
	int (*post_receive)(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);

	/* progress.  poll: completions, or the lane's failure as a negative code once nothing is
	 * outstanding.  wait: blocks until poll would have something, wake() or the deadline. */
	int (*lane_poll)(struct tp_lane *lane, struct tp_wc *wc, unsigned n);
	/* 0: nothing pending, sleep on *ret_fd until readable, then poll.  -EAGAIN: poll now. */
	int (*lane_arm)(struct tp_lane *lane, int *ret_fd);
	int (*lane_wait)(struct tp_lane *lane, uint64_t deadline_us); /* 0 or -ETIMEDOUT */
	void (*lane_wake)(struct tp_lane *lane);                      /* any thread */
	void (*lane_stats)(const struct tp_lane *lane, struct tp_lane_stats *ret_stats);
};

/* The backends that were built, in order of preference; NULL-terminated. */
const struct tp_ops *const *tp_backends(void);
/* By kind or name: "tcp", "fabric", "verbs"; NULL: not built. */
const struct tp_ops *tp_find(const char *name);
/* The same, but sealing all that it moves (T15): it copies through memory of its own on both sides, whose lane owners
 * have to run as with TP_CAP_TARGET_PROGRESS, and asks the device about nothing else. */
const struct tp_ops *tp_find_sealed(const char *name);

/* Whether two addresses without ports lie in one subnet, by what both hosts say of its size. */
bool tp_are_neighbours(const char *a, uint32_t prefix_a, const char *b, uint32_t prefix_b);

/* The one place that calls through the table; argument checks are asserts here. */
int tp_domain_open(const struct tp_ops *ops, const struct tp_domain_params *params,
		   struct tp_domain **ret_domain, struct mf_error *err);
void tp_domain_close(struct tp_domain *domain); /* NULL: nothing */
void tp_domain_limits(const struct tp_domain *domain, struct tp_limits *ret_limits);
void tp_domain_stats(const struct tp_domain *domain, struct tp_domain_stats *ret_stats);
int tp_paths(const struct tp_ops *ops, struct tp_path *ret, unsigned cap);
int tp_mr_reg(struct tp_domain *domain, void *addr, uint64_t len, uint32_t access,
	      struct tp_mr **ret_mr, struct mf_error *err);
void tp_mr_dereg(struct tp_mr *mr); /* NULL: nothing */
void tp_mr_remote(const struct tp_mr *mr, struct tp_remote *ret_remote);
int tp_listen(struct tp_domain *domain, const char *addr, struct tp_listener **ret_listener,
	      struct mf_error *err);
void tp_listener_addr(const struct tp_listener *listener, char *ret, size_t cap);
int tp_accept(struct tp_listener *listener, const uint8_t token[TP_TOKEN_SIZE],
	      uint64_t deadline_us, struct tp_lane **ret_lane, struct mf_error *err);
void tp_listener_close(struct tp_listener *listener); /* NULL: nothing */
int tp_connect(struct tp_domain *domain, const char *addr, const uint8_t token[TP_TOKEN_SIZE],
	       uint32_t lane_id, uint64_t deadline_us, struct tp_lane **ret_lane,
	       struct mf_error *err);
void tp_lane_shutdown(struct tp_lane *lane);
void tp_lane_close(struct tp_lane *lane); /* NULL: nothing */
/* -EOPNOTSUPP without limits.windows. */
int tp_lane_lend(struct tp_lane *lane, struct tp_mr *const *mr, unsigned n, uint32_t access,
		 uint64_t deadline_us, struct tp_remote *ret_remote);
int tp_lane_revoke(struct tp_lane *lane, uint64_t deadline_us);
int tp_post_write(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_post_read(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_post_flush(struct tp_lane *lane, uint64_t cookie);
int tp_post_send(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_post_receive(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n);
int tp_lane_poll(struct tp_lane *lane, struct tp_wc *wc, unsigned n);
int tp_lane_arm(struct tp_lane *lane, int *ret_fd);
int tp_lane_wait(struct tp_lane *lane, uint64_t deadline_us);
void tp_lane_wake(struct tp_lane *lane);
void tp_lane_stats(const struct tp_lane *lane, struct tp_lane_stats *ret_stats);

#endif
