/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * memferry-perf server: one client at a time, in a thread of its own; the main one goes on accepting, to tell others
 * that the server is busy, and waits for signals.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "perf/doc.h"
#include "perf/start.h"
#include "perf/verbs.h"
#include "wire/socket.h"

#define GREET_MS 5000u

struct clients {
	uint64_t max_bytes;
	int wake_fd; /* a client is through */
	_Atomic bool busy;
	pthread_t thread;
	bool has_thread;
	pthread_mutex_t lock; /* of peer */
	struct perf_peer *peer;
	int fd; /* the thread's, when it starts */
};

static void set_peer(struct clients *c, struct perf_peer *peer)
{
	(void)pthread_mutex_lock(&c->lock);
	c->peer = peer;
	(void)pthread_mutex_unlock(&c->lock);
}

static void *client_main(void *arg)
{
	struct clients *c = arg;
	struct mf_error err = { 0 };
	struct perf_peer *peer = NULL;

	int ret = perf_peer_accepted(c->fd, base_deadline_ms(GREET_MS), &peer, &err);
	if (!ret) {
		set_peer(c, peer);
		(void)fprintf(stderr, "client %s\n", perf_peer_remote(peer));
		ret = perf_serve_client(peer, c->max_bytes, &err);
		set_peer(c, NULL);
		(void)fprintf(stderr, "client %s has ended\n", perf_peer_remote(peer));
		perf_peer_close(peer);
	}
	if (ret)
		(void)fprintf(stderr, "client: %s\n", err.msg);
	atomic_store_explicit(&c->busy, false, memory_order_release);
	base_event_poke(c->wake_fd);
	return NULL;
}

/* To one that comes while another is served: in place of the greeting. */
static void refuse(int fd)
{
	static const char busy[] =
		"{\"error\":{\"code\":-16,\"message\":\"the server is busy with another "
		"client; try again later\"}}\n";

	(void)!write(fd, busy, sizeof(busy) - 1);
	(void)close(fd);
}

static void join_client(struct clients *c)
{
	if (c->has_thread)
		(void)pthread_join(c->thread, NULL);
	c->has_thread = false;
}

static int start_client(struct clients *c, int fd, struct mf_error *err)
{
	join_client(c);
	c->fd = fd;
	atomic_store_explicit(&c->busy, true, memory_order_relaxed);
	int code = perf_start_thread(&c->thread, client_main, c, err);
	if (code) {
		(void)close(fd);
		return code;
	}
	c->has_thread = true;
	return 0;
}

/* wake_fd is readable: a client has ended, or a signal has come. */
static int accept_clients(struct clients *c, int listen_fd, int wake_fd, const _Atomic bool *over,
			  bool once, struct mf_error *err)
{
	bool had_one = false;

	while (!atomic_load(over)) {
		bool busy = atomic_load_explicit(&c->busy, memory_order_acquire);
		if (had_one && once && !busy)
			return 0;
		int fd = -1;
		int ret = wire_accept(listen_fd, wake_fd, BASE_NEVER, &fd, err);
		if (ret == -EINTR) {
			base_event_take(wake_fd);
			continue;
		}
		if (ret)
			return ret;
		if (atomic_load_explicit(&c->busy, memory_order_acquire) || (once && had_one)) {
			refuse(fd);
			continue;
		}
		ret = start_client(c, fd, err);
		if (ret)
			return ret;
		had_one = true;
	}
	return 0;
}

/* For the thread that waits for signals. */
struct ender {
	int wake_fd;
	_Atomic bool over;
	sigset_t signals;
};

static void *wait_for_signal(void *arg)
{
	struct ender *ender = arg;
	int number;

	while (sigwait(&ender->signals, &number))
		;
	atomic_store(&ender->over, true);
	base_event_poke(ender->wake_fd);
	return NULL;
}

static int serve(const struct perf_options *o, int listen_fd, struct mf_error *err)
{
	struct clients c = { .max_bytes = o->max_memory,
			     .wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
			     .lock = PTHREAD_MUTEX_INITIALIZER };
	struct ender ender = { .wake_fd = c.wake_fd };
	pthread_t thread;

	if (c.wake_fd < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "eventfd");
	(void)sigemptyset(&ender.signals);
	(void)sigaddset(&ender.signals, SIGINT);
	(void)sigaddset(&ender.signals, SIGTERM);
	(void)pthread_sigmask(SIG_BLOCK, &ender.signals, NULL);
	int ret = perf_start_thread(&thread, wait_for_signal, &ender, err);
	if (!ret) {
		ret = accept_clients(&c, listen_fd, c.wake_fd, &ender.over, o->once, err);
		if (!atomic_load(&ender.over))
			/* NOLINTNEXTLINE(bugprone-bad-signal-to-kill-thread, cert-pos44-c): it waits for it */
			(void)pthread_kill(thread, SIGTERM);
		(void)pthread_join(thread, NULL);
	}
	(void)pthread_mutex_lock(&c.lock);
	if (c.peer)
		perf_peer_shutdown(c.peer);
	(void)pthread_mutex_unlock(&c.lock);
	join_client(&c);
	(void)close(c.wake_fd);
	return ret;
}

int perf_verb_server(struct perf_run *run, struct mf_error *err)
{
	char address[128];
	base_autofd fd = -1;

	int ret = wire_listen(run->o->listen ? run->o->listen : "0.0.0.0", (uint16_t)run->o->port,
			      &fd, address, sizeof(address), err);
	if (ret)
		return ret;
	(void)fprintf(run->out, "listening on %s\n", address);
	(void)fflush(run->out);
	return serve(run->o, fd, err);
}
