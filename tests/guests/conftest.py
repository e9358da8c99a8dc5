"""Real guests at a real switch: `vsock switch` as a process of its own, so that its memory can be measured.

The guests are those of `vsock.testing.plugin`, booted once for all tests here. The programs at the two
ends of a test are mostly those of the demo. A test that needs a guest for itself boots it again.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from vsock import sockets
from vsock.address import CID_HOST
from vsock.control.model import NOTIFY_PORT
from vsock.demo.places import LinuxPlace, ProcessPlace
from vsock.errors import ConnectRefused
from vsock.runtime import RuntimeFiles
from vsock.ssh.identity import Identity
from vsock.testing.blocking import GuestProcess
from vsock.testing.debian import DebianGuest
from vsock.testing.errors import GuestUnavailable
from vsock.testing.images import find_programs
from vsock.testing.plugin import (
    DEBIAN,
    DEBIAN_BOOT_SECONDS,
    DEBIAN_CID,
    FIRST_CID,
    KINDS,
    NEWER_KINDS,
    REQUIRED_VARIABLE,
    SharedGuests,
    guest_or_skip,
)
from vsock.transports import SwitchTransport
from vsock.vmm import notify_credential, ssh_credentials

__all__ = ["DEBIAN", "DEBIAN_CID"]  # for the tests here, which name the guest of the plugin

READY_SECONDS = 20

DEBIAN_USER = "joe"
"""A user of that guest, beside root."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this folder boots guests, and so gets a longer timeout."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vm)
            # The first test with Debian waits for its boot.
            needs_debian = "debian_guest" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.timeout(180 + DEBIAN_BOOT_SECONDS * needs_debian))


class SwitchProcess:
    """`vsock switch` with an entry for each kind of guest; they all share a group."""

    def __init__(self, runtime_dir: Path) -> None:
        self.runtime_dir = runtime_dir
        self.log = runtime_dir.with_suffix(".log")
        kinds = enumerate(KINDS + NEWER_KINDS)
        guests = [f"--guest={kind}={FIRST_CID + n},tests" for n, kind in kinds]
        guests.append(f"--guest={DEBIAN}={DEBIAN_CID}")
        command = [sys.executable, "-m", "vsock.cli", "switch", f"--runtime-dir={runtime_dir}"]
        self._notify_path = runtime_dir.with_suffix(".notify")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._notify_path))
        self._notify.settimeout(READY_SECONDS)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *guests],
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": str(self._notify_path)},
            )
        try:
            while b"READY=1" not in self._notify.recv(4096):
                pass
        except TimeoutError:
            self.process.kill()
            self._clean_up()
            pytest.fail(f"the switch was not ready in {READY_SECONDS} s:\n{self.log_tail()}")

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of `vsock` with this switch."""
        return subprocess.run(
            [sys.executable, "-m", "vsock.cli", *command],
            env={**os.environ, "VSOCK_RUNTIME_DIR": str(self.runtime_dir)},
            capture_output=True,
            text=True,
            check=False,
        )

    def socket_path(self, name: str) -> Path:
        """The vhost-user socket of guest `name`."""
        return RuntimeFiles(self.runtime_dir).guest_socket(name)

    def anonymous_memory(self) -> int:
        """Bytes of memory that belong to the switch alone: the guests' shared memory is not counted."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        return int(line.split()[1]) * 1024

    def log_tail(self) -> str:
        """The last lines of the switch's log."""
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self) -> int:
        """Stop it as an init system would; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._clean_up()

    def _clean_up(self) -> None:
        self.process.wait()
        self._notify.close()
        self._notify_path.unlink()


@pytest.fixture(scope="session")
def vsock_switch(vsock_runtime_dir: Path) -> Iterator[SwitchProcess]:
    """The switch of all tests here."""
    switch = SwitchProcess(vsock_runtime_dir)
    yield switch
    status = switch.stop()
    tail = switch.log_tail()
    switch.log.unlink()
    assert status == 0, tail


@pytest.fixture(autouse=True)
def switch_lives_on(vsock_switch: SwitchProcess) -> Iterator[None]:
    """The switch must still run after the test, whatever a guest did."""
    yield
    assert vsock_switch.process.poll() is None, vsock_switch.log_tail()


@pytest.fixture
def transport(vsock_switch: SwitchProcess) -> SwitchTransport:
    """The value of `transport=` for host programs in this process."""
    return SwitchTransport(str(vsock_switch.runtime_dir))


@pytest.fixture
def host(vsock_switch: SwitchProcess) -> ProcessPlace:
    """The host, as a place to run programs."""
    return ProcessPlace("host", CID_HOST, vsock_switch.runtime_dir)


@pytest.fixture
def place(linux_guests: SharedGuests) -> Callable[[str], LinuxPlace]:
    """Returns the guest of a kind, as a place to run programs; skips the test if there is no such guest."""

    def get(kind: str) -> LinuxPlace:
        return LinuxPlace(guest_or_skip(linux_guests, kind), linux_guests.cid(kind))

    return get


@pytest.fixture(scope="session")
def state_home(vsock_state_home: Path) -> Path:
    """The value of XDG_STATE_HOME with which the key is found that `debian` lets in."""
    return vsock_state_home


@pytest.fixture(scope="session")
def debian_credentials(state_home: Path) -> dict[str, str | bytes]:
    """The system credentials with which `debian` is booted."""
    key = Identity(state_home / "vsock").public_key()
    users = {"sysusers.extra": f'u {DEBIAN_USER} - "A user" /home/{DEBIAN_USER} /bin/bash'}
    return {**notify_credential(NOTIFY_PORT), **ssh_credentials(key, DEBIAN_USER), **users}


@pytest.fixture(scope="session")
def debian(vsock_switch: SwitchProcess, debian_guest: DebianGuest) -> DebianGuest:
    """A stock Debian 13 at the switch, as guest `DEBIAN`, which is ready; one for all tests."""
    done = vsock_switch.run("wait", DEBIAN, f"--timeout={DEBIAN_BOOT_SECONDS}")
    assert done.returncode == 0, f"{done.stderr}\n{debian_guest.console_tail()}"
    return debian_guest


@pytest.fixture
def debian_user(debian: DebianGuest, vsock_environment: None) -> None:
    """Commands find the switch, and the key with which the guest was booted."""


_ports = iter(range(20_000, 30_000))


@pytest.fixture
def port() -> int:
    """A port that no other test uses."""
    return next(_ports)


HOST_PROGRAMS = ("socat", "ncat", "nbdkit", "nbdinfo", "nbdcopy", "ssh", "scp", "ssh-keygen")


@pytest.fixture
def host_programs(vsock_switch: SwitchProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's programs on the host, under `vsock run` with this switch."""
    monkeypatch.setenv("VSOCK_RUNTIME_DIR", str(vsock_switch.runtime_dir))
    if missing := [name for name in HOST_PROGRAMS if not shutil.which(name)]:
        _fail_or_skip(f"not installed: {', '.join(missing)}")


@pytest.fixture
def furnished(
    place: Callable[[str], LinuxPlace], transport: SwitchTransport, port: int
) -> LinuxPlace:
    """A guest with Debian's programs (guests/programs.py), which it receives over vsock."""
    try:
        archive = find_programs()
    except GuestUnavailable as missing:
        _fail_or_skip(str(missing))
    found = place("uml")

    def send() -> None:
        connection, _ = listener.accept()
        with connection, archive.open("rb") as file:
            connection.sendfile(file)

    if not found.guest.call(exists, "/usr/sbin/sshd"):
        with sockets.create_server(port, transport=transport) as listener:
            listener.settimeout(READY_SECONDS)
            thread = threading.Thread(target=send)
            thread.start()
            found.guest.call(unpack, CID_HOST, port, timeout=60)
            thread.join()
    return found


def exists(path: str) -> bool:
    """In the guest: whether the file exists."""
    import pathlib

    return pathlib.Path(path).exists()


def unpack(cid: int, port: int) -> None:
    """In the guest: receive an archive from the host and unpack it."""
    import socket
    import tarfile

    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    connection.connect((cid, port))
    with connection.makefile("rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        archive.extractall("/")


@pytest.fixture
def in_guest(furnished: LinuxPlace) -> Iterator[Callable[[str], GuestProcess]]:
    """Starts programs in the guest, and ends them with all their children after the test."""
    running: list[GuestProcess] = []

    def start(command: str) -> GuestProcess:
        # The agent gives each command a session of its own, by which its children can be found.
        running.append(furnished.guest.spawn(f"echo $$; {command}"))
        return running[-1]

    yield start
    for process in running:
        furnished.guest.run(f"kill -9 -{process.read_line()}", check=False)


@pytest.fixture
def until_connected(transport: SwitchTransport) -> Callable[[int, int], socket.socket]:
    """Connects to a program that may not listen yet."""

    def connect(cid: int, port: int) -> socket.socket:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                return sockets.create_connection((cid, port), transport=transport)
            except ConnectRefused:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    return connect


def _fail_or_skip(reason: str) -> NoReturn:
    if os.environ.get(REQUIRED_VARIABLE):
        pytest.fail(f"{reason} ({REQUIRED_VARIABLE} is set)")
    pytest.skip(reason)
