#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
The state table in docs/protocol.md is the one in engine/core/state.c.

    protocol_table.py ROOT
    protocol_table.py --self-test
"""

import pathlib
import re
import sys

import tree

ENTRY = re.compile(r'\[ENG_(\w+)\] = \{\s*"([^"]+)",\s*MF_PHASE_(\w+),\s*([^}]*?)\s*\}', re.S)
ROW = re.compile(r"^\| `([a-z-]+)` \| ([a-z]+) \|([^|]*)\|$", re.M)


def in_code(text):
    """{state: (phase, names of states that may follow)}"""
    entries = ENTRY.findall(tree.without_comments(text, strings=False))
    names = {constant: name for constant, name, _, _ in entries}
    return {name: (phase.lower(), {names.get(to, to) for to in re.findall(r"TO\((\w+)\)", after)})
            for _, name, phase, after in entries}


def in_page(text):
    section = text.partition("\n## States\n")[2].partition("\n## ")[0]
    return {name: (phase, set(re.findall(r"`([a-z-]+)`", after)))
            for name, phase, after in ROW.findall(section)}


def differences(code, page):
    if not code:
        yield "state.c: no table was found; has its form changed?"
    for name in sorted(code.keys() | page.keys()):
        if code.get(name) != page.get(name):
            yield (f"docs/protocol.md: state '{name}' is {page.get(name, 'missing')}, "
                   f"in engine/core/state.c it is {code.get(name, 'missing')}: make them agree")


def self_test():
    code = ('[ENG_A] = { "a", MF_PHASE_IDLE, TO(B_C) },\n/* why */ [ENG_B_C] = { "b-c",\n'
            "MF_PHASE_DONE, TO(A) |\nTO(B_C) }, [ENG_D] = { \"d\", MF_PHASE_DONE, 0 },")
    page = "x\n## States\n\n| `a` | idle | `b-c` |\n| `b-c` | done | `b-c` `a` |\n| `d` | done | |\n\n## y\n"
    table = in_code(code)
    cases = [(page, 0), (page.replace("| idle |", "| done |"), 1), (page.replace("`b-c` `a`", "`a`"), 1),
             (page.replace("| `d` | done | |\n", ""), 1), (page.replace("## States", "## Others"), 3)]
    for text, problems in cases:
        found = list(differences(table, in_page(text)))
        if len(found) != problems:
            sys.exit(f"{text}\n{found}: not {problems}")
    if not list(differences({}, {})):
        sys.exit("an empty table passes")
    print(f"ok: {len(cases) + 1} tables")


def main(args):
    if args == ["--self-test"]:
        self_test()
        return
    root = pathlib.Path(args[0])
    code = in_code((root / "engine/core/state.c").read_text())
    tree.verdict(list(differences(code, in_page((root / "docs/protocol.md").read_text()))), f"{len(code)} states")


if __name__ == "__main__":
    main(sys.argv[1:])
