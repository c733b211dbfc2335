/* SPDX-License-Identifier: BSD-2-Clause */
/* Runs gnuplot: the script is its standard input, the picture its standard output. */
#include "perf/plot.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "perf/doc.h"
#include "perf/plot_priv.h"

#define GNUPLOT_MS 60000u

static const struct picture {
	const char *test;
	plot_script_fn script;
	unsigned width, height;
} pictures[] = {
	{ "bw", plot_bw, 960, 600 },       { "lat", plot_lat, 960, 600 },
	{ "fault", plot_fault, 960, 900 }, { "migrate", plot_migrate, 1100, 660 },
	{ "mesh", plot_mesh, 900, 820 },
};

/* ".svg", ".png" or NULL. */
static const char *type_of(const char *file)
{
	const char *dot = strrchr(file, '.');

	if (dot && dot != file && dot[-1] != '/' && (!strcmp(dot, ".svg") || !strcmp(dot, ".png")))
		return dot;
	return NULL;
}

static bool is_program(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISREG(st.st_mode) && !access(path, X_OK);
}

/* Along PATH, as a shell would. */
static int find_gnuplot(char *ret, size_t cap, struct mf_error *err)
{
	const char *path = getenv("PATH");

	for (const char *at = path ? path : ""; *at;) {
		size_t len = strcspn(at, ":");
		int n = snprintf(ret, cap, "%.*s/gnuplot", (int)len, at);
		if (len && n > 0 && (size_t)n < cap && is_program(ret))
			return 0;
		at += len + (at[len] == ':');
	}
	return base_error(
		err, -ENOENT, MF_SCOPE_HOST,
		"gnuplot, which draws the pictures of --plot, is not installed; it is in the "
		"package gnuplot-nox");
}

int perf_plot_check(const char *file, struct mf_error *err)
{
	char program[4096];

	if (!type_of(file))
		return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
				  "--plot: '%.120s' ends neither in .svg nor in .png", file);
	return find_gnuplot(program, sizeof(program), err);
}

static void write_terminal(FILE *to, const char *type, const struct picture *picture)
{
	unsigned width = picture->width, height = picture->height;

	(void)fputs("set encoding utf8\n", to);
	if (!strcmp(type, ".svg")) {
		(void)fprintf(to,
			      "set terminal svg size %u,%u font 'sans-serif,14' noenhanced "
			      "background '#ffffff'\n",
			      width, height);
		return;
	}
	/* A gnuplot built without cairo has plainer pictures. */
	(void)fprintf(
		to,
		"if (strstrt(GPVAL_TERMINALS, 'pngcairo')) {\n"
		"set terminal pngcairo size %u,%u font 'Sans,11' noenhanced background '#ffffff'\n"
		"} else {\n"
		"set terminal png size %u,%u noenhanced background '#ffffff'\n"
		"}\n",
		width, height, width, height);
}

static int write_script(int fd, const json_t *doc, const char *type, const struct picture *picture,
			struct mf_error *err)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	FILE *to = copy < 0 ? NULL : fdopen(copy, "w");

	if (!to) {
		base_closep(&copy);
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "gnuplot's script");
	}
	write_terminal(to, type, picture);
	uint32_t drawn = picture->script(to, doc);
	if ((ferror(to) | fclose(to)) || lseek(fd, 0, SEEK_SET) < 0)
		return base_error_sys(err, -EIO, MF_SCOPE_HOST, "gnuplot's script");
	if (!drawn)
		return base_error(
			err, -ENODATA, MF_SCOPE_HOST,
			"no result of this %s run can be drawn: rows are missing, or were skipped",
			picture->test);
	return 0;
}

/* In the child: async-signal-safe calls only. */
_Noreturn static void become_gnuplot(const char *program, const int fds[3], pid_t parent)
{
	char *argv[] = { (char *)"gnuplot", (char *)"-d", (char *)"-", NULL };
	sigset_t none;

	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() == parent && dup2(fds[0], STDIN_FILENO) >= 0 &&
	    dup2(fds[1], STDOUT_FILENO) >= 0 && dup2(fds[2], STDERR_FILENO) >= 0)
		(void)execv(program, argv);
	_exit(127);
}

/* Exit status, or a negative code. */
static int wait_for(pid_t pid, uint64_t deadline_us)
{
	base_autofd pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	int code = pidfd < 0 ? -errno : -ETIMEDOUT, status;

	while (pidfd >= 0) {
		int n = poll(&p, 1, base_left_ms(deadline_us));
		if (n < 0 && errno == EINTR)
			continue;
		code = n > 0 ? 0 : n < 0 ? -errno : -ETIMEDOUT;
		break;
	}
	if (code)
		(void)kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	if (code)
		return code;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -EIO;
}

/* The last line that says something: before it come the script's line and a mark under it. */
static void read_complaint(int fd, char *ret, size_t cap)
{
	char text[2048];
	off_t end = lseek(fd, 0, SEEK_END), most = sizeof(text) - 1;
	ssize_t n = pread(fd, text, sizeof(text) - 1, end > most ? end - most : 0);

	text[n > 0 ? n : 0] = '\0';
	(void)snprintf(ret, cap, "it said nothing");
	for (const char *at = text; *at;) {
		size_t len = strcspn(at, "\n"), blank = strspn(at, " \t^");
		if (blank < len)
			(void)snprintf(ret, cap, "%.*s", (int)(len - blank), at + blank);
		at += len + (at[len] == '\n');
	}
}

static int run_gnuplot(const char *program, int script, int picture, struct mf_error *err)
{
	base_autofd complaints = memfd_create("gnuplot's complaints", MFD_CLOEXEC);
	const int fds[3] = { script, picture, complaints };
	char text[120];
	struct stat st;

	if (complaints < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "memfd_create");
	pid_t parent = getpid(), pid = fork();
	if (pid < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "gnuplot cannot be started");
	if (!pid)
		become_gnuplot(program, fds, parent);
	int status = wait_for(pid, base_deadline_ms(GNUPLOT_MS));
	if (status < 0)
		return base_error_sys(err, status, MF_SCOPE_HOST, "gnuplot");
	read_complaint(complaints, text, sizeof(text));
	if (status)
		return base_error(err, -EIO, MF_SCOPE_HOST, "gnuplot failed with status %d: %s",
				  status, text);
	if (fstat(picture, &st) || !st.st_size)
		return base_error(err, -EIO, MF_SCOPE_HOST, "gnuplot drew nothing: %s", text);
	return 0;
}

/* Into a file beside it first, so that what a reader finds is whole. */
static int draw(const char *program, int script, const char *file, struct mf_error *err)
{
	char other[4096];

	if ((size_t)snprintf(other, sizeof(other), "%s.new", file) >= sizeof(other))
		return base_error(err, -ENAMETOOLONG, MF_SCOPE_HOST,
				  "--plot: the file's name is too long");
	base_autofd picture = open(other, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (picture < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "cannot write %.120s", other);
	int ret = run_gnuplot(program, script, picture, err);
	if (!ret && rename(other, file))
		ret = base_error_sys(err, -errno, MF_SCOPE_HOST, "cannot write %.120s", file);
	if (ret)
		(void)unlink(other);
	return ret;
}

int perf_plot(const json_t *doc, const char *file, struct mf_error *err)
{
	const char *test = perf_text(doc, "test");
	const struct picture *picture = NULL;
	char program[4096];

	int ret = perf_plot_check(file, err);
	if (ret)
		return ret;
	for (size_t i = 0; i < BASE_ARRAY_LEN(pictures); i++) {
		if (!strcmp(pictures[i].test, test))
			picture = &pictures[i];
	}
	if (!picture)
		return base_error(
			err, -EOPNOTSUPP, MF_SCOPE_HOST,
			"there is no picture of %.16s results; there are of bw, lat, fault, "
			"migrate and mesh",
			test[0] ? test : "nameless");
	if (!json_array_size(perf_doc_rows(doc)))
		return base_error(err, -ENODATA, MF_SCOPE_HOST,
				  "this %.16s run has no results that could be drawn", test);
	ret = find_gnuplot(program, sizeof(program), err);
	if (ret)
		return ret;
	base_autofd script = memfd_create("gnuplot's script", MFD_CLOEXEC);
	if (script < 0)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "memfd_create");
	ret = write_script(script, doc, type_of(file), picture, err);
	return ret ? ret : draw(program, script, file, err);
}
