/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The destination's side of a move.  Before the commit any failure ends with its guest never having run; after
 * it the guest is this side's, whatever happens to the other.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "core/destination.h"
#include "wire/socket.h"

/* What the source asked for. */
struct plan {
	bool postcopy, verify, check_only;
	struct eng_pull *pull;
};

/* ---- connect ---- */

static int refuse_version(struct mf_session *s, const Mf__Wire__Hello *h, struct mf_error *err)
{
	(void)s;
	return base_error(
		err, -MF_EVERSION, MF_SCOPE_SESSION,
		"the source (%.60s) speaks protocol versions %u to %u, this host (memferry "
		"%s) speaks %u; install the same memferry on both",
		h->software, h->version_min, h->version_max, MF_VERSION, ENG_PROTOCOL_VERSION);
}

static int welcome(struct mf_session *s, struct mf_error *err)
{
	wire_msg *hello;
	int r = eng_expect(s, WIRE_BODY(HELLO), eng_timeout(s), &hello, err);
	if (r < 0)
		return r;
	const Mf__Wire__Hello *h = hello->hello;
	if (h->version_min > ENG_PROTOCOL_VERSION || h->version_max < ENG_PROTOCOL_VERSION)
		r = refuse_version(s, h, err);
	else if (!eng_is_session_name(h->session))
		r = base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
			       "the source's session has no valid name");
	if (r == 0) {
		eng_name_session(s, h->session);
		Mf__Wire__Welcome body = MF__WIRE__WELCOME__INIT;
		wire_msg msg = WIRE_INIT;
		msg.body_case = WIRE_BODY(WELCOME);
		msg.welcome = &body;
		body.version = ENG_PROTOCOL_VERSION;
		body.software = (char *)"memferry " MF_VERSION;
		r = eng_send(s, &msg, err);
	}
	wire_msg_free(hello);
	return r;
}

/* Libraries behind transports look the host over when first used, libfabric for 0.1 s: not while a move waits. */
static void warm_transports(void)
{
	const struct tp_domain_params params = { .depth = 1 };
	for (const struct tp_ops *const *t = tp_backends(); *t; t++) {
		struct tp_domain *domain;
		if (tp_domain_open(*t, &params, &domain, NULL) == 0)
			tp_domain_close(domain);
	}
}

int eng_destination_listen(struct mf_session *s, struct mf_error *err)
{
	char address[MF_ADDRESS_MAX];
	if (s->listen_fd >= 0)
		return 0;
	int r = wire_listen(s->host, s->port, &s->listen_fd, address, sizeof(address), err);
	if (r == 0)
		eng_emit(s, MF_EVENT_LISTENING, "%s", address);
	return r;
}

static int wait_for_source(struct mf_session *s, struct wire_acceptor *acceptor,
			   struct mf_error *err)
{
	int r;
	for (;;) {
		r = eng_check_cancel(s, err);
		if (r == 0)
			r = wire_acceptor_next(acceptor, BASE_NEVER, &s->channel, err);
		if (r != -EINTR)
			break;
		eng_sleep(s, base_now_us()); /* takes the wake-up */
	}
	if (r < 0)
		return r;
	eng_note_addresses(s, wire_channel_fd(s->channel));
	eng_emit(s, MF_EVENT_CONNECTED, "%s", s->peer_name);
	return 0;
}

/* ---- check ---- */

int eng_destination_send_verdicts(struct mf_session *s, bool with_findings, struct mf_error *err)
{
	const struct mf_report *rep = &s->report;
	Mf__Wire__Finding finding[BASE_ARRAY_LEN(rep->findings)];
	Mf__Wire__Finding *findings[BASE_ARRAY_LEN(rep->findings)];
	Mf__Wire__Rail rail[ENG_RAILS_MAX], *rails[ENG_RAILS_MAX];
	Mf__Wire__Guest guest = MF__WIRE__GUEST__INIT;
	Mf__Wire__Verdicts body = MF__WIRE__VERDICTS__INIT;
	wire_msg msg = WIRE_INIT;

	for (uint32_t i = 0; i < rep->n_findings; i++) {
		mf__wire__finding__init(&finding[i]);
		finding[i].verdict = rep->findings[i].verdict;
		finding[i].subject = (char *)rep->findings[i].subject;
		finding[i].detail = (char *)rep->findings[i].detail;
		findings[i] = &finding[i];
	}
	for (uint32_t k = 0; k < s->n_rails; k++) {
		mf__wire__rail__init(&rail[k]);
		rail[k].transport = (char *)s->rail[k].tp->kind;
		rail[k].source = s->rail[k].peer;
		rail[k].destination = s->rail[k].local;
		rail[k].source_device = s->rail[k].peer_device;
		rail[k].destination_device = s->rail[k].device;
		rails[k] = &rail[k];
	}
	body.n_rails = s->n_rails;
	body.rails = rails;
	guest.kind = s->guest.kind;
	guest.name = s->guest.name;
	guest.monitor = s->guest.monitor;
	guest.machine = s->guest.machine;
	guest.cpu = s->guest.cpu;
	body.guest = &guest;
	body.n_findings = with_findings ? rep->n_findings : 0;
	body.findings = findings;
	body.refused = with_findings && eng_preflight_verdict(s, NULL) < 0;
	body.transport = (char *)rep->transport;
	body.transport_reason = (char *)rep->transport_reason;
	body.sealing = rep->sealing;
	msg.body_case = WIRE_BODY(VERDICTS);
	msg.verdicts = &body;
	return eng_send(s, &msg, err);
}

static int destination_check(struct mf_session *s, struct plan *plan, struct mf_error *err)
{
	wire_msg *msg;
	eng_set_state(s, ENG_CHECK);
	int r = welcome(s, err);
	if (r == 0)
		r = eng_expect(s, WIRE_BODY(DESCRIBE), eng_timeout(s), &msg, err);
	if (r < 0)
		return r;
	const Mf__Wire__Describe *d = msg->describe;
	plan->verify = d->verify;
	plan->check_only = d->check_only;
	s->report.mode = d->mode < MF_MODE_COUNT ? (enum mf_mode)d->mode : MF_MODE_HYBRID;
	eng_preflight_local(s);
	eng_preflight_peer(s, d->guest);
	struct mf_error why = { 0 };
	if (eng_sealing_follow(s, d->sealing, &why) < 0)
		eng_finding(s, MF_REFUSE, "sealing", "%s", why.msg);
	else if (eng_rails_pair(s, d, &why) < 0)
		eng_finding(s, MF_REFUSE, "transport", "%s", why.msg);
	else
		eng_emit(s, MF_EVENT_TRANSPORT, "%s: %s", s->report.transport,
			 s->report.transport_reason);
	wire_msg_free(msg);
	r = eng_destination_send_verdicts(s, true, err);
	if (r == 0)
		r = eng_preflight_verdict(s, err);
	return r;
}

/* ---- prepare ---- */

int eng_destination_take_prepare(struct mf_session *s, uint32_t *ret_bulk, struct mf_error *err)
{
	wire_msg *msg;
	int r = eng_expect(s, WIRE_BODY(PREPARE), base_deadline_ms(60000), &msg, err);
	if (r < 0)
		return r;
	const Mf__Wire__Prepare *p = msg->prepare;
	memcpy(s->token, p->token.data, sizeof(s->token));
	*ret_bulk = p->bulk_lanes;
	bool agreed = !strcmp(p->transport, s->report.transport) && *ret_bulk <= ENG_LANES_MAX;
	wire_msg_free(msg);
	return agreed ? 0
		      : base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				   "the source asked for lanes that were not agreed on");
}

static int destination_prepare(struct mf_session *s, struct mf_error *err)
{
	uint32_t bulk;
	int r = eng_destination_take_prepare(s, &bulk, err);
	if (r < 0)
		return r;
	eng_set_state(s, ENG_PREPARE);
	s->prepared = true;
	r = eng_guest_prepare(s, err);
	if (r == 0)
		r = eng_memory_map(s, err);
	if (r == 0)
		r = eng_memory_empty(s, err);
	if (r == 0)
		r = eng_rails_open(s, bulk, err);
	return r < 0 ? r : eng_rails_admit(s, err);
}

/* ---- rounds, seen from here ---- */

static void show_round(struct mf_session *s, const Mf__Wire__RoundInfo *w)
{
	struct mf_round round = { .n = w->n,
				  .ms = w->ms,
				  .pages = w->pages,
				  .zero_pages = w->zero_pages,
				  .bytes = w->bytes,
				  .dirty_pages = w->dirty_pages };
	eng_update_progress(s, w->n, 0);
	eng_emit_round(s, &round);
}

static int drop_lane(struct mf_session *s, uint32_t rail, uint32_t lane, struct mf_error *err)
{
	Mf__Wire__LaneGone body = MF__WIRE__LANE_GONE__INIT;
	wire_msg msg = WIRE_INIT;
	int r = eng_lane_drop(s, rail, lane, err);
	if (r < 0)
		return r;
	msg.body_case = WIRE_BODY(LANE_GONE);
	msg.lane_gone = &body;
	body.rail = rail;
	body.lane = lane;
	return eng_send(s, &msg, err);
}

static int wait_for_switchover(struct mf_session *s, wire_msg **ret, struct mf_error *err)
{
	if (s->report.mode != MF_MODE_COLD && s->report.mode != MF_MODE_POSTCOPY)
		eng_set_state(s, ENG_PRECOPY);
	for (;;) {
		wire_msg *msg;
		/* As long as the source talks, rounds may go on; silence is the channel's to notice. */
		int r = eng_receive(s, base_deadline_ms(60000), &msg, err);
		if (r < 0)
			return r;
		if (r == 0)
			continue;
		if (msg->body_case == WIRE_BODY(SWITCHOVER)) {
			*ret = msg;
			return 0;
		}
		if (msg->body_case == WIRE_BODY(ROUND))
			show_round(s, msg->round);
		else if (msg->body_case == WIRE_BODY(LANE_LOST))
			r = drop_lane(s, msg->lane_lost->rail, msg->lane_lost->lane, err);
		else if (msg->body_case == WIRE_BODY(RAIL_RETRY))
			r = eng_rails_retried(s, msg->rail_retry->rail, err);
		else
			r = base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				       "the source said '%s' out of turn", wire_msg_name(msg));
		wire_msg_free(msg);
		if (r < 0)
			return r;
	}
}

/* ---- switchover ---- */

int eng_take_bitmap(struct mf_session *s, const Mf__Wire__Bitmap *b, uint64_t *left,
		    struct mf_error *err)
{
	struct eng_region *r = b->region < s->memory.n ? &s->memory.region[b->region] : NULL;
	uint64_t at = b->first;
	for (size_t i = 0; r && i < b->n_runs; i += 2) {
		uint64_t gap = b->runs[i], n = b->runs[i + 1];
		if (at > r->pages || gap > r->pages - at || n > r->pages - at - gap || n > *left) {
			r = NULL;
			break;
		}
		bitmap_set(r->todo, at + gap, n);
		at += gap + n;
		*left -= n;
	}
	return r ? 0
		 : base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
			      "the source named pages that do not exist");
}

static uint64_t all_pages(const struct mf_session *s)
{
	uint64_t pages = 0;
	for (uint32_t i = 0; i < s->memory.n; i++)
		pages += s->memory.region[i].pages;
	return pages;
}

/* What comes between Switchover and State. */
static int take_lists(struct mf_session *s, uint64_t missing, bool verify, struct mf_error *err)
{
	uint64_t hashes = verify ? all_pages(s) : 0;
	while (missing || hashes) {
		wire_msg *msg;
		int r = eng_receive(s, base_deadline_ms(60000), &msg, err);
		if (r == 0)
			r = base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
				       "the source stopped in the middle of the switchover");
		if (r < 0)
			return r;
		if (msg->body_case == WIRE_BODY(BITMAP) && missing)
			r = eng_take_bitmap(s, msg->bitmap, &missing, err);
		else if (msg->body_case == WIRE_BODY(HASHES) && hashes)
			r = eng_verify_receive(s, msg->hashes, &hashes, err);
		else
			r = base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				       "the source said '%s' out of turn", wire_msg_name(msg));
		wire_msg_free(msg);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Every page that is here already, before the device state may write any. */
static int verify_present(struct mf_session *s, struct mf_error *err)
{
	_Atomic uint64_t pages = 0, wrong = 0;
	for (uint32_t i = 0; i < s->memory.n; i++)
		eng_verify_present(s, &s->memory.region[i], &pages, &wrong);
	s->report.has_verify = true;
	s->report.verify_pages = pages;
	s->report.verify_mismatches = wrong;
	if (wrong)
		return base_error(err, -MF_EINTEGRITY, MF_SCOPE_SESSION,
				  "%llu pages differ from the source's; the guest stays there",
				  (unsigned long long)wrong);
	return 0;
}

/* All of it, before the adapter is given any: it is small, and whoever loads it waits for nothing then. */
static int take_state(struct mf_session *s, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(60000);
	int r = 0;
	while (r == 0 && !s->device.complete) {
		wire_msg *msg;
		r = eng_expect(s, WIRE_BODY(STATE), deadline, &msg, err);
		if (r < 0)
			return r;
		r = eng_keep_state(s, msg->state->data.data, msg->state->data.len, err);
		s->device.complete = msg->state->last;
		wire_msg_free(msg);
	}
	return r;
}

static ssize_t read_state(void *ctx, void *bytes, size_t cap)
{
	struct mf_session *s = ctx;
	size_t n = s->device.len - s->device.at < cap ? s->device.len - s->device.at : cap;
	memcpy(bytes, s->device.bytes + s->device.at, n);
	s->device.at += n;
	return (ssize_t)n;
}

static int destination_switchover(struct mf_session *s, struct plan *plan, wire_msg *msg,
				  struct mf_error *err)
{
	const Mf__Wire__Switchover *w = msg->switchover;
	uint64_t missing = w->missing_pages;
	eng_set_state(s, ENG_SWITCHOVER);
	s->stopped_us = base_now_us() - w->paused_us_ago;
	plan->postcopy = w->postcopy;

	s->pulling = plan->postcopy;
	/* From here no late write of the source can reach this memory. */
	int r = 0;
	if (plan->postcopy)
		eng_withdraw_for_reading(s);
	else
		r = eng_rails_cut(s, err);
	if (r == 0 && plan->postcopy && missing > all_pages(s))
		r = base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
			       "the source named more pages than there are");
	wire_msg_free(msg);
	if (r == 0)
		r = take_lists(s, plan->postcopy ? missing : 0, plan->verify, err);
	if (r == 0 && plan->verify)
		r = verify_present(s, err);
	if (r == 0 && plan->postcopy)
		r = eng_register_wait(s, err);
	if (r == 0 && plan->postcopy)
		r = eng_record_claim(s, err);
	if (r == 0 && plan->postcopy)
		r = eng_pull_start(s, &plan->pull, err);
	if (r == 0)
		r = take_state(s, err);
	if (r == 0)
		r = eng_guest_load_state(s, read_state, err);
	if (r == 0 && plan->pull && !eng_lanes_alive(s, ENG_URGENT))
		r = eng_lanes_failure(s, err);
	/* Loading took its time, and did not look. */
	if (r == 0)
		r = eng_check_cancel(s, err);
	/* From here on a commit may come: who goes on after a crash has to know. */
	if (r == 0)
		r = eng_record_write(s, ENG_RECORD_READY, plan->postcopy, err);
	if (r < 0)
		return r;
	eng_set_state(s, ENG_READY);
	return eng_send_plain(s, WIRE_BODY(READY), err);
}

/* ---- hand-off and what follows ---- */

/* It is ours, whether it can be resumed or not: the source must not run it. */
static int run_guest(struct mf_session *s, struct plan *plan, struct mf_error *err)
{
	struct mf_error why = { 0 };
	if (eng_guest_resume(s, &why) == 0) {
		/* Only for who goes on after a crash, and may as well resume it again. */
		(void)eng_record_write(s, ENG_RECORD_RUNNING, plan->postcopy, NULL);
		return 0;
	}
	if (plan->pull)
		eng_pull_leave(s, BASE_TAKE_PTR(plan->pull));
	eng_hang_up(s);
	(void)eng_answer_queries(s, MF__WIRE__ANSWER__STATE__OWNER);
	eng_set_state(s, ENG_PAUSED);
	return base_error(err, -MF_EPAUSED, MF_SCOPE_SESSION,
			  "the guest is here but could not be resumed (%.120s); resume it in its "
			  "monitor, or let memferry receive ... --resume %s try again",
			  why.msg, s->report.session);
}

static int destination_handoff(struct mf_session *s, struct plan *plan, struct mf_error *err)
{
	wire_msg *msg;
	int r = eng_expect(s, WIRE_BODY(COMMIT),
			   base_deadline_ms(s->params.peer_timeout_ms + 10000), &msg, err);
	if (r < 0)
		return r;
	wire_msg_free(msg);
	r = plan->pull ? eng_pull_commit(s, plan->pull, err) : 0;
	if (r == 0)
		r = eng_record_write(s, ENG_RECORD_OWNER, plan->postcopy, err);
	if (r < 0)
		return r;
	eng_set_state(s, ENG_COMMITTED);
	r = run_guest(s, plan, err);
	if (r < 0)
		return r;
	s->report.downtime_ms = (base_now_us() - s->stopped_us + 999) / 1000;
	eng_emit(s, MF_EVENT_RUNNING, "the guest runs here");
	eng_set_state(s, plan->pull ? ENG_POSTCOPY : ENG_FINISHING);
	/* A source that does not hear it asks, and is answered when nothing else is left to do here. */
	(void)eng_send_plain(s, WIRE_BODY(RUNNING), NULL);
	return 0;
}

/* False: the source may not know. */
static bool say_done(struct mf_session *s)
{
	const struct mf_report *rep = &s->report;
	Mf__Wire__Done body = MF__WIRE__DONE__INIT;
	wire_msg msg = WIRE_INIT, *bye;
	uint64_t latency[5] = { rep->postcopy.latency_us.p50, rep->postcopy.latency_us.p90,
				rep->postcopy.latency_us.p99, rep->postcopy.latency_us.p99_9,
				rep->postcopy.latency_us.max };
	msg.body_case = WIRE_BODY(DONE);
	msg.done = &body;
	body.verify_pages = rep->verify_pages;
	body.verify_mismatches = rep->verify_mismatches;
	body.has_postcopy = rep->has_postcopy;
	if (rep->has_postcopy) {
		body.postcopy_ms = rep->postcopy.ms;
		body.faults = rep->postcopy.faults;
		body.pulled_pages = rep->postcopy.pulled_pages;
		body.n_latency_us = BASE_ARRAY_LEN(latency);
		body.latency_us = latency;
		body.n_latency_log2_us = MF_LATENCY_BUCKETS;
		body.latency_log2_us = (uint64_t *)rep->postcopy.latency_log2_us;
		body.bytes_read = rep->bytes_read;
	}
	/* The guest is whole: whether the source hears it changes nothing here.  But it may be in doubt. */
	if (s->channel && eng_send(s, &msg, NULL) < 0)
		eng_hang_up(s); /* it would wait as long as we are there */
	if (s->channel && eng_expect(s, WIRE_BODY(BYE), base_deadline_ms(5000), &bye, NULL) == 0) {
		wire_msg_free(bye);
		return true;
	}
	return eng_answer_queries(s, MF__WIRE__ANSWER__STATE__COMPLETE);
}

static int destination_finish(struct mf_session *s, struct plan *plan, struct mf_error *err)
{
	int r = 0;
	if (plan->pull) {
		struct mf_error why = { 0 };
		while ((r = eng_pull_all(s, plan->pull, &why)) < 0) {
			base_debug("%s: %s", s->report.session, why.msg);
			r = eng_destination_recover(s, err);
			if (r < 0) {
				eng_pull_leave(s, plan->pull);
				return r;
			}
		}
	}
	/* For who asks later, should nobody hear it now; before what it takes to go on without it is gone. */
	bool recorded = eng_record_write(s, ENG_RECORD_COMPLETE, plan->postcopy, NULL) == 0;
	if (plan->pull) {
		eng_pull_finish(s, plan->pull);
		atomic_store_explicit(&s->lanes_done, true, memory_order_relaxed);
	}
	bool heard = say_done(s);
	if (recorded || heard)
		eng_present_remove(s);
	if (heard)
		eng_record_remove(s);
	eng_set_state(s, ENG_COMPLETED);
	struct mf_finding found = { 0 };
	if (eng_guest_self_check(s, &found) > 0)
		eng_finding(s, found.verdict, found.subject, "%s", found.detail);
	if (found.verdict == MF_REFUSE)
		return base_error(err, -MF_EINTEGRITY, MF_SCOPE_SESSION, "%s", found.detail);
	if (s->report.verify_mismatches)
		return base_error(err, -MF_EINTEGRITY, MF_SCOPE_SESSION,
				  "%llu pages differ from the source's",
				  (unsigned long long)s->report.verify_mismatches);
	return 0;
}

static int destination_fail(struct mf_session *s, struct plan *plan, int code, struct mf_error *err)
{
	struct mf_error why = { 0 };
	bool was_ready = s->state == ENG_READY;
	if (err && err->code)
		why = *err;
	else
		base_error_sys(&why, code, MF_SCOPE_SESSION, "%s", eng_state_name(s->state));
	const char *full = eng_memory_without_room(s);
	if (full)
		base_error_prefix(&why, "region %s has no room, its file system is full: ", full);
	if (was_ready)
		/* A COMMIT may be under way: what answers it must be on disk first. */
		(void)eng_record_write(s, ENG_RECORD_ABORTED, plan->postcopy, NULL);
	eng_send_abort(s, &why);
	if (plan->pull)
		eng_pull_abandon(s, plan->pull);
	if (s->prepared)
		(void)eng_guest_abort(s, NULL);
	eng_set_state(s, ENG_ABORTED);
	if (!was_ready || eng_answer_queries(s, MF__WIRE__ANSWER__STATE__ABORTED))
		eng_record_remove(s);
	if (err)
		*err = why;
	return code;
}

/* Nothing was agreed on yet, and what came was not a memferry that wants something. */
static bool is_stranger(const struct mf_session *s, int code)
{
	return s->state == ENG_CHECK && !s->report.session[0] &&
	       (code == -EBADMSG || code == -ECONNRESET || code == -ETIMEDOUT ||
		code == -MF_EPEER || code == -MF_ESECURITY);
}

static void forget_source(struct mf_session *s)
{
	struct mf_report *rep = &s->report;
	rep->n_findings = 0;
	s->peer_gave_up = false;
	rep->session[0] = rep->transport_reason[0] = '\0';
	rep->transport = "";
	rep->sealing = MF_SEALING_NONE;
	pthread_mutex_lock(&s->progress_lock);
	s->progress.session[0] = '\0';
	pthread_mutex_unlock(&s->progress_lock);
}

/* The guest is this side's: a process has recorded so, and died. */
static int take_over(struct mf_session *s, struct plan *plan, struct mf_error *err)
{
	bool runs = false;
	int r = eng_guest_describe(s, err);
	if (r == 0)
		r = eng_guest_take_over(s, &runs, err);
	if (r == 0)
		r = eng_memory_map(s, err);
	/* Before it runs: nobody else serves its touches. */
	if (r == 0 && plan->postcopy)
		r = eng_pull_take_over(s, &plan->pull, err);
	if (r == 0 && !runs && s->record.what == ENG_RECORD_OWNER)
		return run_guest(s, plan, err);
	if (r < 0)
		eng_set_state(s, ENG_PAUSED);
	return r;
}

/* It never was this side's, and never will be.  What was aborted before has no guest here any more. */
static int give_up_for_good(struct mf_session *s, struct mf_error *err)
{
	bool runs = false;
	bool is_here = s->record.what == ENG_RECORD_READY && !s->guest_has_ended;
	int r = is_here ? eng_guest_describe(s, err) : 0;
	if (is_here && r == 0)
		r = eng_guest_take_over(s, &runs, err);
	/* One that lives and was not looked at may run: the source is told nothing. */
	if (r < 0 && base_process_lives(&s->record.guest)) {
		eng_set_state(s, ENG_PAUSED);
		return r;
	}
	if (r < 0) {
		is_here = false;
		r = 0;
		if (err)
			*err = (struct mf_error){ 0 };
	}
	if (is_here && runs)
		r = base_error(
			err, -MF_EREFUSED, MF_SCOPE_HOST,
			"the guest runs here although session %s was not committed: somebody "
			"resumed it; look at both hosts",
			s->report.session);
	if (r == 0)
		r = eng_record_write(s, ENG_RECORD_ABORTED, s->record.postcopy, err);
	if (r < 0) {
		eng_set_state(s, ENG_PAUSED);
		return r;
	}
	if (is_here)
		(void)eng_guest_abort(s, NULL);
	eng_set_state(s, ENG_ABORTED);
	if (eng_answer_queries(s, MF__WIRE__ANSWER__STATE__ABORTED))
		eng_record_remove(s);
	return base_error(
		err, -MF_EPEER, MF_SCOPE_SESSION,
		"session %s was not committed here: the guest never ran, and stays at the "
		"source",
		s->report.session);
}

/* The guest came here whole and ran: nothing is left to do but to say so. */
static bool is_settled(const struct mf_session *s)
{
	/* One that died in between may have left the guest waiting in pages that are here. */
	bool waits = s->record.postcopy && eng_present_exists(s) && !s->guest_has_ended;
	if (s->record.what == ENG_RECORD_COMPLETE)
		return !waits;
	return s->record.what == ENG_RECORD_RUNNING && !s->record.postcopy;
}

static int destination_resume(struct mf_session *s, struct mf_error *err)
{
	struct plan plan = { .postcopy = s->record.postcopy };
	enum eng_record was = s->record.what;
	eng_set_state(s, ENG_RECOVER);
	int r = eng_destination_listen(s, err);
	if (r < 0) {
		eng_set_state(s, ENG_PAUSED);
		return r;
	}
	if (was == ENG_RECORD_READY || was == ENG_RECORD_ABORTED)
		return give_up_for_good(s, err);
	if (!is_settled(s) && s->guest_has_ended) {
		eng_set_state(s, ENG_PAUSED);
		return base_error(err, -MF_EPAUSED, MF_SCOPE_SESSION,
				  "the guest (pid %d) was this host's, and has ended here: nothing "
				  "can go on with it; memferry forget %s",
				  s->record.guest.pid, s->report.session);
	}
	if (!is_settled(s))
		r = take_over(s, &plan, err);
	if (r == 0 && plan.pull && !eng_pull_is_complete(plan.pull)) {
		warm_transports();
		r = eng_destination_recover(s, err);
	}
	if (r < 0) {
		if (plan.pull)
			eng_pull_leave(s, plan.pull);
		return r;
	}
	if (s->state == ENG_RECOVER)
		eng_set_state(s, ENG_FINISHING);
	return destination_finish(s, &plan, err);
}

int eng_destination_run(struct mf_session *s, struct mf_error *err)
{
	if (s->params.resume)
		return destination_resume(s, err);
	struct plan plan = { 0 };
	struct wire_acceptor *acceptor = NULL;
	wire_msg *msg;
	int r = eng_guest_describe(s, err);
	eng_set_state(s, ENG_CONNECT);
	warm_transports();
	if (r == 0)
		r = eng_destination_listen(s, err);
	if (r == 0)
		r = eng_open_acceptor(s, s->params.connect_timeout_ms, &acceptor, err);
	while (r == 0) {
		r = wait_for_source(s, acceptor, err);
		if (r == 0)
			r = destination_check(s, &plan, err);
		bool was_check = r == -MF_EREFUSED && plan.check_only;
		if (r < 0 ? !is_stranger(s, r) && !was_check : !plan.check_only)
			break;
		/* `memferry check`, or nobody who speaks our protocol, leaves; wait for who means it. */
		if (r == 0 && eng_expect(s, WIRE_BODY(BYE), eng_timeout(s), &msg, NULL) == 0)
			wire_msg_free(msg);
		if (r < 0 && !was_check)
			eng_refused(s, err->msg);
		eng_hang_up(s);
		forget_source(s);
		*err = (struct mf_error){ 0 };
		eng_set_state(s, ENG_CONNECT);
		r = 0;
	}
	/* Whoever else is there came too late. */
	wire_acceptor_close(acceptor);
	if (r == 0)
		r = destination_prepare(s, err);
	if (r == 0)
		r = wait_for_switchover(s, &msg, err);
	if (r == 0)
		r = destination_switchover(s, &plan, msg, err);
	if (r == 0)
		r = destination_handoff(s, &plan, err);
	if (r < 0)
		return s->state == ENG_PAUSED ? r : destination_fail(s, &plan, r, err);
	return destination_finish(s, &plan, err);
}
