#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
docs/failure.md shows the matrix that is tested: its phases, failures and how each ends.

    failure_table.py ROOT           compare
    failure_table.py --self-test    prove that a difference is found
"""

import pathlib
import sys

import tree


def compare(matrix, document):
    shown = matrix.within(document)
    if shown is None:
        return ["docs/failure.md: the marks of the table are gone"]
    want = matrix.tables(matrix.expected)
    if shown.strip() == want.strip():
        return []
    lines = [b for a, b in zip(want.splitlines() + [""] * 99, shown.splitlines()) if a != b] or ["it ends too early"]
    return [f"docs/failure.md: is not what tests/integration/failure_matrix.py declares: {lines[0]}"]


def load(root):
    sys.path.insert(0, str(root / "tests/integration"))
    import failure_matrix
    return failure_matrix


def main(root):
    root = pathlib.Path(root).resolve()
    matrix = load(root)
    text = (root / "docs/failure.md").read_text()
    problems = compare(matrix, text)
    problems += [f"docs/failure.md: does not say what \"{word}\" means" for word, meaning in matrix.OUTCOMES.items()
                 if f"| {word} | {meaning} |" not in text]
    problems += [f"docs/failure.md: does not say when {phase} is" for phase, meaning in matrix.PHASES.items()
                 if f"| `{phase}` | {meaning} |" not in text]
    tree.verdict(problems, f"{sum(len(matrix.cells(g)) for g in matrix.GUESTS)} cells")


def self_test():
    matrix = load(pathlib.Path(__file__).resolve().parents[2])
    good = "x\n" + matrix.BEGIN + matrix.tables(matrix.expected) + matrix.END
    assert compare(matrix, good) == [], compare(matrix, good)
    for bad in good.replace("| stays |", "| moves |", 1), good.replace("`prepare`", "`ready`"), good.replace(matrix.END, ""), \
            good.replace("\n| `handoff`", "", 1):
        assert compare(matrix, bad), bad
    print("failure_table.py --self-test: ok")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
    else:
        main(*sys.argv[1:])
