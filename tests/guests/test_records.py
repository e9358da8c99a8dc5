"""SOCK_SEQPACKET between a host program and a Linux guest: message boundaries and record ends, in both directions."""

import socket
from collections.abc import Callable

import pytest

from vsock import sockets
from vsock.demo.places import LinuxPlace
from vsock.testing.plugin import KINDS
from vsock.transports import SwitchTransport

MESSAGES = [(1, True), (10, False), (4096, True), (65536, False), (65537, True), (200_000, True)]
"""Length, and whether a record ends there: one packet, and several."""


def echo_records(port: int) -> None:
    """In the guest: send every message back unchanged, with its MSG_EOR."""
    import socket

    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen()
    print("listening", flush=True)
    connection = listener.accept()[0]
    while True:
        data, _, flags, _ = connection.recvmsg(1 << 20)
        if not data:
            break
        print(len(data), bool(flags & socket.MSG_EOR), flush=True)
        connection.send(data, flags & socket.MSG_EOR)


@pytest.mark.parametrize("kind", KINDS)
def test_boundaries_and_record_ends_are_kept_to_a_guest_and_back(
    place: Callable[[str], LinuxPlace], transport: SwitchTransport, port: int, kind: str
) -> None:
    """MSG_EOR of the host arrives in the guest, and that of the guest on the host."""
    guest = place(kind)
    program = guest.guest.spawn_call(echo_records, port)
    assert program.read_line() == "listening"
    with sockets.create_connection(
        (guest.cid, port), 10, type=sockets.SOCK_SEQPACKET, transport=transport
    ) as ours:
        for size, ends in MESSAGES:
            assert ours.send(bytes(size), socket.MSG_EOR if ends else 0) == size
            assert program.read_line() == f"{size} {ends}"
            data, _, flags, _ = ours.recvmsg(1 << 20)
            assert (len(data), flags) == (size, socket.MSG_EOR if ends else 0)
