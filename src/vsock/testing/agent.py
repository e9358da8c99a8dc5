"""The host's end of the agent in the guest: starts commands, writes their input, reads output and status.

guests/agent.py describes the messages. They do not use vsock.
"""

# ruff: noqa: ASYNC109 - each wait says in its signature how long it takes at most, and the
# error names the event that was waited for, which an asyncio.timeout around the call could not.

import asyncio
import base64
import shlex
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from signal import SIGKILL
from typing import Any

from vsock.testing._lines import JsonLines, Message
from vsock.testing.errors import CommandFailed, GuestError, GuestGone, GuestTimeout
from vsock.testing.remote import result_of

_WINDOW = 2048
_INPUT_PIECE = 16384
_SEND_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Result:
    """How a command in a guest ended."""

    command: str
    status: int
    stdout: str
    stderr: str

    def check(self) -> "Result":
        """Return self, or raise CommandFailed if the status is not 0."""
        if self.status != 0:
            said = (self.stderr.strip() or self.stdout.strip())[-4000:]
            raise CommandFailed(f"status {self.status} of {self.command!r} in the guest:\n{said}")
        return self


class GuestProcess:
    """A command that runs in a guest; `Agent.start` makes these."""

    def __init__(self, agent: "Agent", number: int, command: str) -> None:
        self._agent = agent
        self._number = number
        self._command = command
        self._output = bytearray()
        self._errors = bytearray()
        self._lines_read = 0  # bytes of the output that read_line has returned
        self._changed = asyncio.Event()
        self._fault: GuestError | None = None
        self.pid: int | None = None
        self.status: int | None = None

    async def read_line(self, timeout: float = 30) -> str:
        """The next line of its standard output, without the line end.

        Raises:
            GuestTimeout: no line came in time.
            CommandFailed: it ended without another line.
        """
        await self._until(
            lambda: b"\n" in self._output[self._lines_read :] or self.status is not None,
            timeout,
            "a line of output",
        )
        end = self._output.find(b"\n", self._lines_read)
        if end < 0:
            raise CommandFailed(f"no more output; {self._described()}")
        line = self._output[self._lines_read : end]
        self._lines_read = end + 1
        return line.decode(errors="replace")

    async def write(self, data: bytes, *, eof: bool = False) -> None:
        """Send to its standard input, and end that with `eof`."""
        pieces = [data[at : at + _INPUT_PIECE] for at in range(0, len(data), _INPUT_PIECE)] or [b""]
        for number, piece in enumerate(pieces, 1):
            encoded = base64.b64encode(piece).decode()
            is_end = eof and number == len(pieces)
            await self._agent.request(self._number, do="input", data=encoded, eof=is_end)

    async def send_signal(self, number: int) -> None:
        """Send it a signal; without effect if it has ended."""
        await self._agent.request(self._number, do="signal", signal=number)

    async def kill(self, timeout: float = 10) -> Result:
        """Kill it and wait for its end."""
        await self.send_signal(SIGKILL)
        return await self.wait(timeout)

    async def wait(self, timeout: float = 30) -> Result:
        """Wait for its end.

        Raises:
            GuestTimeout: it still runs after `timeout` seconds; it is not killed.
            GuestGone: the guest ended or rebooted.
        """
        await self._until(lambda: self.status is not None, timeout, "its end")
        assert self.status is not None
        return Result(
            self._command,
            self.status,
            self._output.decode(errors="replace"),
            self._errors.decode(errors="replace"),
        )

    async def result(self, timeout: float = 30) -> Any:
        """Wait for the end of a `spawn_call` and return what the function returned.

        Raises:
            CommandFailed: the function raised an exception; its traceback is in the message.
            GuestTimeout, GuestGone: as `wait`.
        """
        return result_of((await self.wait(timeout)).check().stdout)

    async def _until(self, is_so: Callable[[], bool], timeout: float, what: str) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not is_so():
                    if self._fault is not None:
                        raise self._fault
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise GuestTimeout(
                f"waited {timeout:g} s for {what}; {self._described()}\n{self._agent.tail()}"
            ) from None

    def _described(self) -> str:
        said = (self._output + self._errors).decode(errors="replace")[-2000:]
        state = "still runs" if self.status is None else f"ended with status {self.status}"
        return f"{self._command!r} {state}, it said: {said!r}"

    def take(self, message: Message) -> None:
        """Handle one message of the agent."""
        if "out" in message:
            self._output += base64.b64decode(message["out"])
        elif "err" in message:
            self._errors += base64.b64decode(message["err"])
        elif "exit" in message:
            self.status = int(message["exit"])
        elif "pid" in message:
            self.pid = int(message["pid"])
        elif "error" in message:
            self._fault = GuestError(f"agent refused {self._command!r}: {message['error']}")
        self._changed.set()

    def fail(self, fault: GuestError) -> None:
        """End all waits with this error, because the guest is gone."""
        self._fault = fault
        self._changed.set()


class Agent:
    """The connection to the agent of one guest, across its reboots.

    Args:
        tail: returns the last lines of the guest's console, for messages.
    """

    def __init__(self, tail: Callable[[], str]) -> None:
        self.tail = tail
        self.hello: dict[str, Any] | None = None
        self._lines: JsonLines | None = None
        self._processes: dict[int, GuestProcess] = {}
        self._number = 0
        self._hello_changed = asyncio.Event()
        self._is_gone = False

    async def open(self, sock: socket.socket) -> None:
        """Open the host's end of the guest's serial port, and own it."""
        self._lines = await JsonLines.over(sock, self._on_message, self._on_end, window=_WINDOW)

    async def wait_hello(self, timeout: float, *, after: str | None = None) -> dict[str, Any]:
        """Wait for the hello of an agent from another boot than `after`.

        Raises:
            GuestTimeout: none did in time.
            GuestGone: the guest ended instead.
        """
        try:
            async with asyncio.timeout(timeout):
                while self.hello is None or self.hello["boot"] == after:
                    if self._is_gone:
                        raise GuestGone("the guest ended while it booted")
                    self._hello_changed.clear()
                    await self._hello_changed.wait()
        except TimeoutError:
            raise GuestTimeout(
                f"no word from the agent in the guest for {timeout:g} s\n{self.tail()}"
            ) from None
        return self.hello

    async def start(self, command: str | Sequence[str]) -> GuestProcess:
        """Start a program, or with a text a shell command, in the guest."""
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        shown = command if isinstance(command, str) else shlex.join(command)
        return await self._start(shown, do="run", argv=argv)

    async def start_python(self, source: str, *arguments: str) -> GuestProcess:
        """Start Python code in the guest; `arguments` become its sys.argv[1:]."""
        shown = f"python: {source.strip()[:60]} {shlex.join(arguments)}".strip()
        return await self._start(shown, do="python", source=source, argv=list(arguments))

    async def _start(self, shown: str, **request: Any) -> GuestProcess:
        self._number += 1
        process = GuestProcess(self, self._number, shown)
        self._processes[self._number] = process
        await self.request(self._number, **request)
        return process

    async def request(self, number: int, **fields: Any) -> None:
        """Send one request about process `number`."""
        if self._lines is None or self._is_gone:
            raise GuestGone(f"the guest has ended\n{self.tail()}")
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await self._lines.send({"id": number, **fields})
        except ConnectionError:
            raise GuestGone(f"the guest ended while it was asked\n{self.tail()}") from None
        except TimeoutError:
            raise GuestTimeout(
                f"the agent took no request for {_SEND_SECONDS:g} s\n{self.tail()}"
            ) from None

    async def close(self) -> None:
        """End the connection; pending waits fail."""
        if self._lines is not None:
            await self._lines.close()

    def _on_message(self, message: Message) -> None:
        if "hello" in message:
            if self.hello is not None and self._lines is not None:
                self._lines.forget_unacknowledged()
                self._fail_all("the guest rebooted, or its agent was started again")
            self.hello = message["hello"]
            self._hello_changed.set()
            return
        number = message.get("id")
        process = self._processes.get(number) if isinstance(number, int) else None
        if process is not None:
            process.take(message)
            if process.status is not None:
                del self._processes[message["id"]]

    def _on_end(self) -> None:
        self._is_gone = True
        self._hello_changed.set()
        self._fail_all("the guest has ended")

    def _fail_all(self, reason: str) -> None:
        for process in self._processes.values():
            process.fail(GuestGone(f"{reason}\n{self.tail()}"))
        self._processes.clear()
