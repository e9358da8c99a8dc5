"""Real guests at a real switch: `vsock switch` as a process of its own, so that its memory can be measured.

The guests are those of `vsock.testing.plugin`, booted once for all tests here. The programs at the two
ends of a test are mostly those of the demo. A test that needs a guest for itself boots it again.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vsock.address import CID_HOST
from vsock.demo.places import LinuxPlace, ProcessPlace
from vsock.runtime import RuntimeFiles
from vsock.testing.plugin import FIRST_CID, KINDS, SharedGuests, guest_or_skip
from vsock.transports import SwitchTransport

READY_SECONDS = 20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this folder boots guests, and may have to wait for one."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vm)
            item.add_marker(pytest.mark.timeout(180))


class SwitchProcess:
    """`vsock switch` with an entry for each kind of guest; they all share a group."""

    def __init__(self, runtime_dir: Path) -> None:
        self.runtime_dir = runtime_dir
        self.log = runtime_dir.with_suffix(".log")
        guests = [f"--guest={kind}={FIRST_CID + n},tests" for n, kind in enumerate(KINDS)]
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

    def socket_path(self, name: str) -> Path:
        """The vhost-user socket of guest `name`."""
        return RuntimeFiles(self.runtime_dir).guest_socket(name)

    def anonymous_memory(self) -> int:
        """Bytes of memory that belong to the switch alone: the guests' shared memory is not counted."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        return int(line.split()[1]) * 1024

    def log_tail(self) -> str:
        """The end of what the switch has logged."""
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
    """Whatever a guest does, the switch must still be there after the test."""
    yield
    assert vsock_switch.process.poll() is None, vsock_switch.log_tail()


@pytest.fixture
def transport(vsock_switch: SwitchProcess) -> SwitchTransport:
    """What a host program in this process passes as `transport=`."""
    return SwitchTransport(str(vsock_switch.runtime_dir))


@pytest.fixture
def host(vsock_switch: SwitchProcess) -> ProcessPlace:
    """The host, to run programs on."""
    return ProcessPlace("host", CID_HOST, vsock_switch.runtime_dir)


@pytest.fixture
def place(linux_guests: SharedGuests) -> Callable[[str], LinuxPlace]:
    """Gives the guest of a kind, to run programs in; skips the test if it cannot be had."""

    def get(kind: str) -> LinuxPlace:
        return LinuxPlace(guest_or_skip(linux_guests, kind), linux_guests.cid(kind))

    return get


_ports = iter(range(20_000, 30_000))


@pytest.fixture
def port() -> int:
    """A port that no other test uses."""
    return next(_ports)
