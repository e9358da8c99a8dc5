"""The client protocol: how a program asks a node (a switch, or a userspace guest) for sockets.

A client connects to one of the three Unix sockets in a runtime directory and says what it wants in
messages of 32 bytes. After a CONNECT that succeeded the same file descriptor *is* the stream. The
whole protocol is in docs/reference/client-protocol.md.

The first part of this file is pure: messages to bytes and back. The second moves them over a socket
that the caller owns. It calls the methods of the base class by name, since a `vsock.socket`, which
is what callers pass, refuses data calls until it is connected. `Node` is the other end of it all.
This module decides nothing: `vsock.errors` turns an errno into an exception, and `vsock._socket`
knows which socket may ask what.
"""

import errno
import os
import select
import struct
import time
from enum import IntEnum
from socket import (
    AF_UNIX,
    MSG_DONTWAIT,
    MSG_PEEK,
    SO_PEERCRED,
    SOCK_DGRAM,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    SocketKind,
)
from typing import Final, NamedTuple

from vsock._system import unix
from vsock._system.green import Base
from vsock._system.waiting import Steps, run, wait
from vsock.address import Address, NamedAddress, Target
from vsock.errors import (
    AccessDenied,
    AddressError,
    NoSwitch,
    ProtocolError,
    SwitchGone,
    TransportError,
    no_switch,
    path_too_long,
    transport_error,
)

VERSION: Final = 1
MESSAGE_SIZE: Final = 32
INHERITED_SIZE: Final = 32
"""Bytes of what accepted sockets inherit: left with a LISTEN, given back with each ACCEPT."""
HELD: Final = 1
"""Flag of a CONNECT that the node leaves unread, with what is behind it, until its outcome is known."""
PROMPT: Final = 2
"""Flag of a held CONNECT: the node says at once that it has begun."""
NAMED: Final = 4
"""Flag of a CONNECT: the destination is the guest whose name stands behind the cookie, and not the one with `cid`."""
LONGEST_NAME: Final = 255
"""Bytes in the name of a guest at most."""
RECEIVE_SHUT: Final = 1
"""Value of a FLOW: the connection receives no more."""
PADDING: Final = 2016
"""Bytes behind a held request, the socket's cookie first, to keep it from being writable until the outcome."""
ANSWER_TIMEOUT = 5.0
"""Seconds until a switch that owes an immediate answer is taken for gone."""

_TIOCOUTQ: Final = 0x5411
_SO_COOKIE: Final = 57
_REQUEST: Final = struct.Struct("<BBHIIIQII")
_REPLY: Final = struct.Struct("<BBHIIIIIQ")
_COOKIE: Final = struct.Struct("=Q")
_LONGEST_PATH: Final = 107
_SOCKETS: Final = {SOCK_STREAM: "stream", SOCK_SEQPACKET: "seqpacket", SOCK_DGRAM: "dgram"}
_KERNEL_INSTEAD: Final = (
    "; VSOCK_TRANSPORT=kernel or --transport kernel choose the kernel's own AF_VSOCK"
)


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

    `value` is the connect timeout in milliseconds (CONNECT), the backlog (LISTEN) or `RECEIVE_SHUT`
    (FLOW), `buffer` the size of the receive buffer in bytes (CONNECT, LISTEN, FLOW), `extra` the
    number of bytes that follow the message.
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
        if flags & ~(HELD | PROMPT | NAMED) or zero:
            raise broken("a reserved field of a request is not zero")
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


def broken(what: str) -> ProtocolError:
    """Return the exception for a node that broke the protocol; `what` says how."""
    return ProtocolError(errno.EPROTO, f"client protocol: {what}")


def _check(message: bytes) -> None:
    if len(message) != MESSAGE_SIZE:
        raise broken(f"a message has {len(message)} bytes instead of {MESSAGE_SIZE}")
    if message[0] != VERSION:
        raise broken(f"a message is of version {message[0]}, this program speaks {VERSION}")


def _gone(doing: str) -> SwitchGone:
    return SwitchGone(errno.ENODEV, f"{doing}: the switch went away")


def silent(op: int) -> SwitchGone:
    """Return the exception for a switch that owes an answer to `op` and gives none."""
    text = f"{Op(op).name}: the switch did not answer within {ANSWER_TIMEOUT:g} s"
    return SwitchGone(errno.ENODEV, text)


def send(sock: Base, request: Request, extra: bytes = b"") -> None:
    """Send `request` and the bytes that belong to it.

    It waits at most `ANSWER_TIMEOUT`, whatever the socket's own timeout says: the node reads
    requests at once, so in practice there is always room.
    """
    message = request._replace(extra=len(extra)).encode() + extra
    deadline = time.monotonic() + ANSWER_TIMEOUT
    while message:
        if not wait(sock, select.POLLOUT, deadline):
            raise silent(request.op)
        try:
            message = message[Base.send(sock, message, MSG_DONTWAIT) :]
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise
            raise _gone(f"sending {Op(request.op).name}") from None


def receive(sock: Base, op: Op, deadline: float) -> Reply | None:
    """Return the reply to `op`, or None if it has not come by `deadline` (of `time.monotonic`).

    Exactly one message is read: the bytes behind the reply to a CONNECT are the stream's.
    """
    message = b""
    while len(message) < MESSAGE_SIZE:
        if not wait(sock, select.POLLIN, deadline):
            if message:
                raise broken("a reply was cut")
            return None
        try:
            piece = Base.recv(sock, MESSAGE_SIZE - len(message), MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            piece = b""
        if not piece:
            raise _gone(f"waiting for the answer to {op.name}")
        message += piece
    reply = Reply.decode(message)
    if reply.op != op:
        raise broken(f"the reply to {op.name} says it answers {reply.op}")
    return reply


def ask(sock: Base, request: Request, extra: bytes = b"") -> Reply:
    """Send `request` and return the reply that the node gives at once."""
    send(sock, request, extra)
    reply = receive(sock, Op(request.op), time.monotonic() + ANSWER_TIMEOUT)
    if reply is None:
        raise silent(request.op)
    return reply


def checked(target: Target) -> Address | NamedAddress:
    """Return `target` if a node knows addresses of its form; else raise `AddressError`."""
    if not isinstance(target, Address | NamedAddress):
        raise AddressError(f"{target}: only create_connection and create_server take this form")
    return target


def resolve(sock: Base, target: NamedAddress) -> Address:
    """Ask for the CID of a guest by its name, over a connection to a node on which nothing is bound yet.

    Raises:
        NoSuchGuest: no guest has this name.
    """
    reply = ask(sock, Request(Op.RESOLVE), encoded_name(target))
    if reply.errno:
        raise unknown_guest(target)
    return Address(reply.their_cid, target.port)


def encoded_name(target: NamedAddress) -> bytes:
    """Return the name in `target` as it is sent; `NoSuchGuest` if no guest can have it."""
    name = target.name.encode()
    if not 0 < len(name) <= LONGEST_NAME:
        raise unknown_guest(target)
    return name


def unknown_guest(target: NamedAddress) -> TransportError:
    """Return the exception for a name that no guest has."""
    return transport_error(errno.ENODEV, f"guest {target.name!r}")


def cookie(sock: Base) -> int:
    """Return the number that the kernel has given this socket and no other (SO_COOKIE)."""
    found: tuple[int] = _COOKIE.unpack(Base.getsockopt(sock, SOL_SOCKET, _SO_COOKIE, _COOKIE.size))
    return found[0]


def held(cookie: int, name: bytes | None = None) -> bytes:
    """Return what is sent behind a held CONNECT of the socket with this cookie, to the guest called `name`."""
    named = b"" if name is None else bytes([len(name)]) + name
    return (cookie.to_bytes(8, "little") + named).ljust(PADDING, b"\0")


def outcome(sock: Base, cookie: int) -> Reply | None:
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
        head = _receive_now(sock, MSG_PEEK)
    except ConnectionResetError:
        raise _gone(f"waiting for the answer to {Op.CONNECT.name}") from None
    if len(head) == MESSAGE_SIZE and (head[0], head[1]) == (VERSION, Op.CONNECT):
        reply = Reply.decode(head)
        if reply.errno and reply.flow == cookie:
            # The reply comes before the request is taken out, and makes the descriptor readable: a program that waits
            # for that too looks at this moment.
            return reply
    return None if is_held else Reply(Op.CONNECT)


def take_refusal(sock: Base) -> None:
    """Take the reply to a CONNECT that came to nothing off the socket, unless another process has."""
    _receive_now(sock, 0)


def _receive_now(sock: Base, flags: int) -> bytes:
    """Return what can be read now, of the length of a message; empty if nothing can."""
    # Python waits for a socket with a timeout, whatever the flags say.
    if not wait(sock, select.POLLIN, 0.0):
        return b""
    try:
        return Base.recv(sock, MESSAGE_SIZE, flags | MSG_DONTWAIT)
    except BlockingIOError:
        return b""


class Node(NamedTuple):
    """A switch or a userspace guest, which serves the client protocol in `directory`.

    All questions of this class go over a connection of their own, and raise what the node answers,
    or `NoSwitch`.
    """

    directory: str

    def attach(self, sock: Base, kind: int) -> None:
        """Connect `sock`, a new Unix socket, to the node's socket for its type; see `attaching`."""
        try:
            os.set_blocking(sock.fileno(), False)
            run(self.attaching(sock, kind))
        finally:
            os.set_blocking(sock.fileno(), Base.gettimeout(sock) is None)

    def attaching(self, sock: Base, kind: int) -> Steps[None]:
        """Connect `sock`, a new and non-blocking Unix socket, to the node's socket for its type.

        Raises:
            NoSwitch: nobody serves this directory; the message names the alternatives.
            AccessDenied: this user may not enter the directory.
            SwitchGone: the node's queue was full for `ANSWER_TIMEOUT` seconds.
        """
        path = f"{self.directory}/{_SOCKETS[SocketKind(kind)]}"
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise path_too_long(path)
        try:
            has_room = yield from unix.connect(sock, path, time.monotonic() + ANSWER_TIMEOUT)
        except PermissionError:
            raise AccessDenied(errno.EACCES, f"{path}: this user may not use the switch") from None
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise no_switch(self.directory, _KERNEL_INSTEAD) from None
        if not has_room:
            raise SwitchGone(errno.ENODEV, f"{path}: the switch takes no connections")

    def local_cid(self) -> int:
        """Return the node's CID."""
        return self._ask(Request(Op.LOCAL_CID), "local CID").our_cid

    def set_buffer(self, cookie: int, size: int) -> int:
        """Give the connection of the socket with this cookie another receive buffer (0: none); return the peer's."""
        return self._ask(_about(cookie, buffer=size), "asking about a connection").peer_buf_alloc

    def our_port(self, cookie: int) -> int:
        """Return the port that a connection of ours has, also if it is over; PORT_ANY if it is not known any more."""
        return self._reply(_about(cookie)).our_port

    def stop_receiving(self, cookie: int) -> None:
        """Say that a connection of ours receives no more.

        Its descriptor has been shut down, but while that is full, or carries messages, the node
        would not see it before it has something to write.
        """
        self._ask(_about(cookie, value=RECEIVE_SHUT), "asking about a connection")

    def has_ended_well(self, sock: Base) -> bool:
        """Tell whether a connection that is over came to a good end.

        A node that has forgotten it, among thousands that ended later, did not lose it. A node that
        is gone lost it, and another node in its place knows nothing of it. Where this process
        cannot ask (it has no descriptor left, or may not enter the runtime directory any more), a
        node that is alive counts as one that did not lose it.
        """
        try:
            with Base(AF_UNIX, SOCK_STREAM) as aside:
                self.attach(aside, SOCK_STREAM)
                is_same = _pid_of(aside) == _pid_of(sock)
                code = ask(aside, _about(cookie(sock))).errno
        except (NoSwitch, SwitchGone):
            return False
        except OSError:
            return _is_alive(_pid_of(sock))
        return is_same if code == errno.ENOTCONN else code != errno.ECONNRESET

    def _ask(self, request: Request, doing: str) -> Reply:
        """Ask one thing; an errno in the answer is raised."""
        reply = self._reply(request)
        if reply.errno:
            raise transport_error(reply.errno, doing)
        return reply

    def _reply(self, request: Request) -> Reply:
        """Ask one thing."""
        with Base(AF_UNIX, SOCK_STREAM) as sock:
            self.attach(sock, SOCK_STREAM)
            return ask(sock, request)


def _about(cookie: int, *, value: int = 0, buffer: int = 0) -> Request:
    return Request(Op.FLOW, cookie & 0xFFFFFFFF, cookie >> 32, value, buffer)


def _is_alive(pid: int) -> bool:
    """Tell whether there is a process of this number; one that may not be signalled is one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _pid_of(sock: Base) -> int:
    """Return the process at the other end of `sock`: the one that listened, or made the pair."""
    peer = Base.getsockopt(sock, SOL_SOCKET, SO_PEERCRED, 12)
    pid: int = struct.unpack("@iII", peer)[0]
    return pid
