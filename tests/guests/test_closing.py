"""How connections end: one direction, both directions, by reset, and by a killed program."""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from vsock import sockets
from vsock.demo.places import LinuxPlace, Place, ProcessPlace, run_pair
from vsock.demo.programs import answer_after_end, ask_and_end
from vsock.testing.plugin import KINDS
from vsock.transports import SwitchTransport

GetPlace = Callable[[str], LinuxPlace]

SIZE = 300_000
DEADLINE = 60

every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("direction", ["to guest", "to host"])
def test_half_closed_connection_still_carries_the_answer(
    host: ProcessPlace, place: GetPlace, port: int, kind: str, direction: str
) -> None:
    """The server answers only after it has read to the end."""
    guest = place(kind)
    ends: tuple[Place, Place] = (host, guest) if direction == "to guest" else (guest, host)
    client, server = ends
    read, _ = run_pair(
        server, (answer_after_end, port), client, (ask_and_end, server.cid, port, SIZE)
    )
    assert read == SIZE


@pytest.mark.parametrize(("source", "destination"), [("qemu-6.1", "uml"), ("uml", "qemu-6.12")])
def test_half_closed_connection_between_guests_still_carries_the_answer(
    place: GetPlace, port: int, source: str, destination: str
) -> None:
    """A relayed SHUTDOWN closes one direction only."""
    server = place(destination)
    read, _ = run_pair(
        server, (answer_after_end, port), place(source), (ask_and_end, server.cid, port, SIZE)
    )
    assert read == SIZE


def accept_and_do_nothing(port: int) -> None:
    """In the guest: take one connection and never read."""
    import socket
    import threading

    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen()
    print("listening", flush=True)
    _connection = listener.accept()[0]
    print("accepted", flush=True)
    threading.Event().wait()


@every_kind
def test_guest_program_killed_ends_the_hosts_connection(
    place: GetPlace, transport: SwitchTransport, port: int, kind: str
) -> None:
    """Its kernel closes the socket with unread data; the host reads the end of the data, and sending then fails."""
    guest = place(kind)
    program = guest.guest.spawn_call(accept_and_do_nothing, port)
    assert program.read_line() == "listening"
    with sockets.create_connection((guest.cid, port), transport=transport) as connection:
        assert program.read_line() == "accepted"
        connection.settimeout(DEADLINE)
        connection.sendall(b"unread" * 1000)
        program.kill()
        assert read_end(connection) == b""
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            # More than fits the buffers: the first bytes may be accepted before the reset arrives.
            connection.sendall(bytes(4 << 20))


def hold_until_end(cid: int, port: int) -> dict[str, Any]:
    """In the guest: connect, read nothing until a line arrives, then print how the connection has ended."""
    import socket
    import sys

    connection = socket.socket(socket.AF_VSOCK)
    connection.settimeout(60)
    connection.connect((cid, port))
    connection.sendall(b"x" * 10_000)
    print("connected", flush=True)
    sys.stdin.read()  # until the host has closed
    end = connection.recv(1)
    failed = None
    try:
        for _ in range(1000):
            connection.sendall(bytes(1000))
    except OSError as error:
        failed = type(error).__name__
    return {"end": len(end), "failed": failed}


@every_kind
def test_host_program_that_closes_with_unread_data_resets_the_guests_connection(
    place: GetPlace, transport: SwitchTransport, port: int, kind: str
) -> None:
    """The guest reads the end of the data, and its next sends fail: nothing hangs."""
    guest = place(kind)
    with sockets.create_server(port, transport=transport) as listener:
        listener.settimeout(DEADLINE)
        program = guest.guest.spawn_call(hold_until_end, 2, port)
        connection, _ = listener.accept()
        assert program.read_line() == "connected"
        connection.close()
        program.write(b"", eof=True)
        result = program.result()
    assert result["end"] == 0
    assert result["failed"] in ("BrokenPipeError", "ConnectionResetError")


def read_end(connection: socket.socket) -> bytes:
    """The result of a read at the end of a connection; a reset is an end too."""
    try:
        return connection.recv(1)
    except ConnectionResetError:
        return b""
