"""One event loop in a thread of its own, for the blocking versions of asyncio classes."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from vsock._system.waiting import SIGNAL_SECONDS

T = TypeVar("T")

Calls = SimpleQueue[Callable[[], object] | None]
"""Functions that the loop's thread passes to the waiting thread, which calls them."""

_CLEANING_SECONDS: Final = 5.0
"""Seconds that a cancelled coroutine may take to clean up."""


class LoopThread:
    """Runs coroutines for threads that have no loop; lives as long as the program."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="vsock-testing", daemon=True)
        thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T], calls: Calls | None = None) -> T:
        """Run a coroutine and return its result.

        If the caller is interrupted, the coroutine is cancelled, and has cleaned up before the caller goes
        on. Functions in `calls` are called here, in the caller's thread, where their errors, for instance
        of a `print` to a closed pipe, are raised and end the wait.
        """
        calls = SimpleQueue() if calls is None else calls
        started: Future[asyncio.Task[T]] = Future()
        over = threading.Event()

        def start() -> None:
            task = self._loop.create_task(coroutine)
            task.add_done_callback(end)
            started.set_result(task)

        def end(_: object) -> None:
            over.set()
            calls.put(None)  # wakes the caller

        self._loop.call_soon_threadsafe(start)
        try:
            while not over.is_set():
                try:
                    wanted = calls.get(timeout=SIGNAL_SECONDS)
                except Empty:
                    continue
                if wanted is not None:
                    wanted()
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: started.result().cancel())
            over.wait(_CLEANING_SECONDS)
            raise
        return started.result().result()


_only: list[LoopThread] = []
_making = threading.Lock()


def loop_thread() -> LoopThread:
    """The loop thread of this program; the first caller starts it."""
    with _making:
        if not _only:
            _only.append(LoopThread())
        return _only[0]
