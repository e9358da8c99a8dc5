"""`buffer_limit_mib`: what a guest sends to programs that do not read has a limit, which can change while it runs."""

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import vsock
from vsock.control.model import GuestSpec
from vsock.guest import Guest
from vsock.switch import Switch

PORT = 5000
LARGE = 4 << 20


@pytest.fixture
def both(runtime_dir: Path) -> Iterator[tuple[Switch, Guest]]:
    """A switch and its guest `alpha`."""
    with (
        Switch([GuestSpec(name="alpha", cid=3)], runtime_dir=runtime_dir) as switch,
        Guest(switch.socket_path("alpha")) as alpha,
    ):
        yield switch, alpha


def listener() -> socket.socket:
    """A listener whose connections are to have a large buffer."""
    server = vsock.create_server(PORT)
    for option in (vsock.SO_VM_SOCKETS_BUFFER_MAX_SIZE, vsock.SO_VM_SOCKETS_BUFFER_SIZE):
        server.setsockopt(socket.AF_VSOCK, option, struct.pack("=Q", LARGE))
    return server


@pytest.mark.parametrize(("limit", "cut"), [(64, 0), (17, 1)])
def test_large_buffer_is_given_within_the_limit_of_its_guest(both, limit: int, cut: int) -> None:
    """Beyond that the connection has what is left, which is counted; every byte arrives."""
    switch, alpha = both
    switch.change_guest("alpha", buffer_limit_mib=limit)
    assert switch.guest("alpha").buffer_limit_mib == limit
    with listener() as server, alpha.create_connection((2, PORT), timeout=30) as client:
        accepted, _ = server.accept()
        with accepted:
            data = bytes(range(256)) * (LARGE // 256)
            sender = threading.Thread(target=client.sendall, args=(data,))
            sender.start()
            got = bytearray()
            while len(got) < LARGE:
                got += accepted.recv(1 << 20)
            sender.join()
            assert bytes(got) == data
    assert switch.info().counters["buffers_cut"] == cut
