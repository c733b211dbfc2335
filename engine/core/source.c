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
#include "base/parse.h"
#include "core/converge.h"
#include "core/engine.h"
#include "wire/socket.h"

/* What a switchover costs without a page: pause, state, hand-off.  Replaced by nothing better before it was
 * done once; QEMU's is 25 to 40 ms. */
#define SWITCHOVER_US 40000
/* Warm: rounds need not chase each other. */
#define WARM_PAUSE_MS 200
/* How much a guest that outruns the link is slowed: QEMU's own steps. */
#define THROTTLE_FIRST   20
#define THROTTLE_STEP    10
#define THROTTLE_MAX     99
#define STATE_PIECE      (256u << 10)
#define RUNS_PER_MESSAGE 65536u

static const struct mf_adapter_ops *ops(const struct mf_session *s)
{
	return s->params.guest.ops;
}

static void *hv(const struct mf_session *s)
{
	return s->params.guest.hv;
}

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
	wire_local_host(fd, s->local_host, sizeof(s->local_host));
	wire_peer_name(fd, s->peer_name, sizeof(s->peer_name));
	return wire_channel_open(&fd, s->params.peer_timeout_ms, s->event_fd, &s->channel, err);
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

static int describe_guest(struct mf_session *s, struct mf_error *err)
{
	Mf__Wire__Region region[MF_REGIONS_MAX], *regions[MF_REGIONS_MAX];
	Mf__Wire__Guest guest = MF__WIRE__GUEST__INIT;
	Mf__Wire__Describe body = MF__WIRE__DESCRIBE__INIT;
	wire_msg msg = WIRE_INIT;
	char *kinds[8];

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
	body.guest = &guest;
	body.mode = s->params.mode;
	body.verify = s->params.verify == MF_VERIFY_FULL;
	body.check_only = s->params.check_only;
	for (const struct tp_ops *const *t = tp_backends(); *t && body.n_transports < 8; t++) {
		if (!strcmp(s->transport, "auto") || !strcmp(s->transport, (*t)->kind))
			kinds[body.n_transports++] = (char *)(*t)->kind;
	}
	body.transports = kinds;
	msg.body_case = WIRE_BODY(DESCRIBE);
	msg.describe = &body;
	return eng_send(s, &msg, err);
}

static int take_verdicts(struct mf_session *s, struct mf_error *err)
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
	s->tp = eng_find_transport(s, v->transport);
	if (strcmp(s->transport, "auto") && strcmp(s->transport, v->transport))
		s->tp = NULL;
	if (r == 0 && !s->tp)
		r = base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
			       "the destination chose a transport that this host did not offer");
	if (r == 0) {
		s->report.transport = s->tp->kind;
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
	int r = ops(s)->describe(hv(s), &s->guest, err);
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
	r = describe_guest(s, err);
	return r < 0 ? r : take_verdicts(s, err);
}

static int source_prepare(struct mf_session *s, struct mf_error *err)
{
	Mf__Wire__Prepare body = MF__WIRE__PREPARE__INIT;
	wire_msg msg = WIRE_INIT, *answer;

	eng_set_state(s, ENG_PREPARE);
	if (getrandom(s->token, sizeof(s->token), 0) != sizeof(s->token))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "getrandom");
	s->prepared = true;
	int r = ops(s)->prepare(hv(s), MF_SOURCE, err);
	if (r == 0)
		r = eng_memory_map(s, err);
	if (r < 0)
		return r;

	msg.body_case = WIRE_BODY(PREPARE);
	msg.prepare = &body;
	body.transport = (char *)s->tp->kind;
	body.bulk_lanes = s->params.lanes;
	body.token.data = s->token;
	body.token.len = sizeof(s->token);
	r = eng_send(s, &msg, err);
	/* While the destination does the same. */
	if (r == 0)
		r = eng_lanes_init(s, s->params.lanes, err);
	if (r == 0)
		r = eng_memory_register(s, TP_LOCAL, err);
	/* Emptying a large guest's RAM there takes its time. */
	if (r == 0)
		r = eng_expect(s, WIRE_BODY(PREPARED), base_deadline_ms(120000), &answer, err);
	if (r < 0)
		return r;
	r = eng_memory_from_wire(s, answer->prepared->regions, answer->prepared->n_regions, err);
	if (r == 0)
		r = eng_lanes_connect(s, answer->prepared->address, err);
	wire_msg_free(answer);
	if (r == 0)
		r = eng_expect(s, WIRE_BODY(LANES_UP), eng_timeout(s), &answer, err);
	if (r == 0)
		wire_msg_free(answer);
	return r;
}

/* ---- rounds ---- */

static int start_tracker(struct mf_session *s, struct mf_error *err)
{
	struct trk_range ranges[MF_REGIONS_MAX];
	const struct trk_ops *t = eng_pick_tracker(err);
	if (!t)
		return -MF_EKERNEL;
	for (uint32_t i = 0; i < s->guest.n_regions; i++) {
		const struct mf_region *d = &s->guest.regions[i];
		ranges[i] = (struct trk_range){ d->hva, d->size, d->page_size };
	}
	int r = t->caps & TRK_CAP_NEEDS_UFFD
			? ops(s)->open_userfaultfd(hv(s), &s->tracker_uffd, err)
			: 0;
	if (r < 0)
		return r;
	struct trk_params params = { .pid = s->guest.pid,
				     .uffd = s->tracker_uffd,
				     .ranges = ranges,
				     .n_ranges = s->guest.n_regions };
	r = trk_open(t, &params, &s->tracker, err);
	return r < 0 ? r : trk_start(s->tracker, err);
}

static void stop_tracker(struct mf_session *s)
{
	bool had_uffd = s->tracker_uffd >= 0;
	trk_close(s->tracker);
	s->tracker = NULL;
	base_closep(&s->tracker_uffd);
	if (had_uffd)
		ops(s)->close_userfaultfds(hv(s));
}

static int collect(struct mf_session *s, struct mf_error *err)
{
	for (uint32_t i = 0; i < s->memory.n; i++) {
		struct eng_region *r = &s->memory.region[i];
		uint64_t pages = 0;
		int code = trk_collect(s->tracker, i, 0, r->pages, r->todo, &pages, err);
		if (code < 0)
			return code;
	}
	return 0;
}

/* Between rounds, the guest running: where writes may hide from the tracker, the guest stands still for as long as
 * it is asked.  A page that was pinned before this was reported by an earlier collect or is by this one,
 * and what was written through the pin has landed. */
static int collect_running(struct mf_session *s, struct mf_error *err)
{
	if (!(s->guest.flags & MF_GUEST_PINS_RAM))
		return collect(s, err);
	int r = ops(s)->hold(hv(s), err);
	if (r == 0)
		r = collect(s, err);
	int go = ops(s)->let_go(hv(s), err);
	return r < 0 ? r : go;
}

static void note_rates(struct mf_session *s, const struct mf_round *round, uint64_t round_us,
		       const struct converge *c, uint64_t downtime_us)
{
	pthread_mutex_lock(&s->progress_lock);
	s->progress.bytes_per_s = c->bytes_per_s;
	s->progress.predicted_downtime_ms = (downtime_us + 999) / 1000;
	s->progress.dirty_bytes_per_s =
		round_us ? round->dirty_pages * ENG_PAGE * 1000000 / round_us : 0;
	pthread_mutex_unlock(&s->progress_lock);
}

static int tell_round(struct mf_session *s, const struct mf_round *round, struct mf_error *err)
{
	Mf__Wire__RoundInfo body = MF__WIRE__ROUND_INFO__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(ROUND);
	msg.round = &body;
	body.n = round->n;
	body.ms = round->ms;
	body.pages = round->pages;
	body.zero_pages = round->zero_pages;
	body.bytes = round->bytes;
	body.dirty_pages = round->dirty_pages;
	return eng_send(s, &msg, err);
}

/* Bytes of a lost lane may wait in the destination's socket; landing later, they would undo a page that another lane
 * wrote again.  So the destination ends the lane before anything is written again. */
static int fence_lost_lanes(struct mf_session *s, struct mf_error *err)
{
	for (uint32_t i = 0; i < s->lanes.n_bulk; i++) {
		struct eng_lane *lane = &s->lanes.lane[i];
		if (lane->fenced || !atomic_load_explicit(&lane->failure, memory_order_acquire))
			continue;
		Mf__Wire__LaneLost body = MF__WIRE__LANE_LOST__INIT;
		wire_msg msg = WIRE_INIT, *answer;
		msg.body_case = WIRE_BODY(LANE_LOST);
		msg.lane_lost = &body;
		body.lane = i;
		int r = eng_send(s, &msg, err);
		if (r == 0)
			r = eng_expect(s, WIRE_BODY(LANE_GONE), eng_timeout(s), &answer, err);
		if (r < 0)
			return r;
		lane->fenced = answer->lane_gone->lane == i;
		wire_msg_free(answer);
		if (!lane->fenced)
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "the destination ended another lane than was lost");
		eng_emit(s, MF_EVENT_NOTICE, "lane %u was lost; going on over the others", i);
	}
	return 0;
}

/* The end of a round or a pass: 0 while there is a lane to go on with. */
static int wait_round(struct mf_session *s, struct eng_round *round, struct mf_error *err)
{
	int r = eng_wait_job(s, &round->job, err);
	if (r == 0 && !eng_lanes_alive(s, ENG_BULK))
		r = eng_lanes_failure(s, err);
	return r < 0 ? r : fence_lost_lanes(s, err);
}

/* Writes all that is to do; the guest may run.  *ret is complete but for dirty_pages. */
static int write_all(struct mf_session *s, uint32_t n, struct mf_round *ret, uint64_t *ret_us,
		     struct mf_error *err)
{
	struct eng_round round;
	uint64_t start = base_now_us();
	*ret = (struct mf_round){ .n = n };
	eng_round_start(s, &round, n, n == 1);
	int r = wait_round(s, &round, err);
	*ret_us = base_now_us() - start;
	ret->ms = *ret_us / 1000;
	ret->pages = atomic_load_explicit(&round.pages, memory_order_relaxed);
	ret->zero_pages = atomic_load_explicit(&round.zero_pages, memory_order_relaxed);
	ret->bytes = atomic_load_explicit(&round.bytes, memory_order_relaxed);
	s->report.bytes_written += ret->bytes;
	if (n > 1)
		s->report.pages_resent += ret->pages;
	return r;
}

static int end_round(struct mf_session *s, struct mf_round *round, struct mf_error *err)
{
	round->dirty_pages = eng_memory_todo_bytes(s) / ENG_PAGE;
	s->report.pages_zero += round->zero_pages;
	eng_emit_round(s, round);
	return tell_round(s, round, err);
}

/* Non-converging pre-copy: what there is to do about it, once each step. */
static void help_converge(struct mf_session *s, bool *told, uint64_t dirty_bytes)
{
	char size[24];
	if (!*told)
		eng_emit(s, MF_EVENT_NOTICE,
			 "pre-copy does not converge: %s are dirty after each round; `memferry "
			 "cutover` "
			 "accepts the downtime, `memferry postcopy` switches, `memferry cancel` "
			 "stops",
			 base_format_size(dirty_bytes, size, sizeof(size)));
	*told = true;
	if (!ops(s)->throttle || s->throttle >= THROTTLE_MAX)
		return;
	uint32_t next = s->throttle ? s->throttle + THROTTLE_STEP : THROTTLE_FIRST;
	next = next < THROTTLE_MAX ? next : THROTTLE_MAX;
	if (ops(s)->throttle(hv(s), next, NULL) == 0) {
		s->throttle = next;
		eng_emit(s, MF_EVENT_NOTICE, "the guest is slowed down by %u %%", next);
	}
}

/* Rounds until the decision: *ret_postcopy says how to switch. */
static int source_precopy(struct mf_session *s, bool *ret_postcopy, struct mf_error *err)
{
	struct converge converge = { 0 };
	bool told = false;

	eng_set_state(s, ENG_PRECOPY);
	/* D1: tracking first, then the list of what to send. */
	int r = start_tracker(s, err);
	if (r < 0)
		return r;
	uint64_t holes = s->memory.bytes / ENG_PAGE;
	eng_memory_seed(s);
	holes -= eng_memory_todo_bytes(s) / ENG_PAGE;
	s->report.pages_zero = holes;

	for (uint32_t n = 1;; n++) {
		struct mf_round round;
		uint64_t us, downtime_us;
		r = write_all(s, n, &round, &us, err);
		if (r == 0)
			r = collect_running(s, err);
		if (r == 0)
			r = end_round(s, &round, err);
		if (r < 0)
			return r;
		struct converge_input in = {
			.mode = s->params.mode,
			.round_us = us,
			.round_bytes = round.bytes,
			.dirty_bytes = round.dirty_pages * ENG_PAGE,
			.overhead_us = SWITCHOVER_US,
			.max_downtime_us = s->params.max_downtime_ms * 1000,
			.cutover = eng_requested(s, MF_REQUEST_CUTOVER),
			.postcopy = eng_requested(s, MF_REQUEST_POSTCOPY),
		};
		enum converge_verdict verdict = converge_decide(&converge, &in, &downtime_us);
		note_rates(s, &round, us, &converge, downtime_us);
		if (verdict == CONVERGE_STOP || verdict == CONVERGE_POSTCOPY) {
			*ret_postcopy = verdict == CONVERGE_POSTCOPY;
			if (*ret_postcopy && !in.postcopy)
				eng_emit(s, MF_EVENT_NOTICE,
					 "pre-copy does not converge: switching to post-copy");
			return 0;
		}
		if (verdict == CONVERGE_STALLED)
			help_converge(s, &told, in.dirty_bytes);
		if (s->params.mode == MF_MODE_WARM) {
			uint64_t until = base_deadline_ms(WARM_PAUSE_MS);
			while (base_now_us() < until && !eng_requested(s, MF_REQUEST_CUTOVER) &&
			       !eng_requested(s, MF_REQUEST_CANCEL))
				eng_sleep(s, until);
		}
	}
}

/* ---- switchover ---- */

static int keep_state(void *ctx, const void *bytes, size_t len)
{
	struct mf_session *s = ctx;
	if (s->device.len + len > s->device.cap) {
		size_t cap = (s->device.len + len) * 2;
		uint8_t *more = realloc(s->device.bytes, cap);
		if (!more)
			return -ENOMEM;
		s->device.bytes = more;
		s->device.cap = cap;
	}
	memcpy(s->device.bytes + s->device.len, bytes, len);
	s->device.len += len;
	return 0;
}

static int save_device(struct mf_session *s, struct mf_error *err)
{
	int r = ops(s)->save_state(hv(s), keep_state, s, err);
	s->device.complete = r == 0;
	return r;
}

/* What the destination does not have, with the guest paused and its state saved: saving may write RAM. */
static int find_rest(struct mf_session *s, struct mf_error *err)
{
	if (s->tracker)
		return collect(s, err);
	uint64_t all = s->memory.bytes / ENG_PAGE;
	eng_memory_seed(s);
	s->report.pages_zero = all - eng_memory_todo_bytes(s) / ENG_PAGE;
	return 0;
}

/* The guest is paused.  Where writes are tracked, pages go out while the device state is saved, and what saving wrote is
 * collected after it; else (cold) it is saved first. */
static int last_pass(struct mf_session *s, struct mf_error *err)
{
	struct mf_round round = { .n = s->report.n_rounds + 1 };
	uint64_t start = base_now_us();
	bool is_first = !s->report.n_rounds;
	int r = s->tracker ? 0 : save_device(s, err);
	if (r == 0)
		r = find_rest(s, err);
	while (r == 0 && (!s->device.complete || eng_memory_count_todo(s))) {
		struct eng_round pass;
		eng_round_start(s, &pass, round.n, is_first && !round.pages);
		int saved = s->device.complete ? 0 : save_device(s, err);
		r = wait_round(s, &pass, err);
		if (saved < 0)
			r = saved;
		round.pages += atomic_load_explicit(&pass.pages, memory_order_relaxed);
		round.zero_pages += atomic_load_explicit(&pass.zero_pages, memory_order_relaxed);
		round.bytes += atomic_load_explicit(&pass.bytes, memory_order_relaxed);
		if (r == 0 && s->tracker)
			r = collect(s, err);
	}
	if (r < 0)
		return r;
	round.ms = (base_now_us() - start) / 1000;
	s->report.bytes_written += round.bytes;
	if (!is_first)
		s->report.pages_resent += round.pages;
	return end_round(s, &round, err);
}

static int send_bitmap(struct mf_session *s, uint32_t region, struct mf_error *err)
{
	const struct eng_region *r = &s->memory.region[region];
	base_autofree uint64_t *runs = malloc(RUNS_PER_MESSAGE * 8);
	if (!runs)
		return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "out of memory");
	uint64_t at = 0;
	struct extent e;
	bool more = bitmap_next_extent(r->todo, 0, r->pages, r->pages, &e);
	while (more) {
		Mf__Wire__Bitmap body = MF__WIRE__BITMAP__INIT;
		wire_msg msg = WIRE_INIT;
		msg.body_case = WIRE_BODY(BITMAP);
		msg.bitmap = &body;
		body.region = region;
		body.first = at;
		body.runs = runs;
		while (more && body.n_runs < RUNS_PER_MESSAGE) {
			runs[body.n_runs++] = e.first - at;
			runs[body.n_runs++] = e.n;
			at = e.first + e.n;
			more = bitmap_next_extent(r->todo, at, r->pages, r->pages, &e);
		}
		int code = eng_send(s, &msg, err);
		if (code < 0)
			return code;
	}
	return 0;
}

static int send_state(struct mf_session *s, struct mf_error *err)
{
	for (size_t at = 0;;) {
		Mf__Wire__State body = MF__WIRE__STATE__INIT;
		wire_msg msg = WIRE_INIT;
		size_t left = s->device.len - at;
		msg.body_case = WIRE_BODY(STATE);
		msg.state = &body;
		body.data.data = s->device.bytes + at;
		body.data.len = left < STATE_PIECE ? left : STATE_PIECE;
		at += body.data.len;
		body.last = at == s->device.len;
		int r = eng_send(s, &msg, err);
		if (r < 0 || body.last)
			return r;
	}
}

static int send_switchover(struct mf_session *s, bool postcopy, struct mf_error *err)
{
	Mf__Wire__Switchover body = MF__WIRE__SWITCHOVER__INIT;
	wire_msg msg = WIRE_INIT;
	int r = 0;
	msg.body_case = WIRE_BODY(SWITCHOVER);
	msg.switchover = &body;
	body.postcopy = postcopy;
	if (postcopy) {
		body.missing_pages = eng_memory_count_todo(s);
		if (eng_memory_to_wire(s, &body.regions, &body.n_regions) < 0)
			return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "out of memory");
	}
	body.paused_us_ago = base_now_us() - s->stopped_us;
	r = eng_send(s, &msg, err);
	eng_memory_wire_free(body.regions, body.n_regions);
	for (uint32_t i = 0; postcopy && r == 0 && i < s->memory.n; i++)
		r = send_bitmap(s, i, err);
	if (r == 0 && s->params.verify == MF_VERIFY_FULL)
		r = eng_verify_send(s, err);
	return r < 0 ? r : send_state(s, err);
}

/* The source becomes memory to be read.  Without the urgent lane nobody could serve a fault. */
static int offer_rest(struct mf_session *s, struct mf_error *err)
{
	int r = save_device(s, err);
	if (r == 0)
		r = find_rest(s, err);
	if (r == 0 && !(eng_lanes_alive(s, ENG_URGENT) && eng_lanes_alive(s, ENG_BULK)))
		r = eng_lanes_failure(s, err);
	if (r < 0)
		return r;
	eng_memory_deregister(s);
	return eng_memory_register(s, TP_REMOTE_READ, err);
}

static int source_switchover(struct mf_session *s, bool postcopy, struct mf_error *err)
{
	eng_set_state(s, ENG_SWITCHOVER);
	int r = ops(s)->pause(hv(s), &s->stopped_us, err);
	if (r == 0)
		r = postcopy ? offer_rest(s, err) : last_pass(s, err);
	if (r < 0)
		return r;
	r = send_switchover(s, postcopy, err);
	if (r < 0)
		return r;
	wire_msg *msg;
	/* The destination loads, and with --verify reads all its RAM. */
	uint64_t limit =
		base_deadline_ms(s->params.peer_timeout_ms + 30000 + s->memory.bytes / 100000);
	r = eng_expect(s, WIRE_BODY(READY), limit, &msg, err);
	if (r < 0)
		return r;
	wire_msg_free(msg);
	eng_set_state(s, ENG_READY);
	return 0;
}

/* ---- hand-off and what follows ---- */

/* COMMIT is out and its answer did not come: ask until it is known. */
static int resolve_doubt(struct mf_session *s, struct mf_error *err)
{
	eng_emit(s, MF_EVENT_NOTICE, "the answer to the commit was lost: asking the destination");
	/* It answers when it knows that this channel is over. */
	eng_hang_up(s);
	switch (eng_query_peer(s, eng_doubt_deadline(s))) {
	case MF__WIRE__ANSWER__STATE__COMPLETE:
		return 0;
	case MF__WIRE__ANSWER__STATE__OWNER:
		ops(s)->commit(hv(s));
		eng_set_state(s, ENG_PAUSED);
		return base_error(
			err, -MF_EPAUSED, MF_SCOPE_SESSION,
			"the guest belongs to the destination, which could not finish the move; "
			"this host keeps its memory and its paused monitor: look there");
	case MF__WIRE__ANSWER__STATE__ABORTED:
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				  "the destination gave up before the commit reached it");
	default:
		ops(s)->commit(hv(s)); /* in doubt, the source never resumes by itself */
		eng_set_state(s, ENG_IN_DOUBT);
		return base_error(
			err, -MF_EINDOUBT, MF_SCOPE_SESSION,
			"whether the guest runs at the destination is not known; it is kept "
			"paused here: look there before resuming it by hand");
	}
}

static int source_handoff(struct mf_session *s, bool postcopy, bool *ret_lost, struct mf_error *err)
{
	int r = eng_check_cancel(s, err);
	if (r == 0)
		r = eng_record_write(s, "committed", err);
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
	} else {
		r = resolve_doubt(s, err);
		if (r < 0)
			return r;
		*ret_lost = true;
	}
	s->report.downtime_ms = (base_now_us() - s->stopped_us + 999) / 1000;
	ops(s)->commit(hv(s));
	eng_set_state(s, postcopy && !*ret_lost ? ENG_POSTCOPY : ENG_FINISHING);
	return 0;
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
		int r = eng_receive(s, base_deadline_ms(60000), &msg, err);
		if (r < 0)
			return r;
		if (r == 0)
			continue;
		bool done = msg->body_case == WIRE_BODY(DONE);
		if (done)
			take_done(s, msg->done);
		else if (msg->body_case == WIRE_BODY(PULL))
			show_pull(s, msg->pull, &total);
		wire_msg_free(msg);
		if (done)
			return 0;
	}
}

static int source_finish(struct mf_session *s, bool lost, struct mf_error *err)
{
	struct mf_error why = { 0 };
	stop_tracker(s);
	int r = lost ? -ECONNRESET : await_done(s, &why);
	if (r < 0 && s->state == ENG_POSTCOPY) {
		eng_set_state(s, ENG_PAUSED);
		return base_error(
			err, -MF_EPAUSED, MF_SCOPE_SESSION,
			"the connection was lost in post-copy; the guest belongs to the "
			"destination and waits there for pages; this host keeps its memory and "
			"its paused monitor");
	}
	/* Without post-copy the destination was whole when it said RUNNING: Done only reports. */
	ops(s)->finish(hv(s));
	if (r == 0)
		(void)eng_send_plain(s, WIRE_BODY(BYE), NULL);
	eng_record_remove(s);
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
	bool tell = s->state != ENG_COMMITTED;
	stop_tracker(s);
	if (s->throttle)
		(void)ops(s)->throttle(hv(s), 0, NULL);
	struct mf_error back = { 0 };
	if (s->prepared && ops(s)->abort(hv(s), &back) < 0)
		eng_emit(s, MF_EVENT_NOTICE, "the source guest could not be resumed: %s", back.msg);
	/* The guest first: telling may take the peer timeout, and without a commit nothing runs there. */
	if (tell)
		eng_send_abort(s, &why);
	eng_record_remove(s);
	eng_set_state(s, ENG_ABORTED);
	if (err)
		*err = why;
	return code;
}

int eng_source_run(struct mf_session *s, struct mf_error *err)
{
	bool postcopy = s->params.mode == MF_MODE_POSTCOPY, lost = false;
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
		r = source_precopy(s, &postcopy, err);
	if (r == 0)
		r = source_switchover(s, postcopy, err);
	if (r == 0)
		r = source_handoff(s, postcopy, &lost, err);
	if (r < 0)
		return eng_state_is_end(s->state) ? r : source_fail(s, r, err);
	return source_finish(s, lost, err);
}
