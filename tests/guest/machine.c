/* SPDX-License-Identifier: BSD-2-Clause */
#include "machine.h"

#include <stdarg.h>

#define COM1   0x3F8
#define PIT_HZ 1193182U
#define NAP_HZ 250U

#define VECTOR_TIMER      0x20
#define CALIBRATION_TRIES 3
#define CALIBRATION_MS    20U

static uint32_t tick_rate;

static inline void out8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static void start_timer(void)
{
	uint16_t divisor = PIT_HZ / NAP_HZ;

	/* both PICs to vectors 0x20 and up; all masked but the timer */
	out8(0x20, 0x11);
	out8(0xA0, 0x11);
	out8(0x21, VECTOR_TIMER);
	out8(0xA1, VECTOR_TIMER + 8);
	out8(0x21, 4);
	out8(0xA1, 2);
	out8(0x21, 1);
	out8(0xA1, 1);
	out8(0x21, 0xFE);
	out8(0xA1, 0xFF);

	out8(0x43, 0x34); /* channel 0, rate generator */
	out8(0x40, divisor & 0xFF);
	out8(0x40, divisor >> 8);
}

/* Ticks while channel 2 of the PIT counts CALIBRATION_MS down. */
static uint32_t measure_once(void)
{
	uint16_t count = PIT_HZ * CALIBRATION_MS / 1000;
	uint64_t begin;

	out8(0x61, (in8(0x61) & ~2) | 1); /* gate on, speaker off */
	out8(0x43, 0xB0);                 /* channel 2, one shot */
	out8(0x42, count & 0xFF);
	out8(0x42, count >> 8);
	begin = ticks();
	while (!(in8(0x61) & 0x20))
		;
	return (uint32_t)(ticks() - begin);
}

void machine_init(void)
{
	uint32_t least = UINT32_MAX;

	out8(COM1 + 1, 0);
	out8(COM1 + 3, 0x80);
	out8(COM1, 1); /* 115200 baud */
	out8(COM1 + 1, 0);
	out8(COM1 + 3, 3);
	out8(COM1 + 2, 7); /* FIFO on and empty */
	out8(COM1 + 4, 3);

	/* the host may take the CPU away meanwhile: that only ever lengthens one */
	for (int i = 0; i < CALIBRATION_TRIES; i++) {
		uint32_t took = measure_once();

		if (took < least)
			least = took;
	}
	tick_rate = least / CALIBRATION_MS;
	if (!tick_rate)
		tick_rate = 1;
	start_timer();
}

uint32_t ticks_per_ms(void)
{
	return tick_rate;
}

void nap(void)
{
	__asm__ volatile("syscall" ::: "rax", "rcx", "r11", "memory", "cc");
}

int serial_get(void)
{
	return in8(COM1 + 5) & 1 ? in8(COM1) : -1;
}

void serial_put(const char *bytes, size_t len)
{
	while (len > 0) {
		size_t n = len < 16 ? len : 16; /* the FIFO's size */

		while (!(in8(COM1 + 5) & 0x20))
			;
		len -= n;
		__asm__ volatile("rep outsb" : "+S"(bytes), "+c"(n) : "d"(COM1) : "memory");
	}
}

static char *put_number(char *end, uint64_t value, uint32_t base)
{
	do {
		uint32_t digit;

		digit = value % base;
		value /= base;
		*--end = "0123456789abcdef"[digit];
	} while (value);
	return end;
}

void print(const char *format, ...)
{
	char line[512], digits[24], *end = digits + sizeof(digits);
	size_t len = 0;
	va_list args;

	va_start(args, format);
	for (const char *f = format; *f && len < sizeof(line); f++) {
		const char *from, *to = end;

		if (*f != '%') {
			line[len++] = *f;
			continue;
		}
		switch (*++f) {
		case 'U':
			from = put_number(end, va_arg(args, uint64_t), 10);
			break;
		case 'u':
			from = put_number(end, va_arg(args, uint32_t), 10);
			break;
		case 'x':
			from = put_number(end, va_arg(args, uint32_t), 16);
			break;
		default: /* %s */
			from = to = va_arg(args, const char *);
			while (*to)
				to++;
			break;
		}
		while (from < to && len < sizeof(line))
			line[len++] = *from++;
	}
	va_end(args);
	serial_put(line, len);
}
