"""The class `socket`: the life of an AF_VSOCK socket around a real file descriptor.

The descriptor is a Unix socket to the switch (or to a userspace guest's node) that becomes the
connection itself once CONNECT has succeeded. So it works with select, asyncio, ssl, subprocess,
sendfile and everything else that takes a socket, and Python is never on the byte path. What this
module adds is the order in which vsock(7) and the kernel let things happen::

    FRESH ──bind──▶ BOUND ──listen──▶ LISTENING
      └───connect─────┴──▶ CONNECTING ──verdict──▶ CONNECTED ──shutdown──▶ SHUT_DOWN

A refused or timed out connect leads back to FRESH or BOUND. The descriptor becomes writable only with
the outcome: the request is sent with padding that fills a send buffer made small for the moment, and
the node takes it off when it knows the outcome. Where that is a connection it says nothing else, so
there is nothing that two threads, or two processes with the same socket, could both take.

Where a socket stands is kept in the socket (`vsock._note`), as it may have other holders.

``family`` is AF_UNIX and not AF_VSOCK: ssl, uvloop and others choose by it which system calls to
make on the descriptor, and those must fit what it is. This module is not for choosing a transport
(`vsock.transports`), nor for messages to the switch (`vsock._endpoint`); the data calls are in
`vsock._data_calls`, the options in `vsock._option_calls`.
"""

import contextlib
import errno
import math
import socket as _socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from vsock import _endpoint, _note, _passing
from vsock._accepting import receive_accepted
from vsock._arguments import look_at
from vsock._connecting import Connecting
from vsock._data_calls import SOCK_SEQPACKET, SOCK_STREAM
from vsock._endpoint import Op, Reply, Request
from vsock._green import Base as _Base
from vsock._green import adapted, plain_poll
from vsock._life import UNKNOWN, Life
from vsock._note import ATTACHED, END_TOLD, MESSAGES, STREAM, Note, State
from vsock._options import CONNECT_TIMEOUT, VsockOptions
from vsock.address import CID_ANY, CID_LOCAL, PORT_ANY, Address, NamedAddress, as_target
from vsock.errors import AddressError, UsageError, state_error, transport_error
from vsock.transports import KernelTransport, SwitchTransport, Transport, choose

if TYPE_CHECKING:
    import builtins

__all__ = ["CONNECT_TIMEOUT", "SOCK_SEQPACKET", "SOCK_STREAM", "socket"]

_LARGEST_TYPE: Final = 10
"""The largest number that a socket type has (SOCK_PACKET)."""
_LONGEST_BACKLOG: Final = 4096
_LONGEST_MESSAGE: Final = 1 << 24
"""Send buffer asked for on message sockets; the kernel gives what its settings allow."""
CLASSES: Final[dict[int, Any]] = {}
"""Classes of sockets that are made instead of `socket`, by type; they add themselves."""


class socket(Connecting):  # noqa: N801 - it stands in for socket.socket and is spelled like it
    """A VSOCK socket over the switch; use it as a `socket.socket` of family AF_VSOCK.

    Addresses are pairs ``(cid, port)``, `Address` values or text such as ``"web:80"``. Errors are
    ``OSError``s with the errno that AF_VSOCK would give. No connection is made before the first
    `bind` or `connect`.

    The rules are those of vsock(7) and of net/vmw_vsock/af_vsock.c in Linux; each method names its function there.
    docs/reference has all errors, options and differences.

    With the transport ``"kernel"`` this makes a socket of the kernel's own AF_VSOCK instead, which is no
    instance of this class, has the same methods, and whose descriptor is the kernel's.

    Args:
        type: `SOCK_STREAM`, `SOCK_SEQPACKET` or ``SOCK_DGRAM``; SOCK_NONBLOCK and SOCK_CLOEXEC may be or'ed in.
        proto: 0, or 40 (AF_VSOCK).
        transport: where it lives: a name (``"switch"``, ``"kernel"``), `Guest.transport` or
            `Switch.transport`. By default what ``VSOCK_TRANSPORT`` says, else the switch.

    Raises:
        OSError: EPROTONOSUPPORT (`proto`), ESOCKTNOSUPPORT or EINVAL (`type`), EMFILE (`vsock_create`).
        UsageError: there is no such transport.
    """

    __module__ = "vsock"  # where users find it, and what tracebacks and reprs should say
    __slots__ = ()

    def __new__(
        cls,
        type: int = SOCK_STREAM,  # noqa: A002 - as in __init__
        proto: int = 0,
        *,
        transport: Transport | str | None = None,
    ) -> "socket":
        """Make a socket of the class for its transport and type: datagrams have one of their own."""
        if not isinstance(type, int):
            raise TypeError(f"a socket's type is an integer, not {type!r}")
        if cls is not socket:
            return super().__new__(adapted(cls))
        where = choose(transport)
        if isinstance(where, KernelTransport):
            # Of another class, so that Python calls no __init__ of ours.
            return cast("socket", where.make(type, proto))
        chosen: builtins.type[socket] = CLASSES.get(type & 0xF, socket)
        return super().__new__(adapted(chosen))

    def __init__(
        self,
        type: int = SOCK_STREAM,  # noqa: A002 - the name that socket.socket gives it
        proto: int = 0,
        *,
        transport: Transport | str | None = None,
    ) -> None:
        """Make the descriptor; the arguments are the class's."""
        where = choose(transport)
        if isinstance(where, KernelTransport):
            raise UsageError(
                f"{self.__class__.__name__} is a class for sockets of a switch; "
                "for the kernel's own call vsock.socket itself"
            )
        if type & 0xF > _LARGEST_TYPE:
            raise state_error(errno.EINVAL)
        if proto not in (0, 40):
            raise state_error(errno.EPROTONOSUPPORT)
        if type & 0xF not in (SOCK_STREAM, SOCK_SEQPACKET, _socket.SOCK_DGRAM):
            raise state_error(errno.ESOCKTNOSUPPORT)
        self._open(type, Life(Note(), where))

    def _open(self, kind: int, life: Life) -> None:
        """Make the descriptor."""
        _Base.__init__(self, _socket.AF_UNIX, kind)
        self._life = life
        if self.type == SOCK_SEQPACKET:
            # A message must fit the send buffer as a whole.
            _Base.setsockopt(self, _socket.SOL_SOCKET, _socket.SO_SNDBUF, _LONGEST_MESSAGE)
            self._put(life.note.plus(MESSAGES))
        else:
            self._put(life.note)

    @classmethod
    def adopt(cls, fd: int, kind: int, life: Life) -> "socket":
        """Make a socket of the descriptor `fd`, which the socket then owns.

        For the code that got it in another way: `accept`, `from_fd` and the hybrid handshake. Whether it blocks
        is left as it is, since others may hold it too.
        """
        made = _Base.__new__(adapted(cls))
        _Base.__init__(made, _socket.AF_UNIX, kind, fileno=fd)
        made._life = life
        return made

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        """Go to another process, if it is `multiprocessing` that takes it there; TypeError otherwise."""
        if _passing.is_passed_on():
            return _passing.reduce(self, socket.adopt_noted)
        return super().__reduce_ex__(protocol)

    @classmethod
    def from_fd(cls, fd: int, *, transport: Transport | str | None = None) -> "socket":
        """Make a socket of a descriptor that was passed on: inherited, received, or detached in this process.

        A connection has its addresses, a listener can accept, an attempt to connect goes on. The socket owns `fd`
        then, as with ``socket.socket(fileno=fd)``; it may come from a program under ``vsock run`` too.

        Args:
            fd: the descriptor of a `vsock.socket` of type `SOCK_STREAM` or `SOCK_SEQPACKET`; with the transport
                ``"kernel"``, of an AF_VSOCK socket of the kernel.
            transport: where it lives, as for `socket`.

        Raises:
            UsageError: it is no such socket; `fd` stays open.
            OSError: EBADF.
        """
        where = choose(transport)
        if isinstance(where, KernelTransport):
            return cast("socket", where.from_fd(fd))
        return cls.adopt_noted(fd, where)

    @classmethod
    def adopt_noted(cls, fd: int, transport: SwitchTransport | None) -> "socket":
        """Make a socket of the descriptor `fd`, which has a note, and lives at `transport`, if anywhere."""
        probe = _Base(fileno=fd)
        kind = probe.type
        note = _note.read(probe) if probe.family == _socket.AF_UNIX else None
        if note is None:
            probe.detach()
            raise UsageError(f"descriptor {fd} is no VSOCK socket of a switch")
        life = Life(note, transport)
        life.ours = _note.name(probe) or UNKNOWN
        life.theirs = Address(note.number, _note.read_port(probe))
        life.options = _note.read_options(probe, note)
        life.peer_buffer = 1 << note.code if note.has_stream and note.code else 0
        if life.has_low_water:
            life.low_water = probe.getsockopt(_socket.SOL_SOCKET, _socket.SO_RCVLOWAT)
        return cls.adopt(probe.detach(), kind, life)

    @classmethod
    def adopt_connection(
        cls,
        fd: int,
        kind: int,
        life: Life,
        *,
        ours: Address,
        theirs: Address,
        peer_buffer: int = 0,
    ) -> "socket":
        """Make a socket of the descriptor `fd`, which is a connection of type `kind` without a note.

        For `accept` and the hybrid handshake: from `ours` to `theirs`, whose receive buffer has
        `peer_buffer` bytes (0: not known). `life` has the transport and the options.
        """
        made = cls.adopt(fd, kind, life)
        # The sender's O_NONBLOCK came along with the descriptor; ours is what Python's default
        # says.
        made.settimeout(_socket.getdefaulttimeout())
        life.ours, life.theirs, life.peer_buffer = ours, theirs, peer_buffer
        if ours.port != PORT_ANY:
            _note.give_name(made, ours)
        _note.write_port(made, theirs.port)
        flags = STREAM | (MESSAGES if kind == SOCK_SEQPACKET else 0)
        code = max(0, peer_buffer.bit_length() - 1)
        life.note = Note(State.CONNECTED, flags, code, theirs.cid)
        made._keep_options(announce=False)
        return made

    @property
    def connect_timeout(self) -> float:
        """Seconds that `connect` gives the other side to answer, before it says ``ETIMEDOUT``.

        This is SO_VM_SOCKETS_CONNECT_TIMEOUT, 2.0 unless set, and not `settimeout`, which bounds how
        long Python waits. Setting it to what is no time raises `UsageError`.
        """
        return self._life.options.connect_timeout

    @connect_timeout.setter
    def connect_timeout(self, seconds: float) -> None:
        if not 0 <= seconds < math.inf:
            raise UsageError(f"a connect timeout is a number of seconds, not {seconds!r}")
        self._look()
        self._life.options.connect_timeout = seconds
        self._keep_options(announce=False)

    def bind(self, address: Any) -> None:
        """Take the port of `address`, or any free one for `PORT_ANY`; only once in a socket's life.

        The CID is `CID_ANY`, `CID_LOCAL` or our own. A free one is never below 1024 (`__vsock_bind`).

        Raises:
            AccessDenied: EACCES: a port below 1024, without root or CAP_NET_BIND_SERVICE.
            OSError: EADDRINUSE (taken, by a socket of either type), EADDRNOTAVAIL (the CID is not ours),
                EINVAL (bound already).
            NoSwitch: there is no switch to bind at.
            AddressError: `address` is none.
        """
        target = as_target(address)
        self._require_open_file()
        wanted = as_address(target, self._lookup)
        life = self._life
        self._settle()
        if life.state is not State.FRESH:
            raise state_error(errno.EINVAL)
        reply = self._ask(Request(Op.BIND, wanted.cid, wanted.port), f"bind {wanted}")
        self._take_port(reply)
        self._put(life.note._replace(state=State.BOUND))

    def listen(self, backlog: int = 128, /) -> None:
        """Accept connections to the bound port; `backlog` + 1 of them wait for `accept`.

        A negative backlog means 0, as for every socket of Python's. Calling it again changes the
        backlog. Who finds it full is refused (`vsock_listen`).

        Raises:
            OSError: EINVAL unless the socket is bound, and only that.
        """
        look_at(_Base.listen, backlog)
        backlog = min(max(backlog, 0), _LONGEST_BACKLOG)
        self._require_open_file()
        life = self._life
        self._settle()
        if life.state not in (State.LISTENING, State.BOUND):
            raise state_error(errno.EINVAL)
        self._put(life.note._replace(number=backlog))
        if life.state is State.LISTENING:
            self._announce_options()
            return
        self._ask(self._listen_request(), f"listen on {life.ours}", life.options.encode())
        self._put(life.note._replace(state=State.LISTENING))

    def accept(self) -> tuple["socket", Address]:
        """Wait for a connection: a new socket, blocking by default, and the other side's address.

        Raises:
            OSError: EINVAL if the socket does not listen; `BlockingIOError` or `TimeoutError` if
                none came; EMFILE or ENFILE: no descriptor is left, and the connection waits on (`vsock_accept`).
            SwitchGone: the switch went away. That is said once; afterwards the socket is as one that
                nobody connects to, since the loops of servers know no listener that ends.
        """
        self._require_open_file()
        life = self._life
        if life.state is not State.LISTENING and self._look().state is not State.LISTENING:
            raise state_error(errno.EINVAL)
        reply, inherited, fd = receive_accepted(self)
        ours = Address(reply.our_cid, reply.our_port)
        theirs = Address(reply.their_cid, reply.their_port)
        child = Life(Note(), life.transport)
        child.options = VsockOptions.decode(inherited)
        accepted = socket.adopt_connection(
            fd, self.type, child, ours=ours, theirs=theirs, peer_buffer=reply.peer_buf_alloc
        )
        return accepted, theirs

    def connect(self, address: Any) -> None:
        """Connect to `address`; without waiting (``BlockingIOError``, EINPROGRESS) if non-blocking.

        The socket is bound to a free port if it was not bound. What happens after `connect_timeout`,
        and to a non-blocking connect, is as in `vsock_connect`.

        Raises:
            ConnectRefused: ECONNRESET: nobody listens there.
            ConnectTimeout: ETIMEDOUT: no answer within `connect_timeout`.
            NoSuchGuest: ENODEV: nothing has this CID or name.
            OSError: EISCONN, EALREADY, EINVAL (it listens, or was shut down).
        """
        target = as_target(address)
        self._require_open_file()
        self._settle()
        state = self._life.state
        if state is State.CONNECTED:
            raise state_error(errno.EISCONN)
        if state in (State.LISTENING, State.SHUT_DOWN):
            raise state_error(errno.EINVAL)
        if self._life.note.error == errno.ETIMEDOUT:
            # A new attempt begins, whether the last one was asked about.
            self._put(self._life.note._replace(code=0))
        self._raise_pending_error()
        if state is not State.CONNECTING:
            theirs = as_address(target, self._lookup)
            if self._life.wants_zerocopy:
                raise state_error(errno.EOPNOTSUPP)
            self._request_connect(theirs)
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
        if self._life.state is not State.CONNECTED:
            raise state_error(errno.EALREADY)

    def connect_ex(self, address: Any) -> int:
        """Connect like `connect`, but return the errno instead of raising, 0 for success."""
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or errno.EAGAIN
        return 0

    def getsockname(self) -> Address:
        """Return our address: ``(any, any)`` at first; the CID stays ``any`` unless bound to one.

        An accepted socket has the CID that was connected to (`vsock_getname`).
        """
        self._require_open_file()
        self._settle()
        life = self._life
        if life.ours.port == PORT_ANY:
            life.ours = _note.name(self) or self._ask_for_name()
        # A connection that was made here and leads back here has become one of CID 1, whatever it was bound to.
        is_bound_to_one = life.note.flags & ATTACHED and life.ours.cid != CID_ANY
        if is_bound_to_one and life.has_stream and life.note.number in (CID_LOCAL, life.ours.cid):
            return Address(CID_LOCAL, life.ours.port)
        return life.ours

    def getpeername(self) -> Address:
        """Return the other side's address.

        Raises:
            OSError: ENOTCONN unless connected, and after a `shutdown` of ours (`vsock_getname`).
        """
        self._require_open_file()
        self._settle()
        if self._life.state is not State.CONNECTED:
            raise state_error(errno.ENOTCONN)
        return Address(self._life.note.number, _note.read_port(self))

    def shutdown(self, how: int, /) -> None:
        """End one direction or both: ``SHUT_RD``, ``SHUT_WR``, ``SHUT_RDWR``.

        Afterwards there is no peer name any more, and nothing is received after ``SHUT_RD``, not
        even what came before. A connect under way is given up (`vsock_shutdown`).

        Raises:
            OSError: EINVAL (`how` is none of the three), ENOTCONN.
        """
        look_at(_Base.shutdown, how)
        self._require_open_file()
        if how not in (_socket.SHUT_RD, _socket.SHUT_WR, _socket.SHUT_RDWR):
            raise state_error(errno.EINVAL)
        self._settle()
        life = self._life
        if life.state is State.CONNECTING:
            super().shutdown(_socket.SHUT_RDWR)
            self._end_hold()
        elif life.has_stream:
            super().shutdown(how)
            if how == _socket.SHUT_RD and life.transport is not None:
                # A connection that has ended meanwhile, or a switch that has, wants to hear nothing.
                with contextlib.suppress(OSError):
                    life.transport.stop_receiving(_note.cookie(self))
        else:
            raise state_error(errno.ENOTCONN)
        self._put(life.note.plus(_note.shut(how))._replace(state=State.SHUT_DOWN))

    def dup(self) -> "socket":
        """Return another descriptor for the same socket: what is done to one holds for both."""
        twin = socket.adopt(_socket.dup(self.fileno()), self.type, self._life)
        twin.settimeout(self.gettimeout())
        return twin

    def detach(self) -> int:
        """Give up the descriptor without closing it, and return it."""
        if self._life.state is State.CONNECTING:
            # A connection that has come has its send buffer again.
            self._settle()
        return super().detach()

    def _lookup(self, name: str) -> int:
        """Ask the switch, over a connection of its own, for the CID of a guest."""
        transport = self._life.transport
        assert transport is not None, "only sockets of a switch look names up"
        return transport.resolve(name)

    def _ask(self, request: Request, doing: str, extra: bytes = b"") -> Reply:
        self._attach()
        reply = _endpoint.ask(self, request, extra)
        if reply.errno:
            raise transport_error(reply.errno, doing)
        return reply

    def _ask_for_name(self) -> Address:
        """Ask for the port that the switch chose for our connect; it is wanted for the first time."""
        life = self._life
        if not life.has_stream or life.transport is None:
            return life.ours
        port = life.transport.our_port(_note.cookie(self))
        # As in the kernel, the CID of a client that did not bind to one stays the wildcard.
        ours = Address(CID_ANY, port)
        if port != PORT_ANY:
            _note.give_name(self, ours)
        return ours

    def _check_end(self) -> None:
        life = self._life
        if life.is_end_told or life.transport is None or not life.receives:
            return
        # While the other end is open, the other side has only ended its data.
        poller = plain_poll()
        poller.register(self, 0)
        if not poller.poll(0) or self._look().flags & END_TOLD:
            return
        is_good = life.transport.has_ended_well(self)
        self._put(life.note.plus(END_TOLD))
        if not is_good:
            raise ConnectionResetError(
                errno.ECONNRESET,
                f"the connection to {life.theirs} did not end well: data may be missing",
            )

    def _require_stream(self) -> None:
        self._require_open_file()
        self._settle()
        if not self._life.has_stream:
            raise state_error(errno.ENOTCONN)


def as_address(address: Any, lookup: Callable[[str], int]) -> Address:
    """Return the CID and port that `address` means to the socket whose `lookup` knows names."""
    target = as_target(address)
    if isinstance(target, NamedAddress):
        return Address(lookup(target.name), target.port)
    if not isinstance(target, Address):
        raise AddressError(f"{target}: only create_connection and create_server take this form")
    return target
