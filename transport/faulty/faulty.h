/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A wrapper around any backend that makes it fail as a plan says.  For tests; in no registry.
 *
 * The plan may be changed at any time and from any thread.  0 in a field means "no such fault",
 * so that an empty plan changes nothing.  Numbers count over all lanes of all domains opened
 * through the table, from 1, since it was made; "posts" are calls, not operations.
 *
 * The wrapper keeps the laws that the inner backend keeps: what it fails was either not accepted
 * or completes exactly once.
 */
#ifndef FAULTY_H
#define FAULTY_H

#include <stdatomic.h>

#include "transport/transport.h"

#define TP_FAULTY_ANY_LANE UINT32_MAX

struct tp_faulty_plan {
	/* This post call accepts nothing and returns fail_post_code (0: -EIO). */
	_Atomic uint64_t fail_post_at;
	_Atomic int fail_post_code;
	/* Every k-th post call returns -EAGAIN and changes nothing. */
	_Atomic uint64_t eagain_every;
	/* A batch of more than one is accepted as a prefix of one. */
	_Atomic bool accept_one;
	/* This completion, or every k-th, says fail_wc_code (0: -EIO); the operation was done. */
	_Atomic uint64_t fail_wc_at, fail_wc_every;
	_Atomic int fail_wc_code;
	/* A completion is given by the k-th poll after the one that would have given it. */
	_Atomic uint64_t delay_polls;
	/* As many of the next calls return -ECONNREFUSED, without any traffic. */
	_Atomic uint32_t refuse_connects, refuse_accepts;
	/* This registration fails with -ENOMEM. */
	_Atomic uint64_t fail_reg_at;
	/* A bit of this message is turned before it is sent. */
	_Atomic uint64_t corrupt_send_at;
	/* The lane with the id drop_lane, or with TP_FAULTY_ANY_LANE each, is shut down once it
	 * has accepted drop_after_ops operations, or with drop_now at its next call. */
	_Atomic uint64_t drop_after_ops;
	_Atomic uint32_t drop_lane;
	_Atomic bool drop_now;

	/* What happened, for tests to look at. */
	_Atomic uint64_t posts, sends, completions, registrations, faults;
};

/* A table for tp_domain_open().  inner and plan are borrowed until it is destroyed, which has
 * to wait for all of its domains.  NULL: no memory. */
const struct tp_ops *tp_faulty_create(const struct tp_ops *inner, struct tp_faulty_plan *plan);
/* The table calls itself by another kind, is found by these paths, and says that it pins: another transport, to the
 * engine. */
void tp_faulty_disguise(const struct tp_ops *ops, const char *kind,
			int (*paths)(struct tp_path *ret, unsigned cap));
/* The wrapped one. */
struct tp_lane *tp_faulty_inner(struct tp_lane *lane);
void tp_faulty_destroy(const struct tp_ops *ops); /* NULL: nothing */

#endif
