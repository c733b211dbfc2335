# SPDX-License-Identifier: BSD-2-Clause
"""What the kernel says about processes and this host, and a place for a run's files."""
import atexit
import mmap
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

GIB = 1 << 30
PREFIX = "memferry-versus-"
TICK = os.sysconf("SC_CLK_TCK")
MADV_POPULATE_WRITE = 23


def sweep(directory):
    """What a killed run has left: directories carry the pid of their owner."""
    for left in Path(directory).glob(PREFIX + "*"):
        pid = left.name[len(PREFIX):].split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)


def make_directory(parent):
    path = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent)
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def exit_on_signals():
    """So that the files above go away then too."""
    for number in signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, lambda n, _: sys.exit(128 + n))


def warm_memory(size):
    """In a virtual machine the first touch of a page may make the host find one: not while something is timed."""
    with mmap.mmap(-1, size) as memory:
        memory.madvise(MADV_POPULATE_WRITE)


def free_memory():
    """What guests can have: RAM, and room in /dev/shm."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    shm = os.statvfs("/dev/shm")
    return int(fields["MemAvailable"].split()[0]) * 1024, shm.f_bavail * shm.f_frsize


def cpu_seconds(pid, tid=None):
    """Of a process, threads that have ended included, or of one thread. Works on what has ended and was not waited for."""
    where = f"/proc/{pid}/task/{tid}/stat" if tid else f"/proc/{pid}/stat"
    fields = Path(where).read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def wait_unreaped(pid):
    """Until it has ended; its /proc entry stays."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


class AnonPeak:
    """The most anonymous memory that a process had, by looking every 20 ms. The kernel keeps no such peak."""

    def __init__(self, pid):
        self.bytes = 0
        self._path = Path(f"/proc/{pid}/status")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self):
        while True:
            try:
                text = self._path.read_text()
            except OSError:
                return
            at = text.find("RssAnon:")
            if at < 0:
                return  # it has ended
            self.bytes = max(self.bytes, int(text[at:].split(None, 2)[1]) * 1024)
            if self._done.wait(0.02):
                return

    def stop(self):
        self._done.set()
        self._thread.join()
        return self.bytes


def first_line(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "not known"


def describe(root, packages):
    """What figures depend on; the packages' versions, too."""
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    model = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return {
        "cpus": os.cpu_count(),
        "cpu": model[0] if model else platform.machine(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB),
        "kernel": platform.release(),
        "thp": thp.read_text().strip() if thp.exists() else "none",
        "packages": {name: first_line("dpkg-query", "-W", "-f", "${Version}", name) for name in packages},
        "commit": first_line("git", "-C", str(root), "describe", "--always", "--dirty"),
    }
