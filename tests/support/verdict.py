# SPDX-License-Identifier: BSD-2-Clause
"""
What came of a move that ./demo.sh ran: verdict.py FOLDER BANDWIDTH.

FOLDER holds what the destination's memferry said (receive.json) and what the guest said on its serial port at
either side (source.log, destination.log).  Exit status 0: it is here, whole.
"""
import json
import pathlib
import re
import sys


def find_problems(report, said):
    """All that speaks against it, by memferry's comparison and by the guest's own."""
    lines = [line for line in said.split("\n")[:-1] if line.startswith("HB")]
    matches = [re.fullmatch(r"HB n=(\d+) ms=\d+ writes=\d+ checked=\d+ passes=\d+ wrong=\d+", line) for line in lines]
    beats = [int(match[1]) if match else 0 for match in matches]
    verify = report.get("verify") or {"pages": 0, "mismatches": 0}
    wrong = max(map(int, re.findall(r"wrong=(\d+)", said)), default=0)
    if report.get("event") != "report" or report["outcome"] != "completed":
        yield "the destination does not say that the move was completed"
    elif verify["pages"] != report["pages_total"]:
        yield f"memferry compared {verify['pages']} pages, and the guest has {report['pages_total']}"
    if verify["mismatches"]:
        yield f"memferry found {verify['mismatches']} pages that differ"
    if wrong or "WRONG" in said:
        yield f"the guest found wrong pages, {wrong} at the last count"
    if not re.search(r"^CHECKED pages=[1-9]\d* .* wrong=0 ", said, re.M):
        yield "the guest has not said that every page is right"
    if beats != list(range(1, len(beats) + 1)):
        yield "heartbeats of the guest are missing, garbled, or came twice"


def say_time(ms):
    return f"{ms} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def summary(report, checked, bandwidth):
    postcopy = report["postcopy"]
    yield "total time", (f"{say_time(report['total_ms'])} for {report['pages_total'] // 256} MiB, {report['mode']}, "
                         f"over {report['transport']}" + ("" if bandwidth == "0" or report["mode"] == "postcopy" else f" held to {bandwidth}/s"))
    yield "downtime", f"{say_time(report['downtime_ms'])}, the hashing of every page on both sides included"
    yield "rounds", f"{len(report['rounds'])} while the guest ran" + ("" if postcopy else ", and the last while it stood")
    if postcopy:
        yield "faults", (f"{postcopy['faults']}: touches of pages still missing, half of them served within "
                         f"{postcopy['latency_us']['p50']} us")
        yield "post-copy", f"{say_time(postcopy['ms'])} for the {postcopy['pulled_pages'] >> 8} MiB that were still missing"
    else:
        yield "faults", "0: every page was there before the guest was"
    yield "wrong bytes", f"0: memferry compared {report['verify']['pages']} pages, the guest checked {checked} itself"


def main(folder, bandwidth):
    folder = pathlib.Path(folder)
    report = json.loads((folder / "receive.json").read_text().splitlines()[-1])
    # A line that the guest began at the source it ended at the destination.
    said = "".join((folder / f"{side}.log").read_text().replace("\r", "") for side in ("source", "destination"))
    problems = list(find_problems(report, said))
    if problems:
        print("\n".join(f"  FAILED: {problem}" for problem in problems))
        return 1
    checked = re.search(r"^CHECKED pages=(\d+)", said, re.M)[1]
    print("\nThe guest moved, whole:")
    for name, text in summary(report, checked, bandwidth):
        print(f"  {name:12} {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
