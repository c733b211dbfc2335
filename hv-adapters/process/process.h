/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The demo guest: a child process whose memory is a memfd and whose vCPUs are threads that stamp and check pages.
 *
 *   demo:SIZE[,dirty=BYTES_PER_S][,pattern=random|sequential][,threads=N][,hot=SIZE][,zero=PERCENT][,seed=N]
 *            [,page=4K|2M][,regions=1|2][,check=BYTES_PER_S]
 *
 * What every page must hold follows from its thread's step counter alone (pages.h), and the counters are the
 * guest's device state: after a move a lost, stale or torn page is found, whichever page it is.
 *
 * The child is forked in hv_process_open() and makes its own threads; open the guest before the calling process has
 * threads of its own (glibc keeps malloc usable in a fork of a threaded process, ThreadSanitizer does not allow
 * threads there).  It dies with the thread that opened it, and when its control socket closes.
 */
#ifndef HV_PROCESS_H
#define HV_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

#include <memferry/adapter.h>

/* Exit status of a child that ended in order: every page was right, or some were not. */
#define HV_PROCESS_EXIT_OK    0
#define HV_PROCESS_EXIT_WRONG 3

struct hv_process_status {
	bool running;            /* the writers may write */
	bool verified;           /* every page was checked with the writers stopped */
	uint32_t threads;        /* writers */
	uint64_t heartbeat;      /* of all writers; increases while running */
	uint64_t steps;          /* pages written since the guest was born, here or elsewhere */
	uint64_t wrong_pages;    /* distinct pages found wrong here, and before it came here */
	uint64_t passes;         /* walks over all of a writer's pages, checking, completed */
	uint64_t pages;          /* of 4 KiB, in the guest */
	uint64_t verified_pages; /* of them checked by the verification */
};

/* spec: what follows "demo:".  -MF_EUSAGE: malformed.  Source: returns with the memory filled and the guest
 * running.  Destination: with empty memory, waiting for load_state() and resume(). */
int hv_process_open(const char *spec, enum mf_side side, struct mf_adapter *ret,
		    struct mf_error *err);

/* The child. */
pid_t hv_process_pid(const void *hv);

/* How the guest is; hv is the adapter's.  Between open and close, in the session thread like the adapter's own calls. */
int hv_process_status(void *hv, struct hv_process_status *ret, struct mf_error *err);

/*
 * The adapter's close(), telling how the guest was.  A guest that ran here as the destination is stopped, and every
 * page checked, before it ends; where pages are missing (a userfaultfd still open: post-copy did not end) it is
 * killed unchecked.  ret and ret_exit may be NULL; *ret_exit: the child's exit status, -1 when it was killed.
 */
void hv_process_end(void *hv, struct hv_process_status *ret, int *ret_exit);

#endif
