/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Lending memory to the peer of one lane: memory windows of type 2, one for each mr lent.
 *
 * Such a window is bound by a work request of the lane's queue pair and opens for operations that
 * come in over this queue pair only (IBTA vol. 1, 10.6.7.2.2); its key is a new one each time.  A
 * local invalidate closes it: once that has completed, no operation finds the key.  The mr below
 * stays as it was, without remote rights.
 *
 * Windows stay allocated for the next time.  They go with the queue pair, and before it: bound
 * ones hold on to it in Soft-RoCE, and no device lets operations through a window that is gone.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "transport/verbs/verbs_priv.h"

static struct vrb_lane *to_lane(struct tp_lane *base)
{
	return BASE_CONTAINER_OF(base, struct vrb_lane, base);
}

static struct vrb_domain *domain_of(const struct vrb_lane *lane)
{
	return BASE_CONTAINER_OF(lane->base.domain, struct vrb_domain, base);
}

static unsigned at_most(unsigned n, unsigned limit)
{
	return n < limit ? n : limit;
}

static int fail(struct vrb_lane *lane, int code)
{
	tp_verbs_fail_lane(lane, code);
	return lane->failed;
}

/* n windows that are free, behind those that are lent. */
static int have_windows(struct vrb_lane *lane, unsigned n)
{
	const struct vrb_domain *domain = domain_of(lane);
	size_t want = (size_t)lane->n_lent + n;

	if (want <= lane->n_windows)
		return 0;
	struct ibv_mw **windows = reallocarray(lane->windows, want, sizeof(struct ibv_mw *));
	if (!windows)
		return -ENOMEM;
	lane->windows = windows;
	for (; lane->n_windows < want; lane->n_windows++) {
		struct ibv_mw *mw = ibv_alloc_mw(domain->pd, IBV_MW_TYPE_2);
		if (!mw)
			return errno ? -errno : -ENOMEM;
		windows[lane->n_windows] = mw;
	}
	return 0;
}

static void count_lent(struct vrb_lane *lane, int change)
{
	lane->n_lent += (unsigned)change;
	(void)__atomic_add_fetch(&domain_of(lane)->n_windows, (uint64_t)(int64_t)change,
				 __ATOMIC_RELAXED);
}

void tp_verbs_free_windows(struct vrb_lane *lane)
{
	int ret = 0;

	for (; lane->n_windows; lane->n_windows--)
		ret |= ibv_dealloc_mw(lane->windows[lane->n_windows - 1]);
	assert(!ret); /* else the peer could go on */
	(void)ret;
	count_lent(lane, -(int)lane->n_lent);
	free(lane->windows);
	lane->windows = NULL;
}

static int lend_some(struct vrb_lane *lane, struct tp_mr *const *mr, unsigned n, unsigned rights,
		     uint64_t deadline_us, struct tp_remote *ret_remote)
{
	struct ibv_send_wr wr[VRB_OWN_MAX];

	for (unsigned i = 0; i < n; i++) {
		struct ibv_mw *mw = lane->windows[lane->n_lent + i];
		assert(mr[i]->len <= VRB_WINDOW_MAX);
		wr[i] = (struct ibv_send_wr){
			.opcode = IBV_WR_BIND_MW,
			.bind_mw = {
				.mw = mw,
				.rkey = ibv_inc_rkey(mw->rkey),
				.bind_info = {
					.mr = BASE_CONTAINER_OF(mr[i], struct vrb_mr, base)->mr,
					.addr = (uintptr_t)mr[i]->addr,
					.length = mr[i]->len,
					.mw_access_flags = rights,
				},
			},
		};
		ret_remote[i] = (struct tp_remote){ .addr = (uintptr_t)mr[i]->addr,
						    .key = wr[i].bind_mw.rkey };
	}
	int ret = tp_verbs_run_own(lane, wr, n, deadline_us);
	if (ret)
		return ret;
	/* What is in here is what the next bind, and invalidating, go by. */
	for (unsigned i = 0; i < n; i++)
		lane->windows[lane->n_lent + i]->rkey = (uint32_t)ret_remote[i].key;
	count_lent(lane, (int)n);
	return 0;
}

int tp_verbs_lane_lend(struct tp_lane *base, struct tp_mr *const *mr, unsigned n, uint32_t access,
		       uint64_t deadline_us, struct tp_remote *ret_remote)
{
	struct vrb_lane *lane = to_lane(base);
	unsigned rights = 0;

	if (lane->failed)
		return lane->failed;
	if (!domain_of(lane)->windows)
		return fail(lane, -EOPNOTSUPP);
	if (access & TP_REMOTE_WRITE)
		rights |= IBV_ACCESS_REMOTE_WRITE;
	if (access & TP_REMOTE_READ)
		rights |= IBV_ACCESS_REMOTE_READ;
	assert(rights);
	int ret = have_windows(lane, n);
	if (ret)
		return fail(lane, ret);
	for (unsigned done = 0; done < n && !ret;) {
		unsigned some = at_most(n - done, VRB_OWN_MAX);
		ret = lend_some(lane, &mr[done], some, rights, deadline_us, &ret_remote[done]);
		done += some;
	}
	return ret;
}

int tp_verbs_lane_revoke(struct tp_lane *base, uint64_t deadline_us)
{
	struct vrb_lane *lane = to_lane(base);
	struct ibv_send_wr wr[VRB_OWN_MAX];
	int ret = lane->failed;

	while (lane->n_lent && !ret) {
		unsigned some = at_most(lane->n_lent, VRB_OWN_MAX);
		for (unsigned i = 0; i < some; i++)
			wr[i] = (struct ibv_send_wr){
				.opcode = IBV_WR_LOCAL_INV,
				.invalidate_rkey = lane->windows[lane->n_lent - 1 - i]->rkey,
			};
		ret = tp_verbs_run_own(lane, wr, some, deadline_us);
		if (!ret)
			count_lent(lane, -(int)some);
	}
	return ret;
}
