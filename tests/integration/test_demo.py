#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""./demo.sh: it ends well, tells bad from good, and leaves nothing behind, interrupted or not."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from harness import main
from harness.process import timeout

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo.sh"
BUILD = Path(os.environ.get("MEMFERRY", "")).parents[2]


@unittest.skipUnless(os.geteuid() == 0, "not root, and the demo would ask for it")
class Demo(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def start(self, *args):
        """In a process group of its own, as a shell with job control does."""
        demo = subprocess.Popen([DEMO, "--build-dir", BUILD, "--memory", "64M", *args], text=True, start_new_session=True,
                                env={**os.environ, "TMPDIR": self.folder}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.addCleanup(demo.stdout.close)
        self.addCleanup(demo.kill)
        return demo

    def assert_nothing_left(self):
        self.assertEqual(os.listdir(self.folder), [])
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                self.assertNotIn(self.folder.encode(), process.read_bytes())
            except OSError:
                pass  # it has ended

    def test_moves_a_guest(self):
        demo = self.start("--bandwidth", "0")
        output = demo.communicate(timeout=timeout(120))[0]
        self.assertEqual(demo.returncode, 0, output)
        for words in "source guest ", "destination guest ", "total time ", "downtime ", "rounds ", "faults ", "wrong bytes  0":
            self.assertIn(words, output)
        self.assert_nothing_left()

    def interrupt(self, number, at, status):
        demo = self.start("--bandwidth", "1M")
        seen = ""
        for line in demo.stdout:
            seen += line
            if line.startswith(at):
                break
        os.killpg(demo.pid, number)
        seen += demo.communicate(timeout=timeout())[0]
        self.assertEqual(demo.returncode, status, seen)
        self.assert_nothing_left()

    def test_interrupt_in_the_move(self):
        self.interrupt(signal.SIGINT, "phase: precopy", 130)

    def test_interrupt_before_the_move(self):
        self.interrupt(signal.SIGINT, "  source guest", 130)

    def test_termination(self):
        self.interrupt(signal.SIGTERM, "phase: precopy", 143)


class Verdict(unittest.TestCase):
    report = {"event": "report", "outcome": "completed", "mode": "hybrid", "transport": "tcp", "pages_total": 9, "total_ms": 1,
              "downtime_ms": 1, "rounds": [], "postcopy": None, "verify": {"pages": 9, "mismatches": 0}}
    source = "READY\r\nHB n=1 ms=1 writes=1 checked=1 passes=0 wrong=0\r\nHB n=2 m"
    destination = "s=2 writes=2 checked=2 passes=0 wrong=0\r\nCHECKED pages=9 passes=1 wrong=0 new=0\r\n"

    def judge(self, source=source, destination=destination, **changes):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "receive.json").write_text('{"event":"listening"}\n' + json.dumps(self.report | changes) + "\n")
            Path(folder, "source.log").write_text(source, newline="")
            Path(folder, "destination.log").write_text(destination, newline="")
            return subprocess.run([sys.executable, "-B", ROOT / "tests/support/verdict.py", folder, "0"],
                                  capture_output=True, check=False).returncode

    def test_good(self):
        self.assertEqual(self.judge(), 0)

    def test_bad(self):
        for bad in (
            {"verify": {"pages": 9, "mismatches": 1}},
            {"verify": {"pages": 8, "mismatches": 0}},
            {"verify": None},
            {"outcome": "aborted"},
            {"event": "progress"},
            {"destination": self.destination.replace("0 wrong=0", "0 wrong=1")},
            {"destination": self.destination.replace("1 wrong=0", "1 wrong=1")},
            {"destination": self.destination.split("CHECKED")[0]},
            {"destination": self.source + self.destination},
            {"source": self.source.replace("n=1", "n=0")},
            {"source": self.source.replace("READY", "WRONG page=1")},
        ):
            with self.subTest(bad):
                self.assertEqual(self.judge(**bad), 1)


if __name__ == "__main__":
    main()
