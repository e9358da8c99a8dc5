"""Accepts connections at one end and makes each a connection to the other."""

import asyncio
import errno
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from vsock.errors import SwitchGone
from vsock.forwarding import ends
from vsock.forwarding.splicing import Carried, join

if TYPE_CHECKING:
    from vsock._socket.transport import Transport
    from vsock.address import Target

__all__ = ["Forwarder", "Refused"]

_DESCRIPTORS: Final = 6
"""Of a connection: two sockets and two pipes."""
_RESERVE: Final = 64
_PAUSE_SECONDS: Final = 0.1
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class Refused:
    """A connection that came to nothing, or was lost.

    Attributes:
        peer: where it came from.
        reason: why it ended.
        is_lost: whether it had been open, and then one side ended it with an error.
    """

    peer: str
    reason: str
    is_lost: bool = False


class Forwarder:
    """Forwards connections as long as its block lasts.

    Args:
        source: where it listens.
        target: where each connection leads.
        transport: of addresses that belong to none, as for `vsock.create_connection`.
        seconds: how long the target may take to answer.
        most: connections at once; others wait in the queue of the listener.
        tell: called for each connection that came to nothing or was lost.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(
        self,
        source: "ends.TcpEnd | Target",
        target: "ends.TcpEnd | Target",
        *,
        transport: "Transport | str | None" = None,
        seconds: float = 10.0,
        most: int = 4096,
        tell: Callable[[Refused], None] = lambda _: None,
    ) -> None:
        self._source = source
        self._target = target
        self._transport = transport
        self._seconds = seconds
        self._places = asyncio.Semaphore(min(most, _places()))
        self._tell = tell
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
            task = loop.create_task(self._serve(caller, str(peer or self._source)))
            self._connections.add(task)
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._places.release()

    async def _serve(self, caller: socket.socket, peer: str) -> None:
        try:
            caller.setblocking(False)
            callee = await ends.connect(self._target, self._transport, self._seconds)
        except BaseException as error:
            # The reason is told before the caller sees the end.
            with caller:
                if not isinstance(error, OSError):
                    raise
                reason = error.strerror or str(error) or f"no answer within {self._seconds:g} s"
                self._tell(Refused(peer, f"{self._target}: {reason}"))
                return
        try:
            await join(caller, callee, Carried())
        except OSError as error:
            self._tell(Refused(peer, error.strerror or str(error), is_lost=True))


def _places() -> int:
    """How many connections this process has descriptors for, after it has taken all that it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, (hard - _RESERVE) // _DESCRIPTORS)
