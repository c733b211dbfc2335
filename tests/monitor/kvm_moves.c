/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whole moves of a guest on KVM, both monitors in this process, by loopback: each mode with each tracker, and a few
 * that end otherwise.  At the end the guest itself says whether it is whole.
 */
#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "move.h"
#include "tracker/tracker.h"

#define PAGES 4096u

struct plan {
	const char *name;
	enum mf_mode mode;
	enum mf_kvm_tracking_way way;
	const char *tracker;
	bool smallest_ring;
	uint64_t max_bandwidth;
	enum mf_phase request_at; /* 0: nothing is requested */
	enum mf_request request;
	enum mf_outcome outcome; /* NONE: completed */
};

#define PLAN(what, how, by, via, ...)                                                     \
	{                                                                                 \
		.name = (what), .mode = (how), .way = (by), .tracker = (via), __VA_ARGS__ \
	}

static const struct plan plans[] = {
	PLAN("precopy by kvmlog", MF_MODE_PRECOPY, MF_KVM_TRACK_LOG, "kvmlog"),
	PLAN("precopy by kvmring", MF_MODE_PRECOPY, MF_KVM_TRACK_RING, "kvmring"),
	PLAN("precopy by the smallest kvmring", MF_MODE_PRECOPY, MF_KVM_TRACK_RING, "kvmring",
	     .smallest_ring = true),
	PLAN("precopy by the plain log", MF_MODE_PRECOPY, MF_KVM_TRACK_NONE, "kvmlog"),
	PLAN("precopy by pagemap", MF_MODE_PRECOPY, MF_KVM_TRACK_NONE, "pagemap"),
	PLAN("hybrid by kvmlog, told to switch", MF_MODE_HYBRID, MF_KVM_TRACK_LOG, "kvmlog",
	     .max_bandwidth = 4 << 20, .request_at = MF_PHASE_PRECOPY,
	     .request = MF_REQUEST_POSTCOPY),
	PLAN("hybrid by kvmring, told to switch", MF_MODE_HYBRID, MF_KVM_TRACK_RING, "kvmring",
	     .max_bandwidth = 4 << 20, .request_at = MF_PHASE_PRECOPY,
	     .request = MF_REQUEST_POSTCOPY),
	PLAN("postcopy", MF_MODE_POSTCOPY, MF_KVM_TRACK_LOG, NULL),
	PLAN("cold", MF_MODE_COLD, MF_KVM_TRACK_RING, NULL),
	PLAN("warm by kvmlog, cut over", MF_MODE_WARM, MF_KVM_TRACK_LOG, "kvmlog",
	     .request_at = MF_PHASE_PRECOPY, .request = MF_REQUEST_CUTOVER),
	PLAN("cancelled by kvmlog", MF_MODE_WARM, MF_KVM_TRACK_LOG, "kvmlog",
	     .request_at = MF_PHASE_PRECOPY, .request = MF_REQUEST_CANCEL,
	     .outcome = MF_OUTCOME_ABORTED),
	PLAN("cancelled by kvmring", MF_MODE_WARM, MF_KVM_TRACK_RING, "kvmring",
	     .request_at = MF_PHASE_PRECOPY, .request = MF_REQUEST_CANCEL,
	     .outcome = MF_OUTCOME_ABORTED),
};

struct side {
	struct machine m;
	struct move move;
};

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st;
	(void)type;
	(void)at;
	return remove(path);
}

static void nap(long ms)
{
	(void)nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 },
			NULL);
}

static void open_machine(struct side *s, const struct plan *plan, bool is_destination)
{
	const struct machine_params params = { .mode = GUEST_CHECKS,
					       .n_pages = PAGES,
					       .way = plan->way,
					       .smallest_ring = plan->smallest_ring,
					       .is_destination = is_destination };
	const char *why = machine_open(&s->m, &params);
	if (why)
		fail_msg("%s", why);
	machine_start(&s->m);
}

/* So many steps more, and nothing wrong. */
static void let_run(struct machine *m, uint64_t steps)
{
	char text[200];
	uint64_t until = machine_life(m) + steps, deadline = base_deadline_ms(60000);
	while (machine_life(m) < until || machine_wrong(m, text, sizeof(text))) {
		if (machine_wrong(m, text, sizeof(text)))
			fail_msg("%s", text);
		if (!base_left_ms(deadline))
			fail_msg("the guest stands");
		nap(5);
	}
}

static void check_whole(struct machine *m)
{
	uint64_t pit = m->box->pit_ticks, deadline = base_deadline_ms(30000);
	uint64_t apic[GUEST_VCPUS];
	for (uint32_t i = 0; i < GUEST_VCPUS; i++)
		apic[i] = m->box->vcpu[i].apic_ticks;
	let_run(m, 5000);
	for (uint32_t i = 0; i < GUEST_VCPUS; i++) {
		while (__atomic_load_n(&m->box->vcpu[i].apic_ticks, __ATOMIC_RELAXED) <= apic[i] ||
		       __atomic_load_n(&m->box->pit_ticks, __ATOMIC_RELAXED) <= pit) {
			assert_true(base_left_ms(deadline) > 0);
			nap(5);
		}
	}
	let_run(m, 1);
	machine_stop(m);
	assert_int_equal(machine_wrong_pages(m), 0);
}

static void start_move(struct side *s, const struct plan *plan, const char *address,
		       const char *run_dir)
{
	struct mf_error err = { 0 };
	const struct move_params params = { .address = address,
					    .run_dir = run_dir,
					    .mode = plan->mode,
					    .tracker = plan->tracker,
					    .max_bandwidth = plan->max_bandwidth };
	if (move_start(&s->move, &s->m, &params, &err) < 0)
		fail_msg("%s", err.msg);
}

static void one_move(void **state)
{
	const struct plan *plan = *state;
	static struct side src, dst;
	struct mf_error err[2] = { 0 };
	char run_dir[] = "/tmp/kvm_moves.XXXXXX";
	bool is_whole = plan->outcome == MF_OUTCOME_NONE;
	if (plan->tracker && !strcmp(plan->tracker, "pagemap") &&
	    trk_probe(trk_find("pagemap"), NULL, &err[0]) < 0) {
		print_message("SKIP: %s\n", err[0].msg);
		skip();
	}
	assert_non_null(mkdtemp(run_dir));
	open_machine(&src, plan, false);
	open_machine(&dst, plan, true);
	let_run(&src.m, 3000);
	start_move(&dst, plan, "127.0.0.1:0", run_dir);
	const char *address = move_address(&dst.move);
	assert_non_null(address);
	start_move(&src, plan, address, run_dir);
	if (plan->request_at) {
		assert_true(move_await(&src.move, plan->request_at));
		nap(300);
		mf_session_request(src.move.session, plan->request);
	}
	int r = move_wait(&src.move, &err[0]);
	if (is_whole && r < 0)
		fail_msg("source: %s", err[0].msg);
	r = move_wait(&dst.move, &err[1]);
	if (is_whole && r < 0)
		fail_msg("destination: %s", err[1].msg);
	const struct mf_report *report = move_report(&src.move);
	assert_int_equal(report->outcome, is_whole ? MF_OUTCOME_COMPLETED : plan->outcome);
	if (plan->tracker)
		assert_string_equal(report->tracker, plan->tracker);
	print_message("  %u rounds, downtime %llu ms, %llu faults\n", report->n_rounds,
		      (unsigned long long)report->downtime_ms,
		      (unsigned long long)move_report(&dst.move)->postcopy.faults);
	if (plan->request == MF_REQUEST_POSTCOPY && plan->request_at)
		assert_true(report->has_postcopy);
	move_end(&src.move);
	move_end(&dst.move);
	check_whole(is_whole ? &dst.m : &src.m);
	if (is_whole) {
		assert_true(atomic_load(&src.m.has_finished));
		/* A guest that came may go on to another host, and a source that gave up may try again. */
		assert_true(mf_kvm_adapter(src.m.kvm, &src.move.adapter, &err[0]) < 0);
	}
	machine_close(&src.m);
	machine_close(&dst.m);
	(void)nftw(run_dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* A guest that came is moved on, to a third host; a source that gave up tries again. */
static void a_guest_moves_on(void **state)
{
	static struct side sides[3];
	static const struct plan plan = { .mode = MF_MODE_HYBRID, .way = MF_KVM_TRACK_LOG };
	struct mf_error err = { 0 };
	(void)state;
	for (int i = 0; i < 3; i++)
		open_machine(&sides[i], &plan, i > 0);
	let_run(&sides[0].m, 1000);
	/* Nobody listens there. */
	char run_dir[] = "/tmp/kvm_moves.XXXXXX";
	assert_non_null(mkdtemp(run_dir));
	start_move(&sides[0], &plan, "127.0.0.1:1", run_dir);
	assert_true(move_wait(&sides[0].move, &err) < 0);
	move_end(&sides[0].move);
	let_run(&sides[0].m, 100);
	for (int i = 0; i < 2; i++) {
		err = (struct mf_error){ 0 };
		start_move(&sides[i + 1], &plan, "127.0.0.1:0", run_dir);
		start_move(&sides[i], &plan, move_address(&sides[i + 1].move), run_dir);
		if (move_wait(&sides[i].move, &err) < 0 || move_wait(&sides[i + 1].move, &err) < 0)
			fail_msg("hop %d: %s", i, err.msg);
		move_end(&sides[i].move);
		move_end(&sides[i + 1].move);
		let_run(&sides[i + 1].m, 2000);
		/* What moved here is a source by now. */
		sides[i + 1].m.params.is_destination = false;
	}
	check_whole(&sides[2].m);
	for (int i = 0; i < 3; i++)
		machine_close(&sides[i].m);
	(void)nftw(run_dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* A machine that lacks what the guest needs: refused before anything moves. */
static void needs_are_looked_at_first(void **state)
{
	static struct side src, dst;
	static const struct plan plan = { .mode = MF_MODE_PRECOPY, .way = MF_KVM_TRACK_LOG };
	struct mf_error err = { 0 }, ignored = { 0 };
	char run_dir[] = "/tmp/kvm_moves.XXXXXX";
	(void)state;
	assert_non_null(mkdtemp(run_dir));
	open_machine(&src, &plan, false);
	const struct machine_params params = { .mode = GUEST_CHECKS,
					       .n_pages = PAGES,
					       .way = MF_KVM_TRACK_LOG,
					       .is_destination = true,
					       .few_features = true };
	const char *why = machine_open(&dst.m, &params);
	if (why)
		fail_msg("%s", why);
	machine_start(&dst.m);
	start_move(&dst, &plan, "127.0.0.1:0", run_dir);
	start_move(&src, &plan, move_address(&dst.move), run_dir);
	assert_int_equal(move_wait(&src.move, &err), -MF_EREFUSED);
	assert_non_null(strstr(err.msg, "CPUID"));
	mf_session_request(dst.move.session, MF_REQUEST_CANCEL);
	(void)move_wait(&dst.move, &ignored);
	move_end(&src.move);
	move_end(&dst.move);
	check_whole(&src.m);
	machine_close(&src.m);
	machine_close(&dst.m);
	(void)nftw(run_dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

int main(void)
{
	struct CMUnitTest tests[sizeof(plans) / sizeof(plans[0]) + 2];
	size_t n = 0;
	const char *why = machine_lacks();
	if (why) {
		printf("SKIP: %s\n", why);
		return 77;
	}
	for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++)
		tests[n++] = (struct CMUnitTest){ .name = plans[i].name,
						  .test_func = one_move,
						  .initial_state = (void *)(uintptr_t)&plans[i] };
	tests[n++] = (struct CMUnitTest)cmocka_unit_test(a_guest_moves_on);
	tests[n++] = (struct CMUnitTest)cmocka_unit_test(needs_are_looked_at_first);
	return _cmocka_run_group_tests("moves on KVM", tests, n, NULL, NULL);
}
