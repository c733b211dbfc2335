/* SPDX-License-Identifier: BSD-2-Clause */
#include "move.h"

#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>
#include <memferry/guests.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "core/engine.h"
#include "hv-adapters/process/process.h"

#define GUEST "24M,dirty=8M,threads=2,regions=2,check=256M"

/* ---- the adapter in between ---- */

static int before_step(const struct side *f, enum step step, struct mf_error *err)
{
	if (f->fail != step || f->fail_after)
		return 0;
	return base_error(err, -EIO, MF_SCOPE_SESSION, "adapter step %d: fails as planned", step);
}

static int after_step(const struct side *f, enum step step, int ret, struct mf_error *err)
{
	if (ret || f->fail != step || !f->fail_after)
		return ret;
	return base_error(err, -EIO, MF_SCOPE_SESSION, "adapter step %d: fails as planned", step);
}

static int describe(void *hv, struct mf_guest *ret, struct mf_error *err)
{
	struct side *f = hv;
	int r = before_step(f, STEP_DESCRIBE, err);
	return r ? r : f->guest.ops->describe(f->guest.hv, ret, err);
}

static int prepare(void *hv, enum mf_side side, struct mf_error *err)
{
	struct side *f = hv;
	int r = before_step(f, STEP_PREPARE, err);
	r = r ? r : f->guest.ops->prepare(f->guest.hv, side, err);
	return after_step(f, STEP_PREPARE, r, err);
}

static int open_userfaultfd(void *hv, int *ret_fd, struct mf_error *err)
{
	struct side *f = hv;
	int r = before_step(f, STEP_USERFAULTFD, err);
	return r ? r : f->guest.ops->open_userfaultfd(f->guest.hv, ret_fd, err);
}

static void close_userfaultfds(void *hv)
{
	struct side *f = hv;
	f->guest.ops->close_userfaultfds(f->guest.hv);
}

static int forget_ram(void *hv, struct mf_error *err)
{
	struct side *f = hv;
	int r = before_step(f, STEP_FORGET, err);
	r = r ? r : f->guest.ops->forget_ram(f->guest.hv, err);
	return after_step(f, STEP_FORGET, r, err);
}

static int pause_guest(void *hv, uint64_t *ret_stopped_us, struct mf_error *err)
{
	struct side *f = hv;
	int r = before_step(f, STEP_PAUSE, err);
	r = r ? r : f->guest.ops->pause(f->guest.hv, ret_stopped_us, err);
	return after_step(f, STEP_PAUSE, r, err);
}

static int save_state(void *hv, mf_state_write_fn write, void *ctx, struct mf_error *err)
{
	struct side *f = hv;
	int r = before_step(f, STEP_SAVE, err);
	r = r ? r : f->guest.ops->save_state(f->guest.hv, write, ctx, err);
	return after_step(f, STEP_SAVE, r, err);
}

static int load_state(void *hv, mf_state_read_fn read, void *ctx, struct mf_error *err)
{
	struct side *f = hv;
	int r = before_step(f, STEP_LOAD, err);
	r = r ? r : f->guest.ops->load_state(f->guest.hv, read, ctx, err);
	return after_step(f, STEP_LOAD, r, err);
}

static int resume(void *hv, struct mf_error *err)
{
	struct side *f = hv;
	int r = before_step(f, STEP_RESUME, err);
	r = r ? r : f->guest.ops->resume(f->guest.hv, err);
	f->resumed += r == 0;
	return r;
}

static void commit(void *hv)
{
	struct side *f = hv;
	f->guest.ops->commit(f->guest.hv);
}

static int abort_move(void *hv, struct mf_error *err)
{
	struct side *f = hv;
	return f->guest.ops->abort(f->guest.hv, err);
}

static void finish(void *hv)
{
	struct side *f = hv;
	f->finished++;
	f->guest.ops->finish(f->guest.hv);
}

static int throttle(void *hv, unsigned percent, struct mf_error *err)
{
	struct side *f = hv;
	return f->guest.ops->throttle(f->guest.hv, percent, err);
}

/* No self_check: it stops the guest, and whether it runs is looked at here. */
static const struct mf_adapter_ops between_ops = {
	.size = sizeof(between_ops),
	.name = "fault",
	.describe = describe,
	.prepare = prepare,
	.open_userfaultfd = open_userfaultfd,
	.close_userfaultfds = close_userfaultfds,
	.forget_ram = forget_ram,
	.pause = pause_guest,
	.save_state = save_state,
	.load_state = load_state,
	.resume = resume,
	.commit = commit,
	.abort = abort_move,
	.finish = finish,
	.throttle = throttle,
};

/* ---- running ---- */

static int count_entries(const char *path)
{
	DIR *dir = opendir(path);
	int n = 0;
	assert_non_null(dir);
	while (readdir(dir))
		n++;
	(void)closedir(dir);
	return n;
}

/* A joined thread is gone from /proc a moment later. */
static int settled_tasks(void)
{
	int n = count_entries("/proc/self/task"), before;
	do {
		before = n;
		(void)usleep(20000);
		n = count_entries("/proc/self/task");
	} while (n != before);
	return n;
}

/* Demo guests are forked where a sanitizer keeps a thread of its own; none of ours runs then. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
	return "die_after_fork=0";
}

static void *do_nothing(void *arg)
{
	return arg;
}

void move_init(struct move *m)
{
	memset(m, 0, sizeof(*m));
	for (int i = 0; i < 2; i++) {
		m->side[i].move = m;
		m->side[i].which = i == 0 ? MF_SOURCE : MF_DESTINATION;
		m->side[i].ops = between_ops;
	}
}

static void take_event(void *ctx, const struct mf_event *event)
{
	struct side *f = ctx;
	struct move *m = f->move;
	if (event->type == MF_EVENT_LISTENING) {
		pthread_mutex_lock(&m->lock);
		m->port = (uint16_t)strtoul(strrchr(event->text, ':') + 1, NULL, 10);
		pthread_cond_broadcast(&m->changed);
		pthread_mutex_unlock(&m->lock);
	}
	if (event->type == MF_EVENT_PHASE && m->on_phase)
		m->on_phase(f, event->phase);
	if (event->type == MF_EVENT_NOTICE && m->on_notice)
		m->on_notice(f, event->text);
	if (event->type == MF_EVENT_RUNNING && m->on_running)
		m->on_running(f);
}

void move_cut_channel(struct side *f)
{
	assert_int_equal(shutdown(wire_channel_fd(f->session->channel), SHUT_RDWR), 0);
}

/* Only for the time in which a session reads it. */
static const char *write_key(const char *key, char *ret, size_t cap)
{
	if (!key)
		return NULL;
	(void)snprintf(ret, cap, "/tmp/mf-fault-key-XXXXXX");
	base_autofd fd = mkstemp(ret);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, key, strlen(key)), (ssize_t)strlen(key));
	return ret;
}

void move_request_at(struct side *f, enum mf_phase phase)
{
	if (f->which == f->move->at && phase == f->move->phase)
		mf_session_request(f->session, f->move->request);
}

void move_drop_lanes_at(struct side *f, enum mf_phase phase)
{
	if (f->which == f->move->at && phase == f->move->phase)
		atomic_store(&f->faults.drop_now, true);
}

void move_end_of_trouble(struct side *f, const char *text)
{
	if (!strstr(text, "no connection to the source"))
		return;
	f->move->phase = MF_PHASE_COUNT;
	atomic_store(&f->faults.drop_now, false);
}

void move_cut_channel_at(struct side *f, enum mf_phase phase)
{
	if (f->which != f->move->at || phase != f->move->phase)
		return;
	f->move->phase = MF_PHASE_COUNT;
	move_cut_channel(f);
}

int move_one_device(struct tp_path *ret, unsigned cap)
{
	if (cap)
		*ret = (struct tp_path){ .device = "one",
					 .address = "127.0.0.1",
					 .prefix = 8,
					 .up = true,
					 .numa_node = -1 };
	return 1;
}

static void *run_side(void *arg)
{
	struct side *f = arg;
	f->result = mf_session_run(f->session, &f->error);
	pthread_mutex_lock(&f->move->lock);
	f->move->destination_ended |= f->which == MF_DESTINATION;
	pthread_cond_broadcast(&f->move->changed);
	pthread_mutex_unlock(&f->move->lock);
	return NULL;
}

static void start_side(struct side *f, uint16_t port)
{
	struct move *m = f->move;
	char address[32], path[32];
	const char *psk = write_key(f->key, path, sizeof(path));
	/* Long by itself: a sanitized destination may take seconds for a write. */
	uint64_t timeout_ms = m->peer_timeout_ms ? m->peer_timeout_ms : 30000;
	if (f->peer_timeout_ms)
		timeout_ms = f->peer_timeout_ms;
	(void)snprintf(address, sizeof(address), "127.0.0.1:%u", port);
	struct mf_session_params params = {
		.size = sizeof(params),
		.side = f->which,
		.address = address,
		.guest = { &f->ops, f },
		.run_dir = m->run_dir,
		.mode = m->mode,
		.verify = m->verify,
		.transport = m->device_paths || m->inner ? "auto" : "tcp",
		.lanes = m->lanes,
		/* Long for hosts that do other things besides. */
		.connect_timeout_ms = 20000,
		.lane_timeout_ms = 10000,
		.peer_timeout_ms = timeout_ms,
		.insecure = !psk,
		.psk = psk,
		.sealing = f->sealing,
		.recover_timeout_ms = m->recover_timeout_ms ? m->recover_timeout_ms : 60000,
		.on_event = take_event,
		.ctx = f,
	};
	assert_int_equal(mf_session_create(&params, &f->session, &f->error), 0);
	if (psk)
		assert_int_equal(unlink(psk), 0);
	f->tp = tp_faulty_create(tp_find(m->inner ? m->inner : "tcp"), &f->faults);
	assert_non_null(f->tp);
	f->session->tp_given = f->tp;
	if (m->device_paths)
		tp_faulty_disguise(f->tp, "verbs", m->device_paths);
	if (m->side[0].sealing) {
		tp_sealed_init(&f->sealed, f->tp);
		f->session->tp_given = &f->sealed.ops;
	}
	if (m->on_phase)
		m->on_phase(f, MF_PHASE_IDLE);
	assert_int_equal(pthread_create(&f->thread, NULL, run_side, f), 0);
	f->started = true;
}

/* A destination that nobody came to, or only a stranger, goes on listening: it is told to stop. */
static void dismiss(struct side *destination)
{
	struct move *m = destination->move;
	struct mf_progress progress;
	pthread_mutex_lock(&m->lock);
	while (!m->destination_ended) {
		struct timespec soon;
		mf_session_progress(destination->session, &progress, sizeof(progress));
		if (progress.phase == MF_PHASE_CONNECT)
			mf_session_request(destination->session, MF_REQUEST_CANCEL);
		(void)clock_gettime(CLOCK_REALTIME, &soon);
		soon.tv_nsec += 20000000;
		soon.tv_sec += soon.tv_nsec / 1000000000;
		soon.tv_nsec %= 1000000000;
		(void)pthread_cond_timedwait(&m->changed, &m->lock, &soon);
	}
	pthread_mutex_unlock(&m->lock);
}

void move_run(struct move *m)
{
	struct side *source = &m->side[0], *destination = &m->side[1];
	struct relay *relay = NULL;
	char spec[160];
	/* A sanitizer's own thread starts with the first. */
	assert_int_equal(pthread_create(&source->thread, NULL, do_nothing, NULL), 0);
	pthread_join(source->thread, NULL);
	m->fds = count_entries("/proc/self/fd");
	m->tasks = settled_tasks();
	(void)snprintf(m->run_dir, sizeof(m->run_dir), "/tmp/mf-fault-XXXXXX");
	assert_non_null(mkdtemp(m->run_dir));
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->changed, NULL);
	(void)snprintf(spec, sizeof(spec), "demo:%s", m->guest ? m->guest : GUEST);
	for (int i = 0; i < 2; i++)
		assert_int_equal(mf_guest_open(spec, m->side[i].which, &m->side[i].guest, NULL), 0);

	start_side(destination, 0);
	pthread_mutex_lock(&m->lock);
	while (!m->port && !m->destination_ended)
		pthread_cond_wait(&m->changed, &m->lock);
	uint16_t port = m->port;
	pthread_mutex_unlock(&m->lock);
	if (port && m->before)
		m->before(m, port);
	if (port && (m->rule.body || m->rule.hook)) {
		relay = relay_start(port, &m->rule, &port);
		assert_non_null(relay);
	}
	if (port)
		start_side(source, port);
	if (source->started)
		pthread_join(source->thread, NULL);
	dismiss(destination);
	for (int i = 0; i < 2; i++) {
		struct side *f = &m->side[i];
		if (f == destination)
			pthread_join(f->thread, NULL);
		if (!f->session)
			continue;
		f->report = *mf_session_report(f->session);
		/* It listens to nobody any more, and its memory is within nobody's reach, long as its owner may keep it. */
		assert_int_equal(f->session->listen_fd, -1);
		assert_int_equal(f->session->n_rails, 0);
	}
	m->rule_met = relay && relay_met(relay);
	relay_stop(relay);
	/* What a case did not expect must be told by the log it leaves. */
	for (int i = 0; i < 2; i++)
		print_message("%s: %s %s\n", i ? "destination" : "source",
			      mf_outcome_name(m->side[i].report.outcome), m->side[i].error.msg);
}

/* ---- judging ---- */

static bool is_running(struct side *f)
{
	struct hv_process_status status;
	return hv_process_status(f->guest.hv, &status, NULL) == 0 && status.running;
}

/* It does not only say so. */
static void assert_goes_on(struct side *f)
{
	struct hv_process_status first, now;
	uint64_t deadline = base_deadline_ms(20000);
	assert_int_equal(hv_process_status(f->guest.hv, &first, NULL), 0);
	do {
		assert_int_equal(hv_process_status(f->guest.hv, &now, NULL), 0);
		assert_true(base_now_us() < deadline);
	} while (now.heartbeat == first.heartbeat);
	assert_int_equal(now.wrong_pages, 0);
}

void move_assert_stands_still(struct side *f)
{
	struct hv_process_status status;
	assert_int_equal(hv_process_status(f->guest.hv, &status, NULL), 0);
	assert_false(status.running);
	assert_int_equal(f->finished, 0);
}

static void check_moved(struct move *m)
{
	struct side *source = &m->side[0], *destination = &m->side[1];
	assert_int_equal(source->report.outcome, MF_OUTCOME_COMPLETED);
	assert_int_equal(destination->report.outcome, MF_OUTCOME_COMPLETED);
	assert_int_equal(source->result, 0);
	assert_int_equal(destination->result, 0);
	assert_int_equal(destination->resumed, 1);
	assert_int_equal(source->finished, 1);
	assert_false(is_running(source));
	assert_true(is_running(destination));
	assert_goes_on(destination);
	if (m->verify == MF_VERIFY_FULL) {
		assert_true(destination->report.has_verify);
		assert_int_equal(destination->report.verify_pages, destination->report.pages_total);
		assert_int_equal(destination->report.verify_mismatches, 0);
	}
}

static void check_stayed(struct move *m)
{
	struct side *source = &m->side[0], *destination = &m->side[1];
	assert_int_equal(destination->report.outcome, MF_OUTCOME_ABORTED);
	assert_true(destination->result < 0 && destination->error.msg[0]);
	if (source->started) {
		assert_int_equal(source->report.outcome, MF_OUTCOME_ABORTED);
		assert_true(source->result < 0 && source->error.msg[0]);
	}
	assert_int_equal(destination->resumed, 0);
	assert_int_equal(source->finished, 0);
	assert_false(is_running(destination));
	assert_true(is_running(source));
	assert_goes_on(source);
}

static void check_paused(struct move *m)
{
	struct side *source = &m->side[0], *destination = &m->side[1];
	assert_int_equal(destination->report.outcome, MF_OUTCOME_PAUSED);
	assert_int_equal(source->report.outcome, MF_OUTCOME_PAUSED);
	move_assert_stands_still(source);
}

/* A joined thread is gone from /proc a moment later. */
static void check_left_over(const struct move *m)
{
	uint64_t deadline = base_deadline_ms(10000);
	/* Fewer: one of an earlier move was still counted before. */
	while (count_entries("/proc/self/task") > m->tasks && base_now_us() < deadline)
		(void)usleep(1000);
	assert_true(count_entries("/proc/self/task") <= m->tasks);
	assert_int_equal(count_entries("/proc/self/fd"), m->fds);
}

/* A destination that nobody has heard keeps its word for who asks later. */
static bool is_last_word(const struct move *m, const char *name)
{
	char path[400], text[512] = "";
	if (strstr(name, ".destination.lock"))
		return true;
	(void)snprintf(path, sizeof(path), "%s/%s", m->run_dir, name);
	base_cleanup(base_fclosep) FILE *f = fopen(path, "re");
	size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
	text[n] = '\0';
	return strstr(name, ".destination.record") &&
	       (strstr(text, "\"aborted\"") || strstr(text, "\"complete\""));
}

/* What was left in it; records of a move that is over are gone, those of one that is not stay. */
static unsigned empty_run_dir(const struct move *m)
{
	char path[400];
	DIR *dir = opendir(m->run_dir);
	struct dirent *e;
	unsigned n = 0;
	if (!dir)
		return 0;
	while ((e = readdir(dir))) {
		if (e->d_name[0] == '.')
			continue;
		n += !is_last_word(m, e->d_name);
		(void)snprintf(path, sizeof(path), "%s/%s", m->run_dir, e->d_name);
		(void)unlink(path);
	}
	(void)closedir(dir);
	(void)rmdir(m->run_dir);
	return n;
}

void move_close(struct move *m)
{
	for (int i = 0; i < 2; i++) {
		mf_session_destroy(m->side[i].session);
		tp_faulty_destroy(m->side[i].tp);
		if (m->side[i].guest.ops)
			hv_process_end(m->side[i].guest.hv, NULL, NULL);
	}
	(void)empty_run_dir(m);
	pthread_mutex_destroy(&m->lock);
	pthread_cond_destroy(&m->changed);
	check_left_over(m);
}

static void check_pages(struct move *m)
{
	struct hv_process_status status;
	int code;
	hv_process_end(m->side[1].guest.hv, &status, &code);
	m->side[1].guest.ops = NULL;
	assert_true(status.verified);
	assert_int_equal(status.wrong_pages, 0);
	assert_int_equal(code, HV_PROCESS_EXIT_OK);
}

void move_check(struct move *m, enum ending ending)
{
	if (ending == MOVED)
		check_moved(m);
	else if (ending == STAYED)
		check_stayed(m);
	else
		check_paused(m);
	if (ending == MOVED)
		check_pages(m);
	if (ending != PAUSED)
		assert_int_equal(empty_run_dir(m), 0);
	move_close(m);
}

void move_expect(struct move *m, enum ending ending)
{
	move_run(m);
	move_check(m, ending);
}
