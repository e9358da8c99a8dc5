"""SOCK_DGRAM: `vsock.socket` for single messages, best effort, as VMCI has them (kernel-semantics, 8).

The descriptor receives: each datagram comes from the node with 32 bytes before it that say where it is
from. Sending goes over a second connection, which no user sees, as a question with an answer: so an
unknown destination is an error of the call. A fork gets a second connection of its own.

There is no way between two guests, and none to a Linux guest, whose kernel has no such sockets.
"""

import errno
import os
import select
import socket as _socket
import threading
import time
from collections.abc import Iterable
from typing import Any, Final, cast

from vsock import _endpoint
from vsock._arguments import look_at, look_at_sendto
from vsock._endpoint import MESSAGE_SIZE, Op, Reply, Request
from vsock._green import Base as _Base
from vsock._life import Life
from vsock._note import ATTACHED, State, shut
from vsock._options import AF_VSOCK
from vsock._socket_class import CLASSES, as_address, socket
from vsock.address import CID_ANY, PORT_ANY, Address, as_target
from vsock.errors import SwitchGone, state_error, transport_error

LONGEST_DATAGRAM: Final = 17 * 4096 - 24
"""Bytes in one datagram at most: EMSGSIZE beyond."""

_MSG_TRUNC: Final = _socket.MSG_TRUNC
_REFUSED: Final = _socket.MSG_OOB | 0x2000  # MSG_ERRQUEUE


class DatagramSocket(socket):
    """A socket for datagrams; `vsock.socket(SOCK_DGRAM)` makes these."""

    __module__ = "vsock"
    __slots__ = ("_lock", "_sender")

    def _open(self, kind: int, life: Life) -> None:
        # Connections of this type keep messages whole.
        _Base.__init__(self, _socket.AF_UNIX, _socket.SOCK_SEQPACKET | kind & ~0xF)
        self._adopt_life(life)

    def _adopt_life(self, life: Life) -> None:
        self._life = life
        self._sender: tuple[int, _Base] | None = None
        self._lock = threading.Lock()

    @property
    def type(self) -> Any:
        """SOCK_DGRAM."""
        return _socket.SOCK_DGRAM

    def bind(self, address: Any) -> None:
        """Take the datagram port of `address`, which has nothing to do with those of streams.

        Raises:
            OSError: as for other sockets: EADDRINUSE, EADDRNOTAVAIL, EACCES, EINVAL.
        """
        target = as_target(address)
        self._require_open_file()
        wanted = as_address(target, self._lookup)
        if self._life.ours.port != PORT_ANY:
            raise state_error(errno.EINVAL)
        request = Request(Op.BIND, wanted.cid, wanted.port)
        reply = self._ask(request, f"bind {wanted}")
        self._life.ours = Address(reply.our_cid, reply.our_port)
        self._life.flow = reply.flow

    def connect(self, address: Any) -> None:
        """Make `address` the destination of `send`; datagrams of others are received all the same."""
        theirs = as_address(address, self._lookup)
        self._require_open_file()
        self._bind_if_needed()
        self._life.theirs = theirs
        self._life.note = self._life.note._replace(state=State.CONNECTED)

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        """Stay in this process: its second connection, and what is known of it, are here."""
        raise TypeError(f"cannot pickle {self.__class__.__name__!r} object")

    def getpeername(self) -> Address:
        """Return the destination of `send`; ENOTCONN if there is none."""
        self._require_open_file()
        if self._life.state is not State.CONNECTED:
            raise state_error(errno.ENOTCONN)
        return self._life.theirs

    def listen(self, backlog: int = 128, /) -> None:
        """Refuse: EOPNOTSUPP."""
        raise state_error(errno.EOPNOTSUPP)

    def accept(self) -> tuple[socket, Address]:
        """Refuse: EOPNOTSUPP."""
        raise state_error(errno.EOPNOTSUPP)

    def shutdown(self, how: int, /) -> None:
        """End one direction or both, here only: nobody is told. ENOTCONN unless connected."""
        look_at(_Base.shutdown, how)
        self._require_open_file()
        if how not in (_socket.SHUT_RD, _socket.SHUT_WR, _socket.SHUT_RDWR):
            raise state_error(errno.EINVAL)
        self._life.note = self._life.note.plus(shut(how))
        if self._life.is_attached and how != _socket.SHUT_WR:
            # For poll. The other direction of the descriptor carries no datagrams.
            _Base.shutdown(self, _socket.SHUT_RD)
        if self._life.state is not State.CONNECTED:
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
        look_at_sendto(data, rest)
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
            look_at(_Base.sendmsg, [], ancdata, flags)
        self._require_open_file()
        if flags & _socket.MSG_OOB:
            raise state_error(errno.EOPNOTSUPP)
        if not self._life.sends:
            raise state_error(errno.EPIPE)
        if address is not None:
            to = as_address(address, self._lookup)
        elif self._life.state is State.CONNECTED:
            to = self._life.theirs
        else:
            raise state_error(errno.EINVAL)
        payload = b"".join(buffers)
        if len(payload) > LONGEST_DATAGRAM:
            raise state_error(errno.EMSGSIZE)
        self._bind_if_needed()
        self._deliver(Request(Op.SEND, to.cid, to.port, buffer=self._life.flow), payload, to)
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
            look_at(_Base.recvmsg_into, [], ancbufsize, flags)
        self._require_open_file()
        if flags & _REFUSED:
            raise state_error(errno.EOPNOTSUPP)
        if not self._life.receives:
            return 0, [], 0, None
        self._attach()
        head = bytearray(MESSAGE_SIZE)
        length, _, told, _ = _Base.recvmsg_into(self, [head, *buffers], 0, flags & ~_MSG_TRUNC)
        if length < MESSAGE_SIZE:
            raise SwitchGone(errno.ENODEV, "receiving: the switch went away")
        reply = Reply.decode(bytes(head))
        return length - MESSAGE_SIZE, [], told, Address(reply.their_cid, reply.their_port)

    def getsockopt(self, level: int, optname: int, buflen: int = 0, /) -> Any:
        """Return an option of SOL_SOCKET; there are no others (EOPNOTSUPP)."""
        if level == AF_VSOCK:
            raise state_error(errno.EOPNOTSUPP)
        if (level, optname) == (_socket.SOL_SOCKET, _socket.SO_TYPE):
            kind = int(_socket.SOCK_DGRAM)
            return kind.to_bytes(4, "little")[:buflen] if buflen else kind
        return super().getsockopt(level, optname, buflen)

    def setsockopt(self, level: int, optname: int, value: Any, *optlen: int) -> None:
        """Set an option of SOL_SOCKET; there are no others (EOPNOTSUPP)."""
        if level == AF_VSOCK:
            raise state_error(errno.EOPNOTSUPP)
        super().setsockopt(level, optname, value, *optlen)

    def dup(self) -> "DatagramSocket":
        """Return another descriptor for the same socket."""
        twin = cast("DatagramSocket", DatagramSocket.__new__(DatagramSocket))
        fd = _socket.dup(self.fileno())
        _Base.__init__(twin, _socket.AF_UNIX, _socket.SOCK_SEQPACKET, fileno=fd)
        twin._adopt_life(self._life)
        twin.settimeout(self.gettimeout())
        return twin

    def close(self) -> None:
        """Close the socket; its port is free, and what was not received is gone."""
        with self._lock:
            if self._sender is not None:
                self._sender[1].close()
                self._sender = None
        super().close()

    def _attach(self) -> None:
        life = self._life
        if not life.is_attached and life.transport is not None:
            life.transport.attach(self, _socket.SOCK_DGRAM)
            life.note = life.note.plus(ATTACHED)

    def _bind_if_needed(self) -> None:
        if self._life.ours.port == PORT_ANY:
            self.bind(Address(CID_ANY, PORT_ANY))

    def _deliver(self, request: Request, payload: bytes, to: Address) -> None:
        """Give a datagram to the node and raise what it says."""
        with self._lock:
            sender = self._connected_sender()
            message = request._replace(extra=len(payload)).encode() + payload
            try:
                _Base.send(sender, message)
                deadline = time.monotonic() + _endpoint.ANSWER_TIMEOUT
                if not _endpoint.wait(sender, select.POLLIN, deadline):
                    raise SwitchGone(errno.ENODEV, "sending: the switch does not answer")
                answer = _Base.recv(sender, MESSAGE_SIZE)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
            if not answer:
                raise SwitchGone(errno.ENODEV, "sending: the switch went away")
        reply = Reply.decode(answer)
        if reply.errno:
            raise transport_error(reply.errno, f"send to {to}")

    def _connected_sender(self) -> _Base:
        """Return the connection over which this process sends for this socket."""
        if self._sender is None or self._sender[0] != os.getpid():
            transport = self._life.transport
            assert transport is not None, "datagram sockets are made with a transport"
            sender = _Base(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            try:
                sender.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 2 * LONGEST_DATAGRAM)
                sender.settimeout(None)
                transport.attach(sender, _socket.SOCK_DGRAM)
            except BaseException:
                sender.close()
                raise
            self._sender = (os.getpid(), sender)
        return self._sender[1]


CLASSES[_socket.SOCK_DGRAM] = DatagramSocket
