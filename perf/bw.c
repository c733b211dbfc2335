/* SPDX-License-Identifier: BSD-2-Clause */
/* Bandwidth: the client's side, and the server's. */
#include "perf/bw.h"

#include "base/clock.h"
#include "perf/doc.h"
#include "perf/stream.h"

/* Of our share, with the server's on top when it did the same. */
static void conclude(const struct perf_plan *plan, const struct stream_result *ours,
		     const json_t *answer, struct perf_bw *ret)
{
	double size = (double)plan->size;

	ret->iterations = ours->iterations;
	ret->seconds = ours->seconds;
	ret->bytes_per_s = (double)ours->iterations * size / ours->seconds;
	ret->slices = ours->slices;
	perf_cpu_parse(json_object_get(answer, "cpu"), &ret->server);
	if (!plan->both_ways)
		return;
	struct perf_stats theirs;
	double iterations = perf_number(answer, "iterations");
	double seconds = perf_number(answer, "seconds");
	perf_stats_parse(json_object_get(answer, "slices"), &theirs);
	ret->iterations += (uint64_t)iterations;
	ret->bytes_per_s += seconds > 0 ? iterations * size / seconds : 0;
	ret->slices.min += theirs.min;
	ret->slices.max += theirs.max;
	ret->slices.mean += theirs.mean;
	ret->slices.p50 += theirs.p50;
	ret->slices.p90 += theirs.p90;
	ret->slices.p99 += theirs.p99;
	ret->slices.p99_9 += theirs.p99_9;
}

int perf_bw_run(struct perf_peer *peer, struct perf_path *path, const struct perf_plan *plan,
		struct perf_bw *ret, struct mf_error *err)
{
	uint64_t deadline = stream_deadline(plan);
	struct stream_result ours = { 0 };
	struct stream *stream = NULL;
	struct perf_cpu start;
	json_t *answer = NULL;

	*ret = (struct perf_bw){ 0 };
	int code = perf_peer_call(peer, "bw", stream_plan_json(plan, path),
				  base_deadline_ms(PERF_ANSWER_MS), NULL, err);
	if (code)
		return code;
	perf_cpu_now(&start);
	code = stream_start(path, plan, true, &stream, err);
	if (!code)
		code = stream_wait(stream, deadline, &ours, err);
	perf_cpu_since(&start, &ret->client);
	/* Our lanes are kept going until the server is through, too. */
	struct mf_error there = { 0 };
	int said = perf_peer_call(peer, "bw_end", NULL, deadline, &answer, &there);
	stream_stop(stream);
	if (!code && said)
		code = base_error(err, said, there.scope, "%s", there.msg);
	if (!code)
		conclude(plan, &ours, answer, ret);
	json_decref(answer);
	return code;
}

static int answer_end(struct perf_peer *peer, const struct stream_result *ours,
		      const struct perf_cpu *cpu, struct mf_error *err)
{
	json_t *o = json_object();

	perf_put(o, "cpu", perf_cpu_json(cpu));
	perf_put(o, "iterations", json_integer((json_int_t)ours->iterations));
	perf_put(o, "seconds", json_real(ours->seconds));
	perf_put(o, "slices", perf_stats_json(&ours->slices));
	return perf_peer_send(peer, o, err);
}

/* The client says when it is through; waits for that, then for our own share. */
static int serve_stream(struct perf_peer *peer, struct stream *stream, const struct perf_plan *plan,
			struct mf_error *err)
{
	uint64_t deadline = stream_deadline(plan);
	struct stream_result ours = { 0 };
	struct perf_cpu start, spent;
	json_t *request = NULL;

	perf_cpu_now(&start);
	int ret = perf_peer_send(peer, json_object(), err);
	if (!ret)
		ret = perf_peer_recv(peer, deadline, &request, err);
	json_decref(request);
	if (!ret)
		ret = stream_wait(stream, deadline, &ours, err);
	perf_cpu_since(&start, &spent);
	return ret ? ret : answer_end(peer, &ours, &spent, err);
}

int perf_bw_serve(struct perf_peer *peer, const json_t *request, struct perf_path *path,
		  struct mf_error *err)
{
	struct stream *stream = NULL;
	struct perf_plan plan;

	int ret = stream_plan_parse(request, path, &plan, err);
	if (!ret)
		ret = stream_start(path, &plan, plan.both_ways, &stream, err);
	if (!ret)
		ret = serve_stream(peer, stream, &plan, err);
	stream_stop(stream);
	return ret;
}
