/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A small monitor as a library: a virtual machine on /dev/kvm with the bare guest in it, run by the adapter for such
 * monitors (memferry/kvm.h).  For tests and for the program `monitor`.
 */
#ifndef MONITOR_MACHINE_H
#define MONITOR_MACHINE_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <memferry/kvm.h>

#include "layout.h"

#define MACHINE_SLOTS \
	4u /* low, and three for the pages, whose borders are in the middle of words */

struct machine_params {
	enum guest_mode mode;
	uint32_t n_pages; /* even, at most PAGES_MAX */
	enum mf_kvm_tracking_way way;
	bool smallest_ring; /* instead of the one that would be chosen */
	bool plain_log;     /* MF_KVM_TRACK_NONE is said, and nothing enabled */
	bool is_destination;
	bool one_vcpu;
	bool few_features; /* vCPUs without SSE4 */
	uint32_t pause_ms;
	bool loud; /* what the guest says goes to stdout */
};

/* A device for each vCPU; its state moves by the monitor's callbacks. */
struct device {
	uint32_t counter, reg;
	uint8_t string[16];
	uint32_t out_at, in_at;
};

struct machine {
	struct machine_params params;
	int kvm_fd, vm_fd;
	uint32_t n_vcpus;
	int vcpu_fds[GUEST_VCPUS];
	struct kvm_run *runs[GUEST_VCPUS];
	size_t run_bytes;
	int low_fd, pages_fd;
	char *low, *pages, *desk_memory;
	struct box *box;
	struct desk *desk;
	struct mf_kvm_slot slots[MACHINE_SLOTS];
	struct mf_region regions[2]; /* "low", "pages" */
	struct mf_kvm_tracking tracking;
	struct mf_kvm *kvm;

	bool is_started;
	pthread_t threads[GUEST_VCPUS];
	struct {
		struct machine *m;
		uint32_t vcpu;
	} args[GUEST_VCPUS];
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool quit;                    /* under the lock */
	bool has_order[GUEST_VCPUS];  /* likewise */
	uint32_t result[GUEST_VCPUS]; /* likewise */
	struct device devices[GUEST_VCPUS];
	atomic_int panic;       /* vector and one, or a negative code of KVM_RUN's */
	atomic_bool hold_exits; /* tests: vCPUs stay in their exits' handlers */
	atomic_uint n_held;
	atomic_bool has_finished; /* the adapter said so */
	atomic_uint n_ended;      /* threads that were told that the guest is gone */
	atomic_bool devices_stopped;

	/* A device that writes guest memory by the monitor's own mapping, as a disk would. */
	pthread_t dma_thread;
	pthread_mutex_t dma_lock;
	uint32_t dma[DMA_PAGES]; /* under dma_lock: what it last wrote into each page */
	atomic_uint dma_wrong;   /* a page did not hold that */
};

/* NULL, or why this host cannot run one: there is no /dev/kvm, or the guest was tried and did not run.  Leaves nothing
 * behind. */
const char *machine_lacks(void);

/* NULL, or why it cannot be made; machine_close() is due all the same.  The guest is loaded (not at a
 * destination) and stands. */
const char *machine_open(struct machine *m, const struct machine_params *params);
/* Threads run the vCPUs; at a destination they wait at the gate. */
void machine_start(struct machine *m);
/* Ends the threads, wherever they are. */
void machine_stop(struct machine *m);
void machine_close(struct machine *m);

/* GUEST_OBEYS. */
void machine_order(struct machine *m, uint32_t vcpu, enum guest_order order, uint64_t a, uint64_t b,
		   uint64_t c);
/* Waits for the order's end; false: it does not come. */
bool machine_done(struct machine *m, uint32_t vcpu);

/* GUEST_CHECKS: grows as long as the guest runs. */
uint64_t machine_life(const struct machine *m);
/* What is wrong with the guest, by its own word; NULL: nothing. */
const char *machine_wrong(const struct machine *m, char *text, size_t cap);
/* Every page, by the monitor; vCPUs stand still.  Pages that are not as their generation says. */
uint32_t machine_wrong_pages(const struct machine *m);
/* Steps and ticks of each vCPU, for people. */
void machine_tell(const struct machine *m, const char *who);

#endif
