"""Where the programs of a check run: on the host, in a Linux guest, or in a userspace guest.

A place starts a function of `programs` and returns a task to wait for. On the host and for a userspace
guest the task is a process of its own, as a user's program is.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from vsock.demo.nets import KernelNet, SwitchNet
from vsock.guest import Guest
from vsock.testing import LinuxGuest
from vsock.testing.remote import program, result_of

Program = Callable[..., Any]

ANSWER_SECONDS = 30.0


class ProgramFailed(Exception):  # noqa: N818 - says what happened
    """A program of a check ended with an error; the message is its last line."""


class Task(Protocol):
    """A running program."""

    def read_line(self, timeout: float = 30) -> str:
        """The next line that it prints."""

    def result(self, timeout: float = 30) -> Any:
        """Wait for its end and return its result."""


class Place(Protocol):
    """A place where programs run."""

    @property
    def name(self) -> str:
        """Its name for people."""

    @property
    def cid(self) -> int:
        """Its CID."""

    def start(self, function: Program, *arguments: Any) -> Task:
        """Start a program there."""


class LinuxPlace:
    """A Linux guest."""

    def __init__(self, guest: LinuxGuest[Any], cid: int) -> None:
        self.guest = guest
        self.cid = cid
        self.name = guest.name

    def start(self, function: Program, *arguments: Any) -> Task:
        """Start a program in the guest, on its kernel's AF_VSOCK."""
        return self.guest.spawn_python(program(function, *arguments, context=KernelNet))


class ProcessPlace:
    """The host, or a userspace guest: the node that serves sockets in `directory`."""

    def __init__(
        self, name: str, cid: int, directory: str | os.PathLike[str], guest: Guest | None = None
    ) -> None:
        self.name = name
        self.cid = cid
        self.guest = guest
        self._directory = os.fspath(directory)
        self._tasks: list[ProcessTask] = []

    def start(self, function: Program, *arguments: Any) -> Task:
        """Start a program as a process."""
        source = program(function, *arguments, context=SwitchNet)
        return self._start([sys.executable, "-c", source], {})

    def start_command(self, words: Sequence[str], environment: Mapping[str, str]) -> "ProcessTask":
        """Start a command of `vsock`, with more variables in its environment."""
        return self._start([sys.executable, "-P", "-m", "vsock.cli", *words], environment)

    def _start(self, command: Sequence[str], environment: Mapping[str, str]) -> "ProcessTask":
        given = {**os.environ, "VSOCK_RUNTIME_DIR": self._directory, **environment}
        task = ProcessTask(command, given)
        self._tasks.append(task)
        return task

    def end(self) -> None:
        """End the programs that still run here."""
        for task in self._tasks:
            task.end()


class ProcessTask:
    """A program that runs as a process. Its standard input is empty, or what `output` is given."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C must reach only the demo, which then ends the program
        )
        self._output = b""

    def end(self) -> None:
        """Kill it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def read_line(self, timeout: float = 30) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._output:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                self._process.kill()
                raise TimeoutError(f"the program printed nothing for {timeout:g} s")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                self.result()
                raise ProgramFailed("the program ended without another line")
            self._output += data
        line, _, self._output = self._output.partition(b"\n")
        return line.decode()

    def result(self, timeout: float = 30) -> Any:
        """Wait for its end and return its result."""
        return result_of(self.output(timeout=timeout).decode())

    def output(self, given: bytes = b"", *, timeout: float = 30) -> bytes:
        """Give it this input, wait for its end and return what it has written and nobody has read."""
        try:
            output, errors = self._process.communicate(given, timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise TimeoutError(f"the program did not end within {timeout:g} s") from None
        if self._process.returncode != 0:
            said = errors.decode(errors="replace").strip()
            raise ProgramFailed(said or f"status {self._process.returncode}")
        return self._output + output


def run_pair(
    server_place: Place,
    server: tuple[Program, *tuple[Any, ...]],
    client_place: Place,
    client: tuple[Program, *tuple[Any, ...]],
) -> tuple[Any, Any]:
    """Start a listening program, then its client; returns both results."""
    listening = server_place.start(*server)
    said = listening.read_line(ANSWER_SECONDS)
    if said != "listening":
        raise ProgramFailed(f"expected 'listening', got {said!r}")
    result = client_place.start(*client).result(ANSWER_SECONDS)
    return listening.result(ANSWER_SECONDS), result
