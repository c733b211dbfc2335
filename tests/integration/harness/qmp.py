# SPDX-License-Identifier: BSD-2-Clause
"""One client of one QMP socket (QEMU serves one at a time)."""
import json
import socket

from .process import Failed, timeout


class Qmp:
    def __init__(self, path):
        self.events = []  # names of those read so far
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout())
        self.socket.connect(str(path))
        self.stream = self.socket.makefile("rw", encoding="utf-8")
        try:
            self._read()  # the greeting
            self("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def _read(self):
        line = self.stream.readline()
        if not line:
            raise Failed("QEMU closed its monitor")
        answer = json.loads(line)
        if "event" in answer:
            self.events.append(answer["event"])
        return answer

    def __call__(self, command, **arguments):
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.stream.flush()
        while True:
            answer = self._read()
            if "error" in answer:
                raise Failed(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def wait_event(self, *names):
        while True:
            answer = self._read()
            if answer.get("event") in names:
                return answer

    def close(self):
        self.stream.close()
        self.socket.close()
