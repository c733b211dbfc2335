/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/links.h"

#include <string.h>

static int open_one(struct perf_run *run, const char *transport, uint64_t bytes,
		    struct perf_links *links, struct mf_error *err)
{
	const struct perf_options *o = run->o;
	const struct perf_path_params params = {
		.transport = transport,
		/* With both, the device is verbs'; tcp goes by the address of the connection. */
		.device = !strcmp(o->transport, "both") && !strcmp(transport, "tcp") ? NULL
										     : o->device,
		.gid = o->gid > INT32_MAX || !strcmp(transport, "tcp") ? -1 : (int)o->gid,
		.slot = links->n,
		.lanes = (uint32_t)o->lanes,
		.depth = (uint32_t)o->depth,
		.bytes = bytes,
	};

	int ret = perf_path_open(run->peer, &params, &links->path[links->n], err);
	if (!ret)
		links->n++;
	return ret;
}

int perf_links_open(struct perf_run *run, uint64_t bytes, struct perf_links *links,
		    struct mf_error *err)
{
	const char *transport = run->o->transport;
	char why[120];
	int ret;

	*links = (struct perf_links){ 0 };
	if (!strcmp(transport, "both")) {
		ret = open_one(run, "verbs", bytes, links, err);
		if (!ret)
			ret = open_one(run, "tcp", bytes, links, err);
	} else {
		ret = perf_path_choose(run->peer, transport, &transport, why, sizeof(why), err);
		if (!ret && strcmp(run->o->transport, transport))
			(void)fprintf(run->out, "%s\n", why);
		if (!ret)
			ret = open_one(run, transport, bytes, links, err);
	}
	if (ret)
		perf_links_close(run, links);
	return ret;
}

void perf_links_close(struct perf_run *run, struct perf_links *links)
{
	for (unsigned i = 0; i < links->n; i++)
		(void)perf_path_end(run->peer, &links->path[i], NULL);
	links->n = 0;
}
