/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Which rails there are: what this host can offer, and which of our paths go with which of the other host's.
 *
 *   source        Describe: its transports, and the paths of those that are found by path
 *   destination   pairs them with its own by subnet; Verdicts: the rails, numbered in order of preference
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/parse.h"
#include "core/engine.h"

#define PATHS_MAX 64

static bool is_demanded(const char *transport)
{
	return transport[0] && strcmp(transport, "auto");
}

static uint64_t guest_bytes(const struct mf_session *s)
{
	uint64_t bytes = 0;
	for (uint32_t i = 0; i < s->guest.n_regions; i++)
		bytes += s->guest.regions[i].size;
	return bytes;
}

/* The session's NIC of choice comes first. */
static unsigned usable_paths(struct mf_session *s, const struct tp_ops *tp,
			     struct tp_path ret[PATHS_MAX])
{
	unsigned kept = 0;
	int n = tp_paths(tp, ret, PATHS_MAX);
	n = n < PATHS_MAX ? n : PATHS_MAX;
	for (int i = 0; i < n; i++) {
		if (ret[i].up)
			ret[kept++] = ret[i];
	}
	eng_place_order(s, ret, kept);
	return kept;
}

static int add_path(Mf__Wire__Describe *d, const struct tp_ops *tp, const struct tp_path *path)
{
	Mf__Wire__Path *w = malloc(sizeof(*w));
	if (!w)
		return -ENOMEM;
	mf__wire__path__init(w);
	w->transport = strdup(tp->kind);
	w->device = strdup(path->device);
	w->address = strdup(path->address);
	w->prefix = path->prefix;
	d->paths[d->n_paths++] = w;
	return w->transport && w->device && w->address ? 0 : -ENOMEM;
}

void eng_rails_free_paths(Mf__Wire__Describe *d)
{
	for (size_t i = 0; i < d->n_paths; i++) {
		free(d->paths[i]->transport);
		free(d->paths[i]->device);
		free(d->paths[i]->address);
		free(d->paths[i]);
	}
	free(d->paths);
	free(d->transports);
	d->paths = NULL;
	d->transports = NULL;
	d->n_paths = d->n_transports = 0;
}

/* 0: this host can use the transport; its paths are in d where it has such. */
static int offer_one(struct mf_session *s, const struct tp_ops *tp, Mf__Wire__Describe *d,
		     struct mf_error *err)
{
	struct tp_path paths[PATHS_MAX];
	if (!eng_goes_by_paths(tp))
		return eng_try_transport(tp, s->local_host, err);
	unsigned n = usable_paths(s, tp, paths);
	if (!n)
		return base_error(err, -ENODEV, MF_SCOPE_HOST,
				  "%s: no device of this host has an address and an active port",
				  tp->kind);
	int r = tp->caps & TP_CAP_PINS && !s->params.on_demand
			? eng_check_memlock(guest_bytes(s), err)
			: 0;
	for (unsigned i = 0; r == 0 && i < n && d->n_paths < PATHS_MAX; i++)
		r = add_path(d, tp, &paths[i]);
	return r == -ENOMEM && (!err || !err->code)
		       ? base_error(err, r, MF_SCOPE_HOST, "out of memory")
		       : r;
}

int eng_rails_offer_paths(struct mf_session *s, Mf__Wire__Describe *d, struct mf_error *err)
{
	bool demanded = is_demanded(s->transport);
	d->transports = calloc(8, sizeof(*d->transports));
	/* NOLINTNEXTLINE(bugprone-sizeof-expression): an array of pointers */
	d->paths = calloc(PATHS_MAX, sizeof(*d->paths));
	if (!d->transports || !d->paths)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	d->demanded = demanded ? s->transport : (char *)"";
	for (const struct tp_ops *const *t = tp_backends(); *t && d->n_transports < 8; t++) {
		const struct tp_ops *tp = eng_find_transport(s, (*t)->kind);
		bool is_it = demanded && !strcmp(s->transport, tp->kind);
		struct mf_error why = { 0 };
		/* Who asks for TCP gets nothing else; who asks for another falls back on TCP when it is lost. */
		if (demanded && !is_it && (eng_goes_by_paths(tp) || !strcmp(s->transport, "tcp")))
			continue;
		int r = offer_one(s, tp, d, &why);
		if (r == 0)
			d->transports[d->n_transports++] = (char *)tp->kind;
		else if (is_it) /* preflight of what was asked for */
			return base_error(err, -MF_EREFUSED, why.scope, "transport: %s", why.msg);
		else if (r == -ENOMEM)
			eng_emit(s, MF_EVENT_NOTICE, "%s is not used: %s", tp->kind, why.msg);
	}
	return 0;
}

static bool offers(const Mf__Wire__Describe *d, const char *kind)
{
	for (size_t i = 0; i < d->n_transports; i++) {
		if (!strcmp(d->transports[i], kind))
			return true;
	}
	return false;
}

static struct eng_rail *add_rail(struct mf_session *s, const struct tp_ops *tp, const char *device,
				 const char *local, const char *peer)
{
	if (s->n_rails == ENG_RAILS_MAX)
		return NULL;
	struct eng_rail *rail = &s->rail[s->n_rails];
	memset(rail, 0, sizeof(*rail));
	pthread_mutex_init(&rail->reg_lock, NULL);
	rail->session = s;
	rail->id = s->n_rails++;
	rail->tp = tp;
	(void)snprintf(rail->device, sizeof(rail->device), "%s", device);
	(void)snprintf(rail->local, sizeof(rail->local), "%s", local);
	(void)snprintf(rail->peer, sizeof(rail->peer), "%s", peer);
	return rail;
}

/* The host part of "10.0.0.1:7741" and of "[fd77::1]:7741". */
static void host_of(const char *name, char *ret, size_t cap)
{
	const char *end = strrchr(name, ':');
	size_t len = end ? (size_t)(end - name) : strlen(name);
	bool bracketed = len > 1 && name[0] == '[' && name[len - 1] == ']';
	(void)snprintf(ret, cap, "%.*s", (int)(bracketed ? len - 2 : len), name + bracketed);
}

/* Each path of ours with the first one of the source's in the same subnet, each device once; and where both ends of the
 * control channel have devices, those: they reach each other, by routers if need be. */
static unsigned pair_paths(struct mf_session *s, const struct tp_ops *tp,
			   const Mf__Wire__Describe *d)
{
	struct tp_path ours[PATHS_MAX];
	bool taken[PATHS_MAX] = { 0 };
	char peer_host[MF_ADDRESS_MAX];
	unsigned n = usable_paths(s, tp, ours), made = 0;

	host_of(s->peer_name, peer_host, sizeof(peer_host));
	for (unsigned pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < n; i++) {
			bool used = false;
			for (uint32_t k = 0; k < s->n_rails; k++)
				used = used || (s->rail[k].tp == tp &&
						!strcmp(s->rail[k].device, ours[i].device));
			for (size_t j = 0; !used && j < d->n_paths && j < PATHS_MAX; j++) {
				const Mf__Wire__Path *p = d->paths[j];
				bool fits =
					pass ? tp_are_neighbours(ours[i].address, ours[i].prefix,
								 p->address, p->prefix)
					     : !strcmp(ours[i].address, s->local_host) &&
							!strcmp(p->address, peer_host);
				if (taken[j] || !fits || strcmp(p->transport, tp->kind))
					continue;
				/* The last one is left for what the move falls back on. */
				if (s->n_rails >= ENG_RAILS_MAX - 1)
					return made;
				struct eng_rail *rail = add_rail(s, tp, ours[i].device,
								 ours[i].address, p->address);
				(void)snprintf(rail->peer_device, sizeof(rail->peer_device), "%s",
					       p->device);
				/* Its other addresses are no other rails. */
				for (size_t k = 0; k < d->n_paths && k < PATHS_MAX; k++)
					taken[k] =
						taken[k] || !strcmp(d->paths[k]->device, p->device);
				used = true;
				made++;
			}
		}
	}
	return made;
}

/* What the rails will pin here, in preflight. */
static void note_memlock(struct mf_session *s)
{
	struct mf_error why = { 0 };
	char size[24];
	uint32_t n = 0;
	for (uint32_t k = 0; k < s->n_rails; k++)
		n += s->rail[k].tp->caps & TP_CAP_PINS ? 1 : 0;
	if (!n || s->params.on_demand)
		return;
	if (eng_check_memlock(n * guest_bytes(s), &why) < 0)
		eng_finding(s, MF_WARN, "locked memory", "%s", why.msg);
	else
		eng_finding(s, MF_OK, "locked memory", "%s to be pinned for %u RDMA device%s",
			    base_format_size(n * guest_bytes(s), size, sizeof(size)), n,
			    n == 1 ? "" : "s");
}

/* 0, or why not; *missing keeps the first reason. */
static int pair_one(struct mf_session *s, const struct tp_ops *tp, const Mf__Wire__Describe *d,
		    struct mf_error *missing)
{
	struct mf_error why = { 0 };
	char peer_host[MF_ADDRESS_MAX];
	int r = 0;
	if (!eng_goes_by_paths(tp)) {
		r = eng_try_transport(tp, s->local_host, &why);
		host_of(s->peer_name, peer_host, sizeof(peer_host));
		if (r == 0)
			(void)add_rail(s, tp, "", s->local_host, peer_host);
	} else {
		uint32_t before = s->n_rails;
		unsigned n = pair_paths(s, tp, d);
		struct tp_path paths[PATHS_MAX];
		if (!n)
			r = usable_paths(s, tp, paths)
				    ? base_error(
					      &why, -ENETUNREACH, MF_SCOPE_HOST,
					      "%s: no two devices of the hosts are in one subnet",
					      tp->kind)
				    : base_error(&why, -ENODEV, MF_SCOPE_HOST,
						 "%s: no device of this host has an address and "
						 "an active port",
						 tp->kind);
		/* Each device counts what it pins by itself. */
		while (n && tp->caps & TP_CAP_PINS && !s->params.on_demand &&
		       (r = eng_check_memlock(n * guest_bytes(s), &why)) < 0)
			n--;
		s->n_rails = before + n;
		if (n)
			r = 0;
	}
	if (r < 0 && !missing->code)
		*missing = why;
	return r;
}

/* Falling back is never done in silence: the reason says what better one is missing, and why. */
static void explain_pick(struct mf_session *s, const Mf__Wire__Describe *d,
			 const struct mf_error *missing)
{
	char *reason = s->report.transport_reason;
	size_t cap = sizeof(s->report.transport_reason);
	const struct eng_rail *first = &s->rail[0];
	int at;

	if (is_demanded(s->transport))
		at = snprintf(reason, cap, "asked for on the destination");
	else if (is_demanded(d->demanded))
		at = snprintf(reason, cap, "asked for at the source");
	else if (d->n_transports == 1)
		at = snprintf(reason, cap, "the only one that the source offers");
	else
		at = snprintf(reason, cap, "the best that both hosts have");
	for (uint32_t k = 0; k < s->n_rails && at > 0 && (size_t)at < cap; k++) {
		if (s->rail[k].tp == first->tp && s->rail[k].device[0])
			at += snprintf(reason + at, cap - (size_t)at, "%s %.32s to %.32s",
				       k ? "," : ":", s->rail[k].peer_device, s->rail[k].device);
	}
	if (at < 0 || (size_t)at >= cap)
		return;
	if (missing->code && !is_demanded(s->transport) && !is_demanded(d->demanded))
		(void)snprintf(reason + at, cap - (size_t)at, "; %s", missing->msg);
	else if (!strcmp(first->tp->kind, "tcp") && !tp_find("verbs"))
		(void)snprintf(reason + at, cap - (size_t)at, "; this build has no RDMA verbs");
	else if (!strcmp(first->tp->kind, "tcp") && d->n_transports == 1 &&
		 !is_demanded(d->demanded))
		(void)snprintf(reason + at, cap - (size_t)at, "; it has no usable RDMA device");
}

int eng_rails_pair(struct mf_session *s, const Mf__Wire__Describe *d, struct mf_error *err)
{
	const char *demanded = is_demanded(s->transport) ? s->transport : d->demanded;
	struct mf_error missing = { 0 };
	bool conflict = is_demanded(s->transport) && is_demanded(d->demanded) &&
			strcmp(s->transport, d->demanded);

	s->n_rails = 0;
	for (const struct tp_ops *const *t = tp_backends(); *t && !conflict; t++) {
		const struct tp_ops *tp = eng_find_transport(s, (*t)->kind);
		bool is_it = !strcmp(demanded, tp->kind);
		/* The demanded one comes first, or nothing; behind it only what a move can fall back on. */
		if (is_demanded(demanded) && !is_it && (!s->n_rails || eng_goes_by_paths(tp)))
			continue;
		if (offers(d, tp->kind))
			(void)pair_one(s, tp, d, &missing);
	}
	if (!s->n_rails)
		return base_error(
			err, -MF_EREFUSED, MF_SCOPE_SESSION,
			"transport: the hosts have none in common with what was asked for%s%s; "
			"see `memferry devices` on both",
			missing.code ? ": " : "", missing.msg);
	s->report.transport = s->rail[0].tp->kind;
	explain_pick(s, d, &missing);
	note_memlock(s);
	return 0;
}

int eng_rails_take(struct mf_session *s, const Mf__Wire__Verdicts *v, struct mf_error *err)
{
	s->n_rails = 0;
	for (size_t i = 0; i < v->n_rails; i++) {
		const Mf__Wire__Rail *w = v->rails[i];
		const struct tp_ops *tp = eng_find_transport(s, w->transport);
		struct eng_rail *rail =
			tp ? add_rail(s, tp, w->source_device, w->source, w->destination) : NULL;
		if (!rail)
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "the destination chose a transport that this host did "
					  "not offer");
		(void)snprintf(rail->peer_device, sizeof(rail->peer_device), "%s",
			       w->destination_device);
		if (!eng_goes_by_paths(tp)) /* both ends as we know them */
			(void)snprintf(rail->local, sizeof(rail->local), "%s", s->local_host);
	}
	if (!s->n_rails || strcmp(s->rail[0].tp->kind, v->transport) ||
	    (is_demanded(s->transport) && strcmp(s->transport, v->transport)))
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				  "the destination chose a transport that this host did not offer");
	s->report.transport = s->rail[0].tp->kind;
	note_memlock(s);
	return 0;
}
