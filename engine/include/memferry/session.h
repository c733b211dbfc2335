/* SPDX-License-Identifier: BSD-2-Clause */
/**
 * @file session.h
 * One move of one guest, as seen from one of its two hosts.
 *
 * A session is created, run until it has an outcome, asked for its report and destroyed.
 * There is no global state: several sessions may live in one process.  Memory: the session
 * maps the guest's RAM and keeps two bits per page of it.
 *
 * Three ways to run one:
 *
 *   mf_session_run()                     the calling thread runs it; blocks until the end
 *   mf_session_start(MF_DRIVE_THREAD)    a thread of the session's runs it; mf_session_wait()
 *   mf_session_start(MF_DRIVE_LOOP)      the program's event loop polls mf_session_fd() and
 *                                        calls mf_session_step() when it is readable
 *
 * They differ in the thread in which the program is called back, by its adapter's table and
 * on_event: the one in mf_session_run(), the session's own, or the one in mf_session_step().
 * Callbacks come one at a time, and never after the session has ended.
 *
 * Until the hand-off is committed every failure ends with the source guest running,
 * unharmed.  At no time do two guests run.
 *
 * Each function that takes a struct mf_error clears it first.
 *
 * No ABI promise before 1.0; structs that a program fills, or has filled, come with their size, so
 * that they can grow.
 */
#ifndef MF_SESSION_H
#define MF_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <memferry/adapter.h>
#include <memferry/error.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MF_API __attribute__((visibility("default")))
#else
#define MF_API
#endif

#define MF_SESSION_NAME_MAX 40
#define MF_ADDRESS_MAX      128
#define MF_DEFAULT_PORT     7741

enum mf_mode {
	MF_MODE_HYBRID,   /**< pre-copy, post-copy when it would not converge */
	MF_MODE_PRECOPY,  /**< pre-copy only; goes on until it converges or is told */
	MF_MODE_POSTCOPY, /**< switch at once, pull everything */
	MF_MODE_WARM,     /**< keep the destination in step until cutover */
	MF_MODE_COLD,     /**< pause first, then copy */
	MF_MODE_COUNT,
};

enum mf_verify {
	MF_VERIFY_NONE,
	MF_VERIFY_FULL, /**< hash every page on both sides; lengthens the downtime */
};

/** What a session is doing; it only ever moves down this list, but for a destination that was only checked and
 *  listens again, and a move that has found its peer again and goes on with post-copy. */
enum mf_phase {
	MF_PHASE_IDLE,
	MF_PHASE_CONNECT,    /**< destination: listening */
	MF_PHASE_CHECK,      /**< preflight on both hosts */
	MF_PHASE_PREPARE,    /**< mapping, registering, connecting lanes */
	MF_PHASE_PRECOPY,    /**< rounds, guest running at the source */
	MF_PHASE_SWITCHOVER, /**< guest paused: last pass, device state */
	MF_PHASE_HANDOFF,    /**< commit; the guest resumes at the destination */
	MF_PHASE_POSTCOPY,   /**< guest running at the destination, pages missing */
	MF_PHASE_RECOVER,    /**< committed; the connection was lost, and the peer is looked for */
	MF_PHASE_DONE,
	MF_PHASE_COUNT,
};

enum mf_outcome {
	MF_OUTCOME_NONE,      /**< still going on */
	MF_OUTCOME_COMPLETED, /**< the guest runs at the destination, whole */
	MF_OUTCOME_ABORTED,   /**< the guest runs at the source, unharmed */
	MF_OUTCOME_PAUSED, /**< committed; the destination misses pages and has no peer; can be resumed */
	MF_OUTCOME_IN_DOUBT, /**< committed; whether the destination runs is not known; can be resumed */
	MF_OUTCOME_CHECKED, /**< check_only: nothing was moved */
};

/** How pages are protected on their way, by keys that come from the secured control channel.  Their bytes are copied and
 *  sealed by the lanes' threads on both hosts: no device writes into the guest then. */
enum mf_sealing {
	MF_SEALING_NONE,
	MF_SEALING_INTEGRITY, /**< nobody in between can change them unnoticed */
	MF_SEALING_ENCRYPT,   /**< nor read them */
};

enum mf_request {
	MF_REQUEST_CANCEL, /**< abort, before the commit; in MF_PHASE_RECOVER: stop looking for the peer */
	MF_REQUEST_CUTOVER, /**< switch over after this round, whatever the downtime (warm, pre-copy) */
	MF_REQUEST_POSTCOPY, /**< switch to post-copy after this round */
	MF_REQUEST_RECOVER,  /**< post-copy: drop the connection and connect anew, at once */
};

/** One round of pre-copy; the last one runs with the guest paused. */
struct mf_round {
	uint32_t n; /**< from 1 */
	uint64_t ms;
	uint64_t pages;       /**< written, 4 KiB units */
	uint64_t zero_pages;  /**< found zero and not written */
	uint64_t bytes;       /**< written */
	uint64_t dirty_pages; /**< found dirty after it, 4 KiB units */
};

/** Where a session stands; a snapshot. */
struct mf_progress {
	char session[MF_SESSION_NAME_MAX];
	enum mf_side side;
	enum mf_phase phase;
	uint32_t round;
	uint64_t elapsed_ms;
	uint64_t total_bytes;           /**< of guest RAM */
	uint64_t registered_bytes;      /**< of it, for the rail that has least */
	uint64_t done_bytes;            /**< of this round, or in post-copy of what was missing */
	uint64_t round_bytes;           /**< to do in this round; in post-copy what was missing */
	uint64_t bytes_per_s;           /**< measured over the last second or so */
	uint64_t dirty_bytes_per_s;     /**< by the last round; 0: not known */
	uint64_t predicted_downtime_ms; /**< 0: not known */
	uint64_t left_ms;               /**< of this phase; 0: not known */
	uint64_t faults;                /**< post-copy, destination */
};

/** A pair of addresses with a transport between them, over which lanes run. */
struct mf_rail_report {
	char transport[16]; /**< "verbs", "tcp" */
	char device[64];    /**< "mlx5_0"; tcp: "" */
	char local[64];     /**< our address */
	char peer[64];      /**< the other's */
	char place[64]; /**< where its lanes run: "node 1, cpus 12-15"; "" on a host of one node */
	bool joined;    /**< its lanes were connected, once at least */
	bool lost;      /**< it cannot be used any more, or never could */
	char reason[160];         /**< why it was lost */
	uint64_t registration_ms; /**< from the first page pinned to the last */
	uint64_t bytes_pinned;    /**< the most at a time */
	uint64_t retransmits;     /**< by the device's port meanwhile, for whoever uses it */
	uint32_t retries;         /**< attempts to bring it back */
};

/** One lane. */
struct mf_lane_report {
	uint32_t rail; /**< place in rails */
	uint32_t id;   /**< of the rail's, from 0 */
	bool urgent;   /**< carries page faults only */
	bool lost;
	uint64_t bytes_written, bytes_read; /**< by this side */
	uint64_t writes, reads, flushes;    /**< operations of this side */
	uint64_t signalled,
		unsignalled; /**< work requests that ask for a completion of their own, or not */
	uint64_t retries;    /**< posts that met a full queue and were tried again */
	uint64_t polled,
		evented; /**< completions found by polling, or after sleeping until one was signalled */
};

#define MF_RAILS_MAX       8
#define MF_LANES_KEPT      80
#define MF_ROUNDS_KEPT     64
#define MF_LATENCY_BUCKETS 32

struct mf_postcopy_report {
	uint64_t ms;
	uint64_t faults;
	uint64_t pulled_pages; /**< 4 KiB units, faults and background */
	struct {
		uint64_t p50, p90, p99, p99_9, max;
	} latency_us;                                 /**< touch seen to page mapped */
	uint64_t latency_log2_us[MF_LATENCY_BUCKETS]; /**< [i]: 2^i <= us < 2^(i+1); [0] also 0 */
};

/** The whole story; complete when the session has ended. */
struct mf_report {
	char session[MF_SESSION_NAME_MAX];
	enum mf_side side;
	enum mf_outcome outcome;
	enum mf_mode mode;
	const char *transport; /**< "tcp", "verbs"; "" before one was chosen */
	char transport_reason[320];
	enum mf_sealing sealing;
	char tracker[16]; /**< source: what told the guest's writes; "" when nothing had to */
	uint64_t total_ms;
	uint64_t downtime_ms; /**< pause to resume; source: until RUNNING arrived */
	uint32_t n_rounds;    /**< all; the first MF_ROUNDS_KEPT - 1 and the last are kept */
	struct mf_round rounds[MF_ROUNDS_KEPT];
	uint64_t bytes_written, bytes_read;
	uint64_t pages_total, pages_zero, pages_resent; /**< 4 KiB units */
	uint64_t pages_bridged; /**< written although clean: they lay in gaps too small to skip */
	uint32_t n_rails;
	struct mf_rail_report rails[MF_RAILS_MAX]; /**< in order of preference */
	uint32_t n_lanes;
	struct mf_lane_report lanes[MF_LANES_KEPT];
	bool has_postcopy;
	struct mf_postcopy_report postcopy;
	uint64_t cpu_user_ms, cpu_system_ms; /**< of this process while the session ran */
	bool has_verify;
	uint64_t verify_pages, verify_mismatches;
	uint32_t recoveries;   /**< how often the move went on after the connection was lost */
	struct mf_error error; /**< code 0: none */
	uint32_t n_findings;   /**< preflight, this side's first */
	struct mf_finding findings[2 * MF_FINDINGS_MAX];
};

enum mf_event_type {
	MF_EVENT_LISTENING, /**< text: the address */
	MF_EVENT_CONNECTED, /**< text: the peer's address */
	MF_EVENT_TRANSPORT, /**< text: "tcp: …reason" */
	MF_EVENT_FINDING,   /**< finding; preflight */
	MF_EVENT_PHASE,     /**< phase */
	MF_EVENT_ROUND,     /**< round: one that ended */
	MF_EVENT_NOTICE,    /**< text: something people should know ("does not converge: …") */
	MF_EVENT_RUNNING,   /**< destination: the guest runs here */
};

struct mf_event {
	enum mf_event_type type;
	enum mf_phase phase;
	const char *text;                 /**< valid during the call */
	const struct mf_round *round;     /**< likewise */
	const struct mf_finding *finding; /**< likewise */
};

/** Called as an adapter's callbacks are; must not call back into the session except
 *  mf_session_request() and mf_session_progress().  In a loop events come late: what they
 *  tell has happened, and the session has gone on. */
typedef void (*mf_event_fn)(void *ctx, const struct mf_event *event);

struct mf_session_params {
	size_t size; /**< sizeof(struct mf_session_params) of whoever fills it */
	enum mf_side side;
	const char *address; /**< source: where to connect; destination: where to listen; copied */
	struct mf_adapter guest;  /**< borrowed until mf_session_destroy() */
	const char *run_dir;      /**< for the hand-off record and the missing-bitmap; copied */
	enum mf_mode mode;        /**< source decides */
	enum mf_verify verify;    /**< source decides */
	const char *transport;    /**< "auto", "tcp", "verbs"; copied */
	uint32_t lanes;           /**< bulk lanes of each rail; 0: 2 */
	uint64_t max_downtime_ms; /**< 0: 300 */
	uint64_t
		max_bandwidth; /**< bytes per second over all bulk lanes: rounds (source), post-copy (destination); 0: no limit */
	uint64_t connect_timeout_ms; /**< 0: 10 s */
	uint64_t peer_timeout_ms;    /**< silence after which the peer counts as lost; 0: 10 s */
	uint64_t
		lane_timeout_ms; /**< a lane whose peer acknowledges nothing for so long is lost; 0: 3 s */
	bool on_demand;  /**< let the device fault memory in instead of pinning it, where it can */
	bool insecure;   /**< permit the plain control channel; not with tls_dir or psk */
	bool check_only; /**< source: preflight, then stop */
	mf_event_fn on_event; /**< NULL: none */
	void *ctx;
	const char *tracker; /**< source: "auto" (or NULL), or the name of one; copied */

	/* How the control channel is secured: one of these two, or insecure.  Both hosts alike.  Files are read by
	 * mf_session_create(), which fails when others may read a key. */
	const char *
		tls_dir; /**< ca-cert.pem, {server,client}-{cert,key}.pem; a destination is the server; copied */
	const char *
		tls_peers; /**< with tls_dir: names that the other host's certificate may have, "a,b"; NULL: source,
				*   the host of its address; destination, any certificate of the CA; copied */
	const char *
		psk; /**< file with a pre-shared key of at least 128 bits, in hexadecimal; copied */
	/** Go on with this session, whose process on this host has died after the hand-off began.  NULL: a new
	 *  one; only for guests whose adapters can take them over (QEMU); not kept.  Where the guest's process has ended
	 *  meanwhile, guest.ops is NULL: what can be said or done without it is. */
	const char *resume;
	/** How long the peer is looked for when the connection is lost after the commit; 0: 300 s. */
	uint64_t recover_timeout_ms;
	/** Source: post-copy only when at most so many pages of 4 KiB are missing: what nobody survives, the loss of the
	 *  source's monitor or host before the last page, is a matter of moments then.  0: whenever it is decided. */
	uint64_t safe_postcopy_pages;
	/** Source: what is done; destination: the least that it takes.  Not with insecure. */
	enum mf_sealing sealing;
};

struct mf_session;

/** Checks the parameters and sets up what needs no peer; the destination listens when run.
 *  -EINVAL, -ENOMEM, or -MF_EUSAGE (address, transport, tracker, security and its files, resume: there is nothing to
 *  go on with). */
MF_API int mf_session_create(const struct mf_session_params *params,
			     struct mf_session **ret_session, struct mf_error *err);

/** Runs the move to its outcome.  Blocks; every wait in it has a deadline, but for the destination's
 *  wait for a first connection, which only a request or a connection ends.
 *  0: completed (or checked without a refusal).  Else the report's error, also in @p err;
 *  -EALREADY: it was run or started before. */
MF_API int mf_session_run(struct mf_session *session, struct mf_error *err);

enum mf_drive {
	/** Callbacks come in a thread of the session's, with all signals blocked but those that a thread
	 *  brings upon itself (SIGSEGV, SIGBUS, …). */
	MF_DRIVE_THREAD,
	MF_DRIVE_LOOP, /**< callbacks come out of mf_session_step() only */
};

/** Starts the session and returns at once.  0, -EALREADY, -EINVAL, -ENOMEM, or what
 *  pthread_create(3) says. */
MF_API int mf_session_start(struct mf_session *session, enum mf_drive drive, struct mf_error *err);

/** The session's descriptor, to be polled for POLLIN and nothing else; the session's, until
 *  mf_session_destroy().  MF_DRIVE_LOOP: readable when mf_session_step() has something to do.
 *  MF_DRIVE_THREAD: readable once the session has ended. */
MF_API int mf_session_fd(const struct mf_session *session);

/** MF_DRIVE_LOOP: makes the callbacks that are due.  Takes as long as they take, and waits for
 *  nothing itself.  Always from one thread, or under one lock of the program's; not from a callback.
 *  While a callback of the adapter is due the session waits for it: a loop that takes no step
 *  while the guest is paused lengthens its downtime.
 *  1: goes on; call again when the descriptor is readable.  0: completed (or checked).  Negative:
 *  the report's error, also in @p err.  Once ended, further steps say the same; -EINVAL: not in a loop. */
MF_API int mf_session_step(struct mf_session *session, struct mf_error *err);

/** MF_DRIVE_THREAD: waits for the end, for at most @p timeout_ms (UINT64_MAX: for ever).
 *  1: it goes on.  0: completed (or checked).  Negative: the report's error, also in @p err; -EINVAL:
 *  no thread of the session's runs it.  From one thread at a time. */
MF_API int mf_session_wait(struct mf_session *session, uint64_t timeout_ms, struct mf_error *err);

/** Any thread, any time, also from a signal handler.  What comes too late has no effect. */
MF_API void mf_session_request(struct mf_session *session, enum mf_request request);

/** Any thread.  Fills @p size bytes, sizeof(struct mf_progress). */
MF_API void mf_session_progress(const struct mf_session *session, struct mf_progress *ret,
				size_t size);

/** Valid until mf_session_destroy(); complete when the session has ended. */
MF_API const struct mf_report *mf_session_report(const struct mf_session *session);

/** NULL: nothing.  Not while mf_session_run() runs, nor from a callback.  A session that was started and
 *  goes on is cancelled and waited for, making the callbacks that come (in a loop's case from here);
 *  beyond the commit, where nothing can be cancelled, that means until every page has arrived.  A
 *  destination that ended with MF_OUTCOME_PAUSED leaves a guest of this process as it is: who touches a missing
 *  page goes on waiting, for as long as the process lives. */
MF_API void mf_session_destroy(struct mf_session *session);

/** "0.1.0": of the library that is linked, which may be newer than these headers. */
MF_API const char *mf_version(void);

/** Stable names for reports and options: "hybrid", "precopy", … */
MF_API const char *mf_mode_name(enum mf_mode mode);
MF_API const char *mf_sealing_name(enum mf_sealing sealing);
MF_API const char *mf_phase_name(enum mf_phase phase);
MF_API const char *mf_outcome_name(enum mf_outcome outcome);
/** "canceled", "peer", "ECONNREFUSED", …  */
MF_API const char *mf_error_name(int code);

/** One thing the data plane could use on this host. */
struct mf_device {
	char transport[16];  /**< "tcp", "verbs" */
	char name[64];       /**< "mlx5_0"; tcp: of the interface */
	char detail[320];    /**< address, port, GID, rate, NUMA node with distances */
	uint64_t mbit_per_s; /**< 0: not known */
	int numa_node;       /**< -1: not known */
	bool usable;
	bool picked;      /**< by --transport auto */
	char reason[160]; /**< why it is picked, or not usable */
};
/** Fills at most @p cap devices of @p size bytes each, sizeof(struct mf_device); returns how many there are, or a
 *  negative code. */
MF_API int mf_devices(struct mf_device *ret, size_t size, unsigned cap, struct mf_error *err);

/** What one side of a session has left in a run directory. */
struct mf_leftover {
	char session[MF_SESSION_NAME_MAX];
	enum mf_side side;
	bool held;       /**< a process has it and goes on: nothing is left over yet */
	char record[16]; /**< "committed", "ready", "aborted", "owner", "running", "complete";
			  *   "": there is none; "unknown": of another version */
	bool postcopy;   /**< pages were missing when the guest was handed over */
	int pid;         /**< of the guest's process; 0: not known */
	bool guest_lives;
	bool needed; /**< by the other host or the guest; the move can still come to a good end */
	char text[192]; /**< what it means, and what to do */
};
/** Fills at most @p cap of @p size bytes each, sizeof(struct mf_leftover); returns how many, or a negative code. */
MF_API int mf_leftovers(const char *run_dir, struct mf_leftover *ret, size_t size, unsigned cap,
			struct mf_error *err);

/** Removes what either side of a session has left in a run directory; the guest, and a userfaultfd in its process, are
 *  not touched: who waits for a missing page goes on waiting.  -ENOENT: there is nothing; -MF_EREFUSED: a process
 *  goes on with it; or, unless @p force, it is needed. */
MF_API int mf_forget(const char *run_dir, const char *session, bool force, struct mf_error *err);

#ifdef __cplusplus
}
#endif
#endif
