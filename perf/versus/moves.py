# SPDX-License-Identifier: BSD-2-Clause
"""The moves that are compared: a pair of QEMUs with the same guest, moved by memferry or by QEMU itself."""
import contextlib
import shutil
import sys
import time
from dataclasses import dataclass, field

from harness import Failed, Memferry, Qemu, Ram, timeout
from harness.qmp import Qmp

from host import AnonPeak, cpu_seconds, make_directory, wait_unreaped

UNLIMITED = 1 << 40  # bytes per second
LONG = 600


class Monitor(Qmp):
    """Keeps when the events that go by were sent."""

    def __init__(self, path):
        self._sent = {}  # by name, of the first one
        super().__init__(path)

    def _read(self):
        answer = super()._read()
        if "event" in answer:
            stamp = answer["timestamp"]
            self._sent.setdefault(answer["event"], stamp["seconds"] + stamp["microseconds"] / 1e6)
        return answer

    def when(self, name):
        """When the first event of that name was sent, by QEMU's clock, which is time.time()'s; waits for it."""
        while name not in self._sent:
            self._read()
        return self._sent[name]


class Vm(Qemu):
    def monitor(self):
        if not self._monitor:
            self._monitor = Monitor(self.own_path)
            self._monitor.socket.settimeout(timeout(LONG))
            self._vcpus = {cpu["thread-id"]: 0 for cpu in self._monitor("query-cpus-fast")}
        return self._monitor

    def own_cpu(self):
        """CPU seconds of all but the virtual CPUs; of those that have ended with QEMU, what the last call saw counts."""
        for tid in self._vcpus:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                self._vcpus[tid] = cpu_seconds(self.pid, tid)
        return cpu_seconds(self.pid) - sum(self._vcpus.values())


@dataclass
class Guest:
    """What is moved: parameters are tests/guest's."""

    size: int
    parameters: str
    accel: str


@dataclass
class Result:
    seconds: float  # from the command to the guest running at the destination
    pause_ms: float  # from the source's STOP to the destination's RESUME
    own_pause_ms: int = 0  # what the mover itself says that was
    whole_seconds: float = 0  # until no page is missing either
    cpu: float = 0  # seconds, of all processes that the move makes work, without virtual CPUs
    mover_cpu: float = 0  # of that, memferry's own
    anon: dict = field(default_factory=dict)  # memferry: bytes at the most, by side
    bytes: int = 0
    touch: dict = field(default_factory=dict)


class Pair(contextlib.ExitStack):
    """A source whose guest runs, a destination that waits, and all that goes with them at the end."""

    def __init__(self, guest, backing):
        super().__init__()
        self.directory, self.ram = make_directory("/tmp"), make_directory("/dev/shm")
        for directory in self.directory, self.ram:
            self.callback(shutil.rmtree, directory, ignore_errors=True)
        options = {"accel": guest.accel, "ram": (Ram(guest.size, backing),), "guest": guest.parameters}
        try:
            self.destination = self._start("destination", incoming=True, **options)
            self.source = self._start("source", **options)
            self.destination.monitor()
            self.source.monitor()
            self.source.wait_line("READY", limit=timeout(LONG))
            self.source.more_beats(2)
        except BaseException:
            self.close()
            raise

    def _start(self, name, **options):
        directory = self.ram / name
        directory.mkdir()
        vm = Vm(name, self.directory, directory, **options)
        self.callback(vm.kill)
        return vm

    def own_cpu(self):
        return self.source.own_cpu() + self.destination.own_cpu()

    def ends(self):
        """When the source's guest stopped and the destination's ran."""
        resumed = self.destination.monitor().when("RESUME")
        self.source.own_cpu()  # memferry ends the source's QEMU
        return self.source.monitor().when("STOP"), resumed

    def touch(self):
        """As soon as the guest runs at the destination."""
        self.destination.monitor().when("RESUME")
        answer = self.destination.ask("t", "TOUCH", limit=timeout(LONG))
        if answer["wrong"] != "0":
            raise Failed(f"the guest found wrong pages\n{self.destination.transcript()}")
        return {key: float(answer[key]) for key in ("ms", "p50_us", "p90_us", "p99_us", "p99_9_us", "max_us")}

    def look_after(self, check):
        """The guest runs, and all is there."""
        self.destination.more_beats(1)
        if check and self.destination.check_pages()["wrong"] != "0":
            raise Failed(f"the guest found wrong pages\n{self.destination.transcript()}")


class Mover:
    """guest: what to move, set before measure()."""

    guest = None
    backing = "shm"

    def measure(self, warm):
        with Pair(self.guest, self.backing) as pair:
            return self.move(pair, check=warm)


class ByMemferry(Mover):

    def __init__(self, lanes, postcopy=False):
        self.name = f"memferry, {lanes} lane{'s' if lanes > 1 else ''}"
        self.ours = True
        self._args = ["--lanes", str(lanes), "--mode", "postcopy" if postcopy else "precopy"]
        self._postcopy = postcopy

    def _run(self, pair, name, *args):
        command = Memferry(name, pair.directory / f"{name}.run", *args, "--insecure")
        pair.callback(command.kill)
        return command

    def move(self, pair, check=False):
        source, destination = pair.source, pair.destination
        receive = self._run(pair, "receive", "receive", "--listen", "127.0.0.1:0", "--guest", f"qemu:{destination.qmp_path}",
                            *self._args[:2])
        address = receive.address()
        before = pair.own_cpu()
        receive_anon = AnonPeak(receive.pid)
        started = time.time()
        send = self._run(pair, "send", "send", address, "--guest", f"qemu:{source.qmp_path}", *self._args)
        send_anon = AnonPeak(send.pid)
        touch = pair.touch() if self._postcopy else {}
        stopped, resumed = pair.ends()
        for process in send, receive:
            wait_unreaped(process.pid)
        ended = time.time()
        mover_cpu = cpu_seconds(send.pid) + cpu_seconds(receive.pid)
        cpu = mover_cpu + pair.own_cpu() - before
        anon = {"send": send_anon.stop(), "receive": receive_anon.stop()}
        if send.wait() or receive.wait():
            raise Failed(send.transcript() + receive.transcript())
        pair.look_after(check)
        report = send.report
        return Result(resumed - started, (resumed - stopped) * 1e3, receive.report["downtime_ms"], ended - started, cpu,
                      mover_cpu, anon, report["bytes_written"] + report["bytes_read"], touch)


class ByQemu(Mover):
    """Its own defaults, but for the bandwidth limit and what is named here. preempt: only with postcopy."""

    def __init__(self, backing, channels=0, postcopy=False, preempt=False):
        what = f"multifd {channels}" if channels else "plain"
        if postcopy:
            what = "post-copy, preempt" if preempt else "post-copy"
        self.name = f"QEMU {what}, {'shared file' if backing == 'shm' else 'anonymous'}"
        self.ours = False
        self.backing = backing
        self._postcopy = postcopy
        self._capabilities = ["multifd"] if channels else []
        self._capabilities += ["postcopy-ram"] if postcopy else []
        self._capabilities += ["postcopy-preempt"] if preempt else []
        self._parameters = {"max-bandwidth": UNLIMITED}
        if channels:
            self._parameters["multifd-channels"] = channels

    def move(self, pair, check=False):
        source, destination = pair.source.monitor(), pair.destination.monitor()
        for monitor in source, destination:
            if self._capabilities:
                monitor("migrate-set-capabilities",
                        capabilities=[{"capability": c, "state": True} for c in self._capabilities])
            monitor("migrate-set-parameters", **self._parameters)
        destination("migrate-incoming", uri="tcp:127.0.0.1:0")
        address = destination("query-migrate")["socket-address"][0]
        before = pair.own_cpu()
        started = time.time()
        source("migrate", uri=f"tcp:127.0.0.1:{address['port']}")
        if self._postcopy:
            source("migrate-start-postcopy")
        touch = pair.touch() if self._postcopy else {}
        stopped, resumed = pair.ends()
        info = self._end(source)
        ended = time.time()
        cpu = pair.own_cpu() - before
        try:
            pair.look_after(check)
        except Failed as failed:  # the peer's business (7.2 under TCG on a busy host loses a write now and then)
            print(f"{self.name}: {str(failed).splitlines()[0]}", file=sys.stderr, flush=True)
        return Result(resumed - started, (resumed - stopped) * 1e3, info["downtime"], ended - started, cpu, 0, {},
                      info["ram"]["transferred"], touch)

    def _end(self, source):
        """The guest runs already: asking again and again costs the move nothing that is timed."""
        deadline = time.monotonic() + timeout(LONG)
        while time.monotonic() < deadline:
            info = source("query-migrate")
            if info["status"] == "completed":
                return info
            if info["status"] in ("failed", "cancelled"):
                break
            time.sleep(0.02)
        raise Failed(f"{self.name}: {info}")
