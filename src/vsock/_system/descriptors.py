"""Reads and writes descriptors that other processes share, such as standard streams.

Nobody may make them non-blocking, but another process may have: then these calls wait as if they blocked.
"""

import os
import select
import time
from typing import Final

__all__ = ["PIECE", "read", "write_all"]

PIECE: Final = 64 * 1024

_ATOMIC: Final = select.PIPE_BUF


def read(descriptor: int) -> bytes:
    """Read up to PIECE bytes; empty at the end.

    Raises:
        OSError: as read(2) says, but for EAGAIN.
    """
    while True:
        try:
            return os.read(descriptor, PIECE)
        except BlockingIOError:
            select.select([descriptor], [], [])


def write_all(descriptor: int, data: bytes | memoryview, *, deadline: float | None = None) -> None:
    """Write all of `data`, until a time of `time.monotonic` at most.

    Raises:
        OSError: as write(2) says, but for EAGAIN; BrokenPipeError when nobody reads.
        TimeoutError: it was not all written at the deadline.
    """
    rest = memoryview(data)
    while rest:
        if deadline is not None and not _is_writable(descriptor, deadline):
            raise TimeoutError
        try:
            # A write of so much does not wait when poll(2) says that it can be written.
            rest = rest[os.write(descriptor, rest if deadline is None else rest[:_ATOMIC]) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def _is_writable(descriptor: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(max(0, deadline - time.monotonic()) * 1000))
