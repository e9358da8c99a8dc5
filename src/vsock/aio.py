"""The asyncio twins of `vsock.sockets`: the same verbs, giving asyncio's streams.

Only the waiting is written anew here. `socket` itself works with asyncio's own functions as well
(``loop.sock_connect``, ``asyncio.open_connection(sock=…)``).
"""

import asyncio
import errno
import socket as _socket
from collections.abc import Awaitable, Callable
from typing import Any

from vsock import _unix
from vsock._accept_loop import AcceptLoop
from vsock._endpoint import ANSWER_TIMEOUT
from vsock._green import Base as _Base
from vsock._socket_class import CONNECT_TIMEOUT, SOCK_STREAM, socket
from vsock._unix import UnixListener
from vsock.address import (
    Address,
    HybridAddress,
    Target,
    UnixAddress,
    as_target,
)
from vsock.errors import SwitchGone, transport_error
from vsock.sockets import kernel_pair, lasting_class, listen, make_socket, wrap_hybrid
from vsock.transports import (
    LONGEST_HYBRID_ANSWER,
    Transport,
    hybrid_answer,
    hybrid_request,
)

_Callback = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


async def open_connection(
    address: Target | tuple[int, int] | str,
    *,
    timeout: float | None = None,  # noqa: ASYNC109 - it is the peer's time to answer, sent along
    transport: Transport | str | None = None,
    **options: Any,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to `address` and return the streams.

    Args:
        address: as for `vsock.create_connection`.
        timeout: seconds that the other side has to answer (default: 2).
        transport: where to connect from, as for `vsock.socket`.
        options: passed on to `asyncio.open_connection` (``limit``, ``ssl``, ``server_hostname``,
            …).

    Raises:
        OSError: as `vsock.socket.connect` says.
    """
    sock = await _connect(as_target(address), timeout, transport)
    try:
        return await asyncio.open_connection(sock=sock, **options)
    except BaseException:
        sock.close()
        raise


async def start_server(
    client_connected_cb: _Callback,
    address: Target | tuple[int, int] | str | int,
    *,
    backlog: int = 128,
    transport: Transport | str | None = None,
    reconnect: bool = False,
    **options: Any,
) -> asyncio.AbstractServer:
    """Accept connections at `address` and give each one's streams to `client_connected_cb`.

    When the switch goes away the server is closed, and the loop's exception handler is told why; with `reconnect` it
    goes on with the next switch.

    Args:
        client_connected_cb: called as by `asyncio.start_server`.
        address: as for `vsock.create_server`.
        backlog: how many connections may wait.
        transport: where to listen, as for `vsock.socket`.
        reconnect: come back by itself when the switch ends and another one starts, as for `vsock.create_server`.
        options: passed on to `asyncio.start_server` (``limit``, ``ssl``, ``start_serving``, …).

    Raises:
        OSError: as `vsock.socket.bind` says.
    """
    make = lasting_class() if reconnect else _Listener
    sock = listen(make, address, backlog=backlog, type=SOCK_STREAM, transport=transport)
    loop = asyncio.get_running_loop()
    is_ours = isinstance(sock, socket | UnixListener)
    if is_ours and not isinstance(loop, asyncio.SelectorEventLoop):
        # Another loop would accept at the descriptor itself, or take it away from the listener.
        sock.setblocking(False)
        return await _accept_loop(client_connected_cb, sock, options)
    try:
        server = await asyncio.start_server(
            client_connected_cb, sock=sock, backlog=backlog, **options
        )
    except BaseException:
        sock.close()
        raise
    if isinstance(sock, _Listener):
        sock.server = server
    return server


async def _accept_loop(
    client_connected_cb: _Callback, sock: _Base, options: dict[str, Any]
) -> asyncio.AbstractServer:
    """Do what `asyncio.start_server` does, for a loop that would not call `sock.accept`."""
    loop = asyncio.get_running_loop()
    limit = options.pop("limit", 1 << 16)
    starts = options.pop("start_serving", True)

    def make_protocol() -> asyncio.Protocol:
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        return asyncio.StreamReaderProtocol(reader, client_connected_cb, loop=loop)

    server = AcceptLoop(sock, make_protocol, options)
    if starts:
        await server.start_serving()
    return server


class _Listener(socket):
    """A listener that closes its asyncio server when there is nothing more to come.

    asyncio would otherwise call `accept` again and again, since a dead descriptor stays readable.
    """

    __slots__ = ("server",)
    server: asyncio.Server | None

    def accept(self) -> tuple[socket, Address]:
        try:
            return super().accept()
        except SwitchGone as error:
            server: asyncio.Server | None = getattr(self, "server", None)
            if server is None:
                raise
            loop = server.get_loop()
            loop.call_exception_handler({"message": "vsock server closed", "exception": error})
            loop.call_soon(server.close)
            # asyncio takes this one for a client that did not wait.
            raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from error


async def _connect(
    target: Target, allowed: float | None, transport: Transport | str | None
) -> _Base:
    """Return a non-blocking connected socket; `allowed` seconds are the other side's to answer."""
    if isinstance(target, UnixAddress | HybridAddress):
        return await _connect_hybrid(target, CONNECT_TIMEOUT if allowed is None else allowed)
    sock = make_socket(target, SOCK_STREAM, transport)
    try:
        sock.setblocking(False)
        if not isinstance(sock, socket):
            async with asyncio.timeout(allowed):
                await asyncio.get_running_loop().sock_connect(sock, kernel_pair(target))
            return sock
        if allowed is not None:
            sock.connect_timeout = allowed
        try:
            sock.connect(target)
        except BlockingIOError:
            # The node keeps the timeout; the margin is for a node that does not.
            async with asyncio.timeout(sock.connect_timeout + ANSWER_TIMEOUT):
                await _wait_writable(sock)
            sock.finish_connect()
        return sock
    except BaseException:
        sock.close()
        raise


async def _wait_writable(sock: _Base) -> None:
    loop = asyncio.get_running_loop()
    writable = loop.create_future()

    def set_writable() -> None:
        if not writable.done():
            writable.set_result(None)

    loop.add_writer(sock, set_writable)
    try:
        await writable
    finally:
        loop.remove_writer(sock)


async def _connect_hybrid(target: UnixAddress | HybridAddress, allowed: float) -> _Base:
    """Do what `vsock.transports.hybrid_connect` does, without blocking."""
    loop = asyncio.get_running_loop()
    sock = _Base(_socket.AF_UNIX, SOCK_STREAM)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(allowed):
            await _connect_unix(sock, target.path)
            if isinstance(target, UnixAddress):
                return wrap_hybrid(sock, target, 0)
            await loop.sock_sendall(sock, hybrid_request(target.port))
            line = b""
            while not line.endswith(b"\n") and len(line) <= LONGEST_HYBRID_ANSWER:
                piece = await loop.sock_recv(sock, 1)
                if not piece:
                    break
                line += piece
        return wrap_hybrid(sock, target, hybrid_answer(line, target))
    except TimeoutError:
        sock.close()
        raise transport_error(errno.ETIMEDOUT, f"connect to {target}") from None
    except BaseException:
        sock.close()
        raise


async def _connect_unix(sock: _Base, path: str) -> None:
    """Connect to a Unix socket, whose loop's own `sock_connect` takes a full queue for a connection."""
    with _unix.naming(path):
        for pause in _unix.pauses():
            if _unix.connect_nowait(sock, path):
                break
            await asyncio.sleep(pause)
