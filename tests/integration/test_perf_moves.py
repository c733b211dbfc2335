#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""memferry-perf estimate of a guest that runs in QEMU, which goes on as if nobody had looked, and moves afterwards; migrate's reports."""
import json
import math
import os
import signal
import time
from pathlib import Path

from harness import Case, Process, Ram, main, timeout
from harness.qemu import MIB

MODES = ["precopy", "hybrid", "postcopy", "cold"]
GUEST = {"ram": (Ram(96 * MIB),), "guest": "hot=4M rate=8M"}


def userfaultfds(pid):
    found = []
    for entry in Path("/proc", str(pid), "fd").iterdir():
        try:
            found += [entry.name] * ("userfaultfd" in os.readlink(entry))
        except OSError:
            pass  # closed meanwhile
    return found


class Estimate(Case):
    def perf(self, *args):
        return self.keep(Process(f"perf-{args[0]}", [os.environ["MEMFERRY_PERF"], *args]))

    def serve(self):
        server = self.perf("server", "--listen", "127.0.0.1", "--port", "0")
        return server.wait_line("listening on ").removeprefix("listening on ")

    def watch(self, address, source, *args):
        return self.perf("estimate", address, "--transport", "tcp", "--guest", f"qemu:{source.qmp_path}", *args)

    def estimate(self, source):
        file = self.directory / "estimate.json"
        perf = self.watch(self.serve(), source, "--watch", "2", "--out_json_file", file)
        self.assertEqual(perf.wait(timeout(120)), 0, perf.transcript())
        self.assertEqual(perf.errors, [], perf.transcript())
        return file, json.loads(file.read_text()), perf.output

    def assert_untouched(self, source):
        self.assertEqual(userfaultfds(source.pid), [])
        self.assert_unharmed(source)
        for event in "STOP", "RESUME", "RESET", "SHUTDOWN":
            self.assertNotIn(event, source.monitor().events)

    def check_prediction(self, row):
        figures = "total_ms", "downtime_ms", "n_rounds", "bytes", "postcopy_ms", "missing_bytes", "fault_us", "fault_p99_us"
        for figure in figures:
            self.assertTrue(math.isfinite(row[figure]) and row[figure] >= 0, figure)
        self.assertEqual(len(row["rounds"]), row["n_rounds"])
        self.assertLessEqual(row["downtime_ms"], row["total_ms"])
        self.assertEqual(row["missing_bytes"] > 0, row["outcome"] == "pages are pulled after the switch")
        guest = row["guest"]
        self.assertEqual(guest["ram_bytes"], 96 * MIB)
        self.assertLessEqual(guest["data_bytes"], guest["allocated_bytes"])
        self.assertLessEqual(guest["allocated_bytes"], guest["ram_bytes"])
        for a, b in zip(guest["dirty"], guest["dirty"][1:]):
            self.assertLess(a["s"], b["s"])
        for point in guest["dirty"]:
            self.assertTrue(0 <= point["runs"] * 4096 <= point["bytes"] <= guest["ram_bytes"], point)

    def test_guest_goes_on_and_moves_afterwards(self):
        source, destination = self.pair(**GUEST)
        file, document, table = self.estimate(source)
        self.assert_untouched(source)
        self.assertEqual([row["mode"] for row in document["results"]], MODES)
        for row in document["results"]:
            self.check_prediction(row)
        self.assertGreater(document["results"][0]["guest"]["dirty"][-1]["bytes"], 0)
        for words in "watched by", "distinct MiB written within s", "path tcp", "downtime[ms]":
            self.assertIn(words, table)

        receive = self.receive(destination)
        send = self.send(receive.address(), source, "--mode", "hybrid")
        self.assert_moved(source, destination, send, receive, verified=False)
        report = self.directory / "report.json"
        report.write_text(send.output)
        self.compare(file, report, send.report)

    def compare(self, file, report, sent):
        perf = self.perf("estimate", "--estimate", file, "--against", report, "--out_json")
        self.assertEqual(perf.wait(), 0, perf.transcript())
        rows = {row["figure"]: row for row in json.loads(perf.output)["results"]}
        self.assertEqual(rows["total"]["actual"], sent["total_ms"])
        self.assertEqual(rows["downtime"]["actual"], sent["downtime_ms"])
        self.assertEqual(rows["rounds"]["actual"], len(sent["rounds"]))
        for row in rows.values():
            self.assertTrue(math.isfinite(row["predicted"]))
            self.assertEqual(row["off_percent"] is None, row["actual"] == 0)
        self.assertIn("off[%]", "\n".join(perf.errors))

    def test_signal_leaves_the_guest_as_it_was(self):
        source = self.qemu("source", **GUEST).ready()
        _, document, _ = self.estimate(source)
        by_userfaultfd = document["results"][0]["guest"]["tracker"] == "pagemap"
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            with self.subTest(number):
                perf = self.watch(self.serve(), source, "--watch", "3600")
                deadline = time.monotonic() + timeout()
                while by_userfaultfd and not userfaultfds(source.pid):
                    self.assertLess(time.monotonic(), deadline, perf.transcript())
                    self.assertTrue(perf.is_alive(), perf.transcript())
                    time.sleep(0.02)
                perf.signal(number)
                status = perf.wait()
                # Without one there is nothing that tells when it watches: then it may not have begun.
                self.assertIn(status, (1,) if by_userfaultfd else (1, -number), perf.transcript())
                if status == 1:
                    self.assertEqual(perf.errors, ["memferry-perf: stopped; the guest is as it was"])
                self.assert_untouched(source)

    def test_guest_that_could_not_be_moved_is_refused(self):
        source = self.qemu("source", ram=(Ram(64 * MIB, "private"),)).ready()
        perf = self.watch(self.serve(), source)
        self.assertEqual(perf.wait(), 3, perf.transcript())
        self.assertEqual(len(perf.errors), 1, perf.transcript())
        self.assertIn("private to QEMU", perf.errors[0])
        self.assert_untouched(source)

    def test_what_makes_no_sense_is_told(self):
        address = self.serve()
        for status, guest, sentence in (2, "nonsense", "--guest: "), (1, "qemu:/nowhere", "/nowhere"):
            perf = self.perf("estimate", address, "--guest", guest)
            self.assertEqual(perf.wait(), status, perf.transcript())
            self.assertEqual(len(perf.errors), 1, perf.transcript())
            self.assertIn(sentence, perf.errors[0])
        empty = self.directory / "empty"
        empty.write_text("")
        perf = self.perf("estimate", "--estimate", empty, "--against", empty)
        self.assertEqual(perf.wait(), 2, perf.transcript())


class Report(Case):
    def test_moves_are_reported_as_by_send(self):
        """The same fields, down to the rounds, whoever carried the move out."""
        spec = "demo:16M,dirty=4M"
        receive = self.receive(spec)
        send = self.send(receive.address(), spec, "--mode", "precopy")
        self.assertEqual((send.wait(), receive.wait()), (0, 0), send.transcript())
        server = self.keep(Process("server", [os.environ["MEMFERRY_PERF"], "server", "--listen", "127.0.0.1", "--port", "0"]))
        address = server.wait_line("listening on ").removeprefix("listening on ")
        file = self.directory / "moves.json"
        perf = self.keep(Process("migrate", [os.environ["MEMFERRY_PERF"], "migrate", address, "--guest-size", "16M", "--dirty",
                                             "4M,0", "--mode", "precopy", "--repeat", "2", "--out_json_file", file]))
        self.assertEqual(perf.wait(timeout(120)), 0, perf.transcript())
        rows = json.loads(file.read_text())["results"]
        self.assertEqual(len(rows), 2)
        for row in rows:
            self.assertEqual(list(row["report"]), list(send.report))
            self.assertEqual(list(row["destination"]), list(receive.report))
            self.assertEqual(list(row["report"]["rounds"][0]), list(send.report["rounds"][0]))
            self.assertEqual((row["report"]["side"], row["destination"]["side"]), ("source", "destination"))
            self.assertEqual((row["total_spread_ms"]["n"], row["downtime_spread_ms"]["n"]), (2, 2))
            times = [sample["ms"] for sample in row["timeline"]]
            self.assertEqual(times, sorted(times))
            for a, b in zip(row["phases"], row["phases"][1:]):
                self.assertEqual(a["end_ms"], b["start_ms"])
            for side in "client", "server":
                self.assertGreater(row["cpu"][side]["ms"], 0)


if __name__ == "__main__":
    main()
