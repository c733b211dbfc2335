#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Whole moves over real verbs, in the machine that tests/vm/run starts."""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from harness import Case, Ram, main
from harness.qemu import MIB

HOST = os.environ.get("MEMFERRY_TEST_HOST", "")


class OverVerbs(Case):
    def setUp(self):
        if not HOST:
            self.skipTest("MEMFERRY_TEST_HOST names no address of an RDMA device")
        super().setUp()

    def receive(self, guest, *args):
        spec = guest if isinstance(guest, str) else f"qemu:{guest.qmp_path}"
        receive = self.memferry("receive", "receive", "--listen", f"{HOST}:0", "--guest", spec, "--insecure", *args,
                                run=self.destination_run)
        receive.address()
        return receive

    def move_demo(self, *args):
        receive = self.receive("demo:32M")
        send = self.send(receive.address(), "demo:32M,dirty=1M", "--verify", "full", *args)
        self.assert_moved(None, None, send, receive)
        for side in (send, receive):
            self.assertEqual(side.report["transport"], "verbs", side.transcript())
        return send, receive

    def test_hybrid_is_the_default_and_verbs_is_chosen(self):
        self.move_demo()

    def test_precopy(self):
        send, _ = self.move_demo("--mode", "precopy", "--transport", "verbs")
        self.assertGreater(send.report["bytes_written"], 0)

    def test_postcopy(self):
        _, receive = self.move_demo("--mode", "postcopy")
        self.assertGreater(receive.report["bytes_read"], 0)

    def test_tcp_when_asked_for(self):
        receive = self.receive("demo:32M", "--transport", "tcp")
        send = self.send(receive.address(), "demo:32M")
        self.assert_moved(None, None, send, receive, verified=False)
        self.assertEqual(send.report["transport"], "tcp")

    def test_a_qemu_guest(self):
        guest = {"ram": (Ram(48 * MIB),), "guest": "hot=4M rate=4M data=8M"}
        source, destination = self.pair(**guest)
        receive = self.receive(destination)
        send = self.send(receive.address(), source, "--mode", "hybrid", "--verify", "full")
        self.assert_moved(source, destination, send, receive)
        self.assertEqual(send.report["transport"], "verbs")


if __name__ == "__main__":
    main()
