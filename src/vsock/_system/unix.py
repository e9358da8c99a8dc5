"""Connecting to Unix sockets.

A connect to a listener whose queue is full fails with EAGAIN at once, and cannot be polled for. So
it is tried again until a deadline. Listeners at a path are in `vsock.transports.unix`.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Final

from vsock._system.green import Base
from vsock._system.waiting import Steps, Wait
from vsock.errors import UsageError

_SHORTEST_PAUSE: Final = 0.000625
_LONGEST_PAUSE: Final = 0.01


def connect(sock: Base, path: str, deadline: float) -> Steps[bool]:
    """Connect the non-blocking Unix socket `sock`; False if the queue was full until `deadline`.

    Raises:
        OSError: as connect(2) says, but for EAGAIN.
    """
    pause = _SHORTEST_PAUSE
    while True:
        try:
            Base.connect(sock, path)
        except BlockingIOError:
            now = time.monotonic()
            if now >= deadline:
                return False
            yield Wait(None, 0, min(now + pause, deadline))
            pause = min(pause * 2, _LONGEST_PAUSE)
        else:
            return True


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Add `path` to the errors of calls on a Unix socket: the kernel's errors do not name it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # Python itself says that the path is too long
            raise UsageError(f"{path}: {error}") from None
        raise OSError(error.errno, os.strerror(error.errno), path) from None
