"""The blocking socket API: `socket`, and the two short ways to one.

`create_connection` and `create_server` take every address form; the transport that the address
leads to, or that the caller names, does the rest. What they return is a `socket`, or for listeners
of forms that are not the switch's a socket that is used in the same way. The asyncio twins are in
`vsock.aio`; the class itself, and why a socket here is a plain descriptor, in `vsock._socket`.
"""

from socket import SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM

from vsock._socket import socket
from vsock._socket.options import (
    SO_VM_SOCKETS_BUFFER_MAX_SIZE,
    SO_VM_SOCKETS_BUFFER_MIN_SIZE,
    SO_VM_SOCKETS_BUFFER_SIZE,
    SO_VM_SOCKETS_CONNECT_TIMEOUT,
)
from vsock._socket.transport import ConnectOptions, ListenOptions, Transport, choose, transport_for
from vsock._system.green import Base
from vsock._system.waiting import run
from vsock.address import CID_ANY, Address, AddressLike, Target, as_target

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


def create_connection(
    address: AddressLike,
    timeout: float | None = None,
    *,
    type: int = SOCK_STREAM,  # noqa: A002 - the name that socket.socket gives it
    source_address: AddressLike | None = None,
    transport: Transport | str | None = None,
) -> socket:
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
    options = ConnectOptions(type, timeout, source_address)
    sock = run(transport_for(target, transport).connect(target, options))
    sock.settimeout(timeout)
    return sock


def create_server(
    address: AddressLike | int,
    *,
    backlog: int = 128,
    type: int = SOCK_STREAM,  # noqa: A002 - the name that socket.socket gives it
    transport: Transport | str | None = None,
    reconnect: bool = False,
) -> Base:
    """Return a listening socket for `address`, or for a port on every CID that is ours.

    A ``hvsock:///path:PORT`` address listens where a Firecracker-style hypervisor looks when its
    guest connects to the host's PORT (``/path_PORT``), and ``unix:/path`` at that path. The file
    goes when the socket is closed; one that a killed server has left is replaced.

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
    target: Target = Address(CID_ANY, address) if isinstance(address, int) else as_target(address)
    return transport_for(target, transport).listen(target, ListenOptions(type, backlog, reconnect))


def get_local_cid(*, transport: Transport | str | None = None) -> int:
    """Return the CID of this machine: 2 on the host of a switch, a guest's own in that guest.

    As the ioctl IOCTL_VM_SOCKETS_GET_LOCAL_CID of vsock(7).

    Args:
        transport: of which machine, as for `socket`.

    Raises:
        NoSwitch: there is none; with the transport ``"kernel"``, an OSError of /dev/vsock.
    """
    return choose(transport).local_cid()
