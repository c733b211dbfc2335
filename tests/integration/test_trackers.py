#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""--tracker: each way of finding the guest's writes that this kernel has moves a guest; others are refused, and say why."""
import signal

from harness import Case, Ram, main
from harness.qemu import MIB

NAMES = "pagemap", "softdirty", "writeprotect"
GUEST = {"ram": (Ram(96 * MIB),), "guest": "hot=8M rate=16M spread=1"}


class Trackers(Case):
    def available(self):
        """What preflight says of each: its name, or None."""
        return [name for name in NAMES if not self.refusal(name)]

    def refusal(self, name):
        receive = self.receive("demo:16M")
        check = self.memferry("check", "check", receive.address(), "--guest", "demo:16M", "--insecure", "--tracker", name)
        status = check.wait()
        receive.signal(signal.SIGINT)
        receive.wait()
        self.assertIn(status, (0, 3), check.transcript())
        self.assertEqual(check.report["tracker"], "")
        return self.assert_one_sentence(check) if status == 3 else None

    def test_what_the_kernel_lacks_is_refused(self):
        for name in NAMES:
            with self.subTest(name):
                why = self.refusal(name)
                if why:
                    self.assertRegex(why, "write tracking: .*(kernel|Linux)")

    def test_one_that_nobody_knows(self):
        send = self.memferry("send", "send", "127.0.0.1:1", "--guest", "demo:16M", "--insecure", "--tracker", "kvmlog")
        self.assertEqual(send.wait(), 2)
        self.assertIn("--tracker", self.assert_one_sentence(send))

    def start(self, name):
        """Rounds of a guest that writes all the time go on until told."""
        source, destination = self.pair(**GUEST)
        receive = self.receive(destination)
        send = self.send(receive.address(), source, "--mode", "warm", "--tracker", name)
        send.event("round", n=2)
        return source, send, receive

    def move(self, name):
        source, destination = self.pair(**GUEST)
        receive = self.receive(destination)
        send = self.send(receive.address(), source, "--mode", "warm", "--tracker", name, "--verify", "full")
        send.event("round", n=3)
        self.tell("cutover")
        self.assert_moved(source, destination, send, receive)
        self.assertEqual(send.report["tracker"], name)

    def test_moves(self):
        names = self.available()
        self.assertIn("writeprotect", names)
        for name in names:
            with self.subTest(name):
                self.move(name)

    def test_killed_in_the_middle(self):
        """No write of the guest may wait for a tracker that is gone."""
        for name in self.available():
            with self.subTest(name):
                source, send, receive = self.start(name)
                send.signal(signal.SIGKILL)
                self.assertEqual(receive.wait(), 1, receive.transcript())
                self.assert_unharmed(source)

    def test_canceled(self):
        for name in self.available():
            with self.subTest(name):
                source, send, receive = self.start(name)
                self.tell("cancel")
                self.assert_aborted(send)
                self.assertNotEqual(receive.wait(), 0)
                self.assert_unharmed(source)


if __name__ == "__main__":
    main()
