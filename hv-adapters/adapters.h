/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the registry (adapters.c) opens.  Each takes what follows its prefix in a guest's name.
 *
 * What a guardian (guard.c) calls, in a process forked from the one that opened the guest and whose descriptors are all
 * closed: bring_back() gives the move up that the killed process had begun, and runs the source guest as it ran
 * before; 0 also when there is nothing to give up.  It may be called again after a failure.
 */
#ifndef HV_ADAPTERS_H
#define HV_ADAPTERS_H

#include <memferry/adapter.h>

/* "qemu:" QMP_SOCKET */
int hv_qemu_open(const char *socket_path, enum mf_side side, struct mf_adapter *ret,
		 struct mf_error *err);
pid_t hv_qemu_pid(const void *hv);
int hv_qemu_bring_back(void *hv, struct mf_error *err);
/* "demo:" SIZE[,key=value]… */
int hv_process_open(const char *spec, enum mf_side side, struct mf_adapter *ret,
		    struct mf_error *err);
pid_t hv_process_pid(const void *hv);

/* The open guest's process; 0: not one of ours.  bring_back: for hv; NULL: its kind needs no guardian. */
struct hv_target {
	pid_t pid;
	int (*bring_back)(void *hv, struct mf_error *err);
};
struct hv_target hv_find_target(const struct mf_adapter *guest);

#endif
