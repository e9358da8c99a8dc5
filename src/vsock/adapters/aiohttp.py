"""aiohttp over vsock: a connector for `aiohttp.ClientSession`.

    async with aiohttp.ClientSession(connector=VsockConnector()) as session:
        async with session.get("http://alpha:8080/status") as reply:
            print(await reply.text())

`vsock.adapters.destination` says where a URL leads. Pools, keep-alive, timeouts and TLS are aiohttp's; only the connecting
is ours. Needs ``vsock[aiohttp]``.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from vsock import aio
from vsock.adapters.destination import Destination
from vsock.errors import AddressError, missing_extra

try:
    import aiohttp
except ModuleNotFoundError as _error:
    raise missing_extra(_error, "aiohttp over vsock", "aiohttp") from None

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.tracing import Trace

    from vsock._socket.transport import Transport
    from vsock.address import AddressLike

__all__ = ["VsockConnector"]


class VsockConnector(aiohttp.TCPConnector):
    """Makes the connections of an `aiohttp.ClientSession` over vsock.

    A refused connection, and a guest that is not there, is `aiohttp.ClientConnectorError`; no answer in time
    `aiohttp.ConnectionTimeoutError`; a URL whose host is no guest `aiohttp.InvalidURL`.

    Args:
        address: where all requests go, in any form of `vsock.parse`; None: where each URL says.
        transport: where to connect from, as for `vsock.create_connection`.
        options: as of `aiohttp.TCPConnector` (``ssl``, ``limit``, ``keepalive_timeout``, …); those of DNS have no effect.
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

    async def _create_direct_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: "list[Trace]",
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's interface
        *,
        client_error: type[Exception] = aiohttp.ClientConnectorError,
    ) -> "tuple[asyncio.Transport, ResponseHandler]":
        """Connect, as the base class does over TCP."""
        host = req.url.host or ""
        try:
            steps = self._destination.connecting(host, req.port or 0, timeout.sock_connect)
        except AddressError as error:
            raise aiohttp.InvalidURL(req.url, str(error)) from error
        try:
            async with asyncio.timeout(timeout.sock_connect):
                sock = await aio.run(steps)
        except TimeoutError:
            raise
        except OSError as error:
            raise client_error(req.connection_key, error) from error
        context = self._get_ssl_context(req)
        try:
            made, protocol = await self._wrap_existing_connection(
                self._factory,
                sock=sock,
                ssl=context,
                server_hostname=(req.server_hostname or host) if context else None,
                req=req,
                timeout=timeout,
                client_error=client_error,
            )
        except BaseException:
            sock.close()
            raise
        fingerprint = self._get_fingerprint(req)
        if context and fingerprint:
            try:
                fingerprint.check(made)
            except aiohttp.ServerFingerprintMismatch:
                made.close()
                raise
        return made, protocol
