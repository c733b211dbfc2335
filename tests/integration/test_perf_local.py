#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""memferry-perf register, scan and track: tables, documents and exit statuses, alone and with a server."""
import json
import os

from harness import Case, Process, main

SMALL = {
    "register": ("--sizes", "4K,1M", "--threads", "1,2", "--transport", "tcp"),
    "scan": ("--memory", "4M", "--threads", "1,2"),
    "track": ("--memory", "4M", "--dirty-pages", "50"),
}
HEADINGS = {
    "register": ("page[KiB]", "size[KiB]", "fault in[ms]", "cold[ms]", "warm[ms]", "deregister[ms]", "warm[GB/s]"),
    "scan": ("content", "scan[GB/s]", "scan[Mpages/s]", "read[GB/s]", "memcpy[GB/s]", "scan/read"),
    "track": ("tracker", "start[ms]", "first[ns]", "penalty[ns]", "second[ns]", "idle collect[ms]", "collect[ms]", "stop[ms]"),
}
STATS = {
    "register": ("fault_in_ms", "register_cold_ms", "register_warm_ms", "deregister_ms", "bytes_per_s"),
    "scan": ("bytes_per_s", "read_bytes_per_s", "copy_bytes_per_s", "ratio_to_read"),
    "track": ("start_ms", "untracked_write_ns", "first_write_ns", "second_write_ns", "collect_idle_ms", "collect_dirty_ms", "stop_ms"),
}
ROWS = {"register": 4, "scan": 8, "track": 5}


class PerfLocal(Case):
    def perf(self, *args):
        return self.keep(Process(f"perf-{args[0]}", [os.environ["MEMFERRY_PERF"], *args]))

    def serve(self, *args):
        server = self.perf("server", "--listen", "127.0.0.1", "--port", "0", *args)
        return server.wait_line("listening on ").removeprefix("listening on ")

    def document(self, verb, *args, repeat=2):
        """What it wrote to a file, and its table."""
        path = self.directory / f"{verb}.json"
        perf = self.perf(verb, *args, *SMALL[verb], "--repeat", repeat, "--out_json_file", path)
        self.assertEqual(perf.wait(), 0, perf.transcript())
        self.assertEqual(perf.errors, [], perf.transcript())
        return json.loads(path.read_text()), perf.lines

    def check_rows(self, verb, rows, repeat=2):
        self.assertEqual(len(rows), ROWS[verb])
        for row in rows:
            if "skipped" in row:
                self.assertTrue(row["skipped"])
                continue
            for field in STATS[verb]:
                self.assertEqual(row[field]["n"], repeat, field)
                self.assertGreater(row[field]["min"], 0, field)
                self.assertLessEqual(row[field]["min"], row[field]["p50"], field)
                self.assertLessEqual(row[field]["p50"], row[field]["max"], field)
            self.assertGreater(row["cpu"]["client"]["ms"], 0)

    def check_table(self, verb, doc, lines, hosts):
        shown = [row for row in doc["results"] if "skipped" not in row]
        for heading in HEADINGS[verb]:
            self.assertIn(heading, lines[0])
        self.assertEqual(lines[0].startswith("host "), len(hosts) == 2)
        self.assertEqual(sum(line.startswith("not measured: ") for line in lines), len(doc["results"]) - len(shown))
        for number, row in enumerate(shown, start=1):
            first = {"register": row.get("transport"), "scan": row.get("content"), "track": row.get("tracker")}[verb]
            words = lines[number].split()
            self.assertEqual(words[: len(hosts)], [row["host"], first][2 - len(hosts):])

    def test_alone(self):
        for verb in SMALL:
            with self.subTest(verb):
                doc, lines = self.document(verb)
                self.assertEqual((doc["schema"], doc["test"]), ("memferry-perf/1", verb))
                self.assertEqual([host["role"] for host in doc["hosts"]], ["client"])
                self.assertEqual({row["host"] for row in doc["results"]}, {"client"})
                self.check_rows(verb, doc["results"])
                self.check_table(verb, doc, lines, ["client"])

    def test_with_a_server(self):
        address = self.serve()
        for verb in SMALL:
            with self.subTest(verb):
                doc, lines = self.document(verb, address)
                self.assertEqual([host["role"] for host in doc["hosts"]], ["client", "server"])
                for host in "client", "server":
                    self.check_rows(verb, [row for row in doc["results"] if row["host"] == host])
                self.check_table(verb, doc, lines, ["client", "server"])

    def test_track_measures_what_the_kernel_has(self):
        """Synchronous write protection is in every kernel that these tests are for."""
        doc, _ = self.document("track", "--trackers", "writeprotect")
        (row,) = doc["results"]
        self.assertNotIn("skipped", row)
        self.assertGreaterEqual(row["reported_pages"], row["dirty_pages"])
        self.assertEqual(row["dirty_pages"], 50)

    def assert_refused(self, status, sentence, verb, *args):
        perf = self.perf(verb, *args)
        self.assertEqual(perf.wait(), status, perf.transcript())
        self.assertEqual(perf.lines, [])
        self.assertEqual(len(perf.errors), 1, perf.transcript())
        self.assertRegex(perf.errors[0], "^memferry-perf: .*" + sentence)

    def test_what_makes_no_sense(self):
        self.assert_refused(2, "--trackers: 'magic' is none; there are .*pagemap", "track", "--trackers", "magic")
        self.assert_refused(2, "--memory: .* between", "scan", "--memory", "4K")
        self.assert_refused(2, "--page: 12288 is no size of pages", "register", "--page", "12K")

    def test_more_memory_than_the_server_gives(self):
        address = self.serve("--max-memory", "2M")
        self.assert_refused(3, "4.00 MiB of memory are more than the server allows, 2.00 MiB", "scan", address, "--memory", "4M",
                            "--repeat", "1", "--threads", "1")
        doc, _ = self.document("register", address)  # the server goes on
        self.assertEqual(len(doc["results"]), 2 * ROWS["register"])

    def test_json_alone_on_standard_output(self):
        perf = self.perf("scan", *SMALL["scan"], "--repeat", "1", "--out_json")
        self.assertEqual(perf.wait(), 0, perf.transcript())
        self.check_rows("scan", json.loads(perf.output)["results"], repeat=1)
        self.assertIn("scan[GB/s]", perf.errors[0])


if __name__ == "__main__":
    main()
