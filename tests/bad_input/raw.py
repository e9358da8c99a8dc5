"""Programs that write any bytes to the node's sockets."""

import errno
import socket
import struct

from tests.bad_input.lab import DEADLINE, Lab

from vsock._client import MESSAGE_SIZE, Op, Reply, Request

DOORS = {
    "stream": socket.SOCK_STREAM,
    "seqpacket": socket.SOCK_SEQPACKET,
    "dgram": socket.SOCK_SEQPACKET,
}
"""The node's sockets, and their Unix types."""
ANY = 0xFFFFFFFF
NAME = b"alpha"
REQUESTS = {
    "BIND": Request(Op.BIND, ANY, ANY).encode(),
    "CONNECT": Request(Op.CONNECT, 3, 1, 500).encode(),
    "held CONNECT": Request(Op.CONNECT, 3, 1, 500, extra=2016, flags=3).encode() + bytes(2016),
    "LISTEN": Request(Op.LISTEN, value=1).encode(),
    "full LISTEN": Request(Op.LISTEN, value=1, extra=32).encode() + bytes(32),
    "LOCAL_CID": Request(Op.LOCAL_CID).encode(),
    "RESOLVE": Request(Op.RESOLVE, extra=len(NAME)).encode() + NAME,
    "FLOW": Request(Op.FLOW, 0, 0x7FFFFFFF).encode(),
    "SEND": Request(Op.SEND, 2, 7000, extra=4).encode() + b"data",
}
"""For each operation that may come first on a connection: a request, and the bytes after it."""


def dial(lab: Lab, door: str) -> socket.socket:
    """Connect to one of the node's sockets; calls of the result time out."""
    client = socket.socket(socket.AF_UNIX, DOORS[door])
    client.settimeout(DEADLINE)
    client.connect(str(lab.directory / door))
    return client


def send_passing(client: socket.socket, data: bytes, fds: list[int]) -> bool:
    """Send data with descriptors; False if the switch's socket refuses these (SO_PASSRIGHTS), and only data was sent."""
    try:
        socket.send_fds(client, [data], fds)
    except PermissionError:
        client.sendall(data)
        return False
    return True


def reply(client: socket.socket) -> Reply | None:
    """The next reply; None at the end."""
    got = b""
    while len(got) < MESSAGE_SIZE and (piece := client.recv(MESSAGE_SIZE - len(got))):
        got += piece
    return Reply.decode(got) if got else None


def ask(client: socket.socket, request: bytes) -> str:
    """Send a request; return the name of the errno in the reply, OK, or END."""
    client.sendall(request)
    return name(reply(client))


def name(answer: Reply | None) -> str:
    """The result in a reply: the name of an errno, OK, or END if there is no reply."""
    if answer is None:
        return "END"
    known = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}
    return known[answer.errno] if answer.errno else "OK"


def changed(request: bytes, offset: int, value: int) -> bytes:
    """The request with one byte changed."""
    return request[:offset] + struct.pack("B", value) + request[offset + 1 :]
