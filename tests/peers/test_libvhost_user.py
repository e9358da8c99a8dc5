"""The driver of `vsock.Guest` with another device, built on QEMU's libvhost-user (see `build` and echo_device.c).

That library has its own code for event indexes, indirect descriptors and vhost-user messages.
"""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import vsock

REPOSITORY = Path(__file__).parents[2]
CID = 42
PATIENCE = 30

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]


@pytest.fixture(scope="session")
def program() -> Path:
    """The device program, built if it does not exist."""
    folder = REPOSITORY / "build/peers"
    built = subprocess.run(
        [REPOSITORY / "tests/peers/build", folder], capture_output=True, text=True, check=False
    )
    if built.returncode:
        reason = (built.stderr.strip() or "tests/peers/build failed").splitlines()[-1]
        if os.environ.get("VSOCK_REQUIRE_GUESTS"):
            pytest.fail(f"{reason} (VSOCK_REQUIRE_GUESTS is set)")
        pytest.skip(reason)
    return folder / "echo_device"


@pytest.fixture
def device(program: Path, runtime_dir: Path) -> Iterator[Path]:
    """The socket of a running device, which must exit with status 0 when its guest has left."""
    path = runtime_dir / "peer.sock"
    process = subprocess.Popen([program, path, str(CID)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "ready\n"
        yield path
        try:
            assert process.wait(PATIENCE) == 0
            assert process.stdout.read().splitlines()[-1] == "over"
        finally:
            process.kill()


@pytest.fixture
def guest(device: Path) -> Iterator[vsock.Guest]:
    """A userspace guest of it."""
    with vsock.Guest(device) as guest:
        yield guest


def echoed(guest: vsock.Guest, data: bytes) -> bytes:
    """Send data and receive the echo at the same time; returns the echo."""
    with guest.create_connection((2, 5000)) as sock:
        sock.settimeout(PATIENCE)

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        parts = []
        while part := sock.recv(1 << 16):
            parts.append(part)
        sender.join()
        return b"".join(parts)


def test_cid_is_the_devices(guest: vsock.Guest) -> None:
    """Read from its configuration space."""
    assert guest.cid == CID


@pytest.mark.parametrize("size", [0, 1, 44, 65_536, 65_537, 8 << 20])
def test_bytes_go_there_and_come_back(guest: vsock.Guest, size: int) -> None:
    """Complete and in order; the largest amount uses the credit of both sides many times."""
    data = os.urandom(size)
    assert echoed(guest, data) == data


def test_indexes_pass_the_end_of_16_bits(guest: vsock.Guest) -> None:
    """More packets than an index can count."""
    with guest.create_connection((2, 5000)) as sock:
        sock.settimeout(PATIENCE)
        for number in range(70_000 // 2):
            byte = bytes([number % 251])
            sock.sendall(byte)
            assert sock.recv(10) == byte


def test_connections_at_once_are_kept_apart(guest: vsock.Guest) -> None:
    """Thirty of them, each with bytes of its own."""
    data = [os.urandom(200_000) for _ in range(30)]
    with ThreadPoolExecutor(len(data)) as pool:
        assert list(pool.map(lambda one: echoed(guest, one), data)) == data
