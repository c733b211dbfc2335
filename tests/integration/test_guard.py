#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""kill -9 of `memferry send`: before the commit its guardian brings the guest back, after it the guest stays where it is."""
import json
import os
import signal
import time
from pathlib import Path

from harness import Case, Ram, Relay, await_gone, main, timeout, wire
from harness.qemu import MIB

GUEST = {"ram": (Ram(64 * MIB),), "guest": "hot=8M rate=32M data=24M"}
SLOW = "--mode", "precopy", "--max-bandwidth", "8M"


class Guard(Case):
    def setUp(self):
        super().setUp()
        self.guardian = None

    def start(self, *args, kind=0, **options):
        self.source, self.destination = self.pair(**{**GUEST, **options})
        self.before = self.source.settings()
        self.receiver = self.receive(self.destination, "--peer-timeout", "3000")
        self.relay = self.keep_relay(Relay(self.receiver.address(), kind))
        self.sender = self.send(self.relay.address, self.source, *args)

    def keep_relay(self, relay):
        self.processes.append(relay.process)
        return relay

    def kill_sender(self):
        self.guardian = self.sender.guardian()
        self.sender.signal(signal.SIGKILL)
        self.assertEqual(self.sender.wait(), -signal.SIGKILL)

    def assert_back(self, status="running"):
        await_gone(self.guardian)
        self.assertEqual(self.source.status(), status)
        self.assertEqual(self.source.userfaultfds(), 0)
        self.assertEqual(self.source.settings(), self.before)
        self.assertEqual(list(self.source_run.iterdir()), [])
        if status == "running":
            self.assert_unharmed(self.source)

    def assert_second_move(self):
        destination = self.qemu("second", incoming=True, **GUEST)
        destination.monitor()
        receive = self.receive(destination)
        self.assert_moved(self.source, destination, self.send(receive.address(), self.source, "--verify", "full"), receive)

    def finish(self):
        """Back, and the other host gave up."""
        self.assert_back()
        self.relay.kill()
        self.assertNotEqual(self.receiver.wait(), 0)
        self.assertEqual(self.destination.beats, [], "the guest ran at the destination, too")

    def test_in_precopy_with_write_protection(self):
        """Whoever writes a protected page waits for the tracker, which is gone."""
        self.start(*SLOW, "--tracker", "writeprotect")
        self.sender.event("phase", phase="precopy")
        self.kill_sender()
        self.finish()
        self.assert_second_move()

    def test_while_pausing(self):
        """Wherever between `migrate` and the state's last byte."""
        for _ in range(2):
            self.start("--mode", "cold")
            self.source.monitor().wait_event("STOP")
            self.kill_sender()
            self.assert_back()

    def test_paused_and_all_sent(self):
        self.start("--mode", "precopy", kind=wire.READY)
        self.relay.wait_met()
        self.assertEqual(self.source.status(), "postmigrate")
        self.kill_sender()
        self.finish()
        self.assert_second_move()

    def test_on_the_way_to_the_record(self):
        """It hangs in opening the draft of its record, which becomes one when it is renamed."""
        self.start(*SLOW)
        os.mkfifo(self.source_run / f"{self.session_name()}.source.record.new")
        self.tell("cutover")
        self.sender.event("phase", phase="handoff")
        self.kill_sender()
        self.finish()

    def session_name(self):
        """As soon as it answers."""
        deadline = time.monotonic() + timeout()
        while True:
            for path in self.source_run.glob("source-*.sock"):
                status = self.memferry("status", "status")
                status.wait()
                for event in status.events:
                    if event.get("session"):
                        return event["session"]
            self.assertLess(time.monotonic(), deadline)

    def test_after_the_record_it_stays_paused(self):
        """COMMIT is on its way, and nobody here knows whether it arrives."""
        self.start("--mode", "precopy", kind=wire.COMMIT)
        self.relay.wait_met()
        self.kill_sender()
        await_gone(self.guardian)
        self.assertEqual(self.source.status(), "postmigrate")
        records = [p for p in self.source_run.iterdir() if p.name.endswith(".source.record")]
        self.assertEqual(len(records), 1)
        self.assertEqual(json.loads(records[0].read_text())["state"], "committed")

    def test_after_the_move(self):
        """Killed in post-copy's end or not, a guest that was handed over is left alone."""
        self.start("--mode", "postcopy", kind=wire.DONE)
        self.relay.wait_met()
        self.kill_sender()
        await_gone(self.guardian)
        self.assertNotEqual(self.source.status(), "running")
        self.destination.more_beats()

    def test_a_guest_that_its_user_paused_stays_paused(self):
        self.source, self.destination = self.pair(**GUEST)
        self.source.monitor()("stop")
        self.before = self.source.settings()
        self.receiver = self.receive(self.destination, "--peer-timeout", "3000")
        self.relay = self.keep_relay(Relay(self.receiver.address(), wire.READY))
        self.sender = self.send(self.relay.address, self.source, "--mode", "precopy")
        self.relay.wait_met()
        self.kill_sender()
        await_gone(self.guardian)
        self.assertIn(self.source.status(), ("paused", "postmigrate"))
        self.assertEqual(self.source.settings(), self.before)
        self.source.monitor()("cont")
        self.assert_unharmed(self.source)

    def test_signals_of_the_terminal(self):
        """Ctrl-C reaches the whole group: send cancels, its guardian is none the worse, and ends with it."""
        self.start(*SLOW)
        self.sender.event("phase", phase="precopy")
        guardian = self.sender.guardian()
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT:
            os.kill(guardian, number)
        self.assertTrue(Path(f"/proc/{guardian}").exists())
        os.killpg(self.sender.pid, signal.SIGINT)
        self.assert_aborted(self.sender)
        self.assertFalse(Path(f"/proc/{guardian}").exists(), "send does not end before its guardian")
        self.guardian = guardian
        self.assert_back()

    def test_ends_with_a_move_that_works(self):
        self.start("--mode", "precopy", "--verify", "full")
        self.sender.event("phase", phase="precopy")
        guardian = self.sender.guardian()
        self.assert_moved(self.source, self.destination, self.sender, self.receiver)
        self.assertFalse(Path(f"/proc/{guardian}").exists())

    def test_killed_itself(self):
        """Then it is as if there were none: the move works."""
        self.start("--mode", "precopy", "--max-bandwidth", "24M", "--verify", "full")
        self.sender.event("phase", phase="precopy")
        os.kill(self.sender.guardian(), signal.SIGKILL)
        self.tell("cutover")
        self.assert_moved(self.source, self.destination, self.sender, self.receiver)


if __name__ == "__main__":
    main()
