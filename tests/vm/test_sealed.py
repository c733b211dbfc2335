#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Whole moves over real verbs whose pages are sealed: the device carries records, and pins nothing of the guest."""
from verbs import HOST, VerbsCase
from harness import Ram, main
from harness.qemu import MIB
from test_sealing import Sealed

QEMU = {"ram": (Ram(48 * MIB),), "guest": "hot=4M rate=4M data=8M"}


class Verbs(Sealed, VerbsCase):
    def move(self, mode, option, guests, source=None, destination=None):
        receive = self.receiver(guests[1], listen=f"{HOST}:0")
        send = self.sender(receive.address(), guests[0], "--mode", mode, "--verify", "full", option)
        self.assert_moved(source, destination, send, receive)
        self.assert_sealing(option.strip("-"), send, receive)
        self.assert_transport("verbs", send, receive)
        for side in send, receive:
            # Buffers of the lanes, two and an urgent one, and no page of the guest.
            self.assertLess(side.report["rails"][0]["bytes_pinned"], 16 * MIB, side.transcript())

    def test_demo(self):
        for mode, option in ("hybrid", "--encrypt"), ("postcopy", "--encrypt"), ("precopy", "--integrity"):
            with self.subTest(mode=mode, option=option):
                self.move(mode, option, ("demo:24M,dirty=1M", "demo:24M"))

    def test_qemu(self):
        for mode in "precopy", "postcopy":
            with self.subTest(mode=mode):
                pair = self.pair(**QEMU)
                self.move(mode, "--encrypt", [f"qemu:{vm.qmp_path}" for vm in pair], *pair)
                self.kill_all()


if __name__ == "__main__":
    main()
