/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How the control channel is secured: the files, the handshake over real sockets, and everybody who must be refused.
 * Certificates and foreign peers are made by the openssl command.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/event.h"
#include "wire/accept.h"
#include "wire/socket.h"

/* Nothing here takes long, but for a machine that is busy with other things. */
#define PATIENCE_MS 30000
#define KEY         "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

static char root[64]; /* of all files; the tests' working directory */

/* ---- commands ---- */

static pid_t start(int out_fd, const char *const argv[])
{
	pid_t parent = getpid(), child = fork();
	assert_true(child >= 0);
	if (child)
		return child;
	int null = open("/dev/null", O_RDWR);
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(99);
	(void)dup2(null, 0);
	(void)dup2(out_fd >= 0 ? out_fd : null, 1);
	(void)dup2(null, 2);
	execvp(argv[0], (char *const *)argv);
	_exit(98);
}

static void run(const char *line)
{
	char text[512], *rest = text;
	const char *argv[48];
	size_t n = 0;
	int status;
	(void)snprintf(text, sizeof(text), "%s", line);
	for (char *word; (word = strsep(&rest, " "));) {
		assert_true(n < BASE_ARRAY_LEN(argv) - 1);
		argv[n++] = word;
	}
	argv[n] = NULL;
	pid_t child = start(-1, argv);
	assert_int_equal(waitpid(child, &status, 0), child);
	if (status)
		fail_msg("%s: status %d", line, status);
}

static void write_file(const char *path, const char *text, mode_t mode)
{
	base_autofd fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	assert_int_equal(fchmod(fd, mode), 0);
}

/* A key and a certificate that the CA in the directory `ca` signs: DIR/NAME-{key,cert}.pem. */
static void certify(const char *dir, const char *name, const char *ca, const char *subject,
		    const char *more, bool is_past)
{
	char line[512];
	(void)snprintf(line, sizeof(line),
		       "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "
		       "%s/%s-key.pem -out request -subj /CN=%s%s%s",
		       dir, name, subject, more ? " -addext " : "", more ? more : "");
	run(line);
	(void)snprintf(line, sizeof(line),
		       "openssl ca -config ca.cnf -batch -notext -cert "
		       "%s/ca-cert.pem -keyfile %s/ca-key.pem -in request -out %s/%s-cert.pem "
		       "-startdate 20200101000000Z -enddate %s0101000000Z",
		       ca, ca, dir, name, is_past ? "2021" : "2099");
	run(line);
}

static void make_ca(const char *dir)
{
	char line[512];
	(void)snprintf(line, sizeof(line),
		       "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
		       "-keyout %s/ca-key.pem -out %s/ca-cert.pem -days 9 -subj /CN=CA",
		       dir, dir);
	assert_int_equal(mkdir(dir, 0700), 0);
	run(line);
}

#define DST "subjectAltName=DNS:dst.example,IP:127.0.0.1"
#define SRC "subjectAltName=DNS:src.example"

static void revoke_client(void)
{
	run("cp -a good revoked");
	run("openssl ca -config ca.cnf -revoke good/client-cert.pem");
	run("openssl ca -config ca.cnf -gencrl -out revoked/ca-crl.pem");
}

static int make_files(void **state)
{
	(void)state;
	(void)snprintf(root, sizeof(root), "/tmp/mf-security-XXXXXX");
	assert_non_null(mkdtemp(root));
	assert_int_equal(chdir(root), 0);
	write_file("ca.cnf",
		   "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ncertificate=good/ca-cert.pem\n"
		   "private_key=good/ca-key.pem\ndefault_md=sha256\ndefault_crl_days=9\n"
		   "new_certs_dir=.\npolicy=p\nunique_subject=no\nrand_serial=yes\ncopy_extensions="
		   "copy\n"
		   "[p]\ncommonName=supplied\n",
		   0600);
	write_file("index", "", 0600);
	make_ca("good");
	make_ca("other"); /* its CA has the same name */
	certify("good", "server", "good", "dst.example", DST, false);
	certify("good", "client", "good", "src.example", SRC, false);
	certify("other", "server", "other", "dst.example", DST, false);
	certify("other", "client", "other", "src.example", SRC, false);
	run("cp -a good expired");
	certify("expired", "server", "good", "dst.example", DST, true);
	certify("expired", "client", "good", "src.example", SRC, true);
	run("cp -a good nameless"); /* a subject, and no other name */
	certify("nameless", "server", "good", "dst.example", NULL, false);
	certify("nameless", "client", "good", "src.example", NULL, false);
	run("cp -a good named");
	certify("named", "client", "good", "migrator", SRC, false);
	revoke_client();
	write_file("key", KEY "\n", 0600);
	write_file("key2", "ff" KEY "\n", 0600);
	return 0;
}

/* Also when they could not all be made. */
static void remove_files(void)
{
	const char *const argv[] = { "rm", "-rf", root, NULL };
	if (chdir("/") == 0 && root[0])
		(void)waitpid(start(-1, argv), NULL, 0);
}

/* ---- files ---- */

static void expect_load(bool is_server, const char *dir, const char *psk, const char *peers,
			const char *sentence)
{
	const struct wire_security_params params = {
		.is_server = is_server, .tls_dir = dir, .psk = psk, .peers = peers
	};
	struct wire_security *security = NULL;
	struct mf_error err = { 0 };
	int r = wire_security_load(&params, &security, &err);
	wire_security_free(security);
	if (!sentence && r)
		fail_msg("%s: %s", dir ? dir : psk, err.msg);
	if (sentence && (r != -MF_EUSAGE || !strstr(err.msg, sentence)))
		fail_msg("wanted '%s', got %d '%s'", sentence, r, err.msg);
}

static void a_directory_must_be_whole(void **state)
{
	static const struct {
		const char *damage;
		const char *sentence;
	} cases[] = {
		{ "rm bad/ca-cert.pem", "bad/ca-cert.pem: cannot be read: No such file" },
		{ "rm bad/server-cert.pem", "bad/server-cert.pem: cannot be read: No such file" },
		{ "rm bad/server-key.pem", "bad/server-key.pem: cannot be read: No such file" },
		{ "cp key bad/ca-cert.pem", "bad/ca-cert.pem: holds no certificate" },
		{ "cp key bad/server-cert.pem", "bad/server-cert.pem: holds no certificate" },
		{ "cp bad/server-cert.pem bad/server-key.pem",
		  "bad/server-key.pem: holds no private key" },
		{ "openssl ec -in good/server-key.pem -aes128 -passout pass:x -out "
		  "bad/server-key.pem",
		  "bad/server-key.pem: holds no private key in PEM format without a passphrase" },
		{ "cp bad/client-key.pem bad/server-key.pem",
		  "bad/server-key.pem: is not the key of server-cert.pem" },
		{ "chmod 640 bad/server-key.pem",
		  "bad/server-key.pem: others may read this key (mode 0640); chmod 600 it" },
		{ "chmod 604 bad/server-key.pem", "(mode 0604); chmod 600 it" },
		{ "cp key bad/ca-crl.pem", "bad/ca-crl.pem: holds no list of revoked" },
		{ "rm -r bad", "bad/ca-cert.pem: cannot be read: No such file" },
	};
	(void)state;
	for (size_t i = 0; i < BASE_ARRAY_LEN(cases); i++) {
		run("cp -a good bad");
		run(cases[i].damage);
		expect_load(true, "bad", NULL, NULL, cases[i].sentence);
		run("rm -rf bad");
	}
	/* Neither side needs what is the other's. */
	run("cp -a good half");
	run("rm half/server-cert.pem half/server-key.pem half/ca-key.pem");
	expect_load(false, "half", NULL, NULL, NULL);
	expect_load(true, "half", NULL, NULL, "half/server-cert.pem: cannot be read");
	run("cp -a good public"); /* a CA's certificate is no secret */
	run("chmod 644 public/ca-cert.pem public/server-cert.pem");
	expect_load(true, "public", NULL, NULL, NULL);
}

static void a_key_file_holds_one_key(void **state)
{
	static const struct {
		const char *text;
		mode_t mode;
		const char *sentence; /* NULL: it is right */
	} cases[] = {
		{ KEY "\n", 0600, NULL },
		{ KEY, 0400, NULL },
		{ "migration:" KEY "\n", 0600, NULL },
		{ "# made on Monday\n\n  " KEY " \r\n", 0600, NULL },
		{ "ABCDEF0123456789abcdef0123456789\n", 0600, NULL },
		{ KEY KEY "\n", 0600, NULL },
		{ KEY "\n", 0604, "others may read this key (mode 0604); chmod 600 it" },
		{ KEY "\n", 0640, "others may read this key (mode 0640)" },
		{ KEY "\n", 0610, "others may read this key" },
		{ "", 0600, "holds no key" },
		{ "# nothing\n", 0600, "holds no key" },
		{ "0123456789abcdef0123456789abcd\n", 0600, "shorter than 128 bits" },
		{ "name:\n", 0600, "shorter than 128 bits" },
		{ KEY "0\n", 0600, "32 to 128 hexadecimal digits" },
		{ KEY KEY "00\n", 0600, "32 to 128 hexadecimal digits" },
		{ "correct horse battery staple and more\n", 0600, "hexadecimal digits" },
		{ KEY "\n" KEY "\n", 0600, "more than one key" },
	};
	(void)state;
	for (size_t i = 0; i < BASE_ARRAY_LEN(cases); i++) {
		write_file("psk", cases[i].text, cases[i].mode);
		expect_load(i % 2, NULL, "psk", NULL, cases[i].sentence);
	}
	expect_load(true, NULL, "none", NULL, "none: cannot be read: No such file");
	expect_load(true, NULL, "good", NULL, "good: not a file");
	assert_int_equal(mkfifo("fifo", 0600), 0);
	expect_load(true, NULL, "fifo", NULL, "fifo: not a file"); /* and does not wait for it */
}

static void peer_names_are_names(void **state)
{
	static const char *const bad[] = { "", ",", "a,", ",a", "a,,b", "a, b", ".example" };
	(void)state;
	for (size_t i = 0; i < BASE_ARRAY_LEN(bad); i++)
		expect_load(true, "good", NULL, bad[i], "want host names or addresses");
	expect_load(true, "good", NULL, "a", NULL);
	expect_load(true, "good", NULL, "a.example,192.0.2.1,fd00::1", NULL);
}

/* ---- two ends ---- */

/* "psk:FILE", "DIR" or "DIR NAMES"; NULL: plain */
struct ends {
	int event[2], listen_fd;
	char address[64];
	uint16_t port;
	struct wire_security *security[2]; /* server's, client's */
	struct wire_channel *ch[2];
};

enum { SERVER, CLIENT };

static struct wire_security *load(bool is_server, const char *how)
{
	struct wire_security_params params = { .is_server = is_server };
	struct wire_security *security = NULL;
	struct mf_error err = { 0 };
	char text[128], *names = text;
	if (!how)
		return NULL;
	(void)snprintf(text, sizeof(text), "%s", how);
	if (!strncmp(text, "psk:", 4))
		params.psk = text + 4;
	else
		params.tls_dir = strsep(&names, " ");
	params.peers = params.psk ? NULL : names;
	if (wire_security_load(&params, &security, &err))
		fail_msg("%s: %s", how, err.msg);
	return security;
}

static struct wire_channel_params channel_params(const struct ends *e, int side)
{
	return (struct wire_channel_params){ .notify_fd = e->event[side],
					     .peer_timeout_ms = PATIENCE_MS,
					     .security = e->security[side],
					     .host = "127.0.0.1",
					     .handshake_ms = PATIENCE_MS };
}

static void prepare(struct ends *e, const char *server, const char *client)
{
	memset(e, 0, sizeof(*e));
	for (int i = 0; i < 2; i++) {
		e->event[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		e->security[i] = load(i == SERVER, i == SERVER ? server : client);
	}
	assert_int_equal(
		wire_listen("127.0.0.1", 0, &e->listen_fd, e->address, sizeof(e->address), NULL),
		0);
	e->port = (uint16_t)strtoul(strrchr(e->address, ':') + 1, NULL, 10);
}

static int connect_to(uint16_t port)
{
	int fd = -1;
	assert_int_equal(
		wire_connect("127.0.0.1", port, -1, base_deadline_ms(PATIENCE_MS), &fd, NULL), 0);
	return fd;
}

static void open_end(struct ends *e, int side, int fd)
{
	const struct wire_channel_params params = channel_params(e, side);
	assert_int_equal(wire_channel_open(&fd, &params, &e->ch[side], NULL), 0);
}

static void accept_server(struct ends *e)
{
	int fd = -1;
	assert_int_equal(wire_accept(e->listen_fd, -1, base_deadline_ms(PATIENCE_MS), &fd, NULL),
			 0);
	open_end(e, SERVER, fd);
}

static void open_ends(struct ends *e, const char *server, const char *client)
{
	prepare(e, server, client);
	open_end(e, CLIENT, connect_to(e->port));
	accept_server(e);
}

static void close_ends(struct ends *e)
{
	for (int i = 0; i < 2; i++) {
		wire_channel_close(e->ch[i]);
		wire_security_free(e->security[i]);
		close(e->event[i]);
	}
	close(e->listen_fd);
}

static void wait_event(int fd, uint64_t deadline_us)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	assert_true(base_now_us() < deadline_us);
	if (poll(&p, 1, base_left_ms(deadline_us)) > 0)
		base_event_take(fd);
}

static int await_secure(struct ends *e, int side, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(PATIENCE_MS);
	int r;
	while ((r = wire_channel_is_secure(e->ch[side], err)) == 0)
		wait_event(e->event[side], deadline);
	return r;
}

static int await_message(struct ends *e, int side, wire_msg **ret, struct mf_error *err)
{
	uint64_t deadline = base_deadline_ms(PATIENCE_MS);
	int r;
	while ((r = wire_channel_next(e->ch[side], ret, err)) == 0)
		wait_event(e->event[side], deadline);
	return r;
}

static void send_state(struct wire_channel *ch, size_t len)
{
	Mf__Wire__State body = MF__WIRE__STATE__INIT;
	wire_msg msg = WIRE_INIT;
	msg.body_case = WIRE_BODY(STATE);
	msg.state = &body;
	body.data.len = len;
	body.data.data = malloc(len);
	memset(body.data.data, 0x5a, len);
	assert_int_equal(wire_channel_send(ch, &msg, NULL), 0);
	free(body.data.data);
}

static void expect_state(struct ends *e, int side, size_t len)
{
	struct mf_error err = { 0 };
	wire_msg *msg;
	if (await_message(e, side, &msg, &err) != 1)
		fail_msg("%s", err.msg);
	assert_int_equal(msg->body_case, WIRE_BODY(STATE));
	assert_int_equal(msg->state->data.len, len);
	assert_int_equal(msg->state->data.data[len - 1], 0x5a);
	wire_msg_free(msg);
}

static void expect_secure(struct ends *e)
{
	struct mf_error err = { 0 };
	for (int i = 0; i < 2; i++) {
		if (await_secure(e, i, &err) != 1)
			fail_msg("%s: %s", i == SERVER ? "server" : "client", err.msg);
	}
}

static void *send_many(void *arg)
{
	for (int i = 0; i < 40; i++)
		send_state(arg, 1000000);
	return NULL;
}

static void expect_friends(const char *server, const char *client)
{
	struct ends e;
	open_ends(&e, server, client);
	expect_secure(&e);
	send_state(e.ch[CLIENT], 10);
	expect_state(&e, SERVER, 10);
	send_state(e.ch[SERVER], 3000000);
	expect_state(&e, CLIENT, 3000000);
	close_ends(&e);
}

static void friends_talk(void **state)
{
	(void)state;
	expect_friends("good", "good");
	expect_friends("good src.example", "good dst.example");
	expect_friends("good other.example,src.example", "good 192.0.2.1,127.0.0.1");
	expect_friends("nameless src.example", "nameless dst.example");
	expect_friends("good migrator", "named"); /* a subject, beside another name */
	expect_friends("psk:key", "psk:key");
	expect_friends(NULL, NULL);
}

/* Both directions at once, more than sockets and queues hold. */
static void both_may_talk_at_once(void **state)
{
	struct ends e;
	pthread_t sender[2];
	(void)state;
	open_ends(&e, "psk:key", "psk:key");
	expect_secure(&e);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&sender[i], NULL, send_many, e.ch[i]), 0);
	for (int k = 0; k < 40; k++) {
		expect_state(&e, SERVER, 1000000);
		expect_state(&e, CLIENT, 1000000);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(sender[i], NULL);
	close_ends(&e);
}

static void an_end_is_told_after_the_messages(void **state)
{
	struct ends e;
	wire_msg *msg;
	(void)state;
	open_ends(&e, "good", "good");
	expect_secure(&e);
	send_state(e.ch[CLIENT], 10);
	wire_channel_close(e.ch[CLIENT]);
	e.ch[CLIENT] = NULL;
	expect_state(&e, SERVER, 10);
	assert_int_equal(await_message(&e, SERVER, &msg, NULL), -ECONNRESET);
	close_ends(&e);
}

static void exported_keys_are_equal(void **state)
{
	static const char *const ways[] = { "good", "psk:key" };
	(void)state;
	uint8_t before[32] = { 0 };
	for (size_t i = 0; i < BASE_ARRAY_LEN(ways); i++) {
		struct ends e;
		uint8_t key[2][32] = { { 0 } }, another[32];
		open_ends(&e, ways[i], ways[i]);
		expect_secure(&e);
		for (int k = 0; k < 2; k++)
			assert_int_equal(wire_channel_export(e.ch[k], "EXPORTER-test", key[k], 32),
					 0);
		assert_int_equal(wire_channel_export(e.ch[0], "EXPORTER-other", another, 32), 0);
		assert_memory_equal(key[0], key[1], 32);
		assert_memory_not_equal(key[0], another, 32);
		assert_memory_not_equal(key[0], before, 32); /* each connection has its own */
		memcpy(before, key[0], 32);
		close_ends(&e);
	}
	struct ends e;
	open_ends(&e, NULL, NULL);
	assert_int_equal(wire_channel_export(e.ch[0], "EXPORTER-test", before, 32), -EOPNOTSUPP);
	close_ends(&e);
}

/* ---- who is refused ---- */

static void expect_sentence(struct ends *e, int side, const char *sentence)
{
	struct mf_error err = { 0 };
	wire_msg *msg;
	int r = await_message(e, side, &msg, &err);
	if (r != -MF_ESECURITY || !strstr(err.msg, sentence))
		fail_msg("%s: wanted '%s', got %d '%s'", side == SERVER ? "server" : "client",
			 sentence, r, r < 0 ? err.msg : "a message");
}

static void strangers_are_refused_on_both_sides(void **state)
{
	static const struct {
		const char *server, *client;
		const char *server_says, *client_says;
	} cases[] = {
		{ "good", "other",
		  "the other host refuses this one's certificate: it is not signed by the CA",
		  "the other host's certificate is not signed by the CA in other" },
		{ "good", "expired", "the other host's certificate has expired",
		  "the other host refuses this one's certificate: it has expired" },
		{ "expired", "good",
		  "the other host refuses this one's certificate: it has expired",
		  "the other host's certificate has expired" },
		{ "revoked", "good", "the other host's certificate has been revoked",
		  "the other host refuses this one's certificate: it was revoked" },
		{ "good other.example", "good",
		  "the other host's certificate is for src.example, and --tls-peer does not",
		  "the other host refuses this one's certificate: it is for somebody" },
		{ "good", "good other.example",
		  "the other host refuses this one's certificate: it is for somebody",
		  "the other host's certificate is for dst.example, and --tls-peer does not" },
		{ "nameless", "good", "the other host refuses this one's certificate",
		  "the other host's certificate is for dst.example, not for 127.0.0.1" },
		{ "psk:key", "psk:key2", "the pre-shared keys of the two hosts differ",
		  "the pre-shared keys of the two hosts differ" },
		{ "good", "psk:key", "the other host wants a pre-shared key",
		  "the other host shows a certificate, and this one was started with --psk" },
		{ "psk:key", "good", "the other host offers no pre-shared key that is known here",
		  "the other host takes no certificates" },
		/* downgrades */
		{ "good", NULL, "the other host does not speak TLS: it was started with --insecure",
		  "the other host wants a secure channel, and this one was started with" },
		{ "psk:key", NULL,
		  "the other host does not speak TLS: it was started with --insecure",
		  "the other host wants a secure channel, and this one was started with" },
		{ NULL, "good",
		  "the other host wants a secure channel, and this one was started with",
		  "the other host does not speak TLS: it was started with --insecure" },
		{ NULL, "psk:key",
		  "the other host wants a secure channel, and this one was started with",
		  "the other host does not speak TLS: it was started with --insecure" },
	};
	(void)state;
	for (size_t i = 0; i < BASE_ARRAY_LEN(cases); i++) {
		struct ends e;
		open_ends(&e, cases[i].server, cases[i].client);
		if (!cases[i].client) /* it speaks at once */
			send_state(e.ch[CLIENT], 10);
		expect_sentence(&e, SERVER, cases[i].server_says);
		/* What was said last arrives also when its sender is gone. */
		wire_channel_close(e.ch[SERVER]);
		e.ch[SERVER] = NULL;
		expect_sentence(&e, CLIENT, cases[i].client_says);
		close_ends(&e);
	}
}

static void foreign_bytes_are_refused(void **state)
{
	static const char *const ways[] = { "good", "psk:key" };
	static const char *const bytes[] = { "GET / HTTP/1.1\r\n\r\n", "SSH-2.0-OpenSSH_9.2p1\r\n",
					     "\x16\x03\x01\xff\xff garbage", "\x16\x03\x01" };
	static const char *const says[] = { "is not TLS; is it memferry",
					    "is not TLS; is it memferry", "no secure connection",
					    "hung up before" };
	(void)state;
	for (size_t i = 0; i < BASE_ARRAY_LEN(bytes) * BASE_ARRAY_LEN(ways); i++) {
		struct ends e;
		const char *sent = bytes[i / 2];
		prepare(&e, ways[i % 2], NULL);
		base_autofd fd = connect_to(e.port);
		accept_server(&e);
		assert_int_equal(write(fd, sent, strlen(sent)), (ssize_t)strlen(sent));
		assert_int_equal(shutdown(fd, SHUT_WR), 0);
		expect_sentence(&e, SERVER, says[i / 2]);
		close_ends(&e);
	}
}

/* ---- foreign peers ---- */

/* A web server of OpenSSL's, which waits for a request. */
static pid_t serve(const char *version, unsigned short *ret_port)
{
	const char *server[] = { "openssl",
				 "s_server",
				 "-accept",
				 "127.0.0.1:0",
				 version,
				 "-www",
				 "-num_tickets",
				 "0",
				 "-cert",
				 "good/server-cert.pem",
				 "-key",
				 "good/server-key.pem",
				 NULL };
	char line[256];
	int out[2];
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	pid_t child = start(out[1], server);
	close(out[1]);
	FILE *from = fdopen(out[0], "r");
	*ret_port = 0;
	while (!*ret_port && fgets(line, sizeof(line), from)) { /* ACCEPT 127.0.0.1:41234 */
		if (!strncmp(line, "ACCEPT ", 7))
			*ret_port = (unsigned short)strtoul(strrchr(line, ':') + 1, NULL, 10);
	}
	(void)fclose(from);
	assert_int_not_equal(*ret_port, 0);
	return child;
}

static void older_tls_is_refused(void **state)
{
	struct ends e;
	int status;
	(void)state;
	prepare(&e, "good", "good");
	const char *client[] = { "openssl",
				 "s_client",
				 "-connect",
				 e.address,
				 "-tls1_2",
				 "-cert",
				 "good/client-cert.pem",
				 "-key",
				 "good/client-key.pem",
				 NULL };
	pid_t child = start(-1, client);
	accept_server(&e);
	expect_sentence(&e, SERVER, "the other host does not speak TLS 1.3");
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);

	unsigned short port;
	child = serve("-tls1_2", &port);
	open_end(&e, CLIENT, connect_to(port));
	expect_sentence(&e, CLIENT, "does not speak TLS 1.3");
	assert_int_equal(kill(child, SIGKILL), 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	close_ends(&e);
}

/* It has the right certificate, and does not say that it takes the client's. */
static void a_server_that_does_not_answer_is_left(void **state)
{
	struct ends e;
	struct mf_error err = { 0 };
	unsigned short port;
	int status;
	(void)state;
	prepare(&e, NULL, "good");
	pid_t child = serve("-tls1_3", &port);
	struct wire_channel_params params = channel_params(&e, CLIENT);
	params.handshake_ms = 1000;
	int fd = connect_to(port);
	assert_int_equal(wire_channel_open(&fd, &params, &e.ch[CLIENT], NULL), 0);
	assert_int_equal(await_secure(&e, CLIENT, &err), -ETIME);
	assert_non_null(strstr(err.msg, "did not secure the channel within 1000 ms"));
	assert_int_equal(kill(child, SIGKILL), 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	close_ends(&e);
}

/* What a session could be taken up again with is never given out. */
static void no_ticket_is_given(void **state)
{
	struct ends e;
	int status;
	(void)state;
	prepare(&e, "good", NULL);
	const char *client[] = { "openssl",   "s_client",
				 "-connect",  e.address,
				 "-quiet",    "-ign_eof",
				 "-cert",     "good/client-cert.pem",
				 "-key",      "good/client-key.pem",
				 "-sess_out", "ticket",
				 NULL };
	pid_t child = start(-1, client);
	accept_server(&e);
	struct mf_error err = { 0 };
	if (await_secure(&e, SERVER, &err) != 1)
		fail_msg("%s", err.msg);
	wire_channel_close(e.ch[SERVER]);
	e.ch[SERVER] = NULL;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_not_equal(access("ticket", F_OK), 0);
	close_ends(&e);
}

static void a_client_without_a_certificate_is_refused(void **state)
{
	struct ends e;
	int status;
	(void)state;
	prepare(&e, "good", NULL);
	const char *client[] = { "openssl", "s_client", "-connect", e.address, "-quiet", NULL };
	pid_t child = start(-1, client);
	accept_server(&e);
	expect_sentence(&e, SERVER, "the other host has no certificate to show");
	assert_int_equal(waitpid(child, &status, 0), child);
	close_ends(&e);
}

/* ---- on the way ---- */

/* Carries bytes between two sockets until one ends. */
struct tap {
	int fd[2]; /* the client's, the server's */
	pthread_t thread;
	uint8_t *kept; /* all that the client said */
	size_t n_kept;
	size_t spoil_at; /* this byte of it is changed; 0: none */
};

static void pass(struct tap *t, int from)
{
	uint8_t bytes[16384];
	ssize_t n = recv(t->fd[from], bytes, sizeof(bytes), MSG_DONTWAIT);
	if (n == 0)
		(void)shutdown(t->fd[!from], SHUT_WR);
	if (n <= 0)
		return;
	if (from == 0) {
		t->kept = realloc(t->kept, t->n_kept + (size_t)n);
		memcpy(t->kept + t->n_kept, bytes, (size_t)n);
		if (t->spoil_at && t->spoil_at >= t->n_kept && t->spoil_at < t->n_kept + (size_t)n)
			bytes[t->spoil_at - t->n_kept] ^= 1;
		t->n_kept += (size_t)n;
	}
	for (ssize_t sent = 0, k; sent<n; sent += k> 0 ? k : 0) {
		struct pollfd p = { .fd = t->fd[!from], .events = POLLOUT };
		k = send(t->fd[!from], bytes + sent, (size_t)(n - sent), MSG_NOSIGNAL);
		if (k < 0 && errno != EAGAIN)
			return;
		if (k < 0 && poll(&p, 1, PATIENCE_MS) <= 0)
			return;
	}
}

static void *tap_main(void *arg)
{
	struct tap *t = arg;
	short gone = 0;
	while (!(gone & POLLHUP)) { /* both directions have ended */
		struct pollfd p[2] = { { .fd = t->fd[0], .events = POLLIN },
				       { .fd = t->fd[1], .events = POLLIN } };
		if (poll(p, 2, PATIENCE_MS) <= 0)
			break;
		for (int i = 0; i < 2; i++) {
			if (p[i].revents)
				pass(t, i);
			gone |= p[i].revents;
		}
	}
	close(t->fd[0]);
	close(t->fd[1]);
	return NULL;
}

/* The same two ends, with the tap between them. */
static void open_tapped(struct ends *e, struct tap *t, const char *way)
{
	int listen_fd;
	char address[64];
	prepare(e, way, way);
	assert_int_equal(wire_listen("127.0.0.1", 0, &listen_fd, address, sizeof(address), NULL),
			 0);
	open_end(e, CLIENT, connect_to((uint16_t)strtoul(strrchr(address, ':') + 1, NULL, 10)));
	assert_int_equal(wire_accept(listen_fd, -1, base_deadline_ms(PATIENCE_MS), &t->fd[0], NULL),
			 0);
	t->fd[1] = connect_to(e->port);
	accept_server(e);
	close(listen_fd);
	assert_int_equal(pthread_create(&t->thread, NULL, tap_main, t), 0);
}

static void hang_up(struct ends *e, struct tap *t)
{
	for (int i = 0; i < 2; i++) {
		wire_channel_close(e->ch[i]);
		e->ch[i] = NULL;
	}
	pthread_join(t->thread, NULL);
}

static void a_recording_is_refused(void **state)
{
	static const char *const ways[] = { "good", "psk:key" };
	(void)state;
	for (size_t i = 0; i < BASE_ARRAY_LEN(ways); i++) {
		struct ends e;
		struct tap tap = { 0 };
		open_tapped(&e, &tap, ways[i]);
		expect_secure(&e);
		send_state(e.ch[CLIENT], 10);
		expect_state(&e, SERVER, 10);
		hang_up(&e, &tap);

		base_autofd fd = connect_to(e.port);
		accept_server(&e);
		assert_int_equal(write(fd, tap.kept, tap.n_kept), (ssize_t)tap.n_kept);
		expect_sentence(&e, SERVER, "is a recording of another");
		assert_int_equal(wire_channel_has_message(e.ch[SERVER], NULL), -MF_ESECURITY);
		free(tap.kept);
		close_ends(&e);
	}
}

/* The last bytes of what the client said carry a message. */
static void a_changed_byte_is_noticed(void **state)
{
	struct ends e;
	struct tap tap = { 0 };
	(void)state;
	open_tapped(&e, &tap, "psk:key");
	expect_secure(&e);
	send_state(e.ch[CLIENT], 10);
	expect_state(&e, SERVER, 10);
	hang_up(&e, &tap);
	size_t len = tap.n_kept;
	free(tap.kept);
	close_ends(&e);

	/* Lengths are the same in every session; beyond these are a state and the record's header. */
	tap = (struct tap){ .spoil_at = len + 500 };
	open_tapped(&e, &tap, "psk:key");
	expect_secure(&e);
	send_state(e.ch[CLIENT], 4000);
	expect_sentence(&e, SERVER, "it was changed on the way");
	hang_up(&e, &tap);
	free(tap.kept);
	close_ends(&e);
}

static void silence_ends_the_handshake(void **state)
{
	(void)state;
	for (int side = 0; side < 2; side++) {
		struct ends e;
		struct mf_error err = { 0 };
		prepare(&e, "good", "good");
		base_autofd fd = connect_to(e.port);
		int other = -1;
		assert_int_equal(
			wire_accept(e.listen_fd, -1, base_deadline_ms(PATIENCE_MS), &other, NULL),
			0);
		struct wire_channel_params params = channel_params(&e, side);
		params.handshake_ms = 200;
		int *ours = side == CLIENT ? &fd : &other;
		assert_int_equal(wire_channel_open(ours, &params, &e.ch[side], NULL), 0);
		assert_int_equal(await_secure(&e, side, &err), -ETIME);
		assert_non_null(strstr(err.msg, "did not secure the channel within 200 ms"));
		base_closep(&other);
		close_ends(&e);
	}
}

/* ---- many at the door ---- */

struct door {
	unsigned refused, most_tasks;
	char last[256];
};

static unsigned count_tasks(void)
{
	DIR *dir = opendir("/proc/self/task");
	unsigned n = 0;
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static void note_refused(void *ctx, const char *why)
{
	struct door *door = ctx;
	unsigned tasks = count_tasks();
	door->refused++;
	door->most_tasks = tasks > door->most_tasks ? tasks : door->most_tasks;
	(void)snprintf(door->last, sizeof(door->last), "%s", why);
}

static struct wire_acceptor *open_door(struct ends *e, struct door *door, uint64_t patience_ms)
{
	struct wire_acceptor *acceptor;
	struct wire_acceptor_params params = { .listen_fd = e->listen_fd,
					       .channel = channel_params(e, SERVER),
					       .on_refused = note_refused,
					       .ctx = door };
	params.channel.handshake_ms = patience_ms;
	assert_int_equal(wire_acceptor_open(&params, &acceptor, NULL), 0);
	return acceptor;
}

static int next_at_door(struct ends *e, struct wire_acceptor *acceptor, uint64_t patience_ms)
{
	uint64_t deadline = base_deadline_ms(patience_ms);
	int r;
	while ((r = wire_acceptor_next(acceptor, deadline, &e->ch[SERVER], NULL)) == -EINTR)
		base_event_take(e->event[SERVER]);
	return r;
}

static void *introduce(void *arg)
{
	struct ends *e = arg;
	open_end(e, CLIENT, connect_to(e->port));
	if (await_secure(e, CLIENT, NULL) == 1)
		send_state(e->ch[CLIENT], 10);
	return NULL;
}

/* More than there are places for, and all of them would wait far longer than the test may take. */
static void silent_strangers_keep_nobody_out(void **state)
{
	static const char *const ways[] = { "good", "psk:key", NULL };
	(void)state;
	for (size_t i = 0; i < BASE_ARRAY_LEN(ways); i++) {
		struct ends e;
		struct door door = { 0 };
		pthread_t friend;
		int silent[3 * WIRE_PENDING_MAX];
		prepare(&e, ways[i], ways[i]);
		unsigned tasks = count_tasks();
		struct wire_acceptor *acceptor = open_door(&e, &door, 10 * PATIENCE_MS);
		for (size_t k = 0; k < BASE_ARRAY_LEN(silent); k++) {
			silent[k] = connect_to(e.port);
			if (k % 2) /* half a word */
				assert_int_equal(write(silent[k], i == 2 ? "MF" : "\x16\x03", 2),
						 2);
			if (k % 4 == 3) /* the kernel's queue is short */
				assert_int_equal(next_at_door(&e, acceptor, 20), -ETIMEDOUT);
		}
		assert_int_equal(pthread_create(&friend, NULL, introduce, &e), 0);
		assert_int_equal(next_at_door(&e, acceptor, PATIENCE_MS), 0);
		pthread_join(friend, NULL);
		expect_state(&e, SERVER, 10);
		assert_true(door.refused > 0);
		assert_non_null(strstr(door.last, "too many connections that say nothing"));
		/* Some that were joined may still be counted. */
		assert_true(door.most_tasks <= tasks + 2 * WIRE_PENDING_MAX);
		wire_acceptor_close(acceptor);
		for (size_t k = 0; k < BASE_ARRAY_LEN(silent); k++)
			close(silent[k]);
		close_ends(&e);
	}
}

struct drip {
	int fd;
	const char *begin;
	size_t len;
	_Atomic bool stop;
};

/* Something that never gets whole, a byte now and then. */
static void *drip(void *arg)
{
	struct drip *d = arg;
	for (size_t i = 0; !d->stop; i++) {
		struct pollfd p = { .fd = d->fd };
		(void)!send(d->fd, i < d->len ? &d->begin[i] : "x", 1, MSG_NOSIGNAL);
		if (poll(&p, 1, 20) > 0)
			break; /* hung up on */
	}
	return NULL;
}

static void dripping_strangers_are_hung_up_on(void **state)
{
	static const char hello[] = "\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";
	static const char frame[] = "MFC1\0\0\x01\0";
	(void)state;
	for (int secured = 0; secured < 2; secured++) {
		struct ends e;
		struct door door = { 0 };
		pthread_t thread;
		prepare(&e, secured ? "good" : NULL, NULL);
		struct wire_acceptor *acceptor = open_door(&e, &door, 300);
		struct drip d = { .fd = connect_to(e.port),
				  .begin = secured ? hello : frame,
				  .len = secured ? sizeof(hello) - 1 : sizeof(frame) - 1 };
		assert_int_equal(pthread_create(&thread, NULL, drip, &d), 0);
		uint64_t deadline = base_deadline_ms(PATIENCE_MS);
		while (!door.refused && base_now_us() < deadline)
			assert_int_equal(next_at_door(&e, acceptor, 100), -ETIMEDOUT);
		d.stop = true;
		pthread_join(thread, NULL);
		assert_int_equal(door.refused, 1);
		assert_non_null(strstr(door.last, "within 300 ms"));
		close(d.fd);
		wire_acceptor_close(acceptor);
		close_ends(&e);
	}
}

/* One that came too early stays, and is served when the first has gone. */
static void the_next_in_line_is_kept(void **state)
{
	struct ends e, second;
	struct door door = { 0 };
	pthread_t friend;
	(void)state;
	prepare(&e, "psk:key", "psk:key");
	prepare(&second, "psk:key", "psk:key");
	second.port = e.port;
	struct wire_acceptor *acceptor = open_door(&e, &door, PATIENCE_MS);
	assert_int_equal(pthread_create(&friend, NULL, introduce, &e), 0);
	assert_int_equal(next_at_door(&e, acceptor, PATIENCE_MS), 0);
	pthread_join(friend, NULL);
	struct wire_channel *first = BASE_TAKE_PTR(e.ch[SERVER]);
	assert_int_equal(pthread_create(&friend, NULL, introduce, &second), 0);
	assert_int_equal(next_at_door(&e, acceptor, PATIENCE_MS), 0);
	pthread_join(friend, NULL);
	wire_channel_close(first);
	expect_state(&e, SERVER, 10);
	assert_int_equal(door.refused, 0);
	wire_acceptor_close(acceptor);
	close_ends(&second);
	close_ends(&e);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_directory_must_be_whole),
		cmocka_unit_test(a_key_file_holds_one_key),
		cmocka_unit_test(peer_names_are_names),
		cmocka_unit_test(friends_talk),
		cmocka_unit_test(both_may_talk_at_once),
		cmocka_unit_test(an_end_is_told_after_the_messages),
		cmocka_unit_test(exported_keys_are_equal),
		cmocka_unit_test(strangers_are_refused_on_both_sides),
		cmocka_unit_test(foreign_bytes_are_refused),
		cmocka_unit_test(older_tls_is_refused),
		cmocka_unit_test(a_server_that_does_not_answer_is_left),
		cmocka_unit_test(no_ticket_is_given),
		cmocka_unit_test(a_client_without_a_certificate_is_refused),
		cmocka_unit_test(a_recording_is_refused),
		cmocka_unit_test(a_changed_byte_is_noticed),
		cmocka_unit_test(silence_ends_the_handshake),
		cmocka_unit_test(silent_strangers_keep_nobody_out),
		cmocka_unit_test(dripping_strangers_are_hung_up_on),
		cmocka_unit_test(the_next_in_line_is_kept),
	};
	if (getenv("ONLY"))
		cmocka_set_test_filter(getenv("ONLY"));
	int failed = cmocka_run_group_tests(tests, make_files, NULL);
	remove_files();
	return failed;
}
