#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
After the commit a crash of memferry is no crash of the guest: either process, or both, killed again and again at random
moments of post-copy, and a link that is cut; --resume, or the processes by themselves, go on, and the guest ends whole.

MEMFERRY_TEST_KILLS: how many kills in all (8); MEMFERRY_TEST_SEED: of the moments, said at the start.
"""
import json
import os
import random
import signal
import time
from pathlib import Path

from harness import Memferry, await_gone, main, timeout, wire
from harness.hosts import TwoHosts
from harness.resumed import ALERT, GUEST, SLOW, Resumed

KILLS = int(os.environ.get("MEMFERRY_TEST_KILLS", "8"))
SEED = int(os.environ.get("MEMFERRY_TEST_SEED", random.randrange(1 << 32)))
KILLS_A_MOVE = 4
WHOM = ("send",), ("receive",), ("send", "receive"), ("receive", "send")


class Resume(Resumed):
    def kill_at_random(self, dice, kills):
        self.start()
        done = 0
        while done < kills:
            time.sleep(dice.uniform(0, 0.8))
            whom = dice.choice(WHOM)
            for name in whom:
                self.end(self.sender if name == "send" else self.receiver)
            if not self.is_unfinished():
                break
            for name in dice.sample(whom, len(whom)):
                (self.resume_send if name == "send" else self.resume_receive)()
            done += 1
        self.finish()
        return done

    def is_unfinished(self):
        """Both sides have something to go on with: a side that was killed at the very end may have had none."""
        return all(list(run.glob("*.record")) for run in (self.source_run, self.destination_run))

    def finish(self):
        """The end of a move whose last kill may have come when one side had just ended in order."""
        if self.sender.wait() == 0 and self.receiver.wait() == 0:
            self.assert_whole()
            return
        self.assert_guest_moved(self.source, self.destination)

    def test_killed_at_random_moments(self):
        print(f"MEMFERRY_TEST_SEED={SEED}", flush=True)
        dice = random.Random(SEED)
        done = 0
        while done < KILLS:
            done += self.kill_at_random(dice, min(KILLS_A_MOVE, KILLS - done))
            self.kill_all()
        print(f"{done} kills", flush=True)

    def test_connected_anew_when_told(self):
        self.start()
        self.tell("recover")
        self.sender.notice("connected to")
        self.tell("recover", run=self.destination_run)
        self.assert_whole()
        self.assertGreaterEqual(self.sender.report["recoveries"], 2)

    def test_paused_says_how_to_go_on(self):
        self.start("--recover-timeout", "1500")
        self.end(self.receiver)
        self.assertEqual(self.sender.wait(), 4, self.sender.transcript())
        self.assertEqual(self.sender.report["outcome"], "paused")
        self.assertIn(f"--resume {self.session}", self.assert_one_sentence(self.sender))
        self.resume_receive()
        self.resume_send()
        self.assert_whole()

    def test_a_search_can_be_ended(self):
        self.start()
        self.end(self.receiver)
        self.sender.event("phase", phase="recover")
        self.tell("cancel")
        self.assertEqual(self.sender.wait(), 4, self.sender.transcript())
        self.resume_send()
        self.resume_receive()
        self.assert_whole()

    def test_two_cannot_go_on_with_one_move(self):
        """The first one's lock tells, where QEMU's monitor, which serves one client at a time, has not told before."""
        self.start()
        self.end(self.receiver)  # so that the first one cannot end meanwhile
        self.sender.event("phase", phase="recover")
        second = self.send(self.address, self.source, "--resume", self.session)
        self.assertNotEqual(second.wait(), 0, second.transcript())
        self.assertRegex(self.assert_one_sentence(second), "goes on already|another client is connected")
        self.resume_receive()
        self.assert_whole()

    def test_nothing_to_go_on_with(self):
        source = self.qemu("source", **GUEST).ready()
        send = self.send("127.0.0.1:1", source, "--resume", "0123456789abcdef")
        self.assertEqual(send.wait(), 2, send.transcript())
        self.assertIn("0123456789abcdef", self.assert_one_sentence(send))
        self.assert_unharmed(source)

    def test_source_is_not_resumed_while_in_doubt(self):
        """COMMIT was said and the answer lost with the process: who asks again finds the guest at the destination."""
        self.start()
        self.end(self.sender)
        self.assertEqual(self.source.status(), "postmigrate")
        self.resume_send()
        self.assert_whole()

    def test_destination_killed_before_it_was_the_owner(self):
        """Its record says that it was ready, so the source may have committed: it must not run the guest, and says so."""
        self.source, self.destination = self.pair(**GUEST)
        self.receiver = self.receive(self.destination, *ALERT)
        self.address = self.receiver.address()
        self.sender = self.send(self.address, self.source, "--mode", "precopy", "--max-bandwidth", "24M", *ALERT)
        self.sender.event("phase", phase="precopy")
        self.session = self.tell_session()
        # Its source stands still when the destination is ready, and goes on after it has died.
        self.receiver.event("phase", phase="switchover")
        self.sender.signal(signal.SIGSTOP)
        record = self.destination_run / f"{self.session}.destination.record"
        deadline = time.monotonic() + timeout(10)
        while not record.exists() and time.monotonic() < deadline and self.receiver.is_alive():
            time.sleep(0.001)
        was_ready = record.exists() and json.loads(record.read_text())["state"] == "ready"
        self.end(self.receiver)
        self.sender.signal(signal.SIGCONT)
        if was_ready:
            receive = self.resume_receive()
            receive.address()
        self.assert_aborted(self.sender)
        self.assert_unharmed(self.source)
        self.assertEqual(self.destination.beats, [], "the guest ran at the destination, too")
        if was_ready:
            self.assertEqual(receive.wait(), 1, receive.transcript())
            self.assertEqual(receive.report["outcome"], "aborted")

    def test_another_guest_than_the_one_that_is_ready(self):
        """What became of that one nobody has looked at: the source is not told that it may run its own."""
        self.start_by_relay(wire.COMMIT, "wait", "--mode", "precopy")
        self.end(self.receiver)
        guardian = self.sender.guardian()
        self.end(self.sender)
        await_gone(guardian)
        right, self.destination = self.destination, self.qemu("other", incoming=True, **GUEST)
        self.destination.monitor()
        self.assertEqual(self.resume_receive().wait(), 4, self.receiver.transcript())
        record = self.destination_run / f"{self.session}.destination.record"
        self.assertEqual(json.loads(record.read_text())["state"], "ready")
        self.assertEqual(self.source.status(), "postmigrate")
        self.destination = right
        self.resume_receive()
        self.resume_send()
        self.assert_aborted(self.sender)
        self.assert_unharmed(self.source)

    def test_another_guest_than_the_one_that_was_moved(self):
        """The one that is left at the source must not be forgotten: it must not run again."""
        self.start_held(wire.DONE, "--mode", "precopy")
        self.assertEqual(self.receiver.wait(), 0, self.receiver.transcript())
        right, self.source = self.source, self.qemu("other", **GUEST).ready()
        self.resume_receive()
        self.assertEqual(self.resume_send().wait(), 4, self.sender.transcript())
        self.assertTrue(list(self.source_run.glob("*.source.record")))
        self.assert_unharmed(self.source)
        self.source = right
        self.receiver.wait()
        self.resume_receive()
        self.resume_send()
        self.assert_whole()

    def kill_owner(self, paused):
        """Of the destination, when its record says that the guest is its own, and QEMU has not been told to run it."""
        self.start_by_relay(wire.COMMIT, "wait", "--mode", "precopy", paused=paused)
        self.destination.signal(signal.SIGSTOP)  # it is asked for its state first
        self.relay.go_on()
        record = self.destination_run / f"{self.session}.destination.record"
        deadline = time.monotonic() + timeout(10)
        while json.loads(record.read_text())["state"] != "owner":
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.001)
        self.end(self.receiver)
        self.destination.signal(signal.SIGCONT)
        self.assertEqual(self.destination.status(), "paused")
        self.assertEqual(json.loads(record.read_text())["ran"], not paused)
        self.resume_receive()

    def test_owner_killed_before_the_guest_ran(self):
        self.kill_owner(paused=False)
        self.assert_whole()

    def test_owner_killed_before_a_guest_that_its_user_had_paused(self):
        self.kill_owner(paused=True)
        self.assertEqual((self.sender.wait(), self.receiver.wait()), (0, 0),
                         self.sender.transcript() + self.receiver.transcript())
        self.assertEqual(self.destination.status(), "paused")
        self.destination.monitor()("cont")
        self.assert_guest_moved(self.source, self.destination)

    def test_a_guest_that_its_user_had_paused_comes_back_paused(self):
        """Nobody at the source but the record knows that it was."""
        self.start_held(wire.COMMIT, "--mode", "precopy", paused=True)
        self.assertEqual(self.receiver.wait(), 1, self.receiver.transcript())
        self.resume_receive()
        self.resume_send()
        self.assert_aborted(self.sender)
        self.assertIn(self.source.status(), ("paused", "postmigrate"))
        self.source.monitor()("cont")
        self.assert_unharmed(self.source)

    def test_cut_link(self):
        """Longer than both sides take for a lost peer; nobody has to do anything."""
        hosts = TwoHosts()
        self.addCleanup(hosts.kill)
        self.source, self.destination = self.pair(**GUEST)
        self.receiver = self.keep(Memferry(
            "receive", self.destination_run, "receive", "--listen", f"{hosts.destination}:0", "--guest",
            f"qemu:{self.destination.qmp_path}", "--insecure", *SLOW, *ALERT, within=hosts.at_destination()))
        self.sender = self.keep(Memferry(
            "send", self.source_run, "send", self.receiver.address(), "--guest", f"qemu:{self.source.qmp_path}",
            "--insecure", "--mode", "postcopy", *ALERT, within=hosts.at_source()))
        self.sender.event("phase", phase="postcopy")
        hosts.cut()
        self.sender.event("phase", phase="recover")
        self.receiver.event("phase", phase="recover")
        hosts.mend()
        self.assert_whole()
        self.assertGreaterEqual(self.receiver.report["recoveries"], 1)


if __name__ == "__main__":
    main()
