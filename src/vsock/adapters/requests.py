"""requests over vsock: an adapter for a session.

    with requests.Session() as session:
        session.mount("http://alpha", VsockAdapter())
        session.get("http://alpha:8080/status")

A session chooses its adapter by the beginning of a URL: mount it at ``http://alpha`` or ``http://alpha.vsock`` for one guest, and
at ``http://`` and ``https://`` for all. `vsock.adapters.destination` says where a URL leads. Needs ``vsock[requests]``.
"""

from typing import TYPE_CHECKING, Any, Final

from vsock.adapters.urllib3 import VsockPoolManager
from vsock.errors import missing_extra

try:
    from requests.adapters import HTTPAdapter
except ModuleNotFoundError as _error:
    raise missing_extra(_error, "requests over vsock", "requests") from None

if TYPE_CHECKING:
    from requests import PreparedRequest
    from urllib3 import HTTPConnectionPool

    from vsock._socket.transport import Transport
    from vsock.address import AddressLike

__all__ = ["VsockAdapter"]

_OURS: Final = ("_address", "_transport")


class VsockAdapter(HTTPAdapter):
    """Sends the requests of a `requests.Session` over vsock, and never through a proxy.

    A refused connection, and a guest that is not there, is `requests.exceptions.ConnectionError`; no answer in time
    `ConnectTimeout`; a URL whose host is no guest `InvalidURL`.

    Args:
        address: where all requests go, in any form of `vsock.parse`; None: where each URL says.
        transport: where to connect from, as for `vsock.create_connection`.
        options: as of `requests.adapters.HTTPAdapter`.
    """

    __attrs__ = [*HTTPAdapter.__attrs__, *_OURS]  # noqa: RUF012 - what is pickled, as requests has it

    def __init__(
        self,
        address: "AddressLike | None" = None,
        *,
        transport: "Transport | str | None" = None,
        **options: Any,
    ) -> None:
        self._address = address
        self._transport = transport
        super().__init__(**options)

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any
    ) -> None:
        """Make the pools; see requests."""
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs)
        self.poolmanager = VsockPoolManager(
            self._address,
            transport=self._transport,
            num_pools=connections,
            maxsize=maxsize,
            block=block,
            **pool_kwargs,
        )

    def get_connection_with_tls_context(
        self,
        request: "PreparedRequest",
        verify: Any,
        proxies: Any = None,
        cert: Any = None,
    ) -> "HTTPConnectionPool":
        """Return the pool of a request; see requests. `proxies` of the environment are for TCP."""
        return super().get_connection_with_tls_context(request, verify, None, cert)

    def request_url(self, request: "PreparedRequest", proxies: Any) -> str:
        """Return what to ask the server for; see requests."""
        return super().request_url(request, None)
