"""The class `socket`: the life of an AF_VSOCK socket around a real file descriptor.

The descriptor is a Unix socket to the switch (or to a userspace guest's node) that becomes the
connection itself once CONNECT has succeeded. So it works with select, asyncio, ssl, subprocess,
sendfile and everything else that takes a socket, and Python is never on the byte path. What this
module adds is the order in which vsock(7) and the kernel let things happen::

    FRESH ──bind──▶ BOUND ──listen──▶ LISTENING
      └───connect─────┴──▶ CONNECTING ──verdict──▶ CONNECTED ──shutdown──▶ SHUT_DOWN

A refused or timed out connect leads back to FRESH or BOUND. Non-blocking connects need the
descriptor to become writable only with the verdict: the request is sent with padding that fills a
send buffer made small for the moment, and the node takes the padding off only after it has
answered.

``family`` is AF_UNIX and not AF_VSOCK: ssl, uvloop and others choose by it which system calls to
make on the descriptor, and those must fit what it is. This module is not for choosing a transport
(`vsock.transports`) nor for messages (`vsock._endpoint`).
"""

import errno
import functools
import socket as _socket
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final, overload

from vsock import _endpoint
from vsock._endpoint import Op, Reply, Request
from vsock.address import CID_ANY, PORT_ANY, Address, NamedAddress, as_target
from vsock.errors import AddressError, UsageError, state_error, transport_error
from vsock.transports import KernelTransport, SwitchTransport, Transport, choose

SOCK_STREAM: Final = _socket.SOCK_STREAM
SOCK_SEQPACKET: Final = _socket.SOCK_SEQPACKET

CONNECT_TIMEOUT: Final = 2.0
"""Seconds that a connect waits for an answer unless told otherwise, as in the kernel."""

_LONGEST_BACKLOG: Final = 4096
_UNKNOWN: Final = Address(CID_ANY, PORT_ANY)
_Base = _socket.socket


class _State(Enum):
    FRESH = auto()
    BOUND = auto()
    LISTENING = auto()
    CONNECTING = auto()
    CONNECTED = auto()
    SHUT_DOWN = auto()


_HAS_STREAM: Final = (_State.CONNECTED, _State.SHUT_DOWN)


class socket(_Base):  # noqa: N801 - it stands in for socket.socket and is spelled like it
    """A VSOCK socket over the switch; use it as a `socket.socket` of family AF_VSOCK.

    Addresses are pairs ``(cid, port)``, `Address` values or text such as ``"web:80"``. Errors are
    ``OSError``s with the errno that AF_VSOCK would give. No connection is made before the first
    `bind` or `connect`.

    Args:
        type: `SOCK_STREAM` or `SOCK_SEQPACKET`; SOCK_NONBLOCK and SOCK_CLOEXEC may be or'ed in.
        proto: 0, or 40 (AF_VSOCK).
        transport: where it lives: a name (``"switch"``), or `Guest.transport`. By default what
            ``VSOCK_TRANSPORT`` says, else the switch.

    Attributes:
        connect_timeout: seconds that `connect` gives the other side to answer, before it says
            ``ETIMEDOUT``. This is not `settimeout`, which bounds how long Python waits.
    """

    __module__ = "vsock"  # where users find it, and what tracebacks and reprs should say
    __slots__ = (
        "_error",
        "_is_attached",
        "_ours",
        "_send_buffer",
        "_state",
        "_theirs",
        "_transport",
        "connect_timeout",
    )

    def __init__(
        self,
        type: int = SOCK_STREAM,  # noqa: A002 - the name that socket.socket gives it
        proto: int = 0,
        *,
        transport: Transport | str | None = None,
    ) -> None:
        where = choose(transport)
        if isinstance(where, KernelTransport):
            raise UsageError(
                "vsock.socket lives in a switch; for the kernel's own use socket.socket(AF_VSOCK), "
                "or create_connection and create_server, which take either"
            )
        if proto not in (0, 40):
            raise state_error(errno.EPROTONOSUPPORT)
        if type & 0xF not in (SOCK_STREAM, SOCK_SEQPACKET):
            raise state_error(
                errno.ENODEV if type & 0xF == _socket.SOCK_DGRAM else errno.ESOCKTNOSUPPORT
            )
        super().__init__(_socket.AF_UNIX, type)
        self._begin(where, _State.FRESH)

    @classmethod
    def adopt(cls, fd: int, kind: int, ours: Address, theirs: Address) -> "socket":
        """Make a connected socket of the descriptor `fd`, which the socket then owns.

        For the code that made the connection in another way: `accept` and the hybrid handshake.
        """
        made = cls.__new__(cls)
        _Base.__init__(made, _socket.AF_UNIX, kind, fileno=fd)
        made._begin(None, _State.CONNECTED, ours, theirs)
        # The sender's O_NONBLOCK came along with the descriptor; ours is what Python's default
        # says.
        made.settimeout(_socket.getdefaulttimeout())
        return made

    def _begin(
        self,
        transport: SwitchTransport | None,
        state: _State,
        ours: Address = _UNKNOWN,
        theirs: Address = _UNKNOWN,
    ) -> None:
        self.connect_timeout = CONNECT_TIMEOUT
        self._transport = transport
        self._state = state
        self._ours = ours
        self._theirs = theirs
        self._is_attached = False
        self._send_buffer = 0  # of the descriptor; not 0 while it is made small for a connect
        self._error: OSError | None = None  # of a connect, until somebody asks about it

    def bind(self, address: Any) -> None:
        """Take the port of `address`, or any free one for `PORT_ANY`; only once in a socket's life.

        Raises:
            OSError: EADDRINUSE, EADDRNOTAVAIL (the CID is not ours), EACCES (a port below 1024),
                EINVAL (bound already).
            NoSwitch: there is no switch to bind at.
        """
        wanted = _as_address(address, self._lookup)
        if self._state is not _State.FRESH:
            raise state_error(errno.EINVAL)
        reply = self._ask(Request(Op.BIND, wanted.cid, wanted.port), f"bind {wanted}")
        self._ours = Address(reply.our_cid, reply.our_port)
        self._state = _State.BOUND

    def listen(self, backlog: int = 128, /) -> None:
        """Accept connections to the bound port; `backlog` + 1 of them wait for `accept`.

        Calling it again changes the backlog. Raises ``EINVAL`` unless the socket is bound.
        """
        if not 0 <= backlog <= _LONGEST_BACKLOG:
            backlog = _LONGEST_BACKLOG
        self._require_open_file()
        request = Request(Op.LISTEN, value=backlog)
        if self._state is _State.LISTENING:
            # No reply is due here: it could not be told from the ACCEPTs that wait before it.
            _endpoint.send(self, request)
            return
        if self._state is not _State.BOUND:
            raise state_error(errno.EINVAL)
        self._ask(request, f"listen on {self._ours}")
        self._state = _State.LISTENING

    def accept(self) -> tuple["socket", Address]:
        """Wait for a connection: a new socket, blocking by default, and the other side's address.

        Raises:
            OSError: EINVAL if the socket does not listen; `BlockingIOError` or `TimeoutError` if
                none came; EMFILE.
            SwitchGone: the switch went away, and with it everything that could ever come.
        """
        self._require_open_file()
        if self._state is not _State.LISTENING:
            raise state_error(errno.EINVAL)
        reply, fd = _endpoint.receive_accepted(self)
        theirs = Address(reply.their_cid, reply.their_port)
        ours = Address(reply.our_cid, reply.our_port)
        return socket.adopt(fd, self.type, ours, theirs), theirs

    def connect(self, address: Any) -> None:
        """Connect to `address`; without waiting (``BlockingIOError``, EINPROGRESS) if non-blocking.

        Raises:
            ConnectRefused: ECONNRESET: nobody listens there.
            ConnectTimeout: ETIMEDOUT: no answer within `connect_timeout`.
            NoSuchGuest: ENODEV: nothing has this CID or name.
            OSError: EISCONN, EALREADY, EINVAL (it listens, or was shut down).
        """
        self._require_open_file()
        self._settle()
        if self._state is _State.CONNECTED:
            raise state_error(errno.EISCONN)
        if self._state in (_State.LISTENING, _State.SHUT_DOWN):
            raise state_error(errno.EINVAL)
        self._raise_pending_error()
        if self._state is not _State.CONNECTING:
            self._request_connect(_as_address(address, self._lookup))
        elif self.gettimeout() == 0:
            raise state_error(errno.EALREADY)
        if self.gettimeout() == 0:
            raise state_error(errno.EINPROGRESS)
        self._await_verdict()

    def finish_connect(self) -> None:
        """Take the verdict of a non-blocking connect, after the socket became writable.

        This is ``getsockopt(SOL_SOCKET, SO_ERROR)`` with the exception that `connect` would have
        raised.
        Raises ``EALREADY`` if there is no verdict yet.
        """
        self._settle()
        self._raise_pending_error()
        if self._state is not _State.CONNECTED:
            raise state_error(errno.EALREADY)

    def connect_ex(self, address: Any) -> int:
        """Connect like `connect`, but return the errno instead of raising, 0 for success."""
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or errno.EAGAIN
        return 0

    def getsockname(self) -> Address:
        """Return our address: ``(any, any)`` at first; the CID stays ``any`` unless bound to one."""
        self._require_open_file()
        self._settle()
        return self._ours

    def getpeername(self) -> Address:
        """Return the other side's address; ENOTCONN unless connected, and after `shutdown`."""
        self._require_open_file()
        self._settle()
        if self._state is not _State.CONNECTED:
            raise state_error(errno.ENOTCONN)
        return self._theirs

    def shutdown(self, how: int, /) -> None:
        """End one direction or both: ``SHUT_RD``, ``SHUT_WR``, ``SHUT_RDWR``."""
        self._require_open_file()
        self._settle()
        if self._state not in _HAS_STREAM:
            raise state_error(errno.ENOTCONN)
        super().shutdown(how)
        self._state = _State.SHUT_DOWN

    @overload
    def getsockopt(self, level: int, optname: int, /) -> int: ...
    @overload
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...
    def getsockopt(self, level: int, optname: int, buflen: int = 0, /) -> int | bytes:
        """Return an option; ``SO_ERROR`` tells (once) how a non-blocking connect ended."""
        value: int | None = None
        if level == _socket.SOL_SOCKET and optname == _socket.SO_ERROR:
            self._settle()
            if self._state not in _HAS_STREAM:
                value = (self._error.errno or 0) if self._error else 0
                self._error = None
        elif level == _socket.SOL_SOCKET and optname == _socket.SO_ACCEPTCONN:
            value = int(self._state is _State.LISTENING)
        if value is None:
            return super().getsockopt(level, optname, buflen)
        return value.to_bytes(4, "little")[:buflen] if buflen else value

    def dup(self) -> "socket":
        """Return another socket for the same connection or listener; not while connecting."""
        self._settle()
        if self._state is _State.CONNECTING:
            raise state_error(errno.EALREADY)
        twin = socket.adopt(_socket.dup(self.fileno()), self.type, self._ours, self._theirs)
        twin._transport, twin._state = self._transport, self._state
        twin._is_attached, twin.connect_timeout = self._is_attached, self.connect_timeout
        twin.settimeout(self.gettimeout())
        return twin

    def detach(self) -> int:
        """Give up the descriptor without closing it, and return it."""
        self._settle()
        return super().detach()

    def _lookup(self, name: str) -> int:
        """Ask the switch, over a connection of its own, for the CID of a guest."""
        assert self._transport is not None, "only sockets that are not connected look names up"
        return self._transport.resolve(name)

    def _ask(self, request: Request, doing: str) -> Reply:
        self._attach()
        reply = _endpoint.ask(self, request)
        if reply.errno:
            raise transport_error(reply.errno, doing)
        return reply

    def _attach(self) -> None:
        self._require_open_file()
        if not self._is_attached and self._transport is not None:
            self._transport.attach(self, self.type)
            self._is_attached = True

    def _request_connect(self, theirs: Address) -> None:
        self._attach()
        padding, flags = b"", 0
        if self.gettimeout() == 0:
            self._send_buffer = super().getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF)
            self.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 1)
            padding, flags = bytes(_endpoint.PADDING), _endpoint.HELD
        milliseconds = max(1, min(round(self.connect_timeout * 1000), 0xFFFFFFFF))
        request = Request(Op.CONNECT, theirs.cid, theirs.port, value=milliseconds, flags=flags)
        self._theirs = theirs
        self._state = _State.CONNECTING
        try:
            _endpoint.send(self, request, padding)
        except OSError:
            self._end_attempt(_State.FRESH if self._ours.port == PORT_ANY else _State.BOUND)
            raise

    def _await_verdict(self) -> None:
        """Wait for the verdict of a connect as a blocking socket does, and raise if it is bad."""
        allowed = self.connect_timeout + _endpoint.ANSWER_TIMEOUT
        timeout = self.gettimeout()
        self._settle(allowed if timeout is None else min(allowed, timeout))
        if self._state is _State.CONNECTED:
            return
        self._raise_pending_error()
        if timeout is not None and timeout < allowed:
            raise TimeoutError("timed out")
        raise transport_error(errno.ETIMEDOUT, f"connect to {self._theirs}")

    def _settle(self, seconds: float = 0) -> None:
        """If a connect is under way, take its verdict if that comes within `seconds`."""
        if self._state is not _State.CONNECTING or self.fileno() < 0:
            return
        try:
            reply = _endpoint.receive(self, Op.CONNECT, time.monotonic() + seconds)
            if reply is None:
                return
            if reply.errno:
                raise transport_error(reply.errno, f"connect to {self._theirs}")
        except OSError as error:
            self._end_attempt(_State.FRESH if self._ours.port == PORT_ANY else _State.BOUND)
            self._error = error
            return
        # As in the kernel, the CID of a client that did not bind to one stays the wildcard.
        cid = CID_ANY if self._ours.cid == CID_ANY else reply.our_cid
        self._ours = Address(cid, reply.our_port)
        self._end_attempt(_State.CONNECTED)

    def _end_attempt(self, state: _State) -> None:
        self._state = state
        if self._send_buffer:
            # The kernel doubles what it is told.
            self.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, self._send_buffer // 2)
            self._send_buffer = 0

    def _raise_pending_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _require_open_file(self) -> None:
        if self.fileno() < 0:
            raise state_error(errno.EBADF)

    def _require_stream(self) -> None:
        self._require_open_file()
        self._settle()
        if self._state not in _HAS_STREAM:
            raise state_error(errno.ENOTCONN)


def _as_address(address: Any, lookup: Callable[[str], int]) -> Address:
    """Return the CID and port that `address` means to the socket whose `lookup` knows names."""
    target = as_target(address)
    if isinstance(target, NamedAddress):
        return Address(lookup(target.name), target.port)
    if not isinstance(target, Address):
        raise AddressError(f"{target}: only create_connection and create_server take this form")
    return target


def _with_stream(name: str) -> Callable[..., Any]:
    """Return the base class's method `name`, but ENOTCONN while there is no stream.

    Before that the descriptor leads to the switch itself, which must never take data for a
    request, nor the user a reply for data.
    """
    method = getattr(_Base, name)

    @functools.wraps(method)
    def checked(self: socket, *args: Any, **kwargs: Any) -> Any:
        if self._state not in _HAS_STREAM:
            self._require_stream()
        return method(self, *args, **kwargs)

    return checked


for _name in (
    *("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"),
    *("send", "sendall", "sendfile", "sendmsg", "sendto"),
):
    # Not written out one by one: so they keep the signatures that type checkers know from the base
    # class.
    setattr(socket, _name, _with_stream(_name))
