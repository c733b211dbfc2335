# SPDX-License-Identifier: BSD-2-Clause
"""Moves in post-copy whose processes are killed, and replaced by others."""
import signal

from .case import Case
from .process import await_gone
from .qemu import MIB, Ram
from .relay import Relay

# What is missing takes ten seconds and more: the guest's data at the destination's limit.
GUEST = {"ram": (Ram(96 * MIB),), "guest": "hot=8M rate=16M data=64M"}
SLOW = "--max-bandwidth", "6M"
ALERT = "--peer-timeout", "2000", "--connect-timeout", "2000"


class Resumed(Case):
    """What a case needs to end processes of a move and to put others in their place."""

    guest, slow, alert = GUEST, SLOW, ALERT

    def start(self, *args):
        """A move in post-copy whose guest runs at the destination."""
        self.source, self.destination = self.pair(**self.guest)
        self.receiver = self.receive(self.destination, *self.slow, *self.alert)
        self.address = self.receiver.address()
        self.sender = self.send(self.address, self.source, "--mode", "postcopy", *self.alert, *args)
        self.receiver.event("running")
        self.sender.event("phase", phase="postcopy")
        self.session = self.tell_session()

    def tell_session(self):
        status = self.memferry("status", "status", run=self.destination_run)
        self.assertEqual(status.wait(), 0)
        return next(e["session"] for e in status.events if e["event"] == "status")

    def resume_send(self, *args):
        self.sender = self.send(self.address, self.source, *self.alert, "--resume", self.session, *args)
        return self.sender

    def resume_receive(self, *args, within=()):
        self.receiver = self.memferry("receive", "receive", "--listen", self.address, "--guest",
                                      f"qemu:{self.destination.qmp_path}", "--insecure", *self.slow, *self.alert, "--resume",
                                      self.session, *args, run=self.destination_run, within=within)
        return self.receiver

    def end(self, process):
        process.signal(signal.SIGKILL)
        process.wait()

    def assert_whole(self):
        self.assertEqual((self.sender.wait(), self.receiver.wait()), (0, 0),
                         self.sender.transcript() + self.receiver.transcript())
        for side in self.sender, self.receiver:
            self.assertEqual(side.report["outcome"], "completed", side.transcript())
        self.assert_guest_moved(self.source, self.destination)
        for run in self.source_run, self.destination_run:
            self.tell("status", run=run)  # takes away the sockets of who was killed
            self.assertEqual([p.name for p in run.iterdir()], [], "left in the run directory")

    def start_by_relay(self, kind, action, *args, paused=False):
        """A move whose control channel stops at the first message of that kind; paused: its user has paused the guest."""
        self.source, self.destination = self.pair(**self.guest)
        if paused:
            self.source.monitor()("stop")
        self.receiver = self.receive(self.destination, *self.alert)
        self.address = self.receiver.address()
        self.relay = Relay(self.address, kind, action)
        self.processes.append(self.relay.process)
        self.sender = self.send(self.relay.address, self.source, *self.alert, *args)
        self.relay.wait_met()
        self.session = self.tell_session()

    def start_held(self, kind, *args, paused=False):
        """The same, and its sender is killed then."""
        self.start_by_relay(kind, "hold", *args, paused=paused)
        guardian = self.sender.guardian()
        self.end(self.sender)
        await_gone(guardian)
