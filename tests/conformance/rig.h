/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A pair of guests for conf_adapter.c: one that runs, to be moved, and an empty one, to be moved into; and a way
 * to see that a guest lives without asking the adapter under test.
 */
#ifndef CONFORMANCE_RIG_H
#define CONFORMANCE_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include <memferry/adapter.h>

struct rig_ops;

struct rig {
	const struct rig_ops *ops;
	void *own;
	struct mf_adapter guest[2]; /* by enum mf_side; tests may close one and zero it */
};

struct rig_ops {
	/* Opens both guests, each by its adapter.  False: said why; close() is due all the same. */
	bool (*open)(struct rig *rig);
	/* Closes the adapters that are still open, then ends whatever still runs. */
	void (*close)(struct rig *rig);
	/* The monitor's own word. */
	bool (*running)(struct rig *rig, enum mf_side side);
	/* Changes as long as the guest runs, and only then. */
	uint64_t (*life)(struct rig *rig, enum mf_side side);
	/* Waits until the guest is ended for good; false: it is not, after a long time. */
	bool (*ended)(struct rig *rig, enum mf_side side);
	/* A running guest's monitor outlives the adapter's close(). */
	bool outlives_close;
	/* The monitor is this process, for both sides. */
	bool in_process;
};

extern const struct rig_ops rig_demo, rig_qemu, rig_kvm;

/* Prints why and exits 77 when this machine cannot run the rig. */
void rig_qemu_need(void);
void rig_kvm_need(void);

#endif
