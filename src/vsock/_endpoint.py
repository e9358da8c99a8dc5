"""The endpoint protocol: how a host program asks the switch for sockets.

A client connects to one of the two Unix sockets in a runtime directory and says what it wants in
messages of 32 bytes; after a CONNECT that succeeded the same file descriptor *is* the stream. The
whole protocol is in docs/reference/endpoint-protocol.md.

The first half of this file is pure: messages to bytes and back. The second half moves them over a
socket that the caller owns. It calls the methods of the base class by name, since `vsock.socket`,
which is what callers pass, forbids its own data methods until it is connected. It is not for
deciding anything: which errno becomes which exception is decided in `vsock.errors`, which socket
may ask what in `vsock.sockets`.
"""

import errno
import select
import socket as _socket
import struct
import time
from enum import IntEnum
from typing import NamedTuple

from vsock._green import Base as _Base
from vsock._green import is_patched
from vsock._green import wait as wait_green
from vsock.errors import ProtocolError, SwitchGone

VERSION = 1
MESSAGE_SIZE = 32
INHERITED_SIZE = 32
"""Bytes of what accepted sockets inherit: left with a LISTEN, given back with each ACCEPT."""
HELD = 1
"""Flag of a CONNECT that the node leaves unread, with what is behind it, until its outcome is known."""
PROMPT = 2
"""Flag of a held CONNECT: the node says at once that it has begun."""
REFUSES = 1
"""Value of a FLOW: the connection receives no more."""
PADDING = 2016
"""Bytes behind a held request, the socket's cookie first, to keep it from being writable until the outcome."""
ANSWER_TIMEOUT = 5.0
"""Seconds until a switch that owes an immediate answer is taken for gone."""

_TIOCOUTQ = 0x5411
_REQUEST = struct.Struct("<BBHIIIQII")
_REPLY = struct.Struct("<BBHIIIIIQ")


class Op(IntEnum):
    """What a message is about; the same number in request and reply."""

    BIND = 1
    CONNECT = 2
    LISTEN = 3
    ACCEPT = 4
    ACCEPTED = 5
    LOCAL_CID = 6
    RESOLVE = 7
    FLOW = 8
    SEND = 9
    RECEIVED = 10


class Request(NamedTuple):
    """A message from the client to the node.

    `value` is the connect timeout in milliseconds (CONNECT), the backlog (LISTEN) or `REFUSES` (FLOW), `buffer` the
    size of the receive buffer in bytes (CONNECT, LISTEN, FLOW), `extra` the number of bytes that follow the
    message.
    """

    op: int
    cid: int = 0
    port: int = 0
    value: int = 0
    buffer: int = 0
    extra: int = 0
    flags: int = 0

    def encode(self) -> bytes:
        """Return the 32 bytes on the wire (what `extra` counts comes after them)."""
        op, cid, port, value, buffer, extra, flags = self
        return _REQUEST.pack(VERSION, op, flags, cid, port, value, buffer, extra, 0)

    @classmethod
    def decode(cls, message: bytes) -> "Request":
        """Read a request; raise `ProtocolError` if it is none of this version."""
        _check(message)
        _, op, flags, cid, port, value, buffer, extra, zero = _REQUEST.unpack(message)
        if flags & ~(HELD | PROMPT) or zero:
            raise _broken("a reserved field of a request is not zero")
        return cls(op, cid, port, value, buffer, extra, flags)


class Reply(NamedTuple):
    """A message from the node to the client; `errno` is 0 when the request was carried out."""

    op: int
    errno: int = 0
    our_cid: int = 0
    our_port: int = 0
    their_cid: int = 0
    their_port: int = 0
    peer_buf_alloc: int = 0
    flow: int = 0

    def encode(self) -> bytes:
        """Return the 32 bytes on the wire."""
        return _REPLY.pack(VERSION, *self)

    @classmethod
    def decode(cls, message: bytes) -> "Reply":
        """Read a reply; raise `ProtocolError` if it is none of this version."""
        _check(message)
        _, *fields = _REPLY.unpack(message)
        return cls(*fields)


def _check(message: bytes) -> None:
    if len(message) != MESSAGE_SIZE:
        raise _broken(f"a message has {len(message)} bytes instead of {MESSAGE_SIZE}")
    if message[0] != VERSION:
        raise _broken(f"a message is of version {message[0]}, this program speaks {VERSION}")


def _broken(what: str) -> ProtocolError:
    return ProtocolError(errno.EPROTO, f"endpoint protocol: {what}")


def _gone(doing: str) -> SwitchGone:
    return SwitchGone(errno.ENODEV, f"{doing}: the switch went away")


def send(sock: _Base, request: Request, extra: bytes = b"") -> None:
    """Send `request` and the bytes that belong to it.

    It waits at most `ANSWER_TIMEOUT`, whatever the socket's own timeout says: the node reads
    requests at once, so there is room in practice always.
    """
    message = request._replace(extra=len(extra)).encode() + extra
    deadline = time.monotonic() + ANSWER_TIMEOUT
    while message:
        if not wait(sock, select.POLLOUT, deadline):
            raise silent(request.op)
        try:
            message = message[_Base.send(sock, message, _socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise
            raise _gone(f"sending {Op(request.op).name}") from None


def receive(sock: _Base, op: Op, deadline: float) -> Reply | None:
    """Return the reply to `op`, or None if it has not come by `deadline` (of `time.monotonic`).

    Exactly one message is read: the bytes behind the reply to a CONNECT are the stream's.
    """
    message = b""
    while len(message) < MESSAGE_SIZE:
        if not wait(sock, select.POLLIN, deadline):
            if message:
                raise _broken("a reply was cut")
            return None
        try:
            piece = _Base.recv(sock, MESSAGE_SIZE - len(message), _socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            piece = b""
        if not piece:
            raise _gone(f"waiting for the answer to {op.name}")
        message += piece
    reply = Reply.decode(message)
    if reply.op != op:
        raise _broken(f"the reply to {op.name} says it answers {reply.op}")
    return reply


def ask(sock: _Base, request: Request, extra: bytes = b"") -> Reply:
    """Send `request` and return the reply that the node gives at once."""
    send(sock, request, extra)
    reply = receive(sock, Op(request.op), time.monotonic() + ANSWER_TIMEOUT)
    if reply is None:
        raise silent(request.op)
    return reply


def held(cookie: int) -> bytes:
    """Return what is sent behind a held CONNECT of the socket with this cookie."""
    return cookie.to_bytes(8, "little") + bytes(PADDING - 8)


def outcome(sock: _Base, cookie: int) -> Reply | None:
    """Return how a held CONNECT ended, None if it has not; nothing is taken off the socket.

    A connection has errno 0 and says nothing else: what can be read then is the connection's.

    Raises:
        SwitchGone: the node has closed its end with the request unread in it.
    """
    # fcntl is a module of its own, and only connecting needs it.
    from fcntl import ioctl

    # Before the look at what can be read: a request that was there then may be gone a moment later.
    is_held = struct.unpack("@i", ioctl(sock.fileno(), _TIOCOUTQ, bytes(4)))[0] > 0
    try:
        head = _receive_now(sock, _socket.MSG_PEEK)
    except ConnectionResetError:
        raise _gone(f"waiting for the answer to {Op.CONNECT.name}") from None
    if len(head) == MESSAGE_SIZE and (head[0], head[1]) == (VERSION, Op.CONNECT):
        reply = Reply.decode(head)
        if reply.errno and reply.flow == cookie:
            # It comes before the request is taken out, and makes the descriptor readable: who waits for that too asks now.
            return reply
    return None if is_held else Reply(Op.CONNECT)


def take_refusal(sock: _Base) -> None:
    """Take the reply to a CONNECT that came to nothing off the socket, unless another process has."""
    _receive_now(sock, 0)


def _receive_now(sock: _Base, flags: int) -> bytes:
    """Return what can be read now, of the length of a message; empty if nothing can."""
    # Python waits for a socket with a timeout, whatever the flags say.
    if not wait(sock, select.POLLIN, 0.0):
        return b""
    try:
        return _Base.recv(sock, MESSAGE_SIZE, flags | _socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def wait(sock: _Base, events: int, deadline: float) -> bool:
    """Wait until one of `events` is on `sock`; False if `deadline` passes first."""
    left = max(0.0, deadline - time.monotonic())
    if is_patched():
        return wait_green(sock.fileno(), events, left)
    poller = select.poll()
    poller.register(sock, events)
    return bool(poller.poll(left * 1000))


def silent(op: int) -> SwitchGone:
    """Return the error for a switch that owes an answer to `op` and gives none."""
    text = f"{Op(op).name}: the switch did not answer within {ANSWER_TIMEOUT:g} s"
    return SwitchGone(errno.ENODEV, text)
