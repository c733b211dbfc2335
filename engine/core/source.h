/* SPDX-License-Identifier: BSD-2-Clause */
/* What the source's phases share: source.c runs them, precopy.c makes rounds, tracking.c knows what the guest writes, switchover.c hands the rest over. */
#ifndef CORE_SOURCE_H
#define CORE_SOURCE_H

#include "core/engine.h"

/* source.c: what every new connection goes through. */

/* Sends what the guest is, and what lanes could run over. */
int eng_source_describe(struct mf_session *s, struct mf_error *err);
/* Which rails there are, and whether the destination refuses. */
int eng_source_take_verdicts(struct mf_session *s, struct mf_error *err);
/* With a token of its own for each connection. */
int eng_source_send_prepare(struct mf_session *s, struct mf_error *err);
/* Opens all rails here, and joins those that the destination has opened. */
int eng_source_join(struct mf_session *s, struct mf_error *err);

/* precopy.c */

/* Rounds until the decision to switch; *ret_postcopy says how.  Tracking goes on. */
int eng_source_precopy(struct mf_session *s, bool *ret_postcopy, struct mf_error *err);
/* The end of a round or a pass: 0 while there is a lane to go on with, and lost ones are fenced. */
int eng_round_wait(struct mf_session *s, struct eng_round *round, struct mf_error *err);
/* A round is over: counted, told here and to the destination. */
int eng_round_end(struct mf_session *s, struct mf_round *round, struct mf_error *err);

/* tracking.c */

/* Tracks from now on; todo holds what there is.  unwanted: TRK_CAP_* that the tracker must not have. */
int eng_tracker_start(struct mf_session *s, uint32_t unwanted, struct mf_error *err);
/* What was written goes into todo.  The guest stands still. */
int eng_collect(struct mf_session *s, struct mf_error *err);
/* The same, the guest running: where writes may hide from the tracker, it stands still for as long as it is asked.  A
 * page that was pinned before this was reported by an earlier collect or is by this one, and what was
 * written through the pin has landed. */
int eng_collect_running(struct mf_session *s, struct mf_error *err);
/* Without one: nothing. */
void eng_tracker_stop(struct mf_session *s);

/* switchover.c: pauses the guest; returns when the destination is ready to run it.  *postcopy: wanted, and what came of it. */
int eng_source_switchover(struct mf_session *s, bool *postcopy, struct mf_error *err);

#endif
