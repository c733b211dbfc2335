/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A transport that seals all it moves, over any other that has messages (T14).
 *
 * Reads and writes become records, sealed by the lane's owner into a ring of buffers, sent as messages into a ring of the
 * peer's, and opened there by the lane's owner; a record is copied to its place only when it has proven to be whole.  The
 * device reaches the rings and nothing else: rights, bounds and keys of memory are checked here.
 */
#ifndef SEALED_H
#define SEALED_H

#include "transport/transport.h"

struct tp_sealed_table {
	struct tp_ops ops;
	const struct tp_ops *inner;
};

/* Over another table than those of tp_find_sealed(): inner is borrowed, table is the caller's. */
void tp_sealed_init(struct tp_sealed_table *table, const struct tp_ops *inner);

#endif
