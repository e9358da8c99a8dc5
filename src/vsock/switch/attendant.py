"""Serves a running switch from an event loop: logs its events, and runs the servers of its control plane.

`Attendant` runs in the caller's event loop, `AttendantThread` in a thread with its own loop. Bytes of
connections never pass through here.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Final, Self

__all__ = ["Attendant", "AttendantThread"]

_STORM_SECONDS: Final = 1.5
_QUIET_SECONDS: Final = 6.0
"""Of a storm of events the data plane tells only a part. It says how many more there were after a second, and
then at most every five seconds, if it is asked (crates/node/src/journal/limits.rs)."""


class Attendant:
    """Serves a switch from the running event loop, as an async context manager.

    Args:
        event_fd: a descriptor that is readable while there are events.
        log_events: logs the events since its last call, and returns whether there were any.
        servers: what else runs in the loop meanwhile, in the order of their start.
    """

    def __init__(
        self,
        event_fd: int,
        log_events: Callable[[], bool],
        servers: Sequence[AbstractAsyncContextManager[object]],
    ) -> None:
        self._event_fd = event_fd
        self._log_events = log_events
        self._servers = servers
        self._stack = AsyncExitStack()
        self._has_logged = False
        self._next_look: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._event_fd, self._on_events)
        self._stack.callback(self._stop_watching)
        try:
            for server in self._servers:
                await self._stack.enter_async_context(server)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def _on_events(self) -> None:
        self._has_logged |= self._log_events()
        if self._has_logged and self._next_look is None:
            self._look_again_in(_STORM_SECONDS)

    def _look_again(self) -> None:
        """Logs what was held back, and goes on until there has been nothing to log for a while."""
        has_logged = self._log_events() or self._has_logged
        self._has_logged, self._next_look = False, None
        if has_logged:
            self._look_again_in(_QUIET_SECONDS)

    def _look_again_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._next_look = loop.call_later(seconds, self._look_again)

    def _stop_watching(self) -> None:
        asyncio.get_running_loop().remove_reader(self._event_fd)
        if self._next_look:
            self._next_look.cancel()
        self._log_events()


class AttendantThread:
    """Runs an attendant in a thread, for programs without asyncio. Raises what the attendant raises."""

    def __init__(self, attendant: Attendant) -> None:
        self._attendant = attendant
        self._loop: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._attend()), name="vsock-switch", daemon=True
        )
        self._thread.start()
        self._loop.result()

    async def _attend(self) -> None:
        over = asyncio.Event()
        try:
            async with self._attendant:
                self._loop.set_result((asyncio.get_running_loop(), over))
                await over.wait()
        except BaseException as error:
            if self._loop.done():
                raise
            self._loop.set_exception(error)

    def end(self) -> None:
        """Ends the loop and the thread."""
        loop, over = self._loop.result()
        loop.call_soon_threadsafe(over.set)
        self._thread.join()
