/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * After the commit, without a connection: it was lost, or a process died and another goes on (--resume).
 *
 *   source                              destination
 *   Query, goes_on ──────────────────▶                  a new connection; before it all lanes are ended
 *            ◀──────────────────────── Answer: OWNER, goes_on
 *   Describe ────────────────────────▶ pairs rails
 *            ◀──────────────────────── Verdicts
 *   Prepare ─────────────────────────▶ registers anew
 *            ◀──────────────────────── Prepared, and so on as in a new move
 *   Pieces … ────────────────────────▶ reads what is missing
 *
 * What is missing is the destination's to know (`present`); the source's memory is as it was when the guest stopped.  So it
 * does not matter which of the two was lost, how often, and whether the processes are the same ones.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "core/destination.h"
#include "core/source.h"

#define PAUSE_FIRST_US 100000u
#define PAUSE_MOST_US  1000000u
/* One question, from connecting to the answer. */
#define ASK_MS 3000u
/* What lasted as long was a connection. */
#define SOUND_US 5000000u

/* All that belonged to the lost connection.  No byte moves after it. */
static void drop_connection(struct mf_session *s)
{
	eng_hang_up(s);
	eng_rails_close(s);
	if (s->kept)
		wire_msg_free(s->kept);
	s->kept = NULL;
	s->chosen_because[0] = '\0';
	atomic_store_explicit(&s->lanes_done, false, memory_order_relaxed);
}

static bool take_request(struct mf_session *s, enum mf_request request)
{
	return atomic_fetch_and_explicit(&s->requests, ~(1u << request), memory_order_relaxed) >>
		       request &
	       1;
}

/* One that broke again at once goes on with the search before it. */
static void begin(struct mf_session *s)
{
	if (base_now_us() - s->recover.found_us > SOUND_US) {
		s->recover.deadline_us = base_deadline_ms(s->params.recover_timeout_ms);
		s->recover.pause_us = 0;
	}
	drop_connection(s);
	/* What came too late for its purpose is not for this one. */
	(void)take_request(s, MF_REQUEST_CANCEL);
	(void)take_request(s, MF_REQUEST_RECOVER);
	if (s->state != ENG_RECOVER) /* a process that takes over begins with it */
		eng_set_state(s, ENG_RECOVER);
}

static bool is_over(struct mf_session *s)
{
	return base_now_us() >= s->recover.deadline_us || take_request(s, MF_REQUEST_CANCEL);
}

static void connected_again(struct mf_session *s)
{
	s->report.recoveries++;
	s->recover.found_us = base_now_us();
	eng_set_state(s, ENG_POSTCOPY);
	eng_emit(s, MF_EVENT_NOTICE, "connected to %s again: the move goes on", s->peer_name);
}

/* ---- source ---- */

static int serve_again(struct mf_session *s, struct mf_error *err)
{
	int r = eng_source_describe(s, err);
	if (r == 0)
		r = eng_source_take_verdicts(s, err);
	if (r == 0)
		r = eng_source_send_prepare(s, err);
	return r < 0 ? r : eng_source_join(s, err);
}

/* The guest is the destination's, which does not go on with it here. */
static int end_owned(struct mf_session *s, struct mf_error *err)
{
	eng_set_state(s, ENG_PAUSED);
	(void)eng_send_plain(s, WIRE_BODY(BYE), NULL);
	if (s->guest_has_ended && s->record.postcopy)
		return base_error(
			err, -MF_EPAUSED, MF_SCOPE_SESSION,
			"the guest (pid %d) has ended here, and the destination lacks pages that "
			"only it had: neither host has the whole guest; end it there, then "
			"memferry forget %s on both",
			s->record.guest.pid, s->report.session);
	return base_error(err, -MF_EPAUSED, MF_SCOPE_SESSION,
			  "the guest belongs to the destination, which could not resume it; %s: "
			  "look there",
			  s->guest_has_ended ? "it has ended here"
					     : "this host keeps its memory and its paused monitor");
}

static int end_unfinished(struct mf_session *s, bool is_owner, struct mf_error *err)
{
	eng_guest_commit(s); /* in doubt, the source never resumes by itself */
	eng_set_state(s, is_owner ? ENG_PAUSED : ENG_IN_DOUBT);
	if (s->guest_has_ended)
		return base_error(
			err, -MF_EINDOUBT, MF_SCOPE_SESSION,
			"the guest (pid %d) has ended here, and whether it runs at the "
			"destination is not known: memferry send ... --resume %s asks again",
			s->record.guest.pid, s->report.session);
	if (is_owner)
		return base_error(
			err, -MF_EPAUSED, MF_SCOPE_SESSION,
			"the connection was lost in post-copy; the guest belongs to the "
			"destination and waits there for pages; this host keeps its memory and "
			"its paused monitor: memferry send ... --resume %s goes on",
			s->report.session);
	return base_error(
		err, -MF_EINDOUBT, MF_SCOPE_SESSION,
		"whether the guest runs at the destination is not known; it is kept paused "
		"here: memferry send ... --resume %s asks again; look there before "
		"resuming it by hand",
		s->report.session);
}

/* Sleeps until it is time for another attempt, or somebody wants something. */
static void pause_between(struct mf_session *s)
{
	uint64_t *pause_us = &s->recover.pause_us;
	uint64_t until = base_now_us() + *pause_us;
	until = until < s->recover.deadline_us ? until : s->recover.deadline_us;
	while (base_now_us() < until && !eng_requested(s, MF_REQUEST_CANCEL) &&
	       !take_request(s, MF_REQUEST_RECOVER))
		eng_sleep(s, until);
	*pause_us = !*pause_us                      ? PAUSE_FIRST_US
		    : *pause_us * 2 < PAUSE_MOST_US ? *pause_us * 2
						    : PAUSE_MOST_US;
}

int eng_source_recover(struct mf_session *s, struct mf_error *err)
{
	bool is_owner = s->state == ENG_POSTCOPY;
	begin(s);
	eng_emit(s, MF_EVENT_NOTICE, "%s: asking the destination, for up to %llu s",
		 is_owner ? "the connection was lost in post-copy"
			  : "what became of the commit is not known",
		 (unsigned long long)(s->params.recover_timeout_ms / 1000));
	while (!is_over(s)) {
		struct eng_answer answer = { MF__WIRE__ANSWER__STATE__UNKNOWN, false };
		pause_between(s);
		(void)eng_ask_peer(s, base_deadline_ms(ASK_MS), &answer);
		if (answer.state == MF__WIRE__ANSWER__STATE__COMPLETE) {
			eng_guest_commit(s);
			eng_set_state(s, ENG_FINISHING);
			return 0;
		}
		if (answer.state == MF__WIRE__ANSWER__STATE__ABORTED && !is_owner &&
		    s->guest_has_ended)
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "the destination gave up before the commit reached it, "
					  "and the guest (pid %d) has ended here meanwhile: it "
					  "runs nowhere",
					  s->record.guest.pid);
		if (answer.state == MF__WIRE__ANSWER__STATE__ABORTED && !is_owner)
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "the destination gave up before the commit reached it");
		if (answer.state == MF__WIRE__ANSWER__STATE__OWNER) {
			struct mf_error why = { 0 };
			is_owner = true;
			eng_guest_commit(s);
			if (!answer.goes_on)
				return end_owned(s, err);
			if (serve_again(s, &why) == 0) {
				connected_again(s);
				return 1;
			}
			base_debug("%s: not connected again: %s", s->report.session, why.msg);
		}
		drop_connection(s);
	}
	return end_unfinished(s, is_owner, err);
}

/* ---- destination ---- */

static int check_regions(const struct mf_session *s, const Mf__Wire__Guest *peer,
			 struct mf_error *err)
{
	bool same = peer && peer->n_regions == s->memory.n;
	for (uint32_t i = 0; same && i < s->memory.n; i++) {
		const struct mf_region *r = &s->memory.region[i].desc;
		same = r->size == peer->regions[i]->size &&
		       r->page_size == peer->regions[i]->page_size &&
		       r->gpa == peer->regions[i]->gpa;
	}
	return same ? 0
		    : base_error(err, -MF_EREFUSED, MF_SCOPE_SESSION,
				 "the source came back with a guest of other regions");
}

static int read_again(struct mf_session *s, struct mf_error *err)
{
	wire_msg *msg;
	uint32_t bulk;
	int r = eng_expect(s, WIRE_BODY(DESCRIBE), eng_timeout(s), &msg, err);
	if (r < 0)
		return r;
	r = check_regions(s, msg->describe->guest, err);
	if (r == 0)
		r = eng_sealing_follow(s, msg->describe->sealing, err);
	if (r == 0)
		r = eng_rails_pair(s, msg->describe, err);
	wire_msg_free(msg);
	if (r < 0) {
		eng_send_abort(s, err);
		return r;
	}
	r = eng_destination_send_verdicts(s, false, err);
	if (r == 0)
		r = eng_destination_take_prepare(s, &bulk, err);
	if (r == 0)
		r = eng_rails_open(s, bulk, err);
	return r < 0 ? r : eng_rails_admit(s, err);
}

static bool guest_is_gone(const struct mf_session *s)
{
	return !base_process_lives(&(struct base_process){ .pid = s->guest.pid });
}

int eng_destination_recover(struct mf_session *s, struct mf_error *err)
{
	const struct eng_answer answer = { MF__WIRE__ANSWER__STATE__OWNER, true };
	struct wire_acceptor *acceptor = NULL;
	bool is_lost = false;
	begin(s);
	eng_emit(s, MF_EVENT_NOTICE,
		 "no connection to the source: the guest waits for pages; listening for the "
		 "source, for up to %llu s",
		 (unsigned long long)(s->params.recover_timeout_ms / 1000));
	const char *full = eng_memory_without_room(s);
	if (full)
		eng_emit(s, MF_EVENT_NOTICE,
			 "region %s has no room for what is missing, its file system is full: make "
			 "some, and the move goes on",
			 full);
	while (!guest_is_gone(s) && !is_lost && !is_over(s)) {
		struct mf_error why = { 0 };
		uint64_t slice = base_deadline_ms(1000);
		int r = acceptor ? 0 : eng_open_answering(s, &acceptor);
		if (r == 0) {
			r = eng_answer_next(s, acceptor, slice, &answer);
			is_lost = r == 0; /* heard by a source that cannot go on */
		}
		if (r == 1 && read_again(s, &why) == 0) {
			wire_acceptor_close(acceptor);
			connected_again(s);
			return 0;
		}
		if (r == 1) {
			base_debug("%s: not connected again: %s", s->report.session, why.msg);
			drop_connection(s);
		}
		if (r < 0 && r != -EINTR && r != -ETIMEDOUT && r != -EAGAIN)
			eng_sleep(s, slice); /* too many open files, say */
	}
	wire_acceptor_close(acceptor);
	eng_set_state(s, ENG_PAUSED);
	if (is_lost)
		return base_error(
			err, -MF_EPAUSED, MF_SCOPE_SESSION,
			"the guest has ended at the source with pages that are missing here: "
			"neither host has the whole guest; end it (pid %d), then memferry forget "
			"%s on both",
			(int)s->guest.pid, s->report.session);
	if (guest_is_gone(s))
		return base_error(err, -MF_EPAUSED, MF_SCOPE_SESSION,
				  "the guest's process (pid %d) has ended in post-copy: neither "
				  "host has all of its memory",
				  (int)s->guest.pid);
	full = eng_memory_without_room(s);
	if (full)
		return base_error(
			err, -MF_EPAUSED, MF_SCOPE_SESSION,
			"region %s has no room for pages that are missing, its file system "
			"is full: make some, then memferry receive ... --resume %s goes on",
			full, s->report.session);
	return base_error(err, -MF_EPAUSED, MF_SCOPE_SESSION,
			  "the source was lost in post-copy; the guest waits for pages that only "
			  "the source has: keep both monitors as they are; memferry receive ... "
			  "--resume %s goes on",
			  s->report.session);
}
