/* SPDX-License-Identifier: BSD-2-Clause */
/* forget: removes what a move has left whose process on this host has ended; and what status says of such. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memferry/session.h>

#include "base/cleanup.h"
#include "control.h"
#include "report.h"
#include "verbs.h"

static int compare_leftovers(const void *a, const void *b)
{
	const struct mf_leftover *left = a, *right = b;
	int by_session = strcmp(left->session, right->session);

	return by_session ? by_session : (int)left->side - (int)right->side;
}

int cli_find_leftovers(const struct cli_run_dir *dir, const char *prefix, bool with_held,
		       struct mf_leftover *ret, struct mf_error *err)
{
	int kept = 0;
	int n = dir->fd < 0 ? 0
			    : mf_leftovers(dir->path, ret, sizeof(*ret), CLI_LEFTOVERS_MAX, err);

	for (int i = 0; i < n; i++) {
		if ((with_held || !ret[i].held) &&
		    (!prefix || !strncmp(ret[i].session, prefix, strlen(prefix))))
			ret[kept++] = ret[i];
	}
	if (n < 0)
		return n;
	qsort(ret, (size_t)kept, sizeof(*ret), compare_leftovers);
	return kept;
}

void cli_print_leftovers(const struct cli_options *o, const struct mf_leftover *list, unsigned n)
{
	if (n && !o->json)
		printf("left by moves whose process here has ended:\n%-16s %-11s %-9s %s\n",
		       "SESSION", "SIDE", "RECORD", "WHAT IT MEANS");
	for (unsigned i = 0; i < n; i++) {
		const struct mf_leftover *left = &list[i];
		if (o->json)
			cli_json_print(stdout, cli_json_leftover("leftover", left));
		else
			printf("%-16s %-11s %-9s %s%s%s\n", left->session,
			       cli_side_name(left->side), left->record[0] ? left->record : "-",
			       left->text, left->needed ? "" : "; else memferry forget ",
			       left->needed ? "" : left->session);
	}
}

/* The only session among them; NULL and why. */
static const char *choose_session(const struct cli_options *o, const struct mf_leftover *list,
				  int n, struct mf_error *err)
{
	for (int i = 1; i < n; i++) {
		if (strcmp(list[i].session, list[0].session) != 0) {
			(void)base_usage_error(err,
					       "SESSION: more than one begins with '%.40s'; name "
					       "one that memferry status lists",
					       o->operand);
			return NULL;
		}
	}
	if (!n)
		(void)base_usage_error(
			err,
			"SESSION: nothing is left of a move whose name begins with '%.40s'; "
			"memferry status lists what is",
			o->operand);
	return n ? list[0].session : NULL;
}

/* Asking also removes the sockets of those that have ended. */
static int check_ended(const struct cli_options *o, const struct cli_run_dir *dir,
		       struct mf_error *err)
{
	base_autofree struct cli_peer *peers = calloc(CLI_PEERS_MAX, sizeof(*peers));
	if (!peers)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	int n = cli_control_list(dir, peers, CLI_PEERS_MAX, err), r = n < 0 ? n : 0;

	for (int i = 0; i < n; i++) {
		if (!r && !strncmp(peers[i].session, o->operand, strlen(o->operand)))
			r = base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
				       "session %s goes on, in process %d; memferry cancel ends "
				       "what can be ended",
				       peers[i].session, peers[i].pid);
		json_decref(peers[i].status);
	}
	return r;
}

static int forget(const struct cli_options *o, const struct cli_run_dir *dir,
		  struct mf_leftover *list, struct mf_error *err)
{
	int r = check_ended(o, dir, err);
	int n = r ? r : cli_find_leftovers(dir, o->operand, true, list, err);
	if (n < 0)
		return n;
	const char *session = choose_session(o, list, n, err);
	if (!session)
		return -MF_EUSAGE;
	r = mf_forget(dir->path, session, o->force, err);
	for (int i = 0; !r && i < n; i++) {
		if (o->json)
			cli_json_print(stdout, cli_json_leftover("forgotten", &list[i]));
		else
			printf("forgot session %s, %s: %s\n", session, cli_side_name(list[i].side),
			       list[i].record[0] ? list[i].record : "no record");
	}
	return r;
}

int cli_verb_forget(const struct cli_options *o)
{
	base_autofree struct mf_leftover *list = calloc(CLI_LEFTOVERS_MAX, sizeof(*list));
	struct cli_run_dir dir = { .fd = -1 };
	struct mf_error err = { 0 };

	if (!list)
		return cli_fail(o, &(struct mf_error){ -ENOMEM, MF_SCOPE_HOST, "out of memory" });
	int r = cli_run_dir_open(o->run_dir, false, &dir, &err);
	if (!r)
		r = forget(o, &dir, list, &err);
	cli_run_dir_close(&dir);
	return r ? cli_fail(o, &err) : 0;
}
