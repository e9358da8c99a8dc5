"""`DatagramSocket`: SOCK_DGRAM at a node: single messages, best effort, as VMCI has them (kernel-semantics, 8).

The descriptor receives: each datagram comes from the node with 32 bytes before it that say where it
is from. Sending goes over a second connection, which no user sees, as a question with an answer: so
an unknown destination is an error of the call. A fork gets a second connection of its own.

Datagrams go between host programs and userspace guests, and from one userspace guest to another if
the switch's policy lets them connect. There are none to a Linux guest, whose kernel has no such
sockets for virtio.
"""

import errno
import os
import select
import threading
import time
from collections.abc import Iterable
from socket import (
    AF_UNIX,
    MSG_OOB,
    MSG_TRUNC,
    SHUT_RD,
    SHUT_RDWR,
    SHUT_WR,
    SO_ERROR,
    SO_SNDBUF,
    SO_TYPE,
    SOCK_DGRAM,
    SOCK_SEQPACKET,
    SOL_SOCKET,
)
from socket import dup as dup_descriptor
from typing import Any, Final

from vsock import _client
from vsock._client import MESSAGE_SIZE, Node, Op, Reply, Request, checked
from vsock._socket import a_kind, socket, socket_options
from vsock._socket.arguments import check, check_sendto
from vsock._socket.metadata import NO_RECEIVING, NO_SENDING, shut
from vsock._socket.options import AF_VSOCK, CONNECT_TIMEOUT, checked_timeout
from vsock._socket.socket_options import SO_ZEROCOPY
from vsock._socket.state import UNKNOWN
from vsock._system.green import Base, adapted
from vsock._system.waiting import Steps, wait
from vsock.address import CID_ANY, PORT_ANY, Address, NamedAddress, Target, as_target
from vsock.errors import SwitchGone, state_error, transport_error

LONGEST_DATAGRAM: Final = 17 * 4096 - 24
"""Bytes in one datagram at most: EMSGSIZE beyond."""

_REFUSED: Final = MSG_OOB | 0x2000  # MSG_ERRQUEUE


class DatagramState:
    """One datagram socket, whatever number of descriptors it has.

    Attributes:
        node: where the socket lives.
        ours: our address.
        theirs: the destination of `send`; None: there is none.
        number: the socket's number at its node, once it is bound.
        is_attached: whether the descriptor leads to the node.
        shut: which directions are shut down, as flags of `vsock._socket.metadata`.
        connect_timeout: what our user has set; nothing waits for a connection.
        wants_zerocopy: SO_ZEROCOPY, which has no effect.
        sender: the connection over which this process sends.
    """

    __slots__ = (
        *("node", "ours", "theirs", "number", "is_attached", "shut"),
        *("connect_timeout", "wants_zerocopy", "sender"),
    )

    def __init__(self, node: Node) -> None:
        self.node = node
        self.ours = UNKNOWN
        self.theirs: Address | None = None
        self.number = 0
        self.is_attached = False
        self.shut = 0
        self.connect_timeout = CONNECT_TIMEOUT
        self.wants_zerocopy = False
        self.sender = _Sender(node)


class _Sender:
    """The connection over which a process sends for one socket: a question and an answer for each datagram."""

    __slots__ = ("_connection", "_lock", "_node", "_pid")

    def __init__(self, node: Node) -> None:
        self._node = node
        self._connection: Base | None = None
        self._pid = 0
        self._lock = threading.Lock()

    def send(self, request: Request, payload: bytes) -> Reply:
        """Give a datagram to the node and return its answer."""
        with self._lock:
            connection = self._connected()
            message = request._replace(extra=len(payload)).encode() + payload
            try:
                Base.send(connection, message)
                deadline = time.monotonic() + _client.ANSWER_TIMEOUT
                if not wait(connection, select.POLLIN, deadline):
                    raise SwitchGone(errno.ENODEV, "sending: the switch does not answer")
                answer = Base.recv(connection, MESSAGE_SIZE)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
            if not answer:
                raise SwitchGone(errno.ENODEV, "sending: the switch went away")
        return Reply.decode(answer)

    def resolved(self, target: Target) -> Address:
        """Return the CID and port that `target` means at the node."""
        named = checked(target)
        if isinstance(named, Address):
            return named
        with self._lock:
            return _client.resolve(self._connected(), named)

    def close(self) -> None:
        """Close the connection; the next `send` makes another one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connected(self) -> Base:
        """Return the connection, a new one in a forked child: its parent goes on with the old one."""
        if self._connection is None or self._pid != os.getpid():
            connection = Base(AF_UNIX, SOCK_SEQPACKET)
            try:
                connection.setsockopt(SOL_SOCKET, SO_SNDBUF, 2 * LONGEST_DATAGRAM)
                connection.settimeout(None)
                self._node.attach(connection, SOCK_DGRAM)
            except BaseException:
                connection.close()
                raise
            self._connection, self._pid = connection, os.getpid()
        return self._connection


@a_kind
class DatagramSocket(socket):
    """A socket for datagrams; `socket` documents the calls that it has too."""

    __slots__ = ()
    _state: DatagramState

    def _open(self, kind: int, proto: int, node: Node | None) -> None:
        assert node is not None, "sockets for datagrams live at a node"
        # Connections of this type keep messages whole.
        Base.__init__(self, AF_UNIX, SOCK_SEQPACKET | kind & ~0xF)
        self._state = DatagramState(node)

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        """Stay in this process: its second connection, and what is known of it, are here."""
        raise TypeError(f"cannot pickle {self.__class__.__name__!r} object")

    def dup(self) -> "DatagramSocket":
        twin = Base.__new__(adapted(DatagramSocket))
        Base.__init__(twin, AF_UNIX, SOCK_SEQPACKET, fileno=dup_descriptor(self.fileno()))
        twin._state = self._state
        twin.settimeout(self.gettimeout())
        return twin

    def close(self) -> None:
        """Close the socket; its port is free, and what was not received is gone."""
        self._state.sender.close()
        super().close()

    @property
    def type(self) -> Any:
        """SOCK_DGRAM."""
        return SOCK_DGRAM

    @property
    def connect_timeout(self) -> float:
        return self._state.connect_timeout

    @connect_timeout.setter
    def connect_timeout(self, seconds: float) -> None:
        self._state.connect_timeout = checked_timeout(seconds)

    def bind(self, address: Any) -> None:
        """Take the datagram port of `address`, which has nothing to do with those of streams.

        Raises:
            OSError: as for other sockets: EADDRINUSE, EADDRNOTAVAIL, EACCES, EINVAL.
        """
        target = as_target(address)
        self._require_open()
        state, wanted = self._state, checked(target)
        if state.ours.port != PORT_ANY:
            raise state_error(errno.EINVAL)
        self._attach()
        if isinstance(wanted, NamedAddress):
            wanted = _client.resolve(self, wanted)
        reply = _client.ask(self, Request(Op.BIND, wanted.cid, wanted.port))
        if reply.errno:
            raise transport_error(reply.errno, f"bind {wanted}")
        state.ours, state.number = Address(reply.our_cid, reply.our_port), reply.flow

    def connect(self, address: Any) -> None:
        """Make `address` the destination of `send`; datagrams of others are received all the same."""
        target = as_target(address)
        self._require_open()
        theirs = self._state.sender.resolved(target)
        self._bind_if_needed()
        self._state.theirs = theirs

    def _connecting(self, address: Target, timeout: float | None) -> Steps[None]:
        self.connect(address)
        yield from ()

    def finish_connect(self) -> None:
        """Raise EALREADY unless there is a destination: nothing is waited for."""
        if self._state.theirs is None:
            raise state_error(errno.EALREADY)

    def getsockname(self) -> Address:
        self._require_open()
        return self._state.ours

    def getpeername(self) -> Address:
        """Return the destination of `send`; ENOTCONN if there is none."""
        self._require_open()
        if self._state.theirs is None:
            raise state_error(errno.ENOTCONN)
        return self._state.theirs

    def shutdown(self, how: int, /) -> None:
        """End one direction or both, here only: nobody is told. ENOTCONN unless connected."""
        check(Base.shutdown, how)
        self._require_open()
        if how not in (SHUT_RD, SHUT_WR, SHUT_RDWR):
            raise state_error(errno.EINVAL)
        state = self._state
        state.shut |= shut(how)
        if state.is_attached and how != SHUT_WR:
            # For poll. The other direction of the descriptor carries no datagrams.
            Base.shutdown(self, SHUT_RD)
        if state.theirs is None:
            raise state_error(errno.ENOTCONN)

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Send a datagram to where the socket is connected to."""
        return self.sendmsg([data], (), flags)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Do what `send` does."""
        self.sendmsg([data], (), flags)

    def sendto(self, data: Any, *rest: Any) -> int:
        """Send a datagram to an address; it may get lost, and nobody will say so.

        Raises:
            OSError: EHOSTUNREACH (nobody receives there on this node, or no datagrams reach that
                guest), EMSGSIZE (longer than 69608 bytes), EINVAL (no destination), EPIPE (shut
                down).
        """
        check_sendto(data, rest)
        flags = rest[0] if len(rest) > 1 else 0
        return self.sendmsg([data], (), flags, as_target(rest[-1]))

    def sendmsg(
        self,
        buffers: Iterable[Any],
        ancdata: Iterable[tuple[int, int, Any]] = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        """Send several buffers as one datagram."""
        if ancdata != ():
            check(Base.sendmsg, [], ancdata, flags)
        self._require_open()
        state = self._state
        if flags & MSG_OOB:
            raise state_error(errno.EOPNOTSUPP)
        if state.shut & NO_SENDING:
            raise state_error(errno.EPIPE)
        to = state.theirs if address is None else state.sender.resolved(as_target(address))
        if to is None:
            raise state_error(errno.EINVAL)
        payload = b"".join(buffers)
        if len(payload) > LONGEST_DATAGRAM:
            raise state_error(errno.EMSGSIZE)
        self._bind_if_needed()
        reply = state.sender.send(Request(Op.SEND, to.cid, to.port, buffer=state.number), payload)
        if reply.errno:
            raise transport_error(reply.errno, f"send to {to}")
        return len(payload)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive a datagram, cut to `bufsize` bytes."""
        return self.recvfrom(bufsize, flags)[0]

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive a datagram into `buffer`, cut to its length."""
        return self.recvfrom_into(buffer, nbytes, flags)[0]

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """Receive a datagram and the address that it comes from."""
        data, _, _, address = self.recvmsg(bufsize, 0, flags)
        return data, address

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """Receive a datagram into `buffer`, and the address that it comes from."""
        view = memoryview(buffer).cast("B")
        length, _, _, address = self.recvmsg_into([view[: nbytes or len(view)]], 0, flags)
        return length, address

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[Any], int, Any]:
        """Receive a datagram, flags (MSG_TRUNC: it was cut) and its sender's address."""
        buffer = bytearray(bufsize)
        length, ancillary, flags, address = self.recvmsg_into([buffer], ancbufsize, flags)
        return bytes(buffer[:length]), ancillary, flags, address

    def recvmsg_into(
        self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        """Receive like `recvmsg`, into several buffers one after the other."""
        if ancbufsize:
            check(Base.recvmsg_into, [], ancbufsize, flags)
        self._require_open()
        if flags & _REFUSED:
            raise state_error(errno.EOPNOTSUPP)
        if self._state.shut & NO_RECEIVING:
            return 0, [], 0, None
        self._attach()
        head = bytearray(MESSAGE_SIZE)
        length, _, told, _ = Base.recvmsg_into(self, [head, *buffers], 0, flags & ~MSG_TRUNC)
        if length < MESSAGE_SIZE:
            raise SwitchGone(errno.ENODEV, "receiving: the switch went away")
        reply = Reply.decode(bytes(head))
        return length - MESSAGE_SIZE, [], told, Address(reply.their_cid, reply.their_port)

    def getsockopt(self, level: int, optname: int, buflen: int = 0, /) -> Any:
        """Return an option of SOL_SOCKET; there are no others (EOPNOTSUPP)."""
        if level == AF_VSOCK:
            raise state_error(errno.EOPNOTSUPP)
        self._require_open()
        socket_options.check_level(level, optname)
        if optname == SO_TYPE:
            return socket_options.as_asked(SOCK_DGRAM, buflen)
        if optname == SO_ERROR:
            return socket_options.as_asked(0, buflen)
        if optname == SO_ZEROCOPY:
            return socket_options.as_asked(int(self._state.wants_zerocopy), buflen)
        return socket_options.get_common(self, optname, buflen)

    def setsockopt(self, level: int, optname: int, value: Any, *optlen: int) -> None:
        """Set an option of SOL_SOCKET; there are no others (EOPNOTSUPP)."""
        if level == AF_VSOCK:
            raise state_error(errno.EOPNOTSUPP)
        check(Base.setsockopt, level, optname, 0)
        self._require_open()
        socket_options.check_level(level, optname)
        if optname == SO_ZEROCOPY:
            self._state.wants_zerocopy = socket_options.as_flag(value)
        else:
            socket_options.set_common(self, optname, value, *optlen)

    def _require_open(self) -> None:
        if self.fileno() < 0:
            raise state_error(errno.EBADF)

    def _attach(self) -> None:
        state = self._state
        if not state.is_attached:
            state.node.attach(self, SOCK_DGRAM)
            state.is_attached = True

    def _bind_if_needed(self) -> None:
        if self._state.ours.port == PORT_ANY:
            self.bind(Address(CID_ANY, PORT_ANY))
