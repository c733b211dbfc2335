/* SPDX-License-Identifier: BSD-2-Clause */
/* The QMP client against scripted peers on a real socket, and the parsers against recorded texts of QEMU. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "hv-adapters/qemu/qemu_parse.h"
#include "hv-adapters/qemu/qmp.h"

#define GREETING \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}}}\r\n"
#define OK_1  "{\"return\": {}, \"id\": 1}\r\n"
#define STAMP "\"timestamp\": {\"seconds\": 1700000000, \"microseconds\": 5}"

/* ---- parsers ---- */

static void scan_finds_message_ends(void **state)
{
	(void)state;
	const char *text = " \r\n{\"a\": \"}\\\"{\", \"b\": [{}, \"\\\\\"]}{\"c\":1}\n";
	size_t first = strlen(" \r\n{\"a\": \"}\\\"{\", \"b\": [{}, \"\\\\\"]}");
	struct qemu_json_scan scan = { 0 };
	/* byte by byte, as a slow socket would give it */
	for (size_t n = 1; n < first; n++)
		assert_int_equal(qemu_json_scan(&scan, text, n), 0);
	assert_int_equal(qemu_json_scan(&scan, text, strlen(text)), first);
	assert_int_equal(qemu_json_scan(&scan, text + first, strlen(text) - first), 7);
	assert_int_equal(qemu_json_scan(&scan, text + first + 7, 1), 0);
}

static void scan_refuses_what_is_no_object(void **state)
{
	(void)state;
	struct qemu_json_scan scan = { 0 };
	const char *hmp = "QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ";
	assert_true(qemu_json_scan(&scan, hmp, strlen(hmp)) == QEMU_JSON_BAD);
	scan = (struct qemu_json_scan){ 0 };
	assert_true(qemu_json_scan(&scan, "\x80{", 2) == QEMU_JSON_BAD);
}

static void ramblocks_of_7_2_and_10(void **state)
{
	(void)state;
	static const char v7[] = "              Block Name    PSize              Offset            "
				 "   Used              Total\n"
				 "                    ram0    4 KiB  0x0000000000000000 "
				 "0x0000000008000000 0x0000000008000000\n"
				 "0000:00:02.0/virtio-net-pci.rom    4 KiB  0x0000000008280000 "
				 "0x0000000000040000 0x0000000000040000\n"
				 "                            4 KiB  0x0000000008000000 "
				 "0x0000000000100000 0x0000000000100000\n"
				 "                  mem hi    1 GiB  0x0000000040000000 "
				 "0x0000000080000000 0x0000000080000000\n";
	static const char v10[] =
		"              Block Name    PSize              Offset               Used          "
		"    Total                HVA  RO\r\n"
		"           /objects/ram0    2 MiB  0x0000000000000000 0x0000000008000000 "
		"0x0000000008000000 0x00007f26b7e00000  rw\r\n";
	struct qemu_ramblock b[8];
	assert_int_equal(qemu_parse_ramblocks(v7, b, 8), 4);
	assert_string_equal(b[0].name, "ram0");
	assert_int_equal(b[0].page_size, 4096);
	assert_int_equal(b[0].used, 128 << 20);
	assert_string_equal(b[1].name, "0000:00:02.0/virtio-net-pci.rom");
	assert_string_equal(b[2].name, "");
	assert_string_equal(b[3].name, "mem hi");
	assert_int_equal(b[3].page_size, 1 << 30);
	assert_int_equal(qemu_parse_ramblocks(v10, b, 8), 1);
	assert_string_equal(b[0].name, "/objects/ram0");
	assert_int_equal(b[0].page_size, 2 << 20);
	assert_int_equal(qemu_parse_ramblocks(v7, b, 1), 4);
	assert_int_equal(qemu_parse_ramblocks("", b, 8), 0);
	assert_int_equal(qemu_parse_ramblocks("iB 0x1 0x2 0x3\n x 0x\nKiB  0x1 0x1 0x1", b, 8), 0);
	assert_true(qemu_ramblock_is("ram0", "ram0"));
	assert_true(qemu_ramblock_is("/objects/ram0", "ram0"));
	assert_true(qemu_ramblock_is("0000:00:02.0/ram0", "ram0"));
	assert_false(qemu_ramblock_is("ram01", "ram0"));
	assert_false(qemu_ramblock_is("", "ram0"));
}

static void placement_in_the_flat_view(void **state)
{
	(void)state;
	/* i440fx with 6 GiB: one block below and above 4 GiB; a view that is not the CPUs' comes first */
	static const char tree[] =
		"FlatView #0\n"
		" AS \"I/O\", root: io\n"
		" Root memory region: io\n"
		"  0000000000000000-0000000000000007 (prio 0, i/o): ram0\n"
		"\n"
		"FlatView #1\n"
		" AS \"cpu-memory-0\", root: system\n"
		" AS \"memory\", root: system\n"
		" Root memory region: system\n"
		"  0000000000000000-00000000000bffff (prio 0, ram): ram0 KVM\n"
		"  00000000000c0000-00000000000cafff (prio 0, rom): ram0 @00000000000c0000 KVM\n"
		"  0000000000100000-00000000bfffffff (prio 0, ram): ram0 @0000000000100000 KVM\n"
		"  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram KVM\n"
		"  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios KVM\n"
		"  0000000100000000-00000001bfffffff (prio 0, ram): ram0 @00000000c0000000 KVM\n"
		"  0000000240000000-000000027fffffff (prio 0, nv-ram): /objects/nv "
		"@0000000000001000\n"
		"\n"
		"FlatView #2\n"
		" AS \"cpu-smm-0\", root: memory\n"
		"  0000000000000000-0000000000ffffff (prio 0, ram): late\n";
	struct qemu_placed at;
	assert_true(qemu_parse_placed(tree, "ram0", &at));
	assert_int_equal(at.gpa, 0);
	assert_int_equal(at.offset, 0);
	assert_true(qemu_parse_placed(tree, "nv", &at));
	assert_int_equal(at.gpa, 0x240000000);
	assert_int_equal(at.offset, 0x1000);
	assert_false(qemu_parse_placed(tree, "ram", &at));
	assert_false(qemu_parse_placed(tree, "late", &at));
	assert_false(qemu_parse_placed("", "ram0", &at));
}

static void host_address(void **state)
{
	(void)state;
	uint64_t hva;
	assert_true(qemu_parse_gpa2hva("Host virtual address for 0x0 (m0) is 0x7f1a7bfff000\r\n",
				       "m0", &hva));
	assert_int_equal(hva, 0x7f1a7bfff000);
	assert_true(qemu_parse_gpa2hva(
		"Host virtual address for 0x0 (/objects/m0) is 0x7f1a7bfff000\n", "m0", &hva));
	assert_false(qemu_parse_gpa2hva("Host virtual address for 0x0 (pc.bios) is 0x7f1a7bfff000",
					"m0", &hva));
	assert_false(
		qemu_parse_gpa2hva("No memory is mapped at address 0xe0000000\r\n", "m0", &hva));
	assert_false(qemu_parse_gpa2hva("", "m0", &hva));
}

static void mapping_lines(void **state)
{
	(void)state;
	struct qemu_mapping m;
	assert_true(qemu_parse_mapping("7f1a77ffe000-7f1a7bffe000 rw-s 00200000 00:1b 27           "
				       "              /memfd:x (deleted)\n",
				       &m));
	assert_int_equal(m.start, 0x7f1a77ffe000);
	assert_int_equal(m.end, 0x7f1a7bffe000);
	assert_int_equal(m.offset, 0x200000);
	assert_int_equal(m.dev_major, 0);
	assert_int_equal(m.dev_minor, 0x1b);
	assert_int_equal(m.inode, 27);
	assert_true(m.is_shared && m.is_writable);
	assert_true(qemu_parse_mapping("55e0-55f0 r--p 00000000 fe:00 0 \n", &m));
	assert_false(m.is_shared || m.is_writable);
	assert_false(qemu_parse_mapping("", &m));
	assert_false(qemu_parse_mapping("VmFlags: rd wr\n", &m));
}

static void devices_that_cannot_move(void **state)
{
	(void)state;
	static const char *const refused[] = {
		"vfio-pci",
		"vfio-pci-nohotplug",
		"vfio-user-pci",
		"vfio-ap",
		"vhost-user-blk-pci",
		"vhost-user-fs-pci",
		"vhost-user-gpu",
		"vhost-user-vsock-pci",
		"vhost-vdpa-device-pci",
		"virtio-balloon-pci",
		"virtio-balloon-device",
		"virtio-mem-pci",
		"virtio-pmem-pci",
		"ivshmem-plain",
		"ivshmem-doorbell",
		"pvrdma",
		"x-pci-proxy-dev",
	};
	static const char *const fine[] = {
		"virtio-net-pci",  "virtio-blk-pci", "virtio-scsi-pci",
		"vhost-vsock-pci", "vhost-scsi-pci", "VGA",
		"e1000",           "nvme",           "virtio-rng-pci",
		"pc-dimm",         "nvdimm",         "",
	};
	const char *why = NULL;
	for (size_t i = 0; i < BASE_ARRAY_LEN(refused); i++) {
		why = NULL;
		assert_int_equal(qemu_classify_device(refused[i], &why), MF_REFUSE);
		assert_non_null(why);
	}
	for (size_t i = 0; i < BASE_ARRAY_LEN(fine); i++)
		assert_int_equal(qemu_classify_device(fine[i], &why), MF_OK);
}

static void network_backends_that_cannot_move(void **state)
{
	(void)state;
	const char *at = "virtio-net-pci.0: "
			 "index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r\n"
			 " \\ n0: index=0,type=user,net=10.0.2.0,restrict=off\r\n"
			 "virtio-net-pci.1: "
			 "index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:57\r\n"
			 " \\ dpdk: index=0,type=vhost-user\r\n"
			 " \\ hw: index=0,type=vhost-vdpa,vhostdev=/dev/vhost-vdpa-0\r\n"
			 "tap0: index=0,type=tap,ifname=vhost-user,script=no\r\n";
	char name[32];
	const char *why;
	assert_true(qemu_next_bad_netdev(&at, name, sizeof(name), &why));
	assert_string_equal(name, "dpdk");
	assert_true(qemu_next_bad_netdev(&at, name, sizeof(name), &why));
	assert_string_equal(name, "hw");
	assert_false(qemu_next_bad_netdev(&at, name, sizeof(name), &why));
}

/* ---- a scripted peer ---- */

struct peer {
	char dir[32], path[64];
	pid_t pid;
};

typedef void (*script_fn)(int fd);

static void send_text(int fd, const char *text)
{
	size_t n = strlen(text);
	while (n) {
		ssize_t sent = send(fd, text, n, MSG_NOSIGNAL);
		if (sent <= 0)
			_exit(0);
		text += sent;
		n -= (size_t)sent;
	}
}

/* Waits until the client has sent one whole message. */
static void take_command(int fd)
{
	char buf[4096];
	size_t have = 0;
	struct qemu_json_scan scan = { 0 };
	while (qemu_json_scan(&scan, buf, have) == 0) {
		ssize_t n = recv(fd, buf + have, sizeof(buf) - have, 0);
		if (n <= 0)
			_exit(0);
		have += (size_t)n;
	}
}

static void start_peer(struct peer *p, script_fn script)
{
	(void)snprintf(p->dir, sizeof(p->dir), "/tmp/mf-qmp-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	(void)snprintf(p->path, sizeof(p->path), "%s/qmp", p->dir);
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", p->path);
	assert_int_equal(bind(listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(listener, 4), 0);
	p->pid = fork();
	assert_true(p->pid >= 0);
	if (p->pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		script(accept(listener, NULL, NULL));
		_exit(0);
	}
	(void)close(listener);
}

static void stop_peer(struct peer *p)
{
	(void)kill(p->pid, SIGKILL);
	(void)waitpid(p->pid, NULL, 0);
	(void)unlink(p->path);
	(void)rmdir(p->dir);
}

static void play_interleaved(int fd)
{
	send_text(fd, GREETING);
	take_command(fd);
	send_text(fd, "{\"event\": \"RTC_CHANGE\", " STAMP "}\r\n" OK_1);
	take_command(fd);
	send_text(fd, "{\"event\": \"STOP\", " STAMP "}\r\n{\"event\": \"MIGR");
	send_text(fd, "ATION\", \"data\": {\"status\": \"pre-switchover\"}, " STAMP "}\r\n");
	/* an answer that nobody waits for any more, then ours, big and in pretty print */
	send_text(fd, OK_1 "{\r\n  \"return\": [\r\n");
	for (int i = 0; i < 40000; i++)
		send_text(fd, "    {\"name\": \"a \\\"quoted\\\" } name\"},\r\n");
	send_text(fd, "    7],\r\n  \"id\": 2\r\n}\r\n");
	take_command(fd);
	send_text(fd,
		  "{\"id\": 3, \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command "
		  "nope has not been found\"}}\r\n");
	take_command(fd);
	send_text(fd, "{\"id\": 4, \"error\": {\"class\": \"GenericError\", \"desc\": "
		      "\"No\\nway.\"}}\r\n");
}

static void client_keeps_order_under_events(void **state)
{
	(void)state;
	struct peer p;
	start_peer(&p, play_interleaved);
	struct qmp *q = NULL;
	struct mf_error err = { 0 };
	assert_int_equal(qmp_open(p.path, base_deadline_ms(20000), &q, &err), 0);
	assert_int_equal(qmp_peer(q), getpid()); /* who called listen() */
	uint64_t deadline = base_deadline_ms(20000);
	qmp_autojson ret = NULL;
	assert_int_equal(
		qmp_execute(q, "list", json_pack("{s:i}", "a", 1), -1, deadline, &ret, &err), 0);
	assert_int_equal(json_array_size(ret), 40001);
	struct qmp_event e;
	assert_true(qmp_take_event(q, &e));
	assert_string_equal(e.name, "STOP");
	assert_true(e.at_us <= base_now_us());
	assert_true(qmp_take_event(q, &e));
	assert_string_equal(e.name, "MIGRATION");
	assert_string_equal(e.status, "pre-switchover");
	assert_false(qmp_take_event(q, &e));
	assert_int_equal(qmp_execute(q, "nope", NULL, -1, deadline, NULL, &err), -EOPNOTSUPP);
	err = (struct mf_error){ 0 };
	assert_int_equal(qmp_execute(q, "no", NULL, -1, deadline, NULL, &err), -EREMOTEIO);
	assert_string_equal(err.msg, "QEMU refused no: No way");
	/* the script is over: the peer is gone, and that is said each time */
	for (int i = 0; i < 2; i++) {
		err = (struct mf_error){ 0 };
		assert_int_equal(qmp_execute(q, "x", NULL, -1, deadline, NULL, &err), -ESRCH);
		assert_true(err.msg[0]);
	}
	qmp_close(q);
	stop_peer(&p);
}

static void play_silence_after_greeting(int fd)
{
	send_text(fd, GREETING);
	take_command(fd);
	send_text(fd, OK_1);
	for (;;)
		take_command(fd);
}

static void client_gives_up_at_the_deadline(void **state)
{
	(void)state;
	struct peer p;
	start_peer(&p, play_silence_after_greeting);
	struct qmp *q = NULL;
	struct mf_error err = { 0 };
	assert_int_equal(qmp_open(p.path, base_deadline_ms(20000), &q, &err), 0);
	assert_int_equal(qmp_execute(q, "x", NULL, -1, base_deadline_ms(50), NULL, &err),
			 -ETIMEDOUT);
	qmp_close(q);
	stop_peer(&p);
}

static void play_getfd(int fd)
{
	send_text(fd, GREETING);
	take_command(fd);
	send_text(fd, OK_1);
	char buf[512];
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.bytes,
			      .msg_controllen = sizeof(control.bytes) };
	if (recvmsg(fd, &msg, 0) <= 0 || !CMSG_FIRSTHDR(&msg))
		_exit(0);
	int got;
	memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(got));
	(void)!write(got, "hello", 5);
	send_text(fd, "{\"return\": {}, \"id\": 2}");
	take_command(fd);
}

static void client_passes_descriptors(void **state)
{
	(void)state;
	struct peer p;
	start_peer(&p, play_getfd);
	struct qmp *q = NULL;
	struct mf_error err = { 0 };
	assert_int_equal(qmp_open(p.path, base_deadline_ms(20000), &q, &err), 0);
	int ends[2];
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_int_equal(qmp_execute(q, "getfd", json_pack("{s:s}", "fdname", "f"), ends[1],
				     base_deadline_ms(20000), NULL, &err),
			 0);
	char buf[8];
	assert_int_equal(read(ends[0], buf, sizeof(buf)), 5);
	(void)close(ends[0]);
	(void)close(ends[1]);
	qmp_close(q);
	stop_peer(&p);
}

static void play_hmp(int fd)
{
	send_text(fd, "QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ");
	take_command(fd);
}

static void play_other_json(int fd)
{
	send_text(fd, "{\"hello\": 1}\n");
	take_command(fd);
}

static void play_nothing(int fd)
{
	take_command(fd);
}

static void play_hang_up(int fd)
{
	(void)fd;
}

static void opening_says_what_is_wrong(void **state)
{
	(void)state;
	static const struct {
		script_fn script;
		int code;
		const char *says;
	} cases[] = {
		{ play_hmp, -EPROTO, "no QMP socket" },
		{ play_other_json, -EPROTO, "no QMP socket" },
		{ play_nothing, -EBUSY, "another client is connected" },
		{ play_hang_up, -ESRCH, "closed before the greeting" },
	};
	struct qmp *q = NULL;
	for (size_t i = 0; i < BASE_ARRAY_LEN(cases); i++) {
		struct peer p;
		struct mf_error err = { 0 };
		start_peer(&p, cases[i].script);
		uint64_t deadline = base_deadline_ms(cases[i].code == -EBUSY ? 100 : 20000);
		assert_int_equal(qmp_open(p.path, deadline, &q, &err), cases[i].code);
		assert_non_null(strstr(err.msg, cases[i].says));
		stop_peer(&p);
		err = (struct mf_error){ 0 };
		assert_int_equal(qmp_open(p.path, deadline, &q, &err), -ENOENT);
		assert_non_null(strstr(err.msg, "does not exist"));
	}
	struct mf_error err = { 0 };
	assert_int_equal(qmp_open("/dev/null", base_deadline_ms(20000), &q, &err), -ENOTSOCK);
	assert_non_null(strstr(err.msg, "is not a socket"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(scan_finds_message_ends),
		cmocka_unit_test(scan_refuses_what_is_no_object),
		cmocka_unit_test(ramblocks_of_7_2_and_10),
		cmocka_unit_test(placement_in_the_flat_view),
		cmocka_unit_test(host_address),
		cmocka_unit_test(mapping_lines),
		cmocka_unit_test(devices_that_cannot_move),
		cmocka_unit_test(network_backends_that_cannot_move),
		cmocka_unit_test(client_keeps_order_under_events),
		cmocka_unit_test(client_gives_up_at_the_deadline),
		cmocka_unit_test(client_passes_descriptors),
		cmocka_unit_test(opening_says_what_is_wrong),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
