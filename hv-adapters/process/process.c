/* SPDX-License-Identifier: BSD-2-Clause */
/* The adapter of the demo guest: the contract's calls, turned into orders to its process. */
#include "hv-adapters/process/process.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/memfd.h> /* before <sys/mman.h>, which leaves its names alone */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/parse.h"
#include "hv-adapters/process/channel.h"

enum {
	CALL_MS = 10000, /* longer than the process's own wait for its writers */
	START_MS = 30000,
	VERIFY_STALL_MS =
		5000, /* a verification that checks no page for so long waits for a missing one */
	HUGE = 2 << 20,
};

/* The least a host fills, bytes a second: first touch of memory included. */
#define FILL_RATE (32ull << 20)

struct process {
	enum mf_side side;
	struct options opt;
	char spec[64];
	struct channel channel;
	int fds[GUEST_REGIONS];
	uint64_t hva[GUEST_REGIONS]; /* in the child */
	unsigned n_uffds;
	bool paused;    /* source */
	bool committed; /* source: does not run again */
	bool finished;  /* source: ended */
	bool prepared;  /* destination */
	bool loaded;    /* destination */
	bool resumed;   /* destination */
};

static int misuse(struct mf_error *err, int code, const char *why)
{
	return base_error(err, code, MF_SCOPE_SESSION, "demo guest: %s", why);
}

static int call(struct process *p, struct control_message *msg, int *ret_fd, const char *what,
		struct mf_error *err)
{
	int rc = channel_call(&p->channel, msg, ret_fd, base_deadline_ms(CALL_MS), err);
	if (rc)
		base_error_sys(err, rc, MF_SCOPE_SESSION, "demo guest: %s", what);
	return rc;
}

static int order(struct process *p, enum control_op op, uint64_t arg, const char *what,
		 struct mf_error *err)
{
	struct control_message msg = { .op = op, .arg = arg };
	return call(p, &msg, NULL, what, err);
}

static int process_describe(void *hv, struct mf_guest *ret, struct mf_error *err)
{
	struct process *p = hv;
	uint64_t each = p->opt.size / p->opt.regions;
	int rc = channel_alive(&p->channel, err);
	if (rc)
		return rc;

	memset(ret, 0, sizeof(*ret));
	(void)snprintf(ret->kind, sizeof(ret->kind), "demo");
	(void)snprintf(ret->name, sizeof(ret->name), "%s", p->spec);
	(void)snprintf(ret->monitor, sizeof(ret->monitor), "memferry demo guest %s", MF_VERSION);
	(void)snprintf(ret->machine, sizeof(ret->machine), "demo");
	(void)snprintf(ret->cpu, sizeof(ret->cpu), "demo, %" PRIu32 " threads", p->opt.threads);
	ret->pid = p->channel.pid;
	ret->n_regions = p->opt.regions;
	for (uint32_t i = 0; i < p->opt.regions; i++) {
		struct mf_region *region = &ret->regions[i];
		if (p->opt.regions == 1)
			(void)snprintf(region->name, sizeof(region->name), "ram");
		else
			(void)snprintf(region->name, sizeof(region->name), "ram%" PRIu32, i);
		region->size = each;
		region->page_size = p->opt.page_size;
		region->gpa = i * each;
		region->hva = p->hva[i];
		region->fd = p->fds[i];
	}
	return 0;
}

static int process_prepare(void *hv, enum mf_side side, struct mf_error *err)
{
	struct process *p = hv;

	if (side != p->side)
		return misuse(err, -EINVAL, "it was opened for the other side of a move");
	int rc = order(p, CTL_STATUS, 0, "its state cannot be asked for", err);
	if (!rc)
		p->prepared = true;
	return rc;
}

static int process_open_userfaultfd(void *hv, int *ret_fd, struct mf_error *err)
{
	struct process *p = hv;
	struct control_message msg = { .op = CTL_USERFAULTFD };
	int fd = -1;
	int rc = call(p, &msg, &fd, "cannot create a userfaultfd in its process", err);
	if (rc)
		return rc;
	if (fd < 0)
		return misuse(err, -EMFILE, "the userfaultfd did not arrive; raise ulimit -n");
	p->n_uffds++;
	*ret_fd = fd;
	return 0;
}

static void process_close_userfaultfds(void *hv)
{
	struct process *p = hv;
	if (!order(p, CTL_CLOSE_UFFDS, 0, "", NULL))
		p->n_uffds = 0;
}

static int process_forget_ram(void *hv, struct mf_error *err)
{
	struct process *p = hv;
	if (p->side != MF_DESTINATION || p->resumed)
		return misuse(err, -EINVAL,
			      "only a destination that does not run may forget its RAM");
	return order(p, CTL_FORGET, 0, "its RAM cannot be unmapped (madvise)", err);
}

static int process_pause(void *hv, uint64_t *ret_stopped_us, struct mf_error *err)
{
	struct process *p = hv;
	struct control_message msg = { .op = CTL_PAUSE };

	if (p->side != MF_SOURCE)
		return misuse(err, -EINVAL, "only the source is paused");
	int rc = call(p, &msg, NULL, "its writers do not stop", err);
	if (rc)
		return rc;
	p->paused = true;
	*ret_stopped_us = msg.arg;
	return 0;
}

static int process_save_state(void *hv, mf_state_write_fn write, void *ctx, struct mf_error *err)
{
	struct process *p = hv;
	struct control_message msg = { .op = CTL_SAVE };
	enum {
		PIECE = 64, /* small: whoever reads must not count on getting it whole */
	};

	if (!p->paused)
		return misuse(err, -EINVAL, "it must be paused before its state is saved");
	int rc = call(p, &msg, NULL, "its state cannot be saved", err);
	for (size_t at = 0; !rc && at < msg.len; at += PIECE) {
		size_t n = msg.len - at < PIECE ? msg.len - at : PIECE;
		rc = write(ctx, msg.bytes + at, n);
		if (rc)
			base_error_sys(err, rc, MF_SCOPE_SESSION,
				       "demo guest: its state cannot be written");
	}
	return rc;
}

/* All bytes until the end, at most STATE_MAX. */
static int read_state(mf_state_read_fn read, void *ctx, unsigned char *bytes, uint32_t *ret_len,
		      struct mf_error *err)
{
	size_t len = 0;
	unsigned char more;

	for (;;) {
		ssize_t got = len < STATE_MAX ? read(ctx, bytes + len, STATE_MAX - len)
					      : read(ctx, &more, 1);
		if (got < 0)
			return base_error_sys(err, (int)got, MF_SCOPE_SESSION,
					      "demo guest: its state cannot be read");
		if (!got)
			break;
		if (len == STATE_MAX)
			return misuse(err, -EBADMSG, "its state is too long");
		len += (size_t)got;
	}
	*ret_len = (uint32_t)len;
	return 0;
}

static int process_load_state(void *hv, mf_state_read_fn read, void *ctx, struct mf_error *err)
{
	struct process *p = hv;
	struct control_message msg = { .op = CTL_LOAD };
	struct guest_state state;

	if (p->side != MF_DESTINATION || !p->prepared || p->resumed)
		return misuse(err, -EINVAL,
			      "state is loaded at the destination, prepared and not running");
	int rc = read_state(read, ctx, msg.bytes, &msg.len, err);
	if (!rc)
		rc = state_decode(msg.bytes, msg.len, &p->opt, &state, err);
	if (!rc)
		rc = call(p, &msg, NULL, "its state cannot be loaded", err);
	if (!rc)
		p->loaded = true;
	return rc;
}

static int process_resume(void *hv, struct mf_error *err)
{
	struct process *p = hv;

	if (p->side != MF_DESTINATION || !p->loaded)
		return misuse(err, -EINVAL, "no state is loaded that could be resumed");
	int rc = order(p, CTL_RUN, 0, "it cannot be resumed", err);
	if (!rc)
		p->resumed = true;
	return rc;
}

static void process_commit(void *hv)
{
	struct process *p = hv;
	p->committed = true;
}

static int process_abort(void *hv, struct mf_error *err)
{
	struct process *p = hv;

	if (p->side == MF_DESTINATION) {
		if (p->resumed)
			return misuse(err, -EALREADY, "it runs here already; the move is done");
		p->prepared = p->loaded = false;
		return channel_alive(&p->channel, err);
	}
	if (p->committed)
		return misuse(err, -EALREADY,
			      "the move is committed; the source does not run again");
	int rc = order(p, CTL_THROTTLE, 0, "it cannot be brought to full speed", err);
	if (!rc)
		rc = order(p, CTL_RUN, 0, "it cannot be resumed", err);
	if (!rc)
		p->paused = false;
	return rc;
}

static void process_finish(void *hv)
{
	struct process *p = hv;
	if (p->side == MF_SOURCE)
		(void)channel_end(&p->channel, 0);
}

static int process_throttle(void *hv, unsigned percent, struct mf_error *err)
{
	if (percent > 99)
		return misuse(err, -EINVAL, "it is throttled by 0 to 99 percent");
	return order(hv, CTL_THROTTLE, percent, "it cannot be throttled", err);
}

int hv_process_status(void *hv, struct hv_process_status *ret, struct mf_error *err)
{
	struct control_message msg = { .op = CTL_STATUS };
	int rc = call(hv, &msg, NULL, "its health cannot be asked for", err);
	if (!rc)
		*ret = msg.status;
	return rc;
}

/* Stops the guest and has every page checked.  False: it could not be finished. */
static bool verify(struct process *p)
{
	struct control_message msg = { .op = CTL_VERIFY_WAIT };
	uint64_t seen = UINT64_MAX, deadline = 0;

	if (order(p, CTL_PAUSE, 0, "", NULL) || order(p, CTL_VERIFY, 0, "", NULL))
		return false;
	do {
		if (call(p, &msg, NULL, "", NULL))
			return false;
		if (msg.status.verified_pages != seen)
			deadline = base_deadline_ms(VERIFY_STALL_MS);
		seen = msg.status.verified_pages;
	} while (!msg.arg && base_left_ms(deadline));
	return msg.arg;
}

void hv_process_end(void *hv, struct hv_process_status *ret, int *ret_exit)
{
	struct process *p = hv;
	struct control_message msg = { .op = CTL_END };
	uint64_t deadline = 0;

	if (p->resumed && !p->n_uffds)
		(void)verify(p);
	struct hv_process_status status = { 0 };
	(void)hv_process_status(p, &status, NULL);
	/* In order only when all was checked: an exit status of 0 means that no page was wrong. */
	if (status.verified && !call(p, &msg, NULL, "", NULL))
		deadline = base_deadline_ms(CALL_MS);
	if (status.verified && status.wrong_pages)
		base_debug("demo guest: %" PRIu64 " of %" PRIu64 " pages were wrong",
			   status.wrong_pages, status.pages);
	int code = channel_end(&p->channel, deadline);
	for (uint32_t i = 0; i < GUEST_REGIONS; i++)
		base_closep(&p->fds[i]);
	free(p);
	if (ret)
		*ret = status;
	if (ret_exit)
		*ret_exit = code;
}

static void process_close(void *hv)
{
	hv_process_end(hv, NULL, NULL);
}

static int process_self_check(void *hv, struct mf_finding *ret)
{
	struct process *p = hv;
	struct hv_process_status status;
	/* A check that cannot be done is no clean bill. */
	bool ok = verify(p) && hv_process_status(p, &status, NULL) == 0 && status.verified;
	ret->verdict = ok && !status.wrong_pages ? MF_OK : MF_REFUSE;
	(void)snprintf(ret->subject, sizeof(ret->subject), "guest memory");
	if (ok)
		(void)snprintf(ret->detail, sizeof(ret->detail),
			       "the guest checked its %" PRIu64 " pages: %" PRIu64 " wrong",
			       status.verified_pages, status.wrong_pages);
	else
		(void)snprintf(ret->detail, sizeof(ret->detail),
			       "the guest could not check its pages");
	return 1;
}

pid_t hv_process_pid(const void *hv)
{
	return ((const struct process *)hv)->channel.pid;
}

static const struct mf_adapter_ops process_ops = {
	.size = sizeof(process_ops),
	.name = "demo",
	.describe = process_describe,
	.prepare = process_prepare,
	.open_userfaultfd = process_open_userfaultfd,
	.close_userfaultfds = process_close_userfaultfds,
	.forget_ram = process_forget_ram,
	.pause = process_pause,
	.save_state = process_save_state,
	.load_state = process_load_state,
	.resume = process_resume,
	.commit = process_commit,
	.abort = process_abort,
	.finish = process_finish,
	.throttle = process_throttle,
	.close = process_close,
	.self_check = process_self_check,
};

/* A memfd, and where it is mapped: the child inherits the mapping. */
static int make_region(const struct options *opt, uint32_t i, int *ret_fd, void **ret_at,
		       struct mf_error *err)
{
	size_t len = opt->size / opt->regions;
	unsigned flags = MFD_CLOEXEC;
	char name[32], size[32];

	if (opt->page_size == HUGE)
		flags |= MFD_HUGETLB | MFD_HUGE_2MB;
	(void)snprintf(name, sizeof(name), "demo-guest-ram%" PRIu32, i);
	base_autofd fd = memfd_create(name, flags);
	if (fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "demo guest: memfd_create");
	if (ftruncate(fd, (off_t)len))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "demo guest: memfd's size");
	void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED && errno == ENOMEM && opt->page_size == HUGE)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST,
				  "demo guest: %s of free 2 MiB pages are needed; raise "
				  "vm.nr_hugepages",
				  base_format_size(len, size, sizeof(size)));
	if (at == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "demo guest: mmap of its RAM");
	*ret_fd = base_take_fd(&fd);
	*ret_at = at;
	return 0;
}

static int spawn(struct process *p, void *ram[static GUEST_REGIONS], struct mf_error *err)
{
	int rc = 0;

	for (uint32_t i = 0; !rc && i < p->opt.regions; i++) {
		rc = make_region(&p->opt, i, &p->fds[i], &ram[i], err);
		p->hva[i] = (uintptr_t)ram[i];
	}
	if (rc)
		return rc;
	struct guest *g = guest_create(&p->opt, ram);
	if (!g)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_HOST, "demo guest");
	rc = channel_spawn(g, &p->channel, err);
	guest_free(g);
	return rc;
}

static int start(struct process *p, struct mf_error *err)
{
	struct control_message msg = { .op = CTL_START, .arg = p->side == MF_SOURCE };
	uint64_t ms = START_MS + p->opt.size * 1000 / FILL_RATE;
	int rc = channel_call(&p->channel, &msg, NULL, base_deadline_ms(ms), err);
	if (rc)
		base_error_sys(err, rc, MF_SCOPE_HOST, "demo guest: cannot be started");
	return rc;
}

int hv_process_open(const char *spec, enum mf_side side, struct mf_adapter *ret,
		    struct mf_error *err)
{
	void *ram[GUEST_REGIONS] = { NULL };
	struct options opt;
	int rc = options_parse(spec, &opt, err);
	if (rc)
		return rc;

	struct process *p = calloc(1, sizeof(*p));
	if (!p)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_HOST, "demo guest");
	p->side = side;
	p->opt = opt;
	p->channel.pidfd = p->channel.sock = -1;
	for (uint32_t i = 0; i < GUEST_REGIONS; i++)
		p->fds[i] = -1;
	(void)snprintf(p->spec, sizeof(p->spec), "demo:%s", spec);

	rc = spawn(p, ram, err);
	for (uint32_t i = 0; i < GUEST_REGIONS; i++) {
		if (ram[i])
			(void)munmap(ram[i], opt.size / opt.regions);
	}
	if (!rc)
		rc = start(p, err);
	if (rc) {
		hv_process_end(p, NULL, NULL);
		return rc;
	}
	*ret = (struct mf_adapter){ .ops = &process_ops, .hv = p };
	return 0;
}
