/* SPDX-License-Identifier: BSD-2-Clause */
#include "tests/conformance/tp_rig.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/error.h"

#define BATCH 16

struct tp_seal rig_seal = { TP_SEAL_ENCRYPT, { 7, 7, 7 } };

const char *rig_host(void)
{
	const char *host = getenv("MEMFERRY_TEST_HOST");

	return host ? host : "127.0.0.1";
}

static void check(int ret, const struct mf_error *err, const char *what)
{
	if (ret)
		fail_msg("%s: %d, %s", what, ret, err->msg);
}

/* The far side */

static void *run_pump(void *arg)
{
	struct rig_pump *pump = arg;
	struct tp_wc wc[BATCH];

	while (!atomic_load(&pump->stop)) {
		if (atomic_exchange(&pump->shut_lane, false))
			tp_lane_shutdown(pump->lane);
		void (*call)(struct tp_lane *, void *) = atomic_exchange(&pump->call, NULL);
		if (call) {
			call(pump->lane, pump->call_arg);
			(void)sem_post(&pump->called);
		}
		int n = tp_lane_poll(pump->lane, wc, BATCH);
		for (int i = 0; i < n; i++) {
			unsigned at = atomic_load(&pump->n_mail);
			if (!wc[i].received || at == sizeof(pump->mail) / sizeof(pump->mail[0]))
				continue;
			pump->mail[at] = wc[i];
			atomic_store(&pump->n_mail, at + 1);
		}
		if (n < 0) {
			atomic_store(&pump->ended, n);
			return NULL;
		}
		(void)tp_lane_wait(pump->lane, base_deadline_ms(RIG_PATIENCE_MS));
	}
	return NULL;
}

static void *run_accept(void *arg)
{
	struct rig_pump *pump = arg;
	struct mf_error err = { 0 };

	int ret = tp_accept(pump->rig->listener, pump->rig->token,
			    base_deadline_ms(RIG_PATIENCE_MS), &pump->lane, &err);
	return ret ? (void *)"failed" : NULL;
}

void rig_add_lane(struct rig *rig, unsigned nr)
{
	struct rig_pump *pump = &rig->pump[nr];
	struct mf_error err = { 0 };
	pthread_t acceptor;
	void *result;

	memset(pump, 0, sizeof(*pump));
	pump->rig = rig;
	assert_int_equal(sem_init(&pump->called, 0, 0), 0);
	assert_int_equal(pthread_create(&acceptor, NULL, run_accept, pump), 0);
	int ret = tp_connect(rig->near_domain, rig->addr, rig->token, nr,
			     base_deadline_ms(RIG_PATIENCE_MS), &rig->lane[nr], &err);
	assert_int_equal(pthread_join(acceptor, &result), 0);
	check(ret, &err, "connect");
	assert_null(result);
	assert_int_equal(rig->lane[nr]->id, nr);
	assert_int_equal(pump->lane->id, nr);
	assert_int_equal(pthread_create(&pump->thread, NULL, run_pump, pump), 0);
}

static void close_drained(struct tp_lane *lane)
{
	struct tp_wc wc[BATCH];
	uint64_t deadline = base_deadline_ms(RIG_PATIENCE_MS);

	tp_lane_shutdown(lane);
	while (tp_lane_poll(lane, wc, BATCH) >= 0)
		assert_true(base_now_us() < deadline);
	tp_lane_close(lane);
}

void rig_drop_lane(struct rig *rig, unsigned nr)
{
	struct rig_pump *pump = &rig->pump[nr];

	if (!rig->lane[nr])
		return;
	atomic_store(&pump->stop, true);
	tp_lane_wake(pump->lane);
	assert_int_equal(pthread_join(pump->thread, NULL), 0);
	close_drained(rig->lane[nr]);
	close_drained(pump->lane);
	rig->lane[nr] = NULL;
}

void rig_shut_far(struct rig *rig, unsigned nr)
{
	atomic_store(&rig->pump[nr].shut_lane, true);
	tp_lane_wake(rig->pump[nr].lane);
}

void rig_on_far(struct rig *rig, unsigned nr, void (*call)(struct tp_lane *lane, void *arg),
		void *arg)
{
	struct rig_pump *pump = &rig->pump[nr];
	struct timespec until;

	pump->call_arg = arg;
	atomic_store(&pump->call, call);
	tp_lane_wake(pump->lane);
	assert_int_equal(clock_gettime(CLOCK_REALTIME, &until), 0);
	until.tv_sec += RIG_PATIENCE_MS / 1000;
	while (sem_timedwait(&pump->called, &until))
		assert_int_equal(errno, EINTR);
}

void rig_open(struct rig *rig, const struct rig_params *params)
{
	struct tp_domain_params domain = { .local = rig_host(),
					   .depth = params->depth,
					   .silence_ms = params->silence_ms,
					   .on_demand = params->on_demand,
					   .receives = params->receives,
					   .seal = params->seal ? params->seal : &rig_seal };
	struct mf_error err = { 0 };
	char any_port[TP_ADDR_MAX];

	memset(rig, 0, sizeof(*rig));
	rig->params = *params;
	assert_int_equal(getrandom(rig->token, sizeof(rig->token), 0), sizeof(rig->token));
	check(tp_domain_open(params->near_ops, &domain, &rig->near_domain, &err), &err, "open");
	check(tp_domain_open(params->far_ops, &domain, &rig->far_domain, &err), &err, "open");

	int fd = memfd_create("far", MFD_CLOEXEC);
	assert_true(fd >= 0 && !ftruncate(fd, (off_t)params->bytes));
	rig->far_mem = mmap(NULL, params->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	rig->far_view = mmap(NULL, params->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	rig->near_mem = mmap(NULL, params->bytes, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(rig->far_mem, MAP_FAILED);
	assert_ptr_not_equal(rig->far_view, MAP_FAILED);
	assert_ptr_not_equal(rig->near_mem, MAP_FAILED);
	(void)close(fd);
	check(tp_mr_reg(rig->near_domain, rig->near_mem, params->bytes, TP_LOCAL, &rig->near_mr,
			&err),
	      &err, "register");
	check(tp_mr_reg(rig->far_domain, rig->far_mem, params->bytes, params->far_access,
			&rig->far_mr, &err),
	      &err, "register");
	tp_mr_remote(rig->far_mr, &rig->far_remote);

	(void)snprintf(any_port, sizeof(any_port), "%s:0", rig_host());
	check(tp_listen(rig->far_domain, any_port, &rig->listener, &err), &err, "listen");
	tp_listener_addr(rig->listener, rig->addr, sizeof(rig->addr));
	for (unsigned i = 0; i < params->n_lanes; i++)
		rig_add_lane(rig, i);
}

void rig_close(struct rig *rig)
{
	for (unsigned i = 0; i < RIG_LANES_MAX; i++)
		rig_drop_lane(rig, i);
	tp_listener_close(rig->listener);
	tp_mr_dereg(rig->near_mr);
	tp_mr_dereg(rig->far_mr);
	tp_domain_close(rig->near_domain);
	tp_domain_close(rig->far_domain);
	(void)munmap(rig->near_mem, rig->params.bytes);
	(void)munmap(rig->far_mem, rig->params.bytes);
	(void)munmap(rig->far_view, rig->params.bytes);
}

static void *run_acceptor(void *arg)
{
	struct rig_acceptor *acceptor = arg;

	acceptor->ret = tp_accept(acceptor->listener, acceptor->token, acceptor->deadline_us,
				  &acceptor->lane, &acceptor->err);
	return NULL;
}

void rig_start_acceptor(const struct rig *rig, struct rig_acceptor *acceptor, uint64_t deadline_us)
{
	*acceptor = (struct rig_acceptor){ .listener = rig->listener, .deadline_us = deadline_us };
	memcpy(acceptor->token, rig->token, TP_TOKEN_SIZE);
	assert_int_equal(pthread_create(&acceptor->thread, NULL, run_acceptor, acceptor), 0);
}

struct tp_xfer rig_xfer(const struct rig *rig, uint64_t near_at, uint64_t far_at, uint64_t len,
			uint64_t cookie)
{
	return (struct tp_xfer){
		.local = rig->near_mem + near_at,
		.mr = rig->near_mr,
		.remote = rig->far_remote.addr + far_at,
		.key = rig->far_remote.key,
		.len = len,
		.cookie = cookie,
	};
}

/* The ledger */

int ledger_poll(struct ledger *ledger, struct tp_lane *lane, unsigned n)
{
	struct tp_wc wc[256];

	assert_true(n <= 256);
	int got = tp_lane_poll(lane, wc, n);
	assert_true(got <= (int)n);
	for (int i = 0; i < got; i++) {
		assert_true(wc[i].cookie < LEDGER_MAX);
		assert_int_equal(ledger->seen[wc[i].cookie], 0); /* T3 */
		assert_true(wc[i].status <= 0);
		ledger->seen[wc[i].cookie] = 1;
		ledger->status[wc[i].cookie] = wc[i].status;
		ledger->n_done++;
		ledger->n_failed += wc[i].status < 0;
	}
	return got;
}

void ledger_collect(struct ledger *ledger, struct tp_lane *lane, uint32_t n)
{
	uint64_t deadline = base_deadline_ms(RIG_PATIENCE_MS);

	while (ledger->n_done < n) {
		int got = ledger_poll(ledger, lane, BATCH);
		if (got < 0)
			fail_msg("the lane failed: %s", base_strerror(got));
		if (!got && tp_lane_wait(lane, deadline) == -ETIMEDOUT)
			fail_msg("%u of %u completions came", ledger->n_done, n);
	}
}

int ledger_collect_failure(struct ledger *ledger, struct tp_lane *lane)
{
	uint64_t deadline = base_deadline_ms(RIG_PATIENCE_MS);

	for (;;) {
		int got = ledger_poll(ledger, lane, BATCH);
		if (got < 0)
			return got;
		if (!got && tp_lane_wait(lane, deadline) == -ETIMEDOUT)
			fail_msg("the lane did not fail");
	}
}

void ledger_post(struct ledger *ledger, struct tp_lane *lane, const struct tp_xfer *xfer,
		 unsigned n, int (*post)(struct tp_lane *, const struct tp_xfer *, unsigned))
{
	while (n) {
		int done = post(lane, xfer, n);
		if (done == -EAGAIN) {
			ledger_collect(ledger, lane, ledger->n_done + 1);
			continue;
		}
		assert_true(done > 0 && done <= (int)n); /* T1 */
		xfer += done;
		n -= (unsigned)done;
	}
}

void ledger_flush(struct ledger *ledger, struct tp_lane *lane, uint64_t cookie)
{
	int ret;

	while ((ret = tp_post_flush(lane, cookie)) == -EAGAIN)
		ledger_collect(ledger, lane, ledger->n_done + 1);
	assert_int_equal(ret, 0);
	while (!ledger->seen[cookie])
		ledger_collect(ledger, lane, ledger->n_done + 1);
	assert_int_equal(ledger->status[cookie], 0);
}
