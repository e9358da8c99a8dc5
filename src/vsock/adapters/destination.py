"""Where the requests of an HTTP client go: one rule for all libraries.

URLs are ordinary ones, ``http://GUEST:PORT/path`` and ``https://GUEST:PORT/path``. A client that is given the transport,
adapter or connector of this package connects over vsock:

- GUEST is a guest of the switch, ``NAME`` or ``NAME.vsock``, or a CID, ``host`` or ``local``;
- PORT is a vsock port; by default 80, and 443 for https.

URLs have lower-case hosts and ports up to 65535. For all other addresses (``alpha:100000``, ``hvsock:///run/fc.sock:80``)
the transport is made with the address, as for a Unix socket in these libraries: then all its requests go there, and the URL's
host is only the name that the server sees, in the Host header and in TLS.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vsock._socket.transport import ConnectOptions, transport_for
from vsock._system.waiting import run
from vsock.address import Address, NamedAddress, as_target, parse_cid

if TYPE_CHECKING:
    from vsock._socket import socket
    from vsock._socket.transport import Transport
    from vsock._system.waiting import Steps
    from vsock.address import AddressLike, Target

__all__ = ["Destination"]

_SUFFIX: Final = ".vsock"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the requests of one client go.

    Args:
        address: of all of them; None: where each URL says.
        transport: where to connect from, as for `vsock.create_connection`.
    """

    address: "AddressLike | None" = None
    transport: "Transport | str | None" = None

    def __post_init__(self) -> None:
        if self.address is not None:
            as_target(self.address)

    def of(self, host: str, port: int) -> "Target":
        """Return the address that a URL with this host and port leads to.

        Raises:
            AddressError: `host` is neither a guest's name nor a CID.
        """
        if self.address is not None:
            return as_target(self.address)
        where = host.removesuffix(_SUFFIX)
        cid = parse_cid(f"{host}:{port}", where)
        return NamedAddress(where, port) if cid is None else Address(cid, port)

    def connecting(self, host: str, port: int, timeout: float | None) -> "Steps[socket]":
        """Connect in steps, and return a non-blocking socket; arguments and errors as for `connect`."""
        target = self.of(host, port)
        options = ConnectOptions(timeout=timeout)
        return transport_for(target, self.transport).connect(target, options)

    def connect(self, host: str, port: int, timeout: float | None) -> "socket":
        """Connect to where a URL leads.

        Args:
            host: of the URL.
            port: of the URL.
            timeout: seconds that the other side has to answer, and then of the socket's operations; None: as
                `vsock.create_connection` has it.

        Raises:
            OSError: as `vsock.create_connection` says.
            AddressError: as `of` says.
        """
        sock = run(self.connecting(host, port, timeout))
        sock.settimeout(timeout)
        return sock
