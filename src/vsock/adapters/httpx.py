"""httpx over vsock: transports for `httpx.Client` and `httpx.AsyncClient`.

    with httpx.Client(transport=VsockTransport()) as client:
        client.get("http://alpha:8080/status")

`vsock.adapters.destination` says where a URL leads. Pooling, keep-alive, HTTP/2, TLS and the mapping of errors to
httpx's own are those of `httpx.HTTPTransport`; only the connecting is ours. The asynchronous one works with asyncio
and trio, as httpx does. Needs ``vsock[httpx]``.
"""

import errno
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socket import SHUT_WR
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Final

from vsock import aio
from vsock.adapters.destination import Destination
from vsock.errors import AddressError, missing_extra

try:
    import anyio
    import anyio.abc
    import httpcore
    import httpx
    from httpcore._backends.anyio import AnyIOStream
    from httpcore._backends.sync import SyncStream
except ModuleNotFoundError as _error:
    raise missing_extra(_error, "httpx over vsock", "httpx") from None

if TYPE_CHECKING:
    from vsock._socket import socket
    from vsock._socket.transport import Transport
    from vsock._system.waiting import Wait
    from vsock.address import AddressLike

__all__ = ["AsyncVsockTransport", "VsockTransport"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LIMITS: Final = httpx.Limits(max_connections=100, max_keepalive_connections=20)
"""httpx's own."""


class VsockTransport(httpx.HTTPTransport):
    """Sends the requests of an `httpx.Client` over vsock.

    A refused connection, and a guest that is not there, is `httpx.ConnectError`; no answer in time `httpx.ConnectTimeout`; a
    URL whose host is no guest `httpx.InvalidURL`.

    Args:
        address: where all requests go, in any form of `vsock.parse`; None: where each URL says.
        transport: where to connect from, as for `vsock.create_connection`.
        verify: as of `httpx.Client`, whose own has no effect beside a transport.
        http1: as of `httpx.Client`.
        http2: as of `httpx.Client`.
        limits: as of `httpx.Client`.
        retries: how often to try again to connect.
    """

    def __init__(
        self,
        address: "AddressLike | None" = None,
        *,
        transport: "Transport | str | None" = None,
        verify: SSLContext | str | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = _LIMITS,
        retries: int = 0,
    ) -> None:
        super().__init__(verify=verify, http1=http1, http2=http2, limits=limits, retries=retries)
        self._destination = Destination(address, transport)
        # httpcore takes a backend, but httpx has no argument for it.
        self._pool._network_backend = _Backend(self._destination)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; see httpx."""
        _check(self._destination, request.url)
        return super().handle_request(request)


class AsyncVsockTransport(httpx.AsyncHTTPTransport):
    """Sends the requests of an `httpx.AsyncClient` over vsock; arguments and errors as for `VsockTransport`."""

    def __init__(
        self,
        address: "AddressLike | None" = None,
        *,
        transport: "Transport | str | None" = None,
        verify: SSLContext | str | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = _LIMITS,
        retries: int = 0,
    ) -> None:
        super().__init__(verify=verify, http1=http1, http2=http2, limits=limits, retries=retries)
        self._destination = Destination(address, transport)
        self._pool._network_backend = _AsyncBackend(self._destination)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; see httpx."""
        _check(self._destination, request.url)
        return await super().handle_async_request(request)


def _check(destination: Destination, url: httpx.URL) -> None:
    try:
        destination.of(url.host, url.port or _DEFAULT_PORTS.get(url.scheme, 80))
    except AddressError as error:
        raise httpx.InvalidURL(str(error)) from error


class _Backend(httpcore.NetworkBackend):
    """Connects for a pool of httpcore."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *_: Any, **__: Any
    ) -> httpcore.NetworkStream:
        with _as_httpcore():
            return SyncStream(self._destination.connect(host, port, timeout))


class _AsyncBackend(httpcore.AsyncNetworkBackend):
    """Connects for an asynchronous pool of httpcore, in every event loop that anyio knows."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        *_: Any,
        **__: Any,
    ) -> httpcore.AsyncNetworkStream:
        with _as_httpcore():
            sock = await aio.run(self._destination.connecting(host, port, timeout), _wait)
        return AnyIOStream(_Stream(sock))

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


@contextmanager
def _as_httpcore() -> Iterator[None]:
    """Raise what connecting raises as httpcore's exception, which httpx makes its own."""
    try:
        yield
    except TimeoutError as error:
        raise httpcore.ConnectTimeout(str(error)) from error
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error


async def _wait(wanted: "Wait") -> bool:
    """Wait as `vsock.aio` does, in whichever event loop this is."""
    left = None if wanted.deadline is None else max(0.0, wanted.deadline - time.monotonic())
    with anyio.move_on_after(left):
        if wanted.sock is None:
            await anyio.sleep_forever()
        elif wanted.events & select.POLLIN:
            await anyio.wait_readable(wanted.sock.fileno())
        else:
            await anyio.wait_writable(wanted.sock.fileno())
        return True
    return False


class _Stream(anyio.abc.ByteStream):
    """A connection as anyio has them. anyio makes them itself only of TCP and Unix sockets."""

    def __init__(self, sock: "socket") -> None:
        self._sock = sock

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                data = self._sock.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._sock.fileno())
            except OSError as error:
                raise _broken(error) from error
            else:
                if not data:
                    raise anyio.EndOfStream
                return data

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        rest = memoryview(item)
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._sock.fileno())
            except OSError as error:
                raise _broken(error) from error

    async def send_eof(self) -> None:
        self._sock.shutdown(SHUT_WR)

    async def aclose(self) -> None:
        if self._sock.fileno() >= 0:
            anyio.notify_closing(self._sock.fileno())
            self._sock.close()
        await anyio.lowlevel.checkpoint()

    @property
    def extra_attributes(self) -> Any:
        return {anyio.abc.SocketAttribute.raw_socket: lambda: self._sock}


def _broken(error: OSError) -> Exception:
    if error.errno == errno.EBADF:  # closed by another task
        return anyio.ClosedResourceError()
    return anyio.BrokenResourceError(str(error))
