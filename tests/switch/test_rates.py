"""`bytes_per_second`: what a guest sends and receives in a second is limited; nothing is lost, and the limit can change."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import vsock
from vsock.control.model import GuestSpec
from vsock.guest import Guest
from vsock.switch import Switch

RATE = 1 << 20
PORT = 5000
DATA = bytes(range(256)) * 2048
"""Half a second's worth."""
SOON = 0.3
"""What is left of that second, in seconds, when a burst of 100 ms and a last packet went at once."""


@pytest.fixture
def limited(runtime_dir: Path) -> Iterator[tuple[Switch, Guest, Guest]]:
    """A switch, its guest `alpha`, which has a rate, and `beta`, which has none."""
    guests = [
        GuestSpec(name="alpha", cid=3, groups=("lab",), bytes_per_second=RATE),
        GuestSpec(name="beta", cid=4, groups=("lab",)),
    ]
    with (
        Switch(guests, runtime_dir=runtime_dir) as switch,
        Guest(switch.socket_path("alpha")) as alpha,
        Guest(switch.socket_path("beta")) as beta,
    ):
        yield switch, alpha, beta


@contextmanager
def connected(server: vsock.socket, client: vsock.socket) -> Iterator[tuple[vsock.socket, ...]]:
    """Both ends, with the listener closed."""
    with server, client, server.accept()[0] as accepted:
        yield client, accepted


def send(source: vsock.socket, sink: vsock.socket, data: bytes) -> float:
    """Sends data; returns how long that took until the last byte was there, in seconds."""
    sender = threading.Thread(target=source.sendall, args=(data,))
    began = time.monotonic()
    sender.start()
    got = bytearray()
    while len(got) < len(data):
        got += sink.recv(1 << 20)
    sender.join()
    assert bytes(got) == data
    return time.monotonic() - began


@pytest.mark.parametrize(
    "way", ["host to alpha", "alpha to host", "beta to alpha", "alpha to beta"]
)
def test_what_a_guest_sends_and_receives_takes_its_time(limited, way: str) -> None:
    """Its rate holds for each peer and both ways, and every byte arrives."""
    _, alpha, beta = limited
    source, _, sink = way.split()
    with ExitStack() as stack:
        peer = beta if "beta" in way else vsock
        ends = connected(alpha.create_server(PORT), peer.create_connection((3, PORT), timeout=30))
        theirs, ours = stack.enter_context(ends)
        pair = (theirs, ours) if sink == "alpha" else (ours, theirs)
        assert send(*pair, DATA) > SOON, (source, sink)


def test_rate_ends_while_its_guest_runs(limited) -> None:
    """Data that would take minutes arrives at once when the limit is lifted."""
    switch, alpha, _ = limited
    with ExitStack() as stack:
        server = alpha.create_server(PORT)
        client = vsock.create_connection((3, PORT), timeout=30)
        client, accepted = stack.enter_context(connected(server, client))
        switch.change_guest("alpha", bytes_per_second=0)
        assert switch.guest("alpha").bytes_per_second == 0
        send(client, accepted, DATA * 256)
