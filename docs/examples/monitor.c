/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The smallest monitor that can move its guest: linked with libmemferry, driven by its own poll(2) loop.
 *
 *   cc -o monitor monitor.c $(pkg-config --cflags --libs memferry) -pthread
 *   ./monitor receive 127.0.0.1:7741      in one terminal, as root (it makes a userfaultfd)
 *   ./monitor send 127.0.0.1:7741         in another
 *
 * The guest is 64 MiB of memory and one thread, its "vCPU", that counts in every page of it.  Its device state is the
 * number of steps done.  A real monitor has KVM_RUN in place of step(), and more state; what it tells memferry is the same.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <memferry/session.h>

#define PAGE  4096u
#define RAM   (64u << 20)
#define STEPS (RAM / PAGE) /* one round over all pages */

struct guest {
	enum mf_side side;
	uint64_t *ram;
	uint64_t step; /* the device state */
	uint64_t wrong;
	pthread_t vcpu;
	pthread_mutex_t lock; /* protects the two */
	pthread_cond_t changed;
	bool may_run, is_running;
};

/* ---- the guest ---- */

/* Every page counts how often it was visited: it must be the number of rounds done. */
static void step(struct guest *g)
{
	uint64_t *word = g->ram + g->step % STEPS * (PAGE / sizeof(*word));
	if (*word != g->step / STEPS)
		g->wrong++;
	*word = g->step++ / STEPS + 1;
}

static void *vcpu(void *arg)
{
	struct guest *g = arg;
	for (;;) {
		pthread_mutex_lock(&g->lock);
		g->is_running = g->may_run;
		pthread_cond_broadcast(&g->changed);
		while (!g->may_run)
			pthread_cond_wait(&g->changed, &g->lock);
		g->is_running = true;
		pthread_mutex_unlock(&g->lock);
		for (int i = 0; i < 64; i++)
			step(g);
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
	return NULL;
}

static void set_running(struct guest *g, bool run)
{
	pthread_mutex_lock(&g->lock);
	g->may_run = run;
	pthread_cond_broadcast(&g->changed);
	while (g->is_running != run)
		pthread_cond_wait(&g->changed, &g->lock);
	pthread_mutex_unlock(&g->lock);
}

/* ---- what memferry asks of it: all of it comes out of mf_session_step(), in the loop's thread ---- */

static int describe(void *hv, struct mf_guest *ret, struct mf_error *err)
{
	const struct guest *g = hv;
	(void)err;
	*ret = (struct mf_guest){
		.kind = "example", /* these must be the same at both ends */
		.machine = "example-1",
		.cpu = "one thread",
		.name = "counter",
		.monitor = "monitor.c",
		.pid = getpid(), /* the guest lives here: memferry sees to userfaultfds by itself */
		.n_regions = 1,
	};
	ret->regions[0] = (struct mf_region){
		.name = "ram",
		.size = RAM,
		.page_size = PAGE,
		.hva = (uintptr_t)g->ram,
		.fd = -1, /* known by its address; with a memfd, its descriptor */
	};
	return 0;
}

static int prepare(void *hv, enum mf_side side, struct mf_error *err)
{
	(void)hv, (void)side, (void)err;
	return 0;
}

static int pause_guest(void *hv, uint64_t *ret_stopped_us, struct mf_error *err)
{
	struct timespec now;
	(void)err;
	set_running(hv, false);
	clock_gettime(CLOCK_MONOTONIC, &now);
	*ret_stopped_us = (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
	return 0;
}

static int save_state(void *hv, mf_state_write_fn write, void *ctx, struct mf_error *err)
{
	const struct guest *g = hv;
	(void)err;
	return write(ctx, &g->step, sizeof(g->step));
}

static int load_state(void *hv, mf_state_read_fn read, void *ctx, struct mf_error *err)
{
	struct guest *g = hv;
	(void)err;
	return read(ctx, &g->step, sizeof(g->step)) == sizeof(g->step) ? 0 : -EPROTO;
}

static int resume(void *hv, struct mf_error *err)
{
	(void)err;
	set_running(hv, true);
	return 0;
}

/* The source's guest goes on as if nothing had been; a destination's has never run. */
static int abort_move(void *hv, struct mf_error *err)
{
	struct guest *g = hv;
	(void)err;
	if (g->side == MF_SOURCE)
		set_running(g, true);
	return 0;
}

static void commit(void *hv)
{
	(void)hv; /* a real monitor notes that this guest must not run again */
}

static void finish(void *hv)
{
	(void)hv; /* a real monitor gives the guest's resources back */
}

static void close_guest(void *hv)
{
	(void)hv;
}

static const struct mf_adapter_ops ops = {
	.size = sizeof(ops),
	.name = "example",
	.describe = describe,
	.prepare = prepare,
	.pause = pause_guest,
	.save_state = save_state,
	.load_state = load_state,
	.resume = resume,
	.commit = commit,
	.abort = abort_move,
	.finish = finish,
	.close = close_guest,
};

/* ---- the monitor ---- */

static void on_event(void *ctx, const struct mf_event *event)
{
	(void)ctx;
	if (event->type == MF_EVENT_LISTENING)
		printf("listening on %s\n", event->text);
	else if (event->type == MF_EVENT_PHASE)
		printf("phase %s\n", mf_phase_name(event->phase));
	else if (event->text)
		printf("%s\n", event->text);
	fflush(stdout);
}

/* The monitor's event loop; a real one has more descriptors in it. */
static int loop(struct mf_session *session, struct mf_error *err)
{
	struct pollfd p = { .fd = mf_session_fd(session), .events = POLLIN };
	int r;
	do {
		if (poll(&p, 1, -1) < 0 && errno != EINTR)
			return -errno;
		r = mf_session_step(session, err);
	} while (r > 0);
	return r;
}

/* After a failure: before the commit the guest is the source's, after it the destination's. */
static bool is_here(const struct mf_report *report)
{
	bool was_committed =
		report->outcome == MF_OUTCOME_PAUSED || report->outcome == MF_OUTCOME_IN_DOUBT;
	return was_committed == (report->side == MF_DESTINATION);
}

int main(int argc, char **argv)
{
	static struct guest g = { .lock = PTHREAD_MUTEX_INITIALIZER,
				  .changed = PTHREAD_COND_INITIALIZER };
	struct mf_error err = { 0 };
	struct mf_session *session = NULL;

	bool sends = argc == 3 && !strcmp(argv[1], "send");
	if (argc != 3 || (!sends && strcmp(argv[1], "receive") != 0)) {
		fprintf(stderr, "usage: monitor receive|send ADDRESS:PORT\n");
		return 2;
	}
	g.side = sends ? MF_SOURCE : MF_DESTINATION;
	g.ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g.ram == MAP_FAILED || pthread_create(&g.vcpu, NULL, vcpu, &g)) {
		perror("monitor");
		return 1;
	}
	if (sends)
		set_running(&g, true);

	struct mf_session_params params = {
		.size = sizeof(params),
		.side = g.side,
		.address = argv[2],
		.guest = { &ops, &g },
		.run_dir = "/tmp/memferry-example",
		.mode = MF_MODE_HYBRID,
		.insecure = true, /* a trusted network only */
		.on_event = on_event,
	};
	int r = mf_session_create(&params, &session, &err);
	if (r == 0)
		r = mf_session_start(session, MF_DRIVE_LOOP, &err);
	if (r == 0)
		r = loop(session, &err);
	if (r < 0) {
		fprintf(stderr, "monitor: %s: %s\n", mf_error_name(r), err.msg);
		if (!session || !is_here(mf_session_report(session)))
			return 1;
		/* Whatever failed, the guest is this monitor's: ending here would end it. */
		fprintf(stderr, "monitor: the guest stays here\n");
		pause();
	}
	const struct mf_report *report = mf_session_report(session);
	printf("%s: %llu ms, downtime %llu ms, %s\n", mf_outcome_name(report->outcome),
	       (unsigned long long)report->total_ms, (unsigned long long)report->downtime_ms,
	       report->transport);
	mf_session_destroy(session);

	if (!sends) { /* the guest runs here now: once round all its pages */
		nanosleep(&(struct timespec){ .tv_sec = 1 }, NULL);
		set_running(&g, false);
		for (unsigned i = 0; i < STEPS; i++)
			step(&g);
		printf("the guest did %llu steps, and met %llu wrong pages\n",
		       (unsigned long long)g.step, (unsigned long long)g.wrong);
	}
	return g.wrong ? 1 : 0;
}
