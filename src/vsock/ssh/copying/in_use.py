"""Closes files and sockets behind the last thread that uses them. What they are, and what is done with them, is not known here."""

import errno
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

__all__ = ["InUse"]

_T = TypeVar("_T")


class InUse(Generic[_T]):
    """A file that is used within `with`, which gives it: it is closed when it is to be closed and nobody uses it.

    A call in a thread outlives the task that waits for it, if that is cancelled. If the file were closed then, another
    one could have its number before the thread has made its system call, and would be written to or read from instead.

    Args:
        file: a descriptor, or a socket.
        close: closes it; called once, perhaps in a thread.
    """

    def __init__(self, file: _T, close: Callable[[_T], object]) -> None:
        self._file = file
        self._close = close
        self._lock = threading.Lock()
        self._users = 0
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether it is to be closed: then what a thread still does with it is for nobody."""
        return self._is_closed

    def __enter__(self) -> _T:
        """Keep it open.

        Raises:
            OSError: EBADF: it is to be closed.
        """
        with self._lock:
            if self._is_closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1
        return self._file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._users -= 1
            self._close_if_unused()

    def close(self) -> None:
        """Close it, behind its last use. A second call has no effect."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_closed and not self._users:
            self._close(self._file)
