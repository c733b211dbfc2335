/* SPDX-License-Identifier: BSD-2-Clause */
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"

extern const char guest_image[], guest_image_end[];

enum {
	ORDER_MS = 60000,
	TRIAL_MS = 20000,
	COMMAND_MS = 20, /* after which a vCPU that waits for an order comes out for air */
};

#define CPUID_ENTRIES 256

/* ---- memory ---- */

static char *map_file(int *ret_fd, uint64_t bytes)
{
	*ret_fd = memfd_create("guest", MFD_CLOEXEC);
	if (*ret_fd < 0 || ftruncate(*ret_fd, (off_t)bytes) < 0)
		return NULL;
	char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *ret_fd, 0);
	return at == MAP_FAILED ? NULL : at;
}

static bool set_slot(const struct machine *m, uint32_t slot, uint64_t gpa, uint64_t size, void *hva)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)hva,
	};
	return ioctl(m->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) == 0;
}

static const char *make_memory(struct machine *m)
{
	uint64_t bytes = m->params.n_pages * UINT64_C(4096);
	m->low = map_file(&m->low_fd, LOW_BYTES);
	m->pages = map_file(&m->pages_fd, bytes);
	m->desk_memory =
		mmap(NULL, DESK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!m->low || !m->pages || m->desk_memory == MAP_FAILED)
		return "no memory for a guest";
	m->box = (struct box *)(m->low + BOX_AT);
	m->desk = (struct desk *)m->desk_memory;
	uint64_t sizes[] = { (m->params.n_pages / 4 + 5) * UINT64_C(4096), 37 * UINT64_C(4096), 0 };
	sizes[2] = bytes - sizes[0] - sizes[1];
	m->slots[0] = (struct mf_kvm_slot){
		.slot = 0, .gpa = 0, .size = LOW_BYTES, .hva = (uintptr_t)m->low
	};
	for (uint64_t i = 0, at = 0; i < 3; at += sizes[i++])
		m->slots[1 + i] = (struct mf_kvm_slot){ .slot = (uint32_t)i + 1,
							.gpa = PAGES_AT + at,
							.size = sizes[i],
							.hva = (uintptr_t)m->pages + at };
	bool ok = set_slot(m, 9, DESK_AT, DESK_BYTES, m->desk_memory);
	for (uint32_t i = 0; i < MACHINE_SLOTS; i++) {
		const struct mf_kvm_slot *s = &m->slots[i];
		ok = ok && set_slot(m, s->slot, s->gpa, s->size, (void *)(uintptr_t)s->hva);
	}
	m->regions[0] = (struct mf_region){ .name = "low",
					    .size = LOW_BYTES,
					    .page_size = 4096,
					    .gpa = 0,
					    .hva = (uintptr_t)m->low,
					    .fd = m->low_fd };
	m->regions[1] = (struct mf_region){ .name = "pages",
					    .size = bytes,
					    .page_size = 4096,
					    .gpa = PAGES_AT,
					    .hva = (uintptr_t)m->pages,
					    .fd = m->pages_fd };
	return ok ? NULL : "KVM does not take the guest's memory";
}

/* 2 MiB pages for what layout.h names, all of it for ring 3. */
static void make_tables(struct machine *m)
{
	uint64_t *root = (uint64_t *)(m->low + TABLES_AT), *pointers = root + 512;
	root[0] = (TABLES_AT + 0x1000) | 7;
	const uint64_t gigabytes[] = { 0, 3, 4 };
	for (uint64_t i = 0; i < 3; i++) {
		uint64_t *directory = root + 1024 + i * 512, base = gigabytes[i] << 30;
		pointers[gigabytes[i]] = (TABLES_AT + 0x2000 + i * 0x1000) | 7;
		for (uint64_t k = 0; k < 512; k++)
			directory[k] = (base + (k << 21)) | 0x87;
	}
}

/* ---- processors ---- */

static const struct kvm_cpuid_entry2 *leaf(const struct kvm_cpuid2 *cpuid, uint32_t function)
{
	for (uint32_t i = 0; i < cpuid->nent; i++) {
		if (cpuid->entries[i].function == function)
			return &cpuid->entries[i];
	}
	return NULL;
}

static bool set_cpuid(const struct machine *m, uint32_t vcpu, struct kvm_cpuid2 *cpuid)
{
	cpuid->nent = CPUID_ENTRIES;
	if (ioctl(m->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
		return false;
	for (uint32_t i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
		if (e->function == 1)
			e->ebx = (e->ebx & 0xffffff) | vcpu << 24;
		if (e->function == 1 && m->params.few_features)
			e->ecx &= ~(3u << 19);
		if (e->function == 0xb)
			e->edx = vcpu;
	}
	return ioctl(m->vcpu_fds[vcpu], KVM_SET_CPUID2, cpuid) == 0;
}

static bool set_msr(const struct machine *m, uint32_t vcpu, uint32_t index, uint64_t value)
{
	union {
		struct kvm_msrs msrs;
		unsigned char room[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
	} one = { .room = { 0 } };
	one.msrs.nmsrs = 1;
	one.msrs.entries[0] = (struct kvm_msr_entry){ .index = index, .data = value };
	return ioctl(m->vcpu_fds[vcpu], KVM_SET_MSRS, &one) == 1;
}

/* Long mode, ring 0, at the image's entry; and something in every kind of register that the guest leaves alone. */
static bool set_registers(struct machine *m, uint32_t vcpu, bool has_avx)
{
	int fd = m->vcpu_fds[vcpu];
	struct kvm_sregs s;
	if (ioctl(fd, KVM_GET_SREGS, &s) < 0)
		return false;
	struct kvm_segment data = {
		.limit = ~0u, .selector = 0x18, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1
	};
	s.ds = s.es = s.ss = data;
	s.fs = s.gs = data;
	s.fs.base = 0x1234567000 + vcpu;
	s.gs.base = 0x7654321000 + vcpu;
	s.cs = data;
	s.cs.selector = 0x10;
	s.cs.type = 11;
	s.cs.db = 0;
	s.cs.l = 1;
	s.cr0 = 0x80000033;
	s.cr2 = 0xabcd000 + vcpu;
	s.cr3 = TABLES_AT;
	s.cr4 = 0x620 | (has_avx ? 1u << 18 : 0);
	s.efer = 0x500;
	struct kvm_regs r = { .rip = IMAGE_AT, .rflags = 2, .rdi = vcpu };
	struct kvm_debugregs debug = { .db = { 0x1000 + vcpu, 0x2000, 0x3000, 0x4000 },
				       .dr6 = 0xffff0ff0,
				       .dr7 = 0x400 };
	struct kvm_xcrs x = { .nr_xcrs = 1, .xcrs = { { .value = 7 } } };
	/* Only there to be carried over, where they are known. */
	(void)ioctl(fd, KVM_SET_DEBUGREGS, &debug);
	(void)set_msr(m, vcpu, 0xc0000102, 0x99990000 + vcpu); /* KERNEL_GS_BASE */
	(void)set_msr(m, vcpu, 0xc0000082, 0x88880000 + vcpu); /* LSTAR */
	return ioctl(fd, KVM_SET_SREGS, &s) == 0 && ioctl(fd, KVM_SET_REGS, &r) == 0 &&
	       (!has_avx || ioctl(fd, KVM_SET_XCRS, &x) == 0);
}

static const char *make_vcpus(struct machine *m)
{
	struct kvm_cpuid2 *cpuid =
		calloc(1, sizeof(*cpuid) + CPUID_ENTRIES * sizeof(cpuid->entries[0]));
	int bytes = ioctl(m->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	const char *why = cpuid && bytes > 0 ? NULL : "KVM has no vCPUs";
	m->run_bytes = (size_t)bytes;
	for (uint32_t i = 0; !why && i < m->n_vcpus; i++) {
		m->vcpu_fds[i] = ioctl(m->vm_fd, KVM_CREATE_VCPU, (unsigned long)i);
		void *run = m->vcpu_fds[i] < 0 ? MAP_FAILED
					       : mmap(NULL, m->run_bytes, PROT_READ | PROT_WRITE,
						      MAP_SHARED, m->vcpu_fds[i], 0);
		m->runs[i] = run == MAP_FAILED ? NULL : run;
		if (!m->runs[i] || !set_cpuid(m, i, cpuid)) {
			why = "a vCPU cannot be made";
			break;
		}
		if (m->params.is_destination)
			continue;
		const struct kvm_cpuid_entry2 *e = leaf(cpuid, 1);
		bool has_avx = e && (e->ecx & (1u << 28)) && (e->ecx & (1u << 26));
		struct kvm_mp_state runnable = { KVM_MP_STATE_RUNNABLE };
		m->box->has_avx = has_avx;
		if (!set_registers(m, i, has_avx) ||
		    ioctl(m->vcpu_fds[i], KVM_SET_MP_STATE, &runnable) < 0)
			why = "a vCPU's registers cannot be set";
	}
	free(cpuid);
	return why;
}

/* ---- the monitor's devices ---- */

/* The device stands when its lock was free. */
static int stop_devices(void *ctx, struct mf_error *err)
{
	struct machine *m = ctx;
	(void)err;
	atomic_store(&m->devices_stopped, true);
	pthread_mutex_lock(&m->dma_lock);
	pthread_mutex_unlock(&m->dma_lock);
	return 0;
}

static void start_devices(void *ctx)
{
	struct machine *m = ctx;
	atomic_store(&m->devices_stopped, false);
}

static int save_devices(void *ctx, mf_state_write_fn write, void *write_ctx, struct mf_error *err)
{
	struct machine *m = ctx;
	(void)err;
	int r = write(write_ctx, m->dma, sizeof(m->dma));
	for (uint32_t i = 0; i < m->n_vcpus && !r; i++)
		r = write(write_ctx, &m->devices[i], sizeof(m->devices[i]));
	return r;
}

static int load_devices(void *ctx, const void *bytes, size_t len, struct mf_error *err)
{
	struct machine *m = ctx;
	(void)err;
	if (len != sizeof(m->dma) + m->n_vcpus * sizeof(m->devices[0]))
		return -EBADMSG;
	memcpy(m->dma, bytes, sizeof(m->dma));
	memcpy(m->devices, (const char *)bytes + sizeof(m->dma), len - sizeof(m->dma));
	return 0;
}

static void finished(void *ctx)
{
	struct machine *m = ctx;
	atomic_store(&m->has_finished, true);
}

/* ---- making it ---- */

static const char *enable_smallest_ring(struct machine *m)
{
	for (uint32_t bytes = 4096; bytes <= 1u << 20; bytes *= 2) {
		struct kvm_enable_cap how = { .cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
					      .args = { bytes } };
		if (ioctl(m->vm_fd, KVM_ENABLE_CAP, &how) < 0)
			continue;
		m->tracking =
			(struct mf_kvm_tracking){ .way = MF_KVM_TRACK_RING, .ring_bytes = bytes };
		return NULL;
	}
	return "this KVM has no dirty rings";
}

static const char *enable_tracking(struct machine *m)
{
	struct mf_kvm_hints hints = { .ram_bytes = LOW_BYTES + m->params.n_pages * UINT64_C(4096),
				      .n_vcpus = m->n_vcpus,
				      .forced = m->params.way };
	struct mf_error err = { 0 };
	if (m->params.smallest_ring)
		return enable_smallest_ring(m);
	if (mf_kvm_choose_tracking(m->kvm_fd, m->vm_fd, &hints, &m->tracking, &err) < 0) {
		fprintf(stderr, "%s\n", err.msg);
		return "this KVM cannot track as it should";
	}
	return NULL;
}

static const char *make_chips(struct machine *m)
{
	struct kvm_pit_config pit = { 0 };
	(void)ioctl(m->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000ul);
	return ioctl(m->vm_fd, KVM_CREATE_IRQCHIP, 0) == 0 &&
			       ioctl(m->vm_fd, KVM_CREATE_PIT2, &pit) == 0
		       ? NULL
		       : "this KVM has no interrupt controllers";
}

static const char *take_into_care(struct machine *m)
{
	struct mf_error err = { 0 };
	const struct mf_kvm_params params = {
		.size = sizeof(params),
		.kvm_fd = m->kvm_fd,
		.vm_fd = m->vm_fd,
		.n_vcpus = m->n_vcpus,
		.vcpu_fds = m->vcpu_fds,
		.n_slots = MACHINE_SLOTS,
		.slots = m->slots,
		.n_regions = 2,
		.regions = m->regions,
		.name = "bare",
		.monitor = "memferry's test monitor",
		.machine = "bare-1",
		.cpu = "host",
		.irqchip = MF_KVM_IRQCHIP_FULL,
		.has_pit = true,
		.ring_bytes = m->tracking.ring_bytes,
		.manual_protect = m->tracking.manual_protect,
		.is_destination = m->params.is_destination,
		.pause_ms = m->params.pause_ms,
		.callbacks = { stop_devices, start_devices, save_devices, load_devices, finished },
		.ctx = m,
	};
	if (mf_kvm_open(&params, &m->kvm, &err) < 0) {
		fprintf(stderr, "%s\n", err.msg);
		return "the adapter does not take the machine";
	}
	return NULL;
}

static void load_guest(struct machine *m)
{
	memcpy(m->low + IMAGE_AT, guest_image, (size_t)(guest_image_end - guest_image));
	make_tables(m);
	*m->box = (struct box){ .mode = m->params.mode,
				.n_vcpus = m->n_vcpus,
				.n_pages = m->params.n_pages,
				.has_apic = m->params.mode == GUEST_CHECKS,
				.has_pit = m->params.mode == GUEST_CHECKS };
}

const char *machine_open(struct machine *m, const struct machine_params *params)
{
	*m = (struct machine){ .params = *params,
			       .kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC),
			       .vm_fd = -1,
			       .n_vcpus = params->one_vcpu ? 1 : GUEST_VCPUS,
			       .vcpu_fds = { -1, -1 },
			       .low_fd = -1,
			       .pages_fd = -1 };
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&m->lock, NULL);
	pthread_mutex_init(&m->dma_lock, NULL);
	atomic_store(&m->devices_stopped, params->is_destination);
	pthread_cond_init(&m->changed, &attr);
	pthread_condattr_destroy(&attr);
	m->vm_fd = m->kvm_fd < 0 ? -1 : ioctl(m->kvm_fd, KVM_CREATE_VM, 0);
	if (m->vm_fd < 0)
		return "no usable /dev/kvm";
	const char *why = enable_tracking(m);
	if (!why)
		why = make_chips(m);
	if (!why)
		why = make_memory(m);
	if (!why && !params->is_destination)
		load_guest(m);
	if (!why)
		why = make_vcpus(m);
	if (!why)
		why = take_into_care(m);
	return why;
}

void machine_close(struct machine *m)
{
	machine_stop(m);
	mf_kvm_close(m->kvm);
	for (uint32_t i = 0; i < GUEST_VCPUS; i++) {
		if (m->runs[i])
			munmap(m->runs[i], m->run_bytes);
		if (m->vcpu_fds[i] >= 0)
			close(m->vcpu_fds[i]);
	}
	if (m->vm_fd >= 0)
		close(m->vm_fd);
	if (m->kvm_fd >= 0)
		close(m->kvm_fd);
	if (m->low)
		munmap(m->low, LOW_BYTES);
	if (m->pages)
		munmap(m->pages, m->params.n_pages * UINT64_C(4096));
	if (m->desk_memory && m->desk_memory != MAP_FAILED)
		munmap(m->desk_memory, DESK_BYTES);
	if (m->low_fd >= 0)
		close(m->low_fd);
	if (m->pages_fd >= 0)
		close(m->pages_fd);
	pthread_cond_destroy(&m->changed);
	pthread_mutex_destroy(&m->dma_lock);
	pthread_mutex_destroy(&m->lock);
}

/* ---- running ---- */

static void wait_changed(struct machine *m, uint64_t deadline)
{
	struct timespec t = { .tv_sec = (time_t)(deadline / 1000000),
			      .tv_nsec = (long)(deadline % 1000000) * 1000 };
	(void)pthread_cond_timedwait(&m->changed, &m->lock, &t);
}

static uint32_t await_order(struct machine *m, uint32_t vcpu)
{
	uint64_t deadline = base_deadline_ms(COMMAND_MS);
	pthread_mutex_lock(&m->lock);
	while (!m->has_order[vcpu] && !m->quit && base_left_ms(deadline))
		wait_changed(m, deadline);
	bool has_order = m->has_order[vcpu];
	pthread_mutex_unlock(&m->lock);
	return has_order;
}

static void end_order(struct machine *m, uint32_t vcpu, uint32_t result)
{
	pthread_mutex_lock(&m->lock);
	m->has_order[vcpu] = false;
	m->result[vcpu] = result;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

static void write_port(struct machine *m, uint32_t vcpu, uint16_t port, const void *from,
		       uint32_t size)
{
	struct device *d = &m->devices[vcpu];
	uint32_t value = 0;
	memcpy(&value, from, size);
	if (port == PORT_SAY && m->params.loud)
		(void)putchar((int)value);
	else if (port == PORT_DONE)
		end_order(m, vcpu, value);
	else if (port == PORT_PANIC)
		atomic_store(&m->panic, (int)value + 1);
	else if (port == PORT_STRING)
		d->string[d->out_at++ % 16] = (uint8_t)value;
}

static uint32_t read_port(struct machine *m, uint32_t vcpu, uint16_t port)
{
	struct device *d = &m->devices[vcpu];
	switch (port) {
	case PORT_COMMAND:
		return await_order(m, vcpu);
	case PORT_COUNTER:
		return ++d->counter;
	case PORT_STRING:
		return (uint8_t)(d->string[d->in_at++ % 16] + 1);
	default:
		return ~0u;
	}
}

static void serve_port(struct machine *m, uint32_t vcpu)
{
	struct kvm_run *run = m->runs[vcpu];
	char *data = (char *)run + run->io.data_offset;
	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		if (run->io.direction == KVM_EXIT_IO_OUT) {
			write_port(m, vcpu, run->io.port, data, run->io.size);
		} else {
			uint32_t value = read_port(m, vcpu, run->io.port);
			memcpy(data, &value, run->io.size);
		}
	}
}

static void serve_memory(struct machine *m, uint32_t vcpu)
{
	struct kvm_run *run = m->runs[vcpu];
	struct device *d = &m->devices[vcpu];
	bool is_ours = run->mmio.phys_addr == DEVICE_AT + vcpu * 8 && run->mmio.len == 4;
	if (run->mmio.is_write && is_ours)
		memcpy(&d->reg, run->mmio.data, 4);
	else if (!run->mmio.is_write && is_ours)
		memcpy(run->mmio.data, &d->reg, 4);
}

static void serve(struct machine *m, uint32_t vcpu)
{
	while (atomic_load(&m->hold_exits)) {
		atomic_fetch_or(&m->n_held, 1u << vcpu);
		(void)usleep(1000);
	}
	switch (m->runs[vcpu]->exit_reason) {
	case KVM_EXIT_IO:
		serve_port(m, vcpu);
		break;
	case KVM_EXIT_MMIO:
		serve_memory(m, vcpu);
		break;
	default:
		atomic_store(&m->panic, 1000 + (int)m->runs[vcpu]->exit_reason);
		break;
	}
}

static bool is_over(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	bool quit = m->quit;
	pthread_mutex_unlock(&m->lock);
	return quit || atomic_load(&m->panic);
}

static void *run_vcpu(void *arg)
{
	struct machine *m = ((__typeof__(&((struct machine *)0)->args[0]))arg)->m;
	uint32_t vcpu = ((__typeof__(&((struct machine *)0)->args[0]))arg)->vcpu;
	while (!is_over(m)) {
		int r = mf_kvm_run(m->kvm, vcpu);
		if (r == 0) {
			serve(m, vcpu);
		} else if (r == -ECANCELED) {
			atomic_fetch_add(&m->n_ended, 1);
			break;
		} else if (r != -EINTR) {
			atomic_store(&m->panic, r);
		}
	}
	while (mf_kvm_leave(m->kvm, vcpu) == -EAGAIN)
		serve(m, vcpu);
	return NULL;
}

/* Write, then say so: the rule of mf_kvm_wrote(). */
static void write_by_device(struct machine *m, uint32_t n)
{
	uint32_t page = n * 7 % DMA_PAGES;
	uint64_t at = DMA_AT + page * 4096 + page * 8;
	uint32_t *to = (uint32_t *)(m->low + at);
	pthread_mutex_lock(&m->dma_lock);
	if (!atomic_load(&m->devices_stopped)) {
		if (__atomic_load_n(to, __ATOMIC_RELAXED) != m->dma[page])
			atomic_fetch_add(&m->dma_wrong, 1);
		__atomic_store_n(to, ++m->dma[page], __ATOMIC_RELAXED);
		mf_kvm_wrote(m->kvm, at, sizeof(*to));
	}
	pthread_mutex_unlock(&m->dma_lock);
}

static void *run_device(void *arg)
{
	struct machine *m = arg;
	for (uint32_t n = 0; !is_over(m); n++) {
		write_by_device(m, n);
		(void)usleep(300);
	}
	return NULL;
}

void machine_start(struct machine *m)
{
	if (m->params.mode == GUEST_CHECKS && pthread_create(&m->dma_thread, NULL, run_device, m))
		abort();
	for (uint32_t i = 0; i < m->n_vcpus; i++) {
		m->args[i].m = m;
		m->args[i].vcpu = i;
		if (pthread_create(&m->threads[i], NULL, run_vcpu, &m->args[i]))
			abort();
	}
	m->is_started = true;
}

void machine_stop(struct machine *m)
{
	if (!m->is_started)
		return;
	atomic_store(&m->hold_exits, false);
	if (m->desk)
		__atomic_store_n(&m->desk->stop, 1, __ATOMIC_RELEASE);
	pthread_mutex_lock(&m->lock);
	m->quit = true;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
	for (uint32_t i = 0; i < m->n_vcpus; i++)
		mf_kvm_kick(m->kvm, i);
	for (uint32_t i = 0; i < m->n_vcpus; i++)
		pthread_join(m->threads[i], NULL);
	if (m->params.mode == GUEST_CHECKS)
		pthread_join(m->dma_thread, NULL);
	m->is_started = false;
}

/* ---- what tests ask ---- */

void machine_order(struct machine *m, uint32_t vcpu, enum guest_order order, uint64_t a, uint64_t b,
		   uint64_t c)
{
	m->desk->order[vcpu].order = order;
	m->desk->order[vcpu].a = a;
	m->desk->order[vcpu].b = b;
	m->desk->order[vcpu].c = c;
	pthread_mutex_lock(&m->lock);
	m->has_order[vcpu] = true;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

bool machine_done(struct machine *m, uint32_t vcpu)
{
	uint64_t deadline = base_deadline_ms(ORDER_MS);
	pthread_mutex_lock(&m->lock);
	while (m->has_order[vcpu] && base_left_ms(deadline) && !atomic_load(&m->panic))
		wait_changed(m, base_deadline_ms(100));
	bool is_done = !m->has_order[vcpu];
	pthread_mutex_unlock(&m->lock);
	return is_done;
}

static uint64_t peek(const uint64_t *at)
{
	return __atomic_load_n(at, __ATOMIC_RELAXED);
}

uint64_t machine_life(const struct machine *m)
{
	uint64_t sum = 0;
	for (uint32_t i = 0; i < m->n_vcpus; i++)
		sum += peek(&m->box->vcpu[i].steps);
	return sum;
}

const char *machine_wrong(const struct machine *m, char *text, size_t cap)
{
	int panic = atomic_load(&m->panic);
	if (panic) {
		(void)snprintf(text, cap, "the guest cannot go on: %d", panic);
		return text;
	}
	if (atomic_load(&m->dma_wrong)) {
		(void)snprintf(text, cap, "%u pages that the device wrote were wrong",
			       atomic_load(&m->dma_wrong));
		return text;
	}
	for (uint32_t i = 0; i < m->n_vcpus; i++) {
		const struct box_vcpu *v = &m->box->vcpu[i];
		uint64_t pages = peek(&v->pages_wrong), registers = peek(&v->registers_wrong);
		uint64_t clocks = peek(&v->time_wrong), devices = peek(&v->device_wrong);
		if (!pages && !registers && !clocks && !devices)
			continue;
		(void)snprintf(text, cap,
			       "vCPU %" PRIu32 ": %" PRIu64 " pages, %" PRIu64 " registers, "
			       "%" PRIu64 " times and %" PRIu64
			       " answers were wrong, first 0x%" PRIx64,
			       i, pages, registers, clocks, devices, peek(&v->first_wrong));
		return text;
	}
	return NULL;
}

uint32_t machine_wrong_pages(const struct machine *m)
{
	const uint32_t *generations = (const uint32_t *)(m->low + GENERATION_AT);
	uint32_t n = 0;
	for (uint32_t page = 0; page < m->params.n_pages; page++) {
		const uint64_t *at = (const uint64_t *)(m->pages + page * UINT64_C(4096));
		uint32_t now = generations[page], same = 0, next = 0;
		for (uint32_t i = 0; i < 8; i++) {
			uint64_t have = at[stamp_place(page, i)];
			same += have == (now ? stamp_word(page, now, i) : 0);
			next += have == stamp_word(page, now + 1, i);
		}
		/* A vCPU may stand in the middle of one. */
		n += same + next != 8;
	}
	for (uint32_t page = 0; page < DMA_PAGES; page++)
		n += *(const uint32_t *)(m->low + DMA_AT + page * 4096 + page * 8) != m->dma[page];
	return n;
}

void machine_tell(const struct machine *m, const char *who)
{
	for (uint32_t i = 0; i < m->n_vcpus; i++) {
		const struct box_vcpu *v = &m->box->vcpu[i];
		printf("%s: vCPU %" PRIu32 ": %" PRIu64 " steps, %" PRIu64 " APIC ticks, %" PRIu64
		       " PIT ticks, tsc %" PRIu64 "\n",
		       who, i, peek(&v->steps), peek(&v->apic_ticks), peek(&m->box->pit_ticks),
		       peek(&v->tsc));
	}
	(void)fflush(stdout);
}

/* ---- whether there is any use in it ---- */

static bool is_well(const struct machine *m)
{
	for (uint32_t i = 0; i < m->n_vcpus; i++) {
		if (peek(&m->box->vcpu[i].steps) < 300 || peek(&m->box->vcpu[i].apic_ticks) < 2)
			return false;
	}
	return peek(&m->box->pit_ticks) >= 2;
}

/* It is asked to show that it can. */
static const char *try_guest(void)
{
	const struct machine_params params = { .mode = GUEST_CHECKS, .n_pages = 512 };
	static struct machine m;
	static char text[200], why[256];
	const char *lacks = machine_open(&m, &params);
	uint64_t deadline = base_deadline_ms(TRIAL_MS);
	if (lacks) {
		machine_close(&m);
		return lacks;
	}
	machine_start(&m);
	while (!is_well(&m) && !machine_wrong(&m, text, sizeof(text)) && base_left_ms(deadline))
		(void)usleep(1000);
	bool well = is_well(&m);
	const char *wrong = machine_wrong(&m, text, sizeof(text));
	machine_close(&m);
	if (well && !wrong)
		return NULL;
	(void)snprintf(why, sizeof(why), "this KVM does not run the bare guest: %s",
		       wrong ?: "it stands, or its timers do not tick");
	return why;
}

/* Another kind of /dev/kvm, which interprets what processors do elsewhere, answers differently here and there. */
static bool has_assistance(void)
{
	char line[8192];
	bool has = false;
	FILE *f = fopen("/proc/cpuinfo", "re");
	while (f && !has && fgets(line, sizeof(line), f))
		has = !strncmp(line, "flags", 5) && (strstr(line, " vmx") || strstr(line, " svm"));
	if (f)
		(void)fclose(f);
	return has;
}

const char *machine_lacks(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return "no usable /dev/kvm";
	close(fd);
	if (!has_assistance())
		return "this /dev/kvm works without hardware assistance (vmx, svm)";
	return try_guest();
}
