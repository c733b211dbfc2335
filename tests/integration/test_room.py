#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Guest RAM on a file system that has no room for it: found before the move, or when something else fills it meanwhile.  Then a
system call that meets a hole fails, which costs a lane, and any other touch of one is a SIGBUS: what is said is the same.
"""
import os
import signal
import subprocess

from harness import Ram, main
from harness.case import make_directory
from harness.qemu import MIB
from harness.resumed import ALERT, Resumed

FAILED, REFUSED, UNFINISHED = 1, 3, 4
SIZE = 96 * MIB
GUEST = "hot=8M rate=16M data=64M"


class Room(Resumed):
    def setUp(self):
        super().setUp()
        self.mount = make_directory("/tmp")
        self.addCleanup(subprocess.run, ["umount", "-l", self.mount], check=True)

    def pair_on(self, room):
        """The destination's RAM is a file on a tmpfs with so much room."""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room},mode=700", "tmpfs", self.mount], check=True)
        self.destination = self.qemu("destination", incoming=True, guest=GUEST, ram=(Ram(SIZE, mount=str(self.mount)),))
        self.source = self.qemu("source", guest=GUEST, ram=(Ram(SIZE),))
        self.destination.monitor()
        self.source.ready()

    def resize(self, room):
        return subprocess.run(["mount", "-o", f"remount,size={room}", self.mount]).returncode == 0

    def leave(self, room):
        """As if something else took all but this; refused where the move has taken it meanwhile."""

        def take():
            info = os.statvfs(self.mount)
            return self.resize((info.f_blocks - info.f_bfree) * info.f_frsize + room)

        self.receiver.wait_until("the room is taken", take)

    def move(self, *args, slow=Resumed.slow):
        self.receiver = self.receive(self.destination, *slow, *ALERT, "--recover-timeout", "1500")
        self.address = self.receiver.address()
        self.sender = self.send(self.address, self.source, *slow, *ALERT, *args)

    def test_too_little_is_refused(self):
        self.pair_on(SIZE // 2)
        for verb in "check", "send":
            receive = self.receive(self.destination)
            command = self.memferry(verb, verb, receive.address(), "--guest", f"qemu:{self.source.qmp_path}",
                                    "--insecure")
            self.assertEqual(command.wait(), REFUSED, command.transcript())
            self.assertRegex(self.assert_one_sentence(command), r"region ram0 is on a file system .* has 48.00 MiB")
            receive.signal(signal.SIGINT)
            self.assertNotEqual(receive.wait(), 0, receive.transcript())
        self.assert_unharmed(self.source)

    def fill_in_precopy(self, slow):
        self.pair_on(2 * SIZE)
        self.move("--mode", "precopy", slow=slow)
        self.sender.event("phase", phase="prepare")
        self.leave(4 * MIB)
        self.assertEqual(self.sender.wait(), FAILED, self.sender.transcript())
        self.assertEqual(self.receiver.wait(), FAILED, self.receiver.transcript())
        self.assertRegex(self.assert_one_sentence(self.receiver), "no room")
        self.assert_unharmed(self.source)

    def test_filled_in_precopy(self):
        self.fill_in_precopy(("--max-bandwidth", "64M"))

    def test_filled_in_slow_precopy(self):
        """In operations of a few pages."""
        self.fill_in_precopy(self.slow)

    def test_filled_in_postcopy(self):
        self.pair_on(2 * SIZE)
        self.move("--mode", "postcopy")
        self.receiver.event("running")
        self.session = self.tell_session()
        self.leave(4 * MIB)
        self.assertEqual(self.receiver.wait(), UNFINISHED, self.receiver.transcript())
        self.assertRegex(self.assert_one_sentence(self.receiver), f"no room.*--resume {self.session}")
        self.assertTrue(self.resize(2 * SIZE))
        self.resume_receive()
        self.assert_whole()


if __name__ == "__main__":
    main()
