/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The bare guest: one image for the tests of the trackers, of the adapter, and of whole moves.
 *
 * GUEST_CHECKS: each vCPU has half of the pages and a generation for each.  A step picks a page, compares it with what
 * was left there, and writes the next generation: into the page first, then into the table.  A vCPU stops
 * between two instructions, so that a page which is one ahead of its table cannot be met.  Registers, the TSC and
 * devices are looked at on the way.  Whatever is wrong is counted; nothing is ever put right.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

#define PAGE 4096u

/* guest.ld says these numbers again. */
_Static_assert(offsetof(struct box, pit_ticks) == 24 && offsetof(struct box, vcpu) == 64 &&
		       offsetof(struct box_vcpu, apic_ticks) == 56 &&
		       sizeof(struct box_vcpu) == 128,
	       "guest.ld has other numbers");

struct tss {
	uint32_t reserved0;
	uint64_t rsp[3];
	uint64_t reserved1, ist[7], reserved2;
	uint16_t reserved3, io_map;
} __attribute__((packed));

extern uint64_t gdt[10], idt[512];
extern char exceptions[];
void on_pit(void);
void on_apic(void);
void on_spurious(void);
uint64_t spin_registers(uint64_t rounds);
void fill_vectors(uint32_t seed);
void fill_upper(void);
void read_upper(void *to);
uint32_t boot(uint32_t vcpu);
void guest_main(uint32_t vcpu);

static struct tss tss[GUEST_VCPUS];
static char kernel_stacks[GUEST_VCPUS][4096] __attribute__((aligned(16)));
static struct box *const box = (struct box *)BOX_AT;
static struct desk *const desk = (struct desk *)DESK_AT;

static inline void out32(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline uint32_t in32(uint16_t port)
{
	uint32_t value;
	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline void out8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline uint64_t ticks(void)
{
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (uint64_t)high << 32 | low;
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static volatile uint64_t *page_at(uint64_t page)
{
	return (volatile uint64_t *)(PAGES_AT + page * PAGE);
}

/* ---- ring 0 ---- */

static void set_gate(uint32_t vector, const void *to)
{
	uint64_t at = (uint64_t)to;
	idt[vector * 2] = (at & 0xffff) | (uint64_t)0x10 << 16 | (uint64_t)0x8e00 << 32 |
			  (at >> 16 & 0xffff) << 48;
	idt[vector * 2 + 1] = at >> 32;
}

uint32_t boot(uint32_t vcpu)
{
	for (uint32_t i = 0; i < 256; i++)
		set_gate(i, on_spurious);
	for (uint32_t i = 0; i < 32; i++)
		set_gate(i, exceptions + i * 16);
	set_gate(0x20, on_pit);
	set_gate(0x40, on_apic);

	uint64_t base = (uint64_t)&tss[vcpu];
	tss[vcpu].rsp[0] = (uint64_t)(kernel_stacks[vcpu] + sizeof(kernel_stacks[vcpu]));
	tss[vcpu].io_map = sizeof(struct tss);
	gdt[6 + vcpu * 2] = (sizeof(struct tss) - 1) | (base & 0xffffff) << 16 |
			    (uint64_t)0x89 << 40 | (base >> 24 & 0xff) << 56;
	gdt[7 + vcpu * 2] = base >> 32;
	return 0x30 + vcpu * 0x10;
}

/* ---- ring 3 ---- */

static volatile uint32_t *apic(uint32_t reg)
{
	return (volatile uint32_t *)(APIC_AT + reg);
}

static void start_timers(uint32_t vcpu)
{
	if (box->has_pit && !vcpu) {
		out8(0x20, 0x11); /* the first PIC from vector 0x20 on, its line 0 alone */
		out8(0x21, 0x20);
		out8(0x21, 0x04);
		out8(0x21, 0x01);
		out8(0x21, 0xfe);
		out8(0x43, 0x34); /* 100 Hz */
		out8(0x40, 11932 & 0xff);
		out8(0x40, 11932 >> 8);
	}
	if (!box->has_apic)
		return;
	*apic(0xf0) = 0x1ff;
	*apic(0x350) = vcpu ? 0x10000 : 0x700; /* the PICs come to the first */
	*apic(0x3e0) = 0xb;
	*apic(0x320) = 0x20040; /* periodic */
	*apic(0x380) = 10000000;
	__asm__ volatile("sti" ::: "memory");
}

static void say(const char *text)
{
	while (*text)
		out8(PORT_SAY, (uint8_t)*text++);
}

static void wrong(struct box_vcpu *me, uint64_t *counter, uint64_t what)
{
	if (!me->first_wrong)
		me->first_wrong = what | 1;
	(*counter)++;
}

static void check_page(struct box_vcpu *me, uint64_t page, volatile uint32_t *generation)
{
	volatile uint64_t *at = page_at(page);
	uint32_t now = *generation;
	for (uint32_t i = 0; i < 8; i++) {
		if (at[stamp_place(page, i)] != (now ? stamp_word(page, now, i) : 0)) {
			wrong(me, &me->pages_wrong, page << 32 | (uint64_t)i << 24 | 2);
			break;
		}
	}
	for (uint32_t i = 0; i < 8; i++)
		at[stamp_place(page, i)] = stamp_word(page, now + 1, i);
	*generation = now + 1;
}

struct image {
	_Alignas(64) uint8_t bytes[512];
	uint8_t upper[64];
};

static void keep(struct image *image)
{
	__asm__ volatile("fxsave64 %0" : "=m"(image->bytes)::"memory");
	if (box->has_avx)
		read_upper(image->upper);
}

static bool same(const struct image *a, const struct image *b)
{
	bool is_same = true;
	for (uint32_t i = 0; i < 64; i++)
		is_same &= a->upper[i] == b->upper[i];
	for (uint32_t i = 0; i < 416; i++) {
		/* control word; MXCSR and the registers, without what the last instruction left */
		if (i < 2 || (i >= 24 && i < 28) || i >= 32)
			is_same &= a->bytes[i] == b->bytes[i];
	}
	return is_same;
}

/* 16 bytes go out and others come in, by string instructions: the monitor answers with those of before plus one. */
static void check_strings(struct box_vcpu *me, uint8_t *bytes)
{
	uint8_t before[16];
	uint64_t n = 16;
	const void *from = bytes;
	void *to = bytes;
	for (uint32_t i = 0; i < 16; i++)
		before[i] = bytes[i];
	__asm__ volatile("cld; rep outsb" : "+S"(from), "+c"(n) : "d"(PORT_STRING) : "memory");
	n = 16;
	__asm__ volatile("cld; rep insb" : "+D"(to), "+c"(n) : "d"(PORT_STRING) : "memory");
	for (uint32_t i = 0; i < 16; i++) {
		if (bytes[i] != (uint8_t)(before[i] + 1))
			wrong(me, &me->device_wrong, (uint64_t)bytes[i] << 8 | 4);
	}
}

static void check_forever(uint32_t vcpu)
{
	static struct image kept[GUEST_VCPUS], now[GUEST_VCPUS];
	static uint8_t strings[GUEST_VCPUS][16];
	struct box_vcpu *me = &box->vcpu[vcpu];
	volatile uint32_t *generation = (volatile uint32_t *)GENERATION_AT;
	uint64_t random = 88172645463325252u + vcpu;
	uint32_t n = box->n_pages / box->n_vcpus, counter = in32(PORT_COUNTER);

	fill_vectors(vcpu * 1000 + 1);
	if (box->has_avx)
		fill_upper();
	keep(&kept[vcpu]);
	if (!vcpu)
		say("the guest runs\n");
	for (;;) {
		uint64_t r = next_random(&random);
		/* Mostly a window that moves slowly. */
		uint64_t page = me->steps % 8 ? (r % 64 + me->steps / 256) % n : r % n;
		page += vcpu * n;
		check_page(me, page, &generation[page]);
		uint64_t tsc = ticks();
		if (tsc < me->tsc)
			wrong(me, &me->time_wrong, (me->tsc - tsc) << 8 | 8);
		me->tsc = tsc;
		if (me->steps % 16 == 0) {
			keep(&now[vcpu]);
			if (!same(&kept[vcpu], &now[vcpu]) || spin_registers(200))
				wrong(me, &me->registers_wrong, 16);
		}
		if (me->steps % 64 == 0) {
			uint32_t next = in32(PORT_COUNTER);
			if (next != counter + 1)
				wrong(me, &me->device_wrong, (uint64_t)next << 8 | 32);
			counter = next;
			uint32_t value = *(volatile uint32_t *)(DEVICE_AT + vcpu * 8);
			*(volatile uint32_t *)(DEVICE_AT + vcpu * 8) = value + 1;
			if (*(volatile uint32_t *)(DEVICE_AT + vcpu * 8) != value + 1)
				wrong(me, &me->device_wrong, (uint64_t)value << 8 | 64);
		}
		if (me->steps % 256 == 0)
			check_strings(me, strings[vcpu]);
		me->steps++;
	}
}

static uint64_t write_on(uint32_t vcpu)
{
	uint64_t random = 88172645463325252u + vcpu, n = 0;
	while (!*(volatile uint64_t *)&desk->stop) {
		uint64_t r = next_random(&random);
		uint64_t page = n++ % 64 ? (r % 256 + n / 4096) % box->n_pages : r % box->n_pages;
		volatile uint64_t *done = &desk->done[vcpu][page];
		uint64_t count = *done + 1;
		/* Anywhere in the page, and at its start, in this vCPU's own words. */
		page_at(page)[(r >> 20) % 64 * 8 + vcpu] = count;
		page_at(page)[vcpu] = count;
		*done = count;
	}
	return n;
}

static uint64_t obey(uint32_t vcpu)
{
	uint64_t a = desk->order[vcpu].a, b = desk->order[vcpu].b, sum = 0;
	switch (desk->order[vcpu].order) {
	case ORDER_WRITE:
		for (uint64_t p = a; p < a + b; p++)
			page_at(p)[256] = desk->order[vcpu].c + p;
		return b;
	case ORDER_READ:
		for (uint64_t p = a; p < a + b; p++)
			sum += page_at(p)[0];
		return sum;
	case ORDER_WRITE_ON:
		return write_on(vcpu);
	default:
		return 0;
	}
}

void guest_main(uint32_t vcpu)
{
	start_timers(vcpu);
	if (box->mode == GUEST_CHECKS)
		check_forever(vcpu);
	for (;;) {
		if (in32(PORT_COMMAND))
			out32(PORT_DONE, (uint32_t)obey(vcpu));
	}
}
