/* SPDX-License-Identifier: BSD-2-Clause */
/* The server's side of opening a path. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/parse.h"
#include "perf/doc.h"
#include "perf/path_priv.h"

static bool parse_token(const char *hex, uint8_t ret[TP_TOKEN_SIZE])
{
	if (strlen(hex) != 2 * TP_TOKEN_SIZE ||
	    strspn(hex, "0123456789abcdef") != 2 * TP_TOKEN_SIZE)
		return false;
	for (unsigned i = 0; i < TP_TOKEN_SIZE; i++) {
		const char digit[3] = { hex[2 * i], hex[2 * i + 1], '\0' };
		ret[i] = (uint8_t)strtoul(digit, NULL, 16);
	}
	return true;
}

/* Everything in it is the client's word. */
static int parse_request(const json_t *request, uint64_t max_bytes, struct perf_path_params *ret,
			 uint8_t token[TP_TOKEN_SIZE], struct mf_error *err)
{
	json_int_t lanes = json_integer_value(json_object_get(request, "lanes"));
	json_int_t depth = json_integer_value(json_object_get(request, "depth"));
	json_int_t bytes = json_integer_value(json_object_get(request, "bytes"));
	json_int_t page_size = json_integer_value(json_object_get(request, "page_size"));
	json_int_t sealing = json_integer_value(json_object_get(request, "sealing"));
	char text[32];

	if (lanes < 1 || lanes > PERF_LANES_MAX || depth < 1 || depth > PATH_DEPTH_MAX ||
	    bytes < 1 || sealing < TP_SEAL_NONE || sealing > TP_SEAL_ENCRYPT ||
	    (page_size && page_size != 2 << 20) || !perf_text(request, "transport")[0] ||
	    !parse_token(perf_text(request, "token"), token))
		return base_error(err, -EINVAL, MF_SCOPE_SESSION,
				  "this request for lanes makes no sense");
	if ((uint64_t)bytes > max_bytes / (uint64_t)lanes)
		return base_error(err, -E2BIG, MF_SCOPE_SESSION,
				  "%u lanes of %" PRIu64
				  " bytes are more than the server gives to a "
				  "client (%s); see its --max-memory",
				  (unsigned)lanes, (uint64_t)bytes,
				  base_format_size(max_bytes, text, sizeof(text)));
	*ret = (struct perf_path_params){ .transport = perf_text(request, "transport"),
					  .sealing = (enum tp_sealing)sealing,
					  .gid = -1,
					  .lanes = (uint32_t)lanes,
					  .depth = (uint32_t)depth,
					  .bytes = (uint64_t)bytes,
					  .page_size = (uint64_t)page_size };
	return 0;
}

static int listen_on(struct perf_end *end, const struct tp_path *local, json_t *addresses,
		     struct mf_error *err)
{
	bool is_v6 = strchr(local->address, ':');
	char address[TP_ADDR_MAX + 8];

	(void)snprintf(address, sizeof(address), is_v6 ? "[%s]:0" : "%s:0", local->address);
	int ret = tp_listen(end->domain, address, &end->listener, err);
	if (ret)
		return ret;
	tp_listener_addr(end->listener, address, TP_ADDR_MAX);
	(void)json_array_append_new(addresses, json_string(address));
	return 0;
}

static int open_ends(struct perf_peer *peer, const json_t *request,
		     const struct perf_path_params *params, struct perf_path *path,
		     json_t *addresses, struct mf_error *err)
{
	json_int_t prefix = json_integer_value(json_object_get(request, "prefix"));
	const struct path_wish wish = { .gid = -1,
					.own = perf_peer_local(peer),
					.peer = perf_text(request, "address"),
					.peer_prefix = prefix >= 0 && prefix <= 128
							       ? (uint32_t)prefix
							       : 0 };
	struct tp_path local = { 0 };

	path->ops = path_find(path, params->transport);
	if (!path->ops)
		return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST, "it was built without %.16s",
				  params->transport);
	path->bytes = params->bytes;
	path->own_memory = true;
	int ret = path_local(path->ops, &wish, &local, err);
	while (!ret && path->n < params->lanes) {
		struct perf_end *end = &path->end[path->n++]; /* counts what is half open, too */
		ret = path_open_end(path, path->n - 1, &local, params, err);
		if (!ret)
			ret = listen_on(end, &local, addresses, err);
	}
	(void)snprintf(path->device, sizeof(path->device), "%s", local.device);
	return ret;
}

static int accept_lanes(struct perf_path *path, const uint8_t token[TP_TOKEN_SIZE],
			struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(PATH_CONNECT_MS);

	for (uint32_t i = 0; i < path->n; i++) {
		struct perf_end *end = &path->end[i];
		int ret = tp_accept(end->listener, token, deadline, &end->lane, err);
		if (ret)
			return ret;
	}
	return 0;
}

static int serve_path(struct perf_peer *peer, const json_t *request, uint64_t max_bytes,
		      struct perf_path *path, struct mf_error *err)
{
	json_t *answer = json_object(), *addresses = json_array();
	uint8_t token[TP_TOKEN_SIZE];
	struct perf_path_params params;

	int ret = parse_request(request, max_bytes, &params, token, err);
	if (!ret) {
		path->seal.sealing = params.sealing;
		memcpy(path->seal.key, token, sizeof(token));
	}
	if (!ret)
		ret = open_ends(peer, request, &params, path, addresses, err);
	if (!ret)
		ret = path_take_remotes(path, json_object_get(request, "remotes"), err);
	if (ret) {
		json_decref(addresses);
		json_decref(answer);
		return ret;
	}
	perf_put(answer, "addresses", addresses);
	perf_put(answer, "device", json_string(path->device));
	perf_put(answer, "remotes", path_remotes(path));
	ret = perf_peer_send(peer, answer, err);
	if (!ret)
		ret = accept_lanes(path, token, err);
	return ret ? ret : perf_peer_send(peer, json_object(), err);
}

int perf_path_serve(struct perf_peer *peer, const json_t *request, uint64_t max_bytes,
		    struct perf_path *path, struct mf_error *err)
{
	*path = (struct perf_path){ 0 };
	int ret = serve_path(peer, request, max_bytes, path, err);
	if (ret)
		perf_path_close(path);
	return ret;
}
