/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A watched address space for the tracker's and the pager's tests: this process or a forked
 * one, with memory of several kinds and userfaultfds made in it.  What the guest shall do is a
 * function, which runs there.
 */
#ifndef CONF_GUEST_H
#define CONF_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum backing {
	BACK_MEMFD,
	BACK_FILE,     /* a file on tmpfs */
	BACK_SPLIT,    /* two memfds side by side: two mappings, one range */
	BACK_THP,      /* a file on tmpfs with huge=always */
	BACK_HUGETLB,  /* 2 MiB pages */
	BACK_ANON,     /* private */
	BACK_ANON_THP, /* private, MADV_HUGEPAGE */
	BACK_COUNT,
};

#define GUEST_UFFDS 3
#define GUEST_SHM   (1u << 20)

struct guest {
	enum backing backing;
	bool is_other;
	pid_t pid; /* the watched process */
	char *mem; /* its address there */
	uint64_t page_size, pages, len;
	char *local;             /* our own mapping of the same bytes; NULL when private */
	void *shm;               /* shared with the guest, zeroed, GUEST_SHM bytes */
	int uffds[GUEST_UFFDS];  /* here */
	int remote[GUEST_UFFDS]; /* their numbers there */
	/* the rest is conf_guest.c's */
	int fds[2];
	int sock;
	unsigned long thread;
	int64_t (*fn)(struct guest *g, const uint64_t *args);
	uint64_t args[4];
	int64_t result;
	int lock_fd;
	long reserved;
};

typedef int64_t (*guest_fn)(struct guest *g, const uint64_t *args);

const char *backing_name(enum backing backing);

/* NULL, or why this host has no guest of that kind. */
const char *guest_open(struct guest *g, enum backing backing, bool is_other);
void guest_close(struct guest *g);
/* Ends the other process as if it crashed; guest_close() is still due. */
void guest_kill(struct guest *g);

/* Runs fn in the guest: start returns at once, finish waits for its result (aborts after 60 s). */
void guest_start(struct guest *g, guest_fn fn, uint64_t a, uint64_t b, uint64_t c, uint64_t d);
int64_t guest_finish(struct guest *g);
int64_t guest_run(struct guest *g, guest_fn fn, uint64_t a, uint64_t b, uint64_t c, uint64_t d);

/* Reads its memory without going through a mapping of ours. */
void guest_read(const struct guest *g, uint64_t offset, void *to, size_t len);
/* Whether /proc/PID/smaps shows a flag ("uw", "um", "ui") on any mapping of its memory. */
bool guest_has_vmflag(const struct guest *g, const char *flag);

#endif
