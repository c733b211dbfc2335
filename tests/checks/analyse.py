#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Analysers over every file that is compiled: whatever they find is a failure.

    analyse.py tidy ROOT BUILD [FILE ...]    clang-tidy 14, by .clang-tidy
    analyse.py cppcheck ROOT BUILD           cppcheck 2.10, without what cppcheck.supp names

BUILD has the compile_commands.json.  Other versions find other things, so only these are asked.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import tree

JOBS = 2
TIDY = (("clang-tidy-14", "clang-tidy"), r"version 14\.")
CPPCHECK = (("cppcheck",), r"Cppcheck 2\.10")


def tool(names, version):
    for name in names:
        if shutil.which(name):
            said = subprocess.run([name, "--version"], capture_output=True, text=True).stdout
            if re.search(version, said):
                return name
    return tree.skip(f"no {names[-1]} of the version that is asked")


def sources(root, build):
    """Those of the project, each once; what the build generates is not ours."""
    with open(build / "compile_commands.json", encoding="utf-8") as file:
        files = {pathlib.Path(c["directory"], c["file"]) for c in json.load(file)}
    return sorted(f for f in files if f.suffix == ".c" and build not in f.parents)


def run_tidy(name, root, build, file):
    said = subprocess.run([name, "-p", str(build), "--quiet", "--warnings-as-errors=*", str(file)],
                          capture_output=True, text=True, cwd=root)
    # Without a finding it is the compiler that failed, and says so on the other channel.
    return said.stdout or (said.stderr if said.returncode else "")


def tidy(root, build, only):
    name = tool(*TIDY)
    files = [pathlib.Path(f).resolve() for f in only] or sources(root, build)
    files.sort(key=lambda f: -f.stat().st_size) # the long ones first, so that none is left to the end
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        said = pool.map(lambda f: run_tidy(name, root, build, f), files)
    found = {}
    for text in said:
        for block in re.split(r"(?m)^(?=/\S+:\d+:\d+: (?:warning|error): )", text):
            if block.strip():
                found[block.strip()] = None  # one in a header comes from every file that includes it
    tree.verdict(list(found), f"{len(files)} files")


def cppcheck(root, build):
    name = tool(*CPPCHECK)
    said = subprocess.run(
        [name, f"--project={build / 'compile_commands.json'}", f"-i{build}", f"-j{JOBS}",
         "--enable=warning,performance,portability", "--inline-suppr", "--quiet",
         f"--suppressions-list={root / 'tests/checks/cppcheck.supp'}", "--relative-paths=" + str(root),
         "--error-exitcode=1"], capture_output=True, text=True, cwd=root)
    print(said.stdout, end="")
    tree.verdict([said.stderr.strip()] if said.returncode else [],
                 f"{len(sources(root, build))} files")


def main(which, root, build, *only):
    os.environ["LC_ALL"] = "C"
    root, build = pathlib.Path(root).resolve(), pathlib.Path(build).resolve()
    if which == "tidy":
        tidy(root, build, only)
    elif which == "cppcheck":
        cppcheck(root, build)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
