"""Starts `vsock` commands that a test talks to, and ends them with it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Start", "started"]


class Start(Protocol):
    """Starts a command."""

    def __call__(self, *words: str, stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        """Start it."""


@contextmanager
def started() -> Iterator[Start]:
    """What starts commands; each is killed at the end."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(*words: str, stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", "vsock.cli", *words],
            bufsize=0,  # lines are read one by one, and then the rest; what is written is there at once
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        running.append(process)
        return process

    try:
        yield begin
    finally:
        for process in running:
            process.kill()
            process.communicate()
