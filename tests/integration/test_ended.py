#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Processes that go on with a move (--resume) when the guest's QEMU has ended meanwhile, too: what can still be said is."""
import json
import os

from harness import main, wire
from harness.resumed import Resumed

FAILED = 1
UNFINISHED = 4
# A pid namespace of its own, as a container has.
ELSEWHERE = "unshare", "--pid", "--fork", "--mount-proc"


class Ended(Resumed):
    def assert_empty(self, *runs):
        for run in runs or (self.source_run, self.destination_run):
            self.tell("status", run=run)
            self.assertEqual([p.name for p in run.iterdir()], [])

    def assert_ends(self, process, status, outcome, says):
        self.assertEqual(process.wait(), status, process.transcript())
        self.assertEqual(process.report["outcome"], outcome)
        self.assertRegex(self.assert_one_sentence(process), says)

    def change_record(self, was, to):
        """What is on disk when a process dies at a moment that no test can meet."""
        record = self.destination_run / f"{self.session}.destination.record"
        text = record.read_text()
        self.assertEqual(json.loads(text)["state"], was)
        record.write_text(text.replace(f'"{was}"', f'"{to}"'))

    # At the source

    def test_source_ends_after_the_guest_came_whole(self):
        self.start_held(wire.DONE, "--mode", "precopy")
        self.assertEqual(self.receiver.wait(), 0, self.receiver.transcript())
        self.source.kill()
        self.resume_receive()
        self.resume_send()
        self.assert_whole()

    def test_source_ends_and_the_destination_gave_up(self):
        """Its QEMU has been ended, too: what is left there is the record, and the answer."""
        self.start_held(wire.COMMIT, "--mode", "precopy")
        self.assertEqual(self.receiver.wait(), FAILED, self.receiver.transcript())
        self.destination.wait()
        self.source.kill()
        self.resume_receive(within=ELSEWHERE)  # it takes no guest to say so
        self.resume_send()
        self.assert_ends(self.sender, FAILED, "aborted", "has ended here meanwhile: it runs nowhere")
        self.assert_ends(self.receiver, FAILED, "aborted", "was not committed here")
        self.assert_empty()

    def test_source_ends_and_nobody_answers(self):
        self.start_held(wire.COMMIT, "--mode", "precopy")
        self.assertEqual(self.receiver.wait(), FAILED, self.receiver.transcript())
        self.source.kill()
        self.resume_send("--recover-timeout", "1500")
        self.assert_ends(self.sender, UNFINISHED, "in-doubt", f"has ended here.*--resume {self.session} asks again")
        # Its monitor is not there, but its process is: that is no end.
        self.resume_receive()
        self.resume_send()
        self.assertEqual(self.sender.wait(), FAILED, self.sender.transcript())
        self.assertEqual(self.receiver.wait(), FAILED, self.receiver.transcript())
        self.assert_empty()

    def test_source_ends_while_pages_are_missing(self):
        """Nobody survives that; both are told."""
        self.start()
        self.end(self.sender)
        self.source.kill()
        self.resume_send()
        self.assert_ends(self.sender, UNFINISHED, "paused", "neither host has the whole guest")
        self.assert_ends(self.receiver, UNFINISHED, "paused", "neither host has the whole guest")
        self.assertEqual(self.destination.userfaultfds(), 1)
        self.assertNotIn("WRONG", self.destination.output)
        self.destination.kill()
        for run in self.source_run, self.destination_run:
            self.tell("forget", self.session, run=run)
        self.assert_empty()

    def test_source_ends_while_send_has_its_memory(self):
        """A process that has mapped it keeps it."""
        self.start()
        self.source.kill()
        self.assert_whole()

    def test_a_monitor_that_cannot_be_reached_is_no_end(self):
        self.start()
        self.end(self.sender)
        self.source.qmp_path.rename(self.source.qmp_path.with_suffix(".moved"))
        self.resume_send()
        self.assertEqual(self.sender.wait(), FAILED, self.sender.transcript())
        self.assertIn(str(self.source.qmp_path), self.assert_one_sentence(self.sender))
        self.source.qmp_path.with_suffix(".moved").rename(self.source.qmp_path)
        self.resume_send()
        self.assert_whole()

    def test_a_number_of_another_namespace_is_no_end(self):
        """Where the number of the guest's process means nothing, nobody takes it for ended."""
        self.start()
        self.end(self.sender)
        self.source.qmp_path.rename(self.source.qmp_path.with_suffix(".moved"))
        elsewhere = self.memferry("send", "send", self.address, "--guest", f"qemu:{self.source.qmp_path}", "--insecure",
                                  "--resume", self.session, within=ELSEWHERE)
        self.assertEqual(elsewhere.wait(), FAILED, elsewhere.transcript())
        sentence = self.assert_one_sentence(elsewhere)
        self.assertIn(str(self.source.qmp_path), sentence)
        self.assertIn(f"(pid {self.source.pid}, in another namespace) may live", sentence)
        self.source.qmp_path.with_suffix(".moved").rename(self.source.qmp_path)
        self.resume_send()
        self.assert_whole()

    # At the destination

    def test_destination_ends_after_it_ran_the_whole_guest(self):
        self.start_held(wire.DONE, "--mode", "precopy")
        self.assertEqual(self.receiver.wait(), 0, self.receiver.transcript())
        self.change_record("complete", "running")
        self.destination.kill()
        self.resume_receive()
        self.resume_send()
        self.assertEqual((self.sender.wait(), self.receiver.wait()), (0, 0), self.receiver.transcript())
        self.source.wait()
        self.assert_empty()

    def test_destination_ends_while_pages_are_missing(self):
        self.start()
        self.end(self.receiver)
        self.destination.kill()
        self.resume_receive()
        self.assert_ends(self.receiver, UNFINISHED, "paused", f"has ended here.*forget {self.session}")
        self.tell("forget", self.session, run=self.destination_run)
        self.assert_empty(self.destination_run)

    def test_killed_between_the_last_page_and_letting_go(self):
        """The record says complete, and the guest's touches of what came still wait in the userfaultfd."""
        self.start()
        os.mkfifo(self.destination_run / f"{self.session}.destination.record.new")  # holds up the next record
        self.receiver.wait_until("all pages", lambda: any(
            e["event"] == "progress" and e["phase"] == "postcopy" and 0 < e["round_bytes"] <= e["done_bytes"]
            for e in self.receiver.events))
        self.end(self.receiver)
        self.change_record("running", "complete")
        self.assertEqual(self.destination.userfaultfds(), 1)
        command = self.memferry("forget", "forget", self.session, run=self.destination_run)
        self.assertEqual(command.wait(), 3, command.transcript())
        self.assertIn("may wait in pages that came", self.assert_one_sentence(command))
        (self.destination_run / f"{self.session}.destination.record.new").unlink()
        self.resume_receive()
        self.assert_whole()
        self.assertEqual(self.destination.userfaultfds(), 0)


if __name__ == "__main__":
    main()
