# SPDX-License-Identifier: BSD-2-Clause
"""The memferry command, its events, and its report."""
import json
import os
from pathlib import Path

from .process import Failed, Process


class Memferry(Process):
    """Always with --json, unless told otherwise; every host of a test has its own run directory."""

    def __init__(self, name, run_dir, *args, json_output=True, within=()):
        argv = [*within, os.environ["MEMFERRY"], *args]
        if json_output:
            argv.append("--json")
        super().__init__(name, argv, env={"MEMFERRY_RUN_DIR": str(run_dir)})

    @property
    def events(self):
        with self.changed:
            return [json.loads(line) for line in self.lines if line.startswith("{")]

    def event(self, name, limit=None, **fields):
        """Waits for the first event of that name with such fields."""

        def find():
            for event in self.events:
                if event.get("event") == name and all(event.get(k) == v for k, v in fields.items()):
                    return event
            return None

        return self.wait_until(f"event {name} {fields}", find, limit)

    def notice(self, word, limit=None):
        return self.wait_until(
            f"a notice with {word!r}",
            lambda: next((e for e in self.events if e.get("event") == "notice" and word in e.get("text", "")), None),
            limit,
        )

    def guardian(self):
        """send of a QEMU guest: the process that would bring it back."""
        for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            if Path(f"/proc/{pid}/comm").read_text().strip() == "memferry-guard":
                return int(pid)
        raise Failed(f"{self.name} has no guardian\n{self.transcript()}")

    def address(self):
        """receive: where it listens."""
        return self.event("listening")["address"]

    @property
    def report(self):
        events = self.events
        if not events or events[-1].get("event") != "report":
            raise Failed(f"{self.name}: its last line is no report\n{self.transcript()}")
        return events[-1]

    @property
    def complaint(self):
        """What it complains of on standard error; the warning that --insecure brings is none, nor is how the move goes."""
        with self.changed:
            lines = [line for line in self.errors if "(--insecure)" not in line]
        return lines if "--json" in self.argv else [line for line in lines if line.startswith("memferry: ")]

    def transcript(self, most=40):
        """Without what is said again and again."""
        dull = '{"event":"progress"', '{"event":"finding","verdict":"ok"'
        with self.changed:
            lines = self.lines
            self.lines = [line for line in lines if not line.startswith(dull)]
            try:
                return super().transcript(most)
            finally:
                self.lines = lines
