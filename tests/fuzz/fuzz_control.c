/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The control socket, both ends of it.  The first byte of the input says who reads the rest:
 *
 *   's', 'j', 'x', 'X'   memferry status, status --json, cancel, cancel --json: the answers, cut by form feeds, one for
 *                        each connection
 *   else                 the running move: a request.  The byte says which side it is, and in which phase
 *
 * What is printed holds no control characters: it may go to a terminal.  The answering end is a socket pair, which the
 * linker puts in the place of connect() (--wrap); the running move has its socket in a run directory.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/control.h"
#include "cli/options.h"
#include "cli/verbs.h"
#include "fuzz.h"

enum { REPLY_CAP = 8192 };

int __real_connect(int fd, const struct sockaddr *addr, socklen_t len);
int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t len);

static char root[] = "/tmp/memferry-fuzz-XXXXXX";

/* ---- the asking end ---- */

static struct {
	const uint8_t *says;
	size_t left;
	int hears[CLI_PEERS_MAX]; /* kept open, so that nobody is told that the move has ended */
	unsigned n;
} peer;

int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	const uint8_t *end = peer.left ? memchr(peer.says, '\f', peer.left) : NULL;
	size_t n = end ? (size_t)(end - peer.says) : peer.left;
	int pair[2];
	(void)addr, (void)len;
	assert(peer.n < CLI_PEERS_MAX);
	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	assert(dup3(pair[0], fd, O_CLOEXEC) == fd);
	(void)close(pair[0]);
	peer.hears[peer.n++] = pair[1];
	assert(n == 0 || send(pair[1], peer.says, n, MSG_NOSIGNAL) == (ssize_t)n);
	peer.says += n + (end != NULL);
	peer.left -= n + (end != NULL);
	assert(shutdown(pair[1], SHUT_WR) == 0);
	return 0;
}

static void check_printed(const char *text, size_t len, bool is_json)
{
	for (const char *line = text; line < text + len;) {
		const char *end = memchr(line, '\n', (size_t)(text + len - line));
		assert(end); /* whole lines */
		for (const char *c = line; c < end; c++)
			assert((unsigned char)*c >= ' ');
		json_t *o = is_json ? json_loadb(line, (size_t)(end - line), 0, NULL) : NULL;
		assert(!is_json || json_is_object(o));
		json_decref(o);
		line = end + 1;
	}
}

static void ask(uint8_t how, const uint8_t *data, size_t size)
{
	struct cli_options o = { .run_dir = root };
	char *text[2] = { NULL, NULL };
	size_t len[2] = { 0, 0 };
	FILE *before[2] = { stdout, stderr };

	o.verb = how == 's' || how == 'j' ? CLI_STATUS : CLI_CANCEL;
	o.json = how == 'j' || how == 'X';
	peer.says = data;
	peer.left = size;
	peer.n = 0;
	stdout = open_memstream(&text[0], &len[0]);
	stderr = open_memstream(&text[1], &len[1]);
	assert(stdout && stderr);
	int status = o.verb == CLI_STATUS ? cli_verb_status(&o) : cli_verb_request(&o);
	(void)fclose(stdout);
	(void)fclose(stderr);
	stdout = before[0];
	stderr = before[1];
	assert(status == 0 || status == 1 || status == 2);
	assert(status ? len[1] : !len[1]);
	check_printed(text[0], len[0], o.json);
	check_printed(text[1], len[1], false);
	free(text[0]);
	free(text[1]);
	for (unsigned i = 0; i < peer.n; i++)
		(void)close(peer.hears[i]);
}

/* ---- the serving end ---- */

static struct move {
	struct cli_run_dir dir;
	struct cli_view view;
	struct cli_control *control;
	enum mf_side side;
	char socket[64];
	atomic_int phase;
	atomic_uint requests; /* 1u << enum mf_request */
} moves[2];

static void progress(void *session, struct mf_progress *ret)
{
	struct move *m = session;
	memset(ret, 0, sizeof(*ret));
	(void)snprintf(ret->session, sizeof(ret->session), "feedbeef");
	ret->side = m->side;
	ret->phase = (enum mf_phase)atomic_load(&m->phase);
}

static void request(void *session, enum mf_request what)
{
	struct move *m = session;
	atomic_fetch_or(&m->requests, 1u << what);
}

static void notice(void *ctx, const char *text)
{
	(void)ctx, (void)text;
}

static int dial(const struct move *m)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/self/fd/%d/%s", m->dir.fd,
		       m->socket);
	assert(fd >= 0);
	assert(__real_connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0);
	return fd;
}

static void check_reply(const struct move *m, const char *reply, size_t len)
{
	assert(len && memchr(reply, '\n', len) == reply + len - 1);
	json_t *o = json_loadb(reply, len, 0, NULL);
	assert(json_is_object(o) && json_is_boolean(json_object_get(o, "ok")));
	bool ok = json_is_true(json_object_get(o, "ok"));
	assert(ok || json_is_string(json_object_get(json_object_get(o, "error"), "message")));
	/* What was refused was not done. */
	assert(ok || !atomic_load(&m->requests));
	json_decref(o);
}

static void serve(uint8_t how, const uint8_t *data, size_t size)
{
	struct move *m = &moves[how & 16 ? MF_SOURCE : MF_DESTINATION];
	char reply[REPLY_CAP];
	size_t len = 0;
	ssize_t n;

	atomic_store(&m->phase, (how & 15) % MF_PHASE_COUNT);
	atomic_store(&m->requests, 0);
	base_autofd fd = dial(m);
	/* It closes when it has read enough. */
	n = size ? send(fd, data, size, MSG_NOSIGNAL) : 0;
	assert(n == (ssize_t)size || errno == EPIPE || errno == ECONNRESET);
	(void)shutdown(fd, SHUT_WR);
	while ((n = read(fd, reply + len, sizeof(reply) - len)) > 0)
		len += (size_t)n;
	if (len)
		check_reply(m, reply, len);
	/* Half a request is answered by the end. */
	assert(len || !memchr(data, '\n', size) || n < 0);
	assert(!len || memchr(data, '\n', size) || size >= 256);
}

static void start(enum mf_side side)
{
	struct move *m = &moves[side];
	m->side = side;
	m->view = (struct cli_view){ progress, request, m };
	assert(cli_run_dir_open(root, false, &m->dir, NULL) == 0);
	assert(cli_control_start(&m->dir, side, &m->view, notice, NULL, &m->control, NULL) == 0);
	cli_control_name(side, m->socket, sizeof(m->socket));
}

static void stop(void)
{
	for (int i = 0; i < 2; i++) {
		cli_control_stop(moves[i].control);
		cli_run_dir_close(&moves[i].dir);
	}
	(void)rmdir(root);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	if (!moves[0].control) {
		assert(mkdtemp(root));
		start(MF_SOURCE);
		start(MF_DESTINATION);
		(void)atexit(stop);
	}
	base_autofree uint8_t *bytes = fuzz_copy(data + 1, size - 1);
	if (data[0] && strchr("sjxX", data[0]))
		ask(data[0], bytes, size - 1);
	else
		serve(data[0], bytes, size - 1);
	return 0;
}
