/* SPDX-License-Identifier: BSD-2-Clause */
/**
 * @file machine.h
 * What the guest needs of a PC: ports, a calibrated clock, one timer interrupt
 * to sleep by, and the serial port.
 */
#ifndef GUEST_MACHINE_H
#define GUEST_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Starts the timer and the serial port, and measures the clock against the PIT. */
void machine_init(void);

/** Ticks of the TSC in a millisecond; set by machine_init(). */
uint32_t ticks_per_ms(void);

static inline uint64_t ticks(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (uint64_t)high << 32 | low;
}

/** Sleeps until the next timer interrupt, 4 ms at most. */
void nap(void);

/** A byte from the serial port, or -1. */
int serial_get(void);
void serial_put(const char *bytes, size_t len);

/** Prints to serial; %u 32 bits, %U 64 bits, %x 32 bits, %s, %c. */
void print(const char *format, ...);

#endif
