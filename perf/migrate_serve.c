/* SPDX-License-Identifier: BSD-2-Clause */
/* The server's side of a move: the destination. */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <memferry/guests.h>

#include "base/clock.h"
#include "cli/report.h"
#include "cli/run_dir.h"
#include "perf/doc.h"
#include "perf/migrate.h"

#define LISTEN_MS 30000u
#define LOOK_MS   1000u
#define END_MS    60000u /* after the source has ended */
#define MOVE_MS   (UINT64_C(24) * 3600 * 1000)

struct destination {
	struct cli_run_dir run_dir;
	struct mf_adapter guest;
	struct mf_session *session;
	pthread_mutex_t lock;         /* of address */
	char address[MF_ADDRESS_MAX]; /* "": not known yet */
};

static void on_event(void *ctx, const struct mf_event *event)
{
	struct destination *d = ctx;

	if (event->type != MF_EVENT_LISTENING)
		return;
	(void)pthread_mutex_lock(&d->lock);
	(void)snprintf(d->address, sizeof(d->address), "%s", event->text);
	(void)pthread_mutex_unlock(&d->lock);
}

static int open_session(struct perf_peer *peer, const struct perf_cell *cell, struct destination *d,
			struct mf_error *err)
{
	const char *host = perf_peer_local(peer);
	char spec[256], address[MF_ADDRESS_MAX];

	int ret = cli_run_dir_open(NULL, true, &d->run_dir, err);
	if (!ret)
		ret = mf_guest_open(perf_cell_guest(cell, spec, sizeof(spec)), MF_DESTINATION,
				    &d->guest, err);
	if (ret)
		return ret;
	(void)snprintf(address, sizeof(address), strchr(host, ':') ? "[%s]:0" : "%s:0", host);
	const struct mf_session_params params = {
		.size = sizeof(params),
		.side = MF_DESTINATION,
		.address = address,
		.guest = d->guest,
		.run_dir = d->run_dir.path,
		.transport = cell->transport,
		.lanes = cell->lanes,
		.insecure = true,
		.on_event = on_event,
		.ctx = d,
	};
	ret = mf_session_create(&params, &d->session, err);
	return ret ? ret : mf_session_start(d->session, MF_DRIVE_THREAD, err);
}

/* It says so, or it has failed. */
static int await_address(struct destination *d, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(LISTEN_MS);

	for (;;) {
		(void)pthread_mutex_lock(&d->lock);
		bool known = d->address[0];
		(void)pthread_mutex_unlock(&d->lock);
		if (known)
			return 0;
		int ret = mf_session_wait(d->session, 5, err);
		if (ret < 0)
			return ret;
		if (base_now_us() > deadline)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
					  "the session did not come to listen");
	}
}

static int answer_address(struct perf_peer *peer, const struct destination *d, struct mf_error *err)
{
	json_t *o = json_object();

	perf_put(o, "address", json_string(d->address));
	return perf_peer_send(peer, o, err);
}

static int answer_report(struct perf_peer *peer, const struct destination *d,
			 const struct perf_cpu *spent, struct mf_error *err)
{
	json_t *o = json_object();

	perf_put(o, "report", cli_json_report(mf_session_report(d->session)));
	perf_put(o, "cpu", perf_cpu_json(spent));
	return perf_peer_send(peer, o, err);
}

/* What the client says at the end.  One that has gone without a word, its whole host, is known by the session, which ends
 * without the source. */
static int await_end(struct perf_peer *peer, const struct destination *d, json_t **ret,
		     struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(MOVE_MS);
	bool ended = false;

	for (;;) {
		struct mf_error why = { 0 };
		int code = perf_peer_recv(peer, base_deadline_ms(LOOK_MS), ret, &why);
		if (code != -ETIMEDOUT || base_now_us() >= deadline)
			return code ? base_error(err, code, why.scope, "%s", why.msg) : 0;
		if (!ended && mf_session_wait(d->session, 0, NULL) != 1) {
			ended = true;
			deadline = base_deadline_ms(END_MS);
		}
	}
}

static int converse(struct perf_peer *peer, struct destination *d, struct mf_error *err)
{
	struct perf_cpu start, spent;
	json_t *request = NULL;

	perf_cpu_now(&start);
	int ret = answer_address(peer, d, err);
	if (!ret)
		ret = await_end(peer, d, &request, err);
	if (ret)
		return ret;
	/* A source that has failed before it came has nobody to say so here but the client. */
	if (json_is_true(json_object_get(request, "failed")))
		mf_session_request(d->session, MF_REQUEST_CANCEL);
	json_decref(request);
	if (mf_session_wait(d->session, END_MS, NULL) == 1) {
		mf_session_request(d->session, MF_REQUEST_CANCEL);
		return base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
				  "the destination did not end with the source");
	}
	perf_cpu_since(&start, &spent);
	return answer_report(peer, d, &spent, err);
}

int perf_migrate_serve(struct perf_peer *peer, const json_t *request, uint64_t max_bytes,
		       struct mf_error *err)
{
	struct destination d = { .run_dir.fd = -1, .lock = PTHREAD_MUTEX_INITIALIZER };
	struct perf_cell cell;

	int ret = perf_cell_parse(request, max_bytes, &cell, err);
	if (ret)
		return ret;
	ret = open_session(peer, &cell, &d, err);
	if (!ret)
		ret = await_address(&d, err);
	if (!ret)
		ret = converse(peer, &d, err);
	mf_session_destroy(d.session);
	mf_guest_close(&d.guest);
	cli_run_dir_close(&d.run_dir);
	return ret;
}
