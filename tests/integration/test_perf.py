#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""memferry-perf as people and scripts use it: tables, JSON, exit statuses, and what happens when one side is gone.

With MEMFERRY_TEST_HOST, an address of an RDMA device of this host, over verbs, too."""
import json
import os
import signal
import tempfile
import time
import unittest
from pathlib import Path

from harness import Process, main, timeout

PERF = os.environ.get("MEMFERRY_PERF", "")
MEMFERRY = os.environ.get("MEMFERRY", "")
RDMA_HOST = os.environ.get("MEMFERRY_TEST_HOST", "")


class Perf(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.host = RDMA_HOST or "127.0.0.1"

    def start(self, name, *argv):
        process = Process(name, argv, env={"MEMFERRY_RUN_DIR": str(self.folder)})
        self.addCleanup(process.kill)
        return process

    def serve(self, *args):
        server = self.start("server", PERF, "server", "--listen", self.host, "-p", "0", *args)
        line = server.wait_line("listening on ")
        self.address = line.split()[-1]
        return server

    def run_perf(self, *args, status=0):
        client = self.start("client", PERF, *args)
        code = client.wait(timeout(180))
        self.assertEqual(code, status, client.output + "\n".join(client.errors))
        return client

    def measure(self, *args):
        """The document of one run."""
        file = self.folder / "out.json"
        client = self.run_perf(*args, "--out_json_file", str(file))
        return client.output, json.loads(file.read_text())

    def test_a_sweep_keeps_every_size(self):
        self.serve("--once")
        table, doc = self.measure("bw", self.address, "-a", "-n", "20", "--repeat", "1", "--transport", "tcp")
        sizes = [2 ** n for n in range(1, 24)]
        self.assertEqual([row["bytes"] for row in doc["results"]], sizes)
        lines = [line.split() for line in table.splitlines()]
        begin = next(i for i, words in enumerate(lines) if words[:2] == ["#bytes", "#iterations"])
        self.assertEqual([int(words[0]) for words in lines[begin + 1:begin + 24]], sizes)
        for words, row in zip(lines[begin + 1:], doc["results"]):
            self.assertEqual(len(words), 5)
            self.assertAlmostEqual(float(words[3]), row["median_bytes_per_s"] / 2 ** 20, delta=0.01)

    def test_document_tells_of_both_hosts(self):
        self.serve()
        _, doc = self.measure("lat", self.address, "-n", "50", "--op", "read", "-s", "4K", "--repeat", "2")
        self.assertEqual((doc["schema"], doc["test"]), ("memferry-perf/1", "lat"))
        self.assertEqual([host["role"] for host in doc["hosts"]], ["client", "server"])
        for host in doc["hosts"]:
            for key in "kernel", "machine", "cpu", "memory_bytes", "nics", "versions":
                self.assertTrue(host[key] or key == "nics", key)
        self.assertEqual((doc["options"]["repeat"], doc["options"]["seed"]), (2, 1))
        row = doc["results"][0]
        self.assertEqual((row["bytes"], row["latency_us"]["n"], row["medians_us"]["n"]), (4096, 50, 2))
        self.assertEqual(sum(n for _, n in row["histogram"]), 50)
        for side in "client", "server":
            self.assertGreater(row["cpu"][side]["ms"], 0)
        self.assertGreater(row["bytes_per_cpu_s"], 0)

    def test_json_on_standard_output_is_alone_there(self):
        self.serve()
        client = self.run_perf("bw", self.address, "-n", "50", "--repeat", "1", "-b", "-q", "2", "-e", "--out_json")
        self.assertTrue(json.loads(client.output)["results"][0]["bidirectional"])
        self.assertIn("GB/s", "\n".join(client.errors))

    def test_sealing_is_measured(self):
        self.serve()
        rates = {}
        for sealing in "none", "integrity", "encrypt":
            _, doc = self.measure("bw", self.address, "-s", "256K", "-n", "200", "--repeat", "1", "--transport", "tcp",
                                  "--sealing", sealing)
            self.assertEqual(doc["options"]["sealing"], sealing)
            rates[sealing] = doc["results"][0]["median_bytes_per_s"]
            _, doc = self.measure("lat", self.address, "--op", "read", "-s", "4K", "-n", "50", "--repeat", "1", "--transport",
                                  "tcp", "--sealing", sealing)
            self.assertGreater(doc["results"][0]["bytes"], 0)
        self.assertTrue(all(rates.values()), rates)

    def test_limits_set_the_exit_status(self):
        self.serve()
        self.run_perf("bw", self.address, "-n", "50", "--repeat", "1", "-w", "0.001", "-y", "0.000001")
        client = self.run_perf("bw", self.address, "-n", "50", "--repeat", "1", "-w", "1000000000", status=1)
        self.assertIn("is below the limit of", "\n".join(client.errors))
        client = self.run_perf("bw", self.address, "-n", "50", "--repeat", "1", "-y", "1000000", status=1)
        self.assertIn("are below the limit of", "\n".join(client.errors))

    def test_every_latency_on_request(self):
        self.serve()
        client = self.run_perf("lat", self.address, "-n", "40", "--repeat", "1", "-H")
        lines = client.output.splitlines()
        begin = lines.index("#, usec")
        values = [float(line.split(",")[1]) for line in lines[begin + 1:begin + 41]]
        self.assertEqual(values, sorted(values))

    def test_a_second_client_is_told(self):
        self.serve()
        first = self.start("first", PERF, "bw", self.address, "-D", "30", "--repeat", "1")
        first.wait_line(" #bytes")
        second = self.run_perf("bw", self.address, status=1)
        self.assertIn("the server is busy with another client; try again later", "\n".join(second.errors))
        first.kill()
        for _ in range(100):  # the first one's end has to be noticed
            third = self.start("third", PERF, "bw", self.address, "-n", "10", "--repeat", "1")
            if not third.wait(timeout(60)):
                return
            time.sleep(0.2)
        self.fail("the server never became free")

    def test_the_server_is_killed(self):
        server = self.serve()
        client = self.start("client", PERF, "bw", self.address, "-D", "60", "--repeat", "1")
        client.wait_line(" #bytes")
        server.kill()
        self.assertEqual(client.wait(timeout(60)), 1)
        self.assertTrue(client.errors[-1].startswith("memferry-perf: "), client.errors)

    def test_the_server_ends_by_signal(self):
        server = self.serve()
        client = self.start("client", PERF, "bw", self.address, "-D", "60", "--repeat", "1")
        client.wait_line(" #bytes")
        server.child.send_signal(signal.SIGTERM)
        client.kill()
        self.assertEqual(server.wait(timeout(60)), 0)

    def test_bad_input_is_told(self):
        client = self.run_perf("bw", "127.0.0.1", "-p", "1", status=1)
        self.assertIn("start `memferry-perf server` first", client.errors[-1])
        self.run_perf("bw", status=2)
        self.run_perf("bandwidth", "127.0.0.1", status=2)
        self.serve("--max-memory", "1M")
        client = self.run_perf("bw", self.address, "-s", "2M", "--transport", "tcp", status=1)
        self.assertIn("see its --max-memory", client.errors[-1])

    def test_a_matrix_of_moves(self):
        self.serve()
        table, doc = self.measure("migrate", self.address, "--guest-size", "32M", "--dirty", "4M", "--zero", "0,50",
                                  "--mode", "precopy,postcopy", "--verify", "full", "--repeat", "1")
        self.assertEqual([(row["zero_percent"], row["mode"]) for row in doc["results"]],
                         [(0, "precopy"), (0, "postcopy"), (50, "precopy"), (50, "postcopy")])
        for row in doc["results"]:
            for report in row["report"], row["destination"]:
                self.assertEqual(report["outcome"], "completed")
            self.assertEqual(row["report"]["verify"]["mismatches"], 0)
            self.assertEqual([phase["phase"] for phase in row["phases"]][0], "connect")
            self.assertGreater(len(row["timeline"]), 0)
        self.assertIn("medians of 1", table)

    def test_one_move_is_told_as_send_does(self):
        self.serve()
        table, _ = self.measure("migrate", self.address, "--guest-size", "32M", "--repeat", "1")
        for words in "moved: the guest runs at the destination", "downtime", "timeline", "switchover":
            self.assertIn(words, table)

    def test_a_client_that_is_killed_leaves_no_guest(self):
        server = self.serve()
        client = self.start("client", PERF, "migrate", self.address, "--guest-size", "256M", "--max-bandwidth", "8M")
        children = Path(f"/proc/{server.pid}/task")
        begun = lambda: any((task / "children").read_text().split() for task in children.iterdir())
        self.wait_until(begun, "no guest at the server")
        client.kill()
        self.wait_until(lambda: not begun(), "the server keeps its guest")

    def wait_until(self, condition, what):
        end = time.monotonic() + timeout(60)
        while not condition():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(0.05)

    def test_estimate_and_how_far_off(self):
        """A move of the same guest; no figure is judged."""
        guest = "demo:32M,dirty=4M"
        self.serve()
        file = self.folder / "estimate.json"
        client = self.run_perf("estimate", self.address, "--guest", guest, "--watch", "1", "--out_json_file", str(file))
        self.assertIn("watched by", client.output)
        doc = json.loads(file.read_text())
        self.assertEqual([row["mode"] for row in doc["results"]], ["precopy", "hybrid", "postcopy", "cold"])
        for row in doc["results"]:
            self.assertGreater(row["total_ms"], 0)
            self.assertGreater(row["guest"]["dirty"][0]["bytes"], 0)
        receive = self.start("receive", MEMFERRY, "receive", "--listen", "127.0.0.1:0", "--guest", guest, "--insecure",
                             "--json")
        line = receive.wait_until("it listens", lambda: next((x for x in receive.lines if '"listening"' in x), None))
        send = self.start("send", MEMFERRY, "send", json.loads(line)["address"], "--guest", guest, "--insecure", "--json")
        self.assertEqual(send.wait(timeout(120)), 0, send.errors)
        (self.folder / "report.json").write_text(send.output)
        client = self.run_perf("estimate", "--estimate", str(file), "--against", str(self.folder / "report.json"))
        for words in "total", "downtime", "rounds", "off[%]":
            self.assertIn(words, client.output)

    @unittest.skipUnless(RDMA_HOST, "MEMFERRY_TEST_HOST names no address of an RDMA device")
    def test_both_transports_side_by_side(self):
        self.serve()
        for test in ["bw", "-n", "100"], ["lat", "-n", "30", "--op", "read"], ["lat", "-n", "30"]:
            table, doc = self.measure(test[0], self.address, *test[1:], "--repeat", "1", "--transport", "both")
            self.assertEqual([row["transport"] for row in doc["results"]], ["verbs", "tcp"])
            self.assertTrue(doc["results"][0]["device"] and doc["results"][0]["peer_device"])
            self.assertIn("verbs/tcp" if test[0] == "bw" else "tcp/verbs", table)


if __name__ == "__main__":
    main()
