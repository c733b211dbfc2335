#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
The formatter is law: clang-format 14 would change nothing.  Other versions differ in details, so
only that one is asked.

    format.py ROOT
"""

import re
import shutil
import subprocess
import sys

import tree

VERSION = "14"


def formatter():
    for name in (f"clang-format-{VERSION}", "clang-format"):
        if shutil.which(name):
            said = subprocess.run([name, "--version"], capture_output=True, text=True).stdout
            if re.search(rf"version {VERSION}\.", said):
                return name
    return tree.skip(f"no clang-format {VERSION}")


def main(root):
    tool = formatter()
    paths = [str(p) for p in tree.files(root, ".c", ".h")]
    said = subprocess.run([tool, "--dry-run", "-Werror", "--style=file", *paths],
                          capture_output=True, text=True)
    bad = sorted(set(re.findall(r"^(.+?):\d+:\d+: error", said.stderr, re.M)))
    if said.returncode and not bad:
        sys.exit(said.stderr)
    tree.verdict([f"{p}: run clang-format -i on it" for p in bad], f"{len(paths)} files")


if __name__ == "__main__":
    main(sys.argv[1])
