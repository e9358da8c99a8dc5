"""An address form in one file: ``abstract://NAME``, a Unix socket with an abstract name.

A transport in src/vsock/transports/ would need only such a file; test_forms.py lets the package find it here.
"""

import time
from socket import AF_UNIX
from typing import NamedTuple

from vsock._socket import socket
from vsock._socket.state import UNKNOWN
from vsock._socket.transport import ConnectOptions, ListenOptions, only_verbs
from vsock._system import unix
from vsock._system.green import Base
from vsock._system.waiting import Steps
from vsock.address import Target
from vsock.errors import AddressError, UsageError
from vsock.transports.unix import wrapped


class AbstractAddress(NamedTuple):
    """A Unix stream socket with an abstract `name`."""

    name: str

    @property
    def transport(self) -> str:
        """This module."""
        return "abstract"

    def __str__(self) -> str:
        """Return ``abstract://NAME``."""
        return f"abstract://{self.name}"


def parse(text: str) -> AbstractAddress:
    """Read ``abstract://NAME``."""
    name = text.removeprefix("abstract://")
    if not name:
        raise AddressError(f"{text!r}: a name must follow 'abstract://'")
    return AbstractAddress(name)


class AbstractTransport:
    """Unix sockets with abstract names."""

    node = None

    def socket_class(self, kind: int, proto: int) -> type[socket]:
        """See `Transport`."""
        raise only_verbs("abstract")

    def connect(self, address: Target, options: ConnectOptions) -> Steps[socket]:
        """See `Transport`."""
        sock = Base(AF_UNIX)
        try:
            sock.setblocking(False)
            yield from unix.connect(sock, _path_of(address), time.monotonic() + 2)
        except BaseException:
            sock.close()
            raise
        return wrapped(sock, UNKNOWN, UNKNOWN)

    def listen(self, address: Target, options: ListenOptions) -> Base:
        """See `Transport`."""
        sock = Base(AF_UNIX, options.type)
        try:
            sock.bind(_path_of(address))
            sock.listen(options.backlog)
        except BaseException:
            sock.close()
            raise
        return sock

    def local_cid(self) -> int:
        """See `Transport`."""
        raise UsageError("an abstract name has no CID")


def default() -> AbstractTransport:
    """Return the transport."""
    return AbstractTransport()


def _path_of(address: Target) -> str:
    if not isinstance(address, AbstractAddress):
        raise AddressError(f"{address}: the transport 'abstract' knows names only")
    return f"\0vsock-test/{address.name}"
