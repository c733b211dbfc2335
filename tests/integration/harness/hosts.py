# SPDX-License-Identifier: BSD-2-Clause
"""The hosts of a move, on one machine. Two of them share all but the network, with a cable between them that can be cut."""
import subprocess

from .process import Process



class OneHost:
    """This one, by one of its addresses: nothing between the two sides can be cut."""

    can_cut = False

    def __init__(self, address):
        self.source = self.destination = address

    def at_source(self):
        return []

    at_destination = at_source

    def mend(self):
        pass

    kill = mend


class TwoHosts:
    can_cut = True
    source, destination = "10.79.0.1", "10.79.0.2"

    def __init__(self):
        self.hosts = []
        try:
            for _ in range(2):
                host = Process("host", ["unshare", "--net", "sh", "-c", "echo up; exec sleep infinity"])
                self.hosts.append(host)
                host.wait_line("up")
            a, b = (host.pid for host in self.hosts)
            self._run(a, "ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(b))
            for pid, address in (a, self.source), (b, self.destination):
                self._run(pid, "ip", "address", "add", f"{address}/24", "dev", "cable")
                for link in "lo", "cable":
                    self._run(pid, "ip", "link", "set", link, "up")
        except BaseException:
            self.kill()
            raise

    @staticmethod
    def _run(pid, *argv):
        subprocess.run(["nsenter", "-t", str(pid), "-n", "--", *argv], check=True, stdin=subprocess.DEVNULL)

    def at_source(self):
        """What goes before a command line to run it there."""
        return ["nsenter", "-t", str(self.hosts[0].pid), "-n", "--"]

    def at_destination(self):
        return ["nsenter", "-t", str(self.hosts[1].pid), "-n", "--"]

    def cut(self):
        """At the destination's end: the source's goes on having its address."""
        self._run(self.hosts[1].pid, "ip", "link", "set", "cable", "down")

    def mend(self):
        self._run(self.hosts[1].pid, "ip", "link", "set", "cable", "up")
        # That nobody answered there is remembered for seconds.
        self._run(self.hosts[0].pid, "ip", "neighbour", "flush", "dev", "cable")

    def kill(self):
        for host in self.hosts:
            host.kill()
