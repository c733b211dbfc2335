/* SPDX-License-Identifier: BSD-2-Clause */
/* Guest RAM as this process has it: mapped, registered, and known on the other side. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>

#include "base/cleanup.h"
#include "base/maps.h"
#include "core/engine.h"

/* The mappings that a region lies in, one after the other. */
struct looking {
	const struct mf_region *d;
	uint64_t at; /* what is before it was looked at */
	struct base_mapping first, last;
	struct mf_error *err;
};

/* The same kind of memory as what lies before it; of a file also the bytes that follow. */
static bool continues(const struct base_mapping *m, const struct base_mapping *last)
{
	return m->is_private == last->is_private && m->inode == last->inode &&
	       m->dev_major == last->dev_major && m->dev_minor == last->dev_minor &&
	       (!m->inode || m->offset == last->offset + (last->end - last->start));
}

/* 1: no need to look further, there is a gap. */
static int look_at(const struct base_mapping *m, void *ctx)
{
	struct looking *l = ctx;
	if (m->start > l->at || !m->may_read || !m->may_write)
		return 1;
	if (l->at == l->d->hva)
		l->first = *m;
	else if (!continues(m, &l->last))
		return base_error(l->err, -EINVAL, MF_SCOPE_HOST,
				  "region %s: its addresses are different kinds of memory, or "
				  "different parts of a file; describe a region for each",
				  l->d->name);
	l->last = *m;
	l->at = m->end;
	return 0;
}

/* Memory of this process: 1 private, 0 shared; *ret_first is the mapping that it begins in. */
static int look_at_region(const struct mf_region *d, struct base_mapping *ret_first,
			  struct mf_error *err)
{
	struct looking l = { .d = d, .at = d->hva, .err = err };
	int r = base_each_mapping(0, d->hva, d->size, look_at, &l, err);
	if (r < 0)
		return r;
	if (l.at < d->hva + d->size)
		return base_error(err, -EFAULT, MF_SCOPE_HOST,
				  "region %s: its addresses are not mapped in this process, to be "
				  "read and written",
				  d->name);
	*ret_first = l.first;
	if (!l.first.is_private)
		return 0;
	if (l.first.inode)
		return base_error(
			err, -EINVAL, MF_SCOPE_HOST,
			"region %s is a private mapping of a file, which has its bytes in "
			"two places; map anonymous memory and read the file into it",
			d->name);
	if (d->page_size > ENG_PAGE)
		return base_error(err, -EINVAL, MF_SCOPE_HOST,
				  "region %s is private memory of huge pages; map it shared",
				  d->name);
	return 1;
}

int eng_region_is_private(const struct mf_region *d, struct mf_error *err)
{
	struct base_mapping first;
	return d->fd >= 0 ? 0 : look_at_region(d, &first, err);
}

/* Memory of this process, known by its address.  Shared memory is mapped once more, so that the guest's own
 * mapping can be emptied and armed while ours is written. */
static int map_by_address(struct eng_region *r, struct mf_error *err)
{
	void *at = (void *)(uintptr_t)r->desc.hva;
	struct base_mapping m;
	char path[96];
	int private = look_at_region(&r->desc, &m, err);
	if (private < 0)
		return private;
	if (private) {
		r->is_private = true;
		r->map = at;
		r->holes_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		return 0;
	}
	void *map = mremap(at, 0, r->desc.size, MREMAP_MAYMOVE);
	if (map == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST,
				      "region %s: cannot map its memory once more; give it by its "
				      "file",
				      r->desc.name);
	r->map = map;
	/* Needs privilege; without it, all counts as data. */
	(void)snprintf(path, sizeof(path), "/proc/self/map_files/%" PRIx64 "-%" PRIx64, m.start,
		       m.end);
	r->holes_fd = open(path, O_RDONLY | O_CLOEXEC);
	r->holes_offset = m.offset + (r->desc.hva - m.start);
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
	r->holes_fd = r->desc.fd;
	r->holes_offset = r->desc.offset;
	return 0;
}

static int map_region(struct eng_region *r, struct mf_error *err)
{
	r->pages = r->desc.size / r->desc.page_size;
	r->holes_fd = -1;
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
		if (r->desc.fd < 0)
			base_closep(&r->holes_fd);
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

bool eng_region_room(const struct mf_region *d, uint64_t *ret)
{
	struct statvfs fs;
	/* Huge pages were reserved by who mapped them; the kernel's own tmpfs, for a memfd, has no blocks to count. */
	if (d->fd < 0 || d->page_size > ENG_PAGE || fstatvfs(d->fd, &fs) || !fs.f_blocks)
		return false;
	*ret = (uint64_t)fs.f_bavail * fs.f_frsize;
	return true;
}

const char *eng_memory_without_room(const struct mf_session *s)
{
	for (uint32_t i = 0; i < s->memory.n; i++) {
		const struct mf_region *d = &s->memory.region[i].desc;
		uint64_t room;
		if (eng_region_room(d, &room) && !room)
			return d->name;
	}
	return NULL;
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

static uint64_t landing_of_lanes(uint64_t n)
{
	return n * ENG_DEPTH * LANDING_OP;
}

int eng_landing_open(struct mf_session *s, struct mf_error *err)
{
	struct eng_memory *m = &s->memory;
	bool any = false;
	for (uint32_t i = 0; i < m->n; i++)
		any = any || m->region[i].is_private;
	if (!any)
		return 0;
	if (m->landing) /* of earlier lanes */
		(void)munmap(m->landing, m->landing_bytes);
	m->landing = NULL;
	m->landing_bytes = landing_of_lanes((uint64_t)eng_lanes_per_rail(s) * s->n_rails);
	void *map = mmap(NULL, m->landing_bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (map == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "memory for pages that arrive");
	m->landing = map;
	return 0;
}

uint64_t eng_landing_of(const struct eng_rail *rail, uint8_t **ret_at)
{
	const struct mf_session *s = rail->session;
	uint64_t bytes = landing_of_lanes(eng_lanes_per_rail(s));
	*ret_at = s->memory.landing + bytes * rail->id;
	return s->memory.landing ? bytes : 0;
}

uint8_t *eng_landing_at(const struct eng_lane *lane, uint32_t region, uint64_t first,
			uint64_t cookie)
{
	const struct eng_memory *m = &lane->session->memory;
	const struct eng_region *r = &m->region[region];
	uint64_t number = (uint64_t)(lane - lane->session->lanes.lane);
	return r->is_private ? m->landing + landing_of_lanes(number) + cookie * LANDING_OP
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

/* Pages that were touched once, or are swapped out. */
static bool next_touched(const struct eng_region *r, uint64_t at, uint64_t *ret_from,
			 uint64_t *ret_to)
{
	uint64_t entries[512], base = r->desc.hva / ENG_PAGE, page = at / ENG_PAGE;
	bool is_in = false;
	while (page < r->pages) {
		uint64_t n = r->pages - page < BASE_ARRAY_LEN(entries) ? r->pages - page
								       : BASE_ARRAY_LEN(entries);
		ssize_t got = pread(r->holes_fd, entries, n * 8, (off_t)((base + page) * 8));
		if (got < 8) { /* cannot tell */
			*ret_from = is_in ? *ret_from : page * ENG_PAGE;
			*ret_to = r->desc.size;
			return true;
		}
		for (uint64_t i = 0; i < (uint64_t)got / 8; i++, page++) {
			bool is_there = entries[i] >> 62;
			if (is_there && !is_in)
				*ret_from = page * ENG_PAGE;
			*ret_to = page * ENG_PAGE;
			if (!is_there && is_in)
				return true;
			is_in = is_there;
		}
	}
	*ret_to = r->desc.size;
	return is_in;
}

bool eng_region_next_data(const struct eng_region *r, uint64_t at, uint64_t *ret_from,
			  uint64_t *ret_to)
{
	uint64_t size = r->desc.size, base = r->holes_offset;
	if (at >= size)
		return false;
	if (r->is_private && r->holes_fd >= 0)
		return next_touched(r, at, ret_from, ret_to);
	/* The descriptor's own position is nobody's business here. */
	off_t data = lseek(r->holes_fd, (off_t)(base + at), SEEK_DATA);
	if (data < 0 && errno == ENXIO)
		return false;
	/* hugetlbfs cannot tell its holes, nor can who has no file: everything is data there */
	off_t hole = data < 0 ? -1 : lseek(r->holes_fd, data, SEEK_HOLE);
	*ret_from = hole > data ? (uint64_t)data - base : at;
	*ret_to = hole > data && (uint64_t)hole - base < size ? (uint64_t)hole - base : size;
	return *ret_from < size;
}

void eng_region_seed(struct eng_region *r, uint64_t first, uint64_t n)
{
	uint64_t size = r->desc.page_size, at = first * size, end = at + n * size, from, to;
	while (at < end && eng_region_next_data(r, at, &from, &to) && from < end) {
		to = to < end ? to : end;
		uint64_t page = from / size;
		bitmap_set_atomic(r->todo, page, (to + size - 1) / size - page);
		at = to;
	}
}

bool eng_region_has_data(const struct eng_region *r, uint64_t at, uint64_t len)
{
	uint64_t from, to;
	return eng_region_next_data(r, at, &from, &to) && from < at + len;
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
		size_t cap = want * 2 < ENG_STATE_MAX ? want * 2 : ENG_STATE_MAX;
		uint8_t *more = realloc(s->device.bytes, cap);
		if (!more)
			return base_error(err, -ENOMEM, MF_SCOPE_SESSION,
					  "no memory for the device state");
		s->device.bytes = more;
		s->device.cap = cap;
	}
	if (len)
		memcpy(s->device.bytes + s->device.len, bytes, len);
	s->device.len = want;
	return 0;
}
