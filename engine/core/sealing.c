/* SPDX-License-Identifier: BSD-2-Clause */
/* Whether pages are sealed on their way: what the hosts agree on, and the key. */
#include <string.h>

#include "core/engine.h"

/* Never used for anything else: it tells this key from others of the connection (RFC 8446, 7.5). */
#define KEY_LABEL "EXPORTER-memferry-lanes"

const char *mf_sealing_name(enum mf_sealing sealing)
{
	switch (sealing) {
	case MF_SEALING_NONE:
		return "none";
	case MF_SEALING_INTEGRITY:
		return "integrity";
	case MF_SEALING_ENCRYPT:
		return "encrypt";
	}
	return "unknown";
}

int eng_sealing_follow(struct mf_session *s, uint32_t asked, struct mf_error *err)
{
	if (asked > MF_SEALING_ENCRYPT)
		return base_error(err, -MF_EREFUSED, MF_SCOPE_SESSION,
				  "the source seals pages in a way that this host does not know; "
				  "install the same memferry on both");
	/* What was agreed on before a connection, or a process, was lost. */
	enum mf_sealing least = s->params.sealing;
	if (s->state == ENG_RECOVER && s->report.sealing > least)
		least = s->report.sealing;
	if (asked < least)
		return base_error(err, -MF_EREFUSED, MF_SCOPE_SESSION,
				  "this host takes pages with --%s only; start send with it, too",
				  mf_sealing_name(least));
	if (asked && s->params.insecure)
		return base_error(err, -MF_EREFUSED, MF_SCOPE_SESSION,
				  "the source wants --%s, whose keys come from a secured control "
				  "channel; start receive with --tls-dir or --psk",
				  mf_sealing_name((enum mf_sealing)asked));
	s->report.sealing = (enum mf_sealing)asked;
	return 0;
}

int eng_sealing_resume(struct mf_session *s, struct mf_error *err)
{
	if (s->record.sealing > s->report.sealing)
		s->report.sealing = s->record.sealing;
	if (s->report.sealing && s->params.insecure)
		return base_usage_error(err,
					"the move goes on with --%s, whose keys come from a "
					"secured control channel; "
					"use --tls-dir or --psk instead of --insecure",
					mf_sealing_name(s->report.sealing));
	return 0;
}

int eng_sealing_confirm(const struct mf_session *s, uint32_t agreed, struct mf_error *err)
{
	return agreed == s->report.sealing
		       ? 0
		       : base_error(err, -MF_EREFUSED, MF_SCOPE_SESSION,
				    "the destination does not know of --%s; install the same "
				    "memferry on both",
				    mf_sealing_name(s->report.sealing));
}

int eng_sealing_take_key(struct mf_session *s, struct mf_error *err)
{
	/* The enumerations are the same: one is for programs, the other for transports. */
	s->seal.sealing = (enum tp_sealing)s->report.sealing;
	if (s->report.sealing == MF_SEALING_NONE)
		return 0;
	int r = wire_channel_export(s->channel, KEY_LABEL, s->seal.key, sizeof(s->seal.key));
	return r < 0 ? base_error_sys(err, r, MF_SCOPE_SESSION, "keys for --%s",
				      mf_sealing_name(s->report.sealing))
		     : 0;
}

const struct tp_ops *eng_find_transport(const struct mf_session *s, const char *kind)
{
	if (s->tp_given && !strcmp(s->tp_given->kind, kind))
		return s->tp_given;
	return s->report.sealing ? tp_find_sealed(kind) : tp_find(kind);
}
