/* SPDX-License-Identifier: BSD-2-Clause */
/**
 * @file error.h
 * The one error record of memferry, and its codes.
 *
 * Functions return 0 (or a count) on success and a negative code on failure:
 * -errno for causes the kernel names, -MF_E* for those it does not.  The
 * record is the caller's, is never allocated, and may be NULL.  The first
 * record wins where the cause is known; callers on the way up only prefix.
 * Messages are one sentence: object first, what is wrong, what to do; lower
 * case, no trailing dot.
 */
#ifndef MF_ERROR_H
#define MF_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

/** The largest thing that a failure makes unusable. */
enum mf_scope {
	MF_SCOPE_NONE,    /**< no failure */
	MF_SCOPE_OP,      /**< one operation: retry it */
	MF_SCOPE_LANE,    /**< one lane: drop it, mark its extents dirty again */
	MF_SCOPE_SESSION, /**< this move: abort, the source guest runs on */
	MF_SCOPE_HOST,    /**< this host cannot do what was asked: stop */
};

/** Codes for causes that errno has no name for; returned negative. */
enum mf_code {
	MF_EVERSION = 4096, /**< the peer speaks no common protocol version */
	MF_EPEER,           /**< the peer failed, or broke the protocol */
	MF_EREFUSED,        /**< preflight refused the move */
	MF_ECANCELED,       /**< a person or program cancelled the move */
	MF_ENOCONVERGE,     /**< pre-copy does not converge and may not switch */
	MF_EINTEGRITY,      /**< both sides' pages differ */
	MF_EINDOUBT,        /**< committed, but the peer's answer is not known */
	MF_EPAUSED,         /**< the guest runs at the destination, pages are missing */
	MF_EKERNEL,         /**< this kernel lacks what is needed */
	MF_EUSAGE,          /**< an argument is malformed */
	MF_ESECURITY,       /**< the control channel could not be secured: why is in the message */
};

/** Will not grow. */
struct mf_error {
	int code;            /**< as returned: 0 or negative */
	enum mf_scope scope; /**< what it takes down */
	char msg[224];       /**< one sentence, always terminated */
};

#ifdef __cplusplus
}
#endif
#endif
