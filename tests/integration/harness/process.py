# SPDX-License-Identifier: BSD-2-Clause
"""Processes whose output is read line by line as it comes, and that never outlive the test."""
import ctypes
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Failed(AssertionError):
    """What was waited for did not come."""


def timeout(seconds=60.0):
    """A generous limit for something that takes a moment; MEMFERRY_TEST_SLOWNESS multiplies it."""
    return seconds * float(os.environ.get("MEMFERRY_TEST_SLOWNESS", "1"))


def await_gone(pid, limit=None):
    """A process that is nobody's child here: only /proc tells of its end."""
    deadline = time.monotonic() + (limit or timeout())
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            raise Failed(f"process {pid} does not end")
        time.sleep(0.01)


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Process:
    """A child in a process group of its own. PDEATHSIG goes by the thread that started it: use the main one."""

    def __init__(self, name, argv, env=None, pass_fds=()):
        self.name = name
        self.argv = [str(a) for a in argv]
        self.lines = []  # of standard output, whole ones
        self.rest = ""  # the beginning of one
        self.errors = []
        self.ended = False  # standard output is at its end
        self.changed = threading.Condition()
        self.child = subprocess.Popen(
            self.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=_die_with_parent,
            pass_fds=pass_fds,
        )
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_output(self):
        while True:
            data = os.read(self.child.stdout.fileno(), 65536)
            with self.changed:
                parts = (self.rest + data.decode("utf-8", "replace")).split("\n")
                self.rest = parts.pop()
                self.lines += [part.rstrip("\r") for part in parts]
                self.ended = not data
                self.changed.notify_all()
            if not data:
                return

    def _read_errors(self):
        for line in self.child.stderr:
            with self.changed:
                self.errors.append(line.decode("utf-8", "replace").rstrip())
                self.changed.notify_all()

    @property
    def pid(self):
        return self.child.pid

    @property
    def output(self):
        """All of standard output so far, the begun line too."""
        with self.changed:
            return "".join(line + "\n" for line in self.lines) + self.rest

    def wait_until(self, what, find, limit=None):
        """The first true value of find(), looked for whenever output has come."""
        deadline = time.monotonic() + (limit or timeout())
        with self.changed:
            while True:
                found = find()
                if found:
                    return found
                if self.ended:
                    raise Failed(f"{self.name} ended, and not: {what}\n{self.transcript()}")
                left = deadline - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    if find():
                        continue
                    raise Failed(f"{self.name}: not in time: {what}\n{self.transcript()}")

    def wait_line(self, begin, start=0, limit=None):
        """The first line from number start on that begins so."""
        return self.wait_until(
            f"a line {begin!r}", lambda: next((x for x in self.lines[start:] if x.startswith(begin)), None), limit
        )

    def type(self, text):
        self.child.stdin.write(text.encode())
        self.child.stdin.flush()

    def is_alive(self):
        return self.child.poll() is None

    def wait(self, limit=None):
        """Its exit status, all output read."""
        try:
            status = self.child.wait(limit or timeout())
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} does not end\n{self.transcript()}") from None
        for reader in self._readers:
            reader.join(timeout())
        return status

    def signal(self, number):
        if self.is_alive():
            os.kill(self.pid, number)

    def kill(self):
        """It, and whatever it started."""
        if self.is_alive():
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.child.wait()
        for reader in self._readers:
            reader.join(timeout())
        for stream in (self.child.stdout, self.child.stderr):
            stream.close()
        try:
            self.child.stdin.close()
        except BrokenPipeError:
            pass

    def transcript(self, most=25):
        status = self.child.poll()
        head = f"--- {self.name}: {' '.join(self.argv)}\n--- {'running' if status is None else f'exit status {status}'}\n"
        lines = self.lines if len(self.lines) <= most else ["…"] + self.lines[-most:]
        errors = self.errors if len(self.errors) <= most else ["…"] + self.errors[-most:]
        return head + "".join(f"  {x}\n" for x in lines) + "".join(f"  ! {x}\n" for x in errors)
