# SPDX-License-Identifier: BSD-2-Clause
"""memferry-perf, as a contender: one measurement of one size by each of its processes."""
import json
import os

from peers import GB, Contender


class Perf(Contender):
    ours = True

    def __init__(self, place, transport, test, op, size, *args):
        super().__init__("memferry", place)
        self._args = [test, place.address, "--transport", transport, "--op", op, "-s", str(size), *map(str, args),
                      "--repeat", "1", "--out_json"]

    def _commands(self, port):
        perf = os.environ["MEMFERRY_PERF"]
        return [perf, "server", "--once", "-p", port], [perf, *self._args, "-p", port]

    def _read(self, output, _served):
        return self._figures(json.loads(output)["results"][-1])


class Bandwidth(Perf):
    keys = ("gb_per_s", "cpu_s_per_gb")

    def __init__(self, place, transport, op, size, lanes, seconds, *args):
        super().__init__(place, transport, "bw", op, size, "-q", lanes, "-D", seconds, *args)

    def _figures(self, row):
        figures = {"gb_per_s": row["median_bytes_per_s"] / GB}
        if row["bytes_per_cpu_s"]:  # too short to take a measurable time
            figures["cpu_s_per_gb"] = GB / row["bytes_per_cpu_s"]
        return figures


class Latency(Perf):
    keys = ("median_us", "mean_us", "p99_us")

    def __init__(self, place, transport, op, size, exchanges):
        super().__init__(place, transport, "lat", op, size, "-n", exchanges)

    def _figures(self, row):
        us = row["latency_us"]
        return {"median_us": us["p50"], "mean_us": us["mean"], "p99_us": us["p99"]}
