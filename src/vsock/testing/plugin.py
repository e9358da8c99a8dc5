"""Pytest fixtures with real Linux guests.

In a user's conftest.py:

    pytest_plugins = ["vsock.testing.plugin"]

and in a test:

    def test_kernel(linux_guest):
        assert linux_guest.run("uname -s").stdout.strip() == "Linux"

==================  =============================================================================================
`vsock_switch`      a running switch, one for the test session
`linux_guest`       a Linux guest of it with an agent of ours, which `run` commands without vsock; `linux_guests`: several
`debian_session`    a stock Debian 13, in which nothing is ours: makes sessions with it, as `vsock.guest_session` does
`debian_guest`      its machine, to pause or restart; `debian_credentials`: what it is booted with, to be overridden
`join_guest`        makes this process a guest of the switch, without a machine
`vsock_environment` calls and programs find this switch and the key that Debian lets in, without any argument
==================  =============================================================================================

A test in a stock system, blocking or with ``async with``, and one with a guest that is only this process:

    def test_system(debian_session):
        with debian_session() as guest:
            assert "trixie" in guest.run("cat /etc/os-release", check=True).stdout

    def test_server(join_guest, vsock_switch):
        with join_guest("web").create_server(8080):
            vsock.create_connection("web:8080", transport=vsock_switch.transport).close()

Guests are booted once per session and shared. After a test that breaks one (the guest ends, or its
agent does not answer), the next test boots it again; Debian is booted once. Without images or VMM, tests are skipped with the
reason, or fail if VSOCK_REQUIRE_GUESTS is set, for instance in CI. `debian_session` needs `vsock[ssh]`.
"""

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from vsock.errors import ConnectRefused, ConnectTimeout, SessionError
from vsock.guest import Guest
from vsock.switch import Switch
from vsock.testing.blocking import QemuGuest, UmlGuest, boot
from vsock.testing.debian import DebianGuest
from vsock.testing.errors import GuestError, GuestTimeout, GuestUnavailable
from vsock.testing.images import find_newer_qemu
from vsock.transports import SwitchTransport
from vsock.vmm import ssh_credentials

if TYPE_CHECKING:
    from vsock.ssh import GuestSession

REQUIRED_VARIABLE = "VSOCK_REQUIRE_GUESTS"

KINDS = ("qemu-6.1", "qemu-6.12", "uml")
"""Kinds of guests: VMM and kernel. Each has its own name and CID in the switch."""

NEWER_KINDS = ("qemu-new", "qemu-events", "uml-new")
"""Kinds with the newest kernels and the newest QEMU of any suite of Debian. "qemu-events" is kernel 6.12 with the
generic device of that QEMU, which gives the event queue to the switch."""

FIRST_CID = 3

DEBIAN = "debian"
"""The name of `debian_guest` in the switch."""

DEBIAN_CID = FIRST_CID + len(KINDS + NEWER_KINDS)

DEBIAN_BOOT_SECONDS = 180
"""Until it lets us in, at most; on a busy machine under emulation it takes 60."""

_FIRST_JOINED_CID = 1000
_PAUSE_SECONDS = 0.5


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
        switch.add_guest(DEBIAN, DEBIAN_CID, groups=["tests"])
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


@pytest.fixture(scope="session")
def vsock_state_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The value of XDG_STATE_HOME for the session: its own key pair and host keys, and not those of who runs the tests."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def vsock_environment(
    vsock_runtime_dir: Path, vsock_state_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls without `transport=`, and programs that the test starts, find `vsock_switch` and the key of the session."""
    monkeypatch.setenv("VSOCK_RUNTIME_DIR", str(vsock_runtime_dir))
    monkeypatch.setenv("XDG_STATE_HOME", str(vsock_state_home))


@pytest.fixture
def join_guest(vsock_switch: Switch) -> Iterator[Callable[[str], Guest]]:
    """A function that makes this process a guest of `vsock_switch`, by a name; the guests leave with the test."""
    cids = itertools.count(_FIRST_JOINED_CID)

    def join(name: str) -> Guest:
        vsock_switch.add_guest(name, next(cids), groups=["tests"])
        leaving.callback(vsock_switch.remove_guest, name)
        return leaving.enter_context(Guest(vsock_switch.socket_path(name)))

    with ExitStack() as leaving:
        yield join


@pytest.fixture(scope="session")
def debian_credentials(vsock_state_home: Path) -> dict[str, str | bytes]:
    """The system credentials with which `debian_guest` is booted: root takes the key of the session."""
    from vsock.ssh.identity import Identity

    return {**ssh_credentials(Identity(vsock_state_home / "vsock").public_key())}


@pytest.fixture(scope="session")
def debian_guest(
    vsock_switch: Any,
    vsock_runtime_dir: Path,
    vsock_state_home: Path,
    debian_credentials: dict[str, str | bytes],
) -> Iterator[DebianGuest]:
    """A stock Debian 13 of `vsock_switch`, booted until its sshd lets us in; one for the session."""
    try:
        with DebianGuest(vsock_switch, DEBIAN, debian_credentials) as guest:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("XDG_STATE_HOME", str(vsock_state_home))
                _until_let_in(guest, SwitchTransport(str(vsock_runtime_dir)))
            yield guest
    except GuestUnavailable as missing:
        _skip(str(missing))


@pytest.fixture
def debian_session(
    debian_guest: DebianGuest, vsock_environment: None
) -> "Callable[..., GuestSession]":
    """A function that makes a session with `debian_guest`, to be opened by `with` or `async with`.

    It takes the arguments of `vsock.guest_session` behind the guest, such as `user`.
    """
    from vsock.ssh import guest_session

    def make(**options: Any) -> "GuestSession":
        return guest_session(debian_guest.name, **options)

    return make


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


def _until_let_in(guest: DebianGuest, transport: SwitchTransport) -> None:
    from vsock.ssh import guest_session

    deadline = time.monotonic() + DEBIAN_BOOT_SECONDS
    while True:
        try:
            with guest_session(guest.name, transport=transport):
                return
        except (ConnectRefused, ConnectTimeout, SessionError) as error:
            if not guest.is_running or time.monotonic() > deadline:
                raise GuestTimeout(
                    f"{guest.name} does not let us in: {error}\n{guest.console_tail()}"
                ) from error
        time.sleep(_PAUSE_SECONDS)
