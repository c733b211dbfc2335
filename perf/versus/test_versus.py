#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Which way ratios go, what is read from the peers' output, how a pair of programs is run; nothing is measured."""
import os
import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "integration"))

from harness import Failed  # noqa: E402

import figures  # noqa: E402
from part import Job, Part  # noqa: E402
from peers import TRIES, Contender, NoFigure, PerftestBandwidth, PerftestLatency  # noqa: E402
from peers import Pingpong, Place, RmaBandwidth, free_port  # noqa: E402

SERVER = """import socket, time
time.sleep(0.3)
s = socket.create_server(("127.0.0.1", {port}))
s.accept()[0].sendall(b"hello")"""
CLIENT = """import socket
print(socket.create_connection(("127.0.0.1", {port})).recv(9).decode())"""


def pair(server=SERVER, client=CLIENT):
    port = free_port()
    return [[sys.executable, "-c", code.format(port=port)] for code in (server, client)]


class Figures(unittest.TestCase):
    def row(self, key, theirs, ours):
        return figures.stream_row("job", "peer", [{key: v} for v in ours], [{key: v} for v in theirs], key)

    def test_more_than_1_is_good_for_us(self):
        self.assertEqual(self.row("gb_per_s", [1, 2, 4], [2, 4, 6])[-2:], ["2.00", "1.50 to 2.00"])
        self.assertEqual(self.row("mean_us", [2, 4, 6], [1, 2, 4])[-2:], ["2.00", "1.50 to 2.00"])

    def test_turns_without_a_figure_are_left_out(self):
        row = figures.stream_row("job", "peer", [{"gb_per_s": 4}, {"gb_per_s": 9}], [{"gb_per_s": 2}, {}], "gb_per_s")
        self.assertEqual(row[2:], ["2", "2 to 2", "4", "4 to 4", "2.00", "2.00 to 2.00"])
        row = figures.stream_row("job", "peer", [{"gb_per_s": 4}], [{}], "gb_per_s")
        self.assertEqual(row[2:], ["-"] * 6)

    def gap(self, small, large):
        return figures.gap({f"write {n} KiB": {"memferry": [{"gb_per_s": v}]} for n, v in ((4, small), (64, large))})

    def test_gap(self):
        # An operation costs as much as 4 KiB: one of 4 KiB moves at half the speed, one of 64 KiB at 16/17.
        self.assertIn(" 4096 bytes more", self.gap(0.5, 16 / 17))
        self.assertIn("noise", self.gap(1.0, 0.9))
        self.assertIn("noise", self.gap(20.0, 1.0))


class Output(unittest.TestCase):
    def read(self, contender, output):
        return contender._read(output, output)

    def test_fabric(self):
        """Of fi_rma_bw, the rates of both sides together."""
        output = "bytes   #sent   #ack     total       time     MB/sec    usec/xfer   Mxfers/sec\n" \
                 "16k     1k      =1k      31m         0.02s   1434.15      11.42       0.09\n"
        self.assertEqual(self.read(Pingpong(None, 1, 1), output), {"mean_us": 11.42})
        output = "bytes   iters   total       time     MB/sec    usec/xfer   Mxfers/sec\n" \
                 "64k     20k     1.2g        2.20s    596.57     109.85       0.01\n"
        self.assertEqual(self.read(RmaBandwidth(None, 1, 1), output), {"gb_per_s": 2 * 0.59657})

    def test_perftest(self):
        output = " #bytes     #iterations    BW peak[MiB/sec]    BW average[MiB/sec]   MsgRate[Mpps]\n" \
                 " 65536      1000             0.00               500.00               0.008\n---\n"
        self.assertEqual(self.read(PerftestBandwidth("ib_write_bw", None, 1, ()), output), {"gb_per_s": 0.524288})
        output = " 64      500     31.06     2022.95      32.54    \t   64.26    \t170.64 \t\t1419.02 \t\t2022.95\n"
        self.assertEqual(self.read(PerftestLatency("ib_read_lat", None, 1, ()), output),
                         {"median_us": 32.54, "mean_us": 64.26, "p99_us": 1419.02})

    def test_perftest_without_a_clock(self):
        with self.assertRaises(NoFigure):
            self.read(PerftestBandwidth("ib_write_bw", None, 1, ()), " 65536  1000  0.00  0.00  0.000\n")
        with self.assertRaises(NoFigure):
            self.read(PerftestLatency("ib_read_lat", None, 1, ()), " 64 500 inf inf inf inf inf inf inf\n")

    def test_no_figures(self):
        with self.assertRaises(Failed):
            self.read(Pingpong(None, 1, 1), "bytes #sent\n")


class Pairs(unittest.TestCase):
    def test_client_tries_until_server_listens(self):
        self.assertEqual(Place("127.0.0.1").exchange(*pair(), 30)[0], "hello\n")

    def test_server_that_fails_is_not_waited_for(self):
        with self.assertRaises(Failed):
            Place("127.0.0.1").exchange(*pair(server="raise SystemExit(3)"), 30)

    def test_peer_is_reached_by_ssh(self):
        """Its last word is the command there, where the program is in the PATH."""
        with tempfile.TemporaryDirectory() as folder:
            ssh = Path(folder, "ssh")
            ssh.write_text('#!/bin/sh\n[ "$3" = faraway ] && exec sh -c "$4"\n')
            ssh.chmod(0o755)
            before = os.environ["PATH"]
            os.environ["PATH"] = f"{folder}:{Path(sys.executable).parent}:{before}"
            try:
                self.assertEqual(Place("127.0.0.1", "faraway").exchange(*pair(), 30)[0], "hello\n")
            finally:
                os.environ["PATH"] = before


class Counted(Contender):
    def __init__(self, name, calls):
        super().__init__(name, None)
        self._calls = calls

    def measure(self, warm):
        self._calls.append((self.name, warm))
        return {"gb_per_s": len(self._calls)}


class Fickle(Contender):
    """Says no figure the first times."""

    def __init__(self, times):
        super().__init__("fickle", None)
        self._left = times

    def _measure(self):
        self._left -= 1
        if self._left >= 0:
            raise NoFigure("inf")
        return {"gb_per_s": 1}


class Quiet(Part):
    def say(self, result):
        return ""


class Turns(unittest.TestCase):
    def test_what_says_no_figure_is_measured_again(self):
        self.assertEqual(Fickle(TRIES - 1).measure(False), {"gb_per_s": 1})
        self.assertEqual(Fickle(TRIES).measure(False), {})

    def test_warm_up_is_not_counted_and_turns_alternate(self):
        calls = []
        part = Quiet("name", "title", [Job("job", [Counted("a", calls), Counted("b", calls)])])
        part.run(2)
        self.assertEqual(calls, [("a", True), ("b", True), ("b", False), ("a", False), ("a", False), ("b", False)])
        self.assertEqual(part.results["job"], {"a": [{"gb_per_s": 4}, {"gb_per_s": 5}], "b": [{"gb_per_s": 3}, {"gb_per_s": 6}]})


if __name__ == "__main__":
    unittest.main()
