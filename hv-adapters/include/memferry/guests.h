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

/** Closes what mf_guest_open() opened; a zeroed struct is left alone. */
__attribute__((visibility("default"))) void mf_guest_close(struct mf_adapter *adapter);

#ifdef __cplusplus
}
#endif
#endif
