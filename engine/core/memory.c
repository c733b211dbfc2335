/* SPDX-License-Identifier: BSD-2-Clause */
/* Guest RAM as this process has it: mapped, registered, and known on the other side. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "core/engine.h"

static int map_region(struct eng_region *r, struct mf_error *err)
{
	r->pages = r->desc.size / r->desc.page_size;
	void *map = mmap(NULL, r->desc.size, PROT_READ | PROT_WRITE, MAP_SHARED, r->desc.fd,
			 (off_t)r->desc.offset);
	if (map == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "region %s: cannot map it",
				      r->desc.name);
	r->map = map;
	/* Not ours to dump, nor to hand to a child. */
	(void)madvise(map, r->desc.size, MADV_DONTDUMP);
	(void)madvise(map, r->desc.size, MADV_DONTFORK);
	/* Zeroed lazily by the kernel: no cost for what stays 0. */
	r->todo = mmap(NULL, bitmap_words(r->pages) * 8, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (r->todo == MAP_FAILED) {
		r->todo = NULL;
		return base_error(err, -ENOMEM, MF_SCOPE_HOST,
				  "region %s: no memory for its bitmap", r->desc.name);
	}
	return 0;
}

int eng_memory_map(struct mf_session *s, struct mf_error *err)
{
	struct eng_memory *m = &s->memory;
	for (uint32_t i = 0; i < s->guest.n_regions; i++) {
		struct eng_region *r = &m->region[m->n++];
		r->desc = s->guest.regions[i];
		int code = map_region(r, err);
		if (code < 0)
			return code;
		m->bytes += r->desc.size;
	}
	pthread_mutex_lock(&s->progress_lock);
	s->progress.total_bytes = m->bytes;
	pthread_mutex_unlock(&s->progress_lock);
	return 0;
}

void eng_memory_unmap(struct mf_session *s)
{
	for (uint32_t i = 0; i < s->memory.n; i++) {
		struct eng_region *r = &s->memory.region[i];
		if (r->map)
			(void)munmap(r->map, r->desc.size);
		if (r->todo)
			(void)munmap(r->todo, bitmap_words(r->pages) * 8);
		if (r->present)
			(void)munmap(r->present, bitmap_words(r->pages) * 8);
		if (r->hashes)
			(void)munmap(r->hashes, r->pages * 8);
	}
	memset(&s->memory, 0, sizeof(s->memory));
}

int eng_memory_empty(struct mf_session *s, struct mf_error *err)
{
	for (uint32_t i = 0; i < s->memory.n; i++) {
		const struct mf_region *d = &s->memory.region[i].desc;
		if (fallocate(d->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)d->offset,
			      (off_t)d->size))
			return base_error_sys(
				err, -errno, MF_SCOPE_HOST,
				"region %s: cannot empty it; its file must be on tmpfs, "
				"hugetlbfs or a memfd",
				d->name);
	}
	return 0;
}

/* Pages [first, last] of the region that hold file bytes [from, to). */
static void seed_bytes(struct eng_region *r, uint64_t from, uint64_t to)
{
	uint64_t first = from / r->desc.page_size;
	uint64_t end = (to + r->desc.page_size - 1) / r->desc.page_size;
	bitmap_set(r->todo, first, end - first);
}

static uint64_t seed_region(struct eng_region *r)
{
	uint64_t at = 0, size = r->desc.size, base = r->desc.offset;
	while (at < size) {
		off_t data = lseek(r->desc.fd, (off_t)(base + at), SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			return bitmap_count(r->todo, 0, r->pages);
		/* hugetlbfs cannot tell its holes: everything is data there */
		off_t hole = data < 0 ? -1 : lseek(r->desc.fd, data, SEEK_HOLE);
		if (data < 0 || hole <= data)
			break;
		uint64_t from = (uint64_t)data - base, to = (uint64_t)hole - base;
		if (from >= size)
			return bitmap_count(r->todo, 0, r->pages);
		to = to < size ? to : size;
		seed_bytes(r, from, to);
		at = to;
	}
	if (at < size)
		seed_bytes(r, at, size);
	return bitmap_count(r->todo, 0, r->pages);
}

bool eng_region_has_data(const struct eng_region *r, uint64_t at, uint64_t len)
{
	uint64_t base = r->desc.offset + at;
	/* The descriptor's own position is nobody's business here. */
	off_t data = lseek(r->desc.fd, (off_t)base, SEEK_DATA);
	return data < 0 ? errno != ENXIO : (uint64_t)data < base + len;
}

uint64_t eng_memory_seed(struct mf_session *s)
{
	uint64_t pages = 0;
	for (uint32_t i = 0; i < s->memory.n; i++)
		pages += seed_region(&s->memory.region[i]);
	return pages;
}

uint64_t eng_memory_count_todo(const struct mf_session *s)
{
	uint64_t pages = 0;
	for (uint32_t i = 0; i < s->memory.n; i++)
		pages += bitmap_count(s->memory.region[i].todo, 0, s->memory.region[i].pages);
	return pages;
}

uint64_t eng_memory_todo_bytes(const struct mf_session *s)
{
	uint64_t bytes = 0;
	for (uint32_t i = 0; i < s->memory.n; i++) {
		const struct eng_region *r = &s->memory.region[i];
		bytes += bitmap_count(r->todo, 0, r->pages) * r->desc.page_size;
	}
	return bytes;
}

uint64_t eng_op_pages(const struct eng_region *r)
{
	return r->desc.page_size >= ENG_OP_MAX ? 1 : ENG_OP_MAX / r->desc.page_size;
}

uint64_t eng_chunk_pages(const struct eng_region *r)
{
	return r->desc.page_size >= ENG_CHUNK ? 1 : ENG_CHUNK / r->desc.page_size;
}
