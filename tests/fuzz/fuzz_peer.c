/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * memferry-perf's lines of JSON between client and server: the input is all that one says, up to its hanging up.  And
 * what the other makes of the objects: figures, tables, comparisons.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "fuzz.h"
#include "perf/cpu.h"
#include "perf/doc.h"
#include "perf/estimate.h"
#include "perf/peer.h"
#include "perf/stats.h"

static const struct perf_column columns[] = {
	{ "name", "name", NULL, 0 },
	{ "bytes_per_s.p50", "MiB/s", "%.2f", 1.0 / (1 << 20) },
	{ "n", "n", "%.0f", 0 },
};

static void copy_figures(const json_t *o)
{
	struct perf_stats stats;
	struct perf_cpu cpu;
	perf_stats_parse(json_object_get(o, "stats"), &stats);
	perf_cpu_parse(perf_get(o, "cpu.client"), &cpu);
	json_decref(perf_stats_json(&stats));
	json_decref(perf_cpu_json(&cpu));
	(void)perf_bytes_per_cpu_s(json_object_get(o, "cpu"), perf_number(o, "bytes"));
	assert(perf_text(o, "error.message"));
}

static void make_tables(const json_t *o, const json_t *before)
{
	char *text = NULL;
	size_t len = 0;
	FILE *to = open_memstream(&text, &len);
	json_t *rows = json_array();
	struct mf_error err = { 0 };
	assert(to && rows);
	perf_table(to, columns, BASE_ARRAY_LEN(columns), perf_doc_rows(o));
	int code = perf_estimate_compare(before, o, rows, &err);
	if (code)
		fuzz_check_error(&err, code);
	else
		assert(json_array_size(rows) >= 4);
	perf_table(to, columns, BASE_ARRAY_LEN(columns), rows);
	json_decref(rows);
	(void)fclose(to);
	free(text);
}

static void listen_to(struct perf_peer *peer)
{
	json_t *o = NULL, *before = json_object();
	struct mf_error err = { 0 };
	int code;
	while (!(code = perf_peer_recv(peer, base_deadline_ms(10000), &o, &err))) {
		assert(json_is_object(o));
		copy_figures(o);
		make_tables(o, before);
		json_decref(before);
		before = BASE_TAKE_PTR(o);
	}
	assert(code == -MF_EPEER);
	fuzz_check_error(&err, code);
	json_decref(before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct perf_peer *peer = NULL;
	struct mf_error err = { 0 };
	int pair[2];

	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	assert(!size || send(pair[1], data, size, MSG_NOSIGNAL) == (ssize_t)size);
	assert(shutdown(pair[1], SHUT_WR) == 0);
	int code = perf_peer_accepted(pair[0], base_deadline_ms(10000), &peer, &err);
	if (code) {
		assert(code == -MF_EPEER || code == -EBUSY);
		fuzz_check_error(&err, code);
	} else {
		listen_to(peer);
		perf_peer_close(peer);
	}
	(void)close(pair[1]);
	return 0;
}
