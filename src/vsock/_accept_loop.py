"""A server for event loops that do not call `socket.accept` but the kernel: uvloop, for one.

The descriptor of a `vsock.socket` that listens leads to the switch and takes connections in its own
way, so such a loop finds nothing to accept there. This server watches the descriptor, accepts
itself and hands each connection to the loop, which any loop can take. `vsock.aio` chooses.
"""

import asyncio
import socket as _socket
from collections.abc import Callable
from typing import Any

from vsock.errors import SwitchGone


class AcceptLoop(asyncio.AbstractServer):
    """Accepts at `listener` and gives each connection a protocol that `make_protocol` makes."""

    def __init__(
        self, listener: _socket.socket, make_protocol: Callable[[], asyncio.Protocol], options: Any
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._closed = self._loop.create_future()
        self._is_serving = False
        self._starting: set[asyncio.Task[None]] = set()

    @property
    def sockets(self) -> tuple[_socket.socket, ...]:
        """The listener, until the server is closed."""
        return () if self._closed.done() else (self._listener,)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that it runs in."""
        return self._loop

    def is_serving(self) -> bool:
        """Tell whether it accepts connections."""
        return self._is_serving

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

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        await asyncio.shield(self._closed)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        except SwitchGone as error:
            self._loop.call_exception_handler(
                {"message": "vsock server closed", "exception": error}
            )
            self.close()
            return
        except OSError as error:
            self._loop.call_exception_handler({"message": "vsock accept", "exception": error})
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._begin(connection))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _begin(self, connection: _socket.socket) -> None:
        """Hand one connection to the loop; one whose TLS handshake fails is only reported."""
        try:
            await self._loop.connect_accepted_socket(
                self._make_protocol, connection, **self._options
            )
        except OSError as error:
            connection.close()
            self._loop.call_exception_handler({"message": "vsock accept", "exception": error})
