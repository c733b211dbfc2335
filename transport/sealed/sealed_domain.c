/* SPDX-License-Identifier: BSD-2-Clause */
/* Domains, memory, connections; and the tables. */
#include <assert.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "transport/sealed/sealed_priv.h"

/* A key is its slot in the table below this many bits, and random above. */
#define SLOT_BITS 24u
#define SLOTS_MAX (1u << SLOT_BITS)
/* A head of 48 bytes, a tag and 2 us of a message go in the time of sealing so many bytes more. */
#define SEALED_GAP (4ull << 10)

static struct sealed_domain *to_domain(const struct tp_domain *base)
{
	return BASE_CONTAINER_OF(base, struct sealed_domain, base);
}

static void free_domain(struct sealed_domain *domain)
{
	tp_domain_close(domain->inner);
	(void)pthread_rwlock_destroy(&domain->lock);
	OPENSSL_cleanse(&domain->seal, sizeof(domain->seal));
	free(domain->mr);
	free(domain);
}

static int domain_open(const struct tp_ops *ops, const struct tp_domain_params *params,
		       struct tp_domain **ret_domain, struct mf_error *err)
{
	const struct tp_sealed_table *table = BASE_CONTAINER_OF(ops, struct tp_sealed_table, ops);
	const struct tp_domain_params inner = { .local = params->local,
						.depth = SEALED_SENDS + 1,
						.silence_ms = params->silence_ms,
						.receives = SEALED_RECEIVES };
	struct tp_limits limits;

	struct sealed_domain *domain = calloc(1, sizeof(*domain));
	if (!domain)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_HOST, "sealed transport");
	domain->base.ops = ops;
	if (params->seal)
		domain->seal = *params->seal;
	domain->depth = params->depth < SEALED_DEPTH_MAX ? params->depth : SEALED_DEPTH_MAX;
	domain->probe_us = (params->silence_ms ? params->silence_ms : SEALED_SILENCE_MS) * 500;
	/* Registering goes first: lanes under load are never all out of memory at once. */
	pthread_rwlockattr_t attr;
	(void)pthread_rwlockattr_init(&attr);
	(void)pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	(void)pthread_rwlock_init(&domain->lock, &attr);
	(void)pthread_rwlockattr_destroy(&attr);
	int r = tp_domain_open(table->inner, &inner, &domain->inner, err);
	if (r == 0) {
		tp_domain_limits(domain->inner, &limits);
		if (limits.max_op < SEALED_RECORD_MAX)
			r = base_error(
				err, -EMSGSIZE, MF_SCOPE_HOST,
				"%s carries no messages of %zu bytes, which sealed lanes need",
				table->inner->kind, (size_t)SEALED_RECORD_MAX);
	}
	if (r < 0) {
		free_domain(domain);
		return r;
	}
	*ret_domain = &domain->base;
	return 0;
}

static void domain_close(struct tp_domain *base)
{
	struct sealed_domain *domain = to_domain(base);
	assert(!domain->n_mrs);
	free_domain(domain);
}

static void domain_limits(const struct tp_domain *base, struct tp_limits *ret_limits)
{
	*ret_limits = (struct tp_limits){
		.depth = to_domain(base)->depth,
		.max_op = SEALED_OP_MAX,
		.max_mr = INT64_MAX,
		.gap = SEALED_GAP,
	};
}

/* What is pinned are the lanes' buffers; what is registered, our own book tells. */
static void domain_stats(const struct tp_domain *base, struct tp_domain_stats *ret_stats)
{
	struct sealed_domain *domain = to_domain(base);
	tp_domain_stats(domain->inner, ret_stats);
	ret_stats->windows = 0;
	ret_stats->registrations = __atomic_load_n(&domain->n_mrs, __ATOMIC_RELAXED);
}

/* ---- memory ---- */

static int grow(struct sealed_domain *domain)
{
	uint32_t n = domain->n_slots ? 2 * domain->n_slots : 64;
	if (n > SLOTS_MAX)
		return -ENOSPC;
	/* NOLINTNEXTLINE(bugprone-sizeof-expression): an array of pointers */
	void *more = realloc(domain->mr, n * sizeof(*domain->mr));
	if (!more)
		return -ENOMEM;
	domain->mr = more;
	for (uint32_t i = domain->n_slots; i < n; i++)
		domain->mr[i] = NULL;
	domain->n_slots = n;
	return 0;
}

/* lock is held. */
static int enter(struct sealed_domain *domain, struct sealed_mr *mr)
{
	uint32_t slot = 0;
	if (domain->n_mrs == domain->n_slots) {
		slot = domain->n_slots;
		int r = grow(domain);
		if (r < 0)
			return r;
	}
	while (domain->mr[slot])
		slot++;
	mr->key = mr->key << SLOT_BITS | slot;
	domain->mr[slot] = mr;
	__atomic_store_n(&domain->n_mrs, domain->n_mrs + 1, __ATOMIC_RELAXED);
	return 0;
}

static int mr_reg(struct tp_domain *base, void *addr, uint64_t len, uint32_t access,
		  struct tp_mr **ret_mr, struct mf_error *err)
{
	struct sealed_domain *domain = to_domain(base);
	struct sealed_mr *mr = calloc(1, sizeof(*mr));
	if (!mr)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "memory registration");
	mr->base = (struct tp_mr){ base, addr, len, access };
	int r = getrandom(&mr->key, sizeof(mr->key), 0) == sizeof(mr->key) ? 0 : -errno;
	(void)pthread_rwlock_wrlock(&domain->lock);
	if (r == 0)
		r = enter(domain, mr);
	(void)pthread_rwlock_unlock(&domain->lock);
	if (r < 0) {
		free(mr);
		return base_error_sys(err, r, MF_SCOPE_SESSION, "memory registration");
	}
	*ret_mr = &mr->base;
	return 0;
}

static void mr_dereg(struct tp_mr *base)
{
	struct sealed_domain *domain = to_domain(base->domain);
	struct sealed_mr *mr = BASE_CONTAINER_OF(base, struct sealed_mr, base);
	(void)pthread_rwlock_wrlock(&domain->lock);
	domain->mr[mr->key & (SLOTS_MAX - 1)] = NULL;
	__atomic_store_n(&domain->n_mrs, domain->n_mrs - 1, __ATOMIC_RELAXED);
	(void)pthread_rwlock_unlock(&domain->lock);
	free(mr);
}

/* Offsets are the addresses: the peer learns none of ours. */
static void mr_remote(const struct tp_mr *base, struct tp_remote *ret_remote)
{
	*ret_remote = (struct tp_remote){
		.key = BASE_CONTAINER_OF(base, const struct sealed_mr, base)->key,
	};
}

uint8_t *tp_sealed_memory(const struct sealed_domain *domain, uint64_t key, uint64_t at,
			  uint64_t len, uint32_t access)
{
	uint64_t slot = key & (SLOTS_MAX - 1);
	const struct sealed_mr *mr = slot < domain->n_slots ? domain->mr[slot] : NULL;
	if (!mr || mr->key != key || !(mr->base.access & access) || !len || len > mr->base.len ||
	    at > mr->base.len - len)
		return NULL;
	return (uint8_t *)mr->base.addr + at;
}

/* ---- connections ---- */

static struct tp_listener *inner_listener(const struct tp_listener *base)
{
	return BASE_CONTAINER_OF(base, const struct sealed_listener, base)->inner;
}

static int listen_at(struct tp_domain *domain, const char *addr, struct tp_listener **ret_listener,
		     struct mf_error *err)
{
	struct sealed_listener *listener = calloc(1, sizeof(*listener));
	if (!listener)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION, "address %s", addr);
	listener->base.domain = domain;
	int r = tp_listen(to_domain(domain)->inner, addr, &listener->inner, err);
	if (r < 0) {
		free(listener);
		return r;
	}
	*ret_listener = &listener->base;
	return 0;
}

static void listener_addr(const struct tp_listener *listener, char *ret, size_t cap)
{
	tp_listener_addr(inner_listener(listener), ret, cap);
}

static void listener_close(struct tp_listener *base)
{
	tp_listener_close(inner_listener(base));
	free(BASE_CONTAINER_OF(base, struct sealed_listener, base));
}

/* Whoever knows the token and not the key is refused, and the next one waited for. */
static int accept_lane(struct tp_listener *listener, const uint8_t token[TP_TOKEN_SIZE],
		       uint64_t deadline_us, struct tp_lane **ret_lane, struct mf_error *err)
{
	assert(to_domain(listener->domain)->seal.sealing != TP_SEAL_NONE);
	do {
		struct mf_error why = { 0 };
		struct tp_lane *inner;
		int r = tp_accept(inner_listener(listener), token, deadline_us, &inner, err);
		if (r < 0)
			return r;
		r = tp_sealed_lane_create(to_domain(listener->domain), inner, false,
					  base_deadline_ms(SEALED_HELLO_MS), ret_lane, &why);
		if (r == 0)
			return 0;
		if (why.scope != MF_SCOPE_LANE)
			return base_error(err, r, why.scope, "%s", why.msg);
	} while (base_now_us() < deadline_us);
	return base_error(err, -ETIMEDOUT, MF_SCOPE_LANE,
			  "the peer did not connect a sealed lane in time");
}

static int connect_lane(struct tp_domain *domain, const char *addr,
			const uint8_t token[TP_TOKEN_SIZE], uint32_t lane_id, uint64_t deadline_us,
			struct tp_lane **ret_lane, struct mf_error *err)
{
	struct tp_lane *inner;
	assert(to_domain(domain)->seal.sealing != TP_SEAL_NONE);
	int r = tp_connect(to_domain(domain)->inner, addr, token, lane_id, deadline_us, &inner,
			   err);
	if (r == 0) {
		r = tp_sealed_lane_create(to_domain(domain), inner, true, deadline_us, ret_lane,
					  err);
		if (r < 0)
			base_error_prefix(err, "address %s: ", addr);
	}
	return r;
}

/* ---- tables ---- */

void tp_sealed_init(struct tp_sealed_table *table, const struct tp_ops *inner)
{
	*table = (struct tp_sealed_table){
		.ops = {
			.name = "sealed",
			.kind = inner->kind,
			/* Devices are found as those of the transport below, but nobody asks them about memory. */
			.caps = (inner->caps & ~(uint32_t)TP_CAP_PINS) | TP_CAP_TARGET_PROGRESS,
			.version = inner->version,
			.domain_open = domain_open,
			.domain_close = domain_close,
			.domain_limits = domain_limits,
			.domain_stats = domain_stats,
			.paths = inner->paths,
			.mr_reg = mr_reg,
			.mr_dereg = mr_dereg,
			.mr_remote = mr_remote,
			.listen = listen_at,
			.listener_addr = listener_addr,
			.accept = accept_lane,
			.listener_close = listener_close,
			.connect = connect_lane,
			.lane_shutdown = tp_sealed_lane_shutdown,
			.lane_close = tp_sealed_lane_close,
			.post_write = tp_sealed_post_write,
			.post_read = tp_sealed_post_read,
			.post_flush = tp_sealed_post_flush,
			.lane_poll = tp_sealed_lane_poll,
			.lane_arm = tp_sealed_lane_arm,
			.lane_wait = tp_sealed_lane_wait,
			.lane_wake = tp_sealed_lane_wake,
			.lane_stats = tp_sealed_lane_stats,
		},
		.inner = inner,
	};
}

/* One for each backend that was built, in their order; never changed once it is made. */
#define TABLES_MAX 8u
static struct tp_sealed_table tables[TABLES_MAX];

static void make_tables(void)
{
	const struct tp_ops *const *backends = tp_backends();
	for (unsigned i = 0; backends[i]; i++) {
		assert(i < TABLES_MAX);
		tp_sealed_init(&tables[i], backends[i]);
	}
}

const struct tp_ops *tp_find_sealed(const char *name)
{
	static pthread_once_t made = PTHREAD_ONCE_INIT;
	const struct tp_ops *inner = tp_find(name);
	(void)pthread_once(&made, make_tables);
	for (unsigned i = 0; inner && i < TABLES_MAX; i++) {
		if (tables[i].inner == inner)
			return &tables[i].ops;
	}
	return NULL;
}
