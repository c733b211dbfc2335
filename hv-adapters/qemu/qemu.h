/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The adapter for unmodified QEMU, 7.2 and newer: its parts' common state.
 *
 *   qemu.c           opening, closing, the table; reaching into QEMU's address space
 *   qemu_describe.c  what the guest is, where its RAM is, why it could not be moved
 *   qemu_settings.c  what is changed in QEMU before a move, and put back after one that failed
 *   qemu_migrate.c   pausing, the device state, running again
 */
#ifndef QEMU_QEMU_H
#define QEMU_QEMU_H

#include <stdbool.h>
#include <stdint.h>

#include <memferry/adapter.h>

#include "hv-adapters/qemu/qmp.h"

#define QEMU_VERSION(major, minor, micro) ((major)*10000 + (minor)*100 + (micro))

enum {
	QEMU_CAPABILITIES_MAX = 24,
	QEMU_PARAMS_MAX = 1024,
	QEMU_UFFDS_MAX = 64,
	QEMU_COMMAND_MS = 10000, /* an answer of the monitor; also while QEMU is busy */
	QEMU_STATE_MS = 60000, /* pausing, saving, loading: as long as no byte and no event comes */
};

/* How far QEMU's own migration has got, as far as it is our doing. */
enum qemu_move {
	QEMU_MOVE_NONE,
	QEMU_MOVE_STARTED, /* `migrate` or `migrate-incoming` was sent */
	QEMU_MOVE_PAUSED,  /* source: waits at pre-switchover, the guest is stopped */
	QEMU_MOVE_DONE,    /* source: all is saved; destination: all is loaded */
};

struct qemu_capability {
	char name[32];
	bool value;
};

/*
 * What it takes to give the move up.  In memory that a guardian forked from this process shares: what is written
 * here before a command is sent is there also when this process is killed.
 */
struct qemu_undo {
	enum qemu_move move;
	bool was_running; /* source: before pause(); destination: what the source says of that */
	bool is_prepared; /* from the beginning of prepare() on */
	bool is_held;     /* stopped by hold() */
	bool is_committed;

	/* what prepare() changed, as it was */
	unsigned n_old_caps;
	struct qemu_capability old_caps[QEMU_CAPABILITIES_MAX];
	char old_params[QEMU_PARAMS_MAX]; /* an object; "": none changed */
};

struct qemu {
	/* since opening */
	struct qmp *qmp;
	enum mf_side side;
	pid_t pid;
	int version; /* QEMU_VERSION() */
	char *socket_path;
	struct qemu_undo *undo;

	/* since the first describe() */
	uint32_t n_regions;
	struct mf_region regions[MF_REGIONS_MAX];

	/* the move */
	bool is_resumed;
	int stream;    /* our end of QEMU's migration stream, -1: none */
	uint8_t *head; /* source: what QEMU sent of it before the guest stopped */
	size_t head_len, head_cap;

	/* userfaultfds we made in QEMU, their numbers there */
	int remote[QEMU_UFFDS_MAX];
	unsigned n_remote;
};

/* ---- qemu.c ---- */
int qemu_command(struct qemu *hv, const char *command, json_t *args, json_t **ret,
		 struct mf_error *err);
/* The human monitor's answer, allocated; or NULL with err filled. */
char *qemu_human(struct qemu *hv, const char *line, struct mf_error *err);
/* The run state ("running", "paused", "inmigrate", …), and whether vCPUs run. */
int qemu_run_state(struct qemu *hv, char *ret_state, size_t cap, bool *ret_is_running,
		   struct mf_error *err);
/* query-migrate's status, "none" when there is none; ret_why (may be NULL): its error, "" without. */
int qemu_migration_status(struct qemu *hv, char *ret_status, size_t cap, char *ret_why,
			  size_t why_cap, struct mf_error *err);

/* ---- qemu_describe.c ---- */
int qemu_describe(struct qemu *hv, struct mf_guest *ret, struct mf_error *err);
/* 0, or -MF_EREFUSED: is this QEMU in a state in which a move can begin on its side? */
int qemu_check_state(struct qemu *hv, struct mf_error *err);

/* ---- qemu_settings.c ---- */
int qemu_apply_settings(struct qemu *hv, struct mf_error *err);
int qemu_restore_settings(struct qemu *hv, struct mf_error *err);
/* Another process applied them and died: what they were is not known; restored is what QEMU starts with. */
void qemu_assume_settings(struct qemu *hv);

/* ---- qemu_migrate.c ---- */
int qemu_pause(struct qemu *hv, uint64_t *ret_stopped_us, struct mf_error *err);
int qemu_save_state(struct qemu *hv, mf_state_write_fn write, void *ctx, struct mf_error *err);
int qemu_load_state(struct qemu *hv, mf_state_read_fn read, void *ctx, struct mf_error *err);
int qemu_resume(struct qemu *hv, struct mf_error *err);
int qemu_take_over(struct qemu *hv, bool ran, bool *ret_runs, struct mf_error *err);
int qemu_hold(struct qemu *hv, struct mf_error *err);
int qemu_let_go(struct qemu *hv, struct mf_error *err);
int qemu_abort(struct qemu *hv, struct mf_error *err);
/* Ends QEMU and waits until it is gone; best effort. */
void qemu_quit(struct qemu *hv);

#endif
