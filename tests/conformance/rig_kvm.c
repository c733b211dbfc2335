/* SPDX-License-Identifier: BSD-2-Clause */
/* Two machines of the small monitor in this process; the guest in them checks itself. */
#include "rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/monitor/machine.h"

#define ENDED_MS 10000

struct pair {
	struct machine machine[2];
};

void rig_kvm_need(void)
{
	const char *why = machine_lacks();
	if (!why)
		return;
	printf("SKIP: %s\n", why);
	exit(77);
}

static struct machine *machine_of(struct rig *rig, enum mf_side side)
{
	return &((struct pair *)rig->own)->machine[side];
}

static bool open_both(struct rig *rig)
{
	rig->own = calloc(1, sizeof(struct pair));
	for (unsigned side = MF_SOURCE; side <= MF_DESTINATION; side++) {
		const struct machine_params params = { .mode = GUEST_CHECKS,
						       .n_pages = 512,
						       .is_destination = side == MF_DESTINATION };
		struct machine *m = machine_of(rig, side);
		struct mf_error err = { 0 };
		const char *why = machine_open(m, &params);
		if (why) {
			print_error("%s\n", why);
			return false;
		}
		machine_start(m);
		if (mf_kvm_adapter(m->kvm, &rig->guest[side], &err)) {
			print_error("%s\n", err.msg);
			return false;
		}
	}
	return true;
}

static void close_both(struct rig *rig)
{
	for (unsigned side = MF_SOURCE; side <= MF_DESTINATION; side++) {
		struct mf_adapter *a = &rig->guest[side];
		if (a->ops)
			a->ops->close(a->hv);
		machine_close(machine_of(rig, side));
	}
	free(rig->own);
}

static void check(struct machine *m)
{
	char text[200];
	if (machine_wrong(m, text, sizeof(text)))
		fail_msg("%s", text);
}

/* Its threads count as running when the guest's steps do. */
static bool running(struct rig *rig, enum mf_side side)
{
	struct machine *m = machine_of(rig, side);
	uint64_t before = machine_life(m), deadline = base_deadline_ms(2000);
	check(m);
	/* One that stands is looked at for a while, one that runs shows it at once. */
	while (machine_life(m) == before) {
		struct timespec t = { .tv_nsec = 5000000 };
		(void)nanosleep(&t, NULL);
		if (!base_left_ms(deadline) || atomic_load(&m->has_finished))
			return false;
		if (base_left_ms(deadline) < 1800 && m->params.is_destination)
			return false;
	}
	check(m);
	return true;
}

static uint64_t life(struct rig *rig, enum mf_side side)
{
	return machine_life(machine_of(rig, side));
}

static bool ended(struct rig *rig, enum mf_side side)
{
	struct machine *m = machine_of(rig, side);
	uint64_t deadline = base_deadline_ms(ENDED_MS);
	while (atomic_load(&m->n_ended) < m->n_vcpus && base_left_ms(deadline)) {
		struct timespec t = { .tv_nsec = 5000000 };
		(void)nanosleep(&t, NULL);
	}
	return atomic_load(&m->n_ended) == m->n_vcpus;
}

const struct rig_ops rig_kvm = {
	.open = open_both,
	.close = close_both,
	.running = running,
	.life = life,
	.ended = ended,
	.outlives_close = true,
	.in_process = true,
};
