# SPDX-License-Identifier: BSD-2-Clause
"""As much of the control protocol as it takes to be a peer of another version (engine/wire/control.proto)."""
import struct

MAGIC = b"MFC1"
# Fields of Control.
HELLO, WELCOME, DESCRIBE, VERDICTS, PREPARE, PREPARED, RAIL_JOINED, ROUND, SWITCHOVER = range(1, 10)
BITMAP = 10
READY, COMMIT, RUNNING, DONE, BYE, ABORT = range(13, 19)
PIECES = 28


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(kind, *fields):
    body = field(kind, b"".join(field(n, value) for n, value in fields))
    return MAGIC + struct.pack("<I", len(body)) + body


def hello(version, session="0123456789abcdef"):
    return message(HELLO, (1, version), (2, version), (3, "memferry 99.0"), (4, session))


def welcome(version):
    return message(WELCOME, (1, version), (2, "memferry 99.0"))


def kind_of(body):
    """Which field of Control."""
    return body[0] >> 3 | (body[1] << 4 if body[0] & 128 else 0)


def read_message(connection):
    """(which field of Control, its bytes), or None at the end."""
    head = connection.recv(8, 0x100)  # MSG_WAITALL
    if len(head) < 8:
        return None
    if head[:4] != MAGIC:
        raise ValueError(f"no message begins with {head!r}")
    size = struct.unpack("<I", head[4:])[0]
    body = connection.recv(size, 0x100)
    return kind_of(body), body
