"""The blocking socket API: `socket`, and the two short ways to one.

`create_connection` and `create_server` take every address form and choose the transport; what they
return is a `socket`, or for the forms that are not the switch's a socket that is used in the same
way. The asyncio twins are in `vsock.aio`; the class itself, and why a socket here is a plain
descriptor, in `vsock._socket_class`.
"""

import builtins
import socket as _socket
from collections.abc import Callable
from typing import Any

from vsock import _datagrams  # noqa: F401 - it adds the class for its type
from vsock._green import Base as _Base
from vsock._green import adapted
from vsock._life import UNKNOWN, Life
from vsock._note import Note
from vsock._options import (
    SO_VM_SOCKETS_BUFFER_MAX_SIZE,
    SO_VM_SOCKETS_BUFFER_MIN_SIZE,
    SO_VM_SOCKETS_BUFFER_SIZE,
    SO_VM_SOCKETS_CONNECT_TIMEOUT,
)
from vsock._socket_class import CONNECT_TIMEOUT, SOCK_SEQPACKET, SOCK_STREAM, socket
from vsock._unix import UnixListener
from vsock.address import (
    CID_ANY,
    CID_HOST,
    Address,
    HybridAddress,
    KernelAddress,
    Target,
    UnixAddress,
    as_target,
)
from vsock.errors import AddressError
from vsock.transports import (
    KernelTransport,
    Transport,
    choose,
    hybrid_connect,
    hybrid_listening_path,
    unix_connect,
)

__all__ = [
    "SOCK_DGRAM",
    "SOCK_SEQPACKET",
    "SOCK_STREAM",
    "SO_VM_SOCKETS_BUFFER_MAX_SIZE",
    "SO_VM_SOCKETS_BUFFER_MIN_SIZE",
    "SO_VM_SOCKETS_BUFFER_SIZE",
    "SO_VM_SOCKETS_CONNECT_TIMEOUT",
    "create_connection",
    "create_server",
    "get_local_cid",
    "socket",
]

SOCK_DGRAM = _socket.SOCK_DGRAM


def create_connection(
    address: Target | tuple[int, int] | str,
    timeout: float | None = None,
    *,
    type: int = SOCK_STREAM,  # noqa: A002 - the name that socket.socket gives it
    source_address: Address | tuple[int, int] | None = None,
    transport: Transport | str | None = None,
) -> _Base:
    """Connect to `address`, which may be of any form that `parse` reads, and return the socket.

    Args:
        address: a pair, one of the address types, or text (``"web:80"``,
            ``"hvsock:///run/fc.sock:80"``).
        timeout: seconds that the other side has to answer (default: 2), and then the timeout of
            the socket's operations (default: none).
        type: `SOCK_STREAM` or `SOCK_SEQPACKET`.
        source_address: bind to this first.
        transport: where to connect from, as for `socket`.

    Raises:
        OSError: as `socket.connect` says; of a ``unix:`` or ``hvsock:`` path, as of every Unix socket.
        ProtocolError: a hybrid socket answered with something else than ``OK <port>``.
    """
    target = as_target(address)
    if isinstance(target, HybridAddress | UnixAddress):
        return _connect_hybrid(target, timeout)
    sock = make_socket(target, type, transport)
    try:
        if source_address is not None:
            sock.bind(source_address)
        if isinstance(sock, socket):
            # The switch keeps this time, and says ETIMEDOUT at its end.
            sock.connect_timeout = CONNECT_TIMEOUT if timeout is None else timeout
            sock.setblocking(True)
            sock.connect(target)
            sock.settimeout(timeout)
        else:
            sock.settimeout(timeout)
            sock.connect(kernel_pair(target))
    except BaseException:
        sock.close()
        raise
    return sock


def create_server(
    address: Target | tuple[int, int] | str | int,
    *,
    backlog: int = 128,
    type: int = SOCK_STREAM,  # noqa: A002 - the name that socket.socket gives it
    transport: Transport | str | None = None,
    reconnect: bool = False,
) -> _Base:
    """Return a listening socket for `address`, or for a port on every CID that is ours.

    A ``hvsock:///path:PORT`` address listens where a Firecracker-style hypervisor looks when its
    guest connects to the host's PORT (``/path_PORT``), and ``unix:/path`` at that path. The file goes when the
    socket is closed; one that a killed server has left is replaced.

    Args:
        address: a port, a pair, one of the address types, or text; a port means all CIDs that are ours.
        backlog: `backlog` + 1 connections may wait for `accept`; more are refused.
        type: `SOCK_STREAM` or `SOCK_SEQPACKET`.
        transport: where to listen, as for `socket`.
        reconnect: come back by itself when the switch ends and another one starts. A thread does that, of this
            process, which must live as long as the listener.

    Raises:
        OSError: as `socket.bind` says.
    """
    make = lasting_class() if reconnect else socket
    return listen(make, address, backlog=backlog, type=type, transport=transport)


def lasting_class() -> builtins.type[socket]:
    """Return the class of listeners that come back with their switch, for which not all should pay."""
    from vsock._lasting import LastingListener

    return LastingListener


def listen(
    make: Callable[..., socket],
    address: Target | tuple[int, int] | str | int,
    *,
    backlog: int,
    type: int,  # noqa: A002 - as in create_server
    transport: Transport | str | None,
) -> _Base:
    """Do what `create_server` says, with `make` for the class of a socket of the switch."""
    target = Address(CID_ANY, address) if isinstance(address, int) else as_target(address)
    where: Any = target
    if isinstance(target, UnixAddress):
        return adapted(UnixListener)(target.path, type, backlog)
    if isinstance(target, HybridAddress):
        return adapted(UnixListener)(hybrid_listening_path(target), type, backlog)
    sock = make_socket(target, type, transport, make)
    if not isinstance(sock, socket):
        where = kernel_pair(target)
    try:
        sock.bind(where)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def get_local_cid(*, transport: Transport | str | None = None) -> int:
    """Return the CID of this machine: 2 on the host of a switch, a guest's own in that guest.

    As the ioctl IOCTL_VM_SOCKETS_GET_LOCAL_CID of vsock(7).

    Args:
        transport: of which machine, as for `socket`.

    Raises:
        NoSwitch: there is none; with the transport ``"kernel"``, an OSError of /dev/vsock.
    """
    where = choose(transport)
    return where.local_cid()


def make_socket(
    target: Target,
    kind: int,
    transport: Transport | str | None,
    make: Callable[..., socket] = socket,
) -> _Base:
    """Return a new socket of the transport that the target or else the argument names."""
    where = KernelTransport() if isinstance(target, KernelAddress) else choose(transport)
    if isinstance(where, KernelTransport):
        return where.make(kind)
    return make(kind, transport=where)


def kernel_pair(target: Target) -> tuple[int, int]:
    """Return what the kernel's own sockets take as an address."""
    if not isinstance(target, Address | KernelAddress):
        raise AddressError(f"{target}: the kernel's AF_VSOCK knows CIDs only")
    return (target.cid, target.port)


def wrap_hybrid(sock: _Base, target: HybridAddress | UnixAddress, our_port: int) -> socket:
    """Turn a Unix stream that leads to `target` into a `socket` that knows its addresses."""
    if isinstance(target, HybridAddress):
        ours, theirs = Address(CID_HOST, our_port), Address(CID_ANY, target.port)
    else:
        ours = theirs = UNKNOWN
    timeout = sock.gettimeout()
    fd, life = sock.detach(), Life(Note())
    made = socket.adopt_connection(fd, SOCK_STREAM, life, ours=ours, theirs=theirs)
    made.settimeout(timeout)
    return made


def _connect_hybrid(target: HybridAddress | UnixAddress, timeout: float | None) -> socket:
    port, allowed = 0, CONNECT_TIMEOUT if timeout is None else timeout
    if isinstance(target, HybridAddress):
        sock, port = hybrid_connect(target, allowed)
    else:
        sock = unix_connect(target, allowed)
    sock.settimeout(timeout)
    return wrap_hybrid(sock, target, port)
