#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""In a build with sanitizers: what one of them says of any process fails the test."""
import os

from harness import Case, Failed, Process, main, sanitizers

KINDS = {
    "address,undefined": ("freed", "leak", "overflow", "assert"),
    "thread": ("race", "assert"),
}


class Reports(Case):
    def test_of_a_child_that_nobody_looks_at(self):
        for kind in KINDS[os.environ["MEMFERRY_SANITIZE"]]:
            with self.subTest(kind):
                broken = self.keep(Process("broken", [os.environ["MEMFERRY_BROKEN"], kind]))
                self.assertEqual(broken.wait(), 0, broken.transcript())
                with self.assertRaisesRegex(Failed, r"broken\.c"):
                    sanitizers.check()
                sanitizers.check()  # each report is told once


if __name__ == "__main__":
    main()
