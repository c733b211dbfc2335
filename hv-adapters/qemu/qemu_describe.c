/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/qemu/qemu.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <string.h>
#include <sys/vfs.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "base/reach.h"
#include "hv-adapters/attach/attach.h"
#include "hv-adapters/qemu/qemu_parse.h"

#define HOW_TO_SHARE                                                             \
	"start QEMU with -object "                                               \
	"memory-backend-file,id=ram0,size=SIZE,mem-path=/dev/shm/NAME,share=on " \
	"-machine memory-backend=ram0"

enum {
	RAMBLOCKS_MAX = 512,
};

MF_PRINTF(4, 5)
static void find(struct mf_guest *g, enum mf_verdict verdict, const char *subject, const char *fmt,
		 ...)
{
	if (g->n_findings == MF_FINDINGS_MAX) {
		/* Full: a refusal must not be lost behind remarks. */
		if (verdict != MF_REFUSE)
			return;
		g->n_findings--;
	}
	struct mf_finding *f = &g->findings[g->n_findings++];
	f->verdict = verdict;
	(void)snprintf(f->subject, sizeof(f->subject), "%s", subject);
	va_list ap;
	va_start(ap, fmt);
	if (vsnprintf(f->detail, sizeof(f->detail), fmt, ap) < 0)
		f->detail[0] = '\0';
	va_end(ap);
}

/* ---- who it is ---- */

/* A property as a string, "" when it has none of that name. */
static int get_string(struct qemu *hv, const char *path, const char *property, char *ret,
		      size_t cap, struct mf_error *err)
{
	qmp_autojson value = NULL;
	ret[0] = '\0';
	int r = qemu_command(hv, "qom-get",
			     json_pack("{s:s, s:s}", "path", path, "property", property), &value,
			     err);
	if (r >= 0)
		(void)snprintf(ret, cap, "%s",
			       json_is_string(value) ? json_string_value(value) : "");
	return r;
}

static void drop_suffix(char *s, const char *suffix)
{
	size_t n = strlen(s), m = strlen(suffix);
	if (n > m && strcmp(s + n - m, suffix) == 0)
		s[n - m] = '\0';
}

/* One number for all CPUID words: equal on both hosts or the guest would see its CPU change.  Words that are zero do
 * not count, as newer versions list more of them. */
static uint32_t hash_features(const json_t *words)
{
	uint64_t sum = 0;
	size_t i;
	const json_t *w;
	json_array_foreach((json_t *)(uintptr_t)words, i, w)
	{
		static const char *const keys[] = { "cpuid-input-eax", "cpuid-input-ecx",
						    "features" };
		uint64_t features = (uint64_t)json_integer_value(json_object_get(w, "features"));
		if (!features)
			continue;
		uint64_t h = 14695981039346656037u; /* FNV-1a; summed, so that the order is free */
		for (size_t k = 0; k < BASE_ARRAY_LEN(keys); k++) {
			uint64_t v = (uint64_t)json_integer_value(json_object_get(w, keys[k]));
			for (unsigned b = 0; b < 64; b += 8)
				h = (h ^ (v >> b & 0xff)) * 1099511628211u;
		}
		const char *reg = json_string_value(json_object_get(w, "cpuid-register"));
		for (; reg && *reg; reg++)
			h = (h ^ (unsigned char)*reg) * 1099511628211u;
		sum += h;
	}
	return (uint32_t)(sum ^ sum >> 32);
}

static int describe_cpu(struct qemu *hv, struct mf_guest *g, struct mf_error *err)
{
	qmp_autojson cpus = NULL;
	qmp_autojson kvm = NULL;
	qmp_autojson words = NULL;
	int r = qemu_command(hv, "query-cpus-fast", NULL, &cpus, err);
	if (r < 0)
		return r;
	const char *path = json_string_value(json_object_get(json_array_get(cpus, 0), "qom-path"));
	const char *target = json_string_value(json_object_get(json_array_get(cpus, 0), "target"));
	if (!path || !target)
		return base_error(err, -EPROTO, MF_SCOPE_HOST, "QEMU lists no CPU");
	char model[64], suffix[32];
	r = get_string(hv, path, "type", model, sizeof(model), err);
	if (r < 0)
		return r;
	(void)snprintf(suffix, sizeof(suffix), "-%s-cpu", target);
	drop_suffix(model, suffix);
	r = qemu_command(hv, "query-kvm", NULL, &kvm, err);
	if (r < 0)
		return r;
	/* Only x86 has these words; others are compared by their model alone. */
	if (qemu_command(hv, "qom-get",
			 json_pack("{s:s, s:s}", "path", path, "property", "feature-words"), &words,
			 NULL) == -ESRCH)
		return base_error(err, -ESRCH, MF_SCOPE_HOST, "QEMU ended while it was asked");
	char features[32] = "";
	if (words)
		(void)snprintf(features, sizeof(features), " (features %08x)",
			       hash_features(words));
	(void)snprintf(g->cpu, sizeof(g->cpu), "%s%s x%zu, %s", model, features,
		       json_array_size(cpus),
		       json_is_true(json_object_get(kvm, "enabled")) ? "kvm" : "tcg");
	if (strcmp(model, "host") == 0 || strcmp(model, "max") == 0)
		find(g, MF_WARN, "cpu",
		     "model \"%s\" is whatever this host has: a named model (-cpu) is safer "
		     "between "
		     "hosts",
		     model);
	return 0;
}

static int describe_identity(struct qemu *hv, struct mf_guest *g, struct mf_error *err)
{
	(void)snprintf(g->kind, sizeof(g->kind), "qemu");
	(void)snprintf(g->monitor, sizeof(g->monitor), "QEMU %d.%d.%d", hv->version / 10000,
		       hv->version / 100 % 100, hv->version % 100);
	g->pid = hv->pid;
	qmp_autojson name = NULL;
	int r = qemu_command(hv, "query-name", NULL, &name, err);
	if (r < 0)
		return r;
	const char *text = json_string_value(json_object_get(name, "name"));
	if (text)
		(void)snprintf(g->name, sizeof(g->name), "%s", text);
	else
		(void)snprintf(g->name, sizeof(g->name), "qemu-%d", (int)hv->pid);
	r = get_string(hv, "/machine", "type", g->machine, sizeof(g->machine), err);
	if (r < 0)
		return r;
	drop_suffix(g->machine, "-machine");
	if (hv->version < QEMU_VERSION(7, 2, 0))
		find(g, MF_REFUSE, "version",
		     "%s is too old: 7.2 is the oldest that is known to work", g->monitor);
	return describe_cpu(hv, g, err);
}

/* ---- its RAM ---- */

/* The mapping of one file that covers [hva, hva + size) of the process, as one piece or several in line. */
static int find_mapping(pid_t pid, uint64_t hva, uint64_t size, struct qemu_mapping *ret,
			struct mf_error *err)
{
	char path[64], line[512];
	(void)snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	base_cleanup(base_fclosep) FILE *f = base_reach_fopen(pid, BASE_REACH_MAPS);
	if (!f)
		return base_error_sys(err, -errno, MF_SCOPE_HOST,
				      "%s: run as root or as QEMU's user", path);
	uint64_t want = hva;
	while (want < hva + size && fgets(line, sizeof(line), f)) {
		struct qemu_mapping m;
		if (!qemu_parse_mapping(line, &m) || m.end <= want)
			continue;
		if (m.start > want)
			break;
		if (want == hva) {
			*ret = m;
			ret->path = "";
			ret->offset = m.offset + (hva - m.start);
		} else if (m.inode != ret->inode || m.dev_major != ret->dev_major ||
			   m.dev_minor != ret->dev_minor ||
			   m.offset != ret->offset + (want - hva)) {
			break;
		}
		if (!m.is_shared || !m.inode)
			break;
		want = m.end;
	}
	if (want < hva + size)
		return base_error(
			err, -MF_EREFUSED, MF_SCOPE_HOST,
			"process %d maps no shared file at 0x%" PRIx64
			": it is not the QEMU behind this socket (let QEMU make the socket "
			"itself), or its RAM is not shared",
			(int)pid, hva);
	return 0;
}

static int open_backing(pid_t pid, const struct qemu_mapping *m)
{
	struct attach_mapping mapping = {
		.start = m->start,
		.end = m->end,
		.inode = m->inode,
		.dev_major = m->dev_major,
		.dev_minor = m->dev_minor,
	};
	return attach_open_mapping(pid, &mapping);
}

/* What a memory backend is, from query-memdev and qom-list /objects. */
struct backend {
	const char *id, *type;
	uint64_t size;
	bool is_shared;
};

/* May its RAM be left out of QEMU's stream and be moved by us?  Else the reason is put into the findings. */
static bool is_movable(const struct qemu *hv, const struct backend *b, struct mf_guest *g)
{
	char subject[48], size[32];
	(void)snprintf(subject, sizeof(subject), "RAM %.40s", b->id);
	(void)base_format_size(b->size, size, sizeof(size));
	if (!b->is_shared) {
		find(g, MF_REFUSE, subject, "%s of RAM are private to QEMU: " HOW_TO_SHARE, size);
		return false;
	}
	if (strcmp(b->type, "memory-backend-file") == 0)
		return true;
	if (strcmp(b->type, "memory-backend-memfd") != 0) {
		find(g, MF_REFUSE, subject, "%s has no file behind it: " HOW_TO_SHARE, b->type);
		return false;
	}
	if (hv->version < QEMU_VERSION(8, 1, 0))
		return true;
	find(g, MF_REFUSE, subject, "memfd works up to QEMU 8.0 only, this is %d.%d: " HOW_TO_SHARE,
	     hv->version / 10000, hv->version / 100 % 100);
	return false;
}

static int describe_region(struct qemu *hv, const struct backend *b, const struct qemu_placed *at,
			   struct mf_guest *g, struct mf_error *err)
{
	char command[64], subject[48];
	(void)snprintf(subject, sizeof(subject), "RAM %.40s", b->id);
	(void)snprintf(command, sizeof(command), "gpa2hva 0x%" PRIx64, at->gpa);
	base_autofree char *text = qemu_human(hv, command, err);
	if (!text)
		return -EPROTO;
	uint64_t hva;
	if (!qemu_parse_gpa2hva(text, b->id, &hva))
		return base_error(err, -EPROTO, MF_SCOPE_HOST,
				  "RAM %s: QEMU does not say where it is: %.80s", b->id, text);
	struct mf_region region = {
		.size = b->size, .gpa = at->gpa, .hva = hva - at->offset, .fd = -1
	};
	if (snprintf(region.name, sizeof(region.name), "%s", b->id) >= (int)sizeof(region.name)) {
		find(g, MF_REFUSE, subject, "the backend's name is longer than %zu bytes",
		     sizeof(region.name) - 1);
		return 0;
	}
	struct qemu_mapping m = { 0 };
	int r = find_mapping(hv->pid, region.hva, region.size, &m, err);
	if (r < 0)
		return r;
	region.offset = m.offset;
	base_autofd fd = open_backing(hv->pid, &m);
	if (fd < 0)
		return base_error_sys(err, fd, MF_SCOPE_HOST,
				      "RAM %s: its file cannot be opened for writing", b->id);
	struct statfs fs;
	if (fstatfs(fd, &fs) < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "RAM %s: fstatfs", b->id);
	region.page_size = fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize
							: (uint64_t)sysconf(_SC_PAGESIZE);
	if (fs.f_type != HUGETLBFS_MAGIC && fs.f_type != TMPFS_MAGIC) {
		find(g, MF_REFUSE, subject,
		     "its file is on a disk file system, whose pages cannot be tracked: put "
		     "mem-path "
		     "on /dev/shm or /dev/hugepages");
		return 0;
	}
	if (region.size % region.page_size) {
		find(g, MF_REFUSE, subject, "its size is no multiple of its page size");
		return 0;
	}
	if (g->n_regions == MF_REGIONS_MAX) {
		find(g, MF_REFUSE, subject, "the guest has more than %d regions of RAM",
		     MF_REGIONS_MAX);
		return 0;
	}
	region.fd = base_take_fd(&fd);
	g->regions[g->n_regions++] = region;
	return 0;
}

static bool is_owned(const struct qemu_ramblock *blocks, unsigned n, const char *id)
{
	for (unsigned i = 0; i < n; i++) {
		if (qemu_ramblock_is(blocks[i].name, id))
			return true;
	}
	return false;
}

static int compare_gpa(const void *a, const void *b)
{
	const struct mf_region *x = a, *y = b;
	return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

static const char *type_of(const json_t *list, const char *name)
{
	size_t i;
	const json_t *e;
	json_array_foreach((json_t *)(uintptr_t)list, i, e)
	{
		const char *n = json_string_value(json_object_get(e, "name"));
		const char *t = json_string_value(json_object_get(e, "type"));
		if (n && t && strcmp(n, name) == 0)
			return t;
	}
	return "";
}

/* "child<memory-backend-file>" without its shell. */
static void bare_type(const char *type, char *ret, size_t cap)
{
	size_t skip = strncmp(type, "child<", 6) == 0 ? 6 : 0;
	(void)snprintf(ret, cap, "%.*s", (int)strcspn(type + skip, ">"), type + skip);
}

static int describe_ram(struct qemu *hv, struct mf_guest *g, struct mf_error *err)
{
	qmp_autojson memdevs = NULL;
	qmp_autojson objects = NULL;
	int r = qemu_command(hv, "query-memdev", NULL, &memdevs, err);
	if (r >= 0)
		r = qemu_command(hv, "qom-list", json_pack("{s:s}", "path", "/objects"), &objects,
				 err);
	if (r < 0)
		return r;
	base_autofree char *block_text = qemu_human(hv, "info ramblock", err);
	base_autofree char *tree_text = block_text ? qemu_human(hv, "info mtree -f", err) : NULL;
	base_autofree struct qemu_ramblock *blocks = calloc(RAMBLOCKS_MAX, sizeof(*blocks));
	if (!block_text || !tree_text)
		return -EPROTO;
	if (!blocks)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "RAM layout: no memory");
	unsigned n_blocks = qemu_parse_ramblocks(block_text, blocks, RAMBLOCKS_MAX);
	if (n_blocks > RAMBLOCKS_MAX)
		n_blocks = RAMBLOCKS_MAX;

	uint32_t refused = g->n_findings;
	size_t i;
	json_t *e;
	json_array_foreach(memdevs, i, e)
	{
		char type[64];
		struct backend b = {
			.id = json_string_value(json_object_get(e, "id")),
			.type = type,
			.size = (uint64_t)json_integer_value(json_object_get(e, "size")),
			.is_shared = json_is_true(json_object_get(e, "share")),
		};
		if (!b.id || !is_owned(blocks, n_blocks, b.id))
			continue; /* made but used by no device */
		bare_type(type_of(objects, b.id), type, sizeof(type));
		if (!is_movable(hv, &b, g))
			continue;
		struct qemu_placed at;
		if (!qemu_parse_placed(tree_text, b.id, &at)) {
			char subject[48];
			(void)snprintf(subject, sizeof(subject), "RAM %.40s", b.id);
			find(g, MF_REFUSE, subject,
			     "belongs to a device that has not mapped it: unplug that device "
			     "before "
			     "moving");
			continue;
		}
		r = describe_region(hv, &b, &at, g, err);
		if (r < 0)
			return r;
	}
	qsort(g->regions, g->n_regions, sizeof(g->regions[0]), compare_gpa);
	if (!g->n_regions && g->n_findings == refused)
		find(g, MF_REFUSE, "RAM", "QEMU has no memory backend: " HOW_TO_SHARE);
	return 0;
}

static void close_regions(struct mf_guest *g)
{
	for (uint32_t i = 0; i < g->n_regions; i++)
		base_closep(&g->regions[i].fd);
	g->n_regions = 0;
}

/* Regions stay what they were the first time (A6); what is said of RAM is said anew. */
static int describe_ram_once(struct qemu *hv, struct mf_guest *g, struct mf_error *err)
{
	int r = describe_ram(hv, g, err);
	if (r < 0 || hv->n_regions) {
		close_regions(g);
		if (r < 0)
			return r;
	} else {
		hv->n_regions = g->n_regions;
		memcpy(hv->regions, g->regions, sizeof(g->regions[0]) * g->n_regions);
	}
	g->n_regions = hv->n_regions;
	memcpy(g->regions, hv->regions, sizeof(g->regions[0]) * hv->n_regions);
	return 0;
}

/* ---- what cannot move ---- */

static int check_devices(struct qemu *hv, struct mf_guest *g, const char *path,
			 struct mf_error *err)
{
	qmp_autojson list = NULL;
	int r = qemu_command(hv, "qom-list", json_pack("{s:s}", "path", path), &list, err);
	if (r < 0)
		return r;
	size_t i;
	json_t *e;
	json_array_foreach(list, i, e)
	{
		const char *name = json_string_value(json_object_get(e, "name"));
		const char *raw = json_string_value(json_object_get(e, "type"));
		if (!name || !raw || strncmp(raw, "child<", 6) != 0)
			continue;
		char type[64], subject[48];
		bare_type(raw, type, sizeof(type));
		const char *why;
		enum mf_verdict verdict = qemu_classify_device(type, &why);
		if (verdict == MF_OK)
			continue;
		(void)snprintf(subject, sizeof(subject), "device %.40s", name);
		find(g, verdict, subject, "%s %s", type, why);
	}
	return 0;
}

static int check_network(struct qemu *hv, struct mf_guest *g, struct mf_error *err)
{
	base_autofree char *text = qemu_human(hv, "info network", err);
	if (!text)
		return -EPROTO;
	const char *at = text, *why;
	char name[40], subject[48];
	while (qemu_next_bad_netdev(&at, name, sizeof(name), &why)) {
		(void)snprintf(subject, sizeof(subject), "network %s", name);
		find(g, MF_REFUSE, subject, "%s", why);
	}
	return 0;
}

/* A disk with direct I/O reads into pages of guest RAM that were pinned when the read began. */
static int check_disks(struct qemu *hv, struct mf_guest *g, struct mf_error *err)
{
	qmp_autojson nodes = NULL;
	int r = qemu_command(hv, "query-named-block-nodes", json_pack("{s:b}", "flat", 1), &nodes,
			     err);
	if (r < 0)
		return r;
	size_t i;
	json_t *e;
	json_array_foreach(nodes, i, e)
	{
		if (!json_is_true(json_object_get(json_object_get(e, "cache"), "direct")))
			continue;
		g->flags |= MF_GUEST_PINS_RAM;
		find(g, MF_OK, "direct I/O",
		     "%.80s: the guest is stopped for a moment after each round, so that nothing "
		     "that is "
		     "read into its RAM meanwhile is missed",
		     json_string_value(json_object_get(e, "file")));
		return 0;
	}
	return 0;
}

static int check_blockers(struct qemu *hv, struct mf_guest *g, struct mf_error *err)
{
	qmp_autojson migrate = NULL;
	int r = qemu_command(hv, "query-migrate", NULL, &migrate, err);
	if (r < 0)
		return r;
	size_t i;
	json_t *e;
	json_array_foreach(json_object_get(migrate, "blocked-reasons"), i, e)
	{
		find(g, MF_REFUSE, "QEMU", "says that it cannot move: %s", json_string_value(e));
	}
	return 0;
}

int qemu_check_state(struct qemu *hv, struct mf_error *err)
{
	char state[32], status[32];
	bool is_running;
	int r = qemu_run_state(hv, state, sizeof(state), &is_running, err);
	if (r >= 0)
		r = qemu_migration_status(hv, status, sizeof(status), NULL, 0, err);
	if (r < 0)
		return r;
	if (hv->side == MF_DESTINATION) {
		if (strcmp(state, "inmigrate") != 0)
			return base_error(
				err, -MF_EREFUSED, MF_SCOPE_HOST,
				"QEMU (pid %d) is %s, it does not wait for a guest: start a "
				"new one with -incoming defer",
				(int)hv->pid, state);
		if (strcmp(status, "none") != 0)
			return base_error(
				err, -MF_EREFUSED, MF_SCOPE_HOST,
				"QEMU (pid %d) waits for a guest on an address of its own: "
				"start it with -incoming defer",
				(int)hv->pid);
		return 0;
	}
	static const char *const movable[] = { "running", "paused", "prelaunch", "suspended" };
	bool is_movable_state = false;
	for (size_t i = 0; i < BASE_ARRAY_LEN(movable); i++)
		is_movable_state |= strcmp(state, movable[i]) == 0;
	/* QEMU itself refuses to migrate in this state, whatever led to it. */
	if (strcmp(state, "postmigrate") == 0)
		return base_error(
			err, -MF_EREFUSED, MF_SCOPE_HOST,
			strcmp(status, "completed") == 0
				? "QEMU (pid %d): its guest has been moved away; only if that "
				  "is surely wrong, `cont` it"
				: "QEMU (pid %d) was paused when a move of it was given up: "
				  "`cont` it (and `stop` it again) before moving it",
			(int)hv->pid);
	if (strcmp(status, "pre-switchover") == 0)
		return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
				  "QEMU (pid %d) was stopped for a move that has not gone on: "
				  "migrate_cancel in its monitor runs the guest again",
				  (int)hv->pid);
	if (!is_movable_state)
		return base_error(err, -MF_EREFUSED, MF_SCOPE_HOST,
				  "QEMU (pid %d) is in state %s: there is no guest to move",
				  (int)hv->pid, state);
	static const char *const idle[] = { "none", "completed", "failed", "cancelled" };
	bool is_idle = false;
	for (size_t i = 0; i < BASE_ARRAY_LEN(idle); i++)
		is_idle |= strcmp(status, idle[i]) == 0;
	if (!is_idle)
		return base_error(
			err, -MF_EREFUSED, MF_SCOPE_HOST,
			"QEMU (pid %d) is in a migration of its own (%s): wait for it, or "
			"migrate_cancel it",
			(int)hv->pid, status);
	return 0;
}

int qemu_describe(struct qemu *hv, struct mf_guest *ret, struct mf_error *err)
{
	base_autofree struct mf_guest *g = calloc(1, sizeof(*g));
	if (!g)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "guest: no memory");
	int r = describe_identity(hv, g, err);
	if (r < 0)
		return r;
	r = describe_ram_once(hv, g, err);
	if (r >= 0)
		r = check_devices(hv, g, "/machine/peripheral", err);
	if (r >= 0)
		r = check_devices(hv, g, "/machine/peripheral-anon", err);
	if (r >= 0)
		r = check_network(hv, g, err);
	if (r >= 0)
		r = check_disks(hv, g, err);
	if (r >= 0)
		r = check_blockers(hv, g, err);
	if (r < 0)
		return r;
	struct mf_error why = { 0 };
	r = qemu_check_state(hv, &why);
	if (r == -MF_EREFUSED)
		find(g, MF_REFUSE, "state", "%s", why.msg);
	else if (r < 0)
		return base_error(err, r, why.scope, "%s", why.msg);
	char state[32];
	bool is_running;
	if (r >= 0 && hv->side == MF_SOURCE &&
	    qemu_run_state(hv, state, sizeof(state), &is_running, NULL) >= 0 && !is_running)
		find(g, MF_WARN, "state",
		     "the guest is %s, and will be at the destination; if the move is given up "
		     "QEMU "
		     "may want a `cont` before another",
		     state);
	why = (struct mf_error){ 0 };
	if (attach_probe(hv->pid, &why) < 0)
		find(g, MF_REFUSE, "attach", "%s", why.msg);
	*ret = *g;
	return 0;
}
