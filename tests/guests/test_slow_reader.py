"""A side that does not read stalls only its own flow, and memory stays bounded."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from vsock import sockets
from vsock.demo.nets import STREAM
from vsock.demo.places import LinuxPlace, ProcessPlace, run_pair
from vsock.demo.programs import echo_server, ping
from vsock.testing.plugin import KINDS
from vsock.transports import SwitchTransport

GetPlace = Callable[[str], LinuxPlace]

CONNECTIONS = 10
STALL_SECONDS = 0.5
"""Seconds without progress after which a sender counts as stalled."""

LARGEST_IN_FLIGHT = 1 << 20
"""Upper bound of unread data between two ends: the guest's 256 KiB, the switch's, and two kernel socket buffers."""

LARGEST_GROWTH = 8 << 20
"""Upper bound of the switch's own memory for all connections of a test: 256 KiB each, and some more."""

every_kind = pytest.mark.parametrize("kind", KINDS)


def read_late(port: int, connections: int) -> list[int]:
    """In the guest: accept all, read nothing until a line arrives, then read each to its end."""
    import socket
    import sys

    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen(128)
    print("listening", flush=True)
    accepted = [listener.accept()[0] for _ in range(connections)]
    print("accepted", flush=True)
    sys.stdin.read()
    totals = []
    for connection in accepted:
        connection.settimeout(20)
        total = 0
        while data := connection.recv(1 << 17):
            total += len(data)
        totals.append(total)
    return totals


def send_until_stalled(cid: int, port: int, connections: int, stall: float) -> list[int]:
    """In the guest: send on each until it stalls; then shut down and wait for the end of the other direction."""
    import socket

    opened, totals = [], []
    for _ in range(connections):
        connection = socket.socket(socket.AF_VSOCK)
        connection.settimeout(20)
        connection.connect((cid, port))
        opened.append(connection)
    for connection in opened:
        connection.settimeout(stall)
        total = 0
        try:
            while total < 1 << 28:
                total += connection.send(bytes(1 << 16))
        except TimeoutError:
            pass
        totals.append(total)
    print("stalled", flush=True)
    for connection in opened:
        connection.shutdown(socket.SHUT_WR)
    for connection in opened:
        connection.settimeout(20)
        if connection.recv(1):
            raise AssertionError("nobody was to send anything")
    return totals


def fill(connection: socket.socket) -> int:
    """Send until the socket is full; returns the number of bytes."""
    connection.settimeout(STALL_SECONDS)
    total = 0
    try:
        while total < 1 << 28:
            total += connection.send(bytes(1 << 16))
    except TimeoutError:
        pass
    connection.settimeout(20)
    return total


def drain(connection: socket.socket) -> int:
    """Read to the end; returns the number of bytes."""
    connection.settimeout(20)
    total = 0
    while data := connection.recv(1 << 17):
        total += len(data)
    return total


@every_kind
def test_guest_that_does_not_read_stalls_only_its_own_flows(
    host: ProcessPlace,
    place: GetPlace,
    transport: SwitchTransport,
    vsock_switch: Any,
    port: int,
    kind: str,
) -> None:
    """The host's senders block, other flows of the same guest go on, and later everything arrives."""
    guest = place(kind)
    before = vsock_switch.anonymous_memory()
    program = guest.guest.spawn_call(read_late, port, CONNECTIONS)
    assert program.read_line() == "listening"
    with ExitStack() as stack:
        opened = [
            stack.enter_context(sockets.create_connection((guest.cid, port), transport=transport))
            for _ in range(CONNECTIONS)
        ]
        assert program.read_line() == "accepted"
        sent = [fill(connection) for connection in opened]
        growth = vsock_switch.anonymous_memory() - before
        run_pair(
            guest,
            (echo_server, port + 10_000, STREAM, 1),
            host,
            (ping, guest.cid, port + 10_000, 50),
        )
        for connection in opened:
            connection.shutdown(socket.SHUT_WR)
        program.write(b"", eof=True)
        assert program.result(60) == sent
    assert max(sent) <= LARGEST_IN_FLIGHT
    assert min(sent) >= 256 << 10, "the guest has announced room for 256 KiB"
    assert growth <= LARGEST_GROWTH


@every_kind
def test_host_that_does_not_read_stalls_only_its_own_flows(
    host: ProcessPlace,
    place: GetPlace,
    transport: SwitchTransport,
    vsock_switch: Any,
    port: int,
    kind: str,
) -> None:
    """The guest's senders block when they have used their credit; no data is lost."""
    guest = place(kind)
    before = vsock_switch.anonymous_memory()
    with ExitStack() as stack:
        listener = stack.enter_context(sockets.create_server(port, transport=transport))
        listener.settimeout(20)
        program = guest.guest.spawn_call(send_until_stalled, 2, port, CONNECTIONS, STALL_SECONDS)
        accepted = [stack.enter_context(listener.accept()[0]) for _ in range(CONNECTIONS)]
        assert program.read_line(60) == "stalled"
        growth = vsock_switch.anonymous_memory() - before
        run_pair(
            guest,
            (echo_server, port + 10_000, STREAM, 1),
            host,
            (ping, guest.cid, port + 10_000, 50),
        )
        received = []
        for connection in accepted:
            received.append(drain(connection))
            connection.close()
        sent = program.result(60)
    assert received == sent
    assert max(sent) <= LARGEST_IN_FLIGHT
    assert growth <= LARGEST_GROWTH


def send_to_slow_guest(cid: int, port: int, stall: float) -> int:
    """In the guest: send until stalled, print a line, then shut down and wait for the end."""
    import socket

    connection = socket.socket(socket.AF_VSOCK)
    connection.settimeout(20)
    connection.connect((cid, port))
    connection.settimeout(stall)
    total = 0
    try:
        while total < 1 << 28:
            total += connection.send(bytes(1 << 16))
    except TimeoutError:
        pass
    print("stalled", flush=True)
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(20)
    connection.recv(1)
    return total


@pytest.mark.parametrize(
    ("source", "destination"),
    [("qemu-6.1", "uml"), ("uml", "qemu-6.12"), ("qemu-6.12", "qemu-6.1")],
)
def test_guest_that_does_not_read_stalls_only_the_guest_that_sends_to_it(
    host: ProcessPlace, place: GetPlace, vsock_switch: Any, port: int, source: str, destination: str
) -> None:
    """Both guests can still exchange data with the host, and the data arrives when it is read."""
    sender, reader = place(source), place(destination)
    before = vsock_switch.anonymous_memory()
    reading = reader.guest.spawn_call(read_late, port, 1)
    assert reading.read_line() == "listening"
    sending = sender.guest.spawn_call(send_to_slow_guest, reader.cid, port, STALL_SECONDS)
    assert reading.read_line() == "accepted"
    assert sending.read_line(60) == "stalled"
    growth = vsock_switch.anonymous_memory() - before
    for number, guest in enumerate((sender, reader)):
        side = port + 10_000 + number
        run_pair(guest, (echo_server, side, STREAM, 1), host, (ping, guest.cid, side, 50))
    reading.write(b"", eof=True)
    (received,) = reading.result(60)
    assert received == sending.result(60)
    assert received <= LARGEST_IN_FLIGHT
    assert growth <= LARGEST_GROWTH
