#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Moves over a secured control channel by the real command, and who is refused: each says why, and harms nothing."""
import contextlib
import os
import secrets
import socket
import subprocess

from harness import Case, main

FAILED, USAGE = 1, 2
DEMO = "demo:32M,dirty=4M"


class Security(Case):
    def setUp(self):
        super().setUp()
        self.key = self.make_key("key")

    def make_key(self, name, mode=0o600, text=None):
        path = self.directory / name
        path.write_text(text or secrets.token_hex(32) + "\n")
        path.chmod(mode)
        return path

    def openssl(self, *args):
        subprocess.run(("openssl", *map(str, args)), cwd=self.directory, check=True, capture_output=True)

    def make_directory(self, name, server="DNS:dst.example,IP:127.0.0.1", client="DNS:src.example"):
        """A CA of its own, and what it signs: all that a host may need."""
        directory = self.directory / name
        directory.mkdir()
        key = "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout"
        self.openssl("req", "-x509", *key, f"{name}/ca-key.pem", "-out", f"{name}/ca-cert.pem", "-subj", "/CN=CA")
        for side, names in ("server", server), ("client", client):
            self.openssl("req", *key, f"{name}/{side}-key.pem", "-out", "request", "-subj", f"/CN={side}",
                         "-addext", f"subjectAltName={names}")
            self.openssl("x509", "-req", "-in", "request", "-CA", f"{name}/ca-cert.pem", "-CAkey", f"{name}/ca-key.pem",
                         "-CAcreateserial", "-days", "9", "-copy_extensions", "copy", "-out", f"{name}/{side}-cert.pem")
        return directory

    # `receive` and `send` of the harness are --insecure.

    def wait(self, *how, guest=DEMO):
        receive = self.memferry("receive", "receive", "--listen", "127.0.0.1:0", "--guest", guest, *how,
                                run=self.destination_run)
        receive.address()
        return receive

    def come(self, receive, *how, verb="send", guest=DEMO):
        return self.memferry(verb, verb, receive.address(), "--guest", guest, *how)

    def move(self, mode, receive_how, send_how):
        receive = self.wait(*receive_how)
        send = self.come(receive, *send_how, "--mode", mode, "--verify", "full")
        self.assert_moved(None, None, send, receive)
        for side in send, receive:
            self.assertEqual(side.report["mode"], mode)
            self.assertEqual(side.errors, [], side.transcript())  # no word of an insecure channel
        return receive

    def assert_refused(self, receive, how, source_says, destination_says, verb="send"):
        send = self.come(receive, *how, verb=verb)
        self.assertEqual(send.wait(), FAILED, send.transcript())
        self.assertRegex(self.assert_one_sentence(send), source_says)
        self.assertEqual(send.report["outcome"], "aborted")
        self.assertEqual(send.report["error"]["code"], "security")
        receive.notice(destination_says)


class Moves(Security):
    def test_by_certificates(self):
        how = "--tls-dir", self.make_directory("tls")
        for mode in "hybrid", "postcopy":
            with self.subTest(mode):
                self.move(mode, (*how, "--tls-peer", "src.example"), how)

    def test_by_a_key(self):
        how = "--psk", self.key
        for mode in "hybrid", "postcopy":
            with self.subTest(mode):
                self.move(mode, how, how)

    def test_check_then_move(self):
        how = "--psk", self.key
        receive = self.wait(*how)
        check = self.come(receive, *how, verb="check")
        self.assertEqual(check.wait(), 0, check.transcript())
        self.assert_moved(None, None, self.come(receive, *how), receive, verified=False)


class Refusals(Security):
    def test_strangers_and_then_the_right_one(self):
        """The destination tells of each, and goes on waiting."""
        tls, other = self.make_directory("tls"), self.make_directory("other")
        receive = self.wait("--tls-dir", tls, "--tls-peer", "src.example")
        signed = "is not signed by the CA"
        self.assert_refused(receive, ("--tls-dir", other), signed, signed)
        self.assert_refused(receive, ("--tls-dir", other), signed, signed, verb="check")
        self.assert_refused(receive, ("--tls-dir", tls, "--tls-peer", "else.example"), "for dst.example, and --tls-peer",
                            "it is for somebody whom the other host does not expect")
        self.assert_refused(receive, ("--psk", self.key), "shows a certificate", "wants a pre-shared key")
        self.assert_refused(receive, ("--insecure",), "wants a secure channel", "started with --insecure")
        host, port = receive.address().rsplit(":", 1)
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(5)]
            silent[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
            silent[1].sendall(b"\x16")
            receive.notice("not TLS; is it memferry")
            self.assert_moved(None, None, self.come(receive, "--tls-dir", tls), receive, verified=False)

    def test_a_client_that_is_not_named(self):
        tls = self.make_directory("tls")
        receive = self.wait("--tls-dir", tls, "--tls-peer", "one.example,two.example")
        self.assert_refused(receive, ("--tls-dir", tls), "for somebody whom the other host does not expect",
                            "for src.example, and --tls-peer does not name that")

    def test_a_server_at_another_address(self):
        tls = self.make_directory("tls", server="DNS:dst.example,IP:192.0.2.7")
        receive = self.wait("--tls-dir", tls)
        self.assert_refused(receive, ("--tls-dir", tls), "is for dst.example, not for 127.0.0.1", "for somebody")

    def test_another_key(self):
        receive = self.wait("--psk", self.key)
        differ = "the pre-shared keys of the two hosts differ"
        self.assert_refused(receive, ("--psk", self.make_key("other")), differ, differ)
        self.assert_moved(None, None, self.come(receive, "--psk", self.key), receive, verified=False)

    def test_a_plain_destination(self):
        receive = self.wait("--insecure")
        self.assert_refused(receive, ("--psk", self.key), "was started with --insecure", "wants a secure channel")
        self.assert_moved(None, None, self.come(receive, "--insecure"), receive, verified=False)


class Usage(Security):
    def refuse(self, says, *how):
        """The same on all three verbs, before anything is touched."""
        for verb, *address in ("receive", "--listen", "127.0.0.1:0"), ("send", "127.0.0.1:1"), ("check", "127.0.0.1:1"):
            command = self.memferry(verb, verb, *address, "--guest", DEMO, *how)
            self.assertEqual(command.wait(), USAGE, command.transcript())
            self.assertRegex(self.assert_one_sentence(command), says)
            self.assertEqual([e["event"] for e in command.events], ["report"], command.transcript())
            self.assertEqual(command.report["error"]["code"], "usage")

    def test_nothing_given(self):
        self.refuse("must be secured by --tls-dir DIR or --psk FILE.*--insecure")

    def test_more_than_one(self):
        self.refuse("one way", "--psk", self.key, "--insecure")
        self.refuse("one way", "--psk", self.key, "--tls-dir", self.directory)
        self.refuse("one way", "--tls-dir", self.directory, "--insecure")

    def test_a_key_that_others_may_read(self):
        for mode in 0o604, 0o640, 0o644:
            self.refuse(rf"others may read this key \(mode 0{mode:o}\); chmod 600", "--psk", self.make_key("open", mode))

    def test_a_key_that_is_none(self):
        self.refuse("shorter than 128 bits", "--psk", self.make_key("short", text="00112233\n"))
        self.refuse("No such file", "--psk", self.directory / "none")

    def test_certificates_that_are_not_there(self):
        self.refuse("ca-cert.pem: cannot be read: No such file", "--tls-dir", self.directory)

    def test_a_private_key_that_others_may_read(self):
        tls = self.make_directory("tls")
        for side in "server", "client":
            os.chmod(tls / f"{side}-key.pem", 0o644)
        self.refuse("-key.pem: others may read this key", "--tls-dir", tls)


if __name__ == "__main__":
    main()
