/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The gate that every vCPU passes on its way into the guest.
 *
 *   thread of a vCPU                          thread that pauses
 *   lock                                      lock
 *   gate closed? wait here ("parked")         gate = closed
 *   immediate_exit = 0, in_guest              immediate_exit = 1 for all
 *   unlock                                    signal those in_guest, wait for all to be parked
 *   KVM_RUN                                   unlock
 *
 * The interleavings that this rests on:
 *
 *  - The gate closes between unlock and KVM_RUN: immediate_exit is 1 by then, for only who holds the lock writes
 *    it; KVM_RUN looks at it before it enters, and returns -EINTR.
 *  - The signal comes before KVM_RUN has begun: its handler does nothing, and immediate_exit is there.
 *  - It comes in the guest, or while KVM sleeps for a halted vCPU: KVM_RUN returns -EINTR.
 *  - The vCPU waits in a page fault for a page that is on its way: the fault ends when the page is there, or
 *    for the signal; signals are repeated, as some kernels swallow one there.
 *  - The monitor serves an exit: its thread comes back to the gate, which is closed, and enters KVM_RUN once more
 *    with immediate_exit set.  KVM first completes the exit (takes the value that was read from a port, moves on the
 *    instruction pointer), then returns -EINTR: now it is settled, and parks.  If completing makes another
 *    exit (the next piece of a string instruction), the monitor is given that, and comes back.
 *  - The vCPU has never run, or its thread left: it has nothing to complete, and nobody is waited for.
 *  - The dirty ring is full while the gate closes: completing comes before KVM looks at the ring, so that a vCPU
 *    parks with a full ring.  It is emptied by the next collect.
 */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "hv-adapters/kvm/kvm.h"

enum {
	PAUSE_MS = 5000,
	KICK_MS = 100, /* for vCPUs to leave the guest once */
	AGAIN_MS = 20, /* after which a signal is repeated */
};

static void do_nothing(int sig)
{
	(void)sig;
}

/* The signal must interrupt system calls: not ignored, and not the default, which ends the process. */
static int claim_signal(struct mf_kvm *kvm, struct mf_error *err)
{
	struct sigaction now;
	int sig = kvm->params.kick_signal;
	bool is_ours = !sig;
	kvm->kick_signal = sig ? sig : SIGRTMIN;
	sig = kvm->kick_signal;
	if (sigaction(sig, NULL, &now) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_SESSION,
				      "signal %d cannot take vCPUs out of the guest", sig);
	bool has_handler = now.sa_flags & SA_SIGINFO ||
			   (now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN);
	if (has_handler && now.sa_handler == do_nothing)
		return 0;
	if (has_handler)
		return is_ours ? base_error(err, -EBUSY, MF_SCOPE_SESSION,
					    "signal %d has a handler already; name the signal for "
					    "vCPUs in kick_signal",
					    sig)
			       : 0;
	if (now.sa_handler == SIG_IGN)
		return base_error(err, -EINVAL, MF_SCOPE_SESSION,
				  "signal %d is ignored, and cannot take vCPUs out of the guest",
				  sig);
	struct sigaction quiet = { .sa_handler = do_nothing };
	sigemptyset(&quiet.sa_mask);
	if (sigaction(sig, &quiet, NULL) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_SESSION,
				      "no handler can be installed for signal %d", sig);
	return 0;
}

int gate_init(struct mf_kvm *kvm, struct mf_error *err)
{
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&kvm->lock, NULL);
	pthread_cond_init(&kvm->changed, &attr);
	pthread_condattr_destroy(&attr);
	kvm->gate = kvm->params.is_destination ? GATE_CLOSED : GATE_OPEN;
	/* A source's vCPUs may have run before: whether KVM owes them something is not known. */
	for (uint32_t i = 0; i < kvm->n_vcpus; i++)
		kvm->vcpus[i].settled = kvm->params.is_destination;
	return claim_signal(kvm, err);
}

void gate_destroy(struct mf_kvm *kvm)
{
	pthread_cond_destroy(&kvm->changed);
	pthread_mutex_destroy(&kvm->lock);
}

/* ---- a vCPU's thread; all with the lock ---- */

static void attach(struct mf_kvm *kvm, struct vcpu *v)
{
	pid_t tid = (pid_t)syscall(SYS_gettid);
	if (v->tid == tid)
		return;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, kvm->kick_signal);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	v->tid = tid;
}

/* Waits as long as the guest is paused: that may be as long as the destination needs for its last page. */
static void park(struct mf_kvm *kvm, struct vcpu *v)
{
	v->parked = true;
	pthread_cond_broadcast(&kvm->changed);
	while (kvm->gate == GATE_CLOSED && !v->kicked)
		pthread_cond_wait(&kvm->changed, &kvm->lock);
}

static int enter(struct mf_kvm *kvm, struct vcpu *v)
{
	v->parked = false;
	v->in_guest = true;
	bool at_once = kvm->gate != GATE_OPEN || v->kicked || v->leaves;
	__atomic_store_n(&v->run->immediate_exit, at_once, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&kvm->lock);
	int r = ioctl(v->fd, KVM_RUN, 0) < 0 ? -errno : 0;
	pthread_mutex_lock(&kvm->lock);
	v->in_guest = false;
	v->n_left++;
	pthread_cond_broadcast(&kvm->changed);
	return r;
}

static bool serve_full_ring(struct mf_kvm *kvm)
{
	mf_kvm_ring_full_fn full = kvm->ring_full;
	void *ctx = kvm->ring_ctx;
	if (!full)
		return false;
	kvm->n_ring_full++;
	pthread_mutex_unlock(&kvm->lock);
	full(ctx);
	pthread_mutex_lock(&kvm->lock);
	kvm->n_ring_full--;
	pthread_cond_broadcast(&kvm->changed);
	return true;
}

static int run(struct mf_kvm *kvm, struct vcpu *v)
{
	bool looked_again = false;
	for (;;) {
		if (kvm->gate == GATE_CLOSED && v->settled)
			park(kvm, v);
		if (kvm->gate == GATE_ENDED)
			return -ECANCELED;
		if (v->kicked && v->settled) {
			v->kicked = false;
			return -EINTR;
		}
		if (kvm->gate == GATE_CLOSED && v->settled)
			continue;
		int r = enter(kvm, v);
		/* -EAGAIN: it waited for its start-up and got it. */
		if (r == -EINTR || r == -EAGAIN) {
			v->settled = true;
			if (kvm->gate == GATE_CLOSED)
				continue;
			v->kicked = false;
			return kvm->gate == GATE_ENDED ? -ECANCELED : -EINTR;
		}
		v->settled = false;
		if (r < 0 || v->run->exit_reason != KVM_EXIT_DIRTY_RING_FULL)
			return r;
		v->settled = true; /* it had not entered */
		/* Without a tracker: one that just stopped has emptied it.  Else it is the monitor's own. */
		if (!serve_full_ring(kvm)) {
			if (looked_again)
				return 0;
			looked_again = true;
		}
	}
}

int mf_kvm_run(struct mf_kvm *kvm, uint32_t vcpu)
{
	assert(vcpu < kvm->n_vcpus);
	struct vcpu *v = &kvm->vcpus[vcpu];
	pthread_mutex_lock(&kvm->lock);
	attach(kvm, v);
	int r = run(kvm, v);
	v->parked = false;
	pthread_mutex_unlock(&kvm->lock);
	return r;
}

int mf_kvm_leave(struct mf_kvm *kvm, uint32_t vcpu)
{
	assert(vcpu < kvm->n_vcpus);
	struct vcpu *v = &kvm->vcpus[vcpu];
	int r = 0;
	pthread_mutex_lock(&kvm->lock);
	if (!v->settled && kvm->gate != GATE_ENDED) {
		v->leaves = true;
		r = enter(kvm, v);
		v->leaves = false;
		v->settled = r == -EINTR || r == -EAGAIN;
		r = v->settled ? 0 : r < 0 ? r : -EAGAIN;
	}
	if (!r)
		v->tid = 0;
	pthread_cond_broadcast(&kvm->changed);
	pthread_mutex_unlock(&kvm->lock);
	return r;
}

/* ---- others ---- */

/* With the lock.  A thread that is gone is no harm: its number is only used while it is in_guest. */
static void signal_vcpu(const struct mf_kvm *kvm, struct vcpu *v)
{
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_RELAXED);
	if (v->in_guest)
		(void)syscall(SYS_tgkill, getpid(), v->tid, kvm->kick_signal);
}

/* With the lock: until something changed, for AGAIN_MS at most. */
static void await_change(struct mf_kvm *kvm, uint64_t deadline)
{
	uint64_t until = base_deadline_ms(AGAIN_MS);
	until = until < deadline ? until : deadline;
	struct timespec t = { .tv_sec = (time_t)(until / 1000000),
			      .tv_nsec = (long)(until % 1000000) * 1000 };
	(void)pthread_cond_timedwait(&kvm->changed, &kvm->lock, &t);
}

void mf_kvm_kick(struct mf_kvm *kvm, uint32_t vcpu)
{
	assert(vcpu < kvm->n_vcpus);
	pthread_mutex_lock(&kvm->lock);
	kvm->vcpus[vcpu].kicked = true;
	signal_vcpu(kvm, &kvm->vcpus[vcpu]);
	pthread_cond_broadcast(&kvm->changed);
	pthread_mutex_unlock(&kvm->lock);
}

void gate_kick_all(void *owner)
{
	struct mf_kvm *kvm = owner;
	uint64_t deadline = base_deadline_ms(KICK_MS);
	pthread_mutex_lock(&kvm->lock);
	for (uint32_t i = 0; i < kvm->n_vcpus; i++) {
		struct vcpu *v = &kvm->vcpus[i];
		uint64_t before = v->n_left;
		/* One after the other is good enough: each takes microseconds. */
		while (v->in_guest && v->n_left == before && base_left_ms(deadline)) {
			signal_vcpu(kvm, v);
			await_change(kvm, deadline);
		}
	}
	pthread_mutex_unlock(&kvm->lock);
}

/* With the lock: the first that is not known to stand still, or n_vcpus. */
static uint32_t first_moving(const struct mf_kvm *kvm)
{
	uint32_t i = 0;
	while (i < kvm->n_vcpus && (!kvm->vcpus[i].tid || kvm->vcpus[i].parked))
		i++;
	return i;
}

int gate_close(struct mf_kvm *kvm, struct mf_error *err)
{
	uint32_t ms = kvm->params.pause_ms ? kvm->params.pause_ms : PAUSE_MS;
	uint64_t deadline = base_deadline_ms(ms);
	int code = 0;
	pthread_mutex_lock(&kvm->lock);
	kvm->gate = GATE_CLOSED;
	uint32_t i;
	while ((i = first_moving(kvm)) < kvm->n_vcpus) {
		if (!base_left_ms(deadline)) {
			code = base_error(err, -ETIMEDOUT, MF_SCOPE_SESSION,
					  "vCPU %u did not stop within %u ms: it is %s", i, ms,
					  kvm->vcpus[i].in_guest
						  ? "in KVM_RUN"
						  : "in the monitor, which serves an exit");
			break;
		}
		for (; i < kvm->n_vcpus; i++) {
			if (kvm->vcpus[i].tid && !kvm->vcpus[i].parked)
				signal_vcpu(kvm, &kvm->vcpus[i]);
		}
		await_change(kvm, deadline);
	}
	if (code < 0) {
		kvm->gate = GATE_OPEN;
		pthread_cond_broadcast(&kvm->changed);
	}
	pthread_mutex_unlock(&kvm->lock);
	return code;
}

static void move_gate(struct mf_kvm *kvm, enum gate gate)
{
	pthread_mutex_lock(&kvm->lock);
	kvm->gate = gate;
	for (uint32_t i = 0; gate == GATE_ENDED && i < kvm->n_vcpus; i++)
		signal_vcpu(kvm, &kvm->vcpus[i]);
	pthread_cond_broadcast(&kvm->changed);
	pthread_mutex_unlock(&kvm->lock);
}

void gate_open(struct mf_kvm *kvm)
{
	move_gate(kvm, GATE_OPEN);
}

void gate_end(struct mf_kvm *kvm)
{
	move_gate(kvm, GATE_ENDED);
}

void gate_set_ring_full(void *owner, mf_kvm_ring_full_fn full, void *ctx)
{
	struct mf_kvm *kvm = owner;
	pthread_mutex_lock(&kvm->lock);
	kvm->ring_full = full;
	kvm->ring_ctx = ctx;
	/* The callback waits for nobody but the kernel and whoever reads the rings, and that is not us. */
	while (!full && kvm->n_ring_full)
		pthread_cond_wait(&kvm->changed, &kvm->lock);
	pthread_mutex_unlock(&kvm->lock);
}
