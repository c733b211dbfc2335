/* SPDX-License-Identifier: BSD-2-Clause */
/* Both ends' memory, domains and threads; the client's side of opening. */
#include "perf/path.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "perf/doc.h"
#include "perf/path_priv.h"
#include "perf/start.h"

#define HUGE_PAGE (UINT64_C(2) << 20)

static bool is_path_fit(const struct tp_path *path, const struct path_wish *wish, unsigned pass)
{
	if (!path->up || (wish->gid >= 0 && path->gid_index != wish->gid))
		return false;
	if (wish->device)
		return !strcmp(path->device, wish->device) ||
		       !strcmp(path->interface, wish->device);
	if (pass == 0)
		return !strcmp(path->address, wish->own);
	return pass == 2 || (wish->peer && tp_are_neighbours(path->address, path->prefix,
							     wish->peer, wish->peer_prefix));
}

int path_pick(const struct tp_ops *ops, const struct path_wish *wish, struct tp_path *ret,
	      struct mf_error *err)
{
	struct tp_path paths[PATH_PATHS_MAX];
	int n = tp_paths(ops, paths, PATH_PATHS_MAX);

	n = n < (int)PATH_PATHS_MAX ? n : (int)PATH_PATHS_MAX;
	/* The control connection's own address; then the peer's subnet; then whatever is there. */
	for (unsigned pass = 0; pass < 3; pass++) {
		for (int i = 0; i < n; i++) {
			if (is_path_fit(&paths[i], wish, pass)) {
				*ret = paths[i];
				return 0;
			}
		}
	}
	if (wish->device || wish->gid >= 0)
		return base_error(
			err, -ENODEV, MF_SCOPE_HOST,
			"%s: no %s device%s of that name%s that is up; `memferry devices` "
			"lists them",
			wish->device ? wish->device : "--gid-index", ops->kind,
			wish->device ? "" : ", or none", wish->gid >= 0 ? " with that GID" : "");
	return base_error(err, -ENODEV, MF_SCOPE_HOST,
			  "no %s device on this host is up; `memferry devices` lists them",
			  ops->kind);
}

/* Over TCP any address does: the control connection's, unless an interface was named. */
int path_local(const struct tp_ops *ops, const struct path_wish *wish, struct tp_path *ret,
	       struct mf_error *err)
{
	if (ops->caps & TP_CAP_BY_PATH || wish->device)
		return path_pick(ops, wish, ret, err);
	*ret = (struct tp_path){ .up = true, .gid_index = -1 };
	(void)snprintf(ret->address, sizeof(ret->address), "%s", wish->own);
	return 0;
}

static int map_memory(uint64_t bytes, uint64_t page_size, void **ret, struct mf_error *err)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;

	if (page_size == HUGE_PAGE)
		flags |= MAP_HUGETLB | 21 << MAP_HUGE_SHIFT;
	void *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (mem == MAP_FAILED)
		return base_error_sys(
			err, -errno, MF_SCOPE_HOST, "cannot allocate %" PRIu64 " bytes%s", bytes,
			page_size == HUGE_PAGE ? " of huge pages; see /proc/sys/vm/nr_hugepages"
					       : "");
	*ret = mem;
	return 0;
}

int path_open_end(struct perf_path *path, uint32_t i, const struct tp_path *local,
		  const struct perf_path_params *params, struct mf_error *err)
{
	struct tp_domain_params domain = { .local = local->address,
					   .depth = params->depth,
					   .seal = path->seal.sealing ? &path->seal : NULL };
	struct perf_end *end = &path->end[i];
	void *mem = params->memory ? params->memory[i] : NULL;
	int ret = mem ? 0 : map_memory(path->bytes, params->page_size, &mem, err);

	if (ret)
		return ret;
	end->mem = mem;
	ret = tp_domain_open(path->ops, &domain, &end->domain, err);
	if (ret)
		return ret;
	if (!i)
		tp_domain_limits(end->domain, &path->limits);
	if (path->bytes > path->limits.max_mr)
		return base_error(err, -E2BIG, MF_SCOPE_HOST,
				  "%" PRIu64 " bytes are more than the device registers as one",
				  path->bytes);
	return tp_mr_reg(end->domain, end->mem, path->bytes, TP_REMOTE_WRITE | TP_REMOTE_READ,
			 &end->mr, err);
}

static void close_lane(struct perf_end *end)
{
	struct tp_wc wc[16];

	if (!end->lane)
		return;
	tp_lane_shutdown(end->lane);
	while (tp_lane_poll(end->lane, wc, BASE_ARRAY_LEN(wc)) > 0)
		; /* each operation still completes */
	tp_lane_close(end->lane);
}

void perf_path_close(struct perf_path *path)
{
	for (uint32_t i = 0; i < path->n; i++) {
		struct perf_end *end = &path->end[i];
		close_lane(end);
		tp_listener_close(end->listener);
		tp_mr_dereg(end->mr);
		tp_domain_close(end->domain);
		if (end->mem && path->own_memory)
			(void)munmap(end->mem, path->bytes);
	}
	*path = (struct perf_path){ 0 };
}

json_t *path_remotes(const struct perf_path *path)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < path->n; i++) {
		struct tp_remote remote;
		json_t *o = json_object();
		tp_mr_remote(path->end[i].mr, &remote);
		/* Numbers of 64 bits: JSON's are signed. */
		perf_put(o, "addr", json_sprintf("%" PRIx64, remote.addr));
		perf_put(o, "key", json_sprintf("%" PRIx64, remote.key));
		(void)json_array_append_new(array, o);
	}
	return array;
}

static bool parse_hex(const char *text, uint64_t *ret)
{
	char *end;

	errno = 0;
	*ret = strtoull(text, &end, 16);
	return text[0] && !*end && !errno;
}

int path_take_remotes(struct perf_path *path, const json_t *remotes, struct mf_error *err)
{
	for (uint32_t i = 0; i < path->n; i++) {
		const json_t *o = json_array_get(remotes, i);
		if (!parse_hex(perf_text(o, "addr"), &path->end[i].remote.addr) ||
		    !parse_hex(perf_text(o, "key"), &path->end[i].remote.key))
			return base_error(err, -EINVAL, MF_SCOPE_SESSION,
					  "the other host's addresses make no sense");
	}
	return 0;
}

const struct tp_ops *path_find(const struct perf_path *path, const char *transport)
{
	return path->seal.sealing ? tp_find_sealed(transport) : tp_find(transport);
}

/* Client: the ends of this side, none connected yet. */
static int open_ends(struct perf_peer *peer, const struct perf_path_params *params,
		     struct perf_path *path, struct tp_path *ret_local, struct mf_error *err)
{
	const struct path_wish wish = { .device = params->device,
					.gid = params->gid,
					.own = perf_peer_local(peer) };

	path->ops = path_find(path, params->transport);
	if (!path->ops)
		return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
				  "this memferry-perf was built without %s", params->transport);
	path->bytes = params->bytes;
	path->slot = params->slot;
	path->own_memory = !params->memory;
	int ret = path_local(path->ops, &wish, ret_local, err);
	while (!ret && path->n < params->lanes) {
		path->n++; /* counts what is half open, too */
		ret = path_open_end(path, path->n - 1, ret_local, params, err);
	}
	(void)snprintf(path->device, sizeof(path->device), "%s", ret_local->device);
	return ret;
}

static int make_token(uint8_t token[TP_TOKEN_SIZE], char hex[2 * TP_TOKEN_SIZE + 1],
		      struct mf_error *err)
{
	if (getrandom(token, TP_TOKEN_SIZE, 0) != TP_TOKEN_SIZE)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "getrandom");
	for (unsigned i = 0; i < TP_TOKEN_SIZE; i++)
		(void)snprintf(hex + 2 * i, 3, "%02x", token[i]);
	return 0;
}

static int connect_lanes(struct perf_path *path, const json_t *answer,
			 const uint8_t token[TP_TOKEN_SIZE], struct mf_error *err)
{
	const json_t *addresses = json_object_get(answer, "addresses");
	uint64_t deadline = base_deadline_ms(PATH_CONNECT_MS);

	for (uint32_t i = 0; i < path->n; i++) {
		const char *address = json_string_value(json_array_get(addresses, i));
		if (!address || strlen(address) >= TP_ADDR_MAX)
			return base_error(err, -MF_EPEER, MF_SCOPE_SESSION,
					  "the server gave no address for lane %u", i);
		int ret = tp_connect(path->end[i].domain, address, token, i, deadline,
				     &path->end[i].lane, err);
		if (ret)
			return ret;
	}
	return 0;
}

static json_t *path_request(const struct perf_path *path, const struct perf_path_params *params,
			    const struct tp_path *local, const char *token)
{
	json_t *o = json_object();

	perf_put(o, "transport", json_string(path->ops->kind));
	perf_put(o, "slot", json_integer(path->slot));
	perf_put(o, "lanes", json_integer(path->n));
	perf_put(o, "depth", json_integer(params->depth));
	perf_put(o, "bytes", json_integer((json_int_t)path->bytes));
	perf_put(o, "page_size", json_integer((json_int_t)params->page_size));
	perf_put(o, "address", json_string(local->address));
	perf_put(o, "prefix", json_integer(local->prefix));
	perf_put(o, "token", json_string(token));
	perf_put(o, "sealing", json_integer(path->seal.sealing));
	perf_put(o, "remotes", path_remotes(path));
	return o;
}

static int tell_done(struct perf_peer *peer, uint32_t slot, struct mf_error *err)
{
	json_t *o = json_object();

	perf_put(o, "slot", json_integer(slot));
	return perf_peer_call(peer, "done", o, base_deadline_ms(PERF_ANSWER_MS), NULL, err);
}

int perf_path_end(struct perf_peer *peer, struct perf_path *path, struct mf_error *err)
{
	int ret = path->n ? tell_done(peer, path->slot, err) : 0;

	perf_path_close(path);
	return ret;
}

/* Three steps for the server: it listens, it has accepted, it keeps the path until "done". */
static int open_path(struct perf_peer *peer, const struct perf_path_params *params,
		     struct perf_path *path, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(PATH_CONNECT_MS + PERF_ANSWER_MS);
	uint8_t token[TP_TOKEN_SIZE];
	char hex[2 * TP_TOKEN_SIZE + 1];
	struct tp_path local = { 0 };
	json_t *answer = NULL;

	int ret = make_token(token, hex, err);
	path->seal.sealing = params->sealing;
	memcpy(path->seal.key, token, sizeof(token));
	if (!ret)
		ret = open_ends(peer, params, path, &local, err);
	if (!ret)
		ret = perf_peer_call(peer, "path", path_request(path, params, &local, hex),
				     deadline, &answer, err);
	if (ret)
		return ret;
	(void)snprintf(path->peer_device, sizeof(path->peer_device), "%s",
		       perf_text(answer, "device"));
	ret = path_take_remotes(path, json_object_get(answer, "remotes"), err);
	if (!ret)
		ret = connect_lanes(path, answer, token, err);
	json_decref(answer);
	/* The server reports on its accepting, whatever became of our connecting. */
	struct mf_error there = { 0 };
	answer = NULL;
	int said = perf_peer_recv(peer, deadline, &answer, &there);
	if (!said && json_object_get(answer, "error"))
		said = base_error(&there, -MF_EPEER, MF_SCOPE_SESSION, "%s: %.150s",
				  perf_peer_remote(peer), perf_text(answer, "error.message"));
	json_decref(answer);
	if (!ret && said)
		ret = base_error(err, said, MF_SCOPE_SESSION, "%s", there.msg);
	else if (ret && !said)
		(void)tell_done(peer, path->slot, NULL);
	return ret;
}

int perf_path_open(struct perf_peer *peer, const struct perf_path_params *params,
		   struct perf_path *path, struct mf_error *err)
{
	assert(params->lanes && params->lanes <= PERF_LANES_MAX && params->bytes);
	*path = (struct perf_path){ 0 };
	int ret = open_path(peer, params, path, err);
	if (ret)
		perf_path_close(path);
	return ret;
}

static bool has_path(const struct tp_ops *ops)
{
	struct tp_path paths[PATH_PATHS_MAX];
	int n = ops ? tp_paths(ops, paths, PATH_PATHS_MAX) : 0;

	for (int i = 0; i < n && i < (int)PATH_PATHS_MAX; i++) {
		if (paths[i].up)
			return true;
	}
	return false;
}

bool path_has_verbs(void)
{
	return has_path(tp_find("verbs"));
}

int perf_path_choose(struct perf_peer *peer, const char *wanted, const char **ret_transport,
		     char *ret_why, size_t cap, struct mf_error *err)
{
	json_t *answer = NULL;

	if (strcmp(wanted, "auto")) {
		*ret_transport = wanted;
		(void)snprintf(ret_why, cap, "%s: asked for", wanted);
		return 0;
	}
	int ret =
		perf_peer_call(peer, "verbs", NULL, base_deadline_ms(PERF_ANSWER_MS), &answer, err);
	if (ret)
		return ret;
	bool here = path_has_verbs(), there = json_is_true(json_object_get(answer, "up"));
	json_decref(answer);
	*ret_transport = here && there ? "verbs" : "tcp";
	(void)snprintf(ret_why, cap, "%s",
		       here && there ? "verbs: both hosts have an RDMA device that is up"
		       : here        ? "tcp: the server's host has no RDMA device that is up"
				     : "tcp: this host has no RDMA device that is up");
	return 0;
}

/* A keeper and its lane. */
struct keeper {
	struct perf_keepers *all;
	struct tp_lane *lane;
	pthread_t thread;
};

struct perf_keepers {
	_Atomic bool stop;
	bool busy;
	uint32_t n;
	struct keeper keeper[PERF_LANES_MAX];
};

void path_keep(struct tp_lane *lane, bool busy, const _Atomic bool *stop)
{
	struct tp_wc wc[16];

	while (!atomic_load_explicit(stop, memory_order_acquire)) {
		int n = tp_lane_poll(lane, wc, BASE_ARRAY_LEN(wc));
		if (n < 0)
			return; /* whoever uses the lane learns it there */
		if (!n && !busy)
			(void)tp_lane_wait(lane, base_deadline_ms(1000));
	}
}

static void *keeper_main(void *arg)
{
	struct keeper *keeper = arg;

	path_keep(keeper->lane, keeper->all->busy, &keeper->all->stop);
	return NULL;
}

int perf_keepers_start(struct perf_path *path, bool busy, struct perf_keepers **ret,
		       struct mf_error *err)
{
	struct perf_keepers *keepers = calloc(1, sizeof(*keepers));

	if (!keepers)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	keepers->busy = busy;
	for (; keepers->n < path->n; keepers->n++) {
		struct keeper *keeper = &keepers->keeper[keepers->n];
		*keeper = (struct keeper){ .all = keepers, .lane = path->end[keepers->n].lane };
		int code = perf_start_thread(&keeper->thread, keeper_main, keeper, err);
		if (code) {
			perf_keepers_stop(keepers);
			return code;
		}
	}
	*ret = keepers;
	return 0;
}

void perf_keepers_stop(struct perf_keepers *keepers)
{
	if (!keepers)
		return;
	atomic_store_explicit(&keepers->stop, true, memory_order_release);
	for (uint32_t i = 0; i < keepers->n; i++)
		tp_lane_wake(keepers->keeper[i].lane);
	for (uint32_t i = 0; i < keepers->n; i++)
		(void)pthread_join(keepers->keeper[i].thread, NULL);
	free(keepers);
}

int perf_reap(struct tp_lane *lane, bool sleep, uint64_t deadline_us, uint64_t *in_flight,
	      struct mf_error *err)
{
	struct tp_wc wc[32];

	for (;;) {
		int n = tp_lane_poll(lane, wc, BASE_ARRAY_LEN(wc));
		if (n < 0)
			return base_error_sys(err, n, MF_SCOPE_LANE, "lane %u failed", lane->id);
		for (int i = 0; i < n; i++) {
			if (wc[i].status < 0)
				return base_error_sys(err, wc[i].status, MF_SCOPE_LANE,
						      "an operation on lane %u failed", lane->id);
		}
		*in_flight -= (unsigned)n;
		if (n || !sleep)
			return n;
		if (tp_lane_wait(lane, deadline_us) == -ETIMEDOUT && base_now_us() >= deadline_us)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_LANE,
					  "lane %u: no operation completed in time", lane->id);
	}
}

int perf_post_all(struct tp_lane *lane, bool is_read, const struct tp_xfer *xfer, unsigned n,
		  uint64_t *in_flight, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(PERF_ANSWER_MS);

	for (unsigned done = 0; done < n;) {
		int r = is_read ? tp_post_read(lane, xfer + done, n - done)
				: tp_post_write(lane, xfer + done, n - done);
		if (r > 0) {
			done += (unsigned)r;
			*in_flight += (unsigned)r;
			continue;
		}
		if (r != -EAGAIN)
			return base_error_sys(err, r, MF_SCOPE_LANE, "cannot post on lane %u",
					      lane->id);
		r = perf_reap(lane, true, deadline, in_flight, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int perf_flush(struct tp_lane *lane, bool sleep, uint64_t deadline_us, uint64_t *in_flight,
	       struct mf_error *err)
{
	int ret;

	while ((ret = tp_post_flush(lane, 0)) == -EAGAIN) {
		ret = perf_reap(lane, true, deadline_us, in_flight, err);
		if (ret < 0)
			return ret;
	}
	if (ret < 0)
		return base_error_sys(err, ret, MF_SCOPE_LANE, "cannot flush lane %u", lane->id);
	for (++*in_flight; *in_flight;) {
		ret = perf_reap(lane, sleep, deadline_us, in_flight, err);
		if (ret < 0)
			return ret;
		if (!ret && base_now_us() >= deadline_us)
			return base_error(err, -ETIMEDOUT, MF_SCOPE_LANE,
					  "lane %u: no operation completed in time", lane->id);
	}
	return 0;
}
