#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
The unit memferry-receive@.service: systemd takes it, finds it safe, and it lets through what memferry's own filters do.

    unit.py ROOT MEMFERRY    check it
    unit.py --self-test      prove that a unit that is wrong, open or too narrow is found
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import tree

UNIT = "memferry-receive@.service"
EXPOSURE = 25  # tenths: the most that docs/security.md promises
FILTER = "engine/base/filter_seccomp.c"
# What comes before the filters of memferry's own: being started, forking, dropping.
BEFORE = {"execve", "clone", "setsid", "capget", "capset", "prctl", "seccomp", "prlimit64", "setrlimit", "kill", "tgkill"}


def systemd_analyze(*args):
    done = subprocess.run(["systemd-analyze", *args], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def allowed(text):
    """What SystemCallFilter= lines make of each other: the first is a list of what is allowed."""
    calls = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", text, re.M):
        remove = line.startswith("~")
        named = set()
        for word in line.lstrip("~").split():
            named |= members(word.split(":")[0])
        calls = calls - named if remove else calls | named
    return calls


def members(name):
    if not name.startswith("@"):
        return {name}
    found = set()
    for line in systemd_analyze("syscall-filter", "--no-pager", name)[1].splitlines()[1:]:
        word = line.strip()
        if word and not word.startswith("#"):
            found |= members(word)
    return found


def needed(source):
    text = tree.without_comments(source)
    return set(re.findall(r"\b(?:CALL|IF|IF_BITS)\((\w+), (?:MOVE|REACH|BOTH)\b", text)) | {"ioctl"} | BEFORE


def check(unit, source, program):
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, UNIT)
        path.write_text(unit.replace("@BINDIR@/memferry", str(program)))
        code, said = systemd_analyze("verify", "--man=no", str(path.with_name(UNIT.replace("@", "@vm1"))))
        if code or said.strip():
            problems.append(f"systemd-analyze verify: {said.strip() or code}")
        code, said = systemd_analyze("security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(path))
        score = re.search(r"exposure level for \S+ (\d+\.\d+ \w+)", said)
        if code or not score:
            problems.append(f"exposure {score.group(1) if score else said.strip()}: at most {EXPOSURE / 10} is promised")
    missing = needed(source) - allowed(unit)
    if missing:
        problems.append(f"SystemCallFilter= lacks what {FILTER} allows: {', '.join(sorted(missing))}")
    return problems, score.group(1) if score else "?"


def self_test(root):
    unit = (root / "engine/cli" / (UNIT + ".in")).read_text()
    source = (root / FILTER).read_text()
    cases = [
        ("verify", unit.replace("Type=exec", "Type=nonsense")),
        ("exposure", unit.replace("NoNewPrivileges=yes\n", "").replace("User=memferry\n", "")),
        ("exposure", re.sub(r"^SystemCallFilter=.*\n", "", unit, flags=re.M)),
        ("lacks", unit.replace(" ptrace ", " ")),
        ("lacks", unit + "[Service]\nSystemCallFilter=~@network-io\n"),
    ]
    problems = []
    for word, text in cases:
        found, _ = check(text, source, "/bin/true")
        if text == unit or not any(word in problem for problem in found):
            problems.append(f"a fault that \"{word}\" should tell was not found: {found}")
    tree.verdict(problems, f"{len(cases)} faulty units")


if __name__ == "__main__":
    if not shutil.which("systemd-analyze"):
        tree.skip("no systemd-analyze here")
    if sys.argv[1] == "--self-test":
        self_test(pathlib.Path(__file__).resolve().parents[2])
    where = pathlib.Path(sys.argv[1])
    bad, level = check((where / "engine/cli" / (UNIT + ".in")).read_text(), (where / FILTER).read_text(), sys.argv[2])
    tree.verdict(bad, f"{UNIT}: exposure {level}")
