#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
One-sided operations leave the other side's CPUs alone: what the passive process spends does not grow with the data.

A guest with 16 MiB of data and one with 400 MiB: from one to the other the passive process's CPU time and voluntary
context switches grow by at most 5 % of what they grow by at the active one.  The lesser of two counts: whatever else
goes on at the host only adds.

What is measured, and what not:
  - From the event before the first byte to the one after the last.  Registering RAM before and releasing it after costs
    CPU by the guest's size, whichever side is passive.
  - CPU time by the process's clock, in nanoseconds, all threads, without the demo guest, which is another process.
  - Soft-RoCE does in software what devices do.  On 6.12 that is workers' of the kernel, charged to neither process; on
    6.1 it is a tasklet's, charged to whom it interrupts (Debian's kernels have no CONFIG_IRQ_TIME_ACCOUNTING).  A process
    that sleeps is not interrupted, the one that posts is: where it shows at all, it shows at the active side.  A passive
    process that was woken for data would be charged for more than its own work, never for less, and its switches would
    tell, too.
  - More data takes longer, and some things go by the clock: the display twice a second, and the control channel's beats.
    So the small move is made to take as long: the lanes of its active process are held for a while, nothing else of it.
"""
import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path

from verbs import VerbsCase
from harness import main
from harness.qemu import MIB

RUNS = 2
SHARE = 0.05
# As much is not told from nothing.
NOISE = {"CPU time, ms": 20, "voluntary switches": 30}
SAMPLE_S = 0.02


# Events of the source: lanes can be held from here on; nothing has been copied yet; all has.
EVENTS = {
    "cold": (("phase", {"phase": "switchover"}), ("phase", {"phase": "switchover"}), ("round", {"n": 1})),
    "postcopy": (("phase", {"phase": "handoff"}), ("phase", {"phase": "postcopy"}), ("phase", {"phase": "done"})),
}
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
WALL = 0x40000000


class Usage:
    """Of one process, as it goes by: (when, CPU time in ms, voluntary switches)."""

    def __init__(self, pid):
        self.tasks = Path("/proc", str(pid), "task")
        self.clock = ~pid << 3 | 2  # clock_getcpuclockid()
        self.samples = []
        self.by_thread = {}
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def _switches(self):
        """Of all threads there were: one that has ended keeps what it had."""
        for task in self.tasks.iterdir():
            with contextlib.suppress(OSError):
                for line in (task / "status").read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches:"):
                        self.by_thread[task.name] = int(line.split()[1])
        return sum(self.by_thread.values())

    def sample(self):
        """False: it has ended."""
        try:
            switches = self._switches()
            cpu_ms = time.clock_gettime_ns(self.clock) / 1e6
        except OSError:
            return False
        self.samples.append((time.monotonic(), cpu_ms, switches))
        return True

    def _watch(self):
        while self.sample():
            time.sleep(SAMPLE_S)

    def between(self, begin, end):
        """From the first sample that is not before to the last that is not after: CPU time, switches."""
        inside = sorted(sample for sample in self.samples if begin <= sample[0] <= end)
        assert len(inside) > 1, "no samples"
        return inside[-1][1] - inside[0][1], inside[-1][2] - inside[0][2]


def lanes(process):
    """Its lanes' thread ids.  Other threads, which registered RAM say, end while one looks."""
    for task in Path("/proc", str(process.pid), "task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().startswith("mf-lane-"):
                yield int(task.name)


@contextlib.contextmanager
def held_lanes(process):
    libc = ctypes.CDLL(None, use_errno=True)
    held = list(lanes(process))
    assert held, "no lanes"
    for request in PTRACE_SEIZE, PTRACE_INTERRUPT:
        for tid in held:
            if libc.ptrace(request, tid, None, None):
                raise OSError(ctypes.get_errno(), f"ptrace of {tid}")
    for tid in held:
        os.waitpid(tid, WALL)
    yield
    for tid in held:
        libc.ptrace(PTRACE_DETACH, tid, None, None)


class Cpu(VerbsCase):
    def move(self, guest, mode, hold_s=0):
        """Seconds between the first byte and the last, and what source and destination spent then."""
        receive = self.receive(guest.split(",")[0])
        send = self.send(receive.address(), f"{guest},dirty=0,check=0", "--mode", mode)
        usage = Usage(send.pid), Usage(receive.pid)
        before, begin, end = EVENTS[mode]
        send.event(before[0], **before[1])
        with held_lanes(receive if mode == "postcopy" else send) if hold_s else contextlib.nullcontext():
            send.event(begin[0], **begin[1])
            begin_s = time.monotonic()
            # Where much goes on besides, the watchers' turns are far apart.
            for side in usage:
                side.sample()
            time.sleep(hold_s)
        send.event(end[0], **end[1])
        for side in usage:
            side.sample()
        end_s = time.monotonic()
        self.assert_moved(None, None, send, receive, verified=False)
        self.assert_transport("verbs", send, receive)
        spent = [side.between(begin_s, end_s) for side in usage]
        print(f"{mode} {guest}: {end_s - begin_s:.2f} s; source {spent[0][0]:.1f} ms, {spent[0][1]} switches;"
              f" destination {spent[1][0]:.1f} ms, {spent[1][1]} switches", flush=True)
        return send.report, end_s - begin_s, spent

    def compare(self, mode, large, small, passive):
        """passive: 0 for the source, 1 for the destination."""
        runs = []
        for _ in range(RUNS):
            report, large_s, most = self.move(large, mode)
            self.assertGreaterEqual(report["bytes_written"] + report["bytes_read"], 395 * MIB)
            report, small_s, least = self.move(small, mode, hold_s=large_s)
            self.assertLessEqual(report["bytes_written"] + report["bytes_read"], 20 * MIB)
            runs.append((large_s, most, small_s, least))
        for i, (what, noise) in enumerate(NOISE.items()):
            seconds = min(run[0] for run in runs)
            rates = [min(run[k + 1][passive][i] / run[k] for run in runs) for k in (0, 2)]  # a second: large, small
            more = seconds * (rates[0] - rates[1])
            active = min(run[1][1 - passive][i] for run in runs) - min(run[3][1 - passive][i] for run in runs)
            print(f"{mode}: {what}: {more:.1f} more at the passive side, {active:.1f} more at the active one", flush=True)
            self.assertLessEqual(more, max(SHARE * active, noise), f"{what}: {runs}")

    def test_writes(self):
        """Cold: one pass over the guest, and on any kernel."""
        self.compare("cold", "demo:416M,zero=4", "demo:416M,zero=96", 1)

    def test_reads(self):
        """The guest's size is the data's: RAM that is registered has no holes left."""
        self.compare("postcopy", "demo:400M", "demo:16M", 0)


if __name__ == "__main__":
    main()
