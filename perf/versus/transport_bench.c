/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * transport_bench BACKEND HOST [write|read SIZE]: one lane to ourselves over an address of this
 * host, and how fast it is.  Beside it, on the same host, ib_write_bw and ib_read_lat say what the
 * device can do; with one SIZE it uses one buffer over and over, as they do.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/parse.h"
#include "transport/transport.h"

#define KIB       1024u
#define MIB       (1024u * KIB)
#define BYTES     (64u * MIB)
#define DEPTH     128u
#define BATCH     16u
#define WARM_US   200000u
#define TIMED_US  3000000u
#define READS     2000u
#define CONNECT_S 30u

static const uint8_t token[TP_TOKEN_SIZE] = { 1 };

struct end {
	struct tp_domain *domain;
	struct tp_mr *mr;
	struct tp_lane *lane;
	uint8_t *mem;
};

struct far_end {
	struct end end;
	struct tp_listener *listener;
	_Atomic bool stop;
};

static void check(int ret, const struct mf_error *err)
{
	if (ret >= 0)
		return;
	(void)fprintf(stderr, "transport_bench: %s\n", err->code ? err->msg : base_strerror(ret));
	exit(1);
}

static void open_end(struct end *end, const struct tp_ops *ops, const char *host, uint32_t access)
{
	const struct tp_domain_params params = { .local = host, .depth = DEPTH };
	struct mf_error err = { 0 };

	end->mem = mmap(NULL, BYTES, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (end->mem == MAP_FAILED)
		check(-errno, &err);
	check(tp_domain_open(ops, &params, &end->domain, &err), &err);
	check(tp_mr_reg(end->domain, end->mem, BYTES, access, &end->mr, &err), &err);
}

/* The far end only has to be there, or, over TCP, to run. */
static void *run_far(void *arg)
{
	struct far_end *far = arg;
	struct mf_error err = { 0 };
	struct tp_wc wc[BATCH];

	check(tp_accept(far->listener, token, base_deadline_ms(CONNECT_S * 1000), &far->end.lane,
			&err),
	      &err);
	while (!atomic_load(&far->stop) && tp_lane_poll(far->end.lane, wc, BATCH) >= 0)
		(void)tp_lane_wait(far->end.lane, base_deadline_ms(1000));
	return NULL;
}

static unsigned reap(struct tp_lane *lane)
{
	struct mf_error err = { 0 };
	struct tp_wc wc[BATCH];

	int n = tp_lane_poll(lane, wc, BATCH);
	check(n, &err);
	for (int i = 0; i < n; i++)
		check(wc[i].status, &err);
	return (unsigned)n;
}

static void flush(struct tp_lane *lane, uint64_t *in_flight)
{
	struct mf_error err = { 0 };
	int ret;

	while ((ret = tp_post_flush(lane, 0)) == -EAGAIN)
		*in_flight -= reap(lane);
	check(ret, &err);
	for (++*in_flight; *in_flight; *in_flight -= reap(lane))
		;
}

/* MiB/s of writes of one size, until they are visible. */
static double write_bandwidth(const struct end *near, const struct tp_remote *remote, uint32_t size,
			      uint32_t span)
{
	struct tp_xfer xfer[BATCH];
	struct mf_error err = { 0 };
	uint64_t posted = 0, in_flight = 0, at = 0;

	uint64_t start = base_now_us(), counted = start + WARM_US, end = counted + TIMED_US, now;
	bool warm = false;
	while ((now = base_now_us()) < end) {
		if (!warm && now >= counted) {
			flush(near->lane, &in_flight);
			warm = true;
			posted = 0;
			start = base_now_us();
			end = start + TIMED_US;
		}
		for (unsigned i = 0; i < BATCH; i++) {
			xfer[i] = (struct tp_xfer){ .local = near->mem + at,
						    .mr = near->mr,
						    .remote = remote->addr + at,
						    .key = remote->key,
						    .len = size };
			at = (at + size) % span;
		}
		int n = tp_post_write(near->lane, xfer, BATCH);
		if (n != -EAGAIN)
			check(n, &err);
		if (n > 0) {
			posted += (unsigned)n;
			in_flight += (unsigned)n;
		}
		in_flight -= reap(near->lane);
	}
	flush(near->lane, &in_flight);
	return (double)posted * size / MIB / ((double)(base_now_us() - start) / 1e6);
}

static int compare(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* One at a time, polled for; as perftest does, from one post to the next. */
static void read_latency(const struct end *near, const struct tp_remote *remote, uint32_t size,
			 uint32_t span)
{
	static double us[READS];
	struct mf_error err = { 0 };

	uint64_t start = now_ns();
	for (unsigned i = 0; i < READS; i++) {
		struct tp_xfer xfer = { .local = near->mem,
					.mr = near->mr,
					.remote = remote->addr + i * size % span,
					.key = remote->key,
					.len = size };
		check(tp_post_read(near->lane, &xfer, 1), &err);
		while (!reap(near->lane))
			;
		uint64_t now = now_ns();
		us[i] = (double)(now - start) / 1000;
		start = now;
	}
	qsort(us, READS, sizeof(us[0]), compare);
	(void)printf("read %u B: median %.1f us, 99%% %.1f us\n", size, us[READS / 2],
		     us[READS * 99 / 100]);
}

/* An operation costs a + b * bytes; a / b bytes cost as much as one more operation (limits.gap). */
static void say_gap(double small, double large)
{
	double small_us = 4 * KIB / small, large_us = 64 * KIB / large;
	double per_byte = (large_us - small_us) / (60 * KIB);

	(void)printf("an operation costs as much as %.0f bytes more in one\n",
		     (small_us - per_byte * 4 * KIB) / per_byte);
}

static void say_bandwidth(uint32_t size, double mib_per_s)
{
	(void)printf("write %u B: %.1f MiB/s\n", size, mib_per_s);
}

static void measure_all(const struct end *near, const struct tp_remote *remote)
{
	double small = write_bandwidth(near, remote, 4 * KIB, BYTES);
	double large = write_bandwidth(near, remote, 64 * KIB, BYTES);

	say_bandwidth(4 * KIB, small);
	say_bandwidth(64 * KIB, large);
	say_bandwidth(MIB, write_bandwidth(near, remote, MIB, BYTES));
	say_gap(small, large);
	read_latency(near, remote, 4 * KIB, BYTES);
}

int main(int argc, char **argv)
{
	const struct tp_ops *ops = argc == 3 || argc == 5 ? tp_find(argv[1]) : NULL;
	struct mf_error err = { 0 };
	struct far_end far = { 0 };
	struct end near = { 0 };
	struct tp_remote remote;
	char addr[TP_ADDR_MAX];
	pthread_t thread;
	uint64_t size = 0;

	if (!ops || (argc == 5 && strcmp(argv[3], "write") && strcmp(argv[3], "read"))) {
		(void)fprintf(stderr, "usage: transport_bench BACKEND HOST [write|read SIZE]\n");
		return 2;
	}
	if (argc == 5)
		check(base_parse_number(argv[4], "SIZE", 1, BYTES, &size, &err), &err);
	open_end(&near, ops, argv[2], TP_LOCAL);
	open_end(&far.end, ops, argv[2], TP_REMOTE_WRITE | TP_REMOTE_READ);
	tp_mr_remote(far.end.mr, &remote);
	(void)snprintf(addr, sizeof(addr), "%s:0", argv[2]);
	check(tp_listen(far.end.domain, addr, &far.listener, &err), &err);
	tp_listener_addr(far.listener, addr, sizeof(addr));
	check(-pthread_create(&thread, NULL, run_far, &far), &err);
	check(tp_connect(near.domain, addr, token, 0, base_deadline_ms(CONNECT_S * 1000),
			 &near.lane, &err),
	      &err);

	if (!size)
		measure_all(&near, &remote);
	else if (!strcmp(argv[3], "write"))
		say_bandwidth((uint32_t)size,
			      write_bandwidth(&near, &remote, (uint32_t)size, (uint32_t)size));
	else
		read_latency(&near, &remote, (uint32_t)size, (uint32_t)size);

	atomic_store(&far.stop, true);
	tp_lane_wake(far.end.lane);
	(void)pthread_join(thread, NULL);
	tp_lane_shutdown(near.lane);
	tp_lane_shutdown(far.end.lane);
	tp_lane_close(near.lane);
	tp_lane_close(far.end.lane);
	tp_listener_close(far.listener);
	tp_mr_dereg(near.mr);
	tp_mr_dereg(far.end.mr);
	tp_domain_close(near.domain);
	tp_domain_close(far.end.domain);
	return 0;
}
