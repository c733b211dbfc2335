#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
What must not stand in the sources, with a reason each.

    banned.py ROOT           check the tree
    banned.py --self-test    prove that each rule bites
"""

import pathlib
import re
import sys
import tempfile

import tree

# Pattern over C code without comments and strings; why; a line that the rule must catch.
CODE = [
    (r"\b(strcpy|strcat|stpcpy)\s*\(", "has no bound: use snprintf or memcpy", "strcpy(a, b);"),
    (r"\bstrncpy\s*\(", "may leave no terminator: use snprintf", "strncpy(a, b, 2);"),
    (r"\bv?sprintf\s*\(", "has no bound: use snprintf", "sprintf(a, b);"),
    (r"\bgets\s*\(", "has no bound: use getline", "gets(a);"),
    (r"\bato(i|l|ll|f)\s*\(", "cannot fail visibly: use base/parse.h", "x = atoi(a);"),
    (r"\bsscanf\s*\([^;]*%s", "has no bound: parse by hand", 'sscanf(a, "%s", b);'),
    (r"\bstrtok\s*\(", "keeps hidden state: use strtok_r or strcspn", "strtok(a, b);"),
    (r"\b(alloca|strdupa)\s*\(", "grows the stack by the input: use a bounded array or malloc",
     "p = alloca(n);"),
    (r"\b(u?sleep)\s*\(", "waits for time, not for the event: use poll with a deadline",
     "usleep(10);"),
    (r"\bvolatile\b(?!\s*\(|\s+sig_atomic_t)", "orders nothing between threads: use __atomic_* with an explicit order",
     "volatile int x;"),
    (r"\b__sync_\w+", "is older and always full-barrier: use __atomic_* with an explicit order",
     "__sync_synchronize();"),
    (r"\b(tmpnam|tempnam|mktemp)\s*\(", "races: use mkstemp or mkdtemp", "mktemp(a);"),
    (r"\bsignal\s*\(\s*SIG\w+\s*,(?!\s*SIG_)", "handlers differ between systems: use sigaction", "signal(SIGINT, f);"),
    (r"\b(inet_ntoa|gethostbyname|localtime|gmtime|ctime|asctime)\s*\(",
     "returns shared storage: use the _r form or getaddrinfo/inet_ntop", "localtime(&t);"),
    (r"\brand\s*\(\s*\)", "shares hidden state: use a seeded generator of your own", "x = rand();"),
    (r"\b(system|popen)\s*\(", "runs a shell: use posix_spawn or fork and exec", "system(a);"),
    (r"\btypedef\s+(struct|enum|union)\b", "hides what a thing is: use the tag",
     "typedef struct x x_t;"),
    (r"\bpthread_cancel\s*\(", "leaves locks and memory behind: use a flag and a wake",
     "pthread_cancel(t);"),
]

# Pattern over the whole text of a C file.
TEXT = [
    (r"\b(TODO|FIXME|XXX|HACK)\b", "is not for the tree: do it, or write an issue", "/* TODO: x */"),
]

# Pattern over the text of any file: nothing may depend on the machine it was written on.
MACHINE = [
    (r"(?<![\w./}$-])/(?:work|workspace)/", "names one machine's folder", "/workspace/x"),
    (r"(?<![\w./}$-])/root/", "names one user's home: use $HOME", "/root/x"),
    (r"(?<![\w./}$-])/home/\w", "names one user's home: use $HOME", "/home/me"),
]

# The sanctioned exceptions: (rule's example line, path pattern, why).
ALLOWED = [
    ("volatile int x;", r"tests/.*", "test guests and fixtures watch memory that others write"),
    ("usleep(10);", r"tests/.*", "a test may wait for what tells no one that it changed, as /proc"),
    ("x = rand();", r"tests/.*", "a test with a fixed seed and one thread may"),
    ("system(a);", r"tests/.*", "fixtures run other people's programs, with fixed command lines"),
]


def line_of(text, at):
    return text.count("\n", 0, at) + 1


def is_allowed(example, path):
    return any(e == example and re.fullmatch(p, path) for e, p, _ in ALLOWED)


def scan(path, text, rules):
    for pattern, why, example in rules:
        if is_allowed(example, path):
            continue
        for match in re.finditer(pattern, text):
            token = match.group(0).strip().rstrip("(").strip()
            yield f"{path}:{line_of(text, match.start())}: `{token}` {why}"


def check_code(path, text):
    """One C file."""
    if not re.match(r"/\* SPDX-License-Identifier: BSD-2-Clause \*/\n", text):
        yield f"{path}:1: begins without /* SPDX-License-Identifier: BSD-2-Clause */"
    # The pattern for sscanf looks into a string; all others must not.
    yield from scan(path, tree.without_comments(text), [r for r in CODE if "%" not in r[0]])
    yield from scan(path, tree.without_comments(text, strings=False),
                    [r for r in CODE if "%" in r[0]])
    yield from scan(path, text, TEXT)
    plain = re.sub(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'',
                   lambda m: "\n" * m.group(0).count("\n"), text, flags=re.S)
    for match in re.finditer(r"//", plain):
        yield f"{path}:{line_of(plain, match.start())}: `//` is not our comment: use /* */"


def check(root):
    root = pathlib.Path(root).resolve()
    problems, n = [], 0
    for file in tree.files(root):
        path = file.relative_to(root).as_posix()
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue  # an image, a recorded trace
        n += 1
        if path.endswith((".c", ".h")):
            problems += check_code(path, text)
        if path != "tests/checks/banned.py":
            problems += scan(path, text, MACHINE)
    return problems, n


def self_test():
    spdx = "/* SPDX-License-Identifier: BSD-2-Clause */\n"
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        file = root / "engine" / "a.c"
        file.parent.mkdir()

        def found(text):
            file.write_text(text)
            return check(root)[0]

        for _, _, example in CODE + TEXT + MACHINE:
            if len(found(spdx + example + "\n")) != 1:
                problems.append(f"not found exactly once: {example}")
        for example in ("int x;\n", "int x; // no\n"):
            if not found(example if "//" not in example else spdx + example):
                problems.append(f"not found: {example}")
        clean = spdx + '/* strcpy() and volatile, said */ puts("atoi(x) // sleep(1)"); my_gets(1);\n'
        clean += "signal(SIGPIPE, SIG_IGN); static volatile sig_atomic_t stop; __asm__ volatile(a);\n"
        if found(clean):
            problems.append(f"found in clean text: {found(clean)}")
    tree.verdict(problems, f"{len(CODE + TEXT + MACHINE)} rules")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
    bad, count = check(sys.argv[1])
    tree.verdict(bad, f"{count} files")
