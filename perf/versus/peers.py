# SPDX-License-Identifier: BSD-2-Clause
"""Programs that come in pairs, a server that serves one client and that client: where they run, and what they say."""
import contextlib
import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from harness import Failed, timeout
from harness.process import Process

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {  # Debian's; it has none of fi_rma_bw
    "qemu-system-x86_64": "qemu-system-x86",
    "iperf3": "iperf3",
    "fi_pingpong": "libfabric-bin",
    "ib_write_bw": "perftest",
}
TRIES = 5
START = 30  # seconds that a server may need until it listens
MIB, GB = 1 << 20, 1e9


def install(commands):
    """A sentence why one of the commands is not there and could not be installed, or ""."""
    missing = sorted({PACKAGES[c] for c in commands if not shutil.which(c)})
    if not missing:
        return ""
    if os.geteuid() != 0:
        return f"not installed, and this is not root: apt install {' '.join(missing)}"
    script = f". {shlex.quote(str(ROOT / 'tests/support/packages.sh'))} && packages \"$@\""
    done = subprocess.run(["bash", "-c", script, "versus", *missing], stdout=sys.stderr, check=False)
    return f"apt could not install {' '.join(missing)}" if done.returncode else ""


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def pin(cpu, argv):
    return argv if cpu is None else ["taskset", "-c", str(cpu), *argv]


class Place:
    """Servers run here, or by ssh at a peer, and are reached by address."""

    def __init__(self, address, peer=None):
        self.address, self._peer = address, peer
        self.server_cpu = self.client_cpu = None  # where they shall run; None: anywhere

    def _server(self, argv):
        if not self._peer:
            return pin(self.server_cpu, argv)
        remote = shlex.join(["timeout", "600", Path(argv[0]).name, *argv[1:]])  # ssh does not end what it started
        return ["ssh", "-o", "BatchMode=yes", self._peer, remote]

    def exchange(self, server, client, limit):
        """Standard output of a client that got through to its server, and of that. Ports are the callers'."""
        name = Path(client[0]).name
        with contextlib.ExitStack() as stack:
            serving = Process(f"{name}, server", self._server(server))
            stack.callback(serving.kill)
            deadline = time.monotonic() + timeout(START)
            while True:
                asking = Process(name, pin(self.client_cpu, client))
                stack.callback(asking.kill)
                if asking.wait(timeout(limit)) == 0:
                    serving.wait()
                    return asking.output, serving.output
                if not serving.is_alive() or time.monotonic() > deadline:
                    raise Failed(asking.transcript() + serving.transcript())
                time.sleep(0.1)  # it listens a moment after its start


class NoFigure(Exception):
    """It ran, and said a figure that is none."""


class Contender:
    """
    One program at one task. measure() returns figures by the names that figures.FIGURES has, of which it has those in keys; none
    where it never said one. A program that is not ours may fail, too: that is tried again, told, and no failure of ours.
    """

    ours = False
    limit = 120
    keys = ("gb_per_s",)

    def __init__(self, name, place):
        self.name, self._place = name, place

    def measure(self, _warm):
        for _ in range(TRIES):
            try:
                return self._measure()
            except NoFigure as none:
                print(f"{self.name}: {none} is no figure", file=sys.stderr, flush=True)
            except Failed as failed:
                if self.ours:
                    raise
                print(f"{self.name} failed:\n{failed}", file=sys.stderr, flush=True)
        return {}

    def _measure(self):
        port = str(free_port())
        server, client = self._commands(port)
        return self._read(*self._place.exchange(server, client, self.limit))


class Iperf3(Contender):
    """TCP from one process to another; before 3.16 a process has one thread for all streams."""

    keys = ("gb_per_s", "cpu_s_per_gb")

    def __init__(self, place, size, streams, seconds):
        super().__init__("iperf3", place)
        self._args = ["-l", size, "-P", streams, "-t", seconds, "-J"]

    def _commands(self, port):
        return ["iperf3", "-s", "-1", "-p", port], ["iperf3", "-c", self._place.address, "-p", port, *map(str, self._args)]

    def _read(self, output, _served):
        end = json.loads(output)["end"]
        received, cpu = end["sum_received"], end["cpu_utilization_percent"]
        spent = (cpu["host_total"] + cpu["remote_total"]) / 100 * received["seconds"]
        return {"gb_per_s": received["bits_per_second"] / 8 / GB, "cpu_s_per_gb": spent / received["bytes"] * GB}


def last_row(output, least):
    """The columns of the last line that begins with a number, which may be 64k."""
    rows = [line.split() for line in output.splitlines()]
    rows = [row for row in rows if len(row) >= least and row[0][0].isdigit()]
    if not rows:
        raise Failed(f"no figures in\n{output}")
    return rows[-1]


class FabricPair(Contender):
    """fi_pingpong and its kind: bytes, counts, total, time, MB/sec (10^6), usec/xfer."""

    def _arguments(self):
        raise NotImplementedError

    def _commands(self, port):
        argv = [self.name, "-p", "tcp", "-e", "msg", *map(str, self._arguments())]
        return [*argv, "-B", port], [*argv, "-P", port, self._place.address]


class Pingpong(FabricPair):
    """Messages there and back; half of that counts. It says the mean alone."""

    keys = ("mean_us",)

    def __init__(self, place, size, iterations):
        super().__init__("fi_pingpong", place)
        self._size, self._iterations = size, iterations

    def _arguments(self):
        return ["-S", self._size, "-I", self._iterations]

    def _read(self, output, _served):
        return {"mean_us": float(last_row(output, 8)[-2])}


class RmaBandwidth(FabricPair):
    """fabtests' one-sided writes. Both sides write at the same time, and each says how fast it was."""

    def __init__(self, place, size, iterations):
        super().__init__("fi_rma_bw", place)
        self._size, self._iterations = size, iterations

    def _arguments(self):
        return ["-o", "write", "-S", self._size, "-I", self._iterations]

    def _read(self, output, served):
        return {"gb_per_s": sum(float(last_row(side, 7)[-3]) for side in (output, served)) * 1e6 / GB}


class Perftest(Contender):
    """ib_write_bw and its kind. Their JSON is left alone: it differs from version to version, the table does not."""

    def __init__(self, tool, place, size, count):
        super().__init__(tool, place)
        self._args = ["-F", "-R", "-s", str(size), *map(str, count)]

    def _commands(self, port):
        argv = [self.name, *self._args, "-p", port]
        return argv, [*argv, self._place.address]


class PerftestBandwidth(Perftest):
    """Bytes, iterations, peak and average in MiB/s, million operations a second."""

    def _read(self, output, _served):
        return {"gb_per_s": real(last_row(output, 5)[3]) * MIB / GB}


class PerftestLatency(Perftest):
    """Bytes, iterations, and in microseconds: least, most, typical (the median), mean, deviation, 99 %, 99.9 %."""

    keys = ("median_us", "mean_us", "p99_us")

    def _read(self, output, _served):
        row = last_row(output, 9)
        return {key: real(row[n]) for key, n in zip(self.keys, (4, 5, 7))}


def real(word):
    """On a busy host perftest may not find out how fast the CPU's clock runs: it then says 0 or inf, and that all is well."""
    value = float(word)
    if value <= 0 or not math.isfinite(value):
        raise NoFigure(word)
    return value
