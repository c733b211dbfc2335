# SPDX-License-Identifier: BSD-2-Clause
"""The parts of `qemu`: the same guest, moved by memferry and by QEMU itself."""
import dataclasses

import figures
from moves import ByMemferry, ByQemu, Guest
from part import Job, Part

MIB, GIB = 1 << 20, 1 << 30
NAMES = "idle", "dirty", "pause", "touch"


class GuestPart(Part):
    def __init__(self, name, title, guest, contenders, table, sentences=()):
        for contender in contenders:
            contender.guest = guest
        super().__init__(name, title, [Job("", contenders)])
        self._guest, self._contenders, self._table, self._sentences = guest, contenders, table, sentences

    def say(self, result):
        return f"{result.seconds:.2f} s, pause {result.pause_ms:.1f} ms"

    def text(self):
        results = self.results[""]
        lines = [f"## {self.title}", "", self._table(self._contenders, results), ""]
        for value, what in self._sentences:
            lines.append(figures.compare(self._contenders, results, value, what))
        return "\n".join(lines)

    def data(self):
        return {"guest": dataclasses.asdict(self._guest),
                "results": {name: [dataclasses.asdict(r) for r in results] for name, results in self.results[""].items()}}


def kinds(options):
    return ["shm", "private"] if options.anonymous else ["shm"]


def precopy(options, name, title, parameters):
    """All that move before the switch."""
    zero = 100 - 100 * options.data // options.size
    guest = Guest(options.size, f"zero={max(zero, 0)} data={options.data} run={options.run} {parameters}", options.accel)
    movers = [ByMemferry(n) for n in options.lanes]
    movers += [ByQemu(kind, channels) for channels in [0] + options.channels for kind in kinds(options)]
    return GuestPart(name, title, guest, movers, figures.time_table,
                     [(lambda r: r.seconds, "Time"), (lambda r: r.cpu, "CPU")])


def pause(options):
    guest = Guest(options.small, f"idle=1 zero=0 data={options.small // 2} run={options.run}", options.accel)
    return GuestPart("pause", f"Pause to resume, idle guest: {options.small / GIB:g} GiB, {options.accel}", guest,
                     [ByMemferry(options.lanes[0]), ByQemu("shm")], figures.pause_table)


def touch(options):
    guest = Guest(options.small * 2, f"idle=1 zero=0 data={options.small} run={options.run}", options.accel)
    movers = [ByMemferry(n, postcopy=True) for n in options.touch_lanes]
    movers += [ByQemu(kind, postcopy=True, preempt=preempt) for preempt in (False, True) for kind in kinds(options)]
    return GuestPart("touch", f"Post-copy, first touch of each page: {options.small / GIB:g} GiB of data, {options.accel}", guest,
                     movers, figures.touch_table, [(lambda r: r.touch["p99_us"], "p99")])


def make(options, name):
    what = f"{options.size / GIB:g} GiB, {options.data / GIB:g} GiB of data, {options.accel}"
    if name == "idle":
        return precopy(options, name, f"Pre-copy, idle guest: {what}", "idle=1")
    if name == "dirty":
        return precopy(options, name, f"Pre-copy, guest writes {options.rate // MIB} MiB/s: {what}",
                       f"check=0 hot={options.rate} rate={options.rate}")
    return pause(options) if name == "pause" else touch(options)
