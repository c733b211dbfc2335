/* SPDX-License-Identifier: BSD-2-Clause */
/**
 * @file guests.h
 * The adapters that come with memferry, by name.
 */
#ifndef MF_GUESTS_H
#define MF_GUESTS_H

#include <memferry/adapter.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Opens the guest that @p spec names, for one side of a move:
 *   qemu:QMP_SOCKET                                      a running QEMU
 *   demo:SIZE[,dirty=BYTES_PER_S][,pattern=random|sequential][,…]  the built-in guest (hv-adapters/process)
 * -MF_EUSAGE: the spec is malformed; else what opening failed with.  Blocks, for seconds at most.
 */
__attribute__((visibility("default"))) int
mf_guest_open(const char *spec, enum mf_side side, struct mf_adapter *ret, struct mf_error *err);

/** The process that the open guest lives in; 0: in this one. */
__attribute__((visibility("default"))) pid_t mf_guest_pid(const struct mf_adapter *adapter);

/** Closes what mf_guest_open() opened; a zeroed struct is left alone. */
__attribute__((visibility("default"))) void mf_guest_close(struct mf_adapter *adapter);

struct mf_attach;

/**
 * Starts a small process of its own that reaches into the guest's for this program: traces it for single system calls,
 * opens its files in /proc and its RAM, and does nothing else.  After that this program needs no privilege for the guest
 * and may give it up.  A guest that lives in this process needs none of it, and *ret is NULL.
 *
 * Forks, so the program should have no other threads yet.  One at a time.
 */
__attribute__((visibility("default"))) int
mf_attach_start(const struct mf_adapter *guest, struct mf_attach **ret, struct mf_error *err);

/** The process; 0 without one. */
__attribute__((visibility("default"))) pid_t mf_attach_pid(const struct mf_attach *attach);

/** Ends it and waits until it is gone.  After mf_guest_close().  NULL: nothing. */
__attribute__((visibility("default"))) void mf_attach_end(struct mf_attach *attach);

struct mf_guard;

struct mf_guard_params {
	size_t size;         /**< sizeof(struct mf_guard_params) of whoever fills it */
	const char *run_dir; /**< the session's; it exists */
	const char *session; /**< the session's name, as in its report */
	const char *stale;   /**< a file to remove when the program was killed, or NULL */
};

/**
 * Source: a small process of its own that brings the guest back should this program be killed before the hand-off is
 * committed; after it, it leaves the guest alone.  For guests in processes of their own that outlive the program; for
 * others there is nothing to guard, and *ret is NULL.
 *
 * Forks, so the program should have no other threads yet.  Before the session is run.  @p params and what is in it are
 * not needed afterwards.
 */
__attribute__((visibility("default"))) int mf_guard_start(const struct mf_adapter *guest,
							  const struct mf_guard_params *params,
							  struct mf_guard **ret,
							  struct mf_error *err);

/** The process; 0 without one. */
__attribute__((visibility("default"))) pid_t mf_guard_pid(const struct mf_guard *guard);

/** Says goodbye and waits until it is gone.  After mf_guest_close(), which gives up what is left.  NULL: nothing. */
__attribute__((visibility("default"))) void mf_guard_end(struct mf_guard *guard);

#ifdef __cplusplus
}
#endif
#endif
