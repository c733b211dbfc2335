/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The hand-off of docs/protocol.md: "never two guests, never none".
 *
 * Two memferry processes that may die and be started again (`--resume`) any number of times, their records, their guests, which
 * outlive them, and a network.  When the source's process has died and there is no record, a guardian that it left brings its guest back to
 * running.  Spin looks at every interleaving; check_model.py runs it, and holds each GO() to the table of engine/core/state.c.
 *
 * Network.  What was said stays there: it may be heard late, again, in any order, or never.  Only this much of TCP is relied on:
 * messages of the session's connection reach nobody but the two processes that began it, and a new question closes the last one's
 * connection, its answer included.
 *
 * Time.  While `calm` is false each wait and each connection may be given up, each process may die, and each write of a record may
 * fail.  `calm` becomes true at any moment or never.  From then on nothing fails by itself, a wait ends without what it
 * waited for only where the other side is gone, and a side that is needed is started again.
 *
 * Not here: hosts that crash, and their guests with them; so a post-copy that loses its source guest; a guardian that is killed
 * together with its parent.
 *
 * Each #ifdef breaks a rule, or adds one: check_model.py has them with a sentence each, and wants Spin to notice those that
 * are broken.  `check_model.py show` prints how it comes to it.
 */

mtype = { gone, /* no process */
	  prepare, precopy, switchover, ready, committed, finishing, postcopy,
	  completed, aborted, paused, in_doubt,
	  unsure }; /* not a state of the code: a resumed destination that has found no record */
mtype = { none, r_committed, r_ready, r_owner, r_aborted };  /* records */
mtype = { blank, stands, runs, over };			     /* guests */

bool calm;
bool rounds, post; /* how the guest moves */

mtype s = prepare, srec = none, sguest = runs;
mtype d = prepare, drec = none, dguest = blank;
byte sp, dp;	 /* steps within a state */
bool missing;	 /* pages of a post-copy that only the source has */
bool s_on = true, d_on = true; /* still on the session's connection */
bool s_resumed;
byte link;	 /* the connection of a resumed post-copy: 1 the destination has it, 2 both */

/* Said on the session's connection. */
bool prepared_, switchover_, ready_, commit_, running_, done_, bye_, abort_s, abort_d;
/* Said on others; an acknowledgement is the Bye on the connection of that answer. */
bool query_, a_owner, a_complete, a_aborted, a_unknown, ack_complete, ack_aborted;

bool heard_aborted; /* of the proof, not of the protocol */

/* sp and dp */
#define FAIL	10
#define FAIL2	11
#define FAIL3	12
#define ASK	20
#define ASKED	21
#define KNOWS	22
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

#define S_LEAVES s = gone; sp = 0; s_on = false; link = 0; s_resumed = false
#define D_LEAVES d = gone; dp = 0; d_on = false; link = 0

#define S_RUNS	assert(dguest != runs); assert(!commit_ || heard_aborted); \
		if :: sguest == stands -> sguest = runs :: else fi
#define S_ENDS	assert(dguest == runs && !missing); sguest = over
#define D_RUNS	assert(sguest != runs); assert(dguest == stands || dguest == runs); dguest = runs
#define D_DROPS assert(sguest != over); assert(dguest != runs); dguest = over

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

	/* the record is seen before it is known to be safe */
#ifdef COMMIT_BEFORE_RECORD
	:: atomic { s == ready && sp == 0 && !commit_ -> commit_ = true }
	:: atomic { s == ready && sp == 0 && commit_ -> srec = r_committed; sp = 1 }
#else
	:: atomic { s == ready && sp == 0 -> srec = r_committed; sp = 1 }
#endif
	:: atomic { s == ready && sp == 1 -> sp = 0; GO(s, ready, committed) }
	:: atomic { s == ready && sp <= 1 && !calm -> sp = FAIL }

	/* any failure before the commit: cancelled, lost, told so */
	:: atomic { (EARLY(s) && sp < FAIL || s == ready && sp == 0) && (S_ALONE || abort_d) -> sp = FAIL }
	:: atomic { sp == FAIL -> S_RUNS; sp = FAIL2 }
	:: atomic { s != committed && sp == FAIL2 -> abort_s = true; sp = FAIL3 }
	:: atomic { s == prepare && sp == FAIL3 -> GO(s, prepare, aborted); S_LEAVES }
	:: atomic { s == precopy && sp == FAIL3 -> GO(s, precopy, aborted); S_LEAVES }
	:: atomic { s == switchover && sp == FAIL3 -> GO(s, switchover, aborted); S_LEAVES }
	:: atomic { s == ready && sp == FAIL3 -> srec = none; GO(s, ready, aborted); S_LEAVES }

	/* the commit */
	:: atomic { s == committed && sp == 0 -> commit_ = true; sp = 1 }
	:: atomic { s == committed && sp == 1 && running_ && post -> GO(s, committed, postcopy) }
	:: atomic { s == committed && sp == 1 && running_ && !post -> GO(s, committed, finishing) }
	:: atomic { s == committed && sp == 1 && (S_ALONE || abort_d) -> s_on = false; sp = ASK }

	/* in doubt: one question a connection, again and again */
	:: atomic { s == committed && sp == ASK ->
		a_owner = false; a_complete = false; a_aborted = false; a_unknown = false; link = 0;
		query_ = true; sp = ASKED }
	:: atomic { s == committed && sp == ASKED &&
		(!calm || (!query_ && !a_owner && !a_complete && !a_aborted && !a_unknown)) -> sp = ASK }
#ifdef SILENCE_RESUMES
	:: atomic { s == committed && sp == ASKED && !calm -> heard_aborted = true; sp = FAIL }
#else
	:: atomic { s == committed && sp == ASKED && !calm -> GO(s, committed, in_doubt); S_LEAVES }
#endif
#ifdef UNKNOWN_RESUMES
	:: atomic { s == committed && sp == ASKED && a_unknown -> heard_aborted = true; sp = FAIL }
#else
	:: atomic { s == committed && sp == ASKED && a_unknown -> GO(s, committed, in_doubt); S_LEAVES }
#endif
	:: atomic { s == committed && sp == ASKED && a_complete ->
#ifdef BYE_BEFORE_ACTING
		ack_complete = true;
#endif
		GO(s, committed, finishing); sp = LOST }
#ifdef OWNER_ENDS
	:: atomic { s == committed && sp == ASKED && a_owner -> GO(s, committed, finishing); sp = LOST }
#else
	:: atomic { s == committed && sp == ASKED && a_owner && !s_resumed -> GO(s, committed, paused); S_LEAVES }
	:: atomic { s == committed && sp == ASKED && a_owner && s_resumed ->
		link = (link -> 2 : 0); sp = 1; GO(s, committed, postcopy) }
#endif
	:: atomic { s == committed && sp == ASKED && a_aborted ->
#ifdef BYE_BEFORE_ACTING
		ack_aborted = true;
#endif
		assert(dguest != runs); heard_aborted = true; sp = FAIL }
	:: atomic { s == committed && sp == FAIL2 -> srec = none; sp = FAIL3 }
	:: atomic { s == committed && sp == FAIL3 -> ack_aborted = true; GO(s, committed, aborted); S_LEAVES }

	/* passive memory; then the end: the guest, the record, and only then the destination is told */
	:: atomic { (s == postcopy || s == finishing) && sp == 1 && done_ && S_LINKED -> sp = DONE }
	:: atomic { s == postcopy && sp == 1 && (!calm || (s_on -> !d_on : link != 2)) ->
		GO(s, postcopy, paused); S_LEAVES }
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
	:: atomic { s != gone && !calm -> S_LEAVES }
#ifdef BLIND_GUARDIAN
	:: atomic { s == gone && sguest == stands -> sguest = runs; assert(dguest != runs) }
#endif
#ifndef NO_GUARDIAN
	:: atomic { s == gone && srec == none && sguest == stands -> S_RUNS }
#endif
#ifndef NO_RESUME
	:: atomic { s == gone && srec == r_committed -> BEGIN(s, committed); sp = ASK; s_resumed = true }
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
	:: atomic { d == switchover ->
		dguest = stands; missing = post;
#ifdef READY_RECORD
		drec = r_ready;
#endif
		GO(d, switchover, ready) }
	:: atomic { d == ready && dp == 0 -> ready_ = true; dp = 1 }
	:: atomic { d == ready && dp == 1 && commit_ -> dp = 2 }
#ifdef RUN_BEFORE_RECORD
	:: atomic { d == ready && dp == 2 && dguest == stands -> D_RUNS }
	:: atomic { d == ready && dp == 2 && dguest == runs -> drec = r_owner; dp = 3 }
#else
	:: atomic { d == ready && dp == 2 -> drec = r_owner; dp = 3 }
#endif
	:: atomic { d == ready && dp == 3 -> dp = 0; GO(d, ready, committed) }
	/* a record that could not be written is not there, or is taken back */
	:: atomic { d == ready && dp == 2 && !calm && dguest == stands -> dp = FAIL }
	:: atomic { d == ready && dp == 3 && !calm && dguest == stands ->
#ifdef READY_RECORD
		drec = r_ready;
#else
#ifndef RECORD_STAYS
		drec = none;
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
	:: atomic { d == switchover && (D_ALONE || abort_s) -> abort_d = true; D_DROPS; GO(d, switchover, aborted); D_LEAVES }
	:: atomic { d == ready && dp <= 1 && (D_ALONE || abort_s) -> dp = FAIL }
	:: atomic { d == ready && dp == FAIL -> drec = r_aborted; dp = FAIL2 }
	:: atomic { d == ready && dp == FAIL && !calm -> dp = FAIL2 } /* it cannot be written */
	:: atomic { d == ready && dp == FAIL2 -> abort_d = true; D_DROPS; dp = ANSWER; GO(d, ready, aborted) }
	:: atomic { d == aborted && query_ -> TAKE(query_); a_aborted = true }
	:: atomic { d == aborted && (ack_aborted || (abort_s && d_on)) -> drec = none; D_LEAVES }
	:: atomic { d == aborted && NOBODY_ASKS ->
#ifndef READY_RECORD
		drec = none;
#endif
#ifdef FORGET
		drec = none;
#endif
		D_LEAVES }
#ifdef LATE_COMMIT
	:: atomic { d == aborted && commit_ -> drec = r_owner; dguest = stands; dp = 0; BEGIN(d, committed) }
#endif

	/* owner */
	:: atomic { d == committed && dp == 0 -> D_RUNS; dp = 1 }
	:: atomic { d == committed && dp == 0 && !calm -> d_on = false; dp = ANSWER } /* its monitor will not */
	:: atomic { d == committed && dp == ANSWER && query_ -> TAKE(query_); a_owner = true; ONCE }
	:: atomic { d == committed && dp >= ANSWER -> GO(d, committed, paused); D_LEAVES }
	:: atomic { d == committed && dp == 1 && missing -> running_ = running_ || d_on; dp = 0; GO(d, committed, postcopy) }
	:: atomic { d == committed && dp == 1 && !missing -> running_ = running_ || d_on; dp = DONE; GO(d, committed, finishing) }

	/* post-copy: the source serves, on the session's connection or on one that came back */
	:: atomic { d == postcopy && dp == 0 && missing &&
		((d_on && s_on && (s == committed || s == postcopy)) || (link == 2 && s == postcopy)) -> missing = false }
	:: atomic { d == postcopy && dp == 0 && missing && d_on && D_ALONE -> d_on = false; dp = LOST }
	:: atomic { d == postcopy && dp == 0 && missing && !d_on && !calm -> link = 0; dp = LOST }
	:: atomic { d == postcopy && dp == 0 && missing && !d_on && link != 2 && query_ ->
		TAKE(query_); a_owner = true; link = 1 }
	:: atomic { d == postcopy && dp == LOST && query_ -> TAKE(query_); a_owner = true; ONCE }
	:: atomic { d == postcopy && (dp == LOST || dp == HEARD) -> GO(d, postcopy, paused); D_LEAVES }
	:: atomic { d == postcopy && dp == 0 && !missing -> dp = DONE }

	/* whole: the record goes when the source's has */
	:: atomic { (d == postcopy || d == finishing) && dp == DONE -> done_ = done_ || D_LINKED; dp = SAY }
	:: atomic { (d == postcopy || d == finishing) && dp == SAY && (!calm || (d_on -> !s_on : link != 2)) ->
		d_on = false; dp = ANSWER }
	:: atomic { (d == postcopy || d == finishing) && dp == ANSWER && query_ -> TAKE(query_); a_complete = true }
	:: atomic { (d == postcopy || d == finishing) && (dp == SAY && bye_ || dp == ANSWER && ack_complete) ->
		drec = none; dp = ENDED }
	:: atomic { (d == postcopy || d == finishing) && dp == ANSWER && NOBODY_ASKS ->
#ifdef FORGET
		drec = none;
#endif
		dp = ENDED }
	:: atomic { d == postcopy && dp == ENDED -> GO(d, postcopy, completed); D_LEAVES }
	:: atomic { d == finishing && dp == ENDED -> GO(d, finishing, completed); D_LEAVES }

	/* the process dies, and is started again */
	:: atomic { d != gone && !calm -> D_LEAVES }
#ifndef NO_RESUME
	:: atomic { d == gone && (!calm || srec == r_committed || (drec == r_owner && (dguest != runs || missing))) ->
		if
		:: drec == r_owner -> BEGIN(d, committed)
		:: drec == r_aborted -> BEGIN(d, aborted); dp = ANSWER
		:: drec == r_ready -> drec = r_aborted; BEGIN(d, aborted); dp = ANSWER
#ifdef READY_RECORD
		:: drec == none -> BEGIN(d, unsure)
#else
		:: drec == none -> drec = r_aborted; BEGIN(d, aborted); dp = ANSWER
#endif
		fi;
		if
		:: d == aborted && dguest == stands -> D_DROPS
#ifdef DROPS_ANY
		:: d == aborted && dguest == runs -> D_DROPS
#endif
		:: else
		fi }
#endif
	:: atomic { d == unsure && query_ -> TAKE(query_); a_unknown = true }
	:: atomic { d == unsure && NOBODY_ASKS -> D_LEAVES }
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

/* Exactly one runs, and lacks nothing. */
#define one ((sguest == runs && dguest != runs) || (dguest == runs && !missing && sguest != runs))

ltl settles { [] (calm -> <> [] one) }
