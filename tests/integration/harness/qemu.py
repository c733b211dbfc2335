# SPDX-License-Identifier: BSD-2-Clause
"""QEMUs running the test guest (tests/guest/README.md), and what it says."""
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from .process import Failed, Process
from .qmp import Qmp

MIB = 1 << 20
QEMU = os.environ.get("MEMFERRY_QEMU", "qemu-system-x86_64")


def accelerators():
    """What guests can run on here: tcg, and kvm where it can be opened."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError:
        return ["tcg"]
    return ["tcg", "kvm"]


def kvm_has_hardware():
    return any(Path("/sys/module", name).exists() for name in ("kvm_intel", "kvm_amd"))


@dataclass
class Ram:
    """One region of guest RAM and what is behind it."""

    size: int
    backing: str = "shm"  # unlinked, hugetlb, memfd, private
    mount: str = ""  # hugetlb: a directory there, one for each QEMU

    def backend(self, name, directory):
        what = f"id={name},size={self.size}"
        if self.backing == "memfd":
            return f"memory-backend-memfd,{what},share=on"
        if self.backing == "private":
            return f"memory-backend-ram,{what}"
        return f"memory-backend-file,{what},share=on,mem-path={self.path(name, directory)}"

    def path(self, name, directory):
        """A directory makes QEMU create a file there and unlink it."""
        return Path(directory) if self.backing == "unlinked" else Path(self.mount or directory, name)


@dataclass
class Beat:
    n: int
    ms: int
    writes: int
    checked: int
    passes: int
    wrong: int


BEAT = re.compile(r"HB n=(\d+) ms=(\d+) writes=(\d+) checked=(\d+) passes=(\d+) wrong=(\d+)$")


def beats_in(lines):
    return [Beat(*map(int, match.groups())) for match in map(BEAT.match, lines) if match]


class Qemu(Process):
    """
    qmp_path is memferry's; monitor() is the test's own. The guest's serial port is standard input and output.
    directory: for the sockets; ram_directory: for the RAM files, made by the caller, one for each QEMU.
    within: what goes before its command line.
    """

    def __init__(self, name, directory, ram_directory, accel="tcg", ram=(Ram(128 * MIB),), guest="", incoming=False,
                 kernel=None, initrd=None, extra=(), within=()):
        self.accel = accel
        self.ram = ram
        self.ram_directory = Path(ram_directory)
        self.qmp_path = Path(directory, f"{name}.qmp")
        self.own_path = Path(directory, f"{name}.mon")
        self._monitor = None
        if not kernel and accel == "kvm" and not kvm_has_hardware():
            guest += " nap=0"
        argv = [*within, QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-accel", accel, "-m", f"{sum(r.size for r in ram) // MIB}M"]
        for i, region in enumerate(ram):
            argv += ["-object", region.backend(f"ram{i}", ram_directory)]
        if len(ram) == 1:
            argv += ["-machine", "pc,memory-backend=ram0"]
        else:
            argv += ["-machine", "pc"]
            for i in range(len(ram)):
                argv += ["-numa", f"node,nodeid={i},memdev=ram{i}"]
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.own_path))
        listener.listen(1)
        for ident, where in ("memferry", f"path={self.qmp_path}"), ("own", f"fd={listener.fileno()}"):
            argv += ["-chardev", f"socket,id={ident},{where},server=on,wait=off", "-mon", f"chardev={ident},mode=control"]
        argv += ["-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"]
        argv += ["-kernel", kernel or os.environ["MEMFERRY_GUEST"], "-append", guest.strip()]
        if initrd:
            argv += ["-initrd", initrd]
        if incoming:
            argv += ["-incoming", "defer"]
        super().__init__(name, argv + list(extra), pass_fds=[listener.fileno()])
        listener.close()

    def monitor(self):
        """Its greeting comes when all sockets are there: this also waits until QEMU has started."""
        if not self._monitor:
            try:
                self._monitor = Qmp(self.own_path)
            except (OSError, Failed):
                self.wait()
                raise Failed(f"{self.name} did not start\n{self.transcript()}") from None
        return self._monitor

    def status(self):
        return self.monitor()("query-status")["status"]

    def settings(self):
        """What a move changes of its migration."""
        return self.monitor()("query-migrate-capabilities"), self.monitor()("query-migrate-parameters")

    def userfaultfds(self):
        """How many are open in it."""
        n = 0
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                n += "userfaultfd" in os.readlink(link)
            except OSError:
                pass  # closed meanwhile
        return n

    # What the test guest says.

    @property
    def beats(self):
        with self.changed:
            return beats_in(self.lines)

    def ready(self, beats=2):
        """Until the guest has started and beaten."""
        self.monitor()
        self.wait_line("READY")
        self.more_beats(beats)
        return self

    def more_beats(self, more=3, limit=None):
        """So many beats from now on: it runs. Returns the last."""
        want = len(self.beats) + more
        self.wait_until(f"{more} more heartbeats", lambda: len(self.beats) >= want, limit)
        return self.beats[-1]

    def check_pages(self):
        """Has the guest check every page now; the numbers of its answer."""
        return self.ask("v", "CHECKED")

    def ask(self, command, answer, limit=None):
        start = len(self.lines)
        self.type(command)
        line = self.wait_line(answer, start, limit)
        return {k: v for k, v in (word.split("=", 1) for word in line.split()[1:])}

    def ram_file(self, n=0):
        return self.ram[n].path(f"ram{n}", self.ram_directory)

    def kill(self):
        if self._monitor:
            self._monitor.close()
            self._monitor = None
        super().kill()
