/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/process/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/pass.h"
#include "base/privilege.h"
#include "hv-adapters/process/control.h"
#include "hv-adapters/process/writers.h"

enum {
	CONTROL_FD = 3,
	UFFDS_MAX = 64,
	STOP_MS = 5000, /* a writer is at a step boundary long before, or it waits for a page */
	VERIFY_WAIT_MS = 200, /* the adapter watches the progress */
	/* The kernel's UFFD_USER_MODE_ONLY (its header is the tracker's alone): does for a guest whose RAM no
	 * system call touches, and needs no privilege. */
	UFFD_OWN_TOUCHES_ONLY = 1,
};

struct guest {
	struct crew crew;
	bool started;
	bool running;
	bool verified;
	uint64_t stopped_us;  /* by the last hold that stopped anything */
	int uffds[UFFDS_MAX]; /* the originals */
	unsigned n_uffds;
};

struct guest *guest_create(const struct options *opt, void *const ram[static GUEST_REGIONS])
{
	struct guest *g = calloc(1, sizeof(*g));
	if (!g)
		return NULL;
	g->crew.opt = *opt;
	options_plan(opt, &g->crew.plan);
	for (uint32_t i = 0; i < GUEST_REGIONS; i++)
		g->crew.ram[i] = ram[i];
	g->crew.bad = calloc(bitmap_words(g->crew.plan.pages), sizeof(uint64_t));
	if (!g->crew.bad) {
		free(g);
		return NULL;
	}
	return g;
}

void guest_free(struct guest *g)
{
	if (!g)
		return;
	free(g->crew.bad);
	free(g);
}

static void fill_status(const struct guest *g, struct hv_process_status *ret)
{
	const struct crew *crew = &g->crew;

	*ret = (struct hv_process_status){
		.running = g->running,
		.verified = g->verified,
		.threads = crew->opt.threads,
		.pages = crew->plan.pages,
		.verified_pages = atomic_load_explicit(&crew->verified, memory_order_relaxed),
	};
	for (uint32_t i = 0; i < crew->opt.threads; i++) {
		const struct writer *w = &crew->writers[i];
		ret->heartbeat += atomic_load_explicit(&w->heartbeat, memory_order_relaxed);
		ret->steps += atomic_load_explicit(&w->steps, memory_order_relaxed);
		ret->wrong_pages += atomic_load_explicit(&w->wrong, memory_order_relaxed);
		ret->passes += atomic_load_explicit(&w->passes, memory_order_relaxed);
	}
}

static void run(struct guest *g)
{
	if (g->running)
		return;
	g->verified = false;
	g->running = true;
	crew_order(&g->crew, ORDER_RUN);
}

static int hold(struct guest *g)
{
	if (!g->running)
		return 0;
	uint64_t asked_us = base_now_us();
	crew_order(&g->crew, ORDER_HOLD);
	if (!crew_wait(&g->crew, base_deadline_ms(STOP_MS))) {
		crew_order(&g->crew, ORDER_RUN);
		return -ETIMEDOUT;
	}
	/* Writers that had not yet begun to run stopped before they were asked to. */
	g->stopped_us = g->crew.stopped_us > asked_us ? g->crew.stopped_us : asked_us;
	g->running = false;
	return 0;
}

/* The one order that may take long; the adapter's deadline is made for it. */
static int start(struct guest *g, bool source)
{
	if (g->started)
		return -EALREADY;
	int rc = crew_start(&g->crew);
	if (rc)
		return rc;
	g->started = true;
	if (!source)
		return 0;
	crew_order(&g->crew, ORDER_FILL);
	(void)crew_wait(&g->crew, BASE_NEVER / 2);
	run(g);
	return 0;
}

static size_t save(const struct guest *g, unsigned char bytes[static STATE_MAX])
{
	const struct crew *crew = &g->crew;
	struct guest_state state = { .opt = crew->opt };

	for (uint32_t i = 0; i < crew->opt.threads; i++) {
		const struct writer *w = &crew->writers[i];
		state.writers[i] = (struct writer_state){
			.steps = atomic_load_explicit(&w->steps, memory_order_relaxed),
			.heartbeat = atomic_load_explicit(&w->heartbeat, memory_order_relaxed),
			.wrong = atomic_load_explicit(&w->wrong, memory_order_relaxed),
			.passes = atomic_load_explicit(&w->passes, memory_order_relaxed),
			.scan = atomic_load_explicit(&w->scan, memory_order_relaxed),
		};
	}
	return state_encode(&state, bytes);
}

static int load(struct guest *g, const unsigned char *bytes, size_t len)
{
	struct crew *crew = &g->crew;
	struct guest_state state;
	int rc = state_decode(bytes, len, &crew->opt, &state, NULL);
	if (rc)
		return rc;
	/* The writers are held; the lock in the order that lets them run makes them see this. */
	crew->opt = state.opt;
	options_plan(&state.opt, &crew->plan);
	for (uint32_t i = 0; i < state.opt.threads; i++) {
		struct writer *w = &crew->writers[i];
		const struct writer_state *from = &state.writers[i];
		plan_share(&crew->plan, i, &w->share);
		atomic_store_explicit(&w->steps, from->steps, memory_order_relaxed);
		atomic_store_explicit(&w->heartbeat, from->heartbeat, memory_order_relaxed);
		atomic_store_explicit(&w->wrong, from->wrong, memory_order_relaxed);
		atomic_store_explicit(&w->passes, from->passes, memory_order_relaxed);
		atomic_store_explicit(&w->scan, from->scan, memory_order_relaxed);
	}
	return 0;
}

static int open_userfaultfd(struct guest *g, int *ret_fd)
{
	if (g->n_uffds == UFFDS_MAX)
		return -EMFILE;
	long fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 && errno == EPERM)
		fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_OWN_TOUCHES_ONLY);
	if (fd < 0)
		return -errno;
	g->uffds[g->n_uffds++] = (int)fd;
	*ret_fd = (int)fd;
	return 0;
}

static void close_userfaultfds(struct guest *g)
{
	while (g->n_uffds)
		base_closep(&g->uffds[--g->n_uffds]);
}

static int forget_ram(const struct guest *g)
{
	for (uint32_t i = 0; i < g->crew.opt.regions; i++) {
		if (madvise(g->crew.ram[i], g->crew.opt.size / g->crew.opt.regions, MADV_DONTNEED))
			return -errno;
	}
	return 0;
}

static bool wait_verified(struct guest *g)
{
	if (crew_wait(&g->crew, base_deadline_ms(VERIFY_WAIT_MS)))
		g->verified = true;
	return g->verified;
}

/* *ret_fd: to go with the answer, or left alone. */
static int obey(struct guest *g, struct control_message *msg, int *ret_fd)
{
	size_t len = msg->len;
	int rc;

	msg->len = 0;
	switch ((enum control_op)msg->op) {
	case CTL_START:
		return start(g, msg->arg);
	case CTL_STATUS:
		return 0;
	case CTL_PAUSE:
		rc = hold(g);
		msg->arg = g->stopped_us;
		return rc;
	case CTL_RUN:
		run(g);
		return 0;
	case CTL_SAVE:
		if (g->running)
			return -EBUSY;
		msg->len = (uint32_t)save(g, msg->bytes);
		return 0;
	case CTL_LOAD:
		return g->running ? -EBUSY : load(g, msg->bytes, len);
	case CTL_THROTTLE:
		atomic_store_explicit(&g->crew.throttle, (uint32_t)msg->arg, memory_order_relaxed);
		return 0;
	case CTL_USERFAULTFD:
		return open_userfaultfd(g, ret_fd);
	case CTL_CLOSE_UFFDS:
		close_userfaultfds(g);
		return 0;
	case CTL_FORGET:
		return forget_ram(g);
	case CTL_VERIFY:
		if (g->running)
			return -EBUSY;
		atomic_store_explicit(&g->crew.verified, 0, memory_order_relaxed);
		crew_order(&g->crew, ORDER_VERIFY);
		return 0;
	case CTL_VERIFY_WAIT:
		msg->arg = wait_verified(g);
		return 0;
	case CTL_END:
		return 0;
	}
	return -EINVAL;
}

static int answer(const struct control_message *msg, int fd)
{
	ssize_t n = base_send_fd(CONTROL_FD, msg, control_size(msg), fd, 0);
	return n < 0 ? (int)n : 0;
}

/* Ends when the adapter's end is closed: that is the one wait here without a deadline. */
static int serve(struct guest *g)
{
	struct control_message msg;

	for (;;) {
		ssize_t got = recv(CONTROL_FD, &msg, sizeof(msg), 0);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < (ssize_t)offsetof(struct control_message, bytes) ||
		    (size_t)got != control_size(&msg))
			return EXIT_FAILURE;
		int fd = -1;
		msg.code = obey(g, &msg, &fd);
		fill_status(g, &msg.status);
		if (answer(&msg, fd))
			return EXIT_FAILURE;
		if (msg.op == CTL_END)
			return msg.status.wrong_pages ? HV_PROCESS_EXIT_WRONG : HV_PROCESS_EXIT_OK;
	}
}

/* The parent's handlers speak of the parent's state.  A terminal's interrupt is for the parent to act on: the guest
 * goes on until told.  Signals of faults are left to sanitizers. */
static void reset_signals(void)
{
	static const int ignored[] = { SIGINT, SIGQUIT, SIGHUP, SIGPIPE, SIGTSTP };
	static const int faults[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS };
	sigset_t none;

	for (int sig = 1; sig < NSIG; sig++) {
		bool skip = sig == SIGKILL || sig == SIGSTOP;
		for (size_t i = 0; i < BASE_ARRAY_LEN(faults); i++)
			skip = skip || sig == faults[i];
		if (!skip)
			(void)signal(sig, SIG_DFL); /* libc's own refuse, and may */
	}
	for (size_t i = 0; i < BASE_ARRAY_LEN(ignored); i++)
		(void)signal(ignored[i], SIG_IGN);
	(void)sigemptyset(&none);
	(void)pthread_sigmask(SIG_SETMASK, &none, NULL);
}

_Noreturn void guest_main(struct guest *g, int control, pid_t parent)
{
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(EXIT_FAILURE);
	(void)prctl(PR_SET_NAME, "demo-guest");
	(void)base_keep_capabilities(0, NULL); /* a guest has none */
	reset_signals();
	/* Nothing of the parent's may be held open from here, other guests' sockets least of all. */
	if (control != CONTROL_FD && dup2(control, CONTROL_FD) < 0)
		_exit(EXIT_FAILURE);
	(void)close_range(CONTROL_FD + 1, ~0u, 0);
	_exit(serve(g));
}
