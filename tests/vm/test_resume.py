#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Post-copy over real verbs whose processes are killed: others take over, register the memory anew, and read on."""
from verbs import VerbsCase
from harness import Ram, main, timeout
from harness.qemu import MIB
from harness.resumed import Resumed

PATIENCE = str(int(timeout(5) * 1000))


class Resume(VerbsCase, Resumed):
    guest = {"ram": (Ram(32 * MIB),), "guest": "hot=1M rate=512K data=12M"}
    slow = "--max-bandwidth", "512K"
    alert = "--peer-timeout", PATIENCE, "--connect-timeout", PATIENCE

    def in_postcopy(self):
        """Both, and pages are missing still: whoever is killed now has something to go on with."""
        for side in self.sender, self.receiver:
            side.wait_until("post-copy", lambda: [e["phase"] for e in side.events if e["event"] == "phase"][-1:] == ["postcopy"])
        self.assertTrue(self.sender.is_alive() and self.receiver.is_alive())

    def test_each_side_killed(self):
        self.start()
        self.end(self.receiver)
        self.resume_receive()
        self.in_postcopy()
        self.end(self.sender)
        self.resume_send()
        self.in_postcopy()
        self.assert_whole()
        self.assert_transport("verbs", self.sender, self.receiver)
        self.assertGreater(sum(lane["bytes_read"] for lane in self.receiver.report["lanes"] if lane["transport"] == "verbs"),
                           0)


if __name__ == "__main__":
    main()
