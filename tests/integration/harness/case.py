# SPDX-License-Identifier: BSD-2-Clause
"""The test case that all programs here use, and their runner."""
import atexit
import os
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

from . import sanitizers
from .memferry import Memferry
from .process import Failed, timeout
from .qemu import MIB, Qemu, Ram, beats_in

PREFIX = "memferry-test-"
SKIPPED = 77


def _sweep(directory):
    """What a killed run has left: directories carry the pid of their owner."""
    for left in Path(directory).glob(PREFIX + "*"):
        pid = left.name[len(PREFIX):].split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)


def make_directory(parent):
    path = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent)
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.addCleanup(sanitizers.check)  # the first is done last: nothing runs any more
        self.directory = make_directory("/tmp")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.processes = []
        self.addCleanup(self.kill_all)
        self.source_run = self.directory / "source"
        self.destination_run = self.directory / "destination"

    def kill_all(self):
        for process in reversed(self.processes):
            process.kill()

    def run(self, result=None):
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before:
            for process in getattr(self, "processes", []):
                print(process.transcript(), file=sys.stderr)
        return result

    def keep(self, process):
        self.processes.append(process)
        return process

    # Guests

    def qemu(self, name, owner=None, **options):
        """owner: whose the directory of its RAM is."""
        ram_directory = make_directory("/dev/shm")
        if owner:
            os.chown(ram_directory, owner, owner)
        self.addCleanup(shutil.rmtree, ram_directory, ignore_errors=True)
        return self.keep(Qemu(f"{name}{len(self.processes)}", self.directory, ram_directory, **options))

    def pair(self, **options):
        """A source whose guest runs, and a destination that waits for one like it."""
        destination = self.qemu("destination", incoming=True, **options)
        source = self.qemu("source", **options)
        destination.monitor()
        return source.ready(), destination

    # The command

    def memferry(self, name, *args, run=None, **options):
        return self.keep(Memferry(name, run or self.source_run, *args, **options))

    def receive(self, guest, *args):
        """guest: a QEMU, or a spec. Returns once it listens."""
        spec = guest if isinstance(guest, str) else f"qemu:{guest.qmp_path}"
        receive = self.memferry("receive", "receive", "--listen", "127.0.0.1:0", "--guest", spec, "--insecure", *args,
                                run=self.destination_run)
        receive.address()
        return receive

    def send(self, address, guest, *args):
        spec = guest if isinstance(guest, str) else f"qemu:{guest.qmp_path}"
        return self.memferry("send", "send", address, "--guest", spec, "--insecure", *args)

    def tell(self, verb, *args, run=None):
        """cancel, cutover, postcopy, status; asserts that it was taken."""
        command = self.memferry(verb, verb, *args, run=run)
        self.assertEqual(command.wait(), 0, command.transcript())
        return command

    # What must hold

    def assert_moved(self, source, destination, send, receive, verified=True):
        """Both sides say so, the guest at the destination is whole, the one at the source runs no more."""
        self.assertEqual((send.wait(), receive.wait()), (0, 0), send.transcript() + receive.transcript())
        for side in (send, receive):
            report = side.report
            self.assertEqual(report["outcome"], "completed", side.transcript())
            self.assertIsNone(report["error"])
            if verified:
                self.assertEqual(report["verify"]["mismatches"], 0)
                self.assertGreater(report["verify"]["pages"], 0)
        if isinstance(source, Qemu):
            self.assert_guest_moved(source, destination)

    def assert_guest_moved(self, source, destination):
        destination.more_beats()
        checked = destination.check_pages()
        self.assertEqual(checked["wrong"], "0", destination.transcript())
        before = source.output
        destination.more_beats(5)
        self.assertEqual(source.output, before, "the source guest still speaks")
        if source.is_alive():
            self.assertNotEqual(source.status(), "running")
        self.assert_one_story(before + destination.output)

    def assert_one_story(self, text):
        """What source and destination said, one after the other, is what one guest says: a line begun here may end there."""
        beats = beats_in(text.split("\n"))
        self.assertEqual([b.n for b in beats], list(range(1, len(beats) + 1)), "heartbeats are missing or twice")
        for a, b in zip(beats, beats[1:]):
            self.assertLessEqual((a.writes, a.checked, a.passes), (b.writes, b.checked, b.passes))
        self.assertEqual({b.wrong for b in beats}, {0}, "the guest found wrong pages")
        self.assertNotIn("WRONG", text)

    def assert_unharmed(self, source):
        """The guest at the source runs and every page of it is right."""
        source.more_beats(3)
        self.assertEqual(source.status(), "running")
        checked = source.check_pages()
        self.assertEqual(checked["wrong"], "0", source.transcript())
        self.assert_one_story(source.output)

    def assert_aborted(self, send, status=1):
        self.assertEqual(send.wait(), status, send.transcript())
        self.assertEqual(send.report["outcome"], "aborted")
        self.assertTrue(send.report["error"]["message"])

    def assert_one_sentence(self, process):
        """One line that says what is wrong: object first, no trailing dot."""
        self.assertEqual(len(process.complaint), 1, process.transcript())
        sentence = process.complaint[0]
        self.assertRegex(sentence, r"^memferry: .*[^.]$")
        return sentence


def main():
    """Runs the calling program's tests. Exit status: 0, 1, or 77 when everything was skipped."""
    for needed in ("MEMFERRY", "MEMFERRY_GUEST"):
        if needed not in os.environ:
            sys.exit(f"{needed} is not set: run this by ctest, or set MEMFERRY and MEMFERRY_GUEST to what was built")
    for directory in ("/tmp", "/dev/shm"):
        _sweep(directory)
    sanitizers.collect(make_directory("/tmp"))
    program = unittest.main(module="__main__", exit=False, verbosity=2, argv=sys.argv)
    result = program.result
    try:
        sanitizers.check()  # of who came late, and of tests that are no Case
    except Failed as failure:
        sys.exit(failure)
    for test, reason in result.skipped:
        print(f"SKIP: {test.id().removeprefix('__main__.')}: {reason}", flush=True)
    if not result.wasSuccessful():
        sys.exit(1)
    if result.skipped and len(result.skipped) >= result.testsRun:  # a whole program's skip counts as no run
        print(f"SKIP: {result.skipped[0][1]}", flush=True)
        sys.exit(SKIPPED)
    sys.exit(0)
