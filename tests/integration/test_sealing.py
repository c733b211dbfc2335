#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Real guests moved with --encrypt and --integrity: whole in every mode and after crashes; and what a listener on the wire
between the hosts sees of their pages.
"""
import random
import secrets
import signal
import sys
from pathlib import Path

from harness import Case, Memferry, Process, Ram, main
from harness.hosts import TwoHosts
from harness.qemu import MIB

GUEST = {"ram": (Ram(64 * MIB),), "guest": "hot=4M rate=8M data=24M"}
REFUSED, USAGE = 3, 2

# Writes every frame that comes by into a file.
LISTENER = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
s.bind((sys.argv[1], 0))
with open(sys.argv[2], "wb", buffering=0) as to:
    print("listening", flush=True)
    while True:
        to.write(s.recv(1 << 20))
"""


def pages_of(path, n, dice):
    """A part of the middle of n pages of a RAM file, none of which are all alike."""
    parts = []
    with open(path, "rb") as ram:
        size = path.stat().st_size
        while len(parts) < n:
            ram.seek(dice.randrange(size // 4096) * 4096 + 1000)
            part = ram.read(40)
            if len(set(part)) > 20:
                parts.append(part)
    return parts


class Sealed(Case):
    def setUp(self):
        super().setUp()
        self.key = self.directory / "key"
        self.key.write_text(secrets.token_hex(32) + "\n")
        self.key.chmod(0o600)

    def receiver(self, guest, *args, listen="127.0.0.1:0", within=()):
        process = self.keep(Memferry("receive", self.destination_run, "receive", "--listen", listen, "--guest", guest,
                                     "--psk", self.key, *args, within=within))
        process.address()
        return process

    def sender(self, address, guest, *args, within=()):
        return self.keep(Memferry("send", self.source_run, "send", address, "--guest", guest, "--psk", self.key, *args,
                                  within=within))

    def assert_sealing(self, how, *sides):
        for side in sides:
            self.assertEqual(side.report["sealing"], how, side.transcript())


class Moves(Sealed):
    def move(self, mode, option):
        source, destination = self.pair(**GUEST)
        receive = self.receiver(f"qemu:{destination.qmp_path}")
        send = self.sender(receive.address(), f"qemu:{source.qmp_path}", "--mode", mode, "--verify", "full", option)
        self.assert_moved(source, destination, send, receive)
        self.assert_sealing(option.strip("-"), send, receive)
        self.kill_all()

    def test_every_mode(self):
        for mode, option in (("hybrid", "--encrypt"), ("precopy", "--integrity"), ("postcopy", "--encrypt"),
                             ("cold", "--encrypt")):
            with self.subTest(mode=mode, option=option):
                self.move(mode, option)

    def test_killed_in_postcopy(self):
        """Either side; what goes on has keys of its own, and is sealed whether it was told or not."""
        alert = "--peer-timeout", "2000", "--connect-timeout", "2000"
        source, destination = self.pair(ram=(Ram(96 * MIB),), guest="hot=8M rate=16M data=64M")
        guests = [f"qemu:{vm.qmp_path}" for vm in (source, destination)]
        slow = "--max-bandwidth", "6M", *alert
        receive = self.receiver(guests[1], "--encrypt", *slow)
        address = receive.address()
        send = self.sender(address, guests[0], "--mode", "postcopy", "--encrypt", *alert)
        receive.event("running")
        session = send.event("phase", phase="postcopy") and next(
            e["session"] for e in self.tell("status", run=self.destination_run).events if e["event"] == "status")
        receive.signal(signal.SIGKILL)
        receive.wait()
        receive = self.keep(Memferry("receive", self.destination_run, "receive", "--listen", address, "--guest",
                                     guests[1], "--psk", self.key, *slow, "--resume", session))
        receive.notice("connected to")
        send.signal(signal.SIGKILL)
        send.wait()
        send = self.sender(address, guests[0], *alert, "--resume", session)
        self.assert_moved(source, destination, send, receive, verified=False)
        self.assert_sealing("encrypt", send, receive)


class Wire(Sealed):
    def heard(self, *options):
        """How many of 200 pieces of the guest's pages were seen between the hosts."""
        hosts = TwoHosts()
        self.addCleanup(hosts.kill)
        capture = self.directory / "frames"
        listener = self.keep(Process("listener", [*hosts.at_destination(), sys.executable, "-c", LISTENER, "cable",
                                                  str(capture)]))
        listener.wait_line("listening")
        source, destination = self.pair(**GUEST)
        receive = self.receiver(f"qemu:{destination.qmp_path}", listen=f"{hosts.destination}:0",
                                within=hosts.at_destination())
        send = self.sender(receive.address(), f"qemu:{source.qmp_path}", "--mode", "hybrid", *options,
                           within=hosts.at_source())
        self.assert_moved(source, destination, send, receive, verified=False)
        parts = pages_of(Path(source.ram_file()), 200, random.Random(1))
        listener.kill()
        frames = capture.read_bytes()
        self.assertGreater(len(frames), 24 * MIB, "the listener has missed the move")
        seen = sum(frames.find(part) >= 0 for part in parts)
        self.kill_all()
        return seen

    def test_a_listener_sees_no_page(self):
        self.assertEqual(self.heard("--encrypt"), 0)
        # The same listener, where it is to see them: else the above would prove nothing.
        self.assertGreater(self.heard("--integrity"), 100)


class Refusals(Sealed):
    def test_a_destination_that_wants_more(self):
        receive = self.receiver("demo:32M", "--encrypt")
        for option in (), ("--integrity",):
            send = self.sender(receive.address(), "demo:32M", *option)
            self.assertEqual(send.wait(), REFUSED, send.transcript())
            self.assertRegex(self.assert_one_sentence(send), "takes pages with --encrypt only; start send with it")
            self.assertEqual(receive.wait(), REFUSED, receive.transcript())
            receive = self.receiver("demo:32M", "--encrypt")
        send = self.sender(receive.address(), "demo:32M,dirty=1M", "--encrypt")
        self.assert_moved(None, None, send, receive, verified=False)

    def test_without_a_secured_channel(self):
        for verb, *address in ("receive", "--listen", "127.0.0.1:0"), ("send", "127.0.0.1:1"), ("check", "127.0.0.1:1"):
            for option in "--encrypt", "--integrity":
                command = self.memferry(verb, verb, *address, "--guest", "demo:32M", "--insecure", option)
                self.assertEqual(command.wait(), USAGE, command.transcript())
                self.assertRegex(self.assert_one_sentence(command), f"{option}: its keys come from a secured control")


if __name__ == "__main__":
    main()
