"""A switch in a process of its own, so that its descriptors can be counted from outside."""

import contextlib
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import vsock
from vsock.control.client import ControlClient
from vsock.guest import Guest

DEADLINE = 40.0
"""Deadline in seconds for every wait, long enough for a busy machine."""
ECHO = 5000
"""Port of an echo server in the guest."""
DEAF = 5001
"""Port on which the guest accepts connections and sends, but never reads."""
SILENT = 4
"""CID of a guest that is not attached: a connect to it waits for its timeout."""
ABUNDANCE = 1 << 21
"""More bytes than fit the buffers between the two ends."""

_CONFIG = """
[[guest]]
name = "alpha"
cid = 3
hybrid = true

[[guest]]
name = "beta"
cid = 4
"""


@dataclass(frozen=True)
class Holdings:
    """The resources that a switch holds for programs."""

    descriptors: int
    flows: int
    listeners: int


class Lab:
    """A switch with the guest `alpha` (3), which is in this process, and `beta` (4), which never attaches."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vsock-"))
        config = self.directory / "vsock.toml"
        config.write_text(_CONFIG)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vsock.cli", "switch", "--config", str(config)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "VSOCK_RUNTIME_DIR": str(self.directory)},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._log = threading.Thread(target=self._read_log)
        self._log.start()
        self.guest = Guest(self.directory / "guests/alpha.sock", timeout=DEADLINE)
        self._api = ControlClient(self.directory, timeout=DEADLINE)
        self._seen: Holdings | None = None
        self._servers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        try:
            self.wait_for_line(r"\bready\b")
            self.guest.start()
            self._serve(ECHO, _echo)
            self._serve(DEAF, _send)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.guest.stop()  # which ends its servers
        for server in self._servers:
            server.join(DEADLINE)
        self.process.terminate()
        self.process.wait(DEADLINE)
        self._log.join(DEADLINE)
        assert self.process.stderr
        self.process.stderr.close()
        shutil.rmtree(self.directory)

    def holdings(self) -> Holdings:
        """The resources that the switch holds now."""
        said = self._api.switch()
        self._seen = Holdings(len(self.descriptors()), said.flows, said.listeners)
        return self._seen

    def descriptors(self) -> set[int]:
        """The switch's open descriptors."""
        return {int(entry.name) for entry in Path(f"/proc/{self.process.pid}/fd").iterdir()}

    def wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, f"{what}: last seen {self._seen}"

    def bad_requests(self) -> int:
        """How many requests the switch has counted as bad."""
        return self._api.switch().counters["bad_requests"]

    def wait_for_line(self, pattern: str, again: Callable[[], None] | None = None) -> str:
        """The next line of the log with `pattern`; calls `again`, which causes such a line, in case the log left one out."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if again:
                again()
            with contextlib.suppress(queue.Empty):
                while line := self._lines.get(timeout=0.2 if again else DEADLINE):
                    if re.search(pattern, line):
                        return line
        raise AssertionError(f"the log does not say {pattern!r}")

    def is_well(self) -> bool:
        """Check that a correct program is served: the local CID, a port, both kinds of connection."""
        with vsock.socket() as listener:
            listener.bind((vsock.CID_ANY, vsock.PORT_ANY))
            listener.listen(1)
            port = listener.getsockname().port
            with self.guest.create_connection((2, port), DEADLINE) as theirs:
                ours, _ = listener.accept()
                with ours:
                    theirs.sendall(b"to the host")
                    if ours.recv(100) != b"to the host":
                        return False
        with vsock.socket() as ours:
            ours.connect_timeout = DEADLINE
            ours.connect((3, ECHO))
            ours.sendall(b"to the guest")
            return ours.recv(100) == b"to the guest"

    def _serve(self, port: int, serve: Callable[[socket.socket], None]) -> None:
        listener = self.guest.create_server(port, backlog=1000)

        def accept() -> None:
            with listener, contextlib.suppress(vsock.SwitchGone):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=serve, args=(connection,)).start()

        server = threading.Thread(target=accept)
        server.start()
        self._servers.append(server)

    def _read_log(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put("")


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(1 << 16):
            connection.sendall(data)


def _send(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while True:
            connection.sendall(bytes(ABUNDANCE))
