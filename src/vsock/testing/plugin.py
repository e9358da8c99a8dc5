"""Pytest fixtures with real Linux guests.

In a user's conftest.py:

    pytest_plugins = ["vsock.testing.plugin"]

and in a test:

    def test_kernel(linux_guest):
        assert linux_guest.run("uname -s").stdout.strip() == "Linux"

Guests are booted once per session and shared. After a test that breaks one (the guest ends, or its
agent does not answer), the next test boots it again. Without images or VMM, tests are skipped with the
reason, or fail if VSOCK_REQUIRE_GUESTS is set, for instance in CI.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from vsock.switch import Switch
from vsock.testing.blocking import QemuGuest, UmlGuest, boot
from vsock.testing.errors import GuestError, GuestUnavailable
from vsock.testing.images import find_newer_qemu

REQUIRED_VARIABLE = "VSOCK_REQUIRE_GUESTS"

KINDS = ("qemu-6.1", "qemu-6.12", "uml")
"""Kinds of guests: VMM and kernel. Each has its own name and CID in the switch."""

NEWER_KINDS = ("qemu-new", "qemu-events", "uml-new")
"""Kinds with the newest kernels and the newest QEMU of any suite of Debian. "qemu-events" is kernel 6.12 with the
generic device of that QEMU, which gives the event queue to the switch."""

FIRST_CID = 3


class SharedGuests:
    """The guests of a test session, each booted at its first use."""

    def __init__(self, switch: object) -> None:
        self._switch = switch
        self._running: dict[str, QemuGuest | UmlGuest] = {}

    def get(self, kind: str) -> QemuGuest | UmlGuest:
        """The guest of this kind; boots it if none answers.

        Raises:
            GuestUnavailable: this machine cannot boot it.
        """
        guest = self._running.pop(kind, None)
        if guest is None or not _answers(guest):
            guest = self._boot(kind)
        self._running[kind] = guest
        return guest

    def cid(self, kind: str) -> int:
        """The CID of the guest of this kind."""
        return FIRST_CID + (KINDS + NEWER_KINDS).index(kind)

    def kill_all(self) -> None:
        """End all guests."""
        while self._running:
            self._running.popitem()[1].kill()

    def _boot(self, kind: str) -> QemuGuest | UmlGuest:
        vmm, _, kernel = kind.partition("-")
        options: dict[str, object] = {"kernel": kernel or None}
        if kind in ("qemu-new", "qemu-events"):
            options["qemu"] = find_newer_qemu()
        if kind == "qemu-events":
            options |= {"kernel": "6.12", "event_queue": True}
        guest = boot(self._switch, kind, vmm="uml" if vmm == "uml" else "qemu", **options)
        guest.start()
        return guest


@pytest.fixture(scope="session")
def vsock_runtime_dir() -> Iterator[Path]:
    """The runtime directory of the session; its path is short, because paths of Unix sockets are limited."""
    directory = Path(tempfile.mkdtemp(prefix="vsock-test-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def vsock_switch(vsock_runtime_dir: Path) -> Iterator[Switch]:
    """A switch with an entry for each kind of guest; all may connect to each other."""
    with Switch(runtime_dir=vsock_runtime_dir) as switch:
        for number, kind in enumerate(KINDS + NEWER_KINDS):
            # User-Mode Linux has its memory in /tmp where /dev/shm is small, as in many containers.
            is_uml = kind.startswith("uml")
            switch.add_guest(kind, FIRST_CID + number, groups=["tests"], file_memory=is_uml)
        yield switch


@pytest.fixture(scope="session")
def linux_guests(vsock_switch: object) -> Iterator[SharedGuests]:
    """The session's guests by kind, for tests with several; see `linux_guest` for one."""
    guests = SharedGuests(vsock_switch)
    yield guests
    guests.kill_all()


@pytest.fixture
def linux_guest(request: pytest.FixtureRequest, linux_guests: SharedGuests) -> QemuGuest | UmlGuest:
    """A running Linux guest of `vsock_switch`.

    QEMU with kernel 6.1 unless the test is parametrized indirectly with another of `KINDS` or `NEWER_KINDS`.
    """
    return guest_or_skip(linux_guests, getattr(request, "param", KINDS[0]))


def guest_or_skip(guests: SharedGuests, kind: str) -> QemuGuest | UmlGuest:
    """The guest of this kind; skips the test with the reason if it cannot be booted here."""
    try:
        return guests.get(kind)
    except GuestUnavailable as missing:
        _skip(str(missing))


def _skip(reason: str) -> NoReturn:
    if os.environ.get(REQUIRED_VARIABLE):
        pytest.fail(f"{reason} ({REQUIRED_VARIABLE} is set)")
    pytest.skip(reason)


def _answers(guest: QemuGuest | UmlGuest) -> bool:
    try:
        guest.run("true", timeout=10)
    except GuestError:
        guest.kill()
        return False
    return True
