#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Runs memferry and, turn about, the programs next to it: QEMU's own migration of the same guest, iperf3 and libfabric's
benchmarks over TCP, perftest over RDMA verbs.

It tells and never judges: the exit status is 0 unless something failed (1), the command line is wrong (2), or something needed
is absent (77). What is measured, and how, is in docs/measuring.md.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from harness import Failed, accelerators  # noqa: E402
from harness.qemu import kvm_has_hardware  # noqa: E402

import guests  # noqa: E402
import host  # noqa: E402
import peers  # noqa: E402
import streams  # noqa: E402
from part import Lacking  # noqa: E402

MIB, GIB = 1 << 20, 1 << 30
GROUPS = {"qemu": guests.NAMES, "tcp": ("tcp",), "verbs": ("verbs",)}
NAMES = [name for group in GROUPS.values() for name in group]
EPILOG = """\
parts:
  qemu    all of idle, dirty, pause, touch: a guest in two QEMUs, both on this host
  tcp     memferry-perf next to iperf3, fi_pingpong, and fi_rma_bw where it is installed; over loopback, or to --peer
  verbs   memferry-perf next to perftest; without --host in an emulated machine with Soft-RoCE (tests/vm/run)

two hosts (tcp, verbs):
  --peer NAME starts each server there by ssh, where memferry-perf and the peers' programs have to be in the PATH; clients,
  this program and the tables are here. --host is then the peer's address on the fabric that is measured.

What is missing of the peers here is installed by apt. MEMFERRY, MEMFERRY_PERF and MEMFERRY_GUEST name what was built; the
target `versus` sets them.
"""


def size(text):
    factor = {"K": 1 << 10, "M": MIB, "G": GIB}.get(text[-1:].upper(), 1)
    return int(text.rstrip("KMGkmg")) * factor


def numbers(text):
    return [int(word) for word in text.split(",")]


def add_guest_options(parser):
    group = parser.add_argument_group("qemu")
    group.add_argument("--size", type=size, default=3 * GIB, help="guest RAM of idle and dirty (3G)")
    group.add_argument("--data", type=size, default=2 * GIB, help="incompressible data in it (2G)")
    group.add_argument("--run", type=int, default=16, help="pages in a row that are data, or zero (16)")
    group.add_argument("--rate", type=size, default=32 * MIB, help="dirty: bytes per second (32M)")
    group.add_argument("--small", type=size, default=512 * MIB, help="guest RAM of pause, data of touch (512M)")
    group.add_argument("--lanes", type=numbers, default=[1, 2, 4], help="memferry's lanes (1,2,4)")
    group.add_argument("--touch-lanes", type=numbers, default=[2], help="memferry's lanes in touch (2)")
    group.add_argument("--channels", type=numbers, default=[2, 4], help="QEMU's multifd channels (2,4)")
    group.add_argument("--no-anonymous", dest="anonymous", action="store_false", help="QEMU: RAM in shared files only")
    group.add_argument("--accel", choices=["tcg", "kvm"], default="kvm" if kvm_has_hardware() else "tcg",
                       help="kvm where the kernel has VMX or SVM for it, else tcg")


def add_stream_options(parser):
    group = parser.add_argument_group("tcp, verbs")
    group.add_argument("--host", metavar="ADDRESS", help="where clients find the servers: for verbs an address of an RDMA device")
    group.add_argument("--peer", metavar="NAME", help="the servers' host, for ssh; without it they run here")
    group.add_argument("--seconds", type=int, default=3, help="each measurement of bandwidth (3)")
    group.add_argument("--exchanges", type=int, default=2000, help="in each measurement of latency (2000)")
    group.add_argument("--streams", type=int, default=2, help="tcp: besides one, so many streams or lanes (2)")
    group.add_argument("--vm", choices=["trixie", "bookworm"], default="trixie", help="verbs: the machine's kernel (trixie)")
    group.add_argument("--lines", action="store_true", help="print no tables, but each result as it comes, a line of JSON")


def make_quick(options):
    options.size, options.data, options.small, options.turns = 192 * MIB, 96 * MIB, 48 * MIB, 1
    options.lanes, options.channels, options.anonymous = [2], [2], False
    options.seconds, options.exchanges = 1, 100


def split_parts(parser, text):
    parts = []
    for name in text.split(","):
        if name not in GROUPS and name not in NAMES:
            parser.error(f"no part {name}: {', '.join([*GROUPS, *guests.NAMES])}")
        parts += [part for part in GROUPS.get(name, (name,)) if part not in parts]
    return parts


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="qemu,tcp,verbs", help="some of qemu, tcp, verbs, idle, dirty, pause, touch (all)")
    parser.add_argument("--turns", type=int, default=3, help="measured turns after the warm-up (3)")
    parser.add_argument("--json", metavar="FILE", help="all single results")
    parser.add_argument("--quick", action="store_true", help="small sizes, one turn: does it work?")
    add_guest_options(parser)
    add_stream_options(parser)
    options = parser.parse_args(argv)
    options.parts = split_parts(parser, options.parts)
    if options.quick:
        make_quick(options)
    if options.turns < 1 or not options.lanes or options.data > options.size:
        parser.error("at least one turn and one number of lanes, and no more data than RAM")
    if options.seconds < 1 or options.exchanges < 10 or options.streams < 1:
        parser.error("at least one second, ten exchanges, one stream")
    if options.peer and not options.host and "verbs" in options.parts:
        parser.error("--peer: verbs needs --host, the peer's address on its RDMA device")
    return options


def uses_guests(options):
    return any(name in guests.NAMES for name in options.parts)


def files_lacking(options):
    names = ["MEMFERRY", "MEMFERRY_GUEST"] if uses_guests(options) else []
    names += ["MEMFERRY_PERF"] if "tcp" in options.parts or "verbs" in options.parts else []
    for name in names:
        if not os.path.exists(os.environ.get(name, "")):
            return f"{name} does not name a file: use the target `versus`, or set {' and '.join(names)} to what was built"
    return ""


def commands(options):
    return ((["qemu-system-x86_64"] if uses_guests(options) else [])
            + (["iperf3", "fi_pingpong"] if "tcp" in options.parts else [])
            + (["ib_write_bw"] if "verbs" in options.parts else []))


def guests_lacking(options):
    if options.accel not in accelerators():
        return "/dev/kvm cannot be opened"
    need = 2 * max(options.data, options.small) + GIB // 2
    ram, shm = host.free_memory()
    if ram < need or shm < need:
        return f"two guests need {need / GIB:.1f} GiB of memory; {ram / GIB:.1f} are free, {shm / GIB:.1f} in /dev/shm"
    return ""


def lacking(options):
    """What makes all of it impossible here, after installing what could be."""
    return (files_lacking(options) or peers.install(commands(options))
            or (uses_guests(options) and guests_lacking(options)) or "")


def print_line(turn, job, contender, result):
    print(json.dumps({"turn": turn, "job": job, "contender": contender, "result": result}), flush=True)


def make_part(options, name):
    on_result = print_line if options.lines else None
    if name == "tcp":
        return streams.tcp(options, on_result)
    return streams.VerbsPart(options, on_result) if name == "verbs" else guests.make(options, name)


def run(options, report):
    """A sentence what failed, or ""; raises Lacking."""
    for name in options.parts:
        part = make_part(options, name)
        try:
            part.run(options.turns)
        except Failed as failed:
            return f"{name}: {failed}"
        if not options.lines:
            print(part.text() + "\n", flush=True)
        report["parts"][name] = part.data()
    return ""


def prepare(options):
    """The host as it is before, told; its memory warm."""
    host.exit_on_signals()
    machine = host.describe(ROOT, [peers.PACKAGES[name] for name in commands(options)])
    if not options.lines:
        versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
        print(f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gib']} GiB, Linux {machine['kernel']}, {versions}, "
              f"memferry {machine['commit']}; load {os.getloadavg()[0]:.1f}\n", flush=True)
    if uses_guests(options):
        for directory in "/tmp", "/dev/shm":
            host.sweep(directory)
        host.warm_memory(2 * max(options.data, options.small) + GIB // 4)
    return machine


def main(argv):
    options = parse(argv)
    reason = lacking(options)
    if reason:
        print(f"SKIP: {reason}")
        return 77
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    report = {"machine": prepare(options), "options": vars(options), "when": when, "parts": {}}
    broken, reason = "", ""
    try:
        broken = run(options, report)
    except Lacking as lack:
        reason = str(lack)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if broken:
        print(broken, file=sys.stderr)
        return 1
    if reason:
        print(f"SKIP: {reason}")
    return 77 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
