#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
memferry-perf mesh, on hosts that are network namespaces: started by the test with a launcher's environment, by a real Slurm,
by Open MPI's mpirun.
"""
import json
import os
import shutil
import time
import unittest
from itertools import permutations

from harness import Case, Failed, Process, main, timeout
from harness.network import Network

QUICK = "--repeat", "1"
FOREVER = "--repeat", "1000"
SLOW = "0.2"  # the share of the median: what a busy test machine does must not look like a slow link
# What this test itself may run under is nobody's business.
NO_LAUNCHER = dict.fromkeys(("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"), "")

SLURM_CONF = """
ClusterName=test
SlurmctldHost=node1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={own}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/linear
ReturnToService=2
StateSaveLocation={own}
SlurmdSpoolDir={own}
SlurmctldPidFile={own}/slurmctld.pid
SlurmdPidFile={own}/slurmd.pid
SwitchType=switch/none
NodeName=node[1-{count}] CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def lacks(*commands):
    return next((f"no {c}" for c in commands if not shutil.which(c)), None)


@unittest.skipUnless(os.geteuid() == 0, "not root: no namespaces")
class Mesh(Case):
    def network(self, count):
        self.directory.chmod(0o755)  # munged wants its socket where all may go
        return self.keep(Network(self.directory, count))

    def start(self, network, rank, *args):
        """As srun would, on the rank's host."""
        count = len(network.names)
        env = NO_LAUNCHER | {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(count), "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0",
                             "SLURM_STEP_NODELIST": f"node[1-{count}]"}
        argv = network.within(network.names[rank], os.environ["MEMFERRY_PERF"], "mesh", *args)
        return self.keep(Process(f"rank {rank}", argv, env=env))

    def start_all(self, network, *args):
        return [self.start(network, rank, *args) for rank in range(len(network.names))]

    def until(self, what, is_so):
        deadline = time.monotonic() + timeout(120)
        while not is_so():
            if time.monotonic() > deadline:
                raise Failed(f"not in time: {what}")
            time.sleep(0.1)

    def succeeds(self, network, name, *argv):
        try:
            network.run(name, *argv)
        except Failed:
            return False
        return True

    def check_document(self, doc, names):
        """All directions of all pairs, in rounds in which nobody is twice."""
        ranks = range(len(names))
        self.assertEqual([doc["schema"], doc["test"]], ["memferry-perf/1", "mesh"])
        self.assertEqual([(h["role"], h["rank"], h["name"], h["label"]) for h in doc["hosts"]],
                         [("rank", i, names[i], names[i]) for i in ranks])
        rows = doc["results"]
        self.assertEqual(sorted((r["from_rank"], r["to_rank"]) for r in rows), sorted(permutations(ranks, 2)))
        rounds = {}
        for row in rows:
            self.assertEqual((row["from"], row["to"]), (names[row["from_rank"]], names[row["to_rank"]]))
            self.assertEqual(row["transport"], "tcp")
            self.assertEqual(row["bytes_per_s"]["n"], 1)
            for figure in "bytes_per_s", "latency_us":
                self.assertGreater(row[figure]["p50"], 0)
            for side in "client", "server":
                self.assertGreater(row["cpu"][side]["ms"], 0)
            rounds.setdefault(row["round"], set()).add(frozenset((row["from_rank"], row["to_rank"])))
        self.assertEqual(sorted(rounds), list(range(1, len(names) + (len(names) % 2))))
        for pairs in rounds.values():
            self.assertEqual(len(pairs), len(names) // 2)
            self.assertEqual(len(frozenset.union(*pairs)), 2 * len(pairs))

    def check_matrices(self, lines, names):
        for i, line in enumerate(lines):
            if line.startswith("from \\ to"):
                self.assertEqual(line.split()[3:], names)
                cells = [x.split() for x in lines[i + 1:i + 1 + len(names)]]
                self.assertEqual([x[0] for x in cells], names)
                for j, row in enumerate(cells):
                    self.assertEqual([k for k, x in enumerate(row[1:]) if x == "-"], [j])
        self.assertEqual(sum(x.startswith("from \\ to") for x in lines), 2)

    def test_a_slow_link_is_named(self):
        network = self.network(4)
        network.limit(4, "100mbit")
        ranks = self.start_all(network, *QUICK, "--transport", "tcp", "--slow", SLOW, "--out_json_file", network.own / "mesh.json")
        for rank in ranks:
            self.assertEqual(rank.wait(timeout(180)), 0, rank.transcript())
            self.assertEqual(rank.errors, [], rank.transcript())
        for rank in ranks[1:]:
            self.assertEqual(rank.lines, [], rank.transcript())
        documents = sorted(network.folder.glob("node*/mesh.json"))
        self.assertEqual([d.parent.name for d in documents], ["node1"])
        doc = json.loads(documents[0].read_text())
        self.check_document(doc, network.names)
        self.check_matrices(ranks[0].lines, network.names)
        for row in doc["results"]:
            if "node4" in (row["from"], row["to"]):
                self.assertTrue(row["slow"], row)
                self.assertTrue(any(x.startswith(f"slow: {row['from']} to {row['to']}: ") for x in ranks[0].lines))
        self.assertIn("host node4 is slow with everyone: 6 of 6 directions", ranks[0].lines)

    def kill_one(self, victim):
        network = self.network(3)
        ranks = self.start_all(network, *FOREVER)
        self.until("measuring is under way", lambda: max(network.received(i) for i in (1, 2, 3)) > 16 << 20)
        ranks[victim].kill()
        others = [rank for i, rank in enumerate(ranks) if i != victim]
        for rank in others:
            self.assertEqual(rank.wait(timeout()), 1, rank.transcript())
            self.assertEqual(rank.lines, [])
            self.assertEqual(len(rank.errors), 1, rank.transcript())
            self.assertRegex(rank.errors[0], "^memferry-perf: .*[^.]$")
        return [rank.errors[0] for rank in others]

    def test_a_rank_without_a_partner_is_killed(self):
        """One of three has none in this round; killing each of the others ends what is measured."""
        for sentence in self.kill_one(2):
            self.assertRegex(sentence, r"node3 \(rank 2\) is gone")

    def test_a_measured_rank_is_killed(self):
        for sentence in self.kill_one(1):
            self.assertRegex(sentence, r"node2 \(rank 1\) is gone")

    def test_rank_0_is_killed(self):
        for rank, sentence in enumerate(self.kill_one(0), 1):
            self.assertRegex(sentence, f"rank {rank} waits for rank 0: .*ended the connection")

    def test_strangers_and_other_jobs(self):
        """Who does not belong to the mesh is turned away, and changes nothing."""
        network = self.network(2)
        place = "--rendezvous", "node1:7000", *QUICK
        zero = self.start(network, 0, *place)
        reach = "import socket,sys; s = socket.create_connection(('node1', 7000), 30); s.sendall(sys.argv[1].encode()); s.recv(1)"
        self.until("it listens", lambda: self.succeeds(network, "node2", "python3", "-c", reach, '{"garbage": 1}\n'))
        self.assertTrue(self.succeeds(network, "node2", "python3", "-c", reach,
                                      '{"memferry-perf": 1}\n{"do": "join", "rank": -1}\n'))
        env = NO_LAUNCHER | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "8"}
        other = self.keep(Process("another job", network.within("node2", os.environ["MEMFERRY_PERF"], "mesh", *place), env=env))
        self.assertEqual(other.wait(), 1, other.transcript())
        self.assertRegex(other.errors[0], "another job")
        one = self.start(network, 1, *place)
        self.assertEqual((zero.wait(), one.wait()), (0, 0), zero.transcript() + one.transcript())
        self.check_matrices(zero.lines, network.names)

    # Launchers

    def check_launched(self, network, argv, env):
        """argv: the launcher's; runs on node1."""
        command = os.environ["MEMFERRY_PERF"], "mesh", *QUICK, "--out_json_file", network.own / "mesh.json"
        launcher = self.keep(Process(argv[0], network.within("node1", *argv, *command), env=NO_LAUNCHER | env))
        self.assertEqual(launcher.wait(timeout(180)), 0, launcher.transcript())
        self.check_document(json.loads((network.folder / "node1/mesh.json").read_text()), network.names)
        self.check_matrices(launcher.lines, network.names)

    def slurm(self, network):
        """A munged and a slurmd on each host, the controller on the first."""
        key = self.directory / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        conf = self.directory / "slurm.conf"
        conf.write_text(SLURM_CONF.format(own=network.own, count=len(network.names), cpus=os.cpu_count()))
        env = {"SLURM_CONF": str(conf)}
        own = network.own
        for name in network.names:
            self.keep(Process("munged", network.within(
                name, "munged", "--foreground", f"--key-file={key}", f"--socket={own}/munge.socket", f"--pid-file={own}/munge.pid",
                f"--log-file={own}/munge.log", f"--seed-file={own}/munge.seed")))
        self.until("munged listens", lambda: all((network.folder / n / "munge.socket").exists() for n in network.names))
        self.keep(Process("slurmctld", network.within("node1", "slurmctld", "-D"), env=env))
        for name in network.names:
            self.keep(Process("slurmd", network.within(name, "slurmd", "-D"), env=env))
        self.until("all nodes are idle", lambda: self.idle_nodes(network, env) == len(network.names))
        return env

    def idle_nodes(self, network, env):
        info = Process("sinfo", network.within("node1", "sinfo", "-h", "-t", "idle", "-o", "%D"), env=env)
        try:
            return int(info.lines[0]) if info.wait() == 0 and info.lines else 0
        finally:
            info.kill()

    @unittest.skipIf(lacks("slurmctld", "slurmd", "munged", "srun"), lacks("slurmctld", "slurmd", "munged", "srun"))
    def test_srun(self):
        network = self.network(3)
        self.check_launched(network, ("srun", "--nodes=3", "--ntasks-per-node=1"), self.slurm(network))

    @unittest.skipIf(lacks("mpirun"), lacks("mpirun"))
    def test_mpirun(self):
        """With a command in the place of ssh that enters the other host."""
        network = self.network(3)
        agent = self.directory / "agent"
        network.write_agent(agent)
        env = {"TMPDIR": str(self.directory)} | dict.fromkeys(("OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent"), str(agent))
        env |= dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
        argv = "mpirun", "--host", ",".join(network.names), "--map-by", "node", "--bind-to", "none", "-n", "3"
        self.check_launched(network, argv, env)

    def test_without_a_launcher(self):
        perf = self.keep(Process("mesh", [os.environ["MEMFERRY_PERF"], "mesh"], env=NO_LAUNCHER))
        self.assertEqual(perf.wait(), 2, perf.transcript())
        self.assertRegex(perf.errors[0], "srun memferry-perf mesh.*mpirun memferry-perf mesh")


if __name__ == "__main__":
    main()
