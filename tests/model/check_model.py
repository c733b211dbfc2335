#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
The model of the hand-off, handoff.pml: held to the table of engine/core/state.c, and searched by Spin.

    check_model.py table ROOT              the model's transitions are those of the table, both ways
    check_model.py table --self-test
    check_model.py search ROOT [CC]        all states: no error with the rules, one with each broken rule
    check_model.py show ROOT RULE ...      how it goes wrong with these rules, step by step
"""

import concurrent.futures
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "checks"))
import protocol_table  # noqa: E402
import tree  # noqa: E402

# States of the code before there is anything to hand off, and of a mere check.
OUTSIDE = {"idle", "connect", "check", "checked"}

GO = re.compile(r"\bGO\((\w), (\w+), (\w+)\)")
BEGIN = re.compile(r"\bBEGIN\(\w, (\w+)\)")

# Properties: assertions ("never": two guests, a lost one, a source that resumes by itself), and the LTL formula.
NEVER, SETTLES = "never", "settles"

RIGHT = [
    ((), (NEVER, SETTLES), "the rules of docs/protocol.md"),
    (("NO_RESUME", "FORGET", "BYE_BEFORE_ACTING", "BYE_BEFORE_REMOVAL", "RECORD_STAYS", "READY_UNRECORDED"), (NEVER,), "no process is started again; then these five do no harm"),
    (("RECORD_IS_LOST",), (NEVER,), "the destination's records may vanish"),
]

WRONG = [
    (("SILENCE_RESUMES",), NEVER, "the source resumes when nobody answers"),
    (("COMMIT_BEFORE_RECORD",), NEVER, "the source commits before it is recorded"),
    (("RECORD_BEFORE_END",), NEVER, "the source removes its record before it ends its guest"),
    (("OWNER_ENDS",), NEVER, "the source ends its guest on OWNER"),
    (("BYE_BEFORE_ACTING",), SETTLES, "the source says Bye to an answer before it acts on it"),
    (("BYE_BEFORE_REMOVAL",), SETTLES, "the source says Bye to Done before its record is gone"),
    (("ABORTED_FORGOTTEN",), SETTLES, "the source cannot resume its guest on ABORTED, removes its record and says Bye"),
    (("NO_QUESTION",), SETTLES, "a resumed source whose guest has ended, or runs, does not ask"),
    (("BLIND_GUARDIAN",), NEVER, "the guardian does not look for the record"),
    (("NO_GUARDIAN",), SETTLES, "the source has no guardian"),
    (("READY_UNRECORDED",), SETTLES, "the destination says Ready and does not record it"),
    (("RUN_BEFORE_RECORD",), NEVER, "the destination runs the guest before it is recorded"),
    (("RECORD_STAYS",), NEVER, "an 'owner' that could not be synced stays behind"),
    (("RECORD_REMOVED",), SETTLES, "an 'owner' that could not be synced is removed, and with it 'ready'"),
    (("LATE_COMPLETE",), SETTLES, "the destination ends its pager before it records 'complete'"),
    (("ABORTED_UNRECORDED",), NEVER, "the destination answers ABORTED and does not keep to it"),
    (("LATE_COMMIT",), NEVER, "a destination that aborted takes a late Commit"),
    (("NO_LOCK",), NEVER, "a destination is resumed while its first process lives"),
    (("FORGET",), SETTLES, "the destination removes its record though no Bye came"),
    (("NO_RECORD_ABORTS", "RECORD_IS_LOST"), NEVER, "the destination's record vanishes, and no record means ABORTED"),
    (("NO_RECORD_ABORTS", "FORGET"), NEVER, "no record means ABORTED, and 'complete' is removed though no Bye came"),
    (("NO_RECORD_ABORTS", "BYE_BEFORE_ACTING"), NEVER, "no record means ABORTED, and the source says Bye before it acts"),
    (("NO_RECORD_ABORTS", "BYE_BEFORE_REMOVAL"), NEVER, "no record means ABORTED, and the source says Bye before its record is gone"),
    (("NO_RECORD_ABORTS", "DROPS_ANY"), NEVER, "no record means ABORTED, and a guest that runs is dropped"),
]


# ---- the table ----

def active(text, defines=()):
    """[(line number, line)] that #ifdef and #ifndef leave, without comments."""
    lines, taken = [], []
    for number, line in enumerate(tree.without_comments(text).split("\n"), 1):
        directive = re.match(r"#(ifdef|ifndef|else|endif)\b\s*(\w*)", line)
        if not directive:
            if all(taken) and not line.startswith("#"):
                lines.append((number, line))
        elif directive[1] == "else":
            taken[-1] = not taken[-1]
        elif directive[1] == "endif":
            taken.pop()
        else:
            taken.append((directive[2] in defines) == (directive[1] == "ifdef"))
    return lines


def transitions(lines):
    """{(from, to): numbers of its lines}, and the states that resumed processes begin in."""
    found, begins = {}, set()
    for number, line in lines:
        for _, *pair in GO.findall(line):
            found.setdefault(tuple(name.replace("_", "-") for name in pair), set()).add(number)
        begins |= {name.replace("_", "-") for name in BEGIN.findall(line)}
    return found, begins


def in_table(code):
    return {(state, to) for state, (_, after) in code.items() for to in after}


def differences(code, lines):
    if not code:
        yield "state.c: no table was found; has its form changed?"
    found, begins = transitions(lines)
    modelled = {state for pair in found for state in pair}
    for state in sorted(code.keys() - modelled - OUTSIDE):
        yield f"handoff.pml: state '{state}' of state.c is missing: model it, or name it in OUTSIDE"
    for pair in sorted(found.keys() - in_table(code)):
        yield f"handoff.pml: {pair[0]} -> {pair[1]} is not in the table of state.c"
    for state, to in sorted(in_table(code) - found.keys()):
        # From outside a move enters the model at `prepare`, or ends, or goes on where --resume goes on.
        if to not in OUTSIDE and (state not in OUTSIDE or to not in begins | {"prepare", "aborted"}):
            yield f"handoff.pml: {state} -> {to} of state.c is missing"
    for number, line in lines:
        for side, to in re.findall(r"(?<!mtype )\b([sd]) = (\w+)", line):
            if to != "gone":
                yield f"handoff.pml:{number}: '{side} = {to}': write GO() or BEGIN()"


def self_test():
    code = {"idle": ("", {"prepare"}), "prepare": ("", {"ready", "in-doubt"}), "ready": ("", {"in-doubt"}), "in-doubt": ("", set())}
    text = ("GO(s, prepare, ready)\nGO(d, ready, in_doubt)\n#ifdef X\nGO(s, ready, prepare)\n#else\nGO(s, prepare, in_doubt)\n#endif\n"
            "#ifndef X\n/* s = ready */\n#endif\nBEGIN(s, ready); s = gone\n")
    resumed = dict(code, idle=("", {"prepare", "ready"}))
    cases = [(code, text, (), 0), (code, text, ("X",), 2), (resumed, text, (), 0),
             (resumed, text.replace("BEGIN", "END"), (), 1), (code, text.replace("/*", "").replace("*/", ""), (), 1),
             (code, text.replace("GO(d, ready, in_doubt)", ""), (), 1), (dict(code, new=("", set())), text, (), 1), ({}, "", (), 1)]
    for table, model, defines, problems in cases:
        found = list(differences(table, active(model, defines)))
        if len(found) != problems:
            sys.exit(f"{model}\n{found}: not {problems}")
    print(f"ok: {len(cases)} models")


# ---- the search ----

class Verifier:
    """Spin's program for one set of rules and one property."""

    def __init__(self, model, folder, cc, rules, what, short=False):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=folder))
        self.what, self.short = what, short
        # Each statement for itself (-o3), so that what was not reached is told by line.
        self._run("spin", "-a", "-o3", *[f"-D{rule}" for rule in rules], str(model))
        # Every interleaving, each state compared as a whole.  There are few: optimising would take longer than it saves.
        flags = ["-DNOREDUCE", "-DMEMLIM=2000"] + (["-DSAFETY", "-DNOCLAIM"] if what == NEVER else []) + (["-DBFS"] if short else [])
        self._run(cc, "-O0", "-w", *flags, "-o", "pan", "pan.c")

    def _run(self, *command):
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def search(self, depth=1000000):
        said = self._run("./pan", f"-m{depth}", "-w20", *(["-a"] if self.what == SETTLES else []))
        self.errors = int(re.search(r"errors: (\d+)", said)[1])
        self.states = int(re.search(r"(\d+) states, stored", said)[1])
        self.depth = int(re.search(r"depth reached (\d+)", said)[1])
        self.memory = float(re.search(r"([\d.]+)\ttotal actual memory", said)[1])
        self.why = " ".join(re.findall(r"^pan:1: (.*)", said, re.M))
        self.complete = not re.search(r"not completed|too small|out of memory|memory limit|pan: reached", said)
        self.unreached = {int(line) for line in re.findall(r':(\d+), state \d+, "assert\(\([sd]==', said)}
        return self

    def steps(self, text):
        """Of the error that was found: (process, what it does), an option of its loop each."""
        trail, = self.folder.glob("*.trail")
        lines, loops, turn = text.split("\n"), {}, None
        said = self._run("./pan", "-r", trail.name).replace("<<<<<START OF CYCLE>>>>>", "\n- START (cycle) x:0 (state 0)\t[]\n")
        for process, at, state, statement in re.findall(r" \((\w+)\) \S+?:(\d+) \(state (\d+)\)\t\[(.*)\]", said):
            # A turn begins with a loop's guard, which is shown with the line of the loop's first one.
            begins = loops.setdefault(process, state) == state
            if turn and (begins or process != turn[0]):
                yield turn[0], " ".join(turn[2]) or turn[1]
                turn = None
            if process in ("source", "destination", "world"):
                turn = turn or (process, statement, [])
                line = re.sub(r"\s+", " ", lines[int(at) - 1]).strip()
                if not begins and line not in turn[2]:
                    turn[2].append(line)
            elif process == "cycle":
                yield "", "from here on again and again:"
        if turn:
            yield turn[0], " ".join(turn[2]) or turn[1]


def search_one(model, folder, cc, rules, what):
    return Verifier(model, folder, cc, rules, what).search()


def uncovered(text, unreached_by_run):
    """Transitions that no execution of the rules as they are makes."""
    found, _ = transitions(active(text))
    return sorted(pair for pair, lines in found.items() if lines <= unreached_by_run)


def search(root, cc):
    if not shutil.which("spin"):
        tree.skip("no spin (Debian: apt install spin)")
    model = root / "tests/model/handoff.pml"
    jobs = [(rules, what, why, True) for rules, properties, why in RIGHT for what in properties]
    jobs += [(rules, what, why, False) for rules, what, why in WRONG]
    problems = []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(search_one, model, folder, cc, rules, what) for rules, what, _, _ in jobs]
        for (rules, what, why, right), run in zip(jobs, runs):
            v = run.result()
            name = " ".join(rules) or "handoff.pml"
            print(f"{'right' if right else 'wrong'} {what:8} {v.states:7} states  depth {v.depth:5}  errors {v.errors}  "
                  f"{v.memory:4.0f} MiB  {why} [{name}]{': ' + v.why if v.why else ''}", flush=True)
            if right and v.errors:
                problems.append(f"{name}: {v.why}; `check_model.py show {root} {' '.join(rules)}` shows how")
            elif right and not v.complete:
                problems.append(f"{name}: the search of '{what}' was not completed")
            elif not right and not v.errors:
                problems.append(f"{name}: '{what}' holds, although {why}: the model does not see it")
            if not rules and what == NEVER and not v.errors:
                problems += [f"handoff.pml: no execution makes {a} -> {b}" for a, b in uncovered(model.read_text(), v.unreached)]
    tree.verdict(problems, f"{len(RIGHT)} sets of rules hold, {len(WRONG)} broken ones are found out")


def show(root, rules, cc="cc"):
    """The shortest way; for what never settles, a short one."""
    model = root / "tests/model/handoff.pml"
    known = set(re.findall(r"^#ifn?def (\w+)", model.read_text(), re.M))
    if not known.issuperset(rules):
        sys.exit(f"RULE is one of: {', '.join(sorted(known))}")
    with tempfile.TemporaryDirectory() as folder:
        v = Verifier(model, folder, cc, rules, NEVER, short=True).search()
        depth = 60
        while not v.errors and depth < 2000000:
            if depth == 60:
                v = Verifier(model, folder, cc, rules, SETTLES)
            v.search(depth)
            depth *= 2
        if not v.errors:
            print("nothing goes wrong")
            return
        print(v.why)
        for process, line in v.steps(model.read_text()):
            print(f"{process:12} {line}")


def main(args):
    if args[0] == "table" and args[1] == "--self-test":
        self_test()
        return
    root = pathlib.Path(args[1]).resolve()
    if args[0] == "table":
        code = protocol_table.in_code((root / "engine/core/state.c").read_text())
        lines = active((root / "tests/model/handoff.pml").read_text())
        tree.verdict(list(differences(code, lines)), f"{len(transitions(lines)[0])} transitions")
    elif args[0] == "search":
        search(root, args[2] if len(args) > 2 else "cc")
    elif args[0] == "show":
        show(root, args[2:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
