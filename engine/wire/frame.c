/* SPDX-License-Identifier: BSD-2-Clause */
#include "wire/frame.h"

#include <errno.h>
#include <memferry/region.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t magic[4] = { 'M', 'F', 'C', '1' };

/* Bounds on what a peer may say; a message past them is malformed. */
enum {
	TEXT_MAX = 1024,
	FINDINGS_MAX = 128,
	PIECES_MAX = 1 << 17, /* registrations of one region: 128 TiB in pieces of 1 GiB */
	PIECES_MESSAGE_MAX = 1 << 16,
	TRANSPORTS_MAX = 16,
	PATHS_MAX = 64,
	RAILS_MAX = 8,
	LANES_MAX = 256,
	LATENCIES = 5,
	BUCKETS_MAX = 64,
};

static void put_le32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> 8 * i);
}

static uint32_t get_le32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

int wire_header_decode(const uint8_t header[WIRE_HEADER], uint32_t *ret_len)
{
	uint32_t len = get_le32(header + 4);
	if (memcmp(header, magic, sizeof(magic)) || len > WIRE_FRAME_MAX)
		return -EBADMSG;
	*ret_len = len;
	return 0;
}

static bool text_ok(const char *text)
{
	return strnlen(text, TEXT_MAX + 1) <= TEXT_MAX;
}

static bool guest_ok(const Mf__Wire__Guest *g)
{
	if (!g || !text_ok(g->kind) || !text_ok(g->name) || !text_ok(g->monitor) ||
	    !text_ok(g->machine) || !text_ok(g->cpu) || g->n_regions > MF_REGIONS_MAX ||
	    g->needs.len > WIRE_NEEDS_MAX)
		return false;
	for (size_t i = 0; i < g->n_regions; i++) {
		const Mf__Wire__Region *r = g->regions[i];
		if (strlen(r->name) >= MF_REGION_NAME_MAX || !r->size || r->size >> 56)
			return false;
		if (r->page_size < 4096 || r->page_size & (r->page_size - 1) ||
		    r->size % r->page_size)
			return false;
	}
	return true;
}

static bool sizes_ok(const uint64_t *piece, size_t n)
{
	if (n > MF_REGIONS_MAX)
		return false;
	for (size_t i = 0; i < n; i++) {
		if (!piece[i])
			return false;
	}
	return true;
}

static bool offer_ok(const Mf__Wire__RailOffer *o)
{
	return o->rail < RAILS_MAX && text_ok(o->address) && text_ok(o->reason) &&
	       sizes_ok(o->piece, o->n_piece);
}

static bool prepared_ok(const Mf__Wire__Prepared *p)
{
	if (p->n_rails > RAILS_MAX)
		return false;
	for (size_t i = 0; i < p->n_rails; i++) {
		if (!offer_ok(p->rails[i]))
			return false;
	}
	return true;
}

static bool pieces_ok(const Mf__Wire__Pieces *p)
{
	return p->rail < RAILS_MAX && p->n_addr == p->n_key && p->n_addr &&
	       p->n_addr <= PIECES_MESSAGE_MAX && p->first < MF_REGIONS_MAX * PIECES_MAX;
}

static bool verdicts_ok(const Mf__Wire__Verdicts *v)
{
	if (!guest_ok(v->guest) || v->n_findings > FINDINGS_MAX || !text_ok(v->transport) ||
	    !text_ok(v->transport_reason))
		return false;
	if (v->n_rails > RAILS_MAX)
		return false;
	for (size_t i = 0; i < v->n_rails; i++) {
		const Mf__Wire__Rail *r = v->rails[i];
		if (!text_ok(r->transport) || !text_ok(r->source) || !text_ok(r->destination) ||
		    !text_ok(r->source_device) || !text_ok(r->destination_device))
			return false;
	}
	for (size_t i = 0; i < v->n_findings; i++) {
		if (v->findings[i]->verdict > 2 || !text_ok(v->findings[i]->subject) ||
		    !text_ok(v->findings[i]->detail))
			return false;
	}
	return true;
}

static bool describe_ok(const Mf__Wire__Describe *d)
{
	if (!guest_ok(d->guest) || d->n_transports > TRANSPORTS_MAX || d->n_paths > PATHS_MAX ||
	    !text_ok(d->demanded))
		return false;
	for (size_t i = 0; i < d->n_paths; i++) {
		const Mf__Wire__Path *p = d->paths[i];
		if (!text_ok(p->transport) || !text_ok(p->device) || !text_ok(p->address) ||
		    p->prefix > 128)
			return false;
	}
	for (size_t i = 0; i < d->n_transports; i++) {
		if (!text_ok(d->transports[i]))
			return false;
	}
	return true;
}

static bool body_ok(const wire_msg *m)
{
	switch (m->body_case) {
	case WIRE_BODY(HELLO):
		return text_ok(m->hello->software) && text_ok(m->hello->session) &&
		       m->hello->version_min <= m->hello->version_max;
	case WIRE_BODY(WELCOME):
		return text_ok(m->welcome->software);
	case WIRE_BODY(DESCRIBE):
		return describe_ok(m->describe);
	case WIRE_BODY(VERDICTS):
		return verdicts_ok(m->verdicts);
	case WIRE_BODY(PREPARE):
		return text_ok(m->prepare->transport) && m->prepare->token.len == 32 &&
		       m->prepare->bulk_lanes >= 1 && m->prepare->bulk_lanes <= LANES_MAX;
	case WIRE_BODY(PREPARED):
		return prepared_ok(m->prepared);
	case WIRE_BODY(RAIL_OFFER):
		return offer_ok(m->rail_offer);
	case WIRE_BODY(RAIL_JOINED):
		return m->rail_joined->rail < RAILS_MAX && text_ok(m->rail_joined->reason) &&
		       sizes_ok(m->rail_joined->piece, m->rail_joined->n_piece);
	case WIRE_BODY(RAIL_UP):
		return m->rail_up->rail < RAILS_MAX && text_ok(m->rail_up->reason);
	case WIRE_BODY(RAIL_LOST):
		return m->rail_lost->rail < RAILS_MAX && text_ok(m->rail_lost->reason);
	case WIRE_BODY(RAIL_RETRY):
		return m->rail_retry->rail < RAILS_MAX;
	case WIRE_BODY(PIECES):
		return pieces_ok(m->pieces);
	case WIRE_BODY(LANE_LOST):
		return m->lane_lost->rail < RAILS_MAX && m->lane_lost->lane <= LANES_MAX;
	case WIRE_BODY(LANE_GONE):
		return m->lane_gone->rail < RAILS_MAX && m->lane_gone->lane <= LANES_MAX;
	case WIRE_BODY(BITMAP):
		return m->bitmap->region < MF_REGIONS_MAX && m->bitmap->n_runs % 2 == 0;
	case WIRE_BODY(HASHES):
		return m->hashes->region < MF_REGIONS_MAX && m->hashes->hashes.len % 8 == 0;
	case WIRE_BODY(DONE):
		return (m->done->n_latency_us == 0 || m->done->n_latency_us == LATENCIES) &&
		       m->done->n_latency_log2_us <= BUCKETS_MAX;
	case WIRE_BODY(ABORT):
		return text_ok(m->abort->message);
	case WIRE_BODY(QUERY):
		return text_ok(m->query->session);
	case WIRE_BODY(SWITCHOVER):
	case WIRE_BODY(ROUND):
	case WIRE_BODY(STATE):
	case WIRE_BODY(READY):
	case WIRE_BODY(COMMIT):
	case WIRE_BODY(RUNNING):
	case WIRE_BODY(BYE):
	case WIRE_BODY(PING):
	case WIRE_BODY(ANSWER):
	case WIRE_BODY(PULL):
		return true;
	default:
		return false;
	}
}

int wire_msg_decode(const uint8_t *payload, size_t len, wire_msg **ret)
{
	if (len > WIRE_FRAME_MAX)
		return -EBADMSG;
	wire_msg *msg = mf__wire__control__unpack(NULL, len, payload);
	if (!msg)
		return -EBADMSG;
	if (!body_ok(msg)) {
		wire_msg_free(msg);
		return -EBADMSG;
	}
	*ret = msg;
	return 0;
}

int wire_msg_encode(const wire_msg *msg, uint8_t **ret_bytes, size_t *ret_len)
{
	size_t len = mf__wire__control__get_packed_size(msg);
	if (len > WIRE_FRAME_MAX)
		return -EMSGSIZE;
	uint8_t *bytes = malloc(WIRE_HEADER + len);
	if (!bytes)
		return -ENOMEM;
	memcpy(bytes, magic, sizeof(magic));
	put_le32(bytes + 4, (uint32_t)len);
	mf__wire__control__pack(msg, bytes + WIRE_HEADER);
	*ret_bytes = bytes;
	*ret_len = WIRE_HEADER + len;
	return 0;
}

void wire_msg_free(wire_msg *msg)
{
	if (msg)
		mf__wire__control__free_unpacked(msg, NULL);
}

const char *wire_msg_name(const wire_msg *msg)
{
	const ProtobufCMessageDescriptor *d = &mf__wire__control__descriptor;
	const ProtobufCFieldDescriptor *field =
		protobuf_c_message_descriptor_get_field(d, (unsigned)msg->body_case);
	return field ? field->name : "nothing";
}
