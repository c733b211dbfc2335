/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The adapter with real QEMUs and the bare guest.  The pages are moved by the test itself, file to file, while the
 * guest is stopped; what is tried here is finding the guest, stopping it, its state, and getting it back.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <cmocka.h>

#include <memferry/guests.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "qemu_vm.h"

static const char *kernel; /* the bare guest */
static int qemu_version;

#define RAM_MIB 48

/* ---- helpers ---- */

static void must(int r, const struct mf_error *err)
{
	if (r < 0)
		fail_msg("%s (%d)", err->msg, r);
}

static void start(struct vm *vm, const struct vm_params *p)
{
	const char *why = vm_start(vm, p);
	if (why)
		fail_msg("%s", why);
}

static const struct vm_params plain = { .n_ram = 1, .ram_mib = RAM_MIB };

static void start_source(struct vm *vm)
{
	struct vm_params p = plain;
	p.kernel = kernel;
	start(vm, &p);
	vm_expect_running(vm, 1);
}

static void start_destination(struct vm *vm)
{
	struct vm_params p = plain;
	p.kernel = kernel;
	p.is_incoming = true;
	start(vm, &p);
}

static struct mf_adapter open_guest(const struct vm *vm, enum mf_side side)
{
	char spec[80];
	struct mf_adapter a = { 0 };
	struct mf_error err = { 0 };
	(void)snprintf(spec, sizeof(spec), "qemu:%s", vm->qmp);
	must(mf_guest_open(spec, side, &a, &err), &err);
	return a;
}

static void describe(struct mf_adapter *a, struct mf_guest *g)
{
	struct mf_error err = { 0 };
	must(a->ops->describe(a->hv, g, &err), &err);
}

/* The detail of the first finding of that verdict about a subject that begins so; NULL: none. */
static const char *finding(const struct mf_guest *g, enum mf_verdict verdict, const char *subject)
{
	for (uint32_t i = 0; i < g->n_findings; i++) {
		if (g->findings[i].verdict == verdict &&
		    strncmp(g->findings[i].subject, subject, strlen(subject)) == 0)
			return g->findings[i].detail;
	}
	return NULL;
}

static void expect_no_refusal(const struct mf_guest *g)
{
	for (uint32_t i = 0; i < g->n_findings; i++) {
		if (g->findings[i].verdict == MF_REFUSE)
			fail_msg("refused: %s: %s", g->findings[i].subject, g->findings[i].detail);
	}
}

static void prepare(struct mf_adapter *a, enum mf_side side)
{
	struct mf_error err = { 0 };
	must(a->ops->prepare(a->hv, side, &err), &err);
}

static uint64_t pause_guest(struct mf_adapter *a)
{
	struct mf_error err = { 0 };
	uint64_t before = base_now_us(), stopped = 0;
	must(a->ops->pause(a->hv, &stopped, &err), &err);
	assert_true(stopped >= before && stopped <= base_now_us());
	return stopped;
}

static void abort_move(struct mf_adapter *a)
{
	struct mf_error err = { 0 };
	must(a->ops->abort(a->hv, &err), &err);
}

/* The device state between the two sides, and where to break it. */
struct pipe_state {
	uint8_t *bytes;
	size_t len, cap, at;
	size_t fail_at; /* 0: never */
	pid_t kill;     /* when it fails, end this process first */
};

static int keep(void *ctx, const void *bytes, size_t len)
{
	struct pipe_state *p = ctx;
	if (p->fail_at && p->len + len >= p->fail_at) {
		if (p->kill)
			(void)kill(p->kill, SIGKILL);
		else
			return -ECONNRESET;
	}
	if (p->len + len > p->cap) {
		p->cap = (p->len + len) * 2;
		p->bytes = realloc(p->bytes, p->cap);
		assert_non_null(p->bytes);
	}
	memcpy(p->bytes + p->len, bytes, len);
	p->len += len;
	return 0;
}

static ssize_t give(void *ctx, void *bytes, size_t cap)
{
	struct pipe_state *p = ctx;
	size_t n = p->len - p->at;
	n = n < cap ? n : cap;
	n = n < 7919 ? n : 7919; /* odd pieces */
	if (p->fail_at && p->at + n >= p->fail_at) {
		if (!p->kill)
			return -ECONNRESET;
		(void)kill(p->kill, SIGKILL);
	}
	memcpy(bytes, p->bytes + p->at, n);
	p->at += n;
	return (ssize_t)n;
}

static void save(struct mf_adapter *a, struct pipe_state *p)
{
	struct mf_error err = { 0 };
	must(a->ops->save_state(a->hv, keep, p, &err), &err);
}

static void load(struct mf_adapter *a, struct pipe_state *p)
{
	struct mf_error err = { 0 };
	must(a->ops->load_state(a->hv, give, p, &err), &err);
}

/* What the engine does by RDMA. */
static void copy_ram(const struct mf_guest *from, const struct mf_guest *to)
{
	assert_int_equal(from->n_regions, to->n_regions);
	for (uint32_t i = 0; i < from->n_regions; i++) {
		const struct mf_region *f = &from->regions[i], *t = &to->regions[i];
		assert_string_equal(f->name, t->name);
		assert_int_equal(f->size, t->size);
		assert_int_equal(f->gpa, t->gpa);
		void *src = mmap(NULL, f->size, PROT_READ, MAP_SHARED, f->fd, (off_t)f->offset);
		void *dst = mmap(NULL, t->size, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd,
				 (off_t)t->offset);
		assert_true(src != MAP_FAILED && dst != MAP_FAILED);
		memcpy(dst, src, f->size);
		(void)munmap(src, f->size);
		(void)munmap(dst, t->size);
	}
}

static double ms_since(uint64_t from_us)
{
	return (double)(base_now_us() - from_us) / 1000.0;
}

/* Everything from prepare() to finish(); the guest then runs in `to` alone, whole. */
static void move_whole(struct vm *from, struct mf_adapter *src, struct vm *to,
		       struct mf_adapter *dst)
{
	struct mf_guest *g = calloc(2, sizeof(*g));
	struct pipe_state pipe = { 0 };
	struct mf_error err = { 0 };
	describe(src, &g[0]);
	describe(dst, &g[1]);
	expect_no_refusal(&g[0]);
	expect_no_refusal(&g[1]);
	assert_string_equal(g[0].machine, g[1].machine);
	assert_string_equal(g[0].cpu, g[1].cpu);
	prepare(src, MF_SOURCE);
	prepare(dst, MF_DESTINATION);

	uint64_t t = base_now_us();
	uint64_t stopped = pause_guest(src);
	double request_ms = (double)(stopped - t) / 1000.0, pause_ms = ms_since(t);
	copy_ram(&g[0], &g[1]);
	must(dst->ops->forget_ram(dst->hv, &err), &err);
	t = base_now_us();
	save(src, &pipe);
	double save_ms = ms_since(t);
	t = base_now_us();
	load(dst, &pipe);
	double load_ms = ms_since(t);
	vm_expect_state(to, "paused", false);
	src->ops->commit(src->hv);
	t = base_now_us();
	must(dst->ops->resume(dst->hv, &err), &err);
	double resume_ms = ms_since(t);
	print_message(
		"pause: stopped after %.2f ms, returned after %.2f; state %zu bytes; save %.2f, "
		"load %.2f, resume %.2f ms\n",
		request_ms, pause_ms, pipe.len, save_ms, load_ms, resume_ms);
	vm_expect_state(to, "running", true);
	vm_expect_running(to, 2);
	vm_expect_whole(to);
	/* committed: it never runs again */
	assert_int_equal(src->ops->abort(src->hv, NULL), -EPERM);
	vm_expect_state(from, "postmigrate", false);
	src->ops->finish(src->hv);
	assert_true(vm_wait_gone(from));
	free(pipe.bytes);
	free(g);
}

/* ---- describe ---- */

static uint64_t inode_of(int fd)
{
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	return st.st_ino;
}

/* What QEMU has at hva is what the descriptor has at offset. */
static void expect_same_bytes(const struct mf_guest *g, const struct mf_region *r, uint64_t at)
{
	uint8_t theirs[4096], ours[4096];
	struct iovec l = { theirs, sizeof(theirs) };
	struct iovec f = { (void *)(uintptr_t)(r->hva + at), sizeof(theirs) };
	assert_int_equal(process_vm_readv(g->pid, &l, 1, &f, 1, 0), sizeof(theirs));
	void *map = mmap(NULL, sizeof(ours), PROT_READ, MAP_SHARED, r->fd, (off_t)(r->offset + at));
	assert_true(map != MAP_FAILED); /* read(2) does not work on hugetlbfs in every kernel */
	memcpy(ours, map, sizeof(ours));
	(void)munmap(map, sizeof(ours));
	assert_memory_equal(theirs, ours, sizeof(ours));
}

static void describes_one_region(void **state)
{
	(void)state;
	struct vm vm;
	struct vm_params p = plain;
	p.kernel = kernel;
	p.extra[0] = "-name";
	p.extra[1] = "subject";
	start(&vm, &p);
	struct mf_adapter a = open_guest(&vm, MF_SOURCE);
	struct mf_guest *g = calloc(2, sizeof(*g));
	describe(&a, &g[0]);
	expect_no_refusal(&g[0]);
	assert_string_equal(g->kind, "qemu");
	assert_string_equal(g->name, "subject");
	assert_int_equal(g->pid, vm.pid);
	assert_int_equal(strncmp(g->monitor, "QEMU ", 5), 0);
	assert_int_equal(strncmp(g->machine, "pc-i440fx-", 10), 0);
	assert_int_equal(strncmp(g->cpu, "qemu64 (features ", 17), 0);
	assert_non_null(strstr(g->cpu, " x1, tcg"));
	assert_int_equal(g->n_regions, 1);
	const struct mf_region *r = &g->regions[0];
	assert_string_equal(r->name, "m0");
	assert_int_equal(r->size, (uint64_t)RAM_MIB << 20);
	assert_int_equal(r->page_size, 4096);
	assert_int_equal(r->gpa, 0);
	assert_int_equal(r->offset, 0);
	assert_int_equal(inode_of(r->fd), vm.inode[0]);
	vm_expect_running(&vm, 1);
	vm_command(&vm, "stop", NULL, NULL);
	expect_same_bytes(g, r, 0);
	expect_same_bytes(g, r, 1 << 20);
	/* law A6 */
	describe(&a, &g[1]);
	assert_memory_equal(g[0].regions, g[1].regions, sizeof(g->regions));
	free(g);
	mf_guest_close(&a);
	vm_stop(&vm);
}

static void describes_two_regions(void **state)
{
	(void)state;
	struct vm vm;
	struct vm_params p = plain;
	p.n_ram = 2;
	/* without names in a file system, where that can be moved at all */
	p.ram[1] = qemu_version < 80100 ? VM_RAM_MEMFD : VM_RAM_TMPFS;
	p.kernel = kernel;
	start(&vm, &p);
	vm_expect_running(&vm, 1);
	struct mf_adapter a = open_guest(&vm, MF_SOURCE);
	struct mf_guest *g = calloc(1, sizeof(*g));
	describe(&a, g);
	expect_no_refusal(g);
	assert_int_equal(g->n_regions, 2);
	assert_string_equal(g->regions[0].name, "m0");
	assert_string_equal(g->regions[1].name, "m1");
	assert_int_equal(g->regions[0].gpa, 0);
	assert_int_equal(g->regions[1].gpa, (uint64_t)RAM_MIB << 20);
	assert_true(inode_of(g->regions[0].fd) != inode_of(g->regions[1].fd));
	vm_command(&vm, "stop", NULL, NULL);
	expect_same_bytes(g, &g->regions[1], 1 << 20);
	free(g);
	mf_guest_close(&a);
	vm_stop(&vm);
}

/* As in the conformance tests: a lock that all tests take, and the number put back. */
#define NR_HUGE "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

static long read_long(const char *path)
{
	long value = -1;
	base_cleanup(base_fclosep) FILE *f = fopen(path, "re");
	return f && fscanf(f, "%ld", &value) == 1 ? value : -1;
}

static bool write_long(const char *path, long value)
{
	base_cleanup(base_fclosep) FILE *f = fopen(path, "we");
	return f && fprintf(f, "%ld\n", value) > 0 && fflush(f) == 0;
}

static void moves_huge_pages(void **state)
{
	(void)state;
	base_autofd lock =
		open("/tmp/memferry-test-hugepages.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	assert_true(lock >= 0 && flock(lock, LOCK_EX) == 0);
	long had = read_long(NR_HUGE), want = had + 2 * RAM_MIB / 2;
	if (had < 0 || !write_long(NR_HUGE, want) || read_long(NR_HUGE) < want) {
		if (had >= 0)
			(void)write_long(NR_HUGE, had);
		print_message("SKIP: %d huge pages of 2 MiB cannot be reserved\n", RAM_MIB);
		skip();
	}
	struct vm from, to;
	struct vm_params p = plain;
	p.kernel = kernel;
	p.ram[0] = VM_RAM_HUGETLB;
	const char *why = vm_start(&from, &p);
	p.is_incoming = true;
	why = why ? why : vm_start(&to, &p);
	if (!why) {
		vm_expect_running(&from, 1);
		struct mf_adapter src = open_guest(&from, MF_SOURCE);
		struct mf_adapter dst = open_guest(&to, MF_DESTINATION);
		struct mf_guest *g = calloc(1, sizeof(*g));
		describe(&src, g);
		assert_int_equal(g->regions[0].page_size, 2 << 20);
		free(g);
		move_whole(&from, &src, &to, &dst);
		mf_guest_close(&src);
		mf_guest_close(&dst);
		vm_stop(&to);
	}
	vm_stop(&from);
	(void)write_long(NR_HUGE, had);
	if (why) {
		print_message("SKIP: %s\n", why);
		skip();
	}
}

static void refuses_what_cannot_move(void **state)
{
	(void)state;
	static const struct {
		struct vm_params params;
		enum mf_verdict verdict;
		const char *subject, *says;
	} cases[] = {
		{ { .ram_mib = RAM_MIB }, MF_REFUSE, "RAM", "memory-backend-file" },
		{ { .ram_mib = RAM_MIB, .n_ram = 1, .ram = { VM_RAM_PRIVATE } },
		  MF_REFUSE,
		  "RAM m0",
		  "share=on" },
		{ { .ram_mib = RAM_MIB, .n_ram = 2, .ram = { VM_RAM_TMPFS, VM_RAM_PRIVATE } },
		  MF_REFUSE,
		  "RAM m1",
		  "private" },
		{ { .ram_mib = RAM_MIB, .n_ram = 1, .ram = { VM_RAM_DISK } },
		  MF_REFUSE,
		  "RAM m0",
		  "/dev/shm" },
		{ { .ram_mib = RAM_MIB,
		    .n_ram = 1,
		    .extra = { "-device", "virtio-balloon,id=bal" } },
		  MF_REFUSE,
		  "device bal",
		  "virtio-balloon" },
		{ { .ram_mib = RAM_MIB,
		    .n_ram = 1,
		    .extra = { "-only-migratable", "-cpu", "max" } },
		  MF_WARN,
		  "cpu",
		  "max" },
	};
	struct mf_guest *g = calloc(1, sizeof(*g));
	for (size_t i = 0; i < BASE_ARRAY_LEN(cases); i++) {
		struct vm vm;
		start(&vm, &cases[i].params);
		struct mf_adapter a = open_guest(&vm, MF_SOURCE);
		describe(&a, g);
		const char *detail = finding(g, cases[i].verdict, cases[i].subject);
		if (!detail || !strstr(detail, cases[i].says))
			fail_msg("case %zu: %s", i, detail ? detail : "nothing was found");
		mf_guest_close(&a);
		vm_stop(&vm);
	}
	free(g);
}

static void refuses_wrong_states(void **state)
{
	(void)state;
	struct vm vm;
	struct vm_params p = plain;
	struct mf_guest *g = calloc(1, sizeof(*g));
	struct mf_error err = { 0 };
	/* a destination that runs */
	start(&vm, &p);
	struct mf_adapter a = open_guest(&vm, MF_DESTINATION);
	describe(&a, g);
	assert_non_null(strstr(finding(g, MF_REFUSE, "state"), "-incoming defer"));
	assert_int_equal(a.ops->prepare(a.hv, MF_DESTINATION, &err), -MF_EREFUSED);
	assert_non_null(strstr(err.msg, "-incoming defer"));
	mf_guest_close(&a);
	vm_expect_state(&vm, "running", true);
	vm_stop(&vm);
	/* one that already listens by itself */
	p.extra[0] = "-incoming";
	p.extra[1] = "tcp:127.0.0.1:0";
	start(&vm, &p);
	a = open_guest(&vm, MF_DESTINATION);
	describe(&a, g);
	assert_non_null(strstr(finding(g, MF_REFUSE, "state"), "-incoming defer"));
	mf_guest_close(&a);
	/* a source that waits for a guest */
	a = open_guest(&vm, MF_SOURCE);
	describe(&a, g);
	assert_non_null(finding(g, MF_REFUSE, "state"));
	mf_guest_close(&a);
	vm_stop(&vm);
	free(g);
}

static void says_when_the_monitor_is_taken(void **state)
{
	(void)state;
	struct vm vm;
	start(&vm, &plain);
	struct mf_adapter a = open_guest(&vm, MF_SOURCE), b = { 0 };
	char spec[80];
	(void)snprintf(spec, sizeof(spec), "qemu:%s", vm.qmp);
	struct mf_error err = { 0 };
	assert_int_equal(mf_guest_open(spec, MF_SOURCE, &b, &err), -EBUSY);
	assert_non_null(strstr(err.msg, "another client"));
	mf_guest_close(&a);
	vm_stop(&vm);
	err = (struct mf_error){ 0 };
	assert_int_equal(mf_guest_open("qemu:", MF_SOURCE, &b, &err), -MF_EUSAGE);
	err = (struct mf_error){ 0 };
	assert_int_equal(mf_guest_open("xen:1", MF_SOURCE, &b, &err), -MF_EUSAGE);
	mf_guest_close(&b);
}

/* ---- moving ---- */

static void moves_a_guest(void **state)
{
	(void)state;
	struct vm from, to;
	start_source(&from);
	start_destination(&to);
	struct mf_adapter src = open_guest(&from, MF_SOURCE);
	struct mf_adapter dst = open_guest(&to, MF_DESTINATION);
	move_whole(&from, &src, &to, &dst);
	mf_guest_close(&src);
	mf_guest_close(&dst);
	vm_expect_running(&to, 1);
	/* and on from there, once its monitor is free again */
	struct vm third;
	start_destination(&third);
	src = open_guest(&to, MF_SOURCE);
	dst = open_guest(&third, MF_DESTINATION);
	move_whole(&to, &src, &third, &dst);
	mf_guest_close(&src);
	mf_guest_close(&dst);
	vm_stop(&from);
	vm_stop(&to);
	vm_stop(&third);
}

static void moves_a_guest_under_kvm(void **state)
{
	(void)state;
	struct vm from, to;
	struct vm_params p = plain;
	p.kernel = kernel;
	p.is_kvm = true;
	p.guest_params = "hot=2M rate=8M check=16M hb=50 nap=0";
	base_autofd kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) {
		print_message("SKIP: no usable /dev/kvm\n");
		skip();
	}
	start(&from, &p);
	vm_expect_running(&from, 1);
	p.is_incoming = true;
	start(&to, &p);
	struct mf_adapter src = open_guest(&from, MF_SOURCE);
	struct mf_adapter dst = open_guest(&to, MF_DESTINATION);
	move_whole(&from, &src, &to, &dst);
	mf_guest_close(&src);
	mf_guest_close(&dst);
	vm_stop(&from);
	vm_stop(&to);
}

/* With video memory, which is private and travels in QEMU's stream: more than any socket holds. */
static void moves_private_ram_in_the_stream(void **state)
{
	(void)state;
	struct vm from, to;
	struct vm_params p = plain;
	p.kernel = kernel;
	p.extra[0] = "-device";
	p.extra[1] = "VGA,vgamem_mb=64";
	start(&from, &p);
	vm_expect_running(&from, 1);
	p.is_incoming = true;
	start(&to, &p);
	struct mf_adapter src = open_guest(&from, MF_SOURCE);
	struct mf_adapter dst = open_guest(&to, MF_DESTINATION);
	move_whole(&from, &src, &to, &dst);
	mf_guest_close(&src);
	mf_guest_close(&dst);
	vm_stop(&from);
	vm_stop(&to);
}

static bool is_postmigrate(struct vm *vm)
{
	qmp_autojson status = NULL;
	vm_command(vm, "query-status", NULL, &status);
	return strcmp(json_string_value(json_object_get(status, "status")), "postmigrate") == 0;
}

static void expect_paused(struct vm *vm)
{
	vm_expect_state(vm, is_postmigrate(vm) ? "postmigrate" : "paused", false);
}

static void keeps_a_paused_guest_paused(void **state)
{
	(void)state;
	struct vm from, to;
	start_source(&from);
	start_destination(&to);
	vm_command(&from, "stop", NULL, NULL);
	struct mf_adapter src = open_guest(&from, MF_SOURCE);
	struct mf_adapter dst = open_guest(&to, MF_DESTINATION);
	struct mf_guest *g = calloc(2, sizeof(*g));
	struct pipe_state pipe = { 0 };
	struct mf_error err = { 0 };
	describe(&src, &g[0]);
	describe(&dst, &g[1]);
	assert_non_null(strstr(finding(&g[0], MF_WARN, "state"), "paused"));
	/* back, and over */
	prepare(&src, MF_SOURCE);
	(void)pause_guest(&src);
	abort_move(&src);
	expect_paused(&from);
	/* older QEMUs do not migrate it again like this; told before it would bite */
	if (is_postmigrate(&from)) {
		assert_int_equal(src.ops->prepare(src.hv, MF_SOURCE, &err), -MF_EREFUSED);
		err = (struct mf_error){ 0 };
		vm_command(&from, "cont", NULL, NULL);
		vm_expect_running(&from, 1);
		vm_command(&from, "stop", NULL, NULL);
	}
	prepare(&src, MF_SOURCE);
	prepare(&dst, MF_DESTINATION);
	(void)pause_guest(&src);
	copy_ram(&g[0], &g[1]);
	save(&src, &pipe);
	load(&dst, &pipe);
	src.ops->commit(src.hv);
	must(dst.ops->resume(dst.hv, &err), &err);
	vm_expect_state(&to, "paused", false);
	mf_guest_close(&src);
	mf_guest_close(&dst);
	/* back from where all was saved: it looks moved away, and is not moved again until its user says so */
	pipe.len = 0;
	src = open_guest(&to, MF_SOURCE);
	prepare(&src, MF_SOURCE);
	(void)pause_guest(&src);
	save(&src, &pipe);
	abort_move(&src);
	expect_paused(&to);
	assert_int_equal(src.ops->prepare(src.hv, MF_SOURCE, &err), -MF_EREFUSED);
	mf_guest_close(&src);
	vm_command(&to, "cont", NULL, NULL);
	vm_expect_running(&to, 1);
	vm_expect_whole(&to);
	free(pipe.bytes);
	free(g);
	vm_stop(&from);
	vm_stop(&to);
}

/* ---- back to running, law A1 ---- */

static void comes_back_twenty_times(void **state)
{
	(void)state;
	struct vm vm;
	start_source(&vm);
	struct mf_adapter a = open_guest(&vm, MF_SOURCE);
	double worst = 0, sum = 0;
	for (int i = 0; i < 20; i++) {
		prepare(&a, MF_SOURCE);
		(void)pause_guest(&a);
		vm_expect_state(&vm, "finish-migrate", false);
		uint64_t t = base_now_us();
		abort_move(&a);
		double ms = ms_since(t);
		sum += ms;
		worst = ms > worst ? ms : worst;
		abort_move(&a); /* law A8 */
		vm_expect_state(&vm, "running", true);
		vm_expect_running(&vm, 1);
	}
	print_message("abort: %.2f ms on average, %.2f at most\n", sum / 20, worst);
	mf_guest_close(&a);
	vm_expect_whole(&vm);
	vm_stop(&vm);
}

static bool memory_is_short;

void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size)
{
	return memory_is_short ? NULL : __real_realloc(old, size);
}

/* The cancel comes when QEMU is about to stop the guest: some of these, each time, at the moment that QEMU 7.2 is not
 * prepared for. */
static void comes_back_while_it_is_stopped(void **state)
{
	(void)state;
	struct vm vm;
	start_source(&vm);
	struct mf_adapter a = open_guest(&vm, MF_SOURCE);
	for (int i = 0; i < 100; i++) {
		struct mf_error err = { 0 };
		uint64_t stopped;
		prepare(&a, MF_SOURCE);
		memory_is_short = true;
		int r = a.ops->pause(a.hv, &stopped, &err);
		memory_is_short = false;
		assert_true(r == -ENOMEM || r == 0); /* it was faster than its stream */
		abort_move(&a);
		vm_expect_state(&vm, "running", true);
	}
	mf_guest_close(&a);
	vm_stop(&vm);
}

static json_t *settings_of(struct vm *vm)
{
	json_t *caps = NULL, *params = NULL;
	vm_command(vm, "query-migrate-capabilities", NULL, &caps);
	vm_command(vm, "query-migrate-parameters", NULL, &params);
	return json_pack("{s:o, s:o}", "caps", caps, "params", params);
}

static void comes_back_from_every_point(void **state)
{
	(void)state;
	enum point { PREPARED, PAUSED, SAVE_FIRST, SAVE_MIDDLE, SAVED, CLOSED, COUNT };
	struct vm vm;
	start_source(&vm);
	vm_command(&vm, "migrate-set-parameters", json_pack("{s:i}", "max-bandwidth", 12345678),
		   NULL);
	qmp_autojson before = settings_of(&vm);
	for (int point = PREPARED; point < COUNT; point++) {
		struct mf_adapter a = open_guest(&vm, MF_SOURCE);
		struct pipe_state pipe = { 0 };
		struct mf_error err = { 0 };
		prepare(&a, MF_SOURCE);
		if (point >= PAUSED)
			(void)pause_guest(&a);
		if (point == SAVE_FIRST || point == SAVE_MIDDLE) {
			pipe.fail_at = point == SAVE_FIRST ? 1 : 30000;
			assert_int_equal(a.ops->save_state(a.hv, keep, &pipe, &err), -ECONNRESET);
			assert_true(err.msg[0]);
		}
		if (point == SAVED)
			save(&a, &pipe);
		if (point != CLOSED)
			abort_move(&a);
		mf_guest_close(&a); /* law A7: gives up by itself */
		free(pipe.bytes);
		vm_expect_state(&vm, "running", true);
		vm_expect_running(&vm, 1);
		qmp_autojson after = settings_of(&vm);
		if (!json_equal(before, after))
			fail_msg("point %d: settings were not put back", point);
	}
	vm_expect_whole(&vm);
	/* none of that spoiled it for a move that succeeds */
	struct vm to;
	start_destination(&to);
	struct mf_adapter src = open_guest(&vm, MF_SOURCE);
	struct mf_adapter dst = open_guest(&to, MF_DESTINATION);
	move_whole(&vm, &src, &to, &dst);
	mf_guest_close(&src);
	mf_guest_close(&dst);
	vm_stop(&vm);
	vm_stop(&to);
}

static void destination_never_runs_after_abort(void **state)
{
	(void)state;
	struct vm from, to;
	start_source(&from);
	struct mf_adapter src = open_guest(&from, MF_SOURCE);
	struct mf_guest *g = calloc(2, sizeof(*g));
	struct pipe_state pipe = { 0 };
	struct mf_error err = { 0 };
	describe(&src, &g[0]);
	prepare(&src, MF_SOURCE);
	(void)pause_guest(&src);
	save(&src, &pipe);

	/* before anything was loaded it is as it was, and can be used later */
	start_destination(&to);
	struct mf_adapter dst = open_guest(&to, MF_DESTINATION);
	qmp_autojson before = settings_of(&to);
	prepare(&dst, MF_DESTINATION);
	abort_move(&dst);
	abort_move(&dst);
	vm_expect_state(&to, "inmigrate", false);
	qmp_autojson after = settings_of(&to);
	assert_true(json_equal(before, after));

	/* whole: gone */
	describe(&dst, &g[1]);
	prepare(&dst, MF_DESTINATION);
	copy_ram(&g[0], &g[1]);
	load(&dst, &pipe);
	vm_expect_state(&to, "paused", false);
	abort_move(&dst);
	assert_true(vm_wait_gone(&to));
	mf_guest_close(&dst);
	vm_stop(&to);

	/* halves of it: refused, then gone */
	for (size_t cut = 1; cut < pipe.len; cut += pipe.len / 3) {
		start_destination(&to);
		dst = open_guest(&to, MF_DESTINATION);
		prepare(&dst, MF_DESTINATION);
		struct pipe_state half = { .bytes = pipe.bytes, .len = pipe.len, .fail_at = cut };
		err = (struct mf_error){ 0 };
		assert_int_equal(dst.ops->load_state(dst.hv, give, &half, &err), -ECONNRESET);
		abort_move(&dst);
		if (cut > 16)
			assert_true(vm_wait_gone(&to));
		else
			vm_expect_state(&to, "inmigrate", false);
		mf_guest_close(&dst);
		vm_stop(&to);
	}

	/* wrong: an error that says so, never a guest */
	start_destination(&to);
	dst = open_guest(&to, MF_DESTINATION);
	prepare(&dst, MF_DESTINATION);
	struct pipe_state bad = { .bytes = malloc(pipe.len), .len = pipe.len };
	memcpy(bad.bytes, pipe.bytes, pipe.len);
	memset(bad.bytes + 200, 0x5a, 64);
	err = (struct mf_error){ 0 };
	assert_true(dst.ops->load_state(dst.hv, give, &bad, &err) < 0);
	print_message("a spoiled stream: %s\n", err.msg);
	assert_true(err.msg[0]);
	abort_move(&dst);
	assert_true(vm_wait_gone(&to));
	mf_guest_close(&dst);
	vm_stop(&to);
	free(bad.bytes);

	abort_move(&src);
	vm_expect_running(&from, 1);
	vm_expect_whole(&from);
	mf_guest_close(&src);
	vm_stop(&from);
	free(pipe.bytes);
	free(g);
}

static void survives_the_death_of_either_side(void **state)
{
	(void)state;
	struct vm from, to;
	struct mf_error err = { 0 };
	/* the destination's QEMU while it loads */
	start_source(&from);
	start_destination(&to);
	struct mf_adapter src = open_guest(&from, MF_SOURCE);
	struct mf_adapter dst = open_guest(&to, MF_DESTINATION);
	struct pipe_state pipe = { 0 };
	prepare(&src, MF_SOURCE);
	prepare(&dst, MF_DESTINATION);
	(void)pause_guest(&src);
	save(&src, &pipe);
	pipe.fail_at = pipe.len / 2;
	pipe.kill = to.pid;
	assert_int_equal(dst.ops->load_state(dst.hv, give, &pipe, &err), -ESRCH);
	print_message("%s\n", err.msg);
	abort_move(&dst);
	abort_move(&src);
	vm_expect_running(&from, 1);
	mf_guest_close(&dst);
	vm_stop(&to);

	/* the source's, while it saves */
	prepare(&src, MF_SOURCE);
	(void)pause_guest(&src);
	pipe.len = 0;
	pipe.fail_at = 1;
	pipe.kill = from.pid;
	err = (struct mf_error){ 0 };
	assert_int_equal(src.ops->save_state(src.hv, keep, &pipe, &err), -ESRCH);
	err = (struct mf_error){ 0 };
	assert_int_equal(src.ops->abort(src.hv, &err), -ESRCH);
	mf_guest_close(&src);
	vm_stop(&from);

	/* and before anything */
	start_source(&from);
	src = open_guest(&from, MF_SOURCE);
	prepare(&src, MF_SOURCE);
	(void)kill(from.pid, SIGKILL);
	uint64_t stopped;
	err = (struct mf_error){ 0 };
	assert_int_equal(src.ops->pause(src.hv, &stopped, &err), -ESRCH);
	assert_true(err.msg[0]);
	mf_guest_close(&src);
	vm_stop(&from);
	free(pipe.bytes);
}

/* ---- userfaultfds ---- */

static unsigned userfaultfds_in(pid_t pid)
{
	unsigned n = 0;
	for (int fd = 0; fd < 256; fd++) {
		char path[64], target[64] = "";
		(void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
		if (readlink(path, target, sizeof(target) - 1) > 0)
			n += strcmp(target, "anon_inode:[userfaultfd]") == 0;
	}
	return n;
}

static void opens_and_closes_userfaultfds(void **state)
{
	(void)state;
	static const uid_t users[] = { 0, 65534 };
	for (size_t i = 0; i < BASE_ARRAY_LEN(users); i++) {
		struct vm vm;
		struct vm_params p = plain;
		p.kernel = kernel;
		p.uid = users[i];
		start(&vm, &p);
		vm_expect_running(&vm, 1);
		struct mf_adapter a = open_guest(&vm, MF_SOURCE);
		struct mf_error err = { 0 };
		int fds[3];
		for (int k = 0; k < 3; k++) {
			must(a.ops->open_userfaultfd(a.hv, &fds[k], &err), &err);
			assert_int_equal(fcntl(fds[k], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
			assert_int_equal(fcntl(fds[k], F_GETFD), FD_CLOEXEC);
		}
		assert_int_equal(userfaultfds_in(vm.pid), 3);
		assert_int_equal(userfaultfds_in(getpid()), 3);
		/* ours go, the originals stay */
		for (int k = 0; k < 3; k++)
			(void)close(fds[k]);
		assert_int_equal(userfaultfds_in(vm.pid), 3);
		a.ops->close_userfaultfds(a.hv);
		assert_int_equal(userfaultfds_in(vm.pid), 0);
		/* close() releases them too */
		must(a.ops->open_userfaultfd(a.hv, &fds[0], &err), &err);
		(void)close(fds[0]);
		mf_guest_close(&a);
		assert_int_equal(userfaultfds_in(vm.pid), 0);
		vm_expect_running(&vm, 1);
		vm_stop(&vm);
	}
}

/* A memferry that was killed leaves its userfaultfd; the next move removes it. */
static void closes_what_an_earlier_one_left(void **state)
{
	(void)state;
	struct vm vm;
	start_source(&vm);
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		struct mf_adapter a = open_guest(&vm, MF_SOURCE);
		int fd;
		_exit(a.ops->open_userfaultfd(a.hv, &fd, NULL) < 0);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(userfaultfds_in(vm.pid), 1);
	struct mf_adapter a = open_guest(&vm, MF_SOURCE);
	prepare(&a, MF_SOURCE);
	assert_int_equal(userfaultfds_in(vm.pid), 0);
	mf_guest_close(&a);
	vm_expect_running(&vm, 1);
	vm_stop(&vm);
}

/* Exit status of a program that did not come to its killing. */
enum { NOT_KILLED = 1 };

static void hold_and_die(const struct vm *vm)
{
	char spec[80];
	struct mf_adapter a = { 0 };
	struct mf_guest described;
	struct mf_guard *guard = NULL;
	struct mf_guard_params p = {
		.size = sizeof(p),
		.run_dir = vm->dir,
		.session = "held",
	};
	(void)snprintf(spec, sizeof(spec), "qemu:%s", vm->qmp);
	if (mf_guest_open(spec, MF_SOURCE, &a, NULL) == 0 &&
	    mf_guard_start(&a, &p, &guard, NULL) == 0 && guard &&
	    a.ops->describe(a.hv, &described, NULL) == 0 &&
	    a.ops->prepare(a.hv, MF_SOURCE, NULL) == 0 && a.ops->hold(a.hv, NULL) == 0)
		(void)raise(SIGKILL);
	_exit(NOT_KILLED);
}

/* Stopped by a program that is killed before it lets go. */
static void a_guardian_lets_go(void **state)
{
	(void)state;
	struct vm vm;
	start_source(&vm);
	pid_t pid = fork();
	if (pid == 0)
		hold_and_die(&vm);
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	vm_expect_running(&vm, 1);
	vm_expect_state(&vm, "running", true);
	vm_stop(&vm);
}

int main(int argc, char **argv)
{
	kernel = argc > 1 ? argv[1] : NULL;
	if (!kernel || access(kernel, R_OK) < 0) {
		(void)printf("SKIP: the test guest is not built here\n");
		return 77;
	}
	if (geteuid() != 0) {
		(void)printf("SKIP: reaching into QEMU needs root\n");
		return 77;
	}
	struct vm vm;
	const char *why = vm_start(&vm, &plain);
	if (why) {
		(void)printf("SKIP: %s\n", why);
		return 77;
	}
	json_t *version = NULL;
	vm_command(&vm, "query-version", NULL, &version);
	const json_t *q = json_object_get(version, "qemu");
	qemu_version = (int)(json_integer_value(json_object_get(q, "major")) * 10000 +
			     json_integer_value(json_object_get(q, "minor")) * 100);
	json_decref(version);
	vm_stop(&vm);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(describes_one_region),
		cmocka_unit_test(describes_two_regions),
		cmocka_unit_test(refuses_what_cannot_move),
		cmocka_unit_test(refuses_wrong_states),
		cmocka_unit_test(says_when_the_monitor_is_taken),
		cmocka_unit_test(moves_a_guest),
		cmocka_unit_test(moves_a_guest_under_kvm),
		cmocka_unit_test(moves_huge_pages),
		cmocka_unit_test(moves_private_ram_in_the_stream),
		cmocka_unit_test(keeps_a_paused_guest_paused),
		cmocka_unit_test(comes_back_twenty_times),
		cmocka_unit_test(comes_back_while_it_is_stopped),
		cmocka_unit_test(comes_back_from_every_point),
		cmocka_unit_test(destination_never_runs_after_abort),
		cmocka_unit_test(survives_the_death_of_either_side),
		cmocka_unit_test(opens_and_closes_userfaultfds),
		cmocka_unit_test(closes_what_an_earlier_one_left),
		cmocka_unit_test(a_guardian_lets_go),
	};
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
