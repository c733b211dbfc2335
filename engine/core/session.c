/* SPDX-License-Identifier: BSD-2-Clause */
/* A session's life, its events and requests, and how its thread waits. */
#include <memferry/session.h>

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "base/log.h"
#include "base/parse.h"
#include "core/engine.h"
#include "wire/socket.h"

/* A port that is found by a scanner is not to fill a log. */
#define REFUSALS_TOLD 50u

static const char *const mode_names[MF_MODE_COUNT] = {
	[MF_MODE_HYBRID] = "hybrid", [MF_MODE_PRECOPY] = "precopy", [MF_MODE_POSTCOPY] = "postcopy",
	[MF_MODE_WARM] = "warm",     [MF_MODE_COLD] = "cold",
};

static const char *const phase_names[MF_PHASE_COUNT] = {
	[MF_PHASE_IDLE] = "idle",       [MF_PHASE_CONNECT] = "connect",
	[MF_PHASE_CHECK] = "check",     [MF_PHASE_PREPARE] = "prepare",
	[MF_PHASE_PRECOPY] = "precopy", [MF_PHASE_SWITCHOVER] = "switchover",
	[MF_PHASE_HANDOFF] = "handoff", [MF_PHASE_POSTCOPY] = "postcopy",
	[MF_PHASE_RECOVER] = "recover", [MF_PHASE_DONE] = "done",
};

static const char *const outcome_names[] = {
	[MF_OUTCOME_NONE] = "none",         [MF_OUTCOME_COMPLETED] = "completed",
	[MF_OUTCOME_ABORTED] = "aborted",   [MF_OUTCOME_PAUSED] = "paused",
	[MF_OUTCOME_IN_DOUBT] = "in-doubt", [MF_OUTCOME_CHECKED] = "checked",
};

const char *mf_version(void)
{
	return MF_VERSION;
}

const char *mf_mode_name(enum mf_mode mode)
{
	return (unsigned)mode < MF_MODE_COUNT ? mode_names[mode] : "unknown";
}

const char *mf_phase_name(enum mf_phase phase)
{
	return (unsigned)phase < MF_PHASE_COUNT ? phase_names[phase] : "unknown";
}

const char *mf_outcome_name(enum mf_outcome outcome)
{
	return (unsigned)outcome < BASE_ARRAY_LEN(outcome_names) ? outcome_names[outcome]
								 : "unknown";
}

const char *mf_error_name(int code)
{
	return base_error_name(code);
}

/* ---- events ---- */

void eng_emit(struct mf_session *s, enum mf_event_type type, const char *fmt, ...)
{
	char text[EVENT_TEXT_MAX];
	va_list ap;
	va_start(ap, fmt);
	if (vsnprintf(text, sizeof(text), fmt, ap) < 0)
		text[0] = '\0';
	va_end(ap);
	pthread_mutex_lock(&s->progress_lock);
	enum mf_phase phase = s->progress.phase;
	pthread_mutex_unlock(&s->progress_lock);
	eng_drive_event(s, &(struct mf_event){ .type = type, .phase = phase, .text = text });
}

void eng_emit_round(struct mf_session *s, const struct mf_round *round)
{
	struct mf_report *rep = &s->report;
	uint32_t at = rep->n_rounds < MF_ROUNDS_KEPT ? rep->n_rounds : MF_ROUNDS_KEPT - 1;
	rep->rounds[at] = *round;
	rep->n_rounds++;
	eng_drive_event(s, &(struct mf_event){ .type = MF_EVENT_ROUND,
					       .phase = MF_PHASE_PRECOPY,
					       .round = round });
}

void eng_emit_finding(struct mf_session *s, const struct mf_finding *finding)
{
	eng_drive_event(s, &(struct mf_event){ .type = MF_EVENT_FINDING,
					       .phase = MF_PHASE_CHECK,
					       .finding = finding });
}

/* ---- requests ---- */

void mf_session_request(struct mf_session *s, enum mf_request request)
{
	int saved = errno;
	atomic_fetch_or_explicit(&s->requests, 1u << request, memory_order_relaxed);
	base_event_poke(s->event_fd);
	errno = saved;
}

bool eng_requested(const struct mf_session *s, enum mf_request request)
{
	return atomic_load_explicit(&s->requests, memory_order_relaxed) >> request & 1;
}

int eng_check_cancel(struct mf_session *s, struct mf_error *err)
{
	if (s->state >= ENG_COMMITTED || !eng_requested(s, MF_REQUEST_CANCEL))
		return 0;
	return base_error(err, -MF_ECANCELED, MF_SCOPE_SESSION, "canceled on this host's request");
}

/* ---- waiting ---- */

uint64_t eng_timeout(const struct mf_session *s)
{
	return base_deadline_ms(s->params.peer_timeout_ms);
}

void eng_sleep(struct mf_session *s, uint64_t deadline_us)
{
	struct pollfd p = { .fd = s->event_fd, .events = POLLIN };
	if (poll(&p, 1, base_left_ms(deadline_us)) > 0)
		base_event_take(s->event_fd);
}

static int take_abort(struct mf_session *s, wire_msg *msg, struct mf_error *err)
{
	s->peer_gave_up = true;
	int code = msg->abort->code == -MF_ECANCELED ? -MF_ECANCELED : -MF_EPEER;
	base_error(err, code, MF_SCOPE_SESSION, "the other host ended the move: %s",
		   msg->abort->message);
	wire_msg_free(msg);
	return code;
}

static int take_message(struct mf_session *s, wire_msg **ret, struct mf_error *err)
{
	wire_msg *msg;
	*ret = BASE_TAKE_PTR(s->kept);
	if (*ret)
		return 1;
	for (;;) {
		int r = s->channel ? wire_channel_next(s->channel, &msg, err) : 0;
		if (r <= 0)
			return r;
		base_debug("%s: got %s", s->report.session, wire_msg_name(msg));
		if (msg->body_case == WIRE_BODY(ABORT))
			return take_abort(s, msg, err);
		r = 0;
		/* These come whenever something was registered, or a rail was lost. */
		if (msg->body_case == WIRE_BODY(PIECES))
			r = eng_take_pieces(s, msg->pieces, err);
		else if (msg->body_case == WIRE_BODY(RAIL_LOST))
			eng_rails_told_lost(s, msg->rail_lost);
		else
			break;
		wire_msg_free(msg);
		if (r < 0)
			return r;
	}
	*ret = msg;
	return 1;
}

/* Whatever has to go on while the session's thread waits. */
static int turn(struct mf_session *s, wire_msg **ret, struct mf_error *err)
{
	int r = eng_check_cancel(s, err);
	if (r == 0)
		r = take_message(s, ret, err);
	if (r < 0)
		return r;
	int pumped = s->channel ? eng_pump(s, err) : 0;
	if (pumped < 0 && r > 0)
		wire_msg_free(*ret);
	return pumped < 0 ? pumped : r;
}

int eng_receive(struct mf_session *s, uint64_t deadline_us, wire_msg **ret, struct mf_error *err)
{
	for (;;) {
		int r = turn(s, ret, err);
		if (r)
			return r;
		if (base_now_us() >= deadline_us)
			return 0;
		eng_sleep(s, deadline_us);
	}
}

int eng_expect(struct mf_session *s, Mf__Wire__Control__BodyCase body, uint64_t deadline_us,
	       wire_msg **ret, struct mf_error *err)
{
	for (;;) {
		wire_msg *msg;
		int r = eng_receive(s, deadline_us, &msg, err);
		if (r < 0)
			return r;
		if (r == 0)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
					  "the other host did not answer in time (%s)",
					  eng_state_name(s->state));
		if (msg->body_case == body) {
			*ret = msg;
			return 0;
		}
		bool informs = msg->body_case == WIRE_BODY(ROUND) ||
			       msg->body_case == WIRE_BODY(PULL) ||
			       msg->body_case == WIRE_BODY(RAIL_RETRY); /* it came too late */
		if (!informs)
			base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				   "the other host said '%s' out of turn", wire_msg_name(msg));
		wire_msg_free(msg);
		if (!informs)
			return -MF_EPEER;
	}
}

int eng_send(struct mf_session *s, wire_msg *msg, struct mf_error *err)
{
	base_debug("%s: sending %s", s->report.session, wire_msg_name(msg));
	return wire_channel_send(s->channel, msg, err);
}

int eng_send_plain(struct mf_session *s, Mf__Wire__Control__BodyCase body, struct mf_error *err)
{
	/* All of these have no fields, so one empty message stands for any of them. */
	Mf__Wire__Ready ready = MF__WIRE__READY__INIT;
	Mf__Wire__Commit commit = MF__WIRE__COMMIT__INIT;
	Mf__Wire__Running running = MF__WIRE__RUNNING__INIT;
	Mf__Wire__Bye bye = MF__WIRE__BYE__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = body;
	switch (body) {
	case WIRE_BODY(READY):
		msg.ready = &ready;
		break;
	case WIRE_BODY(COMMIT):
		msg.commit = &commit;
		break;
	case WIRE_BODY(RUNNING):
		msg.running = &running;
		break;
	case WIRE_BODY(BYE):
		msg.bye = &bye;
		break;
	default:
		assert(!"a message with fields");
		return -EINVAL;
	}
	return eng_send(s, &msg, err);
}

void eng_send_abort(struct mf_session *s, const struct mf_error *why)
{
	if (!s->channel)
		return;
	Mf__Wire__Abort body = MF__WIRE__ABORT__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(ABORT);
	msg.abort = &body;
	body.code = why->code;
	body.message = (char *)why->msg;
	(void)eng_send(s, &msg, NULL); /* best effort: a peer that does not hear it times out */
}

void eng_refused(struct mf_session *s, const char *why)
{
	if (s->n_refused < REFUSALS_TOLD)
		eng_emit(s, MF_EVENT_NOTICE, "a connection is refused: %s", why);
	else if (s->n_refused == REFUSALS_TOLD)
		eng_emit(s, MF_EVENT_NOTICE,
			 "more connections are refused, and not told of any more");
	s->n_refused++;
}

static void tell_refused(void *ctx, const char *why)
{
	eng_refused(ctx, why);
}

void eng_note_addresses(struct mf_session *s, int fd)
{
	wire_local_host(fd, s->local_host, sizeof(s->local_host));
	wire_peer_name(fd, s->peer_name, sizeof(s->peer_name));
}

struct wire_channel_params eng_channel_params(const struct mf_session *s)
{
	return (struct wire_channel_params){
		.notify_fd = s->event_fd,
		.peer_timeout_ms = s->params.peer_timeout_ms,
		.security = s->security,
		.host = s->host,
		.handshake_ms = s->params.connect_timeout_ms,
	};
}

int eng_open_acceptor(struct mf_session *s, uint64_t patience_ms,
		      struct wire_acceptor **ret_acceptor, struct mf_error *err)
{
	struct wire_acceptor_params params = {
		.listen_fd = s->listen_fd,
		.channel = eng_channel_params(s),
		.on_refused = tell_refused,
		.ctx = s,
	};
	params.channel.handshake_ms = patience_ms;
	return wire_acceptor_open(&params, ret_acceptor, err);
}

void eng_hang_up(struct mf_session *s)
{
	wire_channel_close(s->channel);
	s->channel = NULL;
}

int eng_wait_job(struct mf_session *s, struct eng_job *job, struct mf_error *err)
{
	int failed = 0;
	while (!eng_job_is_done(job)) {
		wire_msg *msg;
		int r = failed ? 0 : turn(s, &msg, err);
		if (r > 0) { /* only informing messages come while a job runs */
			wire_msg_free(msg);
			continue;
		}
		if (r < 0) {
			failed = r;
			atomic_store_explicit(&job->stop, true, memory_order_relaxed);
		}
		eng_sleep(s, base_deadline_ms(250));
	}
	return failed;
}

/* ---- progress ---- */

void eng_update_progress(struct mf_session *s, uint32_t round, uint64_t round_bytes)
{
	atomic_store_explicit(&s->bytes_scanned, 0, memory_order_relaxed);
	pthread_mutex_lock(&s->progress_lock);
	s->progress.round = round;
	s->progress.round_bytes = round_bytes;
	pthread_mutex_unlock(&s->progress_lock);
}

void mf_session_progress(const struct mf_session *session, struct mf_progress *ret, size_t size)
{
	struct mf_session *s = (struct mf_session *)session; /* for the lock only */
	struct mf_progress now;
	pthread_mutex_lock(&s->progress_lock);
	now = s->progress;
	uint64_t started_us = s->started_us;
	pthread_mutex_unlock(&s->progress_lock);
	now.elapsed_ms = started_us ? (base_now_us() - started_us) / 1000 : 0;
	now.faults = atomic_load_explicit(&s->faults, memory_order_relaxed);
	uint64_t done = atomic_load_explicit(&s->bytes_scanned, memory_order_relaxed);
	now.done_bytes = done < now.round_bytes ? done : now.round_bytes;
	if (now.bytes_per_s && now.round_bytes)
		now.left_ms = (now.round_bytes - now.done_bytes) * 1000 / now.bytes_per_s;
	memcpy(ret, &now, size < sizeof(now) ? size : sizeof(now));
}

/* ---- life ---- */

static int check_security(const struct mf_session_params *p, struct mf_error *err)
{
	int ways = !!p->tls_dir + !!p->psk + p->insecure;
	if (ways > 1)
		return base_usage_error(
			err, "the control channel is secured in one way: by certificates "
			     "(tls_dir), by a pre-shared key (psk), or not at all (insecure)");
	if (!ways)
		return base_usage_error(
			err, "the control channel is not secured: it needs certificates "
			     "(tls_dir) or a pre-shared key (psk), or insecure to do without");
	if (p->tls_peers && !p->tls_dir)
		return base_usage_error(
			err, "names of peers (tls_peers) stand in certificates: they need tls_dir");
	if (p->sealing && p->insecure)
		return base_usage_error(
			err,
			"sealing: its keys come from a secured control channel; give tls_dir or "
			"psk instead of insecure");
	return 0;
}

static int check_params(const struct mf_session_params *p, struct mf_error *err)
{
	int r;
	const char *wrong = !p->address                                         ? "no address"
			    : !p->run_dir                                       ? "no run_dir"
			    : !p->guest.ops && !p->resume                       ? "no guest"
			    : (unsigned)p->mode >= MF_MODE_COUNT                ? "no such mode"
			    : (unsigned)p->verify > MF_VERIFY_FULL              ? "no such verify"
			    : (unsigned)p->sealing > MF_SEALING_ENCRYPT         ? "no such sealing"
			    : p->side != MF_SOURCE && p->side != MF_DESTINATION ? "no such side"
			    : p->lanes > ENG_LANES_MAX ? "more than 64 lanes"
						       : NULL;
	if (wrong)
		return base_error(err, -EINVAL, MF_SCOPE_HOST, "session parameters: %s", wrong);
	if (p->tracker && strcmp(p->tracker, "auto") && !trk_find(p->tracker))
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "tracker '%.40s' is not in this build", p->tracker);
	r = check_security(p, err);
	if (r < 0)
		return r;
	if (p->safe_postcopy_pages && (p->mode == MF_MODE_POSTCOPY || p->mode == MF_MODE_COLD))
		return base_error(
			err, -MF_EUSAGE, MF_SCOPE_HOST,
			"--safe-postcopy: mode %s has no rounds after which few pages are "
			"missing; use hybrid",
			mf_mode_name(p->mode));
	if (p->resume && !eng_is_session_name(p->resume))
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "--resume: '%.40s' is not a session's name, which has only 0 to "
				  "9 and a to f",
				  p->resume);
	if (p->transport && strcmp(p->transport, "auto") && !tp_find(p->transport))
		return base_error(
			err, -MF_EUSAGE, MF_SCOPE_HOST,
			"transport '%s' is not in this build; `memferry devices` shows what is",
			p->transport);
	return 0;
}

bool eng_is_session_name(const char *name)
{
	size_t len = strlen(name);
	return len && len < MF_SESSION_NAME_MAX && strspn(name, "0123456789abcdef") == len;
}

void eng_name_session(struct mf_session *s, const char *name)
{
	(void)snprintf(s->report.session, sizeof(s->report.session), "%s", name);
	pthread_mutex_lock(&s->progress_lock);
	memcpy(s->progress.session, s->report.session, sizeof(s->progress.session));
	pthread_mutex_unlock(&s->progress_lock);
}

static int load_security(struct mf_session *s, struct mf_error *err)
{
	const struct wire_security_params params = {
		.is_server = s->params.side == MF_DESTINATION,
		.tls_dir = s->params.tls_dir,
		.psk = s->params.psk,
		.peers = s->params.tls_peers,
	};
	int r = s->params.insecure ? 0 : wire_security_load(&params, &s->security, err);
	/* All of it is read. */
	s->params.tls_dir = s->params.tls_peers = s->params.psk = NULL;
	return r;
}

static void name_session(struct mf_session *s)
{
	uint8_t random[8];
	char name[2 * sizeof(random) + 1];
	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		memset(random, 0, sizeof(random));
	for (size_t i = 0; i < sizeof(random); i++)
		(void)snprintf(name + 2 * i, 3, "%02x", random[i]);
	eng_name_session(s, name);
}

static void destroyp(struct mf_session **s)
{
	mf_session_destroy(*s);
}

/* --resume: what is recorded is not all, something of the guest is to be looked at or done. */
static bool takes_guest(const struct mf_session *s)
{
	switch (s->record.what) {
	case ENG_RECORD_ABORTED:
		return false;
	case ENG_RECORD_RUNNING:
		return s->record.postcopy;
	case ENG_RECORD_COMPLETE: /* touches may wait in pages that came */
		return s->record.postcopy && eng_present_exists(s);
	default:
		return true;
	}
}

int mf_session_create(const struct mf_session_params *given, struct mf_session **ret_session,
		      struct mf_error *err)
{
	struct mf_session_params own = { 0 }, *params = &own;
	base_error_clear(err);
	if (given->size < offsetof(struct mf_session_params, tracker) || given->size > sizeof(own))
		return base_error(
			err, -EINVAL, MF_SCOPE_HOST,
			"session parameters of %zu bytes: set their size to sizeof(struct "
			"mf_session_params); a program that was built for a newer memferry "
			"needs that one",
			given->size);
	memcpy(&own, given, given->size);
	int r = check_params(params, err);
	if (r < 0)
		return r;
	base_cleanup(destroyp) struct mf_session *s = calloc(1, sizeof(*s));
	if (!s)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	s->listen_fd = s->event_fd = s->tracker_uffd = s->pager_uffd = s->kept_uffd = s->lock_fd =
		-1;
	pthread_mutex_init(&s->progress_lock, NULL);
	r = eng_drive_init(&s->drive, err);
	if (r == 0 && params->guest.ops)
		r = eng_guest_take_table(s, params->guest.ops, err);
	if (r < 0)
		return r;
	s->params = *params;
	s->address = strdup(params->address);
	s->run_dir = strdup(params->run_dir);
	s->transport = strdup(params->transport ? params->transport : "auto");
	s->tracker_name = strdup(params->tracker ? params->tracker : "auto");
	if (!s->address || !s->run_dir || !s->transport || !s->tracker_name)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	if (!s->params.lanes)
		s->params.lanes = 2;
	if (!s->params.max_downtime_ms)
		s->params.max_downtime_ms = 300;
	if (!s->params.connect_timeout_ms)
		s->params.connect_timeout_ms = 10000;
	if (!s->params.peer_timeout_ms)
		s->params.peer_timeout_ms = 10000;
	if (!s->params.lane_timeout_ms)
		s->params.lane_timeout_ms = 3000;
	if (!s->params.recover_timeout_ms)
		s->params.recover_timeout_ms = 300000;
	r = load_security(s, err);
	if (r < 0)
		return r;
	s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->event_fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "eventfd");
	r = base_parse_addr(s->address, params->side == MF_SOURCE ? "address" : "--listen",
			    MF_DEFAULT_PORT, s->host, sizeof(s->host), &s->port, err);
	if (r < 0)
		return r;
	s->report.side = s->progress.side = params->side;
	s->report.mode = params->mode;
	/* A destination does what the source asks for. */
	if (params->side == MF_SOURCE)
		s->report.sealing = s->params.sealing;
	s->report.transport = "";
	if (params->resume) {
		eng_name_session(s, params->resume);
		r = eng_record_read(s, &s->record, err);
		if (r < 0)
			return r;
		r = eng_sealing_resume(s, err);
		if (r < 0)
			return r;
		s->guest_has_ended = !params->guest.ops;
		bool is_ours = base_process_is_ours(&s->record.guest);
		if (s->guest_has_ended && takes_guest(s) && base_process_lives(&s->record.guest))
			return base_error(
				err, -MF_EREFUSED, MF_SCOPE_HOST,
				"session %s: its guest (pid %d%s) %s: it takes that to go on",
				s->report.session, s->record.guest.pid,
				is_ours ? "" : ", in another namespace",
				is_ours ? "lives" : "may live");
	} else if (params->side == MF_SOURCE) {
		name_session(s);
	}
	*ret_session = BASE_TAKE_PTR(s);
	return 0;
}

static uint64_t timeval_us(struct timeval t)
{
	return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_usec;
}

static enum mf_outcome outcome_of(enum eng_state state)
{
	switch (state) {
	case ENG_COMPLETED:
		return MF_OUTCOME_COMPLETED;
	case ENG_PAUSED:
		return MF_OUTCOME_PAUSED;
	case ENG_IN_DOUBT:
		return MF_OUTCOME_IN_DOUBT;
	case ENG_CHECKED:
		return MF_OUTCOME_CHECKED;
	default:
		return MF_OUTCOME_ABORTED;
	}
}

int eng_run_out(struct mf_session *s, struct mf_error *err)
{
	struct mf_error failure = { 0 };
	struct rusage before, after;
	assert(s->state == ENG_IDLE);
	(void)getrusage(RUSAGE_SELF, &before);
	pthread_mutex_lock(&s->progress_lock);
	s->started_us = base_now_us();
	pthread_mutex_unlock(&s->progress_lock);

	int r = s->params.side == MF_SOURCE ? eng_source_run(s, &failure)
					    : eng_destination_run(s, &failure);

	eng_hang_up(s);
	(void)getrusage(RUSAGE_SELF, &after);
	struct mf_report *rep = &s->report;
	rep->total_ms = (base_now_us() - s->started_us) / 1000;
	rep->cpu_user_ms = (timeval_us(after.ru_utime) - timeval_us(before.ru_utime)) / 1000;
	rep->cpu_system_ms = (timeval_us(after.ru_stime) - timeval_us(before.ru_stime)) / 1000;
	rep->outcome = outcome_of(s->state);
	rep->pages_total = s->memory.bytes / ENG_PAGE;
	/* Nobody who comes later waits for an answer, and nobody reaches our memory, however long the session is kept. */
	eng_rails_close(s);
	base_closep(&s->listen_fd);
	if (r < 0) {
		if (!failure.code)
			base_error_sys(&failure, r, MF_SCOPE_SESSION, "%s",
				       eng_state_name(s->state));
		rep->error = failure;
		if (err)
			*err = failure;
	}
	return r;
}

const struct mf_report *mf_session_report(const struct mf_session *session)
{
	return &session->report;
}

void mf_session_destroy(struct mf_session *s)
{
	if (!s)
		return;
	eng_drive_end(s);
	trk_close(s->tracker);
	base_closep(&s->tracker_uffd);
	/* Of a guest that lacks pages it stays open, so that touches go on waiting. */
	if (s->state != ENG_PAUSED)
		base_closep(&s->kept_uffd);
	wire_channel_close(s->channel);
	wire_security_free(s->security);
	base_place_close(s->place);
	eng_memory_unmap(s);
	if (s->kept)
		wire_msg_free(s->kept);
	base_closep(&s->listen_fd);
	base_closep(&s->event_fd);
	base_closep(&s->lock_fd);
	free(s->device.bytes);
	free(s->address);
	free(s->run_dir);
	free(s->transport);
	free(s->tracker_name);
	eng_drive_free(&s->drive);
	pthread_mutex_destroy(&s->progress_lock);
	free(s);
}
