#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""A Linux that counts and checks goes on counting and checking across a move."""
import re

from harness import Case, Ram, main, timeout
from harness.linux import Missing, initrd, kernel
from harness.qemu import MIB

BOOT_S = 120
COUNT = re.compile(r"LX n=(\d+) bad=(\d+)$")


class Linux(Case):
    def counts(self, text):
        return [tuple(map(int, match.groups())) for match in map(COUNT.match, text.replace("\r", "").split("\n")) if match]

    def count_more(self, guest, more, limit=None):
        want = len(self.counts(guest.output)) + more
        guest.wait_until(f"{more} more counts", lambda: len(self.counts(guest.output)) >= want, limit)

    def move(self, *args):
        try:
            options = {"ram": (Ram(256 * MIB),), "kernel": kernel(), "initrd": initrd(self.directory),
                       "guest": "console=ttyS0 quiet loglevel=3 panic=-1"}
        except Missing as missing:
            self.skipTest(str(missing))
        destination = self.qemu("destination", incoming=True, **options)
        source = self.qemu("source", **options)
        destination.monitor()
        self.count_more(source, 2, timeout(BOOT_S))

        receive = self.receive(destination)
        send = self.send(receive.address(), source, "--verify", "full", *args)
        self.assertEqual((send.wait(timeout(BOOT_S)), receive.wait()), (0, 0), send.transcript() + receive.transcript())
        for report in send.report, receive.report:
            self.assertEqual(report["outcome"], "completed")
            self.assertEqual(report["verify"]["mismatches"], 0)

        before = source.output
        self.count_more(destination, 4)
        self.assertEqual(source.output, before, "the source guest still speaks")
        counts = self.counts(before + destination.output)
        self.assertEqual([n for n, _ in counts], list(range(1, len(counts) + 1)), destination.transcript())
        self.assertEqual({bad for _, bad in counts}, {0}, destination.transcript())
        self.assertNotRegex(destination.output, "(?i)panic|oops|BUG:|segfault")
        return receive.report

    def test_precopy(self):
        self.move("--mode", "precopy", "--max-downtime", "2000")

    def test_hybrid(self):
        """Its writes go on faster than the link: it switches to post-copy."""
        self.move("--mode", "hybrid", "--max-bandwidth", "48M", "--max-downtime", "50")

    def test_postcopy(self):
        report = self.move("--mode", "postcopy")
        self.assertGreater(report["postcopy"]["faults"], 0)


if __name__ == "__main__":
    main()
