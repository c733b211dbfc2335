/* SPDX-License-Identifier: BSD-2-Clause */
/* The demo guest itself: what it promises beyond the adapter's laws (conf_adapter.c), above all that it finds
 * every page that a move lost. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/error.h"
#include "hv-adapters/process/pages.h"
#include "hv-adapters/process/process.h"
#include "hv-adapters/process/state.h"

enum {
	PATIENCE_MS = 30000,
};

static void pass_time(void)
{
	(void)nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
}

#define must(call)                                                                             \
	do {                                                                                   \
		struct mf_error err = { 0 };                                                   \
		int rc_ = (call);                                                              \
		if (rc_)                                                                       \
			fail_msg("%s: %d (%s) %s", #call, rc_, base_error_name(rc_), err.msg); \
	} while (0)

/* --- pure parts ------------------------------------------------------------------------------- */

static void specs(void **unused)
{
	(void)unused;
	static const char *const bad[] = {
		"",
		"x",
		"0",
		"5000",
		"1M,",
		"1M,dirty",
		"1M,dirty=",
		"1M,dirty=fast",
		"1M,pattern=x",
		"1M,threads=0",
		"1M,threads=65",
		"1M,hot=2M",
		"1M,hot=100",
		"8K,threads=4",
		"1M,zero=101",
		"1M,page=8K",
		"1M,page=2M",
		"4K,regions=2",
		"1M,regions=3",
		"1M,colour=red",
		"1M,hot=0",
		"1M,dirty=5000T",
		"99999999999999T",
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct options opt;
		struct mf_error err = { 0 };
		if (options_parse(bad[i], &opt, &err) != -MF_EUSAGE)
			fail_msg("'%s' was taken", bad[i]);
		assert_int_equal(err.code, -MF_EUSAGE);
		assert_true(err.msg[0]);
	}
	struct options opt;
	must(options_parse("64M,dirty=10M,pattern=sequential,threads=3,hot=8M,zero=25,seed=7,"
			   "regions=2,check=0",
			   &opt, &err));
	assert_int_equal(opt.size, 64u << 20);
	assert_int_equal(opt.hot, 8u << 20);
	assert_int_equal(opt.threads, 3);
	assert_false(opt.random);
}

/* plan_generation() against counting, over several passes. */
static void generations(void **unused)
{
	(void)unused;
	static const uint64_t sizes[] = { 1, 2, 3, 5, 16, 17, 100, 257 };
	for (unsigned round = 0; round < 2 * sizeof(sizes) / sizeof(sizes[0]); round++) {
		uint64_t n = sizes[round / 2], written[257] = { 0 };
		struct plan plan = {
			.pages = n,
			.hot = n,
			.seed = 42 + round,
			.writers = 1,
			.random = round % 2,
		};
		for (uint64_t s = 0; s < 3 * n + n / 2; s++) {
			uint64_t i = plan_target(&plan, 0, n, s);
			assert_true(i < n);
			assert_int_equal(written[i], plan_generation_before(n, s));
			written[i]++;
			if (s % 7 && s + 1 != 3 * n)
				continue;
			for (uint64_t k = 0; k < n; k++)
				assert_int_equal(plan_generation(&plan, 0, n, k, s + 1),
						 written[k]);
		}
	}
}

static void shares(void **unused)
{
	(void)unused;
	struct plan plan = { .pages = 1003, .hot = 17, .writers = 5 };
	unsigned owned[1003] = { 0 };
	for (uint32_t w = 0; w < plan.writers; w++) {
		struct share share;
		plan_share(&plan, w, &share);
		for (uint64_t i = 0; i < share.hot_n + share.cold_n; i++) {
			uint64_t page = share_page(&share, i);
			assert_int_equal(page < plan.hot, i < share.hot_n);
			owned[page]++;
		}
	}
	for (uint64_t page = 0; page < plan.pages; page++)
		assert_int_equal(owned[page], 1);
}

static void stamps(void **unused)
{
	(void)unused;
	struct plan plan = { .pages = 8, .hot = 8, .seed = 3, .writers = 2 };
	_Alignas(8) unsigned char page[STAMP_PAGE];
	page_stamp(page, &plan, 1, 5, 9);
	assert_true(page_check(page, &plan, 1, 5, 9));
	assert_false(page_check(page, &plan, 1, 5, 8));
	assert_false(page_check(page, &plan, 1, 5, 10));
	assert_false(page_check(page, &plan, 1, 6, 9));
	assert_false(page_check(page, &plan, 0, 5, 9));
	for (size_t i = 0; i < STAMP_PAGE; i++) {
		page[i] ^= 0x10;
		if (page_check(page, &plan, 1, 5, 9))
			fail_msg("a wrong byte %zu is not found", i);
		page[i] ^= 0x10;
	}
	/* Half of it new, half of it old. */
	_Alignas(8) unsigned char older[STAMP_PAGE];
	page_stamp(older, &plan, 1, 5, 8);
	memcpy(page + STAMP_PAGE / 2, older + STAMP_PAGE / 2, STAMP_PAGE / 2);
	assert_false(page_check(page, &plan, 1, 5, 9));
	/* Zero where it must not be, and the other way round. */
	memset(page, 0, sizeof(page));
	assert_false(page_check(page, &plan, 1, 5, 0));
	plan.zero = 100;
	assert_true(page_check(page, &plan, 1, 5, 0));
	assert_false(page_check(page, &plan, 1, 5, 1));
	page[4095] = 1;
	assert_false(page_check(page, &plan, 1, 5, 0));
}

static void states(void **unused)
{
	(void)unused;
	struct guest_state state = { 0 }, back;
	unsigned char bytes[STATE_MAX], bad[STATE_MAX + 1];
	must(options_parse("1M,threads=3,zero=10", &state.opt, &err));
	for (uint32_t i = 0; i < 3; i++)
		state.writers[i] = (struct writer_state){ 100 + i, 7, 0, 2, 3 * i };
	size_t len = state_encode(&state, bytes);
	must(state_decode(bytes, len, &state.opt, &back, &err));
	assert_memory_equal(&back.writers, &state.writers, sizeof(back.writers));
	assert_int_equal(back.opt.seed, state.opt.seed);

	for (size_t cut = 0; cut < len; cut++)
		assert_true(state_decode(bytes, cut, &state.opt, &back, NULL) < 0);
	for (size_t i = 0; i < len; i++) {
		memcpy(bad, bytes, len);
		bad[i] ^= 0x40;
		assert_true(state_decode(bad, len, &state.opt, &back, NULL) < 0);
	}
	memset(bad, 0, sizeof(bad));
	memcpy(bad, bytes, len);
	assert_int_equal(state_decode(bad, len + 1, &state.opt, &back, NULL), -EBADMSG);
	assert_int_equal(state_decode(bad, sizeof(bad), &state.opt, &back, NULL), -EBADMSG);

	struct options other = state.opt;
	other.size *= 2;
	assert_int_equal(state_decode(bytes, len, &other, &back, NULL), -MF_EREFUSED);
	/* Right checksum, impossible contents. */
	state.writers[1].scan = 1u << 20;
	len = state_encode(&state, bytes);
	assert_int_equal(state_decode(bytes, len, &state.opt, &back, NULL), -EBADMSG);
	state.writers[1].scan = 0;
	state.opt.hot = 8u << 20;
	len = state_encode(&state, bytes);
	assert_int_equal(state_decode(bytes, len, &state.opt, &back, NULL), -EBADMSG);
}

/* --- a move by hand --------------------------------------------------------------------------- */

struct ram {
	unsigned char *at[GUEST_REGIONS];
	uint64_t each;
	uint32_t n;
};

struct pair {
	struct mf_adapter src, dst;
	struct ram from, to;
};

struct bytes {
	unsigned char data[STATE_MAX];
	size_t len, at;
};

static int put(void *ctx, const void *data, size_t len)
{
	struct bytes *b = ctx;
	if (len > sizeof(b->data) - b->len)
		return -ENOSPC;
	memcpy(b->data + b->len, data, len);
	b->len += len;
	return 0;
}

/* In odd pieces. */
static ssize_t take(void *ctx, void *data, size_t cap)
{
	struct bytes *b = ctx;
	size_t n = b->len - b->at;
	if (n > cap)
		n = cap;
	if (n > 37)
		n = 37;
	memcpy(data, b->data + b->at, n);
	b->at += n;
	return (ssize_t)n;
}

static void open_guest(const char *spec, enum mf_side side, struct mf_adapter *ret)
{
	must(hv_process_open(spec, side, ret, &err));
}

static void map_ram(const struct mf_adapter *guest, struct ram *ret)
{
	struct mf_guest desc;
	must(guest->ops->describe(guest->hv, &desc, &err));
	ret->n = desc.n_regions;
	ret->each = desc.regions[0].size;
	for (uint32_t i = 0; i < desc.n_regions; i++) {
		ret->at[i] = mmap(NULL, ret->each, PROT_READ | PROT_WRITE, MAP_SHARED,
				  desc.regions[i].fd, 0);
		assert_ptr_not_equal(ret->at[i], MAP_FAILED);
	}
}

static void unmap_ram(struct ram *ram)
{
	for (uint32_t i = 0; i < ram->n; i++)
		assert_int_equal(munmap(ram->at[i], ram->each), 0);
}

static unsigned char *page_of(const struct ram *ram, uint64_t page)
{
	uint64_t each = ram->each / STAMP_PAGE;
	return ram->at[page / each] + page % each * STAMP_PAGE;
}

static void copy_ram(struct pair *pair)
{
	for (uint32_t i = 0; i < pair->from.n; i++)
		memcpy(pair->to.at[i], pair->from.at[i], pair->from.each);
}

static void pair_open(struct pair *pair, const char *spec)
{
	open_guest(spec, MF_SOURCE, &pair->src);
	open_guest(spec, MF_DESTINATION, &pair->dst);
	map_ram(&pair->src, &pair->from);
	map_ram(&pair->dst, &pair->to);
	must(pair->src.ops->prepare(pair->src.hv, MF_SOURCE, &err));
	must(pair->dst.ops->prepare(pair->dst.hv, MF_DESTINATION, &err));
}

static struct hv_process_status health(const struct mf_adapter *guest)
{
	struct hv_process_status status;
	must(hv_process_status(guest->hv, &status, &err));
	return status;
}

static void wait_steps(const struct mf_adapter *guest, uint64_t steps)
{
	uint64_t deadline = base_deadline_ms(PATIENCE_MS);
	while (health(guest).steps < steps) {
		if (!base_left_ms(deadline))
			fail_msg("the guest makes no steps");
		pass_time();
	}
}

static void pause_source(struct pair *pair)
{
	uint64_t before = base_now_us(), stopped = 0;
	must(pair->src.ops->pause(pair->src.hv, &stopped, &err));
	assert_in_range(stopped, before, base_now_us());
}

/* The source is paused, its memory copied. */
static void hand_over(struct pair *pair)
{
	struct bytes state = { .len = 0 };
	must(pair->src.ops->save_state(pair->src.hv, put, &state, &err));
	must(pair->dst.ops->load_state(pair->dst.hv, take, &state, &err));
	pair->src.ops->commit(pair->src.hv);
	must(pair->dst.ops->resume(pair->dst.hv, &err));
	pair->src.ops->finish(pair->src.hv);
}

/* Lets the guest run on where it is now, then ends both. */
static struct hv_process_status pair_close(struct pair *pair, int *ret_exit)
{
	struct hv_process_status status, source;
	wait_steps(&pair->dst, health(&pair->dst).steps + 50);
	hv_process_end(pair->dst.hv, &status, ret_exit);
	hv_process_end(pair->src.hv, &source, NULL);
	unmap_ram(&pair->from);
	unmap_ram(&pair->to);
	assert_true(status.verified);
	assert_int_equal(status.verified_pages, status.pages);
	return status;
}

static void move_whole(const char *spec)
{
	struct pair pair;
	int code;
	pair_open(&pair, spec);
	wait_steps(&pair.src, 100);
	copy_ram(&pair); /* while it writes */
	pause_source(&pair);
	struct hv_process_status before = health(&pair.src);
	assert_false(before.running);
	assert_int_equal(before.wrong_pages, 0);
	copy_ram(&pair);
	hand_over(&pair);
	struct hv_process_status after = pair_close(&pair, &code);
	assert_int_equal(after.wrong_pages, 0);
	assert_int_equal(code, HV_PROCESS_EXIT_OK);
	assert_true(after.steps > before.steps);
	assert_true(after.heartbeat > before.heartbeat);
}

static void move_random(void **unused)
{
	(void)unused;
	move_whole("8M,dirty=64M,pattern=random,threads=2,zero=30");
}

static void move_sequential(void **unused)
{
	(void)unused;
	move_whole("8M,dirty=64M,pattern=sequential,threads=3,hot=1M,seed=99");
}

static void move_two_regions(void **unused)
{
	(void)unused;
	move_whole("8M,dirty=64M,regions=2,threads=1,hot=6M,zero=50");
}

static void move_huge_pages(void **unused)
{
	(void)unused;
	struct mf_adapter probe;
	struct mf_error err = { 0 };
	if (hv_process_open("16M,page=2M", MF_SOURCE, &probe, &err)) {
		assert_int_equal(err.code, -ENOMEM);
		print_message("SKIP: %s\n", err.msg);
		skip();
	}
	hv_process_end(probe.hv, NULL, NULL);
	move_whole("4M,page=2M,dirty=64M");
}

/* Twice: the second move starts from what the first one brought. */
static void move_and_abort(void **unused)
{
	(void)unused;
	struct pair pair;
	struct bytes state = { .len = 0 };
	int code;
	pair_open(&pair, "4M,dirty=64M");
	pause_source(&pair);
	copy_ram(&pair);
	must(pair.src.ops->save_state(pair.src.hv, put, &state, &err));
	must(pair.dst.ops->load_state(pair.dst.hv, take, &state, &err));
	must(pair.dst.ops->abort(pair.dst.hv, &err));
	must(pair.src.ops->abort(pair.src.hv, &err));
	wait_steps(&pair.src, health(&pair.src).steps + 50);
	must(pair.dst.ops->prepare(pair.dst.hv, MF_DESTINATION, &err));
	pause_source(&pair);
	copy_ram(&pair);
	hand_over(&pair);
	assert_int_equal(pair_close(&pair, &code).wrong_pages, 0);
	assert_int_equal(code, HV_PROCESS_EXIT_OK);
}

/* --- the detector detects --------------------------------------------------------------------- */

/* One page that was written after the first copy stays as it was then. */
static void lost_page(const char *spec)
{
	struct pair pair;
	int code;
	pair_open(&pair, spec);
	uint64_t pages = health(&pair.src).pages, lost;
	copy_ram(&pair);
	wait_steps(&pair.src, health(&pair.src).steps + 20);
	pause_source(&pair);
	for (lost = 0; lost < pages; lost++) {
		if (memcmp(page_of(&pair.from, lost), page_of(&pair.to, lost), STAMP_PAGE))
			break;
	}
	assert_true(lost < pages);
	unsigned char stale[STAMP_PAGE];
	memcpy(stale, page_of(&pair.to, lost), STAMP_PAGE);
	copy_ram(&pair);
	memcpy(page_of(&pair.to, lost), stale, STAMP_PAGE);
	hand_over(&pair);
	assert_int_equal(pair_close(&pair, &code).wrong_pages, 1);
	assert_int_equal(code, HV_PROCESS_EXIT_WRONG);
}

static void lost_random(void **unused)
{
	(void)unused;
	lost_page("4M,dirty=16M,pattern=random,check=0,zero=20");
}

static void lost_sequential(void **unused)
{
	(void)unused;
	lost_page("4M,dirty=16M,pattern=sequential,threads=1");
}

/* One bit of a page that nobody ever writes again. */
static void corrupt_cold(void **unused)
{
	(void)unused;
	struct pair pair;
	int code;
	pair_open(&pair, "4M,dirty=16M,hot=1M,check=0");
	pause_source(&pair);
	copy_ram(&pair);
	page_of(&pair.to, 900)[2222] ^= 1;
	hand_over(&pair);
	assert_int_equal(pair_close(&pair, &code).wrong_pages, 1);
	assert_int_equal(code, HV_PROCESS_EXIT_WRONG);
}

static void lost_region(void **unused)
{
	(void)unused;
	struct pair pair;
	int code;
	pair_open(&pair, "4M,dirty=16M,regions=2");
	pause_source(&pair);
	memcpy(pair.to.at[0], pair.from.at[0], pair.from.each);
	hand_over(&pair);
	assert_int_equal(pair_close(&pair, &code).wrong_pages, pair.from.each / STAMP_PAGE);
	assert_int_equal(code, HV_PROCESS_EXIT_WRONG);
}

/* It is also found while the guest runs. */
static void found_running(void **unused)
{
	(void)unused;
	struct pair pair;
	pair_open(&pair, "4M,dirty=16M,check=64M");
	pause_source(&pair);
	copy_ram(&pair);
	page_of(&pair.to, 77)[100] ^= 1;
	hand_over(&pair);
	uint64_t deadline = base_deadline_ms(PATIENCE_MS);
	while (!health(&pair.dst).wrong_pages && base_left_ms(deadline))
		pass_time();
	assert_int_equal(health(&pair.dst).wrong_pages, 1);
	assert_int_equal(pair_close(&pair, NULL).wrong_pages, 1);
}

/* --- its process ------------------------------------------------------------------------------ */

static void killed(void **unused)
{
	(void)unused;
	for (unsigned side = MF_SOURCE; side <= MF_DESTINATION; side++) {
		struct mf_adapter guest;
		struct mf_guest desc;
		struct hv_process_status status;
		struct bytes state = { .len = 0 };
		struct mf_error gone = { 0 };
		uint64_t stopped;
		int fd = -1, code = 0;
		open_guest("4M,dirty=16M", side, &guest);
		void *hv = guest.hv;
		must(guest.ops->describe(hv, &desc, &err));
		must(guest.ops->prepare(hv, side, &err));
		if (side == MF_SOURCE)
			must(guest.ops->pause(hv, &stopped, &err));
		int pidfd = pidfd_open(desc.pid, 0);
		assert_int_equal(kill(desc.pid, SIGKILL), 0);
		assert_int_equal(poll(&(struct pollfd){ pidfd, POLLIN, 0 }, 1, PATIENCE_MS), 1);
		(void)close(pidfd);
		uint64_t before = base_now_us();
		if (side == MF_SOURCE) {
			assert_true(guest.ops->pause(hv, &stopped, NULL) < 0);
			assert_true(guest.ops->save_state(hv, put, &state, NULL) < 0);
		} else {
			assert_true(guest.ops->load_state(hv, take, &state, NULL) < 0);
			assert_true(guest.ops->resume(hv, NULL) < 0);
			assert_true(guest.ops->forget_ram(hv, NULL) < 0);
		}
		assert_true(guest.ops->abort(hv, &gone) < 0);
		assert_int_equal(gone.code, -ESRCH);
		assert_true(guest.ops->describe(hv, &desc, NULL) < 0);
		assert_true(guest.ops->prepare(hv, side, NULL) < 0);
		assert_true(guest.ops->open_userfaultfd(hv, &fd, NULL) < 0);
		assert_int_equal(fd, -1);
		guest.ops->close_userfaultfds(hv);
		assert_true(guest.ops->throttle(hv, 10, NULL) < 0);
		assert_true(hv_process_status(hv, &status, NULL) < 0);
		guest.ops->finish(hv);
		hv_process_end(hv, NULL, &code);
		assert_int_equal(code, -1);
		assert_true(base_now_us() - before < 5000000u); /* none ran into a deadline */
	}
}

static void dies_with_parent(void **unused)
{
	(void)unused;
	int ends[2];
	assert_int_equal(pipe(ends), 0);
	pid_t middle = fork();
	if (!middle) {
		struct mf_adapter guest;
		struct mf_guest desc;
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (hv_process_open("1M", MF_SOURCE, &guest, NULL) ||
		    guest.ops->describe(guest.hv, &desc, NULL) ||
		    write(ends[1], &desc.pid, sizeof(desc.pid)) != sizeof(desc.pid))
			_exit(1);
		for (;;)
			(void)pause();
	}
	pid_t pid;
	assert_int_equal(read(ends[0], &pid, sizeof(pid)), sizeof(pid));
	int pidfd = pidfd_open(pid, 0);
	assert_true(pidfd >= 0);
	assert_int_equal(kill(middle, SIGKILL), 0);
	assert_int_equal(waitpid(middle, NULL, 0), middle);
	assert_int_equal(poll(&(struct pollfd){ pidfd, POLLIN, 0 }, 1, PATIENCE_MS), 1);
	(void)close(pidfd);
	(void)close(ends[0]);
	(void)close(ends[1]);
}

/* A terminal's Ctrl-C reaches the guest's process too; stopping is the parent's to decide. */
static void outlives_interrupt(void **unused)
{
	(void)unused;
	struct mf_adapter guest;
	struct mf_guest desc;
	open_guest("1M,dirty=16M", MF_SOURCE, &guest);
	must(guest.ops->describe(guest.hv, &desc, &err));
	assert_int_equal(kill(desc.pid, SIGINT), 0);
	wait_steps(&guest, health(&guest).steps + 50);
	guest.ops->close(guest.hv);
}

static void throttled(void **unused)
{
	(void)unused;
	struct mf_adapter guest;
	open_guest("1M,dirty=16M", MF_SOURCE, &guest);
	must(guest.ops->throttle(guest.hv, 99, &err));
	wait_steps(&guest, health(&guest).steps + 2); /* slow, not stopped */
	must(guest.ops->throttle(guest.hv, 0, &err));
	wait_steps(&guest, health(&guest).steps + 50);
	assert_int_equal(guest.ops->throttle(guest.hv, 100, NULL), -EINVAL);
	guest.ops->close(guest.hv);
}

static int open_uffd(const struct mf_adapter *guest)
{
	int fd = -1;
	must(guest->ops->open_userfaultfd(guest->hv, &fd, &err));
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MINOR_SHMEM };
	assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
	return fd;
}

/* Also those whose bytes are on their way: a page that is being copied must not be mapped before it is whole. */
static void watch_missing(int fd, const struct mf_adapter *guest)
{
	struct mf_guest desc;
	must(guest->ops->describe(guest->hv, &desc, &err));
	struct uffdio_register reg = {
		.range = { desc.regions[0].hva, desc.regions[0].size },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
	};
	assert_int_equal(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
}

/* Writers that wait for a page which never comes hinder nobody: not the control thread, not the end. */
static void ends_while_faulting(void **unused)
{
	(void)unused;
	struct pair pair;
	struct bytes state = { .len = 0 };
	struct uffd_msg msg;
	struct hv_process_status status;
	int code;
	pair_open(&pair, "4M,dirty=64M");
	int fd = open_uffd(&pair.dst);
	must(pair.dst.ops->forget_ram(pair.dst.hv, &err));
	watch_missing(fd, &pair.dst);
	pause_source(&pair);
	must(pair.src.ops->save_state(pair.src.hv, put, &state, &err));
	must(pair.dst.ops->load_state(pair.dst.hv, take, &state, &err));
	must(pair.dst.ops->resume(pair.dst.hv, &err));
	assert_int_equal(poll(&(struct pollfd){ fd, POLLIN, 0 }, 1, PATIENCE_MS), 1);
	assert_int_equal(read(fd, &msg, sizeof(msg)), sizeof(msg));
	assert_int_equal(msg.event, UFFD_EVENT_PAGEFAULT);
	assert_true(health(&pair.dst).running);
	hv_process_end(pair.dst.hv, &status, &code);
	assert_false(status.verified);
	assert_int_equal(code, -1);
	(void)close(fd);
	pair.src.ops->close(pair.src.hv);
	unmap_ram(&pair.from);
	unmap_ram(&pair.to);
}

/* Our copy of a userfaultfd going away lets no writer through; the guest's own going too does. */
static void keeps_the_original(void **unused)
{
	(void)unused;
	struct pair pair;
	struct bytes state = { .len = 0 };
	int code;
	pair_open(&pair, "4M,dirty=64M");
	int fd = open_uffd(&pair.dst);
	watch_missing(fd, &pair.dst);
	pause_source(&pair);
	must(pair.src.ops->save_state(pair.src.hv, put, &state, &err));
	must(pair.dst.ops->load_state(pair.dst.hv, take, &state, &err));
	must(pair.dst.ops->resume(pair.dst.hv, &err));
	assert_int_equal(poll(&(struct pollfd){ fd, POLLIN, 0 }, 1, PATIENCE_MS), 1);
	uint64_t steps = health(&pair.src).steps;
	(void)close(fd);
	assert_int_equal(health(&pair.dst).steps, steps);
	copy_ram(&pair); /* the bytes are there, and nobody was let through before */
	pair.dst.ops->close_userfaultfds(pair.dst.hv);
	assert_int_equal(pair_close(&pair, &code).wrong_pages, 0);
	assert_int_equal(code, HV_PROCESS_EXIT_OK);
}

/* Bytes that another host made up are refused, and the guest can still be loaded. */
static void refuses_garbage(void **unused)
{
	(void)unused;
	struct pair pair;
	struct bytes state = { .len = 0 }, bad;
	int code;
	pair_open(&pair, "1M,dirty=16M");
	pause_source(&pair);
	copy_ram(&pair);
	must(pair.src.ops->save_state(pair.src.hv, put, &state, &err));
	bad = state;
	bad.data[bad.len / 2] ^= 1;
	assert_int_equal(pair.dst.ops->load_state(pair.dst.hv, take, &bad, NULL), -EBADMSG);
	bad = (struct bytes){ .len = sizeof(bad.data) };
	assert_int_equal(pair.dst.ops->load_state(pair.dst.hv, take, &bad, NULL), -EBADMSG);
	bad = (struct bytes){ .len = 0 };
	assert_int_equal(pair.dst.ops->load_state(pair.dst.hv, take, &bad, NULL), -EBADMSG);
	assert_true(pair.dst.ops->resume(pair.dst.hv, NULL) < 0);
	hand_over(&pair);
	assert_int_equal(pair_close(&pair, &code).wrong_pages, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(specs),
		cmocka_unit_test(generations),
		cmocka_unit_test(shares),
		cmocka_unit_test(stamps),
		cmocka_unit_test(states),
		cmocka_unit_test(move_random),
		cmocka_unit_test(move_sequential),
		cmocka_unit_test(move_two_regions),
		cmocka_unit_test(move_huge_pages),
		cmocka_unit_test(move_and_abort),
		cmocka_unit_test(lost_random),
		cmocka_unit_test(lost_sequential),
		cmocka_unit_test(corrupt_cold),
		cmocka_unit_test(lost_region),
		cmocka_unit_test(found_running),
		cmocka_unit_test(killed),
		cmocka_unit_test(dies_with_parent),
		cmocka_unit_test(outlives_interrupt),
		cmocka_unit_test(throttled),
		cmocka_unit_test(ends_while_faulting),
		cmocka_unit_test(keeps_the_original),
		cmocka_unit_test(refuses_garbage),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
