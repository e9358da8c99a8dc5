"""Unmodified programs under `vsock run`, with a userspace guest: no VM needed.

Every program here runs with a filter (`start_preloaded`) that kills it if it creates a socket of the
kernel's AF_VSOCK: a test that passes shows that nothing falls back to the kernel.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(runtime_dir: Path, start_preloaded: Start) -> Start:
    """Starts a program with the switch in `runtime_dir`, if one runs there."""
    return start_preloaded


@pytest.fixture
def run(runtime_dir: Path, run_preloaded: Callable[..., str]) -> Callable[..., str]:
    """Runs such a program to its end."""
    return run_preloaded


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
    """Runs Python code that uses the plain `socket` module; returns the lines that it printed."""

    def python(code: str, *arguments: str, **options: object) -> list[str]:
        return run(sys.executable, "-c", PRELUDE + code, *arguments, **options).splitlines()

    return python


@pytest.fixture
def start_python(start: Start) -> Start:
    """Starts such code without waiting for its end."""

    def start_python(code: str, *arguments: str, **options: object) -> "subprocess.Popen[str]":
        return start(sys.executable, "-c", PRELUDE + code, *arguments, **options)

    return start_python
