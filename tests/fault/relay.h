/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A relay between the two ends of a control channel: it forwards whole messages, and does one thing to one of them.
 * Its own thread.
 */
#ifndef FAULT_RELAY_H
#define FAULT_RELAY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/frame.h"

enum relay_action {
	RELAY_PASS,    /* forward; only `met` and the hook */
	RELAY_CUT,     /* close the connection instead of forwarding */
	RELAY_SILENCE, /* from here on nothing passes on this connection, either way; it stays open */
	RELAY_TWICE,   /* forward it twice */
	RELAY_GARBAGE, /* forward noise in its place */
	RELAY_LAST,    /* forward the message of this kind that came before it, in its place */
};

struct relay_rule {
	Mf__Wire__Control__BodyCase body; /* the message meant; 0: none */
	unsigned nth;                     /* of this kind; 0: the first */
	enum relay_action action;
	bool alone;                        /* later connections are refused */
	void (*hook)(void *ctx, int port); /* before the action; port: the destination's */
	void *ctx;
};

struct relay;

/* Listens on loopback, *ret_port, and connects onward to `port` there.  NULL: failed. */
struct relay *relay_start(uint16_t port, const struct relay_rule *rule, uint16_t *ret_port);
/* The message was met.  Any thread. */
bool relay_met(const struct relay *relay);
void relay_stop(struct relay *relay); /* NULL: nothing */

/* A connection to a port of loopback; the descriptor, or -1. */
int relay_connect(uint16_t port);

#endif
