#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""A move that is cancelled leaves the guest running at the source, and a second move succeeds. What fails: test_matrix_failure.py."""
import signal
import socket

from harness import Case, Ram, main
from harness.qemu import MIB

GUEST = {"ram": (Ram(96 * MIB),), "guest": "hot=24M rate=96M data=32M"}
# Time enough to interfere: the first round takes seconds.
SLOW = "--mode", "precopy", "--max-bandwidth", "8M"
# A dead peer is noticed soon.
ALERT = "--peer-timeout", "2000", "--connect-timeout", "2000"


class Cancel(Case):
    def start(self, *args):
        self.source, self.destination = self.pair(**GUEST)
        self.receiver = self.receive(self.destination, *ALERT)
        self.sender = self.send(self.receiver.address(), self.source, *(args or (*SLOW, *ALERT)))
        return self.sender, self.receiver

    def reach_switchover(self):
        """The destination's QEMU loads no state, so the source waits in the middle of it."""
        self.sender.event("phase", phase="precopy")
        self.destination.signal(signal.SIGSTOP)
        self.tell("cutover")
        self.sender.event("phase", phase="switchover")
        self.receiver.event("phase", phase="switchover")

    def finish(self, *codes):
        """The move is over, the guest runs here; and another try moves it."""
        self.assert_aborted(self.sender)
        self.assertIn(self.sender.report["error"]["code"], codes, self.sender.transcript())
        self.assert_one_sentence(self.sender)
        self.assert_unharmed(self.source)
        self.destination.signal(signal.SIGCONT)
        self.receiver.signal(signal.SIGCONT)
        self.assertNotEqual(self.receiver.wait(), 0, self.receiver.transcript())
        self.assertEqual(self.destination.beats, [], "the guest ran at the destination, too")
        self.assert_second_move()

    def assert_second_move(self):
        """To a new destination: the first one's QEMU may have been given a state already."""
        before = self.source
        destination = self.qemu("second", incoming=True, **GUEST)
        destination.monitor()
        receive = self.receive(destination)
        send = self.send(receive.address(), before, "--mode", "hybrid", "--verify", "full")
        self.assert_moved(before, destination, send, receive)

    def start_precopy(self):
        self.start()
        self.sender.event("phase", phase="precopy")

    def start_switchover(self):
        self.start("--mode", "precopy", "--max-bandwidth", "24M", *ALERT)
        self.reach_switchover()

    def test_cancel_in_precopy(self):
        self.start_precopy()
        self.tell("cancel")
        self.finish("canceled")

    def test_cancel_after_a_round(self):
        self.start("--mode", "precopy", "--max-bandwidth", "24M", *ALERT)
        self.sender.event("round")
        self.tell("cancel")
        self.finish("canceled")

    def test_cancel_in_switchover(self):
        self.start_switchover()
        self.tell("cancel")
        self.finish("canceled")

    def test_interrupt(self):
        self.start_precopy()
        self.sender.signal(signal.SIGINT)
        self.finish("canceled")

    def test_terminate_in_switchover(self):
        self.start_switchover()
        self.sender.signal(signal.SIGTERM)
        self.finish("canceled")

    def test_cancel_at_the_destination(self):
        self.start_precopy()
        self.tell("cancel", run=self.destination_run)
        self.finish("canceled")
        self.assertIn("other host", self.sender.complaint[0])

    def test_cancel_at_the_destination_in_switchover(self):
        self.start_switchover()
        self.tell("cancel", run=self.destination_run)
        self.destination.signal(signal.SIGCONT)
        self.finish("canceled")

    def test_source_guest_killed(self):
        """There is nothing left to save, but both sides must say so and end."""
        self.start_precopy()
        self.source.signal(signal.SIGKILL)
        self.assertNotEqual(self.sender.wait(), 0)
        self.assert_one_sentence(self.sender)
        self.assertNotEqual(self.receiver.wait(), 0)
        self.assertEqual(self.destination.beats, [])

    def test_cancel_while_receive_waits(self):
        destination = self.qemu("destination", incoming=True, **GUEST)
        destination.monitor()
        self.receiver = self.receive(destination)
        self.receiver.signal(signal.SIGINT)
        self.assertEqual(self.receiver.wait(), 1)
        self.assertEqual(self.receiver.report["outcome"], "aborted")
        self.assertEqual(destination.status(), "inmigrate")

    def test_cancel_while_the_peer_says_nothing(self):
        """Connected, but to something that is no memferry and keeps silent."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.source = self.qemu("source", **GUEST).ready()
            self.sender = self.send(f"127.0.0.1:{listener.getsockname()[1]}", self.source)
            with listener.accept()[0]:
                self.tell("cancel")
                self.assert_aborted(self.sender)
                self.assertEqual(self.sender.report["error"]["code"], "canceled")
        self.assert_unharmed(self.source)

    def test_cancel_too_late_has_no_effect(self):
        """Again and again through the switchover: whatever comes of it, one guest runs and it is whole."""
        source, destination = self.pair(ram=(Ram(64 * MIB),), guest="hot=4M")
        receive = self.receive(destination)
        send = self.send(receive.address(), source, "--mode", "precopy", "--verify", "full")
        send.event("phase", phase="switchover")
        send.signal(signal.SIGINT)
        status = send.wait()
        if status == 0:
            self.assert_moved(source, destination, send, receive)
        else:
            self.assert_aborted(send)
            self.assertNotEqual(receive.wait(), 0)
            self.assertEqual(destination.beats, [])
            self.assert_unharmed(source)


if __name__ == "__main__":
    main()
