"""The server of `start_server`, for every event loop: it accepts itself, and hands connections to the loop.

A loop that calls accept(2) on the descriptor instead of our `accept`, as uvloop does, would find
nothing there: a listener leads to the switch, and receives connections in its own way.
"""

import asyncio
import errno
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import WeakSet

from vsock._system.green import Base
from vsock.address import Address
from vsock.errors import SwitchGone

_Callback = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]

_LIMIT: Final = 1 << 16
"""asyncio's own limit of a line in bytes."""
_SHORTAGES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SHORTAGE_PAUSE: Final = 1.0
"""Seconds until we accept again after the process ran out of descriptors or memory, as asyncio waits."""


class Server(asyncio.AbstractServer):
    """Accepts at a listener and calls `client_connected_cb` with the streams of each connection.

    Args:
        listener: a non-blocking socket that listens; the server closes it.
        client_connected_cb: as for `asyncio.start_server`.
        backlog: how many connections are accepted in a row, before the loop does something else.
        limit: of the streams, as for `asyncio.start_server`.
        start_serving: accept at once.
        admit: asked with the address of each peer; a connection that it refuses is closed at once.
        options: for `loop.connect_accepted_socket`: ``ssl`` and its timeouts.
    """

    WAITS_FOR_CONNECTIONS = sys.version_info >= (3, 12, 1)

    def __init__(
        self,
        listener: Base,
        client_connected_cb: _Callback,
        *,
        backlog: int = 128,
        limit: int = _LIMIT,
        start_serving: bool = True,
        admit: Callable[[Address], bool] = lambda _: True,
        **options: Any,
    ) -> None:
        self._listener = listener
        self._callback = client_connected_cb
        self._backlog = backlog
        self._limit = limit
        self._begins_at_once = start_serving
        self._admit = admit
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._closed = self._loop.create_future()
        self._is_serving = False
        self._starting: set[asyncio.Task[None]] = set()
        self._clients: WeakSet[asyncio.Transport] = WeakSet()
        self._connected = 0
        self._changed = self._loop.create_future()

    @property
    def sockets(self) -> tuple[Base, ...]:
        """The listener, until the server is closed."""
        return () if self._closed.done() else (self._listener,)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that it runs in."""
        return self._loop

    def is_serving(self) -> bool:
        """Tell whether it accepts connections."""
        return self._is_serving

    async def begin(self) -> None:
        """Accept from now on, unless it was made with ``start_serving=False``."""
        if self._begins_at_once:
            await self.start_serving()

    async def start_serving(self) -> None:
        """Accept from now on."""
        if not self._is_serving and not self._closed.done():
            self._is_serving = True
            self._loop.add_reader(self._listener, self._accept)

    async def serve_forever(self) -> None:
        """Accept until it is closed or this is cancelled, which closes it."""
        await self.start_serving()
        try:
            await asyncio.shield(self._closed)
        finally:
            self.close()

    def close(self) -> None:
        """Accept no more; connections go on."""
        if self._is_serving:
            self._is_serving = False
            self._loop.remove_reader(self._listener)
        if not self._closed.done():
            self._closed.set_result(None)
            self._listener.close()

    def close_clients(self) -> None:
        """Close all connections, after what is to be sent over them."""
        for client in list(self._clients):
            client.close()

    def abort_clients(self) -> None:
        """Close all connections at once."""
        for client in list(self._clients):
            client.abort()

    async def wait_closed(self) -> None:
        """Wait until it is closed and, as asyncio's servers do from Python 3.12.1 on, all connections have ended."""
        await asyncio.shield(self._closed)
        if self.WAITS_FOR_CONNECTIONS:
            while self._starting or self._connected:
                self._changed = self._loop.create_future()
                await self._changed

    def _accept(self) -> None:
        for _ in range(self._backlog + 1):
            if self._closed.done():
                return
            try:
                connection, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except SwitchGone as error:
                self._report("vsock server closed", error)
                self.close()
                return
            except OSError as error:
                self._report("vsock accept", error)
                if error.errno in _SHORTAGES:
                    self._pause()
                return
            if not self._admit(peer):
                connection.close()
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._start(connection))
            self._starting.add(task)
            task.add_done_callback(self._started)

    def _pause(self) -> None:
        """Accept no more for a moment: the listener stays readable."""
        self._loop.remove_reader(self._listener)
        self._loop.call_later(_SHORTAGE_PAUSE, self._resume)

    def _resume(self) -> None:
        if self._is_serving:
            self._loop.add_reader(self._listener, self._accept)

    async def _start(self, connection: Base) -> None:
        """Hand one connection to the loop; one whose TLS handshake fails is only reported."""
        try:
            client, _ = await self._loop.connect_accepted_socket(
                self._make_protocol, connection, **self._options
            )
        except OSError as error:
            connection.close()
            self._report("vsock accept", error)
        else:
            self._clients.add(client)

    def _started(self, task: "asyncio.Task[None]") -> None:
        self._starting.discard(task)
        self._note_change()

    def count(self, change: int) -> None:
        """Count a connection that was made, or that has ended."""
        self._connected += change
        self._note_change()

    def _note_change(self) -> None:
        if not self._changed.done():
            self._changed.set_result(None)

    def _make_protocol(self) -> asyncio.Protocol:
        reader = asyncio.StreamReader(limit=self._limit, loop=self._loop)
        return _Counted(self, reader, self._callback)

    def _report(self, message: str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error})


class _Counted(asyncio.StreamReaderProtocol):
    """The protocol of one connection, which its server counts."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, callback: _Callback) -> None:
        super().__init__(reader, callback, loop=server.get_loop())
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._server.count(1)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        super().connection_lost(exc)
        self._server.count(-1)
