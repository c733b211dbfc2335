#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Until the commit every failure leaves the source guest running and unharmed: each phase × each failure × each guest.

    test_matrix_failure.py [--full] [--table FILE] [--verbs] [Qemu | Process | -k PATTERN]

--full runs all cells, without it a QEMU guest has those in which it matters (failure_matrix.py). --table writes what
came of them into a document, between its marks. Needs root: two network namespaces, and a small file system as run directory.

When it strikes: in pre-copy as soon as the phase is told; in the other phases while the message that would end the phase is held back
by a relay, and it goes on its way afterwards only where its sender would be well. What comes of it is judged by the guest's own check of
all its memory; one QEMU goes through all cells that it stays in, and is moved at the end.
"""
import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

import failure_matrix as matrix
from harness import Case, Ram, Relay, await_gone, main, timeout, wire
from harness import Process as AnyProcess
from harness import Qemu as QemuProcess
from harness.case import make_directory
from harness.hosts import OneHost, TwoHosts
from harness.memferry import Memferry
from harness.qemu import MIB

GUEST = {"ram": (Ram(48 * MIB),), "guest": "hot=2M rate=4M data=24M"}
DEMO = "demo:24M,dirty=2M,threads=2,regions=2,check=256M"
RUN_DIRECTORY_BYTES = 64 << 10
# Milliseconds of silence.
ALERT, PATIENT = int(timeout(2) * 1000), int(timeout(20) * 1000)

# The message that ends a phase; and what hostile bytes come in the place of.
LAST = {
    "check": wire.VERDICTS,
    "prepare": wire.PREPARED,
    "switchover": wire.SWITCHOVER,
    "handoff": wire.READY,
}
REPLACED = {**LAST, "connect": wire.HELLO, "precopy": wire.ROUND}

HOSTILE = {
    "noise": b"\x00\xff" * 400,
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "too long": wire.MAGIC + b"\xff\xff\xff\xff" + bytes(64),
    "no message": wire.MAGIC + b"\x10\0\0\0" + b"\xff" * 16,
    "out of turn": wire.message(wire.RUNNING),
    "answers to no question": wire.message(wire.DONE) + wire.message(wire.BYE),
    "pages that there are none of": wire.message(wire.BITMAP, (1, 77), (2, 1 << 60), (3, wire.varint(1 << 60) * 2)),
    "pieces that there are none of": wire.message(wire.PIECES, (3, 1 << 31), (4, bytes(8)), (5, bytes(8))),
}
# Numbers that are wrong in the place of those that are right: (phase, name): the message, the mode.
IN_PLACE = {
    ("switchover", "pages that there are none of"): (wire.BITMAP, "postcopy"),
    ("precopy", "pieces that there are none of"): (wire.PIECES, "precopy"),
}
DISKS = "disk", "disk_there"
# Enough to strike: any of the first allocations of a phase. The last is more than some phases have.
ALLOCATIONS = 1, 2, 3, 5, 8, 13

# Why it stayed, by the code in send's report: a failure that did not strike must not pass for one that was survived.
REASONS = {
    "receive": {"ECONNREFUSED", "ECONNRESET", "EPIPE", "ENOTCONN", "peer"},
    "monitor": {"peer", "refused", "ETIMEDOUT"},
    "cut": {"ETIMEDOUT", "EHOSTUNREACH", "peer"},
    "silent": {"ETIMEDOUT", "peer"},
    "disk": {"ENOSPC"},
    "disk_there": {"peer"},
    "memory": {"ENOMEM", "refused", "peer"},
    "memory_there": {"ENOMEM", "ECONNRESET", "ENOTCONN", "EPIPE", "refused", "peer"},
    "lanes": {"ECANCELED", "ECONNRESET", "ENOTCONN", "EIO", "peer"},
    "bytes": {"EBADMSG", "EPROTO", "ECONNRESET", "ENOTCONN", "EPIPE", "ECANCELED", "version", "refused", "peer"},
}

outcomes = {}


def take_options():
    """Ours of the command line; the rest is unittest's."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--table")
    parser.add_argument("--verbs", action="store_true")
    found, sys.argv[1:] = parser.parse_known_args()
    found.transport = "verbs" if found.verbs else "tcp"
    return found


options = take_options()


def setUpModule():
    """File systems mounted here are nobody else's."""
    clone_newns = 0x20000
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() or libc.unshare(clone_newns):
        raise unittest.SkipTest("not root: hosts, file systems and QEMU's memory need it")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def write_table(guest, path):
    missing = [cell for cell in matrix.cells(guest) if (guest, *cell) not in outcomes]
    if missing:
        print(f"{path}: not written, as there is no outcome of {len(missing)} cells: {missing[0]} …", file=sys.stderr)
        return
    path.write_text(matrix.put(path.read_text(), guest, lambda p, f: outcomes.get((guest, p, f), matrix.NEVER)))


def tearDownModule():
    for guest in matrix.GUESTS:
        if any(g == guest for g, _, _ in outcomes):
            if options.table:
                write_table(guest, Path(options.table))
            print(matrix.table(guest, lambda p, f, g=guest: outcomes.get((g, p, f), matrix.NEVER if matrix.expected(g, p, f) == matrix.NEVER else "")), file=sys.stderr)


class Helper(Memferry):
    """It says what send or receive says, and more."""

    def __init__(self, name, argv):
        AnyProcess.__init__(self, name, argv)


class Matrix(Case):
    """One cell after the other; what is special about a guest is in the classes that follow."""

    guest = None

    @classmethod
    def setUpClass(cls):
        cls.hosts = OneHost(os.environ["MEMFERRY_TEST_HOST"]) if options.verbs else TwoHosts()
        cls.addClassCleanup(cls.hosts.kill)

    def setUp(self):
        super().setUp()
        self.addCleanup(self.hosts.mend)
        for run in self.source_run, self.destination_run:
            run.mkdir(mode=0o700)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={RUN_DIRECTORY_BYTES},mode=700", "tmpfs", run], check=True)
            self.addCleanup(subprocess.run, ["umount", "-l", run], check=True)

    def start_receive(self, patience, *faults):
        if faults:
            self.receiver = self.keep(Helper("receive", [
                *self.hosts.at_destination(), os.environ["MEMFERRY_FAULT"], "receive", f"{self.hosts.destination}:0",
                self.destination_spec(), self.destination_run, f"peer={patience}", f"transport={options.transport}", *faults]))
            return self.receiver.address()
        self.receiver = self.keep(Memferry(
            "receive", self.destination_run, "receive", "--listen", f"{self.hosts.destination}:0", "--guest", self.destination_spec(),
            "--insecure", "--transport", options.transport, "--peer-timeout", str(patience), within=self.hosts.at_destination()))
        return self.receiver.address()

    def relay(self, address, kind, action):
        relay = Relay(address, kind, action, host=self.hosts.source, within=self.hosts.at_source())
        self.processes.append(relay.process)
        return relay

    def start_helper(self, address, patience, mode, *args):
        """fault_session: what send does, with faults, and a judge of the demo guest."""
        argv = [*self.hosts.at_source(), os.environ["MEMFERRY_FAULT"], "send", address, self.source_spec(), self.source_run,
                f"peer={patience}", f"mode={mode}", f"transport={options.transport}", "bandwidth=25165824", *args]
        return self.keep(Helper("send", argv))

    # The failures

    def fill_disk(self, run):
        with open(run / "full", "wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        self.assertEqual(os.statvfs(run).f_bavail, 0)

    def empty_disks(self):
        for run in self.source_run, self.destination_run:
            (run / "full").unlink(missing_ok=True)

    def strike(self, failure):
        if failure == "send":
            self.kill_send()
        elif failure == "receive":
            self.receiver.signal(signal.SIGKILL)
        elif failure == "monitor":
            self.kill_monitor()
        elif failure == "cut":
            self.hosts.cut()
        elif failure == "silent":
            self.receiver.signal(signal.SIGSTOP)
        elif failure == "disk":
            self.fill_disk(self.source_run)
        elif failure == "disk_there":
            self.fill_disk(self.destination_run)

    def run_struck(self, phase, failure):
        """The failure strikes when the phase is there. The address is one that the move goes through."""
        # Who has to wait for silence should not have to wait for long; who need not must not hear silence by mistake.
        patience = ALERT if failure in ("cut", "silent") or (failure, phase) == ("monitor", "handoff") else PATIENT
        address = self.start_receive(patience)
        mode = "cold" if phase in ("switchover", "handoff") else "precopy"
        if phase == "connect":
            if failure == "send":
                self.hosts.cut()  # so that it is on its way for a while
            elif failure not in DISKS:
                self.strike(failure)
            self.start_send(address, patience, mode)
            if failure in ("send", *DISKS):
                self.sender.event("phase", phase="connect")
                self.strike(failure)
            return
        if phase == "precopy":
            self.start_send(address, patience, mode)
            self.sender.event("phase", phase="precopy")
            self.strike(failure)
            return
        # The sender of what is held is well, or as good as: it is the other one, or its monitor is not missed yet.
        goes_on = failure in DISKS or (failure == "monitor" and phase != "handoff")
        relay = self.relay(address, LAST[phase], "wait" if goes_on else "hold")
        self.start_send(relay.address, patience, mode)
        relay.wait_met()
        self.strike(failure)
        if goes_on:
            relay.go_on()

    def run_hostile(self, phase, name):
        """Both sides are patient: what ends the move is what was said."""
        address = self.start_receive(PATIENT)
        kind, mode = IN_PLACE.get((phase, name), (REPLACED[phase], "cold" if phase in ("switchover", "handoff") else "precopy"))
        relay = self.relay(address, kind, HOSTILE[name].hex())
        self.start_send(relay.address, PATIENT, mode)
        relay.wait_met()

    def run_faulty_there(self, phase, fault):
        address = self.start_receive(ALERT, fault)
        self.start_send(address, PATIENT, "cold" if phase == "switchover" else "precopy")

    def run_faulty(self, phase, fault):
        # A receive that was not told Bye waits for questions, three times as long.
        address = self.start_receive(ALERT)
        self.sender = self.start_helper(address, PATIENT, "cold" if phase == "switchover" else "precopy", fault)

    # The ends

    def assert_sender_stays(self, phase):
        status = self.sender.wait()
        refused = (3,) if phase in ("connect", "check") else ()
        self.assertIn(status, (1, *refused), self.sender.transcript())
        report = next(e for e in reversed(self.sender.events) if e["event"] == "report")
        self.assertEqual(report["outcome"], "aborted", self.sender.transcript())
        self.assertTrue(report["error"]["message"])
        self.assertEqual(len(self.sender.complaint) + isinstance(self.sender, Helper), 1, self.sender.transcript())
        self.reasons.add(report["error"]["code"])

    def assert_receiver_ends(self, failure):
        """Whatever it made of it, nothing ran there."""
        if failure == "silent":
            self.receiver.signal(signal.SIGCONT)
        if failure == "cut":
            self.hosts.mend()
        if failure != "receive":
            self.await_receiver()
        self.assertEqual([e for e in self.receiver.events if e["event"] == "running"], [])
        self.assert_nothing_ran()

    def await_receiver(self):
        """Until it has ended or, where it was ready, has on record that it gave up: then it waits for questions about that."""
        deadline = time.monotonic() + timeout()
        while self.receiver.is_alive():
            self.assertLess(time.monotonic(), deadline, self.receiver.transcript())
            for record in self.destination_run.glob("*.record"):
                state = json.loads(record.read_text())["state"]
                self.assertIn(state, ("ready", "aborted"))
                if state == "aborted":
                    return
            phases = [e["phase"] for e in self.receiver.events if e["event"] == "phase"]
            if phases and phases[-1] == "connect":
                self.receiver.signal(signal.SIGINT)  # nobody reached it, and it goes on listening, as it should
            time.sleep(0.02)
        self.assertNotEqual(self.receiver.wait(), 0, self.receiver.transcript())
        # What it has on record stays for who asks later.
        left = [path for path in self.destination_run.iterdir() if path.suffix not in (".record", ".lock")]
        self.assertEqual(left, [])

    def end_cell(self, phase, failure):
        """What became of it; asserts all that must be true of that."""
        if failure == "send":
            outcome = self.end_killed()
        elif self.sender.wait() == 0:
            self.assertEqual(self.receiver.wait(), 0, self.receiver.transcript())
            self.assert_whole_there()
            outcome = matrix.MOVES
        else:
            self.assert_sender_stays(phase)
            self.assert_source_unharmed()
            outcome = matrix.STAYS
        self.empty_disks()
        if outcome != matrix.MOVES:
            self.assert_receiver_ends(failure)
        self.assertEqual(list(self.source_run.iterdir()), [])
        return outcome

    def try_cell(self, phase, failure):
        seen = set()
        self.reasons = set()
        if failure in ("memory", "memory_there"):
            struck = False
            run = self.run_faulty if failure == "memory" else self.run_faulty_there
            for n in self.some_of(ALLOCATIONS, phase):
                with self.again():
                    run(phase, f"alloc={phase}:{n}")
                    seen.add(self.end_cell(phase, failure))
                    struck |= self.has_struck(failure)
            self.assertTrue(struck or not options.full, "no allocation failed")
        elif failure == "bytes":
            for name in self.some_of(HOSTILE, phase):
                with self.subTest(name), self.again():
                    self.run_hostile(phase, name)
                    seen.add(self.end_cell(phase, failure))
        else:
            if failure in ("post", "lanes"):
                self.run_faulty(phase, f"post={phase}:3" if failure == "post" else f"lanes={phase}")
            else:
                self.run_struck(phase, failure)
            seen.add(self.end_cell(phase, failure))
        want = matrix.expected(self.guest, phase, failure)
        if want == matrix.EITHER:
            self.assertLessEqual(seen, {matrix.STAYS, matrix.MOVES})
            outcome = want
        else:
            self.assertEqual(seen, {want})
            outcome = seen.pop()
        self.assertLessEqual(self.reasons, REASONS.get(failure, set()), "it stayed, but for another reason")
        outcomes[self.guest, phase, failure] = outcome

    def has_struck(self, failure):
        """An allocation that failed; who was ended does not tell."""
        faulty = self.sender if failure == "memory" else self.receiver
        return any(e.get("struck") for e in faulty.events)

    def some_of(self, all_of_them, phase):
        """Without --full a few, other ones in each phase."""
        every = 1 if options.full else self.every
        return list(all_of_them)[list(matrix.PHASES).index(phase) % every::every]

    def again(self):
        """A cell that has several moves: what one leaves is gone before the next."""
        return _Again(self)


class _Again:
    def __init__(self, case):
        self.case = case

    def __enter__(self):
        self.kept = len(self.case.processes)
        for left in self.case.destination_run.iterdir():
            left.unlink()

    def __exit__(self, *failure):
        if failure[0] is None:
            for process in reversed(self.case.processes[self.kept:]):
                process.kill()
            del self.case.processes[self.kept:]


class Process(Matrix):
    guest = "process"
    every = 3

    def source_spec(self):
        return DEMO

    destination_spec = source_spec

    def start_send(self, address, patience, mode):
        self.sender = self.start_helper(address, patience, mode)

    def kill_send(self):
        self.sender.signal(signal.SIGKILL)

    def end_killed(self):
        """The guest was its child, which the kernel ends with it."""
        self.assertEqual(self.sender.wait(), -signal.SIGKILL)
        for left in self.source_run.iterdir():  # nobody was left to
            left.unlink()
        return matrix.ENDS

    def kill_monitor(self):
        child = Path(f"/proc/{self.receiver.pid}/task/{self.receiver.pid}/children").read_text().split()[0]
        os.kill(int(child), signal.SIGKILL)

    def assert_source_unharmed(self):
        judged = self.sender.event("judged")
        self.assertTrue(judged["judge"] and judged["runs"], self.sender.transcript())
        self.assertEqual(judged["wrong"], 0)
        self.assertEqual(judged["pages"] * 4096, 24 * MIB)

    def assert_whole_there(self):
        found = self.receiver.event("finding", subject="guest memory")
        self.assertEqual(found["verdict"], "ok", found)
        self.assertFalse(self.sender.event("judged")["runs"])

    def assert_nothing_ran(self):
        pass  # its monitor is receive, whose events say it


class Qemu(Matrix):
    guest = "qemu"
    every = 6
    source = None  # goes through all cells
    n_destinations = 0

    @classmethod
    def tearDownClass(cls):
        cls.drop_source()

    @classmethod
    def drop_source(cls):
        if cls.source:
            cls.source.kill()
            shutil.rmtree(cls.source.ram_directory, ignore_errors=True)
        cls.source = None

    def setUp(self):
        super().setUp()
        if not self.source:
            self.start_source()

    def start_source(self):
        cls = type(self)
        cls.source = QemuProcess("source", make_directory("/tmp"), make_directory("/dev/shm"), **GUEST).ready()
        cls.settings = cls.source.settings()

    def try_cell(self, phase, failure):
        try:
            super().try_cell(phase, failure)
        except BaseException:
            print(self.source.transcript(), file=sys.stderr)
            self.drop_source()
            raise

    def source_spec(self):
        return f"qemu:{self.source.qmp_path}"

    def destination_spec(self):
        self.n_destinations += 1
        self.destination = self.qemu(f"destination{self.n_destinations}-", incoming=True, **GUEST)
        self.destination.monitor()
        return f"qemu:{self.destination.qmp_path}"

    def start_send(self, address, patience, mode):
        self.sender = self.keep(Memferry(
            "send", self.source_run, "send", address, "--guest", self.source_spec(), "--insecure", "--transport", options.transport,
            "--mode", mode, "--max-bandwidth", "24M", "--peer-timeout", str(patience), "--connect-timeout", str(patience),
            within=self.hosts.at_source()))

    def kill_send(self):
        self.guardian = self.sender.guardian()
        self.sender.signal(signal.SIGKILL)

    def end_killed(self):
        self.assertEqual(self.sender.wait(), -signal.SIGKILL)
        await_gone(self.guardian)
        self.assert_source_unharmed()
        return matrix.BACK

    def kill_monitor(self):
        self.destination.signal(signal.SIGKILL)

    def assert_source_unharmed(self):
        self.assertEqual(self.source.status(), "running")
        self.assertEqual(self.source.userfaultfds(), 0)
        self.assertEqual(self.source.settings(), self.settings)
        self.assert_unharmed(self.source)

    def assert_whole_there(self):
        self.assert_guest_moved(self.source, self.destination)
        self.drop_source()
        self.start_source()

    def assert_nothing_ran(self):
        self.assertEqual(self.destination.beats, [])

    def test_then_it_moves(self):
        """The guest that went through all of that."""
        address = self.start_receive(PATIENT)
        self.start_send(address, PATIENT, "hybrid")
        self.assert_moved(self.source, self.destination, self.sender, self.receiver, verified=False)
        self.drop_source()


def can_happen(phase, failure):
    """On one host no cable can be cut; over verbs TCP stands by for lost lanes, which tests/fault/test_failover.c is about."""
    return not options.verbs or failure not in ("cut", "lanes") and (phase, failure) != ("connect", "send")


def add_cells(cls):
    for phase, failure in matrix.cells(cls.guest):
        if not can_happen(phase, failure):
            continue
        if options.full or matrix.is_run_always(cls.guest, phase, failure):
            setattr(cls, f"test_{phase}_{failure}", lambda self, p=phase, f=failure: self.try_cell(p, f))


add_cells(Process)
add_cells(Qemu)

if __name__ == "__main__":
    main()
