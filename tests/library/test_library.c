/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The library as a monitor uses it: linked from its shared object, over guests in this very process, driven in each of
 * the three ways.  Both ends of a move live here, joined by loopback; with MEMFERRY_TEST_HOST, the address of
 * an RDMA device, over that.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "inside.h"

enum drive {
	BY_RUN,
	BY_THREAD,
	BY_LOOP,
	DRIVES,
};

#define PATIENCE_MS 60000

struct side {
	struct move *move;
	enum mf_side which;
	struct inside guest;
	struct mf_adapter_ops ops; /* the table it is opened with */
	struct mf_session *session;
	pthread_t thread; /* BY_RUN */
	int result;
	bool ended;
	struct mf_error error;
	struct mf_report report;
	unsigned events, late_events;
};

struct move {
	/* the plan */
	enum drive drive;
	enum inside_memory memory[2];
	enum mf_mode mode;
	enum mf_verify verify;
	enum mf_phase request_at; /* 0: nothing is requested */
	enum mf_request request;
	const char *tracker;
	size_t params_size; /* 0: this header's */
	uint64_t peer_timeout_ms;
	uint64_t recover_timeout_ms; /* 0: the default */

	struct side side[2];
	char run_dir[64];
	char address[128]; /* where the destination listens */
	pthread_mutex_t lock;
	pthread_cond_t listens;
};

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Where destinations listen. */
static const char *here(void)
{
	static char address[128];
	const char *host = getenv("MEMFERRY_TEST_HOST");
	(void)snprintf(address, sizeof(address), "%s:0", host ? host : "127.0.0.1");
	return address;
}

static void on_event(void *ctx, const struct mf_event *event)
{
	struct side *side = ctx;
	struct move *m = side->move;
	struct inside *g = &side->guest;
	side->events++;
	if (side->ended)
		side->late_events++;
	if (g->has_thread && !pthread_equal(pthread_self(), g->callback_thread))
		atomic_fetch_add(&g->strange_calls, 1);
	if (event->type == MF_EVENT_LISTENING) {
		pthread_mutex_lock(&m->lock);
		(void)snprintf(m->address, sizeof(m->address), "%s", event->text);
		pthread_cond_broadcast(&m->listens);
		pthread_mutex_unlock(&m->lock);
	}
	if (event->type == MF_EVENT_PHASE && side->which == MF_SOURCE && m->request_at &&
	    event->phase == m->request_at)
		mf_session_request(side->session, m->request);
}

static void plan(struct move *m, enum drive drive, enum mf_mode mode)
{
	*m = (struct move){ .drive = drive, .mode = mode };
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->listens, NULL);
	(void)snprintf(m->run_dir, sizeof(m->run_dir), "/tmp/test_library.XXXXXX");
	assert_non_null(mkdtemp(m->run_dir));
	for (int i = 0; i < 2; i++) {
		m->side[i].move = m;
		m->side[i].which = (enum mf_side)i;
		m->side[i].ops = inside_ops;
	}
}

static void open_guests(struct move *m)
{
	for (int i = 0; i < 2; i++)
		inside_open(&m->side[i].guest, m->memory[i]);
	inside_write(&m->side[MF_SOURCE].guest,
		     0); /* its thread may come late: there is something to move */
	inside_start(&m->side[MF_SOURCE].guest);
}

static int create(struct side *side, const char *address, struct mf_error *err)
{
	const struct move *m = side->move;
	struct mf_session_params params = {
		.size = m->params_size ? m->params_size : sizeof(params),
		.side = side->which,
		.address = address,
		.guest = { &side->ops, &side->guest },
		.run_dir = m->run_dir,
		.mode = m->mode,
		.verify = m->verify,
		.transport = getenv("MEMFERRY_TEST_HOST") ? "verbs" : "tcp",
		.insecure = true,
		.peer_timeout_ms = m->peer_timeout_ms,
		.recover_timeout_ms = m->recover_timeout_ms,
		.on_event = on_event,
		.ctx = side,
		.tracker = m->tracker,
	};
	return mf_session_create(&params, &side->session, err);
}

static void *run(void *arg)
{
	struct side *side = arg;
	side->result = mf_session_run(side->session, &side->error);
	return NULL;
}

static void start(struct side *side, const char *address)
{
	struct mf_error err = { 0 };
	if (create(side, address, &err))
		fail_msg("%s", err.msg);
	int r = 0;
	side->guest.has_thread = side->move->drive == BY_LOOP;
	side->guest.callback_thread = pthread_self();
	if (side->move->drive == BY_RUN)
		r = -pthread_create(&side->thread, NULL, run, side);
	else
		r = mf_session_start(side->session,
				     side->move->drive == BY_LOOP ? MF_DRIVE_LOOP : MF_DRIVE_THREAD,
				     &err);
	if (r < 0)
		fail_msg("%d %s", r, err.msg);
}

/* Polls what there is, and steps what is readable.  False: all have ended. */
static bool turn_loop(struct move *m)
{
	struct pollfd p[2];
	struct side *who[2];
	nfds_t n = 0;
	for (int i = 0; i < 2; i++) {
		struct side *side = &m->side[i];
		if (!side->session || side->ended)
			continue;
		who[n] = side;
		p[n++] = (struct pollfd){ .fd = mf_session_fd(side->session), .events = POLLIN };
	}
	if (!n)
		return false;
	assert_int_not_equal(poll(p, n, PATIENCE_MS), 0);
	for (nfds_t i = 0; i < n; i++) {
		if (!p[i].revents)
			continue;
		int r = mf_session_step(who[i]->session, &who[i]->error);
		who[i]->ended = r <= 0;
		who[i]->result = r;
	}
	return true;
}

static void await_listening(struct move *m)
{
	while (m->drive == BY_LOOP && !m->address[0] && !m->side[MF_DESTINATION].ended)
		turn_loop(m);
	pthread_mutex_lock(&m->lock);
	while (m->drive != BY_LOOP && !m->address[0])
		pthread_cond_wait(&m->listens, &m->lock);
	pthread_mutex_unlock(&m->lock);
}

/* The guests are open. */
static void start_both(struct move *m)
{
	start(&m->side[MF_DESTINATION], here());
	await_listening(m);
	start(&m->side[MF_SOURCE], m->address);
}

static void await_end(struct side *side)
{
	switch (side->move->drive) {
	case BY_RUN:
		pthread_join(side->thread, NULL);
		break;
	case BY_THREAD:
		side->result = mf_session_wait(side->session, PATIENCE_MS, &side->error);
		assert_int_not_equal(side->result, 1);
		break;
	default:
		break;
	}
	side->ended = true;
}

/* From guests that are open to both ends' reports. */
static void carry_out(struct move *m)
{
	start_both(m);
	while (m->drive == BY_LOOP && turn_loop(m))
		;
	for (int i = 0; i < 2; i++) {
		struct side *side = &m->side[i];
		await_end(side);
		side->report = *mf_session_report(side->session);
		if (side->result < 0)
			print_message("%s: %s\n", i == MF_SOURCE ? "source" : "destination",
				      side->error.msg);
	}
}

static void run_move(struct move *m)
{
	open_guests(m);
	carry_out(m);
}

/* After a move that left records behind. */
static void sweep(const struct move *m)
{
	char command[96];
	(void)snprintf(command, sizeof(command), "rm -r %s", m->run_dir);
	assert_int_equal(system(command), 0);
}

static void finish(struct move *m)
{
	for (int i = 0; i < 2; i++) {
		struct side *side = &m->side[i];
		mf_session_destroy(side->session);
		assert_int_equal(side->late_events, 0);
		assert_int_equal(atomic_load(&side->guest.strange_calls), 0);
		inside_close(&side->guest);
	}
	assert_int_equal(rmdir(m->run_dir), 0); /* nothing was left in it */
	pthread_mutex_destroy(&m->lock);
	pthread_cond_destroy(&m->listens);
}

/* The guest writes on where it is now, for long enough to meet a wrong page. */
static void assert_lives(struct inside *g)
{
	assert_true(inside_runs(g));
	(void)nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
	uint32_t before = g->writes;
	assert_int_equal(inside_check(g), 0);
	assert_true(before > 0);
}

static void assert_moved(struct move *m)
{
	struct side *src = &m->side[MF_SOURCE], *dst = &m->side[MF_DESTINATION];
	assert_int_equal(src->result, 0);
	assert_int_equal(dst->result, 0);
	assert_int_equal(src->report.outcome, MF_OUTCOME_COMPLETED);
	assert_int_equal(dst->report.outcome, MF_OUTCOME_COMPLETED);
	assert_false(inside_runs(&src->guest));
	assert_int_equal(src->guest.finished, 1);
	assert_int_equal(dst->guest.resumed, 1);
	assert_int_equal(dst->report.verify_mismatches, 0);
	assert_lives(&dst->guest);
}

static void assert_stayed(struct move *m)
{
	struct side *src = &m->side[MF_SOURCE], *dst = &m->side[MF_DESTINATION];
	assert_true(src->result < 0);
	assert_int_equal(src->report.outcome, MF_OUTCOME_ABORTED);
	assert_int_equal(src->guest.finished, 0);
	assert_int_equal(dst->guest.resumed, 0);
	assert_false(inside_runs(&dst->guest));
	assert_lives(&src->guest);
}

/* ---- moves ---- */

/* For a guest of this process: PAGEMAP_SCAN came with Linux 6.7. */
static const char *best_tracker(void)
{
	struct utsname u;
	int major = 0, minor = 0;
	assert_int_equal(uname(&u), 0);
	assert_int_equal(sscanf(u.release, "%d.%d", &major, &minor), 2);
	return major > 6 || (major == 6 && minor >= 7) ? "pagemap" : "writeprotect";
}

static void expect_moved(enum drive drive, enum inside_memory from, enum inside_memory to,
			 enum mf_mode mode)
{
	static struct move m;
	print_message("drive %d, memory %d to %d, %s\n", drive, from, to, mf_mode_name(mode));
	plan(&m, drive, mode);
	m.memory[MF_SOURCE] = from;
	m.memory[MF_DESTINATION] = to;
	m.verify = MF_VERIFY_FULL;
	if (mode == MF_MODE_WARM) {
		m.request_at = MF_PHASE_PRECOPY;
		m.request = MF_REQUEST_CUTOVER;
	}
	run_move(&m);
	assert_moved(&m);
	bool rounds = mode != MF_MODE_POSTCOPY && mode != MF_MODE_COLD;
	if (rounds)
		assert_string_equal(m.side[MF_SOURCE].report.tracker, best_tracker());
	if (mode == MF_MODE_POSTCOPY)
		assert_true(m.side[MF_DESTINATION].report.postcopy.pulled_pages > 0);
	finish(&m);
}

static void every_memory_in_every_mode(void **state)
{
	(void)state;
	for (int kind = 0; kind < INSIDE_KINDS; kind++) {
		for (int mode = 0; mode < MF_MODE_COUNT; mode++)
			expect_moved(BY_THREAD, (enum inside_memory)kind, (enum inside_memory)kind,
				     (enum mf_mode)mode);
	}
}

/* What backs the memory is each side's own business. */
static void memory_of_another_kind(void **state)
{
	(void)state;
	expect_moved(BY_THREAD, INSIDE_PRIVATE, INSIDE_FILE, MF_MODE_POSTCOPY);
	expect_moved(BY_THREAD, INSIDE_FILE, INSIDE_PRIVATE, MF_MODE_HYBRID);
	expect_moved(BY_THREAD, INSIDE_SHARED, INSIDE_PRIVATE, MF_MODE_POSTCOPY);
}

static void driven_by_a_loop(void **state)
{
	(void)state;
	for (int mode = 0; mode < MF_MODE_COUNT; mode++)
		expect_moved(BY_LOOP, INSIDE_SHARED, INSIDE_SHARED, (enum mf_mode)mode);
	expect_moved(BY_LOOP, INSIDE_PRIVATE, INSIDE_PRIVATE, MF_MODE_POSTCOPY);
}

static void driven_by_the_caller(void **state)
{
	(void)state;
	expect_moved(BY_RUN, INSIDE_FILE, INSIDE_FILE, MF_MODE_HYBRID);
	expect_moved(BY_RUN, INSIDE_PRIVATE, INSIDE_PRIVATE, MF_MODE_POSTCOPY);
}

/* Pages are dirty when the switch comes, and private memory has their older form: it must be dropped. */
static void rounds_and_then_post_copy(void **state)
{
	(void)state;
	for (int kind = 0; kind < INSIDE_KINDS; kind++) {
		static struct move m;
		plan(&m, BY_LOOP, MF_MODE_WARM);
		m.memory[0] = m.memory[1] = (enum inside_memory)kind;
		m.request_at = MF_PHASE_PRECOPY;
		m.request = MF_REQUEST_POSTCOPY;
		m.verify = MF_VERIFY_FULL;
		run_move(&m);
		assert_moved(&m);
		assert_true(m.side[MF_DESTINATION].report.has_postcopy);
		finish(&m);
	}
}

/* ---- moves that end early ---- */

static void canceled_in_each_drive(void **state)
{
	(void)state;
	for (int drive = 0; drive < DRIVES; drive++) {
		static struct move m;
		plan(&m, (enum drive)drive, MF_MODE_WARM);
		m.request_at = MF_PHASE_PRECOPY;
		m.request = MF_REQUEST_CANCEL;
		run_move(&m);
		assert_stayed(&m);
		assert_int_equal(m.side[MF_SOURCE].result, -MF_ECANCELED);
		finish(&m);
	}
}

/* A callback fails, in the loop's thread: what it says arrives in the report, and the guest runs. */
static void a_callback_that_fails(void **state)
{
	static struct move m;
	(void)state;
	plan(&m, BY_LOOP, MF_MODE_PRECOPY);
	open_guests(&m);
	m.side[MF_SOURCE].guest.pause_fails = 1;
	carry_out(&m);
	assert_int_equal(m.side[MF_SOURCE].result, -EBUSY);
	assert_non_null(strstr(m.side[MF_SOURCE].error.msg, "does not stand still"));
	assert_stayed(&m);
	finish(&m);
}

/* A guest that goes on writing while it is said to stand still must not be waited for without end. */
static void a_guest_that_does_not_stand_still(void **state)
{
	static struct move m;
	(void)state;
	plan(&m, BY_LOOP, MF_MODE_PRECOPY);
	open_guests(&m);
	m.side[MF_SOURCE].guest.restless = true;
	carry_out(&m);
	assert_non_null(strstr(m.side[MF_SOURCE].error.msg, "although it is paused"));
	assert_stayed(&m);
	finish(&m);
}

/* Destroying one that goes on cancels it: in warm mode the source would copy for ever. */
static void destroyed_while_it_goes_on(void **state)
{
	(void)state;
	for (int drive = BY_THREAD; drive < DRIVES; drive++) {
		static struct move m;
		plan(&m, (enum drive)drive, MF_MODE_WARM);
		open_guests(&m);
		start_both(&m);
		struct side *src = &m.side[MF_SOURCE], *dst = &m.side[MF_DESTINATION];
		struct mf_progress p = { 0 };
		uint64_t deadline = now_ms() + PATIENCE_MS;
		while (p.round < 2 && now_ms() < deadline) {
			if (m.drive == BY_LOOP)
				turn_loop(&m);
			mf_session_progress(src->session, &p, sizeof(p));
		}
		assert_true(p.round >= 2);
		assert_int_equal(p.phase, MF_PHASE_PRECOPY);
		mf_session_destroy(src->session);
		src->session = NULL;
		while (m.drive == BY_LOOP && turn_loop(&m))
			;
		await_end(dst);
		assert_true(dst->result < 0);
		assert_int_equal(dst->guest.resumed, 0);
		assert_lives(&src->guest);
		finish(&m);
	}
}

static void destroyed_before_it_began(void **state)
{
	static struct move m;
	(void)state;
	plan(&m, BY_LOOP, MF_MODE_HYBRID);
	open_guests(&m);
	start(&m.side[MF_DESTINATION], here()); /* waits for a source that never comes */
	await_listening(&m);
	finish(&m);
}

/* ---- preflight ---- */

static void needs_that_are_met_or_not(void **state)
{
	static struct move m;
	(void)state;
	plan(&m, BY_LOOP, MF_MODE_HYBRID);
	open_guests(&m);
	m.side[MF_SOURCE].guest.needs = "1.21 gigawatts";
	carry_out(&m);
	assert_int_equal(m.side[MF_SOURCE].result, -MF_EREFUSED);
	assert_non_null(strstr(m.side[MF_SOURCE].error.msg, "flux capacitor"));
	/* Before anything moved. */
	assert_int_equal(m.side[MF_SOURCE].guest.prepared, 0);
	assert_int_equal(m.side[MF_DESTINATION].guest.prepared, 0);
	assert_stayed(&m);
	finish(&m);

	plan(&m, BY_LOOP, MF_MODE_HYBRID);
	open_guests(&m);
	m.side[0].guest.needs = m.side[1].guest.needs = "1.21 gigawatts";
	carry_out(&m);
	assert_moved(&m);
	assert_true(m.side[MF_SOURCE].guest.taken > 0);
	finish(&m);
}

/* An adapter that was built before needs were thought of, against a source that has some. */
static void needs_that_nobody_can_judge(void **state)
{
	static struct move m;
	(void)state;
	plan(&m, BY_LOOP, MF_MODE_HYBRID);
	open_guests(&m);
	m.side[MF_SOURCE].guest.needs = "something new";
	m.side[MF_DESTINATION].ops.size = offsetof(struct mf_adapter_ops, list_needs);
	carry_out(&m);
	assert_int_equal(m.side[MF_SOURCE].result, -MF_EREFUSED);
	assert_non_null(strstr(m.side[MF_SOURCE].error.msg, "cannot judge"));
	assert_stayed(&m);
	finish(&m);
}

/* A destination whose RAM is at `at` refuses, in these words, and the guest stays. */
static void expect_no_memory(void *at, const char *words)
{
	static struct move m;
	plan(&m, BY_LOOP, MF_MODE_HYBRID);
	m.memory[MF_DESTINATION] = INSIDE_SHARED;
	open_guests(&m);
	uint8_t *mem = m.side[MF_DESTINATION].guest.mem;
	m.side[MF_DESTINATION].guest.mem = at;
	carry_out(&m);
	m.side[MF_DESTINATION].guest.mem = mem;
	assert_int_equal(m.side[MF_SOURCE].result, -MF_EREFUSED);
	if (!strstr(m.side[MF_SOURCE].error.msg, words))
		fail_msg("'%s' says nothing of '%s'", m.side[MF_SOURCE].error.msg, words);
	assert_stayed(&m);
	finish(&m);
}

static void memory_that_cannot_be_moved(void **state)
{
	size_t len = (size_t)INSIDE_PAGES * 4096, half = len / 2;
	int rw = PROT_READ | PROT_WRITE;
	(void)state;
	expect_no_memory((void *)(uintptr_t)0x1000, "not mapped in this process");

	char *at = mmap(NULL, len, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(at, MAP_FAILED);
	assert_int_equal(mprotect(at + half, 4096, PROT_NONE), 0);
	expect_no_memory(at, "to be read and written");

	assert_ptr_not_equal(mmap(at, half, rw, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			     MAP_FAILED);
	assert_ptr_not_equal(
		mmap(at + half, half, rw, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
		MAP_FAILED);
	expect_no_memory(at, "a region for each");

	int fd = memfd_create("snapshot", MFD_CLOEXEC);
	assert_return_code(ftruncate(fd, (off_t)len), errno);
	assert_ptr_not_equal(mmap(at, len, rw, MAP_PRIVATE | MAP_FIXED, fd, 0), MAP_FAILED);
	expect_no_memory(at, "private mapping of a file");

	/* The second half of a file comes before the first. */
	assert_ptr_not_equal(mmap(at, half, rw, MAP_SHARED | MAP_FIXED, fd, (off_t)half),
			     MAP_FAILED);
	assert_ptr_not_equal(mmap(at + half, half, rw, MAP_SHARED | MAP_FIXED, fd, 0), MAP_FAILED);
	expect_no_memory(at, "a region for each");
	close(fd);
	(void)munmap(at, len);
}

/* ---- what is left when the source is lost ---- */

/* This very program, as a source that ends without a word when post-copy has begun. */
static void die_in_postcopy(void *ctx, const struct mf_event *event)
{
	(void)ctx;
	if (event->type == MF_EVENT_PHASE && event->phase == MF_PHASE_POSTCOPY)
		_exit(0);
}

static int be_source_that_dies(const char *kind, const char *address, const char *run_dir)
{
	static struct inside guest;
	struct mf_session *session;
	inside_open(&guest, (enum inside_memory)(kind[0] - '0'));
	/* Every page holds what the writer knows, so that none of them may read as zero. */
	for (uint32_t page = 0; page < INSIDE_PAGES; page++)
		inside_write(&guest, page);
	inside_start(&guest);
	struct mf_session_params params = { .size = sizeof(params),
					    .side = MF_SOURCE,
					    .address = address,
					    .guest = { &inside_ops, &guest },
					    .run_dir = run_dir,
					    .mode = MF_MODE_POSTCOPY,
					    .insecure = true,
					    .on_event = die_in_postcopy };
	return mf_session_create(&params, &session, NULL) || mf_session_run(session, NULL);
}

/* The guest at the destination waits for its pages; it must never compute with others.  Its writer waits for ever, and
 * ends with the process. */
static void the_source_is_lost_in_postcopy(void **state)
{
	static struct move moves[INSIDE_KINDS];
	(void)state;
	for (int kind = 0; kind < INSIDE_KINDS; kind++) {
		struct move *m = &moves[kind];
		struct side *dst = &m->side[MF_DESTINATION];
		plan(m, BY_THREAD, MF_MODE_POSTCOPY);
		m->recover_timeout_ms = 3000; /* the source does not come back */
		m->memory[MF_DESTINATION] = (enum inside_memory)kind;
		inside_open(&dst->guest, m->memory[MF_DESTINATION]);
		start(dst, here());
		await_listening(m);
		char number[16];
		(void)snprintf(number, sizeof(number), "%d", kind);
		pid_t child = fork();
		assert_return_code(child, errno);
		if (!child) {
			execl("/proc/self/exe", "source", "--source-that-dies", number, m->address,
			      m->run_dir, (char *)NULL);
			_exit(99);
		}
		assert_int_equal(waitpid(child, NULL, 0), child);
		await_end(dst);
		dst->report = *mf_session_report(dst->session);
		print_message("memory %d: %s, %u pages lacked at most\n", kind,
			      mf_outcome_name(dst->report.outcome), INSIDE_PAGES);
		/* All may have come before it died: then there is nothing to wait for. */
		assert_true(dst->report.outcome == MF_OUTCOME_PAUSED ||
			    dst->report.outcome == MF_OUTCOME_COMPLETED);
		mf_session_destroy(dst->session);
		(void)nanosleep(&(struct timespec){ .tv_nsec = 300000000 }, NULL);
		assert_int_equal(atomic_load(&dst->guest.wrong), 0);
		sweep(m);
	}
}

/* After the commit: the guest belongs to the destination, stands, and what it lacks stays missing. */
static void a_resume_that_fails(void **state)
{
	static struct move m;
	(void)state;
	plan(&m, BY_THREAD, MF_MODE_POSTCOPY);
	m.peer_timeout_ms = 4000; /* this is waited for, three times, where nobody asks */
	m.memory[0] = m.memory[1] = INSIDE_PRIVATE;
	open_guests(&m);
	m.side[MF_DESTINATION].guest.resume_fails = true;
	start(&m.side[MF_DESTINATION], here());
	await_listening(&m);
	start(&m.side[MF_SOURCE], m.address);
	for (int i = 0; i < 2; i++) {
		await_end(&m.side[i]);
		assert_int_equal(mf_session_report(m.side[i].session)->outcome, MF_OUTCOME_PAUSED);
		assert_false(inside_runs(&m.side[i].guest));
		mf_session_destroy(m.side[i].session);
		inside_close(&m.side[i].guest);
	}
	sweep(&m);
}

/* ---- what a program gets wrong ---- */

static void expect_refused(struct move *m, int code, const char *words)
{
	struct mf_error err = { 0 };
	struct side *side = &m->side[MF_SOURCE];
	assert_int_equal(create(side, "127.0.0.1:1", &err), code);
	assert_null(side->session);
	assert_int_equal(err.code, code);
	if (!strstr(err.msg, words))
		fail_msg("'%s' says nothing of '%s'", err.msg, words);
}

static void parameters_that_make_no_sense(void **state)
{
	static struct move m;
	struct side *side = &m.side[MF_SOURCE];
	(void)state;
	plan(&m, BY_LOOP, MF_MODE_HYBRID);
	m.params_size = sizeof(struct mf_session_params) + 8;
	expect_refused(&m, -EINVAL, "newer memferry");
	m.params_size = 8;
	expect_refused(&m, -EINVAL, "sizeof");
	m.params_size = 0;
	side->ops.size = 16;
	expect_refused(&m, -EINVAL, "cut off");
	side->ops = inside_ops;
	side->ops.pause = NULL;
	expect_refused(&m, -EINVAL, "not optional");
	side->ops = inside_ops;
	m.tracker = "crystal-ball";
	expect_refused(&m, -MF_EUSAGE, "crystal-ball");
	m.tracker = NULL;
	m.mode = (enum mf_mode)77;
	expect_refused(&m, -EINVAL, "no such mode");
	assert_int_equal(rmdir(m.run_dir), 0);
}

static void calls_out_of_turn(void **state)
{
	static struct move m;
	struct side *side = &m.side[MF_DESTINATION];
	struct mf_error err = { 0 };
	(void)state;
	plan(&m, BY_LOOP, MF_MODE_HYBRID);
	open_guests(&m);
	assert_int_equal(create(side, here(), &err), 0);
	struct pollfd p = { .fd = mf_session_fd(side->session), .events = POLLIN };
	assert_int_equal(poll(&p, 1, 0), 0);
	assert_int_equal(mf_session_step(side->session, &err), -EINVAL);
	assert_int_equal(mf_session_wait(side->session, 1, &err), -EINVAL);
	assert_int_equal(mf_session_start(side->session, (enum mf_drive)9, &err), -EINVAL);
	assert_int_equal(mf_session_start(side->session, MF_DRIVE_THREAD, &err), 0);
	assert_int_equal(mf_session_start(side->session, MF_DRIVE_LOOP, &err), -EALREADY);
	assert_int_equal(mf_session_run(side->session, &err), -EALREADY);
	assert_int_equal(mf_session_step(side->session, &err), -EINVAL);
	assert_int_equal(mf_session_wait(side->session, 20, &err), 1);
	assert_int_equal(poll(&p, 1, 0), 0); /* goes on */
	mf_session_request(side->session, MF_REQUEST_CANCEL);
	assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
	assert_int_equal(mf_session_wait(side->session, PATIENCE_MS, &err), -MF_ECANCELED);
	assert_int_equal(mf_session_wait(side->session, 0, &err), -MF_ECANCELED);
	assert_int_equal(err.code, -MF_ECANCELED);
	finish(&m);
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "--source-that-dies"))
		return be_source_that_dies(argv[2], argv[3], argv[4]);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_memory_in_every_mode),
		cmocka_unit_test(memory_of_another_kind),
		cmocka_unit_test(driven_by_a_loop),
		cmocka_unit_test(driven_by_the_caller),
		cmocka_unit_test(rounds_and_then_post_copy),
		cmocka_unit_test(canceled_in_each_drive),
		cmocka_unit_test(a_callback_that_fails),
		cmocka_unit_test(a_guest_that_does_not_stand_still),
		cmocka_unit_test(destroyed_while_it_goes_on),
		cmocka_unit_test(destroyed_before_it_began),
		cmocka_unit_test(needs_that_are_met_or_not),
		cmocka_unit_test(needs_that_nobody_can_judge),
		cmocka_unit_test(memory_that_cannot_be_moved),
		cmocka_unit_test(the_source_is_lost_in_postcopy),
		cmocka_unit_test(a_resume_that_fails),
		cmocka_unit_test(parameters_that_make_no_sense),
		cmocka_unit_test(calls_out_of_turn),
	};
	if (getenv("ONLY"))
		cmocka_set_test_filter(getenv("ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
