/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the bare guest and its monitor agree on: where things lie, ports, and the structures that both look at.
 * Guest-virtual is guest-physical.
 *
 *   0x0000_0000   low: tables, the image, struct box           region "low"
 *   0x0800_0000   desk: struct desk, which does not move       no region
 *   0x1_0000_0000 the pages that are written and checked       region "pages", several slots
 */
#ifndef MONITOR_LAYOUT_H
#define MONITOR_LAYOUT_H

#include <stdint.h>

#define LOW_BYTES     (UINT64_C(4) << 20)
#define TABLES_AT     UINT64_C(0x1000) /* page tables, seven pages */
#define BOX_AT        UINT64_C(0x9000)
#define IMAGE_AT      UINT64_C(0x10000)
#define IMAGE_BYTES   UINT64_C(0x40000)
#define GENERATION_AT UINT64_C(0x100000) /* uint32_t for each page */
#define DESK_AT       UINT64_C(0x8000000)
#define DESK_BYTES    (UINT64_C(1) << 20)
#define PAGES_AT      UINT64_C(0x100000000)
#define APIC_AT       UINT64_C(0xfee00000)
#define DEVICE_AT     UINT64_C(0xd0000000) /* a register in memory */

#define GUEST_VCPUS 2u
#define PAGES_MAX   8192u

#define DMA_AT    UINT64_C(0x200000) /* pages that the monitor's device writes */
#define DMA_PAGES 64u

#define PORT_SAY     0x500 /* out: a byte for people */
#define PORT_COMMAND 0x504 /* in: blocks until struct desk has an order; 0: none came, ask again */
#define PORT_DONE    0x508 /* out: the order is done, with its result */
#define PORT_COUNTER 0x50c /* in: one more each time; a device's state */
#define PORT_PANIC   0x510 /* out: the guest cannot go on, with a vector */
#define PORT_STRING  0x514 /* ins, outs of 16 bytes */

enum guest_mode {
	GUEST_CHECKS, /* stamps and verifies its pages, on its own */
	GUEST_OBEYS,  /* does what struct desk says */
};

enum guest_order {
	ORDER_NONE,
	ORDER_WRITE,    /* pages [a, a + b), value c + page */
	ORDER_READ,     /* pages [a, a + b) */
	ORDER_WRITE_ON, /* random ones until desk.stop */
};

/* What a vCPU knows of itself.  In the guest's RAM: it moves. */
struct box_vcpu {
	uint64_t steps;
	uint64_t pages_wrong;     /* a page was not as it was left */
	uint64_t registers_wrong; /* likewise */
	uint64_t time_wrong;      /* the TSC went back */
	uint64_t device_wrong;    /* a port or a register in memory answered something else */
	uint64_t first_wrong;     /* the page and more */
	uint64_t tsc;             /* when it last looked */
	uint64_t apic_ticks;
	uint64_t reserved[8];
};

struct box {
	uint32_t mode, n_vcpus;
	uint32_t n_pages;
	uint32_t has_apic, has_pit, has_avx;
	uint64_t pit_ticks;
	uint64_t reserved[4];
	struct box_vcpu vcpu[GUEST_VCPUS];
};

/* Shared with the monitor and written by both: it does not move, and nobody tracks it. */
struct desk {
	struct {
		uint64_t order, a, b, c;
	} order[GUEST_VCPUS];
	uint64_t stop;
	uint64_t reserved[7];
	/* the counter last written, after writing it */
	uint64_t done[GUEST_VCPUS][PAGES_MAX];
};

/* What a checked page holds: eight words all over it, each of page, generation and place. */
static inline uint64_t stamp_word(uint64_t page, uint32_t generation, uint32_t i)
{
	return (page << 32 | generation) * UINT64_C(0x9e3779b97f4a7c15) + i;
}

/* Where: in words. */
static inline uint32_t stamp_place(uint64_t page, uint32_t i)
{
	return i * 64 + (uint32_t)(page * 7 + i) % 64;
}

_Static_assert(sizeof(struct desk) <= DESK_BYTES, "the desk is too small");
_Static_assert(sizeof(struct box) <= 0x1000, "the box is too small");

#endif
