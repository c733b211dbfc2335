#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Every mode moves a guest that writes all the time, and no write is lost."""
import contextlib
import fcntl
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from harness import Case, Ram, accelerators, main
from harness.qemu import MIB, QEMU

MODES = "hybrid", "precopy", "postcopy", "cold"
FULL = "--verify", "full"
# More than the link may carry: its rounds cannot shrink.
FLOOD = "hot=24M rate=96M data=32M"
NARROW = "--max-bandwidth", "16M"


class Move(Case):
    def move(self, source, destination, *args, after_start=None):
        receive = self.receive(destination)
        send = self.send(receive.address(), source, *args)
        if after_start:
            after_start(send)
        self.assert_moved(source, destination, send, receive, verified="full" in args)
        return send.report, receive.report


class Modes(Move):
    """Modes by lanes by accelerators; the reports tell the same story."""

    def move_in(self, mode, lanes, accel):
        source, destination = self.pair(accel=accel, ram=(Ram(128 * MIB),), guest="hot=8M rate=32M spread=1")
        send, receive = self.move(source, destination, "--mode", mode, "--lanes", str(lanes), *FULL)
        for report in (send, receive):
            self.assertEqual(report["mode"], mode)
            self.assertEqual(report["transport"], "tcp")
            self.assertTrue(report["transport_reason"])
            self.assertEqual(report["pages_total"], 128 * MIB // 4096)
            self.assertGreater(report["downtime_ms"], 0)
            self.assertLessEqual(report["downtime_ms"], report["total_ms"])
        self.assertEqual(send["session"], receive["session"])
        if mode == "postcopy":
            self.assertGreater(receive["postcopy"]["pulled_pages"], 0)
            self.assertGreater(receive["bytes_read"], 0)
        if mode in ("precopy", "cold"):
            self.assertIsNone(send["postcopy"])
            self.assertGreaterEqual(send["bytes_written"], 60 * MIB)
        if mode == "cold":
            self.assertEqual(send["pages_resent"], 0)


def add_modes():
    def make(mode, lanes, accel):
        @unittest.skipUnless(accel in accelerators(), f"no usable /dev/{accel}")
        def test(self):
            self.move_in(mode, lanes, accel)

        return test

    for accel in "tcg", "kvm":
        for lanes in 1, 4:
            for mode in MODES:
                setattr(Modes, f"test_{accel}_{mode}_{lanes}", make(mode, lanes, accel))


add_modes()


class Converging(Move):
    def flood(self, *args):
        source, destination = self.pair(ram=(Ram(96 * MIB),), guest=FLOOD)
        receive = self.receive(destination)
        send = self.send(receive.address(), source, *NARROW, *FULL, *args)
        return source, destination, send, receive

    def test_precopy_says_that_it_does_not_converge(self):
        source, destination, send, receive = self.flood("--mode", "precopy")
        send.notice("converge")
        self.tell("cancel")
        self.assert_aborted(send)
        self.assertNotEqual(receive.wait(), 0)
        self.assert_unharmed(source)
        self.assertEqual(destination.beats, [])

    def test_precopy_converges_once_the_guest_is_calm(self):
        source, destination, send, receive = self.flood("--mode", "precopy")
        send.notice("converge")
        source.ask("p", "PAUSED")
        self.assert_moved(source, destination, send, receive)

    def test_precopy_cuts_over_when_told(self):
        source, destination, send, receive = self.flood("--mode", "precopy")
        send.event("round", n=1)
        self.tell("cutover")
        self.assert_moved(source, destination, send, receive)
        self.assertIsNone(send.report["postcopy"])

    def test_precopy_goes_to_postcopy_when_told(self):
        source, destination, send, receive = self.flood("--mode", "precopy")
        send.event("round", n=1)
        self.tell("postcopy")
        self.assert_moved(source, destination, send, receive)
        self.assertGreater(receive.report["postcopy"]["pulled_pages"], 0)

    def test_hybrid_switches_to_postcopy(self):
        source, destination, send, receive = self.flood("--mode", "hybrid")
        self.assert_moved(source, destination, send, receive)
        report = receive.report
        self.assertGreater(report["postcopy"]["pulled_pages"], 0)
        self.assertGreater(report["postcopy"]["faults"], 0)
        self.assertEqual(sum(report["postcopy"]["latency_log2_us"]), report["postcopy"]["faults"])

    def test_safe_postcopy_waits_until_little_is_missing(self):
        """Also when it is asked for; and what the guest writes last is no exception."""
        source, destination, send, receive = self.flood("--mode", "hybrid", "--safe-postcopy", "64")
        send.notice("converge")
        self.tell("postcopy")
        send.event("round", n=len([e for e in send.events if e["event"] == "round"]) + 2)
        self.assertEqual(destination.beats, [])
        source.ask("p", "PAUSED")
        self.assert_moved(source, destination, send, receive)
        pulled = receive.report["postcopy"]
        self.assertLessEqual(pulled["pulled_pages"] if pulled else 0, 64)

    def test_warm_waits_for_the_cutover(self):
        source, destination = self.pair(ram=(Ram(96 * MIB),), guest="hot=4M rate=8M data=32M")
        receive = self.receive(destination)
        send = self.send(receive.address(), source, "--mode", "warm", *FULL)
        send.event("round", n=3)
        source.more_beats(5)
        self.assertEqual(destination.beats, [])
        self.tell("cutover")
        self.assert_moved(source, destination, send, receive)


class Memory(Move):
    """What guest RAM can be, and what is in it."""

    def test_zero_pages_are_not_sent(self):
        source, destination = self.pair(ram=(Ram(256 * MIB),), guest="zero=90 hot=4M rate=8M check=512M")
        source.wait_until("a pass", lambda: source.beats and source.beats[-1].passes)  # no holes are left
        send, _ = self.move(source, destination, "--mode", "precopy", *FULL)
        self.assertGreater(send["pages_zero"], 200 * MIB // 4096)
        self.assertLess(send["bytes_written"], 64 * MIB)

    def test_holes_stay_holes(self):
        source, destination = self.pair(ram=(Ram(256 * MIB),), guest="data=16M hot=1M rate=1M check=0")
        receive = self.receive(destination)
        send = self.send(receive.address(), source, "--mode", "precopy")
        self.assertEqual((send.wait(), receive.wait()), (0, 0), send.transcript())
        self.assertLess(os.stat(destination.ram_file()).st_blocks * 512, 96 * MIB)
        self.assert_guest_moved(source, destination)

    def test_two_regions(self):
        for mode in "hybrid", "postcopy":
            with self.subTest(mode):
                self.move(*self.pair(ram=(Ram(64 * MIB), Ram(96 * MIB)), guest="hot=16M spread=1 full=1"),
                          "--mode", mode, *FULL)

    def test_ram_file_that_has_no_name(self):
        self.move(*self.pair(ram=(Ram(96 * MIB, "unlinked"),), guest="full=1 pattern=random"), *FULL)

    def test_memfd(self):
        version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
        major, minor = map(int, version.split("version ")[1].split(".")[:2])
        if (major, minor) > (8, 0):
            self.skipTest(f"QEMU {major}.{minor} migrates memfd RAM itself; up to 8.0 does not")
        self.move(*self.pair(ram=(Ram(96 * MIB, "memfd"),), guest="full=1"), *FULL)

    @contextlib.contextmanager
    def huge_pages(self, need):
        """Reserved for this test and given back; a file system of them."""
        sizes = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
        if not sizes.exists():
            self.skipTest("no 2 MiB huge pages in this kernel")

        def read(name):
            return int((sizes / name).read_text())

        def reserve(more):
            """By how many the reserve grew."""
            before = read("nr_hugepages")
            try:
                (sizes / "nr_hugepages").write_text(str(max(0, before + more)))
            except OSError as error:
                self.skipTest(f"may not reserve huge pages: {error.strerror}")
            return read("nr_hugepages") - before

        def unclaimed():
            return read("free_hugepages") - read("resv_hugepages")

        with contextlib.ExitStack() as stack:
            # All tests that reserve huge pages take this lock, some in the one way and some in the other.
            lock = stack.enter_context(open("/tmp/memferry-test-hugepages.lock", "a+"))
            fcntl.lockf(lock, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if unclaimed() < need:
                stack.callback(reserve, -reserve(need - unclaimed()))
            if unclaimed() < need:
                self.skipTest(f"only {unclaimed()} of {need} huge pages could be reserved")
            mount = Path(tempfile.mkdtemp(dir=self.directory))
            if subprocess.run(["mount", "-t", "hugetlbfs", "none", mount], stderr=subprocess.DEVNULL).returncode:
                self.skipTest("may not mount hugetlbfs")
            stack.callback(subprocess.run, ["umount", "-l", mount], check=True)
            stack.callback(self.kill_all)
            yield mount

    def move_huge(self, mode):
        with self.huge_pages(2 * 64) as mount:
            guests = []
            for name in "destination", "source":
                directory = mount / name
                directory.mkdir()
                guests.append(self.qemu(name, incoming=name == "destination", guest="hot=8M rate=32M full=1",
                                        ram=(Ram(128 * MIB, "hugetlb", str(directory)),)))
            guests[0].monitor()
            guests[1].ready()
            self.move(guests[1], guests[0], "--mode", mode, *FULL)

    def test_hugetlb_precopy(self):
        self.move_huge("precopy")

    def test_hugetlb_postcopy(self):
        self.move_huge("postcopy")


class Guests(Move):
    def test_idle_guest(self):
        send, _ = self.move(*self.pair(ram=(Ram(96 * MIB),), guest="idle=1"), "--mode", "precopy", *FULL)
        self.assertLessEqual(len(send["rounds"]), 4)

    def test_guest_that_writes_as_fast_as_it_can(self):
        self.move(*self.pair(ram=(Ram(96 * MIB),), guest="rate=0 hot=32M pattern=random full=1"), *FULL)

    def test_stopped_guest_is_not_started(self):
        source, destination = self.pair(ram=(Ram(96 * MIB),), guest="")
        source.monitor()("stop")
        receive = self.receive(destination)
        send = self.send(receive.address(), source)
        if send.wait() == 0:
            self.assertEqual(receive.wait(), 0)
            self.assertNotEqual(destination.status(), "running")
        else:
            self.assert_one_sentence(send)
            self.assertEqual(source.status(), "paused")

    def test_guest_with_direct_io_is_held_for_each_collect(self):
        """What a disk reads past the page tables has landed when writes are collected between rounds."""
        disk = Path(self.directory, "disk")
        disk.write_bytes(bytes(MIB))
        drive = f"file={disk},if=none,id=disk,format=raw,cache=none,file.locking=off"
        source, destination = self.pair(ram=(Ram(96 * MIB),), guest="hot=8M rate=32M", extra=("-drive", drive))

        def watch(send):
            for _ in range(2):
                source.monitor().wait_event("STOP")
                source.monitor().wait_event("RESUME")
            self.tell("cutover")

        send, _ = self.move(source, destination, "--mode", "warm", *FULL, after_start=watch)
        self.assertIn("direct I/O", [finding["subject"] for finding in send["findings"]])

    def test_back_and_forth(self):
        """The guest that came moves on to a third QEMU."""
        options = {"ram": (Ram(96 * MIB),), "guest": "hot=8M"}
        source, destination = self.pair(**options)
        self.move(source, destination, "--mode", "hybrid", *FULL)
        third = self.qemu("third", incoming=True, **options)
        third.monitor()
        before = source.output
        receive = self.receive(third)
        send = self.send(receive.address(), destination, "--mode", "postcopy", *FULL)
        self.assertEqual((send.wait(), receive.wait()), (0, 0), send.transcript() + receive.transcript())
        third.more_beats()
        self.assertEqual(third.check_pages()["wrong"], "0")
        self.assert_one_story(before + destination.output + third.output)

    def test_two_moves_at_once(self):
        pairs = [self.pair(ram=(Ram(64 * MIB),), guest="hot=4M") for _ in range(2)]
        moves = []
        for source, destination in pairs:
            receive = self.receive(destination)
            moves.append((source, destination, self.send(receive.address(), source, *FULL), receive))
        for move in moves:
            self.assert_moved(*move)


class Demo(Move):
    def test_demo_in_each_mode(self):
        for mode in MODES:
            with self.subTest(mode):
                spec = "demo:128M,dirty=64M"
                send, receive = self.move(spec, spec, "--mode", mode, *FULL)
                self.assertEqual(send["pages_total"], 128 * MIB // 4096)


if __name__ == "__main__":
    main()
