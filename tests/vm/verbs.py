# SPDX-License-Identifier: BSD-2-Clause
"""What the programs share that tests/vm/run starts: moves over the machine's RDMA device, and what is left of them on it."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from harness import Case, timeout

HOST = os.environ.get("MEMFERRY_TEST_HOST", "")
LINK = os.environ.get("MEMFERRY_TEST_LINK", "")
KERNEL = tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2])
# What auto takes, and what it could take: the first needs Linux 6.7, the others are for kernels before it.
TRACKERS = ("pagemap", "softdirty", "writeprotect") if KERNEL >= (6, 7) else ("softdirty", "writeprotect")
ROUNDS = "hybrid", "precopy", "warm"


def command(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def resources():
    """What the RDMA devices hold, by device and kind, and how many pages of the machine are pinned."""
    found = {entry.pop("ifname"): entry for entry in json.loads(command("rdma", "-j", "resource", "show"))}
    for entry in found.values():
        del entry["ifindex"]  # another one when the device was made anew
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    pinned = int(counts["nr_foll_pin_acquired"]) - int(counts["nr_foll_pin_released"])
    return {**found, "pinned pages": pinned}


class VerbsCase(Case):
    """Each test ends with as much on the devices as it began with."""

    def setUp(self):
        if not HOST:
            self.skipTest("MEMFERRY_TEST_HOST names no address of an RDMA device")
        self.before = resources()
        self.addCleanup(self.assert_nothing_left)  # runs last: all processes have ended
        super().setUp()

    def restore(self):
        """What the test did to the machine is undone."""

    def assert_nothing_left(self):
        """What a process leaves to the kernel goes a moment after it."""
        self.restore()
        deadline = time.monotonic() + timeout(20)
        while resources() != self.before and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertEqual(resources(), self.before, "left on the RDMA devices")

    def receive(self, guest, *args, host=HOST):
        spec = guest if isinstance(guest, str) else f"qemu:{guest.qmp_path}"
        receive = self.memferry("receive", "receive", "--listen", f"{host}:0", "--guest", spec, "--insecure", *args,
                                run=self.destination_run)
        receive.address()
        return receive

    def assert_transport(self, transport, *sides):
        for side in sides:
            self.assertEqual(side.report["transport"], transport, side.transcript())
            self.assertTrue(side.report["transport_reason"])
