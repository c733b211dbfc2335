/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the files of the engine share: the session and its parts.
 *
 *   session thread   the caller's or ours (drive.c): phases, control messages, policy
 *   driver's thread  where the program is called back: the session's, or the one that takes steps
 *   lane threads     one per lane: run jobs (write a round, pull pages, serve faults), else keep
 *                    the transport's progress going
 *   control thread   wire/channel.c: reads, pings, notices silence
 *
 * The session thread sleeps on event_fd only; requests, finished jobs and control messages all write to it.
 */
#ifndef CORE_ENGINE_H
#define CORE_ENGINE_H

#include <memferry/session.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/bitmap.h"
#include "base/error.h"
#include "base/placement.h"
#include "base/process.h"
#include "core/latency.h"
#include "tracker/pager.h"
#include "tracker/tracker.h"
#include "transport/transport.h"
#include "wire/accept.h"
#include "wire/channel.h"

#define ENG_PROTOCOL_VERSION 1u
/* Reports count pages of this size, whatever the backing. */
#define ENG_PAGE 4096u
/* Work is dealt to lanes, and flushed, in chunks of a region. */
#define ENG_CHUNK (8u << 20)
/* The longest operation in bytes, unless a page is longer. */
#define ENG_OP_MAX           (1u << 20)
#define ENG_PIECE            (UINT64_C(1) << 30) /* one registration at the most */
#define ENG_DEPTH            128u                /* operations in flight per lane */
#define ENG_CHUNKS_UNFLUSHED 4u /* per lane: bounds bytes in flight and what a lost lane costs */
#define ENG_LANES_MAX        64u
#define ENG_RAILS_MAX        MF_RAILS_MAX
/* How long nothing may be registered until that counts as a failure: a piece is at most 1 GiB. */
#define ENG_REGISTER_STALL_MS 120000u
/* Threads that register the memory of one rail. */
#define ENG_REG_THREADS 4u
/* Device state is kept whole on either side: QEMU's is below 1 MiB. */
#define ENG_STATE_MAX (UINT64_C(1) << 30)

/* States of a session; state.c has the table of what may follow what. */
enum eng_state {
	ENG_IDLE,
	ENG_CONNECT, /* destination: listening */
	ENG_CHECK,
	ENG_PREPARE,
	ENG_PRECOPY,    /* rounds */
	ENG_SWITCHOVER, /* guest paused; last pass, device state */
	ENG_READY,      /* state loaded at the destination; nothing decided */
	ENG_COMMITTED,  /* source: recorded "committed"; destination: recorded "owner" */
	ENG_FINISHING,  /* the guest runs at the destination, whole */
	ENG_POSTCOPY,   /* the guest runs at the destination, pages are missing */
	ENG_RECOVER,    /* committed, and the other side is looked for */
	ENG_COMPLETED,
	ENG_ABORTED,  /* the guest runs at the source */
	ENG_PAUSED,   /* committed, pages missing, no peer, and not looked for any more */
	ENG_IN_DOUBT, /* committed, answer not known, and not asked for any more */
	ENG_CHECKED,
	ENG_STATE_COUNT,
};

/* One region as this side has it. */
struct eng_region {
	struct mf_region desc;
	/* All of it: our own mapping, or private memory of this process, which has no second one. */
	uint8_t *map;
	bool is_private;
	int holes_fd;          /* knows where it has holes: its file, or pagemap; -1: nobody does */
	uint64_t holes_offset; /* where the region begins in that file */
	uint64_t pages;
	/* Source: pages the destination does not have in their newest form.
	 * Destination, post-copy: pages that nobody fetches yet. */
	uint64_t *todo;
	/* Destination, post-copy: pages whose bytes are here.  In a shared file: survives us. */
	uint64_t *present;
	uint64_t *hashes; /* destination, verify in post-copy: what each page must be */
};

struct eng_memory {
	uint32_t n;
	struct eng_region region[MF_REGIONS_MAX];
	uint64_t bytes;
	/* Destination, where memory is private: pages that are pulled land here first, since the guest must not see half
	 * of one.  A slot for each operation of each lane. */
	uint8_t *landing;
	uint64_t landing_bytes;
};

/* Events that wait for the program's loop. */
#define EVENTS_QUEUED  32u
#define EVENT_TEXT_MAX 320u

typedef int64_t (*eng_call_fn)(struct mf_session *s, void *ctx);

/* drive.c: who runs the session. */
struct eng_drive {
	enum {
		NOT_DRIVEN,
		DRIVEN_BY_RUN,
		DRIVEN_BY_THREAD,
		DRIVEN_BY_LOOP,
	} kind;
	int fd; /* a loop has something to do, or the session has ended */
	pthread_t thread;
	bool joined;          /* the program's */
	pthread_mutex_t lock; /* protects what follows */
	pthread_cond_t changed;
	struct eng_said *queue; /* ring of EVENTS_QUEUED */
	uint32_t first_queued, n_queued;
	eng_call_fn call; /* to be made by the loop */
	void *call_ctx;
	int64_t call_ret;
	bool call_made;
	bool ended;
	int result;
	struct mf_error error;
};

struct mf_session;
struct eng_lane;

/* A job: every lane it was given to calls run() once, the last one to return pokes the session. */
struct eng_job {
	int (*run)(struct eng_lane *lane, void *ctx);
	void *ctx;
	bool even_failed; /* run() is called on lanes that have failed, too: not all it does needs them */
	_Atomic uint32_t running;
	_Atomic bool stop; /* asks run() to return early */
};

/* One operation under way. */
struct eng_op {
	uint32_t region;
	uint64_t first, n;
	uint64_t seen_us; /* fault: when it was seen */
};

/* How a side cuts all regions into registrations; they are numbered over all regions, in order. */
struct eng_pieces {
	uint64_t size[MF_REGIONS_MAX];  /* bytes; the last one of a region may be shorter */
	uint32_t first[MF_REGIONS_MAX]; /* the number of a region's first */
	uint32_t total;
};

struct eng_lane {
	struct mf_session *session;
	struct eng_rail *rail;
	struct tp_lane *tp; /* the thread's own from start to join */
	pthread_mutex_t
		wake_lock; /* tp comes and goes under it, for those who only wake the lane */
	uint32_t id;       /* of the rail's */
	bool urgent;
	/* The peer's pieces as this lane reaches them; those below `reachable` are there. */
	struct tp_remote *remote;
	_Atomic uint32_t reachable;
	struct tp_remote *
		lent; /* ours as the peer reaches them over this lane, where they are lent by lane */
	cpu_set_t cpus;            /* where it runs; empty: anywhere */
	struct tp_lane_stats past; /* of earlier connections */
	pthread_t thread;
	bool started;
	int sleep_fd; /* wakes a failed lane's thread */

	_Atomic(struct eng_job *) job;
	_Atomic bool stop;
	_Atomic bool drop; /* the peer has lost it: shut it down */
	_Atomic int failure;
	_Atomic bool lost;     /* it failed before the session was done with it */
	bool fenced;           /* session thread, source: the destination knows of the failure */
	struct mf_error error; /* of the failure; read after the job ended */

	/* the thread's own */
	struct eng_op ops[ENG_DEPTH];
	uint16_t free_ops[ENG_DEPTH];
	uint32_t n_free;
	uint32_t in_flight; /* operations and flushes */
};

/* A pair of addresses, and a transport between them.  Both sides number them alike, in order of preference; work
 * is given to those of the first transport that has a lane left. */
struct eng_rail {
	struct mf_session *session;
	uint32_t id;
	const struct tp_ops *tp;
	char device[64];
	char local[MF_ADDRESS_MAX], peer[MF_ADDRESS_MAX]; /* without ports */
	char peer_device[64];
	struct eng_lane *lane; /* the session's n_bulk, then the urgent one */

	/* from opening to closing; session thread, but for what is atomic */
	struct tp_domain *domain; /* NULL: closed */
	struct tp_listener *listener;
	struct tp_limits limits;
	bool joined;         /* all its lanes were connected */
	_Atomic bool usable; /* its lanes may be given work */
	bool told_lost;
	struct mf_error error; /* why it is not usable any more */
	struct eng_pieces pieces, theirs;

	/* registering: its threads fill mr, from the first piece on */
	struct tp_mr **mr;           /* one a piece; NULL: not registered, for now */
	struct tp_mr *landing_mr;    /* where memory is private: where pulled pages land */
	uint8_t *done;               /* by piece: looked at; protected by reg_lock */
	uint32_t access;             /* what they are registered with */
	_Atomic uint32_t registered; /* all pieces below it are done */
	pthread_mutex_t reg_lock;
	pthread_t reg_thread[ENG_REG_THREADS];
	uint32_t n_reg_threads;
	_Atomic uint32_t reg_next;
	_Atomic bool reg_stop;
	_Atomic int reg_failure;
	struct mf_error reg_error; /* written before reg_failure */
	uint64_t reg_started_us;

	/* announcing what the peer may reach */
	uint32_t exposes;   /* TP_REMOTE_*, 0: nothing */
	uint32_t announced; /* all pieces below it were */
	uint32_t woken_at;  /* what was registered when its lanes were last told */
	struct {
		struct eng_job job;
		uint32_t first, end;
		bool running;
	} lend;

	/* coming back */
	uint64_t retry_at_us;
	uint32_t retries;
	struct mf_rail_report report;
};

struct eng_lanes {
	struct eng_lane *lane; /* of all rails, rail by rail */
	uint32_t n_bulk;       /* of each rail; its urgent one follows them */
};

/* How far the hand-off came, as it is on disk. */
enum eng_record {
	ENG_RECORD_COMMITTED, /* source */
	ENG_RECORD_READY,     /* destination, like all that follow */
	ENG_RECORD_ABORTED,
	ENG_RECORD_OWNER,
	ENG_RECORD_RUNNING,
	ENG_RECORD_COMPLETE,
	ENG_RECORD_COUNT,
};
struct eng_record_entry {
	enum eng_record what;
	bool postcopy;           /* pages were missing when the guest was handed over */
	bool ran;                /* the guest, before it was paused: it is to run again */
	enum mf_sealing sealing; /* of its pages so far: the rest is sealed no less */
	struct base_process guest;
};

struct mf_session {
	struct mf_session_params params; /* strings are ours */
	struct mf_adapter_ops ops;       /* of params.guest; what it lacks is NULL */
	struct eng_drive drive;
	char host[MF_ADDRESS_MAX];
	uint16_t port;
	uint8_t token[TP_TOKEN_SIZE];
	struct tp_seal seal; /* report.sealing, and its key */
	char *address, *run_dir, *transport, *tracker_name;

	struct mf_guest guest;
	/* Found when it was described: records are written in the downtime. */
	struct base_process guest_process;
	enum eng_state state;      /* session thread; eng_set_state() only */
	_Atomic uint32_t requests; /* bits 1 << enum mf_request */
	int event_fd;
	int listen_fd;
	char local_host[MF_ADDRESS_MAX]; /* our end of the control channel: lanes use it, too */
	char peer_name[MF_ADDRESS_MAX];  /* "host:port" of the other */
	struct wire_security *security;  /* of all control channels; NULL: plain */
	struct wire_channel *channel;
	struct eng_memory memory;
	struct eng_lanes lanes;
	struct eng_rail rail[ENG_RAILS_MAX];
	uint32_t n_rails;
	const struct tp_ops
		*tp_given; /* tests, before the run: stands for the built one of its kind */

	struct trk *tracker;
	int tracker_uffd;
	struct pgr *pager;
	int pager_uffd;
	/* The original, of a guest in this process whose adapter leaves that to us. */
	int kept_uffd;
	uint32_t n_refused;             /* destination: connections */
	bool prepared;                  /* the adapter was; abort() is owed */
	int lock_fd;                    /* of the record; -1: none was written */
	struct eng_record_entry record; /* --resume: what was found */
	bool guest_has_ended;           /* --resume: no adapter, and nothing to be told of it */
	bool guest_committed;           /* the adapter was told */
	struct {
		uint64_t deadline_us, pause_us; /* of this search for the peer */
		uint64_t found_us;              /* the last one's end */
	} recover;
	bool peer_gave_up;        /* it sent Abort */
	uint32_t throttle;        /* percent, of the source guest */
	bool pulling;             /* destination: post-copy is near, or under way */
	struct base_place *place; /* NULL: not known, or a host of one node */
	bool place_opened;
	char chosen_because
		[160]; /* why the transport was chosen that was lost later; "": it was not */
	_Atomic bool lanes_done; /* nothing moves any more: that lanes end is no news */
	wire_msg *kept;          /* came before its turn; the next message to be received */

	/* device state on its way */
	struct {
		uint8_t *bytes;
		size_t len, cap, at;
		bool complete; /* source: all is saved; destination: the last piece has come */
	} device;

	uint64_t started_us, stopped_us;     /* stopped: the guest, by our clock */
	uint64_t cpu_user_us, cpu_system_us; /* when the session began */
	struct mf_report report;

	pthread_mutex_t progress_lock; /* protects progress; never held across a call */
	struct mf_progress progress;
	_Atomic uint64_t bytes_moved;   /* by all lanes, ever */
	_Atomic uint64_t bytes_scanned; /* of this round: written, zero or not to be sent */
	_Atomic uint64_t faults;
	_Atomic uint64_t not_before_us; /* bandwidth limit: when the next byte may go */
};

/* state.c */
void eng_set_state(struct mf_session *s, enum eng_state to);
bool eng_state_may_follow(enum eng_state from, enum eng_state to);
const char *eng_state_name(enum eng_state state);
bool eng_state_is_end(enum eng_state state);

/* drive.c */
int eng_drive_init(struct eng_drive *d, struct mf_error *err);
void eng_drive_free(struct eng_drive *d);
/* Cancels a session that goes on, and waits for its end. */
void eng_drive_end(struct mf_session *s);
/* Session thread: makes the call where the program wants to be called back; returns when it was made. */
int64_t eng_in_drivers_thread(struct mf_session *s, eng_call_fn fn, void *ctx);
/* Session thread: the same for an event, but for a loop it is queued. */
void eng_drive_event(struct mf_session *s, const struct mf_event *event);

/* guest.c: the adapter's callbacks.  Those without a code of their own cannot fail. */
/* Checks the table and keeps it. */
int eng_guest_take_table(struct mf_session *s, const struct mf_adapter_ops *ops,
			 struct mf_error *err);
int eng_guest_describe(struct mf_session *s, struct mf_error *err); /* into s->guest */
int eng_guest_prepare(struct mf_session *s, struct mf_error *err);
int eng_open_userfaultfd(struct mf_session *s, int *ret_fd, struct mf_error *err);
void eng_close_userfaultfds(struct mf_session *s);                    /* the originals */
int eng_guest_forget_ram(struct mf_session *s, struct mf_error *err); /* but private memory */
int eng_guest_pause(struct mf_session *s, struct mf_error *err);      /* sets stopped_us */
/* write and read get the session as their ctx. */
int eng_guest_save_state(struct mf_session *s, mf_state_write_fn write, struct mf_error *err);
int eng_guest_load_state(struct mf_session *s, mf_state_read_fn read, struct mf_error *err);
int eng_guest_resume(struct mf_session *s, struct mf_error *err);
void eng_guest_commit(struct mf_session *s);
int eng_guest_abort(struct mf_session *s, struct mf_error *err);
void eng_guest_finish(struct mf_session *s);
int eng_guest_throttle(struct mf_session *s, unsigned percent, struct mf_error *err);
bool eng_guest_can_hold(const struct mf_session *s);
int eng_guest_hold(struct mf_session *s, struct mf_error *err);
int eng_guest_let_go(struct mf_session *s, struct mf_error *err);
int eng_guest_self_check(struct mf_session *s, struct mf_finding *ret);
ssize_t eng_guest_list_needs(struct mf_session *s, void *bytes, size_t cap, struct mf_error *err);
int eng_guest_check_needs(struct mf_session *s, const void *bytes, size_t len,
			  struct mf_finding *ret, unsigned cap, struct mf_error *err);
void eng_guest_take_written(struct mf_session *s); /* into todo */
/* Of another process that has died; instead of prepare(). */
int eng_guest_take_over(struct mf_session *s, bool *ret_runs, struct mf_error *err);
/* Whether it ran when it was paused; from then on, at the destination from load_state() on. */
bool eng_guest_ran(struct mf_session *s);
int eng_guest_find_userfaultfd(struct mf_session *s, int *ret_fd, struct mf_error *err);

/* session.c: its whole run; then events, requests, and waiting */
int eng_run_out(struct mf_session *s, struct mf_error *err);
void eng_emit(struct mf_session *s, enum mf_event_type type, const char *fmt, ...) MF_PRINTF(3, 4);
void eng_emit_round(struct mf_session *s, const struct mf_round *round);
void eng_emit_finding(struct mf_session *s, const struct mf_finding *finding);
bool eng_requested(const struct mf_session *s, enum mf_request request);
/* -MF_ECANCELED when that was asked for and the state allows it, else 0. */
int eng_check_cancel(struct mf_session *s, struct mf_error *err);
/* Sleeps until something happened or the deadline; the caller looks what. */
void eng_sleep(struct mf_session *s, uint64_t deadline_us);
/* The next message: 1 and *ret (the caller frees it), 0 at the deadline.  Negative: the channel
 * failed, the peer aborted (-MF_EPEER), or we were cancelled. */
int eng_receive(struct mf_session *s, uint64_t deadline_us, wire_msg **ret, struct mf_error *err);
/* The same, and it must be that one; what only informs is passed over. */
int eng_expect(struct mf_session *s, Mf__Wire__Control__BodyCase body, uint64_t deadline_us,
	       wire_msg **ret, struct mf_error *err);
int eng_send(struct mf_session *s, wire_msg *msg, struct mf_error *err);
/* A message without fields. */
int eng_send_plain(struct mf_session *s, Mf__Wire__Control__BodyCase body, struct mf_error *err);
void eng_send_abort(struct mf_session *s, const struct mf_error *why);
/* Closes the control channel: the peer is not to wait for more.  Without one: nothing. */
void eng_hang_up(struct mf_session *s);
/* Of a control channel's socket: ours, which lanes use, too, and the other's. */
void eng_note_addresses(struct mf_session *s, int fd);
struct wire_channel_params eng_channel_params(const struct mf_session *s);
/* Destination: whoever connects has so long to secure the channel and to say what it wants. */
int eng_open_acceptor(struct mf_session *s, uint64_t patience_ms,
		      struct wire_acceptor **ret_acceptor, struct mf_error *err);
/* Tells people. */
void eng_refused(struct mf_session *s, const char *why);
/* Runs the job's end out, watching for cancel and the channel; asks the job to stop on failure
 * and waits for it all the same.  The first failure. */
int eng_wait_job(struct mf_session *s, struct eng_job *job, struct mf_error *err);
uint64_t eng_timeout(const struct mf_session *s); /* deadline for one answer of the peer */
/* A round, or the pulling, begins with so much to do. */
void eng_update_progress(struct mf_session *s, uint32_t round, uint64_t round_bytes);
/* Names become part of file names. */
bool eng_is_session_name(const char *name);
/* The session is called so, for reports and files. */
void eng_name_session(struct mf_session *s, const char *name);

/* source.c, destination.c: one side's whole run.  0, or the failure that ended it. */
int eng_source_run(struct mf_session *s, struct mf_error *err);
int eng_destination_run(struct mf_session *s, struct mf_error *err);
/* Marks the pages that are named in todo; no more than *left, which is how many are still to be named. */
int eng_take_bitmap(struct mf_session *s, const Mf__Wire__Bitmap *b, uint64_t *left,
		    struct mf_error *err);

/* memory.c */
int eng_memory_map(struct mf_session *s, struct mf_error *err);
void eng_memory_unmap(struct mf_session *s);
/* 1: private memory of this process, 0: shared, or known by its file; negative: it cannot be moved, and why. */
int eng_region_is_private(const struct mf_region *d, struct mf_error *err);
/* Destination: the whole RAM becomes holes. */
/* Bytes that are left on the file system behind a region; false: it has none, or no limit. */
bool eng_region_room(const struct mf_region *d, uint64_t *ret);
/* The region whose file system is full; NULL: none.  A hole of it that is touched is EFAULT in a system call, which a transport
 * takes for the end of its lane, or SIGBUS. */
const char *eng_memory_without_room(const struct mf_session *s);
int eng_memory_empty(struct mf_session *s, struct mf_error *err);
/* The next bytes [from, to) of the region, at or after `at`, that may hold something; false: there are none. */
bool eng_region_next_data(const struct eng_region *r, uint64_t at, uint64_t *ret_from,
			  uint64_t *ret_to);
/* Destination, before rails are opened: room for what is pulled into private memory. */
int eng_landing_open(struct mf_session *s, struct mf_error *err);
/* The part of it that the rail's lanes use; 0: there is none. */
uint64_t eng_landing_of(const struct eng_rail *rail, uint8_t **ret_at);
/* Where the bytes of an operation of that region land. */
uint8_t *eng_landing_at(const struct eng_lane *lane, uint32_t region, uint64_t first,
			uint64_t cookie);
/* Destination, armed: private memory gives up the pages that are to do. */
int eng_memory_drop_todo(struct mf_session *s, struct mf_error *err);
/* Sets todo for every page that is not a hole of the file; of one region, from any thread. */
void eng_memory_seed(struct mf_session *s);
void eng_region_seed(struct eng_region *r, uint64_t first, uint64_t n);
uint64_t eng_memory_count_todo(const struct mf_session *s); /* pages of any size */
uint64_t eng_memory_todo_bytes(const struct mf_session *s);
/* Bytes [at, at + len) of the region hold something, as far as the file can tell.  Any thread. */
bool eng_region_has_data(const struct eng_region *r, uint64_t at, uint64_t len);
/* Pages [first, first + n) of a region, which lie in one piece of both sides: both have it registered. */
bool eng_lane_reaches(const struct eng_lane *lane, uint32_t region, uint64_t first);
/* The registration here that the page lies in was put off: nothing of it was to be moved. */
bool eng_lane_lacks(const struct eng_lane *lane, uint32_t region, uint64_t first);
/* An operation on such pages, which the lane reaches. */
void eng_memory_xfer(const struct eng_lane *lane, uint32_t region, uint64_t first, uint64_t n,
		     uint64_t cookie, struct tp_xfer *ret);
/* Runs of at most this many pages make one operation; fewer do in the background of post-copy. */
uint64_t eng_op_pages(const struct eng_region *r);
uint64_t eng_pull_pages(const struct eng_region *r);
uint64_t eng_chunk_pages(const struct eng_region *r);

/* Device state piles up, to be sent or loaded: -ENOMEM, or -E2BIG beyond ENG_STATE_MAX. */
int eng_keep_state(struct mf_session *s, const void *bytes, size_t len, struct mf_error *err);

/* pieces.c: what is registered, and for whom. */
/* How this side cuts its memory for the rail. */
void eng_pieces_cut(const struct mf_session *s, uint64_t max_mr, struct eng_pieces *ret);
/* What the peer says of its own; -MF_EPEER when no operation of ours would fit into it. */
int eng_pieces_take(const struct mf_session *s, const uint64_t *size, size_t n,
		    struct eng_pieces *ret, struct mf_error *err);
uint32_t eng_piece_at(const struct eng_pieces *pieces, const struct eng_region *r, uint32_t region,
		      uint64_t page);
/* Begins to register all memory for the rail: in threads, where it takes time.  exposes: TP_REMOTE_* for the peer. */
int eng_register_start(struct eng_rail *rail, uint32_t exposes, struct mf_error *err);
/* Stops the threads and deregisters. */
void eng_register_stop(struct eng_rail *rail);
/* Whether its lanes may be given work. */
void eng_register_usable(struct eng_rail *rail);
/* What it pins, into its report. */
void eng_register_note(struct eng_rail *rail);
/* Waits until everything is registered, and announced where it is exposed, on each rail that can be used.  A rail
 * that fails is lost; negative when none is left, or for cancel and the channel. */
int eng_register_wait(struct mf_session *s, struct mf_error *err);
/* Registers what was put off and has pages to move now.  Nothing runs on the lanes. */
void eng_register_cover(struct mf_session *s);
/* The guest is paused: source: the peer may read what is left; destination: it may write no more, and we read. */
int eng_expose_for_reading(struct mf_session *s, struct mf_error *err);
void eng_withdraw_for_reading(struct mf_session *s);
/* Session thread, whenever something happened: tells what was registered, wakes who waits for it, notices lost rails. */
int eng_pump(struct mf_session *s, struct mf_error *err);
/* A Pieces message. */
int eng_take_pieces(struct mf_session *s, const Mf__Wire__Pieces *m, struct mf_error *err);

/* place.c */
/* The best ones first. */
void eng_place_order(struct mf_session *s, struct tp_path *paths, unsigned n);
/* Decides where the lanes of all rails run. */
void eng_place_lanes(struct mf_session *s);
/* The calling thread runs where the lane does.  What it allocates is near, too. */
void eng_place_bind(const struct eng_lane *lane);

/* TCP needs no device to be found: it runs between the control channel's addresses. */
static inline bool eng_goes_by_paths(const struct tp_ops *tp)
{
	return tp->caps & TP_CAP_BY_PATH;
}

/* pairing.c: which pairs of addresses lanes run between. */
/* Source: what it can offer, for Describe; frees with eng_rails_free_paths(). */
int eng_rails_offer_paths(struct mf_session *s, Mf__Wire__Describe *ret, struct mf_error *err);
void eng_rails_free_paths(Mf__Wire__Describe *d);
/* Destination: pairs its paths with the source's.  0, or -MF_EREFUSED and why. */
int eng_rails_pair(struct mf_session *s, const Mf__Wire__Describe *d, struct mf_error *err);
/* Source: what the destination made of it. */
int eng_rails_take(struct mf_session *s, const Mf__Wire__Verdicts *v, struct mf_error *err);

/* rails.c: opening, connecting, losing and retrying them. */
/* Opens all rails here and begins to register.  Those that cannot be opened say why in their error. */
int eng_rails_open(struct mf_session *s, uint32_t n_bulk, struct mf_error *err);
/* Connects all that both sides opened; each side its part. */
int eng_rails_join(struct mf_session *s, const Mf__Wire__Prepared *p, struct mf_error *err);
int eng_rails_admit(struct mf_session *s, struct mf_error *err);
/* Source: tries rails that were lost, when their time has come.  Session thread, the lanes of the others may work. */
int eng_rails_retry(struct mf_session *s, struct mf_error *err);
/* Destination: the source asks for one. */
int eng_rails_retried(struct mf_session *s, uint32_t rail, struct mf_error *err);
/* Source, post-copy: the destination has lost one. */
void eng_rails_told_lost(struct mf_session *s, const Mf__Wire__RailLost *m);
/* Says once that a rail was lost, and what the move goes on over. */
void eng_rails_note_lost(struct mf_session *s);
/* The best rail that can be given work; NULL: none is left. */
const struct eng_rail *eng_rails_first(const struct mf_session *s);
/* Its transport: that of all lanes that are given work. */
const struct tp_ops *eng_rails_in_use(const struct mf_session *s);
/* Ends all lanes of all rails: no byte that the peer writes lands after it. */
int eng_rails_cut(struct mf_session *s, struct mf_error *err);
/* Their counters go into the report. */
void eng_rails_close(struct mf_session *s);

/* lanes.c */
int eng_lanes_init(struct mf_session *s, uint32_t n_bulk, struct mf_error *err);
void eng_lanes_free(struct mf_session *s); /* after all were closed */
static inline uint32_t eng_lanes_per_rail(const struct mf_session *s)
{
	return s->lanes.n_bulk + 1;
}
int eng_lane_start(struct eng_lane *lane, struct tp_lane *tp, struct mf_error *err);
/* Joins the thread; outstanding operations fail. */
void eng_lane_stop(struct eng_lane *lane);
void eng_lane_close(struct eng_lane *lane);
/* Of all its connections. */
void eng_lane_stats(const struct eng_lane *lane, struct tp_lane_stats *ret);
/* From the lane's thread. */
void eng_lane_fail(struct eng_lane *lane, int code);
enum eng_lane_set {
	ENG_BULK,  /* of all rails in use */
	ENG_URGENT /* of the first rail in use that has one left */
};
/* At least one lane takes the job, or it is done at once. */
void eng_lanes_run(struct mf_session *s, enum eng_lane_set set, struct eng_job *job);
void eng_lanes_run_on(struct eng_rail *rail, bool with_urgent, struct eng_job *job);
/* From a job that runs on the urgent lane, which has failed: the next best urgent lane goes on with it.  Only while the
 * session's thread gives no jobs and closes no rails. */
bool eng_lanes_pass_on(struct mf_session *s, struct eng_job *job);
bool eng_job_is_done(const struct eng_job *job);
/* Waits for a job that has a deadline of its own.  What the peer says meanwhile is for later. */
void eng_see_done(struct mf_session *s, const struct eng_job *job);
uint32_t eng_lanes_alive(const struct mf_session *s, enum eng_lane_set set);
uint32_t eng_rail_alive(const struct eng_rail *rail); /* bulk lanes */
/* Why a rail is lost: 0, or its first failure. */
int eng_rail_failure(const struct eng_rail *rail, struct mf_error *err);
/* The first failure among all lanes, for a message. */
int eng_lanes_failure(struct mf_session *s, struct mf_error *err);
/* Any thread.  A failed lane's thread sleeps on sleep_fd, and takes the wake-up from there. */
void eng_lane_wake(struct eng_lane *lane);
void eng_lane_take_wake(struct eng_lane *lane);
/* Makes the lane fail, for good and before it returns; no byte that the peer writes through it lands after that. */
int eng_lane_drop(struct mf_session *s, uint32_t rail, uint32_t lane, struct mf_error *err);
/* After tp_lane_shutdown(): the next completions of what is in flight, waited for; 0: there are none any more.  The
 * caller counts them. */
int eng_lane_reap_rest(struct eng_lane *lane, struct tp_wc *wc, unsigned n);
/* From a job: slots for operations. */
struct eng_op *eng_op_get(struct eng_lane *lane, uint64_t *ret_cookie); /* NULL: all in use */
void eng_op_put(struct eng_lane *lane, uint64_t cookie);
/* Of --max-bandwidth, which is given.  Any thread; returns from when on these bytes may go. */
uint64_t eng_spend_bandwidth(struct mf_session *s, uint64_t bytes);

/* round.c: one round of one-sided writes over all bulk lanes. */
struct eng_round {
	struct eng_job job;
	struct mf_session *session;
	bool skip_zero;          /* the destination's pages are zero where ours are */
	bool bridges;            /* small gaps are written, too */
	bool seeds;              /* what is to do is looked up once more, chunk by chunk */
	_Atomic uint64_t cursor; /* next chunk */
	_Atomic uint64_t pages, zero_pages, bytes; /* pages in ENG_PAGE units */
	_Atomic uint64_t
		bridged; /* clean pages that were written because they lay in a small gap */
};
/* One pass; whatever a lost lane leaves behind is to do still. */
void eng_round_start(struct mf_session *s, struct eng_round *round, uint32_t n, bool skip_zero);
/* The rest of the round, after lanes were lost. */
void eng_round_resume(struct eng_round *round);
uint64_t eng_chunks(const struct mf_session *s);
/* The n-th chunk over all regions: its region and pages. */
void eng_chunk_at(const struct mf_session *s, uint64_t n, uint32_t *ret_region, uint64_t *ret_first,
		  uint64_t *ret_pages);

/* pull.c: post-copy at the destination. */
struct eng_pull;
/* todo holds what is missing.  Arms the pager and starts to serve faults on the urgent lane. */
int eng_pull_start(struct mf_session *s, struct eng_pull **ret, struct mf_error *err);
/* Before "owner" is recorded: from here faults wait for ever rather than be answered wrongly.  Fails when nobody
 * serves them any more; then the guest must not run here. */
int eng_pull_commit(struct mf_session *s, struct eng_pull *pull, struct mf_error *err);
/* Instead of these two: takes over what another process has left, whose guest may wait in touches of RAM. */
int eng_pull_take_over(struct mf_session *s, struct eng_pull **ret, struct mf_error *err);
bool eng_pull_is_complete(const struct eng_pull *pull);
/* The guest runs: also fetch in the background until everything is here.  Blocks.  Negative: the lanes or the connection
 * were lost; can be called again when there are others. */
int eng_pull_all(struct mf_session *s, struct eng_pull *pull, struct mf_error *err);
/* Before the commit: lets the loading guest's touches through to whatever is there. */
void eng_pull_abandon(struct mf_session *s, struct eng_pull *pull);
/* After the commit and a failure: faults go on waiting. */
void eng_pull_leave(struct mf_session *s, struct eng_pull *pull);
void eng_pull_finish(struct mf_session *s, struct eng_pull *pull);

/* present.c: region->present, in a file that survives us. */
void eng_present_path(const char *run_dir, const char *session, char *ret, size_t cap);
/* What is not to do is present. */
int eng_present_create(struct mf_session *s, struct mf_error *err);
/* What another process has left: what is not present is to do, also what that one was fetching. */
int eng_present_open(struct mf_session *s, struct mf_error *err);
/* Who goes on after a crash does not need it any more: the record says that all is there. */
void eng_present_remove(const struct mf_session *s);
bool eng_present_exists(const struct mf_session *s);

/* record.c: the hand-off on disk, and who may go on with it. */
const char *eng_record_name(enum eng_record what);
/* RUN_DIR/SESSION.SIDE.suffix */
void eng_record_path(const char *run_dir, const char *session, enum mf_side side,
		     const char *suffix, char *ret, size_t cap);
/* 0, -EBADMSG, or why it cannot be opened. */
int eng_record_parse(const char *path, const char *session, enum mf_side side,
		     struct eng_record_entry *ret);
/* A descriptor that holds it; -EWOULDBLOCK: somebody else has it.  flags: O_CREAT. */
int eng_record_lock(const char *path, int flags);
bool eng_record_is_held(const char *path);
/* Takes the lock before there is a record: files of the session are in use from here on. */
int eng_record_claim(struct mf_session *s, struct mf_error *err);
/* On disk when it returns; takes the lock. */
int eng_record_write(struct mf_session *s, enum eng_record what, bool postcopy,
		     struct mf_error *err);
/* The session's, by its name; takes the lock.  -MF_EUSAGE: there is none, or somebody has it; -EBADMSG. */
int eng_record_read(struct mf_session *s, struct eng_record_entry *ret, struct mf_error *err);
void eng_record_remove(struct mf_session *s); /* without one: nothing */

/* handoff.c: what became of the other side. */
struct eng_answer {
	Mf__Wire__Answer__State state;
	bool goes_on; /* the move goes on over the connection that it came by, now the session's */
};
/* Source: asks once, on a new connection, which is the session's when it returns 0.  When what the answer means has been
 * done, and is on disk, Bye is owed: the destination may forget it then. */
int eng_ask_peer(struct mf_session *s, uint64_t deadline_us, struct eng_answer *ret);
/* Destination: for those who ask. */
int eng_open_answering(struct mf_session *s, struct wire_acceptor **ret_acceptor);
/* Answers the next one.  1: the move goes on over its connection, now the session's.  0: the answer was heard.  -EAGAIN: it
 * was not; -EINTR when something else happened; -ETIMEDOUT. */
int eng_answer_next(struct mf_session *s, struct wire_acceptor *acceptor, uint64_t deadline_us,
		    const struct eng_answer *answer);
/* Destination: answers queries about this session until the source knows, or for the time that a source asks.  False: it
 * may not know. */
bool eng_answer_queries(struct mf_session *s, Mf__Wire__Answer__State state);

/* recover.c: after the commit, when the connection was lost, or this process is not the one that began the move.  The
 * guest belongs to one side already; what is left is to find out to which, and to bring the other side's pages. */
/* 1: pages are served again (ENG_POSTCOPY).  0: the destination has all of them (ENG_FINISHING).  Negative: ENG_PAUSED,
 * ENG_IN_DOUBT, or still ENG_RECOVER: the destination never became the owner. */
int eng_source_recover(struct mf_session *s, struct mf_error *err);
/* 0: pages come again (ENG_POSTCOPY).  Negative: ENG_PAUSED. */
int eng_destination_recover(struct mf_session *s, struct mf_error *err);

/* sealing.c */
/* Destination: what the source asks for, by number; or -MF_EREFUSED. */
int eng_sealing_follow(struct mf_session *s, uint32_t asked, struct mf_error *err);
/* Of a process that takes over: what the record says, or more. */
int eng_sealing_resume(struct mf_session *s, struct mf_error *err);
/* Source: that the destination does. */
int eng_sealing_confirm(const struct mf_session *s, uint32_t agreed, struct mf_error *err);
/* For the lanes of this connection. */
int eng_sealing_take_key(struct mf_session *s, struct mf_error *err);
/* By kind, sealing where that was agreed on; NULL: not built. */
const struct tp_ops *eng_find_transport(const struct mf_session *s, const char *kind);

/* verify.c */
int eng_verify_send(struct mf_session *s, struct mf_error *err);
int eng_verify_receive(struct mf_session *s, const Mf__Wire__Hashes *h, uint64_t *pages_left,
		       struct mf_error *err);
/* Pages that just came, to `bytes`, not yet mapped for the guest. */
void eng_verify_arrived(struct mf_session *s, const struct eng_region *r, const uint8_t *bytes,
			uint64_t first, uint64_t n, _Atomic uint64_t *pages,
			_Atomic uint64_t *mismatches);
/* All pages of a region that are not to do; holes are not touched. */
void eng_verify_present(struct mf_session *s, const struct eng_region *r, _Atomic uint64_t *pages,
			_Atomic uint64_t *mismatches);

/* tracking.c: the one asked for, or the first that can track the guest here; NULL, and why. */
const struct trk_ops *eng_pick_tracker(const struct mf_session *s, struct mf_error *err);

/* preflight.c */
void eng_preflight_local(struct mf_session *s);
void eng_preflight_peer(struct mf_session *s, const Mf__Wire__Guest *peer);
void eng_finding(struct mf_session *s, enum mf_verdict verdict, const char *subject,
		 const char *fmt, ...) MF_PRINTF(4, 5);
/* -MF_EREFUSED when a finding refuses, naming it. */
int eng_preflight_verdict(const struct mf_session *s, struct mf_error *err);
/* What stands in the way of pinning so many bytes more: -ENOMEM and a sentence with the figures. */
int eng_check_memlock(uint64_t bytes, struct mf_error *err);
/* 0: lanes can be opened on this address of ours; otherwise err says why not. */
int eng_try_transport(const struct tp_ops *tp, const char *local, struct mf_error *err);

#endif
