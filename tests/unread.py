"""What is in a pipe that nobody has read."""

import struct
from fcntl import F_GETPIPE_SZ, fcntl, ioctl
from termios import FIONREAD
from typing import IO

__all__ = ["is_half_full", "readable"]


def readable(pipe: IO[bytes]) -> int:
    """How many bytes can be read from a pipe."""
    (count,) = struct.unpack("i", ioctl(pipe, FIONREAD, bytes(4)))
    return int(count)


def is_half_full(pipe: IO[bytes]) -> bool:
    """Whether a pipe has so much that nobody has read; of one that is full, pieces may have left pages half empty."""
    return readable(pipe) > fcntl(pipe, F_GETPIPE_SZ) // 2
