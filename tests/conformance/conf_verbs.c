/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is only true of the transport over verbs, beside the laws of all (conf_transport verbs):
 * strangers on the connection manager, events of the device, completions that are not signalled.
 * $MEMFERRY_TEST_HOST is an address of an RDMA device, $MEMFERRY_TEST_LINK the interface that has
 * it, which goes down and up.  conf_verbs [TEST]
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <cmocka.h>
#include <rdma/rdma_cma.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "tests/conformance/tp_rig.h"
#include "transport/verbs/verbs_priv.h"

#define KIB      1024u
#define MIB      (1024u * KIB)
#define BOTH     (TP_REMOTE_WRITE | TP_REMOTE_READ)
#define PATIENCE base_deadline_ms(RIG_PATIENCE_MS)

static struct rig rig;
static struct ledger ledger;

static struct rig_params params_of(uint32_t depth, unsigned n_lanes, uint64_t bytes)
{
	return (struct rig_params){ .near_ops = tp_find("verbs"),
				    .far_ops = tp_find("verbs"),
				    .depth = depth,
				    .n_lanes = n_lanes,
				    .bytes = bytes,
				    .far_access = BOTH };
}

static void open_rig(uint32_t depth, unsigned n_lanes, uint64_t bytes)
{
	const struct rig_params params = params_of(depth, n_lanes, bytes);

	memset(&ledger, 0, sizeof(ledger));
	rig_open(&rig, &params);
}

static void set_link(const char *state)
{
	char command[128];

	(void)snprintf(command, sizeof(command), "ip link set %s %s", getenv("MEMFERRY_TEST_LINK"),
		       state);
	assert_int_equal(system(command), 0);
}

static void an_address_without_a_device_is_named(void **state)
{
	const struct tp_domain_params params = { .local = "127.0.0.1", .depth = 8 };
	struct tp_domain *domain = NULL;
	struct mf_error err = { 0 };

	(void)state;
	assert_int_equal(tp_domain_open(tp_find("verbs"), &params, &domain, &err), -ENODEV);
	assert_null(domain);
	assert_int_equal(err.code, -ENODEV);
	assert_non_null(strstr(err.msg, "127.0.0.1"));
}

/* One of many fails; before and behind it hardly any has a completion of its own. */
static void unsignalled_operations_complete_once(void **state)
{
	struct tp_xfer x[96];

	(void)state;
	for (unsigned bad = 0; bad < 96; bad += 7) {
		open_rig(128, 1, MIB);
		for (unsigned i = 0; i < 96; i++)
			x[i] = rig_xfer(&rig, i * 4 * KIB, i * 4 * KIB, 4 * KIB, i);
		x[bad].key ^= 1;
		memset(rig.near_mem, 0x77, MIB);
		assert_int_equal(tp_post_write(rig.lane[0], x, 96), 96);
		assert_int_equal(ledger_collect_failure(&ledger, rig.lane[0]), -EACCES);
		assert_int_equal(ledger.n_done, 96);
		for (unsigned i = bad; i < 96; i++)
			assert_true(ledger.status[i] < 0);
		/* None is said to be done that is not. */
		for (unsigned i = 0; i < bad; i++) {
			if (!ledger.status[i])
				assert_int_equal(rig.far_view[i * 4 * KIB], 0x77);
		}
		rig_close(&rig);
	}
}

/* All the time more than the queue holds, in batches of all sizes. */
static void a_small_queue_moves_everything(void **state)
{
	struct tp_xfer x[40];

	(void)state;
	for (uint32_t depth = 1; depth <= 9; depth += 2) {
		open_rig(depth, 1, 4 * MIB);
		for (uint64_t i = 0; i < 4 * MIB; i++)
			rig.near_mem[i] = (uint8_t)(i * 7 + i / 251);
		uint32_t cookie = 0;
		for (unsigned at = 0; at < 1024;) {
			unsigned n = 1 + at % 40;
			if (n > 1024 - at)
				n = 1024 - at;
			for (unsigned i = 0; i < n; i++)
				x[i] = rig_xfer(&rig, (at + i) * 4ull * KIB, (at + i) * 4ull * KIB,
						4 * KIB, cookie + i);
			ledger_post(&ledger, rig.lane[0], x, n, tp_post_write);
			cookie += n;
			at += n;
		}
		ledger_flush(&ledger, rig.lane[0], cookie);
		assert_int_equal(ledger.n_done, 1025);
		assert_int_equal(ledger.n_failed, 0);
		assert_memory_equal(rig.near_mem, rig.far_view, 4 * MIB);
		rig_close(&rig);
	}
}

/* Where the kernel can pin what is mapped for reading only (6.4), it can be written from. */
static void memory_mapped_for_reading_can_be_a_source(void **state)
{
	struct mf_error err = { 0 };
	struct tp_mr *mr = NULL;

	(void)state;
	open_rig(8, 1, MIB);
	base_autofd fd = memfd_create("source", MFD_CLOEXEC);
	assert_true(fd >= 0 && !ftruncate(fd, MIB));
	assert_int_equal(pwrite(fd, "ferry", 5, 0), 5);
	void *map = mmap(NULL, MIB, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	int ret = tp_mr_reg(rig.near_domain, map, MIB, TP_LOCAL, &mr, &err);
	if (ret) {
		assert_int_equal(ret, -EFAULT);
		assert_non_null(strstr(err.msg, "pinned"));
	} else {
		struct tp_xfer x = rig_xfer(&rig, 0, 0, MIB, 0);
		x.local = map;
		x.mr = mr;
		ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
		ledger_flush(&ledger, rig.lane[0], 1);
		assert_memory_equal(rig.far_view, "ferry", 5);
		tp_mr_dereg(mr);
	}
	(void)munmap(map, MIB);
	rig_close(&rig);
}

/* Where the device cannot, asking for it changes nothing. */
static void registering_on_demand_is_only_asked_for(void **state)
{
	struct rig_params params = params_of(16, 1, MIB);
	struct tp_domain_stats stats;
	struct tp_limits limits;

	(void)state;
	memset(&ledger, 0, sizeof(ledger));
	params.on_demand = true;
	rig_open(&rig, &params);
	tp_domain_limits(rig.near_domain, &limits);
	tp_domain_stats(rig.near_domain, &stats);
	assert_int_equal(stats.bytes_pinned, limits.on_demand ? 0 : MIB);
	if (getenv("MEMFERRY_TEST_LINK")) /* Soft-RoCE of these kernels */
		assert_false(limits.on_demand);
	memset(rig.near_mem, 0x33, MIB);
	struct tp_xfer x = rig_xfer(&rig, 0, 0, MIB, 0);
	ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
	ledger_flush(&ledger, rig.lane[0], 1);
	assert_memory_equal(rig.near_mem, rig.far_view, MIB);
	rig_close(&rig);
	/* Nor is it in effect without being asked for. */
	open_rig(16, 0, MIB);
	tp_domain_limits(rig.near_domain, &limits);
	assert_false(limits.on_demand);
	rig_close(&rig);
}

/* Strangers */

struct stranger {
	struct rdma_event_channel *channel;
	struct rdma_cm_id *id;
	struct ibv_cq *cq;
	struct ibv_qp_init_attr attr;
};

static enum rdma_cm_event_type next_event(struct stranger *stranger, void *ret_data, size_t cap,
					  int *ret_status)
{
	struct pollfd pfd = { .fd = stranger->channel->fd, .events = POLLIN };
	struct rdma_cm_event *event;

	assert_int_equal(poll(&pfd, 1, RIG_PATIENCE_MS), 1);
	assert_int_equal(rdma_get_cm_event(stranger->channel, &event), 0);
	enum rdma_cm_event_type type = event->event;
	if (ret_status)
		*ret_status = event->status;
	if (cap && event->param.conn.private_data_len >= cap)
		memcpy(ret_data, event->param.conn.private_data, cap);
	(void)rdma_ack_cm_event(event);
	return type;
}

/* Sends a request with these bytes. */
static void knock(struct stranger *stranger, const void *data, uint8_t len)
{
	struct rdma_conn_param param = { .private_data = data,
					 .private_data_len = len,
					 .responder_resources = 1,
					 .initiator_depth = 1,
					 .retry_count = 7,
					 .rnr_retry_count = 7 };
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST }, *list;
	char host[TP_ADDR_MAX];

	(void)snprintf(host, sizeof(host), "%s", rig.addr);
	char *port = strrchr(host, ':');
	assert_non_null(port);
	*port++ = '\0';
	assert_int_equal(getaddrinfo(host, port, &hints, &list), 0);
	*stranger = (struct stranger){ .channel = rdma_create_event_channel() };
	assert_non_null(stranger->channel);
	assert_int_equal(rdma_create_id(stranger->channel, &stranger->id, NULL, RDMA_PS_TCP), 0);
	assert_int_equal(rdma_resolve_addr(stranger->id, NULL, list->ai_addr, 2000), 0);
	freeaddrinfo(list);
	assert_int_equal(next_event(stranger, NULL, 0, NULL), RDMA_CM_EVENT_ADDR_RESOLVED);
	assert_int_equal(rdma_resolve_route(stranger->id, 2000), 0);
	assert_int_equal(next_event(stranger, NULL, 0, NULL), RDMA_CM_EVENT_ROUTE_RESOLVED);
	stranger->cq = ibv_create_cq(stranger->id->verbs, 4, NULL, NULL, 0);
	assert_non_null(stranger->cq);
	stranger->attr = (struct ibv_qp_init_attr){
		.qp_type = IBV_QPT_RC,
		.send_cq = stranger->cq,
		.recv_cq = stranger->cq,
		.cap = { .max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 },
	};
	assert_int_equal(rdma_create_qp(stranger->id, NULL, &stranger->attr), 0);
	assert_int_equal(rdma_connect(stranger->id, &param), 0);
}

static void go_away(struct stranger *stranger)
{
	rdma_destroy_qp(stranger->id);
	(void)ibv_destroy_cq(stranger->cq);
	(void)rdma_destroy_id(stranger->id);
	rdma_destroy_event_channel(stranger->channel);
}

static void connect_well(struct rig_acceptor *acceptor)
{
	struct mf_error err = { 0 };
	struct tp_lane *lane = NULL;

	int ret = tp_connect(rig.near_domain, rig.addr, rig.token, 9, PATIENCE, &lane, &err);
	if (ret)
		fail_msg("connect: %s", err.msg);
	assert_int_equal(pthread_join(acceptor->thread, NULL), 0);
	assert_int_equal(acceptor->ret, 0);
	assert_int_equal(acceptor->lane->id, 9);
	tp_lane_close(lane);
	tp_lane_close(acceptor->lane);
}

static void strangers_are_refused(void **state)
{
	struct rig_acceptor acceptor;
	struct stranger stranger;
	uint8_t junk[56], answer[8];
	int status;

	(void)state;
	open_rig(8, 0, MIB);
	rig_start_acceptor(&rig, &acceptor, PATIENCE);
	for (unsigned i = 0; i < 6; i++) {
		memset(junk, i & 1 ? 0x5a : 0, sizeof(junk));
		if (i >= 4) /* our magic, version 1, and a token of zeroes */
			memcpy(junk, "fmem\1", 6);
		memset(answer, 0, sizeof(answer));
		knock(&stranger, i ? junk : NULL, (uint8_t)(i < 4 ? i * 18 : sizeof(junk)));
		assert_int_equal(next_event(&stranger, answer, sizeof(answer), &status),
				 RDMA_CM_EVENT_REJECTED);
		/* It is told why by us, not by the kernel. */
		assert_memory_equal(answer, "fmem\1\0\1\0", sizeof(answer));
		go_away(&stranger);
	}
	/* One that has gone before anybody could look. */
	knock(&stranger, junk, sizeof(junk));
	go_away(&stranger);
	connect_well(&acceptor);
	rig_close(&rig);
}

/* It has the token, and then does not go on: silent, or gone. */
static void half_a_connection_does_not_hinder(void **state)
{
	struct rig_acceptor acceptor;
	struct stranger stranger;
	uint8_t hello[56] = "fmem\1";

	(void)state;
	open_rig(8, 0, MIB);
	memcpy(hello + 8, rig.token, TP_TOKEN_SIZE);
	uint64_t deadline = base_deadline_ms(1500);
	rig_start_acceptor(&rig, &acceptor, deadline);
	knock(&stranger, hello, sizeof(hello));
	assert_int_equal(pthread_join(acceptor.thread, NULL), 0);
	assert_int_equal(acceptor.ret, -ETIMEDOUT);
	assert_null(acceptor.lane);
	assert_true(base_now_us() >= deadline);
	go_away(&stranger);

	rig_start_acceptor(&rig, &acceptor, PATIENCE);
	knock(&stranger, hello, sizeof(hello));
	go_away(&stranger);
	connect_well(&acceptor);
	rig_close(&rig);
}

/* The device's events */

static void a_port_that_goes_down_fails_its_lanes(void **state)
{
	struct tp_wc wc;

	(void)state;
	if (!getenv("MEMFERRY_TEST_LINK"))
		skip();
	open_rig(8, 3, MIB);
	set_link("down");
	/* Idle lanes at both ends, each waited for. */
	for (unsigned i = 0; i < 3; i++) {
		uint64_t deadline = PATIENCE;
		while (tp_lane_poll(rig.lane[i], &wc, 1) >= 0)
			assert_int_equal(tp_lane_wait(rig.lane[i], deadline), 0);
		assert_int_equal(tp_lane_poll(rig.lane[i], &wc, 1), -ENETDOWN);
	}
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(pthread_join(rig.pump[i].thread, NULL), 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_true(atomic_load(&rig.pump[i].ended) < 0);
		tp_lane_close(rig.lane[i]);
		tp_lane_close(rig.pump[i].lane);
		rig.lane[i] = NULL;
	}
	set_link("up");
	rig_close(&rig);
}

/* Paths */

static const struct tp_path *find_path(const struct tp_path *paths, int n, const char *address)
{
	for (int i = 0; i < n; i++) {
		if (!strcmp(paths[i].address, address))
			return &paths[i];
	}
	return NULL;
}

/* The machine of tests/vm has both addresses; elsewhere the one that the tests use is there. */
static void the_addresses_of_the_device_are_paths(void **state)
{
	static struct tp_path paths[64];
	const char *link = getenv("MEMFERRY_TEST_LINK");

	(void)state;
	int n = tp_paths(tp_find("verbs"), paths, BASE_ARRAY_LEN(paths));
	assert_in_range(n, 1, BASE_ARRAY_LEN(paths));
	for (int i = 0; i < n; i++)
		(void)printf("%s %s %s/%u %s %lu Mbit/s, node %d%s\n", paths[i].device,
			     paths[i].interface, paths[i].address, paths[i].prefix, paths[i].detail,
			     (unsigned long)paths[i].mbit_per_s, paths[i].numa_node,
			     paths[i].up ? "" : ", down");
	assert_int_equal(tp_paths(tp_find("verbs"), NULL, 0), n);
	if (!link || strcmp(link, "d0"))
		return;
	assert_int_equal(n, 2);
	const struct tp_path *v4 = find_path(paths, n, "10.77.0.1");
	const struct tp_path *v6 = find_path(paths, n, "fd77::1");
	assert_non_null(v4);
	assert_non_null(v6);
	assert_int_equal(v4->prefix, 24);
	assert_int_equal(v6->prefix, 64);
	assert_string_equal(v4->device, "rxe0");
	assert_string_equal(v4->interface, "d0");
	assert_non_null(strstr(v4->detail, "port 1, RoCE v2, GID "));
	assert_non_null(strstr(v4->detail, "::ffff:10.77.0.1"));
	assert_non_null(strstr(v6->detail, "fd77::1"));
	assert_true(v4->up && v6->up);
	assert_true(v4->mbit_per_s > 0);
	assert_int_equal(v4->numa_node, -1);
	/* Also when it is down. */
	set_link("down");
	assert_true(tp_paths(tp_find("verbs"), paths, BASE_ARRAY_LEN(paths)) >= 1);
	v4 = find_path(paths, n, "10.77.0.1");
	assert_non_null(v4);
	assert_false(v4->up);
	set_link("up");
	assert_int_equal(system("ip -6 address replace fd77::1/64 dev d0 nodad"), 0);
}

/* Silence */

static struct ibv_qp *qp_of(struct tp_lane *lane)
{
	return BASE_CONTAINER_OF(lane, struct vrb_lane, base)->qp;
}

/* From now on the device drops what comes for this end, and tells nobody. */
static void fall_silent(struct tp_lane *lane, void *arg)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_RESET };

	*(int *)arg = ibv_modify_qp(qp_of(lane), &attr, IBV_QP_STATE);
}

static void a_silent_peer_fails_what_is_outstanding(void **state)
{
	static const unsigned silences_ms[] = { 200, 1000 };
	struct rig_params params = params_of(16, 2, MIB);
	int ret = 1;

	(void)state;
	for (unsigned round = 0; round < BASE_ARRAY_LEN(silences_ms); round++) {
		memset(&ledger, 0, sizeof(ledger));
		params.silence_ms = silences_ms[round];
		rig_open(&rig, &params);
		rig_on_far(&rig, 0, fall_silent, &ret);
		assert_int_equal(ret, 0);
		uint64_t start = base_now_us();
		for (unsigned i = 0; i < 4; i++) {
			struct tp_xfer x = rig_xfer(&rig, 0, 0, 64 * KIB, 3 * i);
			assert_int_equal(tp_post_write(rig.lane[0], &x, 1), 1);
			x.cookie++;
			assert_int_equal(tp_post_read(rig.lane[0], &x, 1), 1);
			assert_int_equal(tp_post_flush(rig.lane[0], 3 * i + 2), 0);
		}
		assert_int_equal(ledger_collect_failure(&ledger, rig.lane[0]), -ETIMEDOUT);
		/* Not at the first try, and not much later than asked for. */
		uint64_t took_ms = (base_now_us() - start) / 1000;
		assert_in_range(took_ms, params.silence_ms / 10, params.silence_ms * 10);
		assert_int_equal(ledger.n_done, 12);
		assert_int_equal(ledger.n_failed, 12);
		/* It was tried again, and the port has counted that; the file lags by 10 ms and more. */
		struct tp_domain_stats stats = { 0 };
		uint64_t deadline = PATIENCE;
		while (!stats.retransmits) {
			assert_true(base_now_us() < deadline);
			tp_domain_stats(rig.near_domain, &stats);
		}
		/* The other one talks on. */
		memset(&ledger, 0, sizeof(ledger));
		struct tp_xfer x = rig_xfer(&rig, 0, 0, MIB, 0);
		ledger_post(&ledger, rig.lane[1], &x, 1, tp_post_write);
		ledger_flush(&ledger, rig.lane[1], 1);
		assert_int_equal(ledger.n_failed, 0);
		rig_close(&rig);
	}
}

/* Late writes */

static void lend_to(struct tp_lane *lane, void *arg)
{
	assert_int_equal(tp_lane_lend(lane, &rig.far_mr, 1, TP_REMOTE_WRITE, PATIENCE, arg), 0);
}

static void take_back(struct tp_lane *lane, void *arg)
{
	*(int *)arg = tp_lane_revoke(lane, PATIENCE);
}

static void shut(struct tp_lane *lane, void *arg)
{
	tp_lane_shutdown(lane);
	*(int *)arg = 0;
}

/* As far as this end knows, all is well: it writes everything again, and not a byte changes. */
static void write_late(uint64_t key)
{
	memset(&ledger, 0, sizeof(ledger));
	memset(rig.near_mem, 0xee, MIB);
	for (unsigned i = 0; i < 4; i++) {
		struct tp_xfer x = rig_xfer(&rig, i * 256 * KIB, i * 256 * KIB, 256 * KIB, i);
		x.remote = (uintptr_t)rig.far_mem + i * 256 * KIB;
		x.key = key;
		assert_int_equal(tp_post_write(rig.lane[0], &x, 1), 1);
	}
	assert_true(ledger_collect_failure(&ledger, rig.lane[0]) < 0);
	assert_int_equal(ledger.n_done, 4);
	assert_int_equal(ledger.n_failed, 4);
	for (unsigned i = 0; i < MIB; i++)
		assert_int_equal(rig.far_view[i], 0x11);
}

static void a_late_write_changes_nothing(void **state)
{
	struct rig_params params = params_of(16, 1, MIB);
	struct tp_remote remote;
	struct tp_limits limits;
	int ret = 1;

	(void)state;
	for (unsigned way = 0; way < 3; way++) {
		bool windows = way < 2;
		params.far_access = windows ? TP_LENDABLE : BOTH;
		params.n_lanes = 0;
		rig_open(&rig, &params);
		tp_domain_limits(rig.far_domain, &limits);
		rig_close(&rig);
		if (windows && !limits.windows)
			continue;
		params.n_lanes = 1;
		memset(&ledger, 0, sizeof(ledger));
		rig_open(&rig, &params);
		remote = rig.far_remote;
		if (windows)
			rig_on_far(&rig, 0, lend_to, &remote);
		memset(rig.near_mem, 0x11, MIB);
		struct tp_xfer x = rig_xfer(&rig, 0, 0, MIB, 0);
		x.remote = remote.addr;
		x.key = remote.key;
		ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
		ledger_flush(&ledger, rig.lane[0], 1);
		rig_on_far(&rig, 0, way == 0 ? take_back : shut, &ret);
		assert_int_equal(ret, 0);
		write_late(remote.key);
		rig_close(&rig);
	}
}

/* Whatever revoke returned: here the lane cannot do it any more. */
static void revoking_on_a_broken_lane_revokes(void **state)
{
	struct rig_params params = params_of(16, 0, MIB);
	struct tp_remote remote;
	struct tp_limits limits;
	struct tp_wc wc;

	(void)state;
	params.far_access = TP_LOCAL;
	rig_open(&rig, &params);
	tp_domain_limits(rig.far_domain, &limits);
	rig_close(&rig);
	if (!limits.windows)
		skip();
	params.far_access = TP_LENDABLE;
	params.n_lanes = 1;
	rig_open(&rig, &params);
	/* From here on both ends are ours. */
	struct tp_lane *far = rig.pump[0].lane;
	atomic_store(&rig.pump[0].stop, true);
	tp_lane_wake(far);
	assert_int_equal(pthread_join(rig.pump[0].thread, NULL), 0);
	assert_int_equal(tp_lane_lend(far, &rig.far_mr, 1, TP_REMOTE_WRITE, PATIENCE, &remote), 0);
	memset(rig.near_mem, 0x11, MIB);
	memset(rig.far_mem, 0x11, MIB);
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };
	assert_int_equal(ibv_modify_qp(qp_of(far), &attr, IBV_QP_STATE), 0);
	int ret = tp_lane_revoke(far, PATIENCE);
	assert_true(ret < 0);
	assert_int_equal(tp_lane_revoke(far, PATIENCE), ret);
	assert_int_equal(tp_lane_lend(far, &rig.far_mr, 1, TP_REMOTE_WRITE, PATIENCE, &remote),
			 ret);
	assert_int_equal(tp_lane_poll(far, &wc, 1), ret);
	write_late(remote.key);
	/* The memory is free of it: this would assert otherwise. */
	tp_mr_dereg(rig.far_mr);
	rig.far_mr = NULL;
	tp_lane_close(far);
	tp_lane_close(rig.lane[0]);
	rig.lane[0] = NULL;
	rig_close(&rig);
}

/* Death */

static void a_queue_pair_in_error_fails_the_lane_for_good(void **state)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };

	(void)state;
	open_rig(64, 2, 16 * MIB);
	for (unsigned i = 0; i < 30; i++) {
		struct tp_xfer x = rig_xfer(&rig, 0, 0, 4 * MIB, i);
		assert_int_equal(i % 2 ? tp_post_read(rig.lane[0], &x, 1)
				       : tp_post_write(rig.lane[0], &x, 1),
				 1);
	}
	assert_int_equal(ibv_modify_qp(qp_of(rig.lane[0]), &attr, IBV_QP_STATE), 0);
	/* A device may have been faster than we are; to this one it is not. */
	struct tp_xfer x = rig_xfer(&rig, 0, 0, KIB, 30);
	uint32_t n = 30 + (tp_post_write(rig.lane[0], &x, 1) == 1);
	int ret = ledger_collect_failure(&ledger, rig.lane[0]);
	assert_true(ret < 0);
	assert_int_equal(ledger.n_done, n);
	assert_true(n == 30 || ledger.status[30] < 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(tp_post_write(rig.lane[0], &x, 1), ret);
		assert_int_equal(tp_post_read(rig.lane[0], &x, 1), ret);
		assert_int_equal(tp_post_flush(rig.lane[0], 30), ret);
		assert_int_equal(ledger_poll(&ledger, rig.lane[0], 16), ret);
		assert_int_equal(tp_lane_wait(rig.lane[0], PATIENCE), 0);
	}
	memset(&ledger, 0, sizeof(ledger));
	ledger_post(&ledger, rig.lane[1], &x, 1, tp_post_write);
	ledger_flush(&ledger, rig.lane[1], 31);
	rig_close(&rig);
}

/* The kernel removes a Soft-RoCE device once all processes have let go of it, and librdmacm never
 * does: what happens before and after takes place in processes of their own, which this starts. */
static void bytes_move_when_the_device_goes(void **state)
{
	(void)state;
	open_rig(16, 2, 16 * MIB);
	assert_int_equal(system("rdma link delete rxe0 &"), 0);
	uint64_t deadline = PATIENCE;
	uint32_t n = 0;
	int ret = 0;
	while (ret >= 0 || ret == -EAGAIN) {
		assert_true(base_now_us() < deadline && n < LEDGER_MAX);
		struct tp_xfer x = rig_xfer(&rig, 0, 0, 8 * MIB, n);
		ret = tp_post_write(rig.lane[0], &x, 1);
		n += ret == 1;
		if (ret == -EAGAIN)
			ret = ledger_poll(&ledger, rig.lane[0], 1);
	}
	assert_true(ledger_collect_failure(&ledger, rig.lane[0]) < 0);
	assert_int_equal(ledger.n_done, n);
	/* The other one has nothing to do, and is told. */
	memset(&ledger, 0, sizeof(ledger));
	assert_true(ledger_collect_failure(&ledger, rig.lane[1]) < 0);
	rig_close(&rig);
}

static void bytes_move_again(void **state)
{
	(void)state;
	open_rig(16, 1, MIB);
	memset(rig.near_mem, 0x44, MIB);
	struct tp_xfer x = rig_xfer(&rig, 0, 0, MIB, 0);
	ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
	ledger_flush(&ledger, rig.lane[0], 1);
	assert_memory_equal(rig.near_mem, rig.far_view, MIB);
	rig_close(&rig);
}

static int run_self(const char *part)
{
	char self[256], command[320];

	ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
	assert_true(len > 0);
	self[len] = '\0';
	(void)snprintf(command, sizeof(command), "%s part %s", self, part);
	return system(command);
}

/* The first test of all: so far this process itself has no device open. */
static void a_removed_device_fails_its_lanes(void **state)
{
	const char *link = getenv("MEMFERRY_TEST_LINK");

	(void)state;
	if (!link || strcmp(link, "d0"))
		skip();
	for (unsigned round = 0; round < 3; round++) {
		assert_int_equal(run_self("bytes_move_when_the_device_goes"), 0);
		uint64_t deadline = PATIENCE;
		while (system("rdma link add rxe0 type rxe netdev d0 2>/dev/null"))
			assert_true(base_now_us() < deadline);
		assert_int_equal(run_self("bytes_move_again"), 0);
	}
}

/* Leaks */

struct usage {
	unsigned pd, cq, qp, cm_id, mr, fds;
	unsigned long pinned_kib;
};

/* What the kernel says we and all others have. */
static struct usage get_usage(void)
{
	struct usage usage = { 0 };
	char line[256];
	FILE *file = popen("rdma resource show", "re");
	bool found = false;

	assert_non_null(file);
	while (fgets(line, sizeof(line), file))
		found |= sscanf(line, "%*u: rxe0: pd %u cq %u qp %u cm_id %u mr %u", &usage.pd,
				&usage.cq, &usage.qp, &usage.cm_id, &usage.mr) == 5;
	assert_int_equal(pclose(file), 0);
	assert_true(found);
	file = fopen("/proc/self/status", "re");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file))
		(void)sscanf(line, "VmPin: %lu kB", &usage.pinned_kib);
	(void)fclose(file);
	DIR *dir = opendir("/proc/self/fd");
	assert_non_null(dir);
	while (readdir(dir))
		usage.fds++;
	(void)closedir(dir);
	return usage;
}

/* Everything once, and everything that can go wrong without help. */
static void use_all(void)
{
	struct rig_params params = params_of(16, 2, MIB);
	struct mf_error err = { 0 };
	struct tp_domain *domain = NULL;
	struct tp_lane *lane = NULL;
	struct tp_remote remote;
	struct tp_limits limits;
	struct tp_mr *mr = NULL;
	char nobody[TP_ADDR_MAX];

	memset(&ledger, 0, sizeof(ledger));
	const struct tp_domain_params wrong = { .local = "127.0.0.1", .depth = 8 };
	assert_true(tp_domain_open(tp_find("verbs"), &wrong, &domain, &err) < 0);
	rig_open(&rig, &params);
	tp_domain_limits(rig.far_domain, &limits);
	void *hole = mmap(NULL, MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(hole, MAP_FAILED);
	assert_true(tp_mr_reg(rig.far_domain, hole, MIB, BOTH, &mr, &err) < 0);
	(void)munmap(hole, MIB);
	(void)snprintf(nobody, sizeof(nobody), "%s:1", rig_host());
	assert_true(tp_connect(rig.near_domain, nobody, rig.token, 7, PATIENCE, &lane, &err) < 0);
	assert_true(tp_connect(rig.near_domain, rig.addr, rig.token, 7, base_deadline_ms(20), &lane,
			       &err) < 0);
	assert_true(tp_accept(rig.listener, rig.token, base_deadline_ms(1), &lane, &err) < 0);
	struct tp_xfer x = rig_xfer(&rig, 0, 0, MIB, 0);
	ledger_post(&ledger, rig.lane[0], &x, 1, tp_post_write);
	ledger_flush(&ledger, rig.lane[0], 1);
	if (limits.windows) {
		assert_int_equal(
			tp_mr_reg(rig.far_domain, rig.far_mem, MIB, TP_LENDABLE, &mr, &err), 0);
		struct tp_mr *registered = rig.far_mr;
		rig.far_mr = mr;
		rig_on_far(&rig, 0, lend_to, &remote);
		rig_on_far(&rig, 1, lend_to, &remote);
		int ret = 1;
		rig_on_far(&rig, 0, take_back, &ret);
		assert_int_equal(ret, 0);
		rig.far_mr = registered;
	}
	/* This lane dies with its windows; the other one is closed alive. */
	x.key ^= 1;
	memset(&ledger, 0, sizeof(ledger));
	ledger_post(&ledger, rig.lane[1], &x, 1, tp_post_write);
	assert_true(ledger_collect_failure(&ledger, rig.lane[1]) < 0);
	rig_drop_lane(&rig, 1);
	tp_mr_dereg(mr);
	rig_close(&rig);
}

static void nothing_stays_behind(void **state)
{
	struct usage before, after;

	(void)state;
	if (system("rdma resource show rxe0 >/dev/null 2>&1"))
		skip();
	use_all(); /* what libraries keep for good is there now */
	before = get_usage();
	for (unsigned i = 0; i < 50; i++)
		use_all();
	/* The kernel frees some of it a moment later. */
	uint64_t deadline = PATIENCE;
	do
		after = get_usage();
	while (memcmp(&before, &after, sizeof(after)) && base_now_us() < deadline);
	assert_int_equal(after.pd, before.pd);
	assert_int_equal(after.cq, before.cq);
	assert_int_equal(after.qp, before.qp);
	assert_int_equal(after.cm_id, before.cm_id);
	assert_int_equal(after.mr, before.mr);
	assert_int_equal(after.fds, before.fds);
	assert_int_equal(after.pinned_kib, before.pinned_kib);
	assert_int_equal(after.pinned_kib, 0);
}

static int try_device(void)
{
	const struct tp_domain_params params = { .local = rig_host(), .depth = 1 };
	struct mf_error err = { 0 };
	struct tp_domain *domain;

	if (tp_domain_open(tp_find("verbs"), &params, &domain, &err)) {
		(void)printf("SKIP: %s\n", err.msg);
		return 77;
	}
	tp_domain_close(domain);
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_removed_device_fails_its_lanes),
		cmocka_unit_test(an_address_without_a_device_is_named),
		cmocka_unit_test(unsignalled_operations_complete_once),
		cmocka_unit_test(a_small_queue_moves_everything),
		cmocka_unit_test(memory_mapped_for_reading_can_be_a_source),
		cmocka_unit_test(registering_on_demand_is_only_asked_for),
		cmocka_unit_test(strangers_are_refused),
		cmocka_unit_test(half_a_connection_does_not_hinder),
		cmocka_unit_test(the_addresses_of_the_device_are_paths),
		cmocka_unit_test(a_silent_peer_fails_what_is_outstanding),
		cmocka_unit_test(a_late_write_changes_nothing),
		cmocka_unit_test(revoking_on_a_broken_lane_revokes),
		cmocka_unit_test(a_queue_pair_in_error_fails_the_lane_for_good),
		cmocka_unit_test(nothing_stays_behind),
		cmocka_unit_test(a_port_that_goes_down_fails_its_lanes),
	};
	const struct CMUnitTest parts[] = {
		cmocka_unit_test(bytes_move_when_the_device_goes),
		cmocka_unit_test(bytes_move_again),
	};

	if (argc == 3 && !strcmp(argv[2], "device"))
		return try_device();
	if (argc == 3) {
		cmocka_set_test_filter(argv[2]);
		return cmocka_run_group_tests_name(argv[1], parts, NULL, NULL);
	}
	int status = run_self("device");
	if (status)
		return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
	if (argc == 2)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("verbs", tests, NULL, NULL);
}
