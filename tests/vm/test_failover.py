#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
RDMA that goes away in the middle of a move, in each phase: the move goes on over what is left, by itself, and no page is
wrong.  The control channel runs over the loopback, which stays.
"""
import signal
import subprocess

from verbs import LINK, VerbsCase, command
from harness import Ram, main, timeout
from harness.qemu import MIB

FULL = "--verify", "full"
DEVICE = "rxe0"
SECOND = "d1", "rxe1", "10.78.0.1/24"
SLOW = "--max-bandwidth", "8M"


def link_down():
    command("ip", "link", "set", LINK, "down")


removals = []


def device_gone():
    """Takes until nobody holds the device any more: Soft-RoCE cannot be taken away from a process."""
    removals.append(subprocess.Popen(["rdma", "link", "delete", DEVICE]))


LOSSES = {"link_down": link_down, "device_gone": device_gone}


class Failover(VerbsCase):
    def restore(self):
        while removals:
            removals.pop().wait(timeout())
        for argv in (
            ("rdma", "link", "delete", SECOND[1]),
            ("ip", "link", "delete", SECOND[0]),
            ("rdma", "link", "delete", DEVICE),  # its QP1 may be in error: something was sent while the link was down
            ("ip", "link", "set", LINK, "up"),
            ("ip", "address", "replace", "fd77::1/64", "dev", LINK, "nodad"),  # goes when the link does
            ("rdma", "link", "add", DEVICE, "type", "rxe", "netdev", LINK),
        ):
            subprocess.run(argv, check=False, capture_output=True)

    def add_second(self):
        link, device, address = SECOND
        command("ip", "link", "add", link, "type", "dummy")
        command("ip", "link", "set", link, "mtu", "9000", "up")
        command("ip", "address", "add", address, "dev", link)
        command("rdma", "link", "add", device, "type", "rxe", "netdev", link)

    def start(self, guest, *args, destination=None):
        receive = self.receive(destination or guest.split(",")[0], host="127.0.0.1")
        send = self.send(receive.address(), guest, *FULL, *args)
        self.assertEqual(send.event("transport")["transport"], "verbs")
        return send, receive

    def under_way(self, send, least=1):
        """Pages have gone in this phase, so many bytes."""
        send.wait_until("progress", lambda: any(
            e["event"] == "progress" and e["phase"] == "precopy" and e["done_bytes"] >= least for e in send.events))

    @staticmethod
    def moved(report, field, value):
        return sum(lane["bytes_written"] + lane["bytes_read"] for lane in report["lanes"] if lane[field] == value)

    def assert_went_on_over_tcp(self, send, receive, active):
        """active: the side that moves pages in this phase."""
        self.assert_moved(None, None, send, receive)
        said = active.notice("lost")["text"]
        self.assertRegex(said, r"verbs.* \(.+\).*tcp")
        self.assert_transport("tcp", send, receive)
        self.assertRegex(active.report["transport_reason"], "verbs.*lost")
        states = {(lane["transport"], lane["state"]) for lane in active.report["lanes"]}
        self.assertEqual(states, {("verbs", "lost"), ("tcp", "up")}, active.transcript())
        self.assertGreater(self.moved(active.report, "transport", "tcp"), 0)

    def lose_in_precopy(self, lose):
        send, receive = self.start("demo:48M,dirty=1M", "--mode", "precopy", *SLOW)
        self.under_way(send)
        lose()
        self.assert_went_on_over_tcp(send, receive, send)
        self.assertGreater(self.moved(send.report, "transport", "verbs"), 0)

    def lose_in_warm(self, lose):
        send, receive = self.start("demo:24M,dirty=1M", "--mode", "warm")
        send.event("round", n=2)
        lose()
        send.notice("lost")
        self.tell("cutover")
        self.assert_went_on_over_tcp(send, receive, send)

    def lose_in_switchover(self, lose):
        """Cold: all of it goes then."""
        send, receive = self.start("demo:256M", "--mode", "cold")
        send.event("phase", phase="switchover")
        lose()
        self.assert_went_on_over_tcp(send, receive, send)

    def lose_in_postcopy(self, lose):
        send, receive = self.start("demo:384M,dirty=1M", "--mode", "postcopy")
        receive.event("phase", phase="postcopy")
        lose()
        self.assert_went_on_over_tcp(send, receive, receive)

    def test_a_link_comes_back(self):
        """A device does not, to the processes that had it: librdmacm holds on to it."""
        send, receive = self.start("demo:24M,dirty=1M", "--mode", "warm")
        send.event("round", n=1)
        link_down()
        send.notice("lost")
        command("ip", "link", "set", LINK, "up")
        send.notice("back", timeout(120))
        rounds = len([e for e in send.events if e["event"] == "round"])
        send.wait_until("two more rounds", lambda: len([e for e in send.events if e["event"] == "round"]) >= rounds + 2)
        self.tell("cutover")
        self.assert_moved(None, None, send, receive)
        self.assert_transport("verbs", send, receive)
        self.assertIn(("verbs", "up"), {(lane["transport"], lane["state"]) for lane in send.report["lanes"]})
        self.assertGreater(self.moved(send.report, "transport", "verbs"), 0)

    def test_two_rails(self):
        """Both carry pages; one is lost, the other goes on, and TCP is not needed."""
        self.add_second()
        send, receive = self.start("demo:48M,dirty=1M", "--mode", "precopy", *SLOW)
        # They are held to one rate together, turn about: by then each of four lanes has had some.
        self.under_way(send, 8 * MIB)
        link_down()
        said = send.notice("lost")["text"]
        self.assertIn(DEVICE, said)
        self.assert_moved(None, None, send, receive)
        self.assert_transport("verbs", send, receive)
        for device in DEVICE, SECOND[1]:
            self.assertGreater(self.moved(send.report, "device", device), 0, send.transcript())
        self.assertEqual(self.moved(send.report, "transport", "tcp"), 0)

    def test_peer_that_falls_silent(self):
        """It answers reads and writes as before, its device does that; but nobody is there."""
        source, destination = self.pair(ram=(Ram(64 * MIB),), guest="hot=4M rate=4M data=32M")
        send, receive = self.start(source, "--mode", "precopy", "--max-bandwidth", "4M", "--peer-timeout", "5000",
                                   destination=destination)
        self.under_way(send)
        receive.signal(signal.SIGSTOP)
        self.assert_aborted(send)
        self.assertIn(send.report["error"]["code"], ("peer", "ETIMEDOUT"))
        self.assert_unharmed(source)
        self.assertEqual(destination.beats, [])


def add_losses():
    def make(test, loss):
        return lambda self: test(self, loss)

    for name, loss in LOSSES.items():
        for test in Failover.lose_in_precopy, Failover.lose_in_warm, Failover.lose_in_switchover, Failover.lose_in_postcopy:
            setattr(Failover, f"test_{test.__name__}_{name}", make(test, loss))


add_losses()

if __name__ == "__main__":
    main()
