#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""
What people can get wrong: each is one sentence on standard error, the exit status that is documented, and no harm.
0 moved; 1 failed, the guest is safe at the source; 2 usage; 3 refused by preflight; 4 in doubt or paused.
"""
import contextlib
import json
import signal
import socket
import threading

from harness import Case, Ram, main, timeout, wire
from harness.qemu import MIB

FAILED, USAGE, REFUSED = 1, 2, 3
DEMO = "demo:64M"
NOWHERE = "127.0.0.1:1"
SMALL = {"ram": (Ram(64 * MIB),), "guest": "hot=4M"}


class Errors(Case):
    def fail(self, status, *args, says="."):
        """Runs it with and without --json: the sentence is the same, and JSON has it, too."""
        for json_output in False, True:
            command = self.memferry("memferry", *args, json_output=json_output)
            self.assertEqual(command.wait(), status, command.transcript())
            sentence = self.assert_one_sentence(command)
            self.assertRegex(sentence, says)
            if json_output and command.lines:
                last = json.loads(command.lines[-1])
                self.assertIn(last["error"]["message"], sentence)
                if last["event"] == "report":
                    self.assertEqual(last["outcome"], "aborted")
        return sentence


class Usage(Errors):
    def test_arguments(self):
        send = "send", NOWHERE, "--insecure", "--guest", DEMO
        for what, args, says in (
            ("verb", ("frobnicate",), "frobnicate"),
            ("no address", ("send", "--guest", DEMO, "--insecure"), "address"),
            ("no guest", ("send", NOWHERE, "--insecure"), "--guest"),
            ("no guest to receive", ("receive", "--listen", "127.0.0.1:0", "--insecure"), "--guest"),
            ("nowhere to listen", ("receive", "--guest", DEMO, "--insecure"), "--listen"),
            ("option", (*send, "--bogus"), "--bogus"),
            ("option of another verb", (*send, "--listen", "127.0.0.1:0"), "--listen"),
            ("no value", (*send, "--mode"), "--mode"),
            ("mode", (*send, "--mode", "sideways"), "sideways"),
            ("transport", (*send, "--transport", "pigeon"), "pigeon"),
            ("verify", (*send, "--verify", "some"), "some"),
            ("lanes 0", (*send, "--lanes", "0"), "--lanes"),
            ("lanes -1", (*send, "--lanes", "-1"), "--lanes"),
            ("lanes many", (*send, "--lanes", "100000"), "--lanes"),
            ("downtime", (*send, "--max-downtime", "soon"), "--max-downtime"),
            ("bandwidth", (*send, "--max-bandwidth", "3X"), "--max-bandwidth"),
            ("bandwidth too large", (*send, "--max-bandwidth", "99999999999T"), "--max-bandwidth"),
            ("two addresses", (*send, "127.0.0.1:2"), "127.0.0.1:2"),
            ("port", ("send", "127.0.0.1:70000", "--insecure", "--guest", DEMO), "70000"),
            ("guest", ("send", NOWHERE, "--insecure", "--guest", "xen:1"), "xen"),
            ("guest without a kind", ("send", NOWHERE, "--insecure", "--guest", "64M"), "64M"),
            ("demo size", ("send", NOWHERE, "--insecure", "--guest", "demo:1Q"), "1Q"),
            ("demo size 0", ("send", NOWHERE, "--insecure", "--guest", "demo:0"), "size"),
            ("demo option", ("send", NOWHERE, "--insecure", "--guest", "demo:64M,color=red"), "color"),
            ("not secure", ("send", NOWHERE, "--guest", DEMO), "--insecure"),
            ("not secure either", ("receive", "--listen", "127.0.0.1:0", "--guest", DEMO), "--insecure"),
        ):
            with self.subTest(what):
                self.fail(USAGE, *args, says=says)

    def test_verbs_for_a_running_move_without_one(self):
        for verb in "cancel", "cutover", "postcopy":
            with self.subTest(verb):
                self.fail(FAILED, verb, says="no move")

    def test_status_without_a_move(self):
        command = self.memferry("status", "status", json_output=False)
        self.assertEqual(command.wait(), 0)
        self.assertEqual(command.errors, [])


class Network(Errors):
    def send_to(self, address, status=FAILED, says="."):
        return self.fail(status, "send", address, "--guest", DEMO, "--insecure", "--connect-timeout", "1000",
                         "--peer-timeout", "2000", says=says)

    def free_port(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return listener.getsockname()[1]

    def test_nobody_listens(self):
        self.send_to(f"127.0.0.1:{self.free_port()}", says="refused")

    def test_nobody_answers(self):
        """A listener whose queue is full drops what comes: as an address where no packet arrives."""
        with contextlib.ExitStack() as stack:
            full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            self.send_to(f"127.0.0.1:{full.getsockname()[1]}", says="(?i)time|answer")

    def test_no_such_host(self):
        command = self.send_to("no-such-host.invalid:7741", status=USAGE)
        self.assertIn("no-such-host.invalid", command)

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            self.fail(FAILED, "receive", "--listen", f"127.0.0.1:{port}", "--guest", DEMO, "--insecure", says="in use")

    def test_address_of_another_host(self):
        self.fail(FAILED, "receive", "--listen", "192.0.2.77:0", "--guest", DEMO, "--insecure", says="192.0.2.77")

    def answer(self, *replies):
        """A listener that reads one message and sends these, for each connection in turn."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        listener.settimeout(timeout())

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    with connection, contextlib.suppress(OSError, ValueError):
                        connection.settimeout(timeout())
                        wire.read_message(connection)
                        for reply in replies:
                            connection.sendall(reply)
                        while connection.recv(4096):
                            pass

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    def test_something_else_answers(self):
        self.send_to(self.answer(b"SSH-2.0-OpenSSH_9.2p1\r\n"), says="memferry")

    def test_silence(self):
        self.send_to(self.answer(), says="silent|answer|time")

    def test_too_long_a_message(self):
        self.send_to(self.answer(b"MFC1\xff\xff\xff\xff" + bytes(64)))

    def test_destination_of_another_version(self):
        self.send_to(self.answer(wire.welcome(99)), says="version")

    def refuse(self, *sent, hangs_up=True):
        """receive, and the kinds of what it answers to a peer that sends this."""
        receive = self.receive(DEMO, "--peer-timeout", "2000")
        host, port = receive.address().rsplit(":", 1)
        answers = []
        with socket.create_connection((host, int(port)), timeout()) as connection:
            with contextlib.suppress(OSError, ValueError):
                for part in sent:
                    connection.sendall(part)
                if hangs_up:
                    connection.shutdown(socket.SHUT_WR)
                while message := wire.read_message(connection):
                    answers.append(message[0])
        return receive, answers

    def test_source_of_another_version(self):
        receive, answers = self.refuse(wire.hello(99), hangs_up=False)
        self.assertEqual(receive.wait(), FAILED)
        self.assertRegex(self.assert_one_sentence(receive), "version")
        self.assertEqual(receive.report["error"]["code"], "version")
        self.assertIn(wire.ABORT, answers)

    def test_strangers_at_the_destination(self):
        """None of them takes it down without a word, or makes it run anything."""
        for what, sent in (
            ("nothing", b""),
            ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("huge", b"MFC1\xff\xff\xff\xff"),
            ("cut", wire.hello(1)[:20]),
            ("garbage", b"MFC1\x10\0\0\0" + b"\xff" * 16),
            ("path for a name", wire.hello(1, "../../../tmp/x")),
        ):
            with self.subTest(what):
                receive, _ = self.refuse(sent)
                receive.signal(signal.SIGINT)  # should it wait on
                self.assertEqual(receive.wait(), FAILED)
                self.assert_one_sentence(receive)


class Sockets(Errors):
    """What --guest qemu: may point at."""

    def send_from(self, path, status=FAILED, says="."):
        return self.fail(status, "send", NOWHERE, "--guest", f"qemu:{path}", "--insecure", says=says)

    def test_not_there(self):
        self.send_from(self.directory / "none.qmp", says="none.qmp")

    def test_no_socket(self):
        path = self.directory / "file"
        path.write_text("")
        self.send_from(path, says="not a socket")

    def test_nobody_serves(self):
        path = self.directory / "dead.qmp"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
        self.send_from(path, says="dead.qmp")

    def test_no_qmp(self):
        path = self.directory / "other.sock"
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.bind(str(path))
        server.listen()

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as connection:
                        connection.sendall(b"220 mail.example.org ESMTP\r\n")
                        while connection.recv(4096):
                            pass

        threading.Thread(target=serve, daemon=True).start()
        self.send_from(path, says="QMP")

    def test_human_monitor(self):
        path = self.directory / "hmp"
        guest = self.qemu("source", extra=("-monitor", f"unix:{path},server=on,wait=off"), **SMALL).ready()
        self.send_from(path, says="QMP")
        self.assert_unharmed(guest)

    def test_taken(self):
        """QEMU serves one client a socket; the other waits, and memferry says for what."""
        guest = self.qemu("source", **SMALL).ready()
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(guest.qmp_path))
            other.recv(4096)
            self.send_from(guest.qmp_path, says="(?i)client|another|answer")
        self.assert_unharmed(guest)


class Preflight(Errors):
    """Refused before anything is moved; check says the same as send."""

    def refuse(self, source, destination, says):
        for verb in "check", "send":
            receive = self.receive(destination)
            command = self.memferry(verb, verb, receive.address(), "--guest", f"qemu:{source.qmp_path}", "--insecure")
            self.assertEqual(command.wait(), REFUSED, command.transcript())
            self.assertRegex(self.assert_one_sentence(command), says)
            self.assertNotEqual(command.report["outcome"], "completed")
            self.assertIn("refuse", [finding["verdict"] for finding in command.report["findings"]])
            receive.signal(signal.SIGINT)  # after a check it waits on
            self.assertNotEqual(receive.wait(), 0, receive.transcript())
        self.assert_unharmed(source)

    def pair_of(self, source, destination):
        b = self.qemu("destination", incoming=True, **destination)
        a = self.qemu("source", **source)
        b.monitor()
        return a.ready(), b

    def test_ram_that_is_not_shared(self):
        self.refuse(*self.pair_of({**SMALL, "ram": (Ram(64 * MIB, "private"),)}, SMALL), "share")

    def test_destination_ram_that_is_not_shared(self):
        self.refuse(*self.pair_of(SMALL, {**SMALL, "ram": (Ram(64 * MIB, "private"),)}), "share")

    def test_other_size(self):
        self.refuse(*self.pair_of(SMALL, {**SMALL, "ram": (Ram(96 * MIB),)}), "(?i)size|MiB|region")

    def test_other_number_of_regions(self):
        self.refuse(*self.pair_of(SMALL, {**SMALL, "ram": (Ram(32 * MIB), Ram(32 * MIB))}), "(?i)region")

    def test_other_cpu(self):
        self.refuse(*self.pair_of(SMALL, {**SMALL, "extra": ("-cpu", "Haswell")}), "(?i)cpu")

    def test_other_machine(self):
        machine = ("-machine", "pc-i440fx-6.2")
        self.refuse(*self.pair_of(SMALL, {**SMALL, "extra": machine}), "(?i)machine")

    def test_destination_that_runs(self):
        """A running guest is not overwritten."""
        source = self.qemu("source", **SMALL).ready()
        victim = self.qemu("victim", **SMALL).ready()
        command = self.memferry("receive", "receive", "--listen", "127.0.0.1:0", "--guest", f"qemu:{victim.qmp_path}",
                                "--insecure", run=self.destination_run)
        if any(event["event"] == "listening" for event in self.events_until_end(command)):
            send = self.send(command.address(), source)
            self.assertIn(send.wait(), (FAILED, REFUSED), send.transcript())
        self.assertIn(command.wait(), (FAILED, REFUSED), command.transcript())
        self.assertRegex(self.assert_one_sentence(command), "-incoming")
        self.assert_unharmed(victim)
        self.assert_unharmed(source)

    def events_until_end(self, command):
        """Until it listens, or has ended."""
        with contextlib.suppress(AssertionError):
            command.address()
        return command.events

    def test_source_that_waits_itself(self):
        source = self.qemu("source", incoming=True, **SMALL)
        destination = self.qemu("destination", incoming=True, **SMALL)
        source.monitor(), destination.monitor()
        receive = self.receive(destination)
        send = self.send(receive.address(), source, "--peer-timeout", "3000")
        self.assertIn(send.wait(), (FAILED, REFUSED), send.transcript())
        self.assert_one_sentence(send)
        receive.signal(signal.SIGINT)
        self.assertNotEqual(receive.wait(), 0)
        self.assertEqual(source.status(), "inmigrate")

    def test_other_kind_of_guest(self):
        source = self.qemu("source", **SMALL).ready()
        self.refuse(source, DEMO, "(?i)guest|kind|demo")

    def test_demo_of_other_size(self):
        receive = self.receive("demo:96M")
        send = self.send(receive.address(), DEMO)
        self.assertEqual(send.wait(), REFUSED, send.transcript())
        self.assert_one_sentence(send)
        self.assertNotEqual(receive.wait(), 0)

    def test_check_finds_nothing_wrong(self):
        """And changes nothing: the move works afterwards."""
        source, destination = self.pair(**SMALL)
        receive = self.receive(destination)
        check = self.memferry("check", "check", receive.address(), "--guest", f"qemu:{source.qmp_path}", "--insecure")
        self.assertEqual(check.wait(), 0, check.transcript())
        self.assertTrue(all(f["verdict"] != "refuse" for f in check.report["findings"]))
        self.assert_unharmed(source)
        self.assert_moved(source, destination, self.send(receive.address(), source), receive, verified=False)


if __name__ == "__main__":
    main()
