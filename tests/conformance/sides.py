"""The sides of a match: a Linux guest, or the host under `vsock run`.

Each side starts `carry` with the test program and returns an object with its pipes. A guest uses its own
kernel's AF_VSOCK. On the host the kernel's AF_VSOCK must not be used, so the test runs there only under
`vsock run`, which handles every AF_VSOCK call itself.
"""

# ruff: noqa: ASYNC109 - each wait says in its signature how long it takes at most, as those of
# `vsock.testing.aio` do

import asyncio
import contextlib
import gzip
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tests.conformance.carrier import carry

from vsock.address import CID_HOST
from vsock.testing import CommandFailed, GuestTimeout, Result
from vsock.testing.aio import LinuxGuest
from vsock.testing.remote import program

CONTROL_PORTS = {"--mode=server": 4321, "--mode=client": 4322}
"""TCP ports on 127.0.0.1 of a guest; two, because both ends may be in the same guest."""

FENCED = ["SHUTRDDONE", "0"]
"""See docs/reference/conformance.md, "Lines that overtake packets"; "0" is CONTROL_DONE of vsock_test.c."""

_IN_GUEST = "/tmp/vsock_test"


class Running(Protocol):
    """A started end, with its control connection on its pipes."""

    async def read_line(self, timeout: float = 30) -> str:
        """The next line for the other end; CommandFailed if the test has ended."""

    async def write(self, data: bytes, *, eof: bool = False) -> None:
        """Write lines of the other end; `eof` after the last one."""

    async def wait(self, timeout: float = 30) -> Result:
        """Wait until the test ends; `stderr` of the result has its messages."""


class Side(Protocol):
    """A place where one end runs."""

    @property
    def kind(self) -> str:
        """Its name in the skip list: a guest kernel, or "host"."""

    @property
    def name(self) -> str:
        """Its name for people."""

    @property
    def cid(self) -> int:
        """Its CID."""

    async def start(self, arguments: Sequence[str], seconds: float) -> Running:
        """Start the test; it is killed if it runs longer than `seconds`.

        The mode must be the first of the arguments.
        """


class GuestSide:
    """A booted Linux guest; `install` must have put the test program there.

    Both ends of a match may be in one guest, with CID 1: then only the guest's kernel is tested.
    """

    def __init__(self, guest: LinuxGuest, kind: str, cid: int) -> None:
        self.guest = guest
        self.kind = kind
        self.name = guest.name
        self.cid = cid

    async def install(self, static_program: bytes) -> str:
        """Copy the test program into the guest; returns its list of cases."""
        packed = gzip.compress(static_program)
        await self.guest.run(f"zcat >{_IN_GUEST} && chmod +x {_IN_GUEST}", input=packed, timeout=60)
        # It ends with a failure after listing.
        return (await self.guest.run([_IN_GUEST, "--list"], check=False)).stdout

    async def start(self, arguments: Sequence[str], seconds: float) -> Running:
        """Start the test in the guest."""
        port = CONTROL_PORTS[arguments[0]]
        argv = [_IN_GUEST, *arguments]
        return await self.guest.spawn_call(carry, argv, port, seconds, FENCED)


class ProcessSide:
    """A test program that runs as a process of this machine; `host_side` makes the one of the suite."""

    def __init__(
        self, kind: str, cid: int, argv: Sequence[str], environment: dict[str, str]
    ) -> None:
        self.kind = kind
        self.name = kind
        self.cid = cid
        self._argv = argv
        self._environment = environment

    async def start(self, arguments: Sequence[str], seconds: float) -> Running:
        """Start the test."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]  # not assigned again for a while
        # No fence: that would take an AF_VSOCK socket of this machine's kernel.
        source = program(carry, [*self._argv, *arguments], port, seconds, [])
        return await HostProcess.start(source, self._environment)


def host_side(dynamic_program: Path, runtime_dir: str) -> ProcessSide:
    """The host of the switch in `runtime_dir`. The test uses only sockets of `vsock run`."""
    argv = [sys.executable, "-m", "vsock.cli", "run", "--guard", "--", str(dynamic_program)]
    environment = {**os.environ, "VSOCK_RUNTIME_DIR": runtime_dir}
    return ProcessSide("host", CID_HOST, argv, environment)


class HostProcess:
    """Python code that runs as a process, with the interface of a `GuestProcess`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stderr is not None
        self._errors = asyncio.create_task(process.stderr.read())
        self._output = ""

    @classmethod
    async def start(cls, source: str, environment: dict[str, str]) -> "HostProcess":
        """Start it."""
        pipe = subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", source), stdin=pipe, stdout=pipe, stderr=pipe, env=environment
        )
        return cls(process)

    async def read_line(self, timeout: float = 30) -> str:
        """The next line of its output."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                line = (await self._process.stdout.readline()).decode()
        except TimeoutError:
            raise GuestTimeout(f"no line for {timeout:g} s") from None
        if not line:
            raise CommandFailed("no more output")
        self._output += line
        return line.rstrip("\n")

    async def write(self, data: bytes, *, eof: bool = False) -> None:
        """Send to its input."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        if eof:
            self._process.stdin.close()

    async def wait(self, timeout: float = 30) -> Result:
        """Wait for its end; it is killed if that takes too long."""
        try:
            async with asyncio.timeout(timeout):
                errors = await self._errors
                status = await self._process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            raise
        return Result("vsock run", status, self._output, errors.decode(errors="replace"))
