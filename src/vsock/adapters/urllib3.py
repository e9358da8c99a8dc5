"""urllib3 over vsock: a pool manager.

    with VsockPoolManager() as http:
        http.request("GET", "http://alpha:8080/status")

`vsock.adapters.destination` says where a URL leads. Pools, retries, timeouts and TLS are urllib3's; only the connecting is
ours. Needs ``vsock[urllib3]``.
"""

from typing import TYPE_CHECKING, Any, Self

from vsock.adapters.destination import Destination
from vsock.errors import AddressError, missing_extra

try:
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.exceptions import ConnectTimeoutError, LocationParseError, NewConnectionError
except ModuleNotFoundError as _error:
    raise missing_extra(_error, "urllib3 over vsock", "urllib3") from None

if TYPE_CHECKING:
    from vsock._socket import socket
    from vsock._socket.transport import Transport
    from vsock.address import AddressLike

__all__ = ["VsockPoolManager"]


class VsockPoolManager(PoolManager):
    """Sends requests over vsock; use it as a `urllib3.PoolManager`.

    A refused connection, and a guest that is not there, is `urllib3.exceptions.NewConnectionError`; no answer in time
    `ConnectTimeoutError` (after as many retries as are asked for, the reason of a `MaxRetryError`); a URL whose host is no guest
    `LocationParseError`.

    Args:
        address: where all requests go, in any form of `vsock.parse`; None: where each URL says.
        transport: where to connect from, as for `vsock.create_connection`.
        options: as of `urllib3.PoolManager`.
    """

    def __init__(
        self,
        address: "AddressLike | None" = None,
        *,
        transport: "Transport | str | None" = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._destination = Destination(address, transport)
        self.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def __enter__(self) -> Self:
        return self

    def connection_from_host(
        self,
        host: str | None,
        port: int | None = None,
        scheme: str | None = "http",
        pool_kwargs: dict[str, Any] | None = None,
    ) -> HTTPConnectionPool:
        """Return the pool of connections to a guest; see urllib3."""
        if host:
            try:
                self._destination.of(host, port or 0)
            except AddressError as error:
                raise LocationParseError(str(error)) from error
        return super().connection_from_host(host, port, scheme, pool_kwargs)

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> HTTPConnectionPool:
        """Make a pool; urllib3 wants this overridden for its arguments."""
        context = dict(self.connection_pool_kw if request_context is None else request_context)
        # What a pool has no argument for, it passes on to its connections.
        return super()._new_pool(scheme, host, port, context | {"destination": self._destination})


class _Connection(HTTPConnection):
    def __init__(self, *arguments: Any, destination: Destination, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._destination = destination

    def _new_conn(self) -> "socket":
        return _connect(self, self._destination)


class _TlsConnection(HTTPSConnection):
    def __init__(self, *arguments: Any, destination: Destination, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._destination = destination

    def _new_conn(self) -> "socket":
        return _connect(self, self._destination)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def _connect(connection: HTTPConnection, destination: Destination) -> "socket":
    """Connect, and raise what `HTTPConnection._new_conn` does."""
    timeout = connection.timeout
    assert connection.port is not None
    assert timeout is None or isinstance(timeout, float | int)
    try:
        return destination.connect(connection.host, connection.port, timeout)
    except TimeoutError as error:
        raise ConnectTimeoutError(connection, str(error)) from error
    except OSError as error:
        raise NewConnectionError(connection, str(error)) from error
