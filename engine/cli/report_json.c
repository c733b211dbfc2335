/* SPDX-License-Identifier: BSD-2-Clause */
/* The JSON that scripts read: field names here are a promise, see JSON in the man page. */
#include <string.h>

#include "base/cleanup.h"
#include "report.h"

/* Longer than any text of the public structs. */
#define TEXT_MAX 512

static json_t *text(const char *s)
{
	char clean[TEXT_MAX];

	return json_string(cli_clean(s ? s : "", clean, sizeof(clean)));
}

static json_t *number(uint64_t n)
{
	return json_integer(n > INT64_MAX ? INT64_MAX : (json_int_t)n);
}

/* json_object_set_new() takes NULL as "nothing to set", so that a failed allocation leaves a
 * field out and never an invalid object. */
static void put(json_t *object, const char *key, json_t *value)
{
	(void)json_object_set_new(object, key, value);
}

static json_t *error_or_null(const struct mf_error *err)
{
	if (!err->code)
		return json_null();
	json_t *o = json_object();
	put(o, "code", text(mf_error_name(err->code)));
	put(o, "message", text(err->msg));
	return o;
}

static void put_round(json_t *o, const struct mf_round *round)
{
	put(o, "n", number(round->n));
	put(o, "ms", number(round->ms));
	put(o, "pages", number(round->pages));
	put(o, "zero_pages", number(round->zero_pages));
	put(o, "bytes", number(round->bytes));
	put(o, "dirty_pages", number(round->dirty_pages));
}

static void put_finding(json_t *o, const struct mf_finding *finding)
{
	put(o, "verdict", text(cli_verdict_name(finding->verdict)));
	put(o, "subject", text(finding->subject));
	put(o, "detail", text(finding->detail));
}

/* The engine says "tcp: why". */
static void put_transport(json_t *o, const char *said)
{
	size_t len = strcspn(said, ":");
	char name[32];

	(void)snprintf(name, sizeof(name), "%.*s", (int)(len < 31 ? len : 31), said);
	put(o, "transport", text(name));
	said += len;
	said += *said == ':';
	put(o, "reason", text(said + strspn(said, " ")));
}

static json_t *new_event(const char *name)
{
	json_t *o = json_object();

	put(o, "event", json_string(name));
	return o;
}

json_t *cli_json_event(const struct mf_event *event)
{
	json_t *o = NULL;

	switch (event->type) {
	case MF_EVENT_LISTENING:
		o = new_event("listening");
		put(o, "address", text(event->text));
		break;
	case MF_EVENT_CONNECTED:
		o = new_event("connected");
		put(o, "address", text(event->text));
		break;
	case MF_EVENT_TRANSPORT:
		o = new_event("transport");
		put_transport(o, event->text ? event->text : "");
		break;
	case MF_EVENT_FINDING:
		o = new_event("finding");
		if (event->finding)
			put_finding(o, event->finding);
		break;
	case MF_EVENT_PHASE:
		o = new_event("phase");
		put(o, "phase", text(mf_phase_name(event->phase)));
		break;
	case MF_EVENT_ROUND:
		o = new_event("round");
		if (event->round)
			put_round(o, event->round);
		break;
	case MF_EVENT_NOTICE:
		o = new_event("notice");
		put(o, "text", text(event->text));
		break;
	case MF_EVENT_RUNNING:
		o = new_event("running");
		break;
	}
	return o;
}

json_t *cli_json_progress(const char *event, const struct mf_progress *p)
{
	json_t *o = new_event(event);

	put(o, "session", text(p->session));
	put(o, "side", text(cli_side_name(p->side)));
	put(o, "phase", text(mf_phase_name(p->phase)));
	put(o, "round", number(p->round));
	put(o, "elapsed_ms", number(p->elapsed_ms));
	put(o, "total_bytes", number(p->total_bytes));
	put(o, "registered_bytes", number(p->registered_bytes));
	put(o, "done_bytes", number(p->done_bytes));
	put(o, "round_bytes", number(p->round_bytes));
	put(o, "bytes_per_s", number(p->bytes_per_s));
	put(o, "dirty_bytes_per_s", number(p->dirty_bytes_per_s));
	put(o, "predicted_downtime_ms", number(p->predicted_downtime_ms));
	put(o, "left_ms", number(p->left_ms));
	put(o, "faults", number(p->faults));
	return o;
}

json_t *cli_json_error(const struct mf_error *err)
{
	json_t *o = new_event("error");

	put(o, "error", error_or_null(err));
	return o;
}

json_t *cli_json_device(const struct mf_device *device)
{
	json_t *o = new_event("device");

	put(o, "transport", text(device->transport));
	put(o, "name", text(device->name));
	put(o, "detail", text(device->detail));
	put(o, "mbit_per_s", number(device->mbit_per_s));
	put(o, "numa_node", device->numa_node < 0 ? json_null() : json_integer(device->numa_node));
	put(o, "usable", json_boolean(device->usable));
	put(o, "picked", json_boolean(device->picked));
	put(o, "reason", text(device->reason));
	return o;
}

json_t *cli_json_leftover(const char *event, const struct mf_leftover *left)
{
	json_t *o = new_event(event);

	put(o, "session", text(left->session));
	put(o, "side", text(cli_side_name(left->side)));
	put(o, "record", left->record[0] ? text(left->record) : json_null());
	put(o, "postcopy", json_boolean(left->postcopy));
	put(o, "guest_pid", left->pid ? json_integer(left->pid) : json_null());
	put(o, "guest_lives", json_boolean(left->guest_lives));
	put(o, "needed", json_boolean(left->needed));
	put(o, "detail", text(left->text));
	return o;
}

static json_t *rounds_array(const struct mf_report *r)
{
	uint32_t kept = r->n_rounds < MF_ROUNDS_KEPT ? r->n_rounds : MF_ROUNDS_KEPT;
	json_t *array = json_array();

	for (uint32_t i = 0; i < kept; i++) {
		json_t *o = json_object();
		put_round(o, &r->rounds[i]);
		(void)json_array_append_new(array, o);
	}
	return array;
}

static json_t *rails_array(const struct mf_report *r)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < r->n_rails; i++) {
		const struct mf_rail_report *rail = &r->rails[i];
		json_t *o = json_object();
		put(o, "id", number(i));
		put(o, "transport", text(rail->transport));
		put(o, "device", text(rail->device));
		put(o, "local", text(rail->local));
		put(o, "peer", text(rail->peer));
		put(o, "place", text(rail->place));
		put(o, "state", text(!rail->joined ? "unused" : rail->lost ? "lost" : "up"));
		put(o, "reason", text(rail->reason));
		put(o, "registration_ms", number(rail->registration_ms));
		put(o, "bytes_pinned", number(rail->bytes_pinned));
		put(o, "retransmits", number(rail->retransmits));
		put(o, "retries", number(rail->retries));
		(void)json_array_append_new(array, o);
	}
	return array;
}

static json_t *lanes_array(const struct mf_report *r)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < r->n_lanes; i++) {
		const struct mf_lane_report *lane = &r->lanes[i];
		const struct mf_rail_report *rail = &r->rails[lane->rail];
		json_t *o = json_object();
		put(o, "rail", number(lane->rail));
		put(o, "id", number(lane->id));
		put(o, "urgent", json_boolean(lane->urgent));
		put(o, "transport", text(rail->transport));
		put(o, "device", text(rail->device));
		put(o, "state", text(lane->lost ? "lost" : "up"));
		put(o, "bytes_written", number(lane->bytes_written));
		put(o, "bytes_read", number(lane->bytes_read));
		put(o, "writes", number(lane->writes));
		put(o, "reads", number(lane->reads));
		put(o, "flushes", number(lane->flushes));
		put(o, "signalled", number(lane->signalled));
		put(o, "unsignalled", number(lane->unsignalled));
		put(o, "retries", number(lane->retries));
		put(o, "polled", number(lane->polled));
		put(o, "evented", number(lane->evented));
		(void)json_array_append_new(array, o);
	}
	return array;
}

static json_t *findings_array(const struct mf_report *r)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < r->n_findings && i < BASE_ARRAY_LEN(r->findings); i++) {
		json_t *o = json_object();
		put_finding(o, &r->findings[i]);
		(void)json_array_append_new(array, o);
	}
	return array;
}

static json_t *postcopy_or_null(const struct mf_report *r)
{
	const struct mf_postcopy_report *p = &r->postcopy;

	if (!r->has_postcopy)
		return json_null();
	json_t *latency = json_object();
	put(latency, "p50", number(p->latency_us.p50));
	put(latency, "p90", number(p->latency_us.p90));
	put(latency, "p99", number(p->latency_us.p99));
	put(latency, "p99_9", number(p->latency_us.p99_9));
	put(latency, "max", number(p->latency_us.max));
	json_t *buckets = json_array();
	for (size_t i = 0; i < MF_LATENCY_BUCKETS; i++)
		(void)json_array_append_new(buckets, number(p->latency_log2_us[i]));
	json_t *o = json_object();
	put(o, "ms", number(p->ms));
	put(o, "faults", number(p->faults));
	put(o, "pulled_pages", number(p->pulled_pages));
	put(o, "latency_us", latency);
	put(o, "latency_log2_us", buckets);
	return o;
}

static json_t *verify_or_null(const struct mf_report *r)
{
	if (!r->has_verify)
		return json_null();
	json_t *o = json_object();
	put(o, "pages", number(r->verify_pages));
	put(o, "mismatches", number(r->verify_mismatches));
	return o;
}

json_t *cli_json_report(const struct mf_report *r)
{
	json_t *cpu = json_object();
	json_t *o = new_event("report");

	put(cpu, "user", number(r->cpu_user_ms));
	put(cpu, "system", number(r->cpu_system_ms));
	put(o, "schema", json_integer(CLI_JSON_SCHEMA));
	put(o, "session", text(r->session));
	put(o, "side", text(cli_side_name(r->side)));
	put(o, "outcome", text(mf_outcome_name(r->outcome)));
	put(o, "mode", text(mf_mode_name(r->mode)));
	put(o, "transport", text(r->transport));
	put(o, "transport_reason", text(r->transport_reason));
	put(o, "sealing", text(mf_sealing_name(r->sealing)));
	put(o, "tracker", text(r->tracker));
	put(o, "total_ms", number(r->total_ms));
	put(o, "downtime_ms", number(r->downtime_ms));
	put(o, "rounds", rounds_array(r));
	put(o, "bytes_written", number(r->bytes_written));
	put(o, "bytes_read", number(r->bytes_read));
	put(o, "pages_total", number(r->pages_total));
	put(o, "pages_zero", number(r->pages_zero));
	put(o, "pages_resent", number(r->pages_resent));
	put(o, "pages_bridged", number(r->pages_bridged));
	put(o, "rails", rails_array(r));
	put(o, "lanes", lanes_array(r));
	put(o, "postcopy", postcopy_or_null(r));
	put(o, "recoveries", json_integer(r->recoveries));
	put(o, "cpu_ms", cpu);
	put(o, "verify", verify_or_null(r));
	put(o, "error", error_or_null(&r->error));
	put(o, "findings", findings_array(r));
	return o;
}

void cli_json_print(FILE *to, json_t *object)
{
	base_autofree char *line = object ? json_dumps(object, JSON_COMPACT) : NULL;

	if (line) {
		/* One write a line: readers of a pipe see whole objects. */
		(void)fprintf(to, "%s\n", line);
		(void)fflush(to);
	}
	json_decref(object);
}
