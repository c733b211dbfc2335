#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Reads what ctest wrote with --output-junit, and judges the skips: one that tests/expected-skips does
not allow, here, is a failure.

    report.py JUNIT EXPECTED_SKIPS TALLY     judge one run; adds "PASSED FAILED SKIPPED" to TALLY
    report.py --stage NAME REASON EXPECTED_SKIPS TALLY     judge a stage of test.sh that was left out
    report.py --self-test
"""

import fnmatch
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

PRELUDE = r"""
kernel_before() { [ "$(printf '%s\n%s\n' "$1" "$(uname -r)" | sort -V | head -n 1)" != "$1" ]; }
lacks() { ! command -v "$1" >/dev/null; }
can_kvm() { [ -c /dev/kvm ] && (exec 3<>/dev/kvm) 2>/dev/null; }
lacks_soft_dirty() { ! grep -q '^VmFlags:.* sd' /proc/self/smaps; }
huge_pages_below() { [ "$(awk '/^HugePages_Total/ { print $2 }' /proc/meminfo)" -lt "$1" ]; }
"""


def rules(path):
    for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        # The condition may hold bars of its own: the first and the last one part the columns.
        name, _, rest = line.partition(" | ")
        condition, _, why = rest.rpartition(" | ")
        if not condition.strip() or not why.strip():
            sys.exit(f"{path}:{number}: write TEST | CONDITION | WHY")
        yield name.strip(), condition.strip(), why.strip()


def expected(name, table):
    """The line that makes this skip fine here; None: there is none."""
    for pattern, condition, why in table:
        if fnmatch.fnmatchcase(name, pattern):
            run = subprocess.run(["bash", "-c", PRELUDE + condition], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
            if run.returncode == 0:
                return pattern, why
    return None


NO_REASON = "no reason given"


def reason_in(output):
    found = re.search(r"^(?:.*?: )?SKIP(?:PED)?: *(.+)$", output, re.M)
    return found.group(1).strip() if found else NO_REASON


def cases_skipped(output):
    """(case, reason) of each case that a program skipped, in cmocka's words or as SKIP: CASE: REASON."""
    found, reason, is_cmocka = {}, NO_REASON, False
    for line in output.splitlines():
        if line.startswith("[ RUN "):
            reason, is_cmocka = NO_REASON, True
        elif line.startswith("SKIP: "):
            reason = line[len("SKIP: "):].strip()
            if not is_cmocka:
                case, colon, why = reason.partition(": ")
                found.setdefault(case if colon else "?", why or reason)
        elif match := re.match(r"\[  SKIPPED \] (?!.*test\(s\))(.+)$", line):
            found.setdefault(match.group(1).strip(), reason)  # again in the closing list
            reason = NO_REASON
    return list(found.items())


def read(junit):
    """Passed and failed names, and (name, reason) of whole tests and of single cases skipped."""
    passed, failed, skipped, parts = [], [], [], []
    for case in xml.etree.ElementTree.parse(junit).getroot().iter("testcase"):
        name, status = case.get("name"), case.get("status")
        output = case.findtext("system-out") or ""
        mark = case.find("skipped")
        if status == "disabled":
            skipped.append((name, "disabled in CMake"))
        elif mark is not None and "SKIP_RETURN_CODE" in mark.get("message", ""):
            skipped.append((name, reason_in(output)))
        elif status != "run" or case.find("failure") is not None:
            failed.append(name)
        else:
            passed.append(name)
            parts += [(f"{name}/{part}", reason) for part, reason in cases_skipped(output)]
    return passed, failed, skipped, parts


def judge(passed, failed, skipped, parts, table, tally):
    """Says what was skipped; 0 where every skip was expected and nothing failed."""
    surprises, allowed, told = 0, 0, {}
    for name, reason in skipped + parts:
        line = expected(name, table)
        if line:
            allowed += (name, reason) in skipped  # a test that skipped a part has passed
            told.setdefault(line, []).append(f"{name}: {reason}")
        else:
            surprises += 1
            print(f"UNEXPECTED SKIP: {name}: {reason} (tests/expected-skips does not allow it here)")
    for (pattern, why), names in told.items():
        more = f" and {len(names) - 1} more like {pattern}" if names[1:] else ""
        print(f"skipped: {names[0]}{more} (expected here: {why})")
    for name in failed:
        print(f"FAILED: {name}")
    bad = len(failed) + surprises
    with open(tally, "a", encoding="utf-8") as file:
        file.write(f"{len(passed)} {bad} {allowed}\n")
    return 1 if bad else 0


def self_test():
    def case(name, inside="", status="run"):
        return f'<testcase name="{name}" status="{status}">{inside}</testcase>'
    whole = ('<skipped message="SKIP_RETURN_CODE=77"/><system-out>SKIP: no {}</system-out>')
    part = ("<system-out>[ RUN      ] one, two\nSKIP: no y\n[  SKIPPED ] one, two\n"
            "[  SKIPPED ] 1 test(s), listed below:\n[  SKIPPED ] one, two\n</system-out>")
    table = "listed | true | here\nlisted_elsewhere | false | there\npartly/one, * | true | x | y\n"
    runs = [  # cases, exit status, passed, failed, skipped
        (case("good"), 0, (1, 0, 0)),
        (case("bad", '<failure message=""/>', "fail"), 1, (0, 1, 0)),
        (case("gone", '<skipped message="Unable to find executable"/>', "notrun"), 1, (0, 1, 0)),
        (case("listed", whole.format("x"), "notrun"), 0, (0, 0, 1)),
        (case("listed_elsewhere", whole.format("x"), "notrun"), 1, (0, 1, 0)),
        (case("unlisted", whole.format("x"), "notrun"), 1, (0, 1, 0)),
        (case("off", "", "disabled"), 1, (0, 1, 0)),
        (case("partly", part.replace("\n", "&#10;")), 0, (1, 0, 0)),
        (case("other", part.replace("\n", "&#10;")), 1, (1, 1, 0)),
        (case("says", "<system-out>SKIP: half of it</system-out>"), 1, (1, 1, 0)),
        (case("partly", "<system-out>SKIP: one, y: gone&#10;SKIP: two: gone</system-out>"), 1,
         (1, 1, 0)),
    ]
    for cases, status, counts in runs:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "j.xml").write_text(f"<testsuite>{cases}</testsuite>")
            (root / "skips").write_text("# x\n" + table.replace("true | x | y", "true || x | y"))
            got = judge(*read(root / "j.xml"), list(rules(root / "skips")), root / "tally")
            tally = tuple(map(int, (root / "tally").read_text().split()))
            if (got, tally) != (status, counts):
                sys.exit(f"{cases}: {got}, {tally} instead of {status}, {counts}")
    print(f"ok: {len(runs)} reports")


def main(args):
    if args == ["--self-test"]:
        self_test()
        return 0
    if args[0] == "--stage":
        _, name, reason, skips, tally = args
        return judge([], [], [(f"stage/{name}", reason)], [], list(rules(skips)), tally)
    junit, skips, tally = args
    return judge(*read(junit), list(rules(skips)), tally)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
