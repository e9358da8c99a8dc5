"""Runs examples as users do: as programs, on the host of a switch or as one of its guests."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vsock.guest import Guest

EXAMPLES = Path(__file__).parents[2] / "examples"
DEADLINE = 30

Example = Callable[..., "subprocess.Popen[str]"]


def read_line(process: "subprocess.Popen[str]") -> str:
    """The next line that a program prints; pytest's timeout is the deadline."""
    assert process.stdout
    return process.stdout.readline().rstrip("\n")


@pytest.fixture
def start(runtime_dir: Path) -> Iterator[Example]:
    """Starts an example; `guest` makes it a program of that guest instead of the host."""
    running: list[subprocess.Popen[str]] = []

    def start(name: str, *arguments: object, guest: Guest | None = None) -> "subprocess.Popen[str]":
        directory = guest.transport.directory if guest else str(runtime_dir)
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"VSOCK_RUNTIME_DIR": directory},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate(timeout=DEADLINE)


@pytest.fixture
def run(start: Example) -> Callable[..., str]:
    """Runs an example to its end and returns its output; it must end with `status`."""

    def run(name: str, *arguments: object, status: int = 0, guest: Guest | None = None) -> str:
        process = start(name, *arguments, guest=guest)
        output, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == status, (process.returncode, output)
        return output

    return run


@pytest.fixture
def serve(start: Example) -> Example:
    """Starts an example whose first line of output says where it serves."""

    def serve(name: str, *arguments: object, guest: Guest | None = None) -> "subprocess.Popen[str]":
        process = start(name, *arguments, guest=guest)
        line = read_line(process)
        if "Traceback" in line:
            pytest.fail(f"{name} does not serve:\n{process.communicate(timeout=DEADLINE)[0]}")
        return process

    return serve
