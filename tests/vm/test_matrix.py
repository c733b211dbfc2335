#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Whole moves over real verbs: every mode by the number of lanes, demo guests and QEMU's, and what ends before its end.
Modes that this kernel cannot do are refused, and say why.
"""
import signal

from verbs import ROUNDS, TRACKS, VerbsCase
from harness import Ram, main
from harness.qemu import MIB

MODES = "hybrid", "precopy", "postcopy", "warm", "cold"
LANES = 1, 2, 4
FULL = "--verify", "full"
SIZE = 24 * MIB
DEMO = "demo:24M"
QEMU = {"ram": (Ram(48 * MIB),), "guest": "hot=4M rate=4M data=8M"}


class Matrix(VerbsCase):
    def start(self, mode, source, destination, *args):
        receive = self.receive(destination)
        return self.send(receive.address(), source, "--mode", mode, *FULL, *args), receive

    def finish(self, mode, send, receive, source=None, destination=None):
        if mode == "warm":
            send.event("round", n=2)
            self.tell("cutover")
        self.assert_moved(source, destination, send, receive)
        self.assert_transport("verbs", send, receive)
        for report in send.report, receive.report:
            self.assertEqual(report["mode"], mode)
        moved = send.report["bytes_written"], receive.report["bytes_read"]
        if mode == "postcopy":
            self.assertGreater(receive.report["postcopy"]["pulled_pages"], 0)
            self.assertEqual(moved[0], 0)
        elif mode != "hybrid":
            self.assertIsNone(receive.report["postcopy"])
            self.assertEqual(moved[1], 0)
        return moved

    def refuse(self, mode):
        send, receive = self.start(mode, DEMO, DEMO)
        self.assertEqual(send.wait(), 3, send.transcript())
        self.assertIn("6.7", self.assert_one_sentence(send))
        receive.signal(signal.SIGINT)
        self.assertNotEqual(receive.wait(), 0)

    def move_demo(self, mode, lanes):
        send, receive = self.start(mode, f"{DEMO},dirty=1M", DEMO, "--lanes", str(lanes))
        self.assertGreaterEqual(sum(self.finish(mode, send, receive)), SIZE)

    def move_qemu(self, mode):
        source, destination = self.pair(**QEMU)
        send, receive = self.start(mode, source, destination)
        self.assertGreaterEqual(sum(self.finish(mode, send, receive, source, destination)), 8 * MIB)


def add_moves():
    def make(move, *args):
        return lambda self: move(self, *args)

    for mode in MODES:
        if mode in ROUNDS and not TRACKS:
            setattr(Matrix, f"test_{mode}_is_refused", make(Matrix.refuse, mode))
            continue
        for lanes in LANES:
            setattr(Matrix, f"test_demo_{mode}_{lanes}", make(Matrix.move_demo, mode, lanes))
        if mode != "warm":
            setattr(Matrix, f"test_qemu_{mode}", make(Matrix.move_qemu, mode))


add_moves()


class Choice(VerbsCase):
    def test_verbs_is_chosen(self):
        """So is the mode, where the kernel has what it takes."""
        receive = self.receive(DEMO)
        send = self.send(receive.address(), DEMO, *(() if TRACKS else ("--mode", "postcopy")))
        self.assert_moved(None, None, send, receive, verified=False)
        self.assertEqual(send.report["mode"], "hybrid" if TRACKS else "postcopy")
        self.assert_transport("verbs", send, receive)

    def test_tcp_when_asked_for(self):
        receive = self.receive(DEMO, "--transport", "tcp")
        send = self.send(receive.address(), DEMO, "--mode", "cold")
        self.assert_moved(None, None, send, receive, verified=False)
        self.assert_transport("tcp", send, receive)


class Ends(VerbsCase):
    """A move that does not get to its end gives back what it took, too: setUp's check."""

    def start(self):
        """Pages are under way, for seconds: a pass with the guest paused heeds no limit, but then there is much to copy."""
        guest, *slow = (DEMO, "--mode", "precopy", "--max-bandwidth", "1M") if TRACKS else ("demo:320M", "--mode", "cold")
        receive = self.receive(guest, "--peer-timeout", "5000")
        send = self.send(receive.address(), guest, *slow, "--peer-timeout", "5000")
        send.event("phase", phase="precopy" if TRACKS else "switchover")
        return send, receive

    def test_interrupted(self):
        send, receive = self.start()
        send.signal(signal.SIGINT)
        self.assert_aborted(send)
        self.assertEqual(send.report["error"]["code"], "canceled")
        self.assertNotEqual(receive.wait(), 0)

    def test_destination_killed(self):
        send, receive = self.start()
        receive.signal(signal.SIGKILL)
        self.assert_aborted(send)

    def test_source_killed(self):
        send, receive = self.start()
        send.signal(signal.SIGKILL)
        self.assertEqual(receive.wait(), 1, receive.transcript())
        self.assertEqual(receive.report["outcome"], "aborted")

    def test_destination_silent(self):
        send, receive = self.start()
        receive.signal(signal.SIGSTOP)
        self.assert_aborted(send)
        self.assert_one_sentence(send)


if __name__ == "__main__":
    main()
