#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
A relay between the two ends of a control channel, as a process: it passes whole messages on, and does one thing to one
of them.

    relay.py LISTEN_HOST DESTINATION KIND ACTION

KIND: field of Control (engine/wire/control.proto), 0: none. It says LISTEN address, and MET when the message has come.
ACTION is done to the first of its kind:
    hold    neither it nor what follows it in that direction passes
    wait    the same, until a line comes on standard input
    cut     the connections are closed in its place
    else    bytes in hexadecimal, sent in its place
"""
import os
import signal
import socket
import struct
import sys
import threading
from pathlib import Path

if __name__ != "__main__":
    from . import wire
    from .process import Process
else:
    sys.path.insert(0, str(Path(__file__).parent))
    import wire


def pump(source, sink, kind, action, met):
    """Whole messages from one to the other; a begun one at the end is not passed on."""
    while head := source.recv(8, socket.MSG_WAITALL):
        if len(head) < 8 or head[:4] != wire.MAGIC:
            return
        body = source.recv(struct.unpack("<I", head[4:])[0], socket.MSG_WAITALL)
        if wire.kind_of(body) != kind or met.is_set():
            sink.sendall(head + body)
            continue
        met.set()
        print("MET", flush=True)
        if action == "wait":
            sys.stdin.readline()
            sink.sendall(head + body)
            continue
        if action == "hold":
            while source.recv(65536):
                pass
            return
        if action == "cut":
            return
        sink.sendall(bytes.fromhex(action))


def serve(connection, destination, kind, action, met):
    try:
        onward = socket.create_connection(destination)
    except OSError:
        connection.close()
        return

    def one_way(source, sink):
        try:
            pump(source, sink, kind, action, met)
        except OSError:
            pass
        for end in source, sink:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    for ends in (connection, onward), (onward, connection):
        threading.Thread(target=one_way, args=ends, daemon=True).start()


def run(host, destination, kind, action):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    to, port = destination.rsplit(":", 1)
    met = threading.Event()
    with socket.create_server((host, 0)) as listener:
        print(f"LISTEN {host}:{listener.getsockname()[1]}", flush=True)
        while True:
            serve(listener.accept()[0], (to, int(port)), int(kind), action, met)


class Relay:
    """One of these in a process of its own; within: what goes before its command line, as nsenter does."""

    def __init__(self, destination, kind=0, action="hold", host="127.0.0.1", within=()):
        argv = [*within, sys.executable, "-B", os.path.abspath(__file__), host, destination, kind, action]
        self.process = Process("relay", argv)
        self.address = self.process.wait_line("LISTEN").split()[1]

    def wait_met(self):
        self.process.wait_line("MET")

    def go_on(self):
        self.process.type("\n")

    def kill(self):
        self.process.kill()

    def transcript(self):
        return self.process.transcript()


if __name__ == "__main__":
    run(*sys.argv[1:])
