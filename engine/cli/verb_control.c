/* SPDX-License-Identifier: BSD-2-Clause */
/* status, cancel, cutover and postcopy: talking to the moves that run on this host. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "control.h"
#include "report.h"
#include "verbs.h"

struct peers {
	struct cli_run_dir dir;
	unsigned n, n_left;
	struct cli_peer list[CLI_PEERS_MAX];
	struct mf_leftover left[CLI_LEFTOVERS_MAX]; /* status only */
};

static void free_peers(struct peers *peers)
{
	for (unsigned i = 0; i < peers->n; i++)
		json_decref(peers->list[i].status);
	cli_run_dir_close(&peers->dir);
}

/* Keeps those whose session name begins with the operand. */
static void keep_matches(struct peers *peers, const char *prefix)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < peers->n; i++) {
		if (!strncmp(peers->list[i].session, prefix, strlen(prefix)))
			peers->list[kept++] = peers->list[i];
		else
			json_decref(peers->list[i].status);
	}
	peers->n = kept;
}

static int find_peers(const struct cli_options *o, struct peers *ret, struct mf_error *err)
{
	int r = cli_run_dir_open(o->run_dir, false, &ret->dir, err);
	if (r)
		return r;
	r = cli_control_list(&ret->dir, ret->list, CLI_PEERS_MAX, err);
	if (r < 0)
		return r;
	ret->n = (unsigned)r;
	if (o->operand)
		keep_matches(ret, o->operand);
	r = o->verb == CLI_STATUS ? cli_find_leftovers(&ret->dir, o->operand, false, ret->left, err)
				  : 0;
	if (r < 0)
		return r;
	ret->n_left = (unsigned)r;
	if (o->operand && !ret->n && !ret->n_left)
		return base_error(
			err, -ENOENT, MF_SCOPE_HOST,
			"SESSION: no move on this host has a name that begins with '%.40s'; "
			"memferry status lists them",
			o->operand);
	return 0;
}

static uint64_t get(const json_t *o, const char *key)
{
	json_int_t n = json_integer_value(json_object_get(o, key));

	return n > 0 ? (uint64_t)n : 0;
}

static const char *get_text(const json_t *o, const char *key, char *buf, size_t cap)
{
	const char *s = json_string_value(json_object_get(o, key));

	return cli_clean(s && s[0] ? s : "-", buf, cap);
}

/* "-" for what is not known, which is 0. */
static const char *get_rate(const json_t *o, const char *key, char *buf, size_t cap)
{
	char size[32];
	uint64_t n = get(o, key);

	(void)snprintf(buf, cap, "%s%s", n ? base_format_size(n, size, sizeof(size)) : "-",
		       n ? "/s" : "");
	return buf;
}

static const char *get_ms(const json_t *o, const char *key, char *buf, size_t cap)
{
	uint64_t n = get(o, key);

	if (n)
		return cli_format_ms(n, buf, cap);
	(void)snprintf(buf, cap, "-");
	return buf;
}

static void print_row(const struct cli_peer *peer)
{
	const json_t *o = peer->status;
	char session[MF_SESSION_NAME_MAX + 1], phase[32], done[8] = "-";
	char rate[40], dirty[40], down[32], left[32], elapsed[32];
	uint64_t whole = get(o, "round_bytes"), part = get(o, "done_bytes");

	if (whole)
		(void)snprintf(
			done, sizeof(done), "%u%%",
			(unsigned)(100.0 * (double)(part < whole ? part : whole) / (double)whole));
	printf("%-16s %-11s %8d %-10s %5" PRIu64 " %5s %14s %14s %9s %9s %9s\n",
	       get_text(o, "session", session, sizeof(session)), cli_side_name(peer->side),
	       peer->pid, get_text(o, "phase", phase, sizeof(phase)), get(o, "round"), done,
	       get_rate(o, "bytes_per_s", rate, sizeof(rate)),
	       get_rate(o, "dirty_bytes_per_s", dirty, sizeof(dirty)),
	       get_ms(o, "predicted_downtime_ms", down, sizeof(down)),
	       get_ms(o, "left_ms", left, sizeof(left)),
	       get_ms(o, "elapsed_ms", elapsed, sizeof(elapsed)));
}

static void print_rows(const struct peers *peers)
{
	printf("%-16s %-11s %8s %-10s %5s %5s %14s %14s %9s %9s %9s\n", "SESSION", "SIDE", "PID",
	       "PHASE", "ROUND", "DONE", "RATE", "DIRTY", "DOWNTIME", "LEFT", "ELAPSED");
	for (unsigned i = 0; i < peers->n; i++)
		print_row(&peers->list[i]);
}

static void print_status(const struct cli_options *o, struct peers *peers)
{
	if (o->json) {
		for (unsigned i = 0; i < peers->n; i++) {
			(void)json_object_del(peers->list[i].status, "ok");
			cli_json_print(stdout, json_incref(peers->list[i].status));
		}
	} else if (!peers->n) {
		puts("no move runs on this host");
	} else {
		print_rows(peers);
	}
	cli_print_leftovers(o, peers->left, peers->n_left);
}

int cli_verb_status(const struct cli_options *o)
{
	base_autofree struct peers *peers = calloc(1, sizeof(*peers));
	struct mf_error err = { 0 };

	if (!peers)
		return cli_fail(o, &(struct mf_error){ -ENOMEM, MF_SCOPE_HOST, "out of memory" });
	peers->dir.fd = -1;
	int r = find_peers(o, peers, &err);
	int status = r ? cli_fail(o, &err) : 0;
	if (!r)
		print_status(o, peers);
	free_peers(peers);
	return status;
}

/* The one that is meant: both ends of one move may run here, and then it is the source. */
static const struct cli_peer *choose_peer(const struct peers *peers, struct mf_error *err)
{
	const struct cli_peer *chosen = NULL;
	unsigned sources = 0, others = 0;

	for (unsigned i = 0; i < peers->n; i++) {
		const struct cli_peer *peer = &peers->list[i];
		sources += peer->side == MF_SOURCE;
		if (!chosen || (chosen->side != MF_SOURCE && peer->side == MF_SOURCE))
			chosen = peer;
	}
	if (!chosen) {
		(void)base_error(err, -ENOENT, MF_SCOPE_HOST, "SESSION: no move runs on this host");
		return NULL;
	}
	for (unsigned i = 0; i < peers->n; i++) {
		const struct cli_peer *peer = &peers->list[i];
		/* A receiver without a name still waits for its source: not part of any move. */
		others += peer != chosen &&
			  (chosen->side != MF_SOURCE ||
			   (peer->session[0] && strcmp(peer->session, chosen->session) != 0));
	}
	if (sources > 1 || others) {
		(void)base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				 "SESSION: more than one move runs on this host; name one that "
				 "memferry status lists");
		return NULL;
	}
	return chosen;
}

static int request(const struct cli_options *o, struct peers *peers, struct mf_error *err)
{
	const char *command = cli_verbs[o->verb].name;
	json_t *reply = NULL;

	int r = find_peers(o, peers, err);
	if (r)
		return r;
	const struct cli_peer *peer = choose_peer(peers, err);
	if (!peer)
		return err->code;
	r = cli_control_ask(&peers->dir, peer->socket, command, &reply, err);
	if (r)
		return r;
	const json_t *error = json_object_get(reply, "error");
	if (!json_is_true(json_object_get(reply, "ok"))) {
		char why[200];
		r = base_error(err, -EALREADY, MF_SCOPE_SESSION, "%s: %s", command,
			       get_text(error, "message", why, sizeof(why)));
	} else if (o->json) {
		(void)json_object_set_new(reply, "event", json_string(command));
		(void)json_object_del(reply, "ok");
		cli_json_print(stdout, json_incref(reply));
	} else {
		char session[MF_SESSION_NAME_MAX + 1];
		printf("%s: asked the %s of %s, process %d\n", command, cli_side_name(peer->side),
		       get_text(reply, "session", session, sizeof(session)), peer->pid);
	}
	json_decref(reply);
	return r;
}

int cli_verb_request(const struct cli_options *o)
{
	base_autofree struct peers *peers = calloc(1, sizeof(*peers));
	struct mf_error err = { 0 };

	if (!peers)
		return cli_fail(o, &(struct mf_error){ -ENOMEM, MF_SCOPE_HOST, "out of memory" });
	peers->dir.fd = -1;
	int status = request(o, peers, &err) ? cli_fail(o, &err) : 0;
	free_peers(peers);
	return status;
}
