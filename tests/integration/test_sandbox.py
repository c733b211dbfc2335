#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Once the guest is open, send and receive have no privilege; what reaches into QEMU for them has what that takes, and dies harmlessly."""
import os
import re
import signal
from pathlib import Path

from harness import Case, Ram, await_gone, main
from harness.process import Failed
from harness.qemu import MIB

NOBODY = 65534
AS_NOBODY = "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"
UNIT = Path(__file__).parents[2] / "engine/cli/memferry-receive@.service.in"
GUEST = {"ram": (Ram(64 * MIB),), "guest": "hot=8M rate=32M data=24M"}
SLOW = "--max-bandwidth", "8M"

CAP_DAC_OVERRIDE, CAP_KILL, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_RESOURCE, CAP_CHECKPOINT_RESTORE = 1, 5, 19, 21, 24, 40
REACHING = sum(1 << cap for cap in (CAP_DAC_OVERRIDE, CAP_KILL, CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE))
CAP_SETS = "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"

NO_FILTER = os.environ.get("MEMFERRY_NO_SECCOMP") == "1"  # built without libseccomp
FILTERED = "0" if NO_FILTER else "2"


def fields(path):
    return dict(re.findall(r"^(\w+):\s*(.*)$", path.read_text(), re.M))


OURS = int(fields(Path("/proc/self/status"))["CapEff"], 16)
CAN_RAISE_LIMITS, CAN_OVERRIDE = OURS >> CAP_SYS_RESOURCE & 1, OURS >> CAP_DAC_OVERRIDE & 1


def threads(pid):
    """Of each thread its name and status; those that end meanwhile are left out."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found.append(((task / "comm").read_text().strip(), fields(task / "status"), task))
        except OSError:
            pass
    return found


def child(process, name):
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if Path(f"/proc/{pid}/comm").read_text().strip() == name:
            return int(pid)
    raise Failed(f"{process.name} has no {name}\n{process.transcript()}")


class Sandbox(Case):
    def qemu_of_nobody(self, name, **options):
        """Its sockets and its RAM are its own."""
        os.chown(self.directory, NOBODY, NOBODY)
        os.chmod(self.directory, 0o711)
        return self.qemu(name, owner=NOBODY, within=AS_NOBODY, **options)

    def start(self, *args, mode="hybrid"):
        self.receiver = self.receive(self.destination, *SLOW)
        self.sender = self.send(self.receiver.address(), self.source, "--mode", mode, *SLOW, *args)

    def pair_of_nobody(self):
        self.destination = self.qemu_of_nobody("destination", incoming=True, **GUEST)
        self.source = self.qemu_of_nobody("source", **GUEST)
        self.destination.monitor()
        self.source.ready()
        for qemu in self.source, self.destination:
            status = fields(Path(f"/proc/{qemu.pid}/status"))
            self.assertEqual((status["Uid"].split()[0], int(status["CapPrm"], 16)), (str(NOBODY), 0))

    def assert_unprivileged(self, process, has_bounding=True):
        seen = threads(process.pid)
        self.assertTrue(seen)
        for name, status, task in seen:
            for which in CAP_SETS:
                if which != "CapBnd" or has_bounding:
                    self.assertEqual(int(status[which], 16), 0, f"{process.name}, thread {name}: {which}")
            self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), ("1", FILTERED), f"{process.name}, thread {name}")
            if name.startswith("mf-urgent") and CAN_RAISE_LIMITS:  # by a limit, without the capability
                self.assertEqual((task / "stat").read_text().rsplit(")", 1)[1].split()[16], "-15")
        return [name for name, _, _ in seen]

    def assert_reaches(self, pid, caps=REACHING, seccomp=FILTERED):
        for name, status, _ in threads(pid):
            for which in "CapPrm", "CapEff", "CapBnd":
                self.assertEqual(int(status[which], 16), caps, f"{name}: {which}")
            self.assertEqual((int(status["CapInh"], 16), status["NoNewPrivs"], status["Seccomp"]), (0, "1", seccomp), name)

    def assert_second_move(self, of):
        """Whatever was left behind is not in its way."""
        destination = self.qemu("second", incoming=True, **GUEST)
        destination.monitor()
        receive = self.receive(destination)
        send = self.send(receive.address(), of, "--verify", "full")
        self.assert_moved("qemu", "qemu", send, receive)
        destination.more_beats()
        self.assertEqual(destination.check_pages()["wrong"], "0")
        self.assertEqual(destination.userfaultfds(), 0)

    # While it moves

    def test_a_move_of_other_users_guests(self):
        """Neither QEMU has a privilege, both belong to somebody else; looked at in pre-copy and in post-copy."""
        self.pair_of_nobody()
        self.start()
        self.sender.event("phase", phase="precopy")
        self.sender.event("round")
        for side in self.sender, self.receiver:
            names = self.assert_unprivileged(side)
            self.assertTrue(any(name.startswith("mf-lane") for name in names), names)
            self.assertTrue(any(name.startswith("mf-urgent") for name in names), names)
            self.assert_reaches(child(side, "memferry-attach"))
        self.assert_reaches(self.sender.guardian())
        self.tell("postcopy")
        self.receiver.event("running")
        for side in self.sender, self.receiver:
            self.assert_unprivileged(side)
            self.assert_reaches(child(side, "memferry-attach"))
        self.assert_moved(self.source, self.destination, self.sender, self.receiver, verified=False)
        self.assertGreater(self.receiver.report["postcopy"]["pulled_pages"], 0)
        self.assertEqual(self.destination.userfaultfds(), 0)

    def test_a_guest_that_filters_its_system_calls(self):
        """Its filter is suspended by who has the capability and no filter itself."""
        self.source, self.destination = self.pair(**GUEST, extra=("-sandbox", "on"))
        self.assertEqual(fields(Path(f"/proc/{self.source.pid}/status"))["Seccomp"], "2")
        self.start("--verify", "full")
        self.sender.event("phase", phase="precopy")
        self.assert_unprivileged(self.sender)
        self.assert_reaches(child(self.sender, "memferry-attach"), REACHING | 1 << CAP_SYS_ADMIN, "0")
        self.assert_reaches(self.sender.guardian(), REACHING | 1 << CAP_SYS_ADMIN, "0")
        self.tell("cutover")
        self.assert_moved(self.source, self.destination, self.sender, self.receiver)

    def test_the_demo_guest(self):
        receive = self.receive("demo:32M", *SLOW)
        send = self.send(receive.address(), "demo:32M,dirty=16M", "--mode", "postcopy", *SLOW)
        receive.event("running")
        for side in send, receive:
            self.assert_unprivileged(side)
            self.assert_reaches(child(side, "memferry-attach"))
            for _, status, _ in threads(child(side, "demo-guest")):
                self.assertEqual((int(status["CapPrm"], 16), status["NoNewPrivs"]), (0, "1"))
        self.assert_moved("demo", "demo", send, receive, verified=False)

    def test_an_ordinary_user(self):
        """Who has nothing to give up is filtered all the same."""
        self.pair_of_nobody()
        for run in self.source_run, self.destination_run:
            run.mkdir(mode=0o700)
            os.chown(run, NOBODY, NOBODY)
        self.receiver = self.memferry("receive", "receive", "--listen", "127.0.0.1:0", "--guest",
                                      f"qemu:{self.destination.qmp_path}", "--insecure", run=self.destination_run, within=AS_NOBODY)
        self.sender = self.memferry("send", "send", self.receiver.address(), "--guest", f"qemu:{self.source.qmp_path}",
                                    "--insecure", "--mode", "cold", "--verify", "full", *SLOW, within=AS_NOBODY)
        self.sender.event("phase", phase="prepare")
        for side in self.sender, self.receiver:
            self.assert_unprivileged(side, has_bounding=False)
            self.assert_reaches_as_user(child(side, "memferry-attach"))
        self.assert_moved(self.source, self.destination, self.sender, self.receiver)

    def assert_reaches_as_user(self, pid):
        for name, status, _ in threads(pid):
            self.assertEqual((int(status["CapPrm"], 16), status["NoNewPrivs"], status["Seccomp"]), (0, "1", FILTERED), name)

    def test_what_the_unit_starts_with_does(self):
        """An ordinary user with the capabilities of memferry-receive@.service, and QEMUs of root."""
        self.source, self.destination = self.pair(**GUEST)
        os.chmod(self.directory, 0o711)
        self.destination_run.mkdir(mode=0o700)
        os.chown(self.destination_run, NOBODY, NOBODY)
        given = re.search(r"^AmbientCapabilities=(.*)$", UNIT.read_text(), re.M).group(1)
        caps = "-all," + ",".join("+" + cap.removeprefix("CAP_").lower() for cap in given.split())
        within = *AS_NOBODY, f"--inh-caps={caps}", f"--ambient-caps={caps}", f"--bounding-set={caps}", "--no-new-privs"
        self.receiver = self.memferry("receive", "receive", "--listen", "127.0.0.1:0", "--guest",
                                      f"qemu:{self.destination.qmp_path}", "--insecure", *SLOW, run=self.destination_run, within=within)
        self.sender = self.send(self.receiver.address(), self.source, "--mode", "postcopy", *SLOW)
        self.receiver.event("running")
        self.assert_unprivileged(self.receiver, has_bounding=False)
        self.assert_reaches(child(self.receiver, "memferry-attach"))
        self.assert_moved(self.source, self.destination, self.sender, self.receiver, verified=False)
        self.assertEqual(self.destination.userfaultfds(), 0)

    def test_a_run_directory_that_only_privilege_reaches(self):
        """Refused before anything has begun, not when the first file is needed there."""
        if not CAN_OVERRIDE:
            self.skipTest("no CAP_DAC_OVERRIDE, so there is none")
        os.chown(self.directory, NOBODY, NOBODY)
        receive = self.memferry("receive", "receive", "--listen", "127.0.0.1:0", "--guest", "demo:32M", "--insecure",
                                run=self.destination_run)
        self.assertEqual(receive.wait(), 1)
        self.assertIn("--run-dir", self.assert_one_sentence(receive))

    def test_it_can_be_turned_off(self):
        receive = self.receive("demo:32M", "--sandbox", "off")
        status = fields(Path(f"/proc/{receive.pid}/status"))
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), ("0", "0"))
        self.assertNotEqual(int(status["CapEff"], 16), 0)
        with self.assertRaises(Failed):
            child(receive, "memferry-attach")
        send = self.send(receive.address(), "demo:32M", "--sandbox", "off", "--verify", "full")
        self.assert_moved("demo", "demo", send, receive)

    # What reaches into QEMU is killed

    def kill_helper(self, process):
        pid = child(process, "memferry-attach")
        os.kill(pid, signal.SIGKILL)
        return pid

    def test_killed_at_the_source_before_the_commit(self):
        self.source, self.destination = self.pair(**GUEST)
        self.start(mode="precopy")
        self.sender.event("round")
        self.kill_helper(self.sender)
        self.tell("cutover")
        self.assert_aborted(self.sender)
        self.assertIn("memferry-attach", self.assert_one_sentence(self.sender))
        self.assertEqual(self.receiver.wait(), 1)
        self.assertEqual(self.destination.beats, [])
        self.assert_unharmed(self.source)
        self.assert_second_move(self.source)

    def test_killed_at_the_source_while_it_collects(self):
        """By soft-dirty bits each collect needs it; where the kernel has none, it is killed before anything is collected."""
        self.source, self.destination = self.pair(**GUEST)
        self.start("--tracker", "writeprotect", mode="precopy")
        self.sender.event("phase", phase="precopy")
        self.kill_helper(self.sender)
        self.tell("cutover")
        self.assert_aborted(self.sender)
        self.assertIn("memferry-attach", self.assert_one_sentence(self.sender))
        self.assert_unharmed(self.source)

    def test_killed_at_the_destination_before_the_commit(self):
        self.source, self.destination = self.pair(**GUEST)
        self.start(mode="precopy")
        self.sender.event("round")
        self.kill_helper(self.receiver)
        self.tell("cutover")
        self.assert_aborted(self.sender)
        self.assertEqual(self.receiver.wait(), 1)
        self.assertIn("memferry-attach", self.assert_one_sentence(self.receiver))
        self.assertIn("memferry-attach", self.assert_one_sentence(self.sender))
        self.assert_unharmed(self.source)
        self.assert_second_move(self.source)

    def test_killed_in_post_copy(self):
        """On both hosts: all that it was needed for is done, and the move ends well."""
        self.source, self.destination = self.pair(**GUEST)
        self.start(mode="postcopy")
        self.receiver.event("running")
        for side in self.sender, self.receiver:
            self.kill_helper(side)
        self.assert_moved(self.source, self.destination, self.sender, self.receiver, verified=False)
        self.assertGreater(self.receiver.report["postcopy"]["pulled_pages"], 0)
        self.assert_second_move(self.destination)

    def test_it_ends_with_the_command(self):
        self.source, self.destination = self.pair(**GUEST)
        self.start(mode="postcopy")
        self.receiver.event("running")
        helpers = [child(side, "memferry-attach") for side in (self.sender, self.receiver)]
        for side in self.sender, self.receiver:
            side.signal(signal.SIGKILL)
            side.wait()
        for pid in helpers:
            await_gone(pid)


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("this needs root")
    main()
