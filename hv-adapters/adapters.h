/* SPDX-License-Identifier: BSD-2-Clause */
/* What the registry (adapters.c) opens.  Each takes what follows its prefix in a guest's name. */
#ifndef HV_ADAPTERS_H
#define HV_ADAPTERS_H

#include <memferry/adapter.h>

/* "qemu:" QMP_SOCKET */
int hv_qemu_open(const char *socket_path, enum mf_side side, struct mf_adapter *ret,
		 struct mf_error *err);
/* "demo:" SIZE[,key=value]… */
int hv_process_open(const char *spec, enum mf_side side, struct mf_adapter *ret,
		    struct mf_error *err);

#endif
