# SPDX-License-Identifier: BSD-2-Clause
"""What the checks share: which files are the project's, and how a verdict is given."""

import pathlib
import re
import subprocess
import sys

SKIP = 77
GENERATED = ("build", ".git", ".cache")  # folders that a walk without git leaves out


def files(root, *suffixes):
    """The tracked files with one of the suffixes; without git, all but build trees."""
    root = pathlib.Path(root)
    try:
        # The tree may be another user's, who lets root test it.
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "-C", str(root), "ls-files", "-z"],
            capture_output=True, check=True).stdout.decode()
        names = [n for n in listed.split("\0") if n]
    except (OSError, subprocess.CalledProcessError):
        names = [str(p.relative_to(root)) for p in root.rglob("*")
                 if not any(part.startswith(GENERATED) for part in p.relative_to(root).parts[:1])]
    return [root / n for n in sorted(names)
            if (not suffixes or n.endswith(suffixes)) and (root / n).is_file()]


def installed_headers(root):
    root = pathlib.Path(root)
    return sorted(h for d in ("engine/include/memferry", "hv-adapters/include/memferry")
                  for h in (root / d).glob("*.h"))


def without_comments(text, strings=True):
    """C text with comments (and the insides of strings) blanked; lines keep their numbers."""
    def blank(match):
        found = match.group(0)
        if found[0] == "/":
            return " " + "\n" * found.count("\n")
        return found if not strings else found[0] * 2
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'',
                  blank, text, flags=re.S)


def skip(reason):
    print(f"SKIP: {reason}")
    sys.exit(SKIP)


def verdict(problems, checked):
    """Prints the problems, one a line, or what was checked; ends the program."""
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(f"{len(problems)} problem(s)")
    print(f"ok: {checked}")
    sys.exit(0)
