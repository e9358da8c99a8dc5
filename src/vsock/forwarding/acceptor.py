"""Accepts connections at one end and serves each in a task of its own; how many at once is limited."""

import asyncio
import errno
import resource
import socket
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from vsock.errors import SwitchGone
from vsock.forwarding import ends

if TYPE_CHECKING:
    from vsock._socket.transport import Transport
    from vsock.address import Target

__all__ = ["Acceptor", "places"]

_DESCRIPTORS: Final = 7
"""Of a connection that is joined to another: two sockets, two pipes and an epoll instance."""
_RESERVE: Final = 64
_PAUSE_SECONDS: Final = 0.1
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts connections as long as its block lasts.

    Args:
        source: where it listens.
        serve: serves a connection, which is non-blocking, and closes it; called with the socket and its peer's address.
        places: connections at once; others wait in the queue of the listener. Several acceptors may share them.
        transport: of addresses that belong to none, as for `vsock.create_connection`.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(
        self,
        source: "ends.TcpEnd | Target",
        serve: Callable[[socket.socket, Any], Coroutine[Any, Any, None]],
        *,
        places: asyncio.Semaphore,
        transport: "Transport | str | None" = None,
    ) -> None:
        self._source = source
        self._serve = serve
        self._places = places
        self._transport = transport
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.total = 0
        """Connections so far."""

    @property
    def open(self) -> int:
        """Connections now."""
        return len(self._connections)

    @property
    def address(self) -> str:
        """Where it listens, with the port that was free."""
        assert self._listener
        if isinstance(self._source, ends.TcpEnd):
            host, port, *_ = self._listener.getsockname()
            return str(ends.TcpEnd(host, port))
        return str(self._source)

    async def __aenter__(self) -> Self:
        self._listener = ends.listen(self._source, self._transport)
        self._accepting = asyncio.create_task(self._accept(self._listener))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._listener
        assert self._accepting
        tasks = [self._accepting, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def wait(self) -> None:
        """Wait until it cannot accept any more.

        Raises:
            OSError: why, such as SwitchGone.
        """
        assert self._accepting
        await self._accepting

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            try:
                caller, peer = await loop.sock_accept(listener)
            except SwitchGone:
                raise
            except OSError as error:
                self._places.release()
                if error.errno in _NO_DESCRIPTORS:
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue
            except BaseException:
                self._places.release()
                raise
            self.total += 1
            caller.setblocking(False)
            ends.keep_alive(caller)
            task = loop.create_task(self._serve(caller, peer))
            self._connections.add(task)
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._places.release()


def places(most: int) -> asyncio.Semaphore:
    """Places for `most` connections, or as many as this process has descriptors for, after it has taken all it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return asyncio.Semaphore(min(most, max(1, (hard - _RESERVE) // _DESCRIPTORS)))
