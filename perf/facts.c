/* SPDX-License-Identifier: BSD-2-Clause */
/* What a result depends on besides what was asked for: this host. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <memferry/session.h>

#include "base/cleanup.h"
#include "perf/doc.h"
#include "transport/transport.h"

#define DEVICES_MAX 64

/* The value of a "key : value" or "key: value kB" line; "" without one. */
static const char *read_line(const char *file, const char *key, char *buf, size_t cap)
{
	FILE *f base_cleanup(base_fclosep) = fopen(file, "re");
	char line[512];

	buf[0] = '\0';
	while (f && fgets(line, sizeof(line), f)) {
		char *colon = strchr(line, ':');
		if (!colon || strncmp(line, key, strlen(key)))
			continue;
		colon += 1 + strspn(colon + 1, " \t");
		colon[strcspn(colon, "\n")] = '\0';
		(void)snprintf(buf, cap, "%s", colon);
		break;
	}
	return buf;
}

static unsigned count_nodes(void)
{
	DIR *dir = opendir("/sys/devices/system/node");
	unsigned n = 0;

	for (struct dirent *at; dir && (at = readdir(dir));)
		n += !strncmp(at->d_name, "node", 4) && at->d_name[4] >= '0' &&
		     at->d_name[4] <= '9';
	if (dir)
		(void)closedir(dir);
	return n ? n : 1;
}

static json_t *cpu_facts(void)
{
	json_t *o = json_object();
	char text[128];

	perf_put(o, "model",
		 json_string(read_line("/proc/cpuinfo", "model name", text, sizeof(text))));
	perf_put(o, "cpus", json_integer(sysconf(_SC_NPROCESSORS_ONLN)));
	perf_put(o, "numa_nodes", json_integer(count_nodes()));
	return o;
}

static json_t *nic_facts(void)
{
	struct mf_device *devices base_cleanup(base_freep) = calloc(DEVICES_MAX, sizeof(*devices));
	json_t *nics = json_array();
	int n = devices ? mf_devices(devices, sizeof(*devices), DEVICES_MAX, NULL) : 0;

	for (int i = 0; i < n && i < DEVICES_MAX; i++) {
		json_t *o = json_object();
		perf_put(o, "transport", json_string(devices[i].transport));
		perf_put(o, "name", json_string(devices[i].name));
		perf_put(o, "detail", json_string(devices[i].detail));
		perf_put(o, "mbit_per_s", json_integer((json_int_t)devices[i].mbit_per_s));
		perf_put(o, "numa_node", json_integer(devices[i].numa_node));
		perf_put(o, "usable", json_boolean(devices[i].usable));
		(void)json_array_append_new(nics, o);
	}
	return nics;
}

static json_t *version_facts(void)
{
	json_t *o = json_object();

	perf_put(o, "memferry", json_string(mf_version()));
	perf_put(o, "compiler", json_string(__VERSION__));
	for (const struct tp_ops *const *ops = tp_backends(); *ops; ops++) {
		char text[64];
		if ((*ops)->version)
			perf_put(o, (*ops)->name, json_string((*ops)->version(text, sizeof(text))));
	}
	return o;
}

/* "HugePages_Free: 64" counts pages of Hugepagesize. */
static json_t *huge_page_facts(void)
{
	json_t *o = json_object();
	char text[64];
	uint64_t n = 0;

	(void)sscanf(read_line("/proc/meminfo", "HugePages_Free", text, sizeof(text)), "%" SCNu64,
		     &n);
	perf_put(o, "free", json_integer((json_int_t)n));
	n = 0;
	(void)sscanf(read_line("/proc/meminfo", "Hugepagesize", text, sizeof(text)), "%" SCNu64,
		     &n);
	perf_put(o, "bytes", json_integer((json_int_t)(n << 10)));
	return o;
}

json_t *perf_facts(const char *role)
{
	json_t *o = json_object();
	struct utsname name = { 0 };
	long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);

	(void)uname(&name);
	perf_put(o, "role", json_string(role));
	perf_put(o, "name", json_string(name.nodename));
	perf_put(o, "kernel", json_string(name.release));
	perf_put(o, "machine", json_string(name.machine));
	perf_put(o, "cpu", cpu_facts());
	perf_put(o, "memory_bytes", json_integer((json_int_t)pages * page));
	perf_put(o, "page_size", json_integer(page));
	perf_put(o, "huge_pages", huge_page_facts());
	perf_put(o, "nics", nic_facts());
	perf_put(o, "versions", version_facts());
	return o;
}
