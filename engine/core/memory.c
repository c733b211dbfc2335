/* SPDX-License-Identifier: BSD-2-Clause */
/* Guest RAM as this process has it: mapped, registered, and known on the other side. */
#include <assert.h>
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
		assert(!r->n_mrs);
		if (r->map)
			(void)munmap(r->map, r->desc.size);
		if (r->todo)
			(void)munmap(r->todo, bitmap_words(r->pages) * 8);
		if (r->present)
			(void)munmap(r->present, bitmap_words(r->pages) * 8);
		if (r->hashes)
			(void)munmap(r->hashes, r->pages * 8);
		free(r->remote);
	}
	memset(&s->memory, 0, sizeof(s->memory));
}

/* Pieces end on chunk and page borders, so that no operation of ours ever crosses one. */
static uint64_t piece_size(const struct mf_session *s, const struct eng_region *r)
{
	uint64_t unit = eng_chunk_pages(r) * r->desc.page_size;
	uint64_t most = s->lanes.limits.max_mr < ENG_PIECE ? s->lanes.limits.max_mr : ENG_PIECE;
	return most < unit ? unit : most / unit * unit;
}

int eng_memory_register(struct mf_session *s, uint32_t access, struct mf_error *err)
{
	for (uint32_t i = 0; i < s->memory.n; i++) {
		struct eng_region *r = &s->memory.region[i];
		uint64_t piece = piece_size(s, r);
		uint32_t n = (uint32_t)((r->desc.size + piece - 1) / piece);
		assert(!r->n_mrs);
		r->mrs = calloc(n, sizeof(struct tp_mr *));
		if (!r->mrs)
			return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
		for (; r->n_mrs < n; r->n_mrs++) {
			uint64_t at = r->n_mrs * piece, left = r->desc.size - at;
			int code =
				tp_mr_reg(s->lanes.domain, r->map + at, left < piece ? left : piece,
					  access, &r->mrs[r->n_mrs], err);
			if (code < 0) {
				base_error_prefix(err, "region %s: ", r->desc.name);
				return code;
			}
		}
	}
	return 0;
}

void eng_memory_deregister(struct mf_session *s)
{
	for (uint32_t i = 0; i < s->memory.n; i++) {
		struct eng_region *r = &s->memory.region[i];
		while (r->n_mrs)
			tp_mr_dereg(r->mrs[--r->n_mrs]);
		free(r->mrs);
		r->mrs = NULL;
	}
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

int eng_memory_to_wire(const struct mf_session *s, Mf__Wire__Remote ***ret, size_t *ret_n)
{
	Mf__Wire__Remote **list = calloc(s->memory.n, sizeof(*list));
	if (!list)
		return -ENOMEM;
	for (uint32_t i = 0; i < s->memory.n; i++) {
		const struct eng_region *r = &s->memory.region[i];
		Mf__Wire__Remote *w = list[i] = malloc(sizeof(*w));
		if (!w)
			goto no_memory;
		mf__wire__remote__init(w);
		w->piece = piece_size(s, r);
		w->addr = calloc(r->n_mrs, 8);
		w->key = calloc(r->n_mrs, 8);
		if (!w->addr || !w->key)
			goto no_memory;
		w->n_addr = w->n_key = r->n_mrs;
		for (uint32_t k = 0; k < r->n_mrs; k++) {
			struct tp_remote remote;
			tp_mr_remote(r->mrs[k], &remote);
			w->addr[k] = remote.addr;
			w->key[k] = remote.key;
		}
	}
	*ret = list;
	*ret_n = s->memory.n;
	return 0;
no_memory:
	eng_memory_wire_free(list, s->memory.n);
	return -ENOMEM;
}

void eng_memory_wire_free(Mf__Wire__Remote **remotes, size_t n)
{
	for (size_t i = 0; remotes && i < n; i++) {
		if (!remotes[i])
			continue;
		free(remotes[i]->addr);
		free(remotes[i]->key);
		free(remotes[i]);
	}
	free(remotes);
}

int eng_memory_from_wire(struct mf_session *s, Mf__Wire__Remote *const *remotes, size_t n,
			 struct mf_error *err)
{
	if (n != s->memory.n)
		return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
				  "the peer registered %zu regions, not %u", n, s->memory.n);
	for (size_t i = 0; i < n; i++) {
		struct eng_region *r = &s->memory.region[i];
		const Mf__Wire__Remote *w = remotes[i];
		uint64_t chunk = eng_chunk_pages(r) * r->desc.page_size;
		if (w->piece % chunk || w->n_addr != (r->desc.size + w->piece - 1) / w->piece)
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "region %s: the peer's registration does not cover it",
					  r->desc.name);
		struct tp_remote *remote = calloc(w->n_addr, sizeof(*remote));
		if (!remote)
			return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
		for (size_t k = 0; k < w->n_addr; k++)
			remote[k] = (struct tp_remote){ .addr = w->addr[k], .key = w->key[k] };
		free(r->remote);
		r->remote = remote;
		r->n_remote = (uint32_t)w->n_addr;
		r->remote_piece = w->piece;
	}
	return 0;
}

void eng_memory_xfer(const struct eng_region *r, uint64_t first, uint64_t n, uint64_t cookie,
		     struct tp_xfer *ret)
{
	uint64_t at = first * r->desc.page_size, len = n * r->desc.page_size;
	const struct tp_mr *mr = r->mrs[0];
	/* All pieces but the last have the first one's length. */
	uint64_t piece = r->n_mrs > 1 ? mr->len : r->desc.size;
	const struct tp_remote *remote = &r->remote[at / r->remote_piece];
	*ret = (struct tp_xfer){
		.local = r->map + at,
		.mr = r->mrs[at / piece],
		.remote = remote->addr + at % r->remote_piece,
		.key = remote->key,
		.len = len,
		.cookie = cookie,
	};
}

uint64_t eng_op_pages(const struct eng_region *r)
{
	return r->desc.page_size >= ENG_OP_MAX ? 1 : ENG_OP_MAX / r->desc.page_size;
}

uint64_t eng_chunk_pages(const struct eng_region *r)
{
	return r->desc.page_size >= ENG_CHUNK ? 1 : ENG_CHUNK / r->desc.page_size;
}
