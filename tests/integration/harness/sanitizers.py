# SPDX-License-Identifier: BSD-2-Clause
"""
What sanitizers find in the processes of a test: each report is a file, so that none is lost with a child whose output and
exit status nobody reads, and none is taken for what the command says.
"""
import os
from pathlib import Path

from .process import Failed

# None that the command has a meaning for.
EXIT_STATUS = 86
SUPPRESSIONS = Path(__file__).resolve().parents[2] / "tsan.supp"
# Beside the address sanitizer's, the undefined-behaviour one's messages go to standard error whatever it is told. It ends
# the process, so that the other one reports that: by SIGABRT, as also our own asserts do.
OPTIONS = {
    "ASAN": ["handle_abort=1"],
    "UBSAN": ["abort_on_error=1", "print_stacktrace=1"],
    # memferry-perf makes demo guests when it has threads already.
    "TSAN": ["handle_abort=1", "die_after_fork=0", f"suppressions={SUPPRESSIONS}"],
}

_reports = None


def collect(directory):
    """From now on, of all that are started; who starts them as another user must be able to write there."""
    global _reports
    _reports = Path(directory)
    _reports.chmod(0o777)
    for kind, options in OPTIONS.items():
        name = f"{kind}_OPTIONS"
        given = [os.environ[name]] if name in os.environ else []
        os.environ[name] = ":".join([*given, f"log_path={_reports}/report", f"exitcode={EXIT_STATUS}", *options])


def check():
    """Fails when something was reported since the last time."""
    said = []
    for report in sorted(_reports.iterdir()) if _reports else []:
        said.append(report.read_text(errors="replace"))
        report.unlink()
    if said:
        raise Failed("a sanitizer has found something:\n" + "\n".join(said))
