"""F2, F3 and A2 with Linux guests: slow readers, guests that are removed, and bursts of connections."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vsock import sockets
from vsock.control.client import ControlClient
from vsock.control.model import GuestSpec
from vsock.demo.places import LinuxPlace
from vsock.switch import Switch
from vsock.testing import QemuGuest
from vsock.testing.plugin import FIRST_CID, KINDS, SharedGuests, guest_or_skip
from vsock.transports import SwitchTransport

GetPlace = Callable[[str], LinuxPlace]

DEADLINE = 60
PATIENCE_ONCE = 8
"""Linux's close timeout in seconds, which must not end the wait for a paused guest."""


def read_to_the_end(port: int) -> str:
    """In the guest: connect to the host, and return what a blocked receive ends with."""
    import socket

    client = socket.socket(socket.AF_VSOCK)
    client.connect((socket.VMADDR_CID_HOST, port))
    print("connected", flush=True)
    try:
        return repr(client.recv(1))
    except ConnectionResetError:
        # User-Mode Linux then also loses the device, and its kernel resets what no program has looked at yet.
        return "reset"


@pytest.mark.parametrize("kind", ["qemu-6.12", "uml"])
def test_guest_that_is_removed_hears_that_its_connections_are_over(
    place: GetPlace, transport: SwitchTransport, port: int, kind: str
) -> None:
    """F3: a blocked receive ends at once, also under QEMU."""
    guest = place(kind)
    client = ControlClient(Path(transport.directory))
    before = client.guest(kind)
    try:
        with sockets.create_server(port, transport=transport) as listener:
            listener.settimeout(DEADLINE)
            program = guest.guest.spawn_call(read_to_the_end, port)
            accepted, _ = listener.accept()
            with accepted:
                assert program.read_line() == "connected"
                client.remove_guest(kind)
                with pytest.raises(ConnectionResetError):
                    accepted.recv(1)
                ends = {"b''"} if kind != "uml" else {"b''", "reset"}
                assert program.result(DEADLINE) in ends
    finally:
        # The next test that uses this guest boots it again.
        guest.guest.kill()
        client.add_guest(GuestSpec(name=kind, cid=before.cid, groups=tuple(before.groups)))


def test_guest_of_a_switch_that_stops_hears_that_its_connections_are_over(
    runtime_dir: Path, port: int
) -> None:
    """F3: with a switch of its own, because the shared one must go on."""
    kind = "qemu-6.12"
    guests = {kind: FIRST_CID + KINDS.index(kind)}
    with Switch(guests, runtime_dir=runtime_dir) as switch:
        shared = SharedGuests(switch)
        try:
            guest = guest_or_skip(shared, kind)
            with sockets.create_server(port, transport=switch.transport) as listener:
                listener.settimeout(DEADLINE)
                program = guest.spawn_call(read_to_the_end, port)
                accepted, _ = listener.accept()
                with accepted:
                    assert program.read_line() == "connected"
                    switch.stop()
                    with pytest.raises(ConnectionResetError):
                        accepted.recv(1)
                    assert program.result(DEADLINE) == "b''"
        finally:
            shared.kill_all()


def read_all(port: int) -> int:
    """In the guest: accept one connection and count its bytes."""
    import socket

    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen()
    print("listening", flush=True)
    connection = listener.accept()[0]
    print("accepted", flush=True)
    total = 0
    while data := connection.recv(1 << 16):
        total += len(data)
    return total


def test_what_was_sent_to_a_paused_guest_waits_until_it_goes_on(
    place: GetPlace, transport: SwitchTransport, port: int
) -> None:
    """F2: the data arrives after a pause of more than 8 s, and then the end of the data."""
    guest = place("qemu-6.12")
    assert isinstance(guest.guest, QemuGuest)
    client = ControlClient(Path(transport.directory))
    program = guest.guest.spawn_call(read_all, port)
    assert program.read_line() == "listening"
    with sockets.create_connection((guest.cid, port), transport=transport) as connection:
        assert program.read_line() == "accepted"
        guest.guest.pause()
        connection.sendall(bytes(100_000))
    until = time.monotonic() + PATIENCE_ONCE + 1
    while time.monotonic() < until:
        assert client.flows(), "it was given up"
    guest.guest.resume()
    assert program.result(DEADLINE) == 100_000


def connect_many(port: int, count: int) -> list[str]:
    """In the guest: connect to the host many times at once; returns the errors of the connects that failed."""
    import errno
    import resource
    import select
    import socket

    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
    poller = select.poll()
    begun = {}
    for _ in range(count):
        client = socket.socket(socket.AF_VSOCK)
        client.setblocking(False)
        client.connect_ex((socket.VMADDR_CID_HOST, port))
        begun[client.fileno()] = client
        poller.register(client, select.POLLOUT)
    refused = []
    waiting = set(begun)
    while waiting:
        for fd, _ in poller.poll(20_000) or [(-1, 0)]:
            if fd < 0:
                return ["no answer"]
            poller.unregister(fd)
            waiting.remove(fd)
            code = begun[fd].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                refused.append(errno.errorcode[code])
    for client in begun.values():
        client.setblocking(True)
        client.sendall(b"x")
    return refused


@pytest.mark.parametrize("kind", ["qemu-6.12", "uml"])
def test_burst_of_connections_is_let_in_whole(
    place: GetPlace, transport: SwitchTransport, port: int, kind: str
) -> None:
    """A2: 800 connects at once to a listener with a backlog of 2048 all succeed; it accepts one after the other."""
    guest = place(kind)
    with sockets.create_server(port, backlog=2048, transport=transport) as listener:
        listener.settimeout(DEADLINE)
        served = []

        def serve() -> None:
            for _ in range(800):
                accepted, _ = listener.accept()
                with accepted:
                    served.append(accepted.recv(1))

        server = threading.Thread(target=serve)
        server.start()
        assert guest.guest.call(connect_many, port, 800, timeout=60) == []
        server.join(DEADLINE)
        assert served == [b"x"] * 800
