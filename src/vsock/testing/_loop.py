"""One event loop in a thread of its own, for the blocking twins of what is written for asyncio."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for threads that have no loop; lives as long as the program."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="vsock-testing", daemon=True)
        thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it and return its result; it is cancelled if the caller is interrupted."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


_only: list[LoopThread] = []
_making = threading.Lock()


def loop_thread() -> LoopThread:
    """The one of this program, whichever thread asks first."""
    with _making:
        if not _only:
            _only.append(LoopThread())
        return _only[0]
