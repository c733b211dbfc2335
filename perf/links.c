/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/links.h"

#include <string.h>

int perf_links_transports(struct perf_run *run, const char *ret[PERF_SLOTS], unsigned *ret_n,
			  struct mf_error *err)
{
	char why[120];

	*ret_n = PERF_SLOTS;
	ret[0] = "verbs"; /* what is less likely to be there first */
	ret[1] = "tcp";
	if (!strcmp(run->o->transport, "both"))
		return 0;
	*ret_n = 1;
	int code = perf_path_choose(run->peer, run->o->transport, &ret[0], why, sizeof(why), err);
	if (!code && strcmp(run->o->transport, ret[0]))
		(void)fprintf(run->out, "%s\n", why);
	return code;
}

/* Not every verb has the option. */
static enum tp_sealing sealing_of(const struct perf_options *o)
{
	if (!o->sealing || !strcmp(o->sealing, "none"))
		return TP_SEAL_NONE;
	return strcmp(o->sealing, "encrypt") ? TP_SEAL_INTEGRITY : TP_SEAL_ENCRYPT;
}

void perf_links_params(const struct perf_options *o, const char *transport,
		       struct perf_path_params *ret)
{
	bool is_tcp = !strcmp(transport, "tcp");

	*ret = (struct perf_path_params){
		.transport = transport,
		.sealing = sealing_of(o),
		/* With both, the device is verbs'; tcp goes by the address of the connection. */
		.device = is_tcp && !strcmp(o->transport, "both") ? NULL : o->device,
		.gid = o->gid > INT32_MAX || is_tcp ? -1 : (int)o->gid,
		.lanes = (uint32_t)o->lanes,
		.depth = (uint32_t)o->depth,
	};
}

int perf_links_open(struct perf_run *run, uint64_t bytes, struct perf_links *links,
		    struct mf_error *err)
{
	const char *transports[PERF_SLOTS];
	unsigned n = 0;

	*links = (struct perf_links){ 0 };
	int ret = perf_links_transports(run, transports, &n, err);
	while (!ret && links->n < n) {
		struct perf_path_params params;
		perf_links_params(run->o, transports[links->n], &params);
		params.slot = links->n;
		params.bytes = bytes;
		ret = perf_path_open(run->peer, &params, &links->path[links->n], err);
		links->n += !ret;
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

void perf_links_table(const struct perf_run *run, const struct perf_column *columns, size_t n,
		      const char *figure, bool less_is_better)
{
	const json_t *rows = perf_doc_rows(run->doc);
	json_t *lines = json_array();

	for (size_t i = 0; i + 1 < json_array_size(rows); i += 2) {
		json_t *verbs = json_array_get(rows, i), *tcp = json_array_get(rows, i + 1);
		json_t *line = json_object();
		double of_verbs = perf_number(verbs, figure), of_tcp = perf_number(tcp, figure);
		perf_put(line, "bytes", json_incref(json_object_get(tcp, "bytes")));
		perf_put(line, "verbs", json_incref(verbs));
		perf_put(line, "tcp", json_incref(tcp));
		if (of_verbs > 0 && of_tcp > 0)
			perf_put(line, "ratio",
				 json_real(less_is_better ? of_tcp / of_verbs : of_verbs / of_tcp));
		(void)json_array_append_new(lines, line);
	}
	(void)fprintf(run->out, "\n%s, both transports in turns\n", run->o->op);
	perf_table(run->out, columns, n, lines);
	json_decref(lines);
}
