/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * --verify full: while the guest stands still, the source sends a hash of every page; the
 * destination compares each page after its last byte arrived and before anything could write it: what
 * is present before the device state is loaded, what is pulled before it is mapped.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "core/engine.h"

/* Hashes of one message: 1 MiB. */
#define BATCH_PAGES (1u << 17)

static uint64_t hash_page(const struct eng_region *r, uint64_t page)
{
	return XXH3_64bits(r->map + page * r->desc.page_size, r->desc.page_size);
}

/* A page's hash without touching holes: reading one would allocate it. */
struct hole_reader {
	const struct eng_region *r;
	uint64_t zero_hash;
	uint64_t data_end, hole_end; /* pages known to be data, and then hole */
};

static void start_reader(struct hole_reader *h, const struct eng_region *r)
{
	*h = (struct hole_reader){ .r = r };
	XXH3_state_t *state = XXH3_createState();
	static const uint8_t zeroes[4096];
	XXH3_64bits_reset(state);
	for (uint64_t done = 0; done < r->desc.page_size; done += sizeof(zeroes))
		XXH3_64bits_update(state, zeroes, sizeof(zeroes));
	h->zero_hash = XXH3_64bits_digest(state);
	XXH3_freeState(state);
}

static uint64_t hash_at(struct hole_reader *h, uint64_t page)
{
	const struct eng_region *r = h->r;
	uint64_t size = r->desc.page_size;
	if (page >= h->data_end && page >= h->hole_end) {
		uint64_t from, to;
		if (!eng_region_next_data(r, page * size, &from, &to)) {
			h->data_end = page;
			h->hole_end = r->pages;
		} else if (from / size > page) {
			h->data_end = page;
			h->hole_end = from / size;
		} else {
			h->data_end = h->hole_end = (to + size - 1) / size;
		}
	}
	return page < h->data_end ? hash_page(r, page) : h->zero_hash;
}

int eng_verify_send(struct mf_session *s, struct mf_error *err)
{
	base_autofree uint64_t *hashes = malloc(BATCH_PAGES * 8);
	if (!hashes)
		return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "verify: out of memory");
	for (uint32_t i = 0; i < s->memory.n; i++) {
		const struct eng_region *r = &s->memory.region[i];
		struct hole_reader reader;
		start_reader(&reader, r);
		for (uint64_t first = 0; first < r->pages; first += BATCH_PAGES) {
			uint64_t n =
				r->pages - first < BATCH_PAGES ? r->pages - first : BATCH_PAGES;
			for (uint64_t k = 0; k < n; k++)
				hashes[k] = htole64(hash_at(&reader, first + k));
			Mf__Wire__Hashes body = MF__WIRE__HASHES__INIT;
			wire_msg msg = WIRE_INIT;
			msg.body_case = WIRE_BODY(HASHES);
			msg.hashes = &body;
			body.region = i;
			body.first = first;
			body.hashes.data = (uint8_t *)hashes;
			body.hashes.len = n * 8;
			int code = eng_send(s, &msg, err);
			if (code < 0)
				return code;
		}
	}
	return 0;
}

int eng_verify_receive(struct mf_session *s, const Mf__Wire__Hashes *h, uint64_t *pages_left,
		       struct mf_error *err)
{
	uint64_t n = h->hashes.len / 8, after = 0;
	for (uint32_t i = h->region + 1; i < s->memory.n; i++)
		after += s->memory.region[i].pages;
	/* In order and without gaps: else counting them would not tell that all have come. */
	if (h->region >= s->memory.n || !n || n > s->memory.region[h->region].pages ||
	    h->first > s->memory.region[h->region].pages - n ||
	    *pages_left != after + s->memory.region[h->region].pages - h->first)
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				  "the other host sent hashes of pages that do not exist");
	struct eng_region *r = &s->memory.region[h->region];
	if (!r->hashes) {
		r->hashes = mmap(NULL, r->pages * 8, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (r->hashes == MAP_FAILED) {
			r->hashes = NULL;
			return base_error(err, -ENOMEM, MF_SCOPE_SESSION, "verify: out of memory");
		}
	}
	for (uint64_t k = 0; k < n; k++) {
		uint64_t le;
		memcpy(&le, h->hashes.data + k * 8, 8);
		r->hashes[h->first + k] = le64toh(le);
	}
	*pages_left -= n;
	return 0;
}

static void count(const struct mf_session *s, const struct eng_region *r, uint64_t n,
		  uint64_t wrong, _Atomic uint64_t *pages, _Atomic uint64_t *mismatches)
{
	uint64_t unit = r->desc.page_size / ENG_PAGE;
	if (wrong)
		base_debug("%s: region %s: %llu of %llu pages differ", s->report.session,
			   r->desc.name, (unsigned long long)wrong, (unsigned long long)n);
	atomic_fetch_add_explicit(pages, n * unit, memory_order_relaxed);
	atomic_fetch_add_explicit(mismatches, wrong * unit, memory_order_relaxed);
}

void eng_verify_arrived(struct mf_session *s, const struct eng_region *r, const uint8_t *bytes,
			uint64_t first, uint64_t n, _Atomic uint64_t *pages,
			_Atomic uint64_t *mismatches)
{
	uint64_t wrong = 0;
	for (uint64_t i = 0; i < n; i++)
		wrong += XXH3_64bits(bytes + i * r->desc.page_size, r->desc.page_size) !=
			 r->hashes[first + i];
	count(s, r, n, wrong, pages, mismatches);
}

void eng_verify_present(struct mf_session *s, const struct eng_region *r, _Atomic uint64_t *pages,
			_Atomic uint64_t *mismatches)
{
	struct hole_reader reader;
	uint64_t wrong = 0, n = 0;
	start_reader(&reader, r);
	for (uint64_t page = 0; page < r->pages; page++) {
		if (bitmap_test(r->todo, page))
			continue;
		n++;
		wrong += hash_at(&reader, page) != r->hashes[page];
	}
	count(s, r, n, wrong, pages, mismatches);
}
