"""Reads and writes descriptors that other processes share, such as standard streams.

Nobody may make them non-blocking, but another process may have: then these calls wait as if they blocked.
"""

import os
import select
from typing import Final

__all__ = ["PIECE", "read", "write_all"]

PIECE: Final = 64 * 1024


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


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`.

    Raises:
        OSError: as write(2) says, but for EAGAIN; BrokenPipeError when nobody reads.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
