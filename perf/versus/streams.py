# SPDX-License-Identifier: BSD-2-Clause
"""The parts `tcp` and `verbs`: one-sided operations of memferry-perf next to the fabric's own benchmarks."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import figures
from harness import Failed
from harness.process import Process
from ours import Bandwidth, Latency
from part import Job, Lacking, Part
from peers import ROOT, Iperf3, PerftestBandwidth, PerftestLatency, Pingpong, Place, RmaBandwidth

KIB, MIB = 1 << 10, 1 << 20
VM = Path("/run/vm")  # there in the machine of tests/vm, and only there
RMA_BYTES = 1 << 30  # fi_rma_bw goes by number: about what it moves in a second
VM_ADDRESS = "10.77.0.1"


class StreamPart(Part):
    def say(self, result):
        return ", ".join(figures.say(key, value) for key, value in result.items()) or "no figure"

    def text(self):
        return f"## {self.title}\n\n{figures.stream_table(self.jobs, self.results)}\n\n{figures.gap(self.results)}"

    def data(self):
        return {"results": self.results}


def size_text(size):
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB" if size >= KIB else f"{size} B"


def tcp_bandwidth(options, place, size, streams):
    """-e: iperf3 sleeps when it has to wait, too."""
    many = f", {streams} streams" if streams > 1 else ""
    return Job(f"write {size_text(size)}{many}", [Iperf3(place, size, streams, options.seconds),
                                                  Bandwidth(place, "tcp", "write", size, streams, options.seconds, "-e")])


def tcp_both_ways(options, place, size):
    return Job(f"write {size_text(size)}, both ways", [RmaBandwidth(place, size, options.seconds * RMA_BYTES // size),
                                                       Bandwidth(place, "tcp", "write", size, 1, options.seconds, "-b")])


def tcp_latency(options, place, size):
    return Job(f"write {size_text(size)}",
               [Pingpong(place, size, options.exchanges), Latency(place, "tcp", "write", size, options.exchanges)])


def tcp(options, on_result=None):
    place = Place(options.host or options.peer or "127.0.0.1", options.peer)
    sizes = [4 * KIB, 64 * KIB, MIB]
    jobs = [tcp_bandwidth(options, place, size, streams) for streams in sorted({1, options.streams}) for size in sizes]
    if shutil.which("fi_rma_bw"):
        jobs += [tcp_both_ways(options, place, size) for size in (64 * KIB, MIB)]
    jobs += [tcp_latency(options, place, size) for size in (64, 16 * KIB)]
    where = f"to {options.peer}" if options.peer else "within this host"
    return StreamPart("tcp", f"TCP, {where}", jobs, on_result)


def perftest_bandwidth(options, place, op, size):
    return Job(f"{op} {size_text(size)}", [PerftestBandwidth(f"ib_{op}_bw", place, size, ("-D", options.seconds)),
                                           Bandwidth(place, "verbs", op, size, 1, options.seconds)])


def perftest_latency(options, place, op, size):
    return Job(f"{op} {size_text(size)}, one at a time",
               [PerftestLatency(f"ib_{op}_lat", place, size, ("-n", options.exchanges)),
                Latency(place, "verbs", op, size, options.exchanges)])


def verbs_jobs(options, place, apart):
    """apart: where a server that polls for what the client writes does not keep the client from running."""
    if options.quick:
        return [perftest_bandwidth(options, place, "write", 64 * KIB), perftest_latency(options, apart, "write", 64)]
    return [perftest_bandwidth(options, place, "write", size) for size in (4 * KIB, 64 * KIB, MIB)] + [
        perftest_bandwidth(options, place, "read", 64 * KIB),
        perftest_latency(options, apart, "write", 64),
        perftest_latency(options, place, "read", 4 * KIB),
    ]


@contextlib.contextmanager
def device_awake():
    """
    Soft-RoCE is a device that runs on our processors. In the machine of tests/vm it gets the second one, kept from falling
    asleep, and what is measured the first: or else who meets whom where decides. Gives whether we are there.
    """
    if not VM.is_dir():
        yield False
        return
    Path("/sys/devices/virtual/workqueue/cpumask").write_text("2")
    awake = Process("keeps a processor awake", ["chrt", "-i", "0", "taskset", "-c", "1", "sh", "-c", "while :; do :; done"])
    try:
        yield True
    finally:
        awake.kill()


class VerbsPart(StreamPart):
    """Over a device of this host; or, without an address of one, in the machine of tests/vm, by this program there."""

    def __init__(self, options, on_result=None):
        self._options = options
        self._place, self._apart = Place(options.host, options.peer), Place(options.host, options.peer)
        where = f"over {options.host}" if options.host else f"Soft-RoCE in an emulated machine, kernel of Debian {options.vm}"
        if options.peer:
            where += f", to {options.peer}"
        super().__init__("verbs", f"Verbs, {where}", verbs_jobs(options, self._place, self._apart), on_result)

    def run(self, turns):
        if not self._options.host:
            run_in_machine(self._options, turns, len(self.jobs), self.keep)
            return
        with device_awake() as in_machine:
            if in_machine:
                self._place.server_cpu, self._place.client_cpu = 0, 0
                self._apart.server_cpu, self._apart.client_cpu = 1, 0
            super().run(turns)


def machine_command(options, turns, jobs):
    limit = 300 + (turns + 1) * jobs * 2 * (options.seconds + 30)
    versus = Path(__file__).resolve().with_name("versus.py")
    return [ROOT / "tests/vm/run", "-k", options.vm, "-t", limit, "--", "env", f"MEMFERRY_PERF={os.environ['MEMFERRY_PERF']}",
            sys.executable, "-B", versus, "--parts", "verbs", "--host", VM_ADDRESS, "--lines", "--turns", turns,
            "--seconds", options.seconds, "--exchanges", options.exchanges, *(["--quick"] if options.quick else [])]


def run_in_machine(options, turns, jobs, keep):
    """The machine's console carries standard output and error: results are the lines that are JSON."""
    machine = subprocess.Popen([str(word) for word in machine_command(options, turns, jobs)], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, text=True, errors="replace", start_new_session=True)
    said = []
    try:
        for line in machine.stdout:
            if line.startswith('{"turn"'):
                keep(**json.loads(line))
            else:
                said.append(line)
                print(line, end="", file=sys.stderr, flush=True)
        status = machine.wait()
    finally:
        if machine.poll() is None:
            os.killpg(machine.pid, signal.SIGTERM)
            machine.wait()
        machine.stdout.close()
    if status == 77:
        raise Lacking(next((line[6:].strip() for line in said if line.startswith("SKIP: ")), "the RDMA machine does not start"))
    if status:
        raise Failed(f"in the machine: exit status {status}\n{''.join(said[-30:])}")
