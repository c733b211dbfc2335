# SPDX-License-Identifier: BSD-2-Clause
"""What all comparisons are: jobs that contenders do in turns."""
import os
import sys
from dataclasses import dataclass


class Lacking(Exception):
    """What something needs is not here: no failure, but nothing was measured either."""


@dataclass
class Job:
    """Each contender has a name, says whether it is ours, and has measure(warm), which returns one result."""

    name: str
    contenders: list


class Part:
    """Jobs, and what came of them: results[job][contender] has a result for each turn."""

    def __init__(self, name, title, jobs, on_result=None):
        """on_result(turn, job, contender, result): for each as it comes, the warm-up's too, in place of a word about it."""
        self.name, self.title, self.jobs, self._on_result = name, title, jobs, on_result
        self.results = {job.name: {c.name: [] for c in job.contenders} for job in jobs}

    def run(self, turns):
        """One turn warms up and is not counted. Every other turn goes backwards: nobody is always the first."""
        for turn in range(turns + 1):
            for job in self.jobs:
                for contender in job.contenders[::-1 if turn % 2 else 1]:
                    self.keep(turn, job.name, contender.name, contender.measure(turn == 0))

    def keep(self, turn, job, contender, result):
        if self._on_result:
            self._on_result(turn, job, contender, result)
        else:
            what = f"{job}, {contender}" if job else contender
            warm = f"turn {turn}" if turn else "warm-up"
            print(f"{self.name}: {warm}: {what}: {self.say(result)}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        if turn:
            self.results[job][contender].append(result)

    def say(self, result):
        """One result in a few words."""
        raise NotImplementedError

    def text(self):
        """The tables, in Markdown."""
        raise NotImplementedError

    def data(self):
        """Every single result, for JSON."""
        raise NotImplementedError
