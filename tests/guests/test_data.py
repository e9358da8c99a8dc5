"""Data between guests and the host and between guests: whole, in order, many connections at once."""

from collections.abc import Callable

import pytest

from vsock.demo.nets import SEQPACKET, STREAM
from vsock.demo.places import LinuxPlace, Place, ProcessPlace, run_pair
from vsock.demo.programs import (
    echo_server,
    many_clients,
    receive_bytes,
    refused,
    send_bytes,
    send_messages,
)
from vsock.testing.plugin import KINDS, NEWER_KINDS

SIZE = 32 << 20
CONNECTIONS = 200

GetPlace = Callable[[str], LinuxPlace]

every_kind = pytest.mark.parametrize("kind", KINDS)
both_ways = pytest.mark.parametrize("direction", ["to guest", "to host"])
guest_pairs = pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("qemu-6.1", "uml"),
        ("uml", "qemu-6.12"),
        ("qemu-6.12", "qemu-6.1"),
        ("qemu-new", "uml-new"),
        ("uml-new", "qemu-events"),
    ],
)


def ends(host: Place, guest: Place, direction: str) -> tuple[Place, Place]:
    """Client and server for a direction."""
    return (host, guest) if direction == "to guest" else (guest, host)


def transfer(source: Place, destination: Place, port: int) -> None:
    """Move bytes and compare checksums."""
    server = (receive_bytes, port, SIZE)
    client = (send_bytes, destination.cid, port, SIZE)
    received, sent = run_pair(destination, server, source, client)
    assert received["checksum"] == sent["checksum"]


@pytest.mark.parametrize("kind", KINDS + NEWER_KINDS)
@both_ways
def test_bytes_between_host_and_guest_arrive_whole(
    host: ProcessPlace, place: GetPlace, port: int, kind: str, direction: str
) -> None:
    """32 MiB, with checksums at both ends."""
    transfer(*ends(host, place(kind), direction), port)


@guest_pairs
def test_bytes_between_guests_arrive_whole(
    place: GetPlace, port: int, source: str, destination: str
) -> None:
    """The switch relays; neither guest sees the host."""
    transfer(place(source), place(destination), port)


@every_kind
@both_ways
def test_many_connections_at_once_are_kept_apart(
    host: ProcessPlace, place: GetPlace, port: int, kind: str, direction: str
) -> None:
    """200 open at the same time, each with a message of its own."""
    client, server = ends(host, place(kind), direction)
    run_pair(
        server,
        (echo_server, port, STREAM, CONNECTIONS),
        client,
        (many_clients, server.cid, port, CONNECTIONS),
    )


@guest_pairs
def test_many_connections_between_guests_are_kept_apart(
    place: GetPlace, port: int, source: str, destination: str
) -> None:
    """As with the host, but relayed."""
    server = place(destination)
    run_pair(
        server,
        (echo_server, port, STREAM, CONNECTIONS),
        place(source),
        (many_clients, server.cid, port, CONNECTIONS),
    )


MESSAGES = [1, 43, 44, 45, 3731, 3732, 3733, 7464, 7465, 4096, 65_535, 65_536, 100_000, 2]
"""Message lengths around the limits: a guest's receive buffer holds 3732 bytes, a packet 64 KiB."""


@every_kind
@both_ways
def test_messages_between_host_and_guest_keep_their_borders(
    host: ProcessPlace, place: GetPlace, port: int, kind: str, direction: str
) -> None:
    """SOCK_SEQPACKET: one recv returns the message of one send."""
    client, server = ends(host, place(kind), direction)
    run_pair(
        server,
        (echo_server, port, SEQPACKET, 1),
        client,
        (send_messages, server.cid, port, MESSAGES),
    )


@guest_pairs
def test_messages_between_guests_keep_their_borders(
    place: GetPlace, port: int, source: str, destination: str
) -> None:
    """The packets of a message may be split again for the receiver's buffers."""
    server = place(destination)
    run_pair(
        server,
        (echo_server, port, SEQPACKET, 1),
        place(source),
        (send_messages, server.cid, port, MESSAGES),
    )


@every_kind
@both_ways
def test_port_without_listener_is_refused_at_once(
    host: ProcessPlace, place: GetPlace, port: int, kind: str, direction: str
) -> None:
    """ECONNRESET, and long before the 2 s of a connect timeout."""
    client, server = ends(host, place(kind), direction)
    assert client.start(refused, server.cid, port, 5).result() < 1.0
