# SPDX-License-Identifier: BSD-2-Clause
"""Hosts of a test's own on one machine: a network namespace, a host name and an /etc/hosts each, joined by a bridge."""
import re
from pathlib import Path

from .process import Failed, Process, timeout

NETWORK = "10.77.0"

# Runs as the first process of a PID namespace: with it everything ends that any host has started, daemons too.
SCRIPT = """
set -e
ip link add br0 type bridge
ip link set br0 up
for i in $(seq {count}); do
	mkdir -p {folder}/node$i
	echo "
		hostname node$i
		mount --bind {folder}/hosts /etc/hosts
		mount --bind {folder}/node$i {folder}/own
		ip link set lo up
		echo up
		exec sleep infinity" >{folder}/node$i.sh
	mkfifo {folder}/node$i.up
	unshare --net --uts --mount sh -e {folder}/node$i.sh >{folder}/node$i.up &
	read up <{folder}/node$i.up
	echo "PID $i $!"
	ip link add port$i type veth peer name eth0 netns $!
	ip link set port$i master br0 up
	nsenter -t $! -n ip address add {network}.$i/24 dev eth0
	nsenter -t $! -n ip link set eth0 up
done
echo ready
exec sleep infinity
"""


class Network:
    """Hosts node1, node2, … with the addresses 10.77.0.1, …; each sees a folder of its own as self.own."""

    def __init__(self, directory, count):
        self.folder = Path(directory, "network")
        self.own = self.folder / "own"
        self.own.mkdir(parents=True)
        self.names = [f"node{i}" for i in range(1, count + 1)]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(
            f"{self.address(i)} node{i}\n" for i in range(1, count + 1)))
        script = self.folder / "network.sh"
        script.write_text(SCRIPT.format(count=count, folder=self.folder, network=NETWORK))
        self.process = Process("network", ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                                           "sh", script])
        self.process.wait_line("ready", limit=timeout())
        self._init = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0]
        self._pids = {f"node{i}": pid for i, pid in re.findall(r"^PID (\d+) (\d+)$", self.process.output, re.M)}

    @staticmethod
    def address(number):
        return f"{NETWORK}.{number}"

    def within(self, name, *argv):
        """The command line that runs argv on this host; "" is where the bridge is."""
        enter = ["nsenter", "-t", self._init, "-n", "-m", "-p", "--"]
        if name:
            enter += ["nsenter", "-t", self._pids[name], "-n", "-u", "-m", "--"]
        return [*enter, *map(str, argv)]

    def run(self, name, *argv):
        process = Process(name or "bridge", self.within(name, *argv))
        try:
            if process.wait():
                raise Failed(process.transcript())
            return process.output
        finally:
            process.kill()

    def limit(self, number, rate):
        """Holds host number's link to a rate, as "50mbit", in both directions."""
        for name, interface in ((f"node{number}", "eth0"), ("", f"port{number}")):
            self.run(name, "tc", "qdisc", "add", "dev", interface, "root", "tbf", "rate", rate, "burst", "128k",
                     "latency", "200ms")

    def write_agent(self, path):
        """A program to be called on a host like ssh: HOST COMMAND..."""
        cases = "".join(f"{name}) pid={pid} ;;\n" for name, pid in self._pids.items())
        path.write_text(f'#!/bin/sh\ncase $1 in\n{cases}esac\nshift\nexec nsenter -t "$pid" -n -u -m -- sh -c "$*"\n')
        path.chmod(0o755)

    def received(self, number):
        """Bytes that came to a host."""
        line = next(x for x in self.run(f"node{number}", "cat", "/proc/net/dev").splitlines() if "eth0:" in x)
        return int(line.split(":")[1].split()[0])

    def kill(self):
        self.process.kill()

    def is_alive(self):
        return self.process.is_alive()

    def transcript(self):
        return self.process.transcript()

