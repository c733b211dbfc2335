/* SPDX-License-Identifier: BSD-2-Clause */
/* What must hold before a move, asked on both hosts while nothing has been touched. */
#include <errno.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "core/engine.h"

void eng_finding(struct mf_session *s, enum mf_verdict verdict, const char *subject,
		 const char *fmt, ...)
{
	struct mf_report *rep = &s->report;
	struct mf_finding *f;
	if (rep->n_findings < BASE_ARRAY_LEN(rep->findings))
		f = &rep->findings[rep->n_findings++];
	else if (verdict == MF_REFUSE) /* what refuses must be heard */
		f = &rep->findings[rep->n_findings - 1];
	else
		return;
	f->verdict = verdict;
	(void)snprintf(f->subject, sizeof(f->subject), "%s", subject);
	va_list ap;
	va_start(ap, fmt);
	if (vsnprintf(f->detail, sizeof(f->detail), fmt, ap) < 0)
		f->detail[0] = '\0';
	va_end(ap);
	eng_emit_finding(s, f);
}

int eng_preflight_verdict(const struct mf_session *s, struct mf_error *err)
{
	for (uint32_t i = 0; i < s->report.n_findings; i++) {
		const struct mf_finding *f = &s->report.findings[i];
		if (f->verdict == MF_REFUSE)
			return base_error(err, -MF_EREFUSED, MF_SCOPE_SESSION, "%s: %s", f->subject,
					  f->detail);
	}
	return 0;
}

/* MemAvailable, or free huge pages of that size, in bytes. */
static uint64_t free_memory(uint64_t page_size)
{
	char path[96], line[128];
	uint64_t value = 0;
	if (page_size <= 4096)
		(void)snprintf(path, sizeof(path), "/proc/meminfo");
	else
		(void)snprintf(path, sizeof(path),
			       "/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB/free_hugepages",
			       page_size / 1024);
	base_cleanup(base_fclosep) FILE *f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		if (page_size > 4096 && sscanf(line, "%" SCNu64, &value) == 1)
			return value * page_size;
		if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &value) == 1)
			return value * 1024;
	}
	return 0;
}

/* How much of memory known by its address is there. */
static uint64_t resident_bytes(const struct mf_region *d)
{
	enum { AT_ONCE = 65536 };
	unsigned char vec[AT_ONCE];
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), n = 0;
	for (uint64_t at = 0; at < d->size; at += AT_ONCE * page) {
		uint64_t left = d->size - at;
		uint64_t len = left < AT_ONCE * page ? left : AT_ONCE * page;
		if (mincore((void *)(uintptr_t)(d->hva + at), len, vec))
			return n * page;
		for (uint64_t i = 0; i < len / page; i++)
			n += vec[i] & 1;
	}
	return n * page;
}

/* Both are files of one file system, or even one file. */
static bool share(const struct mf_region *a, const struct mf_region *b, bool file)
{
	struct stat x, y;
	return a->fd >= 0 && b->fd >= 0 && !fstat(a->fd, &x) && !fstat(b->fd, &y) &&
	       x.st_dev == y.st_dev && (!file || x.st_ino == y.st_ino);
}

static bool shares_with_earlier(const struct mf_guest *g, uint32_t i, bool file)
{
	for (uint32_t k = 0; k < i; k++) {
		if (share(&g->regions[k], &g->regions[i], file))
			return true;
	}
	return false;
}

/* What the file behind a region holds already: a destination's RAM may be allocated.  Of regions that share one the first
 * counts. */
static uint64_t file_bytes(const struct mf_guest *g, uint32_t i)
{
	struct stat st;
	if (g->regions[i].fd < 0 || fstat(g->regions[i].fd, &st) || shares_with_earlier(g, i, true))
		return 0;
	return (uint64_t)st.st_blocks * 512;
}

/* Bytes that the regions hold already. */
static uint64_t allocated_bytes(const struct mf_guest *g, uint64_t page_size)
{
	uint64_t sum = 0;
	for (uint32_t i = 0; i < g->n_regions; i++) {
		const struct mf_region *d = &g->regions[i];
		if (d->page_size == page_size)
			sum += d->fd < 0 && g->pid == getpid() ? resident_bytes(d)
							       : file_bytes(g, i);
	}
	return sum;
}

/* A tmpfs may have less room than the host has memory: /dev/shm has half of it.  One finding for each file system that is
 * too small; the kernel's own for a memfd has no limit. */
static void check_file_systems(struct mf_session *s)
{
	const struct mf_guest *g = &s->guest;
	for (uint32_t i = 0; i < g->n_regions; i++) {
		const struct mf_region *d = &g->regions[i];
		char want[24], have[24];
		uint64_t need = 0, room;
		if (shares_with_earlier(g, i, false) || !eng_region_room(d, &room))
			continue;
		for (uint32_t k = i; k < g->n_regions; k++) {
			if (!share(d, &g->regions[k], false))
				continue;
			need += g->regions[k].size;
			room += file_bytes(g, k);
		}
		if (room < need)
			eng_finding(s, MF_REFUSE, "destination memory",
				    "region %s is on a file system that must hold %s of RAM, and "
				    "has %s; make it larger, or start the guest with its RAM "
				    "elsewhere",
				    d->name, base_format_size(need, want, sizeof(want)),
				    base_format_size(room, have, sizeof(have)));
	}
}

static void check_memory(struct mf_session *s)
{
	const struct mf_guest *g = &s->guest;
	uint64_t sizes[MF_REGIONS_MAX], need[MF_REGIONS_MAX];
	unsigned n = 0;
	for (uint32_t i = 0; i < g->n_regions; i++) {
		unsigned k = 0;
		while (k < n && sizes[k] != g->regions[i].page_size)
			k++;
		if (k == n) {
			sizes[n] = g->regions[i].page_size;
			need[n++] = 0;
		}
		need[k] += g->regions[i].size;
	}
	for (unsigned k = 0; k < n; k++) {
		char want[24], have[24];
		uint64_t there = free_memory(sizes[k]) + allocated_bytes(g, sizes[k]);
		/* Huge pages of a mapping are reserved, not free: QEMU would not have started without. */
		bool enough = there >= need[k] || sizes[k] > 4096;
		base_format_size(need[k], want, sizeof(want));
		base_format_size(there, have, sizeof(have));
		eng_finding(
			s, enough ? MF_OK : MF_REFUSE, "destination memory",
			enough ? "the guest may need %s, %s are available"
			       : "the guest may need %s, but only %s are available; free some, or "
				 "choose another host",
			want, have);
	}
}

static void check_kernel(struct mf_session *s)
{
	struct mf_error why = { 0 };
	struct utsname u;
	(void)uname(&u);
	if (s->params.side == MF_SOURCE) {
		bool needs_tracker =
			s->params.mode != MF_MODE_COLD && s->params.mode != MF_MODE_POSTCOPY;
		const struct trk_ops *t = eng_pick_tracker(s, &why);
		if (t)
			eng_finding(s, MF_OK, "write tracking", "%s (Linux %s)", t->name,
				    u.release);
		else
			eng_finding(s, needs_tracker ? MF_REFUSE : MF_WARN, "write tracking",
				    "%s%s", why.msg,
				    needs_tracker ? "; --mode postcopy or cold needs none" : "");
		if (needs_tracker && s->guest.flags & MF_GUEST_PINS_RAM && !eng_guest_can_hold(s))
			eng_finding(s, MF_REFUSE, "direct I/O",
				    "writes through pinned pages cannot be tracked; use --mode "
				    "postcopy "
				    "or cold");
		return;
	}
	for (uint32_t i = 0; i < s->guest.n_regions; i++) {
		const struct mf_region *d = &s->guest.regions[i];
		bool is_private = eng_region_is_private(d, NULL) > 0;
		if (pgr_probe(is_private ? PGR_ANON : PGR_SHARED, d->page_size, &why) < 0) {
			eng_finding(s, MF_REFUSE, "page faults", "%s", why.msg);
			return;
		}
	}
	eng_finding(s, MF_OK, "page faults", "userfaultfd (Linux %s)", u.release);
}

void eng_preflight_local(struct mf_session *s)
{
	char size[24];
	uint64_t bytes = 0;
	for (uint32_t i = 0; i < s->guest.n_regions; i++)
		bytes += s->guest.regions[i].size;
	eng_finding(s, MF_OK, s->params.side == MF_SOURCE ? "source guest" : "destination guest",
		    "%s, %s, %s in %u region%s", s->guest.name, s->guest.monitor,
		    base_format_size(bytes, size, sizeof(size)), s->guest.n_regions,
		    s->guest.n_regions == 1 ? "" : "s");
	for (uint32_t i = 0; i < s->guest.n_findings; i++) {
		const struct mf_finding *f = &s->guest.findings[i];
		eng_finding(s, f->verdict, f->subject, "%s", f->detail);
	}
	for (uint32_t i = 0; i < s->guest.n_regions; i++) {
		const struct mf_region *d = &s->guest.regions[i];
		struct mf_error why = { 0 };
		if (d->fd >= 0)
			continue;
		if (s->guest.pid != getpid())
			eng_finding(
				s, MF_REFUSE, "guest RAM",
				"region %s has no shared file behind it, so it cannot be reached",
				d->name);
		else if (eng_region_is_private(d, &why) < 0)
			eng_finding(s, MF_REFUSE, "guest RAM", "%s", why.msg);
	}
	if (!s->guest.n_regions)
		eng_finding(s, MF_REFUSE, "guest RAM", "the guest has no RAM that can be moved");
	check_kernel(s);
	if (s->params.side == MF_DESTINATION) {
		check_memory(s);
		check_file_systems(s);
	}
}

static void compare_text(struct mf_session *s, enum mf_verdict worst, const char *subject,
			 const char *theirs, const char *ours, const char *todo)
{
	if (!strcmp(theirs, ours))
		eng_finding(s, MF_OK, subject, "%s on both hosts", ours);
	else
		eng_finding(s, worst, subject, "%.60s at the source, %.60s here; %s", theirs, ours,
			    todo);
}

static void compare_region(struct mf_session *s, const Mf__Wire__Region *theirs,
			   const struct mf_region *ours)
{
	char a[24], b[24];
	base_format_size(theirs->size, a, sizeof(a));
	base_format_size(ours->size, b, sizeof(b));
	if (strcmp(theirs->name, ours->name))
		eng_finding(
			s, MF_REFUSE, "regions",
			"'%s' at the source stands where '%s' does here; start both with the same "
			"memory options",
			theirs->name, ours->name);
	else if (theirs->size != ours->size)
		eng_finding(s, MF_REFUSE, "regions",
			    "region %s has %s at the source and %s here; give both the same size",
			    ours->name, a, b);
	else if (theirs->page_size != ours->page_size)
		eng_finding(s, MF_REFUSE, "regions",
			    "region %s has pages of %" PRIu64 " bytes at the source and %" PRIu64
			    " here; back both by the same kind of memory",
			    ours->name, theirs->page_size, ours->page_size);
	else if (theirs->gpa != ours->gpa)
		eng_finding(s, MF_REFUSE, "regions",
			    "region %s is at guest address 0x%" PRIx64
			    " at the source and 0x%" PRIx64
			    " here; start both with the same machine options",
			    ours->name, theirs->gpa, ours->gpa);
}

/* NOLINTNEXTLINE(misc-redundant-expression): so it is to stay */
_Static_assert(MF_NEEDS_MAX <= WIRE_NEEDS_MAX, "what an adapter may say must fit");

static void check_needs(struct mf_session *s, const Mf__Wire__Guest *peer)
{
	struct mf_finding found[MF_FINDINGS_MAX];
	struct mf_error why = { 0 };
	int n = eng_guest_check_needs(s, peer->needs.data, peer->needs.len, found,
				      BASE_ARRAY_LEN(found), &why);
	if (n < 0)
		eng_finding(s, MF_REFUSE, "guest's needs", "%s",
			    why.code ? why.msg : base_strerror(n));
	for (int i = 0; i < n; i++)
		eng_finding(s, found[i].verdict, found[i].subject, "%s", found[i].detail);
	if (n == 0 && peer->needs.len)
		eng_finding(s, MF_OK, "guest's needs", "all are met here");
}

void eng_preflight_peer(struct mf_session *s, const Mf__Wire__Guest *peer)
{
	const struct mf_guest *g = &s->guest;
	if (strcmp(peer->kind, g->kind)) {
		eng_finding(s, MF_REFUSE, "kind of guest", "%.60s at the source, %s here",
			    peer->kind, g->kind);
		return;
	}
	compare_text(s, MF_WARN, "monitor", peer->monitor, g->monitor,
		     "works if their machine types are compatible");
	compare_text(s, MF_REFUSE, "machine type", peer->machine, g->machine,
		     "start the destination with the source's machine type");
	compare_text(s, MF_REFUSE, "CPU", peer->cpu, g->cpu,
		     "start the destination with the source's CPU model and count");
	check_needs(s, peer);
	if (peer->n_regions != g->n_regions) {
		eng_finding(s, MF_REFUSE, "regions",
			    "%zu regions of RAM at the source, %u here; start both with the same "
			    "memory "
			    "options",
			    peer->n_regions, g->n_regions);
		return;
	}
	uint32_t before = s->report.n_findings;
	for (uint32_t i = 0; i < g->n_regions; i++)
		compare_region(s, peer->regions[i], &g->regions[i]);
	if (s->report.n_findings == before)
		eng_finding(s, MF_OK, "regions", "the same %u on both hosts", g->n_regions);
}

int eng_try_transport(const struct tp_ops *tp, const char *local, struct mf_error *err)
{
	const struct tp_domain_params params = { .local = local, .depth = 1 };
	struct tp_domain *domain;

	int r = tp_domain_open(tp, &params, &domain, err);
	if (r == 0)
		tp_domain_close(domain);
	return r;
}

/* The number behind a key of /proc/self/status; 0 when there is none. */
static uint64_t own_status(const char *key, int base)
{
	char line[128];
	size_t len = strlen(key);
	base_cleanup(base_fclosep) FILE *f = fopen("/proc/self/status", "re");
	while (f && fgets(line, sizeof(line), f)) {
		if (!strncmp(line, key, len))
			return strtoull(line + len, NULL, base);
	}
	return 0;
}

/* As the kernel counts: all that the process has pinned, on all devices, against the limit, which capable ones do
 * not have (ib_umem_get()). */
int eng_check_memlock(uint64_t bytes, struct mf_error *err)
{
	char need[24], have[24];
	struct rlimit limit;
	uint64_t pinned = own_status("VmPin:", 10) * 1024;

	if (own_status("CapEff:", 16) >> CAP_IPC_LOCK & 1)
		return 0;
	if (getrlimit(RLIMIT_MEMLOCK, &limit) || limit.rlim_cur == RLIM_INFINITY ||
	    (pinned <= limit.rlim_cur && bytes <= limit.rlim_cur - pinned))
		return 0;
	return base_error(err, -ENOMEM, MF_SCOPE_HOST,
			  "locked memory: registering memory for RDMA needs %s, and the limit is "
			  "%s; raise it (ulimit -l, LimitMEMLOCK=)",
			  base_format_size(bytes, need, sizeof(need)),
			  base_format_size(limit.rlim_cur, have, sizeof(have)));
}
