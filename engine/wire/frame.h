/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Frames of the control channel: bytes to validated messages and back.  No I/O.
 *
 *   "MFC1"   length, 32 bits LE   one mf.wire.Control, protobuf
 */
#ifndef WIRE_FRAME_H
#define WIRE_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "wire/control.pb-c.h"

#define WIRE_HEADER    8
#define WIRE_FRAME_MAX (4u << 20)  /* payload bytes; longer things are sent in pieces */
#define WIRE_NEEDS_MAX (64u << 10) /* bytes of a guest's needs */

/* protobuf-c's names are long; these are what the engine says. */
typedef Mf__Wire__Control wire_msg;
#define WIRE_INIT       MF__WIRE__CONTROL__INIT
#define WIRE_BODY(name) MF__WIRE__CONTROL__BODY_##name

/* The payload's length, or -EBADMSG: not our framing, or too long. */
int wire_header_decode(const uint8_t header[WIRE_HEADER], uint32_t *ret_len);
/* A message to be freed with wire_msg_free(), checked against the limits in frame.c; -EBADMSG, -ENOMEM. */
int wire_msg_decode(const uint8_t *payload, size_t len, wire_msg **ret);
/* Header and payload in one malloc'd buffer.  -EMSGSIZE past WIRE_FRAME_MAX. */
int wire_msg_encode(const wire_msg *msg, uint8_t **ret_bytes, size_t *ret_len);
void wire_msg_free(wire_msg *msg);
/* "hello", "commit", … for people. */
const char *wire_msg_name(const wire_msg *msg);

#endif
