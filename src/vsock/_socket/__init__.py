"""The class `vsock.socket`, and the kinds of sockets behind it.

`socket` is what programs see: it makes a socket of the kind for its type and transport, and
documents the calls. Every socket is an instance of it.

==================  =====================================================================
`stream`            `StreamSocket`: SOCK_STREAM and SOCK_SEQPACKET at a node
`datagram`          `DatagramSocket`: SOCK_DGRAM at a node
`kernel`            `KernelSocket`: the kernel's own AF_VSOCK
`reconnecting`      `ReconnectingListener`: a listener that outlives its switch
`state`             what a process knows of a stream socket, and how it connects
`metadata`          what is kept in the socket itself, for all who hold it
`options`           the rules of AF_VSOCK's options; `socket_options`: the calls
`messages`          what concerns SOCK_SEQPACKET alone
`accept_queue`      taking connections from a listener
`passing`           how a socket goes to another process
`transport`         the interface between sockets and the places where they live
==================  =====================================================================
"""

import errno
import functools
import types
from socket import SOCK_STREAM
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from vsock._socket.transport import ConnectOptions, ListenOptions, Transport, choose
from vsock._system.green import Base, adapted
from vsock.errors import UsageError, state_error

if TYPE_CHECKING:
    from vsock._client import Node
    from vsock._system.waiting import Steps
    from vsock.address import Address, AddressLike, Target

_S = TypeVar("_S", bound="socket")


class socket(Base):  # noqa: N801 - it stands in for socket.socket and is spelled like it
    """A VSOCK socket over the switch; use it as a `socket.socket` of family AF_VSOCK.

    Addresses are pairs ``(cid, port)``, `Address` values or text such as ``"web:80"``. Errors are
    ``OSError``s with the errno that AF_VSOCK would give. No connection is made before the first
    `bind` or `connect`.

    The rules are those of vsock(7) and of net/vmw_vsock/af_vsock.c in Linux; each method names its
    function there. docs/reference has all errors, options and differences.

    What is made is an instance of a subclass for the type and the transport; with the transport
    ``"kernel"`` its descriptor is a socket of the kernel's own AF_VSOCK. A class of yours that
    builds on this one gets the methods of that subclass by ``super()``.

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
    # Of the kinds, which have no slots of their own: Python cannot make one class of two that have.
    __slots__ = ("_state",)

    def __new__(
        cls,
        type: int = SOCK_STREAM,  # noqa: A002 - as in __init__
        proto: int = 0,
        *,
        transport: Transport | str | None = None,
    ) -> Self:
        """Make a socket of the kind for its type and transport."""
        if not isinstance(type, int):
            raise TypeError(f"a socket's type is an integer, not {type!r}")
        return super().__new__(_of_kind(cls, choose(transport).socket_class(type, proto)))

    def __init__(
        self,
        type: int = SOCK_STREAM,  # noqa: A002 - the name that socket.socket gives it
        proto: int = 0,
        *,
        transport: Transport | str | None = None,
    ) -> None:
        """Make the descriptor; the arguments are the class's."""
        where = choose(transport)
        if not isinstance(self, where.socket_class(type, proto)):
            raise UsageError(
                f"{self.__class__.__name__}: this type or transport must be given to the class itself, "
                "as it decides which kind of socket is made"
            )
        self._open(type, proto, where.node)

    @classmethod
    def from_fd(cls, fd: int, *, transport: Transport | str | None = None) -> "socket":
        """Make a socket of a descriptor that was passed on: inherited, received, or detached in this process.

        A connection has its addresses, a listener can accept, an attempt to connect goes on. The
        socket owns `fd` then, as with ``socket.socket(fileno=fd)``; it may come from a program
        under ``vsock run`` too.

        Args:
            fd: the descriptor of a `vsock.socket` of type `SOCK_STREAM` or `SOCK_SEQPACKET`; with the transport
                ``"kernel"``, of an AF_VSOCK socket of the kernel.
            transport: where it lives, as for `socket`.

        Raises:
            UsageError: it is no such socket; `fd` stays open.
            OSError: EBADF.
        """
        where = choose(transport)
        return _of_kind(cls, where.socket_class(SOCK_STREAM, 0))._from_fd(fd, where.node)

    def _open(self, kind: int, proto: int, node: "Node | None") -> None:
        """Make the descriptor of a socket of type `kind` at `node`."""
        raise _unsupported()

    @classmethod
    def _from_fd(cls, fd: int, node: "Node | None") -> "socket":
        """Do what `from_fd` says, for a socket at `node`."""
        raise _unsupported()

    @property
    def connect_timeout(self) -> float:
        """Seconds that `connect` gives the other side to answer, before it says ``ETIMEDOUT``.

        This is SO_VM_SOCKETS_CONNECT_TIMEOUT, 2.0 unless set, and not `settimeout`, which bounds
        how long Python waits. Setting it to what is no time raises `UsageError`.
        """
        raise _unsupported()

    @connect_timeout.setter
    def connect_timeout(self, seconds: float) -> None:
        raise _unsupported()

    # Python's own takes addresses of other families too.
    def bind(self, address: "AddressLike") -> None:  # type: ignore[override]
        """Take the port of `address`, or any free one for `PORT_ANY`; only once in a socket's life.

        The CID is `CID_ANY`, `CID_LOCAL` or our own. A free one is never below 1024
        (`__vsock_bind`).

        Raises:
            AccessDenied: EACCES: a port below 1024, without root or CAP_NET_BIND_SERVICE.
            OSError: EADDRINUSE (taken, by a socket of either type), EADDRNOTAVAIL (the CID is not ours),
                EINVAL (bound already).
            NoSwitch: there is no switch to bind at.
            AddressError: `address` is none.
        """
        raise _unsupported()

    def listen(self, backlog: int = 128, /) -> None:
        """Accept connections to the bound port; `backlog` + 1 of them wait for `accept`.

        A negative backlog means 0, as for every socket of Python's. Calling it again changes the
        backlog. Connections beyond that are refused (`vsock_listen`).

        Raises:
            OSError: EINVAL unless the socket is bound, and only that.
        """
        raise _unsupported()

    def accept(self) -> "tuple[socket, Address]":
        """Wait for a connection: a new socket, blocking by default, and the other side's address.

        Raises:
            OSError: EINVAL if the socket does not listen; `BlockingIOError` or `TimeoutError` if
                none came; EMFILE or ENFILE: no descriptor is left, and the connection waits on (`vsock_accept`).
            SwitchGone: the switch went away. That is raised once; afterwards the socket is as one that
                nobody connects to, since the loops of servers know no listener that ends.
        """
        raise _unsupported()

    def connect(self, address: "AddressLike") -> None:  # type: ignore[override]
        """Connect to `address`; without waiting (``BlockingIOError``, EINPROGRESS) if non-blocking.

        The socket is bound to a free port if it was not bound. What happens after
        `connect_timeout`, and to a non-blocking connect, is as in `vsock_connect`.

        Raises:
            ConnectRefused: ECONNRESET: nobody listens there.
            ConnectTimeout: ETIMEDOUT: no answer within `connect_timeout`.
            NoSuchGuest: ENODEV: nothing has this CID or name.
            OSError: EISCONN, EALREADY, EINVAL (it listens, or was shut down).
        """
        raise _unsupported()

    def finish_connect(self) -> None:
        """Raise how a non-blocking connect ended, after the socket became writable.

        This is ``getsockopt(SOL_SOCKET, SO_ERROR)`` with the exception that `connect` would have
        raised.
        Raises ``EALREADY`` if it has not ended yet.
        """
        raise _unsupported()

    def connect_ex(self, address: "AddressLike") -> int:  # type: ignore[override]
        """Connect like `connect`, but return the errno instead of raising, 0 for success."""
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or errno.EAGAIN
        return 0

    def getsockname(self) -> "Address":
        """Return our address: ``(any, any)`` at first; the CID stays ``any`` unless bound to one.

        An accepted socket has the CID that was connected to (`vsock_getname`).
        """
        raise _unsupported()

    def getpeername(self) -> "Address":
        """Return the other side's address.

        Raises:
            OSError: ENOTCONN unless connected, and after a `shutdown` of ours (`vsock_getname`).
        """
        raise _unsupported()

    def shutdown(self, how: int, /) -> None:
        """End one direction or both: ``SHUT_RD``, ``SHUT_WR``, ``SHUT_RDWR``.

        Afterwards there is no peer name any more, and nothing is received after ``SHUT_RD``, not
        even what came before. A connect under way is given up (`vsock_shutdown`).

        Raises:
            OSError: EINVAL (`how` is none of the three), ENOTCONN.
        """
        raise _unsupported()

    @overload
    def getsockopt(self, level: int, optname: int, /) -> int: ...
    @overload
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...
    def getsockopt(self, level: int, optname: int, buflen: int = 0, /) -> int | bytes:
        """Return an option: those of AF_VSOCK (as bytes, with `buflen`) and of SOL_SOCKET.

        ``SO_ERROR`` tells (once) how a non-blocking connect ended.
        """
        raise _unsupported()

    @overload
    def setsockopt(self, level: int, optname: int, value: Any, /) -> None: ...
    @overload
    def setsockopt(self, level: int, optname: int, value: None, optlen: int, /) -> None: ...
    def setsockopt(self, level: int, optname: int, value: Any, *optlen: int) -> None:
        """Set an option: those of AF_VSOCK (64-bit sizes and timevals, as bytes), SOL_SOCKET.

        A new buffer size is told to the other side at once.

        Raises:
            OSError: ENOPROTOOPT, EINVAL, ERANGE or EOPNOTSUPP, as docs/reference/options.md says.
        """
        raise _unsupported()

    def _connecting(self, address: "Target", timeout: float | None) -> "Steps[None]":
        """Connect a new and non-blocking socket to `address`, in steps; `timeout` as in `ConnectOptions`."""
        raise _unsupported()

    def dup(self) -> "socket":
        """Return another descriptor for the same socket: what is done to one holds for both."""
        raise _unsupported()


def a_kind(cls: type[_S]) -> type[_S]:
    """Let a class be shown as `vsock.socket`: users know one class, and what kind a socket is, its `type` tells."""
    cls.__module__, cls.__name__, cls.__qualname__ = "vsock", "socket", "socket"
    return cls


def connecting(sock: _S, address: "Target", options: ConnectOptions) -> "Steps[_S]":
    """Connect the new socket `sock`, and return it non-blocking; close it if that fails."""
    try:
        if options.source_address is not None:
            sock.bind(options.source_address)
        sock.setblocking(False)
        yield from sock._connecting(address, options.timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def listening(sock: _S, address: "Target", options: ListenOptions) -> _S:
    """Let the new socket `sock` listen at `address`, and return it; close it if that fails."""
    try:
        sock.bind(address)
        sock.listen(options.backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _unsupported() -> OSError:
    """Return the error for a call that a kind of socket does not have: what the kernel's ``sock_no_*`` functions say."""
    return state_error(errno.EOPNOTSUPP)


def _of_kind(cls: type[_S], kind: type[socket]) -> type[_S]:
    """Return the class to make a socket of, for a user who asks for `cls` and needs this `kind`.

    `cls` is `socket` itself, or a class that builds on it, which is put in front of the kind.
    """
    if issubclass(kind, cls):
        return adapted(kind)
    if issubclass(cls, kind):
        return adapted(cls)
    both: Any = (cls, kind)
    made: type[_S] = _in_front(*both)
    return adapted(made)


@functools.cache
def _in_front(cls: Any, kind: Any) -> Any:
    if cls._open is not socket._open:
        raise UsageError(f"{cls.__name__} is no class for sockets of this type or transport")
    names = {
        "__slots__": (),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    return types.new_class(cls.__name__, (cls, kind), exec_body=lambda body: body.update(names))
