"""Programs that know nothing of us, under `vsock run`, against a userspace guest: no VM needed.

Every program here runs behind a filter that ends it if it so much as makes an AF_VSOCK socket of the
kernel's: what passes shows that nothing falls back to it.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GUARDED = """
import os, sys
from vsock.cli.guard import raise_guard
raise_guard(kill=True)
os.execv(sys.executable, [sys.executable, "-m", "vsock.cli", "run", "--no-guard", "--", *sys.argv[1:]])
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(runtime_dir: Path) -> Iterator[Start]:
    """Starts a program under `vsock run`, behind the filter; what still runs at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def start(*command: str, **options: object) -> "subprocess.Popen[str]":
        settings: dict[str, object] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "env": {**os.environ, "VSOCK_PRELOAD_VERBOSE": "1"},
        }
        process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-c", GUARDED, *command],
            **(settings | options),  # type: ignore[call-overload]
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start: Start) -> Callable[..., str]:
    """Runs a program to its end and gives what it printed; it must end well."""

    def run(*command: str, **options: object) -> str:
        process = start(*command, **options)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, (process.returncode, out, err)
        return out

    return run


PRELUDE = """
import errno, os, select, socket, struct, sys, threading, time
from socket import AF_VSOCK, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET
ANY = 0xffffffff
def error(function, *arguments):
    try:
        function(*arguments)
    except OSError as failure:
        return errno.errorcode[failure.errno].replace('ENOTSUP', 'EOPNOTSUPP')
    return "no error"
def say(*values):
    print(*values, flush=True)
"""


@pytest.fixture
def python(run: Callable[..., str]) -> Callable[..., list[str]]:
    """Runs Python code that uses the plain `socket` module; gives the lines that it printed."""

    def python(code: str, *arguments: str, **options: object) -> list[str]:
        return run(sys.executable, "-c", PRELUDE + code, *arguments, **options).splitlines()

    return python


@pytest.fixture
def start_python(start: Start) -> Start:
    """Starts such code and lets it run."""

    def start_python(code: str, *arguments: str, **options: object) -> "subprocess.Popen[str]":
        return start(sys.executable, "-c", PRELUDE + code, *arguments, **options)

    return start_python
