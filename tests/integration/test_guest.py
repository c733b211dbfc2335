#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""The tools that the other programs trust: does the guest see every wrong page, does the harness see a break?"""
import os
import shutil
import unittest

from harness import Case, Failed, Ram, accelerators, main
from harness.qemu import MIB

# Writes and checks stand still unless asked: what a test changes stays changed.
STILL = "hot=8M rate=0 check=0 hb=50"


def page_of(word, text):
    """What READY says."""
    return int(dict(pair.split("=") for pair in text.split()[1:])[word], 0)


class Guest(Case):
    def still_guest(self):
        guest = self.qemu("guest", ram=(Ram(64 * MIB),), guest=STILL).ready()
        guest.ask("p", "PAUSED")
        return guest

    def overwrite(self, guest, offset, data):
        with open(guest.ram_file(), "r+b") as ram:
            old = os.pread(ram.fileno(), len(data), offset)
            os.pwrite(ram.fileno(), data, offset)
        return old

    def find_page(self, guest, zero):
        """Guest-physical address of a page that is zero, or not."""
        first = page_of("first_gpa", guest.wait_line("READY"))
        with open(guest.ram_file(), "rb") as ram:
            for page in range(40 * MIB // 4096, 48 * MIB // 4096):
                at = first + page * 4096
                if zero == (os.pread(ram.fileno(), 4096, at) == bytes(4096)):
                    return at
        raise Failed("no such page")

    def test_sees_one_flipped_bit(self):
        guest = self.still_guest()
        at = self.find_page(guest, zero=False) + 2345
        old = self.overwrite(guest, at, b"x")
        self.overwrite(guest, at, bytes([old[0] ^ 0x10]))
        checked = guest.check_pages()
        self.assertEqual(checked["new"], "1", guest.transcript())
        self.overwrite(guest, at, old)
        self.assertEqual(guest.check_pages()["new"], "0")

    def test_sees_a_zero_page_that_is_not(self):
        guest = self.still_guest()
        self.overwrite(guest, self.find_page(guest, zero=True) + 4095, b"\1")
        self.assertEqual(guest.check_pages()["new"], "1", guest.transcript())

    def test_sees_a_page_that_was_not_moved(self):
        guest = self.still_guest()
        self.overwrite(guest, self.find_page(guest, zero=False), bytes(4096))
        self.assertEqual(guest.check_pages()["new"], "1", guest.transcript())

    def test_sees_stale_pages(self):
        guest = self.still_guest()
        size = 24 * MIB
        with open(guest.ram_file(), "rb") as ram:
            old = os.pread(ram.fileno(), size, 0)
        first = page_of("first_gpa", guest.wait_line("READY"))
        guest.ask("g", "GOING")
        guest.more_beats()
        guest.ask("p", "PAUSED")
        self.assertEqual(guest.check_pages()["wrong"], "0")
        hot = next(
            at for at in range(first, size, 4096) if old[at:at + 4] != b"\0\0\0\0"
        )
        self.overwrite(guest, hot, old[hot:hot + 4096])
        self.assertEqual(guest.check_pages()["new"], "1", guest.transcript())

    def test_sees_a_stale_table(self):
        guest = self.still_guest()
        ready = guest.wait_line("READY")
        table, first = page_of("table_gpa", ready), page_of("first_gpa", ready)

        def read_table():
            with open(guest.ram_file(), "rb") as ram:
                return os.pread(ram.fileno(), first - table, table)

        old = read_table()
        guest.ask("g", "GOING")
        guest.more_beats()
        guest.ask("p", "PAUSED")
        new = read_table()
        at = next(at for at in range(0, first - table, 4096) if old[at:at + 4096] != new[at:at + 4096])
        self.overwrite(guest, table + at, old[at:at + 4096])
        self.assertNotEqual(guest.check_pages()["new"], "0", guest.transcript())

    def test_touch_times_every_data_page(self):
        guest = self.still_guest()
        touch = guest.ask("t", "TOUCH")
        self.assertEqual(int(touch["pages"]), page_of("data", guest.wait_line("READY")))
        self.assertEqual(sum(map(int, touch["log2_us"].split(","))), int(touch["pages"]))
        self.assertEqual(touch["wrong"], "0")
        self.assertLessEqual(float(touch["p50_us"]), float(touch["p99_us"]))

    def test_idle_guest_only_beats(self):
        guest = self.qemu("guest", ram=(Ram(64 * MIB),), guest="idle=1 hb=20").ready()
        last = guest.more_beats(5)
        self.assertEqual((last.writes, last.checked), (0, 0))

    def test_does_not_touch_what_stays_zero(self):
        """Most zero pages are holes in the RAM file until the guest checks them."""
        guest = self.qemu("guest", ram=(Ram(256 * MIB),), guest="data=16M idle=1").ready()
        self.assertLess(os.stat(guest.ram_file()).st_blocks * 512, 64 * MIB)


class Harness(Case):
    def move_by_hand(self, accel, before_continue=None):
        """A move as memferry makes it: device state by QEMU's own migration, RAM by copying the file."""
        source, destination = self.pair(accel=accel, ram=(Ram(64 * MIB),), guest="hot=8M hb=50")
        capabilities = [{"capability": "x-ignore-shared", "state": True}]
        pause = {"capability": "pause-before-switchover", "state": True}
        path = f"unix:{self.directory}/stream"
        incoming, outgoing = destination.monitor(), source.monitor()
        incoming("migrate-set-capabilities", capabilities=capabilities)
        incoming("stop")
        incoming("migrate-incoming", uri=path)
        outgoing("migrate-set-capabilities", capabilities=capabilities + [pause])
        outgoing("migrate", uri=path)
        while outgoing("query-migrate")["status"] != "pre-switchover":
            pass
        shutil.copyfile(source.ram_file(), destination.ram_file())
        if before_continue:
            before_continue(destination)
        outgoing("migrate-continue", state="pre-switchover")
        while incoming("query-status")["status"] != "paused":
            pass
        incoming("cont")
        return source, destination

    def test_a_right_move_is_found_right(self):
        for accel in accelerators():
            with self.subTest(accel):
                self.assert_guest_moved(*self.move_by_hand(accel))

    def test_a_lost_page_is_found(self):
        def lose(destination):
            with open(destination.ram_file(), "r+b") as ram:
                os.pwrite(ram.fileno(), bytes(MIB), 40 * MIB)

        source, destination = self.move_by_hand("tcg", lose)
        with self.assertRaises(AssertionError):
            self.assert_guest_moved(source, destination)

    def test_a_source_that_runs_on_is_found(self):
        source, destination = self.move_by_hand("tcg")
        source.monitor()("cont")
        source.more_beats(1)
        with self.assertRaises(AssertionError):
            self.assert_guest_moved(source, destination)


if __name__ == "__main__":
    main()
