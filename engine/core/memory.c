/* SPDX-License-Identifier: BSD-2-Clause */
/* Guest RAM as this process has it: mapped, registered, and known on the other side. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "core/engine.h"

int eng_region_is_private(const struct mf_region *d)
{
	char line[512], perms[8];
	uint64_t at = d->hva, end = at + d->size, from, to;
	int found = -EFAULT;
	if (d->fd >= 0)
		return 0;
	base_cleanup(base_fclosep) FILE *f = fopen("/proc/self/maps", "re");
	while (f && at < end && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &from, &to, perms) != 3 || to <= at)
			continue;
		int here = perms[3] == 'p';
		if (from > at || (found >= 0 && found != here))
			return -EFAULT;
		found = here;
		at = to;
	}
	return at < end ? -EFAULT : found;
}

/* Memory of this process, known by its address.  Shared memory is mapped once more, so that the guest's own
 * mapping can be emptied and armed while ours is written. */
static int map_by_address(struct eng_region *r, struct mf_error *err)
{
	void *at = (void *)(uintptr_t)r->desc.hva;
	int private = eng_region_is_private(&r->desc);
	if (private < 0)
		return base_error(err, private, MF_SCOPE_HOST,
				  "region %s: its addresses are not mapped in this process, or in "
				  "part shared and in part private",
				  r->desc.name);
	r->is_private = private;
	void *map = private ? at : mremap(at, 0, r->desc.size, MREMAP_MAYMOVE);
	if (map == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST,
				      "region %s: cannot map its memory once more; give it as one "
				      "mapping, or by its file",
				      r->desc.name);
	r->map = map;
	return 0;
}

static int map_by_file(struct eng_region *r, struct mf_error *err)
{
	void *map = mmap(NULL, r->desc.size, PROT_READ | PROT_WRITE, MAP_SHARED, r->desc.fd,
			 (off_t)r->desc.offset);
	if (map == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "region %s: cannot map it",
				      r->desc.name);
	r->map = map;
	return 0;
}

static int map_region(struct eng_region *r, struct mf_error *err)
{
	r->pages = r->desc.size / r->desc.page_size;
	int code = r->desc.fd < 0 ? map_by_address(r, err) : map_by_file(r, err);
	if (code < 0)
		return code;
	if (!r->is_private) {
		/* Not ours to dump, nor to hand to a child. */
		(void)madvise(r->map, r->desc.size, MADV_DONTDUMP);
		(void)madvise(r->map, r->desc.size, MADV_DONTFORK);
	}
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
		if (r->map && !r->is_private)
			(void)munmap(r->map, r->desc.size);
		if (r->todo)
			(void)munmap(r->todo, bitmap_words(r->pages) * 8);
		if (r->present)
			(void)munmap(r->present, bitmap_words(r->pages) * 8);
		if (r->hashes)
			(void)munmap(r->hashes, r->pages * 8);
	}
	if (s->memory.landing)
		(void)munmap(s->memory.landing, s->memory.landing_bytes);
	memset(&s->memory, 0, sizeof(s->memory));
}

static int empty_region(const struct eng_region *r)
{
	const struct mf_region *d = &r->desc;
	if (d->fd < 0)
		return madvise(r->map, d->size, r->is_private ? MADV_DONTNEED : MADV_REMOVE);
	return fallocate(d->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)d->offset,
			 (off_t)d->size);
}

int eng_memory_empty(struct mf_session *s, struct mf_error *err)
{
	for (uint32_t i = 0; i < s->memory.n; i++) {
		if (empty_region(&s->memory.region[i]))
			return base_error_sys(
				err, -errno, MF_SCOPE_HOST,
				"region %s: cannot empty it; it must be on tmpfs, hugetlbfs or a "
				"memfd, or anonymous memory that is not locked",
				s->memory.region[i].desc.name);
	}
	return 0;
}

/* One background read of post-copy: a page in its middle comes when all of it has. */
#define PULL_OP (256u << 10)
/* Pages that are pulled into private memory come in smaller pieces: every slot of every lane has room for one. */
#define LANDING_OP (64u << 10)

int eng_landing_open(struct mf_session *s, struct mf_error *err)
{
	struct eng_memory *m = &s->memory;
	for (uint32_t i = 0; i < m->n; i++) {
		const struct eng_region *r = &m->region[i];
		uint64_t bytes = eng_pull_pages(r) * r->desc.page_size;
		if (r->is_private && bytes > m->landing_slot)
			m->landing_slot = bytes;
	}
	if (!m->landing_slot)
		return 0;
	m->landing_bytes = m->landing_slot * ENG_DEPTH * eng_lanes_per_rail(s) * s->n_rails;
	void *map = mmap(NULL, m->landing_bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (map == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "memory for pages that arrive");
	m->landing = map;
	return 0;
}

uint8_t *eng_landing_at(const struct eng_lane *lane, uint32_t region, uint64_t first,
			uint64_t cookie)
{
	const struct eng_memory *m = &lane->session->memory;
	const struct eng_region *r = &m->region[region];
	uint64_t number = (uint64_t)(lane - lane->session->lanes.lane) * ENG_DEPTH + cookie;
	return r->is_private ? m->landing + number * m->landing_slot
			     : r->map + first * r->desc.page_size;
}

int eng_memory_drop_todo(struct mf_session *s, struct mf_error *err)
{
	struct extent e;
	for (uint32_t i = 0; i < s->memory.n; i++) {
		const struct eng_region *r = &s->memory.region[i];
		uint64_t size = r->desc.page_size;
		for (uint64_t at = 0;
		     r->is_private && bitmap_next_extent(r->todo, at, r->pages, r->pages, &e);
		     at = e.first + e.n) {
			if (madvise(r->map + e.first * size, e.n * size, MADV_DONTNEED))
				return base_error_sys(err, -errno, MF_SCOPE_HOST,
						      "region %s: it cannot be emptied in part",
						      r->desc.name);
		}
	}
	return 0;
}

/* Pages [first, last] of the region that hold file bytes [from, to). */
static void seed_bytes(struct eng_region *r, uint64_t from, uint64_t to)
{
	uint64_t first = from / r->desc.page_size;
	uint64_t end = (to + r->desc.page_size - 1) / r->desc.page_size;
	bitmap_set_atomic(r->todo, first, end - first);
}

void eng_region_seed(struct eng_region *r, uint64_t first, uint64_t n)
{
	uint64_t at = first * r->desc.page_size, size = at + n * r->desc.page_size;
	uint64_t base = r->desc.offset;
	while (at < size) {
		off_t data = lseek(r->desc.fd, (off_t)(base + at), SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			return;
		/* hugetlbfs cannot tell its holes, and addresses have none: everything is data there */
		off_t hole = data < 0 ? -1 : lseek(r->desc.fd, data, SEEK_HOLE);
		if (data < 0 || hole <= data)
			break;
		uint64_t from = (uint64_t)data - base, to = (uint64_t)hole - base;
		if (from >= size)
			return;
		to = to < size ? to : size;
		seed_bytes(r, from, to);
		at = to;
	}
	if (at < size)
		seed_bytes(r, at, size);
}

bool eng_region_has_data(const struct eng_region *r, uint64_t at, uint64_t len)
{
	uint64_t base = r->desc.offset + at;
	/* The descriptor's own position is nobody's business here. */
	off_t data = lseek(r->desc.fd, (off_t)base, SEEK_DATA); /* no file: EBADF, cannot tell */
	return data < 0 ? errno != ENXIO : (uint64_t)data < base + len;
}

void eng_memory_seed(struct mf_session *s)
{
	for (uint32_t i = 0; i < s->memory.n; i++)
		eng_region_seed(&s->memory.region[i], 0, s->memory.region[i].pages);
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

uint64_t eng_pull_pages(const struct eng_region *r)
{
	uint64_t most = r->is_private ? LANDING_OP : PULL_OP;
	return r->desc.page_size >= most ? 1 : most / r->desc.page_size;
}

uint64_t eng_op_pages(const struct eng_region *r)
{
	return r->desc.page_size >= ENG_OP_MAX ? 1 : ENG_OP_MAX / r->desc.page_size;
}

uint64_t eng_chunk_pages(const struct eng_region *r)
{
	return r->desc.page_size >= ENG_CHUNK ? 1 : ENG_CHUNK / r->desc.page_size;
}

int eng_keep_state(struct mf_session *s, const void *bytes, size_t len, struct mf_error *err)
{
	size_t want = s->device.len + len;
	if (len > ENG_STATE_MAX || want > ENG_STATE_MAX)
		return base_error(err, -E2BIG, MF_SCOPE_SESSION, "device state of more than 1 GiB");
	if (want > s->device.cap) {
		uint8_t *more = realloc(s->device.bytes, want * 2);
		if (!more)
			return base_error(err, -ENOMEM, MF_SCOPE_SESSION,
					  "no memory for the device state");
		s->device.bytes = more;
		s->device.cap = want * 2;
	}
	if (len)
		memcpy(s->device.bytes + s->device.len, bytes, len);
	s->device.len = want;
	return 0;
}
