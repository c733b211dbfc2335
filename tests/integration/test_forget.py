#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""What moves leave whose process has ended: status says what it means, forget removes it, and refuses where it is needed."""
import json
import os

from harness import main, wire
from harness.resumed import Resumed

REFUSED = 3
USAGE = 2


class Forget(Resumed):
    slow = "--max-bandwidth", "1M"  # pages are to be missing as long as there are questions

    def leftovers(self, run):
        status = self.tell("status", run=run)
        return [e for e in status.events if e["event"] == "leftover"]

    def leftover(self, run, **fields):
        """The only one; what it says of itself."""
        left = self.leftovers(run)
        self.assertEqual(len(left), 1, left)
        for key, value in {"session": self.session, **fields}.items():
            self.assertEqual(left[0][key], value, left)
        return left[0]["detail"]

    def forget(self, run, *args):
        command = self.tell("forget", self.session, *args, run=run)
        self.assertEqual([e["event"] for e in command.events], ["forgotten"])
        self.assertEqual(list(run.iterdir()), [])
        self.assertEqual(self.leftovers(run), [])

    def files(self, run):
        """Sockets of who was killed go whenever somebody asks."""
        return sorted(p.name for p in run.iterdir() if p.suffix != ".sock")

    def assert_refused(self, run, *args, says, status=REFUSED, session=None):
        before = self.files(run)
        command = self.memferry("forget", "forget", session or self.session, *args, run=run)
        self.assertEqual(command.wait(), status, command.transcript())
        self.assertRegex(self.assert_one_sentence(command), says)
        self.assertEqual(self.files(run), before)

    def test_an_answer_that_nobody_came_to_hear(self):
        """Commit got lost with the process that said it: each side is left with its record."""
        self.start_held(wire.COMMIT, "--mode", "precopy")
        self.assertEqual(self.receiver.wait(), 1, self.receiver.transcript())
        detail = self.leftover(self.destination_run, side="destination", record="aborted", needed=False)
        self.assertIn(f"receive ... --resume {self.session}", detail)
        detail = self.leftover(self.source_run, side="source", record="committed", needed=True,
                               guest_pid=self.source.pid, guest_lives=True)
        self.assertIn(f"send ... --resume {self.session}", detail)
        self.assert_refused(self.source_run, says=f"send ... --resume {self.session}.*--force")
        record = json.loads((self.source_run / f"{self.session}.source.record").read_text())
        self.assertEqual(record["pid"], self.source.pid)
        self.assertEqual(record["pid_ns"], os.stat(f"/proc/{self.source.pid}/ns/pid").st_ino)
        self.assertGreater(record["started"], 0)
        self.assertEqual(self.source.status(), "postmigrate")
        self.forget(self.destination_run)
        # There is nothing to protect any more.
        self.source.kill()
        self.leftover(self.source_run, guest_lives=False, needed=False)
        self.forget(self.source_run)

    def test_a_guest_that_came_whole(self):
        self.start_held(wire.DONE, "--mode", "precopy")
        self.assertEqual(self.receiver.wait(), 0, self.receiver.transcript())
        self.leftover(self.destination_run, record="complete", needed=False)
        self.forget(self.destination_run)
        self.assertEqual(self.destination.userfaultfds(), 0)
        self.assert_refused(self.source_run, says="--force")
        self.forget(self.source_run, "--force")
        self.assertEqual(self.source.status(), "postmigrate")
        self.assert_guest_moved(self.source, self.destination)

    def test_while_pages_are_missing(self):
        self.start()
        for run in self.source_run, self.destination_run:
            self.assert_refused(run, "--force", says="goes on, in process")
            self.assertEqual(self.leftovers(run), [])
        # The lock tells, where no socket does.
        next(self.destination_run.glob("destination-*.sock")).unlink()
        self.assert_refused(self.destination_run, "--force", says="goes on, in a process of this host")
        self.end(self.sender)
        self.end(self.receiver)
        self.assert_refused(self.source_run, says=f"send ... --resume {self.session}")
        self.assert_refused(self.destination_run, says=f"waits for pages.*receive ... --resume {self.session}")
        # By force the files go; the guest goes on waiting, and finds nothing wrong.
        self.forget(self.destination_run, "--force")
        self.assertEqual(self.destination.userfaultfds(), 1)
        self.assertNotIn("WRONG", self.destination.output)
        self.forget(self.source_run, "--force")
        self.assertEqual(self.source.status(), "postmigrate")
        self.assert_refused(self.source_run, says="nothing is left", status=USAGE)

    def test_names(self):
        self.source_run.mkdir(mode=0o700)
        for name in "0123456789abcdef", "0123456789abcde0":
            (self.source_run / f"{name}.source.lock").touch()
        self.assert_refused(self.source_run, says="more than one", status=USAGE, session="0123")
        self.assert_refused(self.source_run, says="nothing is left", status=USAGE, session="4123")
        self.assertEqual([e["record"] for e in self.leftovers(self.source_run)], [None, None])
        status = self.memferry("status", "status", "0123456789abcdef", json_output=False)
        self.assertEqual(status.wait(), 0, status.transcript())
        self.assertIn("memferry forget 0123456789abcdef", status.output)
        self.assertNotIn("0123456789abcde0", status.output)
        self.tell("forget", "0123456789abcdef")
        self.tell("forget", "0123")
        self.assertEqual(list(self.source_run.iterdir()), [])


if __name__ == "__main__":
    main()
