/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The hand-off of docs/protocol.md: "never two guests, never none".
 *
 * Two memferry processes that may die and be started again (`--resume`) any number of times, their records, their guests, which
 * outlive them, and a network.  When the source's process has died and there is no record, a guardian that it left brings its
 * guest back to running.  Spin looks at every interleaving; check_model.py runs it, and holds each GO() to the table of
 * engine/core/state.c.
 *
 * Network.  What was said stays there: it may be heard late, again, in any order, or never.  Only this much of TCP is relied on:
 * messages of the session's connection reach nobody but the two processes that began it, and a new question closes the last one's
 * connection, its answer included.
 *
 * Time.  While `calm` is false each wait and each connection may be given up, each process may die, and each write of a record may
 * fail, before it can be seen or after.  `calm` becomes true at any moment or never.  From then on nothing fails by itself, a wait
 * ends without what it waited for only where the other side is gone, and a side that is needed is started again.
 *
 * Not here: hosts that crash, and their guests with them; so a post-copy that loses its source guest; a guardian that is killed
 * together with its parent; a source guest that cannot be resumed before the commit; hands that resume or end a guest.
 *
 * Each #ifdef breaks a rule, or adds one: check_model.py has them with a sentence each, and wants Spin to notice those that
 * are broken.  `check_model.py show` prints how it comes to it.
 */

mtype = { gone, /* no process */
	  prepare, precopy, switchover, ready, committed, finishing, postcopy, recover,
	  completed, aborted, paused, in_doubt };
mtype = { none, r_committed, r_ready, r_aborted, r_owner, r_running, r_complete }; /* records */
mtype = { blank, stands, runs, over };						   /* guests */

bool calm;
bool rounds, post; /* how the guest moves */

mtype s = prepare, srec = none, sguest = runs;
mtype d = prepare, drec = none, dguest = blank;
byte sp, dp;	 /* steps within a state */
bool missing;	 /* pages of a post-copy that only the source has */
bool pager;	 /* the guest's userfaultfd, and which pages are present: what a post-copy is taken over with */
bool s_on = true, d_on = true; /* still on the session's connection */
bool guarded = true; /* the guardian has not been told that the source's process ends well */
bool s_owner;	 /* the source has heard that the guest is the destination's */
byte link;	 /* the connection on which a post-copy goes on: 1 the destination has it, 2 both */

/* Said on the session's connection. */
bool prepared_, switchover_, ready_, commit_, running_, done_, bye_, abort_s, abort_d;
/* Said on others; an acknowledgement is the Bye on the connection of that answer. */
bool query_, a_owner, a_goes_on, a_complete, a_aborted, ack_complete, ack_aborted;

bool heard_aborted; /* of the proof, not of the protocol */

/* sp and dp */
#define FAIL	10
#define FAIL2	11
#define FAIL3	12
#define ASK	20
#define ASKED	21
#define TAKE_OVER 22
#define GIVE_UP	23
#define GIVE_UP2 24
#define LISTEN	25
#define LINK	26
#define WHOLE	27
#define WHOLE2	28
#define DONE	30
#define LOST	31
#define ENDED	32
#define ENDED_L 33
#define SAY	34
#define SAY_L	35
#define ANSWER	40
#define HEARD	41

/* A transition of the code's state machine. */
#define GO(side, from, to) assert(side == from); side = to
/* Where a process begins that --resume has started. */
#define BEGIN(side, state) side = state

#define S_DIES	s = gone; sp = 0; s_on = false; link = 0; s_owner = false
#define S_LEAVES guarded = false; S_DIES
#define D_LEAVES d = gone; dp = 0; d_on = false; link = 0

#define S_RUNS	assert(dguest != runs); assert(!commit_ || heard_aborted); \
		if :: sguest == stands -> sguest = runs :: else fi
#define S_ENDS	assert(dguest == runs && !missing); assert(sguest != runs); sguest = over
#define D_RUNS	assert(sguest != runs); assert(dguest == stands || dguest == runs); dguest = runs
#define D_DROPS assert(sguest != over); assert(dguest != runs); dguest = over; pager = false

/* What nobody will answer any more, and what may be given up before. */
#define S_ALONE (!calm || !d_on)
#define D_ALONE (!calm || !s_on)
/* The source has nothing left to ask. */
#define NOBODY_ASKS (!calm || (s == gone && srec == none))

#define S_LINKED (s_on || link == 2)
#define D_LINKED (d_on || link == 2)

/* Heard; it may come again. */
#define TAKE(m) if :: m = false :: !calm fi
/* One answer that was heard is enough. */
#define ONCE if :: dp = HEARD :: !calm fi

#define EARLY(x) (x == prepare || x == precopy || x == switchover)
#define OURS	(drec == r_owner || drec == r_running)

proctype source()
{
end:	do
	/* up to the commit */
	:: atomic { s == prepare && sp == 0 && s_on && prepared_ && rounds -> GO(s, prepare, precopy) }
	:: atomic { s == prepare && sp == 0 && s_on && prepared_ && !rounds -> GO(s, prepare, switchover) }
	:: atomic { s == precopy && sp == 0 -> GO(s, precopy, switchover) }
	:: atomic { s == switchover && sp == 0 -> sguest = stands; sp = 1 }
	:: atomic { s == switchover && sp == 1 -> switchover_ = true; sp = 2 }
	:: atomic { s == switchover && sp == 2 && ready_ -> sp = 0; GO(s, switchover, ready) }

	/* the record is seen before it is known to be safe; one that is not is removed again */
#ifdef COMMIT_BEFORE_RECORD
	:: atomic { s == ready && sp == 0 && !commit_ -> commit_ = true }
	:: atomic { s == ready && sp == 0 && commit_ -> srec = r_committed; sp = 1 }
#else
	:: atomic { s == ready && sp == 0 -> srec = r_committed; sp = 1 }
#endif
	:: atomic { s == ready && sp == 1 -> sp = 0; GO(s, ready, committed) }
	:: atomic { s == ready && sp == 0 && !calm -> sp = FAIL }
	:: atomic { s == ready && sp == 1 && !calm -> srec = none; sp = FAIL }

	/* any failure before the commit: cancelled, lost, told so */
	:: atomic { (EARLY(s) && sp < FAIL || s == ready && sp == 0) && (S_ALONE || abort_d) -> sp = FAIL }
	:: atomic { sp == FAIL -> S_RUNS; sp = FAIL2 }
	/* its monitor will not: nothing was done, nothing is forgotten */
#ifdef ABORTED_FORGOTTEN
	:: atomic { s == recover && sp == FAIL && !calm -> sp = FAIL2 }
#else
	:: atomic { s == recover && sp == FAIL && !calm -> GO(s, recover, in_doubt); S_LEAVES }
#endif
	:: atomic { s != recover && sp == FAIL2 -> abort_s = true; sp = FAIL3 }
	:: atomic { s == prepare && sp == FAIL3 -> GO(s, prepare, aborted); S_LEAVES }
	:: atomic { s == precopy && sp == FAIL3 -> GO(s, precopy, aborted); S_LEAVES }
	:: atomic { s == switchover && sp == FAIL3 -> GO(s, switchover, aborted); S_LEAVES }
	:: atomic { s == ready && sp == FAIL3 -> GO(s, ready, aborted); S_LEAVES }

	/* the commit */
	:: atomic { s == committed && sp == 0 -> commit_ = true; sp = 1 }
	:: atomic { s == committed && sp == 1 && running_ && post -> GO(s, committed, postcopy) }
	:: atomic { s == committed && sp == 1 && running_ && !post -> GO(s, committed, finishing) }
	:: atomic { s == committed && sp == 1 && (S_ALONE || abort_d) ->
		s_on = false; sp = ASK; GO(s, committed, recover) }

	/* in doubt, or without a connection in post-copy: one question a connection, again and again */
	:: atomic { s == recover && sp == ASK ->
		a_owner = false; a_goes_on = false; a_complete = false; a_aborted = false; link = 0;
		query_ = true; sp = ASKED }
	:: atomic { s == recover && sp == ASKED && (!calm || (a_goes_on && link != 1) ||
		(!query_ && !a_owner && !a_goes_on && !a_complete && !a_aborted)) -> sp = ASK }
#ifdef SILENCE_RESUMES
	:: atomic { s == recover && sp == ASKED && !calm && !s_owner -> heard_aborted = true; sp = FAIL }
#else
	:: atomic { s == recover && sp == ASKED && !calm && !s_owner -> GO(s, recover, in_doubt); S_LEAVES }
#endif
	:: atomic { s == recover && sp == ASKED && !calm && s_owner -> GO(s, recover, paused); S_LEAVES }
	:: atomic { s == recover && sp == ASKED && a_complete ->
#ifdef BYE_BEFORE_ACTING
		ack_complete = true;
#endif
		GO(s, recover, finishing); sp = LOST }
#ifdef OWNER_ENDS
	:: atomic { s == recover && sp == ASKED && (a_owner || a_goes_on) -> GO(s, recover, finishing); sp = LOST }
#else
	:: atomic { s == recover && sp == ASKED && a_owner -> GO(s, recover, paused); S_LEAVES }
	:: atomic { s == recover && sp == ASKED && a_goes_on && !s_owner -> s_owner = true }
	:: atomic { s == recover && sp == ASKED && a_goes_on && link == 1 -> link = 2; sp = 1; GO(s, recover, postcopy) }
#endif
	:: atomic { s == recover && sp == ASKED && a_aborted ->
#ifdef BYE_BEFORE_ACTING
		ack_aborted = true;
#endif
		assert(dguest != runs && !s_owner); heard_aborted = true; sp = FAIL }
	:: atomic { s == recover && sp == FAIL2 -> srec = none; sp = FAIL3 }
	:: atomic { s == recover && sp == FAIL3 -> ack_aborted = true; GO(s, recover, aborted); S_LEAVES }

	/* passive memory; then the end: the guest, the record, and only then the destination is told */
	:: atomic { (s == postcopy || s == finishing) && sp == 1 && done_ && S_LINKED -> sp = DONE }
	:: atomic { s == postcopy && sp == 1 && (!calm || (s_on -> !d_on : link != 2)) ->
		s_on = false; s_owner = true; sp = ASK; GO(s, postcopy, recover) }
	:: atomic { s == finishing && sp == 1 && S_ALONE -> sp = LOST }
#ifdef RECORD_BEFORE_END
	:: atomic { (sp == DONE || sp == LOST) && srec != none -> srec = none }
	:: atomic { sp == DONE && srec == none -> S_ENDS; sp = SAY }
	:: atomic { sp == LOST && srec == none -> S_ENDS; sp = SAY_L }
#else
	:: atomic { sp == DONE -> S_ENDS;
#ifdef BYE_BEFORE_REMOVAL
		bye_ = true;
#endif
		sp = ENDED }
	:: atomic { sp == LOST -> S_ENDS; sp = ENDED_L }
	:: atomic { sp == ENDED -> srec = none; sp = SAY }
	:: atomic { sp == ENDED_L -> srec = none; sp = SAY_L }
#endif
	:: atomic { sp == SAY && s == postcopy -> bye_ = true; GO(s, postcopy, completed); S_LEAVES }
	:: atomic { sp == SAY && s == finishing -> bye_ = true; GO(s, finishing, completed); S_LEAVES }
	:: atomic { sp == SAY_L -> ack_complete = (s_on -> ack_complete : true); GO(s, finishing, completed); S_LEAVES }

	/* the process dies; its guardian looks for the record; it is started again */
	:: atomic { s != gone && !calm -> S_DIES }
#ifdef BLIND_GUARDIAN
	:: atomic { s == gone && guarded && sguest == stands -> sguest = runs; assert(dguest != runs) }
#endif
#ifndef NO_GUARDIAN
	:: atomic { s == gone && guarded && srec == none && sguest == stands -> S_RUNS }
#endif
#ifndef NO_RESUME
#ifdef NO_QUESTION
	:: atomic { s == gone && srec == r_committed && sguest == stands -> BEGIN(s, recover); sp = ASK; guarded = true }
#else
	:: atomic { s == gone && srec == r_committed -> BEGIN(s, recover); sp = ASK; guarded = true }
#endif
#endif
	od
}

proctype destination()
{
end:	do
	/* up to the commit */
	:: atomic { d == prepare && dp == 0 -> prepared_ = true; dp = 1 }
	:: atomic { d == prepare && dp == 1 && rounds -> dp = 0; GO(d, prepare, precopy) }
	:: atomic { d == prepare && dp == 1 && switchover_ && !rounds -> dp = 0; GO(d, prepare, switchover) }
	:: atomic { d == precopy && switchover_ -> GO(d, precopy, switchover) }
	:: atomic { d == switchover && dp == 0 -> dguest = stands; missing = post; pager = post; dp = 1 }
#ifdef READY_UNRECORDED
	:: atomic { d == switchover && dp == 1 -> dp = 2 }
#else
	:: atomic { d == switchover && dp == 1 -> drec = r_ready; dp = 2 }
#endif
	:: atomic { d == switchover && dp == 2 -> dp = 0; GO(d, switchover, ready) }
	:: atomic { d == ready && dp == 0 -> ready_ = true; dp = 1 }
	:: atomic { d == ready && dp == 1 && commit_ -> dp = 2 }
#ifdef RUN_BEFORE_RECORD
	:: atomic { d == ready && dp == 2 && dguest == stands -> D_RUNS }
	:: atomic { d == ready && dp == 2 && dguest == runs -> drec = r_owner; dp = 3 }
#else
	:: atomic { d == ready && dp == 2 -> drec = r_owner; dp = 3 }
#endif
	:: atomic { d == ready && dp == 3 -> dp = 0; GO(d, ready, committed) }
	/* a record that could not be written is not there, or gives way to the one before it */
	:: atomic { d == ready && dp == 2 && !calm && dguest == stands -> dp = FAIL }
	:: atomic { d == ready && dp == 3 && !calm && dguest == stands ->
#ifdef RECORD_REMOVED
		drec = none;
#else
#ifndef RECORD_STAYS
		drec = r_ready;
#endif
#endif
		dp = FAIL }

#ifdef ABORTED_UNRECORDED
	:: atomic { d == ready && dp == 1 && query_ -> a_aborted = true }
#endif
#ifdef NO_LOCK
	:: atomic { d == ready && dp == 1 && query_ -> drec = r_aborted; a_aborted = true } /* another process */
#endif

	/* any failure before the commit */
	:: atomic { d == prepare && (D_ALONE || abort_s) -> abort_d = true; GO(d, prepare, aborted); D_LEAVES }
	:: atomic { d == precopy && (D_ALONE || abort_s) -> abort_d = true; GO(d, precopy, aborted); D_LEAVES }
	:: atomic { d == switchover && dp < FAIL && (D_ALONE || abort_s) -> abort_d = true; D_DROPS; dp = FAIL }
	:: atomic { d == switchover && dp == FAIL -> drec = none; GO(d, switchover, aborted); D_LEAVES }
	:: atomic { d == ready && dp <= 1 && (D_ALONE || abort_s) -> dp = FAIL }
	:: atomic { d == ready && dp == FAIL -> drec = r_aborted; dp = FAIL2 }
	:: atomic { d == ready && dp == FAIL && !calm -> dp = FAIL2 } /* it cannot be written */
	:: atomic { d == ready && dp == FAIL2 -> abort_d = true; D_DROPS; dp = ANSWER; GO(d, ready, aborted) }
	:: atomic { d == aborted && query_ -> TAKE(query_); a_aborted = true }
	:: atomic { d == aborted && (ack_aborted || (abort_s && d_on)) -> drec = none; D_LEAVES }
	:: atomic { d == aborted && NOBODY_ASKS ->
#ifdef FORGET
		drec = none;
#endif
		D_LEAVES }
#ifdef LATE_COMMIT
	:: atomic { d == aborted && commit_ -> drec = r_owner; dguest = stands; dp = 0; BEGIN(d, committed) }
#endif

	/* owner; `running` may fail to be written */
	:: atomic { d == committed && dp == 0 -> D_RUNS; dp = 1 }
	:: atomic { d == committed && dp == 0 && !calm -> d_on = false; dp = ANSWER } /* its monitor will not */
	:: atomic { (d == committed || d == recover) && dp == ANSWER && query_ -> TAKE(query_); a_owner = true; ONCE }
	:: atomic { d == committed && dp >= ANSWER -> GO(d, committed, paused); D_LEAVES }
	:: atomic { d == committed && dp == 1 -> drec = r_running; dp = 2 }
	:: atomic { d == committed && dp == 1 && !calm -> dp = 2 }
	:: atomic { d == committed && dp == 2 && post -> running_ = running_ || d_on; dp = 0; GO(d, committed, postcopy) }
	:: atomic { d == committed && dp == 2 && !post -> running_ = running_ || d_on; dp = WHOLE; GO(d, committed, finishing) }

	/* post-copy: the source serves, on the session's connection or on one that came after it */
	:: atomic { d == postcopy && dp == 0 && missing &&
		((d_on && s_on && (s == committed || s == postcopy)) || (link == 2 && s == postcopy)) -> missing = false }
	:: atomic { d == postcopy && dp == 0 && missing && (!calm || (d_on -> !s_on : link == 0)) ->
		d_on = false; link = 0; dp = LISTEN; GO(d, postcopy, recover) }
	:: atomic { d == postcopy && dp == 0 && !missing -> dp = WHOLE }

	/* no connection: the next one that asks */
	:: atomic { d == recover && dp == LISTEN && query_ -> TAKE(query_); a_goes_on = true; link = 1; dp = LINK }
	:: atomic { d == recover && dp == LISTEN && !calm -> GO(d, recover, paused); D_LEAVES }
	:: atomic { d == recover && dp == LINK && link != 0 -> dp = 0; GO(d, recover, postcopy) }
	:: atomic { d == recover && dp == LINK && (!calm || link == 0) -> link = 0; dp = LISTEN }

	/* whole: that is recorded, then the pager ends, which a post-copy that is not complete is taken over with; if it
	 * cannot be recorded, the pager stays.  The record goes when the source's has. */
#ifdef LATE_COMPLETE
	:: atomic { (d == postcopy || d == finishing) && dp == WHOLE -> pager = false; dp = DONE }
#else
	:: atomic { (d == postcopy || d == finishing) && dp == WHOLE && post -> drec = r_complete; dp = WHOLE2 }
	:: atomic { dp == WHOLE2 -> pager = false; dp = DONE }
	:: atomic { (d == postcopy || d == finishing) && dp == WHOLE && (!post || !calm) -> dp = DONE }
#endif
	:: atomic { (d == postcopy || d == finishing) && dp == DONE -> done_ = done_ || D_LINKED; dp = SAY }
	:: atomic { (d == postcopy || d == finishing) && dp == SAY && (!calm || (d_on -> !s_on : link != 2)) ->
		d_on = false; dp = SAY_L }
	:: atomic { (d == postcopy || d == finishing) && dp == SAY_L && query_ -> TAKE(query_); a_complete = true }
	:: atomic { (d == postcopy || d == finishing) && (dp == SAY && bye_ || dp == SAY_L && ack_complete) ->
		drec = none; dp = ENDED }
	:: atomic { (d == postcopy || d == finishing) && dp == SAY_L && NOBODY_ASKS ->
#ifdef FORGET
		drec = none;
#else
		if :: drec = r_complete :: !calm fi;
#endif
		dp = ENDED }
	:: atomic { d == postcopy && dp == ENDED -> GO(d, postcopy, completed); D_LEAVES }
	:: atomic { d == finishing && dp == ENDED -> GO(d, finishing, completed); D_LEAVES }

	/* the process dies, and is started again: where the record is, from there it goes on */
	:: atomic { d != gone && !calm -> D_LEAVES }
#ifndef NO_RESUME
	:: atomic { d == gone && drec != none && (!calm || srec == r_committed || (OURS && (dguest != runs || missing))) ->
		BEGIN(d, recover);
		if
		:: OURS -> dp = TAKE_OVER
		:: drec == r_complete -> dp = SAY_L; GO(d, recover, finishing)
		:: drec == r_ready || drec == r_aborted -> dp = GIVE_UP
		fi }
#ifdef NO_RECORD_ABORTS
	:: atomic { d == gone && drec == none && (!calm || srec == r_committed) -> BEGIN(d, recover); dp = GIVE_UP }
#endif
#endif
	:: atomic { d == recover && dp == TAKE_OVER && (!calm || (post && !pager)) -> GO(d, recover, paused); D_LEAVES }
	:: atomic { d == recover && dp == TAKE_OVER && (!post || pager) ->
		if
		:: drec == r_owner && dguest != runs -> dp = 1
		:: else -> dp = 3
		fi }
	:: atomic { d == recover && dp == 1 -> D_RUNS; dp = 2 }
	:: atomic { d == recover && dp == 1 && !calm -> dp = ANSWER } /* its monitor will not, again */
	:: atomic { d == recover && dp >= ANSWER -> GO(d, recover, paused); D_LEAVES }
	:: atomic { d == recover && dp == 2 -> drec = r_running; dp = 3 }
	:: atomic { d == recover && dp == 2 && !calm -> dp = 3 }
	:: atomic { d == recover && dp == 3 && missing -> dp = LISTEN }
	:: atomic { d == recover && dp == 3 && !missing -> dp = WHOLE; GO(d, recover, finishing) }

	/* it never was the owner, and never will be */
	:: atomic { d == recover && dp == GIVE_UP -> drec = r_aborted; dp = GIVE_UP2 }
	:: atomic { d == recover && dp == GIVE_UP && !calm -> GO(d, recover, paused); D_LEAVES }
	:: atomic { d == recover && dp == GIVE_UP2 ->
		if
		:: dguest == stands -> D_DROPS
#ifdef DROPS_ANY
		:: dguest == runs -> D_DROPS
#endif
		:: else
		fi;
		dp = ANSWER; GO(d, recover, aborted) }
#ifdef RECORD_IS_LOST
	:: atomic { d == gone && !calm -> drec = none }
#endif
	od
}

active proctype world()
{
	atomic {
		if :: rounds = true :: skip fi;
		if :: post = true :: skip fi;
		run source();
		run destination()
	}
	do
	:: atomic { !calm && link == 2 -> link = 0 }
	:: atomic { calm = true; break }
	od
}

/* One runs and lacks nothing, the other has ended or never ran; and the source has not forgotten to say so. */
#define settled (srec == none && ((sguest == runs && dguest != runs) || (dguest == runs && !missing && sguest == over)))

ltl settles { [] (calm -> <> [] settled) }
