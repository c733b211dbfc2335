/* SPDX-License-Identifier: BSD-2-Clause */
/* Opening a virtual machine, and the adapter's table over it. */
#include "hv-adapters/kvm/kvm.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"

#define DEVICES_MAX (32u << 20)

int kvm_cap(const struct mf_kvm *kvm, long cap)
{
	int r = ioctl(kvm->params.vm_fd, KVM_CHECK_EXTENSION, cap);
	return r > 0 ? r : 0;
}

/* ---- opening ---- */

static int bad(struct mf_error *err, const char *why, uint32_t i)
{
	return base_error(err, -EINVAL, MF_SCOPE_SESSION, "the virtual machine: %s (number %u)",
			  why, i);
}

static int check_params(const struct mf_kvm_params *p, struct mf_error *err)
{
	if (p->size != sizeof(*p))
		return base_error(err, -EINVAL, MF_SCOPE_SESSION,
				  "the virtual machine's parameters are %zu bytes, not %zu: the "
				  "program was built with another memferry/kvm.h",
				  p->size, sizeof(*p));
	if (!p->n_vcpus || !p->vcpu_fds || !p->n_slots || !p->slots || !p->n_regions ||
	    p->n_regions > MF_REGIONS_MAX || !p->regions || !p->machine || !p->monitor)
		return bad(err, "vCPUs, slots, regions, machine and monitor must be named", 0);
	if (p->ring_bytes && p->manual_protect)
		return bad(err, "dirty rings and a log protected by hand lose writes together", 0);
	if (ioctl(p->kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return bad(err, "kvm_fd is not /dev/kvm", 0);
	for (uint32_t i = 0; i < p->n_regions; i++) {
		const struct mf_region *r = &p->regions[i];
		if (r->page_size < 4096 || r->page_size & (r->page_size - 1) || !r->size ||
		    r->size % r->page_size || r->hva % 4096 || !r->hva || !r->name[0])
			return bad(err, "a region has no name, or sizes that do not fit", i);
	}
	return 0;
}

static void *copy_of(const void *from, size_t n, size_t each)
{
	void *to = calloc(n, each);
	if (to)
		memcpy(to, from, n * each);
	return to;
}

static void copy_text(char *to, size_t cap, const char *from)
{
	(void)snprintf(to, cap, "%s", from ? from : "");
}

static int copy_params(struct mf_kvm *kvm, const struct mf_kvm_params *p)
{
	kvm->params = *p;
	copy_text(kvm->name, sizeof(kvm->name), p->name);
	copy_text(kvm->monitor, sizeof(kvm->monitor), p->monitor);
	copy_text(kvm->machine, sizeof(kvm->machine), p->machine);
	if (p->cpu)
		(void)snprintf(kvm->cpu, sizeof(kvm->cpu), "%s, %" PRIu32 " vCPUs", p->cpu,
			       p->n_vcpus);
	else
		(void)snprintf(kvm->cpu, sizeof(kvm->cpu), "%" PRIu32 " vCPUs", p->n_vcpus);
	kvm->n_vcpus = p->n_vcpus;
	kvm->vcpus = calloc(p->n_vcpus, sizeof(*kvm->vcpus));
	kvm->vcpu_fds = copy_of(p->vcpu_fds, p->n_vcpus, sizeof(*kvm->vcpu_fds));
	kvm->slots = copy_of(p->slots, p->n_slots, sizeof(*kvm->slots));
	kvm->regions = copy_of(p->regions, p->n_regions, sizeof(*kvm->regions));
	kvm->written = calloc(p->n_regions, sizeof(*kvm->written));
	kvm->region_fds = calloc(p->n_regions, sizeof(*kvm->region_fds));
	if (!kvm->vcpus || !kvm->vcpu_fds || !kvm->slots || !kvm->regions || !kvm->written ||
	    !kvm->region_fds)
		return -ENOMEM;
	for (uint32_t i = 0; i < p->n_regions; i++) {
		const struct mf_region *r = &kvm->regions[i];
		kvm->region_fds[i] = -1;
		kvm->written[i] = calloc(bitmap_words(r->size / r->page_size), sizeof(uint64_t));
		if (!kvm->written[i])
			return -ENOMEM;
	}
	/* Nothing of the caller's is looked at after this. */
	kvm->params.vcpu_fds = kvm->vcpu_fds;
	kvm->params.slots = kvm->slots;
	kvm->params.regions = kvm->regions;
	kvm->params.name = kvm->params.monitor = kvm->params.machine = kvm->params.cpu = NULL;
	return 0;
}

static int map_vcpus(struct mf_kvm *kvm, struct mf_error *err)
{
	int bytes = ioctl(kvm->params.kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (bytes < (int)sizeof(struct kvm_run))
		return bad(err, "KVM does not say how large a vCPU's shared memory is", 0);
	kvm->run_bytes = (size_t)bytes;
	for (uint32_t i = 0; i < kvm->n_vcpus; i++) {
		struct vcpu *v = &kvm->vcpus[i];
		v->fd = kvm->vcpu_fds[i];
		void *run =
			mmap(NULL, kvm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
		if (run == MAP_FAILED)
			return base_error_sys(err, -errno, MF_SCOPE_SESSION,
					      "vCPU %u cannot be mapped", i);
		v->run = run;
	}
	return 0;
}

/* Whether this host's KVM uses page modification logging: see kick in kvm_vm.h. */
static bool has_modification_log(void)
{
	char word = 'N';
	base_autofd fd = open("/sys/module/kvm_intel/parameters/pml", O_RDONLY | O_CLOEXEC);
	return fd >= 0 && read(fd, &word, 1) == 1 && (word == 'Y' || word == '1');
}

static void release(struct mf_kvm *kvm)
{
	state_destroy(kvm);
	for (uint32_t i = 0; kvm->vcpus && i < kvm->n_vcpus; i++) {
		if (kvm->vcpus[i].run)
			(void)munmap(kvm->vcpus[i].run, kvm->run_bytes);
	}
	for (uint32_t i = 0; kvm->written && i < kvm->params.n_regions; i++)
		free(kvm->written[i]);
	free(kvm->written);
	free(kvm->region_fds);
	free(kvm->regions);
	free(kvm->slots);
	free(kvm->vcpu_fds);
	free(kvm->vcpus);
	free(kvm);
}

int mf_kvm_open(const struct mf_kvm_params *params, struct mf_kvm **ret_kvm, struct mf_error *err)
{
	int code = check_params(params, err);
	if (code < 0)
		return code;
	struct mf_kvm *kvm = calloc(1, sizeof(*kvm));
	code = kvm ? copy_params(kvm, params) : -ENOMEM;
	if (code < 0) {
		base_error_sys(err, code, MF_SCOPE_SESSION, "no memory for the virtual machine");
	} else {
		code = map_vcpus(kvm, err);
		if (code >= 0)
			code = state_init(kvm, err);
	}
	if (code < 0) {
		if (kvm)
			release(kvm);
		return code;
	}
	code = gate_init(kvm, err);
	if (code < 0) {
		gate_destroy(kvm);
		release(kvm);
		return code;
	}
	kvm->vm = (struct mf_kvm_vm){
		.vm_fd = params->vm_fd,
		.n_vcpus = kvm->n_vcpus,
		.vcpu_fds = kvm->vcpu_fds,
		.n_slots = params->n_slots,
		.slots = kvm->slots,
		.ring_bytes = params->ring_bytes,
		.manual_protect = params->manual_protect,
		.set_ring_full = params->ring_bytes ? gate_set_ring_full : NULL,
		.owner = kvm,
		.kick = params->ring_bytes && has_modification_log() ? gate_kick_all : NULL,
	};
	*ret_kvm = kvm;
	return 0;
}

void mf_kvm_close(struct mf_kvm *kvm)
{
	if (!kvm)
		return;
	assert(!kvm->is_open);
	gate_destroy(kvm);
	release(kvm);
}

/* ---- the monitor's own writes ---- */

void mf_kvm_wrote(struct mf_kvm *kvm, uint64_t gpa, uint64_t len)
{
	uint64_t end = gpa + len < gpa ? UINT64_MAX : gpa + len;
	for (uint32_t i = 0; len && i < kvm->params.n_regions; i++) {
		const struct mf_region *r = &kvm->regions[i];
		uint64_t from = gpa > r->gpa ? gpa : r->gpa;
		uint64_t to = end < r->gpa + r->size ? end : r->gpa + r->size;
		if (from >= to)
			continue;
		uint64_t first = (from - r->gpa) / r->page_size;
		uint64_t last = (to - 1 - r->gpa) / r->page_size;
		/* Release: pairs with take_written(); who finds the bit finds the bytes. */
		bitmap_set_atomic(kvm->written[i], first, last - first + 1);
	}
}

/* ORs what is set of 64 pages from `first` on into one word, and forgets it. */
static uint64_t take_word(uint64_t *map, uint64_t first, uint64_t n)
{
	unsigned shift = first % 64;
	uint64_t want = n < 64 ? (UINT64_C(1) << n) - 1 : ~UINT64_C(0);
	/* Acquire: pairs with mf_kvm_wrote(). */
	uint64_t got =
		__atomic_fetch_and(&map[first / 64], ~(want << shift), __ATOMIC_ACQ_REL) >> shift;
	if (shift && n > 64 - shift)
		got |= __atomic_fetch_and(&map[first / 64 + 1], ~(want >> (64 - shift)),
					  __ATOMIC_ACQ_REL)
		       << (64 - shift);
	return got & want;
}

static void kvm_take_written(void *hv, uint32_t region, uint64_t first, uint64_t n, uint64_t *bits)
{
	struct mf_kvm *kvm = hv;
	assert(region < kvm->params.n_regions);
	for (uint64_t i = 0; i < n; i += 64)
		bits[i / 64] |= take_word(kvm->written[region], first + i, n - i);
}

/* ---- the adapter ---- */

static int misuse(struct mf_error *err, int code, const char *why)
{
	return base_error(err, code, MF_SCOPE_SESSION, "KVM guest: %s", why);
}

static int kvm_describe(void *hv, struct mf_guest *ret, struct mf_error *err)
{
	struct mf_kvm *kvm = hv;
	(void)err;
	memset(ret, 0, sizeof(*ret));
	(void)snprintf(ret->kind, sizeof(ret->kind), "kvm");
	copy_text(ret->name, sizeof(ret->name), kvm->name);
	copy_text(ret->monitor, sizeof(ret->monitor), kvm->monitor);
	copy_text(ret->machine, sizeof(ret->machine), kvm->machine);
	copy_text(ret->cpu, sizeof(ret->cpu), kvm->cpu);
	ret->pid = getpid();
	ret->n_regions = kvm->params.n_regions;
	for (uint32_t i = 0; i < ret->n_regions; i++) {
		ret->regions[i] = kvm->regions[i];
		ret->regions[i].fd = kvm->region_fds[i];
	}
	ret->kvm = &kvm->vm;
	return 0;
}

/* Room for the state as it is now and half as much again, so that the pause allocates nothing. */
static int make_room(struct mf_kvm *kvm, struct mf_error *err)
{
	size_t each = kvm->xsave_bytes + kvm->n_msrs * sizeof(struct kvm_msr_entry) +
		      CPUID_MAX * sizeof(struct kvm_cpuid_entry2) + kvm->nested_bytes + 16384;
	size_t all = (kvm->n_vcpus + 1) * each;
	bool ok = blob_reserve(&kvm->blob, all < BLOB_MAX ? all : BLOB_MAX);
	if (kvm->params.callbacks.save_devices)
		ok = ok && blob_reserve(&kvm->devices, 1u << 20);
	return ok ? 0
		  : base_error_sys(err, -ENOMEM, MF_SCOPE_SESSION,
				   "no memory for the machine's state");
}

static int kvm_prepare(void *hv, enum mf_side side, struct mf_error *err)
{
	struct mf_kvm *kvm = hv;
	if (side != kvm->side)
		return misuse(err, -EINVAL, "the machine was opened for the other side of a move");
	if (kvm->resumed || kvm->committed)
		return misuse(err, -EALREADY, "it has moved already");
	int code = make_room(kvm, err);
	if (code >= 0)
		kvm->prepared = true;
	return code;
}

static void start_devices(struct mf_kvm *kvm)
{
	if (kvm->devices_stopped && kvm->params.callbacks.start_devices)
		kvm->params.callbacks.start_devices(kvm->params.ctx);
	kvm->devices_stopped = false;
}

static int kvm_pause(void *hv, uint64_t *ret_stopped_us, struct mf_error *err)
{
	struct mf_kvm *kvm = hv;
	if (kvm->side != MF_SOURCE || kvm->committed)
		return misuse(err, -EINVAL, "only a source that was not committed is paused");
	/* From the first vCPU that stands still. */
	uint64_t stopped_us = base_now_us();
	int code = kvm->paused ? 0 : gate_close(kvm, err);
	if (code < 0)
		return code;
	/* Devices last: they may serve exits until the last vCPU stands. */
	if (!kvm->devices_stopped && kvm->params.callbacks.stop_devices) {
		kvm->devices_stopped = true;
		code = kvm->params.callbacks.stop_devices(kvm->params.ctx, err);
	}
	if (code < 0) {
		start_devices(kvm);
		gate_open(kvm);
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "the monitor's devices do not stop");
	}
	kvm->paused = true;
	*ret_stopped_us = stopped_us;
	return 0;
}

static int put_devices(void *ctx, const void *bytes, size_t len)
{
	struct blob_writer *w = ctx;
	if (len > DEVICES_MAX - (w->len < DEVICES_MAX ? w->len : DEVICES_MAX))
		return -EFBIG;
	blob_put(w, bytes, len);
	return w->failed ? -ENOMEM : 0;
}

static int kvm_save_state(void *hv, mf_state_write_fn write, void *ctx, struct mf_error *err)
{
	struct mf_kvm *kvm = hv;
	int code = 0;
	if (!kvm->paused)
		return misuse(err, -EINVAL, "it must be paused before its state is saved");
	kvm->devices.len = 0;
	kvm->devices.failed = false;
	if (kvm->params.callbacks.save_devices)
		code = kvm->params.callbacks.save_devices(kvm->params.ctx, put_devices,
							  &kvm->devices, err);
	if (code < 0)
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "the monitor's devices cannot be saved");
	code = state_save(kvm, err);
	if (code < 0)
		return code;
	code = write(ctx, kvm->blob.bytes, kvm->blob.len);
	return code < 0 ? base_error_sys(err, code, MF_SCOPE_SESSION,
					 "the machine's state cannot be written")
			: 0;
}

/* All bytes until the end, into blob.bytes. */
static int read_all(struct mf_kvm *kvm, mf_state_read_fn read, void *ctx, struct mf_error *err)
{
	struct blob_writer *w = &kvm->blob;
	w->len = 0;
	for (;;) {
		if (w->len == w->cap &&
		    !blob_reserve(w, w->cap < BLOB_MAX ? w->cap * 2 : BLOB_MAX + 1))
			return base_error_sys(err, -EFBIG, MF_SCOPE_SESSION,
					      "the machine's state cannot be read");
		ssize_t n = read(ctx, w->bytes + w->len, w->cap - w->len);
		if (n < 0)
			return base_error_sys(err, (int)n, MF_SCOPE_SESSION,
					      "the machine's state cannot be read");
		if (!n)
			return 0;
		w->len += (size_t)n;
	}
}

static int kvm_load_state(void *hv, mf_state_read_fn read, void *ctx, struct mf_error *err)
{
	struct mf_kvm *kvm = hv;
	if (kvm->side != MF_DESTINATION || !kvm->prepared || kvm->resumed)
		return misuse(err, -EINVAL,
			      "state is loaded at the destination, prepared and not running");
	kvm->loaded = false;
	int code = read_all(kvm, read, ctx, err);
	if (code >= 0)
		code = state_load(kvm, kvm->blob.bytes, kvm->blob.len, err);
	if (code >= 0)
		kvm->loaded = true;
	return code;
}

static int kvm_resume(void *hv, struct mf_error *err)
{
	struct mf_kvm *kvm = hv;
	if (kvm->side != MF_DESTINATION || !kvm->loaded)
		return misuse(err, -EINVAL, "no state is loaded that could be resumed");
	/* Guests with KVM's clock are told that they stood, so that no watchdog of theirs barks; others have none. */
	for (uint32_t i = 0; i < kvm->n_vcpus; i++)
		(void)ioctl(kvm->vcpus[i].fd, KVM_KVMCLOCK_CTRL, 0);
	kvm->devices_stopped = true; /* they never ran here */
	start_devices(kvm);
	gate_open(kvm);
	kvm->resumed = true;
	return 0;
}

static void kvm_commit(void *hv)
{
	struct mf_kvm *kvm = hv;
	kvm->committed = true;
}

static int kvm_abort(void *hv, struct mf_error *err)
{
	struct mf_kvm *kvm = hv;
	if (kvm->side == MF_DESTINATION) {
		if (kvm->resumed)
			return misuse(err, -EALREADY, "it runs here already; the move is done");
		kvm->prepared = kvm->loaded = false;
		return 0;
	}
	if (kvm->committed)
		return misuse(err, -EALREADY,
			      "the move is committed; the source does not run again");
	start_devices(kvm);
	gate_open(kvm);
	kvm->paused = kvm->prepared = false;
	return 0;
}

static void kvm_finish(void *hv)
{
	struct mf_kvm *kvm = hv;
	if (kvm->side != MF_SOURCE || kvm->finished)
		return;
	kvm->finished = true;
	gate_end(kvm);
	if (kvm->params.callbacks.finished)
		kvm->params.callbacks.finished(kvm->params.ctx);
}

static ssize_t kvm_list_needs(void *hv, void *bytes, size_t cap, struct mf_error *err)
{
	return needs_list(hv, bytes, cap, err);
}

static int kvm_check_needs(void *hv, const void *bytes, size_t len, struct mf_finding *ret,
			   unsigned cap, struct mf_error *err)
{
	return needs_check(hv, bytes, len, ret, cap, err);
}

static void kvm_adapter_close(void *hv)
{
	struct mf_kvm *kvm = hv;
	/* A destination that has loaded a guest stays as it is: the guest may be nowhere else. */
	if (kvm->side == MF_SOURCE && !kvm->committed)
		(void)kvm_abort(hv, NULL);
	for (uint32_t i = 0; i < kvm->params.n_regions; i++)
		base_closep(&kvm->region_fds[i]);
	blob_free(&kvm->blob);
	blob_free(&kvm->devices);
	kvm->is_open = false;
}

/* Without open_userfaultfd, close_userfaultfds and forget_ram: the guest's address space is the engine's own. */
static const struct mf_adapter_ops kvm_ops = {
	.size = sizeof(kvm_ops),
	.name = "kvm",
	.describe = kvm_describe,
	.prepare = kvm_prepare,
	.pause = kvm_pause,
	.save_state = kvm_save_state,
	.load_state = kvm_load_state,
	.resume = kvm_resume,
	.commit = kvm_commit,
	.abort = kvm_abort,
	.finish = kvm_finish,
	.close = kvm_adapter_close,
	.list_needs = kvm_list_needs,
	.check_needs = kvm_check_needs,
	.take_written = kvm_take_written,
};

int mf_kvm_adapter(struct mf_kvm *kvm, struct mf_adapter *ret_adapter, struct mf_error *err)
{
	if (kvm->is_open)
		return misuse(err, -EBUSY, "it is being moved already");
	if (kvm->committed)
		return misuse(err, -EALREADY, "it has moved to another host");
	for (uint32_t i = 0; i < kvm->params.n_regions; i++) {
		int fd = kvm->regions[i].fd;
		kvm->region_fds[i] = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (fd < 0 || kvm->region_fds[i] >= 0)
			continue;
		int code = -errno;
		while (i--)
			base_closep(&kvm->region_fds[i]);
		return base_error_sys(err, code, MF_SCOPE_SESSION,
				      "the descriptor of a region cannot be duplicated");
	}
	/* What came to run here by a move may go on to a third host. */
	kvm->side = kvm->params.is_destination && !kvm->resumed ? MF_DESTINATION : MF_SOURCE;
	kvm->prepared = kvm->paused = false;
	if (kvm->side == MF_SOURCE)
		kvm->loaded = kvm->resumed = false;
	kvm->params.is_destination = kvm->side == MF_DESTINATION;
	kvm->is_open = true;
	*ret_adapter = (struct mf_adapter){ .ops = &kvm_ops, .hv = kvm };
	return 0;
}
