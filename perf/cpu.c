/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/cpu.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "perf/doc.h"

static uint64_t timeval_us(const struct timeval *t)
{
	return (uint64_t)t->tv_sec * 1000000u + (uint64_t)t->tv_usec;
}

/* proc(5): user nice system idle iowait irq softirq steal, in ticks; guests are in user already. */
static void read_host(struct perf_cpu *ret)
{
	FILE *f base_cleanup(base_fclosep) = fopen("/proc/stat", "re");
	uint64_t t[8] = { 0 }, all = 0;
	long ticks = sysconf(_SC_CLK_TCK);

	if (!f || ticks <= 0 ||
	    fscanf(f,
		   "cpu %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
		   " %" SCNu64 " %" SCNu64,
		   &t[0], &t[1], &t[2], &t[3], &t[4], &t[5], &t[6], &t[7]) != 8)
		return;
	for (unsigned i = 0; i < 8; i++)
		all += t[i];
	ret->host_us = all * 1000000u / (uint64_t)ticks;
	ret->host_busy_us = (all - t[3] - t[4]) * 1000000u / (uint64_t)ticks;
}

void perf_cpu_now(struct perf_cpu *ret)
{
	struct rusage usage;

	*ret = (struct perf_cpu){ .wall_us = base_now_us() };
	if (!getrusage(RUSAGE_SELF, &usage)) {
		ret->user_us = timeval_us(&usage.ru_utime);
		ret->system_us = timeval_us(&usage.ru_stime);
	}
	read_host(ret);
}

/* The kernel's counts of idle time are known to go back by a little. */
static uint64_t since(uint64_t now, uint64_t start)
{
	return now > start ? now - start : 0;
}

void perf_cpu_since(const struct perf_cpu *start, struct perf_cpu *ret)
{
	struct perf_cpu now;

	perf_cpu_now(&now);
	*ret = (struct perf_cpu){
		.wall_us = since(now.wall_us, start->wall_us),
		.user_us = since(now.user_us, start->user_us),
		.system_us = since(now.system_us, start->system_us),
		.host_busy_us = since(now.host_busy_us, start->host_busy_us),
		.host_us = since(now.host_us, start->host_us),
	};
}

json_t *perf_cpu_json(const struct perf_cpu *spent)
{
	json_t *o = json_object();
	double host = (double)spent->host_us;

	perf_put(o, "ms", json_real((double)spent->wall_us / 1e3));
	perf_put(o, "user_ms", json_real((double)spent->user_us / 1e3));
	perf_put(o, "system_ms", json_real((double)spent->system_us / 1e3));
	perf_put(o, "host_busy_ms", json_real((double)spent->host_busy_us / 1e3));
	perf_put(o, "host_ms", json_real(host / 1e3));
	perf_put(o, "host_busy_percent",
		 json_real(host > 0 ? 100 * (double)spent->host_busy_us / host : 0));
	return o;
}

static uint64_t take_us(const json_t *object, const char *key)
{
	double ms = perf_number(object, key);

	return ms > 0 && ms < 1e15 ? (uint64_t)(ms * 1e3) : 0;
}

void perf_cpu_parse(const json_t *object, struct perf_cpu *ret)
{
	*ret = (struct perf_cpu){ .wall_us = take_us(object, "ms"),
				  .user_us = take_us(object, "user_ms"),
				  .system_us = take_us(object, "system_ms"),
				  .host_busy_us = take_us(object, "host_busy_ms"),
				  .host_us = take_us(object, "host_ms") };
}

double perf_bytes_per_cpu_s(const json_t *cpu, double bytes)
{
	double ms = perf_number(cpu, "client.user_ms") + perf_number(cpu, "client.system_ms") +
		    perf_number(cpu, "server.user_ms") + perf_number(cpu, "server.system_ms");

	return ms > 0 ? bytes / (ms / 1e3) : 0;
}
