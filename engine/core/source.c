/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The source's side of a move, phase after phase.  docs/protocol.md has the messages.
 *
 * The first law lives here: whatever fails before the commit is answered by source_fail(), which brings the
 * guest back to running.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "core/source.h"
#include "wire/socket.h"

/* ---- connect, check, prepare ---- */

static int open_channel(struct mf_session *s, struct mf_error *err)
{
	base_autofd fd = -1;
	uint64_t deadline = base_deadline_ms(s->params.connect_timeout_ms);
	int r = eng_check_cancel(s, err);
	while (r == 0 &&
	       (r = wire_connect(s->host, s->port, s->event_fd, deadline, &fd, err)) == -EINTR) {
		eng_sleep(s, 0); /* takes the wake-up: a request for later, unless it is this one */
		r = eng_check_cancel(s, err);
	}
	if (r < 0)
		return r;
	eng_note_addresses(s, fd);
	const struct wire_channel_params params = eng_channel_params(s);
	r = wire_channel_open(&fd, &params, &s->channel, err);
	/* It has a deadline of its own. */
	while (r == 0 && (r = wire_channel_is_secure(s->channel, err)) == 0) {
		eng_sleep(s, BASE_NEVER);
		r = eng_check_cancel(s, err);
	}
	return r < 0 ? r : 0;
}

static int say_hello(struct mf_session *s, struct mf_error *err)
{
	Mf__Wire__Hello body = MF__WIRE__HELLO__INIT;
	wire_msg msg = WIRE_INIT, *answer;
	msg.body_case = WIRE_BODY(HELLO);
	msg.hello = &body;
	body.version_min = body.version_max = ENG_PROTOCOL_VERSION;
	body.software = (char *)"memferry " MF_VERSION;
	body.session = s->report.session;
	int r = eng_send(s, &msg, err);
	if (r == 0)
		r = eng_expect(s, WIRE_BODY(WELCOME), eng_timeout(s), &answer, err);
	if (r < 0)
		return r;
	uint32_t version = answer->welcome->version;
	wire_msg_free(answer);
	if (version != ENG_PROTOCOL_VERSION)
		return base_error(err, -MF_EVERSION, MF_SCOPE_SESSION,
				  "the other host chose protocol version %u, this one speaks %u; "
				  "install the same memferry on both",
				  version, ENG_PROTOCOL_VERSION);
	return 0;
}

int eng_source_describe(struct mf_session *s, struct mf_error *err)
{
	Mf__Wire__Region region[MF_REGIONS_MAX], *regions[MF_REGIONS_MAX];
	Mf__Wire__Guest guest = MF__WIRE__GUEST__INIT;
	Mf__Wire__Describe body = MF__WIRE__DESCRIBE__INIT;
	wire_msg msg = WIRE_INIT;

	for (uint32_t i = 0; i < s->guest.n_regions; i++) {
		mf__wire__region__init(&region[i]);
		region[i].name = s->guest.regions[i].name;
		region[i].size = s->guest.regions[i].size;
		region[i].page_size = s->guest.regions[i].page_size;
		region[i].gpa = s->guest.regions[i].gpa;
		regions[i] = &region[i];
	}
	guest.kind = s->guest.kind;
	guest.name = s->guest.name;
	guest.monitor = s->guest.monitor;
	guest.machine = s->guest.machine;
	guest.cpu = s->guest.cpu;
	guest.n_regions = s->guest.n_regions;
	guest.regions = regions;
	base_autofree uint8_t *needs = malloc(MF_NEEDS_MAX);
	if (!needs)
		return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "out of memory");
	ssize_t n_needs = eng_guest_list_needs(s, needs, MF_NEEDS_MAX, err);
	if (n_needs < 0)
		return (int)n_needs;
	guest.needs.data = needs;
	guest.needs.len = (size_t)n_needs;
	body.guest = &guest;
	body.mode = s->params.mode;
	body.verify = s->params.verify == MF_VERIFY_FULL;
	body.check_only = s->params.check_only;
	body.sealing = s->report.sealing;
	int r = eng_rails_offer_paths(s, &body, err);
	msg.body_case = WIRE_BODY(DESCRIBE);
	msg.describe = &body;
	if (r == 0)
		r = eng_send(s, &msg, err);
	eng_rails_free_paths(&body);
	return r;
}

int eng_source_take_verdicts(struct mf_session *s, struct mf_error *err)
{
	wire_msg *msg;
	int r = eng_expect(s, WIRE_BODY(VERDICTS), eng_timeout(s), &msg, err);
	if (r < 0)
		return r;
	const Mf__Wire__Verdicts *v = msg->verdicts;
	for (size_t i = 0; i < v->n_findings; i++)
		eng_finding(s, (enum mf_verdict)v->findings[i]->verdict, v->findings[i]->subject,
			    "%s", v->findings[i]->detail);
	r = eng_preflight_verdict(s, err);
	if (r == 0 && v->refused)
		r = base_error(err, -MF_EREFUSED, MF_SCOPE_SESSION, "the destination refused");
	if (r == 0)
		r = eng_sealing_confirm(s, v->sealing, err);
	if (r == 0)
		r = eng_rails_take(s, v, err);
	if (r == 0) {
		(void)snprintf(s->report.transport_reason, sizeof(s->report.transport_reason), "%s",
			       strcmp(s->transport, "auto") ? "asked for with --transport"
							    : v->transport_reason);
		eng_emit(s, MF_EVENT_TRANSPORT, "%s: %s", s->report.transport,
			 s->report.transport_reason);
	}
	wire_msg_free(msg);
	return r;
}

static int source_check(struct mf_session *s, struct mf_error *err)
{
	eng_set_state(s, ENG_CONNECT);
	int r = eng_guest_describe(s, err);
	if (r == 0)
		r = open_channel(s, err);
	if (r < 0)
		return r;
	eng_emit(s, MF_EVENT_CONNECTED, "%s", s->peer_name);
	eng_set_state(s, ENG_CHECK);
	r = say_hello(s, err);
	if (r < 0)
		return r;
	eng_preflight_local(s);
	r = eng_source_describe(s, err);
	return r < 0 ? r : eng_source_take_verdicts(s, err);
}

/* Rounds need it.  Without rounds it tells holes from what pinning will make of them, where the kernel can. */
static int start_tracking(struct mf_session *s, struct mf_error *err)
{
	bool rounds = s->params.mode != MF_MODE_POSTCOPY && s->params.mode != MF_MODE_COLD;
	bool pins = false;
	for (uint32_t k = 0; k < s->n_rails; k++)
		pins = pins || s->rail[k].tp->caps & TP_CAP_PINS;
	if (rounds)
		return eng_tracker_start(s, 0, err);
	/* What is written through pinned pages cannot be collected without holding the guest, and a tracker that clears
	 * late knows no holes. */
	if (pins && !(s->guest.flags & MF_GUEST_PINS_RAM))
		(void)eng_tracker_start(s, TRK_CAP_CLEARS_LATE, NULL);
	return 0;
}

int eng_source_send_prepare(struct mf_session *s, struct mf_error *err)
{
	Mf__Wire__Prepare body = MF__WIRE__PREPARE__INIT;
	wire_msg msg = WIRE_INIT;
	if (getrandom(s->token, sizeof(s->token), 0) != sizeof(s->token))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "getrandom");
	msg.body_case = WIRE_BODY(PREPARE);
	msg.prepare = &body;
	body.transport = (char *)s->report.transport;
	body.bulk_lanes = s->params.lanes;
	body.token.data = s->token;
	body.token.len = sizeof(s->token);
	return eng_send(s, &msg, err);
}

int eng_source_join(struct mf_session *s, struct mf_error *err)
{
	wire_msg *answer;
	int r = eng_rails_open(s, s->params.lanes, err);
	/* Emptying a large guest's RAM there takes its time. */
	if (r == 0)
		r = eng_expect(s, WIRE_BODY(PREPARED), base_deadline_ms(120000), &answer, err);
	if (r < 0)
		return r;
	r = eng_rails_join(s, answer->prepared, err);
	wire_msg_free(answer);
	return r;
}

static int source_prepare(struct mf_session *s, struct mf_error *err)
{
	eng_set_state(s, ENG_PREPARE);
	s->prepared = true;
	int r = eng_guest_prepare(s, err);
	if (r == 0)
		r = eng_memory_map(s, err);
	if (r == 0)
		r = eng_source_send_prepare(s, err);
	/* While the destination does the same. */
	if (r == 0)
		r = start_tracking(s, err);
	return r < 0 ? r : eng_source_join(s, err);
}

/* ---- hand-off and what follows ---- */

static int source_handoff(struct mf_session *s, bool postcopy, struct mf_error *err)
{
	int r = eng_check_cancel(s, err);
	if (r == 0)
		r = eng_record_write(s, ENG_RECORD_COMMITTED, postcopy, err);
	if (r < 0)
		return r;
	eng_set_state(s, ENG_COMMITTED);
	wire_msg *msg;
	r = eng_send_plain(s, WIRE_BODY(COMMIT), NULL);
	if (r == 0)
		r = eng_expect(s, WIRE_BODY(RUNNING),
			       base_deadline_ms(s->params.peer_timeout_ms + 10000), &msg, NULL);
	if (r == 0) {
		wire_msg_free(msg);
		eng_guest_commit(s);
		eng_set_state(s, postcopy ? ENG_POSTCOPY : ENG_FINISHING);
	} else {
		/* The answer was lost. */
		r = eng_source_recover(s, err);
	}
	s->report.downtime_ms = (base_now_us() - s->stopped_us + 999) / 1000;
	return r < 0 ? r : 0;
}

static void take_done(struct mf_session *s, const Mf__Wire__Done *done)
{
	struct mf_report *rep = &s->report;
	if (s->params.verify == MF_VERIFY_FULL) {
		rep->has_verify = true;
		rep->verify_pages = done->verify_pages;
		rep->verify_mismatches = done->verify_mismatches;
	}
	if (!done->has_postcopy)
		return;
	rep->has_postcopy = true;
	rep->postcopy.ms = done->postcopy_ms;
	rep->postcopy.faults = done->faults;
	rep->postcopy.pulled_pages = done->pulled_pages;
	rep->bytes_read = done->bytes_read;
	if (done->n_latency_us == 5) {
		rep->postcopy.latency_us.p50 = done->latency_us[0];
		rep->postcopy.latency_us.p90 = done->latency_us[1];
		rep->postcopy.latency_us.p99 = done->latency_us[2];
		rep->postcopy.latency_us.p99_9 = done->latency_us[3];
		rep->postcopy.latency_us.max = done->latency_us[4];
	}
	for (size_t i = 0; i < done->n_latency_log2_us && i < MF_LATENCY_BUCKETS; i++)
		rep->postcopy.latency_log2_us[i] = done->latency_log2_us[i];
}

static void show_pull(struct mf_session *s, const Mf__Wire__PullInfo *pull, uint64_t *total)
{
	uint64_t missing = pull->missing_pages * ENG_PAGE;
	if (!*total)
		*total = missing;
	atomic_store_explicit(&s->faults, pull->faults, memory_order_relaxed);
	atomic_store_explicit(&s->bytes_scanned, *total > missing ? *total - missing : 0,
			      memory_order_relaxed);
	pthread_mutex_lock(&s->progress_lock);
	s->progress.round_bytes = *total;
	pthread_mutex_unlock(&s->progress_lock);
}

/* Waits for the destination's Done.  In post-copy the source is passive memory meanwhile: its lanes' threads
 * serve. */
static int await_done(struct mf_session *s, struct mf_error *err)
{
	uint64_t total = 0;
	for (;;) {
		wire_msg *msg;
		/* Silence is the channel's to notice; a destination that talks may take as long as it needs. */
		int r = eng_receive(s, base_deadline_ms(100), &msg, err);
		if (r == 0 && eng_requested(s, MF_REQUEST_RECOVER))
			r = base_error(err, -ECONNRESET, MF_SCOPE_SESSION, "asked to connect anew");
		if (r < 0)
			return r;
		if (r == 0) {
			r = s->state == ENG_POSTCOPY ? eng_rails_retry(s, err) : 0;
			if (r < 0)
				return r;
			continue;
		}
		bool done = msg->body_case == WIRE_BODY(DONE);
		if (done) {
			atomic_store_explicit(&s->lanes_done, true, memory_order_relaxed);
			take_done(s, msg->done);
		} else if (msg->body_case == WIRE_BODY(PULL))
			show_pull(s, msg->pull, &total);
		wire_msg_free(msg);
		if (done)
			return 0;
	}
}

static int source_finish(struct mf_session *s, struct mf_error *err)
{
	struct mf_error why = { 0 };
	int r = 0;
	eng_tracker_stop(s);
	while (s->state == ENG_POSTCOPY && (r = await_done(s, &why)) < 0) {
		base_debug("%s: %s", s->report.session, why.msg);
		r = eng_source_recover(s, err);
		if (r < 0)
			return r;
	}
	/* Without post-copy the destination was whole when it said RUNNING: Done only reports.  One that was asked has
	 * answered that it is. */
	if (s->state == ENG_FINISHING && !s->recover.deadline_us)
		r = await_done(s, NULL);
	eng_guest_finish(s);
	eng_record_remove(s);
	/* Last: the destination may forget the move now. */
	if (r == 0 && s->channel)
		(void)eng_send_plain(s, WIRE_BODY(BYE), NULL);
	eng_set_state(s, ENG_COMPLETED);
	return 0;
}

/* The first law. */
static int source_fail(struct mf_session *s, int code, struct mf_error *err)
{
	struct mf_error why = { 0 };
	if (err && err->code)
		why = *err;
	else
		base_error_sys(&why, code, MF_SCOPE_SESSION, "%s", eng_state_name(s->state));
	bool tell = s->state != ENG_RECOVER;
	if (s->throttle)
		(void)eng_guest_throttle(s, 0, NULL);
	struct mf_error back = { 0 };
	bool is_back = !s->prepared || eng_guest_abort(s, &back) == 0;
	if (!is_back && s->state == ENG_RECOVER) {
		/* It is ours, by an answer that can be had again: not to be forgotten on either side. */
		eng_hang_up(s);
		eng_set_state(s, ENG_IN_DOUBT);
		if (err)
			*err = (struct mf_error){ 0 };
		return base_error(
			err, -MF_EINDOUBT, MF_SCOPE_SESSION,
			"the guest is this host's again and could not be resumed (%.120s); "
			"memferry send ... --resume %s tries again",
			back.msg, s->report.session);
	}
	if (!is_back)
		eng_emit(s, MF_EVENT_NOTICE, "the source guest could not be resumed: %s", back.msg);
	/* The guest first: the rest takes its time, and without a commit nothing runs there. */
	eng_tracker_stop(s);
	if (tell)
		eng_send_abort(s, &why);
	/* Whatever was lent to the destination. */
	if (s->lanes.lane)
		(void)eng_rails_cut(s, NULL);
	eng_record_remove(s);
	if (!tell && s->channel) /* the answer that we act on */
		(void)eng_send_plain(s, WIRE_BODY(BYE), NULL);
	eng_set_state(s, ENG_ABORTED);
	if (err)
		*err = why;
	return code;
}

/* The process before may have acted on an answer, and died before it was through: its guest has ended, or runs again.
 * An answer that fits is the end of the move; any other leaves all as it is. */
static int ask_what_became(struct mf_session *s, bool is_taken, bool runs, int code,
			   struct mf_error *err)
{
	struct eng_answer answer = { MF__WIRE__ANSWER__STATE__UNKNOWN, false };
	eng_set_state(s, ENG_RECOVER);
	if (is_taken && !runs)
		eng_guest_commit(s); /* whatever comes of it, closing the guest must not run it */
	(void)eng_ask_peer(s, base_deadline_ms(s->params.connect_timeout_ms), &answer);
	bool is_over = runs ? answer.state == MF__WIRE__ANSWER__STATE__ABORTED
			    : answer.state == MF__WIRE__ANSWER__STATE__COMPLETE;
	/* A guest that is there and was not taken must not be forgotten: nobody would know that it must not run. */
	bool is_left =
		!runs && !is_taken && !s->guest_has_ended && base_process_lives(&s->record.guest);
	if (!is_over || is_left) {
		eng_hang_up(s);
		eng_set_state(s, ENG_IN_DOUBT);
		if (!runs)
			return code;
		return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
				  "the guest runs here: somebody resumed it after the hand-off was "
				  "committed; it may run at the destination, too: look there");
	}
	if (is_taken && !runs)
		eng_guest_finish(s);
	eng_record_remove(s);
	(void)eng_send_plain(s, WIRE_BODY(BYE), NULL);
	if (err)
		*err = (struct mf_error){ 0 };
	if (runs) {
		eng_set_state(s, ENG_ABORTED);
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				  "the destination gave up before the commit reached it");
	}
	eng_set_state(s, ENG_FINISHING);
	eng_set_state(s, ENG_COMPLETED);
	return 0;
}

/* Another process has committed, and died. */
static int source_resume(struct mf_session *s, struct mf_error *err)
{
	bool runs = false;
	int r = s->guest_has_ended ? 0 : eng_guest_describe(s, err);
	if (r == 0 && !s->guest_has_ended)
		r = eng_guest_take_over(s, &runs, err);
	bool is_taken = r == 0;
	if (is_taken && !runs)
		r = eng_memory_map(s, err);
	s->stopped_us = base_now_us(); /* for all we know */
	if (r < 0 || runs)
		return ask_what_became(s, is_taken, runs, r, err);
	/* Without a guest it only asks, and does what is left to do. */
	s->prepared = !s->guest_has_ended;
	eng_memory_seed(s);
	r = eng_source_recover(s, err);
	if (r < 0)
		return eng_state_is_end(s->state) ? r : source_fail(s, r, err);
	return source_finish(s, err);
}

int eng_source_run(struct mf_session *s, struct mf_error *err)
{
	if (s->params.resume)
		return source_resume(s, err);
	bool postcopy = s->params.mode == MF_MODE_POSTCOPY;
	bool rounds = s->params.mode != MF_MODE_POSTCOPY && s->params.mode != MF_MODE_COLD;

	int r = source_check(s, err);
	if (r == 0 && s->params.check_only) {
		(void)eng_send_plain(s, WIRE_BODY(BYE), NULL);
		eng_set_state(s, ENG_CHECKED);
		return 0;
	}
	if (r == 0)
		r = source_prepare(s, err);
	if (r == 0 && rounds)
		r = eng_source_precopy(s, &postcopy, err);
	if (r == 0)
		r = eng_source_switchover(s, &postcopy, err);
	if (r == 0)
		r = source_handoff(s, postcopy, err);
	if (r < 0)
		return eng_state_is_end(s->state) ? r : source_fail(s, r, err);
	return source_finish(s, err);
}
