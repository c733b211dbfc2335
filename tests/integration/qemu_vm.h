/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Real QEMUs for tests: started, listened to, ended with the test.  The guest is tests/guest, whose heartbeats
 * on the serial port say that it runs and that its RAM is right.
 */
#ifndef TESTS_QEMU_VM_H
#define TESTS_QEMU_VM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "hv-adapters/qemu/qmp.h"

#define VM_RAM_MAX 2

enum vm_ram {
	VM_RAM_TMPFS,
	VM_RAM_MEMFD,
	VM_RAM_HUGETLB, /* 2 MiB pages of a file system of its own, mounted for QEMU alone */
	VM_RAM_PRIVATE,
	VM_RAM_DISK,
};

struct vm_params {
	const char *kernel; /* NULL: none, the firmware runs */
	const char *guest_params;
	enum vm_ram ram[VM_RAM_MAX];
	unsigned n_ram;   /* backends m0, m1, … as NUMA nodes; 0: QEMU's own -m */
	unsigned ram_mib; /* of each */
	bool is_incoming; /* -incoming defer */
	bool is_kvm;
	uid_t uid;             /* 0: as we are */
	const char *extra[16]; /* NULL-terminated */
};

struct vm {
	char dir[40];
	char qmp[64];              /* for the adapter */
	char file[VM_RAM_MAX][64]; /* its name is gone once QEMU has opened it */
	uint64_t inode[VM_RAM_MAX];
	pid_t pid;
	struct qmp *monitor; /* the test's own */
	int serial;
	char line[256]; /* the last one read */
	char buf[4096];
	size_t len;
	uint64_t heartbeat; /* n of the last HB line */
};

/* NULL, or why no QEMU of that kind can be started here. */
const char *vm_start(struct vm *vm, const struct vm_params *params);
void vm_stop(struct vm *vm);
/* Until the process is gone; false: it still lives after 20 s. */
bool vm_wait_gone(struct vm *vm);

/* The next line of the serial port that begins with prefix; false at the deadline.  WRONG lines fail. */
bool vm_wait_line(struct vm *vm, const char *prefix, uint64_t deadline_us);
/* What has come so far is thrown away, then so many heartbeats more must come, each without a wrong page. */
void vm_expect_running(struct vm *vm, unsigned heartbeats);
/* Its own full check of all RAM. */
void vm_expect_whole(struct vm *vm);
/* query-status says this; vCPUs accordingly. */
void vm_expect_state(struct vm *vm, const char *state, bool is_running);
void vm_command(struct vm *vm, const char *command, json_t *args, json_t **ret);

#endif
