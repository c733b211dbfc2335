/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A frame of the control channel, and what the engine makes of messages that describe memory.  What was taken for valid
 * is encoded and decoded again: it must be valid then, too, and come out as the same bytes.
 */
#include <errno.h>
#include <sys/mman.h>

#include "core/engine.h"
#include "fuzz.h"
#include "wire/frame.h"

enum {
	PAGE = 4096,
	PAGES = 512,
	REGIONS = 2,
};

/* A destination's memory, as far as these messages are held against it. */
static void init_memory(struct mf_session *s)
{
	s->memory.n = REGIONS;
	for (uint32_t i = 0; i < REGIONS; i++) {
		struct eng_region *r = &s->memory.region[i];
		r->pages = PAGES << i;
		r->desc.page_size = PAGE;
		r->desc.size = r->pages * PAGE;
		r->todo = calloc(bitmap_words(r->pages), sizeof(*r->todo));
		assert(r->todo);
		s->memory.bytes += r->desc.size;
	}
}

static uint64_t count_todo(const struct mf_session *s)
{
	uint64_t n = 0;
	for (uint32_t i = 0; i < REGIONS; i++)
		n += bitmap_count(s->memory.region[i].todo, 0, s->memory.region[i].pages);
	return n;
}

static void take_bitmap(struct mf_session *s, const Mf__Wire__Bitmap *b)
{
	struct mf_error err = { 0 };
	uint64_t due = PAGES, left = due;
	int code = eng_take_bitmap(s, b, &left, &err);
	if (code < 0)
		fuzz_check_error(&err, code);
	/* A page may be named twice; none is marked that was not named. */
	assert(left <= due && count_todo(s) <= due - left);
	for (uint32_t i = 0; i < REGIONS; i++)
		bitmap_clear(s->memory.region[i].todo, 0, s->memory.region[i].pages);
}

static void take_hashes(struct mf_session *s, const Mf__Wire__Hashes *h)
{
	struct mf_error err = { 0 };
	/* All are due that the message can be the first of: it is taken, or nothing is. */
	uint64_t due = 0, before;
	for (uint32_t i = h->region; i < REGIONS; i++)
		due += s->memory.region[i].pages;
	due -= h->first < due ? h->first : 0;
	before = due;
	int code = eng_verify_receive(s, h, &due, &err);
	if (code < 0)
		fuzz_check_error(&err, code);
	assert(code < 0 ? due == before : due == before - h->hashes.len / 8);
	for (uint32_t i = 0; i < REGIONS; i++) {
		struct eng_region *r = &s->memory.region[i];
		if (r->hashes)
			(void)munmap(r->hashes, r->pages * 8);
		r->hashes = NULL;
	}
}

static void take_offer(struct mf_session *s, const Mf__Wire__RailOffer *offer)
{
	struct eng_pieces pieces = { 0 };
	struct mf_error err = { 0 };
	int code = eng_pieces_take(s, offer->piece, offer->n_piece, &pieces, &err);
	if (code < 0) {
		fuzz_check_error(&err, code);
		return;
	}
	/* Each page is in one piece, and pieces are counted through. */
	uint32_t last = 0;
	for (uint32_t i = 0; i < REGIONS; i++) {
		const struct eng_region *r = &s->memory.region[i];
		for (uint64_t page = 0; page < r->pages; page++) {
			uint32_t piece = eng_piece_at(&pieces, r, i, page);
			assert(piece == last || piece == last + 1);
			last = piece;
		}
	}
	assert(last + 1 == pieces.total);
}

static void use(const wire_msg *msg)
{
	static struct mf_session s;
	if (!s.memory.n)
		init_memory(&s);
	if (msg->body_case == WIRE_BODY(BITMAP))
		take_bitmap(&s, msg->bitmap);
	if (msg->body_case == WIRE_BODY(HASHES))
		take_hashes(&s, msg->hashes);
	if (msg->body_case == WIRE_BODY(RAIL_OFFER))
		take_offer(&s, msg->rail_offer);
	if (msg->body_case == WIRE_BODY(PREPARED) && msg->prepared->n_rails)
		take_offer(&s, msg->prepared->rails[0]);
}

/* Fields that only later versions know are kept as they are; protobuf-c encodes some of them so that it does not
 * decode them again. */
static bool has_unknown(const ProtobufCMessage *m)
{
	bool has = m->n_unknown_fields;
	for (unsigned i = 0; i < m->descriptor->n_fields && !has; i++) {
		const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
		const void *at = (const char *)m + f->offset;
		const void *quantity = (const char *)m + f->quantifier_offset;
		if (f->type != PROTOBUF_C_TYPE_MESSAGE)
			continue;
		if (f->label != PROTOBUF_C_LABEL_REPEATED) {
			bool is_other = f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF &&
					*(const uint32_t *)quantity != f->id;
			const ProtobufCMessage *sub = *(ProtobufCMessage *const *)at;
			has = !is_other && sub && has_unknown(sub);
			continue;
		}
		for (size_t k = 0; k < *(const size_t *)quantity && !has; k++)
			has = has_unknown((*(ProtobufCMessage * *const *)at)[k]);
	}
	return has;
}

static void check_again(const wire_msg *msg)
{
	wire_msg *again;
	uint8_t *first, *second;
	size_t first_len, second_len;
	uint32_t len;
	assert(wire_msg_encode(msg, &first, &first_len) == 0);
	assert(wire_header_decode(first, &len) == 0 && len + WIRE_HEADER == first_len);
	int code = wire_msg_decode(first + WIRE_HEADER, len, &again);
	if (code < 0) {
		assert(code == -EBADMSG && has_unknown(&msg->base));
		free(first);
		return;
	}
	assert(again->body_case == msg->body_case);
	assert(wire_msg_encode(again, &second, &second_len) == 0);
	assert(first_len == second_len && !memcmp(first, second, first_len));
	free(first);
	free(second);
	wire_msg_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint32_t len = 0;
	if (size < WIRE_HEADER)
		return 0;
	if (wire_header_decode(data, &len) == 0)
		assert(len <= WIRE_FRAME_MAX);
	/* The rest is looked at in any case: a length that fits is hard to guess. */
	size_t rest = size - WIRE_HEADER;
	uint8_t *payload = fuzz_copy(data + WIRE_HEADER, rest);
	wire_msg *msg = NULL;
	int code = wire_msg_decode(payload, rest, &msg);
	assert(code == 0 || code == -EBADMSG);
	free(payload);
	if (code < 0)
		return 0;
	assert(strcmp(wire_msg_name(msg), "nothing") != 0);
	check_again(msg);
	use(msg);
	wire_msg_free(msg);
	return 0;
}
