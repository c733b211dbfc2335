/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * track: what each way of finding a guest's writes costs the guest, and the one who asks.
 *
 *   this process                              the writer, its child
 *   tracker: start, collect, stop      ───▶   memory, shared; its userfaultfd
 *   "write N pages"                    ───▶   writes a word to each of order[0 … N)
 *                                      ◀───   nanoseconds that took
 *
 * A repetition: write untracked; start; collect until settled; collect, nothing written; write, the first time since; write
 * again; collect; stop.  The pages and their order, random, are the same all through, so that times differ by tracking alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/parse.h"
#include "perf/doc.h"
#include "perf/local.h"
#include "perf/random.h"
#include "tracker/tracker.h"

/* UFFD_USER_MODE_ONLY: permitted to everybody, and the writer's stores are all there is. */
#define OWN_TOUCHES_ONLY 1

/* Beyond this and so much a page a writer hangs: emulated machines were seen to take 8 ms for one write. */
#define ANSWER_MS        30000u
#define ANSWER_US_A_PAGE 20000u

struct writer {
	pid_t pid;
	int sock;
	int uffd; /* ours: the writer has closed its own; negative: why there is none */
	char *mem;
	uint32_t *order; /* shared with it: all pages, shuffled */
	uint64_t page, pages;
};

struct job {
	uint64_t bytes, repeat, seed, dirty;
	struct perf_list pages;
	const char *trackers; /* "": all */
};

enum figure { START, UNTRACKED, FIRST, SECOND, PENALTY, IDLE, DIRTY, STOP, FIGURES };

struct track {
	const struct job *job;
	struct writer writer;
	uint64_t dirty; /* pages written before each collect */
	struct trk *trk;
	uint64_t *bits;
	uint64_t reported; /* by the last collect */
	double *figure[FIGURES];
};

/* ---- the writer ---- */

static uint64_t write_pages(const struct writer *w, uint64_t n)
{
	uint64_t start = base_now_ns();

	for (uint64_t i = 0; i < n; i++)
		__atomic_store_n((uint64_t *)(w->mem + w->order[i] * w->page), start,
				 __ATOMIC_RELAXED);
	return base_now_ns() - start;
}

/* One message, with the descriptor when there is one. */
static bool send_uffd(int sock, int uffd)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	int code = uffd < 0 ? -errno : 0;
	struct iovec iov = { &code, sizeof(code) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (uffd >= 0) {
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		*c = (struct cmsghdr){ .cmsg_level = SOL_SOCKET,
				       .cmsg_type = SCM_RIGHTS,
				       .cmsg_len = CMSG_LEN(sizeof(uffd)) };
		memcpy(CMSG_DATA(c), &uffd, sizeof(uffd));
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL) == sizeof(code);
}

/* The parent may have more threads: nothing here takes a lock that one of them might hold. */
static void be_writer(const struct writer *w, int sock, pid_t parent)
{
	uint64_t n;

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
	/* Nobody else's connections stay open because of us. */
	if (sock > 0)
		(void)close_range(0, (unsigned)sock - 1, 0);
	(void)close_range((unsigned)sock + 1, ~0u, 0);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | OWN_TOUCHES_ONLY);
	if (!send_uffd(sock, uffd))
		_exit(1);
	if (uffd >= 0)
		(void)close(uffd);
	while (recv(sock, &n, sizeof(n), 0) == sizeof(n)) {
		uint64_t ns = write_pages(w, n);
		if (send(sock, &ns, sizeof(ns), MSG_NOSIGNAL) != sizeof(ns))
			break;
	}
	_exit(0);
}

static int await(const struct writer *w, uint64_t pages, struct mf_error *err)
{
	struct pollfd p = { .fd = w->sock, .events = POLLIN };
	uint64_t deadline = base_deadline_ms(ANSWER_MS + pages * ANSWER_US_A_PAGE / 1000);
	int n;

	do
		n = poll(&p, 1, base_left_ms(deadline));
	while (n < 0 && errno == EINTR);
	return n > 0 ? 0
		     : base_error(err, -ETIMEDOUT, MF_SCOPE_HOST,
				  "the writing process does not come back");
}

static int gone(struct mf_error *err)
{
	return base_error(err, -EPIPE, MF_SCOPE_HOST, "the writing process is gone");
}

static int run_writer(const struct writer *w, uint64_t pages, double *ret_ns_a_page,
		      struct mf_error *err)
{
	uint64_t ns;

	if (send(w->sock, &pages, sizeof(pages), MSG_NOSIGNAL) != sizeof(pages))
		return gone(err);
	int code = await(w, pages, err);
	if (code)
		return code;
	if (recv(w->sock, &ns, sizeof(ns), MSG_DONTWAIT) != sizeof(ns))
		return gone(err);
	*ret_ns_a_page = (double)ns / (double)pages;
	return 0;
}

static int receive_uffd(struct writer *w, struct mf_error *err)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	int code;
	struct iovec iov = { &code, sizeof(code) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };

	int ret = await(w, 0, err);
	if (ret)
		return ret;
	if (recvmsg(w->sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != sizeof(code))
		return gone(err);
	const struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(w->uffd)))
		memcpy(&w->uffd, CMSG_DATA(c), sizeof(w->uffd));
	else
		w->uffd = code < 0 ? code : -EMFILE; /* it was sent, and did not arrive */
	return 0;
}

static void close_writer(struct writer *w)
{
	if (w->pid > 0) {
		(void)kill(w->pid, SIGKILL);
		while (waitpid(w->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	base_closep(&w->sock);
	base_closep(&w->uffd);
	if (w->mem)
		(void)munmap(w->mem, w->pages * w->page);
	if (w->order)
		(void)munmap(w->order, w->pages * sizeof(*w->order));
	*w = (struct writer){ .sock = -1, .uffd = -1 };
}

static int start_writer(struct writer *w, struct mf_error *err)
{
	pid_t parent = getpid();
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "a pair of sockets");
	w->sock = pair[0];
	w->pid = fork();
	if (!w->pid)
		be_writer(w, pair[1], parent);
	int code = w->pid < 0 ? -errno : 0;
	(void)close(pair[1]);
	if (code)
		return base_error_sys(err, code, MF_SCOPE_HOST, "a process that writes");
	return receive_uffd(w, err);
}

/* The first `dirty` are random pages, each once. */
static void shuffle(struct writer *w, uint64_t seed)
{
	for (uint64_t i = 0; i < w->pages; i++)
		w->order[i] = (uint32_t)i;
	for (uint64_t i = 0; i + 1 < w->pages; i++) {
		uint64_t other = i + perf_hash(seed ^ perf_hash(i)) % (w->pages - i);
		uint32_t page = w->order[i];
		w->order[i] = w->order[other];
		w->order[other] = page;
	}
}

/* Its memory is all there, as a guest's that has run for a while. */
static int open_writer(struct writer *w, const struct job *job, uint64_t page, struct mf_error *err)
{
	double ns;
	void *mem = NULL;

	*w = (struct writer){ .sock = -1, .uffd = -1, .page = page, .pages = job->bytes / page };
	int code = local_map(w->pages * page, page, &mem, err);
	if (code)
		return code;
	w->mem = mem;
	void *order = mmap(NULL, w->pages * sizeof(*w->order), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (order == MAP_FAILED)
		return base_error_sys(err, -errno, MF_SCOPE_HOST, "memory for the order of pages");
	w->order = order;
	shuffle(w, job->seed);
	code = start_writer(w, err);
	return code ? code : run_writer(w, w->pages, &ns, err);
}

/* ---- one repetition ---- */

static int collect(struct track *t, double *ret_ns, struct mf_error *err)
{
	uint64_t pages = t->writer.pages;

	memset(t->bits, 0, bitmap_words(pages) * sizeof(*t->bits));
	t->reported = 0;
	uint64_t start = base_now_ns();
	int code = trk_collect(t->trk, 0, 0, pages, t->bits, &t->reported, err);
	if (ret_ns)
		*ret_ns = (double)(base_now_ns() - start);
	return code;
}

static int check_reported(const struct track *t, struct mf_error *err)
{
	for (uint64_t i = 0; i < t->dirty; i++) {
		if (!bitmap_test(t->bits, t->writer.order[i]))
			return base_error(err, -MF_EINTEGRITY, MF_SCOPE_HOST,
					  "%s did not report page %u, which was written",
					  t->trk->ops->name, t->writer.order[i]);
	}
	return 0;
}

static int measure_tracked(struct track *t, uint64_t i, struct mf_error *err)
{
	uint64_t start = base_now_ns();

	int code = trk_start(t->trk, err);
	t->figure[START][i] = (double)(base_now_ns() - start);
	if (code)
		return code;
	code = collect(t, NULL, err); /* the first may report every page */
	if (!code)
		code = collect(t, &t->figure[IDLE][i], err);
	if (!code)
		code = run_writer(&t->writer, t->dirty, &t->figure[FIRST][i], err);
	if (!code)
		code = run_writer(&t->writer, t->dirty, &t->figure[SECOND][i], err);
	if (!code)
		code = collect(t, &t->figure[DIRTY][i], err);
	if (!code)
		code = check_reported(t, err);
	start = base_now_ns();
	trk_stop(t->trk);
	t->figure[STOP][i] = (double)(base_now_ns() - start);
	return code;
}

static int measure(struct track *t, uint64_t i, struct mf_error *err)
{
	double warm;

	/* What the last repetition left unmapped or cold is none of these writes' business. */
	int code = run_writer(&t->writer, t->dirty, &warm, err);
	if (!code)
		code = run_writer(&t->writer, t->dirty, &t->figure[UNTRACKED][i], err);
	if (!code)
		code = measure_tracked(t, i, err);
	t->figure[PENALTY][i] = t->figure[FIRST][i] - t->figure[UNTRACKED][i];
	return code;
}

/* ---- rows ---- */

static json_t *start_row(const struct trk_ops *ops, const struct job *job, uint64_t page)
{
	json_t *row = json_object();

	perf_put(row, "tracker", json_string(ops->name));
	perf_put(row, "page_bytes", json_integer((json_int_t)page));
	perf_put(row, "bytes", json_integer((json_int_t)(job->bytes / page * page)));
	return row;
}

static void put_figures(const struct track *t, json_t *row)
{
	static const struct {
		const char *key;
		double scale;
	} fields[FIGURES] = {
		[START] = { "start_ms", 1e-6 },         [UNTRACKED] = { "untracked_write_ns", 1 },
		[FIRST] = { "first_write_ns", 1 },      [SECOND] = { "second_write_ns", 1 },
		[PENALTY] = { "penalty_ns", 1 },        [IDLE] = { "collect_idle_ms", 1e-6 },
		[DIRTY] = { "collect_dirty_ms", 1e-6 }, [STOP] = { "stop_ms", 1e-6 },
	};

	perf_put(row, "dirty_pages", json_integer((json_int_t)t->dirty));
	perf_put(row, "reported_pages", json_integer((json_int_t)t->reported));
	for (unsigned f = 0; f < FIGURES; f++)
		local_put_times(row, fields[f].key, t->figure[f], t->job->repeat, fields[f].scale);
}

static int measure_row(struct track *t, const struct trk_ops *ops, json_t *row,
		       struct mf_error *err)
{
	struct trk_range range = { (uintptr_t)t->writer.mem, t->writer.pages * t->writer.page,
				   t->writer.page };
	struct trk_params params = {
		.pid = t->writer.pid, .uffd = t->writer.uffd, .ranges = &range, .n_ranges = 1
	};
	struct perf_cpu start, spent;
	struct mf_error why = { 0 };

	int code = trk_probe(ops, &params, &why);
	if (!code && ops->caps & TRK_CAP_NEEDS_UFFD && params.uffd < 0)
		code = base_error_sys(&why, params.uffd, MF_SCOPE_HOST, "userfaultfd(2)");
	if (code) {
		local_put_skipped(row, &why);
		return 0;
	}
	perf_cpu_now(&start);
	code = trk_open(ops, &params, &t->trk, err);
	for (uint64_t i = 0; !code && i < t->job->repeat; i++) {
		perf_progress("track %s  %" PRIu64 " of %" PRIu64, ops->name, i + 1,
			      t->job->repeat);
		code = measure(t, i, err);
	}
	perf_cpu_since(&start, &spent);
	trk_close(t->trk);
	if (code)
		return base_error_prefix(err, "%s: ", ops->name);
	put_figures(t, row);
	local_put_cpu(row, &spent, 0);
	return 0;
}

/* What the kernel or the host lacks is said in the row; all else is a failure. */
static int measure_page(const struct job *job, const struct trk_ops *ops, uint64_t page,
			json_t *row, struct mf_error *err)
{
	uint64_t pages = job->bytes / page;
	double *buf base_cleanup(base_freep) = calloc(FIGURES * job->repeat, sizeof(*buf));
	uint64_t *bits base_cleanup(base_freep) = calloc(bitmap_words(pages) + 1, sizeof(*bits));
	struct track t = { .job = job,
			   .bits = bits,
			   .dirty = job->dirty < pages ? job->dirty : pages };
	struct mf_error why = { 0 };
	char all[32], each[32];

	if (!buf || !bits)
		return base_error(err, -ENOMEM, MF_SCOPE_HOST, "out of memory");
	for (unsigned f = 0; f < FIGURES; f++)
		t.figure[f] = buf + f * job->repeat;
	int code = trk_probe(ops, NULL, &why);
	if (!code && !pages)
		code = base_error(&why, -EINVAL, MF_SCOPE_OP, "%s are less than a page of %s",
				  base_format_size(job->bytes, all, sizeof(all)),
				  base_format_size(page, each, sizeof(each)));
	if (code) {
		local_put_skipped(row, &why);
		return 0;
	}
	code = open_writer(&t.writer, job, page, &why);
	if (code && !t.writer.mem && page != local_base_page()) {
		local_put_skipped(row, &why);
		code = 0;
	} else if (code) {
		(void)base_error(err, code, why.scope, "%s", why.msg);
	} else {
		code = measure_row(&t, ops, row, err);
	}
	close_writer(&t.writer);
	return code;
}

/* ---- options ---- */

static bool is_named(const char *names, const char *name)
{
	size_t len = strlen(name);

	for (const char *at = names; *at; at += *at == ',') {
		size_t n = strcspn(at, ",");
		if (n == len && !strncmp(at, name, n))
			return true;
		at += n;
	}
	return !*names;
}

static int check_trackers(const char *names, struct mf_error *err)
{
	const struct trk_ops *const *all = trk_backends();
	char known[120] = "", name[40];

	for (size_t i = 0, at = 0; all[i] && at < sizeof(known); i++)
		at += (size_t)snprintf(known + at, sizeof(known) - at, "%s%s", i ? ", " : "",
				       all[i]->name);
	for (const char *at = names; *at; at += *at == ',') {
		size_t n = strcspn(at, ",");
		(void)snprintf(name, sizeof(name), "%.*s", n < 40 ? (int)n : 39, at);
		if (!trk_find(name))
			return base_error(err, -MF_EUSAGE, MF_SCOPE_HOST,
					  "--trackers: '%s' is none; there are %s", name, known);
		at += n;
	}
	return 0;
}

static int take_options(const json_t *options, struct job *job, struct mf_error *err)
{
	int code = local_number(options, "memory", UINT64_C(2) << 20, LOCAL_BYTES_MAX, &job->bytes,
				err);

	if (!code)
		code = local_pages(options, &job->pages, err);
	if (!code)
		code = local_number(options, "repeat", 1, LOCAL_REPEAT_MAX, &job->repeat, err);
	if (!code)
		code = local_number(options, "seed", 0, UINT32_MAX, &job->seed, err);
	if (!code)
		code = local_number(options, "dirty-pages", 1, 1000000000, &job->dirty, err);
	job->trackers = perf_text(options, "trackers");
	return code ? code : check_trackers(job->trackers, err);
}

int local_track(const json_t *options, uint64_t max_bytes, json_t *ret_rows, struct mf_error *err)
{
	const struct trk_ops *const *all = trk_backends();
	struct job job = { 0 };

	int code = take_options(options, &job, err);
	if (!code)
		code = local_allow(job.bytes, max_bytes, err);
	for (size_t i = 0; !code && all[i]; i++) {
		for (uint32_t k = 0; !code && k < job.pages.n; k++) {
			if (!is_named(job.trackers, all[i]->name))
				continue;
			json_t *row = start_row(all[i], &job, job.pages.at[k]);
			code = measure_page(&job, all[i], job.pages.at[k], row, err);
			(void)json_array_append_new(ret_rows, row);
		}
	}
	perf_progress_end();
	return code;
}
