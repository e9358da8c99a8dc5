"""The asyncio twins of `vsock.sockets`: the same verbs, giving asyncio's streams.

Only the waiting is different here. `socket` itself works with asyncio's own functions as well
(``loop.sock_connect``, ``asyncio.open_connection(sock=…)``).
"""

import asyncio
import contextlib
import select
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from vsock._socket.transport import ConnectOptions, Transport, transport_for
from vsock._system.green import Base
from vsock._system.waiting import Steps, Wait
from vsock.address import AddressLike, as_target
from vsock.aio.server import Server
from vsock.sockets import create_server

_Callback = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]
_T = TypeVar("_T")


async def open_connection(
    address: AddressLike,
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
    target = as_target(address)
    where = transport_for(target, transport)
    sock = await run(where.connect(target, ConnectOptions(timeout=timeout)))
    try:
        return await asyncio.open_connection(sock=sock, **options)
    except BaseException:
        sock.close()
        raise


async def start_server(
    client_connected_cb: _Callback,
    address: AddressLike | int,
    *,
    backlog: int = 128,
    transport: Transport | str | None = None,
    reconnect: bool = False,
    **options: Any,
) -> asyncio.AbstractServer:
    """Accept connections at `address` and give each one's streams to `client_connected_cb`.

    When the switch goes away the server is closed, and the loop's exception handler is told why;
    with `reconnect` it goes on with the next switch.

    Args:
        client_connected_cb: called as by `asyncio.start_server`.
        address: as for `vsock.create_server`.
        backlog: how many connections may wait.
        transport: where to listen, as for `vsock.socket`.
        reconnect: come back by itself when the switch ends and another one starts, as for `vsock.create_server`.
        options: as of `asyncio.start_server` (``limit``, ``ssl``, ``start_serving``, …).

    Raises:
        OSError: as `vsock.socket.bind` says.
    """
    listener = create_server(address, backlog=backlog, transport=transport, reconnect=reconnect)
    try:
        listener.setblocking(False)
        server = Server(listener, client_connected_cb, backlog=backlog, **options)
        await server.begin()
    except BaseException:
        listener.close()
        raise
    return server


async def run(steps: Steps[_T], wait: Callable[[Wait], Awaitable[bool]] | None = None) -> _T:
    """Go through `steps`, letting the event loop run where they wait, and return their result.

    `wait` is for event loops other than asyncio's.
    """
    wait = wait or _wait
    with contextlib.closing(steps):
        try:
            wanted = next(steps)
            while True:
                wanted = steps.send(await wait(wanted))
        except StopIteration as end:
            result: _T = end.value
            return result


async def _wait(wanted: Wait) -> bool:
    """Wait, and tell whether it came in time."""
    left = None if wanted.deadline is None else wanted.deadline - time.monotonic()
    try:
        async with asyncio.timeout(left):
            await _ready(wanted.sock, wanted.events)
    except TimeoutError:
        return False
    return True


async def _ready(sock: Base | None, events: int) -> None:
    """Wait until one of `events` is on `sock`."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def set_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    if sock is not None and events & select.POLLIN:
        loop.add_reader(sock, set_ready)
    if sock is not None and events & select.POLLOUT:
        loop.add_writer(sock, set_ready)
    try:
        await ready
    finally:
        if sock is not None and events & select.POLLIN:
            loop.remove_reader(sock)
        if sock is not None and events & select.POLLOUT:
            loop.remove_writer(sock)
