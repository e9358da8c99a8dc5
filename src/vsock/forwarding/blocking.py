"""A `Forwarder` for programs without asyncio: it runs in an event loop of its own, in a thread."""

import asyncio
import logging
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vsock.errors import UsageError
from vsock.forwarding.forwarder import Forwarder, Refused

if TYPE_CHECKING:
    from vsock.address import Target
    from vsock.forwarding.ends import TcpEnd

__all__ = ["BlockingForwarder"]

_log = logging.getLogger("vsock")


class BlockingForwarder:
    """Forwards connections as long as its block lasts, or from `start` to `stop`.

    A connection that came to nothing is a warning of the logger ``vsock``, one that was lost a debug message. The end of the
    switch, after which no more are accepted, is a warning.

    Args:
        source: where it listens, as for `Forwarder`.
        target: where each connection leads.
        options: as of `Forwarder`.
    """

    def __init__(
        self, source: "TcpEnd | Target", target: "TcpEnd | Target", **options: Any
    ) -> None:
        self._ends = source, target
        self._options = {"tell": self._tell, **options}
        self._thread: threading.Thread | None = None
        self._end: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def start(self) -> None:
        """Listen, and forward from now on.

        Raises:
            OSError: it cannot listen there.
            UsageError: it runs already.
        """
        if self._thread:
            raise UsageError("this forwarder runs already")
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        thread = threading.Thread(
            target=lambda: asyncio.run(self._run(started)), name="vsock-forwarder", daemon=True
        )
        thread.start()
        try:
            self._end = started.result()
        except BaseException:
            if started.done():
                thread.join()
            raise
        self._thread = thread

    def stop(self) -> None:
        """Close the listener and all connections. A second call has no effect."""
        thread, self._thread = self._thread, None
        if thread and self._end:
            loop, ended = self._end
            loop.call_soon_threadsafe(ended.set)
            thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def _run(
        self, started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]"
    ) -> None:
        ended = asyncio.Event()
        try:
            async with Forwarder(*self._ends, **self._options) as forwarder:
                started.set_result((asyncio.get_running_loop(), ended))
                watching = asyncio.create_task(self._watch(forwarder))
                await ended.wait()
                watching.cancel()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _watch(self, forwarder: Forwarder) -> None:
        try:
            await forwarder.wait()
        except OSError as error:
            _log.warning("%s is not forwarded any more: %s", self._ends[0], error)

    def _tell(self, refused: Refused) -> None:
        # A client that ends while it is being sent something loses its connection too.
        level = logging.DEBUG if refused.is_lost else logging.WARNING
        _log.log(level, "connection of %s: %s", refused.peer, refused.reason)
