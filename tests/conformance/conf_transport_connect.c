/* SPDX-License-Identifier: BSD-2-Clause */
/* Who becomes a lane, what connecting says when it fails, and lanes whose peer dies: T10 to T12. */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tests/conformance/conf_transport.h"
#include "transport/token.h"

/* T10 */

static int tcp_connect(const char *addr)
{
	struct sockaddr_in sin = { .sin_family = AF_INET };
	char host[TP_ADDR_MAX];

	(void)snprintf(host, sizeof(host), "%s", addr);
	char *colon = strrchr(host, ':');
	assert_non_null(colon);
	*colon = '\0';
	sin.sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10));
	assert_int_equal(inet_pton(AF_INET, host, &sin.sin_addr), 1);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
	return fd;
}

void t10_a_wrong_token_is_refused(void **state)
{
	struct rig_acceptor acceptor;
	struct tp_lane *lane = NULL;

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	rig_start_acceptor(&rig, &acceptor, PATIENCE);
	for (unsigned i = 0; i < 3; i++) {
		struct mf_error err = { 0 };
		uint8_t wrong[TP_TOKEN_SIZE];
		memcpy(wrong, rig.token, sizeof(wrong));
		if (i < 2)
			wrong[i * (TP_TOKEN_SIZE - 1)] ^= 0x10;
		else /* what was seen on the wire when a lane was connected */
			assert_int_equal(tp_lane_proof(rig.token, 5, wrong), 0);
		assert_true(tp_connect(rig.near_domain, rig.addr, wrong, 5, PATIENCE, &lane, &err) <
			    0);
		assert_null(lane);
		assert_non_null(strstr(err.msg, rig.addr));
		assert_non_null(strstr(err.msg, "token"));
	}
	/* The acceptor is still there for the right one. */
	struct mf_error err = { 0 };
	assert_int_equal(tp_connect(rig.near_domain, rig.addr, rig.token, 7, PATIENCE, &lane, &err),
			 0);
	assert_int_equal(pthread_join(acceptor.thread, NULL), 0);
	assert_int_equal(acceptor.ret, 0);
	assert_int_equal(acceptor.lane->id, 7);
	assert_int_equal(lane->id, 7);
	tp_lane_close(lane);
	tp_lane_close(acceptor.lane);
	rig_close(&rig);
}

void t10_a_wrong_token_never_becomes_a_lane(void **state)
{
	struct rig_acceptor acceptor;
	struct tp_lane *lane = NULL;
	uint8_t wrong[TP_TOKEN_SIZE] = { 0 };

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	rig_start_acceptor(&rig, &acceptor, base_deadline_ms(1500));
	struct mf_error err = { 0 };
	assert_true(tp_connect(rig.near_domain, rig.addr, wrong, 5, PATIENCE, &lane, &err) < 0);
	assert_int_equal(pthread_join(acceptor.thread, NULL), 0);
	assert_int_equal(acceptor.ret, -ETIMEDOUT);
	assert_null(acceptor.lane);
	rig_close(&rig);
}

/* Those that are no memferry at all: silent, gone at once, talking nonsense. */
void t10_strangers_do_not_hinder(void **state)
{
	struct rig_acceptor acceptor;
	struct tp_lane *lane = NULL;
	int silent[8];
	char junk[4096];

	(void)state;
	if (!is_tcp())
		return; /* its own suite knows how to be a stranger: conf_verbs.c */
	open_rig(8, 0, MIB, BOTH);
	memset(junk, 0x5a, sizeof(junk));
	rig_start_acceptor(&rig, &acceptor, PATIENCE);
	for (unsigned i = 0; i < BASE_ARRAY_LEN(silent); i++) {
		silent[i] = tcp_connect(rig.addr);
		(void)close(tcp_connect(rig.addr));
		int talking = tcp_connect(rig.addr);
		assert_int_equal(send(talking, junk, sizeof(junk), MSG_NOSIGNAL), sizeof(junk));
		/* The far end closes it; nothing else could ever come. */
		struct pollfd pfd = { .fd = talking, .events = POLLIN };
		assert_int_equal(poll(&pfd, 1, RIG_PATIENCE_MS), 1);
		assert_true(recv(talking, junk + 1, 1, 0) <= 0);
		(void)close(talking);
	}
	struct mf_error err = { 0 };
	assert_int_equal(tp_connect(rig.near_domain, rig.addr, rig.token, 1, PATIENCE, &lane, &err),
			 0);
	assert_int_equal(pthread_join(acceptor.thread, NULL), 0);
	assert_int_equal(acceptor.ret, 0);
	tp_lane_close(lane);
	tp_lane_close(acceptor.lane);
	/* A silent one is given up in the end, and none outlives the listener. */
	rig_start_acceptor(&rig, &acceptor, PATIENCE);
	struct pollfd pfd = { .fd = silent[0], .events = POLLIN };
	assert_int_equal(poll(&pfd, 1, RIG_PATIENCE_MS), 1);
	assert_int_equal(recv(silent[0], junk, 1, 0), 0);
	assert_int_equal(tp_connect(rig.near_domain, rig.addr, rig.token, 2, PATIENCE, &lane, &err),
			 0);
	assert_int_equal(pthread_join(acceptor.thread, NULL), 0);
	tp_lane_close(lane);
	tp_lane_close(acceptor.lane);
	int late = tcp_connect(rig.addr);
	rig_close(&rig);
	pfd.fd = late;
	assert_int_equal(poll(&pfd, 1, RIG_PATIENCE_MS), 1);
	(void)close(late);
	for (unsigned i = 0; i < BASE_ARRAY_LEN(silent); i++)
		(void)close(silent[i]);
}

/* T11 */

/* A socket of ours at a port of the kernel's choice. */
static int own_port(bool listening, char *ret_addr, size_t cap)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001) };
	socklen_t len = sizeof(sin);

	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
	if (listening)
		assert_int_equal(listen(fd, 16), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&sin, &len), 0);
	(void)snprintf(ret_addr, cap, "127.0.0.1:%u", ntohs(sin.sin_port));
	return fd;
}

void t11_accept_returns_by_its_deadline(void **state)
{
	struct mf_error err = { 0 };
	struct tp_lane *lane = NULL;

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	uint64_t deadline = base_deadline_ms(100);
	assert_int_equal(tp_accept(rig.listener, rig.token, deadline, &lane, &err), -ETIMEDOUT);
	assert_true(base_now_us() >= deadline);
	assert_int_equal(err.code, -ETIMEDOUT);
	assert_null(lane);
	rig_close(&rig);
}

void t11_a_silent_peer_is_an_error(void **state)
{
	struct mf_error err = { 0 };
	struct tp_lane *lane = NULL;
	char addr[TP_ADDR_MAX];

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	base_autofd fd = own_port(true, addr, sizeof(addr));
	/* Without sockets: there is a listener, and nobody to accept. */
	if (!is_tcp())
		memcpy(addr, rig.addr, sizeof(addr));
	uint64_t deadline = base_deadline_ms(300);
	assert_int_equal(tp_connect(rig.near_domain, addr, rig.token, 0, deadline, &lane, &err),
			 -ETIMEDOUT);
	assert_true(base_now_us() >= deadline);
	assert_null(lane);
	assert_non_null(strstr(err.msg, addr));
	rig_close(&rig);
}

static void *run_connector(void *arg)
{
	struct mf_error err = { 0 };
	struct tp_lane *lane = NULL;

	*(int *)arg = tp_connect(rig.near_domain, rig.addr, rig.token, 0, PATIENCE, &lane, &err);
	return lane;
}

/* Whether the request comes before or after it, it is an answer. */
static void close_listener_meanwhile(void)
{
	pthread_t thread;
	void *lane;
	int ret = 0;

	assert_int_equal(pthread_create(&thread, NULL, run_connector, &ret), 0);
	tp_listener_close(rig.listener);
	rig.listener = NULL;
	assert_int_equal(pthread_join(thread, &lane), 0);
	assert_true(ret < 0 && ret != -ETIMEDOUT);
	assert_null(lane);
	rig_close(&rig);
}

void t11_a_closing_peer_is_an_error(void **state)
{
	struct mf_error err = { 0 };
	struct tp_lane *lane = NULL;
	char addr[TP_ADDR_MAX];

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	if (!is_tcp()) {
		close_listener_meanwhile();
		return;
	}
	base_autofd fd = own_port(true, addr, sizeof(addr));
	pid_t child = fork();
	assert_true(child >= 0);
	if (!child) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)close(accept(fd, NULL, NULL));
		_exit(0);
	}
	int ret = tp_connect(rig.near_domain, addr, rig.token, 0, PATIENCE, &lane, &err);
	assert_true(ret < 0 && ret != -ETIMEDOUT);
	assert_null(lane);
	assert_int_equal(waitpid(child, NULL, 0), child);
	rig_close(&rig);
}

void t11_a_refused_port_is_named(void **state)
{
	struct mf_error err = { 0 };
	struct tp_lane *lane = NULL;
	char addr[TP_ADDR_MAX];

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	base_autofd fd = own_port(false, addr, sizeof(addr));
	/* Port 1 is nobody's, and the kernel gives it to nobody. */
	if (!is_tcp())
		(void)snprintf(addr, sizeof(addr), "%s:1", rig_host());
	assert_int_equal(tp_connect(rig.near_domain, addr, rig.token, 0, PATIENCE, &lane, &err),
			 -ECONNREFUSED);
	assert_null(lane);
	assert_int_equal(err.code, -ECONNREFUSED);
	assert_non_null(strstr(err.msg, addr));
	/* A name is looked up, and each of its addresses tried. */
	if (!strcmp(rig_host(), "127.0.0.1")) {
		err = (struct mf_error){ 0 };
		(void)snprintf(addr, sizeof(addr), "localhost:%s", strrchr(rig.addr, ':') + 1);
		assert_int_equal(tp_connect(rig.near_domain, addr, rig.token, 0,
					    base_deadline_ms(200), &lane, &err),
				 -ETIMEDOUT); /* nobody accepts */
	}
	err = (struct mf_error){ 0 };
	assert_true(tp_connect(rig.near_domain, "no.such.host.invalid:7741", rig.token, 0, PATIENCE,
			       &lane, &err) < 0);
	assert_non_null(strstr(err.msg, "no.such.host.invalid"));
	rig_close(&rig);
}

void t11_a_port_in_use_is_named(void **state)
{
	struct mf_error err = { 0 };
	struct tp_listener *listener = NULL;

	(void)state;
	open_rig(8, 0, MIB, BOTH);
	assert_int_equal(tp_listen(rig.far_domain, rig.addr, &listener, &err), -EADDRINUSE);
	assert_null(listener);
	assert_non_null(strstr(err.msg, rig.addr));
	rig_close(&rig);
}

/* T12: the far end is another process. */

struct far_process {
	pid_t pid;
	int hello; /* the child's pipe: its address, then its memory's name */
	char addr[TP_ADDR_MAX];
	struct tp_remote remote;
};

static void full_read(int fd, void *to, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = read(fd, (char *)to + done, len - done);
		assert_true(n > 0);
		done += (size_t)n;
	}
}

/* Admits one lane, serves it if told to, and otherwise holds still until it is killed. */
static void be_far(int out, const uint8_t *token, bool serve)
{
	struct tp_domain_params params = { .local = rig_host(), .depth = 16, .seal = &rig_seal };
	struct tp_domain *domain;
	struct tp_listener *listener;
	struct tp_lane *lane;
	struct tp_mr *mr;
	struct far_process self = { 0 };
	struct tp_wc wc[16];
	char any_port[TP_ADDR_MAX];

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)snprintf(any_port, sizeof(any_port), "%s:0", rig_host());
	uint8_t *mem = calloc(8, MIB);
	if (!mem || tp_domain_open(ops, &params, &domain, NULL) ||
	    tp_mr_reg(domain, mem, 8 * MIB, BOTH, &mr, NULL) ||
	    tp_listen(domain, any_port, &listener, NULL))
		_exit(1);
	tp_listener_addr(listener, self.addr, sizeof(self.addr));
	tp_mr_remote(mr, &self.remote);
	if (write(out, self.addr, sizeof(self.addr)) != sizeof(self.addr) ||
	    write(out, &self.remote, sizeof(self.remote)) != sizeof(self.remote) ||
	    tp_accept(listener, token, PATIENCE, &lane, NULL))
		_exit(1);
	while (serve && tp_lane_poll(lane, wc, 16) >= 0)
		(void)tp_lane_wait(lane, PATIENCE);
	for (;;)
		(void)pause();
}

static void start_far(struct far_process *far, const uint8_t *token, bool serve)
{
	int fds[2];

	assert_int_equal(pipe(fds), 0);
	far->pid = fork();
	assert_true(far->pid >= 0);
	if (!far->pid) {
		(void)close(fds[0]);
		be_far(fds[1], token, serve);
	}
	(void)close(fds[1]);
	far->hello = fds[0];
	full_read(far->hello, far->addr, sizeof(far->addr));
	full_read(far->hello, &far->remote, sizeof(far->remote));
}

static void kill_far(struct far_process *far)
{
	assert_int_equal(kill(far->pid, SIGKILL), 0);
	assert_int_equal(waitpid(far->pid, NULL, 0), far->pid);
	(void)close(far->hello);
}

struct near_end {
	struct tp_domain *domain;
	struct tp_mr *mr;
	struct tp_lane *lane;
	uint8_t *mem;
};

static void connect_near(struct near_end *near, const struct far_process *far, const uint8_t *token)
{
	struct tp_domain_params params = { .depth = 16, .seal = &rig_seal };
	struct mf_error err = { 0 };

	memset(&ledger, 0, sizeof(ledger));
	near->mem = calloc(8, MIB);
	assert_non_null(near->mem);
	assert_int_equal(tp_domain_open(ops, &params, &near->domain, &err), 0);
	assert_int_equal(tp_mr_reg(near->domain, near->mem, 8 * MIB, TP_LOCAL, &near->mr, &err), 0);
	assert_int_equal(tp_connect(near->domain, far->addr, token, 3, PATIENCE, &near->lane, &err),
			 0);
}

static void close_near(struct near_end *near)
{
	tp_lane_shutdown(near->lane);
	tp_lane_close(near->lane);
	tp_mr_dereg(near->mr);
	tp_domain_close(near->domain);
	free(near->mem);
}

static struct tp_xfer near_xfer(const struct near_end *near, const struct far_process *far,
				uint64_t len, uint64_t cookie)
{
	return (struct tp_xfer){ .local = near->mem,
				 .mr = near->mr,
				 .remote = far->remote.addr,
				 .key = far->remote.key,
				 .len = len,
				 .cookie = cookie };
}

/* All of it outstanding: the peer lives, but does not run its lane. */
void t12_a_killed_peer_fails_what_is_outstanding(void **state)
{
	static const uint8_t token[TP_TOKEN_SIZE] = { 12 };
	struct far_process far;
	struct near_end near;

	(void)state;
	start_far(&far, token, false);
	connect_near(&near, &far, token);
	for (unsigned i = 0; i < 5; i++) {
		struct tp_xfer x = near_xfer(&near, &far, 8 * MIB, 3 * i);
		assert_int_equal(tp_post_write(near.lane, &x, 1), 1);
		assert_int_equal(tp_post_flush(near.lane, 3 * i + 1), 0);
		x.cookie = 3 * i + 2;
		assert_int_equal(tp_post_read(near.lane, &x, 1), 1);
	}
	for (unsigned i = 0; i < 200; i++)
		(void)ledger_poll(&ledger, near.lane, 16);
	kill_far(&far);
	assert_true(ledger_collect_failure(&ledger, near.lane) < 0);
	assert_int_equal(ledger.n_done, 15);
	if (ops->caps & TP_CAP_TARGET_PROGRESS) {
		for (unsigned i = 0; i < 15; i++) {
			if (i % 3)
				assert_true(ledger.status[i] < 0);
		}
		/* At 8 MiB not even the writes are all with the kernel. */
		assert_true(ledger.status[12] < 0);
	}
	close_near(&near);
}

void t12_a_killed_peer_fails_an_idle_lane(void **state)
{
	static const uint8_t token[TP_TOKEN_SIZE] = { 13 };
	struct far_process far;
	struct near_end near;
	struct tp_wc wc;

	(void)state;
	start_far(&far, token, true);
	connect_near(&near, &far, token);
	struct tp_xfer x = near_xfer(&near, &far, MIB, 0);
	ledger_post(&ledger, near.lane, &x, 1, tp_post_write);
	ledger_flush(&ledger, near.lane, 1);
	kill_far(&far);
	assert_int_equal(tp_lane_wait(near.lane, PATIENCE), 0);
	assert_true(tp_lane_poll(near.lane, &wc, 1) < 0);
	close_near(&near);
}

/* Polled only, never waited for. */
void t12_a_killed_peer_shows_to_a_poller(void **state)
{
	static const uint8_t token[TP_TOKEN_SIZE] = { 14 };
	struct far_process far;
	struct near_end near;
	struct tp_wc wc;

	(void)state;
	start_far(&far, token, true);
	connect_near(&near, &far, token);
	kill_far(&far);
	uint64_t deadline = PATIENCE;
	while (tp_lane_poll(near.lane, &wc, 1) >= 0)
		assert_true(base_now_us() < deadline);
	close_near(&near);
}

void t12_reads_broken_in_the_middle_complete_once(void **state)
{
	static const uint8_t token[TP_TOKEN_SIZE] = { 15 };

	(void)state;
	for (unsigned round = 0; round < 10; round++) {
		struct far_process far;
		struct near_end near;
		start_far(&far, token, true);
		connect_near(&near, &far, token);
		for (unsigned i = 0; i < 16; i++) {
			struct tp_xfer x = near_xfer(&near, &far, 8 * MIB, i);
			assert_int_equal(tp_post_read(near.lane, &x, 1), 1);
		}
		ledger_collect(&ledger, near.lane, 1 + round / 2);
		kill_far(&far);
		/* A device may have answered all of them on its own; to this one nobody is left. */
		struct tp_xfer late = near_xfer(&near, &far, KIB, 16);
		uint32_t n = 16 + (tp_post_read(near.lane, &late, 1) == 1);
		assert_true(ledger_collect_failure(&ledger, near.lane) < 0);
		assert_int_equal(ledger.n_done, n);
		assert_true(n == 16 || ledger.status[16] < 0);
		if (ops->caps & TP_CAP_TARGET_PROGRESS)
			assert_true(ledger.n_failed > 0);
		close_near(&near);
	}
}
