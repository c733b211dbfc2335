/* SPDX-License-Identifier: BSD-2-Clause */
/* What a server does for a client, request by request. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "perf/bw.h"
#include "perf/doc.h"
#include "perf/local.h"
#include "perf/migrate.h"
#include "perf/path_priv.h"
#include "perf/verbs.h"

/* Between two requests: a client measures by itself meanwhile. */
#define IDLE_MS (UINT64_C(3600) * 1000)

struct perf_server {
	uint64_t max_bytes;
	struct perf_path path[PERF_SLOTS];
	struct perf_keepers *keepers; /* of one of the paths, between "keep" and "keep_stop" */
	struct perf_cpu kept_since;
};

/* NULL: no slot of that number. */
static struct perf_path *slot_of(struct perf_server *server, const json_t *request,
				 struct mf_error *err)
{
	json_int_t slot = json_integer_value(json_object_get(request, "slot"));

	if (slot >= 0 && slot < (json_int_t)PERF_SLOTS)
		return &server->path[slot];
	(void)base_error(err, -EINVAL, MF_SCOPE_SESSION, "there is no such slot for a path");
	return NULL;
}

struct perf_path *perf_server_path(struct perf_server *server, const json_t *request,
				   struct mf_error *err)
{
	struct perf_path *path = slot_of(server, request, err);

	if (path && path->n)
		return path;
	(void)base_error(err, -EINVAL, MF_SCOPE_SESSION, "no lanes are open for this");
	return NULL;
}

static void stop_keepers(struct perf_server *server)
{
	perf_keepers_stop(BASE_TAKE_PTR(server->keepers));
}

static int serve_facts(struct perf_server *server, struct perf_peer *peer, const json_t *request,
		       struct mf_error *err)
{
	(void)server, (void)request;
	return perf_peer_send(peer, perf_facts("server"), err);
}

static int serve_verbs(struct perf_server *server, struct perf_peer *peer, const json_t *request,
		       struct mf_error *err)
{
	json_t *answer = json_object();

	(void)server, (void)request;
	perf_put(answer, "up", json_boolean(path_has_verbs()));
	return perf_peer_send(peer, answer, err);
}

static int serve_path(struct perf_server *server, struct perf_peer *peer, const json_t *request,
		      struct mf_error *err)
{
	struct perf_path *path = slot_of(server, request, err);

	if (!path)
		return -EINVAL;
	stop_keepers(server);
	perf_path_close(path);
	return perf_path_serve(peer, request, server->max_bytes, path, err);
}

static int serve_done(struct perf_server *server, struct perf_peer *peer, const json_t *request,
		      struct mf_error *err)
{
	struct perf_path *path = slot_of(server, request, err);

	if (!path)
		return -EINVAL;
	stop_keepers(server);
	perf_path_close(path);
	return perf_peer_send(peer, json_object(), err);
}

/* The client works on this host's memory by itself. */
static int serve_keep(struct perf_server *server, struct perf_peer *peer, const json_t *request,
		      struct mf_error *err)
{
	struct perf_path *path = perf_server_path(server, request, err);

	if (!path)
		return -EINVAL;
	if (server->keepers)
		return base_error(err, -EBUSY, MF_SCOPE_SESSION, "lanes are kept going already");
	int ret = perf_keepers_start(path, json_is_true(json_object_get(request, "busy")),
				     &server->keepers, err);
	if (ret)
		return ret;
	perf_cpu_now(&server->kept_since);
	return perf_peer_send(peer, json_object(), err);
}

static int serve_keep_stop(struct perf_server *server, struct perf_peer *peer,
			   const json_t *request, struct mf_error *err)
{
	json_t *answer = json_object();
	struct perf_cpu spent;

	(void)request;
	if (!server->keepers) {
		json_decref(answer);
		return base_error(err, -EINVAL, MF_SCOPE_SESSION, "no lanes are kept going");
	}
	perf_cpu_since(&server->kept_since, &spent);
	stop_keepers(server);
	perf_put(answer, "cpu", perf_cpu_json(&spent));
	return perf_peer_send(peer, answer, err);
}

static int serve_bw(struct perf_server *server, struct perf_peer *peer, const json_t *request,
		    struct mf_error *err)
{
	struct perf_path *path = perf_server_path(server, request, err);

	return path ? perf_bw_serve(peer, request, path, err) : -EINVAL;
}

static int serve_lat(struct perf_server *server, struct perf_peer *peer, const json_t *request,
		     struct mf_error *err)
{
	struct perf_path *path = perf_server_path(server, request, err);

	return path ? perf_lat_serve(peer, request, path, err) : -EINVAL;
}

static int serve_migrate(struct perf_server *server, struct perf_peer *peer, const json_t *request,
			 struct mf_error *err)
{
	return perf_migrate_serve(peer, request, server->max_bytes, err);
}

static const struct perf_local *find_local(const char *test)
{
	const struct perf_local *local = perf_locals;

	while (local->test && strcmp(local->test, test))
		local++;
	return local->test ? local : NULL;
}

static int serve_local(struct perf_server *server, struct perf_peer *peer, const json_t *request,
		       struct mf_error *err)
{
	const struct perf_local *local = find_local(perf_text(request, "test"));
	const json_t *options = json_object_get(request, "options");
	json_t *answer = json_object(), *rows = json_array();

	int ret = local && json_is_object(options)
			  ? local->run(options, server->max_bytes, rows, err)
			  : base_error(err, -EINVAL, MF_SCOPE_SESSION, "there is no such test");
	perf_put(answer, "rows", rows);
	if (!ret)
		return perf_peer_send(peer, answer, err);
	json_decref(answer);
	return ret;
}

const struct perf_service perf_services[] = {
	/* clang-format off */
	{ "facts", serve_facts },
	{ "verbs", serve_verbs },
	{ "path", serve_path },
	{ "done", serve_done },
	{ "bw", serve_bw },
	{ "lat", serve_lat },
	{ "keep", serve_keep },
	{ "keep_stop", serve_keep_stop },
	{ "migrate", serve_migrate },
	{ "local", serve_local },
	{ NULL, NULL },
	/* clang-format on */
};

const struct perf_local perf_locals[] = {
	{ "register", local_register },
	{ "scan", local_scan },
	{ "track", local_track },
	{ NULL, NULL },
};

static void add_rows(struct perf_run *run, const json_t *rows, const char *host)
{
	size_t i;
	json_t *row;

	json_array_foreach(rows, i, row)
	{
		perf_put(row, "host", json_string(host));
		perf_doc_add(run->doc, json_incref(row));
	}
}

static int run_there(struct perf_run *run, const char *test, const json_t *options,
		     struct mf_error *err)
{
	json_t *request = json_object(), *answer = NULL;

	perf_put(request, "test", json_string(test));
	perf_put(request, "options", json_deep_copy(options));
	/* It names a device of this host. */
	(void)json_object_del(json_object_get(request, "options"), "ib-dev");
	int ret = perf_peer_call(run->peer, "local", request, base_deadline_ms(IDLE_MS), &answer,
				 err);
	if (!ret)
		add_rows(run, json_object_get(answer, "rows"), "server");
	json_decref(answer);
	return ret;
}

int perf_local_run(struct perf_run *run, const char *test, const json_t *options,
		   struct mf_error *err)
{
	const struct perf_local *local = find_local(test);
	json_t *rows = json_array();

	int ret = local->run(options, UINT64_MAX, rows, err);
	if (!ret)
		add_rows(run, rows, "client");
	json_decref(rows);
	return ret || !run->peer ? ret : run_there(run, test, options, err);
}

static int serve_one(struct perf_server *server, struct perf_peer *peer, const json_t *request,
		     struct mf_error *err)
{
	const char *what = perf_text(request, "do");

	for (const struct perf_service *s = perf_services; s->name; s++) {
		if (!strcmp(s->name, what))
			return s->serve(server, peer, request, err);
	}
	return base_error(err, -EINVAL, MF_SCOPE_SESSION, "the server knows no request '%.40s'",
			  what);
}

int perf_serve_client(struct perf_peer *peer, uint64_t max_bytes, struct mf_error *err)
{
	struct perf_server *server base_cleanup(base_freep) = calloc(1, sizeof(*server));
	struct mf_error end = { 0 };
	int ret = 0;

	if (!server)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	server->max_bytes = max_bytes;
	while (!ret) {
		struct mf_error failure = { 0 };
		json_t *request = NULL;
		ret = perf_peer_recv(peer, base_deadline_ms(IDLE_MS), &request, &end);
		if (ret)
			break;
		int failed = serve_one(server, peer, request, &failure);
		json_decref(request);
		if (failed == -MF_EPEER) {
			end = failure;
			ret = failed;
		} else if (failed) {
			if (!failure.code)
				(void)base_error_sys(&failure, failed, MF_SCOPE_SESSION,
						     "the request");
			ret = perf_peer_send_error(peer, &failure, &end);
		}
	}
	stop_keepers(server);
	for (unsigned i = 0; i < PERF_SLOTS; i++)
		perf_path_close(&server->path[i]);
	/* A client that has what it wanted just ends the connection. */
	return ret == -MF_EPEER ? 0 : base_error(err, ret, end.scope, "%s", end.msg);
}
