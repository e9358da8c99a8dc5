"""What most tests start from: a runtime directory, a switch in it, and a userspace guest."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vsock.guest import Guest
    from vsock.switch import Switch

pytest_plugins = ["vsock.testing.plugin"]

KEPT = {"VSOCK_GUEST_IMAGES", "VSOCK_REQUIRE_GUESTS", "VSOCK_TEST_ACCEL"}
"""Settings for the tests themselves."""


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees, or talks to, a switch of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("VSOCK_")]:
        if name not in KEPT:
            monkeypatch.delenv(name)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory that this process takes for its runtime directory.

    Its path is short: that of a Unix socket ends at 107 bytes, which pytest's own may pass.
    """
    directory = Path(tempfile.mkdtemp(prefix="vsock-"))
    monkeypatch.setenv("VSOCK_RUNTIME_DIR", str(directory))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def switch(runtime_dir: Path) -> "Iterator[Switch]":
    """A running switch, with its control API, for three guests.

    `alpha` (3) and `beta` (4) share the group `lab`; `gamma` (5) shares none.
    """
    from vsock.switch import Switch
    from vsock.switch.model import GuestSpec

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
