/* SPDX-License-Identifier: BSD-2-Clause */
/* CPU time: of this process, and of all of the host. */
#ifndef PERF_CPU_H
#define PERF_CPU_H

#include <stdint.h>

#include <jansson.h>

struct perf_cpu {
	uint64_t wall_us;            /* monotonic clock */
	uint64_t user_us, system_us; /* of this process */
	uint64_t host_busy_us,
		host_us; /* of all CPUs: busy, and busy or idle; from /proc/stat, so in steps of 10 ms */
};

void perf_cpu_now(struct perf_cpu *ret);
/* What has gone by since `start`. */
void perf_cpu_since(const struct perf_cpu *start, struct perf_cpu *ret);
/* {"ms", "user_ms", "system_ms", "host_busy_ms", "host_ms", "host_busy_percent"}: fractions of ms. */
json_t *perf_cpu_json(const struct perf_cpu *spent);
/* What perf_cpu_json() made; what is missing is 0. */
void perf_cpu_parse(const json_t *object, struct perf_cpu *ret);
/* From "client" and "server" of a row's "cpu" (perf_cpu_json(), server may be absent): bytes for one second of the
 * CPUs of both processes; 0 when no time was spent. */
double perf_bytes_per_cpu_s(const json_t *cpu, double bytes);

#endif
