#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Whole moves over real verbs: every mode by the number of lanes, demo guests and QEMU's, each tracker that the kernel
has, and what ends before its end.
"""
import signal

from verbs import KERNEL, ROUNDS, TRACKERS, VerbsCase
from harness import Ram, main, timeout
from harness.qemu import MIB

MODES = "hybrid", "precopy", "postcopy", "warm", "cold"
LANES = (1, 4) if KERNEL >= (6, 7) else (2,)  # what lanes do is no matter of the kernel
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

    def move_demo(self, mode, lanes):
        send, receive = self.start(mode, f"{DEMO},dirty=1M", DEMO, "--lanes", str(lanes))
        self.assertGreaterEqual(sum(self.finish(mode, send, receive)), SIZE)
        if mode in ROUNDS:
            self.assertEqual(send.report["tracker"], TRACKERS[0])

    def move_tracked(self, tracker):
        """Round after round, while the guest writes all over."""
        source, destination = self.pair(**QEMU)
        send, receive = self.start("warm", source, destination, "--tracker", tracker)
        send.event("round", n=3)
        self.finish("warm", send, receive, source, destination)
        self.assertEqual(send.report["tracker"], tracker)

    def kill_tracked(self, tracker):
        """Whoever tracks is killed in the middle: no write of the guest may wait for it."""
        source, destination = self.pair(**QEMU)
        send, receive = self.start("warm", source, destination, "--tracker", tracker)
        send.event("round", n=2)
        send.signal(signal.SIGKILL)
        self.assertEqual(receive.wait(), 1, receive.transcript())
        self.assert_unharmed(source)

    def move_qemu(self, mode):
        source, destination = self.pair(**QEMU)
        send, receive = self.start(mode, source, destination)
        self.assertGreaterEqual(sum(self.finish(mode, send, receive, source, destination)), 8 * MIB)


def add_moves():
    def make(move, *args):
        return lambda self: move(self, *args)

    for mode in MODES:
        for lanes in LANES:
            setattr(Matrix, f"test_demo_{mode}_{lanes}", make(Matrix.move_demo, mode, lanes))
        # Of the kernel are trackers, which have their own, and the pager.
        if mode == "postcopy" or (mode != "warm" and KERNEL >= (6, 7)):
            setattr(Matrix, f"test_qemu_{mode}", make(Matrix.move_qemu, mode))
    for tracker in TRACKERS:
        setattr(Matrix, f"test_qemu_tracked_by_{tracker}", make(Matrix.move_tracked, tracker))
        setattr(Matrix, f"test_killed_tracking_by_{tracker}", make(Matrix.kill_tracked, tracker))


add_moves()


class Choice(VerbsCase):
    def test_verbs_is_chosen(self):
        """So are the mode and the tracker."""
        receive = self.receive(DEMO)
        send = self.send(receive.address(), DEMO)
        self.assert_moved(None, None, send, receive, verified=False)
        self.assertEqual(send.report["mode"], "hybrid")
        self.assertEqual(send.report["tracker"], TRACKERS[0])
        self.assert_transport("verbs", send, receive)

    def test_tcp_when_asked_for(self):
        receive = self.receive(DEMO, "--transport", "tcp")
        send = self.send(receive.address(), DEMO, "--mode", "cold")
        self.assert_moved(None, None, send, receive, verified=False)
        self.assert_transport("tcp", send, receive)


class Ends(VerbsCase):
    """A move that does not get to its end gives back what it took, too: setUp's check."""

    def start(self):
        """Pages are under way, for seconds."""
        patience = "--peer-timeout", str(int(timeout(5) * 1000))
        receive = self.receive(DEMO, *patience)
        send = self.send(receive.address(), DEMO, "--mode", "precopy", "--max-bandwidth", "1M", *patience)
        send.event("phase", phase="precopy")
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
