"""`make cpython-tests`: runs CPython's own tests of stream sockets with `vsock.socket` and under `vsock run`.

`test.test_socket` is a part of the interpreter (Debian: libpython3.x-testsuite) and not of this repository. Its classes use
Internet addresses. Here their module gets a replacement of `socket`, in which AF_INET makes a `vsock.socket`, or with
``--column run`` Python's AF_VSOCK socket under `vsock run`, and the host is CID 1. A test that fails must be in `expected.py`
with the reason; a test in that list that passes is an error too.
"""

import argparse
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tests.cpython.expected import CLASSES, faults

from vsock.cli.guard import raise_guard
from vsock.switch import Switch

ROOT: Final = Path(__file__).resolve().parents[2]
COLUMNS: Final = ("api", "run")
SECONDS: Final = 400
TEST_SECONDS: Final = 20

_ANY: Final = 0xFFFFFFFF
_LOCAL: Final = 1
_AF_VSOCK: Final = 40
_ports = itertools.count(20_000)


class _SocketClass(type):
    """Replacement of the class `socket.socket`: the tests call it, and use it with isinstance."""

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        """Make a socket."""
        return cls.make(*arguments, **named)  # type: ignore[attr-defined]

    def __instancecheck__(cls, instance: object) -> bool:
        """Any socket is an instance."""
        return isinstance(instance, socket.socket)


class SocketModule(ModuleType):
    """Python's `socket` module with the switch in place of the Internet."""

    def __init__(self, column: str) -> None:
        super().__init__("socket")
        self._column = column
        self.socket = _SocketClass("socket", (), {"make": staticmethod(self._make)})

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    def _make(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket
        proto: int = 0,
        fileno: int | None = None,
    ) -> Any:
        """A socket of the switch in place of a TCP socket."""
        if family != socket.AF_INET or type & 0xF != socket.SOCK_STREAM or fileno is not None:
            return socket.socket(family, type, proto, fileno)
        if self._column == "run":
            return socket.socket(_AF_VSOCK, type)
        import vsock

        return vsock.socket(type)

    def create_connection(
        self, address: Any, timeout: Any = "default", source_address: Any = None, **_: Any
    ) -> Any:
        """As in Python: a connected socket with this timeout."""
        sock = self._make()
        try:
            if timeout is None or isinstance(timeout, int | float):
                sock.settimeout(timeout)
            if source_address is not None:
                sock.bind(_as_vsock(source_address))
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock


def _as_vsock(address: Any) -> tuple[int, int]:
    return (_ANY, address[1] or _ANY)


def bind_port(sock: Any, **_: Any) -> int:
    """Bind to a free port, as `test.support.socket_helper.bind_port` does."""
    sock.bind((_LOCAL, _ANY))
    port: int = sock.getsockname()[1]
    return port


def find_unused_port(*_: Any, **__: Any) -> int:
    """A free port of the switch, independent of TCP ports."""
    return next(_ports)


class TookTooLong(Exception):  # noqa: N818 - says what happened
    """A test took too long, probably because its other thread failed."""


def end_test(*_: object) -> None:
    """Handle SIGALRM."""
    raise TookTooLong


def load(column: str) -> unittest.TestSuite:
    """CPython's test classes, with the replaced `socket` module."""
    try:
        test_socket = importlib.import_module("test.test_socket")
    except ImportError as error:
        raise SystemExit(
            f"this Python has no tests of its own ({error}): Debian has them in libpython3-testsuite"
        ) from None
    socket_helper = importlib.import_module("test.support.socket_helper")
    replaced: dict[str, Any] = {"HOST": _LOCAL, "socket": SocketModule(column)}
    vars(test_socket).update(replaced)
    helpers = {"bind_port": bind_port, "find_unused_port": find_unused_port}
    vars(socket_helper).update(helpers, HOST=_LOCAL)
    loader = unittest.TestLoader()
    suites = [loader.loadTestsFromTestCase(getattr(test_socket, name)) for name in CLASSES]
    return unittest.TestSuite(suites)


class Result(unittest.TestResult):
    """The result of each test, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's name
        """Begin a test."""
        super().startTest(test)
        print(_name(test), file=sys.stderr, flush=True)  # if it hangs, the last line
        signal.alarm(TEST_SECONDS)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's name
        """End a test; without another result it has passed."""
        signal.alarm(0)
        self.said.setdefault(_name(test), "passed")
        super().stopTest(test)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802 - unittest's name
        """The test was skipped."""
        self.said[_name(test)] = f"skipped: {reason}"

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802 - unittest's name
        """The test raised an exception."""
        super().addError(test, err)
        self.said[_name(test)] = f"failed: {self.errors[-1][1]}"

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802 - unittest's name
        """An assertion failed."""
        super().addFailure(test, err)
        self.said[_name(test)] = f"failed: {self.failures[-1][1]}"


def _name(test: Any) -> str:
    return ".".join(str(test.id()).split(".")[-2:])


def play(column: str) -> None:
    """Run all tests in this process; prints one line of JSON."""
    if column == "run":
        # Outside `vsock run` these would be sockets of this machine's own kernel, so none is made.
        raise_guard()
    signal.signal(signal.SIGALRM, end_test)
    result = Result()
    load(column).run(result)
    print(json.dumps(result.said))


def run(column: str) -> int:
    """Run a column in a process of its own, with a switch of its own; returns the number of faults."""
    with (
        tempfile.TemporaryDirectory(prefix="vsock-cpython-") as directory,
        Switch(runtime_dir=directory),
    ):
        command = [sys.executable, "-m", "tests.cpython", "--play", column]
        if column == "run":
            command = [sys.executable, "-m", "vsock.cli", "run", "--", *command]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            cwd=ROOT,
            env={**os.environ, "VSOCK_RUNTIME_DIR": directory},
        )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        print(f"{column}: ended with status {done.returncode}\n{done.stderr[-2000:]}")
        return 1
    said: dict[str, str] = json.loads(lines[-1])
    wrong = faults(said)
    for fault in wrong:
        print(f"{column}: {fault}")
    kinds = Counter(verdict.partition(":")[0] for verdict in said.values())
    print(f"{column}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    return len(wrong)


def main() -> int:
    """Run the columns of the arguments; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.cpython", description=__doc__)
    parser.add_argument("--column", choices=COLUMNS, action="append", help="which; both if none")
    parser.add_argument("--play", choices=COLUMNS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.play:
        play(chosen.play)
        return 0
    return 1 if sum(run(column) for column in chosen.column or COLUMNS) else 0


if __name__ == "__main__":
    sys.exit(main())
