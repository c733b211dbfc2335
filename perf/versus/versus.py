#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Measures memferry and, turn about on the same host and the same guest, what QEMU does by itself.

It tells and never judges: the exit status is 0 unless a move failed (1), the command line is wrong (2), or something needed
is absent (77). What is measured, and how, is in docs/measuring.md.
"""
import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from harness import Failed, accelerators  # noqa: E402
from harness.qemu import QEMU, kvm_has_hardware  # noqa: E402

import figures  # noqa: E402
import host  # noqa: E402
from moves import ByMemferry, ByQemu, Guest, Pair  # noqa: E402

MIB, GIB = 1 << 20, 1 << 30


def size(text):
    factor = {"K": 1 << 10, "M": MIB, "G": GIB}.get(text[-1:].upper(), 1)
    return int(text.rstrip("KMGkmg")) * factor


def numbers(text):
    return [int(word) for word in text.split(",")]


class Part:
    """One comparison: contenders in turns, one warm-up turn first."""

    def __init__(self, name, title, guest, contenders, table, sentences):
        self.name, self.title, self.guest, self.contenders = name, title, guest, contenders
        self._table, self._sentences = table, sentences
        self.results = {c.name: [] for c in contenders}

    def run(self, turns):
        for turn in range(turns + 1):
            for contender in self.contenders:
                with Pair(self.guest, contender.backing) as pair:
                    result = contender.move(pair, check=turn == 0)
                warm = "warm-up" if turn == 0 else f"turn {turn}"
                print(f"{self.name}: {warm}: {contender.name}: {result.seconds:.2f} s, pause {result.pause_ms:.1f} ms, "
                      f"load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
                if turn:
                    self.results[contender.name].append(result)

    def text(self):
        lines = [f"## {self.title}", "", self._table(self.contenders, self.results), ""]
        for value, what in self._sentences:
            lines.append(figures.compare(self.contenders, self.results, value, what))
        return "\n".join(lines)

    def data(self):
        return {"guest": dataclasses.asdict(self.guest),
                "results": {name: [dataclasses.asdict(r) for r in results] for name, results in self.results.items()}}


def movers(options):
    """All that move before the switch."""
    ours = [ByMemferry(n) for n in options.lanes]
    kinds = ["shm", "private"] if options.anonymous else ["shm"]
    return ours + [ByQemu(kind, channels) for channels in [0] + options.channels for kind in kinds]


def precopy_part(options, name, title, parameters):
    zero = 100 - 100 * options.data // options.size
    guest = Guest(options.size, f"zero={max(zero, 0)} data={options.data} run={options.run} {parameters}", options.accel)
    return Part(name, title, guest, movers(options), figures.time_table,
                [(lambda r: r.seconds, "Time"), (lambda r: r.cpu, "CPU")])


def make_parts(options):
    what = f"{options.size / GIB:g} GiB, {options.data / GIB:g} GiB of data, {options.accel}"
    idle = Guest(options.small, f"idle=1 zero=0 data={options.small // 2} run={options.run}", options.accel)
    touched = Guest(options.small * 2, f"idle=1 zero=0 data={options.small} run={options.run}", options.accel)
    kinds = ["shm", "private"] if options.anonymous else ["shm"]
    return {
        "idle": lambda: precopy_part(options, "idle", f"Pre-copy, idle guest: {what}", "idle=1"),
        "dirty": lambda: precopy_part(options, "dirty", f"Pre-copy, guest writes {options.rate // MIB} MiB/s: {what}",
                                      f"check=0 hot={options.rate} rate={options.rate}"),
        "pause": lambda: Part("pause", f"Pause to resume, idle guest: {options.small / GIB:g} GiB, {options.accel}", idle,
                              [ByMemferry(options.lanes[0]), ByQemu("shm")], figures.pause_table, []),
        "touch": lambda: Part("touch", f"Post-copy, first touch of each page: {options.small / GIB:g} GiB of data, {options.accel}",
                              touched,
                              [ByMemferry(n, postcopy=True) for n in options.touch_lanes]
                              + [ByQemu(kind, postcopy=True) for kind in kinds],
                              figures.touch_table, [(lambda r: r.touch["p99_us"], "p99")]),
    }


def parse(argv):
    parser = argparse.ArgumentParser(description="Measures memferry next to QEMU's own migration; see docs/measuring.md.")
    names = ["idle", "dirty", "pause", "touch"]
    parser.add_argument("--parts", default=",".join(names), help="some of " + ",".join(names))
    parser.add_argument("--size", type=size, default=3 * GIB, help="guest RAM of idle and dirty (3G)")
    parser.add_argument("--data", type=size, default=2 * GIB, help="incompressible data in it (2G)")
    parser.add_argument("--run", type=int, default=16, help="pages in a row that are data, or zero (16)")
    parser.add_argument("--rate", type=size, default=32 * MIB, help="dirty: bytes per second (32M)")
    parser.add_argument("--small", type=size, default=512 * MIB, help="guest RAM of pause, data of touch (512M)")
    parser.add_argument("--turns", type=int, default=3, help="measured turns after the warm-up (3)")
    parser.add_argument("--lanes", type=numbers, default=[1, 2, 4], help="memferry's lanes (1,2,4)")
    parser.add_argument("--touch-lanes", type=numbers, default=[2], help="memferry's lanes in touch (2)")
    parser.add_argument("--channels", type=numbers, default=[2, 4], help="QEMU's multifd channels (2,4)")
    parser.add_argument("--no-anonymous", dest="anonymous", action="store_false", help="QEMU: RAM in shared files only")
    parser.add_argument("--accel", choices=["tcg", "kvm"], default="kvm" if kvm_has_hardware() else "tcg",
                        help="kvm where the kernel has VMX or SVM for it, else tcg")
    parser.add_argument("--json", metavar="FILE", help="all single results")
    parser.add_argument("--quick", action="store_true", help="small sizes, one turn: does it work?")
    options = parser.parse_args(argv)
    options.parts = options.parts.split(",")
    if options.quick:
        options.size, options.data, options.small, options.turns = 192 * MIB, 96 * MIB, 48 * MIB, 1
        options.lanes, options.channels, options.anonymous = [2], [2], False
    for name in options.parts:
        if name not in names:
            parser.error(f"no part {name}: {', '.join(names)}")
    if options.turns < 1 or not options.lanes or options.data > options.size:
        parser.error("at least one turn and one number of lanes, and no more data than RAM")
    return options


def lacking(options):
    """What makes all of it impossible here."""
    for name in "MEMFERRY", "MEMFERRY_GUEST":
        if not os.path.exists(os.environ.get(name, "")):
            return f"{name} does not name a file: use the target `bench`, or set MEMFERRY and MEMFERRY_GUEST to what was built"
    if host.first_line(QEMU, "--version") == "not known":
        return f"no {QEMU}"
    if options.accel not in accelerators():
        return "/dev/kvm cannot be opened"
    need = 2 * max(options.data, options.small) + GIB // 2
    ram, shm = host.free_memory()
    if ram < need or shm < need:
        return f"two guests need {need / GIB:.1f} GiB of memory; {ram / GIB:.1f} are free, {shm / GIB:.1f} in /dev/shm"
    return ""


def main(argv):
    options = parse(argv)
    reason = lacking(options)
    if reason:
        print(f"SKIP: {reason}")
        return 77
    host.exit_on_signals()
    for directory in "/tmp", "/dev/shm":
        host.sweep(directory)
    machine = host.describe(QEMU, ROOT)
    print(f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gib']} GiB, Linux {machine['kernel']}, {machine['qemu']}, "
          f"memferry {machine['commit']}; load {os.getloadavg()[0]:.1f}\n", flush=True)
    host.warm_memory(2 * max(options.data, options.small) + GIB // 4)
    report = {"machine": machine, "options": vars(options), "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "parts": {}}
    broken = None
    parts = make_parts(options)
    for name in options.parts:
        part = parts[name]()
        try:
            part.run(options.turns)
        except Failed as failed:
            broken = f"{name}: {failed}"
            break
        print(part.text(), flush=True)
        report["parts"][name] = part.data()
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if broken:
        print(broken, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
