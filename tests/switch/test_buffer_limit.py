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


def test_large_buffer_takes_what_its_guest_sends_before_its_program_reads(both) -> None:
    """A size that a program asks for is within the limit of its guest."""
    switch, alpha = both
    with listener() as server, alpha.create_connection((2, PORT), timeout=30) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(bytes(LARGE))
            got = 0
            while got < LARGE:
                got += len(accepted.recv(1 << 20))
    assert switch.info().counters["buffers_cut"] == 0


def test_lower_limit_leaves_less_for_a_large_buffer(both) -> None:
    """The connection has what is left, all the same every byte arrives, and the switch counts it."""
    switch, alpha = both
    switch.change_guest("alpha", buffer_limit_mib=17)
    assert switch.guest("alpha").buffer_limit_mib == 17
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
    assert switch.info().counters["buffers_cut"] == 1
