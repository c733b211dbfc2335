/* SPDX-License-Identifier: BSD-2-Clause */
/* The control socket, both ends of it, over a stand-in for a session. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "engine/cli/control.h"

struct fixture {
	char root[64], path[96];
	struct cli_run_dir dir;
	struct cli_view view;
	struct cli_control *control;
	atomic_int phase;
	atomic_uint requests; /* 1u << enum mf_request */
	int noticed;          /* a pipe: a byte each notice */
	int notice_end;
	enum mf_side side;
};

static void progress(void *session, struct mf_progress *ret)
{
	struct fixture *f = session;

	memset(ret, 0, sizeof(*ret));
	(void)snprintf(ret->session, sizeof(ret->session), "feed%s",
		       f->side == MF_SOURCE ? "beef" : "");
	ret->side = f->side;
	ret->phase = (enum mf_phase)atomic_load(&f->phase);
	ret->round = 3;
}

static void request(void *session, enum mf_request what)
{
	struct fixture *f = session;

	atomic_fetch_or(&f->requests, 1u << what);
}

static void notice(void *ctx, const char *text)
{
	struct fixture *f = ctx;

	assert(text[0]);
	(void)!write(f->notice_end, "n", 1);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct mf_error err = { 0 };
	int ends[2];

	assert_non_null(f);
	(void)snprintf(f->root, sizeof(f->root), "/tmp/test-cli-XXXXXX");
	assert_non_null(mkdtemp(f->root));
	(void)snprintf(f->path, sizeof(f->path), "%s/run", f->root);
	if (cli_run_dir_open(f->path, true, &f->dir, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(pipe(ends), 0);
	f->noticed = ends[0];
	f->notice_end = ends[1];
	f->view = (struct cli_view){ progress, request, f };
	atomic_store(&f->phase, MF_PHASE_PRECOPY);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	cli_control_stop(f->control);
	cli_run_dir_close(&f->dir);
	(void)close(f->noticed);
	(void)close(f->notice_end);
	assert_int_equal(rmdir(f->path), 0); /* nothing may be left in it */
	assert_int_equal(rmdir(f->root), 0);
	free(f);
	return 0;
}

static void start(struct fixture *f, enum mf_side side)
{
	struct mf_error err = { 0 };

	f->side = side;
	if (cli_control_start(&f->dir, side, &f->view, notice, f, &f->control, &err))
		fail_msg("%s", err.msg);
}

static unsigned list(struct fixture *f, struct cli_peer *ret)
{
	struct mf_error err = { 0 };
	int n = cli_control_list(&f->dir, ret, 4, &err);

	if (n < 0)
		fail_msg("%s", err.msg);
	return (unsigned)n;
}

/* "" when it was obeyed, else why not; the caller's to free. */
static char *ask(struct fixture *f, const char *command)
{
	struct cli_peer peer[4];
	struct mf_error err = { 0 };
	json_t *reply = NULL;

	assert_int_equal(list(f, peer), 1);
	json_decref(peer[0].status);
	if (cli_control_ask(&f->dir, peer[0].socket, command, &reply, &err))
		fail_msg("%s", err.msg);
	const char *why =
		json_string_value(json_object_get(json_object_get(reply, "error"), "message"));
	assert_int_equal(json_is_true(json_object_get(reply, "ok")), !why);
	char *copy = strdup(why ? why : "");
	json_decref(reply);
	return copy;
}

static void a_move_is_found_and_tells_its_progress(void **state)
{
	struct fixture *f = *state;
	struct cli_peer peer[4];
	struct stat st;

	assert_int_equal(list(f, peer), 0);
	start(f, MF_SOURCE);
	assert_int_equal(list(f, peer), 1);
	assert_int_equal(peer[0].pid, getpid());
	assert_int_equal(peer[0].side, MF_SOURCE);
	assert_string_equal(peer[0].session, "feedbeef");
	const char *phase = json_string_value(json_object_get(peer[0].status, "phase"));
	assert_string_equal(phase, "precopy");
	assert_int_equal(json_integer_value(json_object_get(peer[0].status, "round")), 3);
	assert_int_equal(fstatat(f->dir.fd, peer[0].socket, &st, 0), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(fstat(f->dir.fd, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	json_decref(peer[0].status);
	cli_control_stop(BASE_TAKE_PTR(f->control));
	assert_int_equal(list(f, peer), 0);
}

static void requests_reach_the_session_before_the_reply(void **state)
{
	struct fixture *f = *state;
	static const char *const commands[] = { "cancel", "cutover", "postcopy" };

	start(f, MF_SOURCE);
	for (unsigned i = 0; i < BASE_ARRAY_LEN(commands); i++) {
		base_autofree char *why = ask(f, commands[i]);
		assert_string_equal(why, "");
		assert_true(atomic_load(&f->requests) >> i & 1);
	}
}

static void what_comes_too_late_is_refused(void **state)
{
	struct fixture *f = *state;

	start(f, MF_SOURCE);
	atomic_store(&f->phase, MF_PHASE_SWITCHOVER);
	base_autofree char *cutover = ask(f, "cutover");
	assert_string_equal(cutover, "too late: the move is switching over already");
	atomic_store(&f->phase, MF_PHASE_POSTCOPY);
	base_autofree char *cancel = ask(f, "cancel");
	assert_string_equal(cancel, "too late: the guest was handed over to the destination");
	assert_int_equal(atomic_load(&f->requests), 0);
}

static void only_a_source_decides(void **state)
{
	struct fixture *f = *state;

	start(f, MF_DESTINATION);
	base_autofree char *postcopy = ask(f, "postcopy");
	assert_string_equal(postcopy, "the source decides when to switch over; ask there");
	base_autofree char *cancel = ask(f, "cancel");
	assert_string_equal(cancel, "");
	base_autofree char *unknown = ask(f, "dance");
	assert_string_equal(unknown, "this version does not know that command");
	assert_int_equal(atomic_load(&f->requests), 1u << MF_REQUEST_CANCEL);
}

static int dial(struct fixture *f, const char *name)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s", f->path, name);
	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

static void nonsense_gets_an_answer_and_harms_nobody(void **state)
{
	struct fixture *f = *state;
	static const char *const lines[] = { "\n",        "{}\n",
					     "[1,2]\n",   "{\"command\":7}\n",
					     "{\"comm\n", "\xff\xfe\n" };
	char name[64], big[300], reply[512];

	start(f, MF_SOURCE);
	(void)snprintf(name, sizeof(name), "source-%d.sock", (int)getpid());
	for (size_t i = 0; i <= BASE_ARRAY_LEN(lines); i++) {
		base_autofd fd = dial(f, name);
		memset(big, 'x', sizeof(big));
		const char *line = i < BASE_ARRAY_LEN(lines) ? lines[i] : big;
		size_t len =
			i < BASE_ARRAY_LEN(lines) ? strlen(line) : 256; /* as much as it takes */
		assert_int_equal(send(fd, line, len, MSG_NOSIGNAL), len);
		ssize_t got = recv(fd, reply, sizeof(reply) - 1, 0);
		assert_true(got > 0);
		reply[got] = '\0';
		assert_non_null(strstr(reply, "\"ok\":false"));
	}
	/* A client that says nothing does not keep others out. */
	base_autofd silent = dial(f, name);
	base_autofree char *why = ask(f, "cancel");
	assert_string_equal(why, "");
}

/* Leaves the socket of a process that has died. */
static void leave_dead_socket(struct fixture *f, const char *name)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	base_autofd fd = socket(AF_UNIX, SOCK_STREAM, 0);

	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s", f->path, name);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, 1), 0);
}

static void dead_sockets_are_removed(void **state)
{
	struct fixture *f = *state;
	struct cli_peer peer[4];

	leave_dead_socket(f, "source-1.sock");
	leave_dead_socket(f, "destination-77.sock");
	leave_dead_socket(f, "other-77.sock"); /* not ours to touch */
	start(f, MF_SOURCE);
	assert_int_equal(list(f, peer), 1);
	json_decref(peer[0].status);
	assert_int_equal(faccessat(f->dir.fd, "source-1.sock", F_OK, 0), -1);
	assert_int_equal(faccessat(f->dir.fd, "destination-77.sock", F_OK, 0), -1);
	assert_int_equal(unlinkat(f->dir.fd, "other-77.sock", 0), 0);
}

static void a_signal_cancels(void **state)
{
	struct fixture *f = *state;
	sigset_t signals, before;
	char byte;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	assert_int_equal(pthread_sigmask(SIG_BLOCK, &signals, &before), 0);
	start(f, MF_SOURCE);
	assert_int_equal(kill(getpid(), SIGTERM), 0);
	assert_int_equal(read(f->noticed, &byte, 1), 1);
	assert_int_equal(atomic_load(&f->requests), 1u << MF_REQUEST_CANCEL);
	/* A second one is the same again. */
	assert_int_equal(kill(getpid(), SIGINT), 0);
	assert_int_equal(read(f->noticed, &byte, 1), 1);
	cli_control_stop(BASE_TAKE_PTR(f->control));
	assert_int_equal(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
}

static void a_directory_that_others_write_is_refused(void **state)
{
	struct fixture *f = *state;
	struct cli_run_dir dir;
	struct mf_error err = { 0 };

	assert_int_equal(chmod(f->path, 0777), 0);
	assert_int_equal(cli_run_dir_open(f->path, false, &dir, &err), -EPERM);
	assert_non_null(strstr(err.msg, "others may write to it"));
	assert_int_equal(dir.fd, -1);
	assert_int_equal(chmod(f->path, 0700), 0);
	/* Looking does not make one. */
	char missing[128];
	(void)snprintf(missing, sizeof(missing), "%s/none", f->root);
	assert_int_equal(cli_run_dir_open(missing, false, &dir, NULL), 0);
	assert_int_equal(dir.fd, -1);
	assert_int_equal(access(missing, F_OK), -1);
}

static void the_option_wins_over_the_environment(void **state)
{
	struct fixture *f = *state;
	struct cli_run_dir dir;

	assert_int_equal(setenv("MEMFERRY_RUN_DIR", "/nowhere/at/all", 1), 0);
	assert_int_equal(cli_run_dir_open(f->path, false, &dir, NULL), 0);
	assert_string_equal(dir.path, f->path);
	cli_run_dir_close(&dir);
	assert_int_equal(setenv("MEMFERRY_RUN_DIR", f->path, 1), 0);
	assert_int_equal(cli_run_dir_open(NULL, false, &dir, NULL), 0);
	assert_string_equal(dir.path, f->path);
	cli_run_dir_close(&dir);
	assert_int_equal(unsetenv("MEMFERRY_RUN_DIR"), 0);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(a_move_is_found_and_tells_its_progress),
		CASE(requests_reach_the_session_before_the_reply),
		CASE(what_comes_too_late_is_refused),
		CASE(only_a_source_decides),
		CASE(nonsense_gets_an_answer_and_harms_nobody),
		CASE(dead_sockets_are_removed),
		CASE(a_signal_cancels),
		CASE(a_directory_that_others_write_is_refused),
		CASE(the_option_wins_over_the_environment),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
