#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
The version script, the installed headers and the built library show the same functions.

    exports.py ROOT [LIBRARY]
"""

import pathlib
import re
import subprocess
import sys

import tree

VISIBLE = r'(?:\bMF_API\b|__attribute__\(\(visibility\("default"\)\)\))'


def declared(root):
    """Functions that the installed headers mark as visible, and those that lack the mark."""
    marked, unmarked = set(), []
    for header in tree.installed_headers(root):
        text = tree.without_comments(header.read_text(), strings=False)
        text = re.sub(r"^[ \t]*#(?:\\\n|[^\n])*", "", text, flags=re.M)
        text = text.replace('extern "C" {', "")
        depth, statement = 0, ""
        for char in text:  # declarations are what stands outside all braces
            depth += {"{": 1, "}": -1}.get(char, 0)
            if char == ";" and depth <= 0:
                name = re.search(r"\b(mf_\w+)\s*\(", re.sub(VISIBLE, "", statement))
                if name and "typedef" not in statement:
                    if re.search(VISIBLE, statement):
                        marked.add(name.group(1))
                    else:
                        unmarked.append(f"{header.relative_to(root)}: {name.group(1)}() lacks "
                                        "MF_API: programs could not link it")
                statement = ""
            elif char not in "{}":
                statement += char if depth <= 0 else ""
    return marked, unmarked


def mapped(root):
    text = tree.without_comments((root / "cmake/libmemferry.map").read_text())
    names = re.search(r"global:(.*?)local:", text, re.S).group(1)
    return {n.strip() for n in names.split(";") if n.strip()}


def exported(library):
    out = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, check=True,
                         text=True).stdout
    names = {line.split()[-1].split("@")[0] for line in out.splitlines()}
    return {n for n in names if not n.startswith("MEMFERRY_")}


def compare(what, names, reference, missing, extra):
    return ([f"{what}: {n} {missing}" for n in sorted(reference - names)] +
            [f"{what}: {n} {extra}" for n in sorted(names - reference)])


def main(root, library=None):
    root = pathlib.Path(root).resolve()
    headers, problems = declared(root)
    if not headers:
        problems.append("no MF_API function found in the installed headers")
    problems += compare("cmake/libmemferry.map", mapped(root), headers,
                        "is declared in an installed header but not listed",
                        "is listed but declared in no installed header")
    if library:
        problems += compare(pathlib.Path(library).name, exported(library), headers,
                            "is declared in an installed header but not defined",
                            "is exported but declared in no installed header")
    tree.verdict(problems, f"{len(headers)} functions" + ("" if library else ", no library built"))


if __name__ == "__main__":
    main(*sys.argv[1:])
