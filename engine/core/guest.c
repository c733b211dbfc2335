/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The only callers of an adapter's table.  Every call is made in the thread that the program chose (drive.c), and what
 * an adapter of a guest in this very process need not know, its address space's userfaultfds and mappings, is done here.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "core/engine.h"

/* One call, as it travels to the thread that makes it. */
struct call {
	enum {
		DESCRIBE,
		PREPARE,
		OPEN_USERFAULTFD,
		CLOSE_USERFAULTFDS,
		FORGET_RAM,
		PAUSE,
		SAVE_STATE,
		LOAD_STATE,
		RESUME,
		COMMIT,
		ABORT,
		FINISH,
		THROTTLE,
		SELF_CHECK,
		HOLD,
		LET_GO,
		LIST_NEEDS,
		CHECK_NEEDS,
		TAKE_WRITTEN,
		TAKE_OVER,
		FIND_USERFAULTFD,
		RAN,
	} what;
	union {
		bool *runs;
		int *fd;
		unsigned percent;
		mf_state_write_fn write;
		mf_state_read_fn read;
		void *bytes;
		const void *given;
	};
	size_t len;
	struct mf_finding *findings;
	unsigned n_findings;
	struct mf_error *err;
};

static int64_t perform(struct mf_session *s, void *arg)
{
	const struct mf_adapter_ops *ops = &s->ops;
	void *hv = s->params.guest.hv;
	struct call *c = arg;

	switch (c->what) {
	case DESCRIBE:
		return ops->describe(hv, &s->guest, c->err);
	case PREPARE:
		return ops->prepare(hv, s->params.side, c->err);
	case OPEN_USERFAULTFD:
		return ops->open_userfaultfd(hv, c->fd, c->err);
	case CLOSE_USERFAULTFDS:
		ops->close_userfaultfds(hv);
		return 0;
	case FORGET_RAM:
		return ops->forget_ram(hv, c->err);
	case PAUSE:
		return ops->pause(hv, &s->stopped_us, c->err);
	case SAVE_STATE:
		return ops->save_state(hv, c->write, s, c->err);
	case LOAD_STATE:
		return ops->load_state(hv, c->read, s, c->err);
	case RESUME:
		return ops->resume(hv, c->err);
	case COMMIT:
		ops->commit(hv);
		return 0;
	case ABORT:
		return ops->abort(hv, c->err);
	case FINISH:
		ops->finish(hv);
		return 0;
	case THROTTLE:
		return ops->throttle(hv, c->percent, c->err);
	case SELF_CHECK:
		return ops->self_check(hv, c->findings);
	case HOLD:
		return ops->hold(hv, c->err);
	case LET_GO:
		return ops->let_go(hv, c->err);
	case LIST_NEEDS:
		return ops->list_needs(hv, c->bytes, c->len, c->err);
	case CHECK_NEEDS:
		return ops->check_needs(hv, c->given, c->len, c->findings, c->n_findings, c->err);
	case TAKE_WRITTEN:
		for (uint32_t i = 0; i < s->memory.n; i++)
			ops->take_written(hv, i, 0, s->memory.region[i].pages,
					  s->memory.region[i].todo);
		return 0;
	case TAKE_OVER:
		return ops->take_over(hv, s->record.ran, c->runs, c->err);
	case FIND_USERFAULTFD:
		return ops->find_userfaultfd(hv, c->fd, c->err);
	case RAN:
		return ops->ran(hv);
	}
	return -ENOSYS;
}

static int64_t make(struct mf_session *s, struct call call)
{
	return eng_in_drivers_thread(s, perform, &call);
}

int eng_guest_take_table(struct mf_session *s, const struct mf_adapter_ops *ops,
			 struct mf_error *err)
{
	/* Older programs' tables are shorter.  What a newer one would have us fill in may be longer than we know. */
	if (ops->size > sizeof(s->ops))
		return base_error(err, -EINVAL, MF_SCOPE_HOST,
				  "the adapter's table is of a newer memferry than this library");
	if (ops->size < offsetof(struct mf_adapter_ops, throttle))
		return base_error(err, -EINVAL, MF_SCOPE_HOST,
				  "the adapter's table is cut off: set its size to sizeof(struct "
				  "mf_adapter_ops)");
	memcpy(&s->ops, ops, ops->size);
	ops = &s->ops;
	if (!ops->describe || !ops->prepare || !ops->pause || !ops->save_state ||
	    !ops->load_state || !ops->resume || !ops->commit || !ops->abort || !ops->finish)
		return base_error(err, -EINVAL, MF_SCOPE_HOST,
				  "the adapter's table lacks a callback that is not optional");
	return 0;
}

static bool is_here(const struct mf_session *s)
{
	return s->guest.pid == getpid();
}

/* What an adapter says is taken at its word only where it makes sense. */
static int check_description(const struct mf_session *s, struct mf_error *err)
{
	const struct mf_guest *g = &s->guest;
	const struct mf_adapter_ops *ops = &s->ops;
	if (g->n_regions > MF_REGIONS_MAX || g->n_findings > MF_FINDINGS_MAX || g->pid <= 0)
		return base_error(err, -EINVAL, MF_SCOPE_HOST,
				  "the adapter describes a guest that cannot be: %u regions, "
				  "process %d",
				  g->n_regions, (int)g->pid);
	for (uint32_t i = 0; i < g->n_regions; i++) {
		const struct mf_region *r = &g->regions[i];
		if (!r->size || r->page_size < ENG_PAGE || r->page_size & (r->page_size - 1) ||
		    (r->size | r->hva | r->offset) & (r->page_size - 1))
			return base_error(err, -EINVAL, MF_SCOPE_HOST,
					  "region %.40s: size, address and offset must be "
					  "multiples of its page size, at least 4096",
					  r->name);
	}
	if (!is_here(s) && (!ops->open_userfaultfd || !ops->close_userfaultfds || !ops->forget_ram))
		return base_error(err, -EINVAL, MF_SCOPE_HOST,
				  "the adapter's guest lives in another process, so its table "
				  "needs open_userfaultfd, close_userfaultfds and forget_ram");
	return 0;
}

int eng_guest_describe(struct mf_session *s, struct mf_error *err)
{
	int r = (int)make(s, (struct call){ .what = DESCRIBE, .err = err });
	if (r >= 0)
		base_process_identify((int)s->guest.pid, &s->guest_process);
	return r < 0 ? r : check_description(s, err);
}

int eng_guest_prepare(struct mf_session *s, struct mf_error *err)
{
	return (int)make(s, (struct call){ .what = PREPARE, .err = err });
}

/* As in another process: we work on a duplicate, and while the original is open, a touch of a missing page waits even when
 * nobody answers any more. */
static int open_own_userfaultfd(struct mf_session *s, int *ret_fd, struct mf_error *err)
{
	assert(s->kept_uffd < 0);
	int r = pgr_open_userfaultfd(&s->kept_uffd, err);
	if (r < 0)
		return r;
	*ret_fd = fcntl(s->kept_uffd, F_DUPFD_CLOEXEC, 0);
	return *ret_fd < 0 ? base_error_sys(err, -errno, MF_SCOPE_HOST, "a userfaultfd") : 0;
}

int eng_open_userfaultfd(struct mf_session *s, int *ret_fd, struct mf_error *err)
{
	if (!s->ops.open_userfaultfd)
		return open_own_userfaultfd(s, ret_fd, err);
	return (int)make(s, (struct call){ .what = OPEN_USERFAULTFD, .fd = ret_fd, .err = err });
}

void eng_close_userfaultfds(struct mf_session *s)
{
	base_closep(&s->kept_uffd);
	if (s->ops.close_userfaultfds)
		(void)make(s, (struct call){ .what = CLOSE_USERFAULTFDS });
}

int eng_guest_forget_ram(struct mf_session *s, struct mf_error *err)
{
	if (s->ops.forget_ram)
		return (int)make(s, (struct call){ .what = FORGET_RAM, .err = err });
	for (uint32_t i = 0; i < s->memory.n; i++) {
		const struct eng_region *r = &s->memory.region[i];
		/* Private memory has its bytes nowhere else. */
		if (!r->is_private &&
		    madvise((void *)(uintptr_t)r->desc.hva, r->desc.size, MADV_DONTNEED))
			return base_error_sys(err, -errno, MF_SCOPE_HOST,
					      "region %s: its mapping cannot be emptied",
					      r->desc.name);
	}
	return 0;
}

int eng_guest_pause(struct mf_session *s, struct mf_error *err)
{
	return (int)make(s, (struct call){ .what = PAUSE, .err = err });
}

int eng_guest_save_state(struct mf_session *s, mf_state_write_fn write, struct mf_error *err)
{
	return (int)make(s, (struct call){ .what = SAVE_STATE, .write = write, .err = err });
}

int eng_guest_load_state(struct mf_session *s, mf_state_read_fn read, struct mf_error *err)
{
	return (int)make(s, (struct call){ .what = LOAD_STATE, .read = read, .err = err });
}

int eng_guest_resume(struct mf_session *s, struct mf_error *err)
{
	return (int)make(s, (struct call){ .what = RESUME, .err = err });
}

void eng_guest_commit(struct mf_session *s)
{
	if (s->guest_committed || s->guest_has_ended)
		return;
	s->guest_committed = true;
	(void)make(s, (struct call){ .what = COMMIT });
}

int eng_guest_abort(struct mf_session *s, struct mf_error *err)
{
	return (int)make(s, (struct call){ .what = ABORT, .err = err });
}

void eng_guest_finish(struct mf_session *s)
{
	if (!s->guest_has_ended)
		(void)make(s, (struct call){ .what = FINISH });
}

int eng_guest_throttle(struct mf_session *s, unsigned percent, struct mf_error *err)
{
	if (!s->ops.throttle)
		return -EOPNOTSUPP;
	return (int)make(s, (struct call){ .what = THROTTLE, .percent = percent, .err = err });
}

bool eng_guest_can_hold(const struct mf_session *s)
{
	return s->ops.hold && s->ops.let_go;
}

int eng_guest_hold(struct mf_session *s, struct mf_error *err)
{
	return (int)make(s, (struct call){ .what = HOLD, .err = err });
}

int eng_guest_let_go(struct mf_session *s, struct mf_error *err)
{
	return (int)make(s, (struct call){ .what = LET_GO, .err = err });
}

int eng_guest_self_check(struct mf_session *s, struct mf_finding *ret)
{
	return s->ops.self_check
		       ? (int)make(s, (struct call){ .what = SELF_CHECK, .findings = ret })
		       : 0;
}

ssize_t eng_guest_list_needs(struct mf_session *s, void *bytes, size_t cap, struct mf_error *err)
{
	if (!s->ops.list_needs)
		return 0;
	ssize_t n = make(
		s, (struct call){ .what = LIST_NEEDS, .bytes = bytes, .len = cap, .err = err });
	if (n > 0 && (size_t)n > cap)
		return base_error(err, -EINVAL, MF_SCOPE_SESSION,
				  "the adapter lists more needs than there is room for");
	return n;
}

int eng_guest_check_needs(struct mf_session *s, const void *bytes, size_t len,
			  struct mf_finding *ret, unsigned cap, struct mf_error *err)
{
	if (!s->ops.check_needs)
		return len ? base_error(err, -MF_EREFUSED, MF_SCOPE_SESSION,
					"the source's guest has needs that this host's adapter "
					"cannot judge; use the same adapter on both")
			   : 0;
	int n = (int)make(s, (struct call){ .what = CHECK_NEEDS,
					    .given = bytes,
					    .len = len,
					    .findings = ret,
					    .n_findings = cap,
					    .err = err });
	return n < (int)cap ? n : (int)cap;
}

int eng_guest_take_over(struct mf_session *s, bool *ret_runs, struct mf_error *err)
{
	if (!s->ops.take_over || !s->ops.find_userfaultfd)
		return base_error(err, -EOPNOTSUPP, MF_SCOPE_HOST,
				  "a guest of kind '%.15s' ends with the process that moves it: "
				  "there is nothing to go on with",
				  s->guest.kind);
	if (!base_process_is(&s->record.guest, s->guest.pid))
		return base_error(
			err, -MF_EREFUSED, MF_SCOPE_HOST,
			"%.40s (pid %d) is not the one that had the guest of session %s "
			"(pid %d%s)",
			s->guest.monitor, (int)s->guest.pid, s->report.session, s->record.guest.pid,
			base_process_is_ours(&s->record.guest) ? "" : ", in another namespace");
	return (int)make(s, (struct call){ .what = TAKE_OVER, .runs = ret_runs, .err = err });
}

int eng_guest_find_userfaultfd(struct mf_session *s, int *ret_fd, struct mf_error *err)
{
	return (int)make(s, (struct call){ .what = FIND_USERFAULTFD, .fd = ret_fd, .err = err });
}

bool eng_guest_ran(struct mf_session *s)
{
	if (s->params.resume)
		return s->record.ran;
	return !s->ops.ran || make(s, (struct call){ .what = RAN });
}

void eng_guest_take_written(struct mf_session *s)
{
	if (s->ops.take_written)
		(void)make(s, (struct call){ .what = TAKE_WRITTEN });
}
