#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Each installed header compiles alone, as strict C17 and as C++17, without a warning.

    headers.py ROOT CC [CXX]
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

import tree


def compile_alone(command, suffix, name):
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / f"alone{suffix}"
        # Twice: the include guard is part of what is promised.
        source.write_text(f"#include <memferry/{name}>\n" * 2)
        result = subprocess.run(command + ["-fsyntax-only", str(source)], capture_output=True,
                                text=True)
    return result.stderr if result.returncode else ""


def main(root, cc, cxx="c++"):
    root = pathlib.Path(root).resolve()
    if not shutil.which(cxx):
        tree.skip(f"no C++ compiler ({cxx})")
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror",
             f"-I{root}/engine/include", f"-I{root}/hv-adapters/include"]
    ways = [("C17", [cc, "-std=c17", "-Wstrict-prototypes", *flags], ".c"),
            ("C++17", [cxx, "-std=c++17", *flags], ".cc")]
    headers = tree.installed_headers(root)
    problems = []
    for header in headers:
        for what, command, suffix in ways:
            said = compile_alone(command, suffix, header.name)
            if said:
                problems.append(f"memferry/{header.name} alone as {what}:\n{said}")
    tree.verdict(problems, f"{len(headers)} headers as C17 and C++17")


if __name__ == "__main__":
    main(*sys.argv[1:])
