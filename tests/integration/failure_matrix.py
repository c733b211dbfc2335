# SPDX-License-Identifier: BSD-2-Clause
"""
What fails when, and how it must end: the matrix that test_matrix_failure.py runs and docs/failure.md shows.

Everything here strikes before the commit.
"""

PHASES = {
    "connect": "on the way to the destination",
    "check": "the destination's verdict is under way",
    "prepare": "the destination's word that it is prepared is under way",
    "precopy": "pages are being written, the guest runs",
    "switchover": "the guest is paused, its state is under way",
    "handoff": "the destination is ready, and the source does not know it yet",
}

FAILURES = {
    "send": "kill -9 of `send`",
    "receive": "kill -9 of `receive`",
    "monitor": "kill -9 of the destination's monitor",
    "cut": "the link is cut",
    "silent": "`receive` falls silent",
    "disk": "the source's disk is full",
    "disk_there": "the destination's disk is full",
    "memory": "n-th allocation fails in `send`",
    "memory_there": "n-th allocation fails in `receive`",
    "post": "n-th post fails",
    "lanes": "all lanes are lost",
    "bytes": "hostile bytes",
}

# How a cell ends.
STAYS = "stays"
BACK = "back"
MOVES = "moves"
EITHER = "either"
ENDS = "ends"
NEVER = "–"

OUTCOMES = {
    STAYS: "the guest runs on at the source, every page of it right; `send` exits with 1 and says why",
    BACK: "the same, but nobody is left to say it: the guardian has brought the guest back, and cleaned up",
    MOVES: "the move goes on and ends well at the destination; both exit with 0",
    EITHER: "it stays or it moves, by what the failure hits",
    ENDS: "the demo guest is a part of `send`, and ends with it",
    NEVER: "does not happen in this phase: nothing is posted in it",
}

GUESTS = {"qemu": "a QEMU guest", "process": "the demo guest"}


def expected(guest, phase, failure):
    if failure == "send":
        return BACK if guest == "qemu" else ENDS
    if failure in ("post", "lanes"):
        if phase not in ("precopy", "switchover"):
            return NEVER
        return MOVES if failure == "post" else STAYS
    if failure in ("memory", "memory_there"):
        return EITHER
    return STAYS


# A QEMU takes its time: by default those cells are run in which it matters. The demo guest has all, but for what fails at
# the destination, where most phases are alike.
_OFTEN = {
    "send": PHASES,
    "monitor": PHASES,
    "receive": ("precopy", "switchover", "handoff"),
    "cut": ("precopy", "switchover"),
    "silent": ("precopy", "switchover"),
    "disk": ("handoff",),
    "disk_there": ("handoff",),
    "memory": ("switchover", "handoff"),
    "memory_there": ("switchover",),
    "post": ("precopy",),
    "lanes": ("switchover",),
    "bytes": ("prepare", "switchover", "handoff"),
}
_OFTEN_OF_DEMO = {
    "disk_there": ("switchover", "handoff"),
    "memory_there": ("prepare", "switchover", "handoff"),
}


def is_run_always(guest, phase, failure):
    if guest == "process":
        return phase in _OFTEN_OF_DEMO.get(failure, PHASES)
    return phase in _OFTEN[failure]


def cells(guest):
    """(phase, failure) of all that can happen."""
    return [(p, f) for f in FAILURES for p in PHASES if expected(guest, p, f) != NEVER]


def table(guest, outcome):
    """outcome: of a cell, by (phase, failure)."""
    lines = [f"| {GUESTS[guest]} | " + " | ".join(FAILURES.values()) + " |", "|---" * (len(FAILURES) + 1) + "|"]
    for phase in PHASES:
        lines.append(f"| `{phase}` | " + " | ".join(outcome(phase, failure) for failure in FAILURES) + " |")
    return "\n".join(lines) + "\n"


BEGIN = "<!-- made by tests/integration/test_matrix_failure.py --full --table docs/failure.md -->\n"
END = "<!-- end -->\n"


def tables(outcome):
    """outcome: by (guest, phase, failure)."""
    return "\n".join(table(g, lambda p, f, g=g: outcome(g, p, f)) for g in GUESTS)


def put(document, guest, outcome):
    """The document with this guest's table as it came out."""
    shown = within(document)
    parts = [table(guest, outcome) if part.startswith(f"| {GUESTS[guest]} |") else part for part in shown.split("\n\n")]
    return document.replace(shown, "\n\n".join(part.strip("\n") for part in parts) + "\n")


def within(document):
    """What stands between the marks; None without them."""
    if BEGIN not in document or END not in document:
        return None
    return document.split(BEGIN, 1)[1].split(END, 1)[0]
