"""What a transport is: where sockets live, and how a connection or a listener is made there.

`Transport` is the interface that `vsock.sockets` and `vsock.aio` use; each module of
`vsock.transports` has one implementation. `choose` finds the one that a program means,
`transport_for` the one that an address leads to. Both import the module of `vsock.transports` that
has the transport's name, so that a program pays for what it uses.
"""

import os
from importlib import import_module
from socket import SOCK_STREAM
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from vsock.errors import UsageError

if TYPE_CHECKING:
    from vsock._client import Node
    from vsock._socket import socket
    from vsock._system.green import Base
    from vsock._system.waiting import Steps
    from vsock.address import AddressLike, Target

NAMES: Final = ("switch", "kernel")
"""Transports that a program can name. Others are reached by their addresses, or are objects."""


class ConnectOptions(NamedTuple):
    """How to connect.

    Attributes:
        type: ``SOCK_STREAM`` or ``SOCK_SEQPACKET``.
        timeout: seconds that the other side has to answer; None: the transport's own.
        source_address: bind to this first.
    """

    type: int = SOCK_STREAM
    timeout: float | None = None
    source_address: "AddressLike | None" = None


class ListenOptions(NamedTuple):
    """How to listen.

    Attributes:
        type: ``SOCK_STREAM`` or ``SOCK_SEQPACKET``.
        backlog: `backlog` + 1 connections may wait to be accepted.
        reconnect: come back with the next switch, where listeners end with the switch.
    """

    type: int = SOCK_STREAM
    backlog: int = 128
    reconnect: bool = False


class Transport(Protocol):
    """A place where sockets live: a switch, the kernel, the Unix sockets of a hypervisor, a test's memory."""

    @property
    def node(self) -> "Node | None":
        """The node that sockets here speak the client protocol with; None: there is none."""

    def socket_class(self, kind: int, proto: int) -> "type[socket]":
        """Return the class of sockets of this type and protocol.

        Raises:
            OSError: there are none, with the errno of socket(2).
            UsageError: `create_connection` and `create_server` are the only ways to a socket here.
        """

    def connect(self, address: "Target", options: ConnectOptions) -> "Steps[socket]":
        """Connect to `address`, and return a non-blocking socket.

        Raises:
            OSError: as `vsock.create_connection` says.
            AddressError: this transport knows no such address.
        """

    def listen(self, address: "Target", options: ListenOptions) -> "Base":
        """Return a socket that listens at `address`.

        Raises:
            OSError: as `vsock.create_server` says.
            AddressError: this transport knows no such address.
        """

    def local_cid(self) -> int:
        """Return the CID that a program has here.

        Raises:
            UsageError: there are no CIDs.
        """


def choose(transport: Transport | str | None = None) -> Transport:
    """Return the transport that `transport`, else ``VSOCK_TRANSPORT``, else the default names.

    Raises:
        UsageError: the name is not ``switch`` or ``kernel``.
    """
    if transport is not None and not isinstance(transport, str):
        return transport
    return _named(chosen(transport))


def chosen(name: str | None = None) -> str:
    """Return `name`, else ``VSOCK_TRANSPORT``, else the default.

    Raises:
        UsageError: it is not ``switch`` or ``kernel``.
    """
    name = name or os.environ.get("VSOCK_TRANSPORT") or "switch"
    if name not in NAMES:
        raise UsageError(f"unknown transport {name!r} (known: {', '.join(NAMES)})")
    return name


def transport_for(address: "Target", transport: Transport | str | None) -> Transport:
    """Return the transport that `address` leads to; if it leads to none, the one that `choose` returns."""
    return choose(transport) if address.transport is None else _named(address.transport)


def _named(name: str) -> Transport:
    found: Transport = import_module(f"vsock.transports.{name}").default()
    return found


def only_verbs(name: str) -> UsageError:
    """Return the exception for a transport called `name` that has no sockets that are bound or connected by hand."""
    return UsageError(
        f"the transport {name!r} has no vsock.socket of its own: "
        "create_connection, create_server and their asyncio twins make sockets there"
    )
