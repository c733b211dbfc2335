#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Who may include whom.

    base < wire < contracts < implementations < core < cli, perf

Each sees only what stands to its left; implementations see neither each other nor the wire, core
sees no implementation.  Headers of other projects stay in the one place that wraps them.

    layers.py ROOT           check the tree
    layers.py --self-test    prove that forbidden includes are found
"""

import fnmatch
import pathlib
import re
import sys
import tempfile

import tree

# The part of the tree that a file belongs to: the first pattern that fits.  `{}` is the folder.
PARTS = [
    ("engine/base/*", "base"),
    ("engine/wire/*", "wire"),
    ("engine/core/*", "core"),
    ("engine/cli/*", "cli"),
    ("engine/include/memferry/error.h", "base"),
    ("engine/include/memferry/region.h", "base"),
    ("engine/include/memferry/kvm_vm.h", "base"),
    ("engine/include/memferry/*", "session"),
    ("transport/transport.h", "transport"),
    ("tracker/tracker.h", "tracker"),
    ("tracker/pager.h", "tracker"),
    ("hv-adapters/include/memferry/adapter.h", "adapter"),
    ("hv-adapters/include/memferry/*", "guests"),
    ("hv-adapters/attach/*", "attach"),
    ("transport/*/*", "transport/{}"),
    ("tracker/*/*", "tracker/{}"),
    ("hv-adapters/*/*", "hv-adapters/{}"),
    ("transport/*", "transport/shared"),
    ("tracker/*", "tracker/shared"),
    ("hv-adapters/*", "hv-adapters/shared"),
    ("perf/*", "perf"),
    ("tests/*", "tests"),
    ("docs/examples/*", "examples"),
]

CONTRACTS = {"transport", "tracker", "adapter"}

# What each part may include besides itself; a pattern fits folders.
MAY = {
    "base": set(),
    "wire": {"base"},
    "adapter": {"base"},
    "guests": {"base", "adapter"},
    "session": {"base", "adapter", "guests"},
    "transport": {"base"},
    "tracker": {"base"},
    "attach": {"base"},
    "transport/*": {"base", "transport", "transport/shared"},
    "tracker/*": {"base", "tracker", "tracker/shared"},
    "hv-adapters/*": {"base", "adapter", "guests", "attach", "hv-adapters/shared"},
    "core": {"base", "wire", "session"} | CONTRACTS,
    "cli": {"base", "adapter", "guests", "session"},
    # the command's reports and help; how connections are made; what decides about rounds
    "perf": {"base", "wire", "core", "cli", "guests", "session"} | CONTRACTS,
    "examples": {"base", "adapter", "guests", "session"},
}

# Include pattern, where it may stand, what to use instead.
FOREIGN = [
    ("infiniband/*", ["transport/verbs/*"], "go through transport/transport.h"),
    ("rdma/rdma_*", ["transport/verbs/*"], "go through transport/transport.h"),
    ("rdma/*", ["transport/fabric/*"], "go through transport/transport.h"),
    ("hwloc*", ["engine/base/*"], "ask engine/base for a placement"),
    ("seccomp.h", ["engine/base/*"], "go through base/privilege.h"),
    ("linux/kvm.h", ["tracker/kvm*", "hv-adapters/kvm/*"], "go through the adapter or the tracker"),
    ("linux/userfaultfd.h", ["tracker/*"], "go through tracker/tracker.h or tracker/pager.h"),
    ("*.pb-c.h", ["engine/wire/*"], "go through the functions of engine/wire"),
    ("protobuf-c/*", ["engine/wire/*"], "go through the functions of engine/wire"),
    ("openssl/*", ["engine/wire/security.c", "engine/wire/tls.c", "transport/sealed/*", "transport/token.c"],
     "go through the channel of engine/wire, or a sealed transport"),
    ("cmocka.h", ["tests/*"], "keep test code in tests/"),
]

WHY = {
    "wire": "the wire is core's: nobody else knows of messages",
    "core": "nothing below core may know of it; report upwards through return values",
    "session": "the session is core's face to programs; the layers below it serve any caller",
    "guests": "which adapters exist is for programs to know; take a struct mf_adapter",
    "transport": "bytes are moved by core only; take descriptors or addresses as arguments",
    "tracker": "tracking is core's business; take descriptors or bitmaps as arguments",
    "adapter": "guests are core's business; take regions and descriptors as arguments",
    "cli": "nothing may know of the command",
    "tests": "the product must build without its tests",
    "perf": "the product must build without its benchmarks",
}

ROOTS = ["", "engine", "engine/include", "hv-adapters/include"]
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.M)


def part_of(path):
    for pattern, part in PARTS:
        if fnmatch.fnmatchcase(path, pattern):
            return part.format(path.split("/")[1])
    return None


def may(part):
    if part in MAY:
        return MAY[part]
    return MAY.get(part.split("/")[0] + "/*", set())


def resolve(root, path, name):
    """The project's file that an include names, relative to root; None: it is not ours."""
    own = pathlib.PurePosixPath(path).parent
    for folder in [own] + [pathlib.PurePosixPath(r) for r in ROOTS]:
        target = (root / folder / name)
        if target.is_file():
            return target.resolve().relative_to(root).as_posix()
    return None


def why_not(here, there):
    if there in WHY:
        return WHY[there]
    if "/" in here and "/" in there:
        return "implementations never see each other: what they share belongs in engine/base"
    if there.startswith(("transport/", "tracker/", "hv-adapters/")) or there == "attach":
        return "implementations are reached through their contract only"
    return "see Layers in CONTRIBUTING.md"


def check_file(root, path):
    here = part_of(path)
    if here is None:
        return [f"{path}: belongs to no layer; place it, or teach tests/checks/layers.py its folder"]
    problems = []
    text = tree.without_comments((root / path).read_text(errors="replace"), strings=False)
    for match in INCLUDE.finditer(text):
        name = match.group(2)
        at = f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
        for pattern, homes, instead in FOREIGN:
            if not fnmatch.fnmatchcase(name, pattern):
                continue
            if here != "tests" and not any(fnmatch.fnmatchcase(path, h) for h in homes):
                problems.append(f"{at}: <{name}> is confined to {', '.join(homes)}: {instead}")
            break
        target = resolve(root, path, name)
        if target is None or here == "tests":
            continue
        there = part_of(target)
        if there == here or there in may(here):
            continue
        allowed = ", ".join(sorted(may(here))) or "only itself"
        problems.append(f"{at}: {here} may not include {name} ({there}): {why_not(here, there)} "
                        f"[may: {allowed}]")
    return problems


def check(root):
    root = pathlib.Path(root).resolve()
    paths = [p.relative_to(root).as_posix() for p in tree.files(root, ".c", ".h")]
    problems = [problem for path in paths for problem in check_file(root, path)]
    return problems, len(paths)


def self_test():
    headers = ["engine/base/log.h", "engine/wire/frame.h", "engine/core/engine.h",
               "engine/include/memferry/error.h", "engine/include/memferry/session.h",
               "transport/transport.h", "transport/fabric/fabric.h", "transport/verbs/verbs.h",
               "tracker/tracker.h", "tracker/pager.h", "tracker/pagemap/scan.h",
               "hv-adapters/attach/attach.h", "hv-adapters/include/memferry/adapter.h",
               "hv-adapters/adapters.h", "tracker/uffd.h",
               "hv-adapters/include/memferry/guests.h", "hv-adapters/qemu/qmp.h"]
    allowed = [
        ("engine/base/a.c", "base/log.h"), ("engine/base/a.c", "hwloc.h"),
        ("engine/wire/a.c", "base/log.h"), ("engine/wire/tls.c", "openssl/ssl.h"),
        ("transport/transport.c", "transport/transport.h"),
        ("transport/fabric/a.c", "fabric.h"), ("transport/fabric/a.c", "rdma/fi_rma.h"),
        ("transport/verbs/a.c", "rdma/rdma_cma.h"), ("transport/verbs/a.c", "infiniband/verbs.h"),
        ("tracker/pagemap/a.c", "tracker/tracker.h"), ("tracker/pager/a.c", "linux/userfaultfd.h"),
        ("hv-adapters/qemu/a.c", "hv-adapters/attach/attach.h"),
        ("hv-adapters/qemu/a.c", "memferry/adapter.h"),
        ("hv-adapters/qemu/a.c", "hv-adapters/adapters.h"), ("tracker/pagemap/a.c", "tracker/uffd.h"),
        ("engine/core/a.c", "wire/frame.h"), ("engine/core/a.c", "transport/transport.h"),
        ("engine/core/a.c", "tracker/pager.h"), ("engine/core/a.c", "memferry/session.h"),
        ("engine/cli/a.c", "memferry/session.h"), ("engine/cli/a.c", "memferry/guests.h"),
        ("tests/unit/a.c", "core/engine.h"), ("tests/unit/a.c", "cmocka.h"),
    ]
    forbidden = [
        ("engine/base/a.c", "wire/frame.h"), ("engine/base/a.c", "transport/transport.h"),
        ("engine/wire/a.c", "core/engine.h"), ("engine/wire/a.c", "tracker/tracker.h"),
        ("transport/fabric/a.c", "wire/frame.h"), ("transport/fabric/a.c", "../verbs/verbs.h"),
        ("transport/fabric/a.c", "tracker/tracker.h"), ("transport/fabric/a.c", "core/engine.h"),
        ("transport/fabric/a.c", "rdma/rdma_cma.h"), ("transport/verbs/a.c", "rdma/fabric.h"),
        ("transport/transport.c", "transport/fabric/fabric.h"),
        ("tracker/pagemap/a.c", "transport/transport.h"),
        ("tracker/pagemap/a.c", "hv-adapters/attach/attach.h"),
        ("tracker/pagemap/a.c", "memferry/adapter.h"),
        ("hv-adapters/qemu/a.c", "tracker/tracker.h"), ("hv-adapters/qemu/a.c", "wire/frame.h"),
        ("hv-adapters/qemu/a.c", "linux/userfaultfd.h"),
        ("hv-adapters/process/a.c", "hv-adapters/qemu/qmp.h"),
        ("hv-adapters/process/a.c", "memferry/session.h"),
        ("hv-adapters/adapters.c", "hv-adapters/qemu/qmp.h"),
        ("engine/core/a.c", "hv-adapters/adapters.h"), ("engine/core/a.c", "tracker/uffd.h"),
        ("engine/core/a.c", "hv-adapters/qemu/qmp.h"), ("engine/core/a.c", "tracker/pagemap/scan.h"),
        ("engine/core/a.c", "memferry/guests.h"), ("engine/core/a.c", "rdma/fabric.h"),
        ("engine/core/a.c", "hwloc.h"), ("engine/core/a.c", "cmocka.h"),
        ("engine/cli/a.c", "core/engine.h"), ("engine/cli/a.c", "linux/kvm.h"),
        ("engine/wire/channel.c", "openssl/ssl.h"), ("engine/core/a.c", "openssl/ssl.h"),
        ("novel/a.c", "base/log.h"),
    ]
    problems = []
    for cases, expected in ((allowed, False), (forbidden, True)):
        for path, name in cases:
            with tempfile.TemporaryDirectory() as folder:
                root = pathlib.Path(folder).resolve()
                for header in headers:
                    (root / header).parent.mkdir(parents=True, exist_ok=True)
                    (root / header).write_text("")
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(f'/* #include "x" */\n  # include "{name}"\n')
                found, _ = check(root)
                if bool(found) != expected:
                    what = "was not found" if expected else f"was refused: {found}"
                    problems.append(f"{path} including {name} {what}")
                elif found and (len(found) != 1 or not found[0].startswith(f"{path}:")):
                    problems.append(f"{path} including {name} is told badly: {found}")
    tree.verdict(problems, f"{len(allowed)} allowed and {len(forbidden)} forbidden includes")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
    bad, n = check(sys.argv[1])
    tree.verdict(bad, f"{n} files keep to their layers")
