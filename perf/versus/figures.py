# SPDX-License-Identifier: BSD-2-Clause
"""Medians, ratios, and tables of them."""
from statistics import median

KIB, MIB = 1 << 10, 1 << 20

# Of streams, by key: what it is, how it is printed, whether more is better.
FIGURES = {
    "gb_per_s": ("GB/s", "{:.3g}", True),
    "cpu_s_per_gb": ("CPU s for 1 GB", "{:.3g}", False),
    "median_us": ("median µs", "{:.1f}", False),
    "mean_us": ("mean µs", "{:.1f}", False),
    "p99_us": ("p99 µs", "{:.1f}", False),
}


def middle(results, value):
    return median(value(r) for r in results)


def ratio(ours, theirs, value):
    """(median theirs / median ours, its least and most within one turn): above 1 is good for us."""
    turns = [value(t) / value(o) for o, t in zip(ours, theirs)]
    return middle(theirs, value) / middle(ours, value), min(turns), max(turns)


def best(contenders, results, value):
    """Of some contenders the one with the least median."""
    return min(contenders, key=lambda c: middle(results[c.name], value))


def render(head, rows):
    """Markdown that lines up; all but the first column to the right."""
    cells = [head] + [[str(c) for c in row] for row in rows]
    width = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row):
        return "| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, width))) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(width)) + "|"
    return "\n".join([line(cells[0]), rule] + [line(row) for row in cells[1:]])


def spread(results, value, form="{:.2f}"):
    values = [value(r) for r in results]
    return f"{form.format(min(values))} to {form.format(max(values))}"


def time_table(contenders, results):
    """How long moves took, and what they cost."""
    rows = []
    for c in contenders:
        r = results[c.name]
        anon = " / ".join(f"{middle(r, lambda x, s=s: x.anon[s]) / MIB:.1f}" for s in ("send", "receive")) if c.ours else "-"
        rows.append([
            c.name,
            f"{middle(r, lambda x: x.seconds):.2f}",
            spread(r, lambda x: x.seconds),
            f"{middle(r, lambda x: x.bytes) / MIB:.0f}",
            f"{middle(r, lambda x: x.pause_ms):.1f}",
            f"{middle(r, lambda x: x.cpu):.2f}",
            f"{middle(r, lambda x: x.mover_cpu):.2f}" if c.ours else "-",
            anon,
        ])
    return render(["", "s", "spread", "MiB moved", "pause ms", "CPU s", "of it memferry", "RssAnon MiB send / receive"], rows)


def pause_table(contenders, results):
    rows = [[c.name, f"{middle(results[c.name], lambda x: x.pause_ms):.1f}",
             spread(results[c.name], lambda x: x.pause_ms, "{:.1f}"),
             f"{middle(results[c.name], lambda x: x.own_pause_ms):.0f}"] for c in contenders]
    return render(["", "pause ms", "spread", "as it says itself"], rows)


def touch_table(contenders, results):
    rows = []
    for c in contenders:
        r = results[c.name]
        rows.append([c.name] + [f"{middle(r, lambda x, k=k: x.touch[k]):.0f}" for k in ("p50_us", "p90_us", "p99_us", "p99_9_us",
                                                                                    "max_us")]
                    + [spread(r, lambda x: x.touch["p99_us"], "{:.0f}"), f"{middle(r, lambda x: x.touch['ms']):.0f}",
                       f"{middle(r, lambda x: x.whole_seconds):.2f}", f"{middle(r, lambda x: x.pause_ms):.1f}"])
    return render(["", "p50 µs", "p90", "p99", "p99.9", "max", "p99 spread", "all touched ms", "all here s", "pause ms"], rows)


def compare(contenders, results, value, what):
    """One sentence: our best against theirs."""
    ours, theirs = [c for c in contenders if c.ours], [c for c in contenders if not c.ours]
    if not ours or not theirs:
        return ""
    ours, theirs = best(ours, results, value), best(theirs, results, value)
    by, least, most = ratio(results[ours.name], results[theirs.name], value)
    return (f"{what}: {theirs.name} needs {by:.2f} times as much as {ours.name} "
            f"({least:.2f} to {most:.2f} in single turns).")


def say(key, value):
    name, form, _ = FIGURES[key]
    return f"{name} {form.format(value)}"


def stream_row(job, peer, ours, theirs, key):
    """One figure, of the turns in which both have it: theirs, ours, and how many times better ours is."""
    what, form, more = FIGURES[key]
    both = [(o, t) for o, t in zip(ours, theirs) if key in o and key in t]
    if not both:
        return [f"{job}, {what}", peer] + ["-"] * 6
    ours, theirs = zip(*both)

    def value(result):
        return result[key]

    by, least, most = ratio(theirs, ours, value) if more else ratio(ours, theirs, value)
    cells = [cell for side in (theirs, ours) for cell in (form.format(middle(side, value)), spread(side, value, form))]
    return [f"{job}, {what}", peer, *cells, f"{by:.2f}", f"{least:.2f} to {most:.2f}"]


def stream_table(jobs, results):
    rows = []
    for job in jobs:
        ours = next(c for c in job.contenders if c.ours)
        for peer in [c for c in job.contenders if not c.ours]:
            rows += [stream_row(job.name, peer.name, results[job.name][ours.name], results[job.name][peer.name], key)
                     for key in FIGURES if key in ours.keys and key in peer.keys]
    return render(["", "peer", "peer's", "spread", "memferry's", "spread", "ratio", "in single turns"], rows)


def gap(results):
    """
    One sentence. An operation costs a + b * bytes; a / b bytes cost as much as one more operation: what a transport's limits.gap
    is meant to be.
    """
    sizes = [f"write {size} KiB" for size in (4, 64)]
    if not all(size in results for size in sizes):  # a quick run measures less
        return ""
    rates = [results[size]["memferry"] for size in sizes]
    small, large = (size * KIB / middle(r, lambda x: x["gb_per_s"]) for size, r in zip((4, 64), rates))
    per_byte = (large - small) / (60 * KIB)
    if per_byte <= 0 or small <= per_byte * 4 * KIB:
        return "memferry: what one more operation costs is lost in the noise: writes of 4 KiB were as fast as of 64 KiB."
    by_size = small / per_byte - 4 * KIB
    return f"memferry: one more operation costs as much as {by_size:.0f} bytes more in one, by its writes of 4 and of 64 KiB."
