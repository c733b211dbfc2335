/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is only true of the adapter for monitors on raw KVM: where vCPUs may be when they are paused, that every register
 * arrives, that time goes on, what is refused, and the monitor's own writes.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/clock.h"
#include "hv-adapters/kvm/kvm.h"
#include "hv-adapters/kvm/sections.h"
#include "tests/monitor/machine.h"

#define PAGES 512u

#define must(call)                                                  \
	do {                                                        \
		struct mf_error err = { 0 };                        \
		int rc_ = (int)(call);                              \
		if (rc_ < 0)                                        \
			fail_msg("%s: %d %s", #call, rc_, err.msg); \
	} while (0)

static const struct machine_params checks = { .mode = GUEST_CHECKS, .n_pages = PAGES };
static const struct machine_params obeys = { .mode = GUEST_OBEYS, .n_pages = PAGES };

struct side {
	struct machine m;
	struct mf_adapter a;
};

static void open_side(struct side *s, const struct machine_params *params)
{
	const char *why = machine_open(&s->m, params);
	if (why)
		fail_msg("%s", why);
	must(mf_kvm_adapter(s->m.kvm, &s->a, &err));
}

static void close_side(struct side *s)
{
	s->a.ops->close(s->a.hv);
	machine_close(&s->m);
}

static void nap(long ms)
{
	(void)nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 },
			NULL);
}

static void assert_runs(struct machine *m)
{
	uint64_t before = machine_life(m), deadline = base_deadline_ms(20000);
	char text[200];
	while (machine_life(m) < before + 200) {
		if (!base_left_ms(deadline) || machine_wrong(m, text, sizeof(text)))
			fail_msg("the guest does not run: %s",
				 machine_wrong(m, text, sizeof(text)) ?: "it stands");
		nap(5);
	}
	if (machine_wrong(m, text, sizeof(text)))
		fail_msg("%s", text);
}

static void pause_side(struct side *s)
{
	uint64_t stopped = 0;
	must(s->a.ops->pause(s->a.hv, &stopped, &err));
	uint64_t before = machine_life(&s->m);
	nap(20);
	assert_int_equal(machine_life(&s->m), before);
}

/* ---- a stream in memory ---- */

struct stream {
	unsigned char *bytes;
	size_t len, at;
};

static int put(void *ctx, const void *bytes, size_t len)
{
	struct stream *s = ctx;
	s->bytes = realloc(s->bytes, s->len + len);
	memcpy(s->bytes + s->len, bytes, len);
	s->len += len;
	return 0;
}

static ssize_t take(void *ctx, void *bytes, size_t cap)
{
	struct stream *s = ctx;
	size_t n = s->len - s->at < cap ? s->len - s->at : cap;
	memcpy(bytes, s->bytes + s->at, n);
	s->at += n;
	return (ssize_t)n;
}

static void copy_ram(struct side *from, struct side *to)
{
	memcpy(to->m.low, from->m.low, LOW_BYTES);
	memcpy(to->m.pages, from->m.pages, PAGES * 4096u);
}

/* Two machines, the guest paused at the source and its state in a stream. */
static void stop_and_save(struct side *src, struct side *dst, struct stream *s)
{
	struct machine_params empty = checks;
	empty.is_destination = true;
	open_side(src, &checks);
	open_side(dst, &empty);
	machine_start(&src->m);
	machine_start(&dst->m);
	assert_runs(&src->m);
	must(src->a.ops->prepare(src->a.hv, MF_SOURCE, &err));
	must(dst->a.ops->prepare(dst->a.hv, MF_DESTINATION, &err));
	pause_side(src);
	copy_ram(src, dst);
	*s = (struct stream){ 0 };
	must(src->a.ops->save_state(src->a.hv, put, s, &err));
}

/* ---- pausing ---- */

static void a_vcpu_in_the_guest_is_paused(void **state)
{
	struct side s;
	(void)state;
	open_side(&s, &obeys);
	machine_start(&s.m);
	/* In the guest for good: it makes no exit by itself. */
	machine_order(&s.m, 0, ORDER_WRITE_ON, 0, 0, 0);
	machine_order(&s.m, 1, ORDER_WRITE_ON, 0, 0, 0);
	for (int i = 0; i < 50; i++) {
		uint64_t stopped;
		nap(i % 5);
		must(s.a.ops->pause(s.a.hv, &stopped, &err));
		uint64_t done = s.m.desk->done[0][5];
		nap(1);
		assert_int_equal(s.m.desk->done[0][5], done);
		must(s.a.ops->abort(s.a.hv, &err));
	}
	__atomic_store_n(&s.m.desk->stop, 1, __ATOMIC_RELEASE);
	assert_true(machine_done(&s.m, 0) && machine_done(&s.m, 1));
	close_side(&s);
}

/* Ports, memory-mapped registers and string instructions all the time: none is lost or done twice. */
static void a_vcpu_between_exits_is_paused(void **state)
{
	struct side s;
	(void)state;
	open_side(&s, &checks);
	machine_start(&s.m);
	for (int i = 0; i < 60; i++) {
		uint64_t stopped;
		nap(i % 4);
		must(s.a.ops->pause(s.a.hv, &stopped, &err));
		must(s.a.ops->abort(s.a.hv, &err));
	}
	assert_runs(&s.m);
	assert_false(atomic_load(&s.m.devices_stopped));
	close_side(&s);
}

static void a_halted_vcpu_is_paused(void **state)
{
	struct side s;
	struct kvm_mp_state halted = { KVM_MP_STATE_HALTED };
	uint64_t stopped;
	(void)state;
	open_side(&s, &obeys);
	assert_return_code(ioctl(s.m.vcpu_fds[1], KVM_SET_MP_STATE, &halted), errno);
	machine_start(&s.m);
	nap(50);
	uint64_t before = base_now_us();
	must(s.a.ops->pause(s.a.hv, &stopped, &err));
	assert_true(base_now_us() - before < 4000000);
	must(s.a.ops->prepare(s.a.hv, MF_SOURCE, &err));
	must(s.a.ops->abort(s.a.hv, &err));
	close_side(&s);
}

static void a_machine_whose_threads_have_not_come_is_paused(void **state)
{
	struct side s;
	uint64_t stopped;
	(void)state;
	open_side(&s, &checks);
	must(s.a.ops->pause(s.a.hv, &stopped, &err));
	machine_start(&s.m);
	nap(30);
	assert_int_equal(machine_life(&s.m), 0);
	must(s.a.ops->abort(s.a.hv, &err));
	assert_runs(&s.m);
	/* And one whose threads have left. */
	machine_stop(&s.m);
	must(s.a.ops->pause(s.a.hv, &stopped, &err));
	close_side(&s);
}

static void a_pause_that_fails_lets_all_go_on(void **state)
{
	struct side s;
	struct machine_params params = checks;
	struct mf_error said = { 0 };
	uint64_t stopped;
	(void)state;
	params.pause_ms = 200;
	open_side(&s, &params);
	machine_start(&s.m);
	assert_runs(&s.m);
	atomic_store(&s.m.hold_exits, true);
	uint64_t deadline = base_deadline_ms(20000);
	while (!atomic_load(&s.m.n_held) && base_left_ms(deadline))
		nap(1);
	uint64_t before = base_now_us();
	assert_int_equal(s.a.ops->pause(s.a.hv, &stopped, &said), -ETIMEDOUT);
	assert_true(base_now_us() - before < 5000000);
	assert_non_null(strstr(said.msg, "serves an exit"));
	atomic_store(&s.m.hold_exits, false);
	assert_runs(&s.m);
	pause_side(&s);
	must(s.a.ops->abort(s.a.hv, &err));
	assert_runs(&s.m);
	close_side(&s);
}

static void a_kick_comes_out_of_run(void **state)
{
	struct side s;
	(void)state;
	open_side(&s, &obeys);
	/* Before it enters: at once, and only once. */
	mf_kvm_kick(s.m.kvm, 0);
	assert_int_equal(mf_kvm_run(s.m.kvm, 0), -EINTR);
	int r;
	while ((r = mf_kvm_run(s.m.kvm, 0)) == -EINTR)
		;
	assert_int_equal(r, 0); /* it waits for an order */
	assert_int_equal(s.m.runs[0]->exit_reason, KVM_EXIT_IO);
	mf_kvm_kick(s.m.kvm, 0);
	assert_int_equal(mf_kvm_run(s.m.kvm, 0), -EINTR);
	assert_int_equal(mf_kvm_leave(s.m.kvm, 0), 0);
	close_side(&s);
}

static void an_ignored_signal_is_refused(void **state)
{
	struct side s;
	struct mf_kvm *kvm = NULL;
	struct mf_error err = { 0 };
	(void)state;
	open_side(&s, &obeys);
	struct mf_kvm_params params = { .size = sizeof(params),
					.kvm_fd = s.m.kvm_fd,
					.vm_fd = s.m.vm_fd,
					.n_vcpus = 2,
					.vcpu_fds = s.m.vcpu_fds,
					.n_slots = MACHINE_SLOTS,
					.slots = s.m.slots,
					.n_regions = 2,
					.regions = s.m.regions,
					.monitor = "m",
					.machine = "m",
					.irqchip = MF_KVM_IRQCHIP_FULL,
					.kick_signal = SIGUSR2 };
	(void)signal(SIGUSR2, SIG_IGN);
	assert_int_equal(mf_kvm_open(&params, &kvm, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "ignored"));
	(void)signal(SIGUSR2, SIG_DFL);
	params.size--;
	assert_int_equal(mf_kvm_open(&params, &kvm, &err), -EINVAL);
	params.size++;
	params.ring_bytes = 65536;
	params.manual_protect = 3;
	assert_int_equal(mf_kvm_open(&params, &kvm, &err), -EINVAL);
	/* One move at a time. */
	struct mf_adapter second;
	assert_int_equal(mf_kvm_adapter(s.m.kvm, &second, &err), -EBUSY);
	close_side(&s);
}

/* ---- state ---- */

static bool knows_all(uint32_t type)
{
	(void)type;
	return true;
}

static struct blob parse(const unsigned char *bytes, size_t len)
{
	struct blob blob;
	must(blob_parse(bytes, len, BLOB_STATE, knows_all, "state", &blob, &err));
	return blob;
}

/* What counts on by itself, or that KVM makes anew, is left out. */
static void normalise(uint32_t type, unsigned char *bytes, size_t len)
{
	if (type == SEC_LAPIC) {
		memset(bytes + 0x390, 0, 4); /* what is left of the timer's period */
		/* The processor's priority follows from the rest.  KVM computes it when it loads the rest, but before
		 * it has counted what is in service, and again before each interrupt. */
		memset(bytes + 0xa0, 0, 4);
	}
	if (type == SEC_PIT) {
		struct kvm_pit_state2 *pit = (void *)bytes;
		for (int i = 0; i < 3; i++)
			pit->channels[i].count_load_time = 0;
	}
	for (size_t at = 0; type == SEC_MSRS && at + 16 <= len; at += 16) {
		struct kvm_msr_entry *e = (void *)(bytes + at);
		if (e->index == 0x40000010) /* Hyper-V's: the time that the vCPU ran */
			e->data = 0;
	}
}

static void every_register_arrives(void **state)
{
	struct side src, dst;
	struct stream s;
	(void)state;
	stop_and_save(&src, &dst, &s);
	must(dst.a.ops->load_state(dst.a.hv, take, &s, &err));
	dst.m.kvm->devices.len = 0;
	must(state_save(dst.m.kvm, &err));
	struct blob a = parse(s.bytes, s.len);
	struct blob b = parse(dst.m.kvm->blob.bytes, dst.m.kvm->blob.len);
	unsigned n = 0;
	for (uint32_t i = 0; i < a.n; i++) {
		const struct blob_section *from = &a.sections[i];
		const struct blob_section *to = blob_find(&b, from->type, from->instance);
		if (from->type == SEC_INFO || from->type == SEC_CLOCK || from->type == SEC_TSC ||
		    from->type == SEC_DEVICES)
			continue;
		assert_non_null(to);
		assert_int_equal(from->len, to->len);
		unsigned char *x = malloc(from->len + 1), *y = malloc(from->len + 1);
		memcpy(x, from->bytes, from->len);
		memcpy(y, to->bytes, to->len);
		normalise(from->type, x, from->len);
		normalise(from->type, y, from->len);
		for (size_t k = 0; k < from->len; k++) {
			if (x[k] != y[k])
				fail_msg("section 0x%x of %u differs at byte %zu (of MSR 0x%x): "
					 "%02x, %02x",
					 from->type, from->instance, k,
					 from->type == SEC_MSRS
						 ? *(const uint32_t *)(x + k / 16 * 16)
						 : 0,
					 x[k], y[k]);
		}
		free(x);
		free(y);
		n++;
	}
	assert_true(n >= 2 * 9 + 4);
	blob_forget(&a);
	blob_forget(&b);
	must(src.a.ops->abort(src.a.hv, &err));
	assert_runs(&src.m);
	free(s.bytes);
	close_side(&dst);
	close_side(&src);
}

static void time_goes_on(void **state)
{
	struct side src, dst;
	struct stream s;
	struct kvm_clock_data before = { 0 }, after = { 0 };
	(void)state;
	stop_and_save(&src, &dst, &s);
	uint64_t ticks[GUEST_VCPUS], apic[GUEST_VCPUS], pit = src.m.box->pit_ticks;
	for (uint32_t i = 0; i < GUEST_VCPUS; i++) {
		ticks[i] = src.m.box->vcpu[i].tsc;
		apic[i] = src.m.box->vcpu[i].apic_ticks;
	}
	assert_return_code(ioctl(src.m.vm_fd, KVM_GET_CLOCK, &before), errno);
	uint64_t stopped_us = base_now_us();
	nap(700);
	must(dst.a.ops->load_state(dst.a.hv, take, &s, &err));
	assert_return_code(ioctl(dst.m.vm_fd, KVM_GET_CLOCK, &after), errno);
	uint64_t gap_us = base_now_us() - stopped_us;
	/* Never back, and not ahead by more than the time that passed (and what an emulated machine's clocks
	 * disagree by). */
	assert_true(after.clock > before.clock + 600 * UINT64_C(1000000));
	assert_true(after.clock < before.clock + (gap_us + 500000) * 1000);
	src.a.ops->commit(src.a.hv);
	must(dst.a.ops->resume(dst.a.hv, &err));
	assert_runs(&dst.m);
	uint64_t khz = state_tsc_khz(dst.m.kvm, 0), deadline = base_deadline_ms(20000);
	assert_true(khz > 0);
	for (uint32_t i = 0; i < GUEST_VCPUS; i++) {
		/* Its first look after the move was at least 0.6 s later by its own clock. */
		while (__atomic_load_n(&dst.m.box->vcpu[i].tsc, __ATOMIC_RELAXED) == ticks[i]) {
			assert_true(base_left_ms(deadline) > 0);
			nap(5);
		}
		assert_true(dst.m.box->vcpu[i].tsc > ticks[i] + khz * 600);
		while (__atomic_load_n(&dst.m.box->vcpu[i].apic_ticks, __ATOMIC_RELAXED) <
		       apic[i] + 5) {
			assert_true(base_left_ms(deadline) > 0);
			nap(5);
		}
	}
	while (__atomic_load_n(&dst.m.box->pit_ticks, __ATOMIC_RELAXED) < pit + 5) {
		assert_true(base_left_ms(deadline) > 0);
		nap(5);
	}
	assert_runs(&dst.m);
	free(s.bytes);
	close_side(&dst);
	close_side(&src);
}

/* Nothing is loaded of a state that is not whole: the machine is as before. */
static void a_damaged_state_changes_nothing(void **state)
{
	struct side src, dst;
	struct stream s;
	(void)state;
	stop_and_save(&src, &dst, &s);
	must(state_save(dst.m.kvm, &err));
	unsigned char *kept = malloc(dst.m.kvm->blob.len);
	memcpy(kept, dst.m.kvm->blob.bytes, dst.m.kvm->blob.len);
	struct blob before = parse(kept, dst.m.kvm->blob.len);
	for (size_t at = 0; at < s.len; at += at < 200 ? 1 : s.len / 60) {
		struct mf_error err = { 0 };
		s.at = 0;
		s.bytes[at] ^= 0x40;
		assert_true(dst.a.ops->load_state(dst.a.hv, take, &s, &err) < 0);
		assert_true(err.code < 0 && err.msg[0]);
		s.bytes[at] ^= 0x40;
		assert_true(dst.a.ops->resume(dst.a.hv, NULL) < 0);
	}
	must(state_save(dst.m.kvm, &err));
	struct blob after = parse(dst.m.kvm->blob.bytes, dst.m.kvm->blob.len);
	for (uint32_t v = 0; v < GUEST_VCPUS; v++) {
		const struct blob_section *a = blob_find(&before, SEC_REGS, v);
		const struct blob_section *b = blob_find(&after, SEC_REGS, v);
		assert_memory_equal(a->bytes, b->bytes, a->len);
		a = blob_find(&before, SEC_SREGS, v);
		b = blob_find(&after, SEC_SREGS, v);
		assert_memory_equal(a->bytes, b->bytes, a->len);
	}
	blob_forget(&before);
	blob_forget(&after);
	free(kept);
	/* And the whole one is still taken. */
	s.at = 0;
	must(dst.a.ops->load_state(dst.a.hv, take, &s, &err));
	free(s.bytes);
	close_side(&dst);
	close_side(&src);
}

static void a_machine_of_another_shape_is_refused(void **state)
{
	struct side src, dst, one;
	struct stream s;
	struct mf_error said = { 0 };
	struct machine_params params = checks;
	(void)state;
	stop_and_save(&src, &dst, &s);
	params.is_destination = params.one_vcpu = true;
	open_side(&one, &params);
	must(one.a.ops->prepare(one.a.hv, MF_DESTINATION, &err));
	assert_true(one.a.ops->load_state(one.a.hv, take, &s, &said) < 0);
	assert_non_null(strstr(said.msg, "2 vCPUs"));
	free(s.bytes);
	close_side(&one);
	close_side(&dst);
	close_side(&src);
}

/* ---- needs ---- */

static int check_needs(struct side *s, const void *bytes, size_t len, struct mf_finding *f)
{
	struct mf_error err = { 0 };
	int n = s->a.ops->check_needs(s->a.hv, bytes, len, f, 8, &err);
	if (n < 0)
		fail_msg("%s", err.msg);
	return n;
}

static bool has_refusal(const struct mf_finding *f, int n, const char *text)
{
	for (int i = 0; i < n; i++) {
		if (f[i].verdict == MF_REFUSE && strstr(f[i].detail, text))
			return true;
	}
	return false;
}

/* The needs again, with one section changed. */
static size_t with_section(const void *needs, size_t len, uint32_t type, const void *extra,
			   size_t n_extra, size_t keep, unsigned char *ret)
{
	struct blob blob;
	struct blob_writer w = { 0 };
	must(blob_parse(needs, len, BLOB_NEEDS, knows_all, "needs", &blob, &err));
	blob_begin(&w, BLOB_NEEDS);
	for (uint32_t i = 0; i < blob.n; i++) {
		const struct blob_section *s = &blob.sections[i];
		bool is_it = s->type == type;
		blob_open(&w, s->type, s->instance, s->flags);
		blob_put(&w, s->bytes, is_it && keep < s->len ? keep : s->len);
		if (is_it)
			blob_put(&w, extra, n_extra);
		blob_close(&w);
	}
	assert_int_equal(blob_end(&w), 0);
	size_t n = w.len;
	memcpy(ret, w.bytes, n);
	blob_forget(&blob);
	blob_free(&w);
	return n;
}

static void unmet_needs_are_named(void **state)
{
	static unsigned char needs[MF_NEEDS_MAX], other[MF_NEEDS_MAX + 4096];
	struct side src, dst;
	struct machine_params params = checks;
	struct mf_finding f[8];
	(void)state;
	open_side(&src, &checks);
	machine_start(&src.m); /* it may run while it is asked */
	assert_runs(&src.m);
	params.is_destination = true;
	open_side(&dst, &params);
	struct mf_error err = { 0 };
	ssize_t len = src.a.ops->list_needs(src.a.hv, needs, sizeof(needs), &err);
	assert_true(len > 0);
	assert_int_equal(check_needs(&dst, needs, (size_t)len, f), 0);
	assert_true(src.a.ops->list_needs(src.a.hv, needs, 100, &err) == -ENOSPC);
	assert_runs(&src.m);

	const struct need_msr msrs[] = { { 0x1234567, 1 }, { 0x1234568, 0 } };
	size_t n = with_section(needs, (size_t)len, SEC_NEED_MSRS, msrs, sizeof(msrs), SIZE_MAX,
				other);
	int found = check_needs(&dst, other, n, f);
	assert_int_equal(found, 2);
	assert_true(has_refusal(f, found, "MSR 0x1234567 is not known to this host's KVM"));
	assert_int_equal(f[1].verdict, MF_WARN);
	assert_non_null(strstr(f[1].detail, "0x1234568"));

	struct need_msr many[20];
	for (uint32_t i = 0; i < 20; i++)
		many[i] = (struct need_msr){ 0x2000000 + i, 1 };
	n = with_section(needs, (size_t)len, SEC_NEED_MSRS, many, sizeof(many), SIZE_MAX, other);
	found = check_needs(&dst, other, n, f);
	assert_int_equal(found, 8);
	assert_true(has_refusal(f, found, "13 more"));

	const struct kvm_cpuid_entry2 feature = { .function = 0x80000007, .edx = 1u << 30 };
	n = with_section(needs, (size_t)len, SEC_CPUID, &feature, sizeof(feature), 0, other);
	found = check_needs(&dst, other, n, f);
	assert_true(has_refusal(f, found, "CPUID 0x80000007.0 edx lacks the bits 0x40000000"));

	const struct info info = { .n_vcpus = 3, .irqchip = MF_KVM_IRQCHIP_SPLIT };
	n = with_section(needs, (size_t)len, SEC_INFO, &info, sizeof(info), 0, other);
	found = check_needs(&dst, other, n, f);
	assert_int_equal(found, 3);
	assert_true(has_refusal(f, found, "3 vCPUs"));

	const struct need_caps caps = { .xsave_bytes = 1u << 20, .tsc_khz = 1 };
	n = with_section(needs, (size_t)len, SEC_NEED_CAPS, &caps, sizeof(caps), 0, other);
	found = check_needs(&dst, other, n, f);
	assert_true(found >= 1);

	for (size_t cut = 0; cut < (size_t)len; cut += 97) {
		err = (struct mf_error){ 0 };
		assert_true(dst.a.ops->check_needs(dst.a.hv, needs, cut, f, 8, &err) < 0);
		assert_true(err.msg[0]);
	}
	close_side(&dst);
	close_side(&src);
}

/* A vCPU that makes no exits answers no question, but is made to. */
static void needs_of_a_busy_guest_are_listed(void **state)
{
	static unsigned char needs[MF_NEEDS_MAX];
	struct side s;
	(void)state;
	open_side(&s, &obeys);
	machine_start(&s.m);
	machine_order(&s.m, 0, ORDER_WRITE_ON, 0, 0, 0);
	machine_order(&s.m, 1, ORDER_WRITE_ON, 0, 0, 0);
	nap(50);
	uint64_t before = base_now_us();
	must(s.a.ops->list_needs(s.a.hv, needs, sizeof(needs), &err));
	assert_true(base_now_us() - before < 4000000);
	uint64_t done = __atomic_load_n(&s.m.desk->done[0][5], __ATOMIC_RELAXED);
	uint64_t deadline = base_deadline_ms(20000);
	while (__atomic_load_n(&s.m.desk->done[0][5], __ATOMIC_RELAXED) == done) {
		assert_true(base_left_ms(deadline) > 0);
		nap(5);
	}
	close_side(&s);
}

/* ---- the monitor's own writes ---- */

static void what_the_monitor_wrote_is_told_once(void **state)
{
	struct side s;
	uint64_t bits[PAGES / 64] = { 0 };
	(void)state;
	open_side(&s, &obeys);
	s.a.ops->take_written(s.a.hv, 1, 0, PAGES, bits);
	memset(bits, 0, sizeof(bits));
	mf_kvm_wrote(s.m.kvm, PAGES_AT + 70 * 4096 + 4000, 200);  /* over a page's end */
	mf_kvm_wrote(s.m.kvm, PAGES_AT + 511 * 4096, UINT64_MAX); /* and beyond the region's */
	mf_kvm_wrote(s.m.kvm, DESK_AT, 4096);                     /* no RAM */
	mf_kvm_wrote(s.m.kvm, 0x3000, 0);
	s.a.ops->take_written(s.a.hv, 1, 3, 68, bits);
	assert_int_equal(bitmap_count(bits, 0, 68), 1);
	assert_true(bitmap_test(bits, 67));
	memset(bits, 0, sizeof(bits));
	s.a.ops->take_written(s.a.hv, 1, 0, PAGES, bits);
	assert_int_equal(bitmap_count(bits, 0, PAGES), 2);
	assert_true(bitmap_test(bits, 71) && bitmap_test(bits, 511));
	memset(bits, 0, sizeof(bits));
	s.a.ops->take_written(s.a.hv, 1, 0, PAGES, bits);
	assert_int_equal(bitmap_count(bits, 0, PAGES), 0);
	s.a.ops->take_written(s.a.hv, 0, 0, PAGES, bits);
	assert_int_equal(bitmap_count(bits, 0, PAGES), 0);
	close_side(&s);
}

struct scribe {
	struct side *side;
	uint32_t id;
	uint64_t counts[PAGES];
};

static void *scribble(void *arg)
{
	struct scribe *scribe = arg;
	uint64_t random = 88172645463325252u + scribe->id;
	for (uint32_t i = 0; i < 200000; i++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		uint64_t page = random % PAGES;
		uint64_t *at = (uint64_t *)(scribe->side->m.pages + page * 4096) + scribe->id;
		__atomic_store_n(at, ++scribe->counts[page], __ATOMIC_RELAXED);
		mf_kvm_wrote(scribe->side->m.kvm, PAGES_AT + page * 4096, 8);
	}
	return NULL;
}

static void writes_of_many_threads_are_all_told(void **state)
{
	static struct scribe scribes[2];
	static uint64_t shadow[PAGES][2];
	struct side s;
	pthread_t threads[2];
	(void)state;
	open_side(&s, &obeys);
	for (uint32_t i = 0; i < 2; i++) {
		scribes[i] = (struct scribe){ .side = &s, .id = i };
		assert_int_equal(pthread_create(&threads[i], NULL, scribble, &scribes[i]), 0);
	}
	bool joined = false;
	for (int round = 0; round < 50 || !joined; round++) {
		uint64_t bits[PAGES / 64] = { 0 };
		if (round >= 50) {
			for (uint32_t i = 0; i < 2; i++)
				pthread_join(threads[i], NULL);
			joined = true;
		}
		s.a.ops->take_written(s.a.hv, 1, 0, PAGES, bits);
		for (uint64_t p = 0; p < PAGES; p++) {
			const uint64_t *at = (const uint64_t *)(s.m.pages + p * 4096);
			for (uint32_t i = 0; bitmap_test(bits, p) && i < 2; i++)
				shadow[p][i] = __atomic_load_n(at + i, __ATOMIC_RELAXED);
		}
	}
	for (uint64_t p = 0; p < PAGES; p++) {
		for (uint32_t i = 0; i < 2; i++)
			assert_int_equal(shadow[p][i], scribes[i].counts[p]);
	}
	close_side(&s);
}

/* ---- choosing ---- */

static void the_rule_of_choice(void **state)
{
	static const struct {
		struct mf_kvm_hints hints;
		enum mf_kvm_tracking_way way;
	} cases[] = {
		{ { 0 }, MF_KVM_TRACK_LOG },
		{ { .ram_bytes = UINT64_C(1) << 40, .dirty_bytes_per_s = 1 << 20, .n_vcpus = 4 },
		  MF_KVM_TRACK_RING },
		{ { .ram_bytes = UINT64_C(1) << 40, .dirty_bytes_per_s = 1 << 30, .n_vcpus = 4 },
		  MF_KVM_TRACK_LOG },
		{ { .ram_bytes = UINT64_C(1) << 40 }, MF_KVM_TRACK_LOG },
		{ { .forced = MF_KVM_TRACK_RING, .dirty_bytes_per_s = UINT64_C(1) << 40 },
		  MF_KVM_TRACK_RING },
		{ { .forced = MF_KVM_TRACK_NONE }, MF_KVM_TRACK_NONE },
	};
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct mf_kvm_tracking got = { 0 };
		int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
		int vm = ioctl(kvm, KVM_CREATE_VM, 0);
		must(mf_kvm_choose_tracking(kvm, vm, &cases[i].hints, &got, &err));
		assert_int_equal(got.way, cases[i].way);
		assert_int_equal(got.ring_bytes > 0, got.way == MF_KVM_TRACK_RING);
		assert_int_equal(got.manual_protect > 0, got.way == MF_KVM_TRACK_LOG);
		assert_true(got.reason[0] != 0);
		close(vm);
		close(kvm);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_vcpu_in_the_guest_is_paused),
		cmocka_unit_test(a_vcpu_between_exits_is_paused),
		cmocka_unit_test(a_halted_vcpu_is_paused),
		cmocka_unit_test(a_machine_whose_threads_have_not_come_is_paused),
		cmocka_unit_test(a_pause_that_fails_lets_all_go_on),
		cmocka_unit_test(a_kick_comes_out_of_run),
		cmocka_unit_test(an_ignored_signal_is_refused),
		cmocka_unit_test(every_register_arrives),
		cmocka_unit_test(time_goes_on),
		cmocka_unit_test(a_damaged_state_changes_nothing),
		cmocka_unit_test(a_machine_of_another_shape_is_refused),
		cmocka_unit_test(unmet_needs_are_named),
		cmocka_unit_test(needs_of_a_busy_guest_are_listed),
		cmocka_unit_test(what_the_monitor_wrote_is_told_once),
		cmocka_unit_test(writes_of_many_threads_are_all_told),
		cmocka_unit_test(the_rule_of_choice),
	};
	const char *why = machine_lacks();
	if (why) {
		printf("SKIP: %s\n", why);
		return 77;
	}
	return cmocka_run_group_tests_name("KVM adapter", tests, NULL, NULL);
}
