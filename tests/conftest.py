"""Fixtures of most tests: a runtime directory, a switch in it, and a userspace guest."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.programs import need

if TYPE_CHECKING:
    from vsock.guest import Guest
    from vsock.switch import Switch

pytest_plugins = ["vsock.testing.plugin"]

KEPT = {
    "VSOCK_GUEST_IMAGES",
    "VSOCK_REQUIRE_GUESTS",
    "VSOCK_REQUIRE_PROGRAMS",
    "VSOCK_TEST_ACCEL",
}
"""Settings for the tests themselves."""


def pytest_configure() -> None:
    """Ctrl-C ends the programs that tests start, also if the tests are a background job of a script (N2).

    A shell starts background jobs with SIGINT ignored, and every program below would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that runs programs needs them."""
    for mark in item.iter_markers("programs"):
        need(mark.args)


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test uses a switch, settings or keys of the person who runs the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in [name for name in os.environ if name.startswith("VSOCK_")]:
        if name not in KEPT:
            monkeypatch.delenv(name)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty directory for sockets: the path of one has at most 107 bytes, and with pytest's `tmp_path` may have more."""
    directory = Path(tempfile.mkdtemp(prefix="vsock-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def runtime_dir(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, which is this process's runtime directory."""
    monkeypatch.setenv("VSOCK_RUNTIME_DIR", str(short_path))
    return short_path


@pytest.fixture
def switch(runtime_dir: Path) -> "Iterator[Switch]":
    """A running switch, with its control API, for three guests.

    `alpha` (3) and `beta` (4) share the group `lab`; `gamma` (5) shares none.
    """
    from vsock.control.model import GuestSpec
    from vsock.switch import Switch

    guests = [
        GuestSpec(name="alpha", cid=3, groups=("lab",)),
        GuestSpec(name="beta", cid=4, groups=("lab",)),
        GuestSpec(name="gamma", cid=5),
    ]
    with Switch(guests, runtime_dir=runtime_dir, control=True) as running:
        yield running


@pytest.fixture
def guest(switch: "Switch") -> "Iterator[Guest]":
    """The guest `alpha` of `switch`, in this process."""
    from vsock.guest import Guest

    with Guest(switch.socket_path("alpha")) as joined:
        yield joined


GUARDED = """
import os, sys
from vsock.cli.guard import raise_guard
raise_guard(kill=True)
os.execv(sys.executable, [sys.executable, "-m", "vsock.cli", "run", "--no-guard", "--", *sys.argv[1:]])
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_preloaded() -> Iterator[Start]:
    """Starts a program under `vsock run`, with a filter that kills it if it creates a socket of the kernel's AF_VSOCK.

    At the end of the test the program is killed, with all its children.
    """
    running: list[subprocess.Popen[str]] = []

    def start(*command: str, **options: object) -> "subprocess.Popen[str]":
        settings: dict[str, object] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "env": {**os.environ, "VSOCK_PRELOAD_VERBOSE": "1"},
            "start_new_session": True,
        }
        process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-c", GUARDED, *command],
            **(settings | options),  # type: ignore[call-overload]
        )
        running.append(process)
        return process

    yield start
    for process in running:
        # Children of a server keep its pipes open, so the whole session is killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


@pytest.fixture
def run_preloaded(start_preloaded: Start) -> Callable[..., str]:
    """Runs a program to its end, within `timeout` seconds, and returns its output; its status must be 0."""

    def run(*command: str, timeout: float = 30, **options: object) -> str:
        process = start_preloaded(*command, **options)
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, (process.returncode, out, err)
        return out

    return run
