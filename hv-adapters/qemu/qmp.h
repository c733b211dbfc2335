/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A client of QEMU's machine protocol (QMP) on a unix socket: one command at a time, descriptors passed along,
 * events kept until they are asked for.  One thread; every wait has a deadline.
 *
 * Codes: -ESRCH      QEMU is gone (and stays gone: every later call says so at once)
 *        -ETIMEDOUT  no answer by the deadline; a late one is thrown away
 *        -EOPNOTSUPP this QEMU does not know the command
 *        -EREMOTEIO  it knows it and refused; its own words are in the record
 *        -EPROTO     what came is no QMP
 */
#ifndef QEMU_QMP_H
#define QEMU_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/error.h"

struct qmp;

static inline void qmp_put_json(json_t **j)
{
	json_decref(*j);
}
#define qmp_autojson base_cleanup(qmp_put_json) json_t *

/* Of all events only those that tell of running, stopping, migrating and ending are kept. */
struct qmp_event {
	char name[24];   /* "STOP", "RESUME", "MIGRATION", "SHUTDOWN" */
	char status[24]; /* MIGRATION: its data.status; else "" */
	uint64_t at_us;  /* when QEMU made it, on our monotonic clock; never later than now */
};

/* Connects, waits for the greeting and leaves negotiation mode. */
int qmp_open(const char *path, uint64_t deadline_us, struct qmp **ret, struct mf_error *err);
void qmp_close(struct qmp *q); /* NULL: nothing */

/* The process that listens on the socket; 0: not visible from here. */
pid_t qmp_peer(const struct qmp *q);
/* For poll(2); readable: call qmp_pump(). */
int qmp_fd(const struct qmp *q);

/* Runs a command.  args (NULL: none) is consumed in any case; fd (-1: none) goes along and stays the caller's.
 * ret (may be NULL) gets a new reference to what the command returned. */
int qmp_execute(struct qmp *q, const char *command, json_t *args, int fd, uint64_t deadline_us,
		json_t **ret, struct mf_error *err);

/* The two halves of it, for who must do something in between.  A new qmp_send() gives up an answer not waited for. */
int qmp_send(struct qmp *q, const char *command, json_t *args, int fd, uint64_t deadline_us,
	     struct mf_error *err);
int qmp_wait_reply(struct qmp *q, uint64_t deadline_us, json_t **ret, struct mf_error *err);
/* qmp_pump() has taken the answer in: qmp_wait_reply() will not wait. */
bool qmp_has_reply(const struct qmp *q);

/* Takes in what has arrived, without waiting. */
int qmp_pump(struct qmp *q, struct mf_error *err);
/* The oldest event not yet taken; false: none. */
bool qmp_take_event(struct qmp *q, struct qmp_event *ret);
void qmp_drop_events(struct qmp *q);

#endif
