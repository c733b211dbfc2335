/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * QEMU's migration capabilities and parameters.  RAM is ours to move (x-ignore-shared); what would send it
 * elsewhere, need a way back, or slow the little that is left is switched off.
 */
#include "hv-adapters/qemu/qemu.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"

enum need {
	ON,       /* without it this QEMU cannot be moved */
	ON_IF_IN, /* where it exists */
	OFF,
};

static const struct {
	const char *name;
	enum need source, destination;
} capabilities[] = {
	{ "x-ignore-shared", ON, ON },
	{ "pause-before-switchover", ON, OFF },
	{ "events", ON_IF_IN, ON_IF_IN },
	/* The destination must not lock the disks while it only waits to be resumed: the source may get its guest
	 * back until then.  From 10.0 on that is always so. */
	{ "late-block-activate", OFF, ON_IF_IN },
	{ "return-path", OFF, OFF },
	{ "switchover-ack", OFF, OFF },
	{ "postcopy-ram", OFF, OFF },
	{ "postcopy-preempt", OFF, OFF },
	{ "postcopy-blocktime", OFF, OFF },
	{ "background-snapshot", OFF, OFF },
	{ "release-ram", OFF, OFF },
	{ "multifd", OFF, OFF },
	{ "zero-copy-send", OFF, OFF },
	{ "mapped-ram", OFF, OFF },
	{ "x-colo", OFF, OFF },
	{ "compress", OFF, OFF },
	{ "xbzrle", OFF, OFF },
	{ "block", OFF, OFF },
	{ "auto-converge", OFF, OFF },
	{ "dirty-limit", OFF, OFF },
};
_Static_assert(BASE_ARRAY_LEN(capabilities) <= QEMU_CAPABILITIES_MAX,
	       "room for all that may change");

#define UNLIMITED_BYTES_PER_S ((json_int_t)1 << 50)
#define LONGEST_DOWNTIME_MS   ((json_int_t)2000000) /* the most that QEMU takes */

static json_t *capability_entry(const char *name, bool value)
{
	return json_pack("{s:s, s:b}", "capability", name, "state", value);
}

static const json_t *find_capability(const json_t *list, const char *name)
{
	size_t i;
	json_t *e;
	json_array_foreach((json_t *)(uintptr_t)list, i, e)
	{
		const char *n = json_string_value(json_object_get(e, "capability"));
		if (n && strcmp(n, name) == 0)
			return json_object_get(e, "state");
	}
	return NULL;
}

static int set_capabilities(struct qemu *hv, struct mf_error *err)
{
	qmp_autojson now = NULL;
	int r = qemu_command(hv, "query-migrate-capabilities", NULL, &now, err);
	if (r < 0)
		return r;
	json_t *changes = json_array();
	hv->undo->n_old_caps = 0;
	for (size_t i = 0; i < BASE_ARRAY_LEN(capabilities); i++) {
		enum need need = hv->side == MF_SOURCE ? capabilities[i].source
						       : capabilities[i].destination;
		const char *name = capabilities[i].name;
		const json_t *value = find_capability(now, name);
		if (!value && need == ON) {
			json_decref(changes);
			return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
					  "QEMU %d.%d lacks the capability %s: use 7.2 or newer",
					  hv->version / 10000, hv->version / 100 % 100, name);
		}
		bool want = need != OFF;
		if (!value || json_is_true(value) == want)
			continue;
		struct qemu_capability *old = &hv->undo->old_caps[hv->undo->n_old_caps++];
		(void)snprintf(old->name, sizeof(old->name), "%s", name);
		old->value = !want;
		(void)json_array_append_new(changes, capability_entry(name, want));
	}
	r = qemu_command(hv, "migrate-set-capabilities",
			 json_pack("{s:o}", "capabilities", changes), NULL, err);
	if (r < 0)
		hv->undo->n_old_caps = 0;
	return r;
}

static int set_parameters(struct qemu *hv, struct mf_error *err)
{
	qmp_autojson now = NULL;
	qmp_autojson want = NULL;
	int r = qemu_command(hv, "query-migrate-parameters", NULL, &now, err);
	if (r < 0)
		return r;
	want = json_pack("{s:I, s:I}", "max-bandwidth", UNLIMITED_BYTES_PER_S, "downtime-limit",
			 LONGEST_DOWNTIME_MS);
	/* The stream goes to us over a socket pair; the way to the other host is ours to protect. */
	const char *tls = json_string_value(json_object_get(now, "tls-creds"));
	if (tls && *tls)
		(void)json_object_set_new(want, "tls-creds", json_string(""));
	const char *mode = json_string_value(json_object_get(now, "mode"));
	if (mode && strcmp(mode, "normal") != 0)
		(void)json_object_set_new(want, "mode", json_string("normal"));
	qmp_autojson old = json_object();
	const char *key;
	json_t *value;
	json_object_foreach(want, key, value)
	{
		(void)json_object_set(old, key, json_object_get(now, key));
	}
	char *kept = hv->undo->old_params;
	size_t len = json_dumpb(old, kept, QEMU_PARAMS_MAX - 1, JSON_COMPACT);
	if (!len || len >= QEMU_PARAMS_MAX) {
		kept[0] = '\0';
		return base_error(err, -ENOMEM, MF_SCOPE_HOST,
				  "QEMU (pid %d): its migration parameters are too long to keep",
				  (int)hv->pid);
	}
	kept[len] = '\0';
	r = qemu_command(hv, "migrate-set-parameters", json_incref(want), NULL, err);
	if (r < 0)
		kept[0] = '\0';
	return r;
}

int qemu_apply_settings(struct qemu *hv, struct mf_error *err)
{
	int r = set_capabilities(hv, err);
	if (r >= 0)
		r = set_parameters(hv, err);
	if (r < 0)
		(void)qemu_restore_settings(hv, NULL);
	return r;
}

int qemu_restore_settings(struct qemu *hv, struct mf_error *err)
{
	int r = 0;
	if (hv->undo->old_params[0]) {
		r = qemu_command(hv, "migrate-set-parameters",
				 json_loads(hv->undo->old_params, 0, NULL), NULL, err);
		hv->undo->old_params[0] = '\0';
	}
	if (hv->undo->n_old_caps) {
		json_t *list = json_array();
		for (unsigned i = 0; i < hv->undo->n_old_caps; i++)
			(void)json_array_append_new(list,
						    capability_entry(hv->undo->old_caps[i].name,
								     hv->undo->old_caps[i].value));
		int r2 = qemu_command(hv, "migrate-set-capabilities",
				      json_pack("{s:o}", "capabilities", list), NULL, err);
		hv->undo->n_old_caps = 0;
		r = r < 0 ? r : r2;
	}
	return r;
}

void qemu_assume_settings(struct qemu *hv)
{
	hv->undo->n_old_caps = 0;
	for (size_t i = 0; i < BASE_ARRAY_LEN(capabilities); i++) {
		enum need need = hv->side == MF_SOURCE ? capabilities[i].source
						       : capabilities[i].destination;
		if (need != ON)
			continue;
		struct qemu_capability *old = &hv->undo->old_caps[hv->undo->n_old_caps++];
		(void)snprintf(old->name, sizeof(old->name), "%s", capabilities[i].name);
		old->value = false;
	}
}
